//! Makes a [`Config`] of the values that won.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::resolve::Picked;
use super::schema::{KEYS, Kind};
use super::value::{Checked, Entry};
use super::{
    CargoFrameworkConfig, CheckpointConfig, Config, DefaultFrameworkConfig, DefaultProviderConfig,
    DockerProviderConfig, FlakyPolicy, FrameworkConfig, GroupConfig, HistoryConfig, LocalProviderConfig, OffloadConfig,
    ProviderConfig, PytestFrameworkConfig, RecordHistory, ReportConfig, SshHostConfig, SshProviderConfig,
    VitestFrameworkConfig,
};
use crate::framework::Isolation;
use crate::secret::Secrets;

/// What the schema spells in TOML as a default.
#[expect(clippy::expect_used, reason = "the schema is a constant; the tests of the configuration read all of it")]
pub(super) fn default_value(text: &str) -> toml::Value {
    text.parse().expect("defaults in the schema are TOML")
}

/// The schema and this module disagree.
#[expect(clippy::panic, reason = "both are constant, and the tests of the configuration read every key")]
fn mismatch(key: &str) -> ! {
    panic!("the schema gives `{key}` neither a default nor bounds that fit; this is a bug of offload")
}

/// Values by key. The schema gives each of them its type, and most of them a default.
struct Values<'a>(&'a BTreeMap<&'static str, Picked>);

impl Values<'_> {
    fn get(&self, key: &str) -> Option<&Checked> {
        self.0.get(key).map(|picked| &picked.value)
    }

    fn int<T: TryFrom<i64>>(&self, key: &str) -> Option<T> {
        match self.get(key) {
            Some(Checked::Int(int)) => T::try_from(*int).ok(),
            _ => None,
        }
    }

    fn count<T: TryFrom<i64>>(&self, key: &str) -> T {
        self.int(key).unwrap_or_else(|| mismatch(key))
    }

    fn secs(&self, key: &str) -> Duration {
        match self.get(key) {
            Some(Checked::Int(int)) => Duration::from_secs(int.unsigned_abs()),
            Some(Checked::Float(float)) => Duration::from_secs_f64(*float),
            _ => mismatch(key),
        }
    }

    fn amount(&self, key: &str) -> Option<f64> {
        match self.get(key) {
            Some(Checked::Float(float)) => Some(*float),
            _ => None,
        }
    }

    fn number(&self, key: &str) -> f64 {
        self.amount(key).unwrap_or_else(|| mismatch(key))
    }

    fn flag(&self, key: &str) -> bool {
        matches!(self.get(key), Some(Checked::Bool(true)))
    }

    fn text(&self, key: &str) -> Option<String> {
        match self.get(key) {
            Some(Checked::Text(text)) => Some(text.value.clone()),
            _ => None,
        }
    }

    fn string(&self, key: &str) -> String {
        self.text(key).unwrap_or_else(|| mismatch(key))
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    fn texts(&self, key: &str) -> Vec<String> {
        match self.get(key) {
            Some(Checked::List(items)) => items.iter().map(|(text, _)| text.value.clone()).collect(),
            _ => Vec::new(),
        }
    }

    fn pairs(&self, key: &str) -> Vec<(PathBuf, PathBuf)> {
        let pairs = self.texts(key);
        let pairs = pairs.iter().filter_map(|pair| pair.split_once(':'));
        pairs.map(|(local, remote)| (local.into(), remote.into())).collect()
    }

    fn hosts(&self, key: &str) -> Vec<SshHostConfig> {
        let Some(Checked::Hosts(hosts)) = self.get(key) else { return Vec::new() };
        let text = |text: &super::expand::Text| text.value.clone();
        let host = |host: &super::hosts::Host| SshHostConfig {
            host: text(&host.host),
            slots: host.slots.and_then(|slots| usize::try_from(slots).ok()),
            user: host.user.as_ref().map(text),
            port: host.port.and_then(|port| u16::try_from(port).ok()),
            identity: host.identity.as_ref().map(|path| text(path).into()),
            workdir: host.workdir.as_ref().map(text),
        };
        hosts.iter().map(host).collect()
    }

    fn env(&self, key: &str) -> BTreeMap<String, String> {
        let Some(Checked::Table(entries)) = self.get(key) else {
            return BTreeMap::new();
        };
        let text = |entry: &Entry| match entry {
            Entry::Text(text) => text.value.clone(),
            Entry::Other(other) => other.clone(),
        };
        entries.iter().map(|(name, entry, _)| (name.clone(), text(entry))).collect()
    }
}

pub(super) fn config(
    picks: &BTreeMap<&'static str, Picked>,
    groups: &[(String, BTreeMap<&'static str, Picked>)],
) -> Config {
    let values = Values(picks);
    Config {
        offload: OffloadConfig {
            max_parallel: values.count("offload.max_parallel"),
            test_timeout: values.secs("offload.test_timeout_secs"),
            slow_test: values.secs("offload.slow_test_secs"),
            retry_count: values.count("offload.retry_count"),
            max_fail: values.int("offload.max_fail"),
            flaky: match values.string("offload.flaky").as_str() {
                "pass" => FlakyPolicy::Pass,
                "fail" => FlakyPolicy::Fail,
                _ => FlakyPolicy::Exit2,
            },
            working_dir: values.path("offload.working_dir"),
            sandbox_repo_root: values.text("offload.sandbox_repo_root"),
            sandbox_project_root: values.text("offload.sandbox_project_root"),
            sandbox_init_cmd: values.text("offload.sandbox_init_cmd"),
            post_patch_cmd: values.text("offload.post_patch_cmd"),
            impatiently_requeue_batches: values.flag("offload.impatiently_requeue_batches"),
            max_parallel_collection: values.count("offload.max_parallel_collection"),
        },
        provider: provider(&values),
        framework: framework(&values),
        groups: groups.iter().map(|(name, picks)| group(name, &Values(picks))).collect(),
        report: ReportConfig {
            output_dir: values.string("report.output_dir").into(),
            junit: values.flag("report.junit"),
            junit_file: values.string("report.junit_file"),
            download_globs: values.texts("report.download_globs"),
            download_globs_failure_only: values.flag("report.download_globs_failure_only"),
        },
        history: HistoryConfig {
            record_history: match values.string("history.record_history").as_str() {
                "always" => RecordHistory::Always,
                _ => RecordHistory::Flag,
            },
            path: values.string("history.path").into(),
            reservoir_size: values.count("history.reservoir_size"),
            default_duration: values.secs("history.default_duration_secs"),
        },
        checkpoint: CheckpointConfig { build_inputs: values.texts("checkpoint.build_inputs") },
        secrets: secrets(picks),
        notices: Vec::new(),
    }
}

/// What is secret among the variables that are set somewhere.
fn secrets(picks: &BTreeMap<&'static str, Picked>) -> Secrets {
    let is_env = |name: &str| KEYS.iter().any(|key| key.name == name && key.kind == Kind::Env);
    let tables = picks.iter().filter(|(name, _)| is_env(name)).map(|(_, picked)| &picked.value);
    let entries = tables.flat_map(|value| match value {
        Checked::Table(entries) => entries.as_slice(),
        _ => &[],
    });
    Secrets::new(entries.flat_map(|(_, entry, _)| match entry {
        Entry::Text(text) => text.secrets().collect(),
        Entry::Other(_) => Vec::new(),
    }))
}

fn provider(values: &Values<'_>) -> ProviderConfig {
    match values.string("provider.type").as_str() {
        "local" => ProviderConfig::Local(LocalProviderConfig {
            working_dir: values.path("provider.working_dir"),
            env: values.env("provider.env"),
            shell: values.text("provider.shell"),
        }),
        "default" => ProviderConfig::Default(DefaultProviderConfig {
            prepare_command: values.text("provider.prepare_command"),
            create_command: values.string("provider.create_command"),
            exec_command: values.string("provider.exec_command"),
            destroy_command: values.string("provider.destroy_command"),
            download_command: values.text("provider.download_command"),
            timeout: values.secs("provider.timeout_secs"),
            copy_dirs: values.pairs("provider.copy_dirs"),
            cpu_cores: values.number("provider.cpu_cores"),
            working_dir: values.path("provider.working_dir"),
            env: values.env("provider.env"),
        }),
        "docker" => ProviderConfig::Docker(DockerProviderConfig {
            image: values.text("provider.image"),
            dockerfile: values.path("provider.dockerfile"),
            context: values.path("provider.context"),
            build_args: values.env("provider.build_args"),
            include: values.texts("provider.include"),
            exclude: values.texts("provider.exclude"),
            copy_dirs: values.pairs("provider.copy_dirs"),
            env: values.env("provider.env"),
            mounts: values.texts("provider.mounts"),
            network: values.text("provider.network"),
            user: values.text("provider.user"),
            cpus: values.amount("provider.cpus"),
            memory: values.text("provider.memory"),
            privileged: values.flag("provider.privileged"),
            platform: values.text("provider.platform"),
        }),
        "ssh" => ProviderConfig::Ssh(SshProviderConfig {
            hosts: values.hosts("provider.hosts"),
            env: values.env("provider.env"),
            isolate: values.flag("provider.isolate"),
            include: values.texts("provider.include"),
            exclude: values.texts("provider.exclude"),
            copy_dirs: values.pairs("provider.copy_dirs"),
        }),
        later => ProviderConfig::Unavailable { kind: later.to_owned() },
    }
}

fn framework(values: &Values<'_>) -> FrameworkConfig {
    match values.string("framework.type").as_str() {
        "cargo" | "nextest" => FrameworkConfig::Cargo(CargoFrameworkConfig {
            package: values.text("framework.package"),
            features: values.texts("framework.features"),
            bin: values.text("framework.bin"),
            include_ignored: values.flag("framework.include_ignored"),
            isolation: match values.string("framework.isolation").as_str() {
                "auto" => Isolation::Auto,
                "binary" => Isolation::Binary,
                _ => Isolation::Process,
            },
        }),
        "pytest" => FrameworkConfig::Pytest(PytestFrameworkConfig {
            isolation: values.string("framework.isolation"),
            dist: values.string("framework.dist"),
            collect: values.string("framework.collect"),
            start_method: values.string("framework.start_method"),
            command: values.string("framework.command"),
            paths: values.texts("framework.paths").into_iter().map(PathBuf::from).collect(),
            run_args: values.string("framework.run_args"),
            discovery_args: values.string("framework.discovery_args"),
            env: values.env("framework.env"),
            prepend_path: values.texts("framework.prepend_path"),
            test_id_format: values.string("framework.test_id_format"),
        }),
        "default" => FrameworkConfig::Default(DefaultFrameworkConfig {
            discover_command: values.string("framework.discover_command"),
            run_command: values.string("framework.run_command"),
            result_file: values.text("framework.result_file"),
            working_dir: values.path("framework.working_dir"),
            test_id_format: values.string("framework.test_id_format"),
        }),
        _ => FrameworkConfig::Vitest(VitestFrameworkConfig {
            command: values.string("framework.command"),
            run_args: values.string("framework.run_args"),
            env: values.env("framework.env"),
            prepend_path: values.texts("framework.prepend_path"),
            test_id_format: values.string("framework.test_id_format"),
        }),
    }
}

fn group(name: &str, values: &Values<'_>) -> GroupConfig {
    GroupConfig {
        name: name.to_owned(),
        retry_count: values.count("retry_count"),
        filters: values.string("filters"),
        schedule_individual: values.flag("schedule_individual"),
    }
}

/// Sentences on values that do nothing because of other values.
pub(super) fn notices(config: &Config) -> Vec<String> {
    let mut notices = Vec::new();
    if let FrameworkConfig::Default(framework) = &config.framework {
        if !framework.run_command.contains("{tests}") {
            notices.push(
                "`framework.run_command` has no `{tests}`: it cannot know which tests it is to run, and each batch of \
                 tests runs whatever it always runs"
                    .to_owned(),
            );
        }
        let filtered = config.groups.iter().find(|group| !group.filters.is_empty());
        if let Some(group) = filtered.filter(|_| !framework.discover_command.contains("{filters}")) {
            notices.push(format!(
                "`filters` of the group `{}` has no effect: `framework.discover_command` has no `{{filters}}`",
                group.name
            ));
        }
    }
    notices
}
