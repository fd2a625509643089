//! Writes whole files or nothing.
//!
//! A report that is half written misleads whoever reads it, and a full disk must not cost the earlier one. So a report
//! is written beside its place and renamed into it, where the system can do so without a name until it is whole, so that
//! a process that is killed leaves nothing. Devices and pipes (`--junit /dev/stdout`) cannot be replaced that
//! way, and must not be: they are written to directly.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::ReportError;

/// How long others may take to change a file, and how often they are asked. Who is stopped in the middle of it must not
/// stop everybody.
const PATIENCE: Duration = Duration::from_secs(10);
const ASK_EVERY: Duration = Duration::from_millis(5);

/// Makes sure that reports can be written into `dir`: creates it, and a file in it that has no name, or is removed again.
///
/// Front ends call this before a run, so that nobody waits an hour for a report that cannot be written.
///
/// # Errors
///
/// [`ReportError`] when the directory cannot be created or nothing can be written to it.
pub fn ensure_writable(dir: &Path) -> Result<(), ReportError> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let probe = || {
        fs::create_dir_all(dir)?;
        tempfile::tempfile_in(dir).map(drop)
    };
    probe().map_err(|source| failed("reports", dir, source))
}

/// Replaces the file at `path` by what `write` writes, or leaves everything as it was. Creates the directory.
pub(crate) fn replace(
    path: &Path,
    what: &'static str,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), ReportError> {
    try_replace(path, write).map_err(|source| failed(what, path, source))
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> ReportError {
    let source = without_path(source);
    ReportError { what, path: path.to_owned(), hint: hint(&source), source }
}

/// The operating system's error alone: the name of a temporary file, which `tempfile` adds, tells nobody anything.
fn without_path(error: io::Error) -> io::Error {
    let cause = error.get_ref().and_then(|cause| cause.source()).and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause.and_then(io::Error::raw_os_error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => error,
    }
}

fn try_replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    // A symbolic link stays one: what it points to is replaced.
    let target = fs::canonicalize(path);
    let target = target.as_deref().unwrap_or(path);
    if let Ok(metadata) = fs::metadata(target)
        && !metadata.is_file()
    {
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let mut writer = BufWriter::new(open_device(target)?);
        write(&mut writer)?;
        return writer.flush();
    }
    let dir = parent(target);
    fs::create_dir_all(dir)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".offload-");
    // Readable for others as any new file (the umask applies): CI systems collect reports under other users.
    #[cfg(unix)]
    builder.permissions(<fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o666));
    #[cfg(target_os = "linux")]
    if let Some(file) = nameless(dir) {
        let mut writer = BufWriter::new(file);
        write(&mut writer)?;
        let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        return give_name(file, &builder, dir, target);
    }
    let mut writer = BufWriter::new(builder.tempfile_in(dir)?);
    write(&mut writer)?;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.persist(target).map_err(|failed| failed.error)?;
    Ok(())
}

/// A file in `dir` that has no name yet, where the file system has such.
#[cfg(target_os = "linux")]
fn nameless(dir: &Path) -> Option<File> {
    use rustix::fs::{Mode, OFlags};

    let mode = Mode::from_raw_mode(0o666);
    let file = rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode).ok().map(File::from)?;
    opened(&file).exists().then_some(file)
}

/// Where an open file can be found that has no name.
#[cfg(target_os = "linux")]
fn opened(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd as _;

    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Puts a file without a name in the place of `target`.
#[cfg(target_os = "linux")]
fn give_name(mut file: File, builder: &tempfile::Builder<'_, '_>, dir: &Path, target: &Path) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, linkat};

    let named = builder.make_in(dir, |path| Ok(linkat(CWD, opened(&file), CWD, path, AtFlags::SYMLINK_FOLLOW)?));
    if let Ok(named) = named {
        return named.persist(target).map(drop).map_err(|failed| failed.error);
    }
    // A file system on which it stays without a name.
    let mut copy = builder.tempfile_in(dir)?;
    io::Seek::rewind(&mut file)?;
    io::copy(&mut file, &mut copy)?;
    copy.persist(target).map(drop).map_err(|failed| failed.error)
}

/// Opens a device or a pipe; a pipe that nobody reads from would be waited for without end.
fn open_device(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;

    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = File::options().write(true).custom_flags(nonblocking).open(path).map_err(|error| {
        if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) {
            io::Error::new(io::ErrorKind::BrokenPipe, "it is a pipe, and nobody reads from it")
        } else {
            error
        }
    })?;
    rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::empty())?;
    Ok(file)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The right to read, change and replace the file at `path`, which one process (and one thread of it) has at a time.
pub(crate) struct Turn(Option<File>);

impl Turn {
    /// Waits for the others. Where a file system has no locks, or somebody keeps his for very long, everybody goes ahead.
    ///
    /// It is the directory that is locked: the file is replaced, and one beside it would stay behind.
    pub(crate) fn wait(path: &Path) -> Self {
        let target = fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path));
        let dir = parent(&target);
        // What is wrong with the directory is told by whoever writes into it.
        let lock = fs::create_dir_all(dir).and_then(|()| File::open(dir)).ok();
        Self(lock.filter(|dir| {
            let began = Instant::now();
            loop {
                match dir.try_lock() {
                    Ok(()) => return true,
                    Err(fs::TryLockError::WouldBlock) if began.elapsed() < PATIENCE => std::thread::sleep(ASK_EVERY),
                    Err(_) => return false,
                }
            }
        }))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(dir) = &self.0 {
            // Closing it would do, but for a process that was started meanwhile and has inherited it.
            let _ = dir.unlock();
        }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space or choose another place; an earlier report there is untouched"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "make it writable for you or choose another place"
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "a file is where a directory is needed: remove it or choose another place"
        }
        io::ErrorKind::IsADirectory => "a directory is there: name a file in it",
        _ => "choose another place",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn entries(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn creates_directories_and_replaces_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/report.xml");
        for text in ["first, the longer one", "second"] {
            replace(&path, "the report", |w| w.write_all(text.as_bytes())).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(entries(path.parent().unwrap()), ["report.xml"]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_that_is_killed_while_it_writes_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        if nameless(dir.path()).is_none() {
            return;
        }
        let path = dir.path().join("report.xml");
        for before in [&[][..], &["report.xml"]] {
            let seen = std::cell::RefCell::default();
            replace(&path, "the report", |w| {
                w.write_all(&[b'x'; 100_000])?;
                *seen.borrow_mut() = entries(dir.path());
                Ok(())
            })
            .unwrap();
            assert_eq!(*seen.borrow(), before);
        }
        assert_eq!(fs::read(&path).unwrap().len(), 100_000);
        assert_eq!(entries(dir.path()), ["report.xml"]);
    }

    #[test]
    fn a_disk_that_fills_up_leaves_the_earlier_report_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.xml");
        fs::write(&path, "earlier").unwrap();
        let error = replace(&path, "the report", |w| {
            w.write_all(&[b'x'; 100_000])?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "earlier");
        assert_eq!(entries(dir.path()), ["report.xml"]);
        let text = error.to_string();
        assert!(text.starts_with("cannot write the report to "), "{text}");
        assert!(text.contains("report.xml: no storage space; free some space"), "{text}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn devices_are_written_to_and_not_replaced() {
        let error = replace(Path::new("/dev/full"), "the report", |w| w.write_all(b"x")).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::StorageFull, "{error}");
        replace(Path::new("/dev/null"), "the report", |w| w.write_all(b"x")).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    #[cfg(unix)]
    fn a_symbolic_link_stays_one_and_files_are_not_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("real"), "").unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        replace(&dir.path().join("link"), "the report", |w| w.write_all(b"new")).unwrap();
        assert!(fs::symlink_metadata(dir.path().join("link")).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(dir.path().join("real")).unwrap(), "new");
        File::create(dir.path().join("usual")).unwrap();
        let mode = |name| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode("real"), mode("usual"));
    }

    #[test]
    fn a_place_that_cannot_be_written_is_known_beforehand() {
        let dir = tempfile::tempdir().unwrap();
        ensure_writable(&dir.path().join("new/dir")).unwrap();
        assert_eq!(entries(&dir.path().join("new/dir")), Vec::<String>::new());
        fs::write(dir.path().join("file"), "").unwrap();
        let text = ensure_writable(&dir.path().join("file/sub")).unwrap_err().to_string();
        assert!(text.starts_with("cannot write reports to ") && text.contains("a file is where a directory"), "{text}");
        let text = replace(dir.path(), "the report", |_| Ok(())).unwrap_err().to_string();
        assert!(text.contains("name a file in it"), "{text}");
    }
}
