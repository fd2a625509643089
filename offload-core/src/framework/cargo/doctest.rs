//! Finds doctests.
//!
//! Only rustdoc knows them, and only through `cargo test --doc`, which costs tens of milliseconds per package. So what a
//! library was found to have is remembered as long as the library has not been rebuilt. That is exact unless rustdoc
//! sees something that rustc did not, which takes a `cfg(doctest)` (or `cfg(doc)`) somewhere in the sources.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use cargo_metadata::camino::Utf8PathBuf;
use cargo_metadata::{Artifact, Package};

use super::list::{Listed, mark_ignored, parse_terse};
use super::options::CargoOptions;
use super::process::cargo_command;
use crate::worker::{Harness, Unit};

/// A library that may have doctests.
pub(super) struct Library {
    /// The built library.
    pub(super) file: PathBuf,
    /// What its sources contain.
    pub(super) sources: Sources,
}

/// What matters about the sources of a library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sources {
    /// Rustdoc sees nothing else than rustc, so that what was found once stays.
    pub(super) cacheable: bool,
    /// Doctests may be ignored.
    pub(super) may_ignore: bool,
}

impl Library {
    /// The library that `artifact` announces, if it can have doctests.
    pub(super) fn of(artifact: &Artifact) -> Option<PathBuf> {
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
        files
            .iter()
            .find_map(original)
            .or_else(|| files.iter().find(built).cloned())
            .map(Utf8PathBuf::into_std_path_buf)
    }

    /// Reads the sources of the library `file`, as rustc listed them, relative to the workspace's root.
    pub(super) fn read(file: PathBuf, workspace_root: &Path) -> Self {
        let sources = read_sources(&file, workspace_root).unwrap_or(Sources { cacheable: false, may_ignore: true });
        Self { file, sources }
    }
}

fn read_sources(library: &Path, workspace_root: &Path) -> Option<Sources> {
    let stem = library.file_stem()?.to_str()?;
    let dep_info = library.with_file_name(format!("{}.d", stem.strip_prefix("lib").unwrap_or(stem)));
    let dep_info = std::fs::read_to_string(dep_info).ok()?;
    let mut sources = Sources { cacheable: true, may_ignore: false };
    let mut any = false;
    // Besides the rules proper there is an empty rule for each source.
    for source in dep_info.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.strip_suffix(':')) {
        let source = source.replace("\\ ", " ");
        let text = std::fs::read(workspace_root.join(source)).ok()?;
        any = true;
        let contains = |needle: &[u8]| text.windows(needle.len()).any(|window| window == needle);
        sources.cacheable &= !contains(b"doctest") && !contains(b"cfg(doc") && !contains(b"(doc,");
        sources.may_ignore |= contains(b"ignore");
    }
    any.then_some(sources)
}

/// What runs the doctests of `package`: everything before what the harness gets.
pub(super) fn unit(options: &CargoOptions, package: &Package, dir: &Path, cargo: &Path) -> Unit {
    let mut args = vec!["test".to_owned(), "--doc".to_owned()];
    args.extend(["--package".to_owned(), format!("{}@{}", package.name, package.version)]);
    args.extend(options.build_args());
    args.extend(package_feature_args(options, package));
    args.extend(["--color".to_owned(), "never".to_owned()]);
    Unit {
        harness: Harness::Doctest,
        program: cargo.to_owned(),
        args,
        extra_args: Vec::new(),
        cwd: dir.to_owned(),
        env: std::collections::BTreeMap::new(),
    }
}

/// The features as far as this package has them: alone, Cargo refuses to hear of others.
fn package_feature_args(options: &CargoOptions, package: &Package) -> Vec<String> {
    let knows = |feature: &str| {
        let optional = |name: &str| {
            package
                .dependencies
                .iter()
                .any(|dependency| dependency.optional && dependency.rename.as_ref().unwrap_or(&dependency.name) == name)
        };
        match feature.split_once('/') {
            Some((owner, _)) if owner == package.name.as_str() => true,
            Some((owner, _)) => {
                let owner = owner.trim_end_matches('?');
                package
                    .dependencies
                    .iter()
                    .any(|dependency| dependency.rename.as_ref().unwrap_or(&dependency.name) == owner)
            }
            None => package.features.contains_key(feature) || optional(feature),
        }
    };
    let words = options.features.iter().flat_map(|features| features.split([' ', ',']));
    let features = words.filter(|feature| !feature.is_empty() && knows(feature)).map(str::to_owned).collect();
    CargoOptions {
        features,
        all_features: options.all_features,
        no_default_features: options.no_default_features,
        ..CargoOptions::default()
    }
    .feature_args()
}

/// Lists doctests by asking Cargo. The error says what happened, for people.
pub(super) async fn list(unit: &Unit, may_ignore: bool) -> Result<Vec<Listed>, String> {
    let all = ask(unit, &["--list", "--format", "terse"]).await?;
    if all.is_empty() || !may_ignore {
        return Ok(all);
    }
    let ignored = ask(unit, &["--list", "--format", "terse", "--ignored"]).await?;
    Ok(mark_ignored(all, &ignored))
}

async fn ask(unit: &Unit, harness_args: &[&str]) -> Result<Vec<Listed>, String> {
    let args = unit.args.iter().cloned().chain(["--quiet".to_owned(), "--".to_owned()]);
    let mut command = cargo_command(&unit.cwd, args);
    command.args(harness_args).stdin(Stdio::null());
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

    #[test]
    fn sources_that_only_rustdoc_sees_in_full_are_not_remembered() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("with space")).unwrap();
        let library = dir.path().join("libx-1.rlib");
        std::fs::write(dir.path().join("x-1.d"), "libx-1.rlib: with\\ space/lib.rs\n\nwith\\ space/lib.rs:\n").unwrap();
        let source = dir.path().join("with space/lib.rs");
        std::fs::write(&source, "/// ```ignore\n/// ```\npub fn f() {}").unwrap();
        assert_eq!(read_sources(&library, dir.path()), Some(Sources { cacheable: true, may_ignore: true }));
        std::fs::write(&source, "#[cfg(doctest)] mod readme {}").unwrap();
        assert_eq!(read_sources(&library, dir.path()), Some(Sources { cacheable: false, may_ignore: false }));
        std::fs::remove_file(&source).unwrap();
        assert_eq!(read_sources(&library, dir.path()), None);
    }
}
