//! What the sources of a library say of its doctests without being compiled.
//!
//! rustc lists the files that it has read (dep-info), and a library that has not been rebuilt has the doctests that it had.
//! Rustdoc may read more: what is under `cfg(doctest)` or `cfg(doc)`, such as `#[doc = include_str!("../README.md")]`. So in
//! sources that mention these, every string that names a file, and every module that rustc did not read, counts as read, too.
//! Where that does not settle it (a path that is put together, a pattern, a directory), nothing is remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::cache::Stamp;

/// The longest string that is looked at as the name of a file.
const LONGEST_NAME: usize = 1024;

/// What matters about the sources of a library.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sources {
    /// What was found once stays as long as the library and [`Self::unseen`] do.
    pub(super) cacheable: bool,
    /// Doctests may be ignored.
    pub(super) may_ignore: bool,
    /// The files that rustdoc may have read and rustc has not, with their stamps.
    pub(super) unseen: String,
}

impl Sources {
    /// Reads the sources of the library `file`, as rustc listed them, relative to `workspace`; the package is in `package`.
    /// `None` where they cannot be read.
    pub(super) fn read(library: &Path, workspace: &Path, package: &Path) -> Option<Self> {
        let stem = library.file_stem()?.to_str()?;
        let dep_info = library.with_file_name(format!("{}.d", stem.strip_prefix("lib").unwrap_or(stem)));
        let dep_info = std::fs::read_to_string(dep_info).ok()?;
        // Besides the rules proper there is an empty rule for each source.
        let rules = dep_info.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.strip_suffix(':'));
        let seen: BTreeSet<PathBuf> = rules.map(|path| workspace.join(path.replace("\\ ", " "))).collect();
        if seen.is_empty() {
            return None;
        }
        let mut reader = Reader {
            seen: &seen,
            package,
            unseen: BTreeMap::new(),
            queue: Vec::new(),
            cacheable: true,
            may_ignore: false,
        };
        for path in &seen {
            let text = std::fs::read(path).ok()?;
            reader.may_ignore |= contains(&text, b"ignore");
            if contains(&text, b"doctest") || has_doc_predicate(&text) {
                reader.scan(path, &text);
            }
        }
        while let Some(path) = reader.queue.pop() {
            let text = std::fs::read(&path).ok()?;
            reader.may_ignore |= contains(&text, b"ignore");
            if path.extension().is_some_and(|extension| extension == "rs") {
                reader.scan(&path, &text);
            }
        }
        let lines = reader.unseen.iter().map(|(path, stamp)| format!("{} {stamp:?}\n", path.display()));
        Some(Self { cacheable: reader.cacheable, may_ignore: reader.may_ignore, unseen: lines.collect() })
    }
}

/// Follows what rustdoc may read.
struct Reader<'a> {
    seen: &'a BTreeSet<PathBuf>,
    package: &'a Path,
    unseen: BTreeMap<PathBuf, Stamp>,
    /// Of these, those that have not been read.
    queue: Vec<PathBuf>,
    cacheable: bool,
    may_ignore: bool,
}

impl Reader<'_> {
    fn scan(&mut self, path: &Path, text: &[u8]) {
        let Some(dir) = path.parent() else { return };
        // Whether a piece is in a string or between two of them need not be known: what names a file is taken for one.
        for piece in text.split(|&byte| byte == b'"').filter(|piece| !piece.is_empty() && piece.len() <= LONGEST_NAME) {
            let Ok(name) = std::str::from_utf8(piece) else { continue };
            if name.contains(['\n', '\0']) || name.trim().is_empty() {
                continue;
            }
            if name.contains('*') && name.contains('/') && !name.contains(' ') {
                self.cacheable = false;
            }
            for file in [dir.join(name), self.package.join(name.trim_start_matches('/'))] {
                self.take(file);
            }
        }
        for include in ["include!", "include_str!", "include_bytes!"] {
            let is_put_together = |rest: &[u8]| {
                let argument = rest.trim_ascii_start().get(1..).unwrap_or_default().trim_ascii_start();
                !argument.starts_with(b"\"") && !argument.starts_with(b"r\"")
            };
            self.cacheable &= !after(text, include.as_bytes()).any(is_put_together);
        }
        let own = path.file_stem().unwrap_or_default();
        let modules =
            if ["lib", "main", "mod"].iter().any(|name| own == *name) { dir.to_owned() } else { dir.join(own) };
        for name in after(text, b"mod ").filter_map(module) {
            let files = [modules.join(format!("{name}.rs")), modules.join(name).join("mod.rs")];
            if !files.iter().any(|file| self.seen.contains(file)) {
                // In a module that is written out, or named by an attribute: where it is would have to be worked out.
                self.cacheable &= files.iter().any(|file| file.is_file());
                files.into_iter().for_each(|file| self.take(file));
            }
        }
    }

    /// Takes note of a file that rustdoc may read.
    fn take(&mut self, file: PathBuf) {
        if self.seen.contains(&file) || self.unseen.contains_key(&file) {
            return;
        }
        if file.is_file()
            && let Some(stamp) = Stamp::of(&file)
        {
            self.unseen.insert(file.clone(), stamp);
            self.queue.push(file);
        } else if file.is_dir() {
            self.cacheable = false;
        }
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    memchr::memmem::find(text, word).is_some()
}

/// Whether something depends on `doc` being set: `cfg(doc)`, `cfg_attr(all(x, doc), …)`.
fn has_doc_predicate(text: &[u8]) -> bool {
    memchr::memmem::find_iter(text, "doc").any(|at| {
        let before = text[..at].trim_ascii_end().last();
        let after = text[at + "doc".len()..].trim_ascii_start().first();
        matches!(before, Some(b'(' | b',')) && matches!(after, Some(b')' | b','))
    })
}

/// What comes after each `word` that is no part of a longer one.
fn after<'a>(text: &'a [u8], word: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    memchr::memmem::find_iter(text, word)
        .filter(|&at| at == 0 || !is_part_of_name(text[at - 1]))
        .map(move |at| &text[at + word.len()..])
}

fn is_part_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The name at the beginning of `text`, if it is that of a module in another file.
fn module(text: &[u8]) -> Option<&str> {
    let text = text.trim_ascii_start();
    let end = text.iter().position(|&byte| !is_part_of_name(byte))?;
    text[end..].trim_ascii_start().starts_with(b";").then(|| std::str::from_utf8(&text[..end]).ok()).flatten()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A package whose library is `source`.
    struct Package(tempfile::TempDir);

    impl Package {
        fn new(source: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("with space")).unwrap();
            let rules = "libx-1.rlib: with\\ space/lib.rs\n\nwith\\ space/lib.rs:\n# env-dep:X=:\n";
            std::fs::write(dir.path().join("x-1.d"), rules).unwrap();
            let package = Self(dir);
            package.write("with space/lib.rs", source);
            package
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.0.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        fn read(&self) -> Option<Sources> {
            Sources::read(&self.0.path().join("libx-1.rlib"), self.0.path(), self.0.path())
        }
    }

    fn is_cacheable(source: &str) -> bool {
        Package::new(source).read().unwrap().cacheable
    }

    #[test]
    fn what_rustc_has_read_is_all_there_is_where_nothing_else_is_mentioned() {
        let package = Package::new("/// ```ignore\n/// ```\npub fn f() {} const A: &str = include_str!(\"x\");");
        package.write("with space/x", "");
        let expected = Sources { cacheable: true, may_ignore: true, unseen: String::new() };
        assert_eq!(package.read(), Some(expected));
        std::fs::remove_file(package.0.path().join("with space/lib.rs")).unwrap();
        assert_eq!(package.read(), None);
    }

    #[test]
    fn what_only_rustdoc_reads_counts() {
        let names =
            "#[cfg(doctest)]\n#[doc = include_str!(\"../README.md\")]\nstruct Readme;\n#[cfg(doctest)] mod more;";
        let package = Package::new(names);
        package.write("README.md", "```ignore\n```");
        package.write("with space/more.rs", "#![doc = include_str!(\"more.md\")]");
        package.write("with space/more.md", "");
        let before = package.read().unwrap();
        assert!(before.cacheable && before.may_ignore, "{before:?}");
        assert_eq!(before.unseen.lines().count(), 3, "{}", before.unseen);
        assert_eq!(package.read().unwrap(), before);
        for name in ["README.md", "with space/more.rs", "with space/more.md"] {
            let before = package.read().unwrap();
            let text = std::fs::read_to_string(package.0.path().join(name)).unwrap();
            package.write(name, &(text + "\n"));
            assert_ne!(package.read().unwrap(), before, "{name}");
        }
    }

    #[test]
    fn other_macros_and_paths_from_the_root_count() {
        let package = Package::new("doc_comment::doctest!(\"/docs/a.md\");");
        package.write("docs/a.md", "");
        let sources = package.read().unwrap();
        assert!(sources.cacheable && sources.unseen.contains("docs/a.md "), "{sources:?}");
    }

    #[test]
    fn what_is_not_certain_is_not_remembered() {
        assert!(is_cacheable("#[cfg(doctest)] mod a { }"));
        assert!(is_cacheable("#[doc(hidden)] mod is_nowhere; #[cfg_attr(x, doc(hidden))] fn doc() {}"));
        for source in [
            "#[cfg(doctest)] mod is_nowhere;",
            "#[cfg(doctest)] const A: &str = include_str!(concat!(\"a\", \"b\"));",
            "macro_rules! m { ($a:expr) => { #[cfg(doctest)] #[doc = include_str!($a)] struct A; } }",
            "doctests!(\"book/**/*.md\");",
            "#[cfg(any(doc, x))] all!(\"../with space\");",
            "#[cfg_attr(all(feature = \"x\", doc), doc = include_str!(concat!(\"a\", \"b\")))] struct A;",
            "#[cfg( doc )] mod is_nowhere;",
        ] {
            assert!(!is_cacheable(source), "{source}");
        }
    }
}
