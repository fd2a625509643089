//! The worker protocol: what the orchestrator and the program inside a sandbox say to each other.
//!
//! A worker executes tests and streams results. The messages here are plain data; [`framing`] turns them into
//! newline-delimited JSON for a byte stream and back, trusting nothing that comes from a sandbox. The [`libtest`] worker
//! speaks the protocol in process (local sandboxes: no serialisation at all) and over stdin and stdout (remote ones).
//!
//! What is decided elsewhere: which test runs where ([the scheduler](crate::orchestrator::Scheduler)), and what a lost
//! worker means ([`TestRunner`](crate::orchestrator::TestRunner)).

pub mod framing;
mod groups;
pub mod libtest;
pub mod pytest;

/// What holds for anything that workers may send.
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz {
    pub use super::framing::fuzz::worker_frames;
    pub use super::libtest::{doctests, libtest_outcome};
    pub use super::pytest::{pytest_messages, relay};
}

pub use groups::{continue_tests, stop_tests};

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::framework::{Isolation, TestResult};

/// The version of the protocol, in [`Request::Init`]. A worker refuses another one.
pub const PROTOCOL_VERSION: u32 = 1;

/// The number by which both sides know a test within a session: its identity, whatever its name.
pub type TestKey = u32;

/// The number by which both sides know a unit within a session.
pub type UnitKey = u32;

/// How the tests of a unit are asked for and how results are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Harness {
    /// The standard test harness (or one that takes its arguments): one test by `--exact NAME`.
    Libtest,
    /// A program that is one test: run without arguments, its exit code is the result.
    Opaque,
    /// `cargo test --doc` of one package: all tests at once, results parsed from what it prints.
    Doctest,
}

/// Something executable that holds tests: how it is started and what it needs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Unit {
    /// How tests are selected and results read.
    pub harness: Harness,
    /// The program brings a harness of its own (`harness = false`), which takes libtest's arguments but need not know all of
    /// them, nor say at its end how it went.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub custom_harness: bool,
    /// The program, after a runner if there is one.
    pub program: PathBuf,
    /// Arguments that come before the harness's own (a runner's arguments and the binary; cargo's arguments).
    pub args: Vec<String>,
    /// Arguments for the harness or program itself, after ours (what follows `--` on the command line). As under
    /// `cargo test`, it is here that a unit is told to run ignored tests: `--include-ignored`.
    pub extra_args: Vec<String>,
    /// The working directory.
    pub cwd: PathBuf,
    /// Environment on top of the sandbox's.
    pub env: BTreeMap<String, String>,
}

/// One test to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunItem {
    /// The test's identity.
    pub key: TestKey,
    /// The unit that holds it.
    pub unit: UnitKey,
    /// Its name within the unit.
    pub name: String,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// It gains nothing by a process that it shares with others, or did not pass in one lately.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub alone: bool,
    /// Time limit in milliseconds; `None`: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// From the orchestrator to a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// The first message of a session.
    Init {
        /// [`PROTOCOL_VERSION`].
        version: u32,
        /// What the worker sends back in [`Message::Ready`]; everything on the stream before that is discarded.
        nonce: String,
        /// How tests are isolated from each other.
        isolation: Isolation,
        /// Whether tests write to the terminal instead of being captured.
        no_capture: bool,
        /// Whether a failed test gives the rest of the worker's queue back.
        #[serde(default)]
        yield_on_failure: bool,
        /// After this many milliseconds without a word from the other side, each gives up; 0: never.
        silence_ms: u64,
    },
    /// Makes a unit known; precedes the first [`Request::Run`] that uses it.
    Define {
        /// Its number from now on.
        key: UnitKey,
        /// What it is.
        unit: Arc<Unit>,
    },
    /// Appends tests to the worker's queue.
    Run {
        /// In the order in which they are to be run.
        tests: Vec<RunItem>,
    },
    /// Asks for tests back that have not started; [`Message::TakenBack`] answers at once with those that were still in the
    /// queue. Where tests run one after the other in one process, the process is ended as soon as all that it has left
    /// was asked back; these are then given back, too, even if one has just started.
    TakeBack {
        /// Which.
        tests: Vec<TestKey>,
    },
    /// Ends the named tests if they run, and forgets them if they do not; each is answered by [`Message::TakenBack`].
    Cancel {
        /// Which; all when empty.
        tests: Vec<TestKey>,
    },
    /// Ends the session once the queue is empty.
    Shutdown,
    /// "I am here."
    Alive,
}

/// From a worker to the orchestrator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    /// The answer to [`Request::Init`].
    Ready {
        /// The nonce of the init message.
        nonce: String,
    },
    /// A test has started.
    Started {
        /// Which.
        key: TestKey,
    },
    /// A test that is not captured wrote something.
    Output {
        /// Which.
        key: TestKey,
        /// What.
        text: String,
    },
    /// A test has ended.
    Finished {
        /// Which.
        key: TestKey,
        /// How.
        result: Box<TestResult>,
    },
    /// Tests that will not be run here: given back, or ended by a cancel.
    TakenBack {
        /// Which.
        tests: Vec<TestKey>,
    },
    /// Something the user should know.
    Warning {
        /// The text.
        text: String,
    },
    /// Something for the log.
    Log {
        /// The line.
        text: String,
    },
    /// "I am here."
    Alive,
    /// The last message: the worker ends by its own will.
    Bye {
        /// Why, if it is not a [`Request::Shutdown`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}

/// What a local test passes before it starts, while the machine is shared with a build.
///
/// One gate serves all slots of a machine. Passing may block: slots are threads.
pub trait StartGate: Send + Sync {
    /// Waits until a test may start on slot number `slot`, or until `give_up` says that it need not any more (asked
    /// again after every wake-up). The test may run as long as the permit lives.
    fn pass(&self, slot: usize, give_up: &dyn Fn() -> bool) -> StartPermit;

    /// Whether [`Self::pass`] would return at once with a permit that nobody else wants.
    fn is_open(&self) -> bool {
        false
    }

    /// How often anybody was seen, up to now, to open something that the build has still to finish. A test during which
    /// this has changed may have looked at something old.
    fn sightings(&self) -> u64 {
        0
    }

    /// Has everybody who waits in [`Self::pass`] ask `give_up` again. To be called after what it says has changed.
    fn wake(&self) {}
}

/// The right to run one test; given back when dropped.
#[derive(Default)]
pub struct StartPermit(Option<Box<dyn Send>>);

impl StartPermit {
    /// A permit that gives `token` back when dropped.
    pub fn holding(token: impl Send + 'static) -> Self {
        Self(Some(Box::new(token)))
    }

    /// Whether the permit holds a token that somebody else may want.
    pub fn holds_token(&self) -> bool {
        self.0.is_some()
    }
}
