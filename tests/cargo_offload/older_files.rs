//! What was written for offload 0.10 works unchanged.

use crate::offload_run::{project, run};

/// As in the documentation of 0.10: tests of a project below the configuration file.
const CONFIG: &str = r#"
[offload]
max_parallel = 2

[provider]
type = "local"

[framework]
type = "default"
working_dir = "sub"
discover_command = "ls t/*.sh {filters}"
run_command = "for test in {tests}; do sh \"$test\" || exit 1; done"
test_id_format = "{name}"

[history]
record_history = "always"
path = "history.jsonl"
"#;

const HISTORY: &str = concat!(
    r#"{"k":"offload.toml:t/a.sh","v":{"n":12,"f":1,"last_run":"r12","ok":[["r1",1700000000,0.25]],"fail":[["r2",1700000001,9.0]]}}"#,
    "\n",
    r#"{"k":"ci/offload.toml:pkg::it tests::other","v":{"n":3,"f":0,"last_run":"r3","ok":[["r1",1700000000,1.5]],"fail":[]}}"#,
    "\n",
);

#[test]
fn a_history_of_0_10_is_read_and_kept() {
    let dir = project(&[("offload.toml", CONFIG), ("sub/t/a.sh", "exit 0\n"), ("history.jsonl", HISTORY)]);
    let run = run(dir.path(), &["run"]).exits(0).says("1 passed").never_says("damaged").never_says("not a line");
    drop(run);
    let text = std::fs::read_to_string(dir.path().join("history.jsonl")).unwrap();
    assert!(text.ends_with(HISTORY), "lines of 0.10 stay as they are:\n{text}");
    // Eleven passes and a failure are known of it, and this run's pass.
    assert!(text.starts_with(r#"{"id":"t/a.sh","passed":{"n":12,"samples":[0.25,"#), "{text}");
    assert!(text.contains(r#""failed":{"n":1,"samples":[9.0]}"#), "{text}");
}

#[test]
fn histories_of_0_10_are_merged_and_kept() {
    let ours = "{\"k\":\"c:a\",\"v\":{\"n\":1,\"f\":0,\"last_run\":\"x\",\"ok\":[[\"x\",1,0.5]],\"fail\":[]}}\n";
    let dir = project(&[("base", HISTORY), ("ours", &format!("{HISTORY}{ours}")), ("theirs", HISTORY)]);
    run(dir.path(), &["history", "merge", "base", "ours", "theirs"]).exits(0);
    let text = std::fs::read_to_string(dir.path().join("ours")).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.contains(ours) && HISTORY.lines().all(|line| text.contains(line)), "{text}");
}

#[test]
fn no_line_of_a_history_is_lost() {
    let garbage = "<<<<<<< HEAD\nnot json\n";
    let dir = project(&[("offload.toml", CONFIG), ("sub/t/a.sh", "exit 0\n"), ("history.jsonl", garbage)]);
    run(dir.path(), &["run"]).exits(0).says("history.jsonl:1: not a line of test history");
    let text = std::fs::read_to_string(dir.path().join("history.jsonl")).unwrap();
    assert!(text.starts_with("{\"id\":\"t/a.sh\"") && text.ends_with(garbage), "{text}");
}

#[test]
fn both_commands_run_in_the_working_directory_of_the_framework() {
    let dir = project(&[("offload.toml", CONFIG), ("sub/t/a.sh", "test -f t/a.sh\n")]);
    run(dir.path(), &["run"]).exits(0).says("1 passed");
    run(dir.path(), &["collect"]).exits(0).says("t/a.sh");
}

#[test]
fn options_of_run_are_known() {
    let dir = project(&[("offload.toml", CONFIG), ("sub/t/a.sh", "exit 0\n"), ("sub/t/b.sh", "exit 0\n")]);
    run(dir.path(), &["run", "-p", "1", "--ci"]).exits(0).says("2 passed");
}

#[test]
fn include_ignored_runs_only_the_ignored_tests() {
    let config = "[provider]\ntype = \"local\"\n[framework]\ntype = \"nextest\"\ninclude_ignored = true\n";
    let library = "#[test] fn usual() {}\n#[test] #[ignore] fn slow() {}\n";
    let manifest = crate::support::manifest("older");
    let dir = project(&[("offload.toml", config), ("Cargo.toml", &manifest), ("src/lib.rs", library)]);
    let run = run(dir.path(), &["run"]).exits(0);
    assert_eq!(run.junit().outcomes().into_iter().collect::<Vec<_>>(), [("older slow", "passed")]);
}

const IMAGE: &str = r#"
[provider]
type = "default"
prepare_command = "echo preparing; echo image-7"
create_command = "echo sandbox-{image_id}"
exec_command = "sh -c {command}"
destroy_command = "true {sandbox_id}"

[framework]
type = "default"
discover_command = "echo a"
run_command = "true {tests}"
test_id_format = "{name}"
"#;

#[test]
fn build_prints_the_id_of_the_image_alone() {
    let dir = project(&[("offload.toml", IMAGE)]);
    let run = run(dir.path(), &["build"]).exits(0);
    assert_eq!(run.stdout, "image-7\n");
}

#[test]
fn the_script_for_modal_is_answered_with_the_provider() {
    let config = IMAGE.replace("echo sandbox-", "uv run @modal_sandbox.py create ");
    let dir = project(&[("offload.toml", &config)]);
    run(dir.path(), &["run"]).exits(3).says("`type = \"modal\"`");
}
