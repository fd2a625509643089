//! The image that everything starts from: named, or built from a Dockerfile.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bollard::query_parameters::{BuildImageOptionsBuilder, CreateImageOptionsBuilder};
use globset::{GlobBuilder, GlobMatcher};

use super::connect::{Daemon, has_status, told};
use super::transfer::outcome;
use super::watch::next;
use super::{LABEL_PROJECT, Settings};
use crate::cache::ImageKey;
use crate::files::{Archive, FileSet, Owner};
use crate::provider::{ProviderError, ProviderResult};

/// How many lines of a failed build its error shows.
const TAIL_LINES: usize = 15;

/// The name of the Dockerfile within what is sent, where it is not part of the context.
const FOREIGN_DOCKERFILE: &str = ".offload.Dockerfile";

/// An image as far as it matters here.
#[derive(Debug, Clone)]
pub(super) struct BaseImage {
    pub(super) id: String,
    /// How the user knows it.
    pub(super) name: String,
    /// Who runs what in it; empty: root.
    pub(super) user: String,
    /// What it is for, as `linux/amd64`.
    pub(super) platform: String,
}

/// The image that `settings` ask for, on the daemon.
pub(super) async fn base_image(daemon: &Daemon, settings: &Settings) -> ProviderResult<BaseImage> {
    let config = &settings.config;
    match (&settings.override_image, &config.image, &config.dockerfile) {
        (Some(name), ..) | (None, Some(name), None) => named(daemon, settings, name).await,
        (None, None, Some(dockerfile)) => built(daemon, settings, dockerfile).await,
        (None, Some(_), Some(_)) => Err(ProviderError::Unusable(
            "[provider] has both `image` and `dockerfile`; take out the one that is not meant".to_owned(),
        )),
        (None, None, None) => Err(ProviderError::Unusable(
            "the provider `docker` needs an image: set `image` (such as \"python:3.12-slim\" or \"debian:stable-slim\") \
             or `dockerfile` in [provider], or OFFLOAD_PROVIDER_IMAGE in the environment"
                .to_owned(),
        )),
    }
}

async fn named(daemon: &Daemon, settings: &Settings, name: &str) -> ProviderResult<BaseImage> {
    if let Some(image) = inspect(daemon, name).await? {
        return Ok(image);
    }
    pull(daemon, settings, name).await?;
    inspect(daemon, name).await?.ok_or_else(|| {
        ProviderError::Unusable(format!("the image {name} was pulled, and the daemon at {} has it not", daemon.address))
    })
}

/// The image of that name or id, if the daemon has it.
async fn inspect(daemon: &Daemon, name: &str) -> ProviderResult<Option<BaseImage>> {
    match daemon.docker.inspect_image(name).await {
        Ok(found) => Ok(Some(BaseImage {
            id: found.id.unwrap_or_else(|| name.to_owned()),
            name: name.to_owned(),
            user: found.config.and_then(|config| config.user).unwrap_or_default(),
            platform: format!("{}/{}", found.os.unwrap_or_default(), found.architecture.unwrap_or_default()),
        })),
        Err(error) if has_status(&error, 404) => Ok(None),
        Err(error) => Err(ProviderError::Unusable(format!("cannot look at the image {name}: {}", told(&error)))),
    }
}

async fn pull(daemon: &Daemon, settings: &Settings, name: &str) -> ProviderResult<()> {
    tracing::info!(image = name, "pulling");
    // Without a tag, all tags would be pulled.
    let last = name.rsplit('/').next().unwrap_or(name);
    let full = if last.contains([':', '@']) { name.to_owned() } else { format!("{name}:latest") };
    let platform = settings.config.platform.clone().unwrap_or_default();
    let options = CreateImageOptionsBuilder::default().from_image(&full).platform(&platform).build();
    let mut progress = Box::pin(daemon.docker.create_image(Some(options), None, None));
    while let Some(step) = next(&mut progress).await {
        let failure = match step {
            Ok(step) => step.error_detail.map(|detail| detail.message.unwrap_or_default()),
            Err(error) => Some(told(&error)),
        };
        if let Some(failure) = failure {
            return Err(ProviderError::Unusable(format!(
                "the Docker daemon has no image {name} and cannot pull it: {}; check `image` in [provider], or \
                 `docker pull {name}` (after `docker login`, if it is private) or `docker build` first",
                failure.trim()
            )));
        }
    }
    Ok(())
}

/// An image built from a Dockerfile, or the one that was built from the same before.
async fn built(daemon: &Daemon, settings: &Settings, dockerfile: &Path) -> ProviderResult<BaseImage> {
    let config = &settings.config;
    let dockerfile = settings.packing.directory.join(dockerfile);
    let context = match &config.context {
        Some(context) => settings.packing.directory.join(context),
        None => dockerfile.parent().unwrap_or(Path::new("/")).to_owned(),
    };
    let failed =
        |what: String| ProviderError::Unusable(format!("cannot build an image from {}: {what}", dockerfile.display()));
    let (set, name) = {
        let (dockerfile, context) = (dockerfile.clone(), context.clone());
        let read = tokio::task::spawn_blocking(move || build_files(&dockerfile, &context)).await;
        read.map_err(|error| failed(error.to_string()))?.map_err(failed)?
    };
    let platform = config.platform.clone().unwrap_or_default();
    let mut key = ImageKey::new();
    for (path, stamp) in set.manifest() {
        key.add(&path);
        key.add(&stamp);
    }
    key.add(&name);
    key.add(&platform);
    for (name, value) in &config.build_args {
        key.add(name);
        key.add(value);
    }
    let tag = format!("{}:base-{}", settings.repository(), key.short());
    if !settings.no_cache
        && let Some(image) = inspect(daemon, &tag).await?
    {
        return Ok(image);
    }
    tracing::info!(dockerfile = %dockerfile.display(), files = set.len(), bytes = set.size(), "building an image");
    let labels = HashMap::from([(LABEL_PROJECT, settings.project_label.as_str())]);
    let args: HashMap<&str, &str> = config.build_args.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let options = BuildImageOptionsBuilder::default()
        .dockerfile(&name)
        .t(&tag)
        .nocache(settings.no_cache)
        .rm(true)
        .forcerm(true)
        .buildargs(&args)
        .labels(&labels)
        .platform(&platform)
        .build();
    let Archive { stream, written } = Archive::start(set, Owner::default());
    let body = bollard::body_try_stream(stream);
    let mut said = String::new();
    let result = {
        let mut steps = Box::pin(daemon.docker.build_image(options, None, Some(body)));
        loop {
            match next(&mut steps).await {
                None => break Ok(()),
                Some(Err(error)) => break Err(error),
                Some(Ok(step)) => {
                    said.push_str(&step.stream.unwrap_or_default());
                    if let Some(detail) = step.error_detail {
                        said.push_str(&detail.message.unwrap_or_default());
                        break Err(bollard::errors::Error::DockerStreamError { error: "a step failed".to_owned() });
                    }
                }
            }
        }
    };
    outcome(result, written).await.map_err(|what| {
        let tail = crate::connector::tail_of(said.as_bytes(), TAIL_LINES);
        failed(if tail.is_empty() { what } else { format!("{what}; the end of the build:{tail}") })
    })?;
    inspect(daemon, &tag).await?.ok_or_else(|| failed(format!("the build ended without the image {tag}")))
}

/// What is sent for a build, and the name of the Dockerfile in it.
fn build_files(dockerfile: &Path, context: &Path) -> Result<(FileSet, String), String> {
    let mut set = FileSet::new();
    let ignored = Ignored::read(dockerfile, context)?;
    add_context(&mut set, &ignored, context, Path::new("/"))?;
    let name = match dockerfile.strip_prefix(context).ok().and_then(Path::to_str) {
        Some(relative) => relative.to_owned(),
        None => FOREIGN_DOCKERFILE.to_owned(),
    };
    set.add_path(dockerfile, &Path::new("/").join(&name))
        .map_err(|_| "there is no such file; check `dockerfile` in [provider]".to_owned())?;
    Ok((set, name))
}

fn add_context(set: &mut FileSet, ignored: &Ignored, dir: &Path, remote: &Path) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot read {}: {error}", dir.display());
    for entry in std::fs::read_dir(dir).map_err(|error| failed(&error))? {
        let entry = entry.map_err(|error| failed(&error))?;
        let target = remote.join(entry.file_name());
        if !ignored.matches(target.strip_prefix("/").unwrap_or(&target)) {
            set.add_entry(&entry.path(), target.clone()).map_err(|error| error.to_string())?;
        } else if !ignored.has_exceptions {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            add_context(set, ignored, &entry.path(), &target)?;
        }
    }
    Ok(())
}

/// What `.dockerignore` leaves out. Its rules are its own: patterns start at the context's root, the last that matches a
/// file or a directory above it decides, and an exception counts also below a directory that is left out.
struct Ignored {
    rules: Vec<(GlobMatcher, bool)>,
    has_exceptions: bool,
}

impl Ignored {
    fn read(dockerfile: &Path, context: &Path) -> Result<Self, String> {
        let mut own = dockerfile.as_os_str().to_owned();
        own.push(".dockerignore");
        let candidates = [PathBuf::from(own), context.join(".dockerignore")];
        let text = candidates.iter().find_map(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut rules = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (pattern, exception) = line.strip_prefix('!').map_or((line, false), |rest| (rest.trim(), true));
            let pattern = pattern.trim_start_matches("./").trim_matches('/');
            let glob = GlobBuilder::new(pattern).literal_separator(true).build();
            let glob = glob.map_err(|error| format!("a pattern in .dockerignore means nothing: {error}"))?;
            rules.push((glob.compile_matcher(), !exception));
        }
        let has_exceptions = rules.iter().any(|(_, ignore)| !ignore);
        Ok(Self { rules, has_exceptions })
    }

    fn matches(&self, path: &Path) -> bool {
        let hit = |glob: &GlobMatcher| path.ancestors().any(|path| !path.as_os_str().is_empty() && glob.is_match(path));
        self.rules.iter().rfind(|(glob, _)| hit(glob)).is_some_and(|(_, ignore)| *ignore)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockerignore_is_read_by_its_own_rules() {
        let ignored = Ignored::parse("# comment\n*.md\n!README.md\n/build/\n**/*.log\n!build/keep\n").unwrap();
        let matches = |path: &str| ignored.matches(Path::new(path));
        assert!(matches("notes.md") && !matches("README.md") && !matches("docs/notes.md"));
        assert!(matches("build") && matches("build/x/y") && !matches("build/keep/z"));
        assert!(matches("a.log") && matches("deep/er/a.log") && !matches("src/main.rs"));
    }

    #[test]
    fn a_build_is_sent_its_context_without_what_is_ignored_and_its_dockerfile() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("context/.dockerignore", "*\n!kept/inner\n");
        write("context/kept/inner/file", "");
        write("context/kept/other", "");
        write("context/Dockerfile", "FROM scratch");
        write("elsewhere/Dockerfile", "FROM scratch");
        let files = |dockerfile: &str| {
            let (set, name) = build_files(&dir.path().join(dockerfile), &dir.path().join("context")).unwrap();
            (set.manifest().into_keys().collect::<Vec<_>>().join(" "), name)
        };
        let expected = "/Dockerfile /kept/inner /kept/inner/file".to_owned();
        assert_eq!(files("context/Dockerfile"), (expected, "Dockerfile".to_owned()));
        let expected = "/.offload.Dockerfile /kept/inner /kept/inner/file".to_owned();
        assert_eq!(files("elsewhere/Dockerfile"), (expected, FOREIGN_DOCKERFILE.to_owned()));
        let error = build_files(&dir.path().join("context/none"), &dir.path().join("context")).unwrap_err();
        assert_eq!(error, "there is no such file; check `dockerfile` in [provider]");
    }
}
