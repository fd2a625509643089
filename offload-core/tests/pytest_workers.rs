//! pytest's tests on workers forked from one template, with a real pytest and the worker of the wheel.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

#[path = "support/python.rs"]
mod python;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use offload_core::RunResult;
use offload_core::TestOutcome;
use offload_core::config::{Config, HistoryConfig, LocalProviderConfig, OffloadConfig};
use offload_core::event::{FinishedTest, NativeEvent, RunEvent, TimedEvent};
use offload_core::framework::pytest::PytestWorkers;
use offload_core::orchestrator::{CancelHandle, Orchestrator};
use offload_core::provider::local::LocalProvider;
use offload_core::report::Reporter;
use offload_core::worker::pytest::{Dist, PytestOptions};
use python::python;
use serde_json::json;

const WORKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../python/pytest_offload/worker/__main__.py");

/// A project with tests, and how it is run.
struct Project {
    dir: tempfile::TempDir,
    args: Vec<String>,
    workers: usize,
    config: OffloadConfig,
    env: BTreeMap<String, String>,
    despite_errors: bool,
    phase_limit: Option<Duration>,
    /// The run is cancelled as soon as this test has started.
    cancel_in: Option<&'static str>,
    /// Once this test has started, the run hears of nothing until the file of that name is there.
    deaf_in: Option<(&'static str, &'static str)>,
    /// What a test is taken to last of which nothing is known.
    default_duration: Duration,
}

/// What came of a run.
struct Ran {
    result: RunResult,
    events: Vec<RunEvent>,
}

/// Keeps all events, and cancels the run when it is told to.
struct Recorder {
    events: Arc<Mutex<Vec<RunEvent>>>,
    cancel: Arc<Mutex<Option<CancelHandle>>>,
    cancel_in: Option<&'static str>,
    deaf_in: Option<(&'static str, PathBuf)>,
}

impl Reporter for Recorder {
    fn on_event(&mut self, event: &TimedEvent) {
        if let RunEvent::TestStarted { test, .. } = &event.event
            && self.cancel_in.is_some_and(|name| test.id.ends_with(name))
        {
            self.cancel.lock().unwrap().as_ref().unwrap().cancel();
        }
        if let RunEvent::TestStarted { test, .. } = &event.event
            && let Some((_, file)) = self.deaf_in.take_if(|(name, _)| test.id.ends_with(*name))
        {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !file.exists() {
                assert!(Instant::now() < deadline, "{} never came", file.display());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.events.lock().unwrap().push(event.event.clone());
    }
}

impl Project {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = python::project(files);
        let config = OffloadConfig { test_timeout: Duration::MAX, ..OffloadConfig::default() };
        Self {
            dir,
            args: Vec::new(),
            workers: 2,
            config,
            env: BTreeMap::new(),
            despite_errors: false,
            phase_limit: None,
            cancel_in: None,
            deaf_in: None,
            default_duration: HistoryConfig::default().default_duration,
        }
    }

    fn options(&self) -> PytestOptions {
        // The latter wants its own controller beside it.
        let mut args = ["-p", "no:cacheprovider", "-p", "no:rerunfailures"].map(str::to_owned).to_vec();
        args.extend(self.args.clone());
        let init = json!({
            "type": "init",
            "args": args,
            "mainargv": ["pytest"],
            "rootdir_cwd": self.dir.path(),
            "workers": self.workers,
            "run_uid": "0123456789abcdef",
            "collect": "auto",
            "start_method": "auto",
            "isolation": "worker",
            "basetemp": self.dir.path().join("tmp"),
            "max_fail": 0,
        });
        fs::create_dir_all(self.dir.path().join("tmp")).unwrap();
        PytestOptions {
            max_fail_in_order: None,
            phase_limit: self.phase_limit,
            crash_retries: 0,
            dist: Dist::Load,
            python: python(),
            python_args: Vec::new(),
            script: WORKER.into(),
            cwd: self.dir.path().to_owned(),
            environment: None,
            env: self.env.clone(),
            workers: self.workers,
            inherit_output: false,
            continue_on_collection_errors: self.despite_errors,
            init: Some(init.to_string()),
            adopted: None,
            alone: false,
            elsewhere: None,
        }
    }

    fn run(&self) -> Ran {
        let events = Arc::new(Mutex::new(Vec::new()));
        let cancel = Arc::new(Mutex::new(None));
        let recorder = Recorder {
            events: Arc::clone(&events),
            cancel: Arc::clone(&cancel),
            cancel_in: self.cancel_in,
            deaf_in: self.deaf_in.map(|(test, file)| (test, self.dir.path().join(file))),
        };
        let config = Config {
            offload: OffloadConfig { max_parallel: self.workers, ..self.config.clone() },
            history: HistoryConfig {
                path: self.dir.path().join("no history"),
                default_duration: self.default_duration,
                ..HistoryConfig::default()
            },
            ..Config::default()
        };
        let provider = LocalProvider::new(LocalProviderConfig {
            working_dir: Some(self.dir.path().to_owned()),
            ..LocalProviderConfig::default()
        });
        let orchestrator = Orchestrator::new(config, provider, PytestWorkers::new(self.options()), &[], false)
            .with_reporters(vec![Box::new(recorder)]);
        *cancel.lock().unwrap() = Some(orchestrator.cancel_handle());
        // Workers are heard and told while the run itself is deaf.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let result = runtime.block_on(orchestrator.run(&[])).unwrap();
        assert_eq!(processes_in(self.dir.path()), Vec::<String>::new(), "a process was left behind");
        let events = std::mem::take(&mut *events.lock().unwrap());
        // Shown when the test fails.
        println!("{:#?}", result.problems);
        Ran { result, events }
    }
}

/// The processes that work in a directory.
fn processes_in(dir: &Path) -> Vec<String> {
    let dir = dir.canonicalize().unwrap();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let there = processes.filter(|process| fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(&dir)));
    let running = there.filter(|process| {
        // A zombie has no directory; one that is just ending may still have.
        fs::read_to_string(process.join("stat")).is_ok_and(|stat| !stat.contains(") Z"))
    });
    running.map(|process| fs::read_to_string(process.join("cmdline")).unwrap_or_default().replace('\0', " ")).collect()
}

impl Ran {
    fn test(&self, id: &str) -> &FinishedTest {
        let found = self.result.tests.iter().find(|test| test.test.id == id);
        found.unwrap_or_else(|| panic!("{id} is not among {:?}", self.outcomes()))
    }

    fn outcomes(&self) -> BTreeMap<&str, TestOutcome> {
        self.result.tests.iter().map(|test| (&*test.test.id, test.outcome)).collect()
    }

    fn native(&self, kind: &str) -> Vec<&NativeEvent> {
        let native = self.events.iter().filter_map(|event| match event {
            RunEvent::Native(native) if native.kind == kind => Some(native),
            _ => None,
        });
        native.collect()
    }
}

#[test]
fn every_test_has_its_outcome_and_its_place_in_collection_order() {
    let project = Project::new(&[
        ("tests/test_b.py", "def test_one(): pass\ndef test_two(): assert 0, 'two'\n"),
        (
            "tests/test_a.py",
            "import pytest\n\n@pytest.mark.parametrize('x', ['a', 'ü', 'b::c'])\ndef test_x(x): pass\n",
        ),
        (
            "tests/test_c.py",
            "import pytest\n\n@pytest.mark.skip(reason='not now')\ndef test_s(): pass\n\nclass TestC:\n    def test_m(self): pass\n",
        ),
    ]);
    let ran = project.run();
    let mut tests: Vec<_> = ran.result.tests.iter().collect();
    tests.sort_by_key(|test| test.test.number);
    let expected = [
        ("tests/test_a.py::test_x[a]", TestOutcome::Passed, 3),
        ("tests/test_a.py::test_x[\\xfc]", TestOutcome::Passed, 3),
        ("tests/test_a.py::test_x[b::c]", TestOutcome::Passed, 3),
        ("tests/test_b.py::test_one", TestOutcome::Passed, 0),
        ("tests/test_b.py::test_two", TestOutcome::Failed, 1),
        ("tests/test_c.py::test_s", TestOutcome::Skipped, 3),
        ("tests/test_c.py::TestC::test_m", TestOutcome::Passed, 6),
    ];
    let found: Vec<_> = tests.iter().map(|test| (&*test.test.id, test.outcome, test.test.line.unwrap())).collect();
    assert_eq!(found, expected.map(|(id, outcome, line): (&str, _, u32)| (id, outcome, line - u32::from(line == 3))));
    let failed = ran.test("tests/test_b.py::test_two").last().unwrap();
    assert!(failed.message.as_deref().unwrap().contains("two"), "{failed:?}");
    assert!(failed.details.as_deref().unwrap().contains("assert 0, 'two'"), "{failed:?}");
    assert_eq!(ran.result.exit_code(), 1);
    assert_eq!(ran.native("collected")[0].data.as_ref(), "7");
}

#[test]
fn a_worker_that_dies_costs_the_test_that_it_ran_and_no_other() {
    let project = Project::new(&[
        ("test_a.py", "import os\n\ndef test_exit(): os._exit(7)\n\ndef test_1(): pass\n\ndef test_2(): pass\n"),
        ("test_b.py", "import os\n\ndef test_kill(): os.kill(os.getpid(), 9)\n\ndef test_3(): pass\n"),
    ]);
    let ran = project.run();
    let expected = [
        ("test_a.py::test_1", TestOutcome::Passed),
        ("test_a.py::test_2", TestOutcome::Passed),
        ("test_a.py::test_exit", TestOutcome::Crashed),
        ("test_b.py::test_3", TestOutcome::Passed),
        ("test_b.py::test_kill", TestOutcome::Crashed),
    ];
    assert_eq!(ran.outcomes(), BTreeMap::from(expected));
    let message = |id| ran.test(id).last().unwrap().message.clone().unwrap();
    assert!(message("test_a.py::test_exit").ends_with("exit code 7"), "{}", message("test_a.py::test_exit"));
    assert!(message("test_b.py::test_kill").ends_with("killed by signal 9 (SIGKILL)"));
    assert_eq!(ran.result.lost, [], "a test was to blame, not a sandbox");
    assert!(ran.native("worker_down").len() >= 3, "two died, one at least ended in peace");
}

#[test]
fn a_test_that_runs_out_of_time_shows_its_stacks() {
    let mut project = Project::new(&[(
        "test_a.py",
        "import threading\n\ndef test_waits_for_nothing(): threading.Event().wait()\n\ndef test_next(): pass\n",
    )]);
    project.config.test_timeout = Duration::from_secs(1);
    let ran = project.run();
    let late = ran.test("test_a.py::test_waits_for_nothing");
    assert_eq!(late.outcome, TestOutcome::TimedOut);
    let details = late.last().unwrap().details.as_deref().unwrap_or_default();
    assert!(details.contains("in test_waits_for_nothing"), "{details}");
    assert_eq!(ran.test("test_a.py::test_next").outcome, TestOutcome::Passed);
}

#[test]
fn a_failure_is_tried_again() {
    let mut project = Project::new(&[(
        "test_a.py",
        "import pathlib\n\ndef test_flaky():\n    mark = pathlib.Path('mark')\n    ran = mark.exists()\n    \
         mark.touch()\n    assert ran\n",
    )]);
    project.config.retry_count = 2;
    let ran = project.run();
    let test = ran.test("test_a.py::test_flaky");
    assert_eq!((test.outcome, test.flaky, test.attempts.len()), (TestOutcome::Passed, true, 2));
    assert_eq!(ran.result.exit_code(), 2);
}

/// The second test fails as it runs, if it is told to, and what both of them share when it is torn down.
const FAILS_LATE: &str = "\
import os, pathlib, pytest

@pytest.fixture(scope='module')
def shared():
    yield
    raise ValueError('late')

def test_1(shared): pass

def test_2(shared):
    mark = pathlib.Path('mark')
    ran = mark.exists()
    mark.touch()
    assert ran or 'FIRST_FAILS' not in os.environ
";

#[test]
fn a_late_failure_counts_though_it_comes_together_with_the_result() {
    for (retries, fails) in [(0, false), (0, true), (1, true)] {
        let next = "import pathlib\n\ndef test_3(): pass\ndef test_4(): pathlib.Path('torn down').touch()\n";
        let mut project = Project::new(&[("test_a.py", FAILS_LATE), ("test_b.py", next)]);
        project.workers = 1;
        // So its sandbox has all four at once: while the run is deaf, nobody gives it more.
        project.default_duration = Duration::ZERO;
        project.config.retry_count = retries;
        project.deaf_in = Some(("test_2", "torn down"));
        if fails {
            project.env.insert("FIRST_FAILS".to_owned(), "1".to_owned());
        }
        let ran = project.run();
        let of_2: Vec<&str> = ran.events.iter().filter_map(|event| what_of(event, "test_2")).collect();
        let (expected, outcome): (&[&str], _) = match (retries, fails) {
            (0, false) => (&["finished", "late report", "late failure"], TestOutcome::Error),
            (0, true) => (&["finished", "late report", "late failure"], TestOutcome::Failed),
            // It is torn down after each of its attempts.
            _ => (
                &["failed attempt", "late report", "finished", "late failure", "late report", "late failure"],
                TestOutcome::Error,
            ),
        };
        assert_eq!(of_2, expected, "retries: {retries}, fails: {fails}");
        assert_eq!(ran.test("test_a.py::test_2").outcome, outcome);
        assert_eq!(ran.result.exit_code(), 1);
    }
}

/// What an event says of the test whose id ends like that, once it runs.
fn what_of(event: &RunEvent, name: &str) -> Option<&'static str> {
    let (test, what) = match event {
        RunEvent::AttemptFailed { test, .. } => (test, "failed attempt"),
        RunEvent::TestFinished { test, .. } => (test, "finished"),
        RunEvent::LateFailure { test, .. } => (test, "late failure"),
        RunEvent::Native(native) => (native.test.as_ref()?, "late report"),
        _ => return None,
    };
    test.id.ends_with(name).then_some(what)
}

#[test]
fn a_file_that_cannot_be_collected_keeps_all_from_running_unless_told_otherwise() {
    let files = [("test_a.py", "import nothing_of_that_name\n"), ("test_b.py", "def test_b(): pass\n")];
    let mut project = Project::new(&files);
    let ran = project.run();
    assert_eq!(ran.result.summary.total, 0);
    assert_eq!(ran.result.exit_code(), 3);
    assert!(ran.result.problems[0].contains("there was 1 error during collection"), "{:?}", ran.result.problems);
    assert!(ran.native("collect_report")[0].data.contains("nothing_of_that_name"));

    project.despite_errors = true;
    project.args.push("--continue-on-collection-errors".to_owned());
    let ran = project.run();
    assert_eq!(ran.test("test_b.py::test_b").outcome, TestOutcome::Passed);
    assert!(ran.result.problems[0].contains("there was 1 error during collection"), "{:?}", ran.result.problems);
}

#[test]
fn a_worker_that_dies_while_it_collects_is_an_error_of_the_file() {
    let mut project = Project::new(&[
        ("test_a.py", "import os\nos.kill(os.getpid(), 9)\n"),
        ("test_b.py", "def test_b(): pass\n"),
        ("test_c.py", "def test_c(): pass\n"),
    ]);
    project.workers = 1;
    project.despite_errors = true;
    let ran = project.run();
    let report = &ran.native("collect_report")[0].data;
    assert!(report.contains("test_a.py") && report.contains("SIGKILL"), "{report}");
    let passed = [("test_b.py::test_b", TestOutcome::Passed), ("test_c.py::test_c", TestOutcome::Passed)];
    assert_eq!(ran.outcomes(), BTreeMap::from(passed));
}

#[test]
fn a_mistake_on_the_command_line_is_said_in_pytests_own_words() {
    let mut project = Project::new(&[("test_a.py", "def test_a(): pass\n")]);
    project.args.push("--no-such-option".to_owned());
    let ran = project.run();
    let fatal = ran.native("fatal");
    assert!(fatal[0].data.starts_with("[4,") && fatal[0].data.contains("--no-such-option"), "{fatal:?}");
    assert_eq!(ran.result.exit_code(), 3);
}

#[test]
fn a_python_that_is_not_there_is_named() {
    let project = Project::new(&[("test_a.py", "def test_a(): pass\n")]);
    let framework = PytestWorkers::new(PytestOptions { python: "/nonexistent/python".into(), ..project.options() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = Config::default();
    let orchestrator =
        Orchestrator::new(config, LocalProvider::default(), framework, &[], false).with_reporters(vec![]);
    let result = runtime.block_on(orchestrator.run(&[])).unwrap();
    assert!(result.problems[0].contains("/nonexistent/python"), "{:?}", result.problems);
}

#[test]
fn a_run_that_is_cancelled_leaves_nothing_behind() {
    let mut project = Project::new(&[(
        "test_a.py",
        "import threading\n\ndef test_waits(): threading.Event().wait()\n\ndef test_next(): pass\n",
    )]);
    project.cancel_in = Some("test_waits");
    let ran = project.run();
    assert_eq!(ran.result.exit_code(), 130);
    assert_eq!(ran.test("test_a.py::test_waits").outcome, TestOutcome::NotRun);
}

#[test]
fn no_more_workers_are_forked_than_there_is_work_for() {
    let mut project = Project::new(&[("test_a.py", "def test_a(): pass\n")]);
    project.workers = 8;
    let ran = project.run();
    assert_eq!(ran.native("worker_down").len(), 1);
}

#[test]
fn a_worker_that_stops_while_it_collects_or_between_two_tests_costs_no_more_than_the_limit() {
    let stop = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)\n";
    let mut project = Project::new(&[("test_a.py", stop), ("test_b.py", "def test_b(): pass\n")]);
    project.phase_limit = Some(Duration::from_secs(2));
    project.despite_errors = true;
    let ran = project.run();
    assert_eq!(ran.outcomes(), BTreeMap::from([("test_b.py::test_b", TestOutcome::Passed)]));
    let reports = ran.native("collect_report");
    assert!(reports.iter().any(|report| report.data.contains("while it collected test_a.py: it took longer than 2 s")));

    let finalizer = "import os, signal, pytest\n@pytest.fixture(scope='module', autouse=True)\ndef stops():\n    yield\n    \
                     if not os.path.exists('once'):\n        open('once', 'w').close()\n        os.kill(os.getpid(), signal.SIGSTOP)\n\
                     def test_a(): pass\n";
    let mut project = Project::new(&[("test_a.py", finalizer), ("test_b.py", "def test_b(): pass\n")]);
    project.workers = 1;
    project.config.test_timeout = Duration::from_secs(2);
    let ran = project.run();
    assert_eq!(ran.outcomes()["test_b.py::test_b"], TestOutcome::Passed);
    let late = &ran.test("test_a.py::test_a").attempts.last().unwrap().result;
    assert!(late.message.as_deref().unwrap_or_default().contains("took longer than the limit of 2 s"), "{late:?}");
}
