//! The command line of `cargo offload`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use offload_core::framework::Isolation;
use offload_core::framework::cargo::{CargoOptions, RunIgnored};

use super::{CommonArgs, EXIT_CODES, ExecutionArgs, LogsArgs, ReportArgs};

/// Run the tests of a Cargo workspace, in parallel, each in its own process.
///
/// Builds the tests as `cargo test` does and runs them while the build still goes on: unit tests, integration tests,
/// examples, benches and doctests. One summary, one exit code, one JUnit file (target/offload/junit.xml).
#[derive(Debug, Parser)]
#[command(
    name = "cargo-offload",
    bin_name = "cargo offload",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "All options, and what the exit codes mean: cargo offload --help",
    after_long_help = EXIT_CODES
)]
pub struct CargoCli {
    /// What to do; `run` when absent.
    #[command(subcommand)]
    pub command: Option<CargoCommand>,
    /// The options of `run`.
    #[command(flatten)]
    pub run: CargoRunArgs,
    /// The options of every command.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// What `cargo offload` can do.
#[derive(Debug, Subcommand)]
pub enum CargoCommand {
    /// Build and run tests (the default)
    Run(Box<CargoRunArgs>),
    /// Build and list tests without running any
    List(Box<CargoListArgs>),
    /// Write a commented offload.toml
    Init,
    /// Check the configuration and show every value and where it comes from
    Validate,
    /// Show tests of the last run with their output
    Logs(LogsArgs),
    /// Run tests for an orchestrator on another machine
    #[command(hide = true)]
    Worker,
}

/// The options of `run`.
#[derive(Debug, Clone, Default, Args)]
pub struct CargoRunArgs {
    /// What to build and which tests to take.
    #[command(flatten)]
    pub selection: SelectionArgs,
    /// How tests run.
    #[command(flatten)]
    pub execution: ExecutionArgs,
    /// What tests share: by default quick tests share a process, and what fails there runs again alone
    #[arg(long, value_name = "LEVEL", help_heading = "Run options")]
    pub isolation: Option<IsolationArg>,
    /// Whether tests start while Cargo still builds what they do not use: on, off
    #[arg(long, value_name = "WHETHER", value_parser = ["on", "off"], default_value = "on", help_heading = "Run options",
          hide_short_help = true, hide_possible_values = true)]
    pub overlap: String,
    /// What is written where.
    #[command(flatten)]
    pub report: ReportArgs,
}

/// The options of `list`.
#[derive(Debug, Clone, Default, Args)]
pub struct CargoListArgs {
    /// What to build and which tests to take.
    #[command(flatten)]
    pub selection: SelectionArgs,
    /// What standard output is for
    #[arg(long, value_name = "FORMAT", default_value = "human", help_heading = "Report options")]
    pub message_format: super::MessageFormat,
}

/// What tests share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IsolationArg {
    /// Quick tests of one binary share processes; what does not pass there runs again in one of its own, which counts
    Auto,
    /// One process per test
    Process,
    /// A batch of tests of one binary in one process
    Binary,
}

impl IsolationArg {
    /// The value as configuration files spell it.
    pub fn key(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Process => "process",
            Self::Binary => "binary",
        }
    }
}

impl From<IsolationArg> for Isolation {
    fn from(arg: IsolationArg) -> Self {
        match arg {
            IsolationArg::Auto => Self::Auto,
            IsolationArg::Process => Self::Process,
            IsolationArg::Binary => Self::Binary,
        }
    }
}

/// Which of the `#[ignore]`d tests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum RunIgnoredArg {
    /// None of them
    #[default]
    Default,
    /// Only they
    Only,
    /// They too
    All,
}

/// What to build and which tests to take, as `cargo test` has it.
#[derive(Debug, Clone, Default, Args)]
pub struct SelectionArgs {
    /// Only tests whose name contains one of these
    #[arg(value_name = "FILTERS")]
    pub filters: Vec<String>,
    /// Filters match whole names
    #[arg(long, help_heading = "Test selection")]
    pub exact: bool,
    /// Leave out tests whose name contains this
    #[arg(long, value_name = "FILTER", help_heading = "Test selection")]
    pub skip: Vec<String>,
    /// Which ignored tests run
    #[arg(long, value_name = "WHICH", default_value = "default", help_heading = "Test selection")]
    pub run_ignored: RunIgnoredArg,
    /// Run ignored tests too, as `cargo test -- --include-ignored`
    #[arg(long, hide = true, conflicts_with = "run_ignored")]
    pub include_ignored: bool,

    /// Test this package
    #[arg(short, long = "package", value_name = "SPEC", help_heading = "Package selection")]
    pub packages: Vec<String>,
    /// Test all packages of the workspace
    #[arg(long, visible_alias = "all", help_heading = "Package selection")]
    pub workspace: bool,
    /// Leave out this package
    #[arg(long, value_name = "SPEC", requires = "workspace", help_heading = "Package selection")]
    pub exclude: Vec<String>,

    /// Test only the library's unit tests
    #[arg(long, help_heading = "Target selection")]
    pub lib: bool,
    /// Test all binaries
    #[arg(long, help_heading = "Target selection", hide_short_help = true)]
    pub bins: bool,
    /// Test this binary
    #[arg(long, value_name = "NAME", help_heading = "Target selection", hide_short_help = true)]
    pub bin: Vec<String>,
    /// Test all targets that have `test = true`
    #[arg(long, help_heading = "Target selection")]
    pub tests: bool,
    /// Test this integration test
    #[arg(long, value_name = "NAME", help_heading = "Target selection")]
    pub test: Vec<String>,
    /// Test all examples
    #[arg(long, help_heading = "Target selection", hide_short_help = true)]
    pub examples: bool,
    /// Test this example
    #[arg(long, value_name = "NAME", help_heading = "Target selection", hide_short_help = true)]
    pub example: Vec<String>,
    /// Test all benches
    #[arg(long, help_heading = "Target selection", hide_short_help = true)]
    pub benches: bool,
    /// Test this bench
    #[arg(long, value_name = "NAME", help_heading = "Target selection", hide_short_help = true)]
    pub bench: Vec<String>,
    /// Test all targets (no doctests)
    #[arg(long, help_heading = "Target selection", hide_short_help = true)]
    pub all_targets: bool,
    /// Test only the documentation
    #[arg(
        long,
        help_heading = "Target selection",
        conflicts_with_all = [
            "lib", "bins", "bin", "tests", "test", "examples", "example", "benches", "bench", "all_targets",
        ]
    )]
    pub doc: bool,

    /// Activate these features
    #[arg(short = 'F', long, value_name = "FEATURES", help_heading = "Feature selection")]
    pub features: Vec<String>,
    /// Activate all features
    #[arg(long, help_heading = "Feature selection")]
    pub all_features: bool,
    /// Do not activate the `default` feature
    #[arg(long, help_heading = "Feature selection", hide_short_help = true)]
    pub no_default_features: bool,

    /// Build in release mode
    #[arg(short, long, help_heading = "Build options")]
    pub release: bool,
    /// Build with this Cargo profile
    #[arg(long, value_name = "NAME", conflicts_with = "release", help_heading = "Build options")]
    pub cargo_profile: Option<String>,
    /// Build for this target triple
    #[arg(long, value_name = "TRIPLE", help_heading = "Build options")]
    pub target: Option<String>,
    /// Where build results go
    #[arg(long, value_name = "DIR", help_heading = "Build options", hide_short_help = true)]
    pub target_dir: Option<PathBuf>,
    /// The most build jobs at once
    #[arg(long, value_name = "N", help_heading = "Build options", value_parser = super::whole_number::<usize>,
          allow_negative_numbers = true, hide_short_help = true)]
    pub build_jobs: Option<usize>,
    /// The Cargo.toml to start from
    #[arg(long, value_name = "PATH", help_heading = "Manifest options", hide_short_help = true)]
    pub manifest_path: Option<PathBuf>,
    /// Assert that Cargo.lock stays as it is
    #[arg(long, help_heading = "Manifest options", hide_short_help = true)]
    pub locked: bool,
    /// Do not use the network
    #[arg(long, help_heading = "Manifest options", hide_short_help = true)]
    pub offline: bool,
    /// Like --locked and --offline
    #[arg(long, help_heading = "Manifest options", hide_short_help = true)]
    pub frozen: bool,

    /// Arguments for the test binaries
    #[arg(last = true, value_name = "ARGS")]
    pub harness_args: Vec<String>,
}

impl SelectionArgs {
    /// The selection as the framework takes it.
    pub fn to_options(&self) -> CargoOptions {
        CargoOptions {
            manifest_path: self.manifest_path.clone(),
            packages: self.packages.clone(),
            workspace: self.workspace,
            exclude: self.exclude.clone(),
            lib: self.lib,
            bins: self.bins,
            bin: self.bin.clone(),
            tests: self.tests,
            test: self.test.clone(),
            examples: self.examples,
            example: self.example.clone(),
            benches: self.benches,
            bench: self.bench.clone(),
            all_targets: self.all_targets,
            doc: self.doc,
            features: self.features.clone(),
            all_features: self.all_features,
            no_default_features: self.no_default_features,
            release: self.release,
            profile: self.cargo_profile.clone(),
            target: self.target.clone(),
            target_dir: self.target_dir.clone(),
            locked: self.locked,
            offline: self.offline,
            frozen: self.frozen,
            build_jobs: self.build_jobs,
            filters: self.filters.clone(),
            exact: self.exact,
            skip: self.skip.clone(),
            run_ignored: match self.run_ignored {
                _ if self.include_ignored => RunIgnored::All,
                RunIgnoredArg::Default => RunIgnored::Default,
                RunIgnoredArg::Only => RunIgnored::Only,
                RunIgnoredArg::All => RunIgnored::All,
            },
            harness_args: self.harness_args.clone(),
            ..CargoOptions::default()
        }
    }
}
