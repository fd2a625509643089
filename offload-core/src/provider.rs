//! Providers create, reach and destroy sandboxes.
//!
//! A provider is [`SandboxProvider::create_sandbox`] plus the five methods of [`Sandbox`]. That is enough to run any
//! suite, a command per batch. Sandboxes that can do more say so through provided methods: one that is this very
//! machine gives its [`HostSlot`], and tests then run in it without any command in between.

mod awaited;
pub mod default;
pub mod docker;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub mod local;
mod luggage;
pub mod ssh;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_core::Stream;
use tokio::io::AsyncWrite;

use crate::secret::Secrets;

/// What can go wrong with a sandbox. None of it is ever a test's failure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// The provider cannot work as configured; trying again is useless.
    #[error("{0}")]
    Unusable(String),
    /// A sandbox could not be created.
    #[error("{0}")]
    Create(String),
    /// A command could not be executed in a sandbox, or the sandbox went away meanwhile.
    #[error("{0}")]
    Exec(String),
    /// A file could not be brought in or out.
    #[error("{0}")]
    Transfer(String),
}

/// The result of a provider's operation.
pub type ProviderResult<T> = Result<T, ProviderError>;

/// A command to execute in a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// The program: a path, or a name looked up in the sandbox's `PATH`.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Environment variables, on top of the sandbox's own.
    pub env: BTreeMap<String, String>,
    /// Those among them whose values must not be seen by others: not in the arguments of any process.
    pub secret: BTreeSet<String>,
    /// The working directory; `None`: the sandbox's.
    pub working_dir: Option<PathBuf>,
    /// After this long the command is ended with everything that it started; `None`: never.
    pub timeout: Option<Duration>,
}

impl Command {
    /// A program with arguments.
    pub fn new<A: Into<String>>(program: impl Into<String>, args: impl IntoIterator<Item = A>) -> Self {
        Self { program: program.into(), args: args.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// A line for `/bin/sh`.
    pub fn shell(line: impl Into<String>) -> Self {
        Self::new("/bin/sh", ["-c".to_owned(), line.into()])
    }

    /// Program and arguments as a script for `/bin/sh`, without environment and working directory.
    pub(crate) fn script(&self) -> String {
        match (self.program.as_str(), self.args.as_slice()) {
            ("/bin/sh", [flag, script]) if flag == "-c" => script.clone(),
            _ => Self::new(self.program.clone(), self.args.clone()).to_shell(),
        }
    }

    /// Marks the variables in which one of `secrets` is.
    pub(crate) fn conceal(&mut self, secrets: &Secrets) {
        if !secrets.is_empty() {
            let secret = self.env.iter().filter(|(_, value)| secrets.are_in(value)).map(|(name, _)| name.clone());
            self.secret.extend(secret.collect::<Vec<_>>());
        }
    }

    /// The variables that [must not be seen](Self::secret), which [`Self::to_shell`] leaves out.
    pub fn secret_env(&self) -> BTreeMap<String, String> {
        let secret = self.env.iter().filter(|(name, _)| self.secret.contains(*name));
        secret.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// The command as one line for a POSIX shell: environment, working directory, program and arguments, all quoted. What
    /// is in the line can be seen by everybody on the machine, so variables that are [secret](Self::secret) are left out;
    /// they are to be handed on in another way.
    pub fn to_shell(&self) -> String {
        let mut line = String::new();
        if let Some(dir) = &self.working_dir {
            line.push_str("cd ");
            line.push_str(&crate::connector::quote(&dir.to_string_lossy()));
            line.push_str(" && ");
        }
        if self.env.keys().any(|name| !self.secret.contains(name)) {
            line.push_str("env ");
            for (key, value) in self.env.iter().filter(|(name, _)| !self.secret.contains(*name)) {
                line.push_str(&crate::connector::quote(&format!("{key}={value}")));
                line.push(' ');
            }
        }
        line.push_str(&crate::connector::quote(&self.program));
        for arg in &self.args {
            line.push(' ');
            line.push_str(&crate::connector::quote(arg));
        }
        line
    }
}

/// Something that a running command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// Bytes on standard output.
    Stdout(Vec<u8>),
    /// Bytes on standard error.
    Stderr(Vec<u8>),
    /// The command ended: its exit code, 128 + n for signal n, `None` when it was ended at its time limit. Always last.
    Exit(Option<i32>),
}

/// What a running command does, as it happens. Dropping it ends the command.
pub type OutputStream = Pin<Box<dyn Stream<Item = ProviderResult<ExecEvent>> + Send>>;

/// A running command that listens: what is written to it arrives at its standard input, which ends when `input` is
/// dropped.
pub struct Channel {
    /// Its standard input.
    pub input: Pin<Box<dyn AsyncWrite + Send>>,
    /// What it does.
    pub output: OutputStream,
}

/// What a finished command left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// The exit code; `None` when the command was ended at its time limit.
    pub exit_code: Option<i32>,
    /// Everything on standard output (head and tail beyond a bound).
    pub stdout: Vec<u8>,
    /// Everything on standard error (head and tail beyond a bound).
    pub stderr: Vec<u8>,
    /// How long it ran.
    pub duration: Duration,
}

/// What a new sandbox is for.
#[derive(Debug, Clone, Default)]
pub struct SandboxRequest {
    /// A name that is unique on this machine and over time: `<run id>-<number>`.
    pub name: String,
    /// The number of the sandbox within the run, from 0.
    pub index: usize,
    /// Environment for everything in the sandbox.
    pub env: BTreeMap<String, String>,
    /// What was built for the tests, for sandboxes that are somewhere else.
    pub built: Arc<Built>,
}

/// What a framework has built for its tests. It is not among a project's files, and tests expect it where it was built.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Built {
    /// The root of the repository, if the framework knows it.
    pub root: Option<PathBuf>,
    /// Files, and directories with everything in them; absolute paths.
    pub files: Vec<PathBuf>,
    /// Directories that are to be there, whatever is in them here.
    pub directories: Vec<PathBuf>,
    /// Files that are to be somewhere else than here.
    pub copies: Vec<CopyDir>,
}

/// A directory or file to bring into each sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyDir {
    /// Here.
    pub local: PathBuf,
    /// In the sandbox.
    pub remote: PathBuf,
}

/// The sandbox is a process slot of this machine: what is started there is started here, directly.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostSlot {
    /// Environment on top of this process's own.
    pub env: BTreeMap<String, String>,
}

/// Creates sandboxes.
#[async_trait]
pub trait SandboxProvider: Send + Sync {
    /// Creates one sandbox.
    ///
    /// # Errors
    ///
    /// [`ProviderError::Unusable`] when no further attempt can succeed; anything else is tried again a few times.
    async fn create_sandbox(&self, request: &SandboxRequest) -> ProviderResult<Box<dyn Sandbox>>;

    /// What users call this provider.
    fn name(&self) -> &str {
        "custom"
    }

    /// Does what all sandboxes of a run share, once, before the first is created (an image, a copy of the files).
    ///
    /// # Errors
    ///
    /// As [`Self::create_sandbox`]; a failure ends the run.
    async fn prepare(&self) -> ProviderResult<()> {
        Ok(())
    }

    /// The image that sandboxes start from, known once the provider is prepared. `None`, as by default: there is none.
    fn image_id(&self) -> Option<String> {
        None
    }

    /// No sandbox is needed any more: one that is still being created may be given up, leaving nothing behind. Called at
    /// most once, when the run ends.
    fn give_up(&self) {}

    /// Whether a test may be started a second time elsewhere while it still runs, because the sandboxes share nothing.
    fn isolates(&self) -> bool {
        true
    }

    /// Whether sandboxes have copies of this machine's files: none is created before everything is built, and each is
    /// told what was. As by default where sandboxes share nothing.
    fn is_elsewhere(&self) -> bool {
        self.isolates()
    }

    /// The most sandboxes that there can be at once, known once the provider is prepared. `None`, as by default: as many
    /// as are asked for.
    async fn most_sandboxes(&self) -> Option<usize> {
        None
    }

    /// What the user is to know and that is no error, each once. Asked for whenever something has been done.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// The run is over and its sandboxes are destroyed: removes whatever they shared. Called once, unless the process is
    /// in a hurry.
    async fn finish(&self) {}
}

/// One isolated place where tests execute.
#[async_trait]
pub trait Sandbox: Send + Sync {
    /// The name by which reports refer to it.
    fn id(&self) -> &str;

    /// Starts a command and streams what it does.
    ///
    /// # Errors
    ///
    /// [`ProviderError::Exec`] when it cannot be started; the sandbox then counts as lost.
    async fn exec_stream(&self, command: &Command) -> ProviderResult<OutputStream>;

    /// Brings a file or directory into the sandbox.
    ///
    /// # Errors
    ///
    /// [`ProviderError::Transfer`].
    async fn upload(&self, local: &Path, remote: &Path) -> ProviderResult<()>;

    /// Brings files out of the sandbox: pairs of a path there and a path here.
    ///
    /// # Errors
    ///
    /// [`ProviderError::Transfer`], also when a file is not there.
    async fn download(&self, paths: &[(PathBuf, PathBuf)]) -> ProviderResult<()>;

    /// Destroys the sandbox and everything in it. Called once, also after a loss.
    ///
    /// # Errors
    ///
    /// [`ProviderError::Exec`] when something may have been left behind; the message says what.
    async fn terminate(&self) -> ProviderResult<()>;

    /// Starts a command that can be written to, so that a worker can be talked to. `None`, as by default: that cannot be
    /// had here, or is of no use; tests then run by [`Self::exec_stream`].
    ///
    /// # Errors
    ///
    /// As [`Self::exec_stream`].
    async fn open_channel(&self, _command: &Command) -> ProviderResult<Option<Channel>> {
        Ok(None)
    }

    /// Where the sandbox is, as messages about what is missing there say it: `the image debian:12`.
    fn place(&self) -> String {
        format!("the sandbox {}", self.id())
    }

    /// Whether the project's files have the paths that they have here. By default they do.
    fn has_same_paths(&self) -> bool {
        true
    }

    /// For a sandbox that is a slot of this machine. By default it is not.
    fn host_slot(&self) -> Option<HostSlot> {
        None
    }
}

#[async_trait]
impl<T: SandboxProvider + ?Sized> SandboxProvider for Arc<T> {
    async fn create_sandbox(&self, request: &SandboxRequest) -> ProviderResult<Box<dyn Sandbox>> {
        (**self).create_sandbox(request).await
    }

    fn name(&self) -> &str {
        (**self).name()
    }

    async fn prepare(&self) -> ProviderResult<()> {
        (**self).prepare().await
    }

    fn image_id(&self) -> Option<String> {
        (**self).image_id()
    }

    fn give_up(&self) {
        (**self).give_up();
    }

    fn isolates(&self) -> bool {
        (**self).isolates()
    }

    fn is_elsewhere(&self) -> bool {
        (**self).is_elsewhere()
    }

    async fn most_sandboxes(&self) -> Option<usize> {
        (**self).most_sandboxes().await
    }

    fn warnings(&self) -> Vec<String> {
        (**self).warnings()
    }

    async fn finish(&self) {
        (**self).finish().await;
    }
}
