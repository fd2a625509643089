//! The table of all keys.

use super::DefaultValue::{Cpus, Required, SameAs, Toml, Unset};
use super::{Key, Kind, MAX_SECS};

const CARGO: &[&str] = &["cargo", "nextest"];
const PYTEST: &[&str] = &["pytest"];
const VITEST: &[&str] = &["vitest"];
const PYTHON_AND_JS: &[&str] = &["pytest", "vitest"];
const LOCAL: &[&str] = &["local"];
const COMMANDS: &[&str] = &["default"];
const LOCAL_AND_COMMANDS: &[&str] = &["local", "default"];
const COPYING: &[&str] = &["default", "docker", "modal", "ssh"];
const MODAL: &[&str] = &["modal"];
const DOCKER: &[&str] = &["docker"];
const SSH: &[&str] = &["ssh"];
const DOCKER_AND_SSH: &[&str] = &["docker", "ssh"];
const IMAGES: &[&str] = &["docker", "modal"];
const ELSEWHERE: &[&str] = &["default", "docker", "ssh"];
const WITH_IMAGES: &[&str] = &["default", "docker"];

/// The providers with which pytest's worker runs tests of pytest.
const WORKERS: &[&str] = &["local", "docker", "ssh"];

const fn int(min: i64, max: i64) -> Kind {
    Kind::Int { min, max }
}

/// Every key, in the order in which they are shown. A key whose default depends on the type has a row for each.
pub static KEYS: &[Key] = &[
    Key::new(
        "offload.max_parallel",
        int(1, 1_000_000),
        Cpus("10"),
        "The most sandboxes at once; a single one takes tests in their order.",
    ),
    Key::new(
        "offload.test_timeout_secs",
        Kind::TimeLimit,
        Toml("900.0"),
        "The time limit of one test. A test that reaches it is ended with everything that it started. While Cargo builds, the clock stands still.",
    ),
    Key::new(
        "offload.slow_test_secs",
        Kind::Seconds,
        Toml("60.0"),
        "A test that runs longer than this is named in the summary.",
    ),
    Key::new(
        "offload.retry_count",
        int(0, 10_000),
        Toml("0"),
        "Further attempts after a failure, for tests whose group does not say.",
    ),
    Key::new("offload.max_fail", int(1, MAX_SECS), Unset, "Stop the run after this many failed tests. Unset: never."),
    Key::new(
        "offload.flaky",
        Kind::OneOf(&["exit-2", "pass", "fail"]),
        Toml("\"exit-2\""),
        "What a run amounts to that passed, but some tests only on a retry: exit code 2, 0 or 1. With `pytest --offload` it \
         passes unless this says `fail`.",
    ),
    Key::new("offload.working_dir", Kind::Path, Unset, "The directory that the run is for. Unset: the current one."),
    Key::new(
        "offload.sandbox_repo_root",
        Kind::Text,
        Unset,
        "The root of the repository inside the sandbox, such as `/app`; exported there as `OFFLOAD_ROOT`.",
    )
    .with_providers(ELSEWHERE, "its sandboxes use the repository where it is"),
    Key::new(
        "offload.sandbox_project_root",
        Kind::Text,
        SameAs("offload.sandbox_repo_root"),
        "The working directory of the tests inside the sandbox, for a project within a larger repository.",
    )
    .with_providers(ELSEWHERE, "its sandboxes use the project where it is"),
    Key::new(
        "offload.sandbox_init_cmd",
        Kind::Text,
        Unset,
        "A shell command that runs once, in the project's directory, while the image of the sandboxes is made.",
    )
    .with_providers(DOCKER, "it makes no image by itself; with provider `default`, put the command into `prepare_command`"),
    Key::new(
        "offload.post_patch_cmd",
        Kind::Text,
        Unset,
        "A command that runs in each sandbox after changed files were applied; `OFFLOAD_PATCH_FILE` names the patch.",
    )
    .not_yet("sandboxes do not start from a checkpoint plus a patch so far"),
    Key::new(
        "offload.impatiently_requeue_batches",
        Kind::Bool,
        Toml("true"),
        "Start slow work a second time on sandboxes that would idle, where sandboxes share nothing; the first result \
         counts.",
    ),
    Key::new(
        "offload.max_parallel_collection",
        int(0, 1_000_000),
        Toml("0"),
        "The most groups collected at once, where each group is collected by a command of its own. `0`: the number of \
         CPUs.",
    ),
    Key::new(
        "provider.type",
        Kind::OneOf(&["local", "default", "modal", "docker", "ssh", "kubernetes"]),
        Required,
        "Where sandboxes come from: `local` runs processes on this machine, `docker` runs containers, `ssh` uses \
         other machines, `default` runs shell commands of yours. The others are not there yet: a run with them is refused.",
    ),
    Key::new(
        "provider.working_dir",
        Kind::Path,
        Unset,
        "The directory in which commands run on this machine. Unset: that of the run.",
    )
    .of(LOCAL_AND_COMMANDS),
    Key::new(
        "provider.env",
        Kind::Env,
        Toml("{}"),
        "Environment variables of the commands, on top of those that Offload itself has.",
    )
    .of(LOCAL_AND_COMMANDS),
    Key::new("provider.env", Kind::Env, Toml("{}"), "Environment variables of everything in the containers.").of(DOCKER),
    Key::new("provider.env", Kind::Env, Toml("{}"), "Environment variables of everything in the sandboxes.").of(SSH),
    Key::new("provider.shell", Kind::Command(&[]), Toml("\"/bin/sh\""), "What executes command lines.").of(LOCAL),
    Key::new(
        "provider.prepare_command",
        Kind::Command(&[]),
        Unset,
        "Runs once, before the first sandbox. The last line of its output is the image id.",
    )
    .of(COMMANDS),
    Key::new(
        "provider.create_command",
        Kind::Command(&[]),
        Required,
        "Creates a sandbox and prints its id; `{image_id}` is what `prepare_command` printed.",
    )
    .of(COMMANDS),
    Key::new(
        "provider.exec_command",
        Kind::Command(&["{command}"]),
        Required,
        "Executes `{command}` (one shell-quoted argument) in the sandbox `{sandbox_id}`. It may answer with a JSON \
         object `{\"exit_code\", \"stdout\", \"stderr\"}`.",
    )
    .of(COMMANDS),
    Key::new("provider.destroy_command", Kind::Command(&[]), Required, "Destroys the sandbox `{sandbox_id}`.")
        .of(COMMANDS),
    Key::new(
        "provider.download_command",
        Kind::Command(&["{paths}"]),
        Unset,
        "Brings files out of the sandbox `{sandbox_id}`: `{paths}` is a list of `'remote':'local'`, separated by \
         spaces.",
    )
    .of(COMMANDS),
    Key::new("provider.timeout_secs", int(1, MAX_SECS), Toml("3600"), "The time limit of each of these commands.")
        .of(COMMANDS),
    Key::new(
        "provider.copy_dirs",
        Kind::CopyDirs,
        Toml("[]"),
        "Directories or files to bring into each sandbox: a path here, a colon, a path there.",
    )
    .of(COPYING),
    Key::new("provider.cpu_cores", Kind::Amount, Toml("1.0"), "CPUs of a sandbox.")
        .of(COMMANDS)
        .not_yet("the commands themselves decide what a sandbox is given"),
    Key::new("provider.cpu_cores", Kind::Amount, Toml("0.125"), "CPUs of a sandbox.").of(MODAL),
    Key::new(
        "provider.image",
        Kind::Text,
        Unset,
        "The image that containers start from: one that the daemon has, or can pull. It needs `/bin/sh` and what the \
         tests need.",
    )
    .of(DOCKER),
    Key::new("provider.dockerfile", Kind::Path, Unset, "The Dockerfile of the image, instead of `image`.").of(IMAGES),
    Key::new("provider.context", Kind::Path, Unset, "The directory that the Dockerfile can copy from. Unset: its own.")
        .of(DOCKER),
    Key::new("provider.build_args", Kind::Env, Toml("{}"), "Values of the Dockerfile's `ARG`s.").of(DOCKER),
    Key::new(
        "provider.include",
        Kind::Texts,
        Toml("[]"),
        "Files that travel although git ignores them: patterns as in `.gitignore`.",
    )
    .of(DOCKER_AND_SSH),
    Key::new(
        "provider.exclude",
        Kind::Texts,
        Toml("[]"),
        "Files that do not travel although git tracks them: patterns as in `.gitignore`.",
    )
    .of(DOCKER_AND_SSH),
    Key::new(
        "provider.hosts",
        Kind::Hosts,
        Required,
        "The machines, each a table: `host` (a name or address, as for the `ssh` command), `slots` (the most sandboxes \
         there; by default its number of CPUs), `user`, `port`, `identity` (the file of the private key), `workdir` (the \
         directory there for everything of Offload's; by default `~/.cache/offload`). What is not said is as the ssh \
         configuration says.",
    )
    .of(SSH),
    Key::new(
        "provider.isolate",
        Kind::Bool,
        Toml("false"),
        "Whether each sandbox has a copy of the project of its own; those of a host share one otherwise.",
    )
    .of(SSH),
    Key::new(
        "provider.mounts",
        Kind::Texts,
        Toml("[]"),
        "What is mounted: `SOURCE:TARGET` or `SOURCE:TARGET:ro`, where the source is a path on the daemon's machine or \
         the name of a volume.",
    )
    .of(DOCKER),
    Key::new("provider.network", Kind::Text, Unset, "The network: `none`, `host`, or a name. Unset: Docker's default.")
        .of(DOCKER),
    Key::new(
        "provider.user",
        Kind::Text,
        Unset,
        "Who runs the tests and owns the project's files: `USER` or `USER:GROUP`, names or numbers. Unset: the image's \
         user.",
    )
    .of(DOCKER),
    Key::new("provider.cpus", Kind::Amount, Unset, "CPUs of a container. Unset: no limit.").of(DOCKER),
    Key::new(
        "provider.memory",
        Kind::Text,
        Unset,
        "Memory of a container, such as `512m` or `2g`; with it, there is no swap. Unset: no limit.",
    )
    .of(DOCKER),
    Key::new("provider.privileged", Kind::Bool, Toml("false"), "Whether containers may do what root may do.")
        .of(DOCKER),
    Key::new("provider.platform", Kind::Text, Unset, "The platform of the image, such as `linux/arm64`.").of(DOCKER),
    Key::new("provider.include_cwd", Kind::Bool, Toml("false"), "Whether the image contains the working directory.")
        .of(MODAL),
    Key::new("provider.memory_gb", Kind::Amount, Unset, "Memory of a sandbox, in GB.").of(MODAL),
    Key::new("provider.experimental_options", Kind::Table, Toml("{}"), "Options handed on to Modal.").of(MODAL),
    Key::new(
        "framework.type",
        Kind::OneOf(&["cargo", "nextest", "pytest", "default", "vitest"]),
        Required,
        "What kind of tests there are. `nextest` is another name of `cargo`; `default` runs shell commands of yours.",
    ),
    Key::new("framework.package", Kind::Text, Unset, "Only the tests of this package.").of(CARGO),
    Key::new("framework.features", Kind::Texts, Toml("[]"), "Features to activate.").of(CARGO),
    Key::new("framework.bin", Kind::Text, Unset, "Only the tests of this binary target.").of(CARGO),
    Key::new("framework.include_ignored", Kind::Bool, Toml("false"), "Run the ignored tests, and only those.")
        .of(CARGO),
    Key::new(
        "framework.isolation",
        Kind::OneOf(&["auto", "process", "binary"]),
        Toml("\"auto\""),
        "`auto`: quick tests of one binary share processes, and what does not pass there runs again in one of its own, \
         which counts. `process`: one process per test. `binary`: a batch of tests of one binary in one process, which \
         counts.",
    )
    .of(CARGO),
    Key::new(
        "framework.isolation",
        Kind::OneOf(&["worker", "test"]),
        Toml("\"worker\""),
        "`worker`: the tests of a sandbox share a process. `test`: one process per test, a fork of the sandbox's.",
    )
    .of(PYTEST)
    .with_providers(WORKERS, "tests run there by a command per batch"),
    Key::new(
        "framework.dist",
        Kind::OneOf(&["load", "loadscope", "loadfile", "loadgroup"]),
        Toml("\"load\""),
        "Which tests stay in one sandbox: none have to, those of a class or module, of a file, or marked with the same \
         `xdist_group`.",
    )
    .of(PYTEST)
    .with_providers(WORKERS, "tests run there by a command per batch"),
    Key::new(
        "framework.collect",
        Kind::OneOf(&["auto", "serial", "parallel", "sandbox", "local"]),
        Toml("\"auto\""),
        "Whether sandboxes share collection out (`parallel`) or one process collects everything (`serial`). `auto`: the \
         former, unless something needs the whole list of tests. It is done where the tests run, as `sandbox` says, too; \
         `local`: by the pytest of this machine, and tests run by a command per batch (not with `pytest --offload`).",
    )
    .of(PYTEST)
    .with_providers(WORKERS, "tests run there by a command per batch"),
    Key::new(
        "framework.start_method",
        Kind::OneOf(&["auto", "fork", "spawn"]),
        Toml("\"auto\""),
        "How the processes of sandboxes are started. `auto`: they are forked where nobody can tell the difference.",
    )
    .of(PYTEST)
    .with_providers(WORKERS, "tests run there by a command per batch"),
    Key::new("framework.command", Kind::Command(&[]), Toml("\"python -m pytest\""), "What starts pytest.").of(PYTEST),
    Key::new("framework.command", Kind::Command(&[]), Toml("\"npx vitest\""), "What starts vitest.").of(VITEST),
    Key::new("framework.paths", Kind::Paths, Toml("[]"), "Where tests are. Empty: where pytest looks by itself.")
        .of(PYTEST),
    Key::new("framework.run_args", Kind::Text, Toml("\"\""), "Further arguments when tests run.").of(PYTHON_AND_JS),
    Key::new("framework.discovery_args", Kind::Text, Toml("\"\""), "Further arguments when tests are collected.")
        .of(PYTEST),
    Key::new(
        "framework.env",
        Kind::Env,
        Toml("{}"),
        "Environment variables of the tests; `{root}` is the root of the repository, here or in the sandbox.",
    )
    .of(PYTHON_AND_JS),
    Key::new(
        "framework.prepend_path",
        Kind::Texts,
        Toml("[]"),
        "Directories put before `PATH`; `{root}` as in `framework.env`.",
    )
    .of(PYTHON_AND_JS),
    Key::new(
        "framework.discover_command",
        Kind::Command(&[]),
        Required,
        "Prints one test id a line; lines that begin with `#` are ignored. `{filters}` is the group's `filters`.",
    )
    .of(COMMANDS),
    Key::new(
        "framework.run_command",
        Kind::Command(&[]),
        Required,
        "Runs `{tests}` (shell-quoted ids) and, where `result_file` is set, writes JUnit to `{result_file}`.",
    )
    .of(COMMANDS),
    Key::new(
        "framework.working_dir",
        Kind::Path,
        Unset,
        "Where both commands run, below the directory that the run is for, here or in the sandbox. Unset: there.",
    )
    .of(COMMANDS),
    Key::new(
        "framework.result_file",
        Kind::Path,
        Unset,
        "The JUnit file that the command writes. Without it the exit code decides for the whole batch.",
    )
    .of(COMMANDS),
    Key::new("framework.test_id_format", Kind::TestIdFormat, Toml("\"{name}\""), "How a JUnit testcase names a test.")
        .of(PYTEST),
    Key::new(
        "framework.test_id_format",
        Kind::TestIdFormat,
        Toml("\"{classname} {name}\""),
        "How a JUnit testcase names a test.",
    )
    .of(CARGO)
    .not_yet("results of Rust tests are not read from JUnit"),
    Key::new(
        "framework.test_id_format",
        Kind::TestIdFormat,
        Toml("\"{classname} > {name}\""),
        "How a JUnit testcase names a test.",
    )
    .of(VITEST),
    Key::new("framework.test_id_format", Kind::TestIdFormat, Required, "How a JUnit testcase names a test.")
        .of(COMMANDS),
    Key::new(
        "groups.NAME.retry_count",
        int(0, 10_000),
        SameAs("offload.retry_count"),
        "Further attempts after a failure of a test of the group.",
    ),
    Key::new(
        "groups.NAME.filters",
        Kind::Text,
        Toml("\"\""),
        "Which tests the group has; all when empty. pytest: arguments such as `-m 'not slow'`; cargo: filters; \
         default: what `{filters}` stands for.",
    ),
    Key::new(
        "groups.NAME.schedule_individual",
        Kind::Bool,
        Toml("false"),
        "Each test of the group alone in its sandbox.",
    ),
    Key::new(
        "report.output_dir",
        Kind::Path,
        Toml("\"test-results\""),
        "Where reports are written. With `cargo offload`: `target/offload`.",
    ),
    Key::new("report.junit", Kind::Bool, Toml("true"), "Whether to write a JUnit file."),
    Key::new(
        "report.junit_file",
        Kind::Path,
        Toml("\"junit.xml\""),
        "The name of the JUnit file in `output_dir`; an absolute path is used as it is.",
    ),
    Key::new(
        "report.download_globs",
        Kind::Globs,
        Toml("[]"),
        "Files to bring back from sandboxes, into `artifacts/SANDBOX/` in `output_dir`: patterns such as \
         `screenshots/**/*.png`, from the directory of the tests.",
    ),
    Key::new(
        "report.download_globs_failure_only",
        Kind::Bool,
        Toml("false"),
        "Bring files back only after a test has failed in the sandbox (in the batch, where tests run in batches).",
    ),
    Key::new(
        "history.record_history",
        Kind::OneOf(&["always", "flag"]),
        Toml("\"flag\""),
        "When durations and outcomes are recorded: after every run, or only with `--record-history`. With \
         `cargo offload`: `always`.",
    ),
    Key::new(
        "history.path",
        Kind::Path,
        Toml("\"offload-history.jsonl\""),
        "The file of earlier durations and outcomes. With `cargo offload`: `target/offload/history.jsonl`.",
    ),
    Key::new("history.reservoir_size", int(1, 1_000_000), Toml("20"), "Samples kept per outcome and test."),
    Key::new(
        "history.default_duration_secs",
        Kind::Seconds,
        Toml("1.0"),
        "How long a test without history is taken to last.",
    ),
    Key::new("checkpoint.build_inputs", Kind::Texts, Toml("[]"), "Files and directories whose change makes a new image. With provider `docker`: has `sandbox_init_cmd` run again; \
         empty: any change does.")
        .with_providers(WITH_IMAGES, "it makes no image"),
];
