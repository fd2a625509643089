//! Rest between bursts of messages.
//!
//! The orchestrator's thread shares its processors with the workers. When tests take less than a millisecond, it would be
//! woken for every message of every worker: each time the worker pays for the wake-up, and often loses its processor to
//! it. Under such a load the thread sleeps a little before it looks again, and finds many messages at once. Workers know
//! of tests some milliseconds ahead, so none of them waits for the sleeper.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long one rest is. Well below how far ahead workers are told of tests.
const REST: Duration = Duration::from_millis(1);
/// There is a rest while messages are this close together.
const BUSY: Duration = Duration::from_micros(700);
/// What is taken for the distance of messages before any has come: too long for a rest.
const IDLE: Duration = Duration::from_millis(20);

thread_local! {
    static WAITS: Cell<Waits> = const { Cell::new(Waits { since: None, mean: IDLE }) };
}

/// How long the thread has waited for messages.
#[derive(Clone, Copy)]
struct Waits {
    /// When it began to wait.
    since: Option<Instant>,
    /// Of the last few times, the recent ones counting most.
    mean: Duration,
}

/// To be called when this thread has nothing more to do and is going to wait. Rests, if messages come thick and fast.
pub fn before_waiting() {
    WAITS.with(|waits| {
        let mut now = waits.get();
        if now.mean < BUSY {
            std::thread::sleep(REST);
        }
        now.since = Some(Instant::now());
        waits.set(now);
    });
}

/// To be called when it has something to do again.
pub fn after_waiting() {
    WAITS.with(|waits| {
        let mut now = waits.get();
        if let Some(since) = now.since.take() {
            now.mean = (now.mean * 7 + since.elapsed().min(IDLE)) / 8;
        }
        waits.set(now);
    });
}
