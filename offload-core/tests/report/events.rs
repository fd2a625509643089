//! Runs made up of events.

use std::sync::Arc;
use std::time::Duration;

use offload_core::event::{Attempt, RunEvent, RunSummary, TestInfo, TimedEvent};
use offload_core::framework::{Isolation, TestOutcome, TestResult};
use offload_core::report::Reporter;

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn test(suite: &str, name: &str) -> Arc<TestInfo> {
    Arc::new(TestInfo {
        id: format!("{suite} {name}"),
        name: name.to_owned(),
        suite: suite.to_owned(),
        group: Arc::from(""),
        line: None,
        number: 0,
    })
}

pub fn result(outcome: TestOutcome, millis: u64) -> TestResult {
    TestResult::new(outcome, ms(millis))
}

/// Tells a reporter a run, event by event.
pub struct Run<'a> {
    reporter: &'a mut dyn Reporter,
    at: Duration,
    summary: RunSummary,
}

impl<'a> Run<'a> {
    pub fn start(reporter: &'a mut dyn Reporter) -> Self {
        let mut run = Self { reporter, at: Duration::ZERO, summary: RunSummary::default() };
        run.event(RunEvent::RunStarted {
            format: 1,
            run_id: "run".to_owned(),
            started_at_secs: 1_795_402_908.5,
            framework: "cargo".to_owned(),
            provider: "local".to_owned(),
            max_sandboxes: 2,
            isolation: Some(Isolation::Auto),
        });
        run
    }

    pub fn event(&mut self, event: RunEvent) -> &mut Self {
        self.reporter.on_event(&TimedEvent { at: self.at, event });
        self
    }

    pub fn wait(&mut self, millis: u64) -> &mut Self {
        self.at += ms(millis);
        self
    }

    pub fn started(&mut self, test: &Arc<TestInfo>, attempt: u32) -> &mut Self {
        self.event(RunEvent::TestStarted { test: test.clone(), attempt, sandbox: Arc::from("local-1") })
    }

    /// All attempts of a test and its outcome.
    pub fn test(&mut self, test: &Arc<TestInfo>, results: Vec<TestResult>) -> &mut Self {
        let mut attempts = Vec::new();
        let last = results.len();
        for (index, result) in results.into_iter().enumerate() {
            let number = u32::try_from(index).unwrap() + 1;
            self.started(test, number);
            let started_at = self.at;
            self.at += result.duration;
            let attempt = Attempt { number, sandbox: Arc::from(format!("local-{number}")), started_at, result };
            attempts.push(attempt.clone());
            if index + 1 < last {
                let attempts_left = u32::try_from(last - index).unwrap() - 1;
                self.event(RunEvent::AttemptFailed { test: test.clone(), attempt, attempts_left });
            }
        }
        let outcome = attempts.last().unwrap().result.outcome;
        let flaky = outcome == TestOutcome::Passed && attempts.len() > 1;
        self.finished(test, outcome, flaky, attempts, None)
    }

    pub fn without_attempt(&mut self, test: &Arc<TestInfo>, outcome: TestOutcome, reason: &str) -> &mut Self {
        self.finished(test, outcome, false, Vec::new(), Some(reason.to_owned()))
    }

    fn finished(
        &mut self,
        test: &Arc<TestInfo>,
        outcome: TestOutcome,
        flaky: bool,
        attempts: Vec<Attempt>,
        reason: Option<String>,
    ) -> &mut Self {
        let totals = &mut self.summary;
        totals.total += 1;
        match outcome {
            TestOutcome::Passed => totals.passed += 1,
            TestOutcome::Skipped => totals.skipped += 1,
            TestOutcome::NotRun => totals.not_run += 1,
            _ => totals.failed += 1,
        }
        totals.flaky += usize::from(flaky);
        totals.timed_out += usize::from(outcome == TestOutcome::TimedOut);
        totals.crashed += usize::from(outcome == TestOutcome::Crashed);
        totals.errors += usize::from(outcome == TestOutcome::Error);
        self.event(RunEvent::TestFinished { test: test.clone(), outcome, flaky, attempts, reason })
    }

    /// The last event, with totals that fit; `change` may add to them.
    pub fn end(&mut self, change: impl FnOnce(&mut RunSummary)) {
        let mut summary = self.summary.clone();
        summary.duration = self.at;
        change(&mut summary);
        self.event(RunEvent::RunFinished { summary });
    }

    pub fn tick(&mut self) -> &mut Self {
        self.reporter.tick();
        self
    }
}

/// A run with every outcome.
pub fn everything(reporter: &mut dyn Reporter) {
    use TestOutcome::*;
    let mut run = Run::start(reporter);
    run.event(RunEvent::TestsFound { to_run: 9, skipped: 1 })
        .event(RunEvent::DiscoveryFinished { to_run: 9, skipped: 1 })
        .event(RunEvent::SandboxReady { sandbox: Arc::from("local-1"), duration: ms(1) })
        .test(&test("pkg::it", "tests::passes"), vec![result(Passed, 12)]);
    let mut failed = result(Failed, 123).with_message("panicked at tests/it.rs:3:5");
    failed.stdout = "one <line> & \u{1b}[31mred\u{1b}[0m ]]>\n".to_owned().into();
    failed.stderr = "thread 'tests::fails' panicked at tests/it.rs:3:5:\nleft != right\u{0}\n".to_owned().into();
    run.test(&test("pkg::it", "tests::fails"), vec![failed.clone()]);
    let mut other = result(TimedOut, 50).with_message("timed out after 0.05 s");
    other.details = Some("stack of \"main\"\n".to_owned());
    run.test(&test("pkg", "flaky<&>\"'ü"), vec![other.clone(), result(Error, 7), result(Passed, 20)]);
    run.test(&test("pkg", "fails_always"), vec![result(Error, 7), failed, other]);
    run.test(&test("pkg", "crash"), vec![result(Crashed, 4).with_message("killed by signal 11 (SIGSEGV)")]);
    run.test(&test("pkg", "gone"), vec![result(Error, 0).with_message("no such test in the binary")]);
    let mut leaky = result(Passed, 61_000);
    leaky.leaky = true;
    run.test(&test("pkg", "slow_and_leaky"), vec![leaky]);
    let mut shared = result(Passed, 5);
    shared.shares_state = Some(vec!["tests::passes".to_owned(), "crash".to_owned()]);
    run.test(&test("pkg", "needs_a_process"), vec![shared]);
    run.without_attempt(&test("pkg", "ignored"), Skipped, "ignored, \"for now\"");
    run.event(RunEvent::SandboxLost {
        sandbox: Arc::from("local-2"),
        reason: "the worker died (exit code 3)".to_owned(),
        requeued: vec!["pkg waits".to_owned()],
    });
    run.event(RunEvent::Problem { text: "cannot build `other`: 1 error\nmend it".to_owned() });
    run.without_attempt(&test("pkg", "waits"), NotRun, "interrupted");
    run.end(|totals| totals.problems = 1);
}
