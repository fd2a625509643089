//! What everybody does on the first day: run, filter, list, retry, read the report.

use crate::support::{Workspace, manifest};

/// Passing, failing, ignored, flaky, and a doctest.
fn mixed() -> Workspace {
    let library = r#"
//! ```
//! assert_eq!(mixed::double(2), 4);
//! ```
pub fn double(n: u32) -> u32 { n * 2 }

#[cfg(test)]
mod tests {
    #[test] fn passes() { println!("seen by nobody"); }
    #[test] fn fails() { println!("to stdout"); eprintln!("to stderr"); assert_eq!(super::double(2), 5, "wrong sum"); }
    #[test] #[ignore = "slow"] fn ignored() {}
    #[test] fn flaky() {
        let state = std::env::var("FLAKY_STATE").expect("only runs that want it select this test");
        if std::fs::remove_file(&state).is_ok() { panic!("not yet"); }
    }
}
"#;
    Workspace::package("mixed", library)
}

#[test]
fn one_summary_one_exit_code_one_junit_file() {
    let run = mixed().offload(["--skip", "flaky"]).exits(1);
    let junit = run.junit();
    let expected = [
        ("mixed tests::fails", "failure"),
        ("mixed tests::ignored", "skipped"),
        ("mixed tests::passes", "passed"),
        ("mixed::doc src/lib.rs - (line 2)", "passed"),
    ];
    assert_eq!(junit.outcomes().into_iter().collect::<Vec<_>>(), expected);
    let failure = junit.case("mixed tests::fails");
    assert!(failure.message.contains("wrong sum"), "{failure:?}");
    assert!(failure.text.contains("to stdout") && failure.text.contains("to stderr"), "{failure:?}");
    run.says("2 passed").says("1 failed").says("1 skipped").says("wrong sum").never_says("seen by nobody");
}

#[test]
fn all_passed_is_exit_code_0() {
    mixed().offload(["passes"]).exits(0).says("1 passed").never_says("failed");
}

#[test]
fn filters_are_substrings_and_can_be_exact() {
    let run = mixed().offload(["passe"]).exits(0);
    assert_eq!(run.junit().cases.len(), 1);
    mixed().offload(["--exact", "passe"]).exits(0).says("no tests");
    let run = mixed().offload(["--exact", "tests::passes"]).exits(0);
    assert_eq!(run.junit().cases.len(), 1);
}

#[test]
fn a_filter_that_matches_nothing_is_said_and_can_fail() {
    mixed().offload(["no_such_test"]).exits(0).says("no tests");
    mixed().offload(["no_such_test", "--no-tests=fail"]).exits(3);
}

#[test]
fn ignored_tests_run_when_asked_for() {
    let run = mixed().offload(["ignored", "--run-ignored", "only"]).exits(0);
    assert_eq!(run.junit().outcomes().into_iter().collect::<Vec<_>>(), [("mixed tests::ignored", "passed")]);
    let run = mixed().offload(["--lib", "--run-ignored", "all", "--skip", "fails", "--skip", "flaky"]).exits(0);
    assert_eq!(run.junit().cases.len(), 2);
}

#[test]
fn a_test_that_passes_on_a_retry_is_flaky_and_exits_with_2() {
    let workspace = mixed();
    let state = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    let mut command = crate::support::cargo_offload(&workspace.dir);
    command.env("FLAKY_STATE", &state);
    let run = crate::support::Run::new(command, ["tests::flaky", "--retries", "2"]).exits(2).says("1 flaky");
    let case = run.junit().case("mixed tests::flaky").clone();
    assert_eq!(case.outcome, "passed");
    assert!(case.children.contains(&"flakyFailure".to_owned()), "{case:?}");
    assert!(case.text.contains("not yet"), "{case:?}");
}

#[test]
fn a_test_that_keeps_failing_shows_each_attempt() {
    let run = mixed().offload(["tests::fails", "--retries", "2"]).exits(1);
    let case = run.junit().case("mixed tests::fails").clone();
    assert_eq!(case.children.iter().filter(|name| *name == "rerunFailure").count(), 2, "{case:?}");
}

#[test]
fn fail_fast_leaves_the_rest_unrun() {
    let library = (0..20).fold(String::new(), |text, number| {
        text + &format!("#[test] fn fails_{number:02}() {{ panic!(\"always\"); }}\n")
    });
    let workspace = Workspace::package("all_fail", &library);
    let run = workspace.offload(["--fail-fast", "-j", "1", "--lib"]).exits(1);
    let failed = run.junit().cases.values().filter(|case| case.outcome == "failure").count();
    assert_eq!(failed, 1, "{}", run.text());
    let run = workspace.offload(["--max-fail", "3", "-j", "1", "--lib"]).exits(1);
    let failed = run.junit().cases.values().filter(|case| case.outcome == "failure").count();
    assert_eq!(failed, 3, "{}", run.text());
    assert_eq!(run.junit().cases.len(), 20, "tests that did not run are reported too");
}

/// The test after the failed one has started before anybody can prevent it, and never ends by itself.
#[test]
fn fail_fast_ends_the_rest_of_a_batch() {
    let library = "#[test] fn a_passes() {}\n#[test] fn b_fails() { panic!(\"once\"); }\n\
                   #[test] fn c_hangs() { loop { std::thread::park() } }\n#[test] fn d_passes() {}\n";
    let workspace = Workspace::package("fails_in_a_batch", library);
    let run = workspace.offload(["--fail-fast", "--isolation", "binary", "-j", "1", "--lib"]).exits(1);
    let junit = run.junit();
    assert_eq!(junit.case("fails_in_a_batch a_passes").outcome, "passed");
    assert_eq!(junit.case("fails_in_a_batch b_fails").outcome, "failure");
    for rest in ["c_hangs", "d_passes"] {
        let case = junit.case(&format!("fails_in_a_batch {rest}"));
        assert!(case.message.contains("as many tests failed as allowed"), "{case:?}");
    }
}

/// A test that is the second in its process by its name, and does not pass there.
const SHARING: &str = r#"
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
static TAKEN: AtomicBool = AtomicBool::new(false);
#[test] fn a_takes() { TAKEN.store(true, SeqCst); assert!(std::env::var_os("RUSTC_BOOTSTRAP").is_none()); }
#[test] fn b_takes() { assert!(!TAKEN.swap(true, SeqCst), "taken") }
#[test] fn c_leaves_it() {}
#[test] fn d_leaves_it() {}
#[test] fn e_leaves_it() {}
#[test] fn f_leaves_it() {}
#[test] fn g_leaves_it() {}
#[test] fn h_leaves_it() {}
"#;

#[test]
fn what_passes_alone_only_has_passed_and_is_named() {
    let workspace = Workspace::package("sharing", SHARING);
    // Of earlier runs of this test.
    let _ = std::fs::remove_file(workspace.dir.join("target/offload/history.jsonl"));
    let args = ["--lib", "-j", "1", "--progress", "plain"];
    let run = workspace.offload(args).exits(0).says("8 tests: 8 passed").says("quick ones share processes");
    let run = run.says("sharing b_takes: passes alone, not in one process after a_takes");
    let report = std::fs::read_to_string(run.reports.path().join("junit.xml")).unwrap();
    assert!(report.contains(r#"<property name="shares_state:b_takes" value="a_takes"/>"#), "{report}");
    workspace.offload(args).exits(0).says("8 passed").never_says("passes alone");
    let process = workspace.offload(["--lib", "-j", "1", "--isolation", "process"]).exits(0);
    process.says("8 passed").never_says("share");
    workspace.offload(["--lib", "-j", "1", "--isolation", "binary"]).exits(1).says("1 failed").says("taken");
}

#[test]
fn binary_isolation_gives_the_same_outcomes() {
    let by_process = mixed().offload(["--skip", "flaky"]).exits(1).junit();
    let by_binary = mixed().offload(["--skip", "flaky", "--isolation", "binary"]).exits(1).junit();
    assert_eq!(by_process.outcomes(), by_binary.outcomes());
    let failure = by_binary.case("mixed tests::fails");
    assert!(failure.message.contains("wrong sum") && failure.text.contains("to stdout"), "{failure:?}");
}

#[test]
fn list_names_every_test_and_runs_none() {
    let run = mixed().offload(["list"]).exits(0);
    let expected = "mixed tests::fails\nmixed tests::flaky\nmixed tests::ignored (skipped: ignored, slow)\n\
                    mixed tests::passes\nmixed::doc src/lib.rs - (line 2)\n";
    assert_eq!(run.stdout, expected);
}

#[test]
fn logs_show_the_failures_of_the_last_run() {
    let workspace = mixed();
    let run = workspace.offload(["--skip", "flaky"]).exits(1);
    let mut command = crate::support::cargo_offload(&workspace.dir);
    command.env("OFFLOAD_REPORT_OUTPUT_DIR", run.reports.path()).args(["logs", "--failures"]);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("tests::fails") && text.contains("to stdout"), "{text}");
    assert!(!text.contains("tests::passes"), "{text}");
}

#[test]
fn without_a_file_reports_go_below_the_target_directory_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("src")).unwrap();
    std::fs::write(dir.path().join("Cargo.toml"), manifest("lonely")).unwrap();
    std::fs::write(dir.path().join("src/lib.rs"), "#[test] fn passes() {}").unwrap();
    let output = crate::support::cargo_offload(&dir.path().join("src")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let names = |dir: &std::path::Path| {
        let mut names: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(dir.path()), ["Cargo.lock", "Cargo.toml", "src", "target"]);
    assert_eq!(names(&dir.path().join("src")), ["lib.rs"]);
    assert!(dir.path().join("target/offload/junit.xml").exists());
}

#[test]
fn a_configuration_file_decides_groups_and_retries() {
    let library = "#[test] fn fast_one() {}\n#[test] fn slow_one() { panic!(\"always\") }\n#[test] fn other() {}\n";
    let config = "[groups.fast]\nfilters = \"fast\"\n\n[groups.slow]\nfilters = \"slow\"\nretry_count = 1\n";
    let files = [("Cargo.toml", &*manifest("grouped")), ("src/lib.rs", library), ("offload.toml", config)];
    let workspace = Workspace::shared("grouped", &files);
    let run = workspace.offload(["--lib"]).exits(1).says("1 test");
    let junit = run.junit();
    assert_eq!(junit.cases.len(), 2, "{junit:?}");
    assert!(junit.case("grouped slow_one").children.contains(&"rerunFailure".to_owned()), "{junit:?}");
}
