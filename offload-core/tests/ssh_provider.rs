//! The provider `ssh`, against real servers.

#![allow(clippy::unwrap_used, clippy::panic, clippy::unreachable, reason = "a test that cannot go on has failed")]

#[path = "ssh/commands.rs"]
mod commands;
#[path = "ssh/faults.rs"]
mod faults;
#[path = "ssh/files.rs"]
mod files;
#[allow(dead_code, reason = "the tests of the command line need more of it")]
#[path = "support/sshd.rs"]
mod support;

use std::path::{Path, PathBuf};

use offload_core::config::{Config, ProviderConfig, SshHostConfig, SshProviderConfig};
use offload_core::connector::collect;
use offload_core::provider::ssh::SshProvider;
use offload_core::provider::{Command, ExecOutput, ProviderError, Sandbox, SandboxProvider, SandboxRequest};
use support::Sshd;

/// A project of a test's own and a host for it.
struct Project {
    dir: tempfile::TempDir,
    config: Config,
    sshd: Sshd,
}

impl Project {
    /// An empty one; `None` where there is no server to be had.
    fn new() -> Option<Self> {
        Some(Self::on(Sshd::start()?))
    }

    fn on(sshd: Sshd) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.offload.working_dir = Some(dir.path().to_owned());
        let hosts = vec![host(&sshd)];
        config.provider = ProviderConfig::Ssh(SshProviderConfig { hosts, ..SshProviderConfig::default() });
        Self { dir, config, sshd }
    }

    fn with(mut self, change: impl FnOnce(&mut Config, &mut SshProviderConfig)) -> Self {
        let ProviderConfig::Ssh(mut ssh) = self.config.provider.clone() else { unreachable!() };
        change(&mut self.config, &mut ssh);
        self.config.provider = ProviderConfig::Ssh(ssh);
        self
    }

    fn root(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap()
    }

    fn write(&self, path: impl AsRef<Path>, text: &str) -> &Self {
        let path = self.root().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    fn provider(&self) -> SshProvider {
        SshProvider::from_config(&self.config).unwrap().with_ssh(&self.sshd.ssh())
    }

    async fn sandbox(&self) -> (SshProvider, Box<dyn Sandbox>) {
        let provider = self.provider();
        let sandbox = provider.create_sandbox(&SandboxRequest::default()).await.unwrap();
        (provider, sandbox)
    }

    /// The end of a run, after which only what is kept for the next one is on the host.
    async fn ends(&self, provider: SshProvider, sandbox: Box<dyn Sandbox>) {
        sandbox.terminate().await.unwrap();
        provider.give_up();
        provider.finish().await;
        assert_eq!(self.sshd.runs(), [""; 0]);
    }
}

/// The host that a server is, with two slots.
fn host(sshd: &Sshd) -> SshHostConfig {
    SshHostConfig {
        host: "127.0.0.1".to_owned(),
        port: Some(sshd.port),
        slots: Some(2),
        workdir: Some(sshd.workdir().to_str().unwrap().to_owned()),
        ..SshHostConfig::default()
    }
}

async fn run(sandbox: &dyn Sandbox, command: &Command) -> Result<ExecOutput, ProviderError> {
    collect(sandbox.exec_stream(command).await?, usize::MAX).await
}

async fn sh(sandbox: &dyn Sandbox, line: &str) -> ExecOutput {
    run(sandbox, &Command::shell(line)).await.unwrap()
}

/// What a line prints, which succeeds.
async fn said(sandbox: &dyn Sandbox, line: &str) -> String {
    let output = sh(sandbox, line).await;
    assert_eq!(output.exit_code, Some(0), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
