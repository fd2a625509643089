//! The provider `local`: sandboxes that are process slots of this machine.
//!
//! Nothing is copied and nothing is isolated: commands run in the working directory as it is. What a sandbox adds is
//! that it can be ended: [`Sandbox::terminate`] leaves no process of it behind. Frameworks with a worker do without
//! commands altogether ([`Sandbox::host_slot`]).

mod copy;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use async_trait::async_trait;

use super::{Command, HostSlot, OutputStream, ProviderError, ProviderResult, Sandbox, SandboxProvider, SandboxRequest};
use crate::config::LocalProviderConfig;
use crate::connector::{Connector as _, RunOptions, ShellConnector, Stop, StopSource, quote};

/// Sandboxes on this machine.
#[derive(Debug, Clone, Default)]
pub struct LocalProvider {
    config: LocalProviderConfig,
}

impl LocalProvider {
    /// A provider as configured. A relative working directory is one below the current directory.
    pub fn new(config: LocalProviderConfig) -> Self {
        Self { config }
    }

    fn working_dir(&self) -> ProviderResult<PathBuf> {
        let configured = self.config.working_dir.as_deref().unwrap_or(Path::new("."));
        let problem = |what: &str| {
            ProviderError::Unusable(format!(
                "cannot run tests in {}: {what}; create the directory or change `working_dir` in [provider]",
                configured.display(),
            ))
        };
        let dir = configured.canonicalize().map_err(|error| problem(&error.to_string()))?;
        if dir.is_dir() { Ok(dir) } else { Err(problem("it is not a directory")) }
    }
}

#[async_trait]
impl SandboxProvider for LocalProvider {
    async fn create_sandbox(&self, request: &SandboxRequest) -> ProviderResult<Box<dyn Sandbox>> {
        let working_dir = self.working_dir()?;
        let mut env = self.config.env.clone();
        env.extend(request.env.clone());
        let (source, stop) = Stop::new();
        let shell = ShellConnector::new(self.config.shell.as_deref().unwrap_or("/bin/sh"))
            .with_working_dir(&working_dir)
            .with_env(env.clone())
            .ending_leftovers()
            .with_stop(stop);
        Ok(Box::new(LocalSandbox {
            id: format!("local-{}", request.index),
            working_dir,
            host: HostSlot { env },
            alive: Mutex::new(Some((source, shell))),
        }))
    }

    fn name(&self) -> &str {
        "local"
    }

    async fn prepare(&self) -> ProviderResult<()> {
        self.working_dir().map(drop)
    }

    fn isolates(&self) -> bool {
        false
    }
}

/// A process slot of this machine.
#[derive(Debug)]
pub struct LocalSandbox {
    id: String,
    working_dir: PathBuf,
    host: HostSlot,
    /// What ends the sandbox's commands, and what starts them; nothing once it has been terminated.
    alive: Mutex<Option<(StopSource, ShellConnector)>>,
}

impl LocalSandbox {
    fn alive(&self) -> std::sync::MutexGuard<'_, Option<(StopSource, ShellConnector)>> {
        self.alive.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn copy(&self, from: PathBuf, to: PathBuf) -> ProviderResult<()> {
        tokio::task::spawn_blocking(move || copy::copy(&from, &to))
            .await
            .map_err(|error| ProviderError::Transfer(format!("copying was interrupted: {error}")))?
            .map_err(|error| ProviderError::Transfer(error.to_string()))
    }
}

#[async_trait]
impl Sandbox for LocalSandbox {
    fn id(&self) -> &str {
        &self.id
    }

    async fn exec_stream(&self, command: &Command) -> ProviderResult<OutputStream> {
        let shell = self.alive().as_ref().map(|(_, shell)| shell.clone());
        let shell = shell.ok_or_else(|| {
            ProviderError::Exec(format!("cannot run a command in the sandbox {}: it was terminated", self.id))
        })?;
        let options = RunOptions {
            working_dir: command.working_dir.as_ref().map(|dir| self.working_dir.join(dir)),
            env: command.env.clone(),
            timeout: command.timeout,
            output_limit: None,
        };
        shell.run_stream(&line_of(command), &options).await
    }

    async fn upload(&self, local: &Path, remote: &Path) -> ProviderResult<()> {
        self.copy(local.to_owned(), self.working_dir.join(remote)).await
    }

    async fn download(&self, paths: &[(PathBuf, PathBuf)]) -> ProviderResult<()> {
        for (remote, local) in paths {
            self.copy(self.working_dir.join(remote), local.clone()).await?;
        }
        Ok(())
    }

    async fn terminate(&self) -> ProviderResult<()> {
        let alive = self.alive().take();
        if let Some((source, shell)) = alive {
            drop(shell);
            source.stop().await;
        }
        Ok(())
    }

    fn host_slot(&self) -> Option<HostSlot> {
        Some(self.host.clone())
    }
}

/// The command as a line for the configured shell. [`Command::shell`] is one already: it gets the shell that the user
/// chose, and no second one around it.
fn line_of(command: &Command) -> String {
    if let ("/bin/sh", [flag, line]) = (command.program.as_str(), command.args.as_slice())
        && flag == "-c"
    {
        return line.clone();
    }
    let mut line = format!("exec {}", quote(&command.program));
    for arg in &command.args {
        line.push(' ');
        line.push_str(&quote(arg));
    }
    line
}
