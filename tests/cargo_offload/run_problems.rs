//! Whatever makes the exit code non-zero has an element in the JUnit report, a line in `logs --errors` and an event.

use std::path::Path;

use crate::support::{Run, Workspace, cargo_offload, manifest};

/// Checks all reports of a run that did not end as it should, of which `what` is a part of the reason.
fn check(workspace: &Path, run: &Run, what: &str) {
    let events: Vec<serde_json::Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let problems = events.iter().filter(|event| event["event"] == "problem");
    assert!(problems.clone().any(|event| event["text"].as_str().unwrap().contains(what)), "{}", run.stdout);
    let finished = events.iter().find(|event| event["event"] == "run_finished").unwrap();
    let code = finished["summary"]["exit_code"].as_i64().or(finished["exit_code"].as_i64()).unwrap();
    assert_eq!(Some(code), run.code.map(i64::from), "{finished}");
    let junit = std::fs::read_to_string(run.reports.path().join("junit.xml")).unwrap();
    let head = junit.lines().find(|line| line.starts_with("<testsuites")).unwrap();
    assert!(!head.contains("errors=\"0\""), "{head}");
    assert!(junit.contains(what) && junit.contains("problems of the run"), "{junit}");
    let mut logs = cargo_offload(workspace);
    logs.env("OFFLOAD_REPORT_OUTPUT_DIR", run.reports.path()).args(["logs", "--errors"]);
    let logs = logs.output().unwrap();
    assert!(String::from_utf8_lossy(&logs.stdout).contains(what), "{logs:?}");
}

#[test]
fn targets_that_do_not_compile_are_in_every_report() {
    let files = [
        ("Cargo.toml", &*manifest("does_not_compile")),
        ("src/lib.rs", "#[test] fn passes() {}\n"),
        ("tests/broken.rs", "#[test] fn broken() { let x: u32 = \"\"; }\n"),
    ];
    let workspace = Workspace::shared("does_not_compile", &files);
    let run = workspace.offload(["--message-format", "json"]).exits(3);
    check(&workspace.dir, &run, "do not compile");
}

#[test]
fn tests_that_cannot_be_listed_are_in_every_report() {
    let library = "#[cfg(test)] #[link_section = \".init_array\"] #[used] static BEFORE: extern \"C\" fn() = {\n    extern \"C\" fn before() { std::process::abort() }\n    before\n};\n#[test] fn never() {}\n";
    let workspace = Workspace::package("cannot_be_listed", library);
    let run = workspace.offload(["--message-format", "json"]).exits(3);
    check(&workspace.dir, &run, "cannot list the tests");
}

#[test]
fn a_report_that_cannot_be_written_is_in_the_others() {
    let workspace = Workspace::package("unwritable_history", "#[test] fn passes() {}\n");
    let mut command = cargo_offload(&workspace.dir);
    // Nothing can be put below a file.
    let file = tempfile::NamedTempFile::new().unwrap();
    command.env("OFFLOAD_HISTORY_PATH", file.path().join("history.jsonl"));
    let run = Run::new(command, ["--message-format", "json"]).exits(3);
    check(&workspace.dir, &run, "history");
}

#[test]
fn a_run_without_tests_that_was_to_have_some_is_in_every_report() {
    let workspace = Workspace::package("no_tests", "pub fn nothing() {}\n");
    let run = workspace.offload(["--message-format", "json", "--no-tests", "fail"]).exits(3);
    check(&workspace.dir, &run, "no test to run");
}
