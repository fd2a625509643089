//! Ending a run early, from outside: a value that is passed down, not a global.

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
}

impl CancelHandle {
    pub(super) fn new() -> Self {
        Self { sender: Arc::new(watch::Sender::new(Urgency::None)) }
    }

    /// Asks the run to end: the first time nothing more is started and running tests are ended, the second time they
    /// are killed at once. Reports are written either way.
    pub fn cancel(&self) {
        self.sender.send_modify(|urgency| {
            *urgency = if *urgency == Urgency::None { Urgency::Soon } else { Urgency::Now };
        });
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Urgency> {
        self.sender.subscribe()
    }
}
