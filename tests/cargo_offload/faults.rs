//! Tests that misbehave: exactly they are blamed, everything else has its own result, nothing is left behind.

use crate::support::{Junit, Run, Workspace, is_running};

fn faulty() -> Workspace {
    let library = r#"
use std::io::Write;
#[test] fn fine_before() {}
#[test] fn fine_after() {}
#[test] fn aborts() { std::process::abort() }
#[test] fn segfaults() { unsafe { std::ptr::null_mut::<u32>().write_volatile(1) } }
#[test] fn exits_with_success() { std::process::exit(0) }
#[test] fn exits_with_three() { std::process::exit(3) }
#[test] fn overflows_the_stack() { fn deeper(n: u64) -> u64 { std::hint::black_box(deeper(n + 1)) + 1 } deeper(0); }
#[test] fn hangs_with_a_child() {
    let child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    std::fs::write(std::env::var("PID_FILE").unwrap(), child.id().to_string()).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1000));
}
#[test] fn leaves_a_child_with_its_pipes() {
    let child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    std::fs::write(std::env::var("PID_FILE").unwrap(), child.id().to_string()).unwrap();
}
#[test] fn writes_a_lot_and_fails() {
    let mut out = std::io::stdout().lock();
    out.write_all(b"the very beginning\n").unwrap();
    let line = [b'x'; 1 << 16];
    for _ in 0..1600 { out.write_all(&line).unwrap(); }
    out.write_all(b"\nthe very end\n").unwrap();
    panic!("after a lot");
}
#[test] fn writes_invalid_utf8_and_fails() {
    std::io::stdout().write_all(b"before \xff\xfe\x00\x1b[31m after\n").unwrap();
    panic!("with \u{1} control characters <&\"'>");
}
"#;
    Workspace::package("faulty", library)
}

/// Runs the tests whose names contain `filter`, under both isolations.
fn run(filter: &str, args: &[&str], isolation: &str) -> Run {
    let args = [&["--lib", filter, "--isolation", isolation], args].concat();
    faulty().offload(args)
}

fn blamed(junit: &Junit, test: &str, message: &str) {
    let case = junit.case(&format!("faulty {test}"));
    assert!(["failure", "error"].contains(&case.outcome.as_str()), "{case:?}");
    assert!(case.message.contains(message), "expected {message:?} in {case:?}");
}

#[test]
fn a_crash_is_named_with_its_signal() {
    for isolation in ["auto", "process", "binary"] {
        let junit = run("", &["--skip", "hangs", "--skip", "leaves", "--skip", "writes"], isolation).exits(1).junit();
        assert_eq!(junit.cases.len(), 7, "{isolation}: {junit:?}");
        blamed(&junit, "aborts", "SIGABRT");
        blamed(&junit, "segfaults", "SIGSEGV");
        blamed(&junit, "overflows_the_stack", "SIGABRT");
        blamed(&junit, "exits_with_success", "exit");
        blamed(&junit, "exits_with_three", "3");
        for fine in ["fine_before", "fine_after"] {
            assert_eq!(junit.case(&format!("faulty {fine}")).outcome, "passed", "{isolation}");
        }
    }
}

fn with_pid_file(args: &[&str]) -> (Run, i32) {
    let dir = tempfile::tempdir().unwrap();
    let pid_file = dir.path().join("pid");
    let mut command = crate::support::cargo_offload(&faulty().dir);
    command.env("PID_FILE", &pid_file);
    let run = Run::new(command, args);
    let pid = std::fs::read_to_string(&pid_file).unwrap_or_else(|error| panic!("{error}: {}", run.text()));
    (run, pid.parse().unwrap())
}

#[test]
fn a_time_out_ends_the_test_and_everything_it_started() {
    for isolation in ["auto", "process", "binary"] {
        let (run, child) = with_pid_file(&["--lib", "hangs", "--timeout", "1", "--isolation", isolation]);
        let run = run.exits(1);
        blamed(&run.junit(), "hangs_with_a_child", "1 s");
        assert!(!is_running(child), "the child of a test that timed out is still there ({isolation})");
    }
}

#[test]
fn a_child_that_holds_the_pipes_does_not_hold_the_run() {
    let (run, child) = with_pid_file(&["--lib", "leaves_a_child"]);
    // It outlives the test, as it would under `cargo test`; end it here.
    let pid = rustix::process::Pid::from_raw(child).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let run = run.exits(0);
    assert_eq!(run.junit().case("faulty leaves_a_child_with_its_pipes").outcome, "passed");
    run.says("LEAKY");
}

#[test]
fn a_hundred_megabytes_keep_their_ends() {
    let run = run("writes_a_lot", &[], "process").exits(1);
    let junit = run.junit();
    let case = junit.case("faulty writes_a_lot_and_fails");
    assert!(case.text.contains("the very beginning") && case.text.contains("the very end"));
    assert!(case.text.contains("bytes dropped"), "says what is missing");
    assert!(case.text.len() < 8 << 20, "{}", case.text.len());
    assert!(run.stdout.len() < 8 << 20, "{}", run.stdout.len());
}

#[test]
fn output_that_no_report_can_hold_is_made_readable() {
    let run = run("writes_invalid", &[], "process").exits(1);
    let junit = run.junit();
    let case = junit.case("faulty writes_invalid_utf8_and_fails");
    assert!(case.text.contains("before \u{fffd}") && case.text.contains(" after"), "{case:?}");
    assert!(case.message.contains("<&\"'>"), "{case:?}");
    let control = |c: char| c.is_control() && c != '\n' && c != '\t';
    assert!(!run.stdout.contains(control), "control characters in {:?}", run.stdout);
}

#[test]
fn a_test_that_needs_its_whole_package_finds_its_directory_and_environment() {
    let library = r#"
#[test] fn in_the_package_root() {
    let manifest = std::path::Path::new("Cargo.toml").canonicalize().unwrap();
    assert_eq!(manifest.parent().unwrap(), std::path::Path::new(env!("CARGO_MANIFEST_DIR")));
    assert_eq!(std::env::var("CARGO_PKG_NAME").unwrap(), "at_home");
    assert!(std::env::var("CARGO_MAKEFLAGS").is_err());
}
"#;
    Workspace::package("at_home", library).offload(["--lib"]).exits(0);
}

/// What is short is given back when a test ends: fewer run at once, and none is lost.
#[test]
fn where_files_are_scarce_fewer_tests_run_at_once() {
    let library: String = (0..60).map(|number| format!("#[test] fn t{number}() {{}}\n")).collect();
    let workspace = crate::support::Workspace::package("scarce_files", &library);
    workspace.offload(["--lib", "no_such_test"]).exits(0);
    for isolation in ["auto", "process", "binary"] {
        let mut command = crate::support::program("sh", &workspace.dir);
        let script = format!("ulimit -n 40; exec \"$0\" offload --lib -j 16 --isolation {isolation}");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_cargo-offload")]);
        crate::support::Run::new(command, [""; 0]).exits(0).says("60 tests: 60 passed");
    }
}
