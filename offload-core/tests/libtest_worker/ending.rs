//! Tests that are ended or taken back, and what is left of them.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use offload_core::framework::{Isolation, TestOutcome};
use offload_core::worker::libtest::LibtestOptions;
use offload_core::worker::{Message, Request, RunItem, StartGate, StartPermit};

use crate::support::{Fixtures, Session, doctest_unit, is_dead, item, items, pid_in, unit_with_pid_file, wait_until};

#[test]
fn a_time_out_leaves_nothing_behind() {
    for isolation in [Isolation::Auto, Isolation::Process, Isolation::Binary] {
        let dir = tempfile::tempdir().unwrap();
        let (unit, pid_file) = unit_with_pid_file(dir.path());
        let options = LibtestOptions { isolation, kill_grace: Duration::from_millis(50), ..LibtestOptions::default() };
        let session = Session::new(options, unit);
        let hanging = RunItem { timeout_ms: Some(1500), ..item(1, "hangs_with_a_child") };
        let results = session.run(&[hanging, item(2, "passes")]);
        let result = &results["hangs_with_a_child"];
        assert_eq!(result.outcome, TestOutcome::TimedOut, "{result:?}");
        assert_eq!(result.message.as_deref(), Some("ran longer than its limit of 1.5 s"));
        assert!(!result.leaky, "{result:?}");
        if isolation != Isolation::Binary {
            assert!(result.stdout.text.starts_with("child "), "{result:?}");
        }
        assert_eq!(results["passes"].outcome, TestOutcome::Passed);
        let grandchild = pid_in(&pid_file);
        wait_until("the grandchild dies", || is_dead(&grandchild));
    }
}

#[test]
fn a_leaked_child_that_holds_the_output_holds_up_nothing() {
    for isolation in [Isolation::Auto, Isolation::Process] {
        let dir = tempfile::tempdir().unwrap();
        let (unit, pid_file) = unit_with_pid_file(dir.path());
        let options = LibtestOptions { isolation, ..LibtestOptions::default() };
        let results = Session::new(options, unit).run(&items(&["passes", "leaks", "passes_too"]));
        for (name, result) in &results {
            assert_eq!((result.outcome, result.leaky), (TestOutcome::Passed, name == "leaks"), "{isolation:?} {name}");
            assert_eq!(result.shares_state, None, "{name}");
        }
        for leaked in pid_in(&pid_file).lines() {
            assert!(!is_dead(leaked), "what a test leaves behind is not killed, as under cargo test");
            assert!(Command::new("kill").args(["-9", leaked]).status().unwrap().success());
        }
    }
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
fn a_batch_of_which_the_rest_is_asked_back_ends_with_the_test_that_is_still_wanted() {
    let session = Session::binary(Fixtures::get().unit());
    let names = ["hangs", "passes", "passes_too"];
    let tests = items(&names).into_iter().map(|test| RunItem { timeout_ms: None, ..test }).collect();
    session.worker.send(Request::Run { tests });
    session.wait_for_start(0);
    session.worker.send(Request::TakeBack { tests: vec![1, 2] });
    assert_eq!(session.next(), Message::TakenBack { tests: Vec::new() }, "the process has them");
    // Asked for as one that had not started, as far as was known.
    session.worker.send(Request::TakeBack { tests: vec![0] });
    assert_eq!(session.next(), Message::TakenBack { tests: Vec::new() });
    assert_eq!(session.next(), Message::TakenBack { tests: vec![0] });
    assert_eq!(session.next(), Message::TakenBack { tests: vec![1, 2] });
    assert_eq!(session.run(&[item(7, "passes")])["passes"].outcome, TestOutcome::Passed);
}

#[test]
fn what_has_nothing_left_to_run_may_end_by_itself() {
    // As rustdoc does, which removes what it has compiled.
    let script = r#"
        printf 'test a.rs - x (line 1) ... ok\n'
        sleep "$LONG"
        echo removed > "$REMOVED"
    "#;
    for (long, kill_grace) in [("0.5", Duration::from_secs(60)), ("1000", Duration::from_millis(1))] {
        let dir = tempfile::tempdir().unwrap();
        let removed = dir.path().join("removed");
        let mut unit = doctest_unit(script);
        unit.env.insert("REMOVED".into(), removed.to_str().unwrap().into());
        unit.env.insert("LONG".into(), long.into());
        let session = Session::new(LibtestOptions { kill_grace, ..LibtestOptions::default() }, unit);
        let name = "a.rs - x (line 1)";
        assert_eq!(session.run(&items(&[name]))[name].outcome, TestOutcome::Passed);
        drop(session.worker);
        assert_eq!(removed.exists(), kill_grace.as_secs() > 0, "{kill_grace:?}");
    }
}

#[test]
fn dropping_or_killing_a_worker_ends_what_runs() {
    for kill in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (unit, pid_file) = unit_with_pid_file(dir.path());
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
