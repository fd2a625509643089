//! pytest's workers: forks of a template process.
//!
//! A fresh Python, the template, configures pytest and finds the files with tests; its forks collect and run the tests.
//! All of them are Python processes that speak newline-delimited JSON over a Unix socket in a private directory. On this
//! machine there is one template; each sandbox that is somewhere else has one, and a relay between them and this
//! process. Here is the side of this process:
//!
//! - `host` has workers forked and sees to it that nothing is left behind; `here` takes in what connects on this
//!   machine, `far` what does in a sandbox that is somewhere else, and `roll` is what both know of who is there,
//! - `options` is how pytest is started,
//! - `template` is the process that forks workers on this machine,
//! - `serve` drives one worker for the sandbox that it stands for, and replaces it when it breaks,
//! - `patience` is how long processes may take for what is no test,
//! - `ahead` says how much a worker is told in advance,
//! - `message` and `link` are what is said and how it travels, `relay` the way to another place,
//! - `site` is what can be done where processes are, `output` is what is left in files.
//!
//! Collecting is the framework's business ([`PytestWorkers`](crate::framework::pytest::PytestWorkers)); which test runs
//! where is the scheduler's. What the processes send is untrusted, although it is code of the user's own: a test may
//! write to any descriptor.

mod ahead;
mod directory;
mod far;
mod here;
mod host;
mod link;
mod message;
mod options;
mod output;
mod patience;
mod program;
mod relay;
mod roll;
mod serve;
mod site;
mod template;

use std::time::Duration;

#[cfg(any(test, fuzzing))]
pub use {message::fuzz::pytest_messages, relay::fuzz::relay};

pub use host::PytestHost;
pub(crate) use host::{FromTemplate, WorkerProcess};
pub(crate) use link::LinkError;
pub(crate) use message::{Collected, Incoming, Outgoing, UnitLine};
pub use options::{Dist, Elsewhere, PytestOptions, phase_limit};
pub(crate) use patience::{WORTH_SAYING, within};
pub(crate) use serve::{PytestWorker, Said, words_of};

use super::TestKey;

/// A test for a worker.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PytestItem {
    pub key: TestKey,
    pub unit: u32,
    pub ordinal: u32,
    pub attempt: u32,
    /// [`Duration::MAX`]: none.
    pub timeout: Duration,
    /// How long it takes, as far as earlier runs say.
    pub expected: Option<Duration>,
}
