//! pytest with workers: forks of a template process collect and run, on this machine or elsewhere.
//!
//! Discovery starts the template and, where collecting can be shared out, as many workers as are of use. Each keeps what
//! it collected and is handed to the sandbox that runs its tests first. Where sandboxes are somewhere else, it has them
//! created: each has a template of its own, and all of them number the same files in the same way. What is found is told in the order in which
//! plain pytest would have found it, when all of it is there: pytest runs nothing while it still collects.
//!
//! - `share` decides which worker collects which files next,
//! - `collect` carries that out,
//! - `alone` is how it goes without a pytest in front, for `offload run`,
//! - here is what frames it.

mod alone;
mod collect;
mod share;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;

use self::alone::Alone;
use self::collect::{Collection, Collectors};
use crate::event::NativeEvent;
use crate::framework::{
    Discovered, DiscoverySink, Execution, FrameworkError, FrameworkResult, Sandboxes, TestFramework, TestInstance,
    TestRecord, TestResult,
};
use crate::provider::{Built, Command, ExecOutput};
use crate::worker::pytest::{FromTemplate, Incoming, PytestHost, PytestOptions, WORTH_SAYING, within};

/// How many sandboxes may break, one after the other, before the first of them has said what there is to collect.
const FIRST_ATTEMPTS: u32 = 3;

/// How much longer than any other phase it may take to collect everything in one process.
const SERIAL_FACTOR: u32 = 10;

/// Tests of pytest, collected and run by workers.
#[derive(Debug)]
pub struct PytestWorkers {
    host: Arc<PytestHost>,
    /// Where no pytest makes its own of what workers say.
    alone: Option<Alone>,
}

impl PytestWorkers {
    /// A framework that starts nothing before its discovery.
    pub fn new(options: PytestOptions) -> Self {
        Self { host: Arc::new(PytestHost::new(options)), alone: None }
    }

    /// The template process and its workers.
    pub fn host(&self) -> &Arc<PytestHost> {
        &self.host
    }

    /// Collects with workers of this machine.
    async fn collect(&self, sink: &DiscoverySink) -> FrameworkResult<Vec<TestRecord>> {
        let options = self.host.options();
        let template = self.host.start(sink.clone()).map_err(|error| {
            FrameworkError::Discovery(format!(
                "cannot start pytest's template process with {} in {}: {error}; check that both are there",
                options.python.display(),
                options.cwd.display()
            ))
        })?;
        self.host.initialise(0).await;
        match self.hear(template, Collectors::here(&self.host), sink).await {
            Ok(tests) => Ok(tests),
            Err(Stopped::Finally(error)) => Err(error),
            Err(Stopped::Lost(reason)) => Err(FrameworkError::Discovery(reason)),
        }
    }

    /// Collects in sandboxes that are somewhere else.
    async fn collect_in(&self, sandboxes: Sandboxes, sink: &DiscoverySink) -> FrameworkResult<Vec<TestRecord>> {
        self.host.report_to(sink.clone());
        // All at once, where they will be needed: the others do what the first does while it does it.
        let likely = self.likely(&sandboxes);
        (0..likely).for_each(|number| sandboxes.want(number));
        let mut last = String::new();
        for attempt in 0..FIRST_ATTEMPTS {
            let number = attempt % likely;
            self.host.lead(number);
            let ready = if attempt < likely { sandboxes.ready(number).await } else { sandboxes.replaced(number).await };
            if let Err(reason) = ready {
                last = reason;
                continue;
            }
            let Some(template) = self.host.first() else { continue };
            self.host.initialise(number).await;
            let collectors = Collectors::elsewhere(&self.host, number, sandboxes.clone());
            match self.hear(template, collectors, sink).await {
                Ok(tests) => return Ok(tests),
                Err(Stopped::Finally(error)) => return Err(error),
                Err(Stopped::Lost(reason)) => last = reason,
            }
        }
        Err(FrameworkError::Discovery(format!("no tests could be collected, in {FIRST_ATTEMPTS} attempts: {last}")))
    }

    /// How many sandboxes will be of use, as far as that can be told before there is a list of tests.
    fn likely(&self, sandboxes: &Sandboxes) -> u32 {
        let options = self.host.options();
        if options.elsewhere.as_ref().is_none_or(|elsewhere| elsewhere.selects) {
            return 1;
        }
        u32::try_from(options.workers.min(sandboxes.known_files())).unwrap_or(u32::MAX).max(1)
    }

    /// Hears from the template what there is to collect, and has it collected.
    async fn hear(
        &self,
        mut template: mpsc::UnboundedReceiver<FromTemplate>,
        collectors: Collectors,
        sink: &DiscoverySink,
    ) -> Result<Vec<TestRecord>, Stopped> {
        let options = self.host.options();
        let mut collection = Collection::new(&self.host, sink, self.alone.as_ref());
        let mut limit = options.phase_limit;
        let mut phase = "configures itself and looks for test files";
        // Which sandbox has what the template collects, where that is not all of them.
        let mut home = collectors.home_elsewhere();
        loop {
            let say = || {
                let text = format!("Waiting for the template process for {} s: it {phase}.", WORTH_SAYING.as_secs());
                let data = serde_json::Value::from(text).to_string();
                sink.send(Discovered::Native(NativeEvent::new("waiting", data)));
            };
            let message = match within(limit, template.recv(), say).await {
                Some(Some(FromTemplate::Message(message))) => message,
                Some(Some(FromTemplate::Ended(text))) => return Err(FrameworkError::Discovery(text).into()),
                Some(Some(FromTemplate::Lost(reason))) => return Err(Stopped::Lost(reason)),
                Some(None) => return Err(FrameworkError::Discovery("the run was ended".to_owned()).into()),
                None => {
                    return Err(FrameworkError::Discovery(format!(
                        "the template process of pytest was to end within {} s what it did not end: it {phase}; a higher \
                         limit for tests gives it more time",
                        limit.unwrap_or_default().as_secs_f64()
                    ))
                    .into());
                }
            };
            match message {
                Incoming::Fatal { exit_code, text } => return Err(collection.fatal(exit_code, &text).into()),
                Incoming::Configured { collect, collect_reason, start, start_reason } => {
                    if collect == "serial" {
                        // It says nothing before it has collected everything.
                        phase = "collects all tests";
                        limit = limit.map(|limit| limit.saturating_mul(SERIAL_FACTOR));
                    } else {
                        phase = "looks for test files";
                    }
                    if start == "spawn" {
                        // The template goes on as the first worker; the others collect again.
                        home = Some(collectors.first());
                    }
                    let data = serde_json::json!({
                        "workers": options.workers,
                        "collect": collect,
                        "collect_reason": collect_reason,
                        "start": start,
                        "start_reason": start_reason,
                    });
                    sink.send(Discovered::Native(NativeEvent::new("header", data.to_string())));
                }
                Incoming::Units(units, digest) => {
                    self.host.set_numbering(digest);
                    collection.share_out(units, &mut template, collectors).await?;
                    break;
                }
                Incoming::Collected(collected) => collection.add(collected, home),
                Incoming::CollectReport { report, failed, text } => collection.report(report, failed, text),
                Incoming::CollectionFinished(digest) => {
                    self.host.set_numbering(digest);
                    break;
                }
                Incoming::Native(kind, data) => collection.pass_on(kind, data)?,
                _ => {}
            }
        }
        Ok(collection.into_tests(options.continue_on_collection_errors)?)
    }
}

/// Why collecting came to nothing.
enum Stopped {
    Finally(FrameworkError),
    /// The sandbox in which it was done is gone.
    Lost(String),
}

impl From<FrameworkError> for Stopped {
    fn from(error: FrameworkError) -> Self {
        Self::Finally(error)
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

    async fn discover_in(&self, paths: &[PathBuf], sandboxes: Sandboxes, sink: DiscoverySink) -> FrameworkResult<()> {
        if !self.host.is_elsewhere() {
            return self.discover_stream(paths, sink).await;
        }
        let tests = self.collect_in(sandboxes, &sink).await?;
        sink.send(Discovered::Tests(tests));
        Ok(())
    }

    fn built(&self) -> Built {
        let root = self.host.options().elsewhere.as_ref().and_then(|elsewhere| elsewhere.root.clone());
        Built { root, ..Built::default() }
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
