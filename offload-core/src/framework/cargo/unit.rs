//! Makes of Cargo's messages what runs a test binary exactly as `cargo test` would: program, working directory,
//! environment.
//!
//! The oracle is a runner that dumps what it gets from `cargo test`; see the tests of the framework.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::env;
use std::path::{Path, PathBuf};

use cargo_metadata::{Artifact, BuildScript, CrateType, Metadata, Package, PackageId, TargetKind};

use super::select::is_library;
use super::toolchain::Toolchain;
use crate::worker::{Harness, Unit};

#[cfg(target_os = "macos")]
const LIBRARY_PATH: &str = "DYLD_FALLBACK_LIBRARY_PATH";
#[cfg(not(target_os = "macos"))]
const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";

/// What the build has said so far that matters to how binaries run.
#[derive(Debug, Default)]
pub(super) struct BuildFacts {
    /// What each package's build script said. With `--target` one can run for both machines.
    scripts: HashMap<PackageId, Vec<BuildScript>>,
    /// Where libraries may be found at run time: every directory that any build script named.
    link_dirs: BTreeSet<PathBuf>,
    /// Where dynamic libraries were built, if each has a directory of its own.
    library_dirs: BTreeSet<PathBuf>,
    /// Tests inherit nothing from this process.
    elsewhere: bool,
}

impl BuildFacts {
    /// Nothing yet; `elsewhere`: tests will not be this process's children.
    pub(super) fn new(elsewhere: bool) -> Self {
        Self { elsewhere, ..Self::default() }
    }

    /// Takes note of what a build script said.
    pub(super) fn add_script(&mut self, script: BuildScript) {
        for dir in &script.linked_paths {
            let dir = dir.as_str();
            let dir = match dir.split_once('=') {
                Some(("native" | "dependency" | "crate" | "framework" | "all", dir)) => dir,
                _ => dir,
            };
            self.link_dirs.insert(PathBuf::from(dir));
        }
        self.scripts.entry(script.package_id.clone()).or_default().push(script);
    }

    /// Takes note of where a dynamic library was built.
    pub(super) fn add_library(&mut self, artifact: &Artifact) {
        let is_dynamic =
            |path: &Path| path.extension().is_some_and(|extension| extension == "so" || extension == "dylib");
        let own = |dir: &&Path| dir.ends_with("out");
        let files = artifact.filenames.iter().map(|file| file.as_std_path());
        self.library_dirs
            .extend(files.filter(|file| is_dynamic(file)).filter_map(Path::parent).filter(own).map(Path::to_owned));
    }

    /// What tests may need of an artifact while they run: a program, or a library that is loaded, and the standard
    /// library where that is one of those.
    pub(super) fn needed(artifact: &Artifact, toolchain: &Toolchain) -> Vec<PathBuf> {
        let is_of = |kinds: &[CrateType]| artifact.target.crate_types.iter().any(|kind| kinds.contains(kind));
        let is_library =
            |path: &Path| path.extension().is_some_and(|extension| extension == "so" || extension == "dylib");
        let mut needed: Vec<PathBuf> = artifact.executable.iter().map(|path| path.clone().into()).collect();
        if is_of(&[CrateType::DyLib, CrateType::CDyLib]) {
            needed.extend(
                artifact.filenames.iter().map(|path| path.clone().into()).filter(|path: &PathBuf| is_library(path)),
            );
        }
        if is_of(&[CrateType::DyLib, CrateType::ProcMacro])
            && let Some(file) = artifact.filenames.first()
        {
            let entries = std::fs::read_dir(toolchain.libdir(file.as_std_path())).into_iter().flatten();
            let standard = entries.filter_map(Result::ok).filter(|entry| {
                entry.file_name().to_string_lossy().starts_with("libstd-") && is_library(&entry.path())
            });
            needed.extend(standard.map(|entry| entry.path()));
        }
        needed
    }

    /// What tests may need of the output of build scripts: that of the workspace's own packages, and libraries where
    /// scripts of others said that there are any.
    pub(super) fn script_output(&self, metadata: &Metadata) -> Vec<PathBuf> {
        let mut needed = Vec::new();
        for (package, scripts) in &self.scripts {
            if metadata.workspace_members.contains(package) {
                needed.extend(scripts.iter().map(|script| script.out_dir.clone().into_std_path_buf()));
            }
        }
        for dir in self.link_dirs.iter().filter(|dir| dir.starts_with(metadata.target_directory.as_std_path())) {
            let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
            needed.extend(entries.map(|entry| entry.path()).filter(|path| {
                // `libx.so.1`, too.
                path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so")) && path.is_file()
            }));
        }
        needed
    }

    /// What runs the test binary that `artifact` announces, if it announces one.
    pub(super) fn unit(
        &self,
        artifact: &Artifact,
        package: &Package,
        metadata: &Metadata,
        toolchain: &Toolchain,
    ) -> Option<Unit> {
        let executable = artifact.executable.as_ref().filter(|_| artifact.profile.test)?.as_std_path();
        let dirs = Dirs::of(executable, metadata)?;
        let cwd = package.manifest_path.parent()?.to_owned().into_std_path_buf();

        let mut env = BTreeMap::new();
        env.insert(LIBRARY_PATH.to_owned(), self.library_path(&dirs, toolchain));
        if let Some(script) = self.script(&artifact.package_id, &dirs.dest) {
            env.extend(script.env.iter().cloned());
            env.insert("OUT_DIR".to_owned(), script.out_dir.to_string());
        }
        env.insert("CARGO".to_owned(), toolchain.cargo.to_string_lossy().into_owned());
        package_env(package, &mut env);
        if artifact.target.is_test() || artifact.target.is_bench() {
            // Announced before a test that was just compiled, but in any order where all is fresh.
            let has = |feature: &String| artifact.features.contains(feature);
            for bin in
                package.targets.iter().filter(|target| target.is_bin() && target.required_features.iter().all(has))
            {
                let path = dirs.dest.join(format!("{}{}", bin.name, env::consts::EXE_SUFFIX));
                env.insert(format!("CARGO_BIN_EXE_{}", bin.name), path.to_string_lossy().into_owned());
            }
        }
        for (name, value) in &toolchain.env {
            env.entry(name.clone()).or_insert_with(|| value.clone());
        }
        // Every variable that a test gets anyway would be copied once more for each process.
        if !self.elsewhere {
            env.retain(|name, value| env::var_os(name).is_none_or(|inherited| inherited != value.as_str()));
        }

        let executable = executable.to_string_lossy().into_owned();
        let mut words = toolchain.runner(&dirs.dest).iter().cloned().chain([executable]);
        let program = PathBuf::from(words.next()?);
        Some(Unit {
            harness: Harness::Libtest,
            custom_harness: has_custom_harness(package, &artifact.target),
            program,
            args: words.collect(),
            extra_args: Vec::new(),
            cwd,
            env,
        })
    }

    fn script(&self, package: &PackageId, dest: &Path) -> Option<&BuildScript> {
        let scripts = self.scripts.get(package)?;
        scripts.iter().rfind(|script| script.out_dir.as_std_path().starts_with(dest)).or_else(|| scripts.last())
    }

    fn library_path(&self, dirs: &Dirs, toolchain: &Toolchain) -> String {
        let mut paths: Vec<PathBuf> =
            self.link_dirs.iter().filter(|dir| dir.starts_with(&dirs.dest)).cloned().collect();
        paths.extend([dirs.dest.clone(), dirs.deps.clone()]);
        paths.extend(self.library_dirs.iter().cloned());
        paths.push(toolchain.libdir(&dirs.dest).to_owned());
        let mut inherited: Vec<PathBuf> = toolchain.proxy_libdir.iter().cloned().collect();
        if let Some(path) = env::var_os(LIBRARY_PATH) {
            inherited.extend(env::split_paths(&path).filter(|path| !path.as_os_str().is_empty()));
        }
        if inherited.starts_with(&paths) {
            paths = inherited;
        } else {
            paths.extend(inherited);
        }
        // A directory with a colon in its name cannot be in such a path at all; Cargo refuses to build there.
        env::join_paths(paths).unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// Where the files of a build are.
struct Dirs {
    /// `target/debug`, `target/<triple>/release`
    dest: PathBuf,
    /// Where libraries and test binaries are.
    deps: PathBuf,
}

impl Dirs {
    fn of(executable: &Path, metadata: &Metadata) -> Option<Self> {
        // …/debug/deps/name-hash, …/debug/examples/name-hash
        let (mut root, mut deps) = (executable.parent()?.parent()?, None);
        // Cargo's new layout of directories: …/debug/build/package/hash/out/name-hash
        let build = executable.ancestors().nth(4);
        if let Some(build) = build
            .filter(|build| build.ends_with("build") && executable.parent().is_some_and(|dir| dir.ends_with("out")))
        {
            (root, deps) = (build.parent()?, executable.parent());
        }
        let deps = deps.map_or_else(|| root.join("deps"), Path::to_owned);
        // With `build.build-dir` set, intermediate files have a directory of their own.
        let dest = metadata
            .build_directory
            .as_ref()
            .and_then(|build| root.strip_prefix(build).ok())
            .map_or_else(|| root.to_owned(), |relative| metadata.target_directory.as_std_path().join(relative));
        Some(Self { dest, deps })
    }
}

/// What Cargo says of a package to its tests; empty values too.
fn package_env(package: &Package, env: &mut BTreeMap<String, String>) {
    let mut set = |name: &str, value: String| {
        env.insert(name.to_owned(), value);
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let path = |value: &Option<cargo_metadata::camino::Utf8PathBuf>| {
        value.as_ref().map(ToString::to_string).unwrap_or_default()
    };
    let version = &package.version;
    set("CARGO_MANIFEST_DIR", package.manifest_path.parent().map(ToString::to_string).unwrap_or_default());
    set("CARGO_MANIFEST_PATH", package.manifest_path.to_string());
    set("CARGO_PKG_VERSION_MAJOR", version.major.to_string());
    set("CARGO_PKG_VERSION_MINOR", version.minor.to_string());
    set("CARGO_PKG_VERSION_PATCH", version.patch.to_string());
    set("CARGO_PKG_VERSION_PRE", version.pre.to_string());
    set("CARGO_PKG_VERSION", version.to_string());
    set("CARGO_PKG_NAME", package.name.to_string());
    set("CARGO_PKG_DESCRIPTION", text(&package.description));
    set("CARGO_PKG_HOMEPAGE", text(&package.homepage));
    set("CARGO_PKG_REPOSITORY", text(&package.repository));
    set("CARGO_PKG_LICENSE", text(&package.license));
    set("CARGO_PKG_LICENSE_FILE", path(&package.license_file));
    set("CARGO_PKG_AUTHORS", package.authors.join(":"));
    set("CARGO_PKG_RUST_VERSION", rust_version(package));
    set("CARGO_PKG_README", path(&package.readme));
}

/// The minimum rustc version as the manifest spells it: the metadata has turned `1.70` into `1.70.0`.
fn rust_version(package: &Package) -> String {
    let Some(version) = &package.rust_version else { return String::new() };
    let full = version.to_string();
    if version.patch != 0 {
        return full;
    }
    let manifest = std::fs::read_to_string(&package.manifest_path).unwrap_or_default();
    let manifest = manifest.parse::<toml::Table>().unwrap_or_default();
    let of = |table: Option<&toml::Value>| Some(table?.get("rust-version")?.as_str()?.to_owned());
    of(manifest.get("package")).or_else(|| inherited_rust_version(package)).unwrap_or(full)
}

/// `rust-version.workspace = true`: the nearest manifest above that has a workspace says it.
fn inherited_rust_version(package: &Package) -> Option<String> {
    package.manifest_path.as_std_path().ancestors().skip(1).find_map(|dir| {
        let manifest = std::fs::read_to_string(dir.join("Cargo.toml")).ok()?.parse::<toml::Table>().ok()?;
        Some(manifest.get("workspace")?.get("package")?.get("rust-version")?.as_str()?.to_owned())
    })
}

/// The name of a test binary, as nextest has them.
pub(super) fn binary_id(package: &Package, target: &cargo_metadata::Target) -> String {
    let (package, name) = (&package.name, &target.name);
    match target.kind.first() {
        Some(TargetKind::Test) => format!("{package}::{name}"),
        Some(TargetKind::Bin) => format!("{package}::bin/{name}"),
        Some(TargetKind::Example) => format!("{package}::example/{name}"),
        Some(TargetKind::Bench) => format!("{package}::bench/{name}"),
        _ => package.to_string(),
    }
}

/// Whether a target says `harness = false`, which only the manifest tells.
pub(super) fn has_custom_harness(package: &Package, target: &cargo_metadata::Target) -> bool {
    let Ok(text) = std::fs::read_to_string(&package.manifest_path) else { return false };
    if !text.contains("harness") {
        return false;
    }
    let Ok(manifest) = text.parse::<toml::Table>() else { return false };
    let says_so = |table: &toml::Value| table.get("harness").and_then(toml::Value::as_bool) == Some(false);
    let section = match target.kind.first() {
        Some(TargetKind::Test) => "test",
        Some(TargetKind::Bin) => "bin",
        Some(TargetKind::Example) => "example",
        Some(TargetKind::Bench) => "bench",
        Some(kind) if is_library(kind) => return manifest.get("lib").is_some_and(says_so),
        _ => return false,
    };
    let tables = manifest.get(section).and_then(toml::Value::as_array);
    tables
        .into_iter()
        .flatten()
        .any(|table| table.get("name").and_then(toml::Value::as_str) == Some(&target.name) && says_so(table))
}
