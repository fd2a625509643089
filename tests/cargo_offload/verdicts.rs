//! What a test process said, and how it ended, against what is reported: each combination once.

use std::collections::BTreeMap;

use crate::support::{Run, Workspace, cargo_offload};

/// Tests that end in every way, with what the harness says cut off in every way.
const TESTS: &str = r#"
use std::io::Write;
use std::os::fd::AsRawFd;
extern "C" { fn close(fd: i32) -> i32; fn dup2(from: i32, to: i32) -> i32; fn _exit(code: i32) -> !; fn abort() -> !; }
#[cfg(before_main)] #[link_section = ".init_array"] #[used] static BEFORE: extern "C" fn() = {
    extern "C" fn before() { println!("printed before main"); } before
};
fn redirect() { let null = std::fs::File::create("/dev/null").unwrap(); unsafe { dup2(null.as_raw_fd(), 1); } }
fn shut() { unsafe { close(1); } }
fn fill() { let mut out = std::io::stdout().lock(); for _ in 0..20_000 { out.write_all(&[b'x'; 100]).unwrap(); } }
fn garble() { std::io::stdout().write_all(b"\xff\xfe test result: ok. 1 passed").unwrap(); }
fn pretend() { println!("\nrunning 1 test\ntest x ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out"); }
fn pretend_end() { println!("\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out"); }
macro_rules! cases { ($($stream:ident)*) => { $(mod $stream {
    fn prepare() { super::$stream() }
    #[test] fn pass() { prepare() }
    #[test] fn fail() { prepare(); panic!("on purpose") }
    #[test] fn return_error() -> Result<(), String> { prepare(); Err("an error".to_owned()) }
    #[test] #[should_panic] fn panic_missing() { prepare() }
    #[test] fn exit_0() { prepare(); std::process::exit(0) }
    #[test] fn exit_0_at_once() { prepare(); unsafe { super::_exit(0) } }
    #[test] fn exit_1() { prepare(); std::process::exit(1) }
    #[test] fn exit_101() { prepare(); std::process::exit(101) }
    #[test] fn signal() { prepare(); unsafe { super::abort() } }
    #[test] #[ignore = "why"] fn ignored() { prepare() }
})* } }
fn nothing() {}
cases! { nothing redirect shut fill garble pretend pretend_end }
"#;

const STREAMS: [&str; 7] = ["nothing", "redirect", "shut", "fill", "garble", "pretend", "pretend_end"];

fn check(name: &str, library: &str, isolation: &str) {
    let args = ["--message-format", "json", "--isolation", isolation];
    let run = Workspace::package(name, library).offload(args).exits(1);
    let events = run.stdout.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let outcomes: BTreeMap<String, String> = events
        .filter(|event| event["event"] == "test_finished")
        .map(|event| {
            let name = event["test"]["name"].as_str().or(event["name"].as_str()).unwrap().to_owned();
            let outcome = event["outcome"].as_str().unwrap();
            // What looks like the harness's summary may make a failure of an exit.
            let pretended = name.starts_with("pretend") && name.contains("::exit_1") && outcome == "failed";
            (name, if pretended { "crashed" } else { outcome }.to_owned())
        })
        .collect();
    let mut expected = BTreeMap::new();
    for stream in STREAMS {
        for (test, outcome) in [
            ("pass", "passed"),
            ("fail", "failed"),
            ("return_error", "failed"),
            ("panic_missing", "failed"),
            ("exit_0", "crashed"),
            ("exit_0_at_once", "crashed"),
            ("exit_1", "crashed"),
            ("exit_101", "crashed"),
            ("signal", "crashed"),
            ("ignored", "skipped"),
        ] {
            expected.insert(format!("{stream}::{test}"), outcome.to_owned());
        }
    }
    for (name, outcome) in &expected {
        let events =
            run.stdout.lines().filter(|line| line.contains("test_finished") && line.contains(&format!("\"{name}\"")));
        assert_eq!(outcomes.get(name), Some(outcome), "{name}, {isolation}: {}", events.collect::<String>());
    }
    assert_eq!(outcomes.len(), expected.len(), "{isolation}");
}

#[test]
fn the_harness_has_the_last_word_whatever_a_test_does_to_its_output() {
    for isolation in ["auto", "process", "binary"] {
        check("verdicts", TESTS, isolation);
    }
}

#[test]
fn what_is_printed_before_the_harness_changes_no_verdict() {
    let library = TESTS.replace("#[cfg(before_main)]", "");
    for isolation in ["auto", "process", "binary"] {
        check("verdicts_after_a_constructor", &library, isolation);
    }
}

/// What happens after the last test is an error of that test: there is no other whose fault it could be.
#[test]
fn the_end_of_a_process_counts() {
    let library = r#"
extern "C" { fn atexit(function: extern "C" fn()) -> i32; }
extern "C" fn at_end() {
    match std::env::var("AT_END").as_deref() {
        Ok("abort") => std::process::abort(),
        Ok("sleep") => std::thread::sleep(std::time::Duration::from_secs(1000)),
        _ => {}
    }
}
#[test] fn a() { unsafe { atexit(at_end); } }
#[test] fn b() {}
"#;
    let workspace = Workspace::package("ends", library);
    for isolation in ["auto", "process", "binary"] {
        for (at_end, code, label) in [("nothing", 0, "2 passed"), ("abort", 1, "CRASH"), ("sleep", 1, "TIMEOUT")] {
            let mut command = cargo_offload(&workspace.dir);
            command.env("AT_END", at_end);
            Run::new(command, ["--isolation", isolation, "--timeout", "2", "-j", "1"]).exits(code).says(label);
        }
    }
}
