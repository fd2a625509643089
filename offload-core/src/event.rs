//! Everything that happens in a run, in order.
//!
//! The orchestrator's only output is a sequence of [`RunEvent`]s, each with the time since the run began. The console,
//! JUnit, JSON and history reports are consumers of it and know nothing else. The serialised form is the format of
//! `--message-format json` and is versioned by [`FORMAT_VERSION`].

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::framework::{Isolation, TestOutcome, TestResult};

/// The version of the serialised form, in [`RunEvent::RunStarted`].
pub const FORMAT_VERSION: u32 = 1;

/// A test as reports need it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TestInfo {
    /// The test id.
    pub id: String,
    /// The test's name within its suite.
    pub name: String,
    /// The suite: a binary id or a file.
    pub suite: String,
    /// The configured group; empty without groups.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub group: Arc<str>,
    /// The line of its suite's file on which it begins, from 0, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Its number among the tests to be run, in the order in which they were found: what tells tests of the same id
    /// apart. It means nothing outside this process.
    #[serde(skip)]
    pub number: u32,
}

/// Something that only those who know the framework can use: a warning in the form in which its own plugins take it.
#[derive(Debug, Clone, PartialEq)]
pub struct NativeEvent {
    /// What it is, in the framework's terms.
    pub kind: &'static str,
    /// Where it happened, if in a sandbox.
    pub sandbox: Option<Arc<str>>,
    /// Which test it belongs to, if any.
    pub test: Option<Arc<TestInfo>>,
    /// What there is to say, as JSON.
    pub data: Arc<str>,
}

impl NativeEvent {
    /// An event that belongs to no sandbox and no test.
    pub fn new(kind: &'static str, data: impl Into<Arc<str>>) -> Self {
        Self { kind, sandbox: None, test: None, data: data.into() }
    }
}

/// A [`RunEvent`] with the time at which it happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TimedEvent {
    /// Time since the run began.
    #[serde(with = "seconds", rename = "at_secs")]
    pub at: Duration,
    /// What happened.
    #[serde(flatten)]
    pub event: RunEvent,
}

/// Something that happened in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum RunEvent {
    /// The first event.
    RunStarted {
        /// [`FORMAT_VERSION`].
        format: u32,
        /// A name for this run, unique on this machine.
        run_id: String,
        /// When, in seconds since the Unix epoch.
        started_at_secs: f64,
        /// The framework's name.
        framework: String,
        /// The provider's name.
        provider: String,
        /// The most sandboxes there will be at once.
        max_sandboxes: usize,
        /// What tests share, where the framework gives a choice of processes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        isolation: Option<Isolation>,
    },
    /// The build that discovery needs has begun.
    BuildStarted,
    /// A line of the build's output, as the build tool writes it (colours kept).
    BuildOutput {
        /// Without its line end.
        line: String,
    },
    /// The build has ended.
    BuildFinished {
        /// Whether everything was built.
        success: bool,
        /// How long it took.
        #[serde(with = "seconds", rename = "duration_secs")]
        duration: Duration,
    },
    /// Tests were found. More may follow.
    TestsFound {
        /// How many are to be run.
        to_run: usize,
        /// How many were found and are not to be run.
        skipped: usize,
    },
    /// No more tests will be found.
    DiscoveryFinished {
        /// How many are to be run, in all.
        to_run: usize,
        /// How many were found and are not to be run, in all.
        skipped: usize,
    },
    /// A sandbox is ready for tests.
    SandboxReady {
        /// Its id.
        sandbox: Arc<str>,
        /// How long its creation took.
        #[serde(with = "seconds", rename = "duration_secs")]
        duration: Duration,
    },
    /// A sandbox could not be created, or was lost. Its tests go elsewhere.
    SandboxLost {
        /// Its id, or the name under which it was to be created.
        sandbox: Arc<str>,
        /// What happened.
        reason: String,
        /// Tests that were running there and start again elsewhere.
        requeued: Vec<String>,
    },
    /// A sandbox is no longer needed and was destroyed.
    SandboxFinished {
        /// Its id.
        sandbox: Arc<str>,
        /// How long it executed tests.
        #[serde(with = "seconds", rename = "busy_secs")]
        busy: Duration,
    },
    /// An attempt at a test has started.
    TestStarted {
        /// The test.
        test: Arc<TestInfo>,
        /// Which attempt, from 1.
        attempt: u32,
        /// Where.
        sandbox: Arc<str>,
    },
    /// A test that is not captured wrote something.
    TestOutput {
        /// The test.
        test: Arc<TestInfo>,
        /// What.
        text: String,
    },
    /// A test runs longer than the limit for slow tests. Sent once per attempt.
    TestSlow {
        /// The test.
        test: Arc<TestInfo>,
        /// How long it has been running.
        #[serde(with = "seconds", rename = "elapsed_secs")]
        elapsed: Duration,
    },
    /// An attempt failed and will be repeated.
    AttemptFailed {
        /// The test.
        test: Arc<TestInfo>,
        /// The attempt.
        attempt: Attempt,
        /// Attempts that are left.
        attempts_left: u32,
    },
    /// A test has its outcome. Exactly one for each test found.
    TestFinished {
        /// The test.
        test: Arc<TestInfo>,
        /// The outcome: of the last attempt, or skipped or not run without any.
        outcome: TestOutcome,
        /// Failed at least once and passed at least once.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        flaky: bool,
        /// All attempts, in order; empty for skipped and not-run tests.
        attempts: Vec<Attempt>,
        /// Why a test without attempts has none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A test that had its outcome is an error after all, unless it had failed anyway: what it left standing for others
    /// (a fixture of a whole module) could not be torn down.
    LateFailure {
        /// The test.
        test: Arc<TestInfo>,
        /// What came of tearing down, under the number of the last attempt.
        attempt: Attempt,
    },
    /// Something the user should know.
    Warning {
        /// A whole sentence.
        text: String,
    },
    /// Something that hides tests or broke the run: the exit code is 3.
    Problem {
        /// A whole sentence or more: what was done, to what, what happened, what to do.
        text: String,
    },
    /// Something that only those who know the framework can use. It has no serialised form.
    #[serde(skip)]
    Native(NativeEvent),
    /// The run is being ended early.
    Stopping {
        /// Why.
        reason: StopReason,
    },
    /// The last event.
    RunFinished {
        /// The totals.
        summary: RunSummary,
    },
}

/// One finished execution of a test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Counted from 1.
    pub number: u32,
    /// Where it ran.
    pub sandbox: Arc<str>,
    /// When it started, since the run began.
    #[serde(with = "seconds", rename = "started_at_secs")]
    pub started_at: Duration,
    /// What came of it.
    #[serde(flatten)]
    pub result: TestResult,
}

/// A test that has its outcome: [`RunEvent::TestFinished`] as a value.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishedTest {
    /// The test.
    pub test: Arc<TestInfo>,
    /// The outcome: of the last attempt, or skipped or not run without any.
    pub outcome: TestOutcome,
    /// Failed at least once and passed at least once.
    pub flaky: bool,
    /// All attempts, in order.
    pub attempts: Vec<Attempt>,
    /// Why a test without attempts has none.
    pub reason: Option<String>,
}

impl FinishedTest {
    /// The test that `event` tells the outcome of.
    pub fn from_event(event: &RunEvent) -> Option<Self> {
        match event {
            RunEvent::TestFinished { test, outcome, flaky, attempts, reason } => Some(Self {
                test: Arc::clone(test),
                outcome: *outcome,
                flaky: *flaky,
                attempts: attempts.clone(),
                reason: reason.clone(),
            }),
            _ => None,
        }
    }

    /// The last attempt's result.
    pub fn last(&self) -> Option<&TestResult> {
        self.attempts.last().map(|attempt| &attempt.result)
    }

    /// How long the last attempt took.
    pub fn duration(&self) -> Option<Duration> {
        self.last().map(|result| result.duration)
    }
}

/// Why a run ends before all tests have an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// As many tests failed as the user allows.
    MaxFail,
    /// Ctrl-C, SIGTERM, SIGHUP.
    Interrupted,
    /// No sandbox works: they break repeatedly, or cannot be made.
    Infrastructure,
}

/// The totals of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    /// Tests that were found, those not to be run included.
    pub total: usize,
    /// Passed, flaky ones included.
    pub passed: usize,
    /// Failed, errors, time-outs and crashes included.
    pub failed: usize,
    /// Of the failed: ended at their time limit.
    pub timed_out: usize,
    /// Of the failed: whose process died.
    pub crashed: usize,
    /// Of the failed: that could not be executed properly.
    pub errors: usize,
    /// Of the passed: those that failed first.
    pub flaky: usize,
    /// Not meant to run.
    pub skipped: usize,
    /// Meant to run, and without an outcome at the end.
    pub not_run: usize,
    /// How long the run took, from the first event.
    #[serde(with = "seconds", rename = "duration_secs")]
    pub duration: Duration,
    /// Whether something hid tests or broke the run.
    pub problems: usize,
    /// Why the run ended early, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<StopReason>,
    /// The exit code that all this amounts to.
    pub exit_code: i32,
}

/// Durations as seconds with a fraction, in serialised forms.
pub mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes a duration as seconds, rounded to microseconds.
    ///
    /// # Errors
    ///
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64((duration.as_secs_f64() * 1e6).round() / 1e6)
    }

    /// Reads seconds.
    ///
    /// # Errors
    ///
    /// When the value is not a number, negative, or too large for a [`Duration`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
