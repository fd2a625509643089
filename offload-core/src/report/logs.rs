//! Reads the last run's JUnit report back, for `offload logs`.
//!
//! The report is a file that people move about and other programs write, too: what this module does not know in it is
//! passed over, and a file that is no report is an error that says what to do. Finding the file is the front end's
//! business, printing is the caller's.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};
use regex::Regex;

use super::junit::SANDBOX_PROPERTY;
use super::summary::{Palette, Told, status_line};
use super::text;
use crate::bounded;

/// Why the last run's report cannot be shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogsError {
    /// There is no report.
    #[error(
        "there is no report of an earlier run at {}; run the tests first, or name the report with --junit", path.display()
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The report cannot be read.
    #[error("cannot read the report of the last run at {}: {source}; make it readable for you", path.display())]
    Unreadable {
        /// Where it is.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The file is not a JUnit report, or not a whole one.
    #[error("{} is not a JUnit report: {reason}; run the tests again to write a new one", path.display())]
    Damaged {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// A test as the report has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoggedTest {
    /// The suite: a binary id or a file.
    pub suite: String,
    /// The name within the suite.
    pub name: String,
    /// How long the last attempt took.
    pub duration: Duration,
    /// The sandboxes of the attempts, joined by `, `.
    pub sandboxes: Option<String>,
    /// How it ended.
    pub result: LoggedResult,
    /// Earlier attempts that failed.
    pub earlier: Vec<LoggedAttempt>,
}

/// How a test ended.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum LoggedResult {
    /// It passed.
    #[default]
    Passed,
    /// It was skipped, for this reason.
    Skipped(String),
    /// It failed (`<failure>`).
    Failure(LoggedAttempt),
    /// It could not be executed, or was not run (`<error>`).
    Error(LoggedAttempt),
}

/// An attempt that failed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoggedAttempt {
    /// The outcome in a word: `failed`, `timed_out`, `crashed`, `error`, `not_run`.
    pub kind: String,
    /// One line on why.
    pub message: String,
    /// The long form.
    pub details: String,
    /// What the test wrote to standard output.
    pub stdout: String,
    /// What the test wrote to standard error.
    pub stderr: String,
}

/// Which tests to show. Those that satisfy every condition that is given; all without any.
#[derive(Debug, Clone, Default)]
pub struct LogFilter {
    /// `--failures`: failed tests. With `errors`: either.
    pub failures: bool,
    /// `--errors`: tests that could not be executed or were not run.
    pub errors: bool,
    /// `--test ID`: tests with one of these ids (or names, or suites).
    pub tests: Vec<String>,
    /// `--test-regex RE`: tests whose id matches.
    pub regex: Option<Regex>,
}

impl LoggedTest {
    /// The test's id as users know it: `suite name`, or the name alone where it says the suite itself.
    pub fn id(&self) -> String {
        if self.suite.is_empty() || self.name.starts_with(&self.suite) {
            self.name.clone()
        } else if self.suite.ends_with(".py") {
            format!("{}::{}", self.suite, self.name)
        } else {
            format!("{} {}", self.suite, self.name)
        }
    }
}

impl LogFilter {
    /// Whether `test` is to be shown.
    pub fn matches(&self, test: &LoggedTest) -> bool {
        let by_result = match test.result {
            _ if !self.failures && !self.errors => true,
            LoggedResult::Failure(_) => self.failures,
            LoggedResult::Error(_) => self.errors,
            LoggedResult::Passed | LoggedResult::Skipped(_) => false,
        };
        let id = test.id();
        by_result
            && (self.tests.is_empty()
                || self.tests.iter().any(|wanted| *wanted == id || *wanted == test.name || *wanted == test.suite))
            && self.regex.as_ref().is_none_or(|regex| regex.is_match(&id))
    }
}

/// Reads the report at `path`.
///
/// # Errors
///
/// [`LogsError`] when there is none, it cannot be read, or it is something else.
pub fn read(path: &Path) -> Result<Vec<LoggedTest>, LogsError> {
    let bytes = bounded::read(path, bounded::REPORT).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => LogsError::Missing { path: path.to_owned() },
        _ => LogsError::Unreadable { path: path.to_owned(), source },
    })?;
    read_bytes(&bytes).map_err(|reason| LogsError::Damaged { path: path.to_owned(), reason })
}

/// Reads a report that is in memory.
pub(crate) fn read_bytes(bytes: &[u8]) -> Result<Vec<LoggedTest>, String> {
    let root = parse(&String::from_utf8_lossy(bytes))?;
    let mut tests = Vec::new();
    match root.name.as_str() {
        "testsuites" | "testsuite" => collect(&root, &mut tests),
        other => return Err(format!("its root element is <{other}>")),
    }
    Ok(tests)
}

/// The tests that `filter` selects, with what they wrote and their earlier attempts; says so when there are none.
pub fn render(tests: &[LoggedTest], filter: &LogFilter, color: bool) -> String {
    let palette = Palette::new(color);
    let mut out = String::new();
    let mut shown = 0;
    for test in tests.iter().filter(|test| filter.matches(test)) {
        shown += 1;
        let id = test.id();
        let (label, attempt) = match &test.result {
            LoggedResult::Passed if test.earlier.is_empty() => (palette.good("PASS"), None),
            LoggedResult::Passed => (palette.warn("FLAKY"), None),
            LoggedResult::Skipped(_) => (palette.warn("SKIP"), None),
            LoggedResult::Failure(attempt) | LoggedResult::Error(attempt) => {
                (palette.bad(label(&attempt.kind)), Some(attempt))
            }
        };
        let _ = write!(out, "{}", status_line(&label, Some(test.duration), &palette.test(&id)));
        if let LoggedResult::Skipped(reason) = &test.result
            && !reason.is_empty()
        {
            let _ = write!(out, ": {}", text::name(reason));
        }
        if let (Some(sandboxes), true) = (&test.sandboxes, attempt.is_some() || !test.earlier.is_empty()) {
            let _ = write!(out, " {}", palette.dim(&format!("on {}", text::name(sandboxes))));
        }
        out.push('\n');
        for (index, attempt) in test.earlier.iter().enumerate() {
            let _ = writeln!(out, "  {}", palette.warn(&format!("attempt {} {}", index + 1, words(&attempt.kind))));
            render_attempt(&mut out, attempt, &palette);
        }
        if let Some(attempt) = attempt {
            if !test.earlier.is_empty() {
                let number = test.earlier.len() + 1;
                let _ = writeln!(out, "  {}", palette.bad(&format!("attempt {number} {}", words(&attempt.kind))));
            }
            render_attempt(&mut out, attempt, &palette);
        }
    }
    if shown == 0 {
        let _ = match tests.iter().filter(|test| test.suite != super::junit::RUN_SUITE).count() {
            0 => writeln!(out, "there was no test in the last run"),
            n => writeln!(out, "no test of the last run is selected (it had {})", text::count(n, "test")),
        };
    }
    out
}

fn render_attempt(out: &mut String, attempt: &LoggedAttempt, palette: &Palette) {
    let shows_output =
        |text: &str| !text.is_empty() && (attempt.stdout.contains(text) || attempt.stderr.contains(text));
    // Without a traceback the report repeats the output in its place; once is enough here.
    let details = Some(attempt.details.trim_end()).filter(|details| !shows_output(details));
    let told = Told { message: Some(&attempt.message), details, stdout: &attempt.stdout, stderr: &attempt.stderr };
    told.render(out, palette, usize::MAX, "");
}

fn label(kind: &str) -> &'static str {
    match kind {
        "timed_out" => "TIMEOUT",
        "crashed" => "CRASH",
        "error" | "problem" | "interrupted" => "ERROR",
        "not_run" => "NOT RUN",
        _ => "FAIL",
    }
}

fn words(kind: &str) -> String {
    kind.replace('_', " ")
}

/// An element with everything in it.
#[derive(Default)]
struct Element {
    name: String,
    attributes: HashMap<String, String>,
    text: String,
    children: Vec<Element>,
}

impl Element {
    fn attribute(&self, name: &str) -> String {
        self.attributes.get(name).cloned().unwrap_or_default()
    }

    fn child_text(&self, name: &str) -> String {
        self.children.iter().find(|child| child.name == name).map(|child| child.text.clone()).unwrap_or_default()
    }
}

/// Elements within elements of a report that may be read: what is deeper would take the stack of whoever walks it.
const DEEPEST: usize = 100;

fn parse(xml: &str) -> Result<Element, String> {
    let mut reader = quick_xml::Reader::from_str(xml);
    // The element that is being read, at first the document itself; and those that it is in.
    let (mut element, mut around) = (Element::default(), Vec::new());
    loop {
        let at = reader.buffer_position();
        let damaged = |error: &dyn std::fmt::Display| format!("{error} (at byte {at})");
        let event = reader.read_event().map_err(|error| damaged(&error))?;
        match event {
            Event::Start(start) => {
                if around.len() >= DEEPEST {
                    return Err(damaged(&"elements are nested too deeply"));
                }
                let child = begin(&start).map_err(|error| damaged(&error))?;
                around.push(std::mem::replace(&mut element, child));
            }
            Event::Empty(start) => element.children.push(begin(&start).map_err(|error| damaged(&error))?),
            Event::End(_) => {
                let parent = around.pop().ok_or_else(|| damaged(&"an element ends that never began"))?;
                let ended = std::mem::replace(&mut element, parent);
                element.children.push(ended);
            }
            Event::Text(content) => element.text.push_str(&content.xml10_content()),
            Event::CData(content) => element.text.push_str(&content.xml10_content()),
            Event::GeneralRef(reference) => {
                if let Some(c) = reference.resolve_char_ref().map_err(|error| damaged(&error))? {
                    element.text.push(c);
                } else if let Some(c) = quick_xml::escape::resolve_xml_entity(&reference.xml10_content()) {
                    element.text.push_str(c);
                }
            }
            Event::Eof if !around.is_empty() => return Err("it ends in the middle".to_owned()),
            Event::Eof => break,
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
        }
    }
    element.children.into_iter().next().ok_or_else(|| "it is empty".to_owned())
}

fn begin(start: &BytesStart<'_>) -> Result<Element, quick_xml::Error> {
    let mut element = Element { name: start.name().as_ref().to_owned(), ..Element::default() };
    for attribute in start.attributes() {
        let attribute = attribute?;
        let value = attribute.normalized_value(XmlVersion::Implicit1_0)?;
        element.attributes.insert(attribute.key.as_ref().to_owned(), value.into_owned());
    }
    Ok(element)
}

fn collect(suite: &Element, tests: &mut Vec<LoggedTest>) {
    let mut sandboxes = HashMap::new();
    for properties in suite.children.iter().filter(|child| child.name == "properties") {
        for property in &properties.children {
            let name = property.attribute("name");
            if let Some(test) = name.strip_prefix(SANDBOX_PROPERTY) {
                sandboxes.insert(test.to_owned(), property.attribute("value"));
            }
        }
    }
    for child in &suite.children {
        match child.name.as_str() {
            "testsuite" => collect(child, tests),
            "testcase" => {
                let mut test = logged_test(child);
                test.sandboxes = sandboxes.get(&test.name).cloned();
                tests.push(test);
            }
            _ => {}
        }
    }
}

fn logged_test(case: &Element) -> LoggedTest {
    let secs: f64 = case.attribute("time").parse().unwrap_or(0.0);
    let mut test = LoggedTest {
        suite: case.attribute("classname"),
        name: case.attribute("name"),
        duration: Duration::try_from_secs_f64(secs).unwrap_or_default(),
        ..LoggedTest::default()
    };
    for child in &case.children {
        let attempt = |details: String, output: &Element| LoggedAttempt {
            kind: child.attribute("type"),
            message: child.attribute("message"),
            details,
            stdout: output.child_text("system-out"),
            stderr: output.child_text("system-err"),
        };
        match child.name.as_str() {
            "skipped" => test.result = LoggedResult::Skipped(child.attribute("message")),
            "failure" => test.result = LoggedResult::Failure(attempt(child.text.clone(), case)),
            "error" => test.result = LoggedResult::Error(attempt(child.text.clone(), case)),
            "flakyFailure" | "flakyError" | "rerunFailure" | "rerunError" => {
                test.earlier.push(attempt(child.child_text("stackTrace"), child));
            }
            _ => {}
        }
    }
    test
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_in_elements_without_end_are_refused() {
        let nested = |depth: usize| format!("<testsuites>{}{}</testsuites>", "<a>".repeat(depth), "</a>".repeat(depth));
        assert!(read_bytes(nested(50).as_bytes()).is_ok());
        let error = read_bytes(nested(1_000_000).as_bytes()).unwrap_err();
        assert!(error.contains("elements are nested too deeply"), "{error}");
    }
}
