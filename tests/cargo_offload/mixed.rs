//! Repositories of several languages, and files that say little: everything that a file does not say stays as it is.

use std::path::Path;

use crate::offload_run::project;
use crate::support::{Run, cargo_offload, manifest, offload, program};

const LIBRARY: &str = "#[test] fn passes() {}\n";
const FLAKY: &str = "#[test] fn flaky() { let flag = std::path::Path::new(env!(\"CARGO_MANIFEST_DIR\")).join(\"flag\"); \
                     if !flag.exists() { std::fs::write(flag, \"\").unwrap(); panic!(\"first\") } }\n";

/// `cargo offload` with reports where it puts them itself.
fn run_at_home(dir: &Path, args: &[&str]) -> Run {
    let mut command = cargo_offload(dir);
    let output = command.args(args).output().unwrap();
    Run::from_output(output, tempfile::tempdir().unwrap())
}

fn package(files: &[(&str, &str)]) -> tempfile::TempDir {
    let manifest = manifest("mixed");
    project(&[&[("Cargo.toml", &*manifest), ("src/lib.rs", LIBRARY)], files].concat())
}

#[test]
fn a_file_for_another_framework_is_not_used_and_its_mistakes_do_not_matter() {
    for file in [
        ("offload.toml", "[provider]\ntype = \"local\"\n[framework]\ntype = \"pytest\"\n"),
        ("offload.toml", "[provider]\ntype = \"docker\"\nno_such_key = 1\n[framework]\ntype = \"pytest\"\n"),
        ("pyproject.toml", "[tool.offload]\nmax_parallel = 2\n"),
    ] {
        let dir = package(&[file]);
        let run = run_at_home(dir.path(), &[]).exits(0).says("1 passed");
        if file.0 == "offload.toml" {
            run.says("is for the framework `pytest`, and not used");
        }
        assert!(dir.path().join("target/offload/junit.xml").exists());
        assert!(dir.path().join("target/offload/history.jsonl").exists());
    }
    let dir = package(&[("python.toml", "[provider]\ntype = \"local\"\n[framework]\ntype = \"pytest\"\n")]);
    run_at_home(dir.path(), &["--config", "python.toml"]).exits(3).says("is for another framework than Cargo");
}

#[test]
fn a_file_changes_nothing_that_it_does_not_say() {
    let minimal = "[provider]\ntype = \"local\"\n[framework]\ntype = \"cargo\"\n";
    let cpus = std::thread::available_parallelism().unwrap();
    for file in [
        ("offload.toml", minimal.to_owned()),
        ("Cargo.toml", manifest("mixed") + "[package.metadata.offload]\nretry_count = 1\n"),
    ] {
        let dir = package(&[(file.0, &file.1)]);
        run_at_home(dir.path(), &[]).exits(0).says("1 passed");
        assert!(dir.path().join("target/offload/junit.xml").exists());
        assert!(dir.path().join("target/offload/history.jsonl").exists());
        assert!(!dir.path().join("test-results").exists());
        let shown = Run::new(cargo_offload(dir.path()), ["validate"]).exits(0);
        assert!(shown.text().contains(&format!("max_parallel = {cpus} ")), "{}", shown.text());
    }
    let dir = package(&[("offload.toml", &format!("{minimal}[report]\noutput_dir = \"here\"\n"))]);
    run_at_home(dir.path(), &[]).exits(0);
    assert!(dir.path().join("here/junit.xml").exists());
    assert!(!dir.path().join("target/offload/junit.xml").exists());
}

#[test]
fn what_flaky_tests_amount_to_is_a_policy() {
    let flaky = |config: &str, args: &[&str], code: i32| {
        let file = format!(
            "[provider]\ntype = \"local\"\n[framework]\ntype = \"cargo\"\n[offload]\nretry_count = 1\n{config}"
        );
        let dir = package(&[("offload.toml", &file), ("src/lib.rs", FLAKY)]);
        // What fails while Cargo still builds is forgotten.
        assert!(program("cargo", dir.path()).args(["test", "--no-run", "--quiet"]).status().unwrap().success());
        let run = Run::new(cargo_offload(dir.path()), args).exits(code);
        run.says("FLAKY").says("mixed flaky");
        std::fs::remove_file(dir.path().join("flag")).unwrap();
        Run::new(offload(dir.path()), [&["run"], args].concat()).exits(code).says("FLAKY");
    };
    flaky("", &[], 2);
    flaky("", &["--flaky", "pass"], 0);
    flaky("", &["--flaky", "fail"], 1);
    flaky("flaky = \"pass\"\n", &[], 0);
    flaky("flaky = \"fail\"\n", &[], 1);
    flaky("flaky = \"fail\"\n", &["--flaky=exit-2"], 2);
}
