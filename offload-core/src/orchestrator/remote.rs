//! A worker in a sandbox that is somewhere else, at the other end of a channel.
//!
//! Requests go in as lines, messages come out as lines ([`framing`](crate::worker::framing)). A cut network closes
//! nothing, so both sides say that they are there, and give up when the other has been silent for too long.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

use super::runner::{Report, RunnerContext};
use super::scheduler::SandboxIndex;
use crate::connector::{describe_exit, next_event, tail_of};
use crate::framework::{Execution, LibtestExecution};
use crate::provider::{Channel, ExecEvent, Sandbox};
use crate::worker::framing::{Decoder, encode};
use crate::worker::{Message, PROTOCOL_VERSION, Request};

/// How long either side may be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// How long a worker may take to answer for the first time.
const FIRST_WORD: Duration = Duration::from_secs(20);

/// How long a worker may take to end.
const FAREWELL: Duration = Duration::from_secs(5);

/// How much of what a worker writes to standard error is kept, in bytes.
const LAST_WORDS: usize = 4 << 10;

/// How many lines of that a message shows.
const TAIL_LINES: usize = 5;

/// A worker that has answered.
pub(super) struct Session {
    channel: Channel,
    decoder: Decoder,
    last_words: Vec<u8>,
}

/// What comes of listening to a worker once.
enum Heard {
    Messages,
    Nothing,
    /// It has ended, or cannot be understood: a sentence about it.
    End(String),
}

impl Session {
    /// Starts the worker that the framework has for sandboxes like this one. `None` where there is none, or it cannot run
    /// there; tests then run by commands.
    pub(super) async fn open(index: SandboxIndex, sandbox: &dyn Sandbox, context: &RunnerContext) -> Option<Self> {
        let Execution::Libtest(execution) = &context.execution else { return None };
        let LibtestExecution { worker: Some(command), isolation, .. } = execution else { return None };
        // What the worker is told has the paths of this machine.
        if sandbox.host_slot().is_some() || !sandbox.has_same_paths() {
            return None;
        }
        let mut command = command.clone();
        command.conceal(&context.secrets);
        let channel = match sandbox.open_channel(&command).await {
            Ok(channel) => channel?,
            Err(error) => {
                tracing::warn!(sandbox = sandbox.id(), %error, "no worker can be started");
                return None;
            }
        };
        let nonce = format!("{}-{}", context.run_id, index.0);
        let init = Request::Init {
            version: PROTOCOL_VERSION,
            nonce: nonce.clone(),
            isolation: *isolation,
            no_capture: context.no_capture,
            yield_on_failure: context.yield_on_failure,
            silence_ms: u64::try_from(SILENCE.as_millis()).unwrap_or(u64::MAX),
        };
        let mut session = Self { channel, decoder: Decoder::after_ready(nonce), last_words: Vec::new() };
        session.say(&init).await;
        match tokio::time::timeout(FIRST_WORD, session.ready()).await {
            Ok(Ok(())) => Some(session),
            Ok(Err(reason)) => {
                tracing::warn!(sandbox = sandbox.id(), reason, "the worker cannot run there; tests run by commands");
                None
            }
            Err(_) => {
                tracing::warn!(sandbox = sandbox.id(), "the worker does not answer; tests run by commands");
                None
            }
        }
    }

    async fn ready(&mut self) -> Result<(), String> {
        loop {
            let mut ready = false;
            match self.listen(&mut |message| ready |= matches!(message, Message::Ready { .. })).await {
                Heard::End(reason) => return Err(reason),
                Heard::Messages if ready => return Ok(()),
                Heard::Messages | Heard::Nothing => {}
            }
        }
    }

    /// Sends a request. One that does not arrive needs no word here: the worker's end will be heard.
    async fn say(&mut self, request: &Request) {
        let mut line = Vec::new();
        encode(request, &mut line);
        let sent = async {
            self.channel.input.write_all(&line).await?;
            self.channel.input.flush().await
        };
        if let Err(error) = sent.await {
            tracing::debug!(%error, "a request does not reach its worker");
        }
    }

    /// Waits for the next piece of output and hands out the messages in it.
    async fn listen(&mut self, take: &mut (dyn FnMut(Message) + Send)) -> Heard {
        match next_event(&mut self.channel.output).await {
            Some(Ok(ExecEvent::Stdout(bytes))) => self.decoder.push(&bytes),
            Some(Ok(ExecEvent::Stderr(bytes))) => {
                self.last_words.extend_from_slice(&bytes);
                let surplus = self.last_words.len().saturating_sub(LAST_WORDS);
                self.last_words.drain(..surplus);
                return Heard::Nothing;
            }
            Some(Ok(ExecEvent::Exit(code))) => {
                let said = tail_of(&self.last_words, TAIL_LINES);
                return Heard::End(format!("its worker ended: {}{said}", describe_exit(code)));
            }
            Some(Err(error)) => return Heard::End(error.to_string()),
            None => return Heard::End("its worker ended without a word".to_owned()),
        }
        loop {
            match self.decoder.next_message() {
                Ok(Some(message)) => take(message),
                Ok(None) => return Heard::Messages,
                Err(error) => return Heard::End(error.to_string()),
            }
        }
    }
}

/// A worker that can be sent requests.
pub(super) struct RemoteWorker {
    requests: mpsc::UnboundedSender<Request>,
    task: tokio::task::JoinHandle<()>,
}

impl RemoteWorker {
    /// Takes over a session; `report` hears what the worker says, and of its loss.
    pub(super) fn start(session: Session, report: impl FnMut(Report) + Send + 'static) -> Self {
        let (requests, inbox) = mpsc::unbounded_channel();
        Self { requests, task: tokio::spawn(converse(session, inbox, report)) }
    }

    pub(super) fn send(&self, request: Request) {
        // When nobody takes it, the loss of the worker has been reported.
        let _ = self.requests.send(request);
    }

    /// Ends the session; the sandbox is still there.
    pub(super) async fn finish(self) {
        let Self { requests, task } = self;
        let _ = requests.send(Request::Shutdown);
        drop(requests);
        if let Err(error) = task.await {
            tracing::error!(%error, "the conversation with a worker ended abnormally");
        }
    }
}

async fn converse(
    mut session: Session,
    mut requests: mpsc::UnboundedReceiver<Request>,
    mut report: impl FnMut(Report) + Send + 'static,
) {
    let mut heard = Instant::now();
    let mut beat = tokio::time::interval(SILENCE / 4);
    let mut farewell: Option<Instant> = None;
    loop {
        let mut ended = false;
        let mut take = |message| {
            ended |= matches!(message, Message::Bye { reason: None });
            report(Report::Message(message));
        };
        tokio::select! {
            request = requests.recv(), if farewell.is_none() => match request {
                Some(request) => session.say(&request).await,
                None => farewell = Some(Instant::now()),
            },
            what = session.listen(&mut take) => {
                heard = Instant::now();
                if let Heard::End(reason) = what {
                    if farewell.is_none() {
                        report(Report::Lost(reason));
                    }
                    return;
                }
                if ended {
                    return;
                }
            }
            _ = beat.tick() => {
                if heard.elapsed() > SILENCE {
                    let secs = SILENCE.as_secs();
                    report(Report::Lost(format!("nothing was heard from its worker for {secs} s")));
                    return;
                }
                session.say(&Request::Alive).await;
            }
            () = tokio::time::sleep(FAREWELL), if farewell.is_some() => return,
        }
    }
}
