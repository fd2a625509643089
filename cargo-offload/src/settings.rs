//! From what was typed, the environment and the configuration file to one resolved [`Config`].
//!
//! Commands get what [`Settings`] holds and look at neither clap nor the environment again.

use std::path::{Path, PathBuf};

use anyhow::Context;
use offload_core::config::{
    Config, ConfigSource, Defaults, FrameworkConfig, Override, ProviderConfig, Resolved, SourceKind, environment,
    find_config, find_config_of, resolve,
};

use crate::cli::CommonArgs;
use crate::cli::cargo::CargoRunArgs;
use crate::cli::{ExecutionArgs, ReportArgs};

/// A number of failures that no run has: the largest that the configuration takes.
const NO_LIMIT: i64 = 1_000_000_000;

/// A configuration, resolved, and where its relative paths start.
pub struct Settings {
    /// The configuration; its paths are absolute or relative to the current directory.
    pub config: Config,
    /// The values with their origins, for `validate`.
    pub resolved: Resolved,
    /// The directory of the configuration file; without one, the current directory.
    pub base_dir: PathBuf,
}

/// What was typed, as overrides of configuration keys.
#[derive(Default)]
pub struct Overrides(Vec<Override>);

impl Overrides {
    /// Sets `key` to `value` because of `flag`, if there is a value.
    fn set<T: Into<toml::Value>>(&mut self, key: &'static str, flag: &str, value: Option<T>) {
        if let Some(value) = value {
            self.0.push(Override { key, value: value.into(), origin: flag.to_owned() });
        }
    }

    /// The options of every run.
    pub fn execution(mut self, args: &ExecutionArgs) -> Self {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.set("provider.type", "--provider", args.provider.clone());
        self.set("offload.max_parallel", "--parallel", args.parallel.map(number));
        self.set("offload.retry_count", "--retries", args.retries.map(i64::from));
        self.set("groups.*.retry_count", "--retries", args.retries.map(i64::from));
        self.set("offload.test_timeout_secs", "--timeout", args.timeout);
        self.set("offload.flaky", "--flaky", args.flaky.clone());
        self.set("offload.max_fail", "--fail-fast", args.fail_fast.then_some(1_i64));
        self.set("offload.max_fail", "--no-fail-fast", args.no_fail_fast.then_some(NO_LIMIT));
        self.set("offload.max_fail", "--max-fail", args.max_fail.map(number));
        self.set("history.record_history", "--record-history", args.record_history.then(|| "always".to_owned()));
        self
    }

    /// The options that say what is written where. Paths typed are relative to the current directory.
    pub fn report(mut self, args: &ReportArgs) -> Self {
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        self.set("report.output_dir", "--output-dir", args.output_dir.as_ref().map(absolute).map(text));
        self.set("report.junit_file", "--junit", args.junit.as_ref().map(absolute).map(text));
        self.set("report.junit", "--junit", args.junit.as_ref().map(|_| true));
        self
    }

    /// The options of `cargo offload run`.
    pub fn cargo(args: &CargoRunArgs) -> Self {
        let mut overrides = Self::default().execution(&args.execution).report(&args.report);
        overrides.set("framework.isolation", "--isolation", args.isolation.map(|level| level.key().to_owned()));
        overrides
    }
}

impl Settings {
    /// Settings of `cargo offload`: the framework is Cargo, and unless the file says otherwise reports and history are kept
    /// below `target/offload`, in the target directory that `target_dir` gives.
    ///
    /// # Errors
    ///
    /// A configuration that cannot be used; the message is the whole diagnosis.
    pub fn cargo(
        common: &CommonArgs,
        overrides: Overrides,
        target_dir: impl FnOnce() -> anyhow::Result<PathBuf>,
    ) -> anyhow::Result<Self> {
        let (source, notice) = cargo_source(common)?;
        let mut defaults =
            Defaults::for_source(source.as_ref()).set("framework.type", "cargo").set("provider.type", "local");
        if let Some(threads) = std::env::var("RUST_TEST_THREADS").ok().and_then(|text| text.parse::<i64>().ok())
            && threads > 0
        {
            // As many at once as `cargo test` would run: some suites need it to be one.
            defaults = defaults.set("offload.max_parallel", threads);
        }
        let output_dir = target_dir()?.join("offload");
        let Some(text) = output_dir.to_str() else {
            anyhow::bail!(
                "the target directory's path is not valid UTF-8: {}; Cargo cannot build there, so move the project \
                 or choose another place with --target-dir",
                output_dir.display()
            );
        };
        defaults = defaults
            .set("history.path", format!("{text}/history.jsonl"))
            .set("history.record_history", "always")
            .set("report.output_dir", text);
        let mut settings = Self::resolve(source.as_ref(), &overrides, defaults)?;
        settings.config.notices.extend(notice);
        match &settings.config.framework {
            FrameworkConfig::Cargo(_) => Ok(settings),
            _ => anyhow::bail!(
                "the configuration is for another framework than Cargo; run `offload run`, or give `cargo offload` \
                 a file of its own with --config"
            ),
        }
    }

    /// Settings of `offload`: without a file, the framework is what the directory looks like.
    ///
    /// # Errors
    ///
    /// As [`Self::cargo`]; also when there is no file and the directory does not look like anything.
    pub fn offload(common: &CommonArgs, overrides: Overrides) -> anyhow::Result<Self> {
        let source = source(common)?;
        let mut defaults = Defaults::for_source(source.as_ref());
        if source.is_none() {
            let framework = detect_framework(Path::new(".")).context(
                "there is no offload.toml here or above, and nothing tells which framework the tests are for \
                 (no Cargo.toml, pyproject.toml, pytest.ini, tox.ini, setup.cfg or conftest.py, and no package.json with vitest); `offload init` writes \
                 one",
            )?;
            defaults = defaults.set("framework.type", framework);
        }
        Self::resolve(source.as_ref(), &overrides, defaults)
    }

    fn resolve(source: Option<&ConfigSource>, overrides: &Overrides, defaults: Defaults) -> anyhow::Result<Self> {
        let resolved = resolve(source, environment(), &overrides.0, defaults)?;
        crate::masked::keep(&resolved.config.secrets);
        let base_dir = std::path::absolute(&resolved.base_dir).context("the current directory cannot be determined")?;
        let mut config = resolved.config.clone();
        config.report.output_dir = base_dir.join(&config.report.output_dir);
        config.history.path = base_dir.join(&config.history.path);
        let working_dir =
            config.offload.working_dir.as_ref().map_or_else(|| base_dir.clone(), |dir| base_dir.join(dir));
        config.offload.working_dir = Some(working_dir.clone());
        match &mut config.provider {
            ProviderConfig::Local(local) => {
                local.working_dir = Some(working_dir.join(local.working_dir.take().unwrap_or_default()));
            }
            ProviderConfig::Default(default) => {
                default.working_dir = Some(working_dir.join(default.working_dir.take().unwrap_or_default()));
            }
            ProviderConfig::Docker(_) | ProviderConfig::Ssh(_) | ProviderConfig::Unavailable { .. } => {}
        }
        Ok(Self { config, resolved, base_dir })
    }
}

/// The configuration file for `cargo offload`: the one that was named, or the nearest one upwards that is for Cargo. A
/// repository of several languages has one for another framework, perhaps, of which a sentence says that it is not used.
fn cargo_source(common: &CommonArgs) -> anyhow::Result<(Option<ConfigSource>, Option<String>)> {
    if let Some(path) = &common.config {
        return Ok((Some(ConfigSource::from_path(path)), None));
    }
    let current = std::env::current_dir().context("the current directory cannot be determined")?;
    let found = find_config_of(&current, &[SourceKind::OffloadToml, SourceKind::CargoManifest]);
    let Some(other) =
        found.as_ref().and_then(ConfigSource::framework).filter(|name| name != "cargo" && name != "nextest")
    else {
        return Ok((found, None));
    };
    let file = found.map(|source| source.path().display().to_string()).unwrap_or_default();
    let notice = format!("{file} is for the framework `{other}`, and not used");
    Ok((find_config_of(&current, &[SourceKind::CargoManifest]), Some(notice)))
}

/// The configuration file: the one that was named, or the nearest one upwards.
fn source(common: &CommonArgs) -> anyhow::Result<Option<ConfigSource>> {
    match &common.config {
        Some(path) => Ok(Some(ConfigSource::from_path(path))),
        None => {
            let current = std::env::current_dir().context("the current directory cannot be determined")?;
            Ok(find_config(&current))
        }
    }
}

/// What kind of tests a directory seems to have.
pub fn detect_framework(dir: &Path) -> Option<&'static str> {
    if dir.join("Cargo.toml").exists() {
        return Some("cargo");
    }
    let python = ["pyproject.toml", "pytest.ini", "tox.ini", "setup.cfg", "setup.py", "conftest.py"];
    if python.iter().any(|name| dir.join(name).exists()) {
        return Some("pytest");
    }
    let manifest = std::fs::read_to_string(dir.join("package.json")).unwrap_or_default();
    manifest.contains("\"vitest\"").then_some("vitest")
}
