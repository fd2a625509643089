//! What a command does, for whoever waits for it: a stream whose end, if nobody waits any more, ends the command.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::sync::{mpsc, oneshot, watch};

use super::{ExecEvent, ProviderResult};

/// The events of a command. Dropping it before the last one ends the command.
pub(super) struct Awaited {
    events: mpsc::Receiver<ProviderResult<ExecEvent>>,
    /// The last event was taken.
    ended: bool,
    /// Hears at last whether it was.
    dropped: Option<oneshot::Sender<bool>>,
    /// How many commands of the sandbox are being ended, where the next one must not start before that.
    ending: Option<watch::Sender<usize>>,
}

impl Awaited {
    /// `dropped` hears at last whether the last event was taken; if not, the command is in `ending` until
    /// [`seen_to`] takes it out.
    pub(super) fn new(
        events: mpsc::Receiver<ProviderResult<ExecEvent>>,
        dropped: oneshot::Sender<bool>,
        ending: Option<watch::Sender<usize>>,
    ) -> Self {
        Self { events, ended: false, dropped: Some(dropped), ending }
    }
}

/// A command that was dropped has been ended.
pub(super) fn seen_to(ending: &watch::Sender<usize>) {
    ending.send_modify(|ending| *ending = ending.saturating_sub(1));
}

impl Stream for Awaited {
    type Item = ProviderResult<ExecEvent>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.events.poll_recv(cx);
        if matches!(polled, Poll::Ready(None | Some(Ok(ExecEvent::Exit(_)) | Err(_)))) {
            self.ended = true;
        }
        polled
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if let (false, Some(ending)) = (self.ended, &self.ending) {
            // Counted here and now: the next command must not start before this one has been seen to.
            ending.send_modify(|ending| *ending += 1);
        }
        if let Some(dropped) = self.dropped.take() {
            let _ = dropped.send(self.ended);
        }
    }
}
