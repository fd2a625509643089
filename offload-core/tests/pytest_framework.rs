//! The framework `pytest` with a real pytest, run in sandboxes of the provider `local`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

#[path = "support/python.rs"]
mod python;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command as Process;
use std::sync::Arc;
use std::time::Duration;

use offload_core::config::{DefaultProviderConfig, GroupConfig, LocalProviderConfig, PytestFrameworkConfig};
use offload_core::connector::{collect, quote};
use offload_core::framework::pytest::PytestFramework;
use offload_core::framework::{
    FrameworkError, FrameworkResult, TestFramework, TestInstance, TestOutcome, TestRecord, TestResult,
};
use offload_core::provider::default::DefaultProvider;
use offload_core::provider::local::LocalProvider;
use offload_core::provider::{SandboxProvider, SandboxRequest};
use python::python;

/// A project in a directory whose name is hard on shells.
struct Project(tempfile::TempDir);

impl Project {
    fn new(files: &[(&str, &str)]) -> Self {
        Self(python::project(files))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn config() -> PytestFrameworkConfig {
        PytestFrameworkConfig {
            command: format!("{} -m pytest", quote(python().to_str().unwrap())),
            run_args: "-p no:cacheprovider".to_owned(),
            ..PytestFrameworkConfig::default()
        }
    }

    fn framework(&self) -> PytestFramework {
        PytestFramework::new(Self::config()).with_root(self.path())
    }

    async fn run_in(
        &self,
        dir: &Path,
        framework: &PytestFramework,
        tests: &[TestRecord],
        timeout: Option<Duration>,
    ) -> FrameworkResult<BTreeMap<String, TestResult>> {
        let tests: Vec<_> =
            tests.iter().map(|test| TestInstance { record: Arc::new(test.clone()), attempt: 1 }).collect();
        let config = LocalProviderConfig { working_dir: Some(dir.to_owned()), ..LocalProviderConfig::default() };
        let sandbox = LocalProvider::new(config).create_sandbox(&SandboxRequest::default()).await.unwrap();
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("new dir/results $x");
        let mut command = framework.produce_test_execution_command(&tests, file.to_str().unwrap());
        command.timeout = timeout;
        // A temporary directory of its own shows what is left behind.
        let temporary = place.path().join("tmp");
        fs::create_dir(&temporary).unwrap();
        command.env.insert("TMPDIR".to_owned(), temporary.to_str().unwrap().to_owned());
        let output = collect(sandbox.exec_stream(&command).await.unwrap(), 1 << 20).await.unwrap();
        if output.exit_code.is_some() {
            let left: Vec<_> = fs::read_dir(&temporary).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert!(left.iter().all(|name| name.to_string_lossy().starts_with("pytest-of-")), "{left:?}");
        }
        let results = framework.parse_results(&tests, &output, fs::read(file).ok().as_deref())?;
        assert_eq!(results.len(), tests.len());
        Ok(tests.iter().map(|test| test.id().to_owned()).zip(results).collect())
    }

    async fn run(&self, framework: &PytestFramework, tests: &[TestRecord]) -> BTreeMap<String, TestResult> {
        self.run_in(self.path(), framework, tests, None).await.unwrap()
    }

    async fn discover_and_run(&self) -> BTreeMap<String, TestResult> {
        let framework = self.framework();
        let tests = framework.discover(&[]).await.unwrap();
        self.run(&framework, &tests).await
    }
}

fn ids(tests: &[TestRecord]) -> Vec<&str> {
    tests.iter().map(|test| test.id.as_str()).collect()
}

fn outcomes(results: &BTreeMap<String, TestResult>) -> Vec<(&str, TestOutcome, &str)> {
    results.iter().map(|(id, result)| (id.as_str(), result.outcome, result.message.as_deref().unwrap_or(""))).collect()
}

use TestOutcome::{Crashed, Error, Failed, NotRun, Passed, Skipped, TimedOut};

#[tokio::test]
async fn every_kind_of_end_has_its_outcome() {
    let project = Project::new(&[(
        "test_a.py",
        r#"
import os, sys, pytest

@pytest.fixture
def broken(): raise ValueError("no fixture")

@pytest.fixture
def breaks_after():
    yield
    print("tearing down")
    raise ValueError("no tear-down")

def test_passes():
    print("seen only on demand")
def test_fails():
    print("to stdout"); print("to stderr", file=sys.stderr)
    assert 1 == 2
def test_skips(): pytest.skip("not today")
@pytest.mark.skip(reason="never")
def test_marked(): pass
@pytest.mark.xfail(reason="known")
def test_xfail(): assert False
@pytest.mark.xfail
def test_xpass(): pass
@pytest.mark.xfail(strict=True, reason="strictly")
def test_xpass_strict(): pass
def test_setup(broken): pass
def test_teardown(breaks_after): pass
def test_both(breaks_after): assert False, "the call"
def test_leaves_no_trace():
    traces = [name for name in os.environ if name.startswith("OFFLOAD_PYTEST")]
    assert not traces and "PYTHONPATH" not in os.environ
    assert not any("tmp." in entry and not entry.startswith(sys.prefix) for entry in sys.path), sys.path
@pytest.mark.flaky(reruns=3)
def test_reruns(seen=[]):
    seen.append(1)
    assert len(seen) == 3
"#,
    )]);
    let results = project.discover_and_run().await;
    assert_eq!(
        outcomes(&results),
        [
            ("test_a.py::test_both", Failed, "AssertionError: the call"),
            ("test_a.py::test_fails", Failed, "assert 1 == 2"),
            ("test_a.py::test_leaves_no_trace", Passed, ""),
            ("test_a.py::test_marked", Skipped, "never"),
            ("test_a.py::test_passes", Passed, ""),
            ("test_a.py::test_reruns", Passed, ""),
            ("test_a.py::test_setup", Error, "set-up: ValueError: no fixture"),
            ("test_a.py::test_skips", Skipped, "not today"),
            ("test_a.py::test_teardown", Error, "tear-down: ValueError: no tear-down"),
            ("test_a.py::test_xfail", Skipped, "expected failure: known"),
            ("test_a.py::test_xpass", Passed, "passed, though expected to fail"),
            ("test_a.py::test_xpass_strict", Failed, "[XPASS(strict)] strictly"),
        ]
    );
    let failed = &results["test_a.py::test_fails"];
    assert_eq!((failed.stdout.text.as_str(), failed.stderr.text.as_str()), ("to stdout\n", "to stderr\n"));
    assert!(failed.details.as_ref().unwrap().contains(">       assert 1 == 2"));
    assert!(results["test_a.py::test_both"].details.as_ref().unwrap().contains("no tear-down"));
    assert_eq!(results["test_a.py::test_teardown"].stdout.text, "tearing down\n");
}

#[tokio::test]
async fn every_kind_of_test_is_known_by_its_identity() {
    let project = Project::new(&[
        ("pytest.ini", "[pytest]\naddopts = --doctest-modules -x -n2\n"),
        ("sub dir/it's.py", "def f():\n    \"\"\"\n    >>> 1 + 1\n    2\n    \"\"\"\n"),
        (
            "sub dir/test_$kinds.py",
            r#"
import unittest, pytest

@pytest.mark.parametrize("x", ["a::b", "[c]", "é✓", "q'\"", "$HOME", "`id`", "a b", "n\nl", "", "\ud800"])
def test_p(x): assert x not in ("[c]", "$HOME")

class TestC:
    def test_m(self): pass
    class TestInner:
        def test_m(self): assert 0
class U(unittest.TestCase):
    def test_u(self): self.assertEqual(1, 2)
    @unittest.skip("unit skip")
    def test_s(self): pass
"#,
        ),
        // Two tests of one name: one node id, two identities.
        (
            "conftest.py",
            r#"
import pytest
class Item(pytest.Item):
    def runtest(self): assert self.number == 0, "the second"
class File(pytest.File):
    def collect(self):
        for number in range(2):
            item = Item.from_parent(self, name="same")
            item.number = number
            yield item
def pytest_collect_file(parent, file_path):
    if file_path.suffix == ".thing":
        return File.from_parent(parent, path=file_path)
"#,
        ),
        ("a.thing", ""),
    ]);
    let framework = project.framework();
    let tests = framework.discover(&[]).await.unwrap();
    let results = project.run(&framework, &tests).await;
    assert_eq!(results.len(), tests.len(), "ids are unique");
    let bad: Vec<_> = results
        .iter()
        .filter(|(_, result)| result.outcome != Passed)
        .map(|(id, result)| (id.as_str(), result.outcome))
        .collect();
    let kinds = "sub dir/test_$kinds.py";
    assert_eq!(
        bad,
        [
            ("a.thing::same #2", Failed),
            (&*format!("{kinds}::TestC::TestInner::test_m"), Failed),
            (&*format!("{kinds}::U::test_s"), Skipped),
            (&*format!("{kinds}::U::test_u"), Failed),
            (&*format!("{kinds}::test_p[$HOME]"), Failed),
            (&*format!("{kinds}::test_p[[c]]"), Failed),
        ]
    );
    assert_eq!(tests.len(), 17, "{:?}", ids(&tests));
    assert!(results.contains_key("sub dir/it's.py::it's.f"));
    let suites: Vec<_> = tests.iter().map(|test| test.suite.id.as_str()).collect();
    assert!(suites.contains(&kinds) && suites.contains(&"a.thing"));
    let inner = tests.iter().find(|test| test.id.contains("TestInner")).unwrap();
    assert_eq!(inner.name, "TestC::TestInner::test_m");

    // Any part of them can run alone.
    for test in &tests {
        if test.id.contains("a::b") || test.id.contains("same #2") {
            let alone = project.run(&framework, std::slice::from_ref(test)).await;
            assert_eq!(alone[&test.id].outcome, results[&test.id].outcome, "{}", test.id);
        }
    }
}

#[tokio::test]
async fn a_crash_blames_the_test_that_ran_and_gives_the_others_back() {
    let crash = |how: &str| {
        Project::new(&[(
            "test_c.py",
            &*format!(
                "import os, signal, sys, pytest, time\ndef test_1(): pass\ndef test_2():\n    {how}\ndef test_3(): pass\n"
            ),
        )])
    };
    for (how, limit, outcome, message) in [
        (
            "os.kill(os.getpid(), signal.SIGSEGV)",
            None,
            Crashed,
            "pytest ended while the test ran: killed by signal 11 (SIGSEGV)",
        ),
        ("os._exit(0)", None, Crashed, "pytest ended while the test ran: exit code 0"),
        ("pytest.exit('enough')", None, Error, "the test ended the whole session: Exit('enough')"),
        (
            "time.sleep(1000)",
            Some(Duration::from_secs(4)),
            TimedOut,
            "pytest was ended at its time limit while the test ran",
        ),
    ] {
        let project = crash(how);
        let framework = project.framework();
        let tests = framework.discover(&[]).await.unwrap();
        let results = project.run_in(project.path(), &framework, &tests, limit).await.unwrap();
        assert_eq!(
            outcomes(&results),
            [
                ("test_c.py::test_1", Passed, ""),
                ("test_c.py::test_2", outcome, message),
                ("test_c.py::test_3", NotRun, "")
            ]
        );
    }
    // A fork that comes back into pytest reports nothing of its own.
    let results = crash("os.fork()").discover_and_run().await;
    assert!(results.values().all(|result| result.outcome == Passed), "{results:?}");
}

#[tokio::test]
async fn groups_collect_with_their_arguments_and_run_with_them() {
    let project = Project::new(&[
        (
            "conftest.py",
            r#"
import pytest
def pytest_addoption(parser): parser.addoption("--runslow", action="store_true")
def pytest_configure(config): config.addinivalue_line("markers", "slow: slow")
def pytest_collection_modifyitems(config, items):
    if not config.getoption("--runslow"):
        for item in items:
            if "slow" in item.keywords: item.add_marker(pytest.mark.skip(reason="slow"))
"#,
        ),
        ("unit/test_u.py", "def test_u(): pass\n"),
        ("other/test_o.py", "import pytest\n@pytest.mark.slow\ndef test_s(): pass\ndef test_o(): pass\n"),
    ]);
    let group = |name: &str, filters: &str, retry_count| GroupConfig {
        name: name.to_owned(),
        filters: filters.to_owned(),
        retry_count,
        schedule_individual: false,
    };
    let framework = project.framework().with_parallel_collection(1).with_groups(vec![
        group("slow", "--runslow -m 'slow'", 2),
        group("unit", "unit", 0),
        group("rest", "", 1),
        group("none", "-k nothing_has_this_name", 0),
    ]);
    let tests = framework.discover(&[]).await.unwrap();
    let found: Vec<_> = tests.iter().map(|test| (test.id.as_str(), &*test.group, test.retry_count)).collect();
    assert_eq!(
        found,
        [
            ("other/test_o.py::test_s", "slow", 2),
            ("unit/test_u.py::test_u", "unit", 0),
            ("other/test_o.py::test_o", "rest", 1)
        ]
    );
    let results = project.run(&framework, &tests).await;
    assert!(results.values().all(|result| result.outcome == Passed), "{results:?}");
}

#[tokio::test]
async fn the_configuration_of_discovery_is_that_of_the_run() {
    // With the directory as argument pytest takes it for the root; node ids then begin there.
    let project = Project::new(&[
        ("lib/pytest.ini", "[pytest]\npython_files = check_*.py\nenv_is = x\naddopts = -p no:warnings\n"),
        ("lib/deep/pytest.ini", "[pytest]\naddopts = --no-such-option\n"),
        ("lib/deep/check_d.py", "import os\ndef test_d(): assert os.environ['WHERE'] == os.getcwd() + '/it\\'s'\n"),
        ("lib/check_l.py", "import os\ndef test_l(): assert os.environ['PATH'].startswith(os.getcwd() + '/bin:')\n"),
    ]);
    let config = PytestFrameworkConfig {
        paths: vec!["lib".into()],
        env: BTreeMap::from([("WHERE".to_owned(), "{root}/it's".to_owned())]),
        prepend_path: vec!["{root}/bin".to_owned()],
        ..Project::config()
    };
    let framework = PytestFramework::new(config).with_root(project.path());
    let tests = framework.discover(&[]).await.unwrap();
    assert_eq!(ids(&tests), ["check_l.py::test_l", "deep/check_d.py::test_d"]);
    for tests in [&tests[..], &tests[1..]] {
        let results = project.run(&framework, tests).await;
        assert!(results.values().all(|result| result.outcome == Passed), "{results:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_collected_is_shown_as_pytest_shows_it() {
    let project = Project::new(&[("test_bad.py", "import no_such_module\n"), ("test_ok.py", "def test_ok(): pass\n")]);
    let error = project.framework().discover(&[]).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, FrameworkError::Discovery(_)));
    assert!(text.starts_with("cannot collect tests by `"), "{text}");
    assert!(
        text.contains("exit code 2; its own output:") && text.contains("No module named 'no_such_module'"),
        "{text}"
    );
    assert_eq!(ids(&project.framework().discover(&["test_ok.py".into()]).await.unwrap()), ["test_ok.py::test_ok"]);
    let text = project.framework().discover(&["gone.py".into()]).await.unwrap_err().to_string();
    assert!(text.contains("exit code 4") && text.contains("gone.py"), "{text}");

    let empty = Project::new(&[("readme.md", "")]);
    assert!(empty.framework().discover(&[]).await.unwrap().is_empty());

    for (command, hint) in [
        ("no-such-program", "a program was not found; set `command` in [framework]"),
        ("true", "it did not load Offload's plugin; is it pytest?"),
        ("echo No module named pytest >&2; exit 1;", "is pytest installed for that Python?"),
    ] {
        let config = PytestFrameworkConfig { command: command.to_owned(), ..PytestFrameworkConfig::default() };
        let text = PytestFramework::new(config).with_root(empty.path()).discover(&[]).await.unwrap_err().to_string();
        assert!(text.contains(hint), "{text}");
    }
}

#[tokio::test]
async fn a_sandbox_with_other_files_says_so() {
    let project = Project::new(&[
        ("test_a.py", "def test_a(): pass\ndef test_b(): pass\n"),
        ("test_c.py", "def test_c(): pass\n"),
    ]);
    let framework = project.framework();
    let tests = framework.discover(&[]).await.unwrap();
    let other = Project::new(&[("test_a.py", "def test_a(): pass\n"), ("test_c.py", "raise OSError('broken here')\n")]);
    let results = project.run_in(other.path(), &framework, &tests, None).await.unwrap();
    assert_eq!(results["test_a.py::test_a"].outcome, Passed);
    for id in ["test_a.py::test_b", "test_c.py::test_c"] {
        assert_eq!(results[id].outcome, Error);
        assert_eq!(
            results[id].message.as_deref(),
            Some("the sandbox's pytest did not find the test: test_c.py could not be collected")
        );
        assert!(results[id].details.as_ref().unwrap().contains("broken here"));
    }
    let nothing = tempfile::tempdir().unwrap();
    let error = project.run_in(nothing.path(), &framework, &tests, None).await.unwrap_err();
    assert!(matches!(error, FrameworkError::Results(_)));
    assert!(error.to_string().contains("test_a.py"), "{error}");
}

#[tokio::test]
async fn long_output_is_cut_and_long_lists_fit() {
    let project = Project::new(&[(
        "test_l.py",
        "import pytest\ndef test_big(): print('x' * 3000000); assert 0\n\
         @pytest.mark.parametrize('x', range(1500), ids=lambda x: 'n' * 200 + \"'\" + str(x))\ndef test_p(x): pass\n",
    )]);
    let results = project.discover_and_run().await;
    assert_eq!(results.len(), 1501);
    let big = &results["test_l.py::test_big"];
    assert_eq!(big.outcome, Failed);
    assert!(big.stdout.dropped_bytes > 2_500_000 && big.stdout.text.len() < 300_000, "{}", big.stdout.dropped_bytes);
    assert!(big.stdout.text.contains("bytes dropped"));
    assert!(results.values().filter(|result| result.outcome == Passed).count() == 1500);
}

#[tokio::test]
async fn the_default_command_is_happy_with_either_name_of_python() {
    let project = Project::new(&[("test_a.py", "def test_a(): pass\n")]);
    let bin = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(python(), bin.path().join("python3")).unwrap();
    for program in ["sh", "mktemp", "mkdir", "dirname", "basename", "cat", "cp", "rm"] {
        let path = ["/bin", "/usr/bin"].map(|dir| Path::new(dir).join(program)).into_iter().find(|path| path.exists());
        std::os::unix::fs::symlink(path.unwrap(), bin.path().join(program)).unwrap();
    }
    // The environment is the commands', so it cannot be tried without a shell of our own in front of them.
    let framework = PytestFramework::default();
    let record = TestRecord::new("test_a.py::test_a", "test_a", offload_core::framework::Suite::new("test_a.py"));
    let tests = [TestInstance { record: Arc::new(record), attempt: 1 }];
    let out = project.path().join("out");
    let command = framework.produce_test_execution_command(&tests, out.to_str().unwrap());
    let venv = python().parent().unwrap().parent().unwrap().to_owned();
    let site = fs::read_dir(venv.join("lib")).unwrap().next().unwrap().unwrap().path().join("site-packages");
    let output = Process::new(&command.program)
        .args(&command.args)
        .current_dir(project.path())
        .env("PATH", bin.path())
        .env("PYTHONPATH", site)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fs::read_to_string(out).unwrap().contains("\"outcome\": \"passed\""));
}

#[tokio::test]
async fn a_sandbox_elsewhere_needs_nothing_brought_in() {
    let project = Project::new(&[("test_a.py", "def test_a(): open('written', 'w')\ndef test_b(): assert 0\n")]);
    let framework = project.framework();
    let tests = framework.discover(&[]).await.unwrap();
    let tests: Vec<_> = tests.into_iter().map(|test| TestInstance { record: Arc::new(test), attempt: 1 }).collect();
    let provider = DefaultProvider::new(DefaultProviderConfig {
        create_command: "@tempdir_sandbox.sh create .".to_owned(),
        exec_command: "@tempdir_sandbox.sh exec {sandbox_id} {command}".to_owned(),
        destroy_command: "@tempdir_sandbox.sh destroy {sandbox_id}".to_owned(),
        download_command: Some("@tempdir_sandbox.sh download {sandbox_id} {paths}".to_owned()),
        working_dir: Some(project.path().to_owned()),
        ..DefaultProviderConfig::default()
    });
    let sandbox = provider.create_sandbox(&SandboxRequest::default()).await.unwrap();
    let command = framework.produce_test_execution_command(&tests, "out/results");
    let output = collect(sandbox.exec_stream(&command).await.unwrap(), 1 << 20).await.unwrap();
    let place = tempfile::tempdir().unwrap();
    let here = place.path().join("results");
    sandbox.download(&[("out/results".into(), here.clone())]).await.unwrap();
    let results = framework.parse_results(&tests, &output, Some(&fs::read(&here).unwrap())).unwrap();
    sandbox.terminate().await.unwrap();
    assert_eq!(results.iter().map(|result| result.outcome).collect::<Vec<_>>(), [Passed, Failed]);
    assert!(!project.path().join("written").exists());
}
