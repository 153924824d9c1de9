//! The operator's tools: they look at a syncmux that runs, by its admin endpoint, or beside it.

use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::cli::Exit;
use crate::config::{Listen, Outline};

pub mod drain;
mod http;
mod paint;
pub mod papers;
pub mod resync;
pub mod status;
pub mod verify;

/// Where the configuration is unless somebody says otherwise.
const CONFIG: &str = "/etc/syncmux/syncmux.toml";

/// How a tool ended early: what is said, and the exit code.
#[derive(Debug)]
pub struct Failed(pub Exit, pub String);

impl Failed {
    fn usage(why: impl Display) -> Self {
        Failed(Exit::Usage, why.to_string())
    }

    fn unreachable(why: impl Display) -> Self {
        Failed(Exit::Unreachable, why.to_string())
    }
}

/// Which syncmux is asked.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Endpoint {
    /// The configuration of the syncmux to ask [default: /etc/syncmux/syncmux.toml]
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Its admin endpoint, IP:PORT or unix:/PATH, in the place of the one in the configuration
    #[arg(long, value_name = "ADDRESS", conflicts_with = "config")]
    pub admin: Option<String>,
}

impl Endpoint {
    /// The address to ask at.
    fn address(&self) -> Result<Listen, Failed> {
        if let Some(text) = &self.admin {
            return Listen::parse(text).map_err(|_| {
                Failed::usage(format!(
                    "--admin: `{text}` is no address to connect to: write IP:PORT, such as \
                     127.0.0.1:9205 or [::1]:9205, or unix:/PATH"
                ))
            });
        }
        let path = self.config.as_deref().unwrap_or(Path::new(CONFIG));
        let outline = Outline::read(path).map_err(Failed::usage)?;
        outline.admin.ok_or_else(|| {
            let path = path.display();
            Failed::usage(format!(
                "{path} has no admin endpoint, where a running syncmux could be asked: set listen \
                 = \"127.0.0.1:9205\" under [admin] and restart syncmux"
            ))
        })
    }
}

/// Writes to standard output; whether anybody reads on.
pub fn say(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .is_ok()
}

/// Text of others, with nothing in it that a terminal would obey.
fn printable(text: &str) -> String {
    let plain = |c: char| if obeyed(c) { '?' } else { c };
    text.chars().map(plain).collect()
}

/// Control characters, those that turn or hide what stands beside them (Unicode's category Cf), and
/// Unicode's ends of lines and paragraphs.
fn obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
            | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}' | '\u{e0020}'..='\u{e007f}')
}
