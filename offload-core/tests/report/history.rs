use offload_core::framework::TestOutcome::*;
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

#[test]
fn a_history_that_cannot_be_read_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let error = HistoryReporter::new(dir.path(), 20).save().unwrap_err().to_string();
    assert!(error.starts_with("cannot write the test history to "), "{error}");
    assert!(error.ends_with("make it readable, or name another file in `history.path`"), "{error}");
}
