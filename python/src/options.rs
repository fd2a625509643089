//! From the options of a session to what the orchestrator takes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use offload_core::config::{Config, HistoryConfig, LocalProviderConfig, OffloadConfig, ProviderConfig, RecordHistory};
use offload_core::provider::SandboxProvider;
use offload_core::provider::docker::DockerProvider;
use offload_core::provider::local::LocalProvider;
use offload_core::provider::ssh::SshProvider;
use offload_core::secret::Secrets;
use offload_core::worker::pytest::{Dist, Elsewhere, PytestOptions, phase_limit};
use pyo3::exceptions::{PyKeyError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::settings::Configuration;

/// What the template is told, as it is given: the worker reads it, nobody here does.
const FOR_THE_WORKER: [&str; 10] = [
    "args",
    "mainargv",
    "workers",
    "run_uid",
    "collect",
    "start_method",
    "isolation",
    "basetemp",
    "max_fail",
    "yield_on_failure",
];

/// A session's options, understood.
pub struct Options {
    pub config: Config,
    pub pytest: PytestOptions,
    pub provider: Arc<dyn SandboxProvider>,
    pub junit: Option<PathBuf>,
    /// Where durations are recorded; `None`: nowhere. Where they are read from is in the configuration.
    pub history: Option<PathBuf>,
    /// How long events may wait to be handed over together.
    pub flush: Duration,
}

impl Options {
    /// # Errors
    ///
    /// `KeyError` for one that is missing, `TypeError` for one of the wrong type, `ValueError` for one that is no choice.
    pub fn from_dict(options: &Bound<'_, PyDict>) -> PyResult<Self> {
        let cwd: PathBuf = required(options, "cwd")?;
        let workers = required::<usize>(options, "workers")?.max(1);
        let timeout = optional::<f64>(options, "timeout_secs")?.filter(|secs| *secs > 0.0);
        let timeout = timeout.and_then(|secs| Duration::try_from_secs_f64(secs).ok()).unwrap_or(Duration::MAX);
        let junit = optional(options, "junit")?;
        let history: Option<PathBuf> = optional(options, "history")?;
        let record = optional(options, "record_history")?.unwrap_or(true);
        let here = LocalProviderConfig { working_dir: Some(cwd.clone()), ..LocalProviderConfig::default() };
        let configured = optional::<PyRef<'_, Configuration>>(options, "configuration")?;
        let base = configured.as_ref().map(|configured| configured.config.clone()).unwrap_or_default();
        let elsewhere = match &configured {
            Some(configured) if !matches!(base.provider, ProviderConfig::Local(_)) => {
                let args: Vec<String> = optional(options, "args")?.unwrap_or_default();
                Some(Elsewhere {
                    python: configured.python.clone(),
                    root: optional(options, "root")?,
                    selects: Elsewhere::selects(&args),
                })
            }
            _ => None,
        };
        let mut config = Config {
            offload: OffloadConfig {
                max_parallel: workers,
                test_timeout: timeout,
                retry_count: optional(options, "retries")?.unwrap_or(0),
                // When a run ends early is for pytest to say.
                max_fail: None,
                ..base.offload
            },
            secrets: Secrets::new(optional::<Vec<String>>(options, "secrets")?.unwrap_or_default()),
            provider: if elsewhere.is_some() { base.provider } else { ProviderConfig::Local(here.clone()) },
            checkpoint: base.checkpoint,
            history: HistoryConfig {
                record_history: if record { RecordHistory::Always } else { RecordHistory::Flag },
                // Nothing is read from a path that is empty.
                path: history.clone().unwrap_or_default(),
                ..HistoryConfig::default()
            },
            ..Config::default()
        };
        config.report.download_globs = base.report.download_globs;
        config.report.download_globs_failure_only = base.report.download_globs_failure_only;
        if let Some(directory) = optional(options, "output_dir")? {
            config.report.output_dir = directory;
        }
        let provider: Arc<dyn SandboxProvider> = match &config.provider {
            ProviderConfig::Docker(_) => Arc::new(
                DockerProvider::from_config(&config).map_err(|error| PyValueError::new_err(error.to_string()))?,
            ),
            ProviderConfig::Ssh(_) => {
                Arc::new(SshProvider::from_config(&config).map_err(|error| PyValueError::new_err(error.to_string()))?)
            }
            _ => Arc::new(LocalProvider::new(here)),
        };
        let pytest = PytestOptions {
            python: required(options, "python")?,
            python_args: Vec::new(),
            script: required(options, "worker_py")?,
            cwd,
            // Now, while this thread has the interpreter: later Python may change it at any time.
            environment: Some(std::env::vars_os().collect()),
            env: optional::<BTreeMap<String, String>>(options, "env")?.unwrap_or_default(),
            workers,
            dist: optional::<String>(options, "dist")?
                .map_or(Ok(Dist::Load), |name| name.parse())
                .map_err(|error: String| PyValueError::new_err(format!("the option `dist` of a session: {error}")))?,
            inherit_output: optional(options, "inherit_output")?.unwrap_or(false),
            continue_on_collection_errors: optional(options, "continue_on_collection_errors")?.unwrap_or(false),
            crash_retries: optional(options, "crash_retries")?.unwrap_or(0),
            phase_limit: phase_limit(timeout),
            max_fail_in_order: optional::<usize>(options, "stop_after")?.filter(|stop_after| *stop_after > 0),
            adopted: optional(options, "template_pid")?,
            init: if optional(options, "hold")?.unwrap_or(false) { None } else { Some(init_message(options, None)?) },
            alone: false,
            elsewhere,
        };
        let flush = Duration::from_millis(optional(options, "flush_ms")?.unwrap_or(20));
        Ok(Self { config, pytest, provider, junit, history: history.filter(|_| record), flush })
    }
}

/// The `init` message: what the worker needs of the options, and what `init_extra` (of the options, then the parameter)
/// adds to it.
///
/// # Errors
///
/// When an option cannot be written as JSON or `init_extra` is none.
pub fn init_message(options: &Bound<'_, PyDict>, more: Option<&Bound<'_, PyDict>>) -> PyResult<String> {
    let py = options.py();
    let json = py.import("json")?;
    let message = PyDict::new(py);
    message.set_item("type", "init")?;
    message.set_item("rootdir_cwd", required::<Bound<'_, PyAny>>(options, "cwd")?.str()?)?;
    for name in FOR_THE_WORKER {
        if let Some(value) = options.get_item(name)? {
            message.set_item(name, value)?;
        }
    }
    if let Some(extra) = optional::<String>(options, "init_extra")? {
        message.update(json.call_method1("loads", (extra,))?.cast::<PyDict>()?.as_mapping())?;
    }
    if let Some(more) = more {
        message.update(more.as_mapping())?;
    }
    // Python writes it, because its strings can hold what Rust's cannot.
    json.call_method1("dumps", (message,))?.extract()
}

fn required<'py, T: for<'a> FromPyObject<'a, 'py>>(options: &Bound<'py, PyDict>, name: &str) -> PyResult<T> {
    optional(options, name)?.ok_or_else(|| PyKeyError::new_err(format!("the option `{name}` of a session is missing")))
}

fn optional<'py, T: for<'a> FromPyObject<'a, 'py>>(options: &Bound<'py, PyDict>, name: &str) -> PyResult<Option<T>> {
    let Some(value) = options.get_item(name)?.filter(|value| !value.is_none()) else { return Ok(None) };
    match value.extract() {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            let error: PyErr = error.into();
            Err(PyTypeError::new_err(format!("the option `{name}` of a session: {error}")))
        }
    }
}
