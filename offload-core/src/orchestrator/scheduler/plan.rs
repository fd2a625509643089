//! What is done next, when no fact has led to something by itself.
//!
//! In this order: more sandboxes while they are of use, tests for idle sandboxes, more tests for busy ones, then, when
//! the central queue has nothing for idle sandboxes, tests taken back from busy ones and duplicates of slow ones, and
//! last the release of what is not needed any more. Idle sandboxes come before busy ones, or a test that was taken back
//! for one of them could go round in circles.

use std::cmp::Reverse;
use std::time::Duration;

use super::ledger::{NONE, Nanos, State, expectation};
use super::queue::{Asker, Choice, RETRY_PATIENCE};
use super::sandboxes::{Batch, Entry};
use super::{Action, Assignment, Feed, SandboxIndex, Scheduler, TestIndex};

/// However short it was expected to be, a test that runs for less than this is not duplicated.
const HEDGE_FLOOR: Nanos = 1_000_000_000;

/// A process that tests share is to have this much to do, if there is as much.
const WORTH_A_BATCH: Nanos = 10_000_000;

/// The most tests in a batch of which nobody knows how long they take.
const UNKNOWN_BATCH: usize = 32;

/// A batch is at most the expected rest of the run divided by this: half of it is left for balancing.
const BATCH_PART: u64 = 2;

/// From when on a test that started at `started` may be duplicated.
pub(super) fn hedge_at(started: Nanos, estimate: Nanos) -> Nanos {
    started.saturating_add(estimate.saturating_mul(2).max(HEDGE_FLOOR))
}

impl Scheduler {
    /// The next thing to do.
    pub(super) fn plan(&mut self) -> Option<Action> {
        if self.halted {
            return self.release();
        }
        self.refuse_homeless()
            .or_else(|| self.create())
            .or_else(|| self.feed_idle())
            .or_else(|| self.feed_busy())
            .or_else(|| self.take_back())
            .or_else(|| self.hedge())
            .or_else(|| self.release())
    }

    /// When there may be something to do although nothing has happened.
    pub(super) fn wakeup(&self) -> Option<Nanos> {
        if self.halted {
            return None;
        }
        let &idle = self.sandboxes.idle.first()?;
        let later = (self.now.saturating_add(1), 0);
        let stuck = self.sandboxes.donors.range(later..).next().map(|&(at, _)| at);
        let slow = self.sandboxes.hedges.range((later.0, 0, 0)..).next().map(|&(at, ..)| at);
        let retry = self.queue.retry_patience_ends(idle).filter(|&at| at > self.now);
        [stuck, slow, retry].into_iter().flatten().min()
    }

    /// The expected rest of the run, if work is shared out evenly.
    fn rest(&self) -> Nanos {
        let work = self.queue.work(&self.estimates) + self.sandboxes.work();
        Nanos::try_from(work / self.sandboxes.live().max(1) as u128).unwrap_or(Nanos::MAX)
    }

    /// Whether a sandbox of this number would be there if all that there is room for were created now.
    fn may_come(&self, number: u32) -> bool {
        let room = self.config.max_sandboxes.saturating_sub(self.sandboxes.live());
        self.sandboxes.before(number).is_some_and(|others| others < room)
    }

    /// Whether a test that can be run on its home only cannot be run at all.
    pub(super) fn is_homeless(&self, home: u32) -> bool {
        self.sandboxes.get(home).is_none() && !self.may_come(home)
    }

    /// Settles what waits for a sandbox that will not come.
    fn refuse_homeless(&mut self) -> Option<Action> {
        let homes: Vec<u32> = self.queue.pinned_homes().filter(|&home| self.is_homeless(home)).collect();
        for home in homes {
            for test in self.queue.drain_pinned(home, &self.tests) {
                self.put_back(test, self.now);
            }
        }
        self.outbox.pop_front()
    }

    /// Creates a sandbox if it would be of use.
    fn create(&mut self) -> Option<Action> {
        let live = self.sandboxes.live();
        if self.queue.pinned_homes().any(|home| self.may_come(home)) {
            // What waits for it can be run nowhere else.
            return Some(Action::CreateSandbox(SandboxIndex(self.sandboxes.create(self.now))));
        }
        if self.queue.is_empty() || live >= self.ceiling {
            return None;
        }
        // All that waits failed on the only sandbox, which has nothing else to do: a second one is of use.
        let idle = &self.sandboxes.idle;
        let second = live == 1 && idle.first().is_some_and(|&only| self.queue.all_failed_on(only));
        let free = if second { 0 } else { idle.len() };
        if self.queue.units() <= self.sandboxes.creating() + free || live >= self.useful() + usize::from(second) {
            return None;
        }
        if let Some(creation) = self.creation
            && self.sandboxes.ready() > 0
            && (self.queue.work(&self.estimates) + self.sandboxes.work()) / self.sandboxes.ready() as u128
                <= u128::from(creation)
        {
            // Those that are there will be done before it has been created.
            return None;
        }
        Some(Action::CreateSandbox(SandboxIndex(self.sandboxes.create(self.now))))
    }

    /// How many sandboxes can shorten the run.
    ///
    /// The run lasts as long as its longest test at least. With twice as many sandboxes as it takes to do everything
    /// else in that time, each test that is longer than half of the longest gets a sandbox at once, and whatever comes
    /// later ends in time: more sandboxes would gain nothing. A test of unknown duration may need one of its own.
    fn useful(&mut self) -> usize {
        let count = self.queue.units() + self.out + self.between;
        while let Some(&(longest, Reverse(test))) = self.longest.peek() {
            if self.tests[test as usize].state != State::Settled {
                let enough = (self.known_work * 2).div_ceil(u128::from(longest)) + self.unknown as u128;
                return count.min(usize::try_from(enough).unwrap_or(usize::MAX));
            }
            self.longest.pop();
        }
        count
    }

    /// Gives tests to a sandbox that has none.
    fn feed_idle(&mut self) -> Option<Action> {
        if self.queue.is_empty() {
            return None;
        }
        let at_home = self.queue.pinned_homes().find(|home| self.sandboxes.idle.contains(home));
        if let Some(action) = at_home.and_then(|home| self.feed(home)) {
            return Some(action);
        }
        // The queue has something for any sandbox, except for retries, which it has for any but one.
        let first = *self.sandboxes.idle.first()?;
        self.feed(first).or_else(|| {
            let second = *self.sandboxes.idle.range(first + 1..).next()?;
            self.feed(second)
        })
    }

    /// Gives more tests to a sandbox that has some.
    fn feed_busy(&mut self) -> Option<Action> {
        while let Some(number) = self.sandboxes.next_dirty() {
            if self.queue.is_empty() {
                self.sandboxes.remember_hungry(number);
            } else if let Some(action) = self.feed(number) {
                return Some(action);
            }
        }
        while !self.queue.is_empty()
            && let Some(number) = self.sandboxes.next_hungry()
        {
            if let Some(action) = self.feed(number) {
                return Some(action);
            }
        }
        None
    }

    fn feed(&mut self, number: u32) -> Option<Action> {
        let tests = match self.config.feed {
            Feed::Stream => self.feed_stream(number),
            Feed::Batches { max, one_suite, longest } => self.feed_batch(number, max.max(1), one_suite, longest),
        };
        self.sandboxes.refresh(number, self.config.feed == Feed::Stream, self.now);
        (!tests.is_empty()).then_some(Action::Assign { sandbox: SandboxIndex(number), tests })
    }

    fn asker(&self, number: u32, rest: Nanos) -> Option<Asker> {
        let sandbox = self.sandboxes.get(number).filter(|sandbox| sandbox.ready && !sandbox.distrusted)?;
        Some(Asker {
            sandbox: number,
            suite: sandbox.suite,
            empty: sandbox.is_empty(),
            // Behind a long test a retry would be worse off than on the sandbox where it failed.
            may_retry: sandbox.load(self.now) <= RETRY_PATIENCE,
            may_drain: self.sandboxes.draining() < self.queue.alone_len(),
            live: self.sandboxes.live(),
            rest,
            now: self.now,
        })
    }

    fn feed_stream(&mut self, number: u32) -> Vec<Assignment> {
        let mut assigned = Vec::new();
        self.sandboxes.set_draining(number, false);
        let rest = self.rest();
        while let Some(sandbox) = self.sandboxes.get(number)
            && !(sandbox.alone || sandbox.whole)
            && if assigned.is_empty() { sandbox.is_hungry() } else { sandbox.has_room() }
        {
            let load = sandbox.load(self.now);
            let Some(asker) = self.asker(number, rest) else { break };
            let choice = self.queue.choose(&asker, &self.tests, &self.estimates);
            if choice == Choice::Drain {
                self.sandboxes.set_draining(number, true);
            }
            if self.whole_suite(choice).is_some() {
                // As soon as it is empty.
                if asker.empty {
                    assigned = self.assign_whole(number, choice, usize::MAX);
                    if let Some(sandbox) = self.sandboxes.get_mut(number) {
                        sandbox.whole = true;
                    }
                }
                break;
            }
            let Some(estimate) = self.estimate(choice) else { break };
            // No more than its share: somebody else may be free earlier.
            if !asker.empty && load.saturating_add(estimate) > rest {
                break;
            }
            assigned.extend(self.assign(number, choice, estimate));
        }
        assigned
    }

    fn feed_batch(&mut self, number: u32, max: usize, one_suite: bool, longest: Option<Duration>) -> Vec<Assignment> {
        let mut assigned = Vec::new();
        let mut budget = self.rest() / BATCH_PART;
        if let Some(longest) = longest {
            budget = budget.clamp(WORTH_A_BATCH, expectation(longest).max(WORTH_A_BATCH));
        }
        let mut unknown = 0;
        let mut used: Nanos = 0;
        if self.sandboxes.get(number).is_none_or(|sandbox| !sandbox.is_empty()) {
            return assigned;
        }
        let Some(mut asker) = self.asker(number, self.rest()) else { return assigned };
        while assigned.len() < max {
            let mut choice = self.queue.choose(&asker, &self.tests, &self.estimates);
            if !assigned.is_empty() {
                if one_suite && self.suite_of(choice) != Some(asker.suite) {
                    choice = match self.queue.first_of(asker.suite) {
                        NONE => Choice::Nothing,
                        test => Choice::Ordinary { test },
                    };
                }
                // Retries and tests that must be alone are batches by themselves.
                if !matches!(choice, Choice::Ordinary { .. }) {
                    break;
                }
            }
            let Some(estimate) = self.estimate(choice) else { break };
            if longest.is_some() && self.is_unknown(choice) {
                // Nothing is known of such tests, but few of them are no great risk.
                unknown += 1;
                let share = (assigned.len() * 2).saturating_mul(self.config.max_sandboxes);
                if unknown > UNKNOWN_BATCH || share > self.queue.units() {
                    break;
                }
            } else if !assigned.is_empty() && used.saturating_add(estimate) > budget {
                break;
            }
            if one_suite && assigned.is_empty() {
                // The batch is of the suite that its first test is of.
                asker.suite = self.suite_of(choice).unwrap_or(NONE);
            }
            if self.whole_suite(choice).is_some() {
                let whole = self.assign_whole(number, choice, max - assigned.len());
                let count = u64::try_from(whole.len()).unwrap_or(u64::MAX);
                used = used.saturating_add(estimate.saturating_mul(count));
                assigned.extend(whole);
            } else {
                assigned.extend(self.assign(number, choice, estimate));
                used = used.saturating_add(estimate);
            }
            asker.suite = match self.sandboxes.get(number) {
                Some(sandbox) if !one_suite => sandbox.suite,
                _ => asker.suite,
            };
            if !matches!(choice, Choice::Ordinary { .. }) {
                break;
            }
        }
        if let Some(sandbox) = self.sandboxes.get_mut(number) {
            sandbox.batch = Batch { since: self.now, size: assigned.len() as u64, work: used };
        }
        assigned
    }

    fn chosen(choice: Choice) -> Option<usize> {
        match choice {
            Choice::Nothing | Choice::Drain => None,
            Choice::Retry { test, .. }
            | Choice::Alone { test }
            | Choice::Ordinary { test }
            | Choice::Pinned { test, .. } => Some(test as usize),
        }
    }

    fn suite_of(&self, choice: Choice) -> Option<u32> {
        Some(self.tests[Self::chosen(choice)?].suite)
    }

    fn estimate(&self, choice: Choice) -> Option<Nanos> {
        let test = &self.tests[Self::chosen(choice)?];
        Some(test.expected().unwrap_or_else(|| self.estimates.of_suite(test.suite)))
    }

    /// Whether neither history nor this run says how long such tests take.
    fn is_unknown(&self, choice: Choice) -> bool {
        Self::chosen(choice).is_some_and(|test| {
            let test = &self.tests[test];
            test.expected().is_none() && !self.estimates.knows(test.suite)
        })
    }

    /// The suite that is to be assigned as a whole if this test is.
    fn whole_suite(&self, choice: Choice) -> Option<u32> {
        let suite = self.suite_of(choice).filter(|_| matches!(choice, Choice::Ordinary { .. }))?;
        self.queue.together(suite).then_some(suite)
    }

    /// Moves a test and what waits of its suite from the queue to a sandbox, `max` tests at most.
    fn assign_whole(&mut self, number: u32, first: Choice, max: usize) -> Vec<Assignment> {
        let mut assigned = Vec::new();
        let Some(suite) = self.suite_of(first) else { return assigned };
        let mut work: Nanos = 0;
        while assigned.len() < max {
            let choice = match self.queue.first_of(suite) {
                NONE => break,
                test => Choice::Ordinary { test },
            };
            let Some(estimate) = self.estimate(choice) else { break };
            assigned.extend(self.assign(number, choice, estimate));
            work = work.saturating_add(estimate);
        }
        if let Some(sandbox) = self.sandboxes.get_mut(number) {
            sandbox.batch = Batch { since: self.now, size: assigned.len() as u64, work };
        }
        assigned
    }

    /// Moves a test from the queue to a sandbox.
    fn assign(&mut self, number: u32, choice: Choice, estimate: Nanos) -> Option<Assignment> {
        let test = self.queue.take(choice, &mut self.tests, &self.estimates)?;
        if test > self.last {
            self.put_back(test, self.now);
            return None;
        }
        self.set_state(test, State::Out);
        let record = &mut self.tests[test as usize];
        record.occupy(number);
        record.astray = record.home != NONE && record.home != number;
        self.astray += usize::from(record.astray);
        let assignment = Assignment { test: TestIndex(test), attempt: record.attempt() };
        let failed_on = if record.failures > 0 { record.failed_on } else { NONE };
        let (suite, alone) = (record.suite, record.alone);
        self.sandboxes.append(number, Entry::new(test, estimate, failed_on));
        let Some(sandbox) = self.sandboxes.get_mut(number) else { return Some(assignment) };
        sandbox.alone |= alone;
        let before = sandbox.suite;
        // An exception (a long test of another suite, a retry) does not make the sandbox leave its suite.
        if matches!(choice, Choice::Ordinary { .. }) && before != suite && self.queue.first_of(before) == NONE {
            sandbox.suite = suite;
            self.queue.move_sandbox(before, suite, &self.estimates);
        }
        Some(assignment)
    }

    /// Asks a busy sandbox for tests that an idle one could start earlier.
    fn take_back(&mut self) -> Option<Action> {
        let idle = self.sandboxes.idle.len();
        let &taker = self.sandboxes.idle.first()?;
        if self.sandboxes.recalled() >= idle {
            return None;
        }
        // One that should be done by now is stuck in a test, and nobody knows for how long.
        let stuck = self.sandboxes.donors.first().copied().filter(|&(ends, _)| ends <= self.now);
        let (ends, number) = stuck.or_else(|| self.sandboxes.donors.last().copied())?;
        let donor = self.sandboxes.get(number)?;
        let cost = donor.round_trip.saturating_add(self.sandboxes.get(taker)?.round_trip / 2);
        let (mut begins, mut taken) = (ends.saturating_sub(self.now), 0);
        let mut positions = Vec::new();
        for (position, entry) in donor.queue().iter().enumerate().skip(1).rev().filter(|(_, entry)| entry.is_waiting())
        {
            // The time at which it would begin there, against the time at which it could begin here.
            begins = begins.saturating_sub(entry.estimate);
            if self.tests[entry.test as usize].pinned {
                continue;
            }
            if stuck.is_none() && begins <= cost.saturating_add(taken) {
                break;
            }
            // A retry stays if it could only come back to where it failed.
            if idle == 1 && entry.failed_on == taker {
                continue;
            }
            taken = taken.saturating_add(entry.estimate);
            positions.push(position);
        }
        positions.reverse();
        let tests = self.recall(number, &positions);
        (!tests.is_empty()).then_some(Action::TakeBack { sandbox: SandboxIndex(number), tests })
    }

    /// Asks a sandbox for everything back that it has not started, or for what of it comes after a test.
    pub(super) fn take_back_after(&mut self, number: u32, last: Option<u32>) {
        let Some(sandbox) = self.sandboxes.get(number) else { return };
        let after = |test| last.is_none_or(|last| test > last);
        let waiting = sandbox.queue().iter().enumerate().filter(|(_, entry)| entry.is_waiting() && after(entry.test));
        let positions: Vec<usize> = waiting.map(|(position, _)| position).collect();
        let tests = self.recall(number, &positions);
        if !tests.is_empty() {
            self.outbox.push_back(Action::TakeBack { sandbox: SandboxIndex(number), tests });
        }
    }

    fn recall(&mut self, number: u32, positions: &[usize]) -> Vec<TestIndex> {
        let mut tests = Vec::with_capacity(positions.len());
        for &position in positions {
            self.sandboxes.change_at(number, position, |entry| {
                entry.recalled = true;
                tests.push(TestIndex(entry.test));
            });
        }
        self.refresh(number, self.now);
        tests
    }

    /// Starts a second copy of a test that takes long, on a sandbox that has nothing else to do.
    fn hedge(&mut self) -> Option<Action> {
        if !self.queue.is_empty() || self.sandboxes.recalled() > 0 {
            return None;
        }
        let &number = self.sandboxes.idle.first()?;
        let &(at, test, place) = self.sandboxes.hedges.first()?;
        if at > self.now {
            return None;
        }
        self.sandboxes.change(place, test, |entry| entry.hedge_at = None);
        let record = &mut self.tests[test as usize];
        record.hedged = true;
        record.occupy(number);
        let assignment = Assignment { test: TestIndex(test), attempt: record.attempt() };
        let estimate = record.expected().unwrap_or_else(|| self.estimates.of_suite(record.suite));
        self.sandboxes.append(number, Entry::new(test, estimate, NONE));
        if let Some(sandbox) = self.sandboxes.get_mut(number) {
            sandbox.batch = Batch { since: self.now, size: 1, work: estimate };
        }
        self.sandboxes.refresh(number, self.config.feed == Feed::Stream, self.now);
        Some(Action::Assign { sandbox: SandboxIndex(number), tests: vec![assignment] })
    }

    /// Lets go of a sandbox that will not be needed any more.
    fn release(&mut self) -> Option<Action> {
        let needed = if self.halted {
            0
        } else if self.discovering || !self.queue.is_empty() || self.sandboxes.recalled() > 0 || self.astray > 0 {
            usize::MAX
        } else {
            // What is out may come back: to be retried, taken over or duplicated.
            let out = if self.config.hedge { self.out } else { self.out_with_retries };
            out + self.between + self.sandboxes.donors.len()
        };
        if self.sandboxes.idle.len() <= needed {
            return None;
        }
        let &number = self.sandboxes.idle.last()?;
        let sandbox = self.sandboxes.remove(number)?;
        self.queue.move_sandbox(sandbox.suite, NONE, &self.estimates);
        Some(Action::Release(SandboxIndex(number)))
    }
}
