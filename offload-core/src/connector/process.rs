//! One running command: a process group, two pipes, a time limit.
//!
//! A task owns the process and ends with it. The other side holds the receiving end of a channel; dropping that is how
//! a command is ended early. When the runtime itself goes away, the task is dropped, and the group is killed at once.

use std::io;
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::provider::{ExecEvent, OutputStream, ProviderError, ProviderResult};

/// How long a process group has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// How long the pipes may stay open after the process has ended.
const DRAIN: Duration = Duration::from_millis(150);

/// More than a pipe can hold: what is read at most after [`DRAIN`] has passed.
const PIPE_CAPACITY: usize = 1 << 20;

/// Ends all commands that were started with it, and waits until they are gone.
#[derive(Debug, Clone)]
pub(crate) struct Stop {
    stopped: watch::Receiver<bool>,
    /// Held by each running command: the channel closes when the last is gone.
    _running: mpsc::Sender<()>,
}

/// The side that stops.
#[derive(Debug)]
pub(crate) struct StopSource {
    stop: watch::Sender<bool>,
    gone: mpsc::Receiver<()>,
}

impl Stop {
    pub(crate) fn new() -> (StopSource, Self) {
        let (stop, stopped) = watch::channel(false);
        let (running, gone) = mpsc::channel(1);
        (StopSource { stop, gone }, Self { stopped, _running: running })
    }
}

impl StopSource {
    /// Ends every command and waits for the end. All clones of the [`Stop`] outside of commands must be gone.
    pub(crate) async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.gone.recv().await.is_some() {}
    }
}

/// What a command runs under.
pub(super) struct Settings {
    pub(super) timeout: Option<Duration>,
    pub(super) end_leftovers: bool,
    pub(super) stop: Option<Stop>,
    /// Deleted when the command has ended.
    pub(super) script: Option<tempfile::TempPath>,
}

/// How long to wait for a program that is still open for writing, each time.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// Starts `command` and the task that looks after it.
pub(super) fn start(mut command: Command, settings: Settings) -> io::Result<OutputStream> {
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = spawn(&mut command)?;
    let group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    let (events, receiver) = mpsc::channel(16);
    tokio::spawn(Running { child, group, events }.drive(settings));
    Ok(Box::pin(Events(receiver)))
}

/// Starts `command`; a program that somebody has just written may still be open for writing for a moment, in a process
/// that is being forked elsewhere.
fn spawn(command: &mut Command) -> io::Result<tokio::process::Child> {
    for _ in 0..20 {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => std::thread::sleep(BUSY_PAUSE),
            started => return started,
        }
    }
    command.spawn()
}

struct Events(mpsc::Receiver<ProviderResult<ExecEvent>>);

impl Stream for Events {
    type Item = ProviderResult<ExecEvent>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

/// A process group that is killed when this is dropped before [`Group::release`].
struct Group(Option<Pid>);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.0 {
            // The only way to fail is that nobody is left.
            let _ = kill_process_group(pid, signal);
        }
    }

    fn release(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Where a command is in its life.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Running,
    /// SIGTERM was sent; SIGKILL follows at the next alarm.
    Terminating,
    /// SIGKILL was sent.
    Killed,
}

struct Running {
    child: Child,
    group: Group,
    events: mpsc::Sender<ProviderResult<ExecEvent>>,
}

impl Running {
    async fn drive(mut self, settings: Settings) {
        let Settings { timeout, end_leftovers, stop, script } = settings;
        let mut stdout = self.child.stdout.take();
        let mut stderr = self.child.stderr.take();
        let mut out_buffer = vec![0; 32 << 10];
        let mut err_buffer = vec![0; 8 << 10];
        let mut stopped = stop.as_ref().map(|stop| stop.stopped.clone());
        let mut alarm = timeout.and_then(|limit| Instant::now().checked_add(limit));
        let mut phase = Phase::Running;
        let mut timed_out = false;

        let status = loop {
            tokio::select! {
                status = self.child.wait() => break status,
                piece = read(&self.events, stdout.as_mut(), &mut out_buffer), if stdout.is_some() => match piece {
                    Some((permit, n)) => permit.send(Ok(ExecEvent::Stdout(out_buffer[..n].to_vec()))),
                    None => stdout = None,
                },
                piece = read(&self.events, stderr.as_mut(), &mut err_buffer), if stderr.is_some() => match piece {
                    Some((permit, n)) => permit.send(Ok(ExecEvent::Stderr(err_buffer[..n].to_vec()))),
                    None => stderr = None,
                },
                () = self.events.closed(), if phase == Phase::Running => {
                    alarm = Some(self.terminate(&mut phase));
                }
                () = wait_until_stopped(stopped.as_mut()), if phase == Phase::Running => {
                    alarm = Some(self.terminate(&mut phase));
                }
                () = wait_until(alarm) => match phase {
                    Phase::Running => {
                        timed_out = true;
                        alarm = Some(self.terminate(&mut phase));
                    }
                    Phase::Terminating | Phase::Killed => {
                        self.group.signal(Signal::KILL);
                        phase = Phase::Killed;
                        alarm = None;
                    }
                },
            }
        };
        if phase != Phase::Running {
            // Whoever outlives the leader has had its SIGTERM.
            self.group.signal(Signal::KILL);
        }

        // What was written before the end is still in the pipes; who holds them open after the end is not waited for.
        if !stopped.is_some_and(|stopped| *stopped.borrow()) {
            let drained = Instant::now() + DRAIN;
            drain(&self.events, stdout.as_mut(), &mut out_buffer, drained, ExecEvent::Stdout).await;
            drain(&self.events, stderr.as_mut(), &mut err_buffer, drained, ExecEvent::Stderr).await;
        }
        if end_leftovers {
            self.group.signal(Signal::KILL);
        }
        self.group.release();
        drop(script);

        let last = match status {
            Ok(_) if timed_out => Ok(ExecEvent::Exit(None)),
            Ok(status) => Ok(ExecEvent::Exit(Some(exit_code(status)))),
            Err(error) => Err(ProviderError::Exec(format!("cannot wait for a command: {error}"))),
        };
        // The processes are gone, which is all that a stop waits for: whoever stops need not be the one who listens.
        drop(stop);
        // Nobody listening is as good as heard.
        let _ = self.events.send(last).await;
    }

    /// Asks the group to end; returns when to insist.
    fn terminate(&self, phase: &mut Phase) -> Instant {
        self.group.signal(Signal::TERM);
        *phase = Phase::Terminating;
        Instant::now() + GRACE
    }
}

/// The exit code as a shell gives it: 128 + n for signal n.
fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

type Permit<'a> = mpsc::Permit<'a, ProviderResult<ExecEvent>>;

/// Reads once, when there is room for it in the channel. `None` at the end of the pipe, or when nobody listens.
async fn read<'a, R: AsyncRead + Unpin>(
    events: &'a mpsc::Sender<ProviderResult<ExecEvent>>,
    pipe: Option<&mut R>,
    buffer: &mut [u8],
) -> Option<(Permit<'a>, usize)> {
    let permit = events.reserve().await.ok()?;
    match pipe?.read(buffer).await {
        Ok(0) | Err(_) => None,
        Ok(n) => Some((permit, n)),
    }
}

/// Reads until the end of the pipe; after `deadline` only what is in the pipe already.
async fn drain<R: AsyncRead + Unpin>(
    events: &mpsc::Sender<ProviderResult<ExecEvent>>,
    pipe: Option<&mut R>,
    buffer: &mut [u8],
    deadline: Instant,
    event: fn(Vec<u8>) -> ExecEvent,
) {
    let Some(pipe) = pipe else { return };
    let mut late = 0;
    while late < PIPE_CAPACITY {
        // The channel is waited for without a limit: a slow listener must not cost output.
        let Ok(permit) = events.reserve().await else { return };
        let left = deadline.saturating_duration_since(Instant::now());
        match timeout(left, pipe.read(buffer)).await {
            Ok(Ok(n)) if n > 0 => {
                permit.send(Ok(event(buffer[..n].to_vec())));
                late += if left.is_zero() { n } else { 0 };
            }
            Ok(_) => return,
            Err(_) if left.is_zero() => return,
            Err(_) => {}
        }
    }
}

async fn wait_until(alarm: Option<Instant>) {
    match alarm {
        Some(alarm) => sleep_until(alarm).await,
        None => std::future::pending().await,
    }
}

async fn wait_until_stopped(stopped: Option<&mut watch::Receiver<bool>>) {
    // An error means that the source is gone: the sandbox was dropped without being terminated.
    match stopped {
        Some(stopped) => drop(stopped.wait_for(|stopped| *stopped).await),
        None => std::future::pending().await,
    }
}
