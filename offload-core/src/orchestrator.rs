//! Brings a framework and a provider together and runs the tests.
//!
//! The [`Scheduler`] decides and does no I/O; one [`TestRunner`] per sandbox acts; [the run](self) carries facts to the
//! one, actions to the other and turns both into [events](crate::event::RunEvent), which are its only output. One task
//! linearises all facts, so whatever reports see is one story in one order.
//!
//! What is decided elsewhere: how a sandbox comes to be ([provider](crate::provider)), what a test is
//! ([framework](crate::framework)), how anything looks ([report](crate::report)).

mod artifacts;
mod batch;
mod cancel;
mod dispatch;
mod mask;
mod pool;
mod remote;
mod result;
mod runner;
pub mod scheduler;
mod settle;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

pub use cancel::CancelHandle;
pub use pool::SandboxPool;
pub use result::RunResult;
pub use runner::TestRunner;
pub use scheduler::Scheduler;

use crate::config::{Config, FrameworkConfig, RecordHistory};
use crate::framework::{DiscoverySink, Isolation, Sandboxes, TestFramework, TestRecord};
use crate::provider::{CopyDir, SandboxProvider};
use crate::report::Reporter;
use crate::report::console::{ConsoleOptions, ConsoleReporter};
use crate::report::history::{History, HistoryReporter};
use crate::report::junit::MasterJunitReport;

/// What can keep a run from taking place. Whatever happens after its first event is part of the [`RunResult`] instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OrchestratorError {
    /// Something that every run needs of the operating system was refused.
    #[error("cannot start the run: {0}")]
    Start(#[from] std::io::Error),
}

/// Runs a test suite: coordinates discovery, sandboxes, tests and reports.
pub struct Orchestrator {
    config: Config,
    provider: Arc<dyn SandboxProvider>,
    framework: Arc<dyn TestFramework>,
    copy_dirs: Vec<CopyDir>,
    reporters: StdMutex<Vec<Box<dyn Reporter>>>,
    history: History,
    history_warnings: Vec<String>,
    cancel: CancelHandle,
    no_capture: bool,
    tests_required: bool,
    env: BTreeMap<String, String>,
}

impl Orchestrator {
    /// An orchestrator that reports to the terminal, to the JUnit file and to the history that `config` names.
    ///
    /// `copy_dirs` are brought into every sandbox before its first test. With `verbose` the terminal shows a line for
    /// each test.
    pub fn new(
        config: Config,
        provider: impl SandboxProvider + 'static,
        framework: impl TestFramework + 'static,
        copy_dirs: &[CopyDir],
        verbose: bool,
    ) -> Self {
        let (history, history_warnings) = History::load(&config.history.path).unwrap_or_else(|error| {
            let path = config.history.path.display();
            (History::default(), vec![format!("the test history cannot be read: {path}: {error}")])
        });
        let reporters = standard_reporters(&config, verbose);
        Self {
            config,
            provider: Arc::new(provider),
            framework: Arc::new(framework),
            copy_dirs: copy_dirs.to_vec(),
            reporters: StdMutex::new(reporters),
            history,
            history_warnings,
            cancel: CancelHandle::new(),
            no_capture: false,
            tests_required: false,
            env: BTreeMap::new(),
        }
    }

    /// Replaces the reports of the run.
    #[must_use]
    pub fn with_reporters(self, reporters: Vec<Box<dyn Reporter>>) -> Self {
        Self { reporters: StdMutex::new(reporters), ..self }
    }

    /// Lets tests write straight to the reports as [`TestOutput`](crate::event::RunEvent::TestOutput), uncaptured.
    #[must_use]
    pub fn with_no_capture(self, no_capture: bool) -> Self {
        Self { no_capture, ..self }
    }

    /// Makes it a problem of the run when there is no test to run.
    #[must_use]
    pub fn with_tests_required(self, tests_required: bool) -> Self {
        Self { tests_required, ..self }
    }

    /// Sets variables for everything in the sandboxes.
    #[must_use]
    pub fn with_env(self, env: BTreeMap<String, String>) -> Self {
        Self { env, ..self }
    }

    /// Ends the run from elsewhere, from a signal handler for example.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// Discovers tests under `paths` (everything when empty) and runs them, from the moment the first is found.
    ///
    /// # Errors
    ///
    /// [`OrchestratorError`] when the run cannot begin at all.
    pub async fn run(&self, paths: &[PathBuf]) -> Result<RunResult, OrchestratorError> {
        let pool = tokio::sync::Mutex::new(SandboxPool::new());
        let (sink, discovered) = DiscoverySink::new();
        let framework = Arc::clone(&self.framework);
        let paths = paths.to_vec();
        let (sandboxes, wanted) = Sandboxes::new(self.history.files());
        let discovery = async move { framework.discover_in(&paths, sandboxes, sink).await };
        dispatch::Dispatcher::new(self, &pool, wanted)?.run(Box::pin(discovery), discovered).await
    }

    /// Runs tests that were discovered before. Sandboxes are taken from `sandbox_pool` as long as it has any, and
    /// created after that.
    ///
    /// # Errors
    ///
    /// [`OrchestratorError`] when the run cannot begin at all.
    pub async fn run_with_tests(
        &self,
        tests: &[TestRecord],
        sandbox_pool: &tokio::sync::Mutex<SandboxPool>,
    ) -> Result<RunResult, OrchestratorError> {
        let (sink, discovered) = DiscoverySink::new();
        sink.send(crate::framework::Discovered::Tests(tests.to_vec()));
        drop(sink);
        let (_, wanted) = Sandboxes::new(0);
        dispatch::Dispatcher::new(self, sandbox_pool, wanted)?.run(Box::pin(async { Ok(()) }), discovered).await
    }

    fn take_reporters(&self) -> Vec<Box<dyn Reporter>> {
        std::mem::take(&mut *self.reporters.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the scheduler is told of a test's duration.
    fn expected(&self, record: &TestRecord) -> Option<Duration> {
        self.history.expected(&record.id)
    }

    /// Whether a test gains nothing by a process that it shares with others.
    fn wants_process(&self, record: &TestRecord) -> bool {
        record.schedule_individual || self.history.wants_process(&record.id)
    }
}

/// The reporter that keeps the history, if the configuration asks for one.
pub fn history_reporter(config: &Config) -> Option<HistoryReporter> {
    let chooses = matches!(&config.framework, FrameworkConfig::Cargo(cargo) if cargo.isolation == Isolation::Auto);
    let reporter = HistoryReporter::new(&config.history.path, config.history.reservoir_size);
    (config.history.record_history == RecordHistory::Always).then(|| reporter.choosing_processes(chooses))
}

fn standard_reporters(config: &Config, verbose: bool) -> Vec<Box<dyn Reporter>> {
    let mut reporters: Vec<Box<dyn Reporter>> = Vec::new();
    let junit = config.report.junit_path();
    reporters.push(Box::new(ConsoleReporter::stdio(ConsoleOptions {
        verbosity: i8::from(verbose),
        slow_test: config.offload.slow_test,
        reports: junit.clone().into_iter().collect(),
        ..ConsoleOptions::default()
    })));
    if let Some(path) = junit {
        reporters.push(Box::new(MasterJunitReport::new(path)));
    }
    if let Some(history) = history_reporter(config) {
        reporters.push(Box::new(history));
    }
    reporters
}
