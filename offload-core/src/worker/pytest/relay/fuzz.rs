//! What holds for anything that a relay may send.

#![allow(clippy::expect_used, reason = "a promise that does not hold is to panic")]

use std::collections::BTreeMap;

use super::{Heard, Stream};
use crate::fuzzing::{pieces, split_first};
use crate::provider::{Channel, ExecEvent};

/// However a stream is cut, the same comes of it: what the relay says itself, and what each connection says.
pub fn relay(input: &[u8]) {
    let (seed, bytes) = split_first(input);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    let whole = hear(std::iter::once(bytes));
    assert_eq!(whole, hear(pieces(seed, bytes)), "it depends on where the stream is cut");
}

/// What the relay has said, what each connection has said, and why the stream is of no use any more.
type All = (Vec<String>, BTreeMap<usize, Vec<String>>, Option<String>);

fn hear<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> All {
    let channel = Channel { input: Box::pin(tokio::io::sink()), output: Box::pin(Silence) };
    let mut stream = Stream::over(channel);
    let (mut words, mut links, mut end) = (Vec::new(), Vec::new(), None);
    for piece in pieces {
        end = stream.on_event(Some(Ok(ExecEvent::Stdout(piece.to_vec())))).err();
        if end.is_some() {
            break;
        }
    }
    for heard in std::mem::take(&mut stream.heard) {
        match heard {
            Heard::Connected(link) => links.push(link),
            other => words.push(format!("{other:?}")),
        }
    }
    stream.fail("it is over");
    let said = links.into_iter().enumerate().map(|(number, mut link)| {
        let mut said = Vec::new();
        loop {
            match link.next_arrived() {
                Ok(None) => break,
                Ok(Some(message)) => said.push(format!("{message:?}")),
                Err(error) => said.push(error.to_string()),
            }
        }
        (number, said)
    });
    (words, said.collect(), end)
}

/// Output that never comes.
struct Silence;

impl futures_core::Stream for Silence {
    type Item = crate::provider::ProviderResult<ExecEvent>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Pending
    }
}
