//! Where temporary files go.

use std::env;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Sees to it that there is a directory for temporary files: the one that the environment names, or else the first
/// of the usual ones that can be written to, as Python's `tempfile` has it.
///
/// A `TMPDIR` that is gone or read-only is no reason not to run tests that need no such files. What is found the first time
/// holds as long as the process lives.
///
/// # Errors
///
/// When none of them can be written to; a sentence that says so.
pub fn ensure_temp_dir() -> io::Result<()> {
    static CHOSEN: OnceLock<Option<PathBuf>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let first = env::temp_dir();
        let directory = choose(&first)?;
        if directory != first {
            tracing::debug!("{} cannot be written to: temporary files go to {}", first.display(), directory.display());
            // Somebody else may have chosen before.
            let _ = tempfile::env::override_temp_dir(&directory);
        }
        Some(directory)
    });
    match chosen {
        Some(_) => Ok(()),
        None => Err(io::Error::other(format!(
            "there is no directory for temporary files: neither {} nor any of the usual ones can be written to; set TMPDIR to \
             one that can",
            env::temp_dir().display()
        ))),
    }
}

fn choose(first: &Path) -> Option<PathBuf> {
    let usual = ["/tmp", "/var/tmp", "/usr/tmp"].map(PathBuf::from);
    std::iter::once(first.to_owned())
        .chain(usual)
        .chain(env::current_dir().ok())
        .find(|directory| can_write(directory).is_ok())
}

/// Whether files can be made there that hold something.
fn can_write(directory: &Path) -> io::Result<()> {
    // Without a name, where the system can: nothing of it stays if this process is killed now.
    tempfile::tempfile_in(directory)?.write_all(b"blat")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_directory_that_can_be_written_to_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(choose(dir.path()).unwrap(), dir.path());
        assert_eq!(choose(&dir.path().join("gone")).unwrap(), Path::new("/tmp"));
        assert!(can_write(Path::new("/proc")).is_err());
        assert!(dir.path().read_dir().unwrap().next().is_none(), "nothing is left");
    }
}
