//! Ctrl-C, SIGTERM, and two runs at once.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Junit, Run, Workspace, cargo_offload, is_running, wait_until};

fn sleepers() -> Workspace {
    let library = r#"
#[test] fn a_quick() {}
#[test] fn b_sleeps() { sleep("b") }
#[test] fn c_sleeps() { sleep("c") }
#[test] fn d_never_started() { sleep("d") }
#[cfg(test)]
fn sleep(name: &str) {
    let dir = std::path::PathBuf::from(std::env::var("STARTED_DIR").unwrap());
    std::fs::write(dir.join(name), std::process::id().to_string()).unwrap();
    if std::env::var("STUBBORN").is_ok() {
        // Ignores SIGTERM, as servers under test do.
        let status = std::process::Command::new("sh").args(["-c", "trap '' TERM; sleep 1000 & wait; wait"]).status();
        drop(status);
    }
    std::thread::sleep(std::time::Duration::from_secs(1000));
}
"#;
    Workspace::package("sleepers", library)
}

struct Running {
    child: Child,
    reports: tempfile::TempDir,
    started: tempfile::TempDir,
}

impl Running {
    /// Starts two sleeping tests and waits until both are there.
    fn start(stubborn: bool) -> Self {
        Self::start_with(stubborn, &[])
    }

    fn start_with(stubborn: bool, args: &[&str]) -> Self {
        // Built beforehand, so that the run below is about tests only.
        sleepers().offload(["--lib", "a_quick"]).exits(0);
        let (reports, started) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut command = cargo_offload(&sleepers().dir);
        command.args(["--lib", "-j", "2"]).args(args).env("OFFLOAD_REPORT_OUTPUT_DIR", reports.path());
        command.env("STARTED_DIR", started.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if stubborn {
            command.env("STUBBORN", "1");
        }
        let child = command.spawn().unwrap();
        let running = Self { child, reports, started };
        wait_until("two tests sleep", || running.pids().len() == 2);
        running
    }

    fn pids(&self) -> Vec<i32> {
        let entries = std::fs::read_dir(self.started.path()).unwrap();
        entries.filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok()?.parse().ok()).collect()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end and checks that nothing runs any more.
    fn end(self) -> Run {
        let pids = self.pids();
        let run = Run::from_output(self.child.wait_with_output().unwrap(), self.reports);
        for pid in pids {
            wait_until("the tests are gone", || !is_running(pid));
        }
        run
    }
}

fn is_a_whole_report(junit: &Junit) {
    let outcomes = junit.outcomes();
    assert_eq!(outcomes.len(), 5, "{outcomes:?}");
    assert_eq!(outcomes["problems of the run interrupted"], "error", "{outcomes:?}");
    assert_eq!(outcomes["sleepers a_quick"], "passed", "{outcomes:?}");
    assert_ne!(outcomes["sleepers d_never_started"], "passed", "{outcomes:?}");
}

#[test]
fn ctrl_c_ends_tests_writes_every_report_and_exits_with_130() {
    for signal in [Signal::INT, Signal::TERM] {
        let running = Running::start(false);
        running.signal(signal);
        let run = running.end().exits(130);
        is_a_whole_report(&run.junit());
        run.says("interrupted");
    }
}

#[test]
fn an_interrupted_run_names_what_was_running() {
    let mut running = Running::start_with(false, &["--message-format", "json"]);
    let mut lines = BufReader::new(running.child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut started = 0;
    while started < 2 {
        let line = lines.next().unwrap();
        started += usize::from(line.contains("\"test_started\"") && line.contains("_sleeps"));
    }
    running.signal(Signal::INT);
    let rest: Vec<String> = lines.collect();
    let said = "Running when the run was interrupted: sleepers b_sleeps, sleepers c_sleeps";
    assert!(rest.iter().any(|line| line.contains(said)), "{rest:#?}");
    running.end().exits(130);
}

#[test]
fn a_second_ctrl_c_does_not_wait_for_tests_that_ignore_the_first() {
    let running = Running::start(true);
    running.signal(Signal::INT);
    running.signal(Signal::INT);
    let run = running.end().exits(130);
    is_a_whole_report(&run.junit());
}

#[test]
fn two_runs_at_once_do_not_disturb_each_other() {
    let workspace = sleepers();
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3).map(|_| scope.spawn(|| workspace.offload(["--lib", "a_quick"]))).collect();
        for run in runs {
            let run = run.join().unwrap().exits(0);
            assert_eq!(run.junit().cases.len(), 1);
        }
    });
}

/// Time during which the runner itself is stopped is nobody's: no test runs out of it.
#[test]
fn a_runner_that_was_stopped_invents_no_time_outs() {
    let library = r#"
#[test] fn waits() {
    let dir = std::path::PathBuf::from(std::env::var("STARTED_DIR").unwrap());
    std::fs::write(dir.join("started"), "").unwrap();
    while !dir.join("go").exists() { std::thread::sleep(std::time::Duration::from_millis(10)); }
}
#[test] fn ends_while_nobody_looks() {
    let dir = std::path::PathBuf::from(std::env::var("STARTED_DIR").unwrap());
    std::fs::write(dir.join("started too"), "").unwrap();
    while !dir.join("stopped").exists() { std::thread::sleep(std::time::Duration::from_millis(10)); }
}
"#;
    let workspace = Workspace::package("stopped_runner", library);
    workspace.offload(["--lib", "no_such_test"]).exits(0);
    for isolation in ["auto", "process", "binary"] {
        let (reports, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut command = cargo_offload(&workspace.dir);
        command.args(["--lib", "-j", "2", "--timeout", "2", "--isolation", isolation]);
        command.env("OFFLOAD_REPORT_OUTPUT_DIR", reports.path()).env("STARTED_DIR", dir.path());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        // In a batch, one of the two comes after the other.
        let first = || dir.path().join("started").exists() || dir.path().join("started too").exists();
        wait_until("a test has started", first);
        kill_process(pid, Signal::STOP).unwrap();
        std::fs::write(dir.path().join("stopped"), "").unwrap();
        // Longer than the limit: what is tested is that this does not count.
        std::thread::sleep(std::time::Duration::from_secs(3));
        kill_process(pid, Signal::CONT).unwrap();
        std::fs::write(dir.path().join("go"), "").unwrap();
        let run = Run::from_output(child.wait_with_output().unwrap(), reports);
        run.exits(0).says("2 tests: 2 passed");
    }
}

#[test]
fn a_quit_ends_tests_and_a_run_that_is_killed_leaves_none() {
    let running = Running::start(true);
    running.signal(Signal::QUIT);
    let run = running.end().exits(130);
    is_a_whole_report(&run.junit());

    let running = Running::start(true);
    running.signal(Signal::KILL);
    assert_eq!(running.end().code, None);
}

/// What a process does at the moment: `R`, `S`, `T` and so on.
fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

#[test]
fn a_run_that_is_told_to_stop_stops_its_tests_and_goes_on_with_them() {
    let running = Running::start(false);
    running.signal(Signal::TSTP);
    let runner = Pid::from_child(&running.child).as_raw_nonzero().get();
    wait_until("the runner is stopped", || state(runner) == Some('T'));
    for pid in running.pids() {
        wait_until("the tests are stopped", || state(pid) == Some('T'));
    }
    running.signal(Signal::CONT);
    for pid in running.pids() {
        wait_until("the tests go on", || state(pid) == Some('S'));
    }
    running.signal(Signal::INT);
    is_a_whole_report(&running.end().exits(130).junit());
}

#[test]
fn a_time_out_ends_what_has_left_the_group_and_rustdoc_leaves_nothing() {
    let library = r#"
//! ```
//! let file = std::path::Path::new(&std::env::var("STARTED_DIR").unwrap()).join("doctest");
//! std::fs::write(file, std::process::id().to_string()).unwrap();
//! std::thread::sleep(std::time::Duration::from_secs(1000));
//! ```
#[test] fn a_session() { leave("a", "exec setsid sleep 1000") }
#[test] fn b_daemon() { leave("b", "(setsid sleep 1000 &) & sleep 1000") }
#[test] fn c_unmarked() { leave("c", "env -i setsid sleep 1000 & wait") }
#[cfg(test)]
fn leave(name: &str, script: &str) {
    let file = std::path::Path::new(&std::env::var("STARTED_DIR").unwrap()).join(name);
    std::fs::write(file, std::process::id().to_string()).unwrap();
    std::process::Command::new("sh").args(["-c", script]).status().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1000));
}
"#;
    let workspace = Workspace::package("leavers", library);
    let (started, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut command = cargo_offload(&workspace.dir);
    command.env("STARTED_DIR", started.path()).env("TMPDIR", temporary.path());
    // Builds the doctest, too, within the limit.
    let run = Run::new(command, ["-j4", "--timeout", "6"]).exits(1);
    assert!(run.junit().outcomes().values().all(|outcome| *outcome == "failure"), "{:?}", run.junit().outcomes());
    let mine = |pid: &i32| {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&environ).contains(&format!("STARTED_DIR={}", started.path().display()))
    };
    let is_sleeper = |pid: &i32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words == b"sleep\x001000\0"
            && std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| environ.is_empty())
    };
    let left = || {
        let pids =
            std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(|pid| mine(pid) || is_sleeper(pid)).collect::<Vec<i32>>()
    };
    wait_until("nothing that the tests have started is left", || left().is_empty());
    let files: Vec<_> = std::fs::read_dir(temporary.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(files.is_empty(), "{files:?}");
}
