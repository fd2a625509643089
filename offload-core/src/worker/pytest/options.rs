//! How pytest is started, where, and which of its tests stay together.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// The shortest limit of a phase that is no test.
const SHORTEST_PHASE_LIMIT: Duration = Duration::from_secs(60);

/// Which tests run on one worker, one after the other. The names are those of pytest-xdist's `--dist`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dist {
    /// None have to. Those of one file stay together as long as that does not lengthen the run.
    #[default]
    Load,
    /// Those of a class; of functions outside of classes, those of a module.
    LoadScope,
    /// Those of a file.
    LoadFile,
    /// Those marked with the same `xdist_group`.
    LoadGroup,
}

impl FromStr for Dist {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "load" => Ok(Self::Load),
            "loadscope" => Ok(Self::LoadScope),
            "loadfile" => Ok(Self::LoadFile),
            "loadgroup" => Ok(Self::LoadGroup),
            _ => Err(format!("expected `load`, `loadscope`, `loadfile` or `loadgroup`, not `{name}`")),
        }
    }
}

impl Dist {
    /// The name of those that the test with this id has to stay with. `file` is the one it is collected from, `group` the
    /// name in its mark.
    pub(crate) fn together(self, id: &str, file: &str, group: Option<&str>) -> Option<Arc<str>> {
        match self {
            Self::Load => None,
            Self::LoadFile => Some(file.into()),
            // Parameters may hold anything, also what separates the parts of an id.
            Self::LoadScope => {
                let parts = id.strip_prefix(file).unwrap_or_default();
                let name = parts.split('[').next().unwrap_or_default();
                let scope = name.rfind("::").map_or("", |end| &name[..end]);
                Some(format!("{file}{scope}").into())
            }
            Self::LoadGroup => group.map(Arc::from),
        }
    }
}

/// How the template is started.
#[derive(Debug, Clone, Default)]
pub struct PytestOptions {
    /// The Python interpreter, or a program that starts one.
    pub python: PathBuf,
    /// What comes before Python's own arguments.
    pub python_args: Vec<String>,
    /// The program that it runs: the worker, one Python file. Empty: the one that is carried in this program.
    pub script: PathBuf,
    /// The working directory.
    pub cwd: PathBuf,
    /// The environment to start from; `None`: this process's own, which then nobody may change meanwhile.
    pub environment: Option<Vec<(OsString, OsString)>>,
    /// Environment on top of that.
    pub env: BTreeMap<String, String>,
    /// The most workers at once.
    pub workers: usize,
    /// Which tests stay together.
    pub dist: Dist,
    /// Tests and pytest itself write to where this process writes, instead of to files of which errors quote the end.
    pub inherit_output: bool,
    /// Tests run although some files could not be collected.
    pub continue_on_collection_errors: bool,
    /// After how many failed tests those that come later are not started.
    pub max_fail_in_order: Option<usize>,
    /// How often a test is tried again whose process died, where it may not be otherwise.
    pub crash_retries: u32,
    /// How long a process may take to start, to collect a file, and to come to its next test; `None`: any time.
    pub phase_limit: Option<Duration>,
    /// The `init` message, complete, on one line; `None`: it comes by [`PytestHost::set_init`](super::PytestHost::set_init).
    pub init: Option<String>,
    /// A child of this process that is the template already and waits for what [`PytestHost::meeting_point`](super::PytestHost::meeting_point) says.
    pub adopted: Option<i32>,
    /// No pytest makes its own of what workers say: what ends one is the fault of the test that it ran.
    pub alone: bool,
    /// How sandboxes that are somewhere else are used; `None`: there are none, and all happens on this machine.
    pub elsewhere: Option<Elsewhere>,
}

/// The limit of phases that are no test, where tests have this one: none if they have none.
pub fn phase_limit(timeout: Duration) -> Option<Duration> {
    (timeout < Duration::MAX).then(|| timeout.saturating_mul(10).max(SHORTEST_PHASE_LIMIT))
}

/// Tests are collected and run in sandboxes that are somewhere else.
#[derive(Debug, Clone, Default)]
pub struct Elsewhere {
    /// What starts Python there, in shell language: Python's arguments follow.
    pub python: String,
    /// The root of the repository here, if that is known better than by looking for it.
    pub root: Option<PathBuf>,
    /// Not all tests are asked for; how many those are is known when they have been collected.
    pub selects: bool,
}

impl Elsewhere {
    /// Whether these arguments of pytest ask for some of the tests, so that there may be few.
    pub fn selects(args: &[String]) -> bool {
        const LONG: [&str; 10] = [
            "--last-failed",
            "--lf",
            "--failed-first",
            "--ff",
            "--new-first",
            "--nf",
            "--stepwise",
            "--sw",
            "--deselect",
            "--ignore",
        ];
        let long = |arg: &str| LONG.contains(&arg.split('=').next().unwrap_or_default());
        let short = |arg: &str| !arg.starts_with("--") && (arg.starts_with("-k") || arg.starts_with("-m"));
        args.iter().any(|arg| arg.contains("::") || arg.ends_with(".py") || long(arg) || short(arg))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_those_of_the_names_and_not_of_parameters() {
        let scope = |id| Dist::LoadScope.together(id, "a/test_b.py", None).unwrap();
        assert_eq!(&*scope("a/test_b.py::test_c"), "a/test_b.py");
        assert_eq!(&*scope("a/test_b.py::TestC::test_d[x::y]"), "a/test_b.py::TestC");
        assert_eq!(&*scope("a/test_b.py::test_c[x::y[z]]"), "a/test_b.py");
        assert_eq!(&*scope("elsewhere"), "a/test_b.py");
    }
}
