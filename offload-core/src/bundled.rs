//! Scripts carried in the binary, so that commands can name them as `@name.ext`.
//!
//! A command line of the configuration that says `@tempdir_sandbox.sh create` gets the path of that script, written
//! into a private directory that goes away with the [`BundledScripts`]. What the scripts do is in their own comments;
//! running them is their users' business.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use crate::bounded;
use crate::connector::template::{Value, replace};

/// The scripts there are: name and text.
const SCRIPTS: &[(&str, &str)] = &[("tempdir_sandbox.sh", include_str!("bundled/tempdir_sandbox.sh"))];

/// What keeps a script from being used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundledError {
    /// No script has that name.
    #[error(
        "no bundled script is called @{name}; there is {}. A script of your own is named by its path, without the @",
        list()
    )]
    Unknown {
        /// The name, without `@`.
        name: String,
    },
    /// A script of offload 0.10 that drives Modal.
    #[error(
        "@{name} of offload 0.10 is not part of this version, which has no provider for Modal yet (it will be \
         `type = \"modal\"`); save the script of 0.10 in the repository and name it by its path, without the @"
    )]
    Modal {
        /// The name, without `@`.
        name: String,
    },
    /// The script could not be written to where it can be run.
    #[error(
        "cannot write the bundled script {name} to a temporary directory: {source}; check TMPDIR and its free space"
    )]
    Write {
        /// The name, without `@`.
        name: String,
        /// What happened.
        source: std::io::Error,
    },
}

fn list() -> String {
    SCRIPTS.iter().map(|(name, _)| format!("@{name}")).collect::<Vec<_>>().join(", ")
}

/// The names of the scripts, without `@`.
pub fn names() -> impl Iterator<Item = &'static str> {
    SCRIPTS.iter().map(|(name, _)| *name)
}

/// Makes bundled scripts available as files. Clones share the files, which go away with the last.
#[derive(Debug, Clone, Default)]
pub struct BundledScripts {
    dir: Arc<Mutex<Option<TempDir>>>,
}

impl BundledScripts {
    /// Nothing is written before a script is named.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces each word `@name.ext` that names a bundled script by the path of that script. Words that cannot be
    /// meant so (`@name`, `user@host.sh`, `@data.json`) stay as they are.
    ///
    /// # Errors
    ///
    /// [`BundledError`] when no script has the name (of those that end in `.sh` or `.py`), or when it cannot be written.
    pub fn expand(&self, line: &str) -> Result<String, BundledError> {
        // Paths live outside of the closure, which can only lend them.
        let mut paths: Vec<(&'static str, String)> = Vec::new();
        for (name, text) in SCRIPTS {
            if line.contains(name) {
                paths.push((name, self.write(name, text)?.to_string_lossy().into_owned()));
            }
        }
        replace(line, |rest, word_start| {
            let Some(name) = word_start.then(|| script_name(rest)).flatten() else { return Ok(None) };
            match paths.iter().find(|(known, _)| *known == name) {
                Some((_, path)) => Ok(Some((1 + name.len(), Value::Word(path)))),
                None if name.starts_with("modal_") => Err(BundledError::Modal { name: name.to_owned() }),
                None => Err(BundledError::Unknown { name: name.to_owned() }),
            }
        })
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf, BundledError> {
        let failed = |source| BundledError::Write { name: name.to_owned(), source };
        let mut dir = self.dir.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let dir = match &mut *dir {
            Some(dir) => dir,
            none => none.insert(bounded::private_dir("offload-scripts-").map_err(failed)?),
        };
        let path = dir.path().join(name);
        if !path.exists() {
            fs::write(&path, text).map_err(failed)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(failed)?;
        }
        Ok(path)
    }
}

/// The name in `@name.sh` or `@name.py` at the beginning of `rest`, if that is the whole word.
fn script_name(rest: &str) -> Option<&str> {
    let word = rest.strip_prefix('@')?;
    let end = word.find(|c: char| !(c.is_alphanumeric() || "_-./@:".contains(c))).unwrap_or(word.len());
    let (stem, extension) = word[..end].split_once('.')?;
    let plain = !stem.is_empty() && stem.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    (plain && matches!(extension, "sh" | "py")).then_some(&word[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_becomes_a_path_that_runs_and_goes_away() {
        let scripts = BundledScripts::new();
        for line in [
            "@tempdir_sandbox.sh prepare /",
            "sh -c \"@tempdir_sandbox.sh prepare /\"",
            "true;@tempdir_sandbox.sh prepare /",
        ] {
            let line = scripts.expand(line).unwrap();
            let output = std::process::Command::new("/bin/sh").arg("-c").arg(&line).output().unwrap();
            assert_eq!(output.stdout, b"/\n", "{line}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let path = PathBuf::from(scripts.expand("@tempdir_sandbox.sh").unwrap());
        assert!(path.exists());
        drop(scripts);
        assert!(!path.exists());
    }

    #[test]
    fn an_unknown_script_is_named_with_those_that_exist() {
        let error = BundledScripts::new().expand("x && @other_sandbox.py create").unwrap_err();
        assert_eq!(
            error.to_string(),
            "no bundled script is called @other_sandbox.py; there is @tempdir_sandbox.sh. A script of your own is named by its path, without the @"
        );
    }

    #[test]
    fn other_uses_of_the_sign_stay() {
        for line in
            ["mail me@example.sh", "npx @scope/x.sh", "@foo bar", "curl -d @data.json", "echo '@' @ @.sh", "x@y.py"]
        {
            assert_eq!(BundledScripts::new().expand(line).unwrap(), line);
        }
    }
}
