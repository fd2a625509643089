//! The process groups of the tests that run on this machine, for what concerns all of them.
//!
//! Tests are in groups of their own, so that each can be ended with what it has started. What the terminal tells this
//! process's group, that it is to stop for example, has to be passed on.

use std::sync::{Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process_group};

static GROUPS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// A group of a test, or of a process that runs tests, begins.
pub(super) fn enter(group: Pid) {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner).push(group);
}

/// A group has ended.
pub(super) fn leave(group: Pid) {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner).retain(|known| *known != group);
}

/// Stops all tests that run on this machine, until [`continue_tests`].
pub fn stop_tests() {
    signal_all(Signal::STOP);
}

/// Has tests go on that were stopped.
pub fn continue_tests() {
    signal_all(Signal::CONT);
}

fn signal_all(signal: Signal) {
    for &group in GROUPS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        // It fails for a group that has just ended.
        let _ = kill_process_group(group, signal);
    }
}
