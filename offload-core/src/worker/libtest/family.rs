//! What tests start: which processes there are, and that none is left.
//!
//! Each process of a test leads a group, which gets the signals. What has left the group (`setsid`) is found among its
//! descendants; what has left those as well (a daemon, whose parent has ended) is found by a variable that every process
//! of a test has inherited, [`VARIABLE`]. Looking through all processes takes milliseconds, so that is done only when
//! something has to be ended.
//!
//! A run that is killed cannot end anything itself. A watcher does, a shell that waits for its input to end.

use std::collections::HashSet;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

use rustix::process::{Pid, Signal, kill_process};

use crate::random;

/// The variable that every process of a test has: the run's name and the number of the process.
pub(crate) const VARIABLE: &str = "OFFLOAD_PROCESS_ID";

/// How often it is looked for processes again that were started meanwhile.
const ROUNDS: usize = 3;

static RUN: LazyLock<String> = LazyLock::new(random::word);
static COUNT: AtomicU64 = AtomicU64::new(0);

/// A value of [`VARIABLE`] that no other process has.
pub(super) fn next_id() -> String {
    format!("{}-{}", *RUN, COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A process of the system: its number, and when it was started, since numbers are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::worker) struct Member {
    pid: Pid,
    started: u64,
}

/// Kills what a process has started and what those have started, in whatever group: the process has not been waited for
/// yet, so that its number is its own. `id`: its value of [`VARIABLE`]; `known`: what was found before.
pub(super) fn kill_descendants(root: Pid, id: &str, known: &[Member]) {
    for _ in 0..ROUNDS {
        let others = descendants(root, id, known);
        if others.is_empty() {
            return;
        }
        for member in others {
            let _ = kill_process(member.pid, Signal::KILL);
        }
    }
}

/// Kills processes, unless others have their numbers by now.
pub(in crate::worker) fn kill(members: &[Member]) {
    for member in members {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", member.pid.as_raw_nonzero())).unwrap_or_default();
        let started = stat.rsplit(')').next().and_then(|fields| fields.split_whitespace().nth(19)?.parse().ok());
        if started == Some(member.started) {
            let _ = kill_process(member.pid, Signal::KILL);
        }
    }
}

/// The processes that `root` has started, or that have its mark, or are among `known`, and what those have started.
pub(in crate::worker) fn descendants(root: Pid, id: &str, known: &[Member]) -> Vec<Member> {
    let mark = format!("{VARIABLE}={id}\0");
    let own = rustix::process::getpid();
    let mut all: Vec<(Member, Option<Pid>)> = Vec::new();
    let mut found = HashSet::from([root]);
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = number.and_then(Pid::from_raw).filter(|pid| *pid != own) else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name, in parentheses, may hold anything. Behind it are the state, the parent and, as the 20th, the time.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let [state, parent, ..] = fields[..] else { continue };
        if state == "Z" || state == "X" {
            continue;
        }
        let member = Member { pid, started: fields.get(19).and_then(|time| time.parse().ok()).unwrap_or_default() };
        all.push((member, parent.parse().ok().and_then(Pid::from_raw)));
        let is_marked = || {
            let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            environ.windows(mark.len()).any(|window| window == mark.as_bytes())
        };
        if known.contains(&member) || is_marked() {
            found.insert(pid);
        }
    }
    loop {
        let before = found.len();
        let children = all.iter().filter(|(_, parent)| parent.is_some_and(|parent| found.contains(&parent)));
        let children: Vec<Pid> = children.map(|(member, _)| member.pid).collect();
        found.extend(children);
        if found.len() == before {
            let others = all.into_iter().map(|(member, _)| member).filter(|member| member.pid != root);
            return others.filter(|member| found.contains(&member.pid)).collect();
        }
    }
}

/// Ends the tests of this run when this process is killed. There is one as long as there are workers.
#[derive(Debug)]
pub(super) struct Watcher(Option<JoinHandle<io::Result<Child>>>);

static WATCHER: Mutex<Weak<Watcher>> = Mutex::new(Weak::new());

/// Waits for a line, and if there is none kills all that have the run's mark.
const WATCH: &str = r#"trap '' HUP INT TERM QUIT TSTP
read -r line && exit
for round in 1 2 3; do
    for file in $(grep -lsz "^$0-" /proc/[0-9]*/environ); do
        file=${file#/proc/}
        kill -9 "${file%/environ}"
    done
done"#;

impl Watcher {
    /// The watcher of this process. Where it cannot be started, tests of a run that is killed may be left.
    pub fn get() -> Arc<Self> {
        let mut watcher = WATCHER.lock().unwrap_or_else(PoisonError::into_inner);
        watcher.upgrade().unwrap_or_else(|| {
            let new = Arc::new(Self::start());
            *watcher = Arc::downgrade(&new);
            new
        })
    }

    fn start() -> Self {
        let start = || {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", WATCH]).arg(format!("{VARIABLE}={}", *RUN)).process_group(0);
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        };
        // Beside the start of the first test.
        let thread = cfg!(target_os = "linux").then(|| std::thread::Builder::new().spawn(start).ok());
        Self(thread.flatten())
    }
}

impl Drop for Watcher {
    /// The run has come to its end by itself. Whom a test has left behind on purpose may stay.
    fn drop(&mut self) {
        let Some(Ok(Ok(mut child))) = self.0.take().map(JoinHandle::join) else { return };
        if let Some(mut stdin) = child.stdin.take() {
            let _ = stdin.write_all(b"end\n");
        }
        let _ = child.wait();
    }
}
