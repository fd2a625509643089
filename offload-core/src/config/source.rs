//! Where configuration is: finding the file, reading it, and the place of our table in it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::ConfigError;
use super::diagnostic::{Problem, Where, error};
use crate::bounded;

/// What kind of file configuration is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A file of its own, `offload.toml` or whatever it is called.
    OffloadToml,
    /// `[workspace.metadata.offload]` or `[package.metadata.offload]` of a Cargo.toml.
    CargoManifest,
    /// `[tool.offload]` of a pyproject.toml.
    PyProject,
}

/// A file that configures offload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigSource {
    path: PathBuf,
    kind: SourceKind,
}

impl ConfigSource {
    /// The file at `path`, of the kind that its name tells: `Cargo.toml`, `pyproject.toml`, or anything else.
    pub fn from_path(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let kind = match path.file_name().and_then(|name| name.to_str()) {
            Some("Cargo.toml") => SourceKind::CargoManifest,
            Some("pyproject.toml") => SourceKind::PyProject,
            _ => SourceKind::OffloadToml,
        };
        Self { path, kind }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What kind of file it is.
    pub fn kind(&self) -> SourceKind {
        self.kind
    }

    /// The directory that the file is in.
    pub fn base_dir(&self) -> PathBuf {
        match self.path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
            _ => PathBuf::from("."),
        }
    }

    /// Where our table may be in such a file.
    fn tables(&self) -> &'static [&'static [&'static str]] {
        match self.kind {
            SourceKind::OffloadToml => &[&[]],
            SourceKind::CargoManifest => &[&["workspace", "metadata", "offload"], &["package", "metadata", "offload"]],
            SourceKind::PyProject => &[&["tool", "offload"]],
        }
    }

    /// The text of the file.
    pub(super) fn read(&self) -> Result<String, ConfigError> {
        let path = self.path.display().to_string();
        let bytes = bounded::read(&self.path, bounded::CONFIGURATION).map_err(|problem| {
            let help = match problem.kind() {
                std::io::ErrorKind::NotFound => "name another file with `--config`, or write this one",
                std::io::ErrorKind::PermissionDenied => "make the file readable for the user that runs this",
                std::io::ErrorKind::IsADirectory => "name the file in the directory",
                _ => "make sure that it is a readable file",
            };
            let title = format!("cannot read the configuration file: {problem}");
            error(vec![Problem::new(title, Where::File, "").with_help(help)], &path, "")
        })?;
        String::from_utf8(bytes).map_err(|problem| {
            let valid = problem.utf8_error().valid_up_to();
            let line = 1 + problem.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count();
            let title = format!("the configuration file is not UTF-8: line {line} has bytes that are no text");
            error(vec![Problem::new(title, Where::File, "").with_help("save the file as UTF-8")], &path, "")
        })
    }

    /// The value of `framework.type` in the file, if it has one and is valid TOML: what the file is for, whatever else may
    /// be wrong in it. In a Cargo.toml and a pyproject.toml it goes without saying.
    pub fn framework(&self) -> Option<String> {
        let text = self.read().ok()?;
        let document = DeTable::parse(&text).ok()?;
        let found = self.tables().iter().find_map(|path| {
            let path: Vec<&str> = path.iter().copied().chain(["framework", "type"]).collect();
            match lookup(document.get_ref(), &path)? {
                Looked::Value(_, DeValue::String(name)) => Some(name.to_string()),
                _ => None,
            }
        });
        found.or_else(|| match self.kind {
            SourceKind::OffloadToml => None,
            SourceKind::CargoManifest => Some("cargo".to_owned()),
            SourceKind::PyProject => Some("pytest".to_owned()),
        })
    }

    /// Our table in the document, with its path (`tool.offload`); an error when there is none.
    pub(super) fn table<'d, 'i>(&self, document: &'d DeTable<'i>) -> Result<Located<'d, 'i>, Problem> {
        let mut found = self.tables().iter().filter_map(|path| Some((path.join("."), lookup(document, path)?)));
        if let Some((name, value)) = found.next() {
            if let Some((other, Looked::Value(span, _))) = found.next() {
                let title = format!("both `[{name}]` and `[{other}]` configure offload");
                return Err(Problem::new(title, Where::Span(span), "expected one of them only"));
            }
            return match value {
                Looked::Root(table) | Looked::Value(_, DeValue::Table(table)) => Ok(Located { table, name }),
                Looked::Value(span, _) => {
                    Err(Problem::new(format!("`{name}` has the wrong type"), Where::Span(span), "expected a table"))
                }
            };
        }
        let names: Vec<String> = self.tables().iter().map(|path| format!("`[{}]`", path.join("."))).collect();
        Err(Problem::new(format!("there is no table {}", names.join(" or ")), Where::File, "")
            .with_help("add the table, or name another file with `--config`"))
    }

    fn configures(&self) -> bool {
        // A manifest that cannot be read or parsed is for those to complain about whose file it is.
        bounded::read(&self.path, bounded::CONFIGURATION)
            .ok()
            .and_then(|bytes| {
                let text = String::from_utf8(bytes).ok()?;
                let document = DeTable::parse(&text).ok()?;
                Some(self.tables().iter().any(|path| lookup(document.get_ref(), path).is_some()))
            })
            .unwrap_or(false)
    }
}

/// Our table and its path in the document.
pub(super) struct Located<'d, 'i> {
    pub(super) table: &'d DeTable<'i>,
    pub(super) name: String,
}

enum Looked<'d, 'i> {
    Root(&'d DeTable<'i>),
    Value(Range<usize>, &'d DeValue<'i>),
}

fn lookup<'d, 'i>(document: &'d DeTable<'i>, path: &[&str]) -> Option<Looked<'d, 'i>> {
    let mut at = Looked::Root(document);
    for name in path {
        let (Looked::Root(table) | Looked::Value(_, DeValue::Table(table))) = at else {
            return None;
        };
        let (_, value) = table.iter().find(|(key, _)| key.get_ref() == name)?;
        at = Looked::Value(value.span(), value.get_ref());
    }
    Some(at)
}

/// Finds the configuration for `start_dir`: `offload.toml` there or in a directory above it; else the manifest of the
/// Cargo workspace that `start_dir` is in, when it has `[workspace.metadata.offload]` (or `[package.metadata.offload]`);
/// else a `pyproject.toml` there or above with `[tool.offload]`.
pub fn find_config(start_dir: &Path) -> Option<ConfigSource> {
    find_config_of(start_dir, &[SourceKind::OffloadToml, SourceKind::CargoManifest, SourceKind::PyProject])
}

/// As [`find_config`], among files of these kinds only.
pub fn find_config_of(start_dir: &Path, kinds: &[SourceKind]) -> Option<ConfigSource> {
    // "Above" is meant physically, as `cd ..` does it: symbolic links and `..` are resolved first.
    let absolute = start_dir.canonicalize().or_else(|_| std::path::absolute(start_dir)).ok()?;
    let candidates = |name: &'static str| {
        // A file in the starting directory keeps the path that the caller gave: short, as people would write it.
        let here = if start_dir == Path::new(".") { PathBuf::from(name) } else { start_dir.join(name) };
        let above = absolute.ancestors().skip(1).map(move |dir| dir.join(name)).collect::<Vec<_>>();
        std::iter::once(here).chain(above).filter(|path| path.is_file())
    };
    let file = || candidates("offload.toml").next().map(ConfigSource::from_path);
    let manifest = || {
        let root = candidates("Cargo.toml").find(|path| is_workspace_root(path));
        let manifest = root.or_else(|| candidates("Cargo.toml").next());
        manifest.map(ConfigSource::from_path).filter(ConfigSource::configures)
    };
    let project = || candidates("pyproject.toml").map(ConfigSource::from_path).find(ConfigSource::configures);
    let of_kind = |kind, find: &dyn Fn() -> Option<ConfigSource>| if kinds.contains(&kind) { find() } else { None };
    of_kind(SourceKind::OffloadToml, &file)
        .or_else(|| of_kind(SourceKind::CargoManifest, &manifest))
        .or_else(|| of_kind(SourceKind::PyProject, &project))
}

fn is_workspace_root(manifest: &Path) -> bool {
    std::fs::read_to_string(manifest)
        .is_ok_and(|text| DeTable::parse(&text).is_ok_and(|table| lookup(table.get_ref(), &["workspace"]).is_some()))
}
