//! What becomes of tests that end by themselves, in whatever way.

use std::collections::BTreeMap;
use std::time::Duration;

use offload_core::framework::{Isolation, TestOutcome};
use offload_core::worker::libtest::LibtestOptions;
use offload_core::worker::{Harness, RunItem, Unit};

use crate::support::{Fixtures, Session, doctest_unit, item, items, run_one};

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
    for isolation in [Isolation::Auto, Isolation::Process, Isolation::Binary] {
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
    for isolation in [Isolation::Auto, Isolation::Process, Isolation::Binary] {
        let options = LibtestOptions { isolation, ..LibtestOptions::default() };
        let results = Session::new(options, Fixtures::get().unit()).run(&items(&names));
        for (name, expected) in cases {
            let result = &results[name];
            assert_eq!((result.outcome, result.message.as_deref()), (TestOutcome::Crashed, Some(expected)), "{name}");
        }
        for name in ["passes", "passes_too"] {
            assert_eq!(results[name].outcome, TestOutcome::Passed, "{isolation:?}: {:?}", results[name]);
        }
        if isolation != Isolation::Binary {
            assert_eq!(results["aborts"].stdout.text, "last words\n");
        }
    }
}

#[test]
fn ignored_tests_run_when_told_to() {
    for isolation in [Isolation::Auto, Isolation::Process, Isolation::Binary] {
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
    for isolation in [Isolation::Auto, Isolation::Process, Isolation::Binary] {
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
    for isolation in [Isolation::Auto, Isolation::Process, Isolation::Binary] {
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
    for isolation in [Isolation::Auto, Isolation::Process, Isolation::Binary] {
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
    for isolation in [Isolation::Auto, Isolation::Process, Isolation::Binary] {
        let options = LibtestOptions { isolation, env: env.clone(), ..LibtestOptions::default() };
        let results = Session::new(options, unit.clone()).run(&items(&["sees_its_environment", "passes"]));
        let result = &results["sees_its_environment"];
        assert_eq!(result.outcome, TestOutcome::Passed, "{result:?}");
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
fn a_harness_without_a_log_runs_a_process_per_test() {
    // Understands one filter and no log, as most harnesses that imitate the standard one: it says so, or takes no notice.
    for refusal in ["echo 'error: unexpected argument' >&2; exit 2", "for last; do :; done; set -- \"$last\""] {
        let script = format!(
            r#"
            case "$*" in *logfile*) {refusal};; esac
            printf 'running 1 test\ntest %s ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored\n' "$1"
            "#
        );
        let unit = Unit { harness: Harness::Libtest, ..doctest_unit(&script) };
        let results = Session::binary(unit).run(&items(&["a", "b", "c"]));
        assert!(results.values().all(|result| result.outcome == TestOutcome::Passed), "{refusal}: {results:?}");
    }
}
