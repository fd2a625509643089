//! What the scheduler wants done: creating sandboxes, giving them tests and taking those back, settling outcomes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::place::{Assigned, Place};
use super::{Dispatcher, Fact};
use crate::event::{FinishedTest, RunEvent, StopReason};
use crate::framework::{Execution, TestInstance, TestOutcome};
use crate::orchestrator::remote::Session;
use crate::orchestrator::runner::{Job, RunnerContext, close};
use crate::orchestrator::scheduler::{Action, Assignment, SandboxIndex};
use crate::provider::{CopyDir, ProviderResult, Sandbox, SandboxRequest};
use crate::report::summary::LostSandbox;

/// The first pause before a sandbox is created anew after one broke; it doubles with every further loss in a row.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

impl Dispatcher<'_> {
    pub(super) async fn act(&mut self) {
        while let Some(action) = self.scheduler.next_action(self.now()) {
            match action {
                Action::CreateSandbox(index) => {
                    let id = format!("{}-{}", self.run_id, index.0).into();
                    self.places.insert(index, Place::new(id));
                    if self.take_from_reserve(index) {
                        continue;
                    }
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
                Action::Refuse(test) => {
                    let why = self.refusals.remove(&test.0).unwrap_or_default();
                    let test = &mut self.tests[test.0 as usize];
                    test.settled = true;
                    let attempts = std::mem::take(&mut test.attempts);
                    let reason = format!(
                        "not run: the process that collected this test is gone, and another one cannot take its place: \
                         the tests of its file differ from one collection to the next; give parameters a fixed order and \
                         fixed values (no sets, no random or current values), or collect once with \
                         --offload-collect=serial. What differed: {why}"
                    );
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

    /// Sandboxes that are somewhere else start from a copy of its files: not before all of them are there.
    pub(super) fn may_create(&self) -> bool {
        self.prepared && !(self.building && self.orchestrator.provider.is_elsewhere())
    }

    pub(super) fn create_waiting(&mut self) {
        if self.may_create() {
            for sandbox in std::mem::take(&mut self.waiting) {
                self.create(sandbox, None);
            }
            self.create_reserve();
        }
    }

    pub(super) fn create(&mut self, index: SandboxIndex, pooled: Option<Box<dyn Sandbox>>) {
        self.creating += 1;
        let facts = self.facts.clone();
        let provider = Arc::clone(&self.orchestrator.provider);
        let copy_dirs = self.orchestrator.copy_dirs.clone();
        let context = self.context.clone();
        let request = SandboxRequest {
            name: format!("{}-{}", self.run_id, index.0),
            index: index.0 as usize,
            env: self.orchestrator.env.clone(),
            built: if provider.is_elsewhere() { Arc::new(self.orchestrator.framework.built()) } else { Arc::default() },
        };
        let doublings = self.losses_in_a_row.saturating_sub(1).min(6);
        let pause = if self.losses_in_a_row == 0 { Duration::ZERO } else { FIRST_BACKOFF * (1 << doublings) };
        tokio::spawn(async move {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let begun = Instant::now();
            let result = async {
                let sandbox: Arc<dyn Sandbox> = match pooled {
                    Some(sandbox) => sandbox.into(),
                    None => provider.create_sandbox(&request).await?.into(),
                };
                match equip(index, sandbox.as_ref(), &copy_dirs, &context).await {
                    Ok(session) => Ok((sandbox, session)),
                    Err(error) => {
                        let _ = close(index, sandbox.as_ref(), &context.execution).await;
                        Err(error)
                    }
                }
            }
            .await;
            let _ = facts.send(Fact::Created(index, result, begun.elapsed()));
        });
    }

    fn assign(&mut self, sandbox: SandboxIndex, tests: &[Assignment]) {
        let provisional = self.building && tests.iter().any(|test| self.tests[test.test.0 as usize].record.provisional);
        let sightings = provisional.then(|| self.sightings());
        let Some(place) = self.places.get_mut(&sandbox) else { return };
        let Some(runner) = &mut place.runner else { return };
        let mut jobs = Vec::with_capacity(tests.len());
        for assignment in tests {
            let test = &self.tests[assignment.test.0 as usize];
            let early = sightings.filter(|_| test.record.provisional);
            let assigned = Assigned { attempt: assignment.attempt, started_at: None, slow: false, early };
            place.assigned.insert(assignment.test.0, assigned);
            jobs.push(Job {
                key: assignment.test.0,
                instance: TestInstance { record: Arc::clone(&test.record), attempt: assignment.attempt },
                unit: test.unit,
                expected: self.orchestrator.expected(&test.record),
                alone: self.orchestrator.wants_process(&test.record),
            });
        }
        runner.run(jobs);
    }

    /// A sandbox broke, or could not be created. Its tests go elsewhere.
    pub(super) fn lose(&mut self, index: SandboxIndex, reason: String) {
        let now = self.now();
        let Some(place) = self.places.get_mut(&index) else { return };
        let id = Arc::clone(&place.id);
        let reason = self.context.secrets.mask(&reason).into_owned();
        let started = place.assigned.drain().filter(|(_, assigned)| assigned.started_at.is_some());
        let requeued: Vec<_> = started.map(|(key, _)| self.tests[key as usize].info.id.clone()).collect();
        let has_runner = place.runner.is_some();
        let unfinished: Vec<_> = self.pieces.keys().filter(|(sandbox, _)| *sandbox == index).copied().collect();
        for (_, key) in unfinished {
            self.finish_output(index, key);
        }
        self.losses_in_a_row += 1;
        self.last_loss.clone_from(&reason);
        self.scheduler.sandbox_lost(index, now);
        let lost = LostSandbox { sandbox: Arc::clone(&id), reason: reason.clone(), requeued: requeued.len() };
        self.result.lost.push(lost);
        self.emit(RunEvent::SandboxLost { sandbox: id, reason, requeued });
        if has_runner {
            self.terminate(index, None);
        } else {
            self.places.remove(&index);
        }
    }

    /// There is no room for a sandbox beside the others, which do its work.
    pub(super) fn do_without(&mut self, index: SandboxIndex, reason: String) {
        if !self.scheduler.sandbox_without_room(index, self.now()) {
            return self.lose(index, reason);
        }
        if let Some(place) = self.places.get_mut(&index) {
            place.assigned.clear();
            self.terminate(index, None);
        }
    }

    pub(super) fn release(&mut self, index: SandboxIndex) {
        let Some(place) = self.places.get(&index) else { return };
        let (sandbox, busy, failed) = (Arc::clone(&place.id), place.busy, place.failed);
        self.emit(RunEvent::SandboxFinished { sandbox, busy });
        // Whoever ends a run does not wait for files.
        let failed = failed.filter(|_| self.result.summary.stopped != Some(StopReason::Interrupted));
        self.terminate(index, failed);
    }

    fn terminate(&mut self, index: SandboxIndex, failed: Option<bool>) {
        let Some(runner) = self.places.get_mut(&index).and_then(|place| place.runner.take()) else { return };
        self.terminating += 1;
        let facts = self.facts.clone();
        tokio::spawn(async move {
            let result = runner.finish(failed).await;
            let _ = facts.send(Fact::Terminated(index, result));
        });
    }
}

/// Brings into a new sandbox what belongs there, and starts what executes tests in it.
async fn equip(
    index: SandboxIndex,
    sandbox: &dyn Sandbox,
    copy_dirs: &[CopyDir],
    context: &RunnerContext,
) -> ProviderResult<Option<Session>> {
    for dir in copy_dirs {
        sandbox.upload(&dir.local, &dir.remote).await?;
    }
    if let Execution::Pytest(host) = &context.execution {
        return host.open(index.0, sandbox).await.map(|()| None);
    }
    Ok(Session::open(index, sandbox, context).await)
}
