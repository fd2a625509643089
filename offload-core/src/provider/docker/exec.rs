//! One running command in a container.
//!
//! Docker starts commands in a running container and cannot end them. What can be ended is everything in the container
//! but its holder: `kill -1` in it, which also reaches what a test has put into the background.

use std::sync::Arc;
use std::time::Duration;

use bollard::container::LogOutput;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::container::{Inner, Output, until};
use super::watch::next;
use crate::provider::awaited::{Awaited, seen_to};
use crate::provider::{ExecEvent, OutputStream, ProviderError, ProviderResult};

/// How long everything has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// How long a paused container may take to go on.
const PAUSE: Duration = Duration::from_secs(10);

/// How long the word that memory ran out may take after a command was killed.
const NEWS: Duration = Duration::from_millis(300);

/// How long a killed command may take to be gone.
const GONE: Duration = Duration::from_secs(5);

/// Where a command is in its life.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Running,
    /// SIGTERM was sent; SIGKILL follows at the next alarm.
    Terminating,
    /// SIGKILL was sent.
    Killed,
}

/// The side that looks after the command.
struct Exec {
    inner: Arc<Inner>,
    id: String,
    events: mpsc::Sender<ProviderResult<ExecEvent>>,
    dropped: oneshot::Receiver<bool>,
    alarm: Option<Instant>,
    out_of_memory: u32,
}

/// What became of a command.
enum End {
    /// Its streams ended; before its time limit or not.
    Streams {
        timed_out: bool,
    },
    /// Nobody waits for it any more.
    Abandoned,
    Paused,
}

/// Looks after a command that was started as `id`, with `output`.
pub(super) fn follow(inner: &Arc<Inner>, id: String, output: Output, deadline: Option<Instant>) -> OutputStream {
    let (events, receiver) = mpsc::channel(16);
    let (drop_noted, dropped) = oneshot::channel();
    let out_of_memory = inner.fate().out_of_memory;
    let exec = Exec { inner: Arc::clone(inner), id, events, dropped, alarm: deadline, out_of_memory };
    tokio::spawn(exec.drive(output));
    Box::pin(Awaited::new(receiver, drop_noted, Some(inner.ending.clone())))
}

impl Exec {
    /// Passes on what the command does until it has ended, and ends it if it is dropped before.
    async fn drive(mut self, mut output: Output) {
        let last = match self.follow(&mut output).await {
            End::Streams { timed_out: true } => Some(Ok(ExecEvent::Exit(None))),
            End::Streams { timed_out: false } => Some(self.end().await),
            End::Paused => Some(Err(ProviderError::Exec(self.inner.paused()))),
            End::Abandoned => None,
        };
        let running = last.is_none();
        if let Some(last) = last {
            let _ = self.events.send(last).await;
        }
        let Self { inner, id, events, dropped, .. } = self;
        drop(events);
        if dropped.await.unwrap_or(true) {
            return;
        }
        if running {
            put_an_end(&inner, &id, &mut output).await;
        }
        seen_to(&inner.ending);
    }

    async fn follow(&mut self, output: &mut Output) -> End {
        let mut phase = Phase::Running;
        let inner = Arc::clone(&self.inner);
        let paused = inner.paused_for(PAUSE);
        tokio::pin!(paused);
        loop {
            tokio::select! {
                biased;
                () = self.events.closed() => return End::Abandoned,
                frame = next(output) => {
                    let event = match frame {
                        Some(Ok(LogOutput::StdErr { message })) => ExecEvent::Stderr(message.to_vec()),
                        Some(Ok(frame)) => ExecEvent::Stdout(frame.into_bytes().to_vec()),
                        // Whatever ends a container looks like this, too.
                        Some(Err(_)) | None => return End::Streams { timed_out: phase != Phase::Running },
                    };
                    if self.events.send(Ok(event)).await.is_err() {
                        return End::Abandoned;
                    }
                }
                () = until(self.alarm) => {
                    phase = match phase {
                        Phase::Running => {
                            self.inner.signal("kill -s TERM -- -1").await;
                            self.alarm = Some(Instant::now() + GRACE);
                            Phase::Terminating
                        }
                        Phase::Terminating => {
                            self.inner.signal("kill -s KILL -- -1").await;
                            self.alarm = Some(Instant::now() + GONE);
                            Phase::Killed
                        }
                        Phase::Killed => return End::Streams { timed_out: true },
                    };
                }
                () = &mut paused => return End::Paused,
            }
        }
    }

    /// What to say last of a command that ended by itself.
    async fn end(&self) -> ProviderResult<ExecEvent> {
        let code = self.inner.exit_code(&self.id).await;
        if !matches!(code, None | Some(137)) {
            // A shell may have outlived what memory ran out for.
            if code != Some(0) && self.inner.has_memory_limit() {
                self.tell_of_memory().await;
            }
            return Ok(ExecEvent::Exit(code));
        }
        // Killed: alone, or with the whole container?
        if let Some(loss) = self.inner.loss().await {
            return Err(ProviderError::Exec(loss));
        }
        let Some(code) = code else {
            let text =
                format!("the Docker daemon does not say how a command in the container {} ended", self.inner.short());
            return Err(ProviderError::Exec(text));
        };
        self.tell_of_memory().await;
        Ok(ExecEvent::Exit(Some(code)))
    }

    /// Says that memory ran out, if it did.
    async fn tell_of_memory(&self) {
        let known = self.out_of_memory;
        let (mut fates, id) = (self.inner.fates.clone(), self.inner.id.clone());
        let more = async {
            drop(fates.wait_for(|fates| fates.get(&id).is_some_and(|fate| fate.out_of_memory > known)).await);
        };
        if timeout(NEWS, more).await.is_ok() {
            let text = b"\noffload: the container ran out of memory (`memory` in [provider]), and the kernel killed a \
                         process of it\n";
            let _ = self.events.send(Ok(ExecEvent::Stderr(text.to_vec()))).await;
        }
    }
}

/// Ends a command with everything in its container, and waits until it is gone.
async fn put_an_end(inner: &Inner, exec: &str, output: &mut Output) {
    inner.signal("kill -s KILL -- -1").await;
    let gone = async {
        while let Some(Ok(_)) = next(output).await {}
        while inner.daemon.docker.inspect_exec(exec).await.is_ok_and(|exec| exec.running == Some(true)) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let _ = timeout(GONE, gone).await;
}
