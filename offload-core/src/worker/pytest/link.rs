//! A connection to a Python process: messages out, messages in, neither ever waiting for the other.
//!
//! Processes of this machine connect to a socket. What is to be sent is buffered and written whenever the other side takes
//! it, also while messages are awaited: two processes that fill each other's buffers cannot wait for each other. The
//! lines of processes elsewhere come and go through the [relay](super::relay) of their sandbox.

use std::io;

use serde::Serialize;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::message::{self, Incoming};
use super::relay::Wire;
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
    /// The place where the process was is gone, or out of reach: that says nothing about the process.
    #[error("{0}")]
    Lost(String),
}

/// A connection to a Python process.
#[derive(Debug)]
pub(crate) struct Link {
    stream: Stream,
    decoder: Decoder,
    ended: bool,
}

#[derive(Debug)]
enum Stream {
    Socket { socket: UnixStream, out: Vec<u8>, buffer: Box<[u8]> },
    Relayed(Relayed),
}

/// A connection to a relay.
#[derive(Debug)]
struct Relayed {
    number: u32,
    wire: Wire,
    pieces: mpsc::UnboundedReceiver<Piece>,
}

impl Drop for Relayed {
    fn drop(&mut self) {
        self.wire.close(self.number);
    }
}

/// What a relay passes on.
#[derive(Debug)]
pub(super) enum Piece {
    /// Whole lines.
    Lines(Vec<u8>),
    /// The process has closed its connection.
    End,
}

impl Link {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self::over(Stream::Socket { socket, out: Vec::new(), buffer: vec![0; BUFFER].into() })
    }

    /// The connection that the relay calls `number`.
    pub(super) fn relayed(number: u32, wire: Wire, pieces: mpsc::UnboundedReceiver<Piece>) -> Self {
        Self::over(Stream::Relayed(Relayed { number, wire, pieces }))
    }

    fn over(stream: Stream) -> Self {
        Self { stream, decoder: Decoder::new(), ended: false }
    }

    /// Sends a message, at once as far as the other side takes it, the rest in [`Self::next`].
    pub(crate) fn send<T: Serialize>(&mut self, message: &T) {
        let mut line = Vec::new();
        encode(message, &mut line);
        self.write(&line);
    }

    /// Sends a message that is written already, without its line end.
    pub(super) fn send_line(&mut self, line: &str) {
        let mut line = line.as_bytes().to_vec();
        line.push(b'\n');
        self.write(&line);
    }

    fn write(&mut self, line: &[u8]) {
        match &mut self.stream {
            Stream::Socket { socket, out, .. } => {
                out.extend_from_slice(line);
                flush(socket, out);
            }
            Stream::Relayed(relayed) => relayed.wire.send(relayed.number, line),
        }
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
            match &mut self.stream {
                Stream::Socket { socket, out, buffer } => {
                    let interest =
                        if out.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
                    let ready = socket.ready(interest).await?;
                    if ready.is_writable() {
                        flush(socket, out);
                    }
                    if ready.is_readable() || ready.is_read_closed() {
                        self.ended = read(socket, buffer, &mut self.decoder) == Read::End;
                    }
                }
                Stream::Relayed(Relayed { wire, pieces, .. }) => match pieces.recv().await {
                    Some(Piece::Lines(lines)) => self.decoder.push(&lines),
                    Some(Piece::End) => self.ended = true,
                    None => return Err(LinkError::Lost(wire.fate())),
                },
            }
        }
    }

    /// Whether the other side has closed the connection, and that has been read.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// The next message among those that have arrived; `None` when there is none, whatever may still come.
    pub(crate) fn next_arrived(&mut self) -> Result<Option<Incoming>, LinkError> {
        loop {
            if let Some(message) = message::next(&mut self.decoder)? {
                return Ok(Some(message));
            }
            if self.ended {
                return Ok(None);
            }
            match &mut self.stream {
                Stream::Socket { socket, buffer, .. } => match read_now(socket, buffer, &mut self.decoder) {
                    Read::Something => {}
                    Read::Nothing => return Ok(None),
                    Read::End => self.ended = true,
                },
                Stream::Relayed(Relayed { pieces, .. }) => match pieces.try_recv() {
                    Ok(Piece::Lines(lines)) => self.decoder.push(&lines),
                    Ok(Piece::End) => self.ended = true,
                    Err(_) => return Ok(None),
                },
            }
        }
    }
}

fn flush(socket: &UnixStream, out: &mut Vec<u8>) {
    let mut written = 0;
    while written < out.len() {
        match socket.try_write(&out[written..]) {
            Ok(bytes) => written += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(_) => {
                // The reading side finds out why, and what was still said before that matters.
                out.clear();
                return;
            }
        }
    }
    out.drain(..written);
}

/// What came of reading.
#[derive(PartialEq)]
enum Read {
    Something,
    Nothing,
    End,
}

/// Reads what is there. The runtime may not have noticed that there is something.
fn read_now(socket: &UnixStream, buffer: &mut [u8], decoder: &mut Decoder) -> Read {
    loop {
        return match rustix::io::read(socket, &mut *buffer) {
            Ok(0) => Read::End,
            Ok(bytes) => {
                decoder.push(&buffer[..bytes]);
                Read::Something
            }
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::AGAIN) => Read::Nothing,
            Err(_) => Read::End,
        };
    }
}

fn read(socket: &UnixStream, buffer: &mut [u8], decoder: &mut Decoder) -> Read {
    match socket.try_read(buffer) {
        Ok(0) => Read::End,
        Ok(bytes) => {
            decoder.push(&buffer[..bytes]);
            Read::Something
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Read::Nothing,
        // A process that dies with unread messages resets its connection: that is an end like any other.
        Err(_) => Read::End,
    }
}
