//! A connection to a Python process: messages out, messages in, neither ever waiting for the other.
//!
//! What is to be sent is buffered and written whenever the other side takes it, also while messages are awaited: two
//! processes that fill each other's buffers cannot wait for each other.

use std::io;

use serde::Serialize;
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::message::{self, Incoming};
use crate::worker::framing::{Decoder, FrameError, encode};

/// How much is read at once.
const BUFFER: usize = 64 << 10;

/// Why a connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("its connection broke: {0}")]
    Io(#[from] io::Error),
}

/// A connection to a Python process.
#[derive(Debug)]
pub(crate) struct Link {
    stream: UnixStream,
    decoder: Decoder,
    out: Vec<u8>,
    buffer: Box<[u8]>,
    ended: bool,
}

impl Link {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, decoder: Decoder::new(), out: Vec::new(), buffer: vec![0; BUFFER].into(), ended: false }
    }

    /// Sends a message, at once as far as the other side takes it, the rest in [`Self::next`].
    pub(crate) fn send<T: Serialize>(&mut self, message: &T) {
        encode(message, &mut self.out);
        self.flush();
    }

    /// Sends a message that is written already, without its line end.
    pub(super) fn send_line(&mut self, line: &str) {
        self.out.extend_from_slice(line.as_bytes());
        self.out.push(b'\n');
        self.flush();
    }

    fn flush(&mut self) {
        let mut written = 0;
        while written < self.out.len() {
            match self.stream.try_write(&self.out[written..]) {
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    // The reading side finds out why, and what was still said before that matters.
                    self.out.clear();
                    return;
                }
            }
        }
        self.out.drain(..written);
    }

    /// The next message; `None` when the other side has closed the connection. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Result<Option<Incoming>, LinkError> {
        loop {
            if let Some(message) = message::next(&mut self.decoder)? {
                return Ok(Some(message));
            }
            if self.ended {
                return Ok(None);
            }
            let interest =
                if self.out.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
            let ready = self.stream.ready(interest).await?;
            if ready.is_writable() {
                self.flush();
            }
            if ready.is_readable() || ready.is_read_closed() {
                self.read();
            }
        }
    }

    /// The next message among those that have arrived; `None` when there is none, whatever may still come.
    pub(crate) fn next_arrived(&mut self) -> Result<Option<Incoming>, LinkError> {
        loop {
            if let Some(message) = message::next(&mut self.decoder)? {
                return Ok(Some(message));
            }
            if self.ended || !self.read() {
                return Ok(None);
            }
        }
    }

    /// Reads what is there; returns whether there was something.
    fn read(&mut self) -> bool {
        match self.stream.try_read(&mut self.buffer) {
            Ok(0) => self.ended = true,
            Ok(bytes) => {
                self.decoder.push(&self.buffer[..bytes]);
                return true;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // A process that dies with unread messages resets its connection: that is an end like any other.
            Err(_) => self.ended = true,
        }
        false
    }
}
