//! Starts one process in a group of its own and watches it: output, exit, time limit, orders to end it.
//!
//! The common case is what counts here, a process that lives a millisecond and writes four lines. So there is no
//! thread and no allocation per process beyond the standard library's own, nothing that would keep the standard library
//! from starting it by `posix_spawn`, and for the first moments only the process's end is waited for, not its output:
//! a process that writes its lines into pipes nobody sleeps on is not interrupted by its reader. Later it is read at
//! intervals.
//!
//! What the output and the exit status mean is not decided here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::family;
use super::mailbox::{Mailbox, Verdict};
use crate::worker::groups;

/// How long the output of a process may wait in its pipes before it is read for the first time, unless the output is
/// wanted as it comes. A process that fills a pipe sooner waits that long once.
const UNREAD: Duration = Duration::from_millis(20);

/// How long more output gathers after some was read, if that was not much: a process that writes millions of short lines
/// would otherwise wake its reader for each, and take twice as long for it.
const GATHER: Duration = Duration::from_millis(1);

/// How often a process is asked whether it has ended, where the system has no descriptor for that.
const ASK: Duration = Duration::from_millis(10);

/// How often it is looked whether time passes for a process that has a time limit.
const TICK: Duration = Duration::from_secs(1);

/// A wait that takes so much longer than it was to take was not ours: this process was stopped, or the machine slept.
const STOPPED: Duration = Duration::from_millis(500);

/// How long a program that is being written to by somebody else ("text file busy") is tried again.
const BUSY_TRIES: u32 = 40;

/// Which of a process's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
    /// What it was given to write its results into, if it was.
    Log,
}

/// Follows a process while it runs.
pub(super) trait Observer {
    /// The process wrote something.
    fn output(&mut self, stream: Stream, bytes: &[u8]);

    /// When the process has to be ended for taking too long; asked again after every output.
    fn deadline(&self) -> Option<Instant>;

    /// The process has not ended as soon as most do. Called at most once.
    fn runs_on(&mut self) {}

    /// Whether output is of use while the process runs.
    fn wants_output_early(&self) -> bool;
}

/// Who ended a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndedBy {
    Itself,
    TimeLimit,
    /// A cancel or the end of the worker.
    Order,
}

/// How a process ended.
#[derive(Debug)]
pub(super) struct End {
    pub(super) status: ExitStatus,
    pub(super) by: EndedBy,
    /// When it ended, whatever was waited for after that.
    pub(super) at: Instant,
    /// Something that the process started still holds its output.
    pub(super) leaky: bool,
}

/// The limits that hold for every process of a worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Between SIGTERM and SIGKILL.
    pub(super) kill_grace: Duration,
    /// How long output is waited for after the process has ended.
    pub(super) leak_timeout: Duration,
}

/// Whether there is too little of something that others give back when they end: files, processes, memory.
pub(super) fn is_scarcity(error: &io::Error) -> bool {
    let scarce = [Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| scarce.contains(&Errno::from_raw_os_error(code)))
}

/// A process that runs.
pub(super) struct Process {
    child: Child,
    group: Pid,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    /// The end of a pipe from which reading never blocks.
    log: Option<OwnedFd>,
    began: Instant,
    /// Becomes readable when the process has ended; absent where the system has no such thing.
    ended: Option<OwnedFd>,
    reaped: bool,
    /// What marks it and all that it starts.
    id: String,
    /// What it had started when it was told to end.
    family: Vec<family::Member>,
}

impl Process {
    /// Starts a command in a process group of its own, without input, its output in pipes.
    pub(super) fn start(command: &mut Command) -> io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let id = family::next_id();
        command.env(family::VARIABLE, &id);
        let mut tries = 0;
        let mut child = loop {
            match command.spawn() {
                // A linker, or a process forked by another thread of such a linker, still holds the file open.
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
                started => break started?,
            }
        };
        let group = Pid::from_child(&child);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        groups::enter(group);
        let ended = end_descriptor(group);
        let began = Instant::now();
        Ok(Self { child, group, stdout, stderr, log: None, ended, reaped: false, id, family: Vec::new(), began })
    }

    /// Has what the process writes into a pipe of its own followed, too. Reading from `log` must not block.
    pub(super) fn follow(&mut self, log: OwnedFd) {
        self.log = Some(log);
    }

    /// Watches the process until it has ended; `buffer` is where output passes through. The time during which this process
    /// was stopped, or `is_paused` says so, is not the test's.
    pub(super) fn watch(
        mut self,
        limits: Limits,
        is_paused: &dyn Fn() -> bool,
        mailbox: &Mailbox,
        observer: &mut dyn Observer,
        buffer: &mut [u8],
    ) -> io::Result<End> {
        let mut by = EndedBy::Itself;
        // Once the process was told to end: when patience with it is over.
        let mut kill_at: Option<Instant> = None;
        // Once it is waited for while all it had to do is done: when that ends.
        let mut finish_by: Option<Instant> = None;
        let mut killed = false;
        let mut read_from = (!observer.wants_output_early()).then(|| Instant::now() + UNREAD);
        let mut settled_in = false;
        // The deadline as the observer knows it, and the time that has not counted since it last changed.
        let (mut known_deadline, mut uncounted) = (None, Duration::ZERO);
        let mut looked = self.began;
        loop {
            let now = Instant::now();
            let deadline = observer.deadline();
            // This process may have been stopped while it did something else than to wait, before the first wait, too.
            let unseen = now.saturating_duration_since(looked);
            if deadline != known_deadline {
                uncounted = if known_deadline.is_none() && unseen > STOPPED { unseen } else { Duration::ZERO };
                known_deadline = deadline;
            } else if unseen > STOPPED {
                uncounted += unseen;
            }
            let limit = match kill_at.or(finish_by) {
                _ if killed => None,
                None => deadline.and_then(|deadline| deadline.checked_add(uncounted)),
                ordered => ordered,
            };
            if limit.is_some_and(|limit| limit <= now) {
                // It may have ended in time, and nobody has looked since.
                let watched = Watched { events: true, output: false };
                if kill_at.is_none() && self.poll(mailbox.wake_fd(), watched, Some(Duration::ZERO))?.ended {
                    return self.reap(by, limits, mailbox, observer, buffer);
                }
                if kill_at.is_some() {
                    self.kill();
                    killed = true;
                } else {
                    by = if finish_by.is_some() { EndedBy::Order } else { EndedBy::TimeLimit };
                    kill_at = Some(self.terminate(limits));
                }
                continue;
            }
            read_from = read_from.filter(|&from| from > now);
            if read_from.is_none() && !settled_in {
                settled_in = true;
                observer.runs_on();
            }
            let until = [limit, read_from].into_iter().flatten().min();
            let watched = Watched { events: true, output: read_from.is_none() };

            let paused = limit.is_some() && is_paused();
            let mut wait = until.map(|until| until - now);
            if deadline.is_some() {
                wait = wait.map(|wait| wait.min(TICK));
            }
            let ready = self.poll(mailbox.wake_fd(), watched, wait)?;
            looked = Instant::now();
            if let Some(wait) = wait.filter(|_| deadline.is_some()) {
                let waited = now.elapsed();
                let excess = waited.saturating_sub(wait);
                uncounted += match paused {
                    true => waited,
                    false if excess > STOPPED => excess,
                    false => Duration::ZERO,
                };
            }
            let mut most = 0;
            if ready.stdout {
                most = read(&mut self.stdout, Stream::Stdout, observer, buffer)?;
            }
            if ready.stderr {
                most = most.max(read(&mut self.stderr, Stream::Stderr, observer, buffer)?);
            }
            // Last: what belongs to a test has been read when its result is.
            if ready.log {
                most = most.max(self.read_log(observer, buffer)?);
            }
            // A full pipe, of which each page may be half empty, holds the process up.
            if most > 0 && most < buffer.len() / 2 {
                read_from = Some(Instant::now() + GATHER);
            }
            if ready.ended {
                return self.reap(by, limits, mailbox, observer, buffer);
            }
            if ready.order {
                let verdict = mailbox.verdict();
                match verdict {
                    Verdict::Continue => {}
                    Verdict::Finish => finish_by = finish_by.or_else(|| Some(now + limits.kill_grace)),
                    Verdict::End | Verdict::Kill if kill_at.is_none() => {
                        by = EndedBy::Order;
                        kill_at = Some(self.terminate(limits));
                    }
                    Verdict::End | Verdict::Kill => {}
                }
                if verdict == Verdict::Kill {
                    kill_at = Some(now);
                }
            }
        }
    }

    /// The process has ended but still has its number: nobody else can be hit by a signal to its group.
    fn reap(
        mut self,
        by: EndedBy,
        limits: Limits,
        mailbox: &Mailbox,
        observer: &mut dyn Observer,
        buffer: &mut [u8],
    ) -> io::Result<End> {
        if by != EndedBy::Itself {
            self.kill();
        }
        groups::leave(self.group);
        let status = self.child.wait()?;
        self.reaped = true;
        // Most processes leave nobody behind, and their pipes are at their end already.
        let at = Instant::now();
        let until = at + limits.leak_timeout;
        while self.stdout.is_some() || self.stderr.is_some() {
            let watched = Watched { events: false, output: true };
            let left = until.saturating_duration_since(Instant::now());
            let ready = self.poll(mailbox.wake_fd(), watched, Some(left))?;
            if ready.stdout {
                read(&mut self.stdout, Stream::Stdout, observer, buffer)?;
            }
            if ready.stderr {
                read(&mut self.stderr, Stream::Stderr, observer, buffer)?;
            }
            // Checked also after output: somebody who never stops writing must not hold up the run.
            if left.is_zero() {
                break;
            }
        }
        self.read_log(observer, buffer)?;
        let leaky = self.stdout.is_some() || self.stderr.is_some();
        Ok(End { status, by, at, leaky })
    }

    /// Reads what there is. Returns how much that was.
    fn read_log(&mut self, observer: &mut dyn Observer, buffer: &mut [u8]) -> io::Result<usize> {
        let mut total = 0;
        while let Some(log) = &self.log {
            match retry_on_intr(|| rustix::io::read(log, &mut *buffer)) {
                Ok(0) => self.log = None,
                Ok(length) => {
                    total += length;
                    observer.output(Stream::Log, &buffer[..length]);
                }
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(total)
    }

    /// Waits until something that is watched happens, at most for `timeout`.
    fn poll(&self, wake: BorrowedFd<'_>, watched: Watched, timeout: Option<Duration>) -> io::Result<Ready> {
        // What is not there or not watched is represented by a descriptor that nothing is expected of.
        fn slot<'fd>(fd: Option<BorrowedFd<'fd>>, wake: BorrowedFd<'fd>) -> PollFd<'fd> {
            match fd {
                Some(fd) => PollFd::from_borrowed_fd(fd, PollFlags::IN),
                None => PollFd::from_borrowed_fd(wake, PollFlags::empty()),
            }
        }
        let (stdout, stderr) = (self.stdout.as_ref().map(AsFd::as_fd), self.stderr.as_ref().map(AsFd::as_fd));
        let mut fds = [
            slot(watched.events.then_some(wake), wake),
            slot(self.ended.as_ref().map(AsFd::as_fd).filter(|_| watched.events), wake),
            slot(stdout.filter(|_| watched.output), wake),
            slot(stderr.filter(|_| watched.output), wake),
            slot(self.log.as_ref().map(AsFd::as_fd).filter(|_| watched.output), wake),
        ];
        let asking = watched.events && self.ended.is_none();
        let timeout = if asking { Some(timeout.map_or(ASK, |timeout| timeout.min(ASK))) } else { timeout };
        let timeout = timeout.map(|timeout| Timespec {
            // Centuries are as good as for ever.
            tv_sec: timeout.as_secs().min(u64::from(u32::MAX)).cast_signed(),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            // The caller's loop comes back with the time that is left.
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        }
        let is_ready = |at: usize, there: bool| there && !fds[at].revents().is_empty();
        Ok(Ready {
            order: is_ready(0, watched.events),
            ended: if asking { self.has_ended()? } else { is_ready(1, watched.events) },
            stdout: is_ready(2, watched.output && stdout.is_some()),
            stderr: is_ready(3, watched.output && stderr.is_some()),
            log: is_ready(4, watched.output && self.log.is_some()),
        })
    }

    /// Whether the process has ended, without taking its number from it.
    fn has_ended(&self) -> io::Result<bool> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = retry_on_intr(|| waitid(WaitId::Pid(self.group), options))?;
        Ok(status.is_some())
    }

    /// Tells the whole group to end; returns when patience with it ends.
    fn terminate(&mut self, limits: Limits) -> Instant {
        // Afterwards nobody knows any more who has started whom.
        self.family = family::descendants(self.group, &self.id, &[]);
        self.signal(Signal::TERM);
        // A stopped process would not notice.
        self.signal(Signal::CONT);
        Instant::now() + limits.kill_grace
    }

    /// Ends it with all that it has started.
    fn kill(&self) {
        family::kill_descendants(self.group, &self.id, &self.family);
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        // It fails only for a group without members, which has nothing left to end.
        let _ = kill_process_group(self.group, signal);
    }
}

impl Drop for Process {
    /// A process that could not be watched to its end is not left behind.
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            let _ = self.child.wait();
            groups::leave(self.group);
        }
    }
}

/// What a wait is for: `events` are the process's end and orders.
#[derive(Debug, Clone, Copy)]
struct Watched {
    events: bool,
    output: bool,
}

/// What a wait brought.
#[derive(Debug, Default)]
struct Ready {
    order: bool,
    ended: bool,
    stdout: bool,
    stderr: bool,
    log: bool,
}

/// Reads once, which does not block after `poll` said so; at its end the pipe is closed. Returns how much came.
fn read<P: AsFd>(
    pipe: &mut Option<P>,
    stream: Stream,
    observer: &mut dyn Observer,
    buffer: &mut [u8],
) -> io::Result<usize> {
    let Some(open) = pipe else { return Ok(0) };
    let length = retry_on_intr(|| rustix::io::read(&*open, &mut *buffer))?;
    match length {
        0 => *pipe = None,
        length => observer.output(stream, &buffer[..length]),
    }
    Ok(length)
}

/// A descriptor that becomes readable when a child ends. `None` where there is no such thing, or no descriptor left:
/// the child is then asked now and then.
#[cfg(target_os = "linux")]
fn end_descriptor(child: Pid) -> Option<OwnedFd> {
    rustix::process::pidfd_open(child, rustix::process::PidfdFlags::empty()).ok()
}

/// As above: there is no such thing here.
#[cfg(not(target_os = "linux"))]
fn end_descriptor(_child: Pid) -> Option<OwnedFd> {
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::worker::libtest::LibtestOptions;

    struct Collected {
        stdout: Vec<u8>,
        reads: u128,
        deadline: Option<Instant>,
    }

    impl Observer for Collected {
        fn output(&mut self, stream: Stream, bytes: &[u8]) {
            self.reads += 1;
            if stream == Stream::Stdout {
                self.stdout.extend_from_slice(bytes);
            }
        }

        fn deadline(&self) -> Option<Instant> {
            self.deadline
        }

        fn wants_output_early(&self) -> bool {
            false
        }
    }

    /// Runs a script as on a system that cannot tell when a child ends.
    fn watch(script: &str, limit: Option<Duration>) -> (End, String) {
        let mut process = Process::start(Command::new("/bin/sh").args(["-c", script])).unwrap();
        process.ended = None;
        let limits = Limits { kill_grace: Duration::from_millis(20), leak_timeout: Duration::from_millis(20) };
        let mailbox = Mailbox::new(&LibtestOptions::default()).unwrap();
        let mut observer =
            Collected { stdout: Vec::new(), reads: 0, deadline: limit.map(|limit| Instant::now() + limit) };
        let end = process.watch(limits, &|| false, &mailbox, &mut observer, &mut [0; 4096]).unwrap();
        (end, String::from_utf8(observer.stdout).unwrap())
    }

    #[test]
    fn a_process_is_followed_without_a_descriptor_for_its_end() {
        let (end, stdout) = watch("echo one; exec 1>&- 2>&-; sleep 0.05; exit 3", None);
        assert_eq!((end.status.code(), end.by, end.leaky), (Some(3), EndedBy::Itself, false));
        assert_eq!(stdout, "one\n");
    }

    #[test]
    fn a_process_that_ignores_the_polite_signal_is_killed() {
        let (end, _) = watch("trap '' TERM; while :; do sleep 1000; done", Some(Duration::from_millis(100)));
        assert_eq!(end.by, EndedBy::TimeLimit);
        assert!(!end.status.success() && end.status.code().is_none());
    }

    /// However long it takes on this machine, the reader wakes up a few times per millisecond at most.
    #[test]
    fn short_lines_are_read_many_at_once() {
        let script = "i=0; while [ $i -lt 30000 ]; do echo $i; i=$((i+1)); done";
        let process = Process::start(Command::new("/bin/sh").args(["-c", script])).unwrap();
        let limits = Limits { kill_grace: Duration::from_millis(20), leak_timeout: Duration::from_secs(20) };
        let mailbox = Mailbox::new(&LibtestOptions::default()).unwrap();
        let mut observer = Collected { stdout: Vec::new(), reads: 0, deadline: None };
        let began = Instant::now();
        process.watch(limits, &|| false, &mailbox, &mut observer, &mut vec![0; 64 << 10]).unwrap();
        let (reads, millis) = (observer.reads, began.elapsed().as_millis());
        assert!(observer.stdout.ends_with(b"\n29999\n"));
        // The rest of what is in the pipe when the process ends is read without a pause.
        assert!(reads <= millis + 10, "{reads} reads in {millis} ms");
    }
}
