//! Configuration: one schema, resolved once into one plain struct.
//!
//! `offload.toml`, `[workspace.metadata.offload]` in Cargo.toml and `[tool.offload]` in pyproject.toml share one schema.
//! Command line, `OFFLOAD_*` environment, file and defaults are laid over each other once; everything behind this
//! module gets a [`Config`] and never looks at any of them again.
//!
//! [`find_config`] finds the file, [`resolve`] makes the [`Config`] and knows where each value came from;
//! [`load_config`] is both for those who have neither options nor a search. The [schema] is one table, from which
//! everything else follows.

mod build;
mod diagnostic;
mod expand;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod hosts;
mod layer;
mod resolve;
pub mod schema;
mod source;
mod value;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::resolve::{Defaults, Override, Resolved, Setting, resolve};
pub use self::source::{ConfigSource, SourceKind, find_config, find_config_of};
use crate::framework::Isolation;
use crate::secret::Secrets;

/// Everything that can be configured, resolved.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// `[offload]`
    pub offload: OffloadConfig,
    /// `[provider]`
    pub provider: ProviderConfig,
    /// `[framework]`
    pub framework: FrameworkConfig,
    /// `[groups.NAME]`, in the order of the file.
    pub groups: Vec<GroupConfig>,
    /// `[report]`
    pub report: ReportConfig,
    /// `[history]`
    pub history: HistoryConfig,
    /// `[checkpoint]`
    pub checkpoint: CheckpointConfig,
    /// What is secret among the variables of all `env` tables.
    pub secrets: Secrets,
    /// Sentences on everything that was set and has no effect, for the user to read.
    pub notices: Vec<String>,
}

impl Config {
    /// Whether a run can be tried with this provider and framework at all.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when one of them is recognised but not there yet.
    pub fn check_available(&self) -> Result<(), ConfigError> {
        let unavailable = |section: &str, kind: &str, instead: &str| {
            ConfigError(format!(
                "error: nothing can be run with the {section} `{kind}`: it is not there yet\n\
                 help: set `{section}.type` to {instead}"
            ))
        };
        if let ProviderConfig::Unavailable { kind } = &self.provider {
            return Err(unavailable(
                "provider",
                kind,
                "`local`, `docker` or `ssh`, or to `default` with commands of your own",
            ));
        }
        Ok(())
    }
}

/// `[offload]`: the run as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct OffloadConfig {
    /// `max_parallel`: the most sandboxes at once.
    pub max_parallel: usize,
    /// `test_timeout_secs`: the time limit of one test.
    pub test_timeout: Duration,
    /// `slow_test_secs`: a test that runs longer is named in the report.
    pub slow_test: Duration,
    /// `retry_count`: further attempts for tests that no group gives any.
    pub retry_count: u32,
    /// `max_fail`: stop after as many failed tests; `None`: never.
    pub max_fail: Option<usize>,
    /// `flaky`: what a run amounts to that passed, but some tests only on a retry.
    pub flaky: FlakyPolicy,
    /// `working_dir`
    pub working_dir: Option<PathBuf>,
    /// `sandbox_repo_root`
    pub sandbox_repo_root: Option<String>,
    /// `sandbox_project_root`
    pub sandbox_project_root: Option<String>,
    /// `sandbox_init_cmd`
    pub sandbox_init_cmd: Option<String>,
    /// `post_patch_cmd`
    pub post_patch_cmd: Option<String>,
    /// `impatiently_requeue_batches`: duplicate slow work onto idle sandboxes.
    pub impatiently_requeue_batches: bool,
    /// `max_parallel_collection`: groups collected at once; 0: as many as there are CPUs.
    pub max_parallel_collection: usize,
}

/// `offload.flaky`: what a run amounts to that passed, but some tests only on a retry. They are named in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlakyPolicy {
    /// `exit-2`: exit code 2.
    #[default]
    Exit2,
    /// `pass`: exit code 0.
    Pass,
    /// `fail`: exit code 1.
    Fail,
}

impl Default for OffloadConfig {
    fn default() -> Self {
        Self {
            max_parallel: std::thread::available_parallelism().map_or(1, usize::from),
            test_timeout: Duration::from_secs(900),
            slow_test: Duration::from_secs(60),
            retry_count: 0,
            max_fail: None,
            flaky: FlakyPolicy::default(),
            working_dir: None,
            sandbox_repo_root: None,
            sandbox_project_root: None,
            sandbox_init_cmd: None,
            post_patch_cmd: None,
            impatiently_requeue_batches: true,
            max_parallel_collection: 0,
        }
    }
}

/// `[provider]`: where sandboxes come from.
#[derive(Debug, Clone, PartialEq)]
pub enum ProviderConfig {
    /// `type = "local"`
    Local(LocalProviderConfig),
    /// `type = "default"`
    Default(DefaultProviderConfig),
    /// `type = "docker"`
    Docker(DockerProviderConfig),
    /// `type = "ssh"`
    Ssh(SshProviderConfig),
    /// A provider that is recognised, so that its files load, and not there yet.
    Unavailable {
        /// Its `type`.
        kind: String,
    },
}

impl ProviderConfig {
    /// The value of `provider.type`.
    pub fn kind(&self) -> &str {
        match self {
            Self::Local(_) => "local",
            Self::Default(_) => "default",
            Self::Docker(_) => "docker",
            Self::Ssh(_) => "ssh",
            Self::Unavailable { kind } => kind,
        }
    }
}

impl Default for ProviderConfig {
    fn default() -> Self {
        Self::Local(LocalProviderConfig::default())
    }
}

/// The provider `local`: processes on this machine.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LocalProviderConfig {
    /// `working_dir`: where commands run; the current directory when absent.
    pub working_dir: Option<PathBuf>,
    /// `env`: on top of this process's environment.
    pub env: BTreeMap<String, String>,
    /// `shell`: what executes command lines; `/bin/sh` when absent.
    pub shell: Option<String>,
}

/// The provider `default`: shell commands of the user's.
#[derive(Debug, Clone, PartialEq)]
pub struct DefaultProviderConfig {
    /// `prepare_command`: runs once; the last line of its output is the image id.
    pub prepare_command: Option<String>,
    /// `create_command`: prints a sandbox id.
    pub create_command: String,
    /// `exec_command`: runs `{command}` in `{sandbox_id}`.
    pub exec_command: String,
    /// `destroy_command`: destroys `{sandbox_id}`.
    pub destroy_command: String,
    /// `download_command`: brings `{paths}` out of `{sandbox_id}`.
    pub download_command: Option<String>,
    /// `timeout_secs`: the limit of each command.
    pub timeout: Duration,
    /// `copy_dirs`: pairs of a path here and a path there.
    pub copy_dirs: Vec<(PathBuf, PathBuf)>,
    /// `cpu_cores`
    pub cpu_cores: f64,
    /// `working_dir`: where the commands themselves run.
    pub working_dir: Option<PathBuf>,
    /// `env`: environment of the commands.
    pub env: BTreeMap<String, String>,
}

impl Default for DefaultProviderConfig {
    fn default() -> Self {
        Self {
            prepare_command: None,
            create_command: String::new(),
            exec_command: String::new(),
            destroy_command: String::new(),
            download_command: None,
            timeout: Duration::from_secs(3600),
            copy_dirs: Vec::new(),
            cpu_cores: 1.0,
            working_dir: None,
            env: BTreeMap::new(),
        }
    }
}

/// The provider `docker`: containers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DockerProviderConfig {
    /// `image`: what containers start from.
    pub image: Option<String>,
    /// `dockerfile`: what the image is built from, instead.
    pub dockerfile: Option<PathBuf>,
    /// `context`: what the Dockerfile can copy from; its own directory when absent.
    pub context: Option<PathBuf>,
    /// `build_args`: values of the Dockerfile's `ARG`s.
    pub build_args: BTreeMap<String, String>,
    /// `include`: patterns of files that travel although they are ignored.
    pub include: Vec<String>,
    /// `exclude`: patterns of files that do not travel.
    pub exclude: Vec<String>,
    /// `copy_dirs`: pairs of a path here and a path there.
    pub copy_dirs: Vec<(PathBuf, PathBuf)>,
    /// `env`: environment of everything in the containers.
    pub env: BTreeMap<String, String>,
    /// `mounts`: `SOURCE:TARGET` or `SOURCE:TARGET:ro`.
    pub mounts: Vec<String>,
    /// `network`
    pub network: Option<String>,
    /// `user`: who runs the tests and owns the project's files; the image's user when absent.
    pub user: Option<String>,
    /// `cpus`
    pub cpus: Option<f64>,
    /// `memory`, as `512m`.
    pub memory: Option<String>,
    /// `privileged`
    pub privileged: bool,
    /// `platform`, as `linux/arm64`.
    pub platform: Option<String>,
}

/// The provider `ssh`: slots of other machines.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SshProviderConfig {
    /// `hosts`: which machines.
    pub hosts: Vec<SshHostConfig>,
    /// `env`: environment of everything in the sandboxes.
    pub env: BTreeMap<String, String>,
    /// `isolate`: each sandbox has a copy of the project of its own.
    pub isolate: bool,
    /// `include`: patterns of files that travel although they are ignored.
    pub include: Vec<String>,
    /// `exclude`: patterns of files that do not travel.
    pub exclude: Vec<String>,
    /// `copy_dirs`: pairs of a path here and a path there.
    pub copy_dirs: Vec<(PathBuf, PathBuf)>,
}

/// An item of `hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SshHostConfig {
    /// `host`: a name or address, as for the `ssh` command.
    pub host: String,
    /// `slots`: the most sandboxes there; as many as the host has CPUs when absent.
    pub slots: Option<usize>,
    /// `user`
    pub user: Option<String>,
    /// `port`
    pub port: Option<u16>,
    /// `identity`: the file of the private key.
    pub identity: Option<PathBuf>,
    /// `workdir`: the directory there for everything of Offload's.
    pub workdir: Option<String>,
}

/// `[framework]`: what kind of tests there are.
#[derive(Debug, Clone, PartialEq)]
pub enum FrameworkConfig {
    /// `type = "cargo"` or `"nextest"`
    Cargo(CargoFrameworkConfig),
    /// `type = "pytest"`
    Pytest(PytestFrameworkConfig),
    /// `type = "default"`
    Default(DefaultFrameworkConfig),
    /// `type = "vitest"`
    Vitest(VitestFrameworkConfig),
}

impl FrameworkConfig {
    /// The value of `framework.type`; `cargo` also where that is `nextest`.
    pub fn kind(&self) -> &str {
        match self {
            Self::Cargo(_) => "cargo",
            Self::Pytest(_) => "pytest",
            Self::Default(_) => "default",
            Self::Vitest(_) => "vitest",
        }
    }
}

impl Default for FrameworkConfig {
    fn default() -> Self {
        Self::Cargo(CargoFrameworkConfig::default())
    }
}

/// The framework `cargo`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CargoFrameworkConfig {
    /// `package`: only this package.
    pub package: Option<String>,
    /// `features`: features to activate.
    pub features: Vec<String>,
    /// `bin`: only this binary's tests.
    pub bin: Option<String>,
    /// `include_ignored`: run the ignored tests, and only those.
    pub include_ignored: bool,
    /// `isolation`: what tests share.
    pub isolation: Isolation,
}

/// The framework `pytest`.
#[derive(Debug, Clone, PartialEq)]
pub struct PytestFrameworkConfig {
    /// `isolation`: `worker` or `test`. This and the next three are for pytest's own worker.
    pub isolation: String,
    /// `dist`: `load`, `loadscope`, `loadfile` or `loadgroup`.
    pub dist: String,
    /// `collect`: `auto`, `serial`, `parallel`, `sandbox` or `local`.
    pub collect: String,
    /// `start_method`: `auto`, `fork` or `spawn`.
    pub start_method: String,
    /// `command`: what starts pytest.
    pub command: String,
    /// `paths`: where tests are.
    pub paths: Vec<PathBuf>,
    /// `run_args`: further arguments when tests run.
    pub run_args: String,
    /// `discovery_args`: further arguments when tests are collected.
    pub discovery_args: String,
    /// `env`; `{root}` is the repository root on either side.
    pub env: BTreeMap<String, String>,
    /// `prepend_path`: put before `PATH`; `{root}` as above.
    pub prepend_path: Vec<String>,
    /// `test_id_format`: how a JUnit testcase names a test.
    pub test_id_format: String,
}

impl Default for PytestFrameworkConfig {
    fn default() -> Self {
        Self {
            isolation: "worker".to_owned(),
            dist: "load".to_owned(),
            collect: "auto".to_owned(),
            start_method: "auto".to_owned(),
            command: "python -m pytest".to_owned(),
            paths: Vec::new(),
            run_args: String::new(),
            discovery_args: String::new(),
            env: BTreeMap::new(),
            prepend_path: Vec::new(),
            test_id_format: "{name}".to_owned(),
        }
    }
}

/// The framework `vitest`.
#[derive(Debug, Clone, PartialEq)]
pub struct VitestFrameworkConfig {
    /// `command`: what starts vitest.
    pub command: String,
    /// `run_args`: further arguments when tests run.
    pub run_args: String,
    /// `env`; `{root}` is the repository root on either side.
    pub env: BTreeMap<String, String>,
    /// `prepend_path`: put before `PATH`; `{root}` as above.
    pub prepend_path: Vec<String>,
    /// `test_id_format`: how tests are called, by their file (`{classname}`) and name.
    pub test_id_format: String,
}

impl Default for VitestFrameworkConfig {
    fn default() -> Self {
        Self {
            command: "npx vitest".to_owned(),
            run_args: String::new(),
            env: BTreeMap::new(),
            prepend_path: Vec::new(),
            test_id_format: "{classname} > {name}".to_owned(),
        }
    }
}

/// The framework `default`: shell commands of the user's.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DefaultFrameworkConfig {
    /// `discover_command`: prints one test id a line; `{filters}`.
    pub discover_command: String,
    /// `run_command`: runs `{tests}` and writes `{result_file}`.
    pub run_command: String,
    /// `result_file`: JUnit that the command writes; without it the exit code decides for the whole batch.
    pub result_file: Option<String>,
    /// `working_dir`: where both commands run, below the directory that the run is for.
    pub working_dir: Option<PathBuf>,
    /// `test_id_format`: how a JUnit testcase names a test.
    pub test_id_format: String,
}

/// `[groups.NAME]`: tests with a treatment of their own.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GroupConfig {
    /// The name.
    pub name: String,
    /// `retry_count`: further attempts after a failure.
    pub retry_count: u32,
    /// `filters`: which tests, in the framework's own terms; all when empty.
    pub filters: String,
    /// `schedule_individual`: each test alone in its sandbox.
    pub schedule_individual: bool,
}

/// `[report]`: what is written where.
#[derive(Debug, Clone, PartialEq)]
pub struct ReportConfig {
    /// `output_dir`
    pub output_dir: PathBuf,
    /// `junit`: whether to write JUnit.
    pub junit: bool,
    /// `junit_file`: its name in `output_dir`; an absolute path is used as it is.
    pub junit_file: String,
    /// `download_globs`: files to bring back from sandboxes.
    pub download_globs: Vec<String>,
    /// `download_globs_failure_only`
    pub download_globs_failure_only: bool,
}

impl Default for ReportConfig {
    fn default() -> Self {
        Self {
            output_dir: PathBuf::from("test-results"),
            junit: true,
            junit_file: "junit.xml".to_owned(),
            download_globs: Vec::new(),
            download_globs_failure_only: false,
        }
    }
}

impl ReportConfig {
    /// Where the JUnit file goes; `None` when none is wanted.
    pub fn junit_path(&self) -> Option<PathBuf> {
        self.junit.then(|| self.output_dir.join(&self.junit_file))
    }
}

/// When durations and outcomes are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RecordHistory {
    /// After every run.
    Always,
    /// Only with `--record-history`.
    #[default]
    Flag,
}

/// `[history]`: what earlier runs taught.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryConfig {
    /// `record_history`
    pub record_history: RecordHistory,
    /// `path`
    pub path: PathBuf,
    /// `reservoir_size`: samples per outcome and test.
    pub reservoir_size: usize,
    /// `default_duration_secs`: what a test without history is taken to last.
    pub default_duration: Duration,
}

impl Default for HistoryConfig {
    fn default() -> Self {
        Self {
            record_history: RecordHistory::Flag,
            path: PathBuf::from("offload-history.jsonl"),
            reservoir_size: 20,
            default_duration: Duration::from_secs(1),
        }
    }
}

/// `[checkpoint]`: what starts a new base image.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CheckpointConfig {
    /// `build_inputs`: files whose change starts a new base image.
    pub build_inputs: Vec<String>,
}

/// A configuration that cannot be used. Its display is the whole diagnosis, to be printed as it is: `error: …`, file,
/// line, column, snippet, what was expected and the nearest valid key, for all problems at once.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Loads a configuration file: `OFFLOAD_*` environment over the file over the [defaults](Defaults::for_source).
///
/// # Errors
///
/// [`ConfigError`] when the file cannot be read, is not TOML, or has keys or values that mean nothing.
pub fn load_config(path: &Path) -> Result<Config, ConfigError> {
    let source = ConfigSource::from_path(path);
    let defaults = Defaults::for_source(Some(&source));
    resolve(Some(&source), environment(), &[], defaults).map(|resolved| resolved.config)
}

/// This process's environment, as [`resolve`] takes it. Variables that are not UTF-8 count as not set.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}
