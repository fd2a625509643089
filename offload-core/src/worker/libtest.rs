//! The libtest worker: executes Rust tests, in process for local sandboxes and over a byte stream for remote ones.
//!
//! A worker is one slot: one thread that takes tests off a queue and runs one process after the other. The thread
//! blocks in `poll`; an asynchronous runtime would cost a test several percent. What it does is spread over submodules:
//! the queue and orders that reach the thread (`mailbox`), starting and watching a process (`process`), a process per
//! test (`single`), many tests of a binary per process (`batch`), a package's doctests (`doctest`), what output and exit
//! status mean (`outcome`), what they start (`family`), and the form with stdin and stdout ([`serve`]).
//!
//! Tests that one process is to run together are handed over as a whole: those that it has not started yet cannot be
//! taken back, only cancelled.
//!
//! Which tests to run and whether to run them again is not decided here.

mod batch;
mod capture;
mod doctest;
pub(super) mod family;
mod mailbox;
mod outcome;
mod process;
mod serve;
mod single;
mod slot;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use self::family::Watcher;
use self::mailbox::Mailbox;
use self::slot::Slot;
use super::{Message, Request, StartGate};
use crate::framework::Isolation;

#[cfg(any(test, fuzzing))]
pub use {doctest::fuzz::doctests, outcome::fuzz::libtest_outcome};

pub(crate) use doctest::line_filters;
pub(super) use outcome::{killed_by, timeout_message};
pub use serve::{ServeOptions, serve, serve_stdio};

/// How a worker executes tests.
#[derive(Clone)]
pub struct LibtestOptions {
    /// The number of the slot, for the gate.
    pub slot: usize,
    /// One process per test, or one per batch of tests of a binary. [`Request::Init`] overrides it.
    pub isolation: Isolation,
    /// Output is passed on as [`Message::Output`] while it comes, and results carry none. [`Request::Init`] overrides it.
    pub no_capture: bool,
    /// After a failed test, the rest of the queue is given back ([`Message::TakenBack`]), so that whoever counts failures
    /// decides what else is started. [`Request::Init`] overrides it.
    pub yield_on_failure: bool,
    /// Environment for all tests, on top of this process's and under the units' own.
    pub env: BTreeMap<String, String>,
    /// What is passed before each process is started; the permit lives as long as the process.
    pub gate: Option<Arc<dyn StartGate>>,
    /// How long a process that is told to end (SIGTERM) has before it is killed.
    pub kill_grace: Duration,
    /// How long the output of a process that has ended is waited for while something else holds it.
    pub leak_timeout: Duration,
    /// How much of each stream of a test is kept, in bytes: half from the beginning, half from the end.
    pub output_limit: usize,
}

impl Default for LibtestOptions {
    fn default() -> Self {
        Self {
            slot: 0,
            isolation: Isolation::Process,
            no_capture: false,
            yield_on_failure: false,
            env: BTreeMap::new(),
            gate: None,
            kill_grace: Duration::from_secs(2),
            leak_timeout: Duration::from_millis(100),
            output_limit: 1 << 20,
        }
    }
}

/// A worker with its thread. Dropping it ends what runs (SIGTERM, then SIGKILL) and waits for that.
pub struct LibtestWorker {
    mailbox: Arc<Mailbox>,
    on_message: Arc<dyn Fn(Message) + Send + Sync>,
    gate: Option<Arc<dyn StartGate>>,
    thread: Option<JoinHandle<()>>,
    _watcher: Arc<Watcher>,
}

/// How many descriptors the start of a process takes for a moment.
const ROOM: usize = 8;

/// Fails where nothing could be started beside the workers that are there: one more would only take what they need.
fn ensure_room(mailbox: &Mailbox) -> io::Result<()> {
    let mut held = Vec::with_capacity(ROOM);
    for _ in 0..ROOM {
        held.push(rustix::io::fcntl_dupfd_cloexec(mailbox.wake_fd(), 0)?);
    }
    Ok(())
}

impl LibtestWorker {
    /// Starts a worker. `on_message` gets what it has to say, on the worker's thread and, for answers to
    /// [`Self::send`], on the caller's; it should return soon. For each test: [`Message::Started`], any number of
    /// [`Message::Output`], and [`Message::Finished`] or [`Message::TakenBack`]; the latter alone for a test that never
    /// starts. [`Message::Bye`] is the last. When the worker is dropped, nothing is said of tests still in the queue.
    ///
    /// # Errors
    ///
    /// When the system refuses a thread or a pair of sockets.
    pub fn spawn(options: LibtestOptions, on_message: impl Fn(Message) + Send + Sync + 'static) -> io::Result<Self> {
        let mailbox = Arc::new(Mailbox::new(&options)?);
        ensure_room(&mailbox)?;
        let on_message: Arc<dyn Fn(Message) + Send + Sync> = Arc::new(on_message);
        let gate = options.gate.clone();
        let watcher = Watcher::get();
        let slot = Slot::new(options, Arc::clone(&mailbox), Arc::clone(&on_message));
        let thread = std::thread::Builder::new().name("offload-libtest".to_owned()).spawn(move || slot.run())?;
        Ok(Self { mailbox, on_message, gate, thread: Some(thread), _watcher: watcher })
    }

    /// Hands the worker a request. Never waits for a test: tests in the queue are taken back and cancelled at once.
    /// [`Request::TakeBack`] is always answered, with an empty list if need be.
    pub fn send(&self, request: Request) {
        if let Some(answer) = self.mailbox.accept(request) {
            self.wake_gate();
            (self.on_message)(answer);
        }
    }

    /// A thread that waits at the gate may have nothing to wait for any more.
    fn wake_gate(&self) {
        if let Some(gate) = &self.gate {
            gate.wake();
        }
    }

    /// Kills the process that runs, with its whole group, and starts no other. Does not wait for it.
    pub fn kill(&self) {
        self.mailbox.stop(true);
        self.wake_gate();
    }
}

impl Drop for LibtestWorker {
    fn drop(&mut self) {
        self.mailbox.stop(false);
        self.wake_gate();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by the panic hook; nothing can be added to it here.
            let _ = thread.join();
        }
    }
}
