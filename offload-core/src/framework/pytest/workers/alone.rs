//! Workers without a pytest in front of them: what a configuration says becomes what workers are told.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::super::command;
use super::super::launch::Launch;
use super::PytestWorkers;
use crate::config::{Config, FrameworkConfig, GroupConfig, ProviderConfig, PytestFrameworkConfig};
use crate::worker::pytest::{Dist, Elsewhere, PytestHost, PytestOptions, phase_limit};

impl PytestWorkers {
    /// Workers for a run of `offload`, with `env` on top of everything else in their environment. `None` where they cannot
    /// do what is configured, so that tests are run by commands: the sandboxes are made of commands themselves, nobody can
    /// tell which Python runs pytest, tests are to be collected on this machine for sandboxes that are somewhere else, or
    /// groups have different filters (each would need a pytest of its own).
    pub fn alone(config: &Config, env: &BTreeMap<String, String>) -> Option<Self> {
        let FrameworkConfig::Pytest(pytest) = &config.framework else { return None };
        let is_here = match &config.provider {
            ProviderConfig::Local(_) => true,
            ProviderConfig::Docker(_) | ProviderConfig::Ssh(_) => false,
            ProviderConfig::Default(_) | ProviderConfig::Unavailable { .. } => return None,
        };
        let launch = Launch::of(pytest)?;
        let group = config.groups.first().cloned().unwrap_or_default();
        let one_group = config.groups.iter().all(|other| other.filters == group.filters);
        if !one_group || (!is_here && pytest.collect == "local") {
            return None;
        }
        let mut args = launch.args.clone();
        for more in [&pytest.discovery_args, &pytest.run_args, &group.filters] {
            args.extend(shlex::split(more)?);
        }
        let despite_errors = args.iter().any(|arg| arg == "--continue-on-collection-errors");
        args.extend(pytest.paths.iter().map(|path| path.to_string_lossy().into_owned()));
        let cwd = config.offload.working_dir.clone().unwrap_or_default();
        let cwd = std::path::absolute(&cwd).unwrap_or(cwd);
        let mut variables = BTreeMap::new();
        if let ProviderConfig::Local(local) = &config.provider {
            variables.extend(local.env.clone());
        }
        variables.extend(framework_env(pytest, if is_here { Some(&cwd) } else { None }));
        variables.extend(env.clone());
        // Wherever tests are collected, sets are in the same order.
        let seed = "PYTHONHASHSEED".to_owned();
        let hide: Vec<&String> = if variables.contains_key(&seed) { Vec::new() } else { vec![&seed] };
        let cached = !args.iter().any(|arg| arg.ends_with("no:cacheprovider"));
        let init = json!({
            "type": "init",
            "args": args,
            "mainargv": std::iter::once("pytest").chain(args.iter().map(String::as_str)).collect::<Vec<_>>(),
            "rootdir_cwd": cwd,
            "workers": config.offload.max_parallel,
            "run_uid": crate::random::word(),
            "collect": if pytest.collect == "sandbox" { "auto" } else { &pytest.collect },
            "start_method": pytest.start_method,
            "isolation": pytest.isolation,
            "basetemp": null,
            "max_fail": 0,
            "yield_on_failure": config.offload.max_fail.is_some(),
            "standalone": true,
            "alone": true,
            "elsewhere": !is_here,
            "cwd_on_path": launch.cwd_on_path,
            "cache": if cached && !is_here { json!({}) } else { json!(null) },
            "hide": hide,
        });
        if !hide.is_empty() {
            variables.insert(seed.clone(), (crate::random::number() as u32).to_string());
        }
        let python = command::python(pytest, &launch);
        let options = PytestOptions {
            python: "/bin/sh".into(),
            python_args: vec!["-c".to_owned(), format!("{python} \"$@\""), "sh".to_owned()],
            cwd,
            env: variables,
            workers: config.offload.max_parallel,
            dist: pytest.dist.parse().unwrap_or(Dist::Load),
            continue_on_collection_errors: despite_errors,
            init: Some(init.to_string()),
            phase_limit: phase_limit(config.offload.test_timeout),
            alone: true,
            elsewhere: (!is_here).then_some(Elsewhere { python, root: None, selects: Elsewhere::selects(&args) }),
            ..PytestOptions::default()
        };
        Some(Self { host: Arc::new(PytestHost::new(options)), alone: Some(group) })
    }
}

/// The variables of the framework. `root` is the root of the repository, where that is here.
fn framework_env(config: &PytestFrameworkConfig, root: Option<&Path>) -> BTreeMap<String, String> {
    let root = root.map(|root| root.to_string_lossy());
    let rooted = |value: &String| root.as_ref().map_or_else(|| value.clone(), |root| value.replace("{root}", root));
    config.env.iter().map(|(name, value)| (name.clone(), rooted(value))).collect()
}

/// What a run without a pytest in front of it makes of what was collected.
pub(super) type Alone = GroupConfig;
