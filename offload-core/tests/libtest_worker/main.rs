//! The libtest worker against real test binaries: what it says of tests that pass, fail, crash, hang, leak and flood.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use offload_core::framework::{Isolation, TestOutcome, TestResult};
use offload_core::worker::framing::{Decoder, encode};
use offload_core::worker::libtest::{LibtestOptions, LibtestWorker, ServeOptions, serve};
use offload_core::worker::{Harness, Message, PROTOCOL_VERSION, Request, RunItem, StartGate, StartPermit, Unit};

const FIXTURE: &str = r#"
use std::io::Write;
use std::process::{Command, Stdio};

#[test] fn passes() { println!("hello out"); eprintln!("hello err"); }
#[test] fn passes_too() {}
#[test] fn panics() { println!("before"); assert_eq!(1, 2); }
#[test] fn returns_an_error() -> Result<(), String> { Err("bad luck".into()) }
#[test] #[should_panic] fn should_panic_and_does() { panic!("as expected"); }
#[test] #[should_panic] fn should_panic_but_does_not() { println!("calm"); }
#[test] #[should_panic(expected = "this")] fn should_panic_otherwise() { panic!("that"); }
#[test] #[ignore = "takes long"] fn ignored() { println!("ran anyway"); }
#[test] fn aborts() { println!("last words"); std::process::abort(); }
#[test] fn segfaults() { unsafe { std::ptr::null_mut::<u8>().write_volatile(1) } }
#[test] fn exits_zero() { println!("leaving"); std::process::exit(0); }
#[test] fn exits_three() { std::process::exit(3); }
#[test] fn overflows() { fn deep(n: u64) -> u64 { let a = [n; 100]; if n == u64::MAX { 0 } else { deep(std::hint::black_box(n + 1)) + a[n as usize % 100] } } println!("{}", deep(0)); }
#[test] fn floods() {
    let chunk = [b'x'; 1 << 16];
    let mut out = std::io::stdout().lock();
    out.write_all(b"the beginning\n").unwrap();
    for _ in 0..(100 << 20) / chunk.len() { out.write_all(&chunk).unwrap(); }
    out.write_all(b"\nthe end\n").unwrap();
}
#[test] fn writes_bytes() { std::io::stdout().write_all(b"a\xffb\n").unwrap(); }
#[test] fn hangs() { loop { std::thread::park(); } }
#[test] fn hangs_with_a_child() {
    let child = Command::new("sh").args(["-c", "trap '' TERM; sleep 1000 & echo $! > \"$PID_FILE.new\"; mv \"$PID_FILE.new\" \"$PID_FILE\"; wait; sleep 1000"]).spawn().unwrap();
    println!("child {}", child.id());
    std::mem::forget(child);
    loop { std::thread::park(); }
}
#[test] fn leaks() {
    let child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    std::fs::write(std::env::var("PID_FILE").unwrap(), child.id().to_string()).unwrap();
}
#[test] fn sees_its_environment() {
    assert_eq!(std::env::var("FROM_WORKER").unwrap(), "worker");
    assert_eq!(std::env::var("FROM_BOTH").unwrap(), "unit");
    assert_eq!(std::env::current_dir().unwrap(), std::path::Path::new(&std::env::var("EXPECTED_CWD").unwrap()));
    assert_eq!(std::thread::current().name(), Some("sees_its_environment"));
}
#[test] fn talks_past_the_harness() {
    let status = Command::new("sh").args(["-c", "printf 'no newline'; echo on stderr >&2"]).status().unwrap();
    assert!(status.success());
}
"#;

const OPAQUE: &str = r#"
fn main() {
    println!("args: {:?}", std::env::args().skip(1).collect::<Vec<_>>());
    match std::env::args().nth(1).as_deref() {
        Some("fail") => std::process::exit(7),
        Some("panic") => panic!("on the main thread"),
        _ => {}
    }
}
"#;

struct Fixtures {
    dir: tempfile::TempDir,
}

impl Fixtures {
    fn get() -> &'static Self {
        static FIXTURES: OnceLock<Fixtures> = OnceLock::new();
        FIXTURES.get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            compile(dir.path(), "fixture", FIXTURE, &["--test"]);
            compile(dir.path(), "opaque", OPAQUE, &[]);
            Fixtures { dir }
        })
    }

    fn unit(&self) -> Unit {
        Unit {
            harness: Harness::Libtest,
            program: self.dir.path().join("fixture"),
            args: Vec::new(),
            extra_args: Vec::new(),
            cwd: self.dir.path().canonicalize().unwrap(),
            env: BTreeMap::from([("RUST_BACKTRACE".to_owned(), "0".to_owned())]),
        }
    }
}

fn compile(dir: &Path, name: &str, source: &str, args: &[&str]) {
    let file = dir.join(format!("{name}.rs"));
    std::fs::write(&file, source).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(rustc)
        .args(["--edition", "2021", "-C", "debuginfo=0", "-A", "warnings"])
        .args(args)
        .arg(&file)
        .arg("-o")
        .arg(dir.join(name))
        .status()
        .unwrap();
    assert!(status.success());
}

/// A worker and what it says.
struct Session {
    worker: LibtestWorker,
    messages: Receiver<Message>,
}

impl Session {
    fn new(options: LibtestOptions, unit: Unit) -> Self {
        let (sender, messages) = channel();
        let worker = LibtestWorker::spawn(options, move |message| drop(sender.send(message))).unwrap();
        worker.send(Request::Define { key: 1, unit: Arc::new(unit) });
        Self { worker, messages }
    }

    fn binary(unit: Unit) -> Self {
        Self::new(LibtestOptions { isolation: Isolation::Binary, ..LibtestOptions::default() }, unit)
    }

    fn next(&self) -> Message {
        self.messages.recv_timeout(Duration::from_secs(120)).expect("the worker says something within two minutes")
    }

    /// Runs tests and returns their results by name; checks what is said about each, and in which order.
    fn run(&self, items: &[RunItem]) -> HashMap<String, TestResult> {
        self.worker.send(Request::Run { tests: items.to_vec() });
        let names: HashMap<u32, &str> = items.iter().map(|item| (item.key, item.name.as_str())).collect();
        let (mut started, mut results) = (Vec::new(), HashMap::new());
        while results.len() < items.len() {
            match self.next() {
                Message::Started { key } => {
                    assert!(!started.contains(&key), "{} started twice", names[&key]);
                    started.push(key);
                }
                Message::Finished { key, result } => {
                    assert!(started.contains(&key), "{} finished before it started", names[&key]);
                    let before = results.insert(names[&key].to_owned(), *result);
                    assert!(before.is_none(), "{} finished twice", names[&key]);
                }
                Message::Output { .. } | Message::Log { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        results
    }

    fn wait_for_start(&self, expected: u32) {
        assert_eq!(self.next(), Message::Started { key: expected });
    }
}

fn item(key: u32, name: &str) -> RunItem {
    RunItem { key, unit: 1, name: name.to_owned(), attempt: 1, timeout_ms: Some(60_000) }
}

fn items(names: &[&str]) -> Vec<RunItem> {
    (0..).zip(names).map(|(key, name)| item(key, name)).collect()
}

/// Runs one test in a process of its own.
fn run_one(name: &str) -> TestResult {
    let session = Session::new(LibtestOptions::default(), Fixtures::get().unit());
    session.run(&items(&[name])).remove(name).unwrap()
}

/// Whether a process is gone, or dead and only not buried yet.
fn is_dead(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    status.map_or(true, |stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < until, "{what}");
        std::thread::yield_now();
    }
}

fn pid_in(file: &Path) -> String {
    wait_until("the test writes its child's process id", || file.exists());
    std::fs::read_to_string(file).unwrap().trim().to_owned()
}

#[test]
fn a_passing_test_keeps_its_own_output_only() {
    let result = run_one("passes");
    assert_eq!((result.outcome, result.message.as_deref()), (TestOutcome::Passed, None));
    assert_eq!((result.stdout.text.as_str(), result.stderr.text.as_str()), ("hello out\n", "hello err\n"));
    assert!(!result.leaky && result.duration > Duration::ZERO);
}

#[test]
fn failures_say_why() {
    let cases = [
        ("panics", ": assertion `left == right` failed (left: 1, right: 2)"),
        ("returns_an_error", "Error: \"bad luck\""),
        ("should_panic_but_does_not", "test did not panic as expected at "),
        (
            "should_panic_otherwise",
            "panic did not contain expected string: panic message: \"that\", expected substring: \"this\"",
        ),
    ];
    let names = cases.map(|(name, _)| name);
    for isolation in [Isolation::Process, Isolation::Binary] {
        let options = LibtestOptions { isolation, ..LibtestOptions::default() };
        let results = Session::new(options, Fixtures::get().unit()).run(&items(&names));
        for (name, expected) in cases {
            let result = &results[name];
            assert_eq!(result.outcome, TestOutcome::Failed, "{name}");
            let message = result.message.as_deref().unwrap();
            assert!(message.contains(expected), "{name}: {message}");
            assert!(!result.stdout.text.contains("test result"), "{name}: {}", result.stdout.text);
        }
        assert!(results["panics"].message.as_deref().unwrap().starts_with("panicked at "), "{results:?}");
        assert!(results["panics"].stdout.text.starts_with("before\n"), "{results:?}");
        assert_eq!(results["should_panic_but_does_not"].stdout.text, "calm\n");
    }
}

#[test]
fn crashes_are_named() {
    let cases = [
        ("aborts", "killed by signal 6 (SIGABRT)"),
        ("segfaults", "killed by signal 11 (SIGSEGV)"),
        ("exits_zero", "the process exited with code 0 in the middle of the test (std::process::exit?)"),
        ("exits_three", "the process exited with code 3 in the middle of the test (std::process::exit?)"),
        ("overflows", "stack overflow, killed by signal 6 (SIGABRT)"),
    ];
    let mut names = vec!["passes"];
    names.extend(cases.map(|(name, _)| name));
    names.push("passes_too");
    for isolation in [Isolation::Process, Isolation::Binary] {
        let options = LibtestOptions { isolation, ..LibtestOptions::default() };
        let results = Session::new(options, Fixtures::get().unit()).run(&items(&names));
        for (name, expected) in cases {
            let result = &results[name];
            assert_eq!((result.outcome, result.message.as_deref()), (TestOutcome::Crashed, Some(expected)), "{name}");
        }
        for name in ["passes", "passes_too"] {
            assert_eq!(results[name].outcome, TestOutcome::Passed, "{isolation:?}: {:?}", results[name]);
        }
        if isolation == Isolation::Process {
            assert_eq!(results["aborts"].stdout.text, "last words\n");
        }
    }
}

#[test]
fn ignored_tests_run_when_told_to() {
    for isolation in [Isolation::Process, Isolation::Binary] {
        let options = LibtestOptions { isolation, ..LibtestOptions::default() };
        let unit = Fixtures::get().unit();
        let results = Session::new(options.clone(), unit.clone()).run(&items(&["ignored", "should_panic_and_does"]));
        let result = &results["ignored"];
        assert_eq!((result.outcome, result.message.as_deref()), (TestOutcome::Skipped, Some("takes long")));
        assert_eq!(results["should_panic_and_does"].outcome, TestOutcome::Passed);

        let told = Unit { extra_args: vec!["--include-ignored".to_owned()], ..unit };
        let results = Session::new(options, told).run(&items(&["ignored", "passes"]));
        assert_eq!(results["ignored"].outcome, TestOutcome::Passed);
    }
}

#[test]
fn a_test_that_is_not_there_is_an_error() {
    for isolation in [Isolation::Process, Isolation::Binary] {
        let options = LibtestOptions { isolation, ..LibtestOptions::default() };
        let results = Session::new(options, Fixtures::get().unit()).run(&items(&["passes", "was_renamed"]));
        let result = &results["was_renamed"];
        assert_eq!(result.outcome, TestOutcome::Error);
        assert_eq!(result.message.as_deref(), Some("the binary no longer has this test; build it again"));
        assert_eq!(results["passes"].outcome, TestOutcome::Passed);
    }
}

#[test]
fn a_program_that_cannot_be_started_is_an_error() {
    for isolation in [Isolation::Process, Isolation::Binary] {
        let options = LibtestOptions { isolation, ..LibtestOptions::default() };
        let unit = Unit { program: "/no/such/program".into(), ..Fixtures::get().unit() };
        let results = Session::new(options, unit).run(&items(&["a", "b"]));
        for result in results.values() {
            assert_eq!(result.outcome, TestOutcome::Error);
            assert!(result.message.as_deref().unwrap().contains("cannot start /no/such/program"), "{result:?}");
        }
    }
}

#[test]
fn flags_of_the_users_do_not_collide_with_ours() {
    let extra_args = ["--nocapture", "--exact", "--test-threads", "2"].map(str::to_owned).to_vec();
    for isolation in [Isolation::Process, Isolation::Binary] {
        let options = LibtestOptions { isolation, ..LibtestOptions::default() };
        let unit = Unit { extra_args: extra_args.clone(), ..Fixtures::get().unit() };
        let results = Session::new(options, unit).run(&items(&["passes", "passes_too"]));
        assert!(results.values().all(|result| result.outcome == TestOutcome::Passed), "{results:?}");
    }
}

#[test]
fn tests_get_environment_and_directory() {
    let mut unit = Fixtures::get().unit();
    let cwd = unit.cwd.to_str().unwrap().to_owned();
    unit.env.extend([("FROM_BOTH".to_owned(), "unit".to_owned()), ("EXPECTED_CWD".to_owned(), cwd)]);
    let env = [("FROM_WORKER", "worker"), ("FROM_BOTH", "worker")];
    let env: BTreeMap<_, _> = env.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    for isolation in [Isolation::Process, Isolation::Binary] {
        let options = LibtestOptions { isolation, env: env.clone(), ..LibtestOptions::default() };
        let results = Session::new(options, unit.clone()).run(&items(&["sees_its_environment", "passes"]));
        let result = &results["sees_its_environment"];
        assert_eq!(result.outcome, TestOutcome::Passed, "{result:?}");
    }
}

#[test]
fn a_time_out_leaves_nothing_behind() {
    for isolation in [Isolation::Process, Isolation::Binary] {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let mut unit = Fixtures::get().unit();
        unit.env.insert("PID_FILE".into(), pid_file.to_str().unwrap().into());
        let options = LibtestOptions { isolation, kill_grace: Duration::from_millis(50), ..LibtestOptions::default() };
        let session = Session::new(options, unit);
        let hanging = RunItem { timeout_ms: Some(1500), ..item(1, "hangs_with_a_child") };
        let results = session.run(&[hanging, item(2, "passes")]);
        let result = &results["hangs_with_a_child"];
        assert_eq!(result.outcome, TestOutcome::TimedOut, "{result:?}");
        assert_eq!(result.message.as_deref(), Some("ran longer than its limit of 1.5 s"));
        assert!(!result.leaky, "{result:?}");
        if isolation == Isolation::Process {
            assert!(result.stdout.text.starts_with("child "), "{result:?}");
        }
        assert_eq!(results["passes"].outcome, TestOutcome::Passed);
        let grandchild = pid_in(&pid_file);
        wait_until("the grandchild dies", || is_dead(&grandchild));
    }
}

#[test]
fn a_leaked_child_that_holds_the_output_holds_up_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let pid_file = dir.path().join("pid");
    let mut unit = Fixtures::get().unit();
    unit.env.insert("PID_FILE".into(), pid_file.to_str().unwrap().into());
    let results = Session::new(LibtestOptions::default(), unit).run(&items(&["leaks", "passes"]));
    assert_eq!(results["leaks"].outcome, TestOutcome::Passed);
    assert!(results["leaks"].leaky);
    assert!(!results["passes"].leaky);
    let leaked = pid_in(&pid_file);
    assert!(!is_dead(&leaked), "what a test leaves behind is not killed, as under cargo test");
    assert!(Command::new("kill").args(["-9", &leaked]).status().unwrap().success());
}

#[test]
fn a_flood_of_output_keeps_its_ends() {
    let result = run_one("floods");
    assert_eq!(result.outcome, TestOutcome::Passed);
    let text = &result.stdout.text;
    assert!(text.starts_with("the beginning\nxxx"), "{}", &text[..40]);
    assert!(text.ends_with("xxx\nthe end\n"), "{}", &text[text.len() - 40..]);
    assert!(text.len() < 2 << 20, "{}", text.len());
    assert!(result.stdout.dropped_bytes > 90 << 20);
    assert!(text.contains(&format!("\n[... {} bytes dropped ...]\n", result.stdout.dropped_bytes)));
}

#[test]
fn output_that_is_not_utf8_is_replaced() {
    assert_eq!(run_one("writes_bytes").stdout.text, "a\u{FFFD}b\n");
}

#[test]
fn output_past_the_harness_belongs_to_the_test_that_runs() {
    let results = Session::binary(Fixtures::get().unit()).run(&items(&["passes", "talks_past_the_harness"]));
    let result = &results["talks_past_the_harness"];
    assert_eq!(result.outcome, TestOutcome::Passed);
    assert_eq!(result.stdout.text, "no newline");
    assert_eq!(results["passes"].stdout.text, "");
}

#[test]
fn uncaptured_output_comes_as_messages_without_the_harness() {
    let options = LibtestOptions { no_capture: true, ..LibtestOptions::default() };
    let session = Session::new(options, Fixtures::get().unit());
    session.worker.send(Request::Run { tests: items(&["passes"]) });
    let mut seen = Vec::new();
    let result = loop {
        match session.next() {
            Message::Output { key: 0, text } => seen.push(text),
            Message::Finished { result, .. } => break result,
            other => assert_eq!(other, Message::Started { key: 0 }),
        }
    };
    seen.sort();
    assert_eq!(seen, ["hello err\n", "hello out\n"]);
    assert!(result.stdout.is_empty() && result.stderr.is_empty());
}

#[test]
fn queued_tests_are_taken_back_while_another_runs() {
    let session = Session::new(LibtestOptions::default(), Fixtures::get().unit());
    session.worker.send(Request::Run { tests: items(&["hangs", "passes", "panics", "aborts"]) });
    session.wait_for_start(0);
    session.worker.send(Request::TakeBack { tests: vec![3, 1, 0, 99] });
    assert_eq!(session.next(), Message::TakenBack { tests: vec![1, 3] });
    session.worker.send(Request::Cancel { tests: vec![2] });
    assert_eq!(session.next(), Message::TakenBack { tests: vec![2] });
    session.worker.send(Request::Cancel { tests: Vec::new() });
    assert_eq!(session.next(), Message::TakenBack { tests: vec![0] });
    assert_eq!(session.run(&[item(7, "passes")])["passes"].outcome, TestOutcome::Passed);
    session.worker.send(Request::Shutdown);
    assert_eq!(session.next(), Message::Bye { reason: None });
}

#[test]
fn cancelling_the_running_test_of_a_batch_spares_the_others() {
    let session = Session::binary(Fixtures::get().unit());
    let hanging = RunItem { timeout_ms: None, ..item(0, "hangs") };
    session.worker.send(Request::Run { tests: vec![hanging, item(1, "passes"), item(2, "passes_too")] });
    session.wait_for_start(0);
    session.worker.send(Request::Cancel { tests: vec![0, 2] });
    let mut messages = Vec::new();
    while messages.len() < 4 {
        messages.push(session.next());
    }
    assert!(
        matches!(messages.pop(), Some(Message::Finished { key: 1, result }) if result.outcome == TestOutcome::Passed)
    );
    assert_eq!(
        messages,
        [Message::TakenBack { tests: vec![0] }, Message::TakenBack { tests: vec![2] }, Message::Started { key: 1 }]
    );
}

#[test]
fn dropping_or_killing_a_worker_ends_what_runs() {
    for kill in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let mut unit = Fixtures::get().unit();
        unit.env.insert("PID_FILE".into(), pid_file.to_str().unwrap().into());
        let options = LibtestOptions { kill_grace: Duration::from_millis(50), ..LibtestOptions::default() };
        let session = Session::new(options, unit);
        session.worker.send(Request::Run { tests: items(&["hangs_with_a_child", "passes"]) });
        session.wait_for_start(0);
        let grandchild = pid_in(&pid_file);
        if kill {
            session.worker.kill();
        }
        drop(session.worker);
        assert_eq!(
            session.messages.iter().collect::<Vec<_>>(),
            [Message::TakenBack { tests: vec![0] }, Message::Bye { reason: None }]
        );
        wait_until("the grandchild dies", || is_dead(&grandchild));
    }
}

#[test]
fn an_opaque_program_is_judged_by_its_exit() {
    let run = |extra: &[&str]| {
        let unit = Unit {
            harness: Harness::Opaque,
            program: Fixtures::get().dir.path().join("opaque"),
            extra_args: extra.iter().map(|&arg| arg.to_owned()).collect(),
            ..Fixtures::get().unit()
        };
        Session::new(LibtestOptions::default(), unit).run(&items(&["opaque"])).remove("opaque").unwrap()
    };
    let passed = run(&[]);
    assert_eq!((passed.outcome, passed.stdout.text.as_str()), (TestOutcome::Passed, "args: []\n"));
    let failed = run(&["fail"]);
    assert_eq!((failed.outcome, failed.message.as_deref()), (TestOutcome::Failed, Some("exit code 7")));
    let panicked = run(&["panic"]);
    assert_eq!(panicked.outcome, TestOutcome::Failed);
    assert!(panicked.message.as_deref().unwrap().ends_with(": on the main thread"), "{panicked:?}");
}

/// A stand-in for `cargo test --doc`: the real one needs a package; what is read of it is its output.
fn doctest_unit(script: &str) -> Unit {
    let args = vec!["-c".to_owned(), script.to_owned(), "cargo".to_owned()];
    Unit { harness: Harness::Doctest, program: "/bin/sh".into(), args, ..Fixtures::get().unit() }
}

#[test]
fn doctests_of_a_package_are_one_run() {
    let script = r#"
        echo x >> "$RUNS"
        printf '\nrunning 3 tests\ntest a.rs - x (line 1) ... ok\ntest a.rs - y (line 2) - compile fail ... FAILED\n'
        printf 'test a.rs - z (line 3) ... ignored\n\nfailures:\n\n---- a.rs - y (line 2) stdout ----\nTest compiled successfully\n\n'
        printf '\nfailures:\n    a.rs - y (line 2)\n\ntest result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured\n'
        exit 101
    "#;
    let dir = tempfile::tempdir().unwrap();
    let runs = dir.path().join("runs");
    let mut unit = doctest_unit(script);
    unit.env.insert("RUNS".into(), runs.to_str().unwrap().into());
    let session = Session::new(LibtestOptions::default(), unit);
    let names = ["a.rs - x (line 1)", "a.rs - y (line 2)", "a.rs - z (line 3)", "a.rs - gone (line 4)"];
    let results = session.run(&items(&names));
    assert_eq!(
        names.map(|name| results[name].outcome),
        [TestOutcome::Passed, TestOutcome::Failed, TestOutcome::Skipped, TestOutcome::Error]
    );
    assert_eq!(results[names[1]].message.as_deref(), Some("Test compiled successfully"));
    assert_eq!(std::fs::read_to_string(&runs).unwrap(), "x\n", "one run for all");

    let again = session.run(&[RunItem { attempt: 2, ..item(8, names[1]) }]);
    assert_eq!(again[names[1]].outcome, TestOutcome::Failed);
}

#[test]
fn doctests_of_a_package_that_does_not_compile_say_so() {
    let unit = doctest_unit("echo 'error[E0425]: cannot find value' >&2; exit 101");
    let results = Session::new(LibtestOptions::default(), unit).run(&items(&["a", "b"]));
    for result in results.values() {
        assert_eq!(result.outcome, TestOutcome::Error);
        let message = result.message.as_deref().unwrap();
        assert!(message.ends_with("error[E0425]: cannot find value"), "{message}");
        assert!(result.stderr.text.contains("E0425"));
    }
}

#[test]
fn a_harness_without_json_runs_a_process_per_test() {
    // Understands one filter and the stable format only, as most harnesses that imitate the standard one.
    let script = r#"
        case "$*" in *json*) echo 'error: unexpected argument' >&2; exit 2;; esac
        printf 'running 1 test\ntest %s ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored\n' "$1"
    "#;
    let unit = Unit { harness: Harness::Libtest, ..doctest_unit(script) };
    let results = Session::binary(unit).run(&items(&["a", "b", "c"]));
    assert!(results.values().all(|result| result.outcome == TestOutcome::Passed), "{results:?}");
}

/// Lets nobody pass until it is told that nobody has to.
struct Closed;

impl StartGate for Closed {
    fn pass(&self, slot: usize, give_up: &dyn Fn() -> bool) -> StartPermit {
        assert_eq!(slot, 5);
        while !give_up() {
            std::thread::yield_now();
        }
        StartPermit::default()
    }
}

#[test]
fn a_test_that_waits_at_the_gate_can_be_taken_back() {
    let options = LibtestOptions { gate: Some(Arc::new(Closed)), slot: 5, ..LibtestOptions::default() };
    let session = Session::new(options, Fixtures::get().unit());
    session.worker.send(Request::Run { tests: items(&["passes"]) });
    session.worker.send(Request::TakeBack { tests: vec![0] });
    assert_eq!(session.next(), Message::TakenBack { tests: vec![0] });
    session.worker.send(Request::Shutdown);
    assert_eq!(session.next(), Message::Bye { reason: None });
}

/// A worker at the other end of a socket pair.
struct Remote {
    stream: UnixStream,
    decoder: Decoder,
    reader: BufReader<UnixStream>,
    thread: std::thread::JoinHandle<std::io::Result<()>>,
}

impl Remote {
    fn start(silence_ms: u64) -> Self {
        let (here, there) = UnixStream::pair().unwrap();
        here.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let input = there.try_clone().unwrap();
        let libtest = LibtestOptions { kill_grace: Duration::from_millis(50), ..LibtestOptions::default() };
        let thread = std::thread::spawn(move || serve(input, there, ServeOptions { libtest }));
        let reader = BufReader::new(here.try_clone().unwrap());
        let mut remote = Self { stream: here, decoder: Decoder::after_ready("n"), reader, thread };
        remote.send(&Request::Init {
            version: PROTOCOL_VERSION,
            nonce: "n".into(),
            isolation: Isolation::Process,
            no_capture: false,
            yield_on_failure: false,
            silence_ms,
        });
        assert_eq!(remote.next(), Some(Message::Ready { nonce: "n".into() }));
        remote
    }

    fn send(&mut self, request: &Request) {
        let mut line = Vec::new();
        encode(request, &mut line);
        self.stream.write_all(&line).unwrap();
    }

    fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.decoder.next_message().unwrap() {
                return Some(message);
            }
            let bytes = self.reader.fill_buf().unwrap();
            if bytes.is_empty() {
                return None;
            }
            self.decoder.push(bytes);
            let length = bytes.len();
            self.reader.consume(length);
        }
    }

    fn run(&mut self, unit: Unit, names: &[&str]) {
        self.send(&Request::Define { key: 1, unit: Arc::new(unit) });
        self.send(&Request::Run { tests: items(names) });
    }
}

#[test]
fn a_session_over_a_stream_runs_to_its_end() {
    let mut remote = Remote::start(0);
    remote.run(Fixtures::get().unit(), &["passes", "aborts"]);
    remote.send(&Request::Shutdown);
    let mut messages = Vec::new();
    while !matches!(messages.last(), Some(Message::Bye { .. })) {
        messages.push(remote.next().expect("the worker says bye before it hangs up"));
    }
    let outcomes: Vec<_> = messages
        .iter()
        .filter_map(|message| if let Message::Finished { result, .. } = message { Some(result.outcome) } else { None })
        .collect();
    assert_eq!(outcomes, [TestOutcome::Passed, TestOutcome::Crashed]);
    assert_eq!(messages.last(), Some(&Message::Bye { reason: None }));
    remote.thread.join().unwrap().unwrap();
}

fn hanging_unit(dir: &Path) -> (Unit, PathBuf) {
    let pid_file = dir.join("pid");
    let mut unit = Fixtures::get().unit();
    unit.env.insert("PID_FILE".into(), pid_file.to_str().unwrap().into());
    (unit, pid_file)
}

#[test]
fn the_end_of_the_input_ends_the_running_test() {
    let dir = tempfile::tempdir().unwrap();
    let (unit, pid_file) = hanging_unit(dir.path());
    let mut remote = Remote::start(0);
    remote.run(unit, &["hangs_with_a_child"]);
    let grandchild = pid_in(&pid_file);
    remote.stream.shutdown(std::net::Shutdown::Write).unwrap();
    remote.thread.join().unwrap().unwrap();
    wait_until("the grandchild dies", || is_dead(&grandchild));
}

#[test]
fn silence_ends_the_running_test() {
    let dir = tempfile::tempdir().unwrap();
    let (unit, pid_file) = hanging_unit(dir.path());
    let mut remote = Remote::start(3000);
    remote.run(unit, &["hangs_with_a_child"]);
    let grandchild = pid_in(&pid_file);
    assert_eq!(remote.next(), Some(Message::Started { key: 0 }));
    assert_eq!(remote.next(), Some(Message::Alive), "the worker is not silent itself");
    let error = remote.thread.join().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "nothing was heard from the orchestrator for 3 s");
    wait_until("the grandchild dies", || is_dead(&grandchild));
}

#[test]
fn a_request_that_is_none_ends_the_session_with_a_reason() {
    let mut remote = Remote::start(0);
    remote.stream.write_all(b"{\"type\":\"run\",\"tests\":7}\n").unwrap();
    let Some(Message::Bye { reason: Some(reason) }) = remote.next() else { panic!("no bye") };
    assert!(reason.contains(r#"{"type":"run","tests":7}"#), "{reason}");
    assert!(remote.thread.join().unwrap().is_err());
}

#[test]
fn another_version_is_refused() {
    let session = Session::new(LibtestOptions::default(), Fixtures::get().unit());
    session.worker.send(Request::Init {
        version: PROTOCOL_VERSION + 1,
        nonce: "n".into(),
        isolation: Isolation::Process,
        no_capture: false,
        yield_on_failure: false,
        silence_ms: 0,
    });
    let Message::Bye { reason: Some(reason) } = session.next() else { panic!("no bye") };
    assert!(reason.contains("install the same version of offload on both sides"), "{reason}");
}
