//! The near end of the byte stream to a sandbox that is somewhere else.
//!
//! At the far end runs `relay.py`: a socket for the template and its workers, whose connections are numbered and share
//! the stream, and hands for what the operating system does for processes of this machine. The program is sent through
//! the stream that it then serves, the worker's after it, so that a sandbox needs nothing but Python and pytest.
//!
//! A cut network closes nothing, so both ends say that they are there, and give up when the other has been silent for too
//! long. What the far end says is untrusted.

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde::Deserialize;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use super::link::{Link, Piece};
use super::message::Exit;
use super::output::last_lines;
use super::program;
use crate::connector::{describe_exit, next_event, tail_of};
use crate::provider::{Channel, Command, ExecEvent};

const PROGRAM: &str = include_str!("relay.py");

/// The version of what is said.
const VERSION: u32 = 1;
/// The oldest Python that the worker's program runs on.
const OLDEST_PYTHON: (u32, u32) = (3, 9);
/// How long either side may be silent.
const SILENCE: Duration = Duration::from_secs(30);
/// How long the relay holds back what a worker says that says much (`REST` in its program).
pub(super) const HELD: Duration = Duration::from_millis(10);
/// How long the relay may take to answer for the first time.
const FIRST_WORD: Duration = Duration::from_secs(30);
/// How long the relay may take to end with everything that it has started.
const FAREWELL: Duration = Duration::from_secs(8);
/// How much of what it writes to standard error is kept, in bytes.
const LAST_WORDS: usize = 4 << 10;
/// How many lines of that a message shows.
const TAIL_LINES: usize = 5;
/// The longest line: the longest message of a process, and its number.
const LONGEST_LINE: usize = (64 << 20) + 64;
/// How much of what comes before the relay's first word is kept.
const BANNER: usize = 64 << 10;
/// The most processes that may have connected in one sandbox over time.
const MOST_CONNECTIONS: u32 = 1_000_000;
/// How often the time of a message there and back is taken.
const PINGS: usize = 3;

/// Sends what is to be done at the far end. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    out: mpsc::UnboundedSender<Vec<u8>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Why nobody is there any more.
    fate: OnceLock<String>,
    round_trip: OnceLock<Duration>,
    next_question: AtomicU32,
    questions: Mutex<HashMap<u32, oneshot::Sender<Answer>>>,
}

/// What was asked for about a file.
#[derive(Debug, Default)]
struct Answer {
    text: String,
    length: u64,
}

impl Wire {
    /// A line, complete, for the process with this connection.
    pub fn send(&self, connection: u32, line: &[u8]) {
        let mut tagged = format!("{connection} ").into_bytes();
        tagged.extend_from_slice(line);
        // When nobody takes it the relay is gone, of which everybody hears.
        let _ = self.out.send(tagged);
    }

    /// Closes a connection.
    pub fn close(&self, connection: u32) {
        let _ = self.out.send(format!("{connection}\n").into_bytes());
    }

    fn order(&self, order: &serde_json::Value) {
        self.send(0, format!("{order}\n").as_bytes());
    }

    pub fn kill(&self, pid: Pid) {
        self.order(&serde_json::json!({ "type": "kill", "pid": pid.as_raw_nonzero() }));
    }

    pub fn interrupt(&self, pid: Pid) {
        self.order(&serde_json::json!({ "type": "interrupt", "pid": pid.as_raw_nonzero() }));
    }

    pub async fn tail(&self, path: &Path, from: u64, lines: usize) -> (String, u64) {
        let question = serde_json::json!({ "type": "tail", "path": path.to_string_lossy(), "from": from });
        let Answer { text, length } = self.ask(question).await;
        (last_lines(&text, lines), length)
    }

    pub async fn stacks(&self, pid: Pid, path: &Path, lines: usize) -> String {
        let pid = pid.as_raw_nonzero();
        let question = serde_json::json!({ "type": "stacks", "pid": pid, "path": path.to_string_lossy() });
        last_lines(&self.ask(question).await.text, lines)
    }

    /// Asks something. The answer is empty when the relay is gone before it comes.
    async fn ask(&self, mut question: serde_json::Value) -> Answer {
        let number = self.shared.next_question.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.shared.questions().insert(number, answer);
        if self.has_ended() {
            self.shared.questions().clear();
        }
        question["ask"] = number.into();
        self.order(&question);
        answered.await.unwrap_or_default()
    }

    pub fn has_ended(&self) -> bool {
        self.shared.fate.get().is_some()
    }

    /// Why nobody is there any more.
    pub fn fate(&self) -> String {
        self.shared.fate.get().cloned().unwrap_or_else(|| "its sandbox is out of reach".to_owned())
    }

    pub fn round_trip(&self) -> Duration {
        self.shared.round_trip.get().copied().unwrap_or_default()
    }

    /// Takes the time that a message takes there and back.
    pub async fn measure(&self) {
        let mut shortest = Duration::MAX;
        for _ in 0..PINGS {
            let asked = Instant::now();
            self.ask(serde_json::json!({ "type": "tail", "path": "", "from": 0 })).await;
            shortest = shortest.min(asked.elapsed());
        }
        let _ = self.shared.round_trip.set(shortest);
    }
}

impl Shared {
    fn questions(&self) -> std::sync::MutexGuard<'_, HashMap<u32, oneshot::Sender<Answer>>> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the relay says itself.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Word {
    Ready {
        nonce: String,
        version: u32,
        python: (u32, u32, u32),
        executable: String,
    },
    Answer {
        ask: u32,
        text: String,
        length: u64,
    },
    Ended {
        #[serde(default)]
        code: Option<i32>,
        #[serde(default)]
        signal: Option<i32>,
        text: String,
    },
    Started {
        directory: PathBuf,
    },
    Output {
        text: String,
    },
    Log {
        text: String,
    },
    #[serde(other)]
    Other,
}

/// What comes of listening once.
#[derive(Debug)]
pub(super) enum Heard {
    /// A process has connected.
    Connected(Link),
    /// The template has been started; where it and its workers leave what they write.
    Started(PathBuf),
    /// The template has ended: how, and what it wrote last.
    Ended(Exit, String),
    /// The template or a worker wrote this, where that is not kept for error messages.
    Output(String),
}

/// Why there is no relay.
#[derive(Debug)]
pub(crate) enum NoRelay {
    /// There can be none in sandboxes like this one: what is the matter, without saying where.
    Never(String),
    /// The sandbox broke.
    Broken(String),
}

/// The stream to a relay.
pub(super) struct Stream {
    input: std::pin::Pin<Box<dyn AsyncWrite + Send>>,
    output: crate::provider::OutputStream,
    wire: Wire,
    queue: mpsc::UnboundedReceiver<Vec<u8>>,
    /// What is on its way out.
    out: Vec<u8>,
    /// Whether some of it may still be in a buffer.
    dirty: bool,
    received: Vec<u8>,
    /// Up to where `received` holds no line end.
    scanned: usize,
    connections: HashMap<u32, mpsc::UnboundedSender<Piece>>,
    latest: u32,
    /// What was heard and has not been told yet.
    heard: std::collections::VecDeque<Heard>,
    last_words: Vec<u8>,
    heard_at: Instant,
    beat: Interval,
}

/// The command that starts a relay. `python` is shell language that starts Python.
pub(super) fn command(python: &str, nonce: &str) -> Command {
    let length = program().len();
    // Reads so much and not a byte more: what follows is for the program.
    let begin = format!("exec(open(0,\"rb\",2,closefd=False).read({length}))");
    Command::shell(format!("{python} -u -c '{begin}' {nonce}"))
}

/// The relay's program, of an even length, because it is read in pairs of bytes.
fn program() -> Vec<u8> {
    let mut program = PROGRAM.as_bytes().to_vec();
    if program.len() % 2 == 1 {
        program.push(b'\n');
    }
    program
}

impl Stream {
    /// Brings the relay's program to life at the other end of `channel`.
    pub async fn open(channel: Channel, nonce: &str) -> Result<Self, NoRelay> {
        let mut stream = Self::over(channel);
        match timeout(FIRST_WORD, stream.first_word(nonce)).await {
            Ok(first) => first.map(|()| stream),
            Err(_) => Err(NoRelay::Broken(format!("Python did not start in {} s", FIRST_WORD.as_secs()))),
        }
    }

    /// A stream that has still to send the program.
    fn over(channel: Channel) -> Self {
        let (out, queue) = mpsc::unbounded_channel();
        let mut beat = interval(SILENCE / 4);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            input: channel.input,
            output: channel.output,
            wire: Wire { out, shared: Arc::default() },
            queue,
            out: program(),
            dirty: true,
            received: Vec::new(),
            scanned: 0,
            connections: HashMap::new(),
            latest: 0,
            heard: std::collections::VecDeque::new(),
            last_words: Vec::new(),
            heard_at: Instant::now(),
            beat,
        }
    }

    async fn first_word(&mut self, nonce: &str) -> Result<(), NoRelay> {
        loop {
            let bytes = tokio::select! {
                sent = send(&mut self.input, &mut self.out), if self.dirty => {
                    // Whoever does not take it says why, or ends.
                    self.dirty = false;
                    drop(sent);
                    continue;
                }
                event = next_event(&mut self.output) => match event {
                    Some(Ok(ExecEvent::Stdout(bytes))) => bytes,
                    Some(Ok(ExecEvent::Stderr(bytes))) => {
                        self.keep(&bytes);
                        continue;
                    }
                    Some(Ok(ExecEvent::Exit(code))) => return Err(self.did_not_start(code)),
                    Some(Err(error)) => return Err(NoRelay::Broken(error.to_string())),
                    None => return Err(NoRelay::Broken("it ended without a word".to_owned())),
                },
            };
            self.received.extend_from_slice(&bytes);
            while let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                // Everything else is what a login shell prints.
                let word = line.strip_prefix(b"0 ").and_then(|word| serde_json::from_slice(word).ok());
                let Some(Word::Ready { nonce: said, version, python, executable }) = word else { continue };
                if said != nonce {
                    continue;
                }
                self.heard_at = Instant::now();
                if (python.0, python.1) < OLDEST_PYTHON {
                    return Err(NoRelay::Never(format!(
                        "{executable} is Python {}.{}.{}, and the tests need {}.{} or newer",
                        python.0, python.1, python.2, OLDEST_PYTHON.0, OLDEST_PYTHON.1
                    )));
                }
                if version != VERSION {
                    return Err(NoRelay::Never(format!("the relay speaks version {version}, this program {VERSION}")));
                }
                return Ok(());
            }
            let surplus = self.received.len().saturating_sub(BANNER);
            self.received.drain(..surplus);
        }
    }

    fn did_not_start(&self, code: Option<i32>) -> NoRelay {
        let said = tail_of(&self.last_words, TAIL_LINES);
        match code {
            Some(126 | 127) => NoRelay::Never(format!("there is no Python{said}")),
            code => NoRelay::Never(format!("Python does not start ({}){said}", describe_exit(code))),
        }
    }

    /// To the other end.
    pub fn wire(&self) -> Wire {
        self.wire.clone()
    }

    /// Has the template started.
    pub fn start(&self, env: &std::collections::BTreeMap<String, String>, pass_output_on: bool) {
        let worker: std::collections::BTreeMap<_, _> = program::FILES.iter().copied().collect();
        self.wire.order(&serde_json::json!({
            "type": "start",
            "worker": worker,
            "env": env,
            "silence": SILENCE.as_secs_f64(),
            "pass_output_on": pass_output_on,
        }));
    }

    /// What happens next at the other end. What is to be sent is sent meanwhile. May be dropped and called again.
    ///
    /// # Errors
    ///
    /// Why nobody is there any more.
    pub async fn next(&mut self) -> Result<Heard, String> {
        loop {
            if let Some(heard) = self.heard.pop_front() {
                return Ok(heard);
            }
            tokio::select! {
                line = self.queue.recv() => {
                    // The sender is in `wire`.
                    self.out.extend(line.unwrap_or_default());
                    while let Ok(line) = self.queue.try_recv() {
                        self.out.extend(line);
                    }
                    self.dirty = true;
                }
                sent = send(&mut self.input, &mut self.out), if self.dirty => {
                    self.dirty = false;
                    if let Err(error) = sent {
                        tracing::debug!(%error, "what is sent does not reach a relay");
                    }
                }
                event = next_event(&mut self.output) => self.on_event(event)?,
                _ = self.beat.tick() => {
                    if self.heard_at.elapsed() > SILENCE {
                        return Err(format!("nothing was heard from it for {} s", SILENCE.as_secs()));
                    }
                    self.wire.order(&serde_json::json!({ "type": "alive" }));
                }
            }
        }
    }

    fn on_event(&mut self, event: Option<crate::provider::ProviderResult<ExecEvent>>) -> Result<(), String> {
        self.heard_at = Instant::now();
        match event {
            Some(Ok(ExecEvent::Stdout(bytes))) => {
                self.received.extend_from_slice(&bytes);
                self.on_lines()
            }
            Some(Ok(ExecEvent::Stderr(bytes))) => {
                self.keep(&bytes);
                Ok(())
            }
            Some(Ok(ExecEvent::Exit(code))) => {
                let said = tail_of(&self.last_words, TAIL_LINES);
                Err(format!("the program that serves its workers ended: {}{said}", describe_exit(code)))
            }
            Some(Err(error)) => Err(error.to_string()),
            None => Err("the connection to it ended".to_owned()),
        }
    }

    fn keep(&mut self, words: &[u8]) {
        self.last_words.extend_from_slice(words);
        let surplus = self.last_words.len().saturating_sub(LAST_WORDS);
        self.last_words.drain(..surplus);
    }

    fn on_lines(&mut self) -> Result<(), String> {
        let received = std::mem::take(&mut self.received);
        let mut start = 0;
        while let Some(length) = received[self.scanned..].iter().position(|&byte| byte == b'\n') {
            let end = self.scanned + length;
            self.on_line(&received[start..end])?;
            start = end + 1;
            self.scanned = start;
        }
        self.received = received;
        self.received.drain(..start);
        self.scanned = self.received.len();
        if self.received.len() > LONGEST_LINE {
            return Err(format!("it sent a line of more than {LONGEST_LINE} bytes"));
        }
        Ok(())
    }

    fn on_line(&mut self, line: &[u8]) -> Result<(), String> {
        let space = line.iter().position(|&byte| byte == b' ');
        let (number, rest) = match space {
            Some(at) => (&line[..at], Some(&line[at + 1..])),
            None => (line, None),
        };
        let number = std::str::from_utf8(number).ok().and_then(|number| number.parse::<u32>().ok());
        let Some(number) = number.filter(|&number| number <= MOST_CONNECTIONS) else {
            let line: String = String::from_utf8_lossy(line).chars().take(100).collect();
            return Err(format!("it sent something that is not part of the protocol: {line:?}"));
        };
        match (number, rest) {
            (0, Some(word)) => self.on_word(word),
            (number, Some(rest)) => {
                if number > self.latest {
                    self.latest = number;
                    let (pieces, link) = mpsc::unbounded_channel();
                    self.connections.insert(number, pieces);
                    self.heard.push_back(Heard::Connected(Link::relayed(number, self.wire.clone(), link)));
                }
                if let Some(connection) = self.connections.get(&number) {
                    let mut piece = Vec::with_capacity(rest.len() + 1);
                    piece.extend_from_slice(rest);
                    piece.push(b'\n');
                    // Nobody may want to hear it any more.
                    let _ = connection.send(Piece::Lines(piece));
                }
                Ok(())
            }
            (number, None) => {
                if let Some(connection) = self.connections.remove(&number) {
                    let _ = connection.send(Piece::End);
                }
                Ok(())
            }
        }
    }

    fn on_word(&mut self, word: &[u8]) -> Result<(), String> {
        let word = serde_json::from_slice(word)
            .map_err(|error| format!("it sent a message that cannot be understood: {error}"))?;
        match word {
            Word::Answer { ask, text, length } => {
                if let Some(asked) = self.wire.shared.questions().remove(&ask) {
                    let _ = asked.send(Answer { text, length });
                }
            }
            Word::Ended { code, signal, text } => self.heard.push_back(Heard::Ended(Exit { code, signal }, text)),
            Word::Started { directory } => self.heard.push_back(Heard::Started(directory)),
            Word::Output { text } => self.heard.push_back(Heard::Output(text)),
            Word::Log { text } => tracing::warn!("{text}"),
            Word::Ready { .. } | Word::Other => {}
        }
        Ok(())
    }

    /// Nobody is there any more: everybody hears why.
    pub fn fail(&mut self, reason: &str) {
        let _ = self.wire.shared.fate.set(reason.to_owned());
        self.wire.shared.questions().clear();
        self.connections.clear();
    }

    /// Ends the relay, and with it all that it started.
    pub async fn finish(mut self) {
        self.fail("the run has ended");
        let ended = async {
            // Its standard input ends with this.
            let _ = send(&mut self.input, &mut self.out).await;
            let _ = self.input.shutdown().await;
            drop(self.input);
            while let Some(Ok(event)) = next_event(&mut self.output).await {
                if matches!(event, ExecEvent::Exit(_)) {
                    break;
                }
            }
        };
        if timeout(FAREWELL, ended).await.is_err() {
            tracing::warn!("the program that serves the workers of a sandbox did not end when it was told to");
        }
    }
}

/// Sends all of `out`; what has been sent is taken out of it, so this may be dropped and called again.
async fn send(input: &mut (impl AsyncWrite + Unpin), out: &mut Vec<u8>) -> std::io::Result<()> {
    while !out.is_empty() {
        let sent = input.write(out).await?;
        if sent == 0 {
            out.clear();
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        out.drain(..sent);
    }
    input.flush().await
}
