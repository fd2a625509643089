//! What travels to sandboxes that are somewhere else, and where each of it goes.
//!
//! Providers differ in how files get there; which files those are is the same for all: the project's, what was built, and
//! what was named.

use std::path::{Path, PathBuf};

use super::{Built, CopyDir, ProviderError, ProviderResult};
use crate::config::Config;
use crate::files::{FileSet, FilesError, Project};

/// What decides that.
#[derive(Debug, Clone)]
pub(super) struct Packing {
    /// The directory of the run, absolute.
    pub(super) directory: PathBuf,
    /// Where the repository is to be, if not where it is here.
    pub(super) repo_root: Option<String>,
    pub(super) project_root: Option<String>,
    pub(super) include: Vec<String>,
    pub(super) exclude: Vec<String>,
    pub(super) copy_dirs: Vec<(PathBuf, PathBuf)>,
    /// What Offload writes, which does not travel.
    pub(super) never: Vec<PathBuf>,
}

/// What travels, and where to.
#[derive(Debug, Clone)]
pub(super) struct Luggage {
    pub(super) files: FileSet,
    /// The root of the repository there.
    pub(super) root: PathBuf,
    /// Where tests run.
    pub(super) directory: PathBuf,
}

impl Packing {
    /// What `config` says, apart from the keys that are the provider's own.
    pub(super) fn from_config(config: &Config, provider: &str) -> ProviderResult<Self> {
        let directory = config.offload.working_dir.clone().unwrap_or_else(|| PathBuf::from("."));
        let directory = directory.canonicalize().map_err(|error| {
            ProviderError::Unusable(format!("cannot run the tests of {}: {error}", directory.display()))
        })?;
        for (key, root) in [
            ("sandbox_repo_root", &config.offload.sandbox_repo_root),
            ("sandbox_project_root", &config.offload.sandbox_project_root),
        ] {
            if let Some(root) = root.as_deref().filter(|root| !root.starts_with('/') || *root == "/") {
                return Err(ProviderError::Unusable(format!(
                    "`{key}` in [offload] is {root:?}; with provider `{provider}` it is to be an absolute path other \
                     than /"
                )));
            }
        }
        Ok(Self {
            repo_root: config.offload.sandbox_repo_root.clone(),
            project_root: config.offload.sandbox_project_root.clone(),
            include: Vec::new(),
            exclude: Vec::new(),
            copy_dirs: Vec::new(),
            never: vec![directory.join(&config.report.output_dir), directory.join(&config.history.path)],
            directory,
        })
    }

    /// Looks at everything that travels.
    pub(super) fn gather(&self, built: &Built) -> Result<Luggage, String> {
        let failed = |error: FilesError| error.to_string();
        let directory = &self.directory;
        let known = built.root.as_deref().filter(|root| directory.starts_with(root));
        let repository = || directory.ancestors().find(|dir| dir.join(".git").exists());
        let repository = known.or_else(repository).unwrap_or(directory);
        if Some(repository.to_owned()) == std::env::home_dir() || repository == Path::new("/") {
            return Err(format!(
                "all of {} would travel to the sandboxes; run Offload in the project's own directory",
                repository.display()
            ));
        }
        let mut root = repository;
        let remote = |root: &Path| self.repo_root.as_ref().map_or_else(|| root.to_owned(), PathBuf::from);
        let project = |root: &Path| {
            Project::new(root)
                .including(self.include.clone())
                .excluding(self.exclude.clone())
                .without(self.never.clone())
        };
        let within = |root: &Path| remote(root).join(directory.strip_prefix(root).unwrap_or(Path::new("")));
        let mut files = FileSet::new();
        files.add_project(&project(root), &remote(root)).map_err(failed)?;
        if !files.contains(&within(root)) {
            // The project lies where the repository around it ignores everything.
            root = directory;
            files = FileSet::new();
            files.add_project(&project(root), &remote(root)).map_err(failed)?;
        }
        let there =
            |path: &Path| path.strip_prefix(root).map_or_else(|_| path.to_owned(), |below| remote(root).join(below));
        for file in &built.files {
            files.add_path(file, &there(file)).map_err(failed)?;
        }
        for CopyDir { local, remote } in &built.copies {
            files.add_path(local, remote).map_err(failed)?;
        }
        for directory in &built.directories {
            files.add_entry(directory, there(directory)).map_err(failed)?;
        }
        let target = self.project_root.as_ref().map_or_else(|| within(root), |path| remote(root).join(path));
        for (local, remote) in &self.copy_dirs {
            files.add_path(&directory.join(local), &target.join(remote)).map_err(failed)?;
        }
        Ok(Luggage { files, root: remote(root), directory: target })
    }
}
