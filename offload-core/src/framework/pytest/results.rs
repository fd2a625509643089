//! Reading the lines that Offload's pytest plugin writes.

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;

use std::time::Duration;

use serde::Deserialize;

use super::{Place, Session};
use crate::connector::{describe_exit, tail, tail_of};
use crate::framework::{Captured, FrameworkError, FrameworkResult, TestOutcome, TestResult};
use crate::provider::ExecOutput;

/// How many lines of pytest's own output a message shows.
const TAIL_LINES: usize = 60;

/// The version of the lines that is understood here.
const FORMAT: u32 = 1;

/// What pytest collected.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// `None` when the plugin did not come to writing it.
    pub(super) session: Option<Session>,
    pub(super) tests: Vec<Place>,
    /// What could not be collected, although the rest can run.
    pub(super) problem: Option<String>,
}

/// One line. The fields that are there say what kind it is.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Session { offload: u32, rootdir: String, inifile: Option<String> },
    Finished(Box<Finished>),
    Started { started: usize },
    Missing { missing: usize },
    CollectError { collect_error: String, text: String },
    Test { id: String, nth: usize, file: String },
}

#[derive(Debug, Deserialize)]
struct Finished {
    finished: usize,
    outcome: TestOutcome,
    duration: f64,
    message: Option<String>,
    details: Option<String>,
    #[serde(default)]
    stdout: Captured,
    #[serde(default)]
    stderr: Captured,
}

/// The lines of a file. Whoever died while writing leaves a last line that is none: it is left out.
fn lines(bytes: &[u8]) -> impl Iterator<Item = Result<Line, String>> + '_ {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    bytes[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(|line| {
        let parsed = serde_json::from_slice(line).ok();
        parsed.ok_or_else(|| {
            let text: String = String::from_utf8_lossy(line).chars().take(200).collect();
            format!("a line that Offload's plugin did not write: {text:?}")
        })
    })
}

pub(super) fn listing(bytes: &[u8]) -> Result<Listing, String> {
    let mut listing = Listing::default();
    for line in lines(bytes) {
        match line? {
            Line::Session { rootdir, inifile, .. } => listing.session = Some(Session { rootdir, inifile }),
            Line::Test { id, nth, file } => listing.tests.push(Place { file, nodeid: id, nth }),
            _ => {}
        }
    }
    Ok(listing)
}

/// The results of a batch of `count` tests, in their order.
pub(super) fn parse(count: usize, output: &ExecOutput, written: &[u8]) -> FrameworkResult<Vec<TestResult>> {
    let failed = |what: &str| {
        let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
        FrameworkError::Results(format!(
            "pytest {what} ({}); its own output:{}",
            describe_exit(output.exit_code),
            tail_of(&text, TAIL_LINES),
        ))
    };
    let mut results: Vec<Option<TestResult>> = vec![None; count];
    let mut started = vec![false; count];
    let mut missing = Vec::new();
    let mut errors: Vec<(String, String)> = Vec::new();
    let mut sessions = 0;
    for line in lines(written) {
        match line.map_err(|what| failed(&format!("left {what}")))? {
            Line::Session { offload: FORMAT, .. } => sessions += 1,
            Line::Session { offload, .. } => {
                return Err(failed(&format!("wrote results in a format that is not known here, {offload}")));
            }
            Line::Started { started: key } if key < count => started[key] = true,
            Line::Finished(finished) if finished.finished < count => {
                let key = finished.finished;
                results[key] = Some(finished.into_result());
            }
            Line::Missing { missing: key } if key < count => missing.push(key),
            Line::CollectError { collect_error, text } => errors.push((collect_error, text)),
            _ => return Err(failed("named a test that was not asked for")),
        }
    }
    if sessions == 0 {
        return Err(failed("did not begin a session in the sandbox; is it installed there?"));
    }
    for key in missing {
        let details: Vec<&str> = errors.iter().map(|(_, text)| text.as_str()).collect();
        let message = match errors.first() {
            Some((what, _)) => format!("the sandbox's pytest did not find the test: {what} could not be collected"),
            None => "the sandbox's pytest did not find the test, although it was found here; are the files the same?"
                .to_owned(),
        };
        results[key] = Some(TestResult {
            details: (!details.is_empty()).then(|| details.join("\n\n")),
            ..TestResult::new(TestOutcome::Error, Duration::ZERO).with_message(message)
        });
    }
    for key in 0..count {
        if started[key] && results[key].is_none() {
            results[key] = Some(interrupted(output));
        }
    }
    if count > 0 && results.iter().all(Option::is_none) {
        return Err(failed("ran none of the tests that it was given"));
    }
    let not_run = || TestResult::new(TestOutcome::NotRun, Duration::ZERO);
    Ok(results.into_iter().map(|result| result.unwrap_or_else(not_run)).collect())
}

/// The result of a test in the middle of which everything ended.
fn interrupted(output: &ExecOutput) -> TestResult {
    let (outcome, message) = match output.exit_code {
        None => (TestOutcome::TimedOut, "pytest was ended at its time limit while the test ran".to_owned()),
        code => (TestOutcome::Crashed, format!("pytest ended while the test ran: {}", describe_exit(code))),
    };
    let details = tail(output, TAIL_LINES);
    let details = details.trim_start_matches('\n');
    TestResult {
        details: (!details.is_empty()).then(|| details.to_owned()),
        ..TestResult::new(outcome, Duration::ZERO).with_message(message)
    }
}

impl Finished {
    fn into_result(self) -> TestResult {
        TestResult {
            message: self.message.filter(|text| !text.is_empty()),
            details: self.details.filter(|text| !text.is_empty()),
            stdout: self.stdout,
            stderr: self.stderr,
            ..TestResult::new(self.outcome, Duration::try_from_secs_f64(self.duration).unwrap_or_default())
        }
    }
}
