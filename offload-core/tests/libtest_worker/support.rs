//! Test binaries to work on, and a worker that is listened to.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use offload_core::framework::{Isolation, TestResult};
use offload_core::worker::libtest::{LibtestOptions, LibtestWorker};
use offload_core::worker::{Harness, Message, Request, RunItem, Unit};

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
    let file = std::env::var("PID_FILE").unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file).unwrap();
    writeln!(file, "{}", child.id()).unwrap();
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

pub struct Fixtures {
    pub dir: tempfile::TempDir,
}

impl Fixtures {
    pub fn get() -> &'static Self {
        static FIXTURES: OnceLock<Fixtures> = OnceLock::new();
        FIXTURES.get_or_init(|| {
            // Nothing removes what is static.
            let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            compile(dir.path(), "fixture", FIXTURE, &["--test"]);
            compile(dir.path(), "opaque", OPAQUE, &[]);
            Fixtures { dir }
        })
    }

    pub fn unit(&self) -> Unit {
        Unit {
            harness: Harness::Libtest,
            custom_harness: false,
            program: self.dir.path().join("fixture"),
            args: Vec::new(),
            extra_args: Vec::new(),
            cwd: self.dir.path().canonicalize().unwrap(),
            env: BTreeMap::from([("RUST_BACKTRACE".to_owned(), "0".to_owned())]),
        }
    }
}

pub fn compile(dir: &Path, name: &str, source: &str, args: &[&str]) {
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
pub struct Session {
    pub worker: LibtestWorker,
    pub messages: Receiver<Message>,
}

impl Session {
    pub fn new(options: LibtestOptions, unit: Unit) -> Self {
        let (sender, messages) = channel();
        let worker = LibtestWorker::spawn(options, move |message| drop(sender.send(message))).unwrap();
        worker.send(Request::Define { key: 1, unit: Arc::new(unit) });
        Self { worker, messages }
    }

    pub fn binary(unit: Unit) -> Self {
        Self::new(LibtestOptions { isolation: Isolation::Binary, ..LibtestOptions::default() }, unit)
    }

    pub fn next(&self) -> Message {
        self.messages.recv_timeout(Duration::from_secs(120)).expect("the worker says something within two minutes")
    }

    /// Runs tests and returns their results by name; checks what is said about each, and in which order.
    pub fn run(&self, items: &[RunItem]) -> HashMap<String, TestResult> {
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

    pub fn wait_for_start(&self, expected: u32) {
        assert_eq!(self.next(), Message::Started { key: expected });
    }
}

pub fn item(key: u32, name: &str) -> RunItem {
    RunItem { key, unit: 1, name: name.to_owned(), attempt: 1, alone: false, timeout_ms: Some(60_000) }
}

pub fn items(names: &[&str]) -> Vec<RunItem> {
    (0..).zip(names).map(|(key, name)| item(key, name)).collect()
}

/// Runs one test in a process of its own.
pub fn run_one(name: &str) -> TestResult {
    let session = Session::new(LibtestOptions::default(), Fixtures::get().unit());
    session.run(&items(&[name])).remove(name).unwrap()
}

/// Whether a process is gone, or dead and only not buried yet.
pub fn is_dead(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    status.map_or(true, |stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < until, "{what}");
        std::thread::yield_now();
    }
}

pub fn pid_in(file: &Path) -> String {
    wait_until("the test writes its child's process id", || file.exists());
    std::fs::read_to_string(file).unwrap().trim().to_owned()
}

/// A stand-in for `cargo test --doc`: the real one needs a package; what is read of it is its output.
pub fn doctest_unit(script: &str) -> Unit {
    let args = vec!["-c".to_owned(), script.to_owned(), "cargo".to_owned()];
    Unit { harness: Harness::Doctest, program: "/bin/sh".into(), args, ..Fixtures::get().unit() }
}

/// A unit of which the tests that leave children behind write a child's process id into the file.
pub fn unit_with_pid_file(dir: &Path) -> (Unit, PathBuf) {
    let pid_file = dir.join("pid");
    let mut unit = Fixtures::get().unit();
    unit.env.insert("PID_FILE".into(), pid_file.to_str().unwrap().into());
    (unit, pid_file)
}
