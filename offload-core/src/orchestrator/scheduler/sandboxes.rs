//! The sandboxes of a run: what is queued and running on each, and which of them want or could give something.
//!
//! Sums and sets are kept up to date with every change, so that no question needs a walk over all sandboxes.

use std::collections::{BTreeSet, VecDeque};

use super::ledger::{NONE, Nanos};

/// Below this much queued work a sandbox with short tests is given more, however quick its round trip is: whoever runs
/// the tests should not have to wait for whoever hands them out.
const CUSHION: Nanos = 5_000_000;

/// The most tests queued for the cushion's sake.
const CUSHION_TESTS: usize = 16;

/// The most tests queued on a sandbox for whatever reason.
const QUEUE_LIMIT: usize = 1000;

/// One copy of a test on a sandbox.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub test: u32,
    /// How long it was expected to last when it was handed out.
    pub estimate: Nanos,
    pub started: Option<Nanos>,
    /// From when on a duplicate may run elsewhere.
    pub hedge_at: Option<Nanos>,
    /// The sandbox was asked to give it back.
    pub recalled: bool,
    /// The sandbox was told to end it; what it still says of it is of no interest.
    pub abandoned: bool,
    /// It has failed before, on this sandbox.
    pub failed_on: u32,
}

impl Entry {
    pub fn new(test: u32, estimate: Nanos, failed_on: u32) -> Self {
        Self { test, estimate, started: None, hedge_at: None, recalled: false, abandoned: false, failed_on }
    }

    /// Will be run here, later.
    pub fn is_waiting(&self) -> bool {
        self.started.is_none() && !self.recalled && !self.abandoned
    }

    fn is_running(&self) -> bool {
        self.started.is_some() && !self.abandoned
    }
}

/// Tests that were handed out together, to be run by one command.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Batch {
    pub since: Nanos,
    pub size: u64,
    /// How long it was expected to last.
    pub work: Nanos,
}

/// One sandbox.
#[derive(Debug)]
pub(super) struct Sandbox {
    /// When its creation began.
    pub since: Nanos,
    pub ready: bool,
    pub round_trip: Nanos,
    queue: VecDeque<Entry>,
    waiting: usize,
    waiting_work: Nanos,
    /// The suite it is in, or [`NONE`].
    pub suite: u32,
    /// It has a test that must be alone.
    pub alone: bool,
    /// It has a suite whose tests run together, and nothing else until that is done.
    pub whole: bool,
    /// Its queue runs dry because a test wants it for itself.
    draining: bool,
    /// It has finished a test.
    pub fruitful: bool,
    /// Where failures are counted: it has failed a test and gives its queue back because of that.
    pub yields: bool,
    /// How often it gave tests back that nobody asked for, without finishing one in between.
    pub refusals: u8,
    /// It is given nothing any more.
    pub distrusted: bool,
    /// The batch that it works at.
    pub batch: Batch,
    /// Its key among the donors.
    donor: Option<Nanos>,
    dirty: bool,
    hungry: bool,
}

impl Sandbox {
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn queue(&self) -> &VecDeque<Entry> {
        &self.queue
    }

    pub fn into_queue(self) -> VecDeque<Entry> {
        self.queue
    }

    /// Whether it should be sent more tests, when there are any: too few are queued to keep it busy while the message
    /// about the next result travels here and an assignment travels back.
    pub fn is_hungry(&self) -> bool {
        let (tests, work) = self.ahead();
        tests == 0
            || tests < QUEUE_LIMIT && work < self.round_trip.saturating_mul(2)
            || tests < CUSHION_TESTS / 2 && work < CUSHION / 2
    }

    /// Whether, once it is sent tests, one more is sent along.
    pub fn has_room(&self) -> bool {
        let (tests, work) = self.ahead();
        tests == 0
            || tests < QUEUE_LIMIT && work < self.round_trip.saturating_mul(3)
            || tests < CUSHION_TESTS && work < CUSHION
    }

    /// What waits behind the test that it runs or is about to run: how many tests, how much work.
    fn ahead(&self) -> (usize, Nanos) {
        match self.queue.front().filter(|first| first.is_waiting()) {
            Some(first) => (self.waiting - 1, self.waiting_work - first.estimate),
            None => (self.waiting, self.waiting_work),
        }
    }

    /// How long it will be busy, as far as one knows: a test that is late is taken to be late by as much again.
    pub fn load(&self, now: Nanos) -> Nanos {
        let running = match self.queue.front() {
            Some(Entry { started: Some(started), estimate, .. }) => started.saturating_add(*estimate).abs_diff(now),
            _ => 0,
        };
        self.waiting_work.saturating_add(running)
    }

    /// Whether it has tests to give away.
    fn can_give(&self) -> bool {
        !self.whole && self.ahead().0 > 0
    }
}

/// All sandboxes.
#[derive(Debug, Default)]
pub(super) struct Sandboxes {
    all: Vec<Option<Sandbox>>,
    creating: usize,
    ready: usize,
    /// Ready, with nothing queued or running.
    pub idle: BTreeSet<u32>,
    /// Those with tests to give away, by the time at which they expect to have done everything.
    pub donors: BTreeSet<(Nanos, u32)>,
    /// Tests that may be duplicated: when, which, where.
    pub hedges: BTreeSet<(Nanos, u32, u32)>,
    /// Busy ones that changed and may want more.
    dirty: VecDeque<u32>,
    /// Busy ones that wanted more when there was nothing.
    hungry: VecDeque<u32>,
    waiting_work: u128,
    running_work: u128,
    recalled: usize,
    draining: usize,
    active: usize,
}

impl Sandboxes {
    /// Those that are there or on their way.
    pub fn live(&self) -> usize {
        self.creating + self.ready
    }

    pub fn creating(&self) -> usize {
        self.creating
    }

    pub fn ready(&self) -> usize {
        self.ready
    }

    /// How many copies of tests are out with their results wanted.
    pub fn active(&self) -> usize {
        self.active
    }

    /// How many tests were asked back and have not come yet.
    pub fn recalled(&self) -> usize {
        self.recalled
    }

    /// How many sandboxes run dry.
    pub fn draining(&self) -> usize {
        self.draining
    }

    /// What is queued on sandboxes and half of what is running: nobody knows how far that is.
    pub fn work(&self) -> u128 {
        self.waiting_work + self.running_work / 2
    }

    /// The numbers of all sandboxes there are.
    pub fn numbers(&self) -> Vec<u32> {
        let numbers = self.all.iter().zip(0..);
        numbers.filter(|(sandbox, _)| sandbox.is_some()).map(|(_, number)| number).collect()
    }

    /// How many are to be created before the one of this number; `None` if that has been created, or is none.
    pub fn before(&self, number: u32) -> Option<usize> {
        (number as usize).checked_sub(self.all.len()).filter(|_| number != NONE)
    }

    pub fn get(&self, number: u32) -> Option<&Sandbox> {
        self.all.get(number as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, number: u32) -> Option<&mut Sandbox> {
        self.all.get_mut(number as usize)?.as_mut()
    }

    /// Enters a sandbox that is to be created.
    pub fn create(&mut self, now: Nanos) -> u32 {
        self.all.push(Some(Sandbox {
            since: now,
            ready: false,
            round_trip: 0,
            queue: VecDeque::new(),
            waiting: 0,
            waiting_work: 0,
            suite: NONE,
            alone: false,
            whole: false,
            draining: false,
            fruitful: false,
            yields: false,
            refusals: 0,
            distrusted: false,
            batch: Batch::default(),
            donor: None,
            dirty: false,
            hungry: false,
        }));
        self.creating += 1;
        // Whoever creates four billion sandboxes has other worries.
        (self.all.len() - 1) as u32
    }

    /// Enters that a sandbox can be used; returns how long its creation took. `None` if it was not being created.
    pub fn set_ready(&mut self, number: u32, round_trip: Nanos, now: Nanos) -> Option<Nanos> {
        let sandbox = self.get_mut(number).filter(|sandbox| !sandbox.ready)?;
        sandbox.ready = true;
        sandbox.round_trip = round_trip;
        let took = now.saturating_sub(sandbox.since);
        self.creating -= 1;
        self.ready += 1;
        self.idle.insert(number);
        Some(took)
    }

    /// Strikes a sandbox out; what it had is in the queue of what is returned.
    pub fn remove(&mut self, number: u32) -> Option<Sandbox> {
        let sandbox = self.all.get_mut(number as usize)?.take()?;
        if sandbox.ready {
            self.ready -= 1;
        } else {
            self.creating -= 1;
        }
        self.idle.remove(&number);
        if let Some(key) = sandbox.donor {
            self.donors.remove(&(key, number));
        }
        self.draining -= usize::from(sandbox.draining);
        for entry in &sandbox.queue {
            self.discount(number, entry);
        }
        Some(sandbox)
    }

    /// Queues a test on a sandbox.
    pub fn append(&mut self, number: u32, entry: Entry) {
        self.count(number, &entry);
        if let Some(sandbox) = self.get_mut(number) {
            if entry.is_waiting() {
                sandbox.waiting += 1;
                sandbox.waiting_work += entry.estimate;
            }
            sandbox.queue.push_back(entry);
        }
    }

    /// Removes a test from a sandbox.
    pub fn withdraw(&mut self, number: u32, test: u32) -> Option<Entry> {
        let sandbox = self.get_mut(number)?;
        let position = sandbox.queue.iter().position(|entry| entry.test == test)?;
        let entry = sandbox.queue.remove(position)?;
        if entry.is_waiting() {
            sandbox.waiting -= 1;
            sandbox.waiting_work -= entry.estimate;
        }
        self.discount(number, &entry);
        Some(entry)
    }

    /// Changes what is known of a test on a sandbox. Returns whether the sandbox has it.
    pub fn change(&mut self, number: u32, test: u32, change: impl FnOnce(&mut Entry)) -> bool {
        let Some(position) =
            self.get(number).and_then(|sandbox| sandbox.queue.iter().position(|entry| entry.test == test))
        else {
            return false;
        };
        self.change_at(number, position, change);
        true
    }

    /// The same, by position in the queue.
    pub fn change_at(&mut self, number: u32, position: usize, change: impl FnOnce(&mut Entry)) {
        let Some(sandbox) = self.get_mut(number) else { return };
        let Some(entry) = sandbox.queue.get_mut(position) else { return };
        let before = entry.clone();
        change(entry);
        let after = entry.clone();
        if before.is_waiting() {
            sandbox.waiting -= 1;
            sandbox.waiting_work -= before.estimate;
        }
        if after.is_waiting() {
            sandbox.waiting += 1;
            sandbox.waiting_work += after.estimate;
        }
        self.discount(number, &before);
        self.count(number, &after);
    }

    fn count(&mut self, number: u32, entry: &Entry) {
        self.active += usize::from(!entry.abandoned);
        self.recalled += usize::from(entry.recalled);
        if entry.is_waiting() {
            self.waiting_work += u128::from(entry.estimate);
        }
        if entry.is_running() {
            self.running_work += u128::from(entry.estimate);
        }
        if let Some(at) = entry.hedge_at {
            self.hedges.insert((at, entry.test, number));
        }
    }

    fn discount(&mut self, number: u32, entry: &Entry) {
        self.active -= usize::from(!entry.abandoned);
        self.recalled -= usize::from(entry.recalled);
        if entry.is_waiting() {
            self.waiting_work -= u128::from(entry.estimate);
        }
        if entry.is_running() {
            self.running_work -= u128::from(entry.estimate);
        }
        if let Some(at) = entry.hedge_at {
            self.hedges.remove(&(at, entry.test, number));
        }
    }

    /// Says whether a sandbox is left to run dry.
    pub fn set_draining(&mut self, number: u32, draining: bool) {
        let Some(sandbox) = self.get_mut(number) else { return };
        let before = std::mem::replace(&mut sandbox.draining, draining);
        self.draining = self.draining - usize::from(before) + usize::from(draining);
    }

    /// Sorts a sandbox in anew after its queue has changed. `gives`: whether tests can be taken back at all.
    pub fn refresh(&mut self, number: u32, gives: bool, now: Nanos) {
        let Some(sandbox) = self.all.get_mut(number as usize).and_then(Option::as_mut) else { return };
        let donor = (gives && sandbox.can_give()).then(|| {
            // One that has not started by now will soon.
            let first = sandbox.queue.front().filter(|first| first.started.is_none());
            let soon = if first.is_some() { sandbox.round_trip } else { 0 };
            let running = sandbox.queue.front().and_then(|first| Some(first.started?.saturating_add(first.estimate)));
            running.unwrap_or(now).saturating_add(soon).saturating_add(sandbox.waiting_work)
        });
        if donor != sandbox.donor {
            if let Some(old) = std::mem::replace(&mut sandbox.donor, donor) {
                self.donors.remove(&(old, number));
            }
            self.donors.extend(donor.map(|key| (key, number)));
        }
        if sandbox.queue.is_empty() {
            if sandbox.ready && !sandbox.distrusted {
                self.idle.insert(number);
            }
        } else {
            self.idle.remove(&number);
        }
    }

    /// Remembers that a busy sandbox may want more tests now.
    pub fn look_at(&mut self, number: u32) {
        let Some(sandbox) = self.all.get_mut(number as usize).and_then(Option::as_mut) else { return };
        if !sandbox.queue.is_empty() && !std::mem::replace(&mut sandbox.dirty, true) {
            self.dirty.push_back(number);
        }
    }

    /// There is nothing for a busy sandbox now; if it wants something, it is offered what comes next.
    pub fn remember_hungry(&mut self, number: u32) {
        let Some(sandbox) = self.all.get_mut(number as usize).and_then(Option::as_mut) else { return };
        if sandbox.is_hungry() && !std::mem::replace(&mut sandbox.hungry, true) {
            self.hungry.push_back(number);
        }
    }

    /// A busy sandbox that wanted more when there was nothing.
    pub fn next_hungry(&mut self) -> Option<u32> {
        loop {
            let number = self.hungry.pop_front()?;
            if let Some(sandbox) = self.get_mut(number) {
                sandbox.hungry = false;
                if !sandbox.is_empty() {
                    return Some(number);
                }
            }
        }
    }

    /// A busy sandbox that has changed since it was last looked at.
    pub fn next_dirty(&mut self) -> Option<u32> {
        loop {
            let number = self.dirty.pop_front()?;
            if let Some(sandbox) = self.get_mut(number) {
                sandbox.dirty = false;
                return Some(number);
            }
        }
    }
}
