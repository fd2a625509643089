//! The command lines: what can be typed, and its documentation. Nothing here acts.

pub mod cargo;
pub mod offload;
pub mod typed;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// What both programs end with.
const EXIT_CODES: &str = "\
Exit codes:
    0  all tests passed
    1  a test failed, or did not run
    2  all passed, some only on a retry: flaky (--flaky pass or fail: 0 or 1)
    3  nothing could be run, or something could not be: usage, configuration, build, discovery,
       infrastructure, reports
  130  interrupted; what finished is in the reports";

/// Colours in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Color {
    /// Where the output is a terminal
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// How the progress of a run is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ProgressArg {
    /// A bar on a terminal, plain lines elsewhere and in CI
    #[default]
    Auto,
    /// A bar
    Bar,
    /// A line now and then
    Plain,
    /// Nothing but results
    None,
}

/// Who reads standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum MessageFormat {
    /// A person
    #[default]
    Human,
    /// A program: one JSON object per event and line
    Json,
}

/// What a run without any test amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum NoTests {
    /// Say so, and succeed
    #[default]
    Pass,
    /// Say so, and exit with 3
    Fail,
}

/// Options that every command has.
#[derive(Debug, Clone, Default, Args)]
pub struct CommonArgs {
    /// Use this configuration file (offload.toml, or a Cargo.toml or pyproject.toml that holds one)
    #[arg(short, long, global = true, value_name = "PATH", help_heading = "General options")]
    pub config: Option<PathBuf>,
    /// Say more: a line for each test (-v), what offload itself does (-vv)
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "General options")]
    pub verbose: u8,
    /// Say less: failures and the totals only
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "General options")]
    pub quiet: bool,
    /// Colour the output
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", help_heading = "General options")]
    pub color: Color,
}

impl CommonArgs {
    /// The verbosity as a number: -1 quiet, 0 normal, 1 and more verbose.
    pub fn verbosity(&self) -> i8 {
        if self.quiet { -1 } else { i8::try_from(self.verbose).unwrap_or(i8::MAX) }
    }
}

/// Options of a run that are the same for every framework.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Run options")]
pub struct ExecutionArgs {
    /// Where tests run: local, docker, ssh, default
    #[arg(long, value_name = "PROVIDER", hide_short_help = true)]
    pub provider: Option<String>,
    /// The most sandboxes (tests) at once [default: the number of CPUs]
    #[arg(short = 'j', long = "parallel", visible_alias = "test-threads", value_name = "N",
          value_parser = whole_number::<usize>, allow_negative_numbers = true)]
    pub parallel: Option<usize>,
    /// Repeat a failed test up to N times; it is flaky if it then passes
    #[arg(long, value_name = "N", value_parser = whole_number::<u32>, allow_negative_numbers = true)]
    pub retries: Option<u32>,
    /// What a run amounts to that passed, but some tests only on a retry: exit code 2, 0 or 1 [default: exit-2]
    #[arg(long, value_name = "POLICY", value_parser = ["exit-2", "pass", "fail"], hide_short_help = true)]
    pub flaky: Option<String>,
    /// End a test that runs longer than this many seconds
    #[arg(long, value_name = "SECS", allow_negative_numbers = true)]
    pub timeout: Option<f64>,
    /// Stop after the first failed test
    #[arg(long, conflicts_with = "max_fail")]
    pub fail_fast: bool,
    /// Run all tests, whatever fails (the default, unless the file has a `max_fail`)
    #[arg(long, conflicts_with_all = ["fail_fast", "max_fail"], hide_short_help = true)]
    pub no_fail_fast: bool,
    /// Stop after N failed tests
    #[arg(long, value_name = "N", value_parser = whole_number::<usize>, allow_negative_numbers = true)]
    pub max_fail: Option<usize>,
    /// Do not capture what tests write
    #[arg(long, visible_alias = "nocapture")]
    pub no_capture: bool,
    /// Record durations and outcomes in the history file
    #[arg(long, hide_short_help = true)]
    pub record_history: bool,
    /// What to do when there is no test to run
    #[arg(long, value_name = "ACTION", default_value = "pass", hide_short_help = true)]
    pub no_tests: NoTests,
}

/// Options that say what is written where.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Report options")]
pub struct ReportArgs {
    /// Write the JUnit report to this file
    #[arg(long, value_name = "PATH", value_parser = utf8_path)]
    pub junit: Option<PathBuf>,
    /// Write reports into this directory
    #[arg(long, value_name = "DIR", value_parser = utf8_path, hide_short_help = true)]
    pub output_dir: Option<PathBuf>,
    /// What standard output is for
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    pub message_format: MessageFormat,
    /// How progress is shown
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub progress: ProgressArg,
}

/// Which tests of the last run `logs` shows.
#[derive(Debug, Clone, Default, Args)]
pub struct LogsArgs {
    /// Only tests that failed
    #[arg(long)]
    pub failures: bool,
    /// Only tests that could not be executed properly
    #[arg(long)]
    pub errors: bool,
    /// Only the test with this id (may be given several times)
    #[arg(long, value_name = "ID")]
    pub test: Vec<String>,
    /// Only tests whose id matches this regular expression
    #[arg(long, value_name = "RE")]
    pub test_regex: Option<String>,
    /// Read this JUnit file instead of the last run's
    #[arg(long, value_name = "PATH")]
    pub junit: Option<PathBuf>,
}

/// A count, with a message for people who do not know what a digit is invalid for.
pub(crate) fn whole_number<T: std::str::FromStr>(text: &str) -> Result<T, &'static str> {
    text.parse().map_err(|_| "expected a whole number")
}

/// A path that can also stand in a configuration file; those hold nothing but UTF-8, and another path than the one that
/// was typed would be worse than none.
#[allow(clippy::unnecessary_wraps, reason = "clap takes functions that can fail")]
fn utf8_path(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(PathBuf::from(text))
}
