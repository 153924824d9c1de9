//! Completions and man pages, made from the command line itself.

use clap::{CommandFactory, builder::Command};
use clap_complete::Shell;

use super::{Failed, say};
use crate::cli::Cli;

/// `syncmux completions SHELL`
pub fn completions(shell: Shell) {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "syncmux", &mut text);
    say(&String::from_utf8_lossy(&text));
}

/// `syncmux man [COMMAND]`
///
/// # Errors
/// There is no such command.
pub fn man(command: Option<&str>) -> Result<(), Failed> {
    let mut cli = Cli::command();
    cli.build();
    let (page, title) = match command {
        None => (cli, "syncmux".to_owned()),
        Some(name) => {
            let found = cli.get_subcommands().find(|sub| sub.get_name() == name);
            let found = found.cloned().ok_or_else(|| {
                let names: Vec<_> = cli.get_subcommands().map(Command::get_name).collect();
                let names = names.join(", ");
                Failed::usage(format!("there is no command {name:?}: there are {names}"))
            })?;
            (found, format!("syncmux-{name}"))
        }
    };
    let source = concat!("syncmux ", env!("CARGO_PKG_VERSION"));
    let mut text = Vec::new();
    let page = clap_mangen::Man::new(page).title(title).source(source);
    page.render(&mut text)
        .map_err(|error| Failed(crate::cli::Exit::Internal, error.to_string()))?;
    say(&String::from_utf8_lossy(&text));
    Ok(())
}
