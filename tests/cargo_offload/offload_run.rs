//! `offload`: any framework, as offload.toml says.

use std::path::Path;

use crate::support::{Run, offload};

pub fn project(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

pub fn run(dir: &Path, args: &[&str]) -> Run {
    Run::new(offload(dir), args)
}

/// Shell scripts as tests: each file under t/ is one.
const SHELL_TESTS: &str = r#"
[provider]
type = "local"

[framework]
type = "default"
discover_command = "ls t/*.sh {filters}"
run_command = "code=0; for test in {tests}; do sh \"$test\" || code=1; done; exit $code"
test_id_format = "{name}"

[groups.each]
schedule_individual = true
"#;

#[test]
fn shell_commands_as_a_framework() {
    let files =
        [("offload.toml", SHELL_TESTS), ("t/good.sh", "exit 0\n"), ("t/bad.sh", "echo what went wrong; exit 1\n")];
    let dir = project(&files);
    let run = run(dir.path(), &["run"]).exits(1).says("what went wrong");
    let outcomes: Vec<_> = run.junit().cases.values().map(|case| case.outcome.clone()).collect();
    assert_eq!(outcomes, ["failure", "passed"]);
}

#[test]
fn the_same_in_sandboxes_made_of_temporary_directories() {
    let sandboxes = r#"type = "default"
create_command = "@tempdir_sandbox.sh create"
exec_command = "@tempdir_sandbox.sh exec {sandbox_id} {command}"
destroy_command = "@tempdir_sandbox.sh destroy {sandbox_id}"
download_command = "@tempdir_sandbox.sh download {sandbox_id} {paths}"
copy_dirs = ["t:t"]"#;
    let config = SHELL_TESTS.replace("type = \"local\"", sandboxes);
    // The test sees that it runs in a copy: what it writes does not appear here.
    let files = [("offload.toml", &*config), ("t/a test.sh", "exit 0\n"), ("t/writes.sh", "echo x > t/written\n")];
    let dir = project(&files);
    run(dir.path(), &["run"]).exits(0).says("2 passed");
    assert!(!dir.path().join("t/written").exists());
}

#[test]
fn rust_tests_in_copies_of_what_was_built_for_them() {
    let config = r#"
[provider]
type = "default"
create_command = "@tempdir_sandbox.sh create"
exec_command = "@tempdir_sandbox.sh exec {sandbox_id} {command}"
destroy_command = "@tempdir_sandbox.sh destroy {sandbox_id}"

[framework]
type = "cargo"
"#;
    let integration = "#[test] fn in_a_copy() { std::fs::write(\"written\", \"\").unwrap(); }\n";
    let files = [
        ("Cargo.toml", &*crate::support::manifest("copied")),
        ("offload.toml", config),
        ("src/lib.rs", "#[test] fn unit() {}\n"),
        ("tests/integration.rs", integration),
    ];
    let dir = project(&files);
    let run = run(dir.path(), &["run"]).exits(0);
    let expected = [("copied unit", "passed"), ("copied::integration in_a_copy", "passed")];
    assert_eq!(run.junit().outcomes().into_iter().collect::<Vec<_>>(), expected);
    assert!(!dir.path().join("written").exists(), "tests run in the copies");
}

const PYTEST: &str =
    "[provider]\ntype = \"local\"\n\n[framework]\ntype = \"pytest\"\n\n[groups.all]\nretry_count = 1\n";

#[test]
fn pytest_with_every_outcome() {
    let tests = r#"
import pytest

@pytest.mark.parametrize("value", ["a b", "ü::x", "[y]"])
def test_parametrized(value):
    assert value

def test_fails():
    print("printed by the test")
    assert 1 == 2

@pytest.mark.skip(reason="not today")
def test_skipped():
    pass

@pytest.mark.xfail
def test_expected_failure():
    assert False

@pytest.fixture
def broken():
    raise RuntimeError("the fixture broke")

def test_error(broken):
    pass

class TestClass:
    def test_method(self):
        pass
"#;
    let dir = project(&[("offload.toml", PYTEST), ("test_all.py", tests)]);
    let run = run(dir.path(), &["run"]).exits(1).says("printed by the test").says("the fixture broke");
    let junit = run.junit();
    let count = |outcome: &str| junit.cases.values().filter(|case| case.outcome == outcome).count();
    assert_eq!(
        (junit.cases.len(), count("passed"), count("failure"), count("error"), count("skipped")),
        (8, 4, 1, 1, 2)
    );
}

#[test]
fn after_the_last_failure_that_is_allowed_a_worker_starts_nothing() {
    let tests = "def log(name):\n    open('log', 'a').write(name)\n\
                 def test_a(): log('a')\ndef test_b(): log('b'); assert 0\n\
                 def test_c(): log('c')\ndef test_d(): log('d')\n";
    for isolation in ["worker", "test"] {
        let config = PYTEST.replace("retry_count = 1", "retry_count = 0");
        let config = config.replace("type = \"pytest\"", &format!("type = \"pytest\"\nisolation = \"{isolation}\""));
        let dir = project(&[("offload.toml", &config), ("test_it.py", tests)]);
        run(dir.path(), &["run", "-j1", "--fail-fast"]).exits(1).says("1 passed, 1 failed, 2 not run");
        assert_eq!(std::fs::read_to_string(dir.path().join("log")).unwrap(), "ab");
    }
}

#[test]
fn pytest_that_cannot_collect_shows_its_own_error() {
    let dir = project(&[("offload.toml", PYTEST), ("test_broken.py", "import no_such_module\n")]);
    run(dir.path(), &["run"]).exits(3).says("no_such_module").never_says("panicked");
}

#[test]
fn collect_lists_and_validate_explains() {
    let files = [("offload.toml", SHELL_TESTS), ("t/good.sh", "exit 0\n")];
    let dir = project(&files);
    assert_eq!(run(dir.path(), &["collect"]).exits(0).stdout, "t/good.sh\n");
    let json: serde_json::Value =
        serde_json::from_str(&run(dir.path(), &["collect", "-f", "json"]).exits(0).stdout).unwrap();
    assert_eq!(json["tests"][0]["id"], "t/good.sh");
    run(dir.path(), &["validate"]).exits(0).says("max_parallel").says("default").says("offload.toml:");
}

#[test]
fn init_writes_a_file_that_validates_and_never_overwrites() {
    for framework in ["cargo", "pytest", "default"] {
        for provider in ["local", "docker", "ssh", "default"] {
            let dir = project(&[]);
            run(dir.path(), &["init", "-f", framework, "-p", provider]).exits(0).says("offload.toml");
            run(dir.path(), &["validate"]).exits(0);
            run(dir.path(), &["init"]).exits(3).says("already");
        }
    }
}

#[test]
fn what_belongs_to_later_providers_says_so() {
    let dir = project(&[("offload.toml", SHELL_TESTS), ("t/good.sh", "exit 0\n")]);
    for args in [&["run", "--show-estimated-cost"][..], &["checkpoint-status"], &["build"], &["run", "--no-cache"]] {
        let run = run(dir.path(), args).exits(3);
        assert!(run.stderr.starts_with("error: "), "{}", run.stderr);
    }
}

#[test]
fn a_trace_shows_each_attempt() {
    let dir = project(&[("offload.toml", SHELL_TESTS), ("t/good.sh", "exit 0\n")]);
    let run = run(dir.path(), &["run", "--trace"]).exits(0);
    let trace = std::fs::read_to_string(run.reports.path().join("trace.json")).unwrap();
    let trace: serde_json::Value = serde_json::from_str(&trace).unwrap();
    assert!(trace["traceEvents"].as_array().unwrap().iter().any(|event| event["name"] == "t/good.sh"), "{trace}");
}

#[test]
fn history_is_recorded_when_asked_for_and_merged_by_git() {
    let dir = project(&[("offload.toml", SHELL_TESTS), ("t/good.sh", "exit 0\n")]);
    run(dir.path(), &["run"]).exits(0);
    let history = dir.path().join("offload-history.jsonl");
    assert!(!history.exists());
    run(dir.path(), &["run", "--record-history"]).exits(0);
    let text = std::fs::read_to_string(&history).unwrap();
    assert!(text.contains("t/good.sh"), "{text}");
    let other = dir.path().join("theirs.jsonl");
    std::fs::write(&other, text.replace("good", "other")).unwrap();
    let base = dir.path().join("base.jsonl");
    std::fs::write(&base, "").unwrap();
    let args = ["history", "merge", "base.jsonl", "offload-history.jsonl", "theirs.jsonl"];
    run(dir.path(), &args).exits(0);
    let merged = std::fs::read_to_string(&history).unwrap();
    assert!(merged.contains("t/good.sh") && merged.contains("t/other.sh"), "{merged}");
}

#[test]
fn init_writes_a_file_that_works_at_once() {
    let files = [("tests/good.sh", "exit 0\n"), ("tests/bad.sh", "exit 1\n")];
    for provider in ["local", "default"] {
        let dir = project(&files);
        run(dir.path(), &["init", "-p", provider]).exits(0).says("name your commands in it");
        run(dir.path(), &["run"]).exits(1).says("1 passed").says("1 failed").never_says("note:");
        run(dir.path(), &["init"]).exits(3).says("already");
    }
    let dir = project(&[("Cargo.toml", &crate::support::manifest("begun")), ("src/lib.rs", "#[test] fn passes() {}")]);
    let begin = |args: &[&str]| {
        let output = crate::support::cargo_offload(dir.path()).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let settings =
        || begin(&["validate"]).lines().map(|line| line.split('#').next().unwrap().trim().to_owned()).collect();
    let (before, said): (Vec<String>, _) = (settings(), begin(&["init"]));
    assert!(said.contains("next: cargo offload"), "{said}");
    // Only the form of paths differs: the file is shared, so it holds relative ones.
    let root = format!("{}/", dir.path().canonicalize().unwrap().display());
    let before: Vec<_> = before.iter().map(|line| line.replace(&root, "")).collect();
    assert_eq!(before, settings(), "a new file changes nothing");
    begin(&["--lib"]);
    assert!(dir.path().join("target/offload/junit.xml").exists());
}

#[test]
fn the_configuration_that_the_page_on_providers_begins_with() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PROVIDERS.md")).unwrap();
    let examples: Vec<_> = page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let config = examples.iter().find(|example| example.contains("@tempdir_sandbox.sh")).unwrap();
    let files = [("offload.toml", *config), ("tests/a b.sh", "exit 0\n"), ("tests/bad.sh", "exit 1\n")];
    let dir = project(&files);
    run(dir.path(), &["run"]).exits(1).says("1 passed, 1 failed");
}
