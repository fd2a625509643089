//! What it means how a test process ended and what it wrote: outcome, one line on why, and the test's own output
//! without the harness's.
//!
//! The forms of the standard harness's output are those of rust-lang/rust, library/test/src/formatters, and the panic
//! messages those of library/std/src/panicking.rs before and after 1.73.

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Signal;

use super::batch::log::Entry;
use crate::framework::{Captured, TestOutcome};

/// The exit code of the standard harness when a test failed, and of a panic that nobody catches.
const FAILURE_CODE: i32 = 101;

/// The longest one-line message, in characters.
const LONGEST_MESSAGE: usize = 400;

/// The longest message of a panic of which the end is looked for, in bytes.
const LONGEST_QUOTED: usize = 4 << 10;

/// How a process of one test is to be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) outcome: TestOutcome,
    pub(super) message: Option<String>,
}

impl Reading {
    fn new(outcome: TestOutcome, message: impl Into<String>) -> Self {
        Self { outcome, message: Some(message.into()) }
    }
}

/// Reads the result of a process that was to run the test `name`, of the standard harness or one that imitates it
/// (`custom`). `None`: the process ended as the harness ends it, and whether the harness has said so cannot be told from
/// the output: the test may have ended the process, or closed or redirected its standard output.
pub(super) fn of_libtest(
    status: ExitStatus,
    name: &str,
    (stdout, stderr): (&Captured, &Captured),
    custom: bool,
) -> Option<Reading> {
    if status.success() && !custom && !is_complete(stdout) {
        return None;
    }
    let (stdout, stderr) = (&*stdout.text, &*stderr.text);
    if status.signal().is_some() {
        return Some(Reading { outcome: TestOutcome::Crashed, message: Some(crash_message(status, stderr)) });
    }
    let code = status.code().unwrap_or(-1);
    let counts = Counts::find(stdout);
    Some(match (code, counts) {
        (0, Some(Counts { passed: 1.., failed: 0, .. })) => Reading { outcome: TestOutcome::Passed, message: None },
        (0, Some(Counts { passed: 0, failed: 0, ignored: 1.., .. })) => {
            let message = ignored_reason(stdout, name);
            Reading { outcome: TestOutcome::Skipped, message: Some(message.unwrap_or("ignored").to_owned()) }
        }
        (0, Some(Counts { failed: 0, .. })) => {
            Reading::new(TestOutcome::Error, "the binary no longer has this test; build it again")
        }
        // Another harness, which is not known to end with a summary (benchmarks, for one).
        (0, None) if !has_preamble(stdout) => Reading { outcome: TestOutcome::Passed, message: None },
        (0, None) => Reading::new(TestOutcome::Crashed, exited_in_the_middle(0)),
        (_, Some(_)) => {
            Reading::new(TestOutcome::Failed, failure_message(name, stdout, stderr).unwrap_or_else(|| exit_code(code)))
        }
        // The harness's last words may be missing because the test has closed or redirected its standard output.
        (FAILURE_CODE, None) if panicked(name, stderr) => {
            Reading::new(TestOutcome::Failed, panic_message(name, stderr).unwrap_or_else(|| exit_code(code)))
        }
        (FAILURE_CODE, None) if !custom && has_preamble(stdout) => return None,
        (_, None) if has_preamble(stdout) => Reading::new(TestOutcome::Crashed, exited_in_the_middle(code)),
        (FAILURE_CODE, None) if refusal(stderr).is_some() => {
            let refusal = refusal(stderr).unwrap_or_default();
            Reading::new(TestOutcome::Error, format!("the test binary refused its arguments: {refusal}"))
        }
        (_, None) => {
            let message = failure_message(name, stdout, stderr).or_else(|| last_line(stderr));
            let message = message.map_or_else(|| exit_code(code), |message| format!("{}: {message}", exit_code(code)));
            Reading::new(TestOutcome::Failed, bounded(message))
        }
    })
}

/// Reads the result of a process whose output leaves it open how the test went, from the entry in the harness's log and the
/// exit code.
pub(super) fn of_log(entry: Option<Entry>, name: &str, code: i32, (stdout, stderr): (&str, &str)) -> Reading {
    let Some(Entry { result, message, .. }) = entry else {
        return Reading::new(TestOutcome::Crashed, exited_in_the_middle(code));
    };
    match result {
        LineResult::Ok if code == 0 => Reading { outcome: TestOutcome::Passed, message: None },
        LineResult::Ok => {
            Reading::new(TestOutcome::Failed, format!("{}, although the test had passed", exit_code(code)))
        }
        LineResult::Ignored(reason) => {
            Reading::new(TestOutcome::Skipped, reason.unwrap_or_else(|| "ignored".to_owned()))
        }
        LineResult::Failed if code == 0 => {
            Reading::new(TestOutcome::Failed, "the harness said that the test failed, and then exited with code 0")
        }
        LineResult::Failed => {
            let words = message.as_deref().map(should_panic_message);
            let message = words.or_else(|| failure_message(name, stdout, stderr));
            Reading::new(TestOutcome::Failed, message.unwrap_or_else(|| exit_code(code)))
        }
    }
}

/// Whether the harness has said at its end how its one test went. Where a test or its children print what looks like it, the
/// announcement or the verdict before it are not those of one more harness.
fn is_complete(stdout: &Captured) -> bool {
    let (mut begun, mut ended) = (0_u32, 0_u32);
    let (mut previous, mut before_summary) = ("", "");
    for line in stdout.text.lines() {
        begun += u32::from(is_announcement(line) || line.starts_with(JSON_BEGIN));
        if is_summary(line) {
            ended += 1;
            before_summary = previous;
        }
        if !line.is_empty() {
            previous = line;
        }
    }
    let line = before_summary.trim_end();
    // `test NAME ... ok`, `ok` alone, `.` in quiet form, nothing known of in JSON.
    let has_verdict = line.ends_with("ok") || line.starts_with(['.', 'i', '{']);
    let fits = Counts::find(&stdout.text).is_some_and(|counts| match counts.all() {
        0 => line == "running 0 tests" || has_verdict,
        all => all == 1 && has_verdict,
    });
    fits && (begun == ended || stdout.dropped_bytes > 0)
}

/// Whether the thread of the test itself has panicked.
fn panicked(name: &str, stderr: &str) -> bool {
    stderr.match_indices("thread ").any(|(at, _)| {
        (at == 0 || stderr.as_bytes()[at - 1] == b'\n')
            && Panic::parse(&stderr[at..]).is_some_and(|panic| panic.thread == name || panic.thread == "main")
    })
}

/// Whether the harness itself may have ended the process like this.
pub(super) fn is_exit_of_harness(status: ExitStatus) -> bool {
    matches!(status.code(), Some(0 | FAILURE_CODE))
}

/// Reads the result of a program that is one test.
pub(super) fn of_opaque(status: ExitStatus, stderr: &str) -> Reading {
    match status.code() {
        Some(0) => Reading { outcome: TestOutcome::Passed, message: None },
        Some(code) => {
            let panic = panic_message("main", stderr);
            Reading::new(TestOutcome::Failed, panic.unwrap_or_else(|| exit_code(code)))
        }
        None => Reading::new(TestOutcome::Crashed, crash_message(status, stderr)),
    }
}

/// One line on a process that ended although a test had not.
pub(super) fn crash_message(status: ExitStatus, stderr: &str) -> String {
    let Some(number) = status.signal() else {
        return exited_in_the_middle(status.code().unwrap_or(-1));
    };
    let killed = killed_by(number);
    // The standard library's handler says so on a stack overflow, then raises SIGABRT.
    if stderr.contains("has overflowed its stack") { format!("stack overflow, {killed}") } else { killed }
}

/// What a signal did to a process, with its name.
pub(in crate::worker) fn killed_by(number: i32) -> String {
    match signal_name(number) {
        Some(name) => format!("killed by signal {number} ({name})"),
        None => format!("killed by signal {number}"),
    }
}

fn exited_in_the_middle(code: i32) -> String {
    format!("the process exited with code {code} in the middle of the test (std::process::exit?)")
}

fn exit_code(code: i32) -> String {
    format!("exit code {code}")
}

/// One line on a test that ran out of time.
pub(in crate::worker) fn timeout_message(limit: Duration) -> String {
    format!("ran longer than its limit of {} s", limit.as_secs_f64())
}

fn signal_name(number: i32) -> Option<&'static str> {
    const NAMES: [(Signal, &str); 16] = [
        (Signal::ABORT, "SIGABRT"),
        (Signal::ALARM, "SIGALRM"),
        (Signal::BUS, "SIGBUS"),
        (Signal::FPE, "SIGFPE"),
        (Signal::HUP, "SIGHUP"),
        (Signal::ILL, "SIGILL"),
        (Signal::INT, "SIGINT"),
        (Signal::KILL, "SIGKILL"),
        (Signal::PIPE, "SIGPIPE"),
        (Signal::QUIT, "SIGQUIT"),
        (Signal::SEGV, "SIGSEGV"),
        (Signal::SYS, "SIGSYS"),
        (Signal::TERM, "SIGTERM"),
        (Signal::TRAP, "SIGTRAP"),
        (Signal::XCPU, "SIGXCPU"),
        (Signal::XFSZ, "SIGXFSZ"),
    ];
    NAMES.iter().find(|(signal, _)| signal.as_raw() == number).map(|(_, name)| *name)
}

/// The counts of the harness's last line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
    measured: u64,
}

impl Counts {
    fn all(self) -> u64 {
        [self.passed, self.failed, self.ignored, self.measured].into_iter().fold(0, u64::saturating_add)
    }

    fn find(stdout: &str) -> Option<Self> {
        let at = rfind_line(stdout, is_summary)?;
        let line = stdout[at..].lines().next()?;
        let count =
            |what: &str| Some(line.split(&[';', '.', ','][..]).find_map(|part| number_of(part, what)).unwrap_or(0));
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            ignored: count("ignored")?,
            measured: count("measured")?,
        })
    }
}

/// Reads `3 passed` and `"passed": 3`.
fn number_of(part: &str, what: &str) -> Option<u64> {
    let part = part.trim();
    if let Some(number) = part.strip_suffix(what) {
        return number.trim().parse().ok();
    }
    let value = part.strip_prefix('"')?.strip_prefix(what)?.strip_prefix("\":")?;
    value.trim().parse().ok()
}

fn is_summary(line: &str) -> bool {
    line.starts_with("test result: ") || is_json_summary(line)
}

/// The beginning of the first line with `-- --format json`.
const JSON_BEGIN: &str = "{ \"type\": \"suite\", \"event\": \"started\"";

/// With `-- --format json` the user gets that format, and we its summary.
fn is_json_summary(line: &str) -> bool {
    line.starts_with("{ \"type\": \"suite\", \"event\": ") && line.contains("\"passed\":")
}

/// Whether the standard harness, or one that imitates it, announced its tests.
fn has_preamble(stdout: &str) -> bool {
    // A runner or a constructor may have printed something before.
    stdout.lines().any(|line| is_announcement(line) || line.starts_with(JSON_BEGIN))
}

/// Where the announcement `running 1 test` at the beginning of the output ends.
fn preamble_end(stdout: &str) -> Option<usize> {
    let text = stdout.trim_start_matches(['\n', '\r']);
    let line = text.lines().next()?;
    if !is_announcement(line) {
        return None;
    }
    let end = stdout.len() - text.len() + line.len();
    Some((end + 1).min(stdout.len()))
}

/// Whether a line is `running 1 test` or `running 3 tests`.
pub(super) fn is_announcement(line: &str) -> bool {
    let Some((number, what)) = line.trim_end().strip_prefix("running ").and_then(|rest| rest.split_once(' ')) else {
        return false;
    };
    number.bytes().all(|byte| byte.is_ascii_digit()) && (what == "test" || what == "tests")
}

/// A line `test NAME ... ok` of the harness: name and result. Kind suffixes are part of the name here.
pub(super) fn result_line(line: &str) -> Option<(&str, LineResult)> {
    let line = line.trim_end();
    let line = line.strip_prefix("test ").unwrap_or(line);
    let (name, result) = line.rsplit_once(" ... ")?;
    // `--report-time` appends `<0.001s>`.
    let (result, detail) = match result.split_once(", ") {
        Some((result, detail)) => (result, Some(detail)),
        None => (result.split_once(" <").map_or(result, |(result, _)| result), None),
    };
    let result = match result {
        "ok" => LineResult::Ok,
        "FAILED" => LineResult::Failed,
        "ignored" => LineResult::Ignored(detail.map(str::to_owned)),
        _ => return None,
    };
    Some((name, result))
}

/// The result in a [`result_line`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LineResult {
    Ok,
    Failed,
    /// With the reason, where one is given.
    Ignored(Option<String>),
}

/// A test's name without what the harness appends to tell its kind.
pub(super) fn strip_kind(name: &str) -> &str {
    [" - should panic", " - compile fail", " - compile"]
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))
        .unwrap_or(name)
}

fn ignored_reason<'a>(stdout: &'a str, name: &str) -> Option<&'a str> {
    stdout.lines().find_map(|line| {
        line.strip_prefix("test ")?.strip_prefix(name)?.split_once(" ... ignored, ").map(|(_, reason)| reason)
    })
}

/// The test's own standard output: without the harness's announcement, result lines and summary.
pub(super) fn strip_harness(stdout: &mut String, name: &str) {
    let Some(begin) = preamble_end(stdout) else { return };
    let mut verdict_is_whole = false;
    if let Some(summary) = rfind_line(stdout, |line| line.starts_with("test result: ")) {
        stdout.truncate(summary.max(begin));
        if let Some(at) = whole_verdict(&stdout[begin..], name) {
            stdout.truncate(begin + at);
            verdict_is_whole = true;
        } else if let Some(at) = bare_verdict(&stdout[begin..]) {
            stdout.truncate(begin + at);
        }
    }
    stdout.drain(..begin);
    // A harness with one thread begins its line before the test and ends it after.
    let line = stdout.strip_prefix("test ").and_then(|rest| rest.strip_prefix(name)).filter(|_| !verdict_is_whole);
    if let Some(rest) = line
        && let Some(own) = rest.strip_prefix(" - should panic").unwrap_or(rest).strip_prefix(" ... ")
    {
        stdout.drain(..stdout.len() - own.len());
    }
}

/// Where `test NAME ... FAILED` begins at the end of the output, possibly on a line that the test left unfinished.
fn whole_verdict(stdout: &str, name: &str) -> Option<usize> {
    let line = format!("test {name}");
    let is_verdict = |at: usize| {
        let rest = &stdout[at + line.len()..];
        let rest = rest.strip_prefix(" - should panic").unwrap_or(rest);
        let verdict = rest.strip_prefix(" ... ");
        verdict.is_some_and(|verdict| ["ok", "FAILED", "ignored"].iter().any(|word| verdict.starts_with(word)))
    };
    stdout.rmatch_indices(&line).map(|(at, _)| at).find(|&at| is_verdict(at))
}

/// Where the verdict alone begins.
fn bare_verdict(stdout: &str) -> Option<usize> {
    ["FAILED\n\nfailures:\n", "ok\n\n"].iter().find_map(|verdict| stdout.rfind(verdict))
}

/// One line on why a test failed, from what it and the harness wrote.
pub(super) fn failure_message(name: &str, stdout: &str, stderr: &str) -> Option<String> {
    // The harness's own words on `#[should_panic]`: the panic, or its absence, was expected there.
    let section = rfind_line(stdout, |line| line == format!("---- {name} stdout ----"));
    let section = section.map_or("", |at| &stdout[at..]);
    let note = ["note: test did not panic as expected", "note: panic did not contain expected string"]
        .iter()
        .find_map(|note| Some(&section[section.find(note)?..]));
    if let Some(note) = note {
        return Some(should_panic_message(note.trim_start_matches("note: ")));
    }
    panic_message(name, stderr)
        .or_else(|| panic_message(name, stdout))
        .or_else(|| error_line(stderr))
        .or_else(|| error_line(stdout))
        .or_else(|| mimic_message(name, stdout))
}

/// The harness's words on a `#[should_panic]` test, on one line.
pub(super) fn should_panic_message(text: &str) -> String {
    let mut lines = text.lines();
    let mut message = lines.next().unwrap_or_default().to_owned();
    for line in lines
        .map(str::trim)
        .take_while(|line| line.starts_with("panic message:") || line.starts_with("expected substring:"))
    {
        message.push_str(if message.contains(": ") { ", " } else { ": " });
        message.push_str(line);
    }
    bounded(message)
}

/// The first panic of the thread of the test `name`, or of any thread if that one did not panic.
pub(super) fn panic_message(name: &str, output: &str) -> Option<String> {
    let mut first = None;
    for (at, _) in output.match_indices("thread ") {
        if !(at == 0 || output.as_bytes()[at - 1] == b'\n') {
            continue;
        }
        let Some(panic) = Panic::parse(&output[at..]) else { continue };
        if panic.thread == name || panic.thread == "main" {
            return Some(panic.message());
        }
        first.get_or_insert(panic);
    }
    first.map(|panic| panic.message())
}

/// A panic as the standard library's hook writes it.
#[derive(Debug)]
struct Panic<'a> {
    thread: &'a str,
    location: &'a str,
    /// From its first line on, with what follows.
    payload: &'a str,
}

impl<'a> Panic<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let rest = text.strip_prefix("thread ")?;
        let line_end = rest.find('\n').unwrap_or(rest.len());
        let (who, what) = rest[..line_end].split_once(" panicked at ")?;
        // `'name'`, `'name' (4711)` since 1.91, `<unnamed>`.
        let thread = match who.strip_prefix('\'') {
            Some(quoted) => quoted.rsplit_once('\'')?.0,
            None => who.split(' ').next()?,
        };
        if let Some(location) = what.strip_suffix(':') {
            return Some(Self { thread, location, payload: rest.get(line_end + 1..).unwrap_or_default() });
        }
        // Before 1.73: `'message', src/lib.rs:3:5`, where the message may have several lines.
        let start = line_end - what.len() + 1;
        let quoted = beginning(rest[line_end - what.len()..].strip_prefix('\'')?, LONGEST_QUOTED);
        let (end, location) = quoted.match_indices("', ").find_map(|(end, separator)| {
            let location = quoted[end + separator.len()..].lines().next()?;
            is_location(location).then_some((end, location))
        })?;
        Some(Self { thread, location, payload: &rest[start..start + end] })
    }

    fn message(&self) -> String {
        let mut lines = self.payload.lines();
        let mut message = format!("panicked at {}", self.location);
        let first = lines.next().unwrap_or_default().trim_end();
        // A panic without a message is followed by the hook's note or a backtrace.
        if !first.is_empty() && !first.starts_with("note: ") && first != "stack backtrace:" {
            message.push_str(": ");
            message.push_str(first);
        }
        // What assert_eq! compared belongs to it.
        let sides: Vec<&str> =
            lines.map(str::trim).take_while(|line| line.starts_with("left: ") || line.starts_with("right: ")).collect();
        if !sides.is_empty() {
            message.push_str(&format!(" ({})", sides.join(", ")));
        }
        bounded(message)
    }
}

/// At most so many bytes from the beginning of a text.
fn beginning(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}

/// Whether a text is `path:line:column`.
fn is_location(text: &str) -> bool {
    let mut parts = text.trim_end().rsplitn(3, ':');
    let mut number = || parts.next().is_some_and(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    number() && number()
}

/// What a test that returned an error leaves.
fn error_line(output: &str) -> Option<String> {
    let at = rfind_line(output, |line| line.starts_with("Error: "))?;
    Some(bounded(output[at..].lines().next()?.trim_end().to_owned()))
}

/// The first line of a failure as libtest-mimic prints it.
fn mimic_message(name: &str, stdout: &str) -> Option<String> {
    let at = rfind_line(stdout, |line| line == format!("---- {name} ----"))?;
    let line = stdout[at..].lines().skip(1).map(str::trim).find(|line| !line.is_empty())?;
    Some(bounded(line.to_owned()))
}

/// The harness's word on arguments that it does not know.
fn refusal(stderr: &str) -> Option<&str> {
    stderr.lines().find_map(|line| line.strip_prefix("error: "))
}

/// The last line of a text that is not blank.
pub(super) fn last_line(text: &str) -> Option<String> {
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(|line| bounded(line.to_owned()))
}

/// Where the last line begins that fulfils a condition.
fn rfind_line(text: &str, condition: impl Fn(&str) -> bool) -> Option<usize> {
    let mut end = text.len();
    loop {
        let start = text[..end].rfind('\n').map_or(0, |at| at + 1);
        if condition(text[start..end].trim_end_matches('\r')) {
            return Some(start);
        }
        end = start.checked_sub(1)?;
    }
}

fn bounded(mut message: String) -> String {
    if let Some((at, _)) = message.char_indices().nth(LONGEST_MESSAGE) {
        message.truncate(at);
        message.push('…');
    }
    message
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
