use std::path::Path;

use offload_core::framework::TestOutcome::*;
use offload_core::framework::TestResult;
use offload_core::report::Reporter;
use offload_core::report::history::{History, HistoryReporter};

use crate::events::{Run, everything, ms, result, test};

#[test]
fn runs_add_to_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("offload-history.jsonl");
    for millis in [10, 20, 30] {
        let mut reporter = HistoryReporter::new(&path, 20);
        let mut run = Run::start(&mut reporter);
        run.test(&test("pkg", "a"), vec![result(Passed, millis)]);
        run.test(&test("pkg", "b"), vec![result(Failed, 5), result(Passed, millis)]);
        reporter.save().unwrap();
    }
    insta::assert_snapshot!(std::fs::read_to_string(&path).unwrap(), @r#"
    {"id":"pkg a","passed":{"n":3,"samples":[0.01,0.02,0.03]}}
    {"id":"pkg b","passed":{"n":3,"samples":[0.01,0.02,0.03]},"failed":{"n":3,"samples":[0.005,0.005,0.005]}}
    "#);
    let (history, warnings) = History::load(&path).unwrap();
    assert_eq!((history.len(), warnings), (2, vec![]));
    assert_eq!(history.expected("pkg a"), Some(ms(20)));
}

#[test]
fn two_runs_at_once_both_count() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h.jsonl");
    let mut first = HistoryReporter::new(&path, 20);
    let mut second = HistoryReporter::new(&path, 20);
    Run::start(&mut first).test(&test("s", "first"), vec![result(Passed, 1)]);
    Run::start(&mut second).test(&test("s", "second"), vec![result(Passed, 1)]);
    first.save().unwrap();
    second.save().unwrap();
    assert_eq!(History::load(&path).unwrap().0.len(), 2);
}

#[test]
fn runs_that_end_at_the_same_moment_all_count() {
    let dir = tempfile::tempdir().unwrap();
    // The directory is made by whoever comes first.
    let path = dir.path().join("reports/h.jsonl");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let path = &path;
            scope.spawn(move || {
                for number in 0..25 {
                    let mut reporter = HistoryReporter::new(path, 20);
                    let mut run = Run::start(&mut reporter);
                    run.test(&test("s", "all"), vec![result(Passed, 1)]);
                    run.test(&test("s", &format!("{thread} {number}")), vec![result(Passed, 1)]);
                    reporter.save().unwrap();
                }
            });
        }
    });
    let (history, warnings) = History::load(&path).unwrap();
    assert_eq!((history.len(), warnings), (101, vec![]));
    assert!(history.to_jsonl().contains(r#"{"id":"s all","passed":{"n":100,"#));
    let left: Vec<_> =
        std::fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["h.jsonl"], "nothing else stays behind");
}

#[test]
fn what_did_not_execute_teaches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h.jsonl");
    let mut reporter = HistoryReporter::new(&path, 20);
    everything(&mut reporter);
    reporter.save().unwrap();
    let (history, _) = History::load(&path).unwrap();
    for id in ["pkg gone", "pkg ignored", "pkg waits"] {
        assert_eq!(history.expected(id), None, "{id}");
    }
    assert_eq!(history.expected("pkg crash"), Some(ms(4)));
}

/// One run of tests of one suite, with `isolation = "auto"`; which of them are to be alone in the next one.
fn alone_after(path: &Path, results: &[(&str, TestResult)]) -> Vec<String> {
    let mut reporter = HistoryReporter::new(path, 20).choosing_processes(true);
    let mut run = Run::start(&mut reporter);
    for (name, result) in results {
        run.test(&test("s", name), vec![result.clone()]);
    }
    reporter.save().unwrap();
    let (history, warnings) = History::load(path).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    let ids = results.iter().map(|(name, _)| format!("s {name}"));
    ids.filter(|id| history.wants_process(id)).collect()
}

fn shared(millis: u64) -> TestResult {
    TestResult { shared_process: true, ..result(Passed, millis) }
}

#[test]
fn what_did_not_pass_in_company_is_alone_for_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h.jsonl");
    let sharing = TestResult { shares_state: Some(vec!["b".to_owned()]), ..result(Passed, 1) };
    let leaky = TestResult { leaky: true, ..result(Passed, 1) };
    let first = [("fails", result(Failed, 1)), ("sharing", sharing), ("leaky", leaky), ("fine", shared(1))];
    assert_eq!(alone_after(&path, &first), ["s fails", "s sharing", "s leaky"]);
    let next = ["fails", "sharing", "leaky", "fine"].map(|name| (name, result(Passed, 1)));
    assert_eq!(alone_after(&path, &next), ["s fails", "s sharing", "s leaky"]);
    assert_eq!(alone_after(&path, &next), ["s sharing", "s leaky"], "it has passed twice");
    for _ in 0..18 {
        alone_after(&path, &next);
    }
    assert_eq!(alone_after(&path, &next), [""; 0]);
}

#[test]
fn tests_of_slow_binaries_are_alone_and_one_slow_test_makes_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h.jsonl");
    let one_is_slow = [("a", shared(5000)), ("b", shared(3)), ("c", shared(3))];
    assert_eq!(alone_after(&path, &one_is_slow), [""; 0]);
    let slow_alone = ["a", "b", "c"].map(|name| (name, result(Passed, 100)));
    assert_eq!(alone_after(&path, &slow_alone), [""; 0], "a process of one's own has a price of its own");
    let slow = ["a", "b", "c"].map(|name| (name, shared(30)));
    assert_eq!(alone_after(&path, &slow), ["s a", "s b", "s c"]);
}

#[test]
fn other_isolations_teach_nothing_of_processes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h.jsonl");
    let mut reporter = HistoryReporter::new(&path, 20);
    Run::start(&mut reporter).test(&test("s", "a"), vec![result(Failed, 1)]);
    reporter.save().unwrap();
    assert!(!std::fs::read_to_string(&path).unwrap().contains("alone"));
}

#[test]
fn a_history_that_cannot_be_read_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let error = HistoryReporter::new(dir.path(), 20).save().unwrap_err().to_string();
    assert!(error.starts_with("cannot write the test history to "), "{error}");
    assert!(error.ends_with("make it readable, or name another file in `history.path`"), "{error}");
}
