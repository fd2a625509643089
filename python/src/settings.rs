//! The configuration of a run inside pytest: what was typed, the environment and the file, resolved once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use offload_core::config::{
    Config, ConfigError, ConfigSource, Defaults, FlakyPolicy, FrameworkConfig, Override, ProviderConfig, RecordHistory,
    Resolved, SourceKind, environment, find_config_of, resolve, schema,
};
use offload_core::framework::pytest::python_command;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Resolves the configuration of a run that is started in `start_dir`.
///
/// `path` is the file that the user named; without one, `offload.toml` and `pyproject.toml` are looked for upwards.
/// `overrides` holds what was typed: key, value, option.
///
/// # Errors
///
/// `ValueError` with the whole diagnosis, when something in the file, in the environment or typed means nothing.
#[pyfunction]
pub fn settings<'py>(
    py: Python<'py>,
    start_dir: PathBuf,
    path: Option<PathBuf>,
    overrides: Vec<(String, Bound<'py, PyAny>, String)>,
) -> PyResult<Bound<'py, PyDict>> {
    let mut typed = Vec::new();
    for (key, value, origin) in overrides {
        typed.push(Override { key: known_key(&key)?, value: toml_value(&value)?, origin });
    }
    let named = path.is_some();
    let source = match path {
        Some(path) => Some(ConfigSource::from_path(start_dir.join(path))),
        None => find_config_of(&start_dir, &[SourceKind::OffloadToml, SourceKind::PyProject]),
    };
    let mut notices = Vec::new();
    let other = source.as_ref().and_then(ConfigSource::framework).filter(|kind| kind != "pytest");
    let resolved = if let Some(kind) = other {
        let file = source.as_ref().map(|source| source.path().display().to_string()).unwrap_or_default();
        if named {
            let text = format!("{file} is for the framework `{kind}`; name a file whose `framework.type` is `pytest`");
            return Err(PyValueError::new_err(text));
        }
        // A repository of several languages: the file that was found is about another one.
        notices.push(format!("{file} is for the framework `{kind}`, and not used"));
        resolve_for_pytest(None, &typed).map_err(refused)?
    } else {
        resolve_for_pytest(source.as_ref(), &typed).map_err(refused)?
    };
    notices.extend(resolved.config.notices.iter().cloned());
    if !resolved.config.groups.is_empty() {
        notices.push("groups are for `offload run`, and have no effect here: select tests with -k or -m".to_owned());
    }
    to_dict(py, &resolved, &start_dir, notices)
}

fn resolve_for_pytest(source: Option<&ConfigSource>, typed: &[Override]) -> Result<Resolved, ConfigError> {
    let mut defaults = Defaults::for_source(source);
    if source.is_none() {
        defaults = defaults.set("framework.type", "pytest");
    }
    resolve(source, environment(), typed, defaults)
}

fn refused(error: ConfigError) -> PyErr {
    PyValueError::new_err(error.0)
}

fn known_key(name: &str) -> PyResult<&'static str> {
    let known = schema::KEYS.iter().find(|key| key.name == name).map(|key| key.name);
    known.ok_or_else(|| PyValueError::new_err(format!("there is no key `{name}`")))
}

fn toml_value(value: &Bound<'_, PyAny>) -> PyResult<toml::Value> {
    if let Ok(int) = value.extract::<i64>() {
        return Ok(toml::Value::Integer(int));
    }
    if let Ok(float) = value.extract::<f64>() {
        return Ok(toml::Value::Float(float));
    }
    Ok(toml::Value::String(value.extract()?))
}

/// A resolved configuration, for a session.
#[pyclass(module = "pytest_offload._core", frozen)]
pub struct Configuration {
    /// With what paths are relative to.
    pub config: Config,
    /// What starts Python in sandboxes that are somewhere else, in shell language.
    pub python: String,
}

/// What is not set, and has a default that is the plugin's to know, is `None`.
fn to_dict<'py>(
    py: Python<'py>,
    resolved: &Resolved,
    start_dir: &Path,
    notices: Vec<String>,
) -> PyResult<Bound<'py, PyDict>> {
    let config = &resolved.config;
    let base_dir = start_dir.join(&resolved.base_dir);
    let dict = PyDict::new(py);
    let parallel = resolved.is_set("offload.max_parallel").then_some(config.offload.max_parallel);
    let timeout = resolved.is_set("offload.test_timeout_secs").then_some(config.offload.test_timeout.as_secs_f64());
    dict.set_item("parallel", parallel)?;
    dict.set_item("timeout", timeout)?;
    dict.set_item("retries", config.offload.retry_count)?;
    dict.set_item("max_fail", config.offload.max_fail)?;
    let fail_on_flaky = config.offload.flaky == FlakyPolicy::Fail;
    dict.set_item("fail_on_flaky", fail_on_flaky)?;
    dict.set_item("provider", config.provider.kind())?;
    let mut env = BTreeMap::new();
    if let ProviderConfig::Local(local) = &config.provider {
        env.extend(local.env.clone());
    }
    if let FrameworkConfig::Pytest(pytest) = &config.framework {
        let root = base_dir.to_string_lossy();
        // Where the repository is elsewhere than here, only those who are there know where.
        let moved = config.offload.sandbox_repo_root.is_some() && config.provider.kind() != "local";
        let rooted = |text: &String| if moved { text.clone() } else { text.replace("{root}", &root) };
        env.extend(pytest.env.iter().map(|(name, value)| (name.clone(), rooted(value))));
        dict.set_item("prepend_path", pytest.prepend_path.iter().map(rooted).collect::<Vec<_>>())?;
        dict.set_item("isolation", &pytest.isolation)?;
        dict.set_item("dist", &pytest.dist)?;
        dict.set_item("collect", &pytest.collect)?;
        dict.set_item("start_method", &pytest.start_method)?;
    }
    dict.set_item("env", env)?;
    dict.set_item("secrets", config.secrets.values().collect::<Vec<_>>())?;
    let python = match &config.framework {
        FrameworkConfig::Pytest(pytest) => python_command(pytest),
        _ => String::new(),
    };
    let mut whole = config.clone();
    whole.offload.working_dir = Some(start_dir.to_owned());
    whole.history.path = base_dir.join(&config.history.path);
    dict.set_item("configuration", Py::new(py, Configuration { config: whole, python })?)?;
    let keeps_files = resolved.is_set("report.output_dir") || !config.report.download_globs.is_empty();
    let output_dir = keeps_files.then(|| base_dir.join(&config.report.output_dir));
    dict.set_item("output_dir", output_dir)?;
    let report = ["report.output_dir", "report.junit", "report.junit_file"];
    let wanted = report.iter().any(|key| resolved.is_set(key));
    dict.set_item("junit", config.report.junit_path().filter(|_| wanted).map(|path| base_dir.join(path)))?;
    let history = resolved.is_set("history.path").then(|| base_dir.join(&config.history.path));
    let always = config.history.record_history == RecordHistory::Always;
    let record = resolved.is_set("history.record_history").then_some(always);
    dict.set_item("history", history)?;
    dict.set_item("record_history", record)?;
    dict.set_item("notices", notices)?;
    Ok(dict)
}
