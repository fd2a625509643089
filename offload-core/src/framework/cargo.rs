//! The framework `cargo`: Rust tests, as `cargo test` finds and runs them.
//!
//! Discovery (`discover`) follows Cargo's build as a stream and lists each test binary when it is there, while a
//! gate (`gate`) shares the machine between the build and the tests that already run. A unit (`unit`) is executed by the
//! [libtest worker](crate::worker::libtest) in the environment that `cargo test` gives; where there is no worker, by a
//! shell script (`batch`) per batch of tests.
//!
//! When a test runs, where, and how often is not decided here.

mod batch;
mod cache;
mod config;
mod diagnostics;
mod discover;
mod doctest;
mod gate;
mod list;
mod locate;
mod options;
mod outputs;
mod process;
mod select;
mod sources;
mod toolchain;
mod unit;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use async_trait::async_trait;

#[cfg(any(test, fuzzing))]
pub use list::fuzz::cargo_output;
pub use locate::target_directory;
pub use options::{CargoOptions, RunIgnored};

use self::gate::BuildGate;
use super::{
    Discovered, DiscoverySink, Execution, FrameworkError, FrameworkResult, Isolation, LibtestExecution, TestFramework,
    TestInstance, TestRecord, TestResult,
};
use crate::config::CargoFrameworkConfig;
use crate::provider::{Built, Command, CopyDir, ExecOutput};

/// Rust tests: unit, integration, example and benchmark targets, and doctests, of a Cargo workspace.
pub struct CargoFramework {
    isolation: Isolation,
    options: CargoOptions,
    gate: Arc<BuildGate>,
    /// The repository's root, as soon as a discovery has found it.
    repository: OnceLock<PathBuf>,
    built: Mutex<Built>,
    worker: Option<PathBuf>,
}

/// Where the worker is in sandboxes that are somewhere else.
const WORKER: &str = "/.offload/worker";

impl CargoFramework {
    /// The tests of the workspace in the current directory.
    pub fn new(config: CargoFrameworkConfig) -> Self {
        Self::with_options(config, CargoOptions::default())
    }

    /// The tests that a command line asks for. Where it says nothing, the configuration counts.
    pub fn with_options(config: CargoFrameworkConfig, options: CargoOptions) -> Self {
        Self {
            isolation: config.isolation,
            options: options.with_config(&config),
            gate: Arc::default(),
            repository: OnceLock::new(),
            built: Mutex::default(),
            worker: None,
        }
    }

    /// Tests run somewhere else, by this program, whose argument `worker` makes it a
    /// [worker](crate::worker::libtest::serve_stdio).
    #[must_use]
    pub fn with_worker(mut self, program: impl Into<PathBuf>) -> Self {
        self.worker = Some(program.into());
        self
    }
}

#[async_trait]
impl TestFramework for CargoFramework {
    /// Builds and finds all tests. `paths` must be empty: Rust tests are not selected by path.
    async fn discover(&self, paths: &[PathBuf]) -> FrameworkResult<Vec<TestRecord>> {
        let (sink, mut found) = DiscoverySink::new();
        self.discover_stream(paths, sink).await?;
        let mut tests = Vec::new();
        let mut output = Vec::new();
        while let Some(discovered) = found.recv().await {
            match discovered {
                Discovered::Tests(more) => tests.extend(more),
                Discovered::BuildOutput(line) => output.push(line),
                // Half a suite must not pass for the whole one.
                Discovered::Problem(problem) => {
                    output.push(problem);
                    return Err(FrameworkError::Discovery(output.join("\n")));
                }
                Discovered::Warning(warning) => tracing::warn!("{warning}"),
                Discovered::BuildStarted | Discovered::BuildFinished { .. } | Discovered::Native(_) => {}
            }
        }
        Ok(tests)
    }

    fn produce_test_execution_command(&self, tests: &[TestInstance], _result_file: &str) -> Command {
        batch::command(tests, self.repository.get().map(PathBuf::as_path))
    }

    fn parse_results(
        &self,
        tests: &[TestInstance],
        output: &ExecOutput,
        _result_file: Option<&[u8]>,
    ) -> FrameworkResult<Vec<TestResult>> {
        batch::results(tests, output)
    }

    fn name(&self) -> &str {
        "cargo"
    }

    async fn discover_stream(&self, paths: &[PathBuf], sink: DiscoverySink) -> FrameworkResult<()> {
        if let Some(path) = paths.first() {
            return Err(FrameworkError::Usage(format!(
                "Cargo's tests cannot be selected by path ({}); name a package with --package or a part of a test's name",
                path.display()
            )));
        }
        // Tests run before discovery ends, and how they are run depends on where the repository is.
        let note_root = |root: &Path| {
            let repository = root.ancestors().find(|dir| dir.join(".git").exists()).unwrap_or(root);
            let _ = self.repository.set(repository.to_owned());
        };
        let built = |built| *self.built.lock().unwrap_or_else(PoisonError::into_inner) = built;
        discover::discover(&self.options, &self.gate, &sink, note_root, built).await
    }

    fn built(&self) -> Built {
        let built = self.built.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let copies = self.worker.iter().map(|local| CopyDir { local: local.clone(), remote: WORKER.into() }).collect();
        Built { root: self.repository.get().cloned(), copies, ..built }
    }

    fn execution(&self) -> Execution {
        let worker = self.worker.as_ref().map(|_| Command::new(WORKER, ["worker"]));
        Execution::Libtest(LibtestExecution { isolation: self.isolation, gate: Some(self.gate.clone()), worker })
    }
}
