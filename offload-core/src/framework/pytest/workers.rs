//! pytest with workers of this machine: one template process, forks of it collect and run.
//!
//! Discovery starts the template and, where collecting can be shared out, as many workers as are of use. Each keeps what
//! it collected and is handed to the sandbox that runs its tests first. What is found is told in the order in which
//! plain pytest would have found it, when all of it is there: pytest runs nothing while it still collects.
//!
//! - `share` decides which worker collects which files next,
//! - `collect` carries that out,
//! - here is what frames it.

mod collect;
mod share;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use self::collect::Collection;
use crate::event::NativeEvent;
use crate::framework::{
    Discovered, DiscoverySink, Execution, FrameworkError, FrameworkResult, TestFramework, TestInstance, TestRecord,
    TestResult,
};
use crate::provider::{Command, ExecOutput};
use crate::worker::pytest::{FromTemplate, Incoming, PytestHost, PytestOptions};

/// Tests of pytest, collected and run by workers of this machine.
#[derive(Debug)]
pub struct PytestWorkers {
    host: Arc<PytestHost>,
}

impl PytestWorkers {
    /// A framework that starts nothing before its discovery.
    pub fn new(options: PytestOptions) -> Self {
        Self { host: Arc::new(PytestHost::new(options)) }
    }

    /// The template process and its workers.
    pub fn host(&self) -> &Arc<PytestHost> {
        &self.host
    }

    async fn collect(&self, sink: &DiscoverySink) -> FrameworkResult<Vec<TestRecord>> {
        let options = self.host.options();
        let mut template = self.host.start(sink.clone()).map_err(|error| {
            FrameworkError::Discovery(format!(
                "cannot start pytest's template process with {} in {}: {error}; check that both are there",
                options.python.display(),
                options.cwd.display()
            ))
        })?;
        self.host.initialise().await;
        let mut collection = Collection::new(&self.host, sink);
        loop {
            let message = match template.recv().await {
                Some(FromTemplate::Message(message)) => message,
                Some(FromTemplate::Ended(text)) => return Err(FrameworkError::Discovery(text)),
                None => return Err(FrameworkError::Discovery("the run was ended".to_owned())),
            };
            match message {
                Incoming::Fatal { exit_code, text } => return Err(collection.fatal(exit_code, &text)),
                Incoming::Configured { collect, collect_reason, start, start_reason } => {
                    let data = serde_json::json!({
                        "workers": options.workers,
                        "collect": collect,
                        "collect_reason": collect_reason,
                        "start": start,
                        "start_reason": start_reason,
                    });
                    sink.send(Discovered::Native(NativeEvent::new("header", data.to_string())));
                }
                Incoming::Units(units) => {
                    collection.share_out(units, &mut template).await?;
                    break;
                }
                Incoming::Collected(collected) => collection.add(collected, None),
                Incoming::CollectReport { report, failed } => collection.report(report, failed),
                Incoming::CollectionFinished => break,
                Incoming::Native(kind, data) => collection.pass_on(kind, data),
                _ => {}
            }
        }
        collection.into_tests(options.continue_on_collection_errors)
    }
}

#[async_trait]
impl TestFramework for PytestWorkers {
    /// Tests cannot be found first and run by another run: it is the workers that have them.
    async fn discover(&self, _paths: &[PathBuf]) -> FrameworkResult<Vec<TestRecord>> {
        let (sink, _discovered) = DiscoverySink::new();
        let tests = self.collect(&sink).await;
        self.host.finish(false).await;
        tests
    }

    async fn discover_stream(&self, _paths: &[PathBuf], sink: DiscoverySink) -> FrameworkResult<()> {
        let tests = self.collect(&sink).await?;
        sink.send(Discovered::Tests(tests));
        Ok(())
    }

    fn produce_test_execution_command(&self, _tests: &[TestInstance], _result_file: &str) -> Command {
        // Never asked for: workers run the tests.
        Command::new("false", [] as [String; 0])
    }

    fn parse_results(
        &self,
        _tests: &[TestInstance],
        _output: &ExecOutput,
        _result_file: Option<&[u8]>,
    ) -> FrameworkResult<Vec<TestResult>> {
        Err(FrameworkError::Results("tests of pytest are run by workers, not by commands".to_owned()))
    }

    fn name(&self) -> &str {
        "pytest"
    }

    fn execution(&self) -> Execution {
        Execution::Pytest(Arc::clone(&self.host))
    }

    async fn finish(&self, now: bool) {
        self.host.finish(now).await;
    }
}
