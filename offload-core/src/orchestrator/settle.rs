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

    /// What it had left standing could not be torn down. One that failed before stays what it is.
    pub(super) fn fail_late(&mut self, attempt: &Attempt) {
        if !self.outcome.is_failure() {
            self.outcome = attempt.result.outcome;
            self.flaky = false;
            self.attempts.push(attempt.clone());
        }
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
    for total in totals(summary, test) {
        *total += 1;
    }
}

/// Takes a test out of the totals.
pub(super) fn uncount(summary: &mut RunSummary, test: &FinishedTest) {
    for total in totals(summary, test) {
        *total = total.saturating_sub(1);
    }
}

/// The totals to which a test belongs.
fn totals<'a>(summary: &'a mut RunSummary, test: &FinishedTest) -> impl Iterator<Item = &'a mut usize> {
    let RunSummary { total, passed, failed, timed_out, crashed, errors, flaky, skipped, not_run, .. } = summary;
    let (outcome, detail) = match test.outcome {
        TestOutcome::Passed => (passed, None),
        TestOutcome::Skipped => (skipped, None),
        TestOutcome::NotRun => (not_run, None),
        TestOutcome::Failed => (failed, None),
        TestOutcome::Error => (failed, Some(errors)),
        TestOutcome::TimedOut => (failed, Some(timed_out)),
        TestOutcome::Crashed => (failed, Some(crashed)),
    };
    [total, outcome].into_iter().chain(detail).chain(test.flaky.then_some(flaky))
}
