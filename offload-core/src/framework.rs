//! Frameworks find tests and know how to run them.
//!
//! A framework is small on purpose: [`TestFramework::discover`], [`TestFramework::produce_test_execution_command`] and
//! [`TestFramework::parse_results`] make a complete one, which runs one command per batch of tests. What the built-in
//! frameworks need beyond that (discovery as a stream, a worker that reports test by test) comes as provided methods
//! with honest defaults.
//!
//! Where tests execute is none of a framework's business: that is the [provider](crate::provider)'s.

pub mod cargo;
pub mod default;
pub mod pytest;
mod surroundings;
pub mod vitest;

/// What holds for anything that tools may write.
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz {
    pub use super::cargo::cargo_output;
    pub(crate) use super::default::junit::fuzz::read as read_junit;
    pub use super::pytest::pytest_lines;
}

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::event::NativeEvent;
use crate::provider::{Built, Command, ExecOutput};
use crate::worker::pytest::PytestHost;
use crate::worker::{StartGate, Unit};

/// What can go wrong while a framework finds tests or reads results.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameworkError {
    /// Tests could not be discovered: a build failed, a collection error, a command that is not there.
    /// The message is complete: what was done, to what, what happened, what to do next.
    #[error("{0}")]
    Discovery(String),
    /// What the user asked for does not exist or contradicts itself (an unknown package, a malformed filter).
    #[error("{0}")]
    Usage(String),
    /// Results came back in a form that cannot be read.
    #[error("{0}")]
    Results(String),
}

/// The result of a framework's operation.
pub type FrameworkResult<T> = Result<T, FrameworkError>;

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TestOutcome {
    /// The test ran and passed.
    Passed,
    /// The test ran and failed.
    Failed,
    /// The test was not meant to run (ignored, skipped).
    Skipped,
    /// The test could not be executed properly (its set-up broke, the binary no longer has it).
    Error,
    /// The test ran longer than its time limit and was ended.
    TimedOut,
    /// The process that ran the test died, or left without a result.
    Crashed,
    /// The run ended before the test had an outcome.
    NotRun,
}

impl TestOutcome {
    /// Whether this outcome makes a run fail: everything but passed and skipped.
    pub fn is_failure(self) -> bool {
        !matches!(self, Self::Passed | Self::Skipped)
    }
}

/// Tests that belong together: a test binary, a source file.
///
/// Suites group reports, and the scheduler keeps tests of one suite on one sandbox where that costs nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Suite {
    /// The name as reports show it: a binary id (`serde_json::regression`), a file (`tests/test_io.py`).
    pub id: String,
    /// What a worker executes for tests of this suite; `None` for frameworks without a worker.
    pub unit: Option<Arc<Unit>>,
}

impl Suite {
    /// A suite with a name only.
    pub fn new(id: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { id: id.into(), unit: None })
    }
}

/// One test, as discovery found it.
#[derive(Debug, Clone, PartialEq)]
pub struct TestRecord {
    /// The test id, unique within a run: what users see, type and read in reports.
    pub id: String,
    /// The test's name within its suite, as the framework itself spells it (`tests::parses`).
    pub name: String,
    /// The suite that the test belongs to.
    pub suite: Arc<Suite>,
    /// The configured group that selected the test; empty without groups.
    pub group: Arc<str>,
    /// How many further attempts a failure is worth.
    pub retry_count: u32,
    /// The test wants a sandbox to itself while it runs.
    pub schedule_individual: bool,
    /// Tests with the same name here run on one sandbox, one after the other, whatever their suites.
    pub together: Option<Arc<str>>,
    /// Discovered, but not to be run: reported as skipped, with this reason.
    pub skipped: Option<Arc<str>>,
    /// What the test may look at is still being built: an attempt that begins before discovery has ended and fails, or
    /// during which something unfinished was opened ([`StartGate::sightings`]), is
    /// forgotten and run again.
    pub provisional: bool,
    /// The test's own time limit; `None`: the run's.
    pub timeout: Option<Duration>,
    /// The line of its suite's file on which it begins, from 0, where that is known.
    pub line: Option<u32>,
    /// Where the workers that collected the tests of a suite themselves find this one.
    pub address: Option<Address>,
}

/// Where a worker finds a test that workers, not this process, collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The file, as the workers number them.
    pub unit: u32,
    /// The test's number within the file.
    pub ordinal: u32,
    /// The number of the sandbox whose worker has collected it already: running it there saves collecting it again.
    pub home: Option<u32>,
}

impl TestRecord {
    /// A test of `suite`, to be run, without retries.
    pub fn new(id: impl Into<String>, name: impl Into<String>, suite: Arc<Suite>) -> Self {
        Self {
            id: id.into(),
            name: name.into(),
            suite,
            group: Arc::from(""),
            retry_count: 0,
            schedule_individual: false,
            together: None,
            skipped: None,
            provisional: false,
            timeout: None,
            line: None,
            address: None,
        }
    }
}

/// One execution of one test that is about to happen.
#[derive(Debug, Clone, PartialEq)]
pub struct TestInstance {
    /// The test.
    pub record: Arc<TestRecord>,
    /// Which attempt this is, counted from 1.
    pub attempt: u32,
}

impl TestInstance {
    /// The test's id.
    pub fn id(&self) -> &str {
        &self.record.id
    }
}

/// What a test wrote, bounded: the beginning and the end are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured {
    /// The text; bytes that are not UTF-8 are replaced. Where something was dropped, a line in the middle says so.
    pub text: String,
    /// How many bytes were dropped from the middle.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped_bytes: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Captured {
    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

impl From<String> for Captured {
    fn from(text: String) -> Self {
        Self { text, dropped_bytes: 0 }
    }
}

/// The result of one attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TestResult {
    /// How it ended.
    pub outcome: TestOutcome,
    /// How long the test ran, in the sandbox.
    #[serde(with = "crate::event::seconds", rename = "duration_secs")]
    pub duration: Duration,
    /// One line on why: `panicked at src/lib.rs:3:5`, `killed by signal 11 (SIGSEGV)`, the reason of a skip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The long form: a traceback, stacks at a time-out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<String>,
    /// What the test wrote to standard output.
    #[serde(default, skip_serializing_if = "Captured::is_empty")]
    pub stdout: Captured,
    /// What the test wrote to standard error.
    #[serde(default, skip_serializing_if = "Captured::is_empty")]
    pub stderr: Captured,
    /// The test left processes behind that still held its output.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaky: bool,
    /// The test did not pass in the process that it shared with others, and passed in one of its own. These had run before it
    /// in the first, the latest of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares_state: Option<Vec<String>>,
    /// The test ran in one process with others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared_process: bool,
    /// How long set-up, call and tear-down took, where the framework tells them apart.
    #[serde(skip)]
    pub phases: Option<[Duration; 3]>,
    /// The result as the framework itself writes it down, for those who know the framework: JSON. It may be large and
    /// repeats what is above, so it has no place in serialised forms.
    #[serde(skip)]
    pub native: Option<Arc<str>>,
}

impl TestResult {
    /// A result with an outcome and a duration, and nothing else.
    pub fn new(outcome: TestOutcome, duration: Duration) -> Self {
        Self {
            outcome,
            duration,
            message: None,
            details: None,
            stdout: Captured::default(),
            stderr: Captured::default(),
            leaky: false,
            shares_state: None,
            shared_process: false,
            phases: None,
            native: None,
        }
    }

    /// The same result with a message.
    #[must_use]
    pub fn with_message(mut self, message: impl Into<String>) -> Self {
        self.message = Some(message.into());
        self
    }
}

/// What discovery reports while it goes on.
#[derive(Debug, Clone)]
pub enum Discovered {
    /// Tests that can run from now on.
    Tests(Vec<TestRecord>),
    /// The build that discovery needs has begun.
    BuildStarted,
    /// A line of the build, as the build tool writes it (colours kept, no line end).
    BuildOutput(String),
    /// The build has ended.
    BuildFinished {
        /// Whether everything was built.
        success: bool,
        /// How long it took.
        duration: Duration,
    },
    /// Something the user should know that hides no test.
    Warning(String),
    /// Some tests could not be discovered (a target does not compile). What was found runs; the run's exit code is 3.
    Problem(String),
    /// Something that only those who know the framework can use.
    Native(NativeEvent),
}

/// Where discovery puts what it finds. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DiscoverySink(mpsc::UnboundedSender<Discovered>);

impl DiscoverySink {
    /// A sink and the receiver of what is put into it.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Discovered>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// Reports one thing. Returns `false` when nobody listens any more: discovery should then end.
    pub fn send(&self, discovered: Discovered) -> bool {
        self.0.send(discovered).is_ok()
    }
}

/// Sandboxes for a discovery that takes place in them. Cheap to clone.
///
/// They are those that will run the tests, and so numbered as these are.
#[derive(Debug, Clone)]
pub struct Sandboxes {
    wishes: mpsc::UnboundedSender<Wanted>,
    known_files: usize,
}

/// A sandbox that discovery waits for.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub number: u32,
    /// What is there of that number is of no use any more.
    pub again: bool,
    /// Hears when it is ready, or why there will be none.
    pub reply: oneshot::Sender<Result<(), String>>,
}

impl Sandboxes {
    /// The wishes come out of the receiver. `known_files`: in how many files earlier runs found tests.
    pub(crate) fn new(known_files: usize) -> (Self, mpsc::UnboundedReceiver<Wanted>) {
        let (wishes, receiver) = mpsc::unbounded_channel();
        (Self { wishes, known_files }, receiver)
    }

    /// In how many files earlier runs found tests.
    pub(crate) fn known_files(&self) -> usize {
        self.known_files
    }

    /// Has the sandbox with this number created, likely to be waited for later.
    pub(crate) fn want(&self, number: u32) {
        let (reply, _) = oneshot::channel();
        // If nobody takes wishes any more the run has ended.
        let _ = self.wishes.send(Wanted { number, again: false, reply });
    }

    /// Has the sandbox with this number created, and what executes tests started in it, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// Why there will be none.
    pub(crate) async fn ready(&self, number: u32) -> Result<(), String> {
        self.wait_for(number, false).await
    }

    /// The same of another sandbox with this number, in the place of one that is lost, which is destroyed first: there may
    /// not be room for both.
    ///
    /// # Errors
    ///
    /// Why there will be none.
    pub(crate) async fn replaced(&self, number: u32) -> Result<(), String> {
        self.wait_for(number, true).await
    }

    async fn wait_for(&self, number: u32, again: bool) -> Result<(), String> {
        let gone = || "the run was ended".to_owned();
        let (reply, ready) = oneshot::channel();
        self.wishes.send(Wanted { number, again, reply }).map_err(|_| gone())?;
        ready.await.map_err(|_| gone())?
    }
}

/// How the tests of a framework are executed in a sandbox.
#[derive(Clone)]
pub enum Execution {
    /// One command per batch: [`TestFramework::produce_test_execution_command`] and [`TestFramework::parse_results`].
    Commands,
    /// The libtest worker runs the [units](Unit) that discovery gave.
    Libtest(LibtestExecution),
    /// Workers that are forks of a template process run the tests that they collected.
    Pytest(Arc<PytestHost>),
}

/// How the libtest worker executes tests.
#[derive(Clone)]
pub struct LibtestExecution {
    /// Which tests share a process.
    pub isolation: Isolation,
    /// What a test must pass before it starts, while the machine is shared with a build.
    pub gate: Option<Arc<dyn StartGate>>,
    /// What starts the worker in a sandbox that is somewhere else, if anything does.
    pub worker: Option<Command>,
}

/// What tests share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// One process per test.
    Process,
    /// A batch of tests of one binary in one process.
    Binary,
    /// As `Binary`, but what does not pass there runs again in a process of its own, and that is its outcome.
    #[default]
    Auto,
}

/// Finds tests and knows how to run them.
#[async_trait]
pub trait TestFramework: Send + Sync {
    /// Finds the tests under `paths` (all of the project's when empty).
    ///
    /// # Errors
    ///
    /// [`FrameworkError::Discovery`] when tests cannot be found, [`FrameworkError::Usage`] when what was asked for does
    /// not exist.
    async fn discover(&self, paths: &[PathBuf]) -> FrameworkResult<Vec<TestRecord>>;

    /// The command that runs `tests` in a sandbox and, if it can, writes a JUnit file to `result_file` there.
    fn produce_test_execution_command(&self, tests: &[TestInstance], result_file: &str) -> Command;

    /// Reads the results of [`Self::produce_test_execution_command`]: one for each of `tests`, in their order.
    /// `result_file` holds what the command wrote there, if it did.
    ///
    /// [`TestOutcome::NotRun`] says that the command ended (a crash, a time-out) before it came to the test: the test
    /// is started again in another batch, at no cost in retries. At least one result must be another one.
    ///
    /// # Errors
    ///
    /// [`FrameworkError::Results`] when nothing can be made of what came back; the whole batch is then an
    /// infrastructure fault.
    fn parse_results(
        &self,
        tests: &[TestInstance],
        output: &ExecOutput,
        result_file: Option<&[u8]>,
    ) -> FrameworkResult<Vec<TestResult>>;

    /// What users call this framework.
    fn name(&self) -> &str {
        "custom"
    }

    /// Finds tests and hands them out as they are found. By default: all at once, by [`Self::discover`].
    ///
    /// # Errors
    ///
    /// As [`Self::discover`].
    async fn discover_stream(&self, paths: &[PathBuf], sink: DiscoverySink) -> FrameworkResult<()> {
        let tests = self.discover(paths).await?;
        sink.send(Discovered::Tests(tests));
        Ok(())
    }

    /// As [`Self::discover_stream`], for a framework that finds tests where they will run. By default it does not need
    /// the sandboxes.
    ///
    /// # Errors
    ///
    /// As [`Self::discover`].
    async fn discover_in(&self, paths: &[PathBuf], _sandboxes: Sandboxes, sink: DiscoverySink) -> FrameworkResult<()> {
        self.discover_stream(paths, sink).await
    }

    /// How tests are executed. By default: one command per batch.
    fn execution(&self) -> Execution {
        Execution::Commands
    }

    /// What was built for the tests, for sandboxes that are somewhere else. Asked when tests are about to run there, which
    /// is never while a build goes on.
    fn built(&self) -> Built {
        Built::default()
    }

    /// The most tests that one command may run.
    fn max_batch(&self) -> usize {
        200
    }

    /// Ends what discovery left running for the sake of the tests. Called once, when the run is over and its sandboxes
    /// are destroyed; `now`: without waiting for anything.
    async fn finish(&self, _now: bool) {}
}

#[async_trait]
impl<T: TestFramework + ?Sized> TestFramework for Arc<T> {
    async fn discover(&self, paths: &[PathBuf]) -> FrameworkResult<Vec<TestRecord>> {
        (**self).discover(paths).await
    }

    fn produce_test_execution_command(&self, tests: &[TestInstance], result_file: &str) -> Command {
        (**self).produce_test_execution_command(tests, result_file)
    }

    fn parse_results(
        &self,
        tests: &[TestInstance],
        output: &ExecOutput,
        result_file: Option<&[u8]>,
    ) -> FrameworkResult<Vec<TestResult>> {
        (**self).parse_results(tests, output, result_file)
    }

    fn name(&self) -> &str {
        (**self).name()
    }

    async fn discover_stream(&self, paths: &[PathBuf], sink: DiscoverySink) -> FrameworkResult<()> {
        (**self).discover_stream(paths, sink).await
    }

    async fn discover_in(&self, paths: &[PathBuf], sandboxes: Sandboxes, sink: DiscoverySink) -> FrameworkResult<()> {
        (**self).discover_in(paths, sandboxes, sink).await
    }

    fn execution(&self) -> Execution {
        (**self).execution()
    }

    fn built(&self) -> Built {
        (**self).built()
    }

    fn max_batch(&self) -> usize {
        (**self).max_batch()
    }

    async fn finish(&self, now: bool) {
        (**self).finish(now).await;
    }
}
