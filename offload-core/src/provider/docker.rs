//! The provider `docker`: sandboxes that are containers.
//!
//! All containers of a run start from one image that holds the project's files, so that a further container costs the
//! start of a container and no upload. They live as long as this process does, whatever ends it: the first process of
//! each holds on to a connection of ours. What the daemon says and does is Docker's Engine API, spoken through bollard.

mod clean;
mod connect;
mod container;
mod exec;
mod image;
mod layer;
mod transfer;
mod tunnel;
mod watch;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bollard::models::HostConfig;
use tokio::sync::watch::Sender;
use tokio::sync::{Mutex, OnceCell};

pub use self::clean::{Cleaned, clean};
use self::connect::{Daemon, has_status, told};
use self::container::{Container, Spec};
use self::image::{BaseImage, base_image};
use self::layer::{Layer, Maker};
use self::watch::Watch;
use super::luggage::Packing;
use super::{
    Built, Channel, Command, OutputStream, ProviderError, ProviderResult, Sandbox, SandboxProvider, SandboxRequest,
};
use crate::cache::ImageKey;
use crate::config::{Config, DockerProviderConfig, ProviderConfig};
use crate::files::{Archive, FileSet};

/// The label with the directory that a container or an image is for.
const LABEL_PROJECT: &str = "offload.project";
/// The label with the name of the sandbox that a container is.
const LABEL_SANDBOX: &str = "offload.sandbox";
/// The label with the process that a container hangs on: `HOST:PID:` and something unique.
const LABEL_OWNER: &str = "offload.owner";
/// What [`LABEL_OWNER`] is of images: containers that others make from them inherit their labels.
const OWNER_OF_IMAGES: &str = "image";

/// How long a container that is being started when the run ends may take to be there, to be removed.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// The longest command that is handed to the daemon as it is; one argument of a program cannot exceed 128 KiB.
const LONGEST_ARGUMENT: usize = 100_000;

/// Where scripts go that are too long for an argument. Not below `/tmp`, which may be something that is mounted.
const SCRIPTS: &str = "/.offload";

/// What decides what is in the containers.
#[derive(Debug, Clone)]
struct Settings {
    config: DockerProviderConfig,
    override_image: Option<String>,
    no_cache: bool,
    packing: Packing,
    init_cmd: Option<String>,
    build_inputs: Vec<PathBuf>,
    /// Where images are remembered.
    memory_file: PathBuf,
    /// Bytes.
    memory: Option<i64>,
    binds: Vec<String>,
    project_label: String,
}

/// Sandboxes that are containers.
#[derive(Debug)]
pub struct DockerProvider {
    settings: Settings,
    owner: String,
    connection: OnceCell<Connection>,
    base: OnceCell<BaseImage>,
    layer: Mutex<Option<Layer>>,
    /// Nobody needs a sandbox any more.
    given_up: Sender<bool>,
}

#[derive(Debug)]
struct Connection {
    daemon: Daemon,
    watch: Watch,
}

impl DockerProvider {
    /// A provider for a whole configuration. Relative paths are below its `working_dir`.
    ///
    /// # Errors
    ///
    /// [`ProviderError::Unusable`] when the configuration names another provider, or one of its values means nothing.
    pub fn from_config(config: &Config) -> ProviderResult<Self> {
        let ProviderConfig::Docker(own) = &config.provider else {
            return Err(ProviderError::Unusable(
                "the provider `docker` was asked for, but [provider] configures another one; set `type = \"docker\"`"
                    .to_owned(),
            ));
        };
        let mut packing = Packing::from_config(config, "docker")?;
        packing.include.clone_from(&own.include);
        packing.exclude.clone_from(&own.exclude);
        packing.copy_dirs.clone_from(&own.copy_dirs);
        let directory = packing.directory.clone();
        let memory = own.memory.as_deref().map(bytes).transpose().map_err(ProviderError::Unusable)?;
        let binds = own.mounts.iter().map(|mount| bind(mount, &directory)).collect::<Result<_, _>>();
        let output_dir = directory.join(&config.report.output_dir);
        let settings = Settings {
            config: own.clone(),
            override_image: None,
            no_cache: false,
            init_cmd: config.offload.sandbox_init_cmd.clone(),
            build_inputs: config.checkpoint.build_inputs.iter().map(PathBuf::from).collect(),
            memory_file: output_dir.join("docker-images.json"),
            memory,
            binds: binds.map_err(ProviderError::Unusable)?,
            project_label: directory.to_string_lossy().into_owned(),
            packing,
        };
        let owner = clean::owner();
        Ok(Self {
            settings,
            owner,
            connection: OnceCell::new(),
            base: OnceCell::new(),
            layer: Mutex::new(None),
            given_up: Sender::new(false),
        })
    }

    /// Makes all images anew, whatever is remembered (`--no-cache`).
    #[must_use]
    pub fn without_cache(mut self) -> Self {
        self.settings.no_cache = true;
        self
    }

    /// Starts from this image (`--override-image-id`).
    #[must_use]
    pub fn with_image_id(mut self, id: impl Into<String>) -> Self {
        self.settings.override_image = Some(id.into());
        self
    }

    async fn connection(&self) -> ProviderResult<&Connection> {
        let connect = async {
            let daemon = Daemon::connect().await?;
            let watch = Watch::start(daemon.docker.clone(), format!("{LABEL_OWNER}={}", self.owner));
            Ok(Connection { daemon, watch })
        };
        self.connection.get_or_try_init(|| connect).await
    }

    async fn base(&self) -> ProviderResult<&BaseImage> {
        let connection = self.connection().await?;
        self.base.get_or_try_init(|| base_image(&connection.daemon, &self.settings)).await
    }

    fn labels(&self) -> HashMap<String, String> {
        HashMap::from([
            (LABEL_PROJECT.to_owned(), self.settings.project_label.clone()),
            (LABEL_OWNER.to_owned(), self.owner.clone()),
        ])
    }

    /// The image of this run, made by whoever comes first.
    async fn layer(&self, built: &Arc<Built>) -> ProviderResult<Layer> {
        let (connection, base) = (self.connection().await?, self.base().await?);
        let mut layer = self.layer.lock().await;
        if let Some(layer) = &*layer {
            return Ok(layer.clone());
        }
        let maker = Maker {
            daemon: &connection.daemon,
            settings: &self.settings,
            base,
            fates: connection.watch.fates(),
            labels: self.labels(),
            built: Arc::clone(built),
        };
        let made = maker.layer().await?;
        tracing::info!(image = made.image, files = made.files, bytes = made.bytes, "the image of this run");
        Ok(layer.insert(made).clone())
    }

    /// Creates and fills nothing, but starts: the container of one sandbox.
    async fn container(&self, request: &SandboxRequest, layer: &Layer) -> ProviderResult<Container> {
        let (connection, base) = (self.connection().await?, self.base().await?);
        let settings = &self.settings;
        let config = &settings.config;
        let mut env = config.env.clone();
        env.extend(request.env.clone());
        if let Some(root) = &settings.packing.repo_root {
            env.insert("OFFLOAD_ROOT".to_owned(), root.clone());
        }
        let mut labels = self.labels();
        labels.insert(LABEL_SANDBOX.to_owned(), request.name.clone());
        let spec = Spec {
            name: (!request.name.is_empty()).then(|| format!("offload-{}", request.name)),
            image: layer.image.clone(),
            image_name: format!("{} ({})", base.name, base.platform),
            platform: config.platform.clone(),
            user: config.user.clone().unwrap_or_else(|| base.user.clone()),
            env: env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            labels,
            host: HostConfig {
                auto_remove: Some(true),
                binds: Some(settings.binds.clone()),
                privileged: Some(config.privileged),
                ..settings.limits()
            },
        };
        let daemon = &connection.daemon;
        let create = async || Container::create(daemon, connection.watch.fates(), spec.clone()).await;
        let mut created = create().await;
        // A daemon that is being restarted has lost its containers and not its images.
        if matches!(&created, Err(error) if !has_answered(error))
            && !daemon.answers().await
            && daemon.comes_back().await
        {
            created = create().await;
        }
        let error = match created {
            Ok(container) => match container.start().await {
                Ok(()) => return Ok(container),
                Err(error) => {
                    if let Err(left) = container.remove().await {
                        tracing::warn!(left, "a container that did not start may be left behind; see `offload clean`");
                    }
                    return Err(error);
                }
            },
            Err(error) => error,
        };
        if has_status(&error, 404) && told(&error).contains("No such image") {
            // Somebody has removed it; the next attempt makes it anew.
            *self.layer.lock().await = None;
            return Err(ProviderError::Create("the image of this run was removed while it was in use".to_owned()));
        }
        Err(if has_answered(&error) || daemon.answers().await {
            let (image, told) = (&base.name, told(&error));
            ProviderError::Create(format!("the Docker daemon cannot create a container from {image}: {told}"))
        } else {
            ProviderError::Unusable(format!(
                "the Docker daemon at {} has gone away and did not come back; see what became of it (`systemctl status \
                 docker`)",
                daemon.address
            ))
        })
    }
}

/// Whether an error is the daemon's answer, and not the lack of one.
fn has_answered(error: &bollard::errors::Error) -> bool {
    matches!(error, bollard::errors::Error::DockerResponseServerError { .. })
}

/// The name of the images that are made for the project in this directory.
fn repository(project: &str) -> String {
    let name = Path::new(project).file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let plain: String = name.chars().filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit()).collect();
    let mut key = ImageKey::new();
    key.add(project);
    format!("offload/{}{}", if plain.is_empty() { String::new() } else { format!("{plain}-") }, key.short())
}

/// Whether an image's name is one that images of this repository are given here.
fn is_in(name: &str, repository: &str) -> bool {
    // Podman names the registry.
    let name = name.strip_prefix("localhost/").unwrap_or(name);
    name.strip_prefix(repository).is_some_and(|tag| tag.starts_with(':'))
}

impl Settings {
    /// The name of the images that are made for the project.
    fn repository(&self) -> String {
        repository(&self.project_label)
    }

    /// What containers may use.
    fn limits(&self) -> HostConfig {
        #[allow(clippy::cast_possible_truncation, reason = "no machine has that many CPUs")]
        let nano_cpus = self.config.cpus.map(|cpus| (cpus * 1e9) as i64);
        HostConfig {
            network_mode: self.config.network.clone(),
            nano_cpus,
            memory: self.memory,
            // With swap, a limit would be felt as slowness.
            memory_swap: self.memory,
            ..HostConfig::default()
        }
    }
}

/// `512m` as a number of bytes.
fn bytes(text: &str) -> Result<i64, String> {
    let trimmed = text.trim().to_lowercase();
    let number = trimmed.trim_end_matches("ib").trim_end_matches('b');
    let (number, shift) = match number.char_indices().next_back() {
        Some((at, 'k')) => (&number[..at], 10),
        Some((at, 'm')) => (&number[..at], 20),
        Some((at, 'g')) => (&number[..at], 30),
        _ => (number, 0),
    };
    let bytes = number.trim().parse::<i64>().ok().and_then(|number| number.checked_mul(1 << shift));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| {
        format!("`memory` in [provider] is {text:?}; expected a number with a unit, such as \"512m\" or \"2g\"")
    })
}

/// A mount as the daemon takes it; a source that begins with `.` is below the directory of the run.
fn bind(mount: &str, directory: &Path) -> Result<String, String> {
    let parts = mount.split_once(':').filter(|(source, rest)| !source.is_empty() && rest.starts_with('/'));
    let (source, rest) = parts.ok_or_else(|| {
        format!(
            "`mounts` in [provider] has {mount:?}; expected SOURCE:TARGET or SOURCE:TARGET:ro, with an absolute TARGET"
        )
    })?;
    if source.starts_with('.') {
        let source = directory.join(source);
        let source = source.canonicalize().map_err(|error| {
            format!("`mounts` in [provider] has {mount:?}, and there is no {}: {error}", source.display())
        })?;
        return Ok(format!("{}:{rest}", source.display()));
    }
    Ok(mount.to_owned())
}

#[async_trait]
impl SandboxProvider for DockerProvider {
    async fn create_sandbox(&self, request: &SandboxRequest) -> ProviderResult<Box<dyn Sandbox>> {
        let mut given_up = self.given_up.subscribe();
        let given_up = async { drop(given_up.wait_for(|given_up| *given_up).await) };
        tokio::pin!(given_up);
        let layer = tokio::select! {
            layer = self.layer(&request.built) => layer?,
            () = &mut given_up => return Err(self.remove_unfinished(request).await),
        };
        let sandbox = self.sandbox(request, &layer);
        tokio::pin!(sandbox);
        tokio::select! {
            created = &mut sandbox => created.map(|sandbox| Box::new(sandbox) as Box<dyn Sandbox>),
            () = &mut given_up => {
                // The daemon does what it was asked to do, whether anybody waits for its answer or not.
                if let Ok(Ok(sandbox)) = tokio::time::timeout(START_PATIENCE, sandbox).await {
                    let _ = sandbox.terminate().await;
                }
                Err(self.remove_unfinished(request).await)
            }
        }
    }

    fn give_up(&self) {
        self.given_up.send_replace(true);
    }

    fn name(&self) -> &str {
        "docker"
    }

    async fn prepare(&self) -> ProviderResult<()> {
        let connection = self.connection().await?;
        // What a run that was killed may have left, so that nobody has to think of it.
        clean::remove_dead(&connection.daemon, &self.settings.project_label).await;
        self.base().await.map(drop)
    }

    fn image_id(&self) -> Option<String> {
        Some(self.base.get()?.id.clone())
    }
}

impl DockerProvider {
    async fn sandbox(&self, request: &SandboxRequest, layer: &Layer) -> ProviderResult<DockerSandbox> {
        let container = self.container(request, layer).await?;
        let id = format!("docker-{}", request.index);
        let moved = self.settings.packing.repo_root.is_some();
        Ok(DockerSandbox { id, container, directory: layer.directory.clone(), moved })
    }

    /// Removes what there is of a sandbox that is not needed any more, and says so.
    async fn remove_unfinished(&self, request: &SandboxRequest) -> ProviderError {
        if let Some(connection) = self.connection.get() {
            clean::remove_unfinished(&connection.daemon, &self.owner, &request.name).await;
        }
        ProviderError::Create("the run ended before the sandbox was there".to_owned())
    }
}

/// A container that runs.
pub struct DockerSandbox {
    id: String,
    container: Container,
    directory: PathBuf,
    /// The repository is not where it is here.
    moved: bool,
}

impl DockerSandbox {
    fn transfer(&self, what: &str, path: &Path, error: &str) -> ProviderError {
        ProviderError::Transfer(format!("cannot bring {} {what} the sandbox {}: {error}", path.display(), self.id))
    }

    async fn send(&self, files: FileSet) -> Result<(), String> {
        let archive = Archive::start(files, crate::files::Owner::default());
        transfer::send(archive, &self.container.inner.daemon.docker, &self.container.inner.id).await
    }
}

#[async_trait]
impl Sandbox for DockerSandbox {
    fn id(&self) -> &str {
        &self.id
    }

    /// As [`Sandbox::exec_stream`]. Ending a command ends everything else that runs in the container, too.
    async fn exec_stream(&self, command: &Command) -> ProviderResult<OutputStream> {
        let mut command = command.clone();
        let dir = command.working_dir.take().unwrap_or_default();
        command.working_dir = Some(self.directory.join(dir));
        if command.args.iter().all(|arg| arg.len() < LONGEST_ARGUMENT) {
            return self.container.exec(&command, None).await;
        }
        let name = format!("{SCRIPTS}/{:016x}.sh", clean::unique());
        let files = FileSet::of_bytes(Path::new(&name), command.script().into_bytes());
        let sent = match files {
            Ok(files) => self.send(files).await,
            Err(error) => Err(error.to_string()),
        };
        sent.map_err(|error| {
            ProviderError::Exec(format!("cannot bring a long command into the sandbox {}: {error}", self.id))
        })?;
        command.program = "/bin/sh".to_owned();
        command.args = vec![name];
        self.container.exec(&command, None).await
    }

    async fn open_channel(&self, command: &Command) -> ProviderResult<Option<Channel>> {
        let mut command = command.clone();
        command.working_dir = Some(self.directory.join(command.working_dir.unwrap_or_default()));
        self.container.open(&command).await.map(Some)
    }

    fn has_same_paths(&self) -> bool {
        !self.moved
    }

    fn place(&self) -> String {
        format!("the image {}", self.container.image_name)
    }

    async fn upload(&self, local: &Path, remote: &Path) -> ProviderResult<()> {
        let (source, target) = (local.to_owned(), self.directory.join(remote));
        let files = tokio::task::spawn_blocking(move || {
            let mut files = FileSet::new();
            files.add_path(&source, &target).map(|()| files)
        });
        let files = files.await.map_err(|error| self.transfer("into", local, &error.to_string()))?;
        let files = files.map_err(|error| self.transfer("into", local, &error.to_string()))?;
        self.send(files).await.map_err(|error| self.transfer("into", local, &error))
    }

    async fn download(&self, paths: &[(PathBuf, PathBuf)]) -> ProviderResult<()> {
        let inner = &self.container.inner;
        for (remote, local) in paths {
            let there = self.directory.join(remote);
            let brought = transfer::download(&inner.daemon.docker, &inner.id, &there, local).await;
            brought.map_err(|error| self.transfer("out of", remote, &error))?;
        }
        Ok(())
    }

    async fn terminate(&self) -> ProviderResult<()> {
        self.container.remove().await.map_err(|error| {
            ProviderError::Exec(format!(
                "the container {} could not be removed: {error}; `offload clean` removes it later",
                self.container.inner.short()
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_a_unit() {
        assert_eq!(bytes("512m"), Ok(512 << 20));
        assert_eq!(bytes("2G"), Ok(2 << 30));
        assert_eq!(bytes("1 GiB"), Ok(1 << 30));
        assert_eq!(bytes("4096"), Ok(4096));
        for wrong in ["", "m", "lots", "-1g", "0", "99999999999g"] {
            assert!(bytes(wrong).unwrap_err().starts_with("`memory` in [provider] is"), "{wrong}");
        }
    }

    #[test]
    fn mounts_are_checked_and_relative_sources_resolved() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("data")).unwrap();
        assert_eq!(bind("./data:/data:ro", &root), Ok(format!("{}/data:/data:ro", root.display())));
        assert_eq!(bind("cache:/root/.cache", &root).as_deref(), Ok("cache:/root/.cache"));
        assert!(bind("./none:/data", &root).unwrap_err().contains("and there is no"));
        for wrong in ["", "data", "data:relative", ":/x"] {
            assert!(bind(wrong, &root).unwrap_err().contains("expected SOURCE:TARGET"), "{wrong}");
        }
    }
}
