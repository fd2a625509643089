//! What a worker's thread and its owner share: the queue, what runs, and what is to end.
//!
//! Taking tests back and cancelling queued ones happens here, on the caller's thread and under the lock, so neither waits
//! for the test that runs.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::LibtestOptions;
use crate::framework::{Isolation, TestResult};
use crate::worker::{Message, PROTOCOL_VERSION, Request, RunItem, TestKey, Unit, UnitKey};

/// Shared by a worker's thread and its owner.
pub(super) struct Mailbox {
    state: Mutex<State>,
    /// Something to do, or the end.
    changed: Condvar,
    /// Written to when the process that runs may have to be ended; the thread polls the other end.
    wake: UnixStream,
    woken: UnixStream,
}

/// What is behind the lock.
#[derive(Default)]
struct State {
    queue: VecDeque<RunItem>,
    /// Tests in the queue of which it was said that they have started, in a process that ended before they did.
    started: HashSet<TestKey>,
    units: HashMap<UnitKey, Arc<Unit>>,
    /// The tests that the running process is to execute and that have no result yet.
    active: Vec<Active>,
    isolation: Isolation,
    no_capture: bool,
    /// A failure gives the queue back.
    yield_on_failure: bool,
    /// A test has failed, and the queue is to be given back.
    yielding: bool,
    /// End once the queue is empty.
    shutdown: bool,
    /// End now.
    stop: bool,
    /// End the running process without grace.
    kill: bool,
    /// Why the worker ends, if not because it was told to.
    farewell: Option<String>,
}

/// A test that has been handed to a process.
struct Active {
    key: TestKey,
    /// It is known that this is the test that executes at the moment.
    executing: bool,
    cancelled: bool,
    /// It runs after others in one process, and whoever gave it wants it back although it is too late for the queue.
    recalled: bool,
    /// Ending the process for its sake costs none of the others more than another start.
    recallable: bool,
}

impl Active {
    fn is_unwanted(&self) -> bool {
        self.cancelled || self.recalled
    }
}

/// What a worker's thread does next.
pub(super) struct Work {
    pub(super) items: Vec<RunItem>,
    pub(super) unit: Result<Arc<Unit>, UnitKey>,
    pub(super) together: Together,
    pub(super) isolation: Isolation,
    pub(super) no_capture: bool,
    /// A failure gives back what has not run.
    pub(super) yields_on_failure: bool,
}

/// How soon the running process has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Continue,
    /// Its tests have their results: it is ending, and whatever it does last (removing files, writing coverage) it may.
    Finish,
    /// Politely at first.
    End,
    Kill,
}

impl Mailbox {
    pub(super) fn new(options: &LibtestOptions) -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let LibtestOptions { isolation, no_capture, yield_on_failure, .. } = *options;
        let state = State { isolation, no_capture, yield_on_failure, ..State::default() };
        Ok(Self { state: Mutex::new(state), changed: Condvar::new(), wake, woken })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is complete in itself, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Acts on a request; returns the message that answers it at once.
    pub(super) fn accept(&self, request: Request) -> Option<Message> {
        let mut state = self.lock();
        let answer = match request {
            Request::Init { version, nonce, isolation, no_capture, yield_on_failure, .. } => {
                if version == PROTOCOL_VERSION {
                    state.isolation = isolation;
                    state.no_capture = no_capture;
                    state.yield_on_failure = yield_on_failure;
                    Some(Message::Ready { nonce })
                } else {
                    state.stop = true;
                    state.farewell = Some(format!(
                        "this worker speaks version {PROTOCOL_VERSION} of the worker protocol, the orchestrator \
                         version {version}; install the same version of offload on both sides"
                    ));
                    self.wake();
                    None
                }
            }
            Request::Define { key, unit } => {
                state.units.insert(key, unit);
                None
            }
            Request::Run { tests } => {
                for test in &tests {
                    state.started.remove(&test.key);
                }
                state.queue.extend(tests);
                None
            }
            Request::TakeBack { tests } => {
                let taken = state.dequeue(&tests);
                if taken.len() < tests.len() {
                    for active in state.active.iter_mut().filter(|active| active.recallable) {
                        active.recalled |= tests.contains(&active.key);
                    }
                    self.wake();
                }
                Some(Message::TakenBack { tests: taken })
            }
            Request::Cancel { tests } => {
                let all = tests.is_empty();
                let taken =
                    if all { state.queue.drain(..).map(|item| item.key).collect() } else { state.dequeue(&tests) };
                for active in &mut state.active {
                    active.cancelled |= all || tests.contains(&active.key);
                }
                self.wake();
                (!taken.is_empty()).then_some(Message::TakenBack { tests: taken })
            }
            Request::Shutdown => {
                state.shutdown = true;
                None
            }
            Request::Alive => None,
        };
        drop(state);
        self.changed.notify_one();
        answer
    }

    /// Ends the worker: the running process too, and without grace if `kill`.
    pub(super) fn stop(&self, kill: bool) {
        let mut state = self.lock();
        state.stop = true;
        state.kill |= kill;
        drop(state);
        self.changed.notify_one();
        self.wake();
    }

    fn wake(&self) {
        // A full pipe has woken the thread already.
        let _ = (&self.wake).write(&[0]);
    }

    /// Readable when [`Self::verdict`] may have changed.
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.woken.as_fd()
    }

    /// Whether the running process has to end. Makes [`Self::wake_fd`] unreadable first.
    pub(super) fn verdict(&self) -> Verdict {
        let mut bytes = [0; 64];
        while matches!((&self.woken).read(&mut bytes), Ok(64)) {}
        let state = self.lock();
        if state.kill {
            Verdict::Kill
        } else if state.active.is_empty() {
            Verdict::Finish
        } else if state.stop
            || state.active.iter().all(Active::is_unwanted)
            || state.active.iter().any(|active| active.cancelled && active.executing)
        {
            Verdict::End
        } else {
            Verdict::Continue
        }
    }

    /// Waits until there is something in the queue; `false` when there will be nothing more.
    pub(super) fn wait_for_work(&self) -> bool {
        let mut state = self.lock();
        loop {
            if state.stop {
                return false;
            }
            if !state.queue.is_empty() {
                return true;
            }
            if state.shutdown {
                return false;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// How many tests wait.
    pub(super) fn queued(&self) -> usize {
        self.lock().queue.len()
    }

    /// Whether there is nothing to start any more, so that whoever waits for a permit can give up.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.lock();
        state.stop || state.queue.is_empty()
    }

    /// Takes the next test off the queue, or those next ones that one process can run. `None` when the queue has become
    /// empty or the worker is to end. What is taken is active from now on.
    pub(super) fn take(&self, together: impl Fn(Isolation, &Unit, UnitKey) -> Together) -> Option<Work> {
        let mut state = self.lock();
        if state.stop {
            return None;
        }
        let first = state.queue.pop_front()?;
        let Some(unit) = state.units.get(&first.unit).cloned() else {
            let unit = Err(first.unit);
            state.activate(&first, true, false);
            return Some(state.work(vec![first], unit, Together::One));
        };
        let how =
            if state.wants_process(&first) { Together::One } else { together(state.isolation, &unit, first.unit) };
        let mut items = vec![first];
        match how {
            Together::One => {}
            Together::All | Together::UpTo(_) => {
                let bytes = if let Together::UpTo(bytes) = how { bytes } else { usize::MAX };
                let mut used = items[0].name.len() + 1;
                while let Some(next) = state.queue.front()
                    && next.unit == items[0].unit
                    && used + next.name.len() < bytes
                    && (how == Together::All || !state.wants_process(next))
                {
                    used += next.name.len() + 1;
                    items.extend(state.queue.pop_front());
                }
            }
        }
        let alone = items.len() == 1;
        for item in &items {
            state.activate(item, alone, matches!(how, Together::UpTo(_)) && !alone);
        }
        Some(state.work(items, Ok(unit), how))
    }

    /// The last message of the worker. Nothing waits for tests in the queue any more.
    pub(super) fn farewell(&self) -> Message {
        Message::Bye { reason: self.lock().farewell.take() }
    }

    /// Notes that the running process executes this test now.
    pub(super) fn executing(&self, key: TestKey) {
        let mut state = self.lock();
        if let Some(active) = state.active.iter_mut().find(|active| active.key == key) {
            active.executing = true;
            if active.cancelled {
                // It was cancelled while it waited for its turn within the process.
                self.wake();
            }
        }
    }

    /// Puts tests back to the front of the queue that the process did not get to. Returns those that were cancelled or
    /// asked for meanwhile, or are not wanted any more because the worker ends.
    pub(super) fn put_back(&self, items: Vec<RunItem>) -> Vec<TestKey> {
        let mut state = self.lock();
        let mut dropped = Vec::new();
        for item in items.into_iter().rev() {
            let unwanted = state.deactivate(item.key).is_some_and(|active| active.is_unwanted());
            if unwanted || state.stop {
                dropped.push(item.key);
            } else {
                state.queue.push_front(item);
            }
        }
        dropped.reverse();
        dropped
    }

    /// Notes that it was said of these, which go back to the queue, that they have started.
    pub(super) fn note_started(&self, keys: impl Iterator<Item = TestKey>) {
        self.lock().started.extend(keys);
    }

    /// Whether it was said of a test, which is no longer in the queue, that it has started.
    pub(super) fn has_started(&self, key: TestKey) -> bool {
        self.lock().started.remove(&key)
    }

    /// The message that ends a test: its result, unless it was cancelled.
    pub(super) fn finish(&self, key: TestKey, result: TestResult) -> Message {
        let mut state = self.lock();
        let cancelled = state.deactivate(key).is_some_and(|active| active.cancelled);
        if !state.active.is_empty() && state.active.iter().all(Active::is_unwanted) {
            // What is left of the process's work is of no use.
            self.wake();
        }
        if cancelled {
            Message::TakenBack { tests: vec![key] }
        } else {
            state.yielding |= state.yield_on_failure && result.outcome.is_failure();
            Message::Finished { key, result: Box::new(result) }
        }
    }

    /// After a failure, the message that gives back the rest of the queue, where that is wanted.
    pub(super) fn yield_queue(&self) -> Option<Message> {
        let mut state = self.lock();
        if !std::mem::take(&mut state.yielding) || state.queue.is_empty() {
            return None;
        }
        Some(Message::TakenBack { tests: state.queue.drain(..).map(|item| item.key).collect() })
    }

    /// The message that ends a test that was ended on request.
    pub(super) fn give_back(&self, key: TestKey) -> Message {
        self.lock().deactivate(key);
        Message::TakenBack { tests: vec![key] }
    }
}

/// How many tests of a unit one process takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Together {
    One,
    /// All that come next, which start at the same time.
    All,
    /// One after the other, as many as have names of this many bytes in total.
    UpTo(usize),
}

impl State {
    fn work(&self, items: Vec<RunItem>, unit: Result<Arc<Unit>, UnitKey>, together: Together) -> Work {
        let Self { isolation, no_capture, yield_on_failure: yields_on_failure, .. } = *self;
        Work { items, unit, together, isolation, no_capture, yields_on_failure }
    }

    /// Whether a test gets a process of its own although others share one: earlier runs say so, it has failed already, or
    /// its output is to be seen while it runs.
    fn wants_process(&self, item: &RunItem) -> bool {
        self.isolation == Isolation::Auto && (item.alone || item.attempt > 1 || self.no_capture)
    }

    /// Removes tests from the queue; returns those that were there.
    fn dequeue(&mut self, keys: &[TestKey]) -> Vec<TestKey> {
        let mut taken = Vec::new();
        self.queue.retain(|item| {
            let wanted = keys.contains(&item.key);
            if wanted {
                taken.push(item.key);
            }
            !wanted
        });
        taken
    }

    fn activate(&mut self, item: &RunItem, executing: bool, recallable: bool) {
        self.active.push(Active { key: item.key, executing, cancelled: false, recalled: false, recallable });
    }

    /// Forgets an active test.
    fn deactivate(&mut self, key: TestKey) -> Option<Active> {
        let at = self.active.iter().position(|active| active.key == key)?;
        Some(self.active.swap_remove(at))
    }
}
