//! The JUnit report: one XML file for all frameworks, groups and sandboxes of a run.
//!
//! The format is the one of the Jenkins xUnit plugin's schema `junit-10`, which GitLab, GitHub actions and Surefire's
//! own readers understand. One `<testsuite>` per [suite](crate::framework::Suite), sorted, so that two runs with the
//! same outcomes differ in times only. How what happened is spelled:
//!
//! | what happened | in the file |
//! | --- | --- |
//! | failed, timed out, crashed | `<failure type="failed">`, `"timed_out"`, `"crashed"` |
//! | could not be executed | `<error type="error">` |
//! | not run, because the run ended early | `<error type="not_run">`: CI must not take it for a success |
//! | skipped | `<skipped message="…">` |
//! | an earlier attempt of a test that passed in the end | `<flakyFailure>`, `<flakyError>` |
//! | an earlier attempt of a test that failed in the end | `<rerunFailure>`, `<rerunError>` |
//!
//! What broke the run as a whole (a target that does not compile, tests that could not be listed, sandboxes that do not
//! work, a report that cannot be written, Ctrl-C) is a test case with an `<error>`, too, in a suite of its own at the end,
//! [`RUN_SUITE`]: whatever makes the exit code non-zero has an element.
//!
//! The schema has no properties of a test case. So the sandboxes on which a test ran are a property of its suite,
//! named `sandbox:` and the test's name; several attempts give several ids, joined by `, `. Likewise a test that passes
//! alone and did not in a process that it shared with others has the property `shares_state:` and its name: the tests
//! before it in that process.
//!
//! What the terminal shows is none of this module's business; [`logs`](super::logs) reads these files.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quick_xml::events::{BytesDecl, BytesEnd, BytesStart, BytesText, Event};

use super::{ReportError, Reporter, atomic, text};
use crate::event::{Attempt, RunEvent, RunSummary, StopReason, TestInfo, TimedEvent};
use crate::framework::{Captured, TestOutcome};

/// What one stream of one failed attempt may take in the report.
const STREAM_LIMIT: usize = 256 * 1024;

/// When the output in the report amounts to this much, further streams get [`SCARCE_STREAM_LIMIT`] only, so that a
/// suite in which everything fails does not exhaust the memory.
const TOTAL_LIMIT: usize = 64 * 1024 * 1024;

/// See [`TOTAL_LIMIT`].
const SCARCE_STREAM_LIMIT: usize = 4 * 1024;

/// What is shown of a failed test's output where it has no traceback.
const EXCERPT_LIMIT: usize = 4 * 1024;

/// Before the name of a test, in the name of the property that tells its sandbox.
pub(super) const SANDBOX_PROPERTY: &str = "sandbox:";

/// Before the name of a test, in the name of the property that tells after which others it does not pass.
const SHARES_STATE_PROPERTY: &str = "shares_state:";

/// The suite of what concerns the run and no test.
pub const RUN_SUITE: &str = "problems of the run";

/// The JUnit report of a whole run.
///
/// As a [`Reporter`] it collects test by test and writes the file at the end. It can be used by itself, too:
/// [`add_event`](Self::add_event), then [`to_xml`](Self::to_xml) or [`write`](Self::write).
#[derive(Debug)]
pub struct MasterJunitReport {
    path: PathBuf,
    started_at: Option<Duration>,
    duration: Duration,
    cases: Vec<Case>,
    kept_output: usize,
    /// What hid tests or broke the run.
    problems: Vec<String>,
    interrupted: bool,
    saved: bool,
}

/// One test, reduced to what the report says of it.
#[derive(Debug)]
struct Case {
    test: Arc<TestInfo>,
    outcome: TestOutcome,
    duration: Duration,
    started_at: Option<Duration>,
    /// Why the test was skipped or not run.
    reason: Option<String>,
    sandboxes: Vec<Arc<str>>,
    /// After which tests it did not pass, where it does alone.
    company: Option<Vec<String>>,
    /// Failed attempts, in order; the last one is the outcome if that is a failure.
    failures: Vec<FailedAttempt>,
}

impl Case {
    /// What the test had left standing could not be torn down. There can be one element of failure only.
    fn fail_late(&mut self, failure: FailedAttempt) {
        match self.failures.last_mut().filter(|_| self.outcome.is_failure()) {
            Some(last) => {
                last.details.push_str("\n\n");
                last.details.push_str(&failure.details);
            }
            None => {
                self.outcome = failure.outcome;
                self.failures.push(failure);
            }
        }
    }
}

#[derive(Debug)]
struct FailedAttempt {
    outcome: TestOutcome,
    message: String,
    details: String,
    stdout: String,
    stderr: String,
}

/// What concerns the run and no test.
struct RunError<'a> {
    name: String,
    kind: &'static str,
    text: &'a str,
}

impl MasterJunitReport {
    /// A report without tests, to be written to `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            started_at: None,
            duration: Duration::ZERO,
            cases: Vec::new(),
            kept_output: 0,
            problems: Vec::new(),
            interrupted: false,
            saved: false,
        }
    }

    /// Where the report is written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes note of what concerns the report.
    pub fn add_event(&mut self, event: &TimedEvent) {
        match &event.event {
            RunEvent::RunStarted { started_at_secs, .. } => {
                self.started_at = Duration::try_from_secs_f64(*started_at_secs).ok();
            }
            RunEvent::TestFinished { test, outcome, attempts, reason, .. } => {
                self.duration = self.duration.max(event.at);
                let case = self.case(test, *outcome, attempts, reason.as_deref());
                self.cases.push(case);
            }
            RunEvent::LateFailure { test, attempt } => {
                let failure = self.failed_attempt(attempt);
                if let Some(case) = self.cases.iter_mut().rev().find(|case| case.test.number == test.number) {
                    case.fail_late(failure);
                }
            }
            RunEvent::Problem { text } => {
                let text = self.keep(text, 0);
                self.problems.push(text);
            }
            RunEvent::Stopping { reason: StopReason::Interrupted } => self.interrupted = true,
            RunEvent::RunFinished { summary } => self.add_totals(summary),
            _ => {}
        }
    }

    fn add_totals(&mut self, totals: &RunSummary) {
        self.duration = totals.duration;
        self.interrupted |= totals.stopped == Some(StopReason::Interrupted);
    }

    /// The report as it stands.
    #[expect(clippy::expect_used, reason = "memory takes whatever is written to it, and only strings are")]
    pub fn to_xml(&self) -> String {
        let mut xml = Vec::new();
        self.write_to(&mut xml).expect("writing to memory does not fail");
        String::from_utf8(xml).expect("the report is made of strings")
    }

    /// Writes the report to its path, in place of an earlier one.
    ///
    /// # Errors
    ///
    /// [`ReportError`] when it cannot be written; the earlier one is then untouched.
    pub fn write(&self) -> Result<(), ReportError> {
        atomic::replace(&self.path, "the JUnit report", |writer| self.write_to(writer))
    }

    fn case(&mut self, test: &Arc<TestInfo>, outcome: TestOutcome, attempts: &[Attempt], reason: Option<&str>) -> Case {
        let last = attempts.last();
        Case {
            test: Arc::clone(test),
            outcome,
            duration: last.map_or(Duration::ZERO, |attempt| attempt.result.duration),
            started_at: attempts.first().map(|attempt| attempt.started_at),
            reason: match outcome {
                TestOutcome::Skipped | TestOutcome::NotRun => {
                    reason.or_else(|| last.and_then(|attempt| attempt.result.message.as_deref())).map(str::to_owned)
                }
                _ => None,
            },
            sandboxes: attempts.iter().map(|attempt| Arc::clone(&attempt.sandbox)).collect(),
            company: attempts.iter().find_map(|attempt| attempt.result.shares_state.clone()),
            failures: attempts
                .iter()
                .filter(|attempt| attempt.result.outcome.is_failure())
                .map(|attempt| self.failed_attempt(attempt))
                .collect(),
        }
    }

    fn failed_attempt(&mut self, attempt: &Attempt) -> FailedAttempt {
        let result = &attempt.result;
        let message = result.message.as_deref().unwrap_or(match result.outcome {
            TestOutcome::TimedOut => "timed out",
            TestOutcome::Crashed => "crashed",
            TestOutcome::Error => "could not be executed",
            _ => "failed",
        });
        let message = text::xml(message).into_owned();
        let stdout = self.keep(&result.stdout.text, result.stdout.dropped_bytes);
        let stderr = self.keep(&result.stderr.text, result.stderr.dropped_bytes);
        let details = match &result.details {
            Some(details) => self.keep(details, 0),
            // Some readers show the text of the element and nothing else, so it is never empty.
            None => excerpt(&result.stderr).or_else(|| excerpt(&result.stdout)).unwrap_or_else(|| message.clone()),
        };
        FailedAttempt { outcome: result.outcome, message, details, stdout, stderr }
    }

    fn keep(&mut self, output: &str, dropped: u64) -> String {
        let limit = if self.kept_output < TOTAL_LIMIT { STREAM_LIMIT } else { SCARCE_STREAM_LIMIT };
        let kept = text::bound_bytes(&text::xml(output), limit, dropped).into_owned();
        self.kept_output += kept.len();
        kept
    }

    fn write_to(&self, writer: &mut dyn Write) -> io::Result<()> {
        let mut suites: BTreeMap<&str, Vec<&Case>> = BTreeMap::new();
        for case in &self.cases {
            suites.entry(&case.test.suite).or_default().push(case);
        }
        let mut xml = Xml(quick_xml::Writer::new_with_indent(writer, b' ', 2));
        xml.0.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
        let mut totals = Counts::of(&self.cases);
        let run_errors = self.run_errors();
        totals.tests += run_errors.len();
        totals.errors += run_errors.len();
        xml.open(
            "testsuites",
            &[
                ("name", "offload"),
                ("tests", &totals.tests.to_string()),
                ("failures", &totals.failures.to_string()),
                ("errors", &totals.errors.to_string()),
                ("time", &seconds(self.duration)),
            ],
        )?;
        for (suite, mut cases) in suites {
            cases.sort_by_key(|case| (&case.test.name, &case.test.group));
            self.write_suite(&mut xml, suite, &cases)?;
        }
        self.write_run_errors(&mut xml, &run_errors)?;
        xml.close("testsuites")?;
        xml.0.get_mut().write_all(b"\n")
    }

    fn run_errors(&self) -> Vec<RunError<'_>> {
        let problems = self.problems.iter().enumerate();
        let mut errors: Vec<_> =
            problems.map(|(i, text)| RunError { name: format!("problem {}", i + 1), kind: "problem", text }).collect();
        if self.interrupted {
            errors.push(RunError {
                name: "interrupted".to_owned(),
                kind: "interrupted",
                text: "the run was interrupted",
            });
        }
        errors
    }

    fn write_run_errors(&self, xml: &mut Xml<'_>, errors: &[RunError<'_>]) -> io::Result<()> {
        if errors.is_empty() {
            return Ok(());
        }
        let count = errors.len().to_string();
        let timestamp = self.started_at.map(utc);
        let mut attributes = vec![
            ("name", RUN_SUITE),
            ("tests", &count),
            ("failures", "0"),
            ("errors", &count),
            ("skipped", "0"),
            ("time", "0.000"),
        ];
        if let Some(timestamp) = &timestamp {
            attributes.push(("timestamp", timestamp));
        }
        xml.open("testsuite", &attributes)?;
        for error in errors {
            xml.open("testcase", &[("name", &error.name), ("classname", RUN_SUITE), ("time", "0.000")])?;
            let message = error.text.trim().lines().next().unwrap_or_default();
            xml.text("error", &[("type", error.kind), ("message", message)], error.text)?;
            xml.close("testcase")?;
        }
        xml.close("testsuite")
    }

    fn write_suite(&self, xml: &mut Xml<'_>, suite: &str, cases: &[&Case]) -> io::Result<()> {
        let suite = text::xml(if suite.is_empty() { "tests" } else { suite });
        let counts = Counts::of(cases.iter().copied());
        let (tests, failures) = (counts.tests.to_string(), counts.failures.to_string());
        let (errors, skipped) = (counts.errors.to_string(), counts.skipped.to_string());
        let time = seconds(cases.iter().map(|case| case.duration).fold(Duration::ZERO, Duration::saturating_add));
        let first_start = cases.iter().filter_map(|case| case.started_at).min().unwrap_or_default();
        let timestamp = self.started_at.map(|started_at| utc(started_at + first_start));
        let mut attributes = vec![
            ("name", &*suite),
            ("tests", &tests),
            ("failures", &failures),
            ("errors", &errors),
            ("skipped", &skipped),
            ("time", &time),
        ];
        if let Some(timestamp) = &timestamp {
            attributes.push(("timestamp", timestamp));
        }
        xml.open("testsuite", &attributes)?;
        if cases.iter().any(|case| !case.sandboxes.is_empty()) {
            xml.open("properties", &[])?;
            for case in cases.iter().filter(|case| !case.sandboxes.is_empty()) {
                let name = format!("{SANDBOX_PROPERTY}{}", text::xml(&case.test.name));
                let sandboxes = case.sandboxes.join(", ");
                xml.empty("property", &[("name", &name), ("value", &text::xml(&sandboxes))])?;
                if let Some(company) = &case.company {
                    let name = format!("{SHARES_STATE_PROPERTY}{}", text::xml(&case.test.name));
                    xml.empty("property", &[("name", &name), ("value", &text::xml(&company.join(", ")))])?;
                }
            }
            xml.close("properties")?;
        }
        for case in cases {
            write_case(xml, &suite, case)?;
        }
        xml.close("testsuite")
    }
}

impl Reporter for MasterJunitReport {
    fn on_event(&mut self, event: &TimedEvent) {
        self.add_event(event);
    }

    fn save_results(&mut self, totals: &RunSummary) -> Result<(), ReportError> {
        self.add_totals(totals);
        self.saved = true;
        self.write()
    }

    fn finish(&mut self) -> Result<(), ReportError> {
        if self.saved { Ok(()) } else { self.write() }
    }
}

fn write_case(xml: &mut Xml<'_>, suite: &str, case: &Case) -> io::Result<()> {
    let name = text::xml(&case.test.name);
    let time = seconds(case.duration);
    let group = text::xml(&case.test.group);
    let mut attributes = vec![("name", &*name), ("classname", suite), ("time", &*time)];
    if !group.is_empty() {
        attributes.push(("group", &group));
    }
    let reason = case.reason.as_deref().map(text::xml);
    let failed = case.outcome.is_failure() && case.outcome != TestOutcome::NotRun;
    let (last, earlier) = match case.failures.split_last() {
        Some((last, earlier)) if failed => (Some(last), earlier),
        _ => (None, &*case.failures),
    };
    if last.is_none() && earlier.is_empty() && matches!(case.outcome, TestOutcome::Passed) {
        return xml.empty("testcase", &attributes);
    }
    xml.open("testcase", &attributes)?;
    match (case.outcome, last) {
        (TestOutcome::Passed, _) => {}
        (TestOutcome::Skipped, _) => match &reason {
            Some(reason) => xml.empty("skipped", &[("message", reason)])?,
            None => xml.empty("skipped", &[])?,
        },
        (TestOutcome::NotRun, _) => {
            let message = reason.map_or_else(|| "not run".to_owned(), |reason| format!("not run: {reason}"));
            xml.empty("error", &[("type", "not_run"), ("message", &message)])?;
        }
        (outcome, Some(last)) => {
            let element = if is_error(outcome) { "error" } else { "failure" };
            xml.text(element, &[("type", word(outcome)), ("message", &last.message)], &last.details)?;
        }
        (outcome, None) => {
            let element = if is_error(outcome) { "error" } else { "failure" };
            xml.empty(element, &[("type", word(outcome))])?;
        }
    }
    let passed = case.outcome == TestOutcome::Passed;
    for attempt in earlier {
        let element = match (passed, is_error(attempt.outcome)) {
            (true, false) => "flakyFailure",
            (true, true) => "flakyError",
            (false, false) => "rerunFailure",
            (false, true) => "rerunError",
        };
        xml.open(element, &[("type", word(attempt.outcome)), ("message", &attempt.message)])?;
        xml.text("stackTrace", &[], &attempt.details)?;
        write_output(xml, attempt)?;
        xml.close(element)?;
    }
    if let Some(last) = last {
        write_output(xml, last)?;
    }
    xml.close("testcase")
}

fn write_output(xml: &mut Xml<'_>, attempt: &FailedAttempt) -> io::Result<()> {
    for (element, output) in [("system-out", &attempt.stdout), ("system-err", &attempt.stderr)] {
        if !output.is_empty() {
            xml.text(element, &[], output)?;
        }
    }
    Ok(())
}

/// How an outcome is spelled in the attribute `type`, as in JSON.
pub(super) fn word(outcome: TestOutcome) -> &'static str {
    match outcome {
        TestOutcome::Passed => "passed",
        TestOutcome::Failed => "failed",
        TestOutcome::Skipped => "skipped",
        TestOutcome::Error => "error",
        TestOutcome::TimedOut => "timed_out",
        TestOutcome::Crashed => "crashed",
        TestOutcome::NotRun => "not_run",
    }
}

fn is_error(outcome: TestOutcome) -> bool {
    matches!(outcome, TestOutcome::Error | TestOutcome::NotRun)
}

fn excerpt(output: &Captured) -> Option<String> {
    let text = text::xml(output.text.trim_end());
    (!text.is_empty()).then(|| text::bound_bytes(&text, EXCERPT_LIMIT, output.dropped_bytes).into_owned())
}

fn seconds(duration: Duration) -> String {
    format!("{:.3}", duration.as_secs_f64())
}

/// A time since the Unix epoch as `2026-11-23T03:01:48`, in UTC, as JUnit writes timestamps.
fn utc(since_epoch: Duration) -> String {
    let secs = since_epoch.as_secs();
    let (days, of_day) = (secs / 86_400, secs % 86_400);
    // The civil calendar from a day number, counted in eras of 400 years that begin on a first of March:
    // https://howardhinnant.github.io/date_algorithms.html#civil_from_days
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day_of_month = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}")
}

/// How many tests ended how, in JUnit's terms.
#[derive(Default)]
struct Counts {
    tests: usize,
    failures: usize,
    errors: usize,
    skipped: usize,
}

impl Counts {
    fn of<'a>(cases: impl IntoIterator<Item = &'a Case>) -> Self {
        let mut counts = Self::default();
        for case in cases {
            counts.tests += 1;
            match case.outcome {
                TestOutcome::Passed => {}
                TestOutcome::Skipped => counts.skipped += 1,
                outcome if is_error(outcome) => counts.errors += 1,
                _ => counts.failures += 1,
            }
        }
        counts
    }
}

/// Elements in short; escaping is quick-xml's.
struct Xml<'w>(quick_xml::Writer<&'w mut dyn Write>);

impl Xml<'_> {
    fn open(&mut self, name: &str, attributes: &[(&str, &str)]) -> io::Result<()> {
        self.0.write_event(Event::Start(BytesStart::new(name).with_attributes(attributes.iter().copied())))
    }

    fn close(&mut self, name: &str) -> io::Result<()> {
        self.0.write_event(Event::End(BytesEnd::new(name)))
    }

    fn empty(&mut self, name: &str, attributes: &[(&str, &str)]) -> io::Result<()> {
        self.0.write_event(Event::Empty(BytesStart::new(name).with_attributes(attributes.iter().copied())))
    }

    fn text(&mut self, name: &str, attributes: &[(&str, &str)], content: &str) -> io::Result<()> {
        if content.is_empty() {
            return self.empty(name, attributes);
        }
        self.open(name, attributes)?;
        self.0.write_event(Event::Text(BytesText::from_escaped(quick_xml::escape::partial_escape(content))))?;
        self.close(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_follow_the_calendar() {
        for (secs, expected) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_399, "2000-02-28T23:59:59"),
            (951_782_400, "2000-02-29T00:00:00"),
            (1_795_402_908, "2026-11-23T03:01:48"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            assert_eq!(utc(Duration::from_secs(secs)), expected);
        }
    }
}
