//! Configuration from outside: files, environment and options in; a [`Config`], sentences or diagnoses out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod diagnostics;
mod every_key;

use std::path::Path;

use insta::assert_snapshot;
use offload_core::config::{
    Config, ConfigSource, Defaults, FrameworkConfig, Override, ProviderConfig, Resolved, find_config, load_config,
    resolve,
};

const MINIMAL: &str = "[provider]\ntype = \"local\"\n[framework]\ntype = \"cargo\"\n";

/// A configuration in the making.
#[derive(Default)]
struct Case<'a> {
    name: &'a str,
    text: &'a str,
    env: &'a [(&'a str, &'a str)],
    options: Vec<Override>,
}

impl<'a> Case<'a> {
    fn file(text: &'a str) -> Self {
        Self { name: "offload.toml", text, ..Self::default() }
    }

    fn env(mut self, env: &'a [(&'a str, &'a str)]) -> Self {
        self.env = env;
        self
    }

    fn option(mut self, origin: &str, key: &'static str, value: impl Into<toml::Value>) -> Self {
        self.options.push(Override { key, value: value.into(), origin: origin.to_owned() });
        self
    }

    /// The outcome; the temporary directory is cut out of every text.
    fn resolve(&self) -> Result<Resolved, String> {
        let dir = tempfile::tempdir().unwrap();
        let prefix = format!("{}/", dir.path().display());
        let path = dir.path().join(self.name);
        std::fs::write(&path, self.text).unwrap();
        let source = ConfigSource::from_path(path);
        let env = self.env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let defaults = Defaults::for_source(Some(&source));
        let mut resolved = resolve(Some(&source), env, &self.options, defaults)
            .map_err(|error| error.to_string().replace(&prefix, ""))?;
        for notice in &mut resolved.config.notices {
            *notice = notice.replace(&prefix, "");
        }
        for setting in &mut resolved.origins {
            setting.origin = setting.origin.replace(&prefix, "");
        }
        Ok(resolved)
    }

    fn config(&self) -> Config {
        self.resolve().unwrap_or_else(|error| panic!("{error}")).config
    }

    fn error(&self) -> String {
        self.resolve().map(|resolved| resolved.render()).expect_err("the configuration is wrong")
    }

    fn notices(&self) -> String {
        self.config().notices.join("\n")
    }
}

#[test]
fn the_resolved_configuration_tells_where_values_come_from_and_keeps_secrets() {
    let text = r#"
[offload]
max_parallel = 4
test_timeout_secs = 60

[provider]
type = "default"
create_command = "make-box --token ${TOKEN}"
exec_command = "run {sandbox_id} {command}"
destroy_command = "rm {sandbox_id}"
copy_dirs = ["a:/a"]

[provider.env]
KEY = "${TOKEN}"
"odd name" = "x"

[framework]
type = "pytest"

[groups."very slow"]
filters = "-m 'slow'"

[groups.fast]
retry_count = 2
"#;
    let case = Case::file(text)
        .env(&[("TOKEN", "s3cret"), ("OFFLOAD_TEST_TIMEOUT_SECS", "30"), ("OFFLOAD_SLOW_TEST_SECS", "5")])
        .option("--parallel", "offload.max_parallel", 8)
        .option("--copy-dir", "provider.copy_dirs", vec!["b:/b"])
        .option("--retries", "offload.retry_count", 1);
    let resolved = case.resolve().unwrap();
    let rendered = resolved.render();
    assert!(rendered.parse::<toml::Table>().is_ok(), "it is TOML: {rendered}");
    assert!(!rendered.contains("s3cret"));
    assert_snapshot!(rendered, @r#"
    [offload]
    max_parallel = 8                              # --parallel
    test_timeout_secs = 30.0                      # OFFLOAD_TEST_TIMEOUT_SECS
    slow_test_secs = 5.0                          # OFFLOAD_SLOW_TEST_SECS
    retry_count = 1                               # --retries
    flaky = "exit-2"                              # default
    impatiently_requeue_batches = true            # default
    max_parallel_collection = 0                   # default

    [provider]
    type = "default"                              # offload.toml:7
    env.KEY = "${TOKEN}"                          # offload.toml:14
    env."odd name" = "x"                          # offload.toml:15
    create_command = "make-box --token ${TOKEN}"  # offload.toml:8
    exec_command = "run {sandbox_id} {command}"   # offload.toml:9
    destroy_command = "rm {sandbox_id}"           # offload.toml:10
    timeout_secs = 3600                           # default
    copy_dirs = ["a:/a", "b:/b"]                  # offload.toml:11, --copy-dir

    [framework]
    type = "pytest"                               # offload.toml:18
    isolation = "worker"                          # default
    dist = "load"                                 # default
    collect = "auto"                              # default
    start_method = "auto"                         # default
    command = "python -m pytest"                  # default
    paths = []                                    # default
    run_args = ""                                 # default
    discovery_args = ""                           # default
    env = {}                                      # default
    prepend_path = []                             # default
    test_id_format = "{name}"                     # default

    [groups."very slow"]
    retry_count = 1                               # as offload.retry_count
    filters = "-m 'slow'"                         # offload.toml:21
    schedule_individual = false                   # default

    [groups.fast]
    retry_count = 2                               # offload.toml:24
    filters = ""                                  # default
    schedule_individual = false                   # default

    [report]
    output_dir = "test-results"                   # default
    junit = true                                  # default
    junit_file = "junit.xml"                      # default
    download_globs = []                           # default
    download_globs_failure_only = false           # default

    [history]
    record_history = "flag"                       # default
    path = "offload-history.jsonl"                # default
    reservoir_size = 20                           # default
    default_duration_secs = 1.0                   # default

    [checkpoint]
    build_inputs = []                             # default
    "#);

    let ProviderConfig::Default(provider) = resolved.config.provider else { panic!("{:?}", resolved.config.provider) };
    assert_eq!(provider.create_command, "make-box --token s3cret");
    assert_eq!(provider.env["KEY"], "s3cret");
    assert_eq!(provider.copy_dirs, [("a".into(), "/a".into()), ("b".into(), "/b".into())]);
    assert_eq!(resolved.config.offload.max_parallel, 8);
    assert_eq!(resolved.config.offload.test_timeout.as_secs(), 30);
    let groups: Vec<_> = resolved.config.groups.iter().map(|group| (group.name.as_str(), group.retry_count)).collect();
    assert_eq!(groups, [("very slow", 1), ("fast", 2)], "in the order of the file, not of the alphabet");
}

#[test]
fn what_is_secret_is_known_by_where_it_came_from_and_by_what_is_said_of_it() {
    let text = format!(
        "{MINIMAL}[provider.env]\nMARKED = {{ value = \"hunter2\", secret = true }}\nBOTH = {{ value = \"a ${{TOKEN}}\", \
         secret = true }}\nREFERRED = \"Bearer ${{OTHER}}\"\nOPEN = {{ value = \"${{SHOWN}}\", secret = false }}\n\
         DEFAULT = \"${{UNSET:-default}}\"\nPLAIN = \"plain\"\n"
    );
    let case = Case::file(&text).env(&[("TOKEN", "s3cret"), ("OTHER", "swordfish"), ("SHOWN", "shown")]);
    let resolved = case.resolve().unwrap();
    let secrets: Vec<&str> = resolved.config.secrets.values().collect();
    assert_eq!(secrets, ["a s3cret", "hunter2", "s3cret", "swordfish"]);
    let ProviderConfig::Local(local) = &resolved.config.provider else { panic!("another provider") };
    assert_eq!((local.env["MARKED"].as_str(), local.env["OPEN"].as_str()), ("hunter2", "shown"));
    let rendered = resolved.render();
    let rendered: Vec<&str> = rendered.lines().filter(|line| line.starts_with("env.")).collect();
    assert_snapshot!(rendered.join("\n"), @r#"
    env.MARKED = { value = "***", secret = true }  # offload.toml:6
    env.BOTH = { value = "a ${TOKEN}", secret = true }  # offload.toml:7
    env.REFERRED = "Bearer ${OTHER}"              # offload.toml:8
    env.OPEN = { value = "${SHOWN}", secret = false }  # offload.toml:9
    env.DEFAULT = "${UNSET:-default}"             # offload.toml:10
    env.PLAIN = "plain"                           # offload.toml:11
    "#);
    assert!(!format!("{:?}", resolved.config.secrets).contains("hunter2"));
}

#[test]
fn a_path_is_enough_to_load_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("another-name.toml");
    std::fs::write(&path, format!("{MINIMAL}package = \"core\"\n")).unwrap();
    let FrameworkConfig::Cargo(cargo) = load_config(&path).unwrap().framework else { panic!("not cargo") };
    assert_eq!(cargo.package.as_deref(), Some("core"));
}

#[test]
fn a_key_of_all_groups_can_be_set_at_once() {
    let text = format!("{MINIMAL}[groups.a]\nretry_count = 5\n[groups.b]\n");
    let config = Case::file(&text).option("--retries", "groups.*.retry_count", 2).config();
    assert_eq!(config.groups.iter().map(|group| group.retry_count).collect::<Vec<_>>(), [2, 2]);
}

#[test]
fn what_has_no_effect_is_said() {
    let text = r#"
[offload]
sandbox_repo_root = "/app"
post_patch_cmd = "make"
[provider]
type = "local"
cpu_cores = 2
[framework]
type = "nextest"
test_id_format = "{classname} {name}"
paths = ["tests"]
[report]
download_globs = ["*.log"]
[checkpoint]
build_inputs = ["Cargo.lock"]
"#;
    let env = [
        ("OFFLOAD_MAX_PARALEL", "3"),
        ("OFFLOAD_PROVIDER_ENV", "A=B"),
        ("OFFLOAD_ROOT", "/app"),
        ("OFFLOAD_PATCH_FILE", "x"),
        ("OFFLOAD_SOMETHING", "x"),
    ];
    assert_snapshot!(Case::file(text).env(&env).notices(), @r#"
    OFFLOAD_MAX_PARALEL: the environment variable has no effect; did you mean `OFFLOAD_MAX_PARALLEL`?
    OFFLOAD_PROVIDER_ENV: the environment variable has no effect: `provider.env` is a table, which only the configuration file can hold
    offload.toml:3: `offload.sandbox_repo_root` has no effect with provider `local`: its sandboxes use the repository where it is
    offload.toml:4: `offload.post_patch_cmd` has no effect yet: sandboxes do not start from a checkpoint plus a patch so far
    offload.toml:7: `provider.cpu_cores` has no effect with provider `local`: it is for `default` or `modal`
    offload.toml:10: `framework.test_id_format` has no effect yet: results of Rust tests are not read from JUnit
    offload.toml:11: `framework.paths` has no effect with framework `nextest`: it is for `pytest`
    offload.toml:15: `checkpoint.build_inputs` has no effect with provider `local`: it makes no image
    "#);
    assert_eq!(Case::file(MINIMAL).config().notices, Vec::<String>::new());
}

#[test]
fn keys_of_another_type_chosen_on_the_command_line_are_no_news() {
    let text = "[provider]\ntype = \"default\"\ncreate_command = \"a\"\nexec_command = \"b {command}\"\n\
                destroy_command = \"c\"\n[framework]\ntype = \"cargo\"\n";
    let case = Case::file(text).option("--provider", "provider.type", "local");
    assert_eq!(case.config().provider.kind(), "local");
    assert_eq!(case.notices(), "");
}

/// Every key of a file written for 0.10 with the provider that is furthest from being there.
const MODAL: &str = r#"
[offload]
max_parallel = 40
test_timeout_secs = 600
working_dir = "."
sandbox_repo_root = "/app"
sandbox_project_root = "/app/backend"
sandbox_init_cmd = "uv sync"
post_patch_cmd = "make"
impatiently_requeue_batches = false
max_parallel_collection = 4
[provider]
type = "modal"
dockerfile = ".devcontainer/Dockerfile"
include_cwd = true
copy_dirs = ["./cfg:/app/cfg"]
cpu_cores = 0.5
memory_gb = 4
experimental_options = { vm = true, n = [1, 2], nested = { a = "b" } }
[framework]
type = "vitest"
command = "npx vitest"
run_args = "--retry 0"
test_id_format = "{classname} > {name}"
env = { CI = "1" }
prepend_path = ["{root}/node_modules/.bin"]
[groups.all]
retry_count = 0
filters = ""
[report]
output_dir = "out"
junit = true
junit_file = "junit.xml"
download_globs = ["*.png"]
download_globs_failure_only = true
[history]
record_history = "always"
path = "h.jsonl"
reservoir_size = 10
default_duration_secs = 2
[checkpoint]
build_inputs = ["uv.lock"]
"#;

#[test]
fn files_for_later_providers_load_and_runs_are_refused() {
    let config = Case::file(MODAL).config();
    assert_eq!(config.provider, ProviderConfig::Unavailable { kind: "modal".to_owned() });
    assert!(matches!(&config.framework, FrameworkConfig::Vitest(vitest) if vitest.command == "npx vitest"));
    assert_eq!(config.groups[0].name, "all");
    assert_eq!(config.history.default_duration.as_secs(), 2);
    assert_snapshot!(config.notices.join("\n"), @r#"
    offload.toml:13: the provider `modal` is not there yet: a run with it is refused
    offload.toml:9: `offload.post_patch_cmd` has no effect yet: sandboxes do not start from a checkpoint plus a patch so far
    "#);
    assert_snapshot!(config.check_available().unwrap_err(), @r#"
    error: nothing can be run with the provider `modal`: it is not there yet
    help: set `provider.type` to `local`, `docker` or `ssh`, or to `default` with commands of your own
    "#);
    assert!(Case::file(MINIMAL).config().check_available().is_ok());
}

#[test]
fn hosts_are_tables_or_names() {
    let text = r#"
provider = { type = "ssh", hosts = ["build1", { host = "${HOST}", slots = 8, user = "ci", port = 2222, identity = "k", workdir = "~/o" }] }
framework.type = "cargo"
"#;
    let resolved = Case::file(text).env(&[("HOST", "build2")]).resolve().unwrap();
    let ProviderConfig::Ssh(ssh) = &resolved.config.provider else { panic!("{:?}", resolved.config.provider) };
    let names: Vec<_> = ssh.hosts.iter().map(|host| (host.host.as_str(), host.slots, host.port)).collect();
    assert_eq!(names, [("build1", None, None), ("build2", Some(8), Some(2222))]);
    let host = &ssh.hosts[1];
    assert_eq!((host.user.as_deref(), host.workdir.as_deref()), (Some("ci"), Some("~/o")));
    assert_eq!(host.identity.as_deref(), Some(std::path::Path::new("k")));
    let shown = resolved.render();
    let hosts = shown.lines().find(|line| line.starts_with("hosts")).unwrap();
    let second = r#"{ host = "${HOST}", slots = 8, user = "ci", port = 2222, identity = "k", workdir = "~/o" }"#;
    assert!(hosts.starts_with(&format!(r#"hosts = [{{ host = "build1" }}, {second}]"#)), "{hosts}");
}

#[test]
fn defaults_are_those_of_the_structs() {
    let config = Case::file(MINIMAL).config();
    let mut expected = Config::default();
    expected.offload.max_parallel = std::thread::available_parallelism().unwrap().get();
    expected.provider = ProviderConfig::Local(offload_core::config::LocalProviderConfig {
        shell: Some("/bin/sh".to_owned()),
        ..Default::default()
    });
    assert_eq!(config, expected);

    let defaults = Defaults::for_source(None)
        .set("framework.type", "cargo")
        .set("report.output_dir", "target/offload")
        .set("history.record_history", "always");
    let resolved = resolve(None, [], &[], defaults).unwrap();
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert_eq!(resolved.config.offload.max_parallel, cpus);
    assert_eq!(resolved.config.report.output_dir, Path::new("target/offload"));
    assert_eq!(resolved.config.history.record_history, offload_core::config::RecordHistory::Always);
    assert_eq!(resolved.base_dir, Path::new("."));
    assert!(resolved.origins.iter().all(|setting| setting.origin == "default"));

    let error = resolve(None, [], &[], Defaults::for_source(None)).unwrap_err();
    assert_snapshot!(error, @r#"
    error: `framework.type` is not set
    --> no configuration file
     = note: expected `type` in `[framework]`
     = help: set it to `cargo`, `nextest`, `pytest`, `default` or `vitest`
    "#);
}

#[test]
fn manifests_carry_the_same_schema() {
    let text =
        "[workspace.metadata.offload]\nmax_parallel = 3\n[workspace.metadata.offload.groups.x]\nretry_count = 1\n";
    let config = Case { name: "Cargo.toml", text, ..Case::default() }.config();
    assert_eq!((config.offload.max_parallel, config.groups.len()), (3, 1));
    assert_eq!((config.provider.kind(), config.framework.kind()), ("local", "cargo"));

    let text = "[tool.offload.offload]\nmax_parallel = 3\n[tool.offload.framework]\npaths = [\"t\"]\n";
    let config = Case { name: "pyproject.toml", text, ..Case::default() }.config();
    assert_eq!((config.offload.max_parallel, config.framework.kind()), (3, "pytest"));

    let text = "[tool.offload]\nmax_fail = 3\nmax_fial = 3\n[tool.offload.report]\njunti = true\n[tool.offload.offload]\nmax_fail = 1\n";
    assert_snapshot!(Case { name: "pyproject.toml", text, ..Case::default() }.error(), @r#"
    error: unknown key `max_fial` in `[tool.offload]`
     --> pyproject.toml:3:1
      |
    3 | max_fial = 3
      | ^^^^^^^^ expected a section
      |
      = help: did you mean `max_fail`?

    error: unknown key `junti` in `[tool.offload.report]`
     --> pyproject.toml:5:1
      |
    5 | junti = true
      | ^^^^^ expected a key of `[tool.offload.report]`
      |
      = help: did you mean `junit`?

    error: `offload.max_fail` is set twice
     --> pyproject.toml:7:1
      |
    7 | max_fail = 1
      | ^^^^^^^^ and already has a value above
    "#);
    let text = "[package.metadata.offload]\nmax_fail = 3\n[workspace.metadata.offload]\n";
    assert_snapshot!(Case { name: "Cargo.toml", text, ..Case::default() }.error(), @r#"
    error: both `[workspace.metadata.offload]` and `[package.metadata.offload]` configure offload
     --> Cargo.toml:1:1
      |
    1 | [package.metadata.offload]
      | ^^^^^^^^^^^^^^^^^^^^^^^^^^ expected one of them only
    "#);
}

#[test]
fn the_nearest_configuration_is_found() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().canonicalize().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let found =
        |dir: &str| find_config(&root.join(dir)).map(|source| source.path().strip_prefix(&root).unwrap().to_owned());

    write("py/pyproject.toml", "[tool.offload]\n");
    write("py/sub/pyproject.toml", "[project]\nname = \"x\"\n");
    assert_eq!(found("py/sub").as_deref(), Some(Path::new("py/pyproject.toml")));

    write("rust/Cargo.toml", "[workspace]\nmembers = [\"a\"]\n[workspace.metadata.offload]\n");
    write("rust/a/Cargo.toml", "[package]\nname = \"a\"\n[package.metadata.offload]\n");
    write("rust/a/src/lib.rs", "");
    assert_eq!(found("rust/a/src").as_deref(), Some(Path::new("rust/Cargo.toml")), "the root, not the member");

    write("single/Cargo.toml", "[package]\nname = \"a\"\n[package.metadata.offload]\n");
    write("single/src/lib.rs", "");
    assert_eq!(found("single/src").as_deref(), Some(Path::new("single/Cargo.toml")));

    write("none/Cargo.toml", "[package]\nname = \"a\"\n");
    write("broken/Cargo.toml", "[package\n");
    assert_eq!(found("none"), None);
    assert_eq!(found("broken"), None);

    write("rust/offload.toml", "");
    assert_eq!(found("rust/a/src/../src").as_deref(), Some(Path::new("rust/offload.toml")));
    assert_eq!(found("rust").as_deref(), Some(Path::new("rust/offload.toml")));
}
