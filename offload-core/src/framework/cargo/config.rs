//! Cargo's configuration files, with what they include.
//!
//! The library that reads them knows no `include`. Where there is one, it is shown a copy of all files: one directory
//! below the other, in the order in which they count, with the paths in them made absolute.

use std::path::{Path, PathBuf};

use cargo_config2::{Config, ResolveOptions};
use toml::{Table, Value};

use super::toolchain::{cargo_program, with_sources};
use crate::bounded;
use crate::framework::{FrameworkError, FrameworkResult};

/// How deep files may include others. Cargo refuses circles.
const MOST_LEVELS: usize = 32;
/// Keys of `[build]` that hold a path or a program.
const BUILD_PATHS: [&str; 4] = ["rustc", "rustc-wrapper", "rustc-workspace-wrapper", "rustdoc"];

/// Reads Cargo's configuration for a directory.
pub(super) fn load_config(dir: &Path) -> FrameworkResult<Config> {
    let options = || ResolveOptions::default().cargo(cargo_program());
    let loaded = match Copy::of(dir) {
        Some(copy) => Config::load_with_options(&copy.innermost, options().cargo_home(None)),
        None => Config::load_with_options(dir, options()),
    };
    loaded.map_err(|error| {
        FrameworkError::Usage(format!(
            "cannot read Cargo's configuration for {}: {}; mend the file (or variable) that it names",
            dir.display(),
            with_sources(&error),
        ))
    })
}

/// All configuration files, one below the other.
struct Copy {
    innermost: PathBuf,
    _dir: tempfile::TempDir,
}

impl Copy {
    /// `None` where nothing is included, or what is there cannot be read, which Cargo complains about.
    fn of(dir: &Path) -> Option<Self> {
        let files = files(dir);
        if !files.iter().any(|file| read(file).is_some_and(|table| table.contains_key("include"))) {
            return None;
        }
        let mut tables = Vec::new();
        for file in files.iter().rev() {
            expand(file, &mut tables, 0)?;
        }
        let copy = bounded::private_dir("offload-").ok()?;
        let mut innermost = copy.path().to_owned();
        for table in tables {
            innermost.push("d");
            let place = innermost.join(".cargo");
            std::fs::create_dir_all(&place).ok()?;
            std::fs::write(place.join("config.toml"), table.to_string()).ok()?;
        }
        Some(Self { innermost, _dir: copy })
    }
}

/// The configuration files that count for a directory, the most important first.
fn files(dir: &Path) -> Vec<PathBuf> {
    let file_in =
        |place: PathBuf| ["config", "config.toml"].map(|name| place.join(name)).into_iter().find(|file| file.is_file());
    let mut files: Vec<PathBuf> = dir.ancestors().filter_map(|dir| file_in(dir.join(".cargo"))).collect();
    let home = std::env::var_os("CARGO_HOME").filter(|home| !home.is_empty()).map(|home| dir.join(home));
    let home = home.or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    if let Some(file) = home.and_then(file_in)
        && !files.contains(&file)
    {
        files.push(file);
    }
    files
}

fn read(file: &Path) -> Option<Table> {
    String::from_utf8(bounded::read(file, bounded::CONFIGURATION).ok()?).ok()?.parse().ok()
}

/// Adds a file behind those that it includes.
fn expand(file: &Path, tables: &mut Vec<Table>, level: usize) -> Option<()> {
    let mut table = read(file).filter(|_| level < MOST_LEVELS)?;
    let place = file.parent()?;
    let included = match table.remove("include") {
        Some(Value::Array(list)) => list,
        Some(other) => vec![other],
        None => Vec::new(),
    };
    for entry in included {
        let (path, optional) = match &entry {
            Value::String(path) => (path.as_str(), false),
            Value::Table(entry) => (
                entry.get("path").and_then(Value::as_str)?,
                entry.get("optional").and_then(Value::as_bool).unwrap_or(false),
            ),
            _ => return None,
        };
        let path = place.join(path);
        if path.exists() || !optional {
            expand(&path, tables, level + 1)?;
        }
    }
    make_absolute(&mut table, place.parent().unwrap_or(place));
    tables.push(table);
    Some(())
}

/// Paths in a configuration file are relative to the directory that `root` is.
fn make_absolute(table: &mut Table, root: &Path) {
    if let Some(build) = table.get_mut("build").and_then(Value::as_table_mut) {
        if let Some(Value::String(path)) = build.get_mut("target-dir") {
            *path = root.join(&*path).to_string_lossy().into_owned();
        }
        for key in BUILD_PATHS {
            build.get_mut(key).into_iter().for_each(|value| program(value, root));
        }
    }
    for target in
        table.get_mut("target").and_then(Value::as_table_mut).into_iter().flat_map(|targets| targets.iter_mut())
    {
        for key in ["linker", "runner"] {
            target.1.get_mut(key).into_iter().for_each(|value| program(value, root));
        }
    }
    for (_, variable) in table.get_mut("env").and_then(Value::as_table_mut).into_iter().flatten() {
        let Some(variable) = variable.as_table_mut() else { continue };
        if variable.remove("relative").and_then(|relative| relative.as_bool()) == Some(true)
            && let Some(Value::String(value)) = variable.get_mut("value")
        {
            *value = root.join(&*value).to_string_lossy().into_owned();
        }
    }
}

/// A program: by its name, or by a path that is relative to `root`. Its arguments may follow.
fn program(value: &mut Value, root: &Path) {
    let text = match value {
        Value::Array(words) => words.first_mut(),
        other => Some(other),
    };
    let Some(Value::String(text)) = text else { return };
    let (name, arguments) = text.split_at(text.find(' ').unwrap_or(text.len()));
    if name.contains('/') {
        *text = format!("{}{arguments}", root.join(name).display());
    }
}
