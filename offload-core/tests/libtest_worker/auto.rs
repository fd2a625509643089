//! Processes that tests share as long as they pass in them.

use std::collections::HashMap;
use std::sync::OnceLock;

use offload_core::framework::{Isolation, TestOutcome, TestResult};
use offload_core::worker::libtest::LibtestOptions;
use offload_core::worker::{Message, Request, RunItem};

use crate::support::{Fixtures, Session, compile, items};

/// Tests that write down that they run, in which process, and do something else if they are not the first in theirs.
const COMPANY: &str = r#"
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
static BEFORE: AtomicUsize = AtomicUsize::new(0);
fn is_alone() -> bool {
    let mut log = std::fs::OpenOptions::new().append(true).create(true).open(std::env::var("RAN").unwrap()).unwrap();
    writeln!(log, "{} {}", std::thread::current().name().unwrap(), std::process::id()).unwrap();
    BEFORE.fetch_add(1, SeqCst) == 0
}
fn is_first_time() -> bool { std::fs::File::create_new(std::env::var("RAN").unwrap() + ".first").is_ok() }
#[test] fn a_fails_once() { is_alone(); println!("said before"); assert!(!is_first_time(), "not yet") }
#[test] fn a_aborts_once() { is_alone(); println!("said before"); if is_first_time() { std::process::abort() } }
#[test] #[ignore] fn a_does_not_run() { is_alone(); }
#[test] fn a_passes() { is_alone(); }
#[test] fn b_fails() { assert!(is_alone(), "somebody was here"); }
#[test] fn b_fails_always() { is_alone(); println!("said before"); panic!("as ever") }
#[test] fn b_exits() { if !is_alone() { std::process::exit(0) } }
#[test] fn b_exits_always() { is_alone(); std::process::exit(0) }
#[test] fn b_crashes() { if !is_alone() { std::process::abort() } }
#[test] fn b_hangs() { if !is_alone() { loop { std::thread::park() } } }
#[test] fn b_ends_badly() { is_alone(); unsafe { atexit(at_exit) }; }
#[test] fn b_ignores_signals() { is_alone(); unsafe { signal(15, 1) }; }
#[test] fn c_fails_always() { is_alone(); panic!("as ever") }
#[test] fn c_passes() { is_alone(); }
#[test] fn d_passes() { is_alone(); }
#[test] fn x_shuts_stdout() { is_alone(); extern "C" { fn close(fd: i32) -> i32; } unsafe { close(1); } }
#[test] fn y_exits_1() { is_alone(); std::process::exit(1) }
#[test] fn z_passes() { is_alone(); }
#[test] fn d_takes_a_while() { is_alone(); std::thread::sleep(std::time::Duration::from_millis(300)); }
extern "C" {
    fn atexit(function: extern "C" fn()) -> i32;
    fn signal(number: i32, handler: usize) -> usize;
}
extern "C" fn at_exit() { std::process::abort() }
"#;

fn program() -> &'static tempfile::TempDir {
    static PROGRAM: OnceLock<tempfile::TempDir> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        compile(dir.path(), "company", COMPANY, &["--test"]);
        dir
    })
}

/// The results, and in which processes each test has run.
fn run(items: &[RunItem], isolation: Isolation) -> (HashMap<String, TestResult>, HashMap<String, Vec<String>>) {
    run_until(items, isolation, false)
}

/// The same; with `yield_on_failure` tests that have not run when one fails are given back.
fn run_until(
    items: &[RunItem],
    isolation: Isolation,
    yield_on_failure: bool,
) -> (HashMap<String, TestResult>, HashMap<String, Vec<String>>) {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("ran");
    let mut unit = Fixtures::get().unit();
    unit.program = program().path().join("company");
    unit.env.insert("RAN".into(), log.to_str().unwrap().into());
    let options = LibtestOptions { isolation, yield_on_failure, ..LibtestOptions::default() };
    let results = Session::new(options, unit).run(items);
    let mut processes: HashMap<String, Vec<String>> = HashMap::new();
    for line in std::fs::read_to_string(log).unwrap().lines() {
        let (name, process) = line.split_once(' ').unwrap();
        processes.entry(name.to_owned()).or_default().push(process.to_owned());
    }
    (results, processes)
}

#[test]
fn tests_that_pass_share_one_process() {
    let (results, processes) = run(&items(&["a_passes", "c_passes", "d_passes"]), Isolation::Auto);
    assert!(results.values().all(|result| result.outcome == TestOutcome::Passed && result.shared_process));
    assert!(processes.values().all(|ran| *ran == processes["a_passes"]), "{processes:?}");
    assert_eq!(processes["a_passes"].len(), 1);
}

#[test]
fn what_does_not_pass_in_company_is_what_it_is_alone() {
    for name in ["b_fails", "b_exits", "b_crashes", "b_hangs"] {
        let mut tests = items(&["a_passes", name, "c_passes", "d_passes"]);
        tests[1].timeout_ms = Some(3000);
        let (results, processes) = run(&tests, Isolation::Auto);
        assert_eq!(results[name].outcome, TestOutcome::Passed, "{name}: {results:?}");
        assert_eq!(results[name].shares_state.as_deref(), Some(&["a_passes".to_owned()][..]), "{name}");
        assert_eq!(processes[name].len(), 2, "{name}: {processes:?}");
        for other in ["a_passes", "c_passes", "d_passes"] {
            let result = &results[other];
            assert_eq!((result.outcome, &result.shares_state), (TestOutcome::Passed, &None), "{name}: {other}");
            assert_eq!(processes[other].len(), 1, "{name}: {other} {processes:?}");
        }
    }
}

#[test]
fn what_fails_in_company_and_alone_has_failed_once() {
    // Where a process ends without a word, another one with a log says whether it was the test's doing.
    for (name, outcome, times) in
        [("b_fails_always", TestOutcome::Failed, 2), ("b_exits_always", TestOutcome::Crashed, 3)]
    {
        let (results, processes) = run(&items(&["a_passes", name, "c_passes"]), Isolation::Auto);
        let result = &results[name];
        assert_eq!((result.outcome, &result.shares_state), (outcome, &None), "{result:?}");
        assert!(!result.shared_process, "{result:?}");
        assert_eq!(processes[name].len(), times, "{processes:?}");
        assert_eq!(results["c_passes"].outcome, TestOutcome::Passed);
    }
}

/// Nothing that it could share state with has run before it, so that a test that passes the second time is flaky.
#[test]
fn the_first_of_a_process_has_failed_alone() {
    for others in [&[][..], &["c_passes", "d_passes"], &["a_does_not_run", "c_passes"]] {
        let names = |name| [&[name][..], others].concat();
        let (results, processes) = run(&items(&names("a_fails_once")), Isolation::Auto);
        let result = &results["a_fails_once"];
        assert_eq!((result.outcome, &result.shares_state), (TestOutcome::Failed, &None), "{result:?}");
        assert!(result.message.as_ref().unwrap().contains("not yet") && result.stdout.text.contains("said before"));
        assert_eq!(processes["a_fails_once"].len(), 1, "{processes:?}");

        let (results, _) = run(&items(&names("a_aborts_once")), Isolation::Auto);
        let result = &results["a_aborts_once"];
        assert_eq!((result.outcome, &result.shares_state), (TestOutcome::Crashed, &None), "{result:?}");
        assert!(result.message.as_ref().unwrap().starts_with("killed by signal 6"), "{result:?}");
        assert!(others.iter().all(|other| !results[*other].outcome.is_failure()), "{results:?}");
    }
}

#[test]
fn who_is_to_be_alone_is_alone() {
    let mut tests = items(&["a_passes", "b_fails", "c_passes", "d_passes"]);
    tests[1].alone = true;
    let (results, processes) = run(&tests, Isolation::Auto);
    assert!(results.values().all(|result| result.outcome == TestOutcome::Passed && result.shares_state.is_none()));
    assert!(processes.values().all(|ran| ran.len() == 1), "{processes:?}");
    assert!(processes.iter().all(|(name, ran)| name == "b_fails" || *ran != processes["b_fails"]), "{processes:?}");
}

/// A test that was started in a process that another one's failure has ended can be given to the same worker again.
#[test]
fn a_test_that_was_given_back_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut unit = Fixtures::get().unit();
    unit.program = program().path().join("company");
    unit.env.insert("RAN".into(), dir.path().join("ran").to_str().unwrap().into());
    for isolation in [Isolation::Auto, Isolation::Binary] {
        let options = LibtestOptions { isolation, yield_on_failure: true, ..LibtestOptions::default() };
        let session = Session::new(options, unit.clone());
        let tests = items(&["b_fails_always", "b_hangs"]);
        session.worker.send(Request::Run { tests: tests.clone() });
        while session.next() != (Message::TakenBack { tests: vec![1] }) {}
        assert_eq!(session.run(&tests[1..])["b_hangs"].outcome, TestOutcome::Passed, "{isolation:?}");
    }
}

/// The harness runs tests by name, and a test that has closed standard output keeps it from saying which one it runs.
#[test]
fn who_ends_a_process_is_known_where_the_harness_is_not_heard() {
    let names = ["z_passes", "y_exits_1", "x_shuts_stdout"];
    let (results, _) = run(&items(&names), Isolation::Binary);
    let outcomes = names.map(|name| results[name].outcome);
    assert_eq!(outcomes, [TestOutcome::Passed, TestOutcome::Crashed, TestOutcome::Passed], "{results:?}");
}

#[test]
fn a_failed_test_in_company_has_failed_where_the_user_wants_company() {
    let (results, processes) = run(&items(&["a_passes", "b_fails", "c_passes"]), Isolation::Binary);
    assert_eq!(results["b_fails"].outcome, TestOutcome::Failed);
    assert!(processes.values().all(|ran| *ran == processes["a_passes"]), "{processes:?}");
}

#[test]
fn a_process_that_ends_badly_condemns_the_test_whose_doing_it_is() {
    let (results, processes) = run(&items(&["a_passes", "b_ends_badly", "c_passes"]), Isolation::Auto);
    assert_eq!(results["b_ends_badly"].outcome, TestOutcome::Crashed, "{results:?}");
    assert_eq!(results["a_passes"].outcome, TestOutcome::Passed);
    let last = &results["c_passes"];
    let company = ["a_passes".to_owned(), "b_ends_badly".to_owned()];
    assert_eq!((last.outcome, last.shares_state.as_deref()), (TestOutcome::Passed, Some(&company[..])));
    assert!(processes.values().all(|ran| ran.len() == 2), "{processes:?}");
}

#[test]
fn a_process_that_is_stopped_for_a_failure_is_no_fault_of_its_last_test() {
    // It does not heed the order to stop, and comes to its end by itself.
    let tests = items(&["b_ignores_signals", "c_fails_always", "d_takes_a_while"]);
    for isolation in [Isolation::Auto, Isolation::Binary] {
        let (results, processes) = run_until(&tests, isolation, true);
        assert_eq!(results["c_fails_always"].outcome, TestOutcome::Failed);
        assert_eq!(results["d_takes_a_while"].outcome, TestOutcome::Passed, "{results:?}");
        assert_eq!(processes["d_takes_a_while"].len(), 1, "{processes:?}");
    }
}
