//! The directory in which a run's processes find each other, and the removal of those that runs left behind.
//!
//! Whoever is left of a run removes it; when everything was killed at once nobody is. So each run holds a lock in its
//! directory, and removes those of others in which nobody holds one any more.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The longest path that a Unix socket can have on all systems, in bytes.
const LONGEST_SOCKET_PATH: usize = 100;
const PREFIX: &str = "offload-";
const LOCK: &str = "lock";

/// The directory of a run, removed with it.
#[derive(Debug)]
pub(super) struct RunDirectory {
    dir: TempDir,
    _lock: File,
}

impl RunDirectory {
    /// A directory that nobody else can enter, with a name short enough for a socket in it.
    pub fn new() -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX).permissions(Permissions::from_mode(0o700));
        let mut dir = builder.tempdir()?;
        if dir.path().as_os_str().as_bytes().len() + "/s".len() > LONGEST_SOCKET_PATH {
            dir = builder.tempdir_in("/tmp")?;
        }
        // Under its name only once it is locked: one that is not locked is one that nobody needs.
        let unfinished = dir.path().join("unfinished");
        let lock = File::create(&unfinished)?;
        lock.lock()?;
        std::fs::rename(unfinished, dir.path().join(LOCK))?;
        Ok(Self { dir, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The path of the socket on which the run's processes connect.
    pub fn socket(&self) -> PathBuf {
        self.path().join("s")
    }

    /// The path of the file for what the template writes.
    pub fn output(&self) -> PathBuf {
        self.path().join("output")
    }

    /// Removes the directories beside this one that runs of this user have left behind. What cannot be removed is left.
    pub fn remove_others(&self) {
        let Some(parent) = self.path().parent() else { return };
        let Ok(entries) = parent.read_dir() else { return };
        let candidates = entries.flatten().filter(|entry| entry.file_name().as_bytes().starts_with(PREFIX.as_bytes()));
        for directory in candidates.map(|entry| entry.path()).filter(|path| path != self.path()) {
            if is_abandoned(&directory)
                && let Err(error) = std::fs::remove_dir_all(&directory)
            {
                tracing::warn!(%error, directory = %directory.display(), "the directory of an ended run stays");
            }
        }
    }
}

fn is_abandoned(directory: &PathBuf) -> bool {
    let ours = std::fs::symlink_metadata(directory)
        .is_ok_and(|found| found.is_dir() && found.uid() == rustix::process::geteuid().as_raw());
    ours && File::open(directory.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_can_enter_the_directory_of_the_socket() {
        let dir = RunDirectory::new().unwrap();
        assert_eq!(dir.path().metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn only_directories_without_a_run_are_removed() {
        let (alive, abandoned) = (RunDirectory::new().unwrap(), RunDirectory::new().unwrap());
        let foreign = tempfile::Builder::new().prefix(PREFIX).tempdir().unwrap();
        let RunDirectory { dir, _lock: lock } = abandoned;
        let path = dir.keep();
        drop(lock);
        RunDirectory::new().unwrap().remove_others();
        assert!(!path.exists());
        assert!(alive.path().exists());
        assert!(foreign.path().exists(), "it has no lock, so it is none of ours");
    }
}
