//! Newline-delimited JSON for the worker protocol: messages to bytes, and bytes, however they were cut, to messages.
//!
//! What comes from a sandbox is untrusted. A [`Decoder`] bounds the length of a line, ignores fields that it does not
//! know, discards what login shells print before the session begins, and turns everything else that is not a message
//! into a [`FrameError`] that quotes the offending line. It never panics and does no I/O: whoever owns the stream feeds
//! it.

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Message;

/// The longest line that a [`Decoder`] accepts unless told otherwise: room for a result with all its output.
pub const DEFAULT_MAX_LINE: usize = 64 << 20;

/// How much of an unfinished line before the `ready` message is kept: much more than that message is long.
const BANNER_TAIL: usize = 64 << 10;

/// How much of an offending line an error quotes, in characters.
const QUOTED: usize = 120;

/// A stream that does not follow the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A line is no message.
    #[error("a line of the worker protocol is not a valid message ({reason}): {line}")]
    Malformed {
        /// The line, shortened.
        line: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A line is longer than allowed. The rest of it will be skipped.
    #[error("a line of the worker protocol is longer than the limit of {limit} bytes; it begins: {line}")]
    TooLong {
        /// The beginning of the line.
        line: String,
        /// The limit in bytes.
        limit: usize,
    },
}

/// Appends `message` to `into` as one line.
pub fn encode<T: Serialize>(message: &T, into: &mut Vec<u8>) {
    let before = into.len();
    // Writing to a vector cannot fail, and the protocol's types have string keys only. Should a type ever break that
    // rule, an absent line is better than half of one.
    match serde_json::to_writer(&mut *into, message) {
        Ok(()) => into.push(b'\n'),
        Err(error) => {
            into.truncate(before);
            tracing::error!(%error, "a message of the worker protocol cannot be written as JSON");
        }
    }
}

/// Turns a stream of bytes back into messages.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Where the line that comes next begins in `buffer`; what is before is done with.
    start: usize,
    /// Up to where `buffer` is known to hold no line end.
    scanned: usize,
    max_line: usize,
    /// The nonce of the `ready` message that opens the session, until it has come.
    awaited: Option<String>,
    /// Whether the rest of a line that was too long is still to come.
    skipping: bool,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder for a stream on which everything is protocol.
    pub fn new() -> Self {
        Self { buffer: Vec::new(), start: 0, scanned: 0, max_line: DEFAULT_MAX_LINE, awaited: None, skipping: false }
    }

    /// A decoder for a stream whose session opens with a [`Message::Ready`] that carries `nonce`: everything before that
    /// message is discarded, even on the same line.
    pub fn after_ready(nonce: impl Into<String>) -> Self {
        Self { awaited: Some(nonce.into()), ..Self::new() }
    }

    /// The same decoder with another limit on the length of a line, in bytes.
    #[must_use]
    pub fn with_max_line(mut self, max_line: usize) -> Self {
        self.max_line = max_line;
        self
    }

    /// Takes bytes from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether the stream has ended inside a line, should it end now.
    pub fn is_mid_line(&self) -> bool {
        self.start < self.buffer.len()
    }

    /// The next message, or `None` when more bytes are needed. `T` is [`Message`] on the side of the orchestrator and
    /// [`Request`](super::Request) on the worker's.
    ///
    /// # Errors
    ///
    /// [`FrameError`] for a line that is no message or too long. The following lines can still be read, but a peer that
    /// sends such a line is broken and best given up.
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        loop {
            let Some(length) = self.buffer[self.scanned..].iter().position(|&byte| byte == b'\n') else {
                return self.wait_for_more().map_or(Ok(None), Err);
            };
            let end = self.scanned + length;
            let line = &self.buffer[self.start..end];
            self.start = end + 1;
            self.scanned = end + 1;

            if std::mem::take(&mut self.skipping) {
                continue;
            }
            if let Some(nonce) = &self.awaited {
                let Some(ready) = find_ready(line, nonce) else { continue };
                let message = parse(ready)?;
                self.awaited = None;
                return Ok(Some(message));
            }
            if line.len() > self.max_line {
                return Err(FrameError::TooLong { line: shorten(line), limit: self.max_line });
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            return parse(line).map(Some);
        }
    }

    /// Keeps the unfinished line within bounds.
    fn wait_for_more(&mut self) -> Option<FrameError> {
        self.scanned = self.buffer.len();
        let unfinished = &self.buffer[self.start..];
        if self.awaited.is_some() {
            if unfinished.len() > 2 * BANNER_TAIL {
                self.start = self.buffer.len() - BANNER_TAIL;
            }
            return None;
        }
        if self.skipping {
            self.start = self.buffer.len();
            return None;
        }
        if unfinished.len() <= self.max_line {
            return None;
        }
        let error = FrameError::TooLong { line: shorten(unfinished), limit: self.max_line };
        self.skipping = true;
        self.buffer = Vec::new();
        self.start = 0;
        self.scanned = 0;
        Some(error)
    }
}

fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(line)
        .map_err(|error| FrameError::Malformed { line: shorten(line), reason: shorten(error.to_string().as_bytes()) })
}

/// The part of a line that is the `ready` message with the right nonce. A banner that does not end its line stands
/// before it; a terminal's echo of our own `init` carries the nonce too and is none.
fn find_ready<'a>(line: &'a [u8], nonce: &str) -> Option<&'a [u8]> {
    let tail = &line[line.len().saturating_sub(BANNER_TAIL)..];
    let braces = tail.iter().enumerate().filter(|&(_, &byte)| byte == b'{');
    braces.map(|(at, _)| &tail[at..]).find(|candidate| {
        // The message is short: a brace far before the line's end cannot begin it.
        candidate.len() <= nonce.len() + 1024
            && matches!(serde_json::from_slice(candidate), Ok(Message::Ready { nonce: found }) if found == nonce)
    })
}

/// A line for people: shortened, with control characters made visible.
fn shorten(line: &[u8]) -> String {
    // Four bytes is the longest a character gets.
    let text = String::from_utf8_lossy(&line[..line.len().min(QUOTED * 4)]);
    let mut short: String =
        text.chars().take(QUOTED).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
    if text.chars().count() > QUOTED || line.len() > QUOTED * 4 {
        short.push('…');
    }
    short
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::framework::{TestOutcome, TestResult};
    use crate::worker::{Request, RunItem};

    fn all(decoder: &mut Decoder) -> Vec<Result<Message, FrameError>> {
        std::iter::from_fn(|| decoder.next_message().transpose()).collect()
    }

    fn finished(key: u32, stdout: &str) -> Message {
        let mut result = TestResult::new(TestOutcome::Failed, Duration::from_millis(1500)).with_message("no");
        result.stdout = stdout.to_owned().into();
        Message::Finished { key, result: Box::new(result) }
    }

    #[test]
    fn messages_survive_however_the_stream_is_cut() {
        let sent = [Message::Started { key: 7 }, finished(7, "two\nlines \u{1F600}\n"), Message::Alive];
        let mut bytes = Vec::new();
        sent.iter().for_each(|message| encode(message, &mut bytes));
        for size in [1, 2, 7, bytes.len()] {
            let mut decoder = Decoder::new();
            let mut received = Vec::new();
            for chunk in bytes.chunks(size) {
                decoder.push(chunk);
                received.extend(all(&mut decoder).into_iter().map(Result::unwrap));
            }
            assert_eq!(received, sent, "in chunks of {size}");
            assert!(!decoder.is_mid_line());
        }
    }

    #[test]
    fn requests_survive_too() {
        let item = RunItem { key: 1, unit: 2, name: "a::b".into(), attempt: 1, alone: false, timeout_ms: Some(9) };
        let mut bytes = Vec::new();
        encode(&Request::Run { tests: vec![item.clone()] }, &mut bytes);
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        assert_eq!(decoder.next_message(), Ok(Some(Request::Run { tests: vec![item] })));
        assert_eq!(decoder.next_message::<Request>(), Ok(None));
    }

    #[test]
    fn everything_before_the_right_ready_is_discarded() {
        let mut decoder = Decoder::after_ready("n1");
        decoder.push(b"Welcome to {host}!\n{\"type\":\"alive\"}\n{\"type\":\"ready\",\"nonce\":\"other\"}\n");
        decoder.push(b"{\"type\":\"init\",\"nonce\":\"n1\"}\r\nlast login: never {\"a\": 1} ");
        assert_eq!(all(&mut decoder), []);
        decoder.push(b"{\"type\": \"ready\", \"nonce\": \"n1\", \"new\": [1]}\r\n{\"type\":\"alive\"}\n");
        assert_eq!(all(&mut decoder), [Ok(Message::Ready { nonce: "n1".into() }), Ok(Message::Alive)]);
    }

    #[test]
    fn an_endless_banner_takes_no_memory_and_hides_no_session() {
        let mut decoder = Decoder::after_ready("n").with_max_line(1024);
        for _ in 0..100 {
            decoder.push(&[b'{'; 50_000]);
            assert_eq!(all(&mut decoder), []);
        }
        assert!(decoder.buffer.len() < 4 * BANNER_TAIL);
        decoder.push(b"{\"type\":\"ready\",\"nonce\":\"n\"}\n");
        assert_eq!(all(&mut decoder), [Ok(Message::Ready { nonce: "n".into() })]);
    }

    #[test]
    fn unknown_fields_are_ignored_and_blank_lines_skipped() {
        let mut decoder = Decoder::new();
        decoder.push(b"\n\r\n{\"type\":\"started\",\"key\":3,\"colour\":{\"r\":1}}\n");
        assert_eq!(all(&mut decoder), [Ok(Message::Started { key: 3 })]);
    }

    #[test]
    fn a_wrong_type_is_an_error_that_quotes_the_line() {
        let mut decoder = Decoder::new();
        decoder.push(b"{\"type\":\"started\",\"key\":\"three\"}\nnot json at all \x1b[31m\n{\"type\":\"alive\"}\n");
        let received = all(&mut decoder);
        let text = received[0].as_ref().unwrap_err().to_string();
        assert!(text.contains(r#"{"type":"started","key":"three"}"#), "{text}");
        assert!(text.contains("invalid type"), "{text}");
        let text = received[1].as_ref().unwrap_err().to_string();
        assert!(text.contains("not json at all") && !text.contains('\x1b'), "{text}");
        assert_eq!(received[2], Ok(Message::Alive));
    }

    #[test]
    fn an_error_is_short_however_long_the_line() {
        let mut decoder = Decoder::new();
        decoder.push(&[b'x'; 1 << 20]);
        decoder.push(b"\n");
        let text = decoder.next_message::<Message>().unwrap_err().to_string();
        assert!(text.len() < 600, "{text}");
    }

    #[test]
    fn a_line_that_is_too_long_is_refused_before_it_ends_and_skipped() {
        let mut decoder = Decoder::new().with_max_line(100);
        decoder.push(&[b'a'; 101]);
        assert!(matches!(decoder.next_message::<Message>(), Err(FrameError::TooLong { limit: 100, .. })));
        for _ in 0..100 {
            decoder.push(&[b'a'; 1000]);
            assert_eq!(decoder.next_message::<Message>(), Ok(None));
        }
        assert!(decoder.buffer.len() <= 1000);
        decoder.push(b"\n{\"type\":\"alive\"}\n");
        assert_eq!(all(&mut decoder), [Ok(Message::Alive)]);
    }

    proptest! {
        #[test]
        fn nothing_makes_a_decoder_panic(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..20), nonce: bool) {
            let mut decoder = if nonce { Decoder::after_ready("x") } else { Decoder::new() }.with_max_line(64);
            for chunk in chunks {
                decoder.push(&chunk);
                all(&mut decoder);
            }
        }

        #[test]
        fn damaged_messages_make_no_decoder_panic(at in 0usize..200, byte: u8, cut in 0usize..200) {
            let mut bytes = Vec::new();
            encode(&finished(1, "some text"), &mut bytes);
            encode(&Message::Ready { nonce: "x".into() }, &mut bytes);
            let length = bytes.len();
            bytes[at % length] = byte;
            for mut decoder in [Decoder::new(), Decoder::after_ready("x")] {
                decoder.push(&bytes[..cut % length]);
                all(&mut decoder);
                decoder.push(&bytes[cut % length..]);
                all(&mut decoder);
            }
        }
    }
}
