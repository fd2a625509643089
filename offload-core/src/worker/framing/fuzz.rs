//! What holds for any stream of the worker protocol.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{BANNER_TAIL, Decoder, FrameError, encode};
use crate::fuzzing::{pieces, split_first};
use crate::worker::{Message, Request};

/// The longest line here.
const MAX_LINE: usize = 1000;

/// However a stream is cut, the same messages and errors come of it, and it takes no memory to speak of. What was
/// read is written and read again the same.
pub fn worker_frames(input: &[u8]) {
    let (seed, bytes) = split_first(input);
    check::<Message>(&Decoder::new, seed, bytes);
    check::<Message>(&|| Decoder::after_ready("n"), seed, bytes);
    check::<Request>(&Decoder::new, seed, bytes);
}

fn check<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(
    decoder: &dyn Fn() -> Decoder,
    seed: u8,
    bytes: &[u8],
) {
    let new = || decoder().with_max_line(MAX_LINE);
    let whole = read::<T>(new(), std::iter::once(bytes));
    assert_eq!(whole, read::<T>(new(), pieces(seed, bytes)), "it depends on where the stream is cut");
    for message in whole.iter().flatten() {
        let again = read::<T>(Decoder::new(), std::iter::once(written(message).as_slice()));
        let [Ok(again)] = again.as_slice() else {
            return assert!(again.is_empty(), "{message:?} is read as {again:?}");
        };
        // Times are written as microseconds.
        assert_eq!(written(message), written(again), "{message:?} is read as {again:?}");
    }
}

fn written<T: Serialize>(message: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(message, &mut bytes);
    bytes
}

fn read<'a, T: DeserializeOwned>(
    mut decoder: Decoder,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> Vec<Result<T, FrameError>> {
    let mut read = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        while let Some(message) = decoder.next_message().transpose() {
            read.push(message);
        }
        let most = if decoder.awaited.is_some() { 2 * BANNER_TAIL } else { MAX_LINE };
        assert!(
            decoder.buffer.len() - decoder.start <= most.max(piece.len()),
            "{} bytes are kept",
            decoder.buffer.len()
        );
    }
    read
}
