//! One command on a host: a session on a connection, ended over there when nobody waits for it any more.

use std::pin::Pin;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::process::Child;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::link::{Link, end, until};
use super::marks::Marks;
use super::target::not_started;
use crate::connector::{quote, tail_of};
use crate::provider::awaited::{Awaited, seen_to};
use crate::provider::{Channel, ExecEvent, ProviderError, ProviderResult};
use crate::random;

/// How long a session may take to begin.
const BEGIN: Duration = Duration::from_secs(40);

/// How long everything has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// How long something killed may take to be gone.
const GONE: Duration = Duration::from_secs(10);

/// How long the loss of a connection may take to be known after the end of its sessions.
const NEWS: Duration = Duration::from_secs(2);

/// What is to be run.
#[derive(Debug, Clone, Default)]
pub(super) struct Job {
    /// For `/bin/sh`.
    pub(super) script: Vec<u8>,
    /// What goes before the shell.
    pub(super) enter: String,
    /// Whether it can be written to.
    pub(super) listens: bool,
    pub(super) timeout: Option<Duration>,
    /// Counts commands that nobody waits for any more and that have not ended yet.
    pub(super) ending: Option<watch::Sender<usize>>,
}

/// Starts a command.
///
/// # Errors
///
/// A sentence about what went wrong.
pub(super) async fn start(link: &Arc<Link>, job: Job) -> Result<Channel, String> {
    let permit = tokio::select! {
        permit = Arc::clone(&link.sessions).acquire_owned() => permit.map_err(|error| error.to_string())?,
        reason = link.fallen() => return Err(reason),
    };
    if let Some(reason) = link.loss() {
        return Err(reason);
    }
    let nonce = random::word();
    let mut ssh = link.ssh(&nonce);
    ssh.kill_on_drop(true);
    let mut child = ssh.spawn().map_err(|error| not_started(&error))?;
    let (Some(mut stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err("`ssh` was started without its streams".to_owned());
    };
    let mark = end(&nonce);
    let input = if job.listens { "''" } else { "/dev/null" };
    let mut script = format!(
        "own={} nonce={nonce} end={mark} enter={} input={input}\n{}{mark}\n",
        quote(&link.own),
        quote(&job.enter),
        include_str!("command.sh"),
    )
    .into_bytes();
    // What it was read from is not the command's.
    script.extend_from_slice(b"exec 7<&-\n");
    script.extend_from_slice(&job.script);
    script.extend_from_slice(format!("\n{mark}\n").as_bytes());

    let (events, receiver) = mpsc::channel(16);
    let (ready, begun) = oneshot::channel();
    let (drop_noted, dropped) = oneshot::channel();
    let session = Session {
        link: Arc::clone(link),
        child,
        out: Marks::new(&nonce),
        err: Marks::new(&nonce),
        events,
        ready: Some(ready),
        pid: String::new(),
        code: None,
        alarm: job.timeout.and_then(|limit| Instant::now().checked_add(limit)),
        phase: Phase::Running,
        timed_out: false,
    };
    tokio::spawn(session.drive(stdout, stderr, permit, dropped, job.ending.clone()));
    let output = Awaited::new(receiver, drop_noted, job.ending);
    // If that fails, the end of `ssh` tells why.
    let sent = async {
        let _ = stdin.write_all(&script).await;
        let _ = stdin.flush().await;
        begun.await
    };
    match timeout(BEGIN, sent).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(reason))) => return Err(reason),
        Ok(Err(_)) => return Err(format!("a session on {} ended before it began", link.target.name())),
        Err(_) => {
            let (name, secs) = (link.target.name(), BEGIN.as_secs());
            return Err(format!("{name} has not started a command within {secs} s"));
        }
    }
    let input: Pin<Box<dyn AsyncWrite + Send>> =
        if job.listens { Box::pin(stdin) } else { Box::pin(tokio::io::sink()) };
    Ok(Channel { input, output: Box::pin(output) })
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

/// The side that looks after a command.
struct Session {
    link: Arc<Link>,
    child: Child,
    out: Marks,
    err: Marks,
    events: mpsc::Sender<ProviderResult<ExecEvent>>,
    ready: Option<oneshot::Sender<Result<(), String>>>,
    /// The process that leads the session over there.
    pid: String,
    code: Option<i32>,
    alarm: Option<Instant>,
    phase: Phase,
    timed_out: bool,
}

impl Session {
    /// Passes on what the command does until it has ended, and ends it at its time limit, or when nobody waits for it.
    async fn drive(
        mut self,
        stdout: impl AsyncRead + Unpin,
        stderr: impl AsyncRead + Unpin,
        permit: OwnedSemaphorePermit,
        dropped: oneshot::Receiver<bool>,
        ending: Option<watch::Sender<usize>>,
    ) {
        let complete = self.follow(stdout, stderr).await;
        let last = if self.timed_out {
            Ok(ExecEvent::Exit(None))
        } else if let (true, Some(code)) = (complete, self.code) {
            Ok(ExecEvent::Exit(Some(code)))
        } else {
            self.end().await
        };
        if let Some(ready) = self.ready.take() {
            let _ = ready.send(Err(match &last {
                Err(error) => error.to_string(),
                Ok(_) => format!("a command on {} was ended before it began", self.link.target.name()),
            }));
        }
        let _ = self.events.send(last).await;
        let Self { mut child, events, .. } = self;
        // The session over there is over; its `ssh` knows it in a moment.
        if timeout(NEWS, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
        drop((permit, events));
        if !dropped.await.unwrap_or(true)
            && let Some(ending) = ending
        {
            seen_to(&ending);
        }
    }

    /// Reads both streams; returns whether both came to their ends.
    async fn follow(&mut self, stdout: impl AsyncRead + Unpin, stderr: impl AsyncRead + Unpin) -> bool {
        let (mut stdout, mut stderr) = (Some(stdout), Some(stderr));
        let (mut out_buffer, mut err_buffer) = (vec![0; 64 << 10], vec![0; 16 << 10]);
        let events = self.events.clone();
        loop {
            if self.out.has_ended() && self.err.has_ended() {
                return true;
            }
            if (stdout.is_none() && stderr.is_none()) || self.out.is_lost() || self.err.is_lost() {
                return false;
            }
            // What nobody waits for is read all the same, so that it can end.
            tokio::select! {
                (permit, read) = read(&events, stdout.as_mut(), &mut out_buffer), if stdout.is_some() => {
                    let found = self.out.push(out_buffer.get(..read).unwrap_or_default());
                    if let Some(pid) = found.began {
                        self.pid = pid;
                    }
                    let bytes = if read == 0 { self.out.rest() } else { found.bytes };
                    if read == 0 {
                        stdout = None;
                    }
                    if let (Some(permit), false) = (permit, bytes.is_empty()) {
                        permit.send(Ok(ExecEvent::Stdout(bytes)));
                    }
                }
                (permit, read) = read(&events, stderr.as_mut(), &mut err_buffer), if stderr.is_some() => {
                    let found = self.err.push(err_buffer.get(..read).unwrap_or_default());
                    if let Some(code) = found.ended {
                        self.code = code.parse().ok();
                    }
                    let bytes = if read == 0 { self.err.rest() } else { found.bytes };
                    if read == 0 {
                        stderr = None;
                    }
                    if let (Some(permit), false) = (permit, bytes.is_empty()) {
                        permit.send(Ok(ExecEvent::Stderr(bytes)));
                    }
                }
                () = events.closed(), if self.phase == Phase::Running => {
                    if !self.has_begun() {
                        return false;
                    }
                    self.terminate();
                }
                () = until(self.alarm) => match self.phase {
                    Phase::Running => {
                        self.timed_out = true;
                        self.terminate();
                    }
                    Phase::Terminating => {
                        self.link.end(&self.pid, true);
                        self.phase = Phase::Killed;
                        self.alarm = Some(Instant::now() + GONE);
                    }
                    Phase::Killed => return false,
                },
            }
            if self.has_begun()
                && let Some(ready) = self.ready.take()
            {
                // Whoever started it has gone: that is noticed above.
                let _ = ready.send(Ok(()));
            }
        }
    }

    fn has_begun(&self) -> bool {
        self.out.has_begun() && self.err.has_begun()
    }

    /// Asks everything in the session to end.
    fn terminate(&mut self) {
        self.link.end(&self.pid, false);
        self.phase = Phase::Terminating;
        self.alarm = Some(Instant::now() + GRACE);
    }

    /// What to say last of a command that ended without telling how.
    async fn end(&mut self) -> ProviderResult<ExecEvent> {
        if let Some(reason) = self.link.loss_within(NEWS).await {
            return Err(ProviderError::Exec(reason));
        }
        if self.has_begun() {
            // It was killed together with the shell that would have told, as by `kill -9 0`.
            return Ok(ExecEvent::Exit(Some(137)));
        }
        let status: Option<ExitStatus> = timeout(NEWS, self.child.wait()).await.ok().and_then(Result::ok);
        let (name, said) = (self.link.target.name(), tail_of(self.err.banner(), 3));
        let hint = if said.contains("refused") || said.contains("administratively") {
            "; the server is to allow at least 8 sessions on a connection (`MaxSessions` in its sshd_config)"
        } else {
            ""
        };
        tracing::debug!(?status, "a session did not begin");
        Err(ProviderError::Exec(format!("{name} does not start a command{hint}:{said}")))
    }
}

/// Reads once, when somebody can take it or nobody will; 0 at the end.
async fn read<'a, R: AsyncRead + Unpin>(
    events: &'a mpsc::Sender<ProviderResult<ExecEvent>>,
    pipe: Option<&mut R>,
    buffer: &mut [u8],
) -> (Option<mpsc::Permit<'a, ProviderResult<ExecEvent>>>, usize) {
    let permit = events.reserve().await.ok();
    let read = match pipe {
        Some(pipe) => pipe.read(buffer).await.unwrap_or(0),
        None => 0,
    };
    (permit, read)
}
