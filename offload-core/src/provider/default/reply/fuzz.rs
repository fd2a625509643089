//! Replies, for those who check what holds for any output.

use super::{ExecEvent, State, Unwrap, VecDeque};

/// What comes of a command's standard output; neighbouring pieces are put together.
pub(crate) fn unwrapped(pieces: &mut dyn Iterator<Item = &[u8]>, exit: Option<i32>) -> Vec<ExecEvent> {
    let inner = Box::pin(Nothing);
    let mut reply = Unwrap { inner, state: State::Undecided, held: Vec::new(), ready: VecDeque::new() };
    pieces.for_each(|piece| reply.take(ExecEvent::Stdout(piece.to_vec())));
    reply.take(ExecEvent::Exit(exit));
    let mut events: Vec<ExecEvent> = Vec::new();
    for event in reply.ready {
        match (events.last_mut(), event) {
            (Some(ExecEvent::Stdout(before)), ExecEvent::Stdout(more)) => before.extend(more),
            (_, event) => events.push(event),
        }
    }
    events
}

struct Nothing;

impl futures_core::Stream for Nothing {
    type Item = crate::provider::ProviderResult<ExecEvent>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Ready(None)
    }
}
