//! What happens to a run: tests are found, sandboxes come and go, tests start and end, somebody wants it to end.
//!
//! Facts from sandboxes are not to be trusted: those about tests that a sandbox does not have are ignored.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Created, Dispatcher, Fact, Test};
use crate::event::{Attempt, FinishedTest, NativeEvent, RunEvent, StopReason, TestInfo};
use crate::framework::{Discovered, Execution, FrameworkResult, LibtestExecution, TestOutcome, TestRecord, TestResult};
use crate::orchestrator::cancel::Urgency;
use crate::orchestrator::runner::{Report, TestRunner};
use crate::orchestrator::scheduler::{SandboxIndex, TestIndex, TestSpec, Verdict};
use crate::orchestrator::settle::{count, uncount};
use crate::provider::{ProviderError, ProviderResult};
use crate::worker::{Harness, Message, TestKey, UnitKey};

/// How long a message takes to a worker in this process and back.
const LOCAL_ROUND_TRIP: Duration = Duration::from_micros(100);
/// How long a command takes to start elsewhere, until a provider says otherwise.
const REMOTE_ROUND_TRIP: Duration = Duration::from_millis(50);
/// No test runs for longer, whatever a sandbox says: sums and smaller units of what is believed stay within their types.
const LONGEST_TEST: Duration = Duration::from_secs(1_000_000_000);
/// How long workers get to end killed tests before the run ends without them.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

impl Dispatcher<'_> {
    pub(super) fn on_discovered(&mut self, found: Discovered) {
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
            let secrets = &self.context.secrets;
            let info = Arc::new(TestInfo {
                id: secrets.mask(&record.id).into_owned(),
                name: secrets.mask(&record.name).into_owned(),
                suite: secrets.mask(&record.suite.id).into_owned(),
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
            let neighbours =
                record.together.as_ref().map_or_else(|| record.suite.id.clone(), |name| format!("\0{name}"));
            let suite = *self.suites.entry(neighbours).or_insert(next_suite);
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
                together: record.together.is_some()
                    || record.suite.unit.as_ref().is_some_and(|unit| unit.harness == Harness::Doctest),
                home: record.address.and_then(|address| address.home).map(SandboxIndex),
            });
            self.tests.push(Test { record: Arc::new(record), info, unit, attempts: Vec::new(), settled: false });
        }
        self.emit(RunEvent::TestsFound { to_run, skipped: skipped.len() });
        for test in skipped {
            self.settle(test);
        }
    }

    pub(super) fn on_discovery_end(&mut self, end: FrameworkResult<()>) {
        if let Err(error) = end {
            self.problem(error.to_string());
        }
        self.building = false;
        self.create_waiting();
        self.scheduler.discovery_finished();
        let (to_run, skipped) = (self.tests.len(), self.result.summary.skipped);
        self.emit(RunEvent::DiscoveryFinished { to_run, skipped });
    }

    pub(super) fn on_fact(&mut self, fact: Fact) {
        for text in self.orchestrator.provider.warnings() {
            self.emit(RunEvent::Warning { text });
        }
        match fact {
            Fact::Prepared(Ok(()), most) => {
                self.prepared = true;
                self.most = most;
                if let Some(most) = most {
                    self.limit_sandboxes(most);
                }
                self.create_waiting();
            }
            Fact::Prepared(Err(error), _) => {
                self.stop_for_infrastructure(format!("The sandboxes could not be prepared: {error}"));
                for sandbox in std::mem::take(&mut self.waiting) {
                    self.places.remove(&sandbox);
                    self.scheduler.sandbox_lost(sandbox, self.now());
                }
            }
            Fact::Created(index, result, took) => {
                self.creating -= 1;
                if let Some(result) = self.keep_in_reserve(index, result, took) {
                    self.on_created(index, result, took);
                }
            }
            Fact::Terminated(index, result) => {
                self.terminating -= 1;
                if let Err(error) = result {
                    let id = self.places.get(&index).map_or_else(String::new, |place| place.id.to_string());
                    self.emit(RunEvent::Warning { text: format!("The sandbox `{id}` may be left behind: {error}") });
                }
                if !self.on_gone(index) {
                    self.places.remove(&index);
                }
            }
        }
    }

    /// There cannot be more sandboxes than this: those that nobody has begun to create are not wanted.
    fn limit_sandboxes(&mut self, most: usize) {
        self.scheduler.limit_sandboxes(most);
        while self.places.len() > most.max(1)
            && let Some(index) = self.waiting.pop()
        {
            self.places.remove(&index);
            self.scheduler.sandbox_withdrawn(index);
        }
    }

    pub(super) fn on_created(&mut self, index: SandboxIndex, result: ProviderResult<Created>, took: Duration) {
        let now = self.now();
        let failure = match result {
            Ok((sandbox, session)) => {
                let round_trip = match &self.context.execution {
                    _ if sandbox.host_slot().is_some() => LOCAL_ROUND_TRIP,
                    Execution::Pytest(host) => host.round_trip(index.0).unwrap_or(REMOTE_ROUND_TRIP),
                    _ => REMOTE_ROUND_TRIP,
                };
                match TestRunner::start(index, sandbox, session, &self.context) {
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

    pub(super) fn on_report(&mut self, index: SandboxIndex, report: Report) {
        match report {
            Report::Lost(reason) => self.lose(index, reason),
            Report::NoRoom(reason) => self.do_without(index, reason),
            Report::Problem(text) => self.problem(text),
            Report::Warning(text) => drop(self.emit(RunEvent::Warning { text })),
            Report::Native(key, event) => self.on_native(index, key, event),
            Report::Refused(tests, why) => self.on_refused(index, tests, why),
            Report::LateFailure(key, result) => {
                self.scheduler.failed_late(index, TestIndex(key));
                self.on_late_failure(key, *result);
            }
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
                if self.context.secrets.is_empty() {
                    self.emit_output(key, text);
                } else if self.places.get(&index).is_some_and(|place| place.assigned.contains_key(&key)) {
                    let text = self.pieces.entry((index, key)).or_default().push(&self.context.secrets, &text);
                    self.emit_output(key, text);
                }
            }
            Report::Message(Message::Warning { text }) => {
                // All sandboxes of a machine may have the same to say.
                if self.warned.insert(text.clone()) {
                    self.emit(RunEvent::Warning { text });
                }
            }
            Report::Message(Message::Log { text }) => tracing::info!(sandbox = index.0, "{text}"),
            Report::Message(Message::Bye { reason: Some(reason) }) => self.lose(index, reason),
            Report::Message(Message::Ready { .. } | Message::Alive | Message::Bye { reason: None }) => {}
        }
    }

    /// A sandbox cannot run tests, because their file has other tests there.
    fn on_refused(&mut self, index: SandboxIndex, tests: Vec<TestKey>, why: String) {
        let now = self.now();
        let Some(place) = self.places.get_mut(&index) else { return };
        let why: Arc<str> = self.context.secrets.mask(&why).into();
        let tests: Vec<TestIndex> = tests
            .into_iter()
            .filter(|key| place.assigned.remove(key).is_some())
            .map(|key| {
                self.refusals.insert(key, Arc::clone(&why));
                TestIndex(key)
            })
            .collect();
        self.scheduler.refused(index, &tests, now);
    }

    fn emit_output(&mut self, key: TestKey, text: String) {
        if let Some(test) = self.tests.get(key as usize).filter(|_| !text.is_empty()) {
            let test = Arc::clone(&test.info);
            self.emit(RunEvent::TestOutput { test, text });
        }
    }

    /// Shows what was held back of a test's output.
    pub(super) fn finish_output(&mut self, index: SandboxIndex, key: TestKey) {
        if let Some(pieces) = self.pieces.remove(&(index, key)) {
            self.emit_output(key, pieces.finish());
        }
    }

    pub(super) fn on_native(&mut self, index: SandboxIndex, key: Option<TestKey>, mut event: NativeEvent) {
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

    fn on_finished(&mut self, index: SandboxIndex, key: TestKey, mut result: TestResult) {
        self.finish_output(index, key);
        let now = self.now();
        let Some(place) = self.places.get_mut(&index) else { return };
        let Some(assigned) = place.assigned.remove(&key) else { return };
        result.duration = result.duration.min(LONGEST_TEST);
        place.busy = place.busy.saturating_add(result.duration);
        place.last_result = now;
        place.failed = Some(place.failed == Some(true) || result.outcome.is_failure());
        self.losses_in_a_row = 0;
        let verdict = if result.outcome.is_failure() { Verdict::Failed } else { Verdict::Passed };
        let attempt = Attempt {
            number: assigned.attempt,
            sandbox: Arc::clone(&place.id),
            // Quick tests are announced when they have ended.
            started_at: now.saturating_sub(result.duration),
            result,
        };
        if let Some(before) = assigned.early
            && (verdict == Verdict::Failed || self.sightings() != before)
        {
            self.scheduler.forgotten(index, TestIndex(key), verdict, now);
            return;
        }
        if let Execution::Pytest(host) = &self.context.execution
            && attempt.result.outcome == TestOutcome::Crashed
        {
            self.scheduler.grant_retry(TestIndex(key), host.crash_retries(key));
        }
        if self.scheduler.finished(index, TestIndex(key), verdict, now) {
            self.tests[key as usize].attempts.push(attempt);
        }
    }

    /// How often something was opened so far that the build had not finished.
    pub(super) fn sightings(&self) -> u64 {
        match &self.context.execution {
            Execution::Libtest(LibtestExecution { gate: Some(gate), .. }) => gate.sightings(),
            _ => 0,
        }
    }

    /// A test that had its outcome is an error after all. Its sandbox may be gone by now.
    pub(super) fn on_late_failure(&mut self, key: TestKey, mut result: TestResult) {
        let now = self.now();
        let Some(test) = self.tests.get(key as usize) else { return };
        if !test.settled {
            self.late_failures.entry(key).or_default().push(result);
            return;
        }
        let finished = self.result.tests.iter_mut().rev().find(|finished| finished.test.number == test.info.number);
        let Some(finished) = finished else { return };
        let Some(last) = finished.attempts.last() else { return };
        result.duration = result.duration.min(LONGEST_TEST);
        let started_at = now.saturating_sub(result.duration);
        let attempt = Attempt { number: last.number, sandbox: Arc::clone(&last.sandbox), started_at, result };
        uncount(&mut self.result.summary, finished);
        finished.fail_late(&attempt);
        count(&mut self.result.summary, finished);
        let test = Arc::clone(&test.info);
        self.emit(RunEvent::LateFailure { test, attempt });
    }

    /// Names the tests that run when the run is interrupted. A pytest that shows the run does so itself.
    fn say_what_runs(&mut self) {
        const MOST: usize = 10;
        if matches!(&self.context.execution, Execution::Pytest(host) if !host.options().alone) {
            return;
        }
        let assigned = self.places.values().flat_map(|place| &place.assigned);
        let mut running: Vec<TestKey> =
            assigned.filter(|(_, assigned)| assigned.started_at.is_some()).map(|(key, _)| *key).collect();
        running.sort_unstable();
        if running.is_empty() {
            return;
        }
        let names: Vec<&str> = running.iter().take(MOST).map(|key| &*self.tests[*key as usize].info.id).collect();
        let more = running.len().saturating_sub(MOST);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let text = format!("Running when the run was interrupted: {}{more}", names.join(", "));
        self.emit(RunEvent::Warning { text });
    }

    pub(super) fn on_cancel(&mut self, urgency: Urgency) {
        if self.result.summary.stopped != Some(StopReason::Interrupted) {
            self.result.summary.stopped = Some(StopReason::Interrupted);
            self.emit(RunEvent::Stopping { reason: StopReason::Interrupted });
            self.say_what_runs();
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

    pub(super) fn on_tick(&mut self) {
        let now = self.now();
        let offload = &self.orchestrator.config.offload;
        let (limit, at_once) = (offload.slow_test, offload.max_parallel.max(1));
        let slow: Vec<_> = self.places.values_mut().flat_map(|place| place.slow(now, limit, at_once)).collect();
        for (key, elapsed) in slow {
            let test = Arc::clone(&self.tests[key as usize].info);
            self.emit(RunEvent::TestSlow { test, elapsed });
        }
        for reporter in &mut self.reporters {
            reporter.tick();
        }
    }
}
