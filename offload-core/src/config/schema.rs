//! Every key there is, in one table.
//!
//! Parsing, defaults, diagnostics, the names of environment variables, `offload validate` and `docs/CONFIGURATION.md`
//! all come from (or are tested against) [`KEYS`], so that they cannot disagree. What a value of a [`Kind`] looks like
//! inside is checked in `value`; which of several values wins is decided in `resolve`.

/// The sections, in the order in which they are shown.
pub const SECTIONS: &[&str] = &["offload", "provider", "framework", "groups", "report", "history", "checkpoint"];

/// Values of `provider.type` that are recognised and not there yet.
pub const LATER_PROVIDERS: &[&str] = &["modal", "docker", "ssh", "kubernetes"];

/// Values of `framework.type` that are recognised and not there yet.
pub const LATER_FRAMEWORKS: &[&str] = &["vitest"];

/// The longest time that can be configured, in seconds: over thirty years, and far from any overflow.
pub(super) const MAX_SECS: i64 = 1_000_000_000;

const CARGO: &[&str] = &["cargo", "nextest"];
const PYTEST: &[&str] = &["pytest"];
const VITEST: &[&str] = &["vitest"];
const PYTHON_AND_JS: &[&str] = &["pytest", "vitest"];
const LOCAL: &[&str] = &["local"];
const COMMANDS: &[&str] = &["default"];
const LOCAL_AND_COMMANDS: &[&str] = &["local", "default"];
const COMMANDS_AND_MODAL: &[&str] = &["default", "modal"];
const MODAL: &[&str] = &["modal"];

/// What values a key takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A whole number.
    Int {
        /// The least.
        min: i64,
        /// The greatest.
        max: i64,
    },
    /// A time in seconds, fractions allowed, 0 or more.
    Seconds,
    /// A number of seconds that something may take: at least a millisecond.
    TimeLimit,
    /// A number greater than 0.
    Amount,
    /// `true` or `false`.
    Bool,
    /// Any string.
    Text,
    /// A string that is not empty and contains each of these placeholders.
    Command(&'static [&'static str]),
    /// A string made of `{name}` (always) and `{classname}` (or not).
    TestIdFormat,
    /// A path; relative ones are relative to the directory that the run is for.
    Path,
    /// One of these strings.
    OneOf(&'static [&'static str]),
    /// A list of strings.
    Texts,
    /// A list of paths.
    Paths,
    /// A list of strings `LOCAL:REMOTE`.
    CopyDirs,
    /// A table of strings.
    Env,
    /// A table of anything.
    Table,
}

/// What a key is when nobody sets it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DefaultValue {
    /// It must be set.
    Required,
    /// There is no value.
    Unset,
    /// This, as TOML spells it.
    Toml(&'static str),
    /// What another key is.
    SameAs(&'static str),
}

/// Whether a key does anything.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Status {
    /// It does what its documentation says.
    Honoured,
    /// It is accepted, and setting it is answered with a notice: this text, after "has no effect yet: ".
    NotYet(&'static str),
    /// It is honoured by `pytest --offload`, and setting it is answered with a notice elsewhere.
    InsidePytest,
    /// It is honoured with some providers; with others setting it is answered with a notice.
    WithProviders {
        /// The providers with which it is honoured.
        types: &'static [&'static str],
        /// Why not with others, after "has no effect with provider `…`: ".
        because: &'static str,
    },
}

/// One key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Key {
    /// Section and key: `offload.max_parallel`; `groups.NAME.filters` for keys of groups.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// What it is when nobody sets it.
    pub default: DefaultValue,
    /// The values of `provider.type` or `framework.type` that the key is for; empty: it is for all.
    pub types: &'static [&'static str],
    /// Whether it does anything.
    pub status: Status,
    /// What it means.
    pub doc: &'static str,
}

impl Key {
    const fn new(name: &'static str, kind: Kind, default: DefaultValue, doc: &'static str) -> Self {
        Self { name, kind, default, types: &[], status: Status::Honoured, doc }
    }

    const fn of(mut self, types: &'static [&'static str]) -> Self {
        self.types = types;
        self
    }

    const fn not_yet(mut self, why: &'static str) -> Self {
        self.status = Status::NotYet(why);
        self
    }

    const fn inside_pytest(mut self) -> Self {
        self.status = Status::InsidePytest;
        self
    }

    const fn with_providers(mut self, types: &'static [&'static str], because: &'static str) -> Self {
        self.status = Status::WithProviders { types, because };
        self
    }

    /// The section: `groups` for `groups.NAME.filters`.
    pub fn section(&self) -> &'static str {
        self.name.split('.').next().unwrap_or(self.name)
    }

    /// The key within its section: `filters` for `groups.NAME.filters`.
    pub fn leaf(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }

    /// Whether the key is for this value of its section's `type`.
    pub fn is_for(&self, section_type: &str) -> bool {
        self.types.is_empty() || self.types.contains(&section_type)
    }

    /// The environment variable that sets the key; `None` for lists, tables and keys of groups.
    pub fn env_name(&self) -> Option<String> {
        if self.section() == "groups" || !self.kind.is_scalar() {
            return None;
        }
        Some(self.env_spelling())
    }

    /// What the environment variable would be called if every key had one.
    pub(super) fn env_spelling(&self) -> String {
        // `OFFLOAD_OFFLOAD_…` would be absurd: the section that is named like the program is left out.
        let name = self.name.strip_prefix("offload.").unwrap_or(self.name);
        format!("OFFLOAD_{}", name.replace('.', "_").to_uppercase())
    }

    /// The default as documentation shows it.
    pub fn default_text(&self) -> String {
        match self.default {
            DefaultValue::Required => "*required*".to_owned(),
            DefaultValue::Unset => String::new(),
            DefaultValue::Toml(text) => format!("`{text}`"),
            DefaultValue::SameAs(key) => format!("that of `{key}`"),
        }
    }
}

impl Kind {
    /// Whether a value is a single thing, so that an environment variable can hold it.
    pub fn is_scalar(self) -> bool {
        !matches!(self, Self::Texts | Self::Paths | Self::CopyDirs | Self::Env | Self::Table)
    }

    /// The type as documentation shows it.
    pub fn type_text(self) -> String {
        match self {
            Self::Int { min, .. } => format!("int ≥ {min}"),
            Self::Seconds => "float ≥ 0".to_owned(),
            Self::TimeLimit => "float > 0".to_owned(),
            Self::Amount => "float > 0".to_owned(),
            Self::Bool => "bool".to_owned(),
            Self::Text => "string".to_owned(),
            Self::Command([]) => "command".to_owned(),
            Self::Command(placeholders) => format!("command with {}", code_list(placeholders)),
            Self::TestIdFormat => "string of `{name}`, `{classname}`".to_owned(),
            Self::Path => "path".to_owned(),
            Self::OneOf(values) => code_list(values),
            Self::Texts => "list of strings".to_owned(),
            Self::Paths => "list of paths".to_owned(),
            Self::CopyDirs => "list of `LOCAL:REMOTE`".to_owned(),
            Self::Env => "table of strings".to_owned(),
            Self::Table => "table".to_owned(),
        }
    }
}

fn code_list(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

const fn int(min: i64, max: i64) -> Kind {
    Kind::Int { min, max }
}

use DefaultValue::{Required, SameAs, Toml, Unset};

/// Every key, in the order in which they are shown. A key whose default depends on the type has a row for each.
pub static KEYS: &[Key] = &[
    Key::new(
        "offload.max_parallel",
        int(1, 1_000_000),
        Toml("10"),
        "The most sandboxes at once. Without a configuration file: the number of CPUs.",
    ),
    Key::new(
        "offload.test_timeout_secs",
        Kind::TimeLimit,
        Toml("900.0"),
        "The time limit of one test. A test that reaches it is ended with everything that it started.",
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
    Key::new("offload.working_dir", Kind::Path, Unset, "The directory that the run is for. Unset: the current one."),
    Key::new(
        "offload.sandbox_repo_root",
        Kind::Text,
        Unset,
        "The root of the repository inside the sandbox, such as `/app`; exported there as `OFFLOAD_ROOT`.",
    )
    .with_providers(COMMANDS, "its sandboxes use the repository where it is"),
    Key::new(
        "offload.sandbox_project_root",
        Kind::Text,
        SameAs("offload.sandbox_repo_root"),
        "The working directory of the tests inside the sandbox, for a project within a larger repository.",
    )
    .with_providers(COMMANDS, "its sandboxes use the project where it is"),
    Key::new(
        "offload.sandbox_init_cmd",
        Kind::Text,
        Unset,
        "A command that runs once while the image of the sandboxes is built.",
    )
    .not_yet("no provider builds an image by itself so far; with provider `default`, put it into `prepare_command`"),
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
        "Where sandboxes come from: `local` runs processes on this machine, `default` runs shell commands of yours. \
         The others are not there yet: a run with them is refused.",
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
    .of(COMMANDS_AND_MODAL),
    Key::new("provider.cpu_cores", Kind::Amount, Toml("1.0"), "CPUs of a sandbox.")
        .of(COMMANDS)
        .not_yet("the commands themselves decide what a sandbox is given"),
    Key::new("provider.cpu_cores", Kind::Amount, Toml("0.125"), "CPUs of a sandbox.").of(MODAL),
    Key::new("provider.dockerfile", Kind::Path, Unset, "The Dockerfile of the image.").of(MODAL),
    Key::new("provider.include_cwd", Kind::Bool, Toml("false"), "Whether the image contains the working directory.")
        .of(MODAL),
    Key::new("provider.memory_gb", Kind::Amount, Unset, "Memory of a sandbox, in GB.").of(MODAL),
    Key::new("provider.experimental_options", Kind::Table, Toml("{}"), "Options handed on to Modal.").of(MODAL),
    Key::new(
        "framework.type",
        Kind::OneOf(&["cargo", "nextest", "pytest", "default", "vitest"]),
        Required,
        "What kind of tests there are. `nextest` is another name of `cargo`; `default` runs shell commands of yours. \
         `vitest` is not there yet: a run with it is refused.",
    ),
    Key::new("framework.package", Kind::Text, Unset, "Only the tests of this package.").of(CARGO),
    Key::new("framework.features", Kind::Texts, Toml("[]"), "Features to activate.").of(CARGO),
    Key::new("framework.bin", Kind::Text, Unset, "Only the tests of this binary target.").of(CARGO),
    Key::new("framework.include_ignored", Kind::Bool, Toml("false"), "Run ignored tests too.").of(CARGO),
    Key::new(
        "framework.isolation",
        Kind::OneOf(&["process", "binary"]),
        Toml("\"process\""),
        "`process`: one process per test. `binary`: a batch of tests of one binary in one process.",
    )
    .of(CARGO),
    Key::new(
        "framework.isolation",
        Kind::OneOf(&["worker", "test"]),
        Toml("\"worker\""),
        "`worker`: the tests of a sandbox share a process. `test`: one process per test, a fork of the sandbox's.",
    )
    .of(PYTEST)
    .inside_pytest(),
    Key::new(
        "framework.dist",
        Kind::OneOf(&["load", "loadscope", "loadfile", "loadgroup"]),
        Toml("\"load\""),
        "Which tests stay in one sandbox: none have to, those of a class or module, of a file, or marked with the same \
         `xdist_group`.",
    )
    .of(PYTEST)
    .inside_pytest(),
    Key::new(
        "framework.collect",
        Kind::OneOf(&["auto", "serial", "parallel"]),
        Toml("\"auto\""),
        "Whether sandboxes share collection out or one process collects everything. `auto`: the former, unless \
         something needs the whole list of tests.",
    )
    .of(PYTEST)
    .inside_pytest(),
    Key::new(
        "framework.start_method",
        Kind::OneOf(&["auto", "fork", "spawn"]),
        Toml("\"auto\""),
        "How the processes of sandboxes are started. `auto`: they are forked where nobody can tell the difference.",
    )
    .of(PYTEST)
    .inside_pytest(),
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
        "Where reports are written. `cargo offload` without a configuration file: `target/offload`.",
    ),
    Key::new("report.junit", Kind::Bool, Toml("true"), "Whether to write a JUnit file."),
    Key::new(
        "report.junit_file",
        Kind::Path,
        Toml("\"junit.xml\""),
        "The name of the JUnit file in `output_dir`; an absolute path is used as it is.",
    ),
    Key::new("report.download_globs", Kind::Texts, Toml("[]"), "Files to bring back from sandboxes.")
        .not_yet("no files but test results are brought back from sandboxes so far"),
    Key::new(
        "report.download_globs_failure_only",
        Kind::Bool,
        Toml("false"),
        "Bring files back only from sandboxes in which a test failed.",
    )
    .not_yet("no files but test results are brought back from sandboxes so far"),
    Key::new(
        "history.record_history",
        Kind::OneOf(&["always", "flag"]),
        Toml("\"flag\""),
        "When durations and outcomes are recorded: after every run, or only with `--record-history`. `cargo offload` \
         without a configuration file: `always`.",
    ),
    Key::new(
        "history.path",
        Kind::Path,
        Toml("\"offload-history.jsonl\""),
        "The file of earlier durations and outcomes. `cargo offload` without a configuration file: \
         `target/offload/history.jsonl`.",
    ),
    Key::new("history.reservoir_size", int(1, 1_000_000), Toml("20"), "Samples kept per outcome and test."),
    Key::new(
        "history.default_duration_secs",
        Kind::Seconds,
        Toml("1.0"),
        "How long a test without history is taken to last.",
    ),
    Key::new("checkpoint.build_inputs", Kind::Texts, Toml("[]"), "Files whose change starts a new base image.")
        .not_yet("no provider builds an image by itself so far"),
];

/// The rows of a key, by its full name.
pub(super) fn rows(name: &str) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.name == name)
}

/// A key by section and key; a key of `groups` is found whatever the group.
pub(super) fn find(section: &str, leaf: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section() == section && key.leaf() == leaf)
}

/// The keys of a section, each once.
pub(super) fn leaves(section: &str) -> Vec<&'static str> {
    let mut leaves = Vec::new();
    for key in KEYS.iter().filter(|key| key.section() == section) {
        if !leaves.contains(&key.leaf()) {
            leaves.push(key.leaf());
        }
    }
    leaves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_key_share_no_type() {
        for key in KEYS {
            assert!(SECTIONS.contains(&key.section()), "{}", key.name);
            for other in rows(key.name).filter(|other| !std::ptr::eq(*other, key)) {
                // The environment's strings are read before types are known.
                assert_eq!(key.kind.is_scalar(), other.kind.is_scalar(), "{}", key.name);
                assert!(!key.types.is_empty() && !other.types.is_empty(), "{}", key.name);
                assert!(key.types.iter().all(|of| !other.types.contains(of)), "{}", key.name);
            }
        }
    }

    #[test]
    fn environment_names_are_unique() {
        let mut names = std::collections::BTreeMap::new();
        for (name, key) in KEYS.iter().filter_map(|key| Some((key.env_name()?, key.name))) {
            assert_eq!(*names.entry(name).or_insert(key), key);
        }
        assert!(names.contains_key("OFFLOAD_MAX_PARALLEL") && names.contains_key("OFFLOAD_REPORT_OUTPUT_DIR"));
    }
}
