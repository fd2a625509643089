//! What a test does: it reads its behavior, steps joined by `+`, from the scenario, and writes to a log that it ran.
//!
//! `cargo test` would lose all tests of a process that dies. So where the environment says that this is the plain run,
//! a step that ends the process fails the test only, and steps that would garble the harness's output, or that other tests
//! of the process could notice, do nothing.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::LazyLock;
use std::time::Duration;

extern "C" {
    fn close(fd: i32) -> i32;
    fn dup2(from: i32, to: i32) -> i32;
    fn write(fd: i32, bytes: *const u8, count: usize) -> isize;
    fn raise(signal: i32) -> i32;
    fn _exit(code: i32) -> !;
    fn setsid() -> i32;
    fn kill(process: i32, signal: i32) -> i32;
    fn fork() -> i32;
    fn usleep(microseconds: u32) -> i32;
    fn atexit(function: extern "C" fn()) -> i32;
    fn signal(number: i32, handler: usize) -> usize;
}

static STEPS: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    let text = std::env::var_os("ORACLE_SCENARIO").map(|path| std::fs::read_to_string(path).unwrap());
    let entry = |line: &str| line.split_once('\t').map(|(name, steps)| (name.to_owned(), steps.to_owned()));
    text.unwrap_or_default().lines().filter_map(entry).collect()
});
static STARTED: AtomicUsize = AtomicUsize::new(0);
static DIRTY: AtomicBool = AtomicBool::new(false);
/// What the process exits with when it comes to its end: a code, or -1 to abort.
static AT_EXIT: AtomicI32 = AtomicI32::new(0);

/// What a test is to the harness.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    Plain,
    /// `#[should_panic]`
    Panics,
    /// Whatever it does ends no other test's process.
    Alone,
}

fn is_plain() -> bool {
    std::env::var_os("ORACLE_PLAIN").is_some()
}

fn log(word: &str, name: &str, value: &str) {
    let Some(path) = std::env::var_os("ORACLE_LOG") else { return };
    let line = format!("{word}\t{name}\t{}\t{value}\n", std::process::id());
    OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(line.as_bytes()).unwrap();
}

fn earlier_starts(name: &str) -> usize {
    let log = std::env::var_os("ORACLE_LOG").and_then(|path| std::fs::read_to_string(path).ok());
    let begin = format!("start\t{name}\t");
    log.unwrap_or_default().lines().filter(|line| line.starts_with(&begin)).count()
}

fn raw(bytes: &[u8]) {
    if !is_plain() {
        // SAFETY: the bytes are there.
        unsafe { write(1, bytes.as_ptr(), bytes.len()) };
    }
}

/// Logs that a test runs, for those that are no more than that and a check.
pub fn checked(name: &str, check: impl FnOnce()) {
    log("start", name, &STARTED.fetch_add(1, Ordering::SeqCst).to_string());
    check();
    log("end", name, "");
}

/// Does what the scenario has for the test `name`.
pub fn act(name: &str, kind: Kind) {
    if let Err(error) = try_act(name, kind) {
        panic!("{error}");
    }
}

/// As [`act`], for tests that return a result.
pub fn try_act(name: &str, kind: Kind) -> Result<(), String> {
    let started = STARTED.fetch_add(1, Ordering::SeqCst);
    let flaky = earlier_starts(name);
    log("start", name, &started.to_string());
    println!("printed by {name}");
    eprintln!("warned by {name}");
    let steps = STEPS.get(name).map_or("", String::as_str);
    for step in steps.split('+').filter(|step| !step.is_empty()) {
        let (step, value) = step.split_once(':').unwrap_or((step, ""));
        match step {
            "slow" => std::thread::sleep(Duration::from_millis(60)),
            "print" => (0..50).for_each(|line| println!("test {name}_{line} ... ok")),
            "flood" => (0..4000).for_each(|_| raw(&[b'x'; 100])),
            "invalid" => raw(b"\xff\xfe\x80 no text\n"),
            "unfinished" => raw(b"no end of line"),
            "pretend" => raw(format!("\nrunning 1 test\ntest {name} ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n").as_bytes()),
            "pretend-end" => raw(b"\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n"),
            "verdict" => raw(format!("test {name} ... FAILED\n").as_bytes()),
            "log-words" => {
                raw(format!("failed {name}\nok {name}\n").as_bytes());
                eprintln!("warning: `--logfile` is deprecated\nfailed: for no reason {name}");
            }
            "json" => raw(format!("{{ \"type\": \"test\", \"event\": \"ok\", \"name\": \"{name}\" }}\n").as_bytes()),
            // SAFETY: nothing else in this process is done with the descriptor at this moment.
            "close" if !is_plain() => drop(unsafe { close(1) }),
            "redirect" if !is_plain() => {
                // SAFETY: both are open.
                unsafe { dup2(File::create("/dev/null").unwrap().as_raw_fd(), 1) };
            }
            "close" | "redirect" => {}
            "child-holds" => child(name, false),
            "child-quiet" => child(name, true),
            "thread" => drop(std::thread::spawn(|| panic!("in a thread")).join()),
            "catch" => drop(std::panic::catch_unwind(|| panic!("caught"))),
            "hook" if !is_plain() => std::panic::set_hook(Box::new(|_| {})),
            // SAFETY: descriptors that nobody else uses at this moment.
            "close-fds" if !is_plain() => (3..256).for_each(|fd| {
                unsafe { close(fd) };
            }),
            "fork" if !is_plain() => {
                if forked(value) {
                    return Ok(());
                }
            }
            "late-exit" if !is_plain() => drop(std::thread::spawn(|| {
                std::thread::sleep(Duration::from_millis(30));
                // SAFETY: the process may end here.
                unsafe { _exit(3) }
            })),
            "at-exit" if !is_plain() => {
                AT_EXIT.store(value.parse().unwrap(), Ordering::SeqCst);
                // SAFETY: the function unwinds nowhere.
                unsafe { atexit(at_exit) };
            }
            "hook" | "close-fds" | "fork" | "late-exit" | "at-exit" => {}
            "dirty" => make_dirty(value),
            "clean" => assert!(!is_dirty(name, value), "an earlier test has left something"),
            "needs" => assert!(is_dirty(name, value), "no earlier test has left anything"),
            "flaky" => assert!(flaky >= value.parse().unwrap(), "not this time"),
            "return" => {
                log("end", name, "");
                return Ok(());
            }
            "other" => {
                log("end", name, "");
                panic!("something else");
            }
            "panic" => panic!("it fails"),
            "panic-any" => std::panic::panic_any(42),
            "panic-thread" => std::thread::spawn(|| panic!("in a thread")).join().unwrap(),
            "err" => return Err("an error".to_owned()),
            _ if is_plain() && kind == Kind::Plain => panic!("it ends its process here"),
            _ if is_plain() && kind == Kind::Panics => return Ok(()),
            _ => end_process(step, value),
        }
    }
    log("end", name, "");
    if kind == Kind::Panics {
        panic!("on purpose");
    }
    Ok(())
}

fn end_process(step: &str, value: &str) {
    match step {
        "exit" => std::process::exit(value.parse().unwrap()),
        // SAFETY: nobody needs what is not flushed.
        "quit" => unsafe { _exit(value.parse().unwrap()) },
        "abort" => std::process::abort(),
        "signal" => {
            // SAFETY: that the process may end here is what it is for.
            unsafe { raise(value.parse().unwrap()) };
        }
        "group" => {
            // SAFETY: the group is the process's own, with what it has started.
            unsafe { kill(0, value.parse().unwrap()) };
            std::thread::sleep(Duration::from_secs(600));
        }
        "overflow" => drop(deeper(1)),
        "double" => {
            struct Bomb;
            impl Drop for Bomb {
                fn drop(&mut self) {
                    panic!("while it panics");
                }
            }
            let _bomb = Bomb;
            panic!("first");
        }
        "hang" if is_plain() => panic!("it would not end"),
        "hang" => {
            if value == "stubborn" {
                // SAFETY: 1 is the handler that ignores it.
                unsafe { signal(15, 1) };
            }
            std::thread::sleep(Duration::from_secs(600));
        }
        _ => panic!("unknown step {step}"),
    }
}

/// Leaves something in the process that a later test in it can find: `dir` and `env` as `cargo test` would leave them, too.
fn make_dirty(what: &str) {
    if is_plain() {
        return;
    }
    match what {
        "dir" => std::env::set_current_dir("/").unwrap(),
        "no-dir" => {
            let gone = std::env::temp_dir().join(format!("gone-{}", std::process::id()));
            std::fs::create_dir_all(&gone).unwrap();
            std::env::set_current_dir(&gone).unwrap();
            std::fs::remove_dir(gone).unwrap();
        }
        "env" => std::env::set_var("ORACLE_DIRTY", "1"),
        _ => DIRTY.store(true, Ordering::SeqCst),
    }
}

/// Whether an earlier test of the process has left something, which is written to the log.
fn is_dirty(name: &str, what: &str) -> bool {
    let found = match what {
        "dir" => std::env::current_dir().ok().as_deref() != std::env::var("CARGO_MANIFEST_DIR").ok().as_ref().map(Path::new),
        "env" => std::env::var_os("ORACLE_DIRTY").is_some(),
        _ => DIRTY.load(Ordering::SeqCst),
    };
    log("state", name, if found { "dirty" } else { "clean" });
    found
}

/// Forks. Whether this is a child that is to return from the test, as if it were the process of it.
fn forked(value: &str) -> bool {
    // SAFETY: the child does no more than a test that other threads wait for.
    unsafe {
        if fork() != 0 {
            return false;
        }
        if value == "return" {
            return true;
        }
        usleep(value.parse::<u32>().unwrap() * 1000);
        _exit(0)
    }
}

extern "C" fn at_exit() {
    match AT_EXIT.load(Ordering::SeqCst) {
        -1 => std::process::abort(),
        // SAFETY: the process is ending.
        code => unsafe { _exit(code) },
    }
}

#[allow(unconditional_recursion)]
fn deeper(depth: u64) -> [u64; 64] {
    let frame = std::hint::black_box([depth; 64]);
    let below = deeper(frame[1] + 1);
    std::hint::black_box([below[2] + frame[3]; 64])
}

/// Starts a process that outlives the test.
fn child(name: &str, quiet: bool) {
    if is_plain() {
        return;
    }
    let mut command = Command::new("sleep");
    command.arg("60").env("ORACLE_CHILD", name).stdin(Stdio::null());
    if quiet {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: the call is safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                setsid();
                Ok(())
            })
        };
    }
    command.spawn().unwrap();
}

/// A program that is one test.
pub fn opaque(name: &str) {
    if is_plain() {
        let hook = std::panic::catch_unwind(|| act(name, Kind::Plain));
        println!("test {name} ... {}", if hook.is_ok() { "ok" } else { "FAILED" });
        std::process::exit(if hook.is_ok() { 0 } else { 101 });
    }
    act(name, Kind::Alone);
}

/// A harness of its own that knows the usual options. A name that ends in `ignored` is of an ignored test.
pub fn harness(names: &[&str]) {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let (mut filters, mut skips) = (Vec::new(), Vec::new());
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "--skip" => skips.extend(rest.next()),
            "--format" | "--test-threads" | "-Z" => drop(rest.next()),
            _ if !arg.starts_with('-') => filters.push(arg),
            _ => {}
        }
    }
    let fits = |name: &str, filter: &str| if has("--exact") { name == filter } else { name.contains(filter) };
    let is_ignored = |name: &str| name.ends_with("ignored");
    let chosen: Vec<&&str> = names
        .iter()
        .filter(|name| filters.is_empty() || filters.iter().any(|filter| fits(name, filter)))
        .filter(|name| !skips.iter().any(|skip| fits(name, skip)))
        .filter(|name| !has("--ignored") || is_ignored(name))
        .collect();
    if has("--list") {
        chosen.iter().for_each(|name| println!("{name}: test"));
        return;
    }
    println!("\nrunning {} tests", chosen.len());
    let (mut passed, mut failed, mut left) = (0, 0, 0);
    for name in &chosen {
        if is_ignored(name) && !has("--ignored") && !has("--include-ignored") {
            left += 1;
            println!("test {name} ... ignored");
        } else if std::panic::catch_unwind(|| act(name, Kind::Plain)).is_ok() {
            passed += 1;
            println!("test {name} ... ok");
        } else {
            failed += 1;
            println!("test {name} ... FAILED");
        }
    }
    let verdict = if failed > 0 { "FAILED" } else { "ok" };
    let out = names.len() - chosen.len();
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; {left} ignored; 0 measured; {out} filtered out\n"
    );
    std::process::exit(if failed > 0 { 101 } else { 0 });
}

/// The tests of a binary, in a module whose name no other binary has.
#[macro_export]
macro_rules! tests {
    ($module:ident) => {
        #[cfg(test)]
        mod $module {
            use $crate::{act, try_act, Kind};
            #[test]
            fn a() {
                act(concat!(stringify!($module), "::a"), Kind::Plain)
            }
            #[test]
            fn b() {
                act(concat!(stringify!($module), "::b"), Kind::Plain)
            }
            #[test]
            fn c() {
                act(concat!(stringify!($module), "::c"), Kind::Plain)
            }
            #[test]
            fn d() -> Result<(), String> {
                try_act(concat!(stringify!($module), "::d"), Kind::Plain)
            }
            $crate::more_tests!($module: i j k l m n o p);
            #[test]
            #[ignore]
            fn e_ignored() {
                act(concat!(stringify!($module), "::e_ignored"), Kind::Plain)
            }
            #[test]
            #[ignore = "for a reason, with a comma"]
            fn f_ignored() {
                act(concat!(stringify!($module), "::f_ignored"), Kind::Plain)
            }
            #[test]
            #[should_panic]
            fn g_panics() {
                act(concat!(stringify!($module), "::g_panics"), Kind::Panics)
            }
            #[test]
            #[should_panic(expected = "on purpose")]
            fn h_expected() {
                act(concat!(stringify!($module), "::h_expected"), Kind::Panics)
            }
        }
    };
}

/// Further plain tests.
#[macro_export]
macro_rules! more_tests {
    ($module:ident: $($name:ident)*) => {
        $(#[test]
        fn $name() {
            $crate::act(concat!(stringify!($module), "::", stringify!($name)), $crate::Kind::Plain)
        })*
    };
}
