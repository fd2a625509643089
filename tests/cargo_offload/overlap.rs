//! Tests run while Cargo still builds.

use crate::support::{Run, Workspace, cargo_offload};

/// `late` is not built before a test of `early` has run, and a test of `early` needs the program that `late` builds.
fn interlocked() -> Workspace {
    let manifest = |name: &str| format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n");
    let build_script = r#"
fn main() {
    let marker = std::path::PathBuf::from(std::env::var("OVERLAP_DIR").unwrap()).join("marker");
    for _ in 0..3000 {
        if marker.exists() { return; }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("no test has run while this was being built");
}
"#;
    let needs_late = r#"
#[test] fn uses_the_program() {
    let dir = std::path::PathBuf::from(std::env::var("OVERLAP_DIR").unwrap());
    std::fs::write(dir.join("marker"), "").unwrap();
    let attempts = std::fs::read_to_string(dir.join("attempts")).unwrap_or_default();
    std::fs::write(dir.join("attempts"), attempts + "x").unwrap();
    let program = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("late");
    let status = std::process::Command::new(program).status().expect("the program is there");
    assert!(status.success());
}
"#;
    let files = [
        ("Cargo.toml", "[workspace]\nresolver = \"2\"\nmembers = [\"early\", \"late\"]\n"),
        ("early/Cargo.toml", &*manifest("early")),
        ("early/src/lib.rs", ""),
        ("early/tests/needs_late.rs", needs_late),
        ("late/Cargo.toml", &*manifest("late")),
        ("late/build.rs", build_script),
        ("late/src/main.rs", "fn main() {}\n"),
        // Cargo builds a package's programs for its integration tests only.
        ("late/tests/none.rs", ""),
    ];
    Workspace::shared("interlocked", &files)
}

#[test]
fn a_test_runs_before_the_build_ends_and_again_if_it_failed_for_that() {
    let workspace = interlocked();
    let dir = tempfile::tempdir().unwrap();
    let mut command = cargo_offload(&workspace.dir);
    command.env("OVERLAP_DIR", dir.path()).env("CARGO_TARGET_DIR", dir.path().join("target"));
    let run = Run::new(command, ["--build-jobs", "2", "--message-format", "json"]).exits(0);
    let attempts = std::fs::read_to_string(dir.path().join("attempts")).unwrap();
    assert_eq!(attempts, "xx", "once too early, once after the build\n{}", run.text());
    let events: Vec<serde_json::Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let position = |name: &str| events.iter().position(|event| event["event"] == name).unwrap();
    assert!(position("test_started") < position("build_finished"), "{}", run.stdout);
    // The early failure is nobody's fault: no attempt of it is reported, no retry used, nothing flaky.
    let finished = &events[position("test_finished")];
    assert_eq!(finished["attempts"].as_array().unwrap().len(), 1, "{finished}");
    assert_eq!(run.junit().case("early::needs_late uses_the_program").children, Vec::<String>::new());
}
