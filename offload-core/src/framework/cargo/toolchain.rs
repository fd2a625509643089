//! Which Cargo and rustc are used, and what the user's Cargo configuration says about running tests.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use cargo_config2::Config;

use super::cache::{Cache, RustcPaths};
use crate::framework::{FrameworkError, FrameworkResult};

/// The Cargo to call: the one that called us, else the one in `PATH`.
pub(super) fn cargo_program() -> PathBuf {
    env::var_os("CARGO").filter(|cargo| !cargo.is_empty()).map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// A kind of machine for which tests are built.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Platform {
    libdir: PathBuf,
    runner: Vec<String>,
}

/// What test processes inherit from the toolchain and from Cargo's configuration.
#[derive(Debug)]
pub(super) struct Toolchain {
    /// The path of the real Cargo, as tests get it in `CARGO`.
    pub(super) cargo: PathBuf,
    host: Platform,
    target: Option<(String, Platform)>,
    /// The configuration's `[env]` as far as it applies.
    pub(super) env: BTreeMap<String, String>,
    /// What rustup's proxy adds to the library path, where tests would be started through it.
    pub(super) proxy_libdir: Option<PathBuf>,
    /// The rustdoc that Cargo calls.
    pub(super) rustdoc: PathBuf,
    /// Everything in the environment and configuration that changes what rustdoc sees.
    pub(super) rustdoc_flags: String,
}

impl Toolchain {
    /// Asks rustc (or the cache) and resolves the configuration for `target` (the configured one when `None`).
    pub(super) async fn resolve(config: Config, target: Option<&str>, cache: &mut Cache) -> FrameworkResult<Self> {
        let paths = rustc_paths(&Rustc::of(&config), cache).await?;
        let host_triple = triple_of(&paths.libdir).unwrap_or_default();
        let target = target.map(str::to_owned).or_else(|| {
            let configured = config.build.target.as_ref()?.first()?;
            Some(configured.triple().to_owned())
        });
        // Directories and configuration keys are named after the machine that this stands for.
        let target = target.map(|target| if target == "host-tuple" { host_triple.clone() } else { target });
        let runner = |triple: &str| runner(&config, triple);
        let host = Platform { runner: runner(&host_triple)?, libdir: paths.libdir.clone() };
        let target = match target {
            // `--target` may be the path of a specification; directories are named after its stem.
            Some(target) => {
                let name = target.strip_suffix(".json").map_or(target.as_str(), |path| {
                    Path::new(path).file_name().and_then(OsStr::to_str).unwrap_or(path)
                });
                let libdir = paths.sysroot.join("lib/rustlib").join(name).join("lib");
                Some((name.to_owned(), Platform { runner: runner(&target)?, libdir }))
            }
            None => None,
        };

        let env = config
            .env
            .iter()
            .filter(|(name, value)| value.force || env::var_os(name).is_none())
            .map(|(name, value)| (name.clone(), value.value.to_string_lossy().into_owned()))
            .collect();
        let own = paths.sysroot.join("bin").join(format!("cargo{}", env::consts::EXE_SUFFIX));
        let called_by_cargo = env::var_os("CARGO").is_some_and(|cargo| !cargo.is_empty());
        let proxied = !called_by_cargo && own.exists();
        // `RUSTDOC` is part of the configuration.
        let rustdoc = config.build.rustdoc.clone().unwrap_or_else(|| {
            let own = paths.sysroot.join("bin").join(format!("rustdoc{}", env::consts::EXE_SUFFIX));
            if own.exists() { own } else { PathBuf::from("rustdoc") }
        });
        let mut rustdoc_flags = String::new();
        for name in ["RUSTDOCFLAGS", "CARGO_ENCODED_RUSTDOCFLAGS", "CARGO_BUILD_RUSTDOCFLAGS", "RUSTFLAGS"] {
            rustdoc_flags.push_str(&env::var(name).unwrap_or_default());
            rustdoc_flags.push('\n');
        }
        let triple = target.as_ref().map_or(host_triple.as_str(), |(name, _)| name);
        if let Ok(Some(flags)) = config.rustdocflags(triple) {
            rustdoc_flags.push_str(&flags.flags.join(" "));
        }
        Ok(Self {
            cargo: if proxied { own } else { cargo_program() },
            host,
            target,
            env,
            proxy_libdir: proxied.then(|| paths.sysroot.join("lib")),
            rustdoc,
            rustdoc_flags,
        })
    }

    fn platform(&self, dest: &Path) -> &Platform {
        match &self.target {
            // Proc-macros are built for the host even with `--target`; only their directory tells.
            Some((name, platform)) if dest.components().any(|part| part.as_os_str() == name.as_str()) => platform,
            Some(_) | None => &self.host,
        }
    }

    /// The standard library's directory for programs below `dest` (`target/debug`, `target/<triple>/debug`).
    pub(super) fn libdir(&self, dest: &Path) -> &Path {
        &self.platform(dest).libdir
    }

    /// The configured runner for programs below `dest`: a program and its first arguments, or nothing.
    pub(super) fn runner(&self, dest: &Path) -> &[String] {
        &self.platform(dest).runner
    }
}

fn runner(config: &Config, triple: &str) -> FrameworkResult<Vec<String>> {
    if triple.is_empty() {
        return Ok(Vec::new());
    }
    let runner = config.runner(triple).map_err(|error| {
        FrameworkError::Usage(format!(
            "cannot resolve the runner that Cargo's configuration gives for {triple}: {}; mend `target.*.runner`",
            with_sources(&error)
        ))
    })?;
    Ok(runner.map_or_else(Vec::new, |runner| {
        std::iter::once(runner.path.to_string_lossy().into_owned())
            .chain(runner.args.iter().map(|arg| arg.to_string_lossy().into_owned()))
            .collect()
    }))
}

/// `…/rustlib/<triple>/lib` names the host.
fn triple_of(libdir: &Path) -> Option<String> {
    Some(libdir.parent()?.file_name()?.to_str()?.to_owned())
}

/// How Cargo calls rustc to ask it about the toolchain.
struct Rustc {
    /// `build.rustc`, or the one beside Cargo or in `PATH`.
    program: PathBuf,
    /// `build.rustc-wrapper`. The wrapper for workspace members is not asked about the toolchain.
    wrapper: Option<PathBuf>,
}

impl Rustc {
    fn of(config: &Config) -> Self {
        // With wrappers, these are the program, and rustc is its last argument.
        let called = config.rustc();
        let program = called.args.last().map_or_else(|| called.path.clone(), PathBuf::from);
        let wrapper = config.build.rustc_wrapper.clone().filter(|wrapper| !wrapper.as_os_str().is_empty());
        Self { program, wrapper }
    }

    fn command(&self) -> Vec<&OsStr> {
        let program = self.wrapper.iter().chain([&self.program]).map(|path| path.as_os_str());
        program.chain(["--print", "sysroot", "--print", "target-libdir"].map(OsStr::new)).collect()
    }

    /// Whether the answer depends on the file of rustc alone: not on a wrapper, and not on the toolchain that rustup's
    /// proxy chooses, which is in no toolchain's directory.
    fn is_answer_fixed(&self, paths: &RustcPaths) -> bool {
        let canonical = |path: &Path| path.canonicalize().ok();
        self.wrapper.is_none()
            && self.program.is_absolute()
            && canonical(&self.program)
                .zip(canonical(&paths.sysroot))
                .is_some_and(|(program, sysroot)| program.starts_with(sysroot))
    }
}

async fn rustc_paths(rustc: &Rustc, cache: &mut Cache) -> FrameworkResult<RustcPaths> {
    if let Some(paths) = cache.rustc(&rustc.program).filter(|paths| rustc.is_answer_fixed(paths)) {
        return Ok(paths);
    }
    let words = rustc.command();
    let command = words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let failed = |what: String| {
        FrameworkError::Discovery(format!(
            "`{command}` was to say where the standard library is, but {what}; check that the Rust toolchain is complete"
        ))
    };
    let output = tokio::process::Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| failed(format!("cannot be started: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // A wrapper may print something of its own before.
    let mut lines = text.lines().rev().filter(|line| !line.is_empty());
    match (output.status.success(), lines.next(), lines.next()) {
        (true, Some(libdir), Some(sysroot)) => {
            let paths = RustcPaths { sysroot: PathBuf::from(sysroot), libdir: PathBuf::from(libdir) };
            if rustc.is_answer_fixed(&paths) {
                cache.set_rustc(&rustc.program, paths.clone());
            }
            Ok(paths)
        }
        _ => Err(failed(format!(
            "it ended with {} and wrote:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        ))),
    }
}

/// An error with what caused it.
pub(super) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}
