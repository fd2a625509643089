//! Decides which test runs where and when. Pure: facts in, actions out; no clock, no I/O, no threads.
//!
//! Time is a value that comes with each fact, so whole runs can be simulated, and every property of a schedule can be
//! tested. How sandboxes are created, reached and given up on after how long a silence is the orchestrator's business,
//! and so is what a result says: here it passed or failed.
//!
//! The parts: `ledger` is what is known of each test, `queue` what waits and in which order, `sandboxes` what is where,
//! `estimate` how long unknown tests are taken to last, `plan` what is done next. This file is the facts. Every
//! operation is O(log n) in tests and sandboxes, except for halting, which happens once.

mod estimate;
mod ledger;
mod plan;
mod queue;
mod sandboxes;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use estimate::Estimates;
use ledger::{NONE, Nanos, State, Test, moment};
use queue::Queue;
use sandboxes::{Batch, Entry, Sandboxes};

/// A test's number within the run: the order in which [`Scheduler::add_test`] got them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TestIndex(pub u32);

/// A sandbox's number within the run. Numbers are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SandboxIndex(pub u32);

/// What the scheduler needs to know of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TestSpec {
    /// Tests of one suite are neighbours: kept together where that costs nothing. Any number.
    pub suite: u32,
    /// What earlier runs say of its duration.
    pub expected: Option<Duration>,
    /// Further attempts after a failure.
    pub retries: u32,
    /// Wants a sandbox to itself while it runs.
    pub alone: bool,
    /// Starting any test of its suite costs about as much as running all of them, so those that wait go to one sandbox
    /// together. Retries and tests that must be alone are exceptions.
    pub together: bool,
    /// The sandbox that should have its suite if that costs nothing, because something is prepared there. Sandboxes are
    /// numbered from 0 as they are created, so this can be known before. The first test of a suite decides.
    pub home: Option<SandboxIndex>,
}

/// How the scheduler is to behave.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    /// The most sandboxes at once.
    pub max_sandboxes: usize,
    /// Stop after this many failed tests.
    pub max_fail: Option<usize>,
    /// Whether idle sandboxes may run a second copy of a slow test.
    pub hedge: bool,
    /// How tests are handed to a sandbox.
    pub feed: Feed,
    /// What a test of unknown duration is taken to last.
    pub default_duration: Duration,
}

/// How tests are handed to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed {
    /// One by one: as many ahead as keep the sandbox busy over its round-trip time.
    Stream,
    /// A batch is one command: large ones first, smaller ones towards the end, at most `max` tests each, the next one
    /// when the last one is done. With `one_suite` a batch never mixes suites.
    Batches {
        /// The most tests in a batch.
        max: usize,
        /// Whether all tests of a batch are of one suite.
        one_suite: bool,
        /// How long a batch is to last at most, as far as one knows; a batch of tests of which one does not has
        /// 32 tests at most.
        longest: Option<Duration>,
    },
}

/// How an attempt ended, as far as scheduling is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Passed, or skipped by itself.
    Passed,
    /// Failed in whatever way.
    Failed,
}

/// One attempt to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment {
    /// The test.
    pub test: TestIndex,
    /// Which attempt, from 1. A hedge has the number of the attempt that it duplicates; an attempt lost with its
    /// sandbox is started again under its number.
    pub attempt: u32,
}

/// What the orchestrator is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Create a sandbox; answer with [`Scheduler::sandbox_ready`] or [`Scheduler::sandbox_lost`].
    CreateSandbox(SandboxIndex),
    /// Append tests to a sandbox's queue.
    Assign {
        /// Where.
        sandbox: SandboxIndex,
        /// What, in order.
        tests: Vec<Assignment>,
    },
    /// Ask a sandbox for tests back that it has not started; answer with [`Scheduler::taken_back`] (those that had not
    /// started; the others will report as usual). Batches are asked for only when nothing more is to be started.
    TakeBack {
        /// Where.
        sandbox: SandboxIndex,
        /// Which.
        tests: Vec<TestIndex>,
    },
    /// End this attempt, its result is of no use any more. Answered by `taken_back` or, if it was too late, `finished`.
    Cancel {
        /// Where.
        sandbox: SandboxIndex,
        /// Which.
        test: TestIndex,
    },
    /// The sandbox is not needed any more: destroy it. Nothing is queued or running there.
    Release(SandboxIndex),
    /// The test has its outcome: that of its last attempt.
    Settle(TestIndex),
    /// The attempt failed and will be repeated.
    Retry {
        /// The test.
        test: TestIndex,
        /// Attempts that are left.
        attempts_left: u32,
    },
    /// The attempt failed while the build was still going on; forget it, it will be repeated.
    Repeat(TestIndex),
    /// The test was lost with its sandbox too often: settle it as an error.
    GiveUp(TestIndex),
    /// The only sandbox that could run the test is gone: settle it as an error.
    Refuse(TestIndex),
    /// Sandboxes break and nothing gets done: end the run. Comes once.
    Abort,
    /// As many tests failed as allowed: the rest will not be started. Comes once.
    MaxFailReached,
}

/// After how many losses while it ran a test is given up.
const LOSSES: u8 = 3;

/// How often a sandbox may refuse tests without finishing any.
const REFUSALS: u8 = 3;

/// After how many failed creations in a row no more sandboxes are created than there are.
const FAILED_CREATIONS: u32 = 3;

/// Decides what runs where and when.
///
/// Feed it facts, then call [`next_action`](Self::next_action) until it returns `None`; call that again when
/// [`next_wakeup`](Self::next_wakeup) says so. `now` is the time since any fixed moment and should not go backwards.
///
/// Facts come from workers that nobody vouches for: those that make no sense (a sandbox that does not exist, a test that
/// it does not have) are ignored.
///
/// Each test gets exactly one [`Action::Settle`] or [`Action::GiveUp`], or is in [`unsettled`](Self::unsettled) at the
/// end.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    tests: Vec<Test>,
    queue: Queue,
    sandboxes: Sandboxes,
    estimates: Estimates,
    /// What facts have led to and nobody has fetched yet.
    outbox: VecDeque<Action>,
    /// The time of the last call of `next_action`.
    now: Nanos,
    discovering: bool,
    /// Nothing more is started.
    halted: bool,
    /// The last test that may still be started.
    last: u32,
    /// After how many failures, in the order of tests, the rest is not started; and the first failures.
    max_fail_in_order: Option<usize>,
    first_failures: Vec<u32>,
    /// Tests that are repeated when discovery has ended.
    parked: Vec<u32>,
    unsettled: usize,
    /// Tests that are on sandboxes with their results wanted, and those among them whose failure would be repeated.
    out: usize,
    out_with_retries: usize,
    /// Tests that wait for an abandoned copy to end.
    between: usize,
    failed: usize,
    /// Tests that are on another sandbox than their home and have not started: they may have to go back.
    astray: usize,
    /// Unsettled tests of known duration, longest first; what is settled is dropped when it comes up.
    longest: BinaryHeap<(Nanos, Reverse<u32>)>,
    known_work: u128,
    unknown: usize,
    /// How long it takes to create a sandbox.
    creation: Option<Nanos>,
    /// Creations that failed since the last one that succeeded.
    failed_creations: u32,
    /// How many sandboxes there can be, judging by failed creations.
    ceiling: usize,
    /// Sandboxes lost since the last finished test: all, and those that had been ready and never finished one.
    losses: u32,
    deaths: u32,
}

impl Scheduler {
    /// A scheduler without tests or sandboxes.
    pub fn new(config: SchedulerConfig) -> Self {
        let config = SchedulerConfig { max_sandboxes: config.max_sandboxes.max(1), ..config };
        Self {
            estimates: Estimates::new(config.default_duration),
            tests: Vec::new(),
            queue: Queue::for_sandboxes(config.max_sandboxes),
            sandboxes: Sandboxes::default(),
            outbox: VecDeque::new(),
            now: 0,
            discovering: true,
            halted: false,
            last: u32::MAX,
            max_fail_in_order: None,
            first_failures: Vec::new(),
            parked: Vec::new(),
            unsettled: 0,
            out: 0,
            out_with_retries: 0,
            between: 0,
            failed: 0,
            astray: 0,
            longest: BinaryHeap::new(),
            known_work: 0,
            unknown: 0,
            creation: None,
            failed_creations: 0,
            ceiling: config.max_sandboxes,
            losses: 0,
            deaths: 0,
            config,
        }
    }

    /// Stops where a runner of one test after the other would: tests that come after the `max_fail`th failed one, in the
    /// order of their numbers, are not started; earlier ones are.
    #[must_use]
    pub fn with_max_fail_in_order(self, max_fail: Option<usize>) -> Self {
        Self { max_fail_in_order: max_fail, ..self }
    }

    /// A test was found. Tests may come at any time.
    pub fn add_test(&mut self, spec: TestSpec) -> TestIndex {
        // Four billion tests do not fit into memory.
        let index = self.tests.len() as u32;
        let home = spec.home.map_or(NONE, |home| home.0);
        let suite = self.queue.suite(spec.suite, spec.together, home);
        let test = Test::new(suite, &spec);
        self.unsettled += 1;
        match test.expected() {
            Some(expected) => {
                self.known_work += u128::from(expected);
                self.longest.push((expected, Reverse(index)));
                self.estimates.remember(expected);
            }
            None => self.unknown += 1,
        }
        self.tests.push(test);
        if !self.halted {
            self.queue.push(index, false, &mut self.tests, &self.estimates, self.now);
        }
        TestIndex(index)
    }

    /// No more tests will be found, and what they need is built.
    pub fn discovery_finished(&mut self) {
        self.discovering = false;
        for test in std::mem::take(&mut self.parked) {
            self.put_back(test, self.now);
        }
    }

    /// A sandbox that was to be created can be used. `round_trip`: how long a message there and its answer take.
    pub fn sandbox_ready(&mut self, sandbox: SandboxIndex, round_trip: Duration, now: Duration) {
        if let Some(took) = self.sandboxes.set_ready(sandbox.0, moment(round_trip), moment(now)) {
            self.failed_creations = 0;
            self.ceiling = self.config.max_sandboxes.min(self.ceiling + 1);
            self.creation = Some(self.creation.map_or(took, |known| known - known / 4 + took / 4));
        }
    }

    /// A sandbox has started a test.
    pub fn started(&mut self, sandbox: SandboxIndex, test: TestIndex, now: Duration) {
        let now = moment(now);
        let Some(state) = self.sandboxes.get(sandbox.0) else { return };
        // A batch may be reported as started all at once; its tests still run one after the other.
        let whole = state.batch.work;
        let hedge = self.config.hedge
            && self.tests.get(test.0 as usize).is_some_and(|test| !(test.alone || test.hedged || test.pinned));
        let changed = self.sandboxes.change(sandbox.0, test.0, |entry| {
            if entry.started.is_none() {
                entry.started = Some(now);
                entry.recalled = false;
                if hedge && !entry.abandoned {
                    entry.hedge_at = Some(plan::hedge_at(now, whole.max(entry.estimate)));
                }
            }
        });
        if changed {
            self.astray -= usize::from(std::mem::take(&mut self.tests[test.0 as usize].astray));
            self.refresh(sandbox.0, now);
        }
    }

    /// A test has ended. Returns whether that counts as an attempt, to be recorded: it does not when nobody waited for
    /// it (the slower one of two copies, a sandbox or test that is not known).
    pub fn finished(&mut self, sandbox: SandboxIndex, test: TestIndex, verdict: Verdict, now: Duration) -> bool {
        if !self.take_result(sandbox, test, verdict, now) {
            return false;
        }
        let now = moment(now);
        let record = &mut self.tests[test.0 as usize];
        match verdict {
            Verdict::Passed => self.settle(test.0, verdict),
            Verdict::Failed => {
                let repeat = record.may_retry() && !self.halted;
                record.failures = record.failures.saturating_add(1);
                record.failed_on = sandbox.0;
                if repeat {
                    let attempts_left = record.retries - (record.failures - 1);
                    self.outbox.push_back(Action::Retry { test, attempts_left });
                    self.put_back(test.0, now);
                } else {
                    self.settle(test.0, verdict);
                }
            }
        }
        true
    }

    /// The attempt that is about to fail is repeated if no more than `most` have failed before, whatever was said of the
    /// test.
    pub fn grant_retry(&mut self, test: TestIndex, most: u32) {
        if let Some(record) = self.tests.get_mut(test.0 as usize).filter(|record| record.failures < most) {
            record.retries = record.retries.max(record.failures + 1);
        }
    }

    /// A test has ended, but its result says nothing, because what it looked at was still being built. It is repeated
    /// when discovery has ended ([`Action::Repeat`]).
    pub fn forgotten(&mut self, sandbox: SandboxIndex, test: TestIndex, verdict: Verdict, now: Duration) {
        if !self.take_result(sandbox, test, verdict, now) {
            return;
        }
        self.outbox.push_back(Action::Repeat(test));
        if self.discovering {
            self.set_state(test.0, State::Parked);
            self.parked.push(test.0);
        } else {
            self.put_back(test.0, moment(now));
        }
    }

    /// Takes note that a sandbox has ended a test. Returns whether somebody waits for its result.
    fn take_result(&mut self, sandbox: SandboxIndex, test: TestIndex, verdict: Verdict, now: Duration) -> bool {
        let now = moment(now);
        let Some(entry) = self.sandboxes.withdraw(sandbox.0, test.0) else { return false };
        self.vacate(test.0, sandbox.0, now);
        if entry.abandoned {
            self.refresh(sandbox.0, now);
            return false;
        }
        (self.losses, self.deaths) = (0, 0);
        let yields = verdict == Verdict::Failed && self.counts_failures();
        if let Some(state) = self.sandboxes.get_mut(sandbox.0) {
            state.fruitful = true;
            state.refusals = 0;
            state.yields = yields;
        }
        self.learn(sandbox.0, &entry, now);
        self.refresh(sandbox.0, now);
        if let Some(other) = self.tests[test.0 as usize].place() {
            self.abandon(other, test.0, now);
        }
        true
    }

    /// A test that had passed turns out to have failed.
    pub fn failed_late(&mut self, sandbox: SandboxIndex, test: TestIndex) {
        let yields = self.counts_failures();
        if let Some(state) = self.sandboxes.get_mut(sandbox.0) {
            state.yields = yields;
        }
        if self.tests.get(test.0 as usize).is_some_and(|test| !test.failed) {
            self.count_failure(test.0);
        }
    }

    fn counts_failures(&self) -> bool {
        self.config.max_fail.is_some() || self.max_fail_in_order.is_some()
    }

    /// A sandbox has given tests back that it will not run, whether it was asked to or not.
    pub fn taken_back(&mut self, sandbox: SandboxIndex, tests: &[TestIndex], now: Duration) {
        let now = moment(now);
        let mut refused = false;
        let yields = self.sandboxes.get_mut(sandbox.0).is_some_and(|state| std::mem::take(&mut state.yields));
        // From the last to the first: each goes to the front of its suite.
        for &test in tests.iter().rev() {
            let Some(entry) = self.sandboxes.withdraw(sandbox.0, test.0) else { continue };
            let asked_for = entry.recalled || entry.abandoned || self.halted || (yields && entry.started.is_none());
            refused |= !asked_for;
            self.return_copy(sandbox.0, &entry, entry.started.is_some() && !asked_for, now);
        }
        if refused && let Some(state) = self.sandboxes.get_mut(sandbox.0) {
            state.refusals = state.refusals.saturating_add(1);
            state.distrusted |= state.refusals >= REFUSALS;
        }
        self.refresh(sandbox.0, now);
    }

    /// A sandbox cannot run these tests, for good: they can be run at home only, and not at all
    /// where that is gone or has refused them itself.
    pub fn refused(&mut self, sandbox: SandboxIndex, tests: &[TestIndex], now: Duration) {
        let now = moment(now);
        for &test in tests.iter().rev() {
            let Some(entry) = self.sandboxes.withdraw(sandbox.0, test.0) else { continue };
            let record = &mut self.tests[test.0 as usize];
            if record.home == sandbox.0 {
                // What it had is gone.
                record.home = NONE;
            }
            record.pinned = true;
            self.return_copy(sandbox.0, &entry, false, now);
        }
        self.refresh(sandbox.0, now);
    }

    /// A sandbox could not be created, or broke. What it had goes elsewhere.
    pub fn sandbox_lost(&mut self, sandbox: SandboxIndex, now: Duration) {
        let now = moment(now);
        let Some(state) = self.sandboxes.remove(sandbox.0) else { return };
        self.queue.move_sandbox(state.suite, NONE, &self.estimates);
        if !state.ready {
            self.failed_creations += 1;
            self.losses += 1;
            // It seems that there cannot be more for the time being. Each that can be created is worth another try.
            if self.failed_creations >= FAILED_CREATIONS || self.ceiling < self.config.max_sandboxes {
                self.ceiling = self.sandboxes.live().max(1);
            }
        } else if !state.fruitful {
            self.losses += 1;
            self.deaths += 1;
        }
        for entry in state.into_queue().into_iter().rev() {
            self.return_copy(sandbox.0, &entry, entry.started.is_some(), now);
        }
        for test in self.queue.drain_pinned(sandbox.0, &self.tests) {
            self.put_back(test, now);
        }
        self.abort_if_hopeless();
    }

    /// There cannot be more sandboxes than this. Those that are on their way beyond it are to be
    /// [withdrawn](Self::sandbox_withdrawn).
    pub fn limit_sandboxes(&mut self, most: usize) {
        self.config.max_sandboxes = self.config.max_sandboxes.min(most.max(1));
        self.ceiling = self.ceiling.min(self.config.max_sandboxes);
    }

    /// There is no room for a sandbox beside the others, of which there are not to be more. What it had goes to them.
    /// Returns whether there are any.
    pub fn sandbox_without_room(&mut self, sandbox: SandboxIndex, now: Duration) -> bool {
        let others = self.sandboxes.live().saturating_sub(1);
        let Some(state) = self.sandboxes.get_mut(sandbox.0).filter(|_| others > 0) else { return false };
        // Nothing broke.
        state.fruitful = true;
        self.limit_sandboxes(others);
        self.sandbox_lost(sandbox, now);
        true
    }

    /// A sandbox that was to be created will not be, which is no failure.
    pub fn sandbox_withdrawn(&mut self, sandbox: SandboxIndex) {
        if self.sandboxes.get(sandbox.0).is_some_and(|state| !state.ready) {
            self.sandboxes.remove(sandbox.0);
        }
    }

    /// Starts nothing more. What runs may end and counts; what is queued on sandboxes is asked back.
    pub fn stop(&mut self) {
        self.halt();
    }

    /// Starts no test that comes after `last`. Those that run may end and count; those that are queued on sandboxes are
    /// asked back. Said several times, the smallest counts.
    pub fn stop_after(&mut self, last: TestIndex) {
        if self.halted || last.0 >= self.last {
            return;
        }
        self.last = last.0;
        for number in self.sandboxes.numbers() {
            self.take_back_after(number, Some(last.0));
        }
    }

    /// The next thing to do, or `None` when there is nothing until the next fact or the next wake-up.
    pub fn next_action(&mut self, now: Duration) -> Option<Action> {
        self.now = moment(now).max(self.now);
        self.outbox.pop_front().or_else(|| self.plan())
    }

    /// When [`next_action`](Self::next_action) may have something to do although nothing has happened; `None` if only
    /// facts matter.
    pub fn next_wakeup(&self) -> Option<Duration> {
        self.wakeup().map(Duration::from_nanos)
    }

    /// Whether nothing will ever happen any more: discovery has ended, all actions have been fetched, and every test is
    /// settled, or, after a stop, nothing is queued or running on a sandbox.
    pub fn is_done(&self) -> bool {
        !self.discovering
            && self.outbox.is_empty()
            && (self.unsettled == 0
                || self.sandboxes.active() == 0 && (self.halted || self.last < u32::MAX && self.queue.is_empty()))
    }

    /// The tests that have no outcome.
    pub fn unsettled(&self) -> impl Iterator<Item = TestIndex> {
        let tests = self.tests.iter().zip(0..);
        tests.filter(|(test, _)| test.state != State::Settled).map(|(_, index)| TestIndex(index))
    }

    /// Learns from a finished test how long others may take.
    fn learn(&mut self, sandbox: u32, entry: &Entry, now: Nanos) {
        let suite = self.tests[entry.test as usize].suite;
        match self.config.feed {
            Feed::Stream => {
                // Of tests that started all at once, none says how long the next one takes.
                let together = self.sandboxes.get(sandbox).is_some_and(|state| state.whole);
                if let Some(started) = entry.started.filter(|_| !together) {
                    let took = Duration::from_nanos(now.saturating_sub(started));
                    self.estimates.learn(Some(suite), took, 1);
                }
            }
            // Results may come at the end of a batch, all at once: only the batch as a whole says something.
            Feed::Batches { one_suite, .. } => {
                if let Some(state) = self.sandboxes.get(sandbox)
                    && state.is_empty()
                {
                    let Batch { since, size, .. } = state.batch;
                    let each = Duration::from_nanos(now.saturating_sub(since) / size.max(1));
                    self.estimates.learn((one_suite || size == 1).then_some(suite), each, size);
                }
            }
        }
    }

    /// A copy of a test came back without a result.
    fn return_copy(&mut self, sandbox: u32, entry: &Entry, lost: bool, now: Nanos) {
        self.vacate(entry.test, sandbox, now);
        if entry.abandoned {
            return;
        }
        let test = &mut self.tests[entry.test as usize];
        test.losses = test.losses.saturating_add(u8::from(lost));
        if test.place().is_some() {
            // The other copy is the attempt from now on.
            return;
        }
        if test.losses >= LOSSES {
            self.outbox.push_back(Action::GiveUp(TestIndex(entry.test)));
            self.close(entry.test);
        } else {
            self.put_back(entry.test, now);
        }
    }

    /// A sandbox does not have a test any more.
    fn vacate(&mut self, test: u32, sandbox: u32, now: Nanos) {
        let record = &mut self.tests[test as usize];
        record.vacate(sandbox);
        if record.state == State::Between {
            self.put_back(test, now);
        }
    }

    /// The test is to run, again or still, as soon as no sandbox has it.
    fn put_back(&mut self, test: u32, now: Nanos) {
        let record = &mut self.tests[test as usize];
        let home = record.home;
        record.hedged = false;
        if self.halted || test > self.last {
            match record.failures {
                0 => self.set_state(test, State::Left),
                // There will be no further attempt, so the last one is its outcome.
                _ => self.settle(test, Verdict::Failed),
            }
        } else if record.place().is_some() {
            self.set_state(test, State::Between);
        } else if record.pinned && self.is_homeless(home) {
            self.outbox.push_back(Action::Refuse(TestIndex(test)));
            self.close(test);
        } else {
            self.set_state(test, State::Queued);
            self.queue.push(test, true, &mut self.tests, &self.estimates, now);
        }
    }

    /// The result of this copy is not wanted any more.
    fn abandon(&mut self, sandbox: u32, test: u32, now: Nanos) {
        self.sandboxes.change(sandbox, test, |entry| {
            entry.abandoned = true;
            entry.recalled = false;
            entry.hedge_at = None;
        });
        self.refresh(sandbox, now);
        self.outbox.push_back(Action::Cancel { sandbox: SandboxIndex(sandbox), test: TestIndex(test) });
    }

    fn settle(&mut self, test: u32, verdict: Verdict) {
        self.outbox.push_back(Action::Settle(TestIndex(test)));
        self.close(test);
        if verdict == Verdict::Failed {
            self.count_failure(test);
        }
    }

    /// A test has failed for good, which may have been the last failure that is allowed.
    fn count_failure(&mut self, test: u32) {
        self.tests[test as usize].failed = true;
        self.failed += 1;
        if !self.halted && self.config.max_fail.is_some_and(|max| self.failed >= max) {
            self.outbox.push_back(Action::MaxFailReached);
            self.halt();
        }
        if let Some(max) = self.max_fail_in_order {
            let position = self.first_failures.partition_point(|&other| other < test);
            self.first_failures.insert(position, test);
            self.first_failures.truncate(max);
            if let Some(&last) = self.first_failures.get(max.saturating_sub(1)) {
                self.stop_after(TestIndex(last));
            }
        }
    }

    /// The test has its outcome.
    fn close(&mut self, test: u32) {
        self.set_state(test, State::Settled);
        self.unsettled -= 1;
        match self.tests[test as usize].expected() {
            Some(expected) => self.known_work -= u128::from(expected),
            None => self.unknown -= 1,
        }
    }

    fn set_state(&mut self, test: u32, state: State) {
        let record = &mut self.tests[test as usize];
        self.astray -= usize::from(std::mem::take(&mut record.astray));
        // Failures count up before the state changes, so the test says itself which it was counted as.
        match record.state {
            State::Out => {
                self.out -= 1;
                self.out_with_retries -= usize::from(std::mem::take(&mut record.counted_retry));
            }
            State::Between => self.between -= 1,
            _ => {}
        }
        record.state = state;
        match state {
            State::Out => {
                self.out += 1;
                record.counted_retry = record.may_retry();
                self.out_with_retries += usize::from(record.counted_retry);
            }
            State::Between => self.between += 1,
            _ => {}
        }
    }

    /// Sorts a sandbox in anew after something has happened to its queue.
    fn refresh(&mut self, sandbox: u32, now: Nanos) {
        let gives = self.config.feed == Feed::Stream;
        let Some(state) = self.sandboxes.get_mut(sandbox) else { return };
        if state.is_empty() {
            (state.alone, state.whole, state.batch) = (false, false, Batch::default());
            if state.distrusted {
                self.outbox.push_back(Action::Release(SandboxIndex(sandbox)));
                self.sandbox_lost(SandboxIndex(sandbox), Duration::from_nanos(now));
                return;
            }
            self.sandboxes.set_draining(sandbox, false);
        }
        self.sandboxes.refresh(sandbox, gives, now);
        self.sandboxes.look_at(sandbox);
    }

    /// Sandboxes break and nothing gets done. While others are there or on their way, failed creations alone say only
    /// that there cannot be as many as wished for.
    fn abort_if_hopeless(&mut self) {
        let limit = u32::try_from(self.config.max_sandboxes.saturating_mul(2)).unwrap_or(u32::MAX).clamp(4, 10);
        if !self.halted && (self.deaths >= limit || self.losses >= limit && self.sandboxes.live() == 0) {
            self.outbox.push_back(Action::Abort);
            self.halt();
        }
    }

    /// Nothing more is started.
    fn halt(&mut self) {
        if std::mem::replace(&mut self.halted, true) {
            return;
        }
        for number in self.sandboxes.numbers() {
            self.take_back_after(number, None);
        }
        let homes: Vec<u32> = self.queue.pinned_homes().collect();
        let pinned: Vec<u32> = homes.into_iter().flat_map(|home| self.queue.drain_pinned(home, &self.tests)).collect();
        for test in self.queue.drain_retries(&self.tests).into_iter().chain(pinned) {
            self.put_back(test, self.now);
        }
    }
}
