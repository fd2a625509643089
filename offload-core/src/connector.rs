//! Running a shell command, here or elsewhere.
//!
//! Providers and frameworks that are made of the user's shell commands all need the same care: a command runs in a
//! process group of its own, so that ending it ends everything that it started; its output is drained while it runs,
//! and bounded; a grandchild that keeps the pipes open hangs nobody. [`ShellConnector`] takes that care on this machine.
//!
//! What a command means, and whether its exit code is good or bad, is the caller's business.

mod bounded;
mod process;
pub(crate) mod template;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use crate::provider::{ExecEvent, ExecOutput, OutputStream, ProviderError, ProviderResult};

pub(crate) use process::{Stop, StopSource};

/// How much of each output stream is kept by default when output is [collected](collect), in bytes.
pub const OUTPUT_LIMIT: usize = 8 << 20;

/// A command line longer than this goes through a file: one argument of a program cannot exceed 128 KiB on Linux.
const LONGEST_ARGUMENT: usize = 100_000;

/// What a command line runs with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// The working directory; `None`: the connector's.
    pub working_dir: Option<PathBuf>,
    /// Environment on top of the connector's.
    pub env: BTreeMap<String, String>,
    /// After this long the command is ended with everything that it started; `None`: never.
    pub timeout: Option<Duration>,
    /// How many bytes of each stream [`Connector::run`] keeps; `None`: [`OUTPUT_LIMIT`].
    pub output_limit: Option<usize>,
}

/// Runs shell command lines somewhere.
#[async_trait]
pub trait Connector: Send + Sync {
    /// Starts `command_line` and streams what it does. Dropping the stream ends the command.
    ///
    /// # Errors
    ///
    /// [`ProviderError::Exec`] when it cannot be started.
    async fn run_stream(&self, command_line: &str, options: &RunOptions) -> ProviderResult<OutputStream>;

    /// Runs `command_line` to its end.
    ///
    /// # Errors
    ///
    /// As [`Self::run_stream`]. A command that fails is no error: see [`ExecOutput::exit_code`].
    async fn run(&self, command_line: &str, options: &RunOptions) -> ProviderResult<ExecOutput> {
        let stream = self.run_stream(command_line, options).await?;
        collect(stream, options.output_limit.unwrap_or(OUTPUT_LIMIT)).await
    }
}

/// Runs command lines on this machine: `SHELL -c LINE`, in a process group of its own, with an empty standard input.
#[derive(Debug, Clone)]
pub struct ShellConnector {
    shell: String,
    working_dir: Option<PathBuf>,
    env: BTreeMap<String, String>,
    end_leftovers: bool,
    stop: Option<Stop>,
}

impl Default for ShellConnector {
    fn default() -> Self {
        Self::new("/bin/sh")
    }
}

impl ShellConnector {
    /// A connector that has `shell` execute command lines, in this process's directory and environment.
    pub fn new(shell: impl Into<String>) -> Self {
        Self { shell: shell.into(), working_dir: None, env: BTreeMap::new(), end_leftovers: false, stop: None }
    }

    /// Where command lines run.
    #[must_use]
    pub fn with_working_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.working_dir = Some(dir.into());
        self
    }

    /// Environment on top of this process's own.
    #[must_use]
    pub fn with_env(mut self, env: BTreeMap<String, String>) -> Self {
        self.env = env;
        self
    }

    /// Has processes that a command left behind in its process group ended when the command ends. Without this they
    /// live on, as those of a daemon that was started on purpose.
    #[must_use]
    pub fn ending_leftovers(mut self) -> Self {
        self.end_leftovers = true;
        self
    }

    /// Ties every command to `stop`.
    #[must_use]
    pub(crate) fn with_stop(mut self, stop: Stop) -> Self {
        self.stop = Some(stop);
        self
    }
}

#[async_trait]
impl Connector for ShellConnector {
    async fn run_stream(&self, command_line: &str, options: &RunOptions) -> ProviderResult<OutputStream> {
        let failed = |error: std::io::Error| {
            let place = options.working_dir.as_ref().or(self.working_dir.as_ref());
            let place = place.map(|dir| format!(" in {}", dir.display())).unwrap_or_default();
            ProviderError::Exec(format!(
                "cannot run `{}`{place} with the shell {}: {error}; check that the shell and the directory exist",
                shorten(command_line),
                self.shell,
            ))
        };
        let mut command = tokio::process::Command::new(&self.shell);
        let mut script = None;
        if command_line.len() > LONGEST_ARGUMENT {
            let mut file = tempfile::Builder::new().prefix("offload-").suffix(".sh").tempfile().map_err(failed)?;
            file.write_all(command_line.as_bytes()).map_err(failed)?;
            let path = file.into_temp_path();
            command.arg(&*path);
            script = Some(path);
        } else {
            command.arg("-c").arg(command_line);
        }
        if let Some(dir) = options.working_dir.as_ref().or(self.working_dir.as_ref()) {
            command.current_dir(dir);
        }
        command.envs(&self.env).envs(&options.env);
        let settings = process::Settings {
            timeout: options.timeout,
            end_leftovers: self.end_leftovers,
            stop: self.stop.clone(),
            script,
        };
        process::start(command, settings).map_err(failed)
    }
}

/// The next event of a running command; `None` after the last.
pub async fn next_event(stream: &mut OutputStream) -> Option<ProviderResult<ExecEvent>> {
    std::future::poll_fn(|cx| stream.as_mut().poll_next(cx)).await
}

/// Waits for a command's end, keeping at most about `limit` bytes of each of its streams: the beginning and the end.
///
/// # Errors
///
/// What the stream reports; [`ProviderError::Exec`] when it ends without an exit.
pub async fn collect(mut stream: OutputStream, limit: usize) -> ProviderResult<ExecOutput> {
    let start = Instant::now();
    let mut stdout = bounded::HeadTail::new(limit);
    let mut stderr = bounded::HeadTail::new(limit);
    while let Some(event) = next_event(&mut stream).await {
        match event? {
            ExecEvent::Stdout(bytes) => stdout.push(&bytes),
            ExecEvent::Stderr(bytes) => stderr.push(&bytes),
            ExecEvent::Exit(exit_code) => {
                return Ok(ExecOutput {
                    exit_code,
                    stdout: stdout.into_bytes(),
                    stderr: stderr.into_bytes(),
                    duration: start.elapsed(),
                });
            }
        }
    }
    Err(ProviderError::Exec("the output of a command ended without an exit code".to_owned()))
}

/// Quotes `text` so that a POSIX shell reads it as one word, whatever is in it (NUL cannot be in an argument at all and
/// is left out).
pub fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./=:,@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    quote_always(text)
}

/// As [`quote`], with quotation marks even where none are needed.
pub(crate) fn quote_always(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('\'');
    for c in text.chars() {
        match c {
            '\'' => quoted.push_str("'\\''"),
            '\0' => {}
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    quoted
}

/// A command line as error messages show it: one line of bounded length.
pub(crate) fn shorten(line: &str) -> String {
    const LONGEST: usize = 200;
    let line = line.trim();
    let mut short: String = line.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().nth(LONGEST).is_some() {
        short.push('…');
    }
    short
}

/// How a command ended, for people: `exit code 3`, `killed by signal 11 (SIGSEGV)`, `ended at its time limit`.
pub(crate) fn describe_exit(exit_code: Option<i32>) -> String {
    let Some(code) = exit_code else { return "ended at its time limit".to_owned() };
    // Shells and providers report signal n as 128 + n.
    let signal = match code - 128 {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        _ => return format!("exit code {code}"),
    };
    format!("killed by signal {} ({signal})", code - 128)
}

/// The end of what a command wrote, indented, for error messages: its standard error, or its standard output where
/// that is empty.
pub(crate) fn tail(output: &ExecOutput, lines: usize) -> String {
    let bytes = if output.stderr.trim_ascii().is_empty() { &output.stdout } else { &output.stderr };
    tail_of(bytes, lines)
}

/// The last `lines` lines of `bytes`, each indented by two blanks and preceded by a line end.
pub(crate) fn tail_of(bytes: &[u8], lines: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let all: Vec<&str> = text.trim_end().lines().collect();
    let mut tail = String::new();
    for line in &all[all.len().saturating_sub(lines)..] {
        tail.push_str("\n  ");
        tail.push_str(line);
    }
    tail
}

#[cfg(test)]
mod tests;
