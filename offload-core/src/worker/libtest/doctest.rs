//! The doctests of one package: one run of `cargo test --doc` for all of them, its output read line by line.
//!
//! rustdoc cannot be asked for one test only, because it splits filters at spaces, which every name has. But it can be
//! asked for line numbers: a single test, a retry for instance, takes a run of those doctests that begin on the same
//! line of whatever file, of which the other results are ignored.

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::time::{Duration, Instant};

use super::capture::{Capture, Lines, Overlong};
use super::mailbox::Mailbox;
use super::outcome::{self, LineResult};
use super::process::{End, EndedBy, Observer, Stream};
use super::slot::{Slot, has_flag, start_error};
use crate::bounded;
use crate::framework::{TestOutcome, TestResult};
use crate::worker::{Message, RunItem, TestKey, Unit};

/// Runs the doctests of a package.
pub(super) fn run(slot: &mut Slot, items: Vec<RunItem>, unit: &Unit, no_capture: bool) {
    let mut command = slot.command(unit);
    // What follows is for the harness, not for Cargo.
    if !unit.args.iter().any(|arg| arg == "--") {
        command.arg("--");
    }
    if no_capture && !has_flag(&unit.extra_args, "--nocapture") && !has_flag(&unit.extra_args, "--no-capture") {
        command.arg("--nocapture");
    }
    command.args(&unit.extra_args);
    command.args(line_filters(items.iter().map(|item| item.name.as_str())));

    // rustdoc leaves its programs behind when it is killed, and they are large.
    let place = bounded::private_dir("offload-doctests-").ok();
    if let Some(place) = &place {
        command.env("TMPDIR", place.path());
    }
    let began = Instant::now();
    let process = slot.start(&mut command);
    for item in &items {
        slot.emit(Message::Started { key: item.key });
    }
    let process = match process {
        Ok(process) => process,
        Err(error) => {
            let message = start_error(unit, &error);
            for item in &items {
                let result = TestResult::new(TestOutcome::Error, Duration::ZERO).with_message(message.clone());
                slot.emit(slot.mailbox.finish(item.key, result));
            }
            return;
        }
    };
    drop(command);
    let limit = items.iter().map(|item| item.timeout_ms).max().flatten().map(Duration::from_millis);
    let mut reader = Reader {
        mailbox: &slot.mailbox,
        emit: &*slot.on_message,
        shown_as: items.first().filter(|_| no_capture).map(|item| item.key),
        parser: Parser::new(slot.options.output_limit),
        open: Open::new(items),
        limit,
        since: began,
        lines: Lines::new(64 << 10, Overlong::Split),
        stderr: Capture::new(slot.options.output_limit),
    };
    let is_paused = slot.is_paused();
    let ended = process.watch(slot.limits(), &is_paused, &slot.mailbox, &mut reader, &mut slot.buffer);
    reader.finish(ended);
}

/// More lines than this are not worth a filter each.
const MOST_FILTERS: usize = 1000;

/// Filters without spaces that the names of doctests match, and few others: `12)` for `src/lib.rs - f (line 12)`. None if
/// there is a name of another form.
pub(crate) fn line_filters<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
    let filter = |name: &'a str| {
        let (_, line) = name.rsplit_once("(line ")?;
        line.strip_suffix(')').filter(|line| line.bytes().all(|byte| byte.is_ascii_digit()))?;
        Some(line)
    };
    let filters: Option<BTreeSet<_>> = names.map(filter).collect();
    filters.filter(|filters| filters.len() <= MOST_FILTERS).unwrap_or_default()
}

/// The tests without a result.
struct Open {
    by_name: HashMap<String, Vec<RunItem>>,
}

impl Open {
    fn new(items: Vec<RunItem>) -> Self {
        let mut by_name: HashMap<String, Vec<RunItem>> = HashMap::with_capacity(items.len());
        for item in items {
            by_name.entry(item.name.clone()).or_default().push(item);
        }
        Self { by_name }
    }

    /// One test of this name.
    fn take(&mut self, name: &str) -> Option<RunItem> {
        self.by_name.get_mut(name)?.pop()
    }

    fn rest(&mut self) -> Vec<RunItem> {
        let mut rest: Vec<RunItem> = self.by_name.drain().flat_map(|(_, items)| items).collect();
        rest.sort_by_key(|item| item.key);
        rest
    }
}

/// Follows the run.
struct Reader<'a> {
    mailbox: &'a Mailbox,
    emit: &'a dyn Fn(Message),
    /// Under which test uncaptured output is passed on: whose it is cannot be known.
    shown_as: Option<TestKey>,
    parser: Parser,
    open: Open,
    /// How long the run may take from one result to the next: the limit of one test, for many may run at once.
    limit: Option<Duration>,
    /// The last result.
    since: Instant,
    lines: Lines,
    stderr: Capture,
}

impl Observer for Reader<'_> {
    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        if let Some(key) = self.shown_as {
            (self.emit)(Message::Output { key, text: String::from_utf8_lossy(bytes).into_owned() });
        }
        match stream {
            Stream::Log => {}
            Stream::Stderr => self.stderr.push(bytes),
            Stream::Stdout => {
                let mut lines = std::mem::replace(&mut self.lines, Lines::new(0, Overlong::Split));
                lines.push(bytes, |line| self.line(line));
                self.lines = lines;
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.since.checked_add(self.limit?)
    }

    fn wants_output_early(&self) -> bool {
        true
    }
}

impl Reader<'_> {
    fn line(&mut self, line: &[u8]) {
        let Some((name, line_result)) = self.parser.line(&String::from_utf8_lossy(line)) else { return };
        let Some(item) = self.open.take(&name) else { return };
        // The harness tells no times: the time since the last result is what this one added to the run.
        let now = Instant::now();
        let duration = now - self.since;
        self.since = now;
        match line_result {
            LineResult::Ok => self.settle(item.key, TestResult::new(TestOutcome::Passed, duration)),
            LineResult::Ignored(reason) => {
                let reason = reason.unwrap_or_else(|| "ignored".to_owned());
                self.settle(item.key, TestResult::new(TestOutcome::Skipped, duration).with_message(reason));
            }
            // What it wrote comes at the end.
            LineResult::Failed => self.parser.failed.push((item, duration)),
        }
    }

    fn settle(&self, key: TestKey, result: TestResult) {
        (self.emit)(self.mailbox.finish(key, result));
    }

    fn finish(mut self, ended: io::Result<End>) {
        let rest = self.lines.finish();
        if !rest.is_empty() {
            self.line(&rest);
        }
        let (failed, mut sections) = self.parser.take_failures();
        for (item, duration) in failed {
            let mut result = TestResult::new(TestOutcome::Failed, duration);
            result.stdout = sections.remove(&item.name).map(Capture::finish).unwrap_or_default();
            result.message = Some(failure_message(&result.stdout.text));
            self.settle(item.key, result);
        }
        let stderr = std::mem::take(&mut self.stderr).finish();
        for item in self.open.rest() {
            let result = match &ended {
                Ok(End { by: EndedBy::Order, .. }) => {
                    (self.emit)(self.mailbox.give_back(item.key));
                    continue;
                }
                Ok(End { by: EndedBy::TimeLimit, .. }) => {
                    let limit = self.limit.unwrap_or_default().as_secs_f64();
                    TestResult::new(TestOutcome::TimedOut, self.limit.unwrap_or_default()).with_message(format!(
                        "the package's doctests were ended: none had finished within the time limit of {limit} s"
                    ))
                }
                Ok(end) => {
                    TestResult::new(TestOutcome::Error, Duration::ZERO).with_message(missing_message(end, &stderr.text))
                }
                Err(error) => TestResult::new(TestOutcome::Error, Duration::ZERO)
                    .with_message(format!("the run of the doctests could not be watched and was ended: {error}")),
            };
            self.settle(item.key, TestResult { stderr: stderr.clone(), ..result });
        }
    }
}

/// Why a doctest has no result although the command has ended.
fn missing_message(end: &End, stderr: &str) -> String {
    let error = stderr.lines().find(|line| line.starts_with("error"));
    match (end.status.code(), error) {
        (Some(0), _) => "there is no such doctest any more; find the tests again".to_owned(),
        (_, Some(error)) => format!("cargo test --doc gave no result for this doctest: {error}"),
        (_, None) => format!("cargo test --doc gave no result for this doctest ({})", end.status),
    }
}

/// One line on why a doctest failed, from what rustdoc prints of it.
fn failure_message(section: &str) -> String {
    outcome::panic_message("main", section)
        .or_else(|| section.lines().find(|line| line.starts_with("error")).map(str::to_owned))
        .or_else(|| section.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned))
        .unwrap_or_else(|| "the doctest failed without a message".to_owned())
}

/// Reads what the harness prints. In edition 2024 rustdoc runs it twice, for merged and for separate doctests, and each
/// has its own summary.
struct Parser {
    limit: usize,
    /// The test whose captured output is being read.
    section: Option<String>,
    sections: HashMap<String, Capture>,
    failed: Vec<(RunItem, Duration)>,
}

impl Parser {
    fn new(limit: usize) -> Self {
        Self { limit, section: None, sections: HashMap::new(), failed: Vec::new() }
    }

    /// Takes a line; returns the result in it, if it is one.
    fn line(&mut self, line: &str) -> Option<(String, LineResult)> {
        let bare = line.trim_end_matches(['\n', '\r']);
        if let Some(name) = bare.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            let name = outcome::strip_kind(name).to_owned();
            self.sections.insert(name.clone(), Capture::new(self.limit));
            self.section = Some(name);
            return None;
        }
        if bare == "failures:" || bare.starts_with("test result: ") || outcome::is_announcement(bare) {
            self.section = None;
            return None;
        }
        if let Some(capture) = self.section.as_ref().and_then(|name| self.sections.get_mut(name)) {
            capture.push(line.as_bytes());
            return None;
        }
        let (name, result) = outcome::result_line(bare.strip_prefix("test ")?)?;
        Some((outcome::strip_kind(name).to_owned(), result))
    }

    fn take_failures(&mut self) -> (Vec<(RunItem, Duration)>, HashMap<String, Capture>) {
        (std::mem::take(&mut self.failed), std::mem::take(&mut self.sections))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Results = Vec<(String, LineResult)>;
    type Sections = Vec<(String, String)>;

    fn parse(text: &str) -> (Results, Sections) {
        let mut parser = Parser::new(1 << 20);
        let results = text.split_inclusive('\n').filter_map(|line| parser.line(line)).collect();
        let (_, sections) = parser.take_failures();
        let mut sections: Vec<_> = sections.into_iter().map(|(name, capture)| (name, capture.finish().text)).collect();
        sections.sort();
        (results, sections)
    }

    #[test]
    fn doctests_are_asked_for_by_line() {
        let names = ["src/lib.rs - (line 19)", "src/a.rs - f (line 7)", "src/b.rs - <X as Y>::f (line 7)"];
        assert_eq!(Vec::from_iter(line_filters(names.into_iter())), ["19)", "7)"]);
        assert!(line_filters(["src/a.rs - f (line 7)", "README.md"].into_iter()).is_empty(), "all or exactly these");
        assert!(line_filters(["a (line x y)"].into_iter()).is_empty());
    }

    #[test]
    fn both_blocks_of_edition_2024_are_read() {
        let (results, sections) = parse(concat!(
            "\nrunning 2 tests\n",
            "test src/lib.rs - add (line 3) ... ok\n",
            "test src/lib.rs - sub (line 9) ... FAILED\n",
            "\nfailures:\n\n---- src/lib.rs - sub (line 9) stdout ----\n\n",
            "thread 'main' (7) panicked at src/lib.rs:10:1:\ntoo small\n\n",
            "\nfailures:\n    src/lib.rs - sub (line 9)\n\n",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n",
            "\nrunning 4 tests\n",
            "test src/lib.rs - a (line 20) - compile fail ... ok\n",
            "test src/lib.rs - b (line 30) - should panic ... ok\n",
            "test src/lib.rs - c (line 40) - compile ... ok\n",
            "test src/lib.rs - d (line 50) ... ignored\n",
            "\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.25s\n\n",
        ));
        let names: Vec<_> = results.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "src/lib.rs - add (line 3)",
                "src/lib.rs - sub (line 9)",
                "src/lib.rs - a (line 20)",
                "src/lib.rs - b (line 30)",
                "src/lib.rs - c (line 40)",
                "src/lib.rs - d (line 50)"
            ]
        );
        assert_eq!(results[1].1, LineResult::Failed);
        assert_eq!(results[5].1, LineResult::Ignored(None));
        assert_eq!(sections.len(), 1);
        assert_eq!(failure_message(&sections[0].1), "panicked at src/lib.rs:10:1: too small");
    }

    #[test]
    fn a_doctest_that_does_not_compile_is_told_by_its_error() {
        let section = "error[E0308]: mismatched types\n --> src/lib.rs:4:14\n\nCouldn't compile the test.\n";
        assert_eq!(failure_message(section), "error[E0308]: mismatched types");
    }

    #[test]
    fn output_that_looks_like_results_is_output() {
        let (results, sections) = parse(concat!(
            "failures:\n\n---- a.rs - x (line 1) stdout ----\n",
            "test a.rs - y (line 2) ... ok\n",
            "test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n",
        ));
        assert_eq!(results, []);
        assert_eq!(sections[0].1, "test a.rs - y (line 2) ... ok\n");
    }
}
