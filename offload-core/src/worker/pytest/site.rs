//! Where Python processes are, and what can be done there without asking them.
//!
//! On this machine that is the operating system's business. Elsewhere the [relay](super::relay) of the sandbox does it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::Command;
use tokio::time::Instant;

use super::ahead::Way;
use super::output;
use super::relay::{HELD, Wire};
use crate::worker::libtest::family;

/// How long a process may take to write its stacks: they come at once or never.
const DUMP_PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether they have come.
const DUMP_POLL: Duration = Duration::from_millis(20);
/// The signal at which a worker writes its stacks: `SIGRTMAX - 2`, one that nobody else uses.
const DUMP_SIGNAL: i32 = 62;

/// Where processes are.
#[derive(Debug, Clone)]
pub(crate) enum Site {
    /// On this machine.
    Here,
    /// At the other end of this.
    There(Wire),
}

impl Site {
    /// Kills a process and its group, if it leads one.
    pub fn kill(&self, pid: Pid) {
        match self {
            Self::Here => {
                // What has left the group is found by who has started it, as long as that is there.
                let family = family::descendants(pid, "", &[]);
                kill_group(pid);
                family::kill(&family);
            }
            Self::There(wire) => wire.kill(pid),
        }
    }

    /// Ends what the process does at the moment.
    pub fn interrupt(&self, pid: Pid) {
        match self {
            Self::Here => drop(kill_process(pid, Signal::INT)),
            Self::There(wire) => wire.interrupt(pid),
        }
    }

    /// The last `lines` lines of what stands in a file behind `from`, and how long the file is.
    pub async fn tail(&self, path: &Path, from: u64, lines: usize) -> (String, u64) {
        match self {
            Self::Here => (output::tail(path, from, lines), output::length(path)),
            Self::There(wire) => wire.tail(path, from, lines).await,
        }
    }

    /// Has a process write the stacks of all its threads to the file `path`, and reads them.
    pub async fn stacks(&self, process: Pid, path: &Path, lines: usize) -> Option<String> {
        let stacks = match self {
            Self::Here => stacks_here(process, path, lines).await?,
            Self::There(wire) => wire.stacks(process, path, lines).await,
        };
        Some(stacks).filter(|stacks| !stacks.is_empty())
    }

    /// Why nothing can be done there any more, once that is so.
    pub fn fate(&self) -> Option<String> {
        match self {
            Self::Here => None,
            Self::There(wire) => wire.has_ended().then(|| wire.fate()),
        }
    }

    /// How long a message takes there and back, where that is long enough to matter.
    pub fn way(&self) -> Way {
        match self {
            Self::Here => Way::default(),
            Self::There(wire) => Way { round_trip: wire.round_trip(), held: HELD },
        }
    }
}

/// Kills a process of this machine and its group, if it leads one.
pub(super) fn kill_group(pid: Pid) {
    // Gone already, most likely.
    let _ = kill_process_group(pid, Signal::KILL);
    let _ = kill_process(pid, Signal::KILL);
}

async fn stacks_here(process: Pid, path: &Path, lines: usize) -> Option<String> {
    let before = output::length(path);
    // A signal without a name in our library for the Unix calls; this is rare enough for a process.
    let line = format!("kill -{DUMP_SIGNAL} {}", process.as_raw_nonzero());
    let mut kill = Command::new("/bin/sh");
    kill.arg("-c").arg(line).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if !kill.status().await.ok()?.success() {
        return None;
    }
    let give_up = Instant::now() + DUMP_PATIENCE;
    let mut length = before;
    while Instant::now() < give_up {
        tokio::time::sleep(DUMP_POLL).await;
        let longer = output::length(path);
        if longer == length && longer > before {
            break;
        }
        length = longer;
    }
    Some(output::tail(path, before, lines))
}
