//! The words in which results are told to people: lines per test, blocks for failures, the summary of a run.
//!
//! Everything here makes text and writes nothing, so that the console report, `print_summary` and `offload logs` tell
//! the same thing in the same words. When to say what is theirs.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use console::Style;

use super::text;
use crate::event::{Attempt, FinishedTest, RunSummary, StopReason, TestInfo};
use crate::framework::TestOutcome;

/// At most as many lines of each stream of a failed test are shown in the summary.
pub const SUMMARY_LINES: usize = 400;

/// At most as many failed tests are shown with their output in the summary; the others by name.
pub const SUMMARY_FAILURES: usize = 30;

/// At most as many lines of each other list (slow, flaky, … tests) are shown.
const LISTED: usize = 10;

impl FinishedTest {
    /// Whether the summary has anything to say of the test.
    pub(crate) fn is_remarkable(&self, slow: Duration) -> bool {
        (self.outcome.is_failure() && self.outcome != TestOutcome::NotRun)
            || self.flaky
            || self.longest() > slow
            || self.is_leaky()
            || self.company().is_some()
    }

    fn longest(&self) -> Duration {
        self.attempts.iter().map(|attempt| attempt.result.duration).max().unwrap_or_default()
    }

    fn is_leaky(&self) -> bool {
        self.attempts.iter().any(|attempt| attempt.result.leaky)
    }

    /// The tests that had run in the process in which the test did not pass, if it passed in one of its own.
    fn company(&self) -> Option<&[String]> {
        self.attempts.iter().find_map(|attempt| attempt.result.shares_state.as_deref())
    }
}

/// A sandbox that broke, for the summary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostSandbox {
    /// Its id.
    pub sandbox: Arc<str>,
    /// What happened.
    pub reason: String,
    /// How many tests started again elsewhere.
    pub requeued: usize,
}

/// What the summary of a run is made of.
#[derive(Debug, Clone)]
pub struct Summary<'a> {
    /// The totals.
    pub totals: &'a RunSummary,
    /// The finished tests; ones of which there is nothing to say may be left out.
    pub tests: &'a [FinishedTest],
    /// Sandboxes that broke.
    pub lost: &'a [LostSandbox],
    /// What hid tests or broke the run.
    pub problems: &'a [String],
    /// A test that ran longer is named.
    pub slow_test: Duration,
    /// Reports that were written, to be named at the end.
    pub reports: &'a [PathBuf],
    /// Only the line of totals.
    pub quiet: bool,
}

impl Summary<'_> {
    /// The summary as text: failed tests with their output, slow, flaky and leaky tests, tests that share state, lost sandboxes, problems, one
    /// line of totals, where the reports are.
    pub fn render(&self, color: bool) -> String {
        let palette = Palette::new(color);
        let mut out = String::new();
        if !self.quiet {
            self.failures(&mut out, &palette);
            self.notes(&mut out, &palette);
            if !out.is_empty() {
                out.push('\n');
            }
        }
        out.push_str(&totals_line(self.totals, &palette));
        out.push('\n');
        if !self.quiet {
            for report in self.reports {
                let _ = writeln!(out, "{}", palette.dim(&format!("report: {}", report.display())));
            }
        }
        out
    }

    fn failures(&self, out: &mut String, palette: &Palette) {
        let failed: Vec<_> =
            self.tests.iter().filter(|test| test.outcome.is_failure() && test.outcome != TestOutcome::NotRun).collect();
        if failed.is_empty() {
            return;
        }
        let _ = writeln!(out, "\n{}", palette.bad("failures:"));
        for test in failed.iter().take(SUMMARY_FAILURES) {
            out.push('\n');
            out.push_str(&failure_block(test, palette, SUMMARY_LINES, "; the JUnit report has more"));
        }
        if failed.len() > SUMMARY_FAILURES {
            let _ = writeln!(out, "\nfailures without their output (`offload logs --failures` shows it):\n");
            for test in &failed[SUMMARY_FAILURES..] {
                let _ = writeln!(out, "{}", test_line(test, palette));
            }
        }
    }

    fn notes(&self, out: &mut String, palette: &Palette) {
        let mut slow: Vec<_> = self.tests.iter().filter(|test| test.longest() > self.slow_test).collect();
        slow.sort_by_key(|test| std::cmp::Reverse(test.longest()));
        let label = palette.warn("SLOW");
        list(
            out,
            "slow",
            slow.len(),
            slow.iter().map(|test| status_line(&label, Some(test.longest()), &palette.test(&test.test.id))),
        );
        let flaky: Vec<_> = self.tests.iter().filter(|test| test.flaky).collect();
        list(out, "flaky", flaky.len(), flaky.iter().map(|test| test_line(test, palette)));
        let leaky: Vec<_> = self.tests.iter().filter(|test| test.is_leaky()).collect();
        let label = palette.warn("LEAKY");
        list(
            out,
            "leaky",
            leaky.len(),
            leaky.iter().map(|test| {
                let line = status_line(&label, test.duration(), &palette.test(&test.test.id));
                format!("{line}: left processes behind that held its output")
            }),
        );
        let sharing: Vec<_> =
            self.tests.iter().filter_map(|test| test.company().map(|company| (test, company))).collect();
        let label = palette.warn("SHARED");
        list(
            out,
            "sharing state",
            sharing.len(),
            sharing.iter().map(|(test, company)| {
                let line = status_line(&label, test.duration(), &palette.test(&test.test.id));
                format!("{line}: passes alone, not {}", after(company))
            }),
        );
        let label = palette.warn("LOST");
        list(
            out,
            "lost",
            self.lost.len(),
            self.lost.iter().map(|lost| format!("{} {}", pad(&label), lost_sandbox(lost))),
        );
        let label = palette.bad("PROBLEM");
        list(
            out,
            "problems",
            self.problems.len(),
            self.problems.iter().map(|problem| {
                let problem = text::plain(problem.trim_end());
                format!("{} {}", pad(&label), problem.replace('\n', &format!("\n{:LABEL_WIDTH$} ", "")))
            }),
        );
    }
}

/// `sandbox local-3 was lost: reason; 1 test starts again elsewhere`.
pub(crate) fn lost_sandbox(lost: &LostSandbox) -> String {
    let mut line = format!("sandbox {} was lost: {}", text::name(&lost.sandbox), text::plain(lost.reason.trim_end()));
    match lost.requeued {
        0 => {}
        1 => line.push_str("; 1 test starts again elsewhere"),
        n => {
            let _ = write!(line, "; {n} tests start again elsewhere");
        }
    }
    line
}

/// `after a, b in one process`: where a test did not pass.
fn after(company: &[String]) -> String {
    if company.is_empty() {
        return "as the first test of a process for several".to_owned();
    }
    let names: Vec<_> = company.iter().map(|name| text::name(name)).collect();
    format!("in one process after {}", names.join(", "))
}

fn list(out: &mut String, what: &str, total: usize, lines: impl Iterator<Item = String>) {
    if total == 0 {
        return;
    }
    out.push('\n');
    for line in lines.take(LISTED) {
        let _ = writeln!(out, "{line}");
    }
    if total > LISTED {
        let _ = writeln!(out, "{:LABEL_WIDTH$} … and {} more ({what})", "", total - LISTED);
    }
}

/// One line for a finished test: label, time, id, and what is worth saying in a few words.
pub fn test_line(test: &FinishedTest, palette: &Palette) -> String {
    let mut line = status_line(&label(test, palette), test.duration(), &palette.test(&test.test.id));
    let message = test.last().and_then(|result| result.message.as_deref());
    let says_why = match test.outcome {
        TestOutcome::Passed if test.flaky => {
            let _ = write!(line, ": passed on attempt {}", test.attempts.len());
            None
        }
        TestOutcome::Passed => None,
        TestOutcome::Skipped | TestOutcome::NotRun => test.reason.as_deref().or(message),
        _ => message,
    };
    if let Some(why) = says_why.and_then(|why| why.trim().lines().next()) {
        let _ = write!(line, ": {}", text::name(&text::plain(why)));
    }
    line
}

/// A failed test with why, what it wrote, and, in short, its earlier attempts. At most `max_lines` lines per stream;
/// `hint` says where the others are.
pub fn failure_block(test: &FinishedTest, palette: &Palette, max_lines: usize, hint: &str) -> String {
    let mut out = status_line(&label(test, palette), test.duration(), &palette.test(&test.test.id));
    if test.attempts.len() > 1 {
        let _ = write!(out, " {}", palette.dim(&format!("after {} attempts", test.attempts.len())));
    }
    out.push('\n');
    Told::of(test).render(&mut out, palette, max_lines, hint);
    out
}

/// One line for an attempt that failed and is repeated.
pub fn retry_line(test: &TestInfo, attempt: &Attempt, attempts_left: u32, palette: &Palette) -> String {
    let (number, retries) = (attempt.number, attempt.number.saturating_sub(1) + attempts_left);
    let label = palette.warn(&format!("RETRY {number}/{retries}"));
    let mut line = status_line(&label, Some(attempt.result.duration), &palette.test(&test.id));
    let _ = write!(line, ": {}", describe(attempt.result.outcome));
    if let Some(message) = attempt.result.message.as_deref().and_then(|message| message.trim().lines().next()) {
        let _ = write!(line, ", {}", text::name(&text::plain(message)));
    }
    line
}

/// The line of totals.
pub fn totals_line(totals: &RunSummary, palette: &Palette) -> String {
    let ok = totals.failed == 0 && totals.not_run == 0 && totals.problems == 0 && totals.stopped.is_none();
    let head = if !ok {
        palette.bad("Summary")
    } else if totals.flaky > 0 {
        palette.warn("Summary")
    } else {
        palette.good("Summary")
    };
    let mut line = format!("{head} [{}] ", seconds(totals.duration));
    if totals.total == 0 {
        line.push_str("no tests were found");
    } else {
        let _ = write!(line, "{}: ", text::count(totals.total, "test"));
        let mut parts = vec![palette.good(&format!("{} passed", totals.passed))];
        if totals.flaky > 0 {
            let _ = write!(parts[0], " ({})", palette.warn(&format!("{} flaky", totals.flaky)));
        }
        if totals.failed > 0 {
            let kinds: Vec<_> = [
                (totals.timed_out, "timed out"),
                (totals.crashed, "crashed"),
                (totals.errors, "could not be executed"),
            ]
            .into_iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, what)| format!("{n} {what}"))
            .collect();
            let mut failed = palette.bad(&format!("{} failed", totals.failed));
            if !kinds.is_empty() {
                let _ = write!(failed, " ({})", palette.bad(&kinds.join(", ")));
            }
            parts.push(failed);
        }
        if totals.skipped > 0 {
            parts.push(palette.warn(&format!("{} skipped", totals.skipped)));
        }
        if totals.not_run > 0 {
            parts.push(palette.bad(&format!("{} not run", totals.not_run)));
        }
        line.push_str(&parts.join(", "));
    }
    if totals.problems > 0 {
        let _ = write!(line, "; {}", palette.bad(&text::count(totals.problems, "problem")));
    }
    if let Some(reason) = totals.stopped {
        let _ = write!(line, "; {}", palette.bad(&format!("stopped early: {}", stop_reason(reason))));
    }
    line
}

pub(crate) fn stop_reason(reason: StopReason) -> &'static str {
    match reason {
        StopReason::MaxFail => "as many tests failed as allowed",
        StopReason::Interrupted => "interrupted",
        StopReason::Infrastructure => "no sandbox works",
    }
}

/// Why an attempt failed and what it wrote.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Told<'a> {
    pub(crate) message: Option<&'a str>,
    pub(crate) details: Option<&'a str>,
    pub(crate) stdout: &'a str,
    pub(crate) stderr: &'a str,
}

impl<'a> Told<'a> {
    fn of(test: &'a FinishedTest) -> Self {
        match test.last() {
            Some(result) => Self {
                message: result.message.as_deref(),
                details: result.details.as_deref(),
                stdout: &result.stdout.text,
                stderr: &result.stderr.text,
            },
            None => Self { message: test.reason.as_deref(), ..Self::default() },
        }
    }

    /// Writes it indented, each part in at most `max_lines` lines; `hint` says where the others are.
    pub(crate) fn render(&self, out: &mut String, palette: &Palette, max_lines: usize, hint: &str) {
        let indent = |out: &mut String, text: &str| {
            let text = palette.output(text.trim_end().trim_start_matches(['\n', '\r']));
            for line in text::bound_lines(&text, max_lines, hint).lines() {
                if line.is_empty() {
                    out.push('\n');
                } else {
                    let _ = writeln!(out, "    {line}");
                }
            }
        };
        let details = self.details.filter(|details| !details.trim().is_empty());
        if let Some(message) = self.message.filter(|message| !details.is_some_and(|details| details.contains(message)))
        {
            indent(out, message);
        }
        if let Some(details) = details {
            indent(out, details);
        }
        for (name, output) in [("stdout", self.stdout), ("stderr", self.stderr)] {
            if !output.trim().is_empty() {
                let _ = writeln!(out, "  {}", palette.dim(&format!("--- {name} ---")));
                indent(out, output);
            }
        }
    }
}

const LABEL_WIDTH: usize = 9;

/// A label (right-aligned), a time and an id, as every line about a test begins.
pub(crate) fn status_line(label: &str, duration: Option<Duration>, id: &str) -> String {
    let time = duration.map_or_else(|| " ".repeat(9), seconds);
    format!("{} [{time}] {id}", pad(label))
}

fn pad(label: &str) -> Cow<'_, str> {
    console::pad_str(label, LABEL_WIDTH, console::Alignment::Right, None)
}

/// `   0.123s`, as wide for a millisecond as for a day.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:>8.3}s", duration.as_secs_f64())
}

fn label(test: &FinishedTest, palette: &Palette) -> String {
    match test.outcome {
        TestOutcome::Passed if test.flaky => palette.warn("FLAKY"),
        TestOutcome::Passed => palette.good("PASS"),
        TestOutcome::Skipped => palette.warn("SKIP"),
        TestOutcome::Failed => palette.bad("FAIL"),
        TestOutcome::Error => palette.bad("ERROR"),
        TestOutcome::TimedOut => palette.bad("TIMEOUT"),
        TestOutcome::Crashed => palette.bad("CRASH"),
        TestOutcome::NotRun => palette.warn("NOT RUN"),
    }
}

fn describe(outcome: TestOutcome) -> &'static str {
    match outcome {
        TestOutcome::Passed => "passed",
        TestOutcome::Failed => "failed",
        TestOutcome::Skipped => "skipped",
        TestOutcome::Error => "could not be executed",
        TestOutcome::TimedOut => "timed out",
        TestOutcome::Crashed => "crashed",
        TestOutcome::NotRun => "not run",
    }
}

/// What colours mean; without colours, text stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Palette {
    color: bool,
}

impl Palette {
    /// A palette with or without colours.
    pub fn new(color: bool) -> Self {
        Self { color }
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.paint(Style::new().green().bold(), text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.paint(Style::new().red().bold(), text)
    }

    pub(crate) fn warn(self, text: &str) -> String {
        self.paint(Style::new().yellow().bold(), text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.paint(Style::new().dim(), text)
    }

    /// A test id.
    pub(crate) fn test(self, id: &str) -> String {
        self.paint(Style::new().cyan(), &text::name(id))
    }

    /// What a test or a tool wrote: its own colours are kept where there are colours.
    pub(crate) fn output(self, text: &str) -> Cow<'_, str> {
        if self.color { text::colored(text) } else { text::plain(text) }
    }

    fn paint(self, style: Style, text: &str) -> String {
        if self.color { style.force_styling(true).apply_to(text).to_string() } else { text.to_owned() }
    }
}
