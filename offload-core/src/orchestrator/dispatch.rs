//! The run itself: one task that takes in every fact, asks the scheduler what to do, does it, and tells the reports.
//!
//! Here are its state and its loop. `facts` is what comes in, `actions` what the scheduler wants done about it, `place`
//! what a sandbox has to do, `reserve` the sandboxes that discovery wants before the scheduler does, `end` what is left to do
//! when nothing is left to run.

mod actions;
mod end;
mod facts;
mod place;
mod reserve;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Mutex, mpsc, watch};

use self::place::Place;
use self::reserve::Reserve;
use super::artifacts::Artifacts;
use super::cancel::Urgency;
use super::mask::mask;
use super::pool::SandboxPool;
use super::remote::Session;
use super::result::RunResult;
use super::runner::{Report, RunnerContext};
use super::scheduler::{Feed, SandboxIndex, Scheduler, SchedulerConfig, TestIndex};
use super::settle::count;
use super::{Orchestrator, OrchestratorError};
use crate::event::{Attempt, FORMAT_VERSION, FinishedTest, RunEvent, StopReason, TestInfo, TimedEvent};
use crate::framework::{Discovered, Execution, FrameworkResult, Isolation, TestRecord, TestResult, Wanted};
use crate::provider::{ProviderResult, Sandbox};
use crate::report::Reporter;
use crate::secret::Pieces;
use crate::worker::{TestKey, Unit, UnitKey};

/// How long the tests last that share a process, unless the user wants them to in any case: whoever waits for their end does
/// not wait long, and beside it the start of a process does not count.
const LONGEST_BATCH: Duration = Duration::from_millis(500);

/// How often the reports are asked to show that time passes.
const TICK: Duration = Duration::from_millis(100);

/// Discovery, while it goes on.
type Discovery = Pin<Box<dyn Future<Output = FrameworkResult<()>> + Send>>;

/// What other tasks tell this one.
enum Fact {
    /// Also: the most sandboxes that there can be.
    Prepared(ProviderResult<()>, Option<usize>),
    Created(SandboxIndex, ProviderResult<Created>, Duration),
    Terminated(SandboxIndex, ProviderResult<()>),
}

/// A sandbox in which tests can be executed, and a worker in it, if that is at the end of a channel.
type Created = (Arc<dyn Sandbox>, Option<Session>);

/// A test that is to be run.
struct Test {
    record: Arc<TestRecord>,
    info: Arc<TestInfo>,
    unit: Option<UnitKey>,
    attempts: Vec<Attempt>,
    settled: bool,
}

pub(super) struct Dispatcher<'a> {
    orchestrator: &'a Orchestrator,
    pool: &'a Mutex<SandboxPool>,
    scheduler: Scheduler,
    reporters: Vec<Box<dyn Reporter>>,
    begun: Instant,
    run_id: Arc<str>,
    context: RunnerContext,
    tests: Vec<Test>,
    units: HashMap<*const Unit, UnitKey>,
    suites: HashMap<String, u32>,
    places: BTreeMap<SandboxIndex, Place>,
    /// Sandboxes that discovery has and the scheduler has not asked for.
    reserve: Reserve,
    facts: mpsc::UnboundedSender<Fact>,
    fact_inbox: mpsc::UnboundedReceiver<Fact>,
    report_inbox: mpsc::UnboundedReceiver<(SandboxIndex, Report)>,
    prepared: bool,
    /// How many sandboxes there can be, if the provider says.
    most: Option<usize>,
    building: bool,
    /// Sandboxes that are to be created once that makes sense.
    waiting: Vec<SandboxIndex>,
    creating: usize,
    terminating: usize,
    losses_in_a_row: u32,
    last_loss: String,
    /// What tests write while they run, as far as it cannot be shown yet.
    pieces: HashMap<(SandboxIndex, TestKey), Pieces>,
    /// Late failures of tests that have no outcome yet, because they are tried again.
    late_failures: HashMap<TestKey, Vec<TestResult>>,
    /// Warnings of workers, each of which is shown once.
    warned: HashSet<String>,
    /// Why a sandbox could not run a test.
    refusals: HashMap<TestKey, Arc<str>>,
    give_up_at: Option<Instant>,
    result: RunResult,
}

impl<'a> Dispatcher<'a> {
    pub(super) fn new(
        orchestrator: &'a Orchestrator,
        pool: &'a Mutex<SandboxPool>,
        wanted: mpsc::UnboundedReceiver<Wanted>,
    ) -> Result<Self, OrchestratorError> {
        let config = &orchestrator.config;
        let execution = orchestrator.framework.execution();
        let feed = match &execution {
            Execution::Libtest(libtest) if libtest.isolation == Isolation::Process => Feed::Stream,
            Execution::Pytest(_) => Feed::Stream,
            Execution::Libtest(libtest) => Feed::Batches {
                max: 10_000,
                one_suite: true,
                longest: (libtest.isolation == Isolation::Auto).then_some(LONGEST_BATCH),
            },
            Execution::Commands => {
                let max = orchestrator.framework.max_batch().max(1);
                Feed::Batches { max, one_suite: false, longest: None }
            }
        };
        let scheduler = Scheduler::new(SchedulerConfig {
            max_sandboxes: config.offload.max_parallel.max(1),
            max_fail: config.offload.max_fail,
            hedge: config.offload.impatiently_requeue_batches && orchestrator.provider.isolates(),
            feed,
            default_duration: config.history.default_duration,
        })
        .with_max_fail_in_order(match &execution {
            Execution::Pytest(host) => host.options().max_fail_in_order,
            _ => None,
        });
        let (facts, fact_inbox) = mpsc::unbounded_channel();
        let (reports, report_inbox) = mpsc::unbounded_channel();
        let run_id: Arc<str> = run_id().into();
        let context = RunnerContext {
            run_id: Arc::clone(&run_id),
            framework: Arc::clone(&orchestrator.framework),
            execution,
            timeout: config.offload.test_timeout,
            no_capture: orchestrator.no_capture,
            yield_on_failure: config.offload.max_fail.is_some(),
            secrets: config.secrets.clone(),
            artifacts: Artifacts::from_config(config, !orchestrator.provider.isolates()).map(Arc::new),
            reports,
        };
        Ok(Self {
            orchestrator,
            pool,
            scheduler,
            reporters: orchestrator.take_reporters(),
            begun: Instant::now(),
            run_id,
            context,
            tests: Vec::new(),
            units: HashMap::new(),
            suites: HashMap::new(),
            places: BTreeMap::new(),
            reserve: Reserve::new(wanted),
            facts,
            fact_inbox,
            report_inbox,
            prepared: false,
            most: None,
            building: false,
            waiting: Vec::new(),
            creating: 0,
            terminating: 0,
            losses_in_a_row: 0,
            last_loss: String::new(),
            pieces: HashMap::new(),
            late_failures: HashMap::new(),
            warned: HashSet::new(),
            refusals: HashMap::new(),
            give_up_at: None,
            result: RunResult { slow_test: config.offload.slow_test, ..RunResult::default() },
        })
    }

    /// Runs everything to its end.
    pub(super) async fn run(
        mut self,
        discovery: Discovery,
        mut discovered: mpsc::UnboundedReceiver<Discovered>,
    ) -> Result<RunResult, OrchestratorError> {
        self.announce();
        self.prepare();
        let mut discovery = Some(discovery);
        let mut cancel = self.orchestrator.cancel.subscribe();
        // A handle may have been used before the run began.
        cancel.mark_changed();
        let mut last = self.orchestrator.cancel.last_test();
        last.mark_changed();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.act().await;
            if discovery.is_none() && self.is_over() {
                break;
            }
            let wakeup = self.scheduler.next_wakeup().map(|at| tokio::time::Instant::from_std(self.begun + at));
            tokio::select! {
                Some((sandbox, report)) = self.report_inbox.recv() => {
                    self.on_report(sandbox, report);
                    while let Ok((sandbox, report)) = self.report_inbox.try_recv() {
                        if report.follows_results() {
                            self.act().await;
                        }
                        self.on_report(sandbox, report);
                    }
                }
                Some(fact) = self.fact_inbox.recv() => self.on_fact(fact),
                Some(wanted) = self.reserve.wanted.recv() => self.on_wanted(wanted),
                Some(found) = discovered.recv() => {
                    // Tests that are found when nobody looks for them any more are not wanted.
                    if discovery.is_some() || matches!(found, Discovered::Native(_)) {
                        self.on_discovered(found);
                    }
                }
                end = running(&mut discovery) => {
                    discovery = None;
                    while let Ok(found) = discovered.try_recv() {
                        self.on_discovered(found);
                    }
                    self.on_discovery_end(end);
                }
                urgency = urged(&mut cancel) => {
                    discovery = None;
                    self.on_cancel(urgency);
                }
                // The sender lives in the orchestrator, which outlives the run.
                Ok(()) = last.changed() => self.scheduler.stop_after(TestIndex(*last.borrow_and_update())),
                () = sleep_until(wakeup) => {}
                _ = tick.tick() => self.on_tick(),
            }
            if self.result.summary.stopped == Some(StopReason::Infrastructure) && discovery.take().is_some() {
                self.scheduler.discovery_finished();
            }
        }
        self.end(&mut cancel, &mut discovered).await;
        Ok(self.result)
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Tells the reports, and returns what they were told: no secret is in it.
    fn emit(&mut self, event: RunEvent) -> RunEvent {
        let mut event = TimedEvent { at: self.now(), event };
        mask(&self.context.secrets, &mut event.event);
        for reporter in &mut self.reporters {
            reporter.on_event(&event);
        }
        event.event
    }

    fn announce(&mut self) {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.emit(RunEvent::RunStarted {
            format: FORMAT_VERSION,
            run_id: self.run_id.to_string(),
            started_at_secs: since_epoch.as_secs_f64(),
            framework: self.orchestrator.framework.name().to_owned(),
            provider: self.orchestrator.provider.name().to_owned(),
            max_sandboxes: self.orchestrator.config.offload.max_parallel,
            isolation: match &self.context.execution {
                Execution::Libtest(libtest) => Some(libtest.isolation),
                _ => None,
            },
        });
        for text in &self.orchestrator.history_warnings {
            self.emit(RunEvent::Warning { text: text.clone() });
        }
    }

    fn prepare(&self) {
        let provider = Arc::clone(&self.orchestrator.provider);
        let facts = self.facts.clone();
        tokio::spawn(async move {
            let result = provider.prepare().await;
            let most = if result.is_ok() { provider.most_sandboxes().await } else { None };
            let _ = facts.send(Fact::Prepared(result, most));
        });
    }

    fn settle(&mut self, mut test: FinishedTest) {
        count(&mut self.result.summary, &test);
        let event = test.event();
        let event = self.emit(event);
        test.keep(event);
        let number = test.test.number;
        self.result.tests.push(test);
        for result in self.late_failures.remove(&number).unwrap_or_default() {
            self.on_late_failure(number, result);
        }
    }

    fn problem(&mut self, text: String) {
        self.result.summary.problems += 1;
        if let RunEvent::Problem { text } = self.emit(RunEvent::Problem { text }) {
            self.result.problems.push(text);
        }
    }

    fn stop_for_infrastructure(&mut self, text: String) {
        if self.result.summary.stopped.is_some() {
            return;
        }
        self.result.summary.stopped = Some(StopReason::Infrastructure);
        self.problem(text);
        self.emit(RunEvent::Stopping { reason: StopReason::Infrastructure });
        self.scheduler.stop();
    }

    fn is_over(&self) -> bool {
        self.give_up_at.is_some_and(|at| Instant::now() >= at)
            || (self.scheduler.is_done() && self.places.values().all(|place| place.assigned.is_empty()))
    }
}

/// The end of discovery; never, when it has ended before.
async fn running(discovery: &mut Option<Discovery>) -> FrameworkResult<()> {
    match discovery {
        Some(discovery) => discovery.await,
        None => std::future::pending().await,
    }
}

/// The next time that somebody asks the run to end.
async fn urged(cancel: &mut watch::Receiver<Urgency>) -> Urgency {
    loop {
        // The sender lives in the orchestrator, which outlives the run.
        if cancel.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        let urgency = *cancel.borrow_and_update();
        if urgency > Urgency::None {
            return urgency;
        }
    }
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// A name that no other run on this machine has or had.
fn run_id() -> String {
    let millis = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    format!("{millis:x}-{:x}", std::process::id())
}
