//! The directory in which a run's processes find each other, and the removal of those that runs left behind.
//!
//! Whoever is left of a run removes it; when everything was killed at once nobody is. So each run holds a lock in its
//! directory, and removes those of others in which nobody holds one any more.
//!
//! A directory is a run's if its lock says so: a file of this user that holds [`MARK`] and the directory's own name, which
//! is random. The name alone proves nothing, nor does a file called `lock`; anything else is left alone.

use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The longest path that a Unix socket can have on all systems, in bytes.
const LONGEST_SOCKET_PATH: usize = 100;
const PREFIX: &str = "offload-";
const LOCK: &str = "lock";

/// How the lock of a run's directory begins: what it is, and the version of this format.
const MARK: &[u8] = b"directory of an offload run, format 1: ";

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
        let mut lock = File::create_new(&unfinished)?;
        lock.lock()?;
        lock.write_all(&mark(dir.path()))?;
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
                && let Err(error) = remove(&directory)
            {
                tracing::warn!(%error, directory = %directory.display(), "the directory of an ended run stays");
            }
        }
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        // What is left is tried again by the directory's own handle.
        let _ = remove(self.dir.path());
    }
}

/// Removes the directory of a run, its lock last: should this be interrupted, the next run knows what is left.
fn remove(directory: &Path) -> io::Result<()> {
    for entry in directory.read_dir()? {
        let entry = entry?;
        if entry.file_name() == LOCK {
            continue;
        }
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    std::fs::remove_dir_all(directory)
}

/// What the lock of the run's directory `directory` holds.
fn mark(directory: &Path) -> Vec<u8> {
    let name = directory.file_name().unwrap_or_default();
    [MARK, name.as_bytes(), b"\n"].concat()
}

fn is_abandoned(directory: &Path) -> bool {
    let user = rustix::process::geteuid().as_raw();
    let ours = std::fs::symlink_metadata(directory).is_ok_and(|found| found.is_dir() && found.uid() == user);
    ours && read_mark(directory, user).is_ok_and(|lock| lock.try_lock().is_ok())
}

/// The lock of a directory, if a run has made it.
fn read_mark(directory: &Path, user: u32) -> io::Result<File> {
    // Whatever is there is neither followed nor waited for.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    let lock = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(directory.join(LOCK))?;
    let found = lock.metadata()?;
    let expected = mark(directory);
    if !found.is_file() || found.uid() != user || found.len() != expected.len() as u64 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut content = Vec::with_capacity(expected.len());
    (&lock).take(found.len()).read_to_end(&mut content)?;
    if content == expected { Ok(lock) } else { Err(io::ErrorKind::InvalidData.into()) }
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
        let alive = RunDirectory::new().unwrap();
        let foreign = tempfile::Builder::new().prefix(PREFIX).tempdir().unwrap();
        // As a run leaves it that was killed.
        let path = tempfile::Builder::new().prefix(PREFIX).tempdir().unwrap().keep();
        std::fs::write(path.join(LOCK), mark(&path)).unwrap();
        RunDirectory::new().unwrap().remove_others();
        assert!(!path.exists());
        assert!(alive.path().exists());
        assert!(foreign.path().exists(), "it has no lock, so it is none of ours");
    }

    #[test]
    fn directories_of_the_user_stay_whatever_they_are_called_and_contain() {
        let beside = RunDirectory::new().unwrap();
        let foreign = || tempfile::Builder::new().prefix(PREFIX).tempdir().unwrap();
        let (empty, other, copied, link, fifo) = (foreign(), foreign(), foreign(), foreign(), foreign());
        std::fs::write(empty.path().join(LOCK), "").unwrap();
        std::fs::write(other.path().join(LOCK), "12345\n").unwrap();
        // A copy of a run's directory is not it.
        std::fs::copy(beside.path().join(LOCK), copied.path().join(LOCK)).unwrap();
        std::fs::write(link.path().join("elsewhere"), mark(link.path())).unwrap();
        std::os::unix::fs::symlink("elsewhere", link.path().join(LOCK)).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, fifo.path().join(LOCK), rustix::fs::Mode::RUSR).unwrap();
        beside.remove_others();
        for directory in [empty, other, copied, link, fifo] {
            assert!(directory.path().exists(), "{}", directory.path().display());
        }
    }

    #[test]
    fn the_lock_of_a_directory_goes_last() {
        let dir = RunDirectory::new().unwrap();
        let path = dir.path().to_owned();
        std::fs::create_dir_all(path.join("a/b")).unwrap();
        std::fs::write(path.join("z"), "").unwrap();
        // As if nothing could be removed: there is no directory to read any more where a file is.
        assert!(remove(&path.join("z")).is_err());
        assert!(path.join(LOCK).exists());
        drop(dir);
        assert!(!path.exists());
    }
}
