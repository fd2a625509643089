//! A worker at the other end of a byte stream: requests come in as lines, messages go out as lines.
//!
//! The end of the input means: stop, clean up, return. A cut network closes nothing, so each side also says that it is
//! there, and gives up when the other has been silent for too long. Whoever is slow to read holds up the tests, not this
//! process's memory: messages wait in an outbox of limited size.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::fcntl_dupfd_cloexec;

use super::{LibtestOptions, LibtestWorker};
use crate::worker::framing::{Decoder, encode};
use crate::worker::{Message, Request};

/// How many bytes of messages may wait to be written.
const OUTBOX_BYTES: usize = 8 << 20;

/// How long the other side may take to read the last messages, unless it said how long a silence may be.
const DELIVERY: Duration = Duration::from_secs(30);

/// How a worker behaves at the other end of a stream.
#[derive(Clone, Default)]
pub struct ServeOptions {
    /// How tests are executed. Isolation and capture are as [`Request::Init`] says.
    pub libtest: LibtestOptions,
}

/// Serves one session over this process's stdin and stdout, which then belong to the protocol alone: descriptor 1 points
/// at stderr from now on, and descriptor 0 at nothing, so that nothing in this process can disturb the session.
///
/// # Errors
///
/// As [`serve`], and when the descriptors cannot be duplicated.
pub fn serve_stdio(options: ServeOptions) -> io::Result<()> {
    let input = File::from(fcntl_dupfd_cloexec(io::stdin(), 3)?);
    let output = File::from(fcntl_dupfd_cloexec(io::stdout(), 3)?);
    rustix::stdio::dup2_stdout(io::stderr())?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    serve(input, output, options)
}

/// Serves one session: until a [`Request::Shutdown`] has been obeyed, the input ends, or the other side is silent for
/// longer than it announced. Running tests are ended before this returns. A thread still reads `input` unless that has
/// ended; nothing but the end of the process can take it out of that, so the process should exit soon.
///
/// # Errors
///
/// When the input cannot be read or does not follow the protocol, or the output cannot be written.
pub fn serve(
    input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
    options: ServeOptions,
) -> io::Result<()> {
    let outbox = Arc::new(Outbox::default());
    let (facts, inbox) = channel();
    std::thread::Builder::new().name("offload-writer".to_owned()).spawn({
        let (outbox, facts) = (Arc::clone(&outbox), facts.clone());
        move || {
            let result = outbox.write_all(output);
            // Nobody listens any more when the session has ended by itself.
            let _ = facts.send(Fact::Written(result));
        }
    })?;
    std::thread::Builder::new().name("offload-reader".to_owned()).spawn({
        let facts = facts.clone();
        move || read_all(input, |fact| facts.send(fact).is_ok())
    })?;
    drop(facts);

    let worker = LibtestWorker::spawn(options.libtest, {
        let outbox = Arc::clone(&outbox);
        move |message| outbox.push(&message)
    })?;
    let ending = converse(&worker, &inbox, &outbox);
    if ending.deaf {
        // Nobody reads any more: what is still to be said must not hold up the end of the tests.
        outbox.close();
    }
    drop(worker);
    outbox.close();
    if !ending.deaf {
        deliver(&inbox, ending.patience);
    }
    ending.result
}

/// Waits until everything that was said has been written, within reason.
fn deliver(inbox: &Receiver<Fact>, patience: Duration) {
    let until = Instant::now() + patience;
    while let Ok(fact) = inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
        if matches!(fact, Fact::Written(_)) {
            return;
        }
    }
}

/// How a session ended.
struct Ending {
    result: io::Result<()>,
    /// There is nobody, or no use, to say anything to.
    deaf: bool,
    /// How long the other side may take to read the rest.
    patience: Duration,
}

/// What reaches the session's own thread.
enum Fact {
    Request(Request),
    /// The input has ended.
    End(io::Result<()>),
    /// The output has ended: after the last message, or because it cannot be written.
    Written(io::Result<()>),
}

/// Hands requests to the worker until the session ends.
fn converse(worker: &LibtestWorker, inbox: &Receiver<Fact>, outbox: &Outbox) -> Ending {
    let mut silence: Option<Duration> = None;
    let mut heard = Instant::now();
    let (result, deaf) = loop {
        let fact = match silence {
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            // Often enough that one late message is not taken for silence.
            Some(silence) => inbox.recv_timeout(silence / 4),
        };
        match fact {
            Ok(Fact::Request(request)) => {
                heard = Instant::now();
                if let Request::Init { silence_ms, .. } = request {
                    silence = (silence_ms > 0).then(|| Duration::from_millis(silence_ms.max(4)));
                }
                worker.send(request);
            }
            Ok(Fact::End(Ok(()))) => break (Ok(()), true),
            Ok(Fact::End(Err(error))) => {
                outbox.push_last(&Message::Bye { reason: Some(error.to_string()) });
                break (Err(error), false);
            }
            Ok(Fact::Written(result)) => break (result, true),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break (Ok(()), true),
        }
        if let Some(limit) = silence {
            if heard.elapsed() > limit {
                let text = format!("nothing was heard from the orchestrator for {} s", limit.as_secs_f64());
                break (Err(io::Error::new(io::ErrorKind::TimedOut, text)), true);
            }
            outbox.say_alive(limit / 4);
        }
    };
    Ending { result, deaf, patience: silence.unwrap_or(DELIVERY) }
}

/// Reads requests until the input ends or `pass_on` wants no more.
fn read_all(mut input: impl Read, pass_on: impl Fn(Fact) -> bool) {
    let mut decoder = Decoder::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => {
                pass_on(Fact::End(Ok(())));
                return;
            }
            Ok(length) => decoder.push(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                pass_on(Fact::End(Err(error)));
                return;
            }
        }
        loop {
            let fact = match decoder.next_message() {
                Ok(Some(request)) => Fact::Request(request),
                Ok(None) => break,
                Err(error) => {
                    pass_on(Fact::End(Err(io::Error::new(io::ErrorKind::InvalidData, error))));
                    return;
                }
            };
            if !pass_on(fact) {
                return;
            }
        }
    }
}

/// Messages on their way out.
#[derive(Default)]
struct Outbox {
    state: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    closed: bool,
    last: Option<Instant>,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a message; one that may be large only once there is room for it. Drops it when the outbox is closed, as it
    /// is after [`Message::Bye`].
    fn push(&self, message: &Message) {
        let mut line = Vec::new();
        encode(message, &mut line);
        let state = self.lock();
        // The session's own thread must never wait here; what it sends are short answers.
        let may_wait = matches!(message, Message::Output { .. } | Message::Finished { .. });
        let mut state = self
            .changed
            .wait_while(state, |state| may_wait && state.bytes > OUTBOX_BYTES && !state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        state.append(line);
        state.closed |= matches!(message, Message::Bye { .. });
        self.changed.notify_all();
    }

    /// Appends the last message, however full the outbox is.
    fn push_last(&self, message: &Message) {
        let mut line = Vec::new();
        encode(message, &mut line);
        let mut state = self.lock();
        state.append(line);
        state.closed = true;
        drop(state);
        self.changed.notify_all();
    }

    /// Says that the worker is there, unless it has said anything lately.
    fn say_alive(&self, interval: Duration) {
        let mut state = self.lock();
        if state.lines.is_empty() && state.last.is_none_or(|last| last.elapsed() >= interval) {
            let mut line = Vec::new();
            encode(&Message::Alive, &mut line);
            state.append(line);
            self.changed.notify_all();
        }
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Writes messages until the outbox is closed and empty.
    fn write_all(&self, mut output: impl Write) -> io::Result<()> {
        loop {
            let state = self.lock();
            let mut state = self
                .changed
                .wait_while(state, |state| state.lines.is_empty() && !state.closed)
                .unwrap_or_else(PoisonError::into_inner);
            let lines = std::mem::take(&mut state.lines);
            drop(state);
            if lines.is_empty() {
                return Ok(());
            }
            let written = lines.into_iter().collect::<Vec<_>>().concat();
            let result = output.write_all(&written).and_then(|()| output.flush());
            let mut state = self.lock();
            state.bytes = state.bytes.saturating_sub(written.len());
            state.closed |= result.is_err();
            drop(state);
            self.changed.notify_all();
            result?;
        }
    }
}

impl Waiting {
    fn append(&mut self, line: Vec<u8>) {
        if !self.closed {
            self.bytes += line.len();
            self.lines.push_back(line);
            self.last = Some(Instant::now());
        }
    }
}
