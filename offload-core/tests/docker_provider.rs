//! The provider `docker`, against a real daemon.

#![allow(clippy::unwrap_used, clippy::panic, clippy::unreachable, reason = "a test that cannot go on has failed")]

#[path = "docker/commands.rs"]
mod commands;
#[path = "docker/faults.rs"]
mod faults;
#[path = "docker/images.rs"]
mod images;
#[path = "support/docker.rs"]
mod support;

use std::path::{Path, PathBuf};

use offload_core::config::{Config, DockerProviderConfig, ProviderConfig};
use offload_core::connector::collect;
use offload_core::provider::docker::DockerProvider;
use offload_core::provider::{Command, ExecOutput, ProviderError, Sandbox, SandboxProvider, SandboxRequest};

/// A project of a test's own, with everything that was made of it removed at the end.
struct Project {
    dir: tempfile::TempDir,
    config: Config,
}

impl Project {
    /// An empty one; `None` where there is no daemon.
    fn new() -> Option<Self> {
        let image = support::image()?;
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.offload.working_dir = Some(dir.path().to_owned());
        config.provider =
            ProviderConfig::Docker(DockerProviderConfig { image: Some(image), ..DockerProviderConfig::default() });
        Some(Self { dir, config })
    }

    fn with(mut self, change: impl FnOnce(&mut Config, &mut DockerProviderConfig)) -> Self {
        let ProviderConfig::Docker(mut docker) = self.config.provider.clone() else { unreachable!() };
        change(&mut self.config, &mut docker);
        self.config.provider = ProviderConfig::Docker(docker);
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

    fn provider(&self) -> DockerProvider {
        DockerProvider::from_config(&self.config).unwrap()
    }

    async fn sandbox(&self) -> (DockerProvider, Box<dyn Sandbox>) {
        let provider = self.provider();
        let sandbox = provider.create_sandbox(&self.request()).await.unwrap();
        (provider, sandbox)
    }

    /// A request with a name that is found again by [`Self::container`].
    fn request(&self) -> SandboxRequest {
        let name = self.root().file_name().unwrap().to_string_lossy().replace('.', "");
        SandboxRequest { name, ..SandboxRequest::default() }
    }

    fn container(&self) -> String {
        format!("offload-{}", self.request().name)
    }

    fn label(&self) -> String {
        format!("label=offload.project={}", self.root().display())
    }

    /// The ids of all of the project's containers.
    fn containers(&self) -> String {
        support::docker(&["ps", "-aq", "--filter", &self.label()])
    }

    async fn error(&self) -> ProviderError {
        match self.provider().create_sandbox(&self.request()).await {
            Ok(_) => panic!("there is a sandbox"),
            Err(error) => error,
        }
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let images = support::docker(&["images", "-q", "--no-trunc", "--filter", &self.label()]);
        for image in images.lines() {
            let _ = std::process::Command::new("docker").args(["rmi", "--force", image]).output();
        }
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
