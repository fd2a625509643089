//! The command line of `offload`: any framework, driven by offload.toml.

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::{CommonArgs, EXIT_CODES, ExecutionArgs, LogsArgs, ReportArgs};

/// Run a test suite over many isolated sandboxes, as offload.toml says.
#[derive(Debug, Parser)]
#[command(
    name = "offload",
    version,
    after_help = "What the exit codes mean: offload --help",
    after_long_help = EXIT_CODES
)]
pub struct OffloadCli {
    /// What to do.
    #[command(subcommand)]
    pub command: OffloadCommand,
    /// The options of every command.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// What `offload` can do.
#[derive(Debug, Subcommand)]
pub enum OffloadCommand {
    /// Discover and run tests
    Run(Box<OffloadRunArgs>),
    /// Build the base image of the sandboxes without running tests
    Build(ImageArgs),
    /// List the tests without running any
    #[command(visible_alias = "list")]
    Collect(CollectArgs),
    /// Check the configuration and show every value and where it comes from
    Validate,
    /// Write a commented offload.toml
    Init(InitArgs),
    /// Show tests of the last run with their output
    Logs(LogsArgs),
    /// Work with the history file
    #[command(subcommand)]
    History(HistoryCommand),
    /// Show which base image the current checkout would use
    CheckpointStatus,
    /// Remove what runs have left on the Docker daemon, or on hosts
    Clean(CleanArgs),
    /// Run tests for an orchestrator on another machine
    #[command(hide = true)]
    Worker,
}

/// The options of `run`.
#[derive(Debug, Clone, Default, Args)]
pub struct OffloadRunArgs {
    /// How tests run.
    #[command(flatten)]
    pub execution: ExecutionArgs,
    /// The same as --parallel, as offload 0.10 called it
    #[arg(short = 'p', value_name = "N", value_parser = super::whole_number::<usize>, allow_negative_numbers = true,
          conflicts_with = "parallel", hide = true)]
    pub sandboxes: Option<usize>,
    /// Show progress as in CI, whatever standard error is
    #[arg(long, hide = true)]
    pub ci: bool,
    /// Only discover tests and list them
    #[arg(long, help_heading = "Run options")]
    pub collect_only: bool,
    /// Copy LOCAL into each sandbox at REMOTE
    #[arg(long = "copy-dir", value_name = "LOCAL:REMOTE", help_heading = "Run options")]
    pub copy_dirs: Vec<String>,
    /// Set a variable in the sandboxes
    #[arg(long = "env", value_name = "KEY=VALUE", help_heading = "Run options")]
    pub env: Vec<String>,
    /// How sandboxes come by their image.
    #[command(flatten)]
    pub image: ImageArgs,
    /// Write a Perfetto trace of the run
    #[arg(long, help_heading = "Report options")]
    pub trace: bool,
    /// Show what the sandboxes are estimated to cost
    #[arg(long, help_heading = "Report options")]
    pub show_estimated_cost: bool,
    /// What is written where.
    #[command(flatten)]
    pub report: ReportArgs,
}

/// How sandboxes come by their image.
#[derive(Debug, Clone, Default, Args)]
pub struct ImageArgs {
    /// Do not use an image of an earlier run
    #[arg(long, help_heading = "Image options")]
    pub no_cache: bool,
    /// Use this image instead of preparing one
    #[arg(long, value_name = "ID", help_heading = "Image options")]
    pub override_image_id: Option<String>,
}

/// The options of `collect`.
#[derive(Debug, Clone, Default, Args)]
pub struct CollectArgs {
    /// How the list is written
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub format: ListFormat,
}

/// How a list of tests is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ListFormat {
    /// One test id a line
    #[default]
    Text,
    /// One JSON array
    Json,
}

/// The options of `clean`.
#[derive(Debug, Clone, Default, Args)]
pub struct CleanArgs {
    /// Clean up after the runs of all projects, not only of this one
    #[arg(long)]
    pub all: bool,
}

/// The options of `init`.
#[derive(Debug, Clone, Default, Args)]
pub struct InitArgs {
    /// The provider to write: local, docker, ssh, default
    #[arg(short, long, value_name = "PROVIDER", default_value = "local")]
    pub provider: String,
    /// The framework to write: pytest, cargo, default [default: what the directory looks like]
    #[arg(short, long, value_name = "FRAMEWORK")]
    pub framework: Option<String>,
}

/// What can be done with the history file.
#[derive(Debug, Clone, Subcommand)]
pub enum HistoryCommand {
    /// Merge two histories: a git merge driver (%O %A %B)
    Merge {
        /// The common ancestor
        base: std::path::PathBuf,
        /// Our version; gets the result
        ours: std::path::PathBuf,
        /// Their version
        theirs: std::path::PathBuf,
    },
    /// Have git merge the history file by itself in this repository
    SetupMergeDriver,
}
