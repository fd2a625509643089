//! One run of Cargo, as a stream of what it says.

use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use cargo_metadata::Message;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::list::kill_group;
use super::toolchain::cargo_program;
use crate::framework::{FrameworkError, FrameworkResult};

/// How long output may still come after Cargo has ended: a daemon that a rustc wrapper started may hold the pipes.
const DRAIN: Duration = Duration::from_millis(500);

/// The longest line; what is longer comes in pieces, none of which is a message.
const LONGEST_LINE: u64 = 64 << 20;

/// Something that Cargo said.
pub(super) enum Said {
    /// A message for programs, on standard output.
    Message(Box<Message>),
    /// A line for people, on standard error.
    Line(String),
}

/// A running Cargo. Dropping it ends Cargo and everything that it started.
pub(super) struct CargoProcess {
    child: Child,
    said: mpsc::UnboundedReceiver<Said>,
    /// The tasks that read; they end with their pipes or with this.
    _readers: JoinSet<()>,
    ended: Option<ExitStatus>,
}

/// A command that runs Cargo in `dir`.
pub(super) fn cargo_command(dir: &Path, args: impl IntoIterator<Item = String>) -> Command {
    let mut command = Command::new(cargo_program());
    command.args(args).current_dir(dir);
    command
}

/// The message that a line is. What is none was printed by a build script or a wrapper, for nobody in particular.
pub(super) fn message(line: &str) -> Option<Message> {
    serde_json::from_str(line).ok()
}

/// Why a Cargo could not be started.
pub(super) fn not_started(error: &std::io::Error) -> FrameworkError {
    FrameworkError::Discovery(format!(
        "cannot start Cargo (`{}`): {error}; install Rust from https://rustup.rs, or set CARGO to the path of Cargo",
        cargo_program().display()
    ))
}

impl CargoProcess {
    /// Starts Cargo.
    pub(super) fn start(command: Command) -> FrameworkResult<Self> {
        let mut command = tokio::process::Command::from(command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(|error| not_started(&error))?;
        let (sender, said) = mpsc::unbounded_channel();
        let mut readers = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            readers.spawn(read_lines(stdout, sender.clone(), |line| {
                message(line).map(|message| Said::Message(Box::new(message)))
            }));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.spawn(read_lines(stderr, sender, |line| Some(Said::Line(line.to_owned()))));
        }
        Ok(Self { child, said, _readers: readers, ended: None })
    }

    /// What Cargo says next; `None` when it has ended and everything was read.
    pub(super) async fn next(&mut self) -> Option<Said> {
        if self.ended.is_none() {
            tokio::select! {
                biased;
                said = self.said.recv() => return said,
                status = self.child.wait() => self.ended = status.ok(),
            }
        }
        tokio::time::timeout(DRAIN, self.said.recv()).await.ok().flatten()
    }

    /// Waits for the end.
    pub(super) async fn wait(&mut self) -> FrameworkResult<ExitStatus> {
        match self.ended {
            Some(status) => Ok(status),
            None => self.child.wait().await.map_err(|error| {
                FrameworkError::Discovery(format!("cannot wait for Cargo to end: {error}; run again"))
            }),
        }
    }
}

impl Drop for CargoProcess {
    fn drop(&mut self) {
        kill_group(&self.child);
    }
}

async fn read_lines(
    pipe: impl AsyncRead + Unpin,
    sender: mpsc::UnboundedSender<Said>,
    parse: impl Fn(&str) -> Option<Said>,
) {
    let mut pipe = BufReader::with_capacity(64 * 1024, pipe);
    let mut line = Vec::new();
    while matches!((&mut pipe).take(LONGEST_LINE).read_until(b'\n', &mut line).await, Ok(read) if read > 0) {
        let text = String::from_utf8_lossy(&line);
        if let Some(said) = parse(text.trim_end_matches(['\n', '\r']))
            && sender.send(said).is_err()
        {
            return;
        }
        line.clear();
    }
}
