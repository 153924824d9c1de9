//! The `syncmux` program: the configuration is complete before a port is bound.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use syncmux::check;
use syncmux::cli::{Cli, Command, Exit};
use syncmux::config::{Config, Errors, Flags, Log, Problem, Shard, Terminate};
use syncmux::io::telemetry;
use syncmux::run::{self, RunError};
use syncmux::shard;
use syncmux::terminate;
use syncmux::tools::verify::Verdict;
use syncmux::tools::{self, Failed};

fn main() -> ExitCode {
    let end = std::panic::catch_unwind(AssertUnwindSafe(|| match Cli::read() {
        Ok(Cli { command }) => carry_out(&command),
        Err(exit) => exit,
    }));
    // The panic has been printed by now.
    end.unwrap_or(Exit::Internal).into()
}

fn carry_out(command: &Command) -> Exit {
    match command {
        Command::Run(flags) => run(flags),
        Command::Check(flags) => check(flags),
        Command::Terminate { config } => terminate(config),
        Command::Shard {
            config,
            print_config,
            put_back,
        } => shard(config, *print_config, *put_back),
        Command::Status(args) => tool(|| wait_for(tools::status::run(args))),
        Command::Drain(args) => tool(|| wait_for(tools::drain::run(args))),
        Command::Resync(args) => tool(|| tools::resync::run(args)),
        Command::Verify(args) => {
            let mut verdict = Verdict::Equal;
            let exit = tool(|| {
                verdict = wait_for(tools::verify::run(args))?;
                Ok(())
            });
            match (exit, verdict) {
                (Exit::Fine, Verdict::Differs) => Exit::Differs,
                (exit, _) => exit,
            }
        }
        Command::Completions { shell } => {
            tools::papers::completions(*shell);
            Exit::Fine
        }
        Command::Man { command } => tool(|| tools::papers::man(command.as_deref())),
    }
}

fn tool(work: impl FnOnce() -> Result<(), Failed>) -> Exit {
    match work() {
        Ok(()) => Exit::Fine,
        Err(Failed(exit, why)) => {
            eprintln!("syncmux: {why}");
            exit
        }
    }
}

fn wait_for<T>(work: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    match runtime() {
        Ok(runtime) => {
            let result = runtime.block_on(work);
            runtime.shutdown_timeout(Duration::from_secs(1));
            result
        }
        Err(error) => {
            let why = format!("the runtime can't be started: {error}");
            Err(Failed(Exit::Internal, why))
        }
    }
}

fn run(flags: &Flags) -> Exit {
    let config = match load(flags) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let refusals = check::refusals(&config);
    for refusal in &refusals {
        eprintln!("syncmux: {refusal}");
    }
    if !refusals.is_empty() {
        return Exit::Usage;
    }
    let (log, warnings) = (config.log, config.warnings.clone());
    serve(&log, &warnings, run::run(config))
}

fn terminate(path: &Path) -> Exit {
    match Terminate::load(path) {
        Ok(config) => {
            let (log, warnings) = (config.log, config.warnings.clone());
            serve(&log, &warnings, terminate::terminate(config))
        }
        Err(errors) => usage(errors),
    }
}

fn shard(path: &Path, print_config: bool, put_back: bool) -> Exit {
    let config = match Shard::load(path) {
        Ok(config) => config,
        Err(errors) => return usage(errors),
    };
    if print_config {
        let _ = tools::say(&check::shard::print(&config));
        return Exit::Fine;
    }
    let refusals = check::shard::refusals(&config);
    for refusal in &refusals {
        eprintln!("syncmux: {refusal}");
    }
    if !refusals.is_empty() {
        return Exit::Usage;
    }
    if !put_back {
        let (log, warnings) = (config.log, config.warnings.clone());
        return serve(&log, &warnings, shard::shard(config));
    }
    match shard::put_back(&config) {
        Ok(lines) => {
            let path = config.sync_directory.display();
            let _ = tools::say(&format!(
                "{lines} lines were put back into the log in {path}\n"
            ));
            Exit::Fine
        }
        Err(error) => {
            eprintln!("syncmux: {error}");
            Exit::Usage
        }
    }
}

/// Runs one of the servers to its end.
fn serve(
    log: &Log,
    warnings: &[Problem],
    server: impl Future<Output = Result<(), RunError>>,
) -> Exit {
    telemetry::start_log(log);
    more_descriptors();
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let result = match runtime() {
        Ok(runtime) => {
            let result = runtime.block_on(server);
            // What still hangs in a system call is not waited for.
            runtime.shutdown_timeout(Duration::from_secs(1));
            result
        }
        Err(error) => Err(RunError::Internal(format!(
            "the runtime can't be started: {error}"
        ))),
    };
    match result {
        Ok(()) => Exit::Fine,
        Err(error) => {
            tracing::error!("{error}");
            match error {
                RunError::Setup(_) => Exit::Usage,
                RunError::Internal(_) => Exit::Internal,
            }
        }
    }
}

/// Sessions, lanes and spill files can be more than the 1,024 descriptors that a process usually
/// gets before it asks.
fn more_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

fn check(flags: &Flags) -> Exit {
    let path = flags.config.as_deref();
    let [terminates, shards, runs] = match path.map(Shard::tables).transpose() {
        Ok(found) => found.unwrap_or([false, false, true]),
        Err(errors) => return usage(errors),
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("syncmux: the runtime can't be started: {error}");
            return Exit::Internal;
        }
    };
    let mut report = check::Report::default();
    if terminates && let Some(path) = path {
        match Terminate::load(path) {
            Ok(config) => report = runtime.block_on(check::terminate::check(&config)),
            Err(errors) => return usage(errors),
        }
    }
    if shards && let Some(path) = path {
        match Shard::load(path) {
            Ok(config) => report.join(check::shard::check(&config)),
            Err(errors) => return usage(errors),
        }
    }
    if runs || !(terminates || shards) {
        let config = match load(flags) {
            Ok(config) => config,
            Err(exit) => return exit,
        };
        let limits = &config.limits;
        let connect = |channel| check::connect::connect(channel, limits.clone());
        report.join(runtime.block_on(check::check(&config, connect)));
    }
    // Nobody need read on: the exit code says the worst of it.
    let _ = tools::say(&report.to_string());
    report.exit()
}

fn load(flags: &Flags) -> Result<Config, Exit> {
    Config::load(flags).map_err(usage)
}

fn usage(errors: Errors) -> Exit {
    for problem in errors.0 {
        eprintln!("syncmux: {problem}");
    }
    Exit::Usage
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
}
