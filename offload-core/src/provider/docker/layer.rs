//! The image that all containers of a run start from: the base image with the project's files in it.
//!
//! Files travel once, into an image, and not once per container. The image is remembered with what it holds, and the
//! next run adds only what has changed since, as a thin layer on top. Every layer costs a little at each start, so
//! after some of them the differences are taken to the first image again.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bollard::models::{ContainerConfig, HostConfig};
use bollard::query_parameters::{CommitContainerOptionsBuilder, RemoveImageOptionsBuilder};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::connect::{Daemon, told};
use super::container::{Container, Spec};
use super::image::BaseImage;
use super::transfer::{read, send};
use super::watch::Fates;
use super::{LABEL_OWNER, OWNER_OF_IMAGES, Settings, is_in};
use crate::cache::ImageKey;
use crate::connector::{OUTPUT_LIMIT, collect, describe_exit, shorten, tail};
use crate::files::{Archive, FileSet, Manifest, Owner};
use crate::provider::luggage::Luggage;
use crate::provider::{Built, Command, ProviderError, ProviderResult};

/// The most layers on top of the first image.
const MOST_LAYERS: usize = 10;

/// How many different first images are remembered.
const MOST_CHAINS: usize = 4;

/// How many lines of a failed `sandbox_init_cmd` its error shows.
const TAIL_LINES: usize = 15;

/// The script that removes files; it removes itself, too.
const REMOVAL: &str = "/.offload-remove.sh";

/// Where everything is in a container.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) image: String,
    /// Where tests run.
    pub(super) directory: PathBuf,
    pub(super) files: usize,
    pub(super) bytes: u64,
}

/// What travels, and where to.
struct Cargo {
    files: FileSet,
    directory: PathBuf,
    /// Of the inputs upon which `sandbox_init_cmd` depends.
    inputs: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Memory {
    version: u32,
    /// The latest last.
    chains: Vec<Chain>,
}

/// A first image and what was put on top.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Chain {
    key: String,
    first: State,
    top: State,
    /// How many layers the top has over the first.
    depth: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    image: String,
    holds: Manifest,
}

const VERSION: u32 = 1;

/// What it takes to make layers.
pub(super) struct Maker<'a> {
    pub(super) daemon: &'a Daemon,
    pub(super) settings: &'a Settings,
    pub(super) base: &'a BaseImage,
    pub(super) fates: watch::Receiver<Fates>,
    pub(super) labels: HashMap<String, String>,
    pub(super) built: Arc<Built>,
}

impl Maker<'_> {
    /// The image with everything in it, made as far as it has to be.
    pub(super) async fn layer(&self) -> ProviderResult<Layer> {
        let (settings, built) = (self.settings.clone(), Arc::clone(&self.built));
        let gathered = tokio::task::spawn_blocking(move || gather(&settings, &built)).await;
        let cargo = gathered
            .map_err(|error| ProviderError::Unusable(format!("gathering the files was interrupted: {error}")))?
            .map_err(ProviderError::Unusable)?;
        let holds = cargo.files.manifest();
        let layer = |image: &str| Layer {
            image: image.to_owned(),
            directory: cargo.directory.clone(),
            files: cargo.files.len(),
            bytes: cargo.files.size(),
        };

        let owner = self.owner().await?;
        let key = self.key(&cargo, owner).hex();
        let mut memory = Memory::read(&self.settings.memory_file);
        let known = memory.chains.iter().position(|chain| chain.key == key).map(|at| memory.chains.remove(at));
        let mut old = None;
        let mut made = None;
        if let Some(chain) = known.filter(|_| !self.settings.no_cache) {
            if self.exists(&chain.top.image).await {
                if chain.top.holds == holds {
                    let image = chain.top.image.clone();
                    memory.chains.push(chain);
                    memory.write(&self.settings.memory_file);
                    return Ok(layer(&image));
                }
                made = self.on_top(&chain, &cargo.files, &holds, owner).await;
            }
            old = Some(chain);
        }
        let chain = match made {
            Some(chain) => Chain { key, ..chain },
            None => {
                let image = self.first(&cargo, &holds, owner).await?;
                let state = State { image, holds };
                Chain { key, first: state.clone(), top: state, depth: 0 }
            }
        };
        let image = chain.top.image.clone();
        let kept = [chain.first.image.clone(), image.clone()];
        memory.chains.push(chain);
        let mut outdated: Vec<String> = old.into_iter().flat_map(|old| [old.top.image, old.first.image]).collect();
        let surplus = memory.chains.len().saturating_sub(MOST_CHAINS);
        outdated.extend(memory.chains.drain(..surplus).flat_map(|chain| [chain.top.image, chain.first.image]));
        memory.write(&self.settings.memory_file);
        for image in outdated.iter().filter(|image| !kept.contains(image)) {
            self.forget(image).await;
        }
        Ok(layer(&image))
    }

    /// What the first image depends on.
    fn key(&self, cargo: &Cargo, owner: Owner) -> ImageKey {
        let mut key = ImageKey::new();
        key.add(&self.base.id);
        key.add(&format!("{}:{}", owner.uid, owner.gid));
        key.add(&cargo.directory.to_string_lossy());
        key.add(self.settings.init_cmd.as_deref().unwrap_or_default());
        key.add(&cargo.inputs);
        key
    }

    /// The first image with a layer on top; `None` where that cannot be had.
    async fn on_top(&self, chain: &Chain, files: &FileSet, holds: &Manifest, owner: Owner) -> Option<Chain> {
        let (below, depth) = match chain.depth {
            depth if depth < MOST_LAYERS => (&chain.top, depth + 1),
            _ if self.exists(&chain.first.image).await => (&chain.first, 1),
            _ => return None,
        };
        let (changed, gone) = (files.changed_since(&below.holds), files.gone_since(&below.holds));
        tracing::info!(changed = changed.len(), bytes = changed.size(), gone = gone.len(), "adding a layer of files");
        match self.thin(&below.image, changed, &gone, owner, holds).await {
            Ok(image) => Some(Chain {
                key: chain.key.clone(),
                first: chain.first.clone(),
                top: State { image, holds: holds.clone() },
                depth,
            }),
            Err(error) => {
                tracing::warn!(%error, "cannot add a layer to the image of an earlier run; making a new image");
                None
            }
        }
    }

    async fn thin(
        &self,
        below: &str,
        changed: FileSet,
        gone: &[PathBuf],
        owner: Owner,
        holds: &Manifest,
    ) -> ProviderResult<String> {
        let container = self.container(below).await?;
        let made = async {
            if !gone.is_empty() {
                self.send(&container, removal(gone)?, Owner::default()).await?;
                container.start().await?;
                let command = Command::new("/bin/sh", [REMOVAL]);
                self.run(&container, &command, Some("0"), "remove files that are gone").await?;
            }
            self.send(&container, changed, owner).await?;
            self.commit(&container, holds).await
        };
        let made = made.await;
        self.discard(container).await;
        made
    }

    /// The image with everything in it, from the base image.
    async fn first(&self, cargo: &Cargo, holds: &Manifest, owner: Owner) -> ProviderResult<String> {
        let files = &cargo.files;
        tracing::info!(files = files.len(), bytes = files.size(), "making an image of the project's files");
        let container = self.container(&self.base.id).await?;
        let made = async {
            self.send(&container, files.clone(), owner).await?;
            if let Some(line) = &self.settings.init_cmd {
                container.start().await?;
                let mut command = Command::shell(line.clone());
                command.working_dir = Some(cargo.directory.clone());
                command.env.extend(self.settings.config.env.clone());
                let what = format!("run `sandbox_init_cmd` ({})", shorten(line));
                self.run(&container, &command, Some(&self.base.user), &what).await?;
            }
            self.commit(&container, holds).await
        };
        let made = made.await;
        self.discard(container).await;
        made
    }

    async fn container(&self, image: &str) -> ProviderResult<Container> {
        let spec = Spec {
            image: image.to_owned(),
            image_name: format!("{} ({})", self.base.name, self.base.platform),
            platform: self.settings.config.platform.clone(),
            user: "0".to_owned(),
            labels: self.labels.clone(),
            // One that was started goes when this process does.
            host: HostConfig { auto_remove: Some(true), ..self.settings.limits() },
            ..Spec::default()
        };
        Container::create(self.daemon, self.fates.clone(), spec).await.map_err(|error| {
            ProviderError::Create(format!(
                "the Docker daemon cannot create a container from {} to put the project's files in: {}",
                self.base.name,
                told(&error)
            ))
        })
    }

    async fn send(&self, container: &Container, files: FileSet, owner: Owner) -> ProviderResult<()> {
        let (count, bytes) = (files.len(), files.size());
        if count == 0 {
            return Ok(());
        }
        let sent = send(Archive::start(files, owner), &self.daemon.docker, &container.inner.id).await;
        sent.map_err(|error| {
            ProviderError::Unusable(format!(
                "cannot bring the project's files into an image ({count} files and directories, {} MiB): {error}",
                bytes >> 20
            ))
        })
    }

    async fn run(
        &self,
        container: &Container,
        command: &Command,
        user: Option<&str>,
        what: &str,
    ) -> ProviderResult<()> {
        let failed =
            |how: String| ProviderError::Unusable(format!("cannot {what} in the image {}: {how}", self.base.name));
        let stream = container.exec(command, user).await.map_err(|error| failed(error.to_string()))?;
        let output = collect(stream, OUTPUT_LIMIT).await.map_err(|error| failed(error.to_string()))?;
        match output.exit_code {
            Some(0) => Ok(()),
            code => Err(failed(format!("{}{}", describe_exit(code), tail(&output, TAIL_LINES)))),
        }
    }

    async fn commit(&self, container: &Container, holds: &Manifest) -> ProviderResult<String> {
        let mut key = ImageKey::new();
        key.add(&container.inner.id);
        key.add(&holds.len().to_string());
        let options = CommitContainerOptionsBuilder::default()
            .container(&container.inner.id)
            .repo(&self.settings.repository())
            .tag(&key.short())
            .pause(true)
            .build();
        let mut labels = self.labels.clone();
        labels.insert(LABEL_OWNER.to_owned(), OWNER_OF_IMAGES.to_owned());
        let config = ContainerConfig { labels: Some(labels), ..ContainerConfig::default() };
        let committed = self.daemon.docker.commit_container(options, config).await;
        committed.map(|image| image.id).map_err(|error| {
            ProviderError::Unusable(format!("the Docker daemon cannot store an image of the project: {}", told(&error)))
        })
    }

    async fn discard(&self, container: Container) {
        if let Err(error) = container.remove().await {
            tracing::warn!(%error, "a container that was used to make an image may be left behind; see `offload clean`");
        }
    }

    async fn exists(&self, image: &str) -> bool {
        self.daemon.docker.inspect_image(image).await.is_ok()
    }

    /// Removes an image that is of no more use; one that another run uses stays until `offload clean`.
    async fn forget(&self, image: &str) {
        let Ok(found) = self.daemon.docker.inspect_image(image).await else { return };
        let names = found.repo_tags.unwrap_or_default();
        let repository = self.settings.repository();
        let ours = names.iter().map(String::as_str).filter(|name| is_in(name, &repository));
        for name in ours.chain(names.is_empty().then_some(image)) {
            let options = RemoveImageOptionsBuilder::default().build();
            if let Err(error) = self.daemon.docker.remove_image(name, Some(options), None).await {
                tracing::debug!(image = name, error = told(&error), "an outdated image stays");
            }
        }
    }

    /// Whose the project's files are in the image.
    async fn owner(&self) -> ProviderResult<Owner> {
        let user = self.settings.config.user.as_deref().unwrap_or(&self.base.user);
        if let Some(owner) = find_owner(user, "", "") {
            return Ok(owner);
        }
        let container = self.container(&self.base.id).await?;
        let file = async |path: &str| {
            let bytes = read(&self.daemon.docker, &container.inner.id, path).await.unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (users, groups) = (file("/etc/passwd").await, file("/etc/group").await);
        self.discard(container).await;
        find_owner(user, &users, &groups).ok_or_else(|| {
            ProviderError::Unusable(format!(
                "the image {} has no user or group {user:?} (in its /etc/passwd and /etc/group); change `user` in \
                 [provider], or use numbers",
                self.base.name
            ))
        })
    }
}

/// The numbers of `USER[:GROUP]`; `None` when the files do not have the names.
fn find_owner(user: &str, users: &str, groups: &str) -> Option<Owner> {
    let (user, group) = user.split_once(':').map_or((user, None), |(user, group)| (user, Some(group)));
    let field = |text: &str, name: &str, at: usize| {
        let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
        lines.find(|fields| fields.first() == Some(&name)).and_then(|fields| fields.get(at)?.parse().ok())
    };
    let uid: u64 = match user {
        "" | "root" => 0,
        name => name.parse().ok().or_else(|| field(users, name, 2))?,
    };
    let gid = match group {
        Some(name) => name.parse().ok().or_else(|| field(groups, name, 2))?,
        // The user's own group; a number alone has none that could be told without the file.
        None if uid == 0 => 0,
        None => field(users, user, 3).unwrap_or(0),
    };
    Some(Owner { uid, gid })
}

/// The script that removes `paths`, to be sent into a container.
fn removal(paths: &[PathBuf]) -> ProviderResult<FileSet> {
    let failed = |error: String| ProviderError::Unusable(format!("cannot write a temporary file: {error}"));
    let mut script = b"set -e\n".to_vec();
    for path in paths {
        script.extend_from_slice(b"rm -rf -- '");
        for byte in path.as_os_str().as_bytes() {
            match byte {
                b'\'' => script.extend_from_slice(b"'\\''"),
                byte => script.push(*byte),
            }
        }
        script.extend_from_slice(b"'\n");
    }
    script.extend_from_slice(format!("rm -f {REMOVAL}\n").as_bytes());
    FileSet::of_bytes(Path::new(REMOVAL), script).map_err(|error| failed(error.to_string()))
}

/// What travels, and the inputs upon which `sandbox_init_cmd` depends.
fn gather(settings: &Settings, built: &Built) -> Result<Cargo, String> {
    let Luggage { files, directory, .. } = settings.packing.gather(built)?;
    let here = &settings.packing.directory;
    let mut inputs = ImageKey::new();
    if settings.init_cmd.is_some() {
        for input in &settings.build_inputs {
            inputs.add_path(&here.join(input)).map_err(|error| {
                format!(
                    "cannot read {}, which `build_inputs` in [checkpoint] names: {error}; mend it or take it out",
                    input.display()
                )
            })?;
        }
        if settings.build_inputs.is_empty() {
            for (path, stamp) in files.manifest() {
                inputs.add(&path);
                inputs.add(&stamp);
            }
        }
    }
    Ok(Cargo { files, directory, inputs: inputs.hex() })
}

impl Memory {
    /// What is in the file; nothing where there is none, or something else in it.
    fn read(path: &Path) -> Self {
        let memory = std::fs::read(path).ok().and_then(|text| serde_json::from_slice::<Self>(&text).ok());
        memory.filter(|memory| memory.version == VERSION).unwrap_or(Self { version: VERSION, chains: Vec::new() })
    }

    /// Replaces the file. If that fails, the next run makes its image anew.
    fn write(&self, path: &Path) {
        let write = || -> std::io::Result<()> {
            let dir = path.parent().unwrap_or(Path::new("."));
            std::fs::create_dir_all(dir)?;
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.persist(path).map(drop).map_err(|error| error.error)
        };
        if let Err(error) = write() {
            tracing::warn!(path = %path.display(), %error, "cannot remember the image of the project's files");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_numbers_or_found_in_the_image() {
        let (users, groups) = ("root:x:0:0::/:\napp:x:1000:1001::/home/app:/bin/sh\n", "staff:x:50:\n");
        let owner = |user: &str| find_owner(user, users, groups).map(|owner| (owner.uid, owner.gid));
        assert_eq!(owner(""), Some((0, 0)));
        assert_eq!(owner("root"), Some((0, 0)));
        assert_eq!(owner("app"), Some((1000, 1001)));
        assert_eq!(owner("app:staff"), Some((1000, 50)));
        assert_eq!(owner("7:8"), Some((7, 8)));
        assert_eq!(owner("7"), Some((7, 0)));
        assert_eq!(owner("nobody"), None);
        assert_eq!(owner("app:none"), None);
    }

    #[test]
    fn memory_that_is_broken_or_of_another_version_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/layers.json");
        assert!(Memory::read(&path).chains.is_empty());
        let state = State { image: "i".to_owned(), holds: Manifest::from([("/a".to_owned(), "d 755".to_owned())]) };
        let chain = Chain { key: "k".to_owned(), first: state.clone(), top: state, depth: 3 };
        Memory { version: VERSION, chains: vec![chain] }.write(&path);
        assert_eq!(Memory::read(&path).chains[0].depth, 3);
        for broken in ["{", r#"{"version": 99, "chains": []}"#] {
            std::fs::write(&path, broken).unwrap();
            assert!(Memory::read(&path).chains.is_empty());
        }
    }
}
