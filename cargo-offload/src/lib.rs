//! The command lines of Offload: they turn what was typed into resolved settings, hand those to `offload-core`, and
//! turn what comes back into an exit code. No test logic lives here.

mod cli;
mod commands;
mod failure;
mod masked;
mod settings;
mod signals;

use std::ffi::OsString;

use clap::Parser;

use cli::CommonArgs;
use cli::cargo::{CargoCli, CargoCommand};
use cli::offload::{OffloadCli, OffloadCommand};
use cli::typed;
use failure::{Outcome, exit_code};

/// Runs `cargo offload` with the arguments of the process (the program's name first) and returns its exit code.
pub fn cargo_main(args: impl IntoIterator<Item = OsString>) -> i32 {
    let mut args: Vec<OsString> = args.into_iter().collect();
    // Cargo gives its subcommands their own name as the first argument.
    if args.get(1).is_some_and(|arg| arg == "offload") {
        args.remove(1);
    }
    let parsed = CargoCli::try_parse_from(typed::command_first(args));
    let cli = match parsed.and_then(|cli| typed::check_filters(&cli).map(|()| cli)) {
        Ok(cli) => cli,
        Err(error) => return usage(&typed::explain(error)),
    };
    begin(&cli.common);
    exit_code(cargo_command(cli))
}

fn cargo_command(cli: CargoCli) -> Outcome {
    let CargoCli { command, run, common } = cli;
    match command {
        None => commands::run::cargo(&common, run),
        Some(CargoCommand::Run(args)) => commands::run::cargo(&common, *args),
        Some(CargoCommand::List(args)) => commands::list::cargo(&common, &args),
        Some(CargoCommand::Init) => commands::init::init("local", Some("cargo")),
        Some(CargoCommand::Validate) => commands::validate::cargo(&common),
        Some(CargoCommand::Logs(args)) => commands::logs::cargo(&common, &args),
        Some(CargoCommand::Worker) => commands::worker::serve(),
    }
}

/// Runs `offload` with the arguments of the process (the program's name first) and returns its exit code.
pub fn offload_main(args: impl IntoIterator<Item = OsString>) -> i32 {
    let cli = match OffloadCli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    begin(&cli.common);
    exit_code(offload_command(cli))
}

fn offload_command(cli: OffloadCli) -> Outcome {
    let OffloadCli { command, common } = cli;
    match command {
        OffloadCommand::Run(args) => commands::run::offload(&common, *args),
        OffloadCommand::Build(args) => commands::build::build(&common, &args),
        OffloadCommand::Collect(args) => commands::list::offload(&common, args.format),
        OffloadCommand::Validate => commands::validate::offload(&common),
        OffloadCommand::Init(args) => commands::init::init(&args.provider, args.framework.as_deref()),
        OffloadCommand::Logs(args) => commands::logs::offload(&common, &args),
        OffloadCommand::History(command) => commands::history::run(&common, &command),
        OffloadCommand::CheckpointStatus => commands::build::checkpoint_status(),
        OffloadCommand::Clean(args) => commands::clean::clean(&common, &args),
        OffloadCommand::Worker => commands::worker::serve(),
    }
}

/// Help and version go where they are asked for; mistakes are explained, with the exit code of all usage errors.
fn usage(error: &clap::Error) -> i32 {
    // Nothing can be done about a terminal that is gone.
    let _ = error.print();
    if error.use_stderr() { failure::NOTHING_RUN } else { 0 }
}

/// What every command needs.
fn begin(common: &CommonArgs) {
    start_logging(common);
    // Whoever needs a temporary file and gets none says so.
    let _ = offload_core::temporary::ensure_temp_dir();
}

/// What offload itself does, for those who ask for it: `-vv`, or `OFFLOAD_LOG` as tracing's filter directives.
fn start_logging(common: &CommonArgs) {
    use tracing_subscriber::EnvFilter;
    let filter = match std::env::var("OFFLOAD_LOG") {
        Ok(directives) => EnvFilter::builder().parse_lossy(directives),
        Err(_) if common.verbose >= 2 => EnvFilter::new("offload_core=debug,cargo_offload=debug"),
        Err(_) => return,
    };
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| masked::Log).try_init();
}
