//! Which files are the project's: those that git tracks, those that it would (untracked and not ignored), and what
//! `include` and `exclude` say.
//!
//! The rules of ignoring are the `ignore` crate's. It knows nothing of git's index, so what is tracked in spite of being
//! ignored comes from git itself, where there is one.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use ignore::{DirEntry, WalkBuilder};

use super::FilesError;

/// A directory of this machine, and which of its files count.
#[derive(Debug, Clone)]
pub struct Project {
    root: PathBuf,
    include: Vec<String>,
    exclude: Vec<String>,
    never: Vec<PathBuf>,
}

impl Project {
    /// What git tracks or would track below `root`, an absolute path. Without a repository, `.gitignore` files count
    /// all the same.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), include: Vec::new(), exclude: Vec::new(), never: Vec::new() }
    }

    /// Adds what is ignored and matches one of these patterns; they are written as in `.gitignore`.
    #[must_use]
    pub fn including(mut self, patterns: Vec<String>) -> Self {
        self.include = patterns;
        self
    }

    /// Leaves out what matches one of these patterns, written as in `.gitignore`, whatever else is said.
    #[must_use]
    pub fn excluding(mut self, patterns: Vec<String>) -> Self {
        self.exclude = patterns;
        self
    }

    /// Leaves out these files and directories (absolute paths): what Offload itself writes.
    #[must_use]
    pub fn without(mut self, paths: Vec<PathBuf>) -> Self {
        self.never = paths;
        self
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The paths of everything that travels, the root and all directories among them.
    pub(super) fn select(&self) -> Result<BTreeSet<PathBuf>, FilesError> {
        let excluded = matcher(&self.root, "exclude", &self.exclude)?;
        let included = matcher(&self.root, "include", &self.include)?;
        let rules = Rules { never: self.never.clone(), excluded };
        let mut paths = self.walk(&rules, true, |_| true)?;
        for path in self.tracked() {
            if path.symlink_metadata().is_ok() && !rules.leave_out_tracked(&self.root, &path) {
                add_with_parents(&mut paths, &self.root, &path);
            }
        }
        if !included.is_empty() {
            let matches = |entry: &DirEntry| {
                let directory = entry.file_type().is_some_and(|kind| kind.is_dir());
                included.matched_path_or_any_parents(entry.path(), directory).is_ignore()
            };
            for path in self.walk(&rules, false, matches)? {
                add_with_parents(&mut paths, &self.root, &path);
            }
        }
        Ok(paths)
    }

    fn walk(
        &self,
        rules: &Rules,
        ignoring: bool,
        counts: impl Fn(&DirEntry) -> bool,
    ) -> Result<BTreeSet<PathBuf>, FilesError> {
        let mut walk = WalkBuilder::new(&self.root);
        walk.standard_filters(false)
            .git_ignore(ignoring)
            .git_exclude(ignoring)
            .git_global(ignoring)
            .parents(ignoring)
            .require_git(false);
        let rules = rules.clone();
        walk.filter_entry(move |entry| {
            let directory = entry.file_type().is_some_and(|kind| kind.is_dir());
            entry.depth() == 0 || !rules.leave_out(entry.path(), directory)
        });
        let mut paths = BTreeSet::new();
        for entry in walk.build() {
            match entry {
                Ok(entry) if counts(&entry) => drop(paths.insert(entry.into_path())),
                Ok(_) => {}
                Err(error) if error.io_error().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound) => {}
                // The message names the path.
                Err(error) => {
                    return Err(FilesError(format!(
                        "cannot tell which files are the project's: {error}; mend it, or leave it out with `exclude` \
                         in [provider]"
                    )));
                }
            }
        }
        Ok(paths)
    }

    /// What git has in its index. Nothing where there is no git or no repository: nothing is tracked then.
    fn tracked(&self) -> Vec<PathBuf> {
        let mut git = Command::new("git");
        git.arg("-C").arg(&self.root).args(["ls-files", "-z", "--cached"]).stdin(Stdio::null());
        match git.output() {
            Ok(output) if output.status.success() => {
                let names = output.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty());
                names.map(|name| self.root.join(OsStr::from_bytes(name))).collect()
            }
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                tracing::debug!("git does not list its files: {}", said.trim());
                Vec::new()
            }
            Err(error) => {
                tracing::debug!(%error, "git cannot be asked for its files");
                Vec::new()
            }
        }
    }
}

/// What does not travel although it is there.
#[derive(Clone)]
struct Rules {
    never: Vec<PathBuf>,
    excluded: Gitignore,
}

impl Rules {
    fn leave_out(&self, path: &Path, directory: bool) -> bool {
        path.file_name() == Some(OsStr::new(".git"))
            || self.never.iter().any(|never| never == path)
            || self.excluded.matched(path, directory).is_ignore()
    }

    /// As [`Self::leave_out`], for a path to which no walk led.
    fn leave_out_tracked(&self, root: &Path, path: &Path) -> bool {
        let above = path.ancestors().skip(1).take_while(|above| *above != root && above.starts_with(root));
        self.leave_out(path, path.is_dir()) || above.into_iter().any(|above| self.leave_out(above, true))
    }
}

fn add_with_parents(paths: &mut BTreeSet<PathBuf>, root: &Path, path: &Path) {
    for above in path.ancestors().take_while(|above| above.starts_with(root)) {
        if !paths.insert(above.to_owned()) {
            break;
        }
    }
}

fn matcher(root: &Path, key: &str, patterns: &[String]) -> Result<Gitignore, FilesError> {
    let wrong = |pattern: &str, error: ignore::Error| {
        FilesError(format!("`{key}` in [provider] has a pattern that means nothing, {pattern:?}: {error}"))
    };
    let mut builder = GitignoreBuilder::new(root);
    for pattern in patterns {
        builder.add_line(None, pattern).map_err(|error| wrong(pattern, error))?;
    }
    builder.build().map_err(|error| wrong(&patterns.join(", "), error))
}
