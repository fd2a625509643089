//! Where Cargo puts what it builds, found without asking Cargo.
//!
//! Front ends need the target directory before the build begins, for reports and for the history that decides which
//! tests go first. `cargo metadata` would tell, after as long as the whole rest of a start takes; the manifests and the
//! configuration say the same in a millisecond.

use std::path::{Path, PathBuf};

use super::config::load_config;
use super::options::CargoOptions;
use crate::framework::{FrameworkError, FrameworkResult};

/// The target directory of the workspace that `options` select.
///
/// # Errors
///
/// [`FrameworkError::Usage`] when there is no package, or a manifest or Cargo's configuration cannot be read.
pub fn target_directory(options: &CargoOptions) -> FrameworkResult<PathBuf> {
    let dir = options.working_dir()?;
    if let Some(target_dir) = &options.target_dir {
        return Ok(dir.join(target_dir));
    }
    // Cargo reads its configuration upwards from the working directory, wherever the manifest is.
    if let Some(target_dir) = &load_config(&dir)?.build.target_dir {
        return Ok(dir.join(target_dir));
    }
    let manifest = match &options.manifest_path {
        Some(path) => dir.join(path),
        None => dir.ancestors().map(|dir| dir.join("Cargo.toml")).find(|path| path.is_file()).ok_or_else(|| {
            FrameworkError::Usage(format!(
                "there is no Cargo.toml in {} or in any directory above it; change to a Cargo package, or name its \
                 manifest with --manifest-path",
                dir.display()
            ))
        })?,
    };
    Ok(workspace_root(&manifest)?.join("target"))
}

/// The root of the workspace that the package of `manifest` belongs to, by Cargo's rules: the package itself says so, or
/// the nearest manifest above with a workspace that does not leave the package out.
fn workspace_root(manifest: &Path) -> FrameworkResult<PathBuf> {
    let package_dir = parent(manifest);
    let own = read(manifest)?;
    if own.contains_key("workspace") {
        return Ok(package_dir);
    }
    if let Some(root) = own.get("package").and_then(|package| package.get("workspace")).and_then(toml::Value::as_str) {
        let root = package_dir.join(root);
        return Ok(root.canonicalize().unwrap_or(root));
    }
    for dir in package_dir.ancestors().skip(1) {
        let candidate = dir.join("Cargo.toml");
        if !candidate.is_file() {
            continue;
        }
        if let Some(workspace) = read(&candidate)?.get("workspace")
            && !leaves_out(workspace, dir, &package_dir)
        {
            return Ok(dir.to_owned());
        }
    }
    Ok(package_dir)
}

/// Whether a workspace in `root` excludes the package in `package`; a member named as such is never excluded.
fn leaves_out(workspace: &toml::Value, root: &Path, package: &Path) -> bool {
    let named = |key: &str| {
        let entries = workspace.get(key).and_then(toml::Value::as_array);
        entries.into_iter().flatten().filter_map(toml::Value::as_str).map(|entry| root.join(entry))
    };
    named("exclude").any(|excluded| package.starts_with(excluded)) && !named("members").any(|member| member == package)
}

fn read(manifest: &Path) -> FrameworkResult<toml::Table> {
    let wrong = |what: String| {
        FrameworkError::Usage(format!("cannot read the manifest {}: {what}; check the path", manifest.display()))
    };
    let text = std::fs::read_to_string(manifest).map_err(|error| wrong(error.to_string()))?;
    text.parse().map_err(|error: toml::de::Error| wrong(error.to_string()))
}

fn parent(manifest: &Path) -> PathBuf {
    manifest.parent().unwrap_or(Path::new("")).to_owned()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn package(name: &str, more: &str) -> String {
        format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n{more}")
    }

    /// What Cargo itself says.
    fn ask_cargo(dir: &Path) -> PathBuf {
        let mut command = Command::new("cargo");
        command.args(["metadata", "--no-deps", "--offline", "--format-version=1"]).current_dir(dir);
        let output = command.env_remove("CARGO_TARGET_DIR").output().unwrap();
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        metadata["target_directory"].as_str().unwrap().into()
    }

    #[test]
    fn every_layout_gives_what_cargo_gives() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().canonicalize().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("ws/Cargo.toml", "[workspace]\nresolver = \"2\"\nmembers = [\"a\", \"deep/*\"]\nexclude = [\"out\"]\n");
        for member in ["a", "deep/b"] {
            write(&format!("ws/{member}/Cargo.toml"), &package(&member.replace('/', "_"), ""));
            write(&format!("ws/{member}/src/lib.rs"), "");
        }
        write("ws/out/Cargo.toml", &package("out", ""));
        write("ws/out/src/lib.rs", "");
        write("ws/pointed/Cargo.toml", "[workspace]\nresolver = \"2\"\nmembers = [\"../elsewhere\"]\n");
        write("ws/elsewhere/Cargo.toml", &package("elsewhere", "workspace = \"../pointed\"\n"));
        write("ws/elsewhere/src/lib.rs", "");
        write("configured/Cargo.toml", &package("configured", ""));
        write("configured/src/lib.rs", "");
        write("configured/.cargo/config.toml", "[build]\ntarget-dir = \"../built here\"\n");
        for dir in ["ws", "ws/a", "ws/a/src", "ws/deep/b", "ws/out", "ws/elsewhere", "configured", "configured/src"] {
            let dir = root.join(dir);
            let options = CargoOptions { current_dir: Some(dir.clone()), ..CargoOptions::default() };
            let ours = target_directory(&options).unwrap();
            let lexical = |path: &Path| {
                path.components().fold(PathBuf::new(), |mut path, part| {
                    match part {
                        std::path::Component::ParentDir => drop(path.pop()),
                        part => path.push(part),
                    }
                    path
                })
            };
            assert_eq!(lexical(&ours), lexical(&ask_cargo(&dir)), "in {}", dir.display());
        }
    }

    #[test]
    fn outside_of_any_package_the_error_says_what_to_do() {
        let temporary = tempfile::tempdir().unwrap();
        let options = CargoOptions { current_dir: Some(temporary.path().to_owned()), ..CargoOptions::default() };
        let error = target_directory(&options).unwrap_err().to_string();
        assert!(error.contains("no Cargo.toml") && error.contains("--manifest-path"), "{error}");
    }
}
