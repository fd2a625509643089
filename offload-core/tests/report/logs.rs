use offload_core::report::logs::{LogFilter, LoggedResult, LogsError, read, render};
use offload_core::report::{MasterJunitReport, Reporter};

use crate::events::everything;

fn last_run() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("junit.xml");
    let mut report = MasterJunitReport::new(&path);
    everything(&mut report);
    report.finish().unwrap();
    (dir, path)
}

fn show(filter: LogFilter) -> String {
    let (_dir, path) = last_run();
    render(&read(&path).unwrap(), &filter, false)
}

#[test]
fn failures_are_shown_with_output_and_earlier_attempts() {
    insta::assert_snapshot!(show(LogFilter { failures: true, ..LogFilter::default() }), @r#"
      CRASH [   0.004s] pkg crash on local-1
      killed by signal 11 (SIGSEGV)
    TIMEOUT [   0.050s] pkg fails_always on local-1, local-2, local-3
    attempt 1 error
      could not be executed
    attempt 2 failed
      panicked at tests/it.rs:3:5
    --- stdout ---
      one <line> & red ]]>
    --- stderr ---
      thread 'tests::fails' panicked at tests/it.rs:3:5:
      left != right�
    attempt 3 timed out
      timed out after 0.05 s
      stack of "main"
       FAIL [   0.123s] pkg::it tests::fails on local-1
      panicked at tests/it.rs:3:5
    --- stdout ---
      one <line> & red ]]>
    --- stderr ---
      thread 'tests::fails' panicked at tests/it.rs:3:5:
      left != right�
    "#);
}

#[test]
fn errors_are_tests_that_could_not_be_executed() {
    insta::assert_snapshot!(show(LogFilter { errors: true, ..LogFilter::default() }), @r#"
      ERROR [   0.000s] pkg gone on local-1
      no such test in the binary
    NOT RUN [   0.000s] pkg waits
      not run: interrupted
      ERROR [   0.000s] problems of the run problem 1
      cannot build `other`: 1 error
      mend it
    "#);
}

#[test]
fn tests_are_found_by_id_name_suite_and_regex() {
    let ids = |filter: LogFilter| {
        let (_dir, path) = last_run();
        read(&path).unwrap().iter().filter(|test| filter.matches(test)).map(|test| test.id()).collect::<Vec<_>>()
    };
    let by = |test: &str| ids(LogFilter { tests: vec![test.to_owned()], ..LogFilter::default() });
    assert_eq!(by("pkg crash"), ["pkg crash"]);
    assert_eq!(by("tests::fails"), ["pkg::it tests::fails"]);
    assert_eq!(by("pkg::it"), ["pkg::it tests::fails", "pkg::it tests::passes"]);
    assert_eq!(by("flaky<&>\"'ü"), ["pkg flaky<&>\"'ü"]);
    let regex = Some(regex::Regex::new("^pkg .*a").unwrap());
    assert_eq!(
        ids(LogFilter { failures: true, errors: true, regex, ..LogFilter::default() }),
        ["pkg crash", "pkg fails_always", "pkg waits"]
    );
    assert_eq!(
        show(LogFilter { tests: vec!["nothing".to_owned()], ..LogFilter::default() }),
        "no test of the last run is selected (it had 10 tests)\n"
    );
}

#[test]
fn what_is_no_report_is_an_error_that_helps() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("junit.xml");
    let error = |content: Option<&str>| {
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        read(&path).unwrap_err().to_string().replace(path.to_str().unwrap(), "PATH")
    };
    insta::assert_snapshot!(
        [
            error(None),
            error(Some("")),
            error(Some("not xml")),
            error(Some("<html></html>")),
            error(Some("<testsuites><testsuite")),
            error(Some("<testsuites><testsuite name='a'>")),
            error(Some("<testsuites></testsuite>")),
            error(Some("<testsuites a='&nope;'/>")),
        ]
        .join("\n"),
        @r#"
    there is no report of an earlier run at PATH; run the tests first, or name the report with --junit
    PATH is not a JUnit report: it is empty; run the tests again to write a new one
    PATH is not a JUnit report: it is empty; run the tests again to write a new one
    PATH is not a JUnit report: its root element is <html>; run the tests again to write a new one
    PATH is not a JUnit report: syntax error: tag not closed: `>` not found before end of input (at byte 12); run the tests again to write a new one
    PATH is not a JUnit report: it ends in the middle; run the tests again to write a new one
    PATH is not a JUnit report: ill-formed document: expected `</testsuites>`, but `</testsuite>` was found (at byte 12); run the tests again to write a new one
    PATH is not a JUnit report: at 1..5: unrecognized entity `nope` (at byte 0); run the tests again to write a new one
    "#
    );
    assert!(matches!(read(dir.path()), Err(LogsError::Unreadable { .. })));
}

#[test]
fn reports_of_other_programs_are_read_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("junit.xml");
    std::fs::write(
        &path,
        "<testsuite name='pytest'><testcase classname='tests/test_io.py' name='test_a' time='bad' new='1'>\
         <failure><![CDATA[a <b> &]]>&lt;&#65;</failure><unknown><x/></unknown></testcase></testsuite>",
    )
    .unwrap();
    let tests = read(&path).unwrap();
    assert_eq!(tests[0].id(), "tests/test_io.py::test_a");
    let LoggedResult::Failure(attempt) = &tests[0].result else { panic!("{tests:?}") };
    assert_eq!(attempt.details, "a <b> &<A");
}
