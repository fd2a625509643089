use std::path::{Path, PathBuf};

use async_trait::async_trait;
use offload_core::connector::{Connector, RunOptions, ShellConnector, quote};
use offload_core::provider::{
    Command, OutputStream, ProviderError, ProviderResult, Sandbox, SandboxProvider, SandboxRequest,
};
use tempfile::TempDir;

/// Sandboxes that are empty directories.
pub struct ScratchProvider;

#[async_trait]
impl SandboxProvider for ScratchProvider {
    async fn create_sandbox(&self, request: &SandboxRequest) -> ProviderResult<Box<dyn Sandbox>> {
        let dir = TempDir::new().map_err(|error| ProviderError::Create(format!("cannot make a directory: {error}")))?;
        let shell = ShellConnector::default().with_working_dir(dir.path()).with_env(request.env.clone());
        let id = format!("scratch-{}", request.index);
        Ok(Box::new(ScratchSandbox { id, root: dir.path().to_owned(), dir: Some(dir).into(), shell }))
    }

    fn name(&self) -> &str {
        "scratch"
    }
}

struct ScratchSandbox {
    id: String,
    root: PathBuf,
    dir: std::sync::Mutex<Option<TempDir>>,
    shell: ShellConnector,
}

impl ScratchSandbox {
    async fn copy(&self, from: &Path, to: &Path) -> ProviderResult<()> {
        let (from, to) = (quote(&from.to_string_lossy()), quote(&to.to_string_lossy()));
        let line = format!("mkdir -p \"$(dirname {to})\" && cp -a {from} {to}");
        let output = ShellConnector::default().run(&line, &RunOptions::default()).await?;
        match output.exit_code {
            Some(0) => Ok(()),
            _ => Err(ProviderError::Transfer(String::from_utf8_lossy(&output.stderr).into_owned())),
        }
    }
}

#[async_trait]
impl Sandbox for ScratchSandbox {
    fn id(&self) -> &str {
        &self.id
    }

    async fn exec_stream(&self, command: &Command) -> ProviderResult<OutputStream> {
        let options = RunOptions { timeout: command.timeout, env: command.secret_env(), ..RunOptions::default() };
        self.shell.run_stream(&command.to_shell(), &options).await
    }

    async fn upload(&self, local: &Path, remote: &Path) -> ProviderResult<()> {
        self.copy(local, &self.root.join(remote)).await
    }

    async fn download(&self, paths: &[(PathBuf, PathBuf)]) -> ProviderResult<()> {
        for (remote, local) in paths {
            self.copy(&self.root.join(remote), local).await?;
        }
        Ok(())
    }

    async fn terminate(&self) -> ProviderResult<()> {
        let dir = self.dir.lock().ok().and_then(|mut dir| dir.take());
        let gone = dir.map_or(Ok(()), TempDir::close);
        gone.map_err(|error| ProviderError::Exec(format!("cannot remove {}: {error}", self.root.display())))
    }
}
