//! `offload run` with pytest's own worker, on this machine and in containers.

use std::path::Path;

use crate::docker_support::{docker, image};
use crate::support::{Run, offload, wait_until};

/// A project of tests.
struct Project {
    dir: tempfile::TempDir,
    in_containers: bool,
}

const FRAMEWORK: &str = "[framework]\ntype = \"pytest\"\n";

impl Project {
    fn here(config: &str, tests: &str) -> Self {
        Self::new("type = \"local\"", config, tests, false)
    }

    /// `None` where there is no daemon.
    fn in_containers(config: &str, tests: &str) -> Option<Self> {
        let provider = format!("type = \"docker\"\nimage = \"{}\"", image()?);
        Some(Self::new(&provider, config, tests, true))
    }

    fn new(provider: &str, config: &str, tests: &str, in_containers: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("[provider]\n{provider}\n[offload]\nmax_parallel = 2\n{config}");
        std::fs::write(dir.path().join("offload.toml"), text).unwrap();
        std::fs::write(dir.path().join("test_it.py"), format!("import os, pathlib, pytest, time\n{tests}")).unwrap();
        Self { dir, in_containers }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn run(&self, args: &[&str]) -> Run {
        let mut command = offload(self.path());
        if self.in_containers {
            // The tests need Python and pytest, and this machine neither.
            command.env("PATH", "/nonexistent");
        }
        Run::new(command, [&["run"], args].concat())
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if self.in_containers {
            let label = format!("label=offload.project={}", self.path().canonicalize().unwrap().display());
            // The daemon may still be at it.
            wait_until("no container is left", || docker(&["ps", "--all", "--quiet", "--filter", &label]).is_empty());
            Run::new(offload(self.path()), ["clean"]).exits(0);
        }
    }
}

/// Each kind of end, and what shows that one process runs many tests.
const TESTS: &str = r#"
@pytest.fixture(scope="session")
def process(): return os.getpid()
def test_passes(process): assert process == os.getpid()
def test_fails(process): print("printed by the test"); assert process == os.getpid() and 1 == 2
def test_crashes(): os._exit(7)
def test_hangs():
    time.sleep(1000)
def test_ends_all(): pytest.exit("enough")
@pytest.mark.parametrize("n", range(10))
def test_more(n, tmp_path): (tmp_path / "file").write_text("x")
@pytest.mark.skip(reason="not today")
def test_skipped(): pass
@pytest.mark.xfail
def test_expected_failure(): assert False
"#;

fn every_end(project: &Project) {
    let run = project.run(&[]).exits(1).says("printed by the test").says("exit code 7").says("in test_hangs");
    let junit = run.says("the test ended the whole session: enough").junit();
    let mut outcomes = junit.outcomes();
    outcomes.retain(|_, outcome| *outcome != "passed");
    let ends: Vec<(&str, &str)> = outcomes.into_iter().collect();
    assert_eq!(
        ends,
        [
            ("test_it.py test_crashes", "failure"),
            ("test_it.py test_ends_all", "error"),
            ("test_it.py test_expected_failure", "skipped"),
            ("test_it.py test_fails", "failure"),
            ("test_it.py test_hangs", "failure"),
            ("test_it.py test_skipped", "skipped"),
        ]
    );
    assert_eq!(junit.cases.len(), 17);
}

fn with_time_limit() -> String {
    format!("test_timeout_secs = 3\n{FRAMEWORK}")
}

#[test]
fn every_end_of_a_test_is_told_and_costs_no_other() {
    every_end(&Project::here(&with_time_limit(), TESTS));
}

#[test]
fn the_same_in_containers_without_python_here() {
    let Some(project) = Project::in_containers(&with_time_limit(), TESTS) else { return };
    every_end(&project);
}

#[test]
fn each_test_in_a_process_of_its_own() {
    let tests = "def test_a(): os._exit(7)\ndef test_b(): pytest.exit('enough')\ndef test_c(): pass\n";
    let project = Project::here(&format!("{FRAMEWORK}isolation = \"test\"\n"), tests);
    project.run(&[]).exits(1).says("1 passed").says("exit code 7").says("the test ended the whole session: enough");
}

#[test]
fn what_cannot_be_collected_is_shown_and_the_rest_runs_where_that_is_wanted() {
    for image in [false, true] {
        let new = |config: &str| {
            let tests = "def test_there(): pass\n";
            let project = if image { Project::in_containers(config, tests)? } else { Project::here(config, tests) };
            std::fs::write(project.path().join("test_broken.py"), "import no_such_module\n").unwrap();
            Some(project)
        };
        let Some(project) = new(FRAMEWORK) else { continue };
        project.run(&[]).exits(3).says("No module named 'no_such_module'").never_says("1 passed");
        let config = format!("{FRAMEWORK}discovery_args = \"--continue-on-collection-errors\"\n");
        let Some(project) = new(&config) else { continue };
        project.run(&[]).exits(3).says("No module named 'no_such_module'").says("1 passed");
    }
}

#[test]
fn arguments_select_as_those_of_pytest_do() {
    let tests = "@pytest.mark.slow\ndef test_slow(): pass\ndef test_quick(): pass\ndef test_other(): pass\n";
    let select = |config: &str| Project::here(&format!("{FRAMEWORK}{config}"), tests).run(&[]);
    select("run_args = \"-k quick\"\n").exits(0).says("1 passed");
    select("discovery_args = \"-m slow\"\n").exits(0).says("1 passed");
    select("[groups.some]\nfilters = \"-m 'not slow'\"\n").exits(0).says("2 passed");
    // Each with a pytest of its own: by commands.
    select("[groups.slow]\nfilters = \"-m slow\"\n[groups.rest]\nfilters = \"-m 'not slow'\"\n")
        .exits(0)
        .says("3 passed");
    select("run_args = \"--no-such-option\"\n").exits(3).says("unrecognized arguments: --no-such-option");
    select("run_args = \"-k 'quick and'\"\n").exits(3).says("Wrong expression");
}

#[test]
fn variables_reach_the_tests() {
    let tests =
        "def test(): assert (os.environ['A'], os.environ['B'], os.environ['C']) == ('a', os.getcwd() + '/b', 'c')\n";
    let config = format!("{FRAMEWORK}env = {{ A = \"a\", B = \"{{root}}/b\" }}\n");
    Project::here(&config, tests).run(&["--env", "C=c"]).exits(0).says("1 passed");
    let Some(project) = Project::in_containers(&config, tests) else { return };
    project.run(&["--env", "C=c"]).exits(0).says("1 passed");
}

#[test]
fn an_image_without_python_is_named_with_what_to_do() {
    let Some(base) = image() else { return };
    let name = "offload-test:without-any-python";
    docker(&["run", "--name", "offload-without", &base, "/bin/sh", "-c", "rm -f /usr/bin/python3*"]);
    docker(&["commit", "offload-without", name]);
    docker(&["rm", "offload-without"]);
    let Some(project) = Project::in_containers(FRAMEWORK, "def test(): pass\n") else { return };
    let mut command = offload(project.path());
    command.env("OFFLOAD_PROVIDER_IMAGE", name);
    let run = Run::new(command, ["run"]);
    docker(&["rmi", "--force", name]);
    run.exits(3).says("no Python").says(name).says("sandbox_init_cmd");
}
