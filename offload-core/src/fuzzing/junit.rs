//! What holds for any JUnit file, and for any that is written.

use std::sync::Arc;
use std::time::Duration;

use crate::event::{Attempt, RunEvent, TestInfo, TimedEvent};
use crate::framework::TestOutcome;
use crate::framework::fuzz::read_junit;
use crate::report::junit::MasterJunitReport;
use crate::report::logs::{LogFilter, LoggedResult, read_bytes, render};
use crate::report::text;

/// A file is read by both readers. A report of what was read has each test, with its outcome, for both.
pub fn junit(input: &[u8]) {
    if let Ok(tests) = read_bytes(input) {
        render(&tests, &LogFilter::default(), false);
    }
    let Ok(cases) = read_junit(input) else { return };
    let mut report = MasterJunitReport::new("unused");
    for (number, (name, classname, result)) in cases.iter().enumerate() {
        let test = TestInfo {
            id: name.clone(),
            name: name.clone(),
            suite: classname.clone(),
            group: Arc::from(""),
            line: None,
            number: number as u32,
        };
        let attempt = |number| Attempt {
            number,
            sandbox: Arc::from("local-0"),
            started_at: Duration::ZERO,
            result: result.clone(),
        };
        let attempts =
            if result.outcome == TestOutcome::Failed { vec![attempt(1), attempt(2)] } else { vec![attempt(1)] };
        let event = RunEvent::TestFinished {
            test: Arc::new(test),
            outcome: result.outcome,
            flaky: false,
            attempts,
            reason: None,
        };
        report.add_event(&TimedEvent { at: Duration::ZERO, event });
    }
    let xml = report.to_xml();
    let again = read_junit(xml.as_bytes()).expect("what is written can be read");
    let logged = read_bytes(xml.as_bytes()).expect("what is written can be read");

    let mut expected: Vec<_> =
        cases.iter().map(|(name, _, result)| (text::xml(name).into_owned(), result.outcome)).collect();
    let mut found: Vec<_> = again.iter().map(|(name, _, result)| (name.clone(), result.outcome)).collect();
    expected.sort_by_key(|(name, outcome)| (name.clone(), *outcome as u8));
    found.sort_by_key(|(name, outcome)| (name.clone(), *outcome as u8));
    assert_eq!(found, expected, "the report has other tests: {xml}");
    let mut logged: Vec<_> = logged.iter().map(|test| (test.name.clone(), outcome(&test.result))).collect();
    logged.sort_by_key(|(name, outcome)| (name.clone(), *outcome as u8));
    assert_eq!(logged, expected, "`offload logs` has other tests: {xml}");
}

fn outcome(result: &LoggedResult) -> TestOutcome {
    match result {
        LoggedResult::Passed => TestOutcome::Passed,
        LoggedResult::Skipped(_) => TestOutcome::Skipped,
        LoggedResult::Failure(_) => TestOutcome::Failed,
        LoggedResult::Error(_) => TestOutcome::Error,
    }
}
