//! From attempts to an outcome, and from outcomes to totals.

use std::sync::Arc;

use crate::event::{Attempt, FinishedTest, RunEvent, RunSummary, TestInfo};
use crate::framework::{Captured, TestOutcome};

impl FinishedTest {
    /// A test whose last attempt decides.
    pub(super) fn from_attempts(test: Arc<TestInfo>, attempts: Vec<Attempt>) -> Self {
        let outcome = attempts.last().map_or(TestOutcome::NotRun, |attempt| attempt.result.outcome);
        let failed_before = attempts.iter().any(|attempt| attempt.result.outcome.is_failure());
        let flaky = outcome == TestOutcome::Passed && failed_before;
        Self { test, outcome, flaky, attempts, reason: None }
    }

    /// A test whose outcome no attempt gave.
    pub(super) fn without_result(
        test: Arc<TestInfo>,
        outcome: TestOutcome,
        attempts: Vec<Attempt>,
        reason: impl Into<String>,
    ) -> Self {
        Self { test, outcome, flaky: false, attempts, reason: Some(reason.into()) }
    }

    /// The event that announces it.
    pub(super) fn event(&mut self) -> RunEvent {
        RunEvent::TestFinished {
            test: Arc::clone(&self.test),
            outcome: self.outcome,
            flaky: self.flaky,
            attempts: std::mem::take(&mut self.attempts),
            reason: self.reason.clone(),
        }
    }

    /// Takes the attempts back from the event, without what nobody reads again.
    pub(super) fn keep(&mut self, event: RunEvent) {
        if let RunEvent::TestFinished { attempts, .. } = event {
            self.attempts = attempts;
        }
        for attempt in &mut self.attempts {
            attempt.result.native = None;
            if !attempt.result.outcome.is_failure() {
                attempt.result.stdout = Captured::default();
                attempt.result.stderr = Captured::default();
            }
        }
    }
}

/// Adds a test to the totals.
pub(super) fn count(summary: &mut RunSummary, test: &FinishedTest) {
    summary.total += 1;
    match test.outcome {
        TestOutcome::Passed => summary.passed += 1,
        TestOutcome::Skipped => summary.skipped += 1,
        TestOutcome::NotRun => summary.not_run += 1,
        TestOutcome::Failed | TestOutcome::Error | TestOutcome::TimedOut | TestOutcome::Crashed => summary.failed += 1,
    }
    match test.outcome {
        TestOutcome::TimedOut => summary.timed_out += 1,
        TestOutcome::Crashed => summary.crashed += 1,
        TestOutcome::Error => summary.errors += 1,
        _ => {}
    }
    if test.flaky {
        summary.flaky += 1;
    }
}
