//! What earlier runs found out about binaries that have not changed since.
//!
//! Three facts are worth remembering because each costs a process: where a rustc keeps its libraries, whether a test
//! target without the standard harness can list its tests, and which doctests a library has. An entry counts only while
//! the file it was learnt from has the same size and modification time. A cache that cannot be read or written is no
//! cache: nothing depends on it but time.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::list::Listed;
use crate::bounded;

/// Changes whenever entries mean something else than before.
const FORMAT: u32 = 2;

/// A file's identity over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    size: u64,
    modified_ns: u128,
}

impl Stamp {
    /// The stamp of `path`; `None` where there is no such file.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        Some(Self { size: metadata.len(), modified_ns: modified.as_nanos() })
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry<T> {
    stamp: Stamp,
    /// What else the value depends on (flags).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    context: String,
    value: T,
}

/// Where a rustc keeps its libraries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RustcPaths {
    pub(super) sysroot: PathBuf,
    pub(super) libdir: PathBuf,
}

type Entries<T> = BTreeMap<PathBuf, Entry<T>>;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Contents {
    format: u32,
    rustc: Entries<RustcPaths>,
    /// Whether a target without the standard harness is one opaque test.
    opaque: Entries<bool>,
    doctests: Entries<Vec<Listed>>,
}

/// The cache of one workspace.
#[derive(Debug, Default)]
pub(super) struct Cache {
    file: PathBuf,
    contents: Contents,
    changed: bool,
}

impl Cache {
    /// Reads the cache below `output_dir`; an empty one if there is none that can be read.
    pub(super) fn load(output_dir: &Path) -> Self {
        let file = output_dir.join("cache").join("cargo.json");
        let contents = bounded::read(&file, bounded::REPORT)
            .ok()
            .and_then(|text| serde_json::from_slice::<Contents>(&text).ok())
            .filter(|contents| contents.format == FORMAT)
            .unwrap_or_else(|| Contents { format: FORMAT, ..Contents::default() });
        Self { file, contents, changed: false }
    }

    /// Writes the cache if something was learnt, without what belongs to files that are gone.
    pub(super) fn save(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        self.contents.rustc.retain(|path, _| path.exists());
        self.contents.opaque.retain(|path, _| path.exists());
        self.contents.doctests.retain(|path, _| path.exists());
        if let Err(error) = self.write() {
            tracing::debug!(%error, file = %self.file.display(), "cannot write the discovery cache");
        }
    }

    fn write(&self) -> std::io::Result<()> {
        let dir = self.file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(dir)?;
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(&serde_json::to_vec(&self.contents)?)?;
        file.persist(&self.file)?;
        Ok(())
    }

    pub(super) fn rustc(&self, rustc: &Path) -> Option<RustcPaths> {
        get(&self.contents.rustc, rustc, "")
    }

    pub(super) fn set_rustc(&mut self, rustc: &Path, paths: RustcPaths) {
        self.changed |= set(&mut self.contents.rustc, rustc, "", paths);
    }

    pub(super) fn opaque(&self, binary: &Path) -> Option<bool> {
        get(&self.contents.opaque, binary, "")
    }

    pub(super) fn set_opaque(&mut self, binary: &Path, opaque: bool) {
        self.changed |= set(&mut self.contents.opaque, binary, "", opaque);
    }

    /// The doctests of a library, and what that was learnt from besides it.
    pub(super) fn doctests(&self, library: &Path) -> Option<(String, Vec<Listed>)> {
        let Entry { context, .. } = self.contents.doctests.get(library)?;
        Some((context.clone(), get(&self.contents.doctests, library, context)?))
    }

    pub(super) fn set_doctests(&mut self, library: &Path, context: &str, doctests: Vec<Listed>) {
        self.changed |= set(&mut self.contents.doctests, library, context, doctests);
    }
}

fn get<T: Clone>(entries: &Entries<T>, path: &Path, context: &str) -> Option<T> {
    let entry = entries.get(path).filter(|entry| entry.context == context)?;
    (Stamp::of(path)? == entry.stamp).then(|| entry.value.clone())
}

fn set<T>(entries: &mut Entries<T>, path: &Path, context: &str, value: T) -> bool {
    let Some(stamp) = Stamp::of(path) else { return false };
    entries.insert(path.to_owned(), Entry { stamp, context: context.to_owned(), value });
    true
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_lives_until_its_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("binary");
        fs::write(&binary, "one").unwrap();
        let mut cache = Cache::load(dir.path());
        cache.set_opaque(&binary, true);
        cache.save();
        assert_eq!(Cache::load(dir.path()).opaque(&binary), Some(true));
        fs::write(&binary, "another").unwrap();
        assert_eq!(Cache::load(dir.path()).opaque(&binary), None);
    }

    #[test]
    fn a_damaged_cache_is_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("cache")).unwrap();
        fs::write(dir.path().join("cache/cargo.json"), "{\"format\":").unwrap();
        assert_eq!(Cache::load(dir.path()).opaque(dir.path()), None);
    }
}
