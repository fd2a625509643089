//! Executes tests within a single sandbox.
//!
//! A runner owns its sandbox from the moment it is ready until it is destroyed. Behind it stands the fastest way of
//! executing that framework and sandbox have in common: a worker, or one command per batch. Either way the dispatcher
//! hears the same [messages](Message).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::artifacts::Artifacts;
use super::batch;
use super::remote::{RemoteWorker, Session};
use super::scheduler::SandboxIndex;
use crate::bounded;
use crate::connector::next_event;
use crate::event::NativeEvent;
use crate::framework::{Execution, TestFramework, TestInstance, TestOutcome, TestResult};
use crate::provider::{HostSlot, ProviderError, ProviderResult, Sandbox};
use crate::random;
use crate::secret::Secrets;
use crate::worker::libtest::{LibtestOptions, LibtestWorker};
use crate::worker::pytest::{PytestItem, PytestWorker, Said};
use crate::worker::{Message, Request, RunItem, TestKey, UnitKey};

/// What a runner tells the dispatcher.
#[derive(Debug)]
pub(super) enum Report {
    /// Something about a test.
    Message(Message),
    /// The sandbox broke.
    Lost(String),
    /// There is no room for what the sandbox needs beside the others.
    NoRoom(String),
    /// Something that the user should know and that breaks nothing.
    Warning(String),
    /// Something that is wrong with the run, and with no test.
    Problem(String),
    /// Something of the framework's own, about a test or none.
    Native(Option<TestKey>, NativeEvent),
    /// Tests that cannot be run there, and why.
    Refused(Vec<TestKey>, String),
    /// What a finished test had left standing could not be torn down.
    LateFailure(TestKey, Box<TestResult>),
    /// What executes the tests was replaced, and the sandbox is called otherwise from now on.
    Renamed(Arc<str>),
}

impl Report {
    /// Whether those who follow the run have to hear first of the results that were reported before it.
    pub(super) fn follows_results(&self) -> bool {
        matches!(self, Self::Native(..) | Self::LateFailure(..))
    }
}

/// A test on its way to a sandbox.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub key: TestKey,
    pub instance: TestInstance,
    pub unit: Option<UnitKey>,
    /// How long the test takes, as far as earlier runs say.
    pub expected: Option<Duration>,
    /// It is to have a process of its own where others might share one.
    pub alone: bool,
}

/// What all runners of a run share.
#[derive(Clone)]
pub(super) struct RunnerContext {
    pub run_id: Arc<str>,
    pub framework: Arc<dyn TestFramework>,
    pub execution: Execution,
    pub timeout: Duration,
    pub no_capture: bool,
    /// Failures are counted: after one, nothing is started that was not asked for again.
    pub yield_on_failure: bool,
    pub secrets: Secrets,
    /// What is brought back from sandboxes.
    pub artifacts: Option<Arc<Artifacts>>,
    pub reports: mpsc::UnboundedSender<(SandboxIndex, Report)>,
}

/// Executes tests within a single sandbox.
pub struct TestRunner {
    sandbox: Arc<dyn Sandbox>,
    execution: Execution,
    executor: Executor,
    timeout: Duration,
    artifacts: Option<Arc<Artifacts>>,
    reports: mpsc::UnboundedSender<(SandboxIndex, Report)>,
    index: SandboxIndex,
}

enum Executor {
    Worker { worker: LibtestWorker, defined: HashSet<UnitKey> },
    Remote { worker: RemoteWorker, defined: HashSet<UnitKey> },
    Pytest { id: Arc<str>, worker: PytestWorker },
    Commands { orders: mpsc::UnboundedSender<Order>, task: tokio::task::JoinHandle<()> },
}

/// What a runner without a worker can be told.
enum Order {
    Run(Vec<Job>),
    Cancel,
}

/// How long a sandbox in which nothing runs any more may take to be destroyed.
const DESTROY_PATIENCE: Duration = Duration::from_secs(60);

impl TestRunner {
    /// Takes over a sandbox.
    pub(super) fn start(
        index: SandboxIndex,
        sandbox: Arc<dyn Sandbox>,
        session: Option<Session>,
        context: &RunnerContext,
    ) -> std::io::Result<Self> {
        if let Some(session) = session {
            let reports = context.reports.clone();
            let worker = RemoteWorker::start(session, move |report| drop(reports.send((index, report))));
            let executor = Executor::Remote { worker, defined: HashSet::new() };
            return Ok(Self::of(sandbox, executor, index, context));
        }
        let executor = match (&context.execution, sandbox.host_slot()) {
            (Execution::Libtest(execution), Some(HostSlot { env })) => {
                let reports = context.reports.clone();
                let options = LibtestOptions {
                    slot: index.0 as usize,
                    isolation: execution.isolation,
                    no_capture: context.no_capture,
                    yield_on_failure: context.yield_on_failure,
                    env,
                    gate: execution.gate.clone(),
                    ..LibtestOptions::default()
                };
                // Nobody listens any more once the run is over; what a worker still says then is of no interest.
                let worker = LibtestWorker::spawn(options, move |message| {
                    let _ = reports.send((index, Report::Message(message)));
                })?;
                Executor::Worker { worker, defined: HashSet::new() }
            }
            (Execution::Pytest(host), _) => {
                let reports = context.reports.clone();
                let (id, worker) = PytestWorker::start(host, index.0, move |said| {
                    let report = match said {
                        Said::Message(message) => Report::Message(message),
                        Said::Native(key, event) => Report::Native(key, event),
                        Said::Refused(keys, why) => Report::Refused(keys, why),
                        Said::LateFailure(key, result) => Report::LateFailure(key, result),
                        Said::Replaced(id) => Report::Renamed(id),
                        Said::Problem(text) => Report::Problem(text),
                        Said::Lost(reason) => Report::Lost(reason),
                        Said::NoRoom(reason) => Report::NoRoom(reason),
                    };
                    let _ = reports.send((index, report));
                });
                Executor::Pytest { id, worker }
            }
            _ => {
                let (orders, inbox) = mpsc::unbounded_channel();
                let task = tokio::spawn(run_commands(index, Arc::clone(&sandbox), context.clone(), inbox));
                Executor::Commands { orders, task }
            }
        };
        Ok(Self::of(sandbox, executor, index, context))
    }

    fn of(sandbox: Arc<dyn Sandbox>, executor: Executor, index: SandboxIndex, context: &RunnerContext) -> Self {
        // Commands have theirs brought after each batch.
        let artifacts = context.artifacts.clone().filter(|_| !matches!(executor, Executor::Commands { .. }));
        let RunnerContext { execution, timeout, reports, .. } = context.clone();
        Self { sandbox, execution, executor, timeout, artifacts, reports, index }
    }

    /// What reports call the sandbox.
    pub(super) fn id(&self) -> Arc<str> {
        match &self.executor {
            // Their own names are what tests and plugins know.
            Executor::Pytest { id, .. } => Arc::clone(id),
            _ => Arc::from(self.sandbox.id()),
        }
    }

    /// Appends tests to the sandbox's queue.
    pub(super) fn run(&mut self, jobs: Vec<Job>) {
        match &mut self.executor {
            Executor::Commands { orders, .. } => {
                // A closed channel means that the task reported the loss of its sandbox, which requeues these too.
                let _ = orders.send(Order::Run(jobs));
            }
            Executor::Worker { worker, defined } => {
                let refuse = |key| refuse(&self.reports, self.index, key);
                requests(jobs, defined, self.timeout, refuse).into_iter().for_each(|request| worker.send(request));
            }
            Executor::Remote { worker, defined } => {
                let refuse = |key| refuse(&self.reports, self.index, key);
                requests(jobs, defined, self.timeout, refuse).into_iter().for_each(|request| worker.send(request));
            }
            Executor::Pytest { worker, .. } => {
                let mut tests = Vec::with_capacity(jobs.len());
                for job in jobs {
                    let record = &job.instance.record;
                    let Some(address) = record.address else {
                        refuse(&self.reports, self.index, job.key);
                        continue;
                    };
                    tests.push(PytestItem {
                        key: job.key,
                        unit: address.unit,
                        ordinal: address.ordinal,
                        attempt: job.instance.attempt,
                        timeout: record.timeout.unwrap_or(self.timeout),
                        expected: job.expected,
                    });
                }
                worker.run(tests);
            }
        }
    }

    /// Asks for tests back that have not started.
    pub(super) fn take_back(&self, tests: Vec<TestKey>) {
        match &self.executor {
            Executor::Worker { worker, .. } => worker.send(Request::TakeBack { tests }),
            Executor::Remote { worker, .. } => worker.send(Request::TakeBack { tests }),
            Executor::Pytest { worker, .. } => worker.take_back(tests),
            // A batch is one command: all of it has started.
            Executor::Commands { .. } => {
                let _ = self.reports.send((self.index, Report::Message(Message::TakenBack { tests: Vec::new() })));
            }
        }
    }

    /// Ends tests; all when `tests` is empty.
    pub(super) fn cancel(&self, tests: Vec<TestKey>) {
        match &self.executor {
            Executor::Worker { worker, .. } => worker.send(Request::Cancel { tests }),
            Executor::Remote { worker, .. } => worker.send(Request::Cancel { tests }),
            Executor::Pytest { worker, .. } => worker.cancel(tests),
            Executor::Commands { orders, .. } => {
                let _ = orders.send(Order::Cancel);
            }
        }
    }

    /// Kills what runs, at once.
    pub(super) fn kill(&self) {
        match &self.executor {
            Executor::Worker { worker, .. } => worker.kill(),
            // What does not end by this ends with the sandbox.
            Executor::Remote { worker, .. } => worker.send(Request::Cancel { tests: Vec::new() }),
            Executor::Pytest { worker, .. } => worker.kill(),
            Executor::Commands { orders, .. } => {
                let _ = orders.send(Order::Cancel);
            }
        }
    }

    /// Ends the executor and destroys the sandbox. `failed` tells whether a test failed in it; `None`: there is nothing to
    /// be brought back.
    pub(super) async fn finish(self, failed: Option<bool>) -> ProviderResult<()> {
        let Self { sandbox, execution, executor, artifacts, reports, index, .. } = self;
        match executor {
            Executor::Worker { worker, .. } => {
                worker.send(Request::Shutdown);
                drop(worker);
            }
            Executor::Remote { worker, .. } => worker.finish().await,
            Executor::Pytest { worker, .. } => worker.finish().await,
            Executor::Commands { orders, task } => {
                drop(orders);
                if let Err(error) = task.await {
                    tracing::error!(sandbox = sandbox.id(), %error, "the command runner ended abnormally");
                }
            }
        }
        if let (Some(artifacts), Some(failed)) = (artifacts, failed)
            && let Err(problem) = artifacts.bring(sandbox.as_ref(), failed).await
        {
            let _ = reports.send((index, Report::Warning(problem)));
        }
        close(index, sandbox.as_ref(), &execution).await
    }
}

/// Destroys a sandbox in which nothing is to be executed any more.
pub(super) async fn close(index: SandboxIndex, sandbox: &dyn Sandbox, execution: &Execution) -> ProviderResult<()> {
    if let Execution::Pytest(host) = execution {
        host.close(index.0).await;
    }
    let late = |_| Err(ProviderError::Exec(format!("it was not gone after {} s", DESTROY_PATIENCE.as_secs())));
    tokio::time::timeout(DESTROY_PATIENCE, sandbox.terminate()).await.unwrap_or_else(late)
}

/// What a worker is told of tests that it is to run.
fn requests(
    jobs: Vec<Job>,
    defined: &mut HashSet<UnitKey>,
    timeout: Duration,
    refuse: impl Fn(TestKey),
) -> Vec<Request> {
    let mut requests = Vec::new();
    let mut items = Vec::with_capacity(jobs.len());
    for job in jobs {
        let record = &job.instance.record;
        let (Some(unit), Some(key)) = (&record.suite.unit, job.unit) else {
            refuse(job.key);
            continue;
        };
        if defined.insert(key) {
            requests.push(Request::Define { key, unit: Arc::clone(unit) });
        }
        let timeout = record.timeout.unwrap_or(timeout);
        items.push(RunItem {
            key: job.key,
            unit: key,
            name: record.name.clone(),
            attempt: job.instance.attempt,
            alone: job.alone,
            timeout_ms: u64::try_from(timeout.as_millis()).ok(),
        });
    }
    requests.push(Request::Run { tests: items });
    requests
}

/// Answers for a test that no worker can make anything of.
fn refuse(reports: &mpsc::UnboundedSender<(SandboxIndex, Report)>, index: SandboxIndex, key: TestKey) {
    let result = TestResult::new(TestOutcome::Error, Duration::ZERO)
        .with_message("the framework said nothing about how to run this test");
    let message = Message::Finished { key, result: Box::new(result) };
    let _ = reports.send((index, Report::Message(message)));
}

/// Runs batches, one after the other, until nobody gives orders any more or the sandbox breaks.
async fn run_commands(
    index: SandboxIndex,
    sandbox: Arc<dyn Sandbox>,
    context: RunnerContext,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    let report = |report| {
        let _ = context.reports.send((index, report));
    };
    let mut result_files = ResultFiles::default();
    'orders: while let Some(order) = orders.recv().await {
        let Order::Run(jobs) = order else { continue };
        if jobs.is_empty() {
            continue;
        }
        let result_file = match result_files.next(sandbox.host_slot().is_some()) {
            Ok(path) => path,
            Err(error) => {
                report(Report::Lost(format!("cannot create a directory for the results of tests: {error}")));
                break;
            }
        };
        let instances: Vec<TestInstance> = jobs.iter().map(|job| job.instance.clone()).collect();
        for job in &jobs {
            report(Report::Message(Message::Started { key: job.key }));
        }
        let execution = batch::run(
            sandbox.as_ref(),
            context.framework.as_ref(),
            &instances,
            &result_file,
            context.timeout,
            &context.secrets,
        );
        tokio::pin!(execution);
        let results = loop {
            tokio::select! {
                results = &mut execution => break results,
                order = orders.recv() => match order {
                    // The scheduler gives the next batch only when this one is done.
                    Some(Order::Run(more)) => {
                        let tests = more.iter().map(|job| job.key).collect();
                        report(Report::Message(Message::TakenBack { tests }));
                    }
                    Some(Order::Cancel) => {
                        let tests = jobs.iter().map(|job| job.key).collect();
                        report(Report::Message(Message::TakenBack { tests }));
                        continue 'orders;
                    }
                    None => break 'orders,
                },
            }
        };
        match results {
            Ok(results) if results.iter().all(|result| result.outcome == TestOutcome::NotRun) => {
                let reason = results.into_iter().find_map(|result| result.message);
                let reason = reason.unwrap_or_else(|| "the command ended without running any test".to_owned());
                report(Report::Lost(reason));
                break;
            }
            Ok(results) => {
                let failed =
                    results.iter().any(|result| result.outcome.is_failure() && result.outcome != TestOutcome::NotRun);
                let mut unstarted = Vec::new();
                for (job, result) in jobs.iter().zip(results) {
                    if result.outcome == TestOutcome::NotRun {
                        unstarted.push(job.key);
                    } else {
                        report(Report::Message(Message::Finished { key: job.key, result: Box::new(result) }));
                    }
                }
                if !unstarted.is_empty() {
                    report(Report::Message(Message::TakenBack { tests: unstarted }));
                }
                if let Some(artifacts) = &context.artifacts
                    && let Err(problem) = artifacts.bring(sandbox.as_ref(), failed).await
                {
                    report(Report::Warning(problem));
                }
            }
            Err(reason) => {
                report(Report::Lost(reason));
                break;
            }
        }
    }
    if !result_files.there.is_empty() {
        remove(sandbox.as_ref(), result_files.there).await;
    }
}

/// Where the results of batches go, in the sandbox. What this machine calls its directory for temporary files need not
/// exist elsewhere. Nobody else can guess the names, or put anything there before.
#[derive(Default)]
struct ResultFiles {
    /// On this machine: a directory that only this user can use, and how many files were named in it.
    here: Option<tempfile::TempDir>,
    number: u32,
    /// Elsewhere: the files that may be there.
    there: Vec<String>,
}

impl ResultFiles {
    fn next(&mut self, here: bool) -> std::io::Result<String> {
        if !here {
            let file = format!("/tmp/offload-{}.result", random::word());
            self.there.push(file.clone());
            return Ok(file);
        }
        let dir = match self.here.take() {
            Some(dir) => dir,
            None => bounded::private_dir("offload-")?,
        };
        self.number += 1;
        let file = dir.path().join(format!("{}.result", self.number));
        self.here = Some(dir);
        Ok(file.to_string_lossy().into_owned())
    }
}

/// Removes our files from a sandbox that may share its file system with something that stays.
async fn remove(sandbox: &dyn Sandbox, files: Vec<String>) {
    let command = crate::provider::Command {
        timeout: Some(Duration::from_secs(30)),
        ..crate::provider::Command::new("rm", std::iter::once("-f".to_owned()).chain(files))
    };
    if let Ok(mut stream) = sandbox.exec_stream(&command).await {
        while let Some(Ok(_)) = next_event(&mut stream).await {}
    }
}
