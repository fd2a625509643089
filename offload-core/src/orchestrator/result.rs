//! What is left of a run when it is over.

use std::time::Duration;

use crate::config::FlakyPolicy;
use crate::event::{FinishedTest, RunSummary, StopReason};
use crate::report::summary::{LostSandbox, Summary};

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunResult {
    /// The totals.
    pub summary: RunSummary,
    /// Every test, in the order in which they ended. Captured output is kept for failed attempts only.
    pub tests: Vec<FinishedTest>,
    /// Sandboxes that broke.
    pub lost: Vec<LostSandbox>,
    /// A test that ran longer is named in the summary.
    pub slow_test: Duration,
    /// What hid tests or broke the run, in whole sentences.
    pub problems: Vec<String>,
    /// Reports that could not be written, in whole sentences. Nobody has been told of them yet.
    pub report_errors: Vec<String>,
}

impl RunResult {
    /// The exit code: 0 all passed, 1 something failed or did not run, 2 passed but some only on a retry
    /// (unless `offload.flaky` says otherwise), 3 something
    /// could not be run at all, 130 interrupted.
    pub fn exit_code(&self) -> i32 {
        self.summary.exit_code
    }

    /// The result as the summary of a run tells it.
    pub fn as_summary(&self) -> Summary<'_> {
        Summary {
            totals: &self.summary,
            tests: &self.tests,
            lost: &self.lost,
            problems: &self.problems,
            slow_test: self.slow_test,
            reports: &[],
            quiet: false,
        }
    }
}

/// The exit code that `summary` amounts to.
pub(super) fn exit_code(summary: &RunSummary, flaky: FlakyPolicy) -> i32 {
    if summary.stopped == Some(StopReason::Interrupted) {
        130
    } else if summary.problems > 0 {
        3
    } else if summary.failed > 0 || summary.not_run > 0 {
        1
    } else if summary.flaky > 0 {
        match flaky {
            FlakyPolicy::Exit2 => 2,
            FlakyPolicy::Pass => 0,
            FlakyPolicy::Fail => 1,
        }
    } else {
        0
    }
}
