//! What travels to sandboxes that are somewhere else.
//!
//! A [`FileSet`] says which files of this machine belong where in a sandbox: the project's, as git sees them
//! ([`Project`]), and whatever else is named. It knows the content of each by a hash, so that two sets can be compared
//! and only what differs needs to travel, and it writes itself as a tar archive. How the archive gets there is the
//! provider's business.
//!
//! Names that are not UTF-8, symbolic links, modes and empty directories survive; owners, hard links and devices do not.

mod archive;
mod select;
mod stream;
mod unpack;

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use archive::Owner;
pub use select::Project;
pub(crate) use stream::Archive;
pub(crate) use unpack::unpack;

/// Files that cannot be brought anywhere. The message says which, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FilesError(String);

impl FilesError {
    fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> Self {
        Self(format!(
            "cannot read {}, which is to travel to the sandboxes: {error}; mend it, or leave it out with `exclude` in \
             [provider]",
            path.display()
        ))
    }
}

/// Files of this machine and where they belong.
#[derive(Debug, Clone, Default)]
pub struct FileSet {
    /// By absolute path in the sandbox; a directory comes before what is in it.
    entries: BTreeMap<PathBuf, Entry>,
}

/// A file, directory or link.
#[derive(Debug, Clone)]
struct Entry {
    source: Source,
    mode: u32,
    /// Seconds since the epoch. Python tells by it whether compiled code is current, so it travels; it does not count
    /// as a difference.
    modified: u64,
    kind: Kind,
}

/// Where the content of a file is.
#[derive(Debug, Clone)]
enum Source {
    Path(PathBuf),
    Bytes(Arc<[u8]>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Directory,
    File { size: u64, hash: blake3::Hash },
    Link { target: PathBuf },
}

/// What tells two states of a [`FileSet`] apart: a stamp per path. Both are text, whatever bytes names consist of.
pub type Manifest = BTreeMap<String, String>;

impl FileSet {
    /// A set of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the project's files, below `remote`.
    ///
    /// # Errors
    ///
    /// [`FilesError`] when one cannot be read, or a pattern means nothing.
    pub fn add_project(&mut self, project: &Project, remote: &Path) -> Result<(), FilesError> {
        for path in project.select()? {
            let relative = path.strip_prefix(project.root()).unwrap_or(&path);
            let target = if relative.as_os_str().is_empty() { remote.to_owned() } else { remote.join(relative) };
            self.add_entry(&path, target)?;
        }
        Ok(())
    }

    /// Adds a file, or a directory with everything in it, as `remote`. A link that is named stands for what it points
    /// to; links below it stay links.
    ///
    /// # Errors
    ///
    /// [`FilesError`] when something cannot be read.
    pub fn add_path(&mut self, local: &Path, remote: &Path) -> Result<(), FilesError> {
        let source = local.canonicalize().map_err(|error| FilesError::unreadable(local, &error))?;
        self.add_tree(&source, remote)
    }

    fn add_tree(&mut self, source: &Path, remote: &Path) -> Result<(), FilesError> {
        self.add_entry(source, remote.to_owned())?;
        if source.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            for entry in fs::read_dir(source).map_err(|error| FilesError::unreadable(source, &error))? {
                let entry = entry.map_err(|error| FilesError::unreadable(source, &error))?;
                self.add_tree(&entry.path(), &remote.join(entry.file_name()))?;
            }
        }
        Ok(())
    }

    /// Adds what is at `source` and nothing below it.
    pub(crate) fn add_entry(&mut self, source: &Path, target: PathBuf) -> Result<(), FilesError> {
        let entry = match entry(source) {
            Ok(entry) => entry,
            // Gone since it was seen.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(FilesError::unreadable(source, &error)),
        };
        match entry {
            Some(entry) => drop(self.entries.insert(target, entry)),
            None => tracing::debug!(path = %source.display(), "neither file, directory nor link: does not travel"),
        }
        Ok(())
    }

    /// A set of one file with this content, which exists nowhere else.
    ///
    /// # Errors
    ///
    /// [`FilesError`] when no temporary file can be written.
    pub fn of_bytes(remote: &Path, bytes: Vec<u8>) -> Result<Self, FilesError> {
        let size = bytes.len() as u64;
        let kind = Kind::File { size, hash: blake3::hash(&bytes) };
        let entry = Entry { source: Source::Bytes(bytes.into()), mode: 0o644, modified: 0, kind };
        Ok(Self { entries: BTreeMap::from([(remote.to_owned(), entry)]) })
    }

    /// Whether something of the set is at this path in the sandbox.
    pub fn contains(&self, remote: &Path) -> bool {
        self.entries.contains_key(remote)
    }

    /// How many files, directories and links there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The bytes in all files.
    pub fn size(&self) -> u64 {
        self.entries.values().map(|entry| if let Kind::File { size, .. } = entry.kind { size } else { 0 }).sum()
    }

    /// The set as it is to be told from others.
    pub fn manifest(&self) -> Manifest {
        self.entries.iter().map(|(path, entry)| (text(path), entry.stamp())).collect()
    }

    /// What of it lies below nothing else of it.
    pub(crate) fn roots(&self) -> Vec<&Path> {
        let mut roots: Vec<&Path> = Vec::new();
        for path in self.entries.keys() {
            if !roots.last().is_some_and(|last| path.starts_with(last)) {
                roots.push(path);
            }
        }
        roots
    }

    /// Only what `known` does not have, or has otherwise.
    #[must_use]
    pub fn changed_since(&self, known: &Manifest) -> Self {
        let changed = |path: &Path, entry: &Entry| known.get(&text(path)).is_none_or(|stamp| *stamp != entry.stamp());
        let entries = self.entries.iter().filter(|(path, entry)| changed(path, entry));
        Self { entries: entries.map(|(path, entry)| (path.clone(), entry.clone())).collect() }
    }

    /// What `known` has and this set has not, or has as something else than a file or directory that it was: to be
    /// removed before the set's own entries are written. A directory stands for everything in it.
    pub fn gone_since(&self, known: &Manifest) -> Vec<PathBuf> {
        let mut gone: Vec<PathBuf> = Vec::new();
        for (name, stamp) in known {
            let path = path_of(name);
            let stays = match self.entries.get(&path) {
                Some(entry) => entry.stamp().as_bytes().first() == stamp.as_bytes().first(),
                // A directory need not be named to be there.
                None => stamp.starts_with('d') && self.has_below(&path),
            };
            if !stays && !gone.last().is_some_and(|last| path.starts_with(last)) {
                gone.push(path);
            }
        }
        gone
    }

    fn has_below(&self, directory: &Path) -> bool {
        let after = (Bound::Excluded(directory), Bound::Unbounded);
        self.entries.range::<Path, _>(after).next().is_some_and(|(path, _)| path.starts_with(directory))
    }
}

/// What is at `source`; `None` for what cannot travel.
fn entry(source: &Path) -> io::Result<Option<Entry>> {
    let metadata = fs::symlink_metadata(source)?;
    let kind = if metadata.is_symlink() {
        Kind::Link { target: fs::read_link(source)? }
    } else if metadata.is_dir() {
        Kind::Directory
    } else if metadata.is_file() {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(fs::File::open(source)?)?;
        Kind::File { size: hasher.count(), hash: hasher.finalize() }
    } else {
        return Ok(None);
    };
    let mode = metadata.permissions().mode() & 0o7777;
    Ok(Some(Entry { source: Source::Path(source.to_owned()), mode, modified: modified(&metadata), kind }))
}

fn modified(metadata: &Metadata) -> u64 {
    u64::try_from(metadata.mtime()).unwrap_or_default()
}

impl Entry {
    fn stamp(&self) -> String {
        match &self.kind {
            Kind::Directory => format!("d {:o}", self.mode),
            Kind::File { hash, .. } => format!("f {:o} {}", self.mode, hash.to_hex()),
            Kind::Link { target } => format!("l {}", text(target)),
        }
    }
}

/// A path as text from which [`path_of`] makes the same path again: bytes that are not UTF-8, and `%`, are `%XX`.
fn text(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        text.push_str(&chunk.valid().replace('%', "%25"));
        for byte in chunk.invalid() {
            text.push_str(&format!("%{byte:02x}"));
        }
    }
    text
}

fn path_of(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = tail.get(..2).filter(|_| *first == b'%');
        let byte = escaped.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&bytes))
}

#[cfg(test)]
mod tests;
