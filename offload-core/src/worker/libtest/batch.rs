//! Many tests of one binary in one process, followed through the harness's JSON events.
//!
//! The process runs one test at a time, because a sandbox is one slot. Whatever ends it early is the doing of the test
//! that was executing; tests it did not get to go back to the front of the queue.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::capture::{Capture, Lines, Overlong};
use super::mailbox::Mailbox;
use super::outcome;
use super::process::{End, EndedBy, Observer, Stream};
use super::single::{self, bounded};
use super::slot::{Slot, has_flag};
use crate::framework::{TestOutcome, TestResult};
use crate::worker::{Message, RunItem, TestKey, Unit};

/// The harness's line for a failed test is as long as what the test wrote; more than this of it is dropped.
const LONGEST_LINE: usize = 4 << 20;

/// Runs tests in one process. Returns `false` when nothing came of it and the tests of this unit are better run in a
/// process each: the harness does not know the format, or cannot even start.
pub(super) fn run(slot: &mut Slot, items: Vec<RunItem>, unit: &Unit, no_capture: bool) -> bool {
    let mut command = slot.command(unit);
    if !slot.has_env(unit, "RUSTC_BOOTSTRAP") {
        // The harness takes any value as leave to use unstable options; for a rustc that a test starts, 0 means no.
        command.env("RUSTC_BOOTSTRAP", "0");
    }
    command.args(["--exact", "--format", "json", "-Z", "unstable-options", "--report-time", "--test-threads=1"]);
    let extra_args = without_ours(&unit.extra_args);
    if no_capture && !has_flag(&extra_args, "--nocapture") && !has_flag(&extra_args, "--no-capture") {
        command.arg("--nocapture");
    }

    let (mut pending, twice) = Pending::new(items);
    // A second test of the same name could not be told from the first.
    put_back(slot, twice);
    command.args(pending.items.iter().flatten().map(|item| &item.name)).args(extra_args);

    let process = match slot.start(&mut command) {
        Ok(process) => process,
        Err(_) => {
            // The attempt with one test will say what is wrong, for each.
            put_back(slot, pending.rest());
            return false;
        }
    };
    drop(command);
    let longest_limit = pending.items.iter().flatten().map(|item| item.timeout_ms).max().flatten();
    let mut follower = Follower {
        mailbox: &slot.mailbox,
        emit: &*slot.on_message,
        limit: slot.options.output_limit,
        no_capture,
        idle_limit: longest_limit.map(Duration::from_millis),
        since: Instant::now(),
        lines: Lines::new(LONGEST_LINE, Overlong::Truncate),
        pending: &mut pending,
        running: None,
        progressed: false,
        complete: false,
        any_failed: false,
        last: None,
        strayed: Stray::new(slot.options.output_limit),
    };
    let is_paused = slot.is_paused();
    let ended = process.watch(slot.limits(), &is_paused, &slot.mailbox, &mut follower, &mut slot.buffer);
    let (useful, doubtful) = follower.finish(ended);
    put_back(slot, pending.rest());
    if let Some(item) = doubtful {
        single::run_again(slot, &item, unit, no_capture);
    }
    useful
}

/// Returns tests that have not run to the queue.
fn put_back(slot: &Slot, items: Vec<RunItem>) {
    let unwanted = slot.mailbox.put_back(items);
    if !unwanted.is_empty() {
        slot.emit(Message::TakenBack { tests: unwanted });
    }
}

/// The user's arguments without those that contradict how the tests are followed.
fn without_ours(args: &[String]) -> Vec<String> {
    let mut kept = Vec::with_capacity(args.len());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let name = arg.split_once('=').map_or(arg.as_str(), |(name, _)| name);
        match name {
            "--format" | "--test-threads" if name.len() == arg.len() => {
                args.next();
            }
            "--format" | "--test-threads" | "--exact" | "--quiet" | "-q" | "--report-time" => {}
            _ => kept.push(arg.clone()),
        }
    }
    kept
}

/// The tests without a result that have not started.
struct Pending {
    /// In the order of the queue.
    items: Vec<Option<RunItem>>,
    by_name: HashMap<String, usize>,
    left: usize,
}

impl Pending {
    /// The tests, and those among them whose name came before.
    fn new(items: Vec<RunItem>) -> (Self, Vec<RunItem>) {
        let (mut kept, mut by_name, mut twice) = (Vec::with_capacity(items.len()), HashMap::new(), Vec::new());
        for item in items {
            if by_name.contains_key(&item.name) {
                twice.push(item);
            } else {
                by_name.insert(item.name.clone(), kept.len());
                kept.push(Some(item));
            }
        }
        let left = kept.len();
        (Self { items: kept, by_name, left }, twice)
    }

    fn take(&mut self, name: &str) -> Option<RunItem> {
        let item = self.items[*self.by_name.get(name)?].take()?;
        self.left -= 1;
        Some(item)
    }

    fn rest(&mut self) -> Vec<RunItem> {
        self.items.drain(..).flatten().collect()
    }
}

/// The test that executes.
struct Running {
    item: RunItem,
    since: Instant,
}

/// What came past the harness's capture: from child processes, from code that writes to the descriptors themselves.
struct Stray {
    stdout: Capture,
    stderr: Capture,
}

impl Stray {
    fn new(limit: usize) -> Self {
        Self { stdout: Capture::new(limit), stderr: Capture::new(limit) }
    }
}

/// Follows the process.
struct Follower<'a> {
    mailbox: &'a Mailbox,
    emit: &'a dyn Fn(Message),
    limit: usize,
    no_capture: bool,
    /// How long the process may take before its first test, between tests and after the last one.
    idle_limit: Option<Duration>,
    /// The last event.
    since: Instant,
    lines: Lines,
    pending: &'a mut Pending,
    running: Option<Running>,
    /// At least one test has a result, or will have: the one that executes.
    progressed: bool,
    /// The harness has finished.
    complete: bool,
    any_failed: bool,
    /// The result of the last test, which waits for the end of the process.
    last: Option<(TestKey, TestResult)>,
    strayed: Stray,
}

/// A line of the harness.
#[derive(Debug, Default, PartialEq, Deserialize)]
struct Event {
    #[serde(rename = "type")]
    of: String,
    event: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    exec_time: Option<f64>,
    #[serde(default)]
    stdout: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

impl Observer for Follower<'_> {
    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        match stream {
            Stream::Stdout => {
                let longest = Lines::new(0, Overlong::Truncate);
                let mut lines = std::mem::replace(&mut self.lines, longest);
                lines.push(bytes, |line| self.line(line));
                self.lines = lines;
            }
            Stream::Stderr => self.stray(stream, bytes),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let (since, limit) = match &self.running {
            Some(running) => (running.since, running.item.timeout_ms.map(Duration::from_millis)),
            None => (self.since, self.idle_limit),
        };
        since.checked_add(limit?)
    }

    fn wants_output_early(&self) -> bool {
        true
    }
}

impl Follower<'_> {
    fn line(&mut self, line: &[u8]) {
        // A test that writes to the descriptor itself may leave its line unfinished before the harness's.
        let text = String::from_utf8_lossy(line);
        let at = text.find("{ \"type\": \"");
        match at.and_then(|at| Some((at, Event::parse(&text[at..])?))) {
            Some((at, event)) => {
                self.stray(Stream::Stdout, &text.as_bytes()[..at]);
                self.event(event);
            }
            None => self.stray(Stream::Stdout, line),
        }
    }

    fn stray(&mut self, stream: Stream, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match stream {
            Stream::Stdout => self.strayed.stdout.push(bytes),
            Stream::Stderr => self.strayed.stderr.push(bytes),
        }
        if self.no_capture
            && let Some(running) = &self.running
        {
            let text = String::from_utf8_lossy(bytes).into_owned();
            (self.emit)(Message::Output { key: running.item.key, text });
        }
    }

    fn event(&mut self, event: Event) {
        self.since = Instant::now();
        match (event.of.as_str(), event.event.as_str()) {
            ("test", "started") => {
                if let Some(item) = self.pending.take(&event.name) {
                    self.started(item);
                }
            }
            ("test", result @ ("ok" | "failed" | "ignored")) => {
                // Without a start before it where the harness has nothing to execute.
                if let Some(item) = self.pending.take(&event.name) {
                    self.started(item);
                }
                if let Some(running) = self.running.take_if(|running| running.item.name == event.name) {
                    let outcome = match result {
                        "ok" => TestOutcome::Passed,
                        "ignored" => TestOutcome::Skipped,
                        _ => TestOutcome::Failed,
                    };
                    self.ended(running, outcome, event);
                }
            }
            ("suite", "ok" | "failed") => self.complete = true,
            // Among them `timeout`, which the harness says after 60 s of any test.
            _ => {}
        }
    }

    fn started(&mut self, item: RunItem) {
        self.progressed = true;
        self.strayed = Stray::new(self.limit);
        (self.emit)(Message::Started { key: item.key });
        self.mailbox.executing(item.key);
        self.running = Some(Running { item, since: self.since });
    }

    fn ended(&mut self, running: Running, outcome: TestOutcome, event: Event) {
        let measured = event.exec_time.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let mut result = TestResult::new(outcome, measured.unwrap_or(self.since - running.since));
        let captured = event.stdout.unwrap_or_default();
        let stray = std::mem::replace(&mut self.strayed, Stray::new(self.limit));
        result.stderr = stray.stderr.finish();
        let mut stdout = stray.stdout.finish();
        result.message = match outcome {
            TestOutcome::Failed => {
                let words = event.message.as_deref().map(outcome::should_panic_message);
                words
                    .or_else(|| outcome::failure_message(&running.item.name, &captured, &result.stderr.text))
                    .or_else(|| Some("the test failed without a message".to_owned()))
            }
            TestOutcome::Skipped => Some(event.message.unwrap_or_else(|| "ignored".to_owned())),
            _ => None,
        };
        if stdout.is_empty() {
            stdout = bounded(captured, self.limit);
        } else {
            let dropped_bytes = stdout.dropped_bytes;
            stdout = bounded(stdout.text + &captured, self.limit);
            stdout.dropped_bytes += dropped_bytes;
        }
        result.stdout = stdout;
        self.any_failed |= result.outcome.is_failure();
        if self.pending.left == 0 {
            // How its process ends is a part of it.
            self.last = Some((running.item.key, result));
        } else {
            self.finish_test(running.item.key, result);
        }
    }

    /// Settles the test that ended last, when its process has ended, too.
    fn finish_last(&mut self, ended: &io::Result<End>) {
        let Some((key, mut result)) = self.last.take() else { return };
        let fault = match ended {
            Ok(End { by: EndedBy::Order, .. }) => None,
            Ok(End { by: EndedBy::TimeLimit, .. }) => {
                let limit = self.idle_limit.unwrap_or_default();
                Some((TestOutcome::TimedOut, format!("did not end within {} s", limit.as_secs_f64())))
            }
            Ok(end) => match end.status.code() {
                Some(0) => None,
                Some(_) if self.any_failed && outcome::is_exit_of_harness(end.status) => None,
                Some(code) => Some((TestOutcome::Crashed, format!("exited with code {code}"))),
                None => {
                    let stderr = std::mem::replace(&mut self.strayed, Stray::new(0)).stderr.finish();
                    let how = outcome::crash_message(end.status, &stderr.text);
                    result.stderr.text.push_str(&stderr.text);
                    Some((TestOutcome::Crashed, format!("was {how}")))
                }
            },
            Err(error) => Some((TestOutcome::Error, format!("could not be watched and was ended: {error}"))),
        };
        if let Some((outcome, how)) = fault.filter(|_| !result.outcome.is_failure()) {
            result.outcome = outcome;
            result.message = Some(format!("the process of its batch, of which this test was the last, {how}"));
        }
        self.finish_test(key, result);
    }

    fn finish_test(&self, key: TestKey, mut result: TestResult) {
        if self.no_capture {
            result.stdout = Default::default();
            result.stderr = Default::default();
        }
        (self.emit)(self.mailbox.finish(key, result));
    }

    /// Settles the test that was executing when the process ended, and those that the binary does not have. Returns whether
    /// the batch has led to anything, and the test of which it cannot be told whether it ended the process or cut off the
    /// harness's output: in a process of its own that shows.
    fn finish(mut self, ended: io::Result<End>) -> (bool, Option<RunItem>) {
        let rest = self.lines.finish();
        if !rest.is_empty() {
            self.line(&rest);
        }
        self.finish_last(&ended);
        if let Ok(end) = &ended
            && end.leaky
        {
            let text = "a test of a batch left processes behind that still hold its output".to_owned();
            (self.emit)(Message::Log { text });
        }
        if let Some(running) = self.running.take() {
            let by = ended.as_ref().map(|end| end.by);
            if matches!(by, Ok(EndedBy::Order)) {
                (self.emit)(self.mailbox.give_back(running.item.key));
                return (true, None);
            }
            let as_harness = |end: &End| end.by == EndedBy::Itself && outcome::is_exit_of_harness(end.status);
            if ended.as_ref().is_ok_and(as_harness) {
                return (true, Some(running.item));
            }
            let stray = std::mem::replace(&mut self.strayed, Stray::new(0));
            let (stdout, stderr) = (stray.stdout.finish(), stray.stderr.finish());
            let (outcome, message) = match &ended {
                Ok(End { by: EndedBy::TimeLimit, .. }) => {
                    let limit = running.item.timeout_ms.map(Duration::from_millis);
                    (TestOutcome::TimedOut, outcome::timeout_message(limit.unwrap_or_default()))
                }
                Ok(end) => (TestOutcome::Crashed, outcome::crash_message(end.status, &stderr.text)),
                Err(error) => {
                    (TestOutcome::Error, format!("the test's process could not be watched and was ended: {error}"))
                }
            };
            let at = ended.map_or_else(|_| Instant::now(), |end| end.at);
            let mut result = TestResult::new(outcome, at - running.since).with_message(message);
            (result.stdout, result.stderr) = (stdout, stderr);
            self.finish_test(running.item.key, result);
            return (true, None);
        }
        if self.complete {
            for item in self.pending.rest() {
                (self.emit)(Message::Started { key: item.key });
                let result = TestResult::new(TestOutcome::Error, Duration::ZERO)
                    .with_message("the binary no longer has this test; build it again");
                self.finish_test(item.key, result);
            }
            return (true, None);
        }
        (self.progressed || matches!(&ended, Ok(End { by: EndedBy::Order, .. })), None)
    }
}

impl Event {
    fn parse(line: &str) -> Option<Self> {
        if let Ok(event) = serde_json::from_str(line) {
            return Some(event);
        }
        // A line that was cut off: what comes before the output is whole, and so is most of the output.
        let (before, output) = line.split_once(", \"stdout\": \"")?;
        let event: Self = serde_json::from_str(&format!("{before} }}")).ok()?;
        let ends = output.char_indices().rev().take(12).map(|(at, _)| at);
        let stdout = ends.filter_map(|end| serde_json::from_str(&format!("\"{}\"", &output[..end])).ok()).next();
        Some(Self { stdout, ..event })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn events_of_the_harness_are_read() {
        let line =
            r#"{ "type": "test", "name": "b", "event": "failed", "exec_time": 0.5, "stdout": "a\n", "message": "m" }"#;
        let expected = Event {
            of: "test".into(),
            event: "failed".into(),
            name: "b".into(),
            exec_time: Some(0.5),
            stdout: Some("a\n".into()),
            message: Some("m".into()),
        };
        assert_eq!(Event::parse(line), Some(expected));
        assert_eq!(Event::parse("{ \"type\": \"nothing"), None);
    }

    #[test]
    fn an_event_that_was_cut_off_keeps_the_beginning_of_its_output() {
        let event =
            Event::parse(r#"{ "type": "test", "name": "b", "event": "failed", "stdout": "one\ntwo\u00e"#).unwrap();
        assert_eq!((event.name.as_str(), event.event.as_str()), ("b", "failed"));
        assert_eq!(event.stdout.as_deref(), Some("one\ntwo"));
    }

    #[test]
    fn arguments_that_contradict_ours_are_left_out() {
        let given = ["--test-threads", "8", "--format=pretty", "-q", "--nocapture", "--skip", "x", "--exact"];
        let given = given.map(str::to_owned);
        assert_eq!(without_ours(&given), ["--nocapture", "--skip", "x"]);
    }
}
