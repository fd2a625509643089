//! The run itself: one task that takes in every fact, asks the scheduler what to do, does it, and tells the reports.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Mutex, mpsc, watch};

use super::cancel::Urgency;
use super::pool::SandboxPool;
use super::result::{RunResult, exit_code};
use super::runner::{Job, Report, RunnerContext, TestRunner};
use super::scheduler::{
    Action, Assignment, Feed, SandboxIndex, Scheduler, SchedulerConfig, TestIndex, TestSpec, Verdict,
};
use super::settle::count;
use super::{Orchestrator, OrchestratorError};
use crate::event::{Attempt, FORMAT_VERSION, FinishedTest, NativeEvent, RunEvent, StopReason, TestInfo, TimedEvent};
use crate::framework::{
    Discovered, Execution, FrameworkResult, Isolation, TestInstance, TestOutcome, TestRecord, TestResult,
};
use crate::provider::{ProviderError, ProviderResult, Sandbox, SandboxRequest};
use crate::report::Reporter;
use crate::report::summary::LostSandbox;
use crate::worker::{Harness, Message, TestKey, Unit, UnitKey};

/// How long a message takes to a worker in this process and back.
const LOCAL_ROUND_TRIP: Duration = Duration::from_micros(100);
/// How long a command takes to start elsewhere, until a provider says otherwise.
const REMOTE_ROUND_TRIP: Duration = Duration::from_millis(50);
/// How often the reports are asked to show that time passes.
const TICK: Duration = Duration::from_millis(100);
/// The first pause before a sandbox is created anew after one broke; it doubles with every further loss in a row.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// How long workers get to end killed tests before the run ends without them.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// How long sandboxes get to be destroyed at the end.
const TERMINATE_PATIENCE: Duration = Duration::from_secs(60);

/// Discovery, while it goes on.
type Discovery = Pin<Box<dyn Future<Output = FrameworkResult<()>> + Send>>;

/// What other tasks tell this one.
enum Fact {
    Prepared(ProviderResult<()>),
    Created(SandboxIndex, ProviderResult<Box<dyn Sandbox>>, Duration),
    Terminated(SandboxIndex, ProviderResult<()>),
}

/// A test that is to be run.
struct Test {
    record: Arc<TestRecord>,
    info: Arc<TestInfo>,
    unit: Option<UnitKey>,
    attempts: Vec<Attempt>,
    settled: bool,
}

/// An attempt that a sandbox has, started or not.
struct Assigned {
    attempt: u32,
    started_at: Option<Duration>,
    slow: bool,
}

/// A sandbox, from the decision to create it to its end.
struct Place {
    id: Arc<str>,
    runner: Option<TestRunner>,
    assigned: HashMap<TestKey, Assigned>,
    busy: Duration,
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
    facts: mpsc::UnboundedSender<Fact>,
    fact_inbox: mpsc::UnboundedReceiver<Fact>,
    report_inbox: mpsc::UnboundedReceiver<(SandboxIndex, Report)>,
    prepared: bool,
    building: bool,
    /// Sandboxes that are to be created once that makes sense.
    waiting: Vec<SandboxIndex>,
    creating: usize,
    terminating: usize,
    losses_in_a_row: u32,
    last_loss: String,
    give_up_at: Option<Instant>,
    result: RunResult,
}

impl<'a> Dispatcher<'a> {
    pub(super) fn new(orchestrator: &'a Orchestrator, pool: &'a Mutex<SandboxPool>) -> Result<Self, OrchestratorError> {
        let config = &orchestrator.config;
        let execution = orchestrator.framework.execution();
        let feed = match &execution {
            Execution::Libtest(libtest) if libtest.isolation == Isolation::Process => Feed::Stream,
            Execution::Pytest(_) => Feed::Stream,
            Execution::Libtest(_) => Feed::Batches { max: 10_000, one_suite: true },
            Execution::Commands => Feed::Batches { max: orchestrator.framework.max_batch().max(1), one_suite: false },
        };
        let scheduler = Scheduler::new(SchedulerConfig {
            max_sandboxes: config.offload.max_parallel.max(1),
            max_fail: config.offload.max_fail,
            hedge: config.offload.impatiently_requeue_batches && orchestrator.provider.isolates(),
            feed,
            default_duration: config.history.default_duration,
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
            facts,
            fact_inbox,
            report_inbox,
            prepared: false,
            building: false,
            waiting: Vec::new(),
            creating: 0,
            terminating: 0,
            losses_in_a_row: 0,
            last_loss: String::new(),
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
                        self.on_report(sandbox, report);
                    }
                }
                Some(fact) = self.fact_inbox.recv() => self.on_fact(fact),
                Some(found) = discovered.recv(), if discovery.is_some() => self.on_discovered(found),
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

    fn emit(&mut self, event: RunEvent) -> RunEvent {
        let event = TimedEvent { at: self.now(), event };
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
        });
    }

    fn prepare(&self) {
        let provider = Arc::clone(&self.orchestrator.provider);
        let facts = self.facts.clone();
        tokio::spawn(async move {
            let result = provider.prepare().await;
            let _ = facts.send(Fact::Prepared(result));
        });
    }

    // Facts.

    fn on_discovered(&mut self, found: Discovered) {
        match found {
            Discovered::Tests(records) => self.add_tests(records),
            Discovered::BuildStarted => {
                self.building = true;
                self.emit(RunEvent::BuildStarted);
            }
            Discovered::BuildOutput(line) => drop(self.emit(RunEvent::BuildOutput { line })),
            Discovered::BuildFinished { success, duration } => {
                self.building = false;
                self.emit(RunEvent::BuildFinished { success, duration });
                self.create_waiting();
            }
            Discovered::Warning(text) => drop(self.emit(RunEvent::Warning { text })),
            Discovered::Problem(text) => self.problem(text),
            Discovered::Native(event) => drop(self.emit(RunEvent::Native(event))),
        }
    }

    fn add_tests(&mut self, records: Vec<TestRecord>) {
        let (mut to_run, mut skipped) = (0, Vec::new());
        for record in records {
            let info = Arc::new(TestInfo {
                id: record.id.clone(),
                name: record.name.clone(),
                suite: record.suite.id.clone(),
                group: Arc::clone(&record.group),
                line: record.line,
                // As the scheduler numbers them.
                number: u32::try_from(self.tests.len()).unwrap_or(u32::MAX),
            });
            if let Some(reason) = &record.skipped {
                skipped.push(FinishedTest::without_result(info, TestOutcome::Skipped, Vec::new(), &**reason));
                continue;
            }
            to_run += 1;
            let next_suite = u32::try_from(self.suites.len()).unwrap_or(u32::MAX);
            let suite = *self.suites.entry(record.suite.id.clone()).or_insert(next_suite);
            let next_unit = UnitKey::try_from(self.units.len()).unwrap_or(UnitKey::MAX);
            let unit = record.suite.unit.as_ref().map(|unit| *self.units.entry(Arc::as_ptr(unit)).or_insert(next_unit));
            let retries = if record.group.is_empty() {
                record.retry_count.max(self.orchestrator.config.offload.retry_count)
            } else {
                record.retry_count
            };
            self.scheduler.add_test(TestSpec {
                suite,
                expected: self.orchestrator.expected(&record),
                retries,
                alone: record.schedule_individual,
                together: record.suite.unit.as_ref().is_some_and(|unit| unit.harness == Harness::Doctest),
                provisional: record.provisional,
                home: record.address.and_then(|address| address.home).map(SandboxIndex),
            });
            self.tests.push(Test { record: Arc::new(record), info, unit, attempts: Vec::new(), settled: false });
        }
        self.emit(RunEvent::TestsFound { to_run, skipped: skipped.len() });
        for test in skipped {
            self.settle(test);
        }
    }

    fn on_discovery_end(&mut self, end: FrameworkResult<()>) {
        if let Err(error) = end {
            self.problem(error.to_string());
        }
        self.building = false;
        self.create_waiting();
        self.scheduler.discovery_finished();
        let (to_run, skipped) = (self.tests.len(), self.result.summary.skipped);
        self.emit(RunEvent::DiscoveryFinished { to_run, skipped });
    }

    fn on_fact(&mut self, fact: Fact) {
        match fact {
            Fact::Prepared(Ok(())) => {
                self.prepared = true;
                self.create_waiting();
            }
            Fact::Prepared(Err(error)) => {
                self.stop_for_infrastructure(format!("The sandboxes could not be prepared: {error}"));
                for sandbox in std::mem::take(&mut self.waiting) {
                    self.places.remove(&sandbox);
                    self.scheduler.sandbox_lost(sandbox, self.now());
                }
            }
            Fact::Created(index, result, took) => {
                self.creating -= 1;
                self.on_created(index, result, took);
            }
            Fact::Terminated(index, result) => {
                self.terminating -= 1;
                if let Err(error) = result {
                    let id = self.places.get(&index).map_or_else(String::new, |place| place.id.to_string());
                    self.emit(RunEvent::Warning { text: format!("The sandbox `{id}` may be left behind: {error}") });
                }
                self.places.remove(&index);
            }
        }
    }

    fn on_created(&mut self, index: SandboxIndex, result: ProviderResult<Box<dyn Sandbox>>, took: Duration) {
        let now = self.now();
        let failure = match result {
            Ok(sandbox) => {
                let sandbox: Arc<dyn Sandbox> = Arc::from(sandbox);
                let round_trip = if sandbox.host_slot().is_some() { LOCAL_ROUND_TRIP } else { REMOTE_ROUND_TRIP };
                match TestRunner::start(index, sandbox, &self.context) {
                    Ok(runner) => {
                        let id = runner.id();
                        if let Some(place) = self.places.get_mut(&index) {
                            place.id = Arc::clone(&id);
                            place.runner = Some(runner);
                        }
                        self.scheduler.sandbox_ready(index, round_trip, now);
                        self.emit(RunEvent::SandboxReady { sandbox: id, duration: took });
                        return;
                    }
                    Err(error) => format!("its worker could not be started: {error}"),
                }
            }
            Err(error) => {
                if matches!(error, ProviderError::Unusable(_)) {
                    self.stop_for_infrastructure(error.to_string());
                }
                error.to_string()
            }
        };
        self.lose(index, failure);
    }

    fn on_report(&mut self, index: SandboxIndex, report: Report) {
        match report {
            Report::Lost(reason) => self.lose(index, reason),
            Report::Native(key, event) => self.on_native(index, key, event),
            Report::Renamed(id) => {
                if let Some(place) = self.places.get_mut(&index) {
                    place.id = id;
                }
            }
            Report::Message(Message::Started { key }) => self.on_started(index, key),
            Report::Message(Message::Finished { key, result }) => self.on_finished(index, key, *result),
            Report::Message(Message::TakenBack { tests }) => {
                let now = self.now();
                let Some(place) = self.places.get_mut(&index) else { return };
                for key in &tests {
                    place.assigned.remove(key);
                }
                let tests: Vec<TestIndex> = tests.into_iter().map(TestIndex).collect();
                self.scheduler.taken_back(index, &tests, now);
            }
            Report::Message(Message::Output { key, text }) => {
                if let Some(test) = self.tests.get(key as usize) {
                    let test = Arc::clone(&test.info);
                    self.emit(RunEvent::TestOutput { test, text });
                }
            }
            Report::Message(Message::Log { text }) => tracing::info!(sandbox = index.0, "{text}"),
            Report::Message(Message::Bye { reason: Some(reason) }) => self.lose(index, reason),
            Report::Message(Message::Ready { .. } | Message::Alive | Message::Bye { reason: None }) => {}
        }
    }

    fn on_native(&mut self, index: SandboxIndex, key: Option<TestKey>, mut event: NativeEvent) {
        event.sandbox = event.sandbox.or_else(|| self.places.get(&index).map(|place| Arc::clone(&place.id)));
        event.test = key.and_then(|key| self.tests.get(key as usize)).map(|test| Arc::clone(&test.info));
        self.emit(RunEvent::Native(event));
    }

    fn on_started(&mut self, index: SandboxIndex, key: TestKey) {
        let now = self.now();
        let Some(place) = self.places.get_mut(&index) else { return };
        let Some(assigned) = place.assigned.get_mut(&key) else { return };
        assigned.started_at = Some(now);
        let (attempt, sandbox) = (assigned.attempt, Arc::clone(&place.id));
        self.scheduler.started(index, TestIndex(key), now);
        let test = Arc::clone(&self.tests[key as usize].info);
        self.emit(RunEvent::TestStarted { test, attempt, sandbox });
    }

    fn on_finished(&mut self, index: SandboxIndex, key: TestKey, result: TestResult) {
        let now = self.now();
        let Some(place) = self.places.get_mut(&index) else { return };
        let Some(assigned) = place.assigned.remove(&key) else { return };
        place.busy += result.duration;
        self.losses_in_a_row = 0;
        let verdict = if result.outcome.is_failure() { Verdict::Failed } else { Verdict::Passed };
        let attempt = Attempt {
            number: assigned.attempt,
            sandbox: Arc::clone(&place.id),
            // Quick tests are announced when they have ended.
            started_at: now.saturating_sub(result.duration),
            result,
        };
        if self.scheduler.finished(index, TestIndex(key), verdict, now) {
            self.tests[key as usize].attempts.push(attempt);
        }
    }

    fn on_cancel(&mut self, urgency: Urgency) {
        if self.result.summary.stopped != Some(StopReason::Interrupted) {
            self.result.summary.stopped = Some(StopReason::Interrupted);
            self.emit(RunEvent::Stopping { reason: StopReason::Interrupted });
            self.scheduler.discovery_finished();
            self.scheduler.stop();
        }
        for runner in self.places.values().filter_map(|place| place.runner.as_ref()) {
            match urgency {
                Urgency::Now => runner.kill(),
                _ => runner.cancel(Vec::new()),
            }
        }
        if urgency == Urgency::Now {
            self.give_up_at = Some(Instant::now() + KILL_PATIENCE);
        }
    }

    fn on_tick(&mut self) {
        let now = self.now();
        let limit = self.orchestrator.config.offload.slow_test;
        let mut slow = Vec::new();
        for place in self.places.values_mut() {
            for (&key, assigned) in &mut place.assigned {
                if let Some(started_at) = assigned.started_at
                    && !assigned.slow
                    && now.saturating_sub(started_at) > limit
                {
                    assigned.slow = true;
                    slow.push((key, now.saturating_sub(started_at)));
                }
            }
        }
        for (key, elapsed) in slow {
            let test = Arc::clone(&self.tests[key as usize].info);
            self.emit(RunEvent::TestSlow { test, elapsed });
        }
        for reporter in &mut self.reporters {
            reporter.tick();
        }
    }

    // Actions.

    async fn act(&mut self) {
        while let Some(action) = self.scheduler.next_action(self.now()) {
            match action {
                Action::CreateSandbox(index) => {
                    let id = format!("{}-{}", self.run_id, index.0).into();
                    let place = Place { id, runner: None, assigned: HashMap::new(), busy: Duration::ZERO };
                    self.places.insert(index, place);
                    let pooled = self.pool.lock().await.take();
                    if self.may_create() || pooled.is_some() {
                        self.create(index, pooled);
                    } else {
                        self.waiting.push(index);
                    }
                }
                Action::Assign { sandbox, tests } => self.assign(sandbox, &tests),
                Action::TakeBack { sandbox, tests } => {
                    if let Some(runner) = self.places.get(&sandbox).and_then(|place| place.runner.as_ref()) {
                        runner.take_back(tests.into_iter().map(|test| test.0).collect());
                    }
                }
                Action::Cancel { sandbox, test } => {
                    if let Some(runner) = self.places.get(&sandbox).and_then(|place| place.runner.as_ref()) {
                        runner.cancel(vec![test.0]);
                    }
                }
                Action::Release(sandbox) => self.release(sandbox),
                Action::Settle(test) => {
                    let test = &mut self.tests[test.0 as usize];
                    test.settled = true;
                    let attempts = std::mem::take(&mut test.attempts);
                    let finished = FinishedTest::from_attempts(Arc::clone(&test.info), attempts);
                    self.settle(finished);
                }
                Action::GiveUp(test) => {
                    let test = &mut self.tests[test.0 as usize];
                    test.settled = true;
                    let attempts = std::mem::take(&mut test.attempts);
                    let reason = format!("its sandbox was lost every time it ran; the last time: {}", self.last_loss);
                    let info = Arc::clone(&test.info);
                    self.settle(FinishedTest::without_result(info, TestOutcome::Error, attempts, reason));
                }
                Action::Retry { test, attempts_left } => {
                    let test = &self.tests[test.0 as usize];
                    if let Some(attempt) = test.attempts.last() {
                        let event = RunEvent::AttemptFailed {
                            test: Arc::clone(&test.info),
                            attempt: attempt.clone(),
                            attempts_left,
                        };
                        self.emit(event);
                    }
                }
                Action::Repeat(test) => drop(self.tests[test.0 as usize].attempts.pop()),
                Action::Abort => {
                    let text = format!(
                        "Sandboxes of the provider `{}` keep breaking and no test gets done. The last time: {}",
                        self.orchestrator.provider.name(),
                        self.last_loss
                    );
                    self.stop_for_infrastructure(text);
                }
                Action::MaxFailReached => {
                    self.result.summary.stopped.get_or_insert(StopReason::MaxFail);
                    self.emit(RunEvent::Stopping { reason: StopReason::MaxFail });
                }
            }
        }
    }

    /// Sandboxes that share nothing with this machine start from a copy of its files: not before all of them are there.
    fn may_create(&self) -> bool {
        self.prepared && !(self.building && self.orchestrator.provider.isolates())
    }

    fn create_waiting(&mut self) {
        if self.may_create() {
            for sandbox in std::mem::take(&mut self.waiting) {
                self.create(sandbox, None);
            }
        }
    }

    fn create(&mut self, index: SandboxIndex, pooled: Option<Box<dyn Sandbox>>) {
        self.creating += 1;
        let facts = self.facts.clone();
        let provider = Arc::clone(&self.orchestrator.provider);
        let copy_dirs = self.orchestrator.copy_dirs.clone();
        let request = SandboxRequest {
            name: format!("{}-{}", self.run_id, index.0),
            index: index.0 as usize,
            env: self.orchestrator.env.clone(),
        };
        let doublings = self.losses_in_a_row.saturating_sub(1).min(6);
        let pause = if self.losses_in_a_row == 0 { Duration::ZERO } else { FIRST_BACKOFF * (1 << doublings) };
        tokio::spawn(async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let begun = Instant::now();
            let result = async {
                let sandbox = match pooled {
                    Some(sandbox) => sandbox,
                    None => provider.create_sandbox(&request).await?,
                };
                for dir in &copy_dirs {
                    if let Err(error) = sandbox.upload(&dir.local, &dir.remote).await {
                        let _ = sandbox.terminate().await;
                        return Err(error);
                    }
                }
                Ok(sandbox)
            }
            .await;
            let _ = facts.send(Fact::Created(index, result, begun.elapsed()));
        });
    }

    fn assign(&mut self, sandbox: SandboxIndex, tests: &[Assignment]) {
        let Some(place) = self.places.get_mut(&sandbox) else { return };
        let Some(runner) = &mut place.runner else { return };
        let mut jobs = Vec::with_capacity(tests.len());
        for assignment in tests {
            let test = &self.tests[assignment.test.0 as usize];
            let assigned = Assigned { attempt: assignment.attempt, started_at: None, slow: false };
            place.assigned.insert(assignment.test.0, assigned);
            jobs.push(Job {
                key: assignment.test.0,
                instance: TestInstance { record: Arc::clone(&test.record), attempt: assignment.attempt },
                unit: test.unit,
            });
        }
        runner.run(jobs);
    }

    /// A sandbox broke, or could not be created. Its tests go elsewhere.
    fn lose(&mut self, index: SandboxIndex, reason: String) {
        let now = self.now();
        let Some(place) = self.places.get_mut(&index) else { return };
        let id = Arc::clone(&place.id);
        let started = place.assigned.drain().filter(|(_, assigned)| assigned.started_at.is_some());
        let requeued: Vec<_> = started.map(|(key, _)| self.tests[key as usize].info.id.clone()).collect();
        let has_runner = place.runner.is_some();
        self.losses_in_a_row += 1;
        self.last_loss.clone_from(&reason);
        self.scheduler.sandbox_lost(index, now);
        let lost = LostSandbox { sandbox: Arc::clone(&id), reason: reason.clone(), requeued: requeued.len() };
        self.result.lost.push(lost);
        self.emit(RunEvent::SandboxLost { sandbox: id, reason, requeued });
        if has_runner {
            self.terminate(index);
        } else {
            self.places.remove(&index);
        }
    }

    fn release(&mut self, index: SandboxIndex) {
        let Some(place) = self.places.get(&index) else { return };
        let (sandbox, busy) = (Arc::clone(&place.id), place.busy);
        self.emit(RunEvent::SandboxFinished { sandbox, busy });
        self.terminate(index);
    }

    fn terminate(&mut self, index: SandboxIndex) {
        let Some(runner) = self.places.get_mut(&index).and_then(|place| place.runner.take()) else { return };
        self.terminating += 1;
        let facts = self.facts.clone();
        tokio::spawn(async move {
            let result = runner.finish().await;
            let _ = facts.send(Fact::Terminated(index, result));
        });
    }

    fn settle(&mut self, mut test: FinishedTest) {
        count(&mut self.result.summary, &test);
        let event = test.event();
        let event = self.emit(event);
        test.keep(event);
        self.result.tests.push(test);
    }

    fn problem(&mut self, text: String) {
        self.result.summary.problems += 1;
        self.result.problems.push(text.clone());
        self.emit(RunEvent::Problem { text });
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

    // The end.

    async fn end(
        &mut self,
        cancel: &mut watch::Receiver<Urgency>,
        discovered: &mut mpsc::UnboundedReceiver<Discovered>,
    ) {
        let mut now = self.give_up_at.is_some();
        for index in self.places.keys().copied().collect::<Vec<_>>() {
            if self.places[&index].runner.is_some() {
                self.release(index);
            }
        }
        let patience = tokio::time::sleep(TERMINATE_PATIENCE);
        tokio::pin!(patience);
        while self.creating + self.terminating > 0 {
            tokio::select! {
                Some(fact) = self.fact_inbox.recv() => match fact {
                    // It came too late to be of use.
                    Fact::Created(index, Ok(sandbox), _) => {
                        self.creating -= 1;
                        self.terminating += 1;
                        let facts = self.facts.clone();
                        tokio::spawn(async move {
                            let result = sandbox.terminate().await;
                            let _ = facts.send(Fact::Terminated(index, result));
                        });
                    }
                    Fact::Created(_, Err(_), _) => self.creating -= 1,
                    fact => self.on_fact(fact),
                },
                // Tests have their outcomes; what their tearing down has to say still counts.
                Some((sandbox, report)) = self.report_inbox.recv() => self.on_late_report(sandbox, report),
                urgency = urged(cancel) => if urgency == Urgency::Now {
                    now = true;
                    break;
                },
                () = &mut patience => {
                    let text = "Some sandboxes could not be destroyed in time and may be left behind.".to_owned();
                    self.emit(RunEvent::Warning { text });
                    break;
                }
            }
        }
        self.orchestrator.framework.finish(now).await;
        while let Ok((sandbox, report)) = self.report_inbox.try_recv() {
            self.on_late_report(sandbox, report);
        }
        while let Ok(found) = discovered.try_recv() {
            if let Discovered::Native(event) = found {
                self.emit(RunEvent::Native(event));
            }
        }
        self.settle_the_rest();
        self.result.summary.duration = self.now();
        self.result.summary.exit_code = exit_code(&self.result.summary);
        self.emit(RunEvent::RunFinished { summary: self.result.summary.clone() });
        for reporter in &mut self.reporters {
            if let Err(error) = reporter.finish() {
                self.result.report_errors.push(error.to_string());
            }
        }
        if !self.result.report_errors.is_empty() && self.result.summary.exit_code != 130 {
            self.result.summary.exit_code = 3;
        }
    }

    fn on_late_report(&mut self, index: SandboxIndex, report: Report) {
        if let Report::Native(key, event) = report {
            self.on_native(index, key, event);
        }
    }

    /// Every test found gets an outcome, even if it never ran.
    fn settle_the_rest(&mut self) {
        let reason = match self.result.summary.stopped {
            Some(StopReason::MaxFail) => "the run ended early: as many tests failed as allowed",
            Some(StopReason::Interrupted) => "the run was interrupted",
            Some(StopReason::Infrastructure) => "the run ended early: no sandbox worked",
            None => "the run ended before it",
        };
        for number in 0..self.tests.len() {
            let test = &mut self.tests[number];
            if test.settled {
                continue;
            }
            test.settled = true;
            let (info, attempts) = (Arc::clone(&test.info), std::mem::take(&mut test.attempts));
            // A failure whose repetition never came is a failure.
            self.settle(if attempts.is_empty() {
                FinishedTest::without_result(info, TestOutcome::NotRun, attempts, reason)
            } else {
                FinishedTest::from_attempts(info, attempts)
            });
        }
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
