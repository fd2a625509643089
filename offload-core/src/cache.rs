//! The image cache: which image was built from which inputs.
//!
//! Preparing an image can take minutes, and most runs need the one of the run before. A key is a hash over everything
//! that goes into an image; what goes in is the provider's knowledge, and so is what to do when a remembered image has
//! gone. The cache is one JSON file, replaced in one step: a run that is killed, or another at the same time, leaves
//! a whole file behind.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::bounded;

/// A hash over everything that goes into an image.
///
/// Parts are told apart by their lengths: `"a", "bc"` and `"ab", "c"` give different keys.
#[derive(Debug, Clone, Default)]
pub struct ImageKey(Sha256);

impl ImageKey {
    /// The key of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a text, such as the command that builds the image.
    pub fn add(&mut self, part: &str) {
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    /// Adds a file, or a directory with all files below it: names and contents. What does not exist is added as such.
    ///
    /// # Errors
    ///
    /// When something that exists cannot be read.
    pub fn add_path(&mut self, path: &Path) -> io::Result<()> {
        self.add(&path.to_string_lossy());
        self.add_contents(path)
    }

    fn add_contents(&mut self, path: &Path) -> io::Result<()> {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.add("missing");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if metadata.is_dir() {
            self.add("directory");
            let mut entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                // A link to a directory may lead back up here.
                if entry.file_type()?.is_symlink() {
                    self.add(&fs::read_link(entry.path())?.to_string_lossy());
                } else {
                    self.add(&entry.file_name().to_string_lossy());
                    self.add_contents(&entry.path())?;
                }
            }
            self.add("end");
            return Ok(());
        }
        self.add("file");
        let mut file = fs::File::open(path)?;
        let mut contents = Sha256::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => contents.update(&buffer[..n]),
            }
        }
        self.0.update(contents.finalize());
        Ok(())
    }

    /// The beginning of the key, for names.
    pub(crate) fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }

    pub(crate) fn hex(&self) -> String {
        let mut hex = String::with_capacity(64);
        for byte in self.0.clone().finalize() {
            let _ = write!(hex, "{byte:02x}");
        }
        hex
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    version: u32,
    /// Image ids by key.
    images: BTreeMap<String, String>,
}

const VERSION: u32 = 1;

/// Remembers image ids in a file.
#[derive(Debug, Clone)]
pub struct ImageCache {
    path: PathBuf,
}

impl ImageCache {
    /// A cache in the file `path`, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The image with this key. A cache that cannot be read knows no image.
    pub fn get(&self, key: &ImageKey) -> Option<String> {
        self.read().images.remove(&key.hex())
    }

    /// Remembers an image.
    ///
    /// # Errors
    ///
    /// When the file cannot be written; the earlier one is then still there.
    pub fn put(&self, key: &ImageKey, image_id: &str) -> io::Result<()> {
        let mut file = self.read();
        file.images.insert(key.hex(), image_id.to_owned());
        self.write(&file)
    }

    /// Forgets an image, because it has gone.
    ///
    /// # Errors
    ///
    /// As [`Self::put`].
    pub fn forget(&self, key: &ImageKey) -> io::Result<()> {
        let mut file = self.read();
        if file.images.remove(&key.hex()).is_some() { self.write(&file) } else { Ok(()) }
    }

    fn read(&self) -> File {
        let text = match bounded::read(&self.path, bounded::REPORT) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %self.path.display(), %error, "cannot read the image cache");
                }
                return File::default();
            }
        };
        match serde_json::from_slice::<File>(&text) {
            Ok(file) if file.version == VERSION => file,
            Ok(file) => {
                tracing::warn!(path = %self.path.display(), version = file.version, "unknown image cache version");
                File::default()
            }
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "the image cache is not what was written");
                File::default()
            }
        }
    }

    fn write(&self, file: &File) -> io::Result<()> {
        let dir = match self.path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        fs::create_dir_all(dir)?;
        let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
        let file = File { version: VERSION, images: file.images.clone() };
        temporary.write_all(&serde_json::to_vec_pretty(&file)?)?;
        temporary.persist(&self.path).map(drop).map_err(|error| error.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(parts: &[&str], paths: &[&Path]) -> ImageKey {
        let mut key = ImageKey::new();
        parts.iter().for_each(|part| key.add(part));
        paths.iter().for_each(|path| key.add_path(path).unwrap());
        key
    }

    #[test]
    fn what_was_put_is_there_until_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ImageCache::new(dir.path().join("new dir/images.json"));
        assert_eq!(cache.get(&key(&["a"], &[])), None);
        cache.put(&key(&["a"], &[]), "image 'a'\n$x").unwrap();
        cache.put(&key(&["b"], &[]), "image b").unwrap();
        let again = ImageCache::new(dir.path().join("new dir/images.json"));
        assert_eq!(again.get(&key(&["a"], &[])).as_deref(), Some("image 'a'\n$x"));
        again.forget(&key(&["a"], &[])).unwrap();
        assert_eq!(cache.get(&key(&["a"], &[])), None);
        assert_eq!(cache.get(&key(&["b"], &[])).as_deref(), Some("image b"));
    }

    #[test]
    fn a_broken_file_is_as_good_as_none_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("images.json");
        for broken in ["{", "[]", r#"{"version": 99, "images": {}}"#] {
            fs::write(&path, broken).unwrap();
            let cache = ImageCache::new(&path);
            assert_eq!(cache.get(&key(&["a"], &[])), None);
            cache.put(&key(&["a"], &[]), "x").unwrap();
            assert_eq!(cache.get(&key(&["a"], &[])).as_deref(), Some("x"));
        }
    }

    #[test]
    fn keys_differ_with_every_input() {
        let dir = tempfile::tempdir().unwrap();
        let inputs = dir.path().join("inputs");
        fs::create_dir(&inputs).unwrap();
        let mut seen = vec![key(&["a", "bc"], &[]).hex(), key(&["ab", "c"], &[]).hex()];
        seen.push(key(&["a"], &[&inputs]).hex());
        fs::write(inputs.join("one"), "1").unwrap();
        seen.push(key(&["a"], &[&inputs]).hex());
        fs::write(inputs.join("one"), "2").unwrap();
        seen.push(key(&["a"], &[&inputs]).hex());
        fs::rename(inputs.join("one"), inputs.join("two")).unwrap();
        seen.push(key(&["a"], &[&inputs]).hex());
        seen.push(key(&["a"], &[&inputs.join("not there")]).hex());
        assert_eq!(seen.last(), Some(&key(&["a"], &[&inputs.join("not there")]).hex()), "equal inputs, equal keys");
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), count);
    }
}
