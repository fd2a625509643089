//! Finds doctests.
//!
//! Only rustdoc knows them, and only through `cargo test --doc`, which costs tens of milliseconds per package, and seconds
//! where the package is large. So what a library was found to have is remembered as long as neither the library has
//! been rebuilt nor what else rustdoc may have read has changed (the module `sources`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use cargo_metadata::camino::Utf8PathBuf;
use cargo_metadata::{Artifact, Package};

use super::list::{Listed, mark_ignored, parse_terse};
use super::options::CargoOptions;
use super::process::cargo_command;
use crate::worker::{Harness, Unit};

/// The library that `artifact` announces, if it can have doctests.
pub(super) fn library(artifact: &Artifact) -> Option<PathBuf> {
    if artifact.profile.test || !artifact.target.doctest {
        return None;
    }
    // `cargo build` names the copy that it puts beside the programs; the metadata always stays with the original.
    let original = |path: &Utf8PathBuf| {
        let path = path.with_extension("rlib");
        (path.parent().is_some_and(|dir| dir.ends_with("deps")) && path.exists()).then_some(path)
    };
    let built = |path: &&Utf8PathBuf| path.extension().is_some_and(|extension| extension != "rmeta");
    let files = &artifact.filenames;
    files.iter().find_map(original).or_else(|| files.iter().find(built).cloned()).map(Utf8PathBuf::into_std_path_buf)
}

/// What takes the place of rustdoc where doctests of one package are to run although several are selected: features are
/// those of the whole selection, so Cargo has to be told all of it, and it cannot be told to run only a part.
pub(super) struct OnePackage {
    script: String,
    rustdoc: String,
}

/// Calls the rustdoc that is named in its environment, for one package, with the user's `RUSTDOC` if there is one.
const ONE_PACKAGE: &str = r#"#!/bin/sh
# Written by cargo offload: `cargo test --doc` for several packages, of which one runs its doctests.
case " $* " in
*" --test "*) [ "$CARGO_MANIFEST_DIR" = "$ONE_PACKAGE_DIR" ] || exit 0 ;;
esac
rustdoc=$ONE_PACKAGE_RUSTDOC
if [ -n "${ONE_PACKAGE_USERS+set}" ]; then RUSTDOC=$ONE_PACKAGE_USERS; else unset RUSTDOC; fi
unset ONE_PACKAGE_DIR ONE_PACKAGE_RUSTDOC ONE_PACKAGE_USERS
exec "$rustdoc" "$@"
"#;

impl OnePackage {
    /// Writes the script into `dir` if it is not there.
    pub(super) fn prepare(dir: &Path, rustdoc: &Path) -> std::io::Result<Self> {
        use std::io::Write;
        use std::os::unix::fs::PermissionsExt;

        let script = dir.join("one-package-rustdoc");
        if std::fs::read(&script).ok().as_deref() != Some(ONE_PACKAGE.as_bytes()) {
            std::fs::create_dir_all(dir)?;
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            file.write_all(ONE_PACKAGE.as_bytes())?;
            file.as_file().set_permissions(std::fs::Permissions::from_mode(0o755))?;
            file.persist(&script)?;
        }
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Ok(Self { script: text(&script), rustdoc: text(rustdoc) })
    }

    fn env(&self, package: &Package) -> BTreeMap<String, String> {
        let dir = package.manifest_path.parent().map(ToString::to_string).unwrap_or_default();
        let users = std::env::var_os("RUSTDOC").map(|value| value.to_string_lossy().into_owned());
        let always = [("RUSTDOC", self.script.clone()), ("ONE_PACKAGE_DIR", dir)];
        let rustdoc = [("ONE_PACKAGE_RUSTDOC", self.rustdoc.clone())];
        let users = users.map(|users| ("ONE_PACKAGE_USERS", users));
        always.into_iter().chain(rustdoc).chain(users).map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// What runs the doctests of `package`: everything before what the harness gets. Without `one_package` it is the only one
/// that is selected.
pub(super) fn unit(
    options: &CargoOptions,
    package: &Package,
    one_package: Option<&OnePackage>,
    dir: &Path,
    cargo: &Path,
) -> Unit {
    let mut args = vec!["test".to_owned(), "--doc".to_owned()];
    match one_package {
        Some(_) => args.extend(options.package_args()),
        None => args.extend(["--package".to_owned(), package_spec(package)]),
    }
    args.extend(options.build_args());
    args.extend(options.feature_args());
    args.extend(["--color".to_owned(), "never".to_owned()]);
    Unit {
        harness: Harness::Doctest,
        custom_harness: false,
        program: cargo.to_owned(),
        args,
        extra_args: Vec::new(),
        cwd: dir.to_owned(),
        env: one_package.map(|one_package| one_package.env(package)).unwrap_or_default(),
    }
}

/// What means this package and no other: a package may depend on its own published version.
fn package_spec(package: &Package) -> String {
    let id = &package.id.repr;
    // Before Cargo 1.77 an id was no package spec.
    if id.contains("://") && !id.contains(' ') { id.clone() } else { format!("{}@{}", package.name, package.version) }
}

/// Lists doctests by asking Cargo. The error says what happened, for people.
pub(super) async fn list(unit: &Unit, may_ignore: bool) -> Result<Vec<Listed>, String> {
    if !may_ignore {
        return ask(unit, &["--list", "--format", "terse"]).await;
    }
    let all = ask(unit, &["--list", "--format", "terse"]);
    let ignored = ask(unit, &["--list", "--format", "terse", "--ignored"]);
    let (all, ignored) = tokio::try_join!(all, ignored)?;
    Ok(mark_ignored(all, &ignored))
}

async fn ask(unit: &Unit, harness_args: &[&str]) -> Result<Vec<Listed>, String> {
    let args = unit.args.iter().cloned().chain(["--quiet".to_owned(), "--".to_owned()]);
    let mut command = cargo_command(&unit.cwd, args);
    command.args(harness_args).envs(&unit.env).stdin(Stdio::null());
    let mut command = tokio::process::Command::from(command);
    let output = command
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| format!("`{}` cannot be started: {error}", unit.program.display()))?;
    let listed = parse_terse(&without_times(&output.stdout)).filter(|_| output.status.success());
    let listed = listed.ok_or_else(|| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        format!("`cargo {}` ended with {} and wrote:\n{}", unit.args.join(" "), output.status, stderr.trim_end())
    })?;
    Ok(listed.into_iter().map(|test| Listed::new(plain_name(&test.name))).collect())
}

/// What rustdoc prints without the line on times that it adds when it has merged doctests, even to a list.
fn without_times(stdout: &[u8]) -> Vec<u8> {
    let lines = stdout.split_inclusive(|&byte| byte == b'\n');
    lines.filter(|line| !line.starts_with(b"all doctests ran in ")).flatten().copied().collect()
}

/// A doctest's name without what rustdoc appends to it for some kinds.
pub(super) fn plain_name(name: &str) -> &str {
    [" - compile fail", " - should panic", " - compile"]
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))
        .unwrap_or(name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_what_rustdoc_appends() {
        assert_eq!(plain_name("src/lib.rs - f (line 3) - compile fail"), "src/lib.rs - f (line 3)");
        assert_eq!(plain_name("src/lib.rs - f (line 3) - compile"), "src/lib.rs - f (line 3)");
        assert_eq!(plain_name("src/lib.rs - f (line 3)"), "src/lib.rs - f (line 3)");
    }
}
