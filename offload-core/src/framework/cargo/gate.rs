//! Shares the machine between a running build and the tests that can already start.
//!
//! Cargo and rustc take their turns from a jobserver; while the build runs, a test takes a token from the same pool.
//! Strict sharing would let sleeping tests starve the build and rustc starve the tests, so one test at a time, on
//! whichever slot, runs without a token: of N tokens at most N + 1 processes work at once. After the build every test
//! starts at once.
//!
//! Tokens are read from the pipe by one helper thread, because only a thread can wait for a pipe that rustc waits for
//! too, and slots must stay wakeable when a run is cancelled. Who the tests are is none of this module's business.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::{io, thread};

use jobserver::{Acquired, Client};

use super::outputs::Outputs;
use crate::worker::{StartGate, StartPermit};

/// What tests pass while a build may be going on.
#[derive(Default)]
pub(super) struct BuildGate {
    /// Whether a build is going on. Read on every start of a test, so that an open gate costs one load.
    building: AtomicBool,
    /// The pool of the build that is going on.
    pool: Mutex<Option<Arc<Pool>>>,
    /// What it has still to finish.
    pub(super) outputs: Outputs,
}

impl BuildGate {
    /// Closes the gate for a build that may use `jobs` processes at once. Dropping the guard opens it again.
    pub(super) fn close(self: &Arc<Self>, jobs: usize) -> io::Result<BuildGuard> {
        let client = Client::new(jobs.max(1))?;
        // Cargo counts itself as the holder of one token that it never takes from the pool.
        client.acquire()?.drop_without_releasing();
        let pool = Arc::new(Pool { client, state: Mutex::default(), slots: Condvar::new(), helper: Condvar::new() });
        *lock(&self.pool) = Some(pool.clone());
        self.building.store(true, Ordering::Release);
        Ok(BuildGuard { gate: self.clone(), pool })
    }

    /// The pool, without a lock that whoever waits in it would hold.
    fn pool(&self) -> Option<Arc<Pool>> {
        lock(&self.pool).clone()
    }
}

impl StartGate for BuildGate {
    fn pass(&self, _slot: usize, give_up: &dyn Fn() -> bool) -> StartPermit {
        if self.is_open() {
            return StartPermit::default();
        }
        match self.pool() {
            Some(pool) => pool.pass(give_up),
            None => StartPermit::default(),
        }
    }

    fn is_open(&self) -> bool {
        !self.building.load(Ordering::Acquire)
    }

    fn sightings(&self) -> u64 {
        self.outputs.sightings()
    }

    fn wake(&self) {
        if let Some(pool) = self.pool() {
            // Taking the lock orders this after the check of whoever is about to wait.
            drop(lock(&pool.state));
            pool.slots.notify_all();
        }
    }
}

/// A build that is going on. Dropping it opens the gate and wakes everybody who waits there.
pub(super) struct BuildGuard {
    gate: Arc<BuildGate>,
    pool: Arc<Pool>,
}

impl BuildGuard {
    /// Has `command` take part in the pool.
    pub(super) fn configure(&self, command: &mut Command) {
        self.pool.client.configure(command);
    }
}

impl Drop for BuildGuard {
    fn drop(&mut self) {
        let mut current = lock(&self.gate.pool);
        if current.as_ref().is_some_and(|pool| Arc::ptr_eq(pool, &self.pool)) {
            self.gate.building.store(false, Ordering::Release);
            *current = None;
        }
        drop(current);
        self.pool.open();
    }
}

/// The tokens of one build and who waits for them.
struct Pool {
    client: Client,
    state: Mutex<PoolState>,
    /// Slots wait here.
    slots: Condvar,
    /// The helper thread waits here for somebody to want a token.
    helper: Condvar,
}

#[derive(Default)]
struct PoolState {
    /// The build is over: nobody waits any more.
    open: bool,
    /// A test runs without a token.
    free_taken: bool,
    /// Tokens for slots that wait.
    granted: Vec<Acquired>,
    /// Slots that wait.
    waiting: usize,
    /// The helper thread was started.
    helper_started: bool,
    /// The helper thread reads from the pipe.
    helper_reading: bool,
}

impl Pool {
    fn pass(self: &Arc<Self>, give_up: &dyn Fn() -> bool) -> StartPermit {
        let mut state = lock(&self.state);
        state.waiting += 1;
        let permit = loop {
            if state.open || give_up() {
                break StartPermit::default();
            }
            if !state.free_taken {
                state.free_taken = true;
                break StartPermit::holding(FreeSlot(self.clone()));
            }
            if let Some(token) = state.granted.pop() {
                break StartPermit::holding(token);
            }
            if state.helper_started {
                self.helper.notify_one();
            } else {
                state.helper_started = true;
                let pool = self.clone();
                let helper = thread::Builder::new().name("jobserver".to_owned()).spawn(move || pool.fetch_tokens());
                if let Err(error) = helper {
                    // Without the helper tests share the slot that needs no token; nothing is lost but speed.
                    tracing::warn!(%error, "cannot start the thread that waits for build tokens");
                }
            }
            state = self.slots.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.waiting -= 1;
        // A token that was meant for a slot that needs none any more goes back to the build.
        let spare = state.granted.len().saturating_sub(state.waiting);
        let spare = state.granted.drain(..spare).collect::<Vec<_>>();
        drop(state);
        drop(spare);
        permit
    }

    /// The helper thread: reads a token for each slot that waits, until the build is over.
    fn fetch_tokens(&self) {
        let mut state = lock(&self.state);
        loop {
            if state.open {
                return;
            }
            if state.waiting <= state.granted.len() {
                state = self.helper.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.helper_reading = true;
            drop(state);
            let token = self.client.acquire();
            state = lock(&self.state);
            state.helper_reading = false;
            match token {
                Ok(token) if !state.open && state.waiting > state.granted.len() => {
                    state.granted.push(token);
                    self.slots.notify_all();
                }
                // Nobody needs it any more: back to the build at once.
                Ok(token) => drop(token),
                Err(error) => {
                    tracing::warn!(%error, "cannot read build tokens; tests share one slot until the build is over");
                    return;
                }
            }
        }
    }

    fn open(&self) {
        let mut state = lock(&self.state);
        state.open = true;
        let granted = std::mem::take(&mut state.granted);
        if state.helper_reading
            && let Err(error) = self.client.release_raw()
        {
            // The token ends the helper's wait even if a killed rustc took all others with it.
            tracing::warn!(%error, "cannot end the wait for build tokens");
        }
        drop(state);
        drop(granted);
        self.slots.notify_all();
        self.helper.notify_all();
    }
}

/// The slot that needs no token. Dropping it lets the next test have it.
struct FreeSlot(Arc<Pool>);

impl Drop for FreeSlot {
    fn drop(&mut self) {
        lock(&self.0.state).free_taken = false;
        self.0.slots.notify_all();
    }
}

/// No invariant spans a panic here, so a poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn never() -> bool {
        false
    }

    #[test]
    fn without_a_build_nothing_holds_a_test_back() {
        let gate = BuildGate::default();
        assert!(!gate.pass(0, &never).holds_token());
    }

    #[test]
    fn one_test_needs_no_token_and_the_rest_share_the_pool_with_cargo() {
        let gate = Arc::new(BuildGate::default());
        let build = gate.close(2).unwrap();
        let first = gate.pass(0, &never);
        let second = gate.pass(1, &never);
        assert!(first.holds_token() && second.holds_token());
        assert_eq!(build.pool.client.available().unwrap(), 0, "one token is Cargo's own, one the second test's");

        let (sender, started) = mpsc::channel();
        let waiter = thread::spawn({
            let gate = gate.clone();
            move || {
                let permit = gate.pass(2, &never);
                sender.send(()).unwrap();
                drop(permit);
            }
        });
        assert!(started.try_recv().is_err(), "the third test has to wait");
        drop(second);
        started.recv().unwrap();
        waiter.join().unwrap();
        drop(first);
        assert!(gate.pass(0, &never).holds_token());
    }

    #[test]
    fn the_end_of_the_build_frees_everybody_even_if_tokens_were_lost() {
        let gate = Arc::new(BuildGate::default());
        let build = gate.close(2).unwrap();
        // A rustc that was killed while it held the last token.
        build.pool.client.acquire().unwrap().drop_without_releasing();
        let free = gate.pass(0, &never);
        let waiters: Vec<_> = (1..4)
            .map(|slot| {
                let gate = gate.clone();
                thread::spawn(move || gate.pass(slot, &never).holds_token())
            })
            .collect();
        drop(build);
        for waiter in waiters {
            assert!(!waiter.join().unwrap());
        }
        drop(free);
        assert!(!gate.pass(0, &never).holds_token());
    }

    #[test]
    fn a_cancelled_slot_stops_waiting() {
        let gate = Arc::new(BuildGate::default());
        let _build = gate.close(1).unwrap();
        let _free = gate.pass(0, &never);
        let cancelled = Arc::new(AtomicBool::new(false));
        let (sender, asked) = mpsc::channel();
        let waiter = thread::spawn({
            let (gate, cancelled) = (gate.clone(), cancelled.clone());
            move || {
                let give_up = move || {
                    let _ = sender.send(());
                    cancelled.load(Ordering::Relaxed)
                };
                gate.pass(1, &give_up).holds_token()
            }
        });
        asked.recv().unwrap();
        cancelled.store(true, Ordering::Relaxed);
        gate.wake();
        assert!(!waiter.join().unwrap());
    }
}
