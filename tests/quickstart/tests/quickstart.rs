//! The quick start of the library's documentation: compiled word for word, and run in a small pytest project.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::process::Command;

/// The program, its comments and the order of its `use` lines aside.
fn statements(text: &str) -> Vec<String> {
    let mut lines: Vec<_> = text
        .lines()
        .map(|line| line.trim_start_matches("//!").trim().to_owned())
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .collect();
    let end = lines.iter().position(|line| line.starts_with("#[tokio::main]")).unwrap();
    lines[..end].sort();
    lines
}

#[test]
fn the_documentation_shows_this_program() {
    let documentation = include_str!("../../../offload-core/src/lib.rs");
    let block = documentation.split("```").nth(1).unwrap().trim_start_matches("no_run");
    let shown: Vec<_> = statements(block).into_iter().filter(|line| line != "use offload_core as offload;").collect();
    assert_eq!(shown, statements(include_str!("../src/main.rs")));
}

#[test]
fn it_runs_the_tests_of_a_pytest_project() {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| std::fs::write(dir.path().join(path), text).unwrap();
    write("offload.toml", "[provider]\ntype = \"local\"\n\n[framework]\ntype = \"pytest\"\n");
    write("test_sums.py", "def test_right():\n    assert 1 + 1 == 2\n\n\ndef test_wrong():\n    assert 1 + 1 == 3\n");
    let output = Command::new(env!("CARGO_BIN_EXE_quickstart")).current_dir(dir.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed") && text.contains("1 failed") && text.contains("assert (1 + 1) == 3"), "{text}");
    assert!(dir.path().join("test-results/junit.xml").exists());
    write("test_sums.py", "def test_right():\n    assert 1 + 1 == 2\n");
    let status = Command::new(env!("CARGO_BIN_EXE_quickstart")).current_dir(dir.path()).status().unwrap();
    assert_eq!(status.code(), Some(0));
}
