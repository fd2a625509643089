//! Ending a run early, from outside: values that are passed down, not globals.

use std::sync::Arc;

use tokio::sync::watch;

/// How urgently a run is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum Urgency {
    /// Not at all.
    #[default]
    None,
    /// End running tests decently, write every report.
    Soon,
    /// Kill what runs.
    Now,
}

/// Ends a run. Clones end the same run.
#[derive(Debug, Clone)]
pub struct CancelHandle {
    sender: Arc<watch::Sender<Urgency>>,
    /// The number of the last test that may still be started.
    last: Arc<watch::Sender<u32>>,
}

impl CancelHandle {
    pub(super) fn new() -> Self {
        Self { sender: Arc::new(watch::Sender::new(Urgency::None)), last: Arc::new(watch::Sender::new(u32::MAX)) }
    }

    /// Asks the run to end: the first time nothing more is started and running tests are ended, the second time they
    /// are killed at once. Reports are written either way.
    pub fn cancel(&self) {
        self.sender.send_modify(|urgency| {
            *urgency = if *urgency == Urgency::None { Urgency::Soon } else { Urgency::Now };
        });
    }

    /// Asks the run to start no test with a larger number than `last`. Tests that run may end and count. Asked several
    /// times, the smallest number counts.
    pub fn stop_after(&self, last: u32) {
        self.last.send_if_modified(|known| {
            let earlier = last < *known;
            *known = last.min(*known);
            earlier
        });
    }

    pub(super) fn last_test(&self) -> watch::Receiver<u32> {
        self.last.subscribe()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Urgency> {
        self.sender.subscribe()
    }
}
