//! Copying files and directories as they are: contents, modes, symbolic links.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// What could not be copied.
#[derive(Debug, thiserror::Error)]
#[error("cannot copy {} to {}: {what}", from.display(), to.display())]
pub(super) struct CopyError {
    from: PathBuf,
    to: PathBuf,
    what: String,
}

/// Copies `from` to the path `to`, whose missing parents are created. A directory is copied into an existing one; other
/// files there stay. A path onto itself is nothing to do.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), CopyError> {
    let failed = |what: String| CopyError { from: from.to_owned(), to: to.to_owned(), what };
    let source = from.canonicalize().map_err(|error| failed(error.to_string()))?;
    let target = resolve(to).map_err(|error| failed(error.to_string()))?;
    if source == target {
        return Ok(());
    }
    if source.is_dir() && target.starts_with(&source) {
        return Err(failed("the target lies within the source; choose one outside of it".to_owned()));
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(|error| failed(error.to_string()))?;
    }
    // The path that was named may be a symbolic link; what it points to is meant.
    copy_entry(&source, to)
}

/// Where `path` really is, as far as it exists.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let mut missing = Vec::new();
    let mut existing = path.as_path();
    loop {
        match existing.canonicalize() {
            Ok(real) => return Ok(missing.iter().rev().fold(real, |path, name| path.join(name))),
            Err(error) => match (existing.parent(), existing.file_name()) {
                (Some(parent), Some(name)) => {
                    missing.push(name);
                    existing = parent;
                }
                _ => return Err(error),
            },
        }
    }
}

fn copy_entry(from: &Path, to: &Path) -> Result<(), CopyError> {
    let failed = |error: io::Error| CopyError { from: from.to_owned(), to: to.to_owned(), what: error.to_string() };
    let metadata = fs::symlink_metadata(from).map_err(failed)?;
    // What is there as a link is replaced, not followed: the copy must not write elsewhere.
    let there = fs::symlink_metadata(to).ok();
    if there.as_ref().is_some_and(|there| there.is_symlink() || (metadata.is_symlink() && there.is_file())) {
        fs::remove_file(to).map_err(failed)?;
    }
    if metadata.is_symlink() {
        symlink(fs::read_link(from).map_err(failed)?, to).map_err(failed)
    } else if metadata.is_dir() {
        fs::create_dir_all(to).map_err(failed)?;
        for entry in fs::read_dir(from).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            copy_entry(&entry.path(), &to.join(entry.file_name()))?;
        }
        // Last, so that a directory that may not be written to can be filled.
        fs::set_permissions(to, metadata.permissions()).map_err(failed)
    } else if metadata.is_file() {
        fs::copy(from, to).map(drop).map_err(failed)
    } else {
        tracing::debug!(path = %from.display(), "neither file, directory nor link: not copied");
        Ok(())
    }
}
