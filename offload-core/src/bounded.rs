//! Reading files that may be anything: what a test, a script or another user has put where a file of ours is expected.
//!
//! A named pipe would block for ever when it is opened, and a file of any length would take all memory.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Longest configuration file.
pub(crate) const CONFIGURATION: u64 = 64 << 20;
/// Longest result file of one batch, and longest file that a sandbox hands over in one piece.
pub(crate) const RESULTS: u64 = 256 << 20;
/// Longest history, report or cache that is read as a whole.
pub(crate) const REPORT: u64 = 1 << 30;

/// Reads the file at `path`, which has at most `limit` bytes.
///
/// # Errors
///
/// When it cannot be opened or read, is neither a regular file nor a device, or is longer.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    // What the shell passes as /dev/fd/63 is a pipe whose other end is known to be open.
    if !kind.is_file() && !is_device(kind) && !path.starts_with("/dev") && !path.starts_with("/proc") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let text = format!("it is longer than {} MiB", limit >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

/// [`read`] for asynchronous code.
pub(crate) async fn read_async(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || read(&path, limit)).await.map_err(io::Error::other)?
}

/// A new directory for temporary files that no other user can enter, removed when it is dropped.
pub(crate) fn private_dir(prefix: &str) -> io::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix);
    #[cfg(unix)]
    builder.permissions(<std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o700));
    builder.tempdir()
}

#[cfg(unix)]
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;

    // A pipe that nobody writes to is opened all the same, and what it is can be looked at.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = File::options().read(true).custom_flags(nonblocking).open(path)?;
    if path.starts_with("/dev") || path.starts_with("/proc") {
        rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::empty())?;
    }
    Ok(file)
}

#[cfg(not(unix))]
fn open(path: &Path) -> io::Result<File> {
    File::open(path)
}

#[cfg(unix)]
fn is_device(kind: std::fs::FileType) -> bool {
    std::os::unix::fs::FileTypeExt::is_char_device(&kind)
}

#[cfg(not(unix))]
fn is_device(_: std::fs::FileType) -> bool {
    false
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reads_regular_files_up_to_the_limit_and_refuses_what_would_block() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "12345").unwrap();
        assert_eq!(read(&file, 5).unwrap(), b"12345");
        assert_eq!(read(&file, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read(dir.path(), 4).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert_eq!(read(Path::new("/dev/null"), 0).unwrap(), b"");
        assert_eq!(read(Path::new("/dev/zero"), 9).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(read(&pipe, 4).unwrap_err().to_string(), "it is not a regular file");
    }
}
