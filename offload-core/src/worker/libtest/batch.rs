//! Many tests of one binary in one process, followed through the harness's log.
//!
//! The process runs one test at a time, because a sandbox is one slot. Whatever ends it early is the doing of the test
//! that was executing; tests it did not get to go back to the front of the queue.
//!
//! The harness is asked for nothing that is not stable, so that neither tests nor what they start see a variable that a
//! `cargo test` would not give them. Its log gives no times: a test lasts from the entry before its own to its own.
//!
//! What it means that a test does not pass in company depends on [`Isolation`]: with `binary` that is its outcome, with
//! `auto` it runs again, alone, and that is its outcome.

pub(super) mod log;
mod pending;
mod transcript;

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use self::log::{Entry, Log, Pipe};
use self::pending::Pending;
use self::transcript::{Stray, Transcript};
use super::capture::Capture;
use super::mailbox::Work;
use super::outcome::{self, LineResult};
use super::process::{End, EndedBy, Observer, Process, Stream};
use super::single::{self, LOG_WARNING};
use super::slot::{Slot, has_flag};
use crate::framework::{Isolation, TestOutcome, TestResult};
use crate::worker::{Message, RunItem, TestKey, Unit};

/// How long a result may wait for the end of the process, to be taken back if the process leaves something behind.
const HELD_FOR: Duration = Duration::from_secs(1);

/// How many of the tests that ran before one in its process are named.
const NAMED_COMPANIONS: usize = 5;

/// Runs tests in one process. Returns `false` when nothing came of it and the tests of this unit are better run in a
/// process each: the harness does not know the options, or cannot even start.
pub(super) fn run(slot: &mut Slot, work: Work, unit: &Unit) -> bool {
    let Work { items, no_capture, isolation, yields_on_failure, .. } = work;
    let extra_args = without_ours(&unit.extra_args);
    // A process that is ended at its first failure does not come to repeat what the test has written.
    let shows_output = no_capture || (yields_on_failure && isolation == Isolation::Binary);
    let (mut pending, twice) = Pending::new(items);
    // A second test of the same name could not be told from the first.
    put_back(slot, twice);
    pending.note_started(&slot.mailbox);
    let started = slot.patiently(|slot| {
        let Some((pipe, log)) = Pipe::new()? else { return Err(io::ErrorKind::Unsupported.into()) };
        let mut command = slot.command(unit);
        command.args(["--exact", "--test-threads=1"]).arg("--logfile").arg(pipe.path());
        if shows_output && !has_flag(&extra_args, "--nocapture") && !has_flag(&extra_args, "--no-capture") {
            command.arg("--nocapture");
        }
        command.args(pending.items.iter().flatten().map(|item| &item.name)).args(&extra_args);
        Ok((Process::start(&mut command)?, pipe, log))
    });
    let Ok((mut process, pipe, log)) = started else {
        // The attempt with one test will say what is wrong, for each.
        put_back(slot, pending.rest());
        return false;
    };
    process.follow(log);
    let longest_limit = pending.items.iter().flatten().map(|item| item.timeout_ms).max().flatten();
    let mut follower = Follower {
        slot: Context { no_capture, isolation, yields_on_failure, limit: slot.options.output_limit, shows_output },
        mailbox: &slot.mailbox,
        emit: &*slot.on_message,
        idle_limit: longest_limit.map(Duration::from_millis),
        since: Instant::now(),
        log: Log::default(),
        transcript: Transcript::new(slot.options.output_limit),
        asked_for: pending.left,
        pending: &mut pending,
        running: None,
        company: Vec::new(),
        failures: Vec::new(),
        stopping: false,
        last: None,
        held: Vec::new(),
        held_since: Instant::now(),
        released: false,
        strays: HashMap::new(),
        late: Capture::new(slot.options.output_limit),
        warning: Some(Vec::new()),
    };
    let is_paused = slot.is_paused();
    let ended = process.watch(slot.limits(), &is_paused, &slot.mailbox, &mut follower, &mut slot.buffer);
    drop(pipe);
    let Settled { useful, again, mut failed } = follower.finish(ended);
    slot.mailbox.note_started(pending.started());
    put_back(slot, pending.rest());
    let mut again = again.into_iter();
    while !(failed && yields_on_failure)
        && let Some(one) = again.next()
    {
        failed |= single::run_after_batch(slot, one, unit, no_capture);
    }
    put_back(slot, again.map(|one| one.item).collect());
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
            "--format" | "--test-threads" | "--logfile" if name.len() == arg.len() => {
                args.next();
            }
            "--format" | "--test-threads" | "--logfile" | "--exact" | "--quiet" | "-q" | "--report-time" => {}
            _ => kept.push(arg.clone()),
        }
    }
    kept
}

/// A test that is to run alone after the process of its batch has ended.
pub(super) struct Again {
    pub(super) item: RunItem,
    /// What came of it, if that counts and only what it writes is wanted.
    pub(super) verdict: Option<TestResult>,
    /// What had run before it in the process in which it did not pass. `None`: it did, and what it leaves behind is wanted.
    pub(super) company: Option<Vec<String>>,
}

/// What is known when a process has ended.
struct Settled {
    /// The batch has led to anything.
    useful: bool,
    /// The tests that are to run again, alone.
    again: Vec<Again>,
    /// A test has its outcome, and that is a failure.
    failed: bool,
}

/// How the process is to be understood.
#[derive(Clone, Copy)]
struct Context {
    no_capture: bool,
    isolation: Isolation,
    yields_on_failure: bool,
    limit: usize,
    /// The harness does not capture.
    shows_output: bool,
}

/// What came past the harness's capture: from child processes, from code that writes to the descriptors themselves.
struct Strays {
    stdout: Capture,
    stderr: Capture,
}

/// What was wrong with the end of a process.
struct Fault {
    outcome: TestOutcome,
    how: String,
    /// What it wrote to standard error then.
    stderr: String,
}

/// A test that has failed, until the process has ended.
struct Failure {
    item: RunItem,
    duration: Duration,
    /// The harness's words.
    message: Option<String>,
    place: usize,
    company: Vec<String>,
}

/// Follows the process.
struct Follower<'a> {
    slot: Context,
    mailbox: &'a super::mailbox::Mailbox,
    emit: &'a dyn Fn(Message),
    /// How long the process may take after the last test.
    idle_limit: Option<Duration>,
    /// The last entry of the log.
    since: Instant,
    log: Log,
    transcript: Transcript,
    /// How many tests the harness was asked for.
    asked_for: usize,
    pending: &'a mut Pending,
    /// The place of the test that executes, if the harness was heard to say so.
    running: Option<usize>,
    /// The tests that have run in this process.
    company: Vec<String>,
    failures: Vec<Failure>,
    /// The process is being ended because a test has failed.
    stopping: bool,
    /// The result of the last test, which waits for the end of the process.
    last: Option<(RunItem, TestResult)>,
    /// Tests that have passed, which wait for it as well: for [`HELD_FOR`], as one of them may have left something behind.
    held: Vec<(RunItem, TestResult)>,
    held_since: Instant,
    /// Tests that have passed have their results although the process has not ended.
    released: bool,
    /// By place.
    strays: HashMap<usize, Strays>,
    /// What the process wrote to standard error when all tests had ended.
    late: Capture,
    /// The beginning of standard error, while it may be what the harness thinks of our options.
    warning: Option<Vec<u8>>,
}

impl Observer for Follower<'_> {
    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        match stream {
            Stream::Stdout => self.read(bytes, false),
            Stream::Stderr => match self.warning.take() {
                None => self.stray(self.running, Stream::Stderr, bytes),
                Some(mut begin) => {
                    begin.extend_from_slice(bytes);
                    match begin.strip_prefix(LOG_WARNING.as_bytes()) {
                        Some(rest) => self.stray(self.running, Stream::Stderr, rest),
                        None if LOG_WARNING.as_bytes().starts_with(&begin) => self.warning = Some(begin),
                        None => self.stray(self.running, Stream::Stderr, &begin),
                    }
                }
            },
            Stream::Log => {
                let entries = self.log.push(bytes, |name| self.pending.place(name).is_some());
                let each = self.since.elapsed() / u32::try_from(entries.len()).unwrap_or(u32::MAX).max(1);
                for entry in entries {
                    self.ended(entry, each);
                }
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        if self.stopping {
            return Some(self.since);
        }
        let limit = match self.running.and_then(|place| self.pending.items[place].as_ref()) {
            Some(item) => item.timeout_ms.map(Duration::from_millis),
            None => self.idle_limit,
        };
        self.since.checked_add(limit?)
    }

    fn wants_output_early(&self) -> bool {
        true
    }
}

impl Follower<'_> {
    /// Takes what the harness prints; with `at_end` what is left of it.
    fn read(&mut self, bytes: &[u8], at_end: bool) {
        let mut strays: Vec<(Option<usize>, Vec<u8>)> = Vec::new();
        let pending = &*self.pending;
        let is_test = |name: &str| pending.is_test(name);
        let mut stray = |stray: Stray<'_>| {
            let place = stray.test.and_then(|name| pending.by_name.get(name).copied());
            strays.push((place, stray.bytes.to_owned()));
        };
        match at_end {
            false => self.transcript.push(bytes, &is_test, &mut stray),
            true => self.transcript.finish(&is_test, &mut stray),
        }
        for (place, bytes) in strays {
            self.stray(place.or(self.running), Stream::Stdout, &bytes);
        }
        self.look_what_runs();
    }

    fn stray(&mut self, place: Option<usize>, stream: Stream, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let Some((place, item)) = place.and_then(|place| Some((place, self.pending.items.get(place)?.as_ref()?)))
        else {
            if stream == Stream::Stderr {
                self.late.push(bytes);
            }
            return;
        };
        if self.slot.no_capture {
            let text = String::from_utf8_lossy(bytes).into_owned();
            (self.emit)(Message::Output { key: item.key, text });
            return;
        }
        let limit = self.slot.limit;
        let strays = self
            .strays
            .entry(place)
            .or_insert_with(|| Strays { stdout: Capture::new(limit), stderr: Capture::new(limit) });
        match stream {
            Stream::Stderr => strays.stderr.push(bytes),
            Stream::Stdout | Stream::Log => strays.stdout.push(bytes),
        }
    }

    /// Takes note of what the harness said to execute now.
    fn look_what_runs(&mut self) {
        self.running = self.transcript.last().and_then(|name| self.pending.place(name));
        if let Some(place) = self.running {
            self.start(place);
        }
    }

    fn start(&mut self, place: usize) {
        if let Some(item) = &self.pending.items[place]
            && !std::mem::replace(&mut self.pending.started[place], true)
        {
            (self.emit)(Message::Started { key: item.key });
            self.mailbox.executing(item.key);
        }
    }

    /// Takes note of a test that has ended.
    fn ended(&mut self, entry: Entry, duration: Duration) {
        self.since = Instant::now();
        let Some(place) = self.pending.place(&entry.name) else { return };
        self.start(place);
        let Some(item) = self.pending.take(place) else { return };
        let outcome = match entry.result {
            LineResult::Ok => TestOutcome::Passed,
            LineResult::Ignored(_) => TestOutcome::Skipped,
            LineResult::Failed => {
                let company = self.companions(None);
                self.company.push(entry.name);
                self.failures.push(Failure { item, duration, message: entry.message, place, company });
                self.stopping |= self.slot.yields_on_failure && self.pending.left > 0;
                return self.look_what_runs();
            }
        };
        if outcome == TestOutcome::Passed {
            self.company.push(entry.name);
        }
        let mut result = TestResult::new(outcome, duration);
        if let LineResult::Ignored(reason) = entry.result {
            result.message = Some(reason.unwrap_or_else(|| "ignored".to_owned()));
        }
        if let Some(strays) = self.strays.remove(&place) {
            (result.stdout, result.stderr) = (strays.stdout.finish(), strays.stderr.finish());
        }
        if self.pending.left == 0 {
            // How its process ends is a part of it.
            self.last = Some((item, result));
        } else if self.slot.isolation == Isolation::Auto {
            self.hold(item, result);
        } else {
            self.finish_test(item.key, result);
        }
        self.look_what_runs();
    }

    /// Keeps the result of a test that has passed, and gives out what has been kept for long.
    fn hold(&mut self, item: RunItem, result: TestResult) {
        if self.held.is_empty() {
            self.held_since = Instant::now();
        }
        self.held.push((item, result));
        if self.held_since.elapsed() > HELD_FOR {
            self.released = true;
            self.release();
        }
    }

    fn release(&mut self) {
        for (item, result) in std::mem::take(&mut self.held) {
            self.finish_test(item.key, result);
        }
    }

    /// The tests that have run in this process, the latest ones, but for `own`.
    fn companions(&self, own: Option<&str>) -> Vec<String> {
        let others = self.company.iter().rev().filter(|name| Some(name.as_str()) != own);
        let mut named: Vec<_> = others.take(NAMED_COMPANIONS).cloned().collect();
        named.reverse();
        named
    }

    fn finish_test(&self, key: TestKey, mut result: TestResult) {
        result.shared_process = self.asked_for > 1;
        if self.slot.no_capture {
            result.stdout = Default::default();
            result.stderr = Default::default();
        }
        (self.emit)(self.mailbox.finish(key, result));
    }

    /// Settles what can be settled when the process has ended.
    fn finish(mut self, ended: io::Result<End>) -> Settled {
        self.read(&[], true);
        if let Some(begin) = self.warning.take() {
            self.stray(self.running, Stream::Stderr, &begin);
        }
        let is_leaky = ended.as_ref().is_ok_and(|end| end.leaky);
        let is_known = self.asked_for == 1 || (self.slot.isolation == Isolation::Auto && !self.released);
        if is_leaky && !is_known {
            let text = "a test of a batch left processes behind that still hold its output".to_owned();
            (self.emit)(Message::Log { text });
        }
        let by = ended.as_ref().map_or(EndedBy::Itself, |end| end.by);
        let stopped = by == EndedBy::Order || (by == EndedBy::TimeLimit && self.stopping);
        let useful = stopped
            || self.pending.left < self.asked_for
            || (self.transcript.has_begun() && !self.transcript.has_ended())
            || by == EndedBy::TimeLimit;
        let mut again = Vec::new();
        let fault = if stopped || self.pending.left > 0 { None } else { self.fault_at_end(&ended) };
        if self.slot.isolation == Isolation::Auto && (is_leaky || fault.is_some()) {
            // Any of them may have left behind what still runs, or what the process has come to grief over at its end.
            let suspects = std::mem::take(&mut self.held);
            again.extend(suspects.into_iter().map(|(item, _)| Again { item, verdict: None, company: None }));
        }
        self.release();
        let mut failed = false;
        for failure in std::mem::take(&mut self.failures) {
            let one = self.finish_failure(failure, is_leaky);
            failed |= one.is_none();
            again.extend(one);
        }
        if let Some((item, result)) = self.last.take() {
            again.extend(self.finish_last(item, result, fault, is_leaky));
        }
        if useful && !stopped {
            again.extend(self.finish_running(&ended));
        } else if stopped && by == EndedBy::Order {
            // It had started, and is not wanted any more.
            if let Some(item) = self.running.and_then(|place| self.pending.take(place)) {
                (self.emit)(self.mailbox.give_back(item.key));
            }
        }
        Settled { useful, again, failed }
    }

    /// Settles a test that has failed. The first one of a process has failed alone.
    fn finish_failure(&mut self, failure: Failure, is_leaky: bool) -> Option<Again> {
        let Failure { item, duration, message, place, company } = failure;
        if self.slot.isolation == Isolation::Auto && !company.is_empty() {
            return Some(Again { item, verdict: None, company: Some(company) });
        }
        let mut result = TestResult::new(TestOutcome::Failed, duration);
        result.leaky = is_leaky && self.asked_for == 1;
        let section = self.transcript.take_section(&item.name);
        let is_whole = section.is_some() || self.slot.shows_output;
        let mut captured = section.unwrap_or_default();
        if let Some(words) = &message
            && let Some(own) = captured.text.strip_suffix(&format!("note: {words}\n"))
        {
            captured.text.truncate(own.len());
        }
        if let Some(strays) = self.strays.remove(&place) {
            (result.stdout, result.stderr) = (strays.stdout.finish(), strays.stderr.finish());
        }
        let words = message.as_deref().map(outcome::should_panic_message);
        result.message = words
            .or_else(|| outcome::failure_message(&item.name, &captured.text, &result.stderr.text))
            .or_else(|| Some("the test failed without a message".to_owned()));
        result.stdout.dropped_bytes += captured.dropped_bytes;
        result.stdout.text.push_str(&captured.text);
        if is_whole {
            self.finish_test(item.key, result);
            return None;
        }
        // The process ended before it came to repeat what its failed tests had written.
        Some(Again { item, verdict: Some(result), company: Some(company) })
    }

    /// What was wrong with the end of a process all of whose tests had ended before.
    fn fault_at_end(&mut self, ended: &io::Result<End>) -> Option<Fault> {
        let (outcome, how) = match ended {
            Ok(End { by: EndedBy::Order, .. }) => return None,
            Ok(End { by: EndedBy::TimeLimit, .. }) => {
                let limit = self.idle_limit.unwrap_or_default();
                (TestOutcome::TimedOut, format!("did not end within {} s", limit.as_secs_f64()))
            }
            Ok(end) => match end.status.code() {
                Some(0) => return None,
                Some(_) if !self.failures.is_empty() && outcome::is_exit_of_harness(end.status) => return None,
                Some(code) => (TestOutcome::Crashed, format!("exited with code {code}")),
                None => {
                    let late = std::mem::replace(&mut self.late, Capture::new(0)).finish();
                    let how = format!("was {}", outcome::crash_message(end.status, &late.text));
                    return Some(Fault { outcome: TestOutcome::Crashed, how, stderr: late.text });
                }
            },
            Err(error) => (TestOutcome::Error, format!("could not be watched and was ended: {error}")),
        };
        Some(Fault { outcome, how, stderr: String::new() })
    }

    /// Settles the test that ended last, when its process has ended, too.
    fn finish_last(
        &mut self,
        item: RunItem,
        mut result: TestResult,
        fault: Option<Fault>,
        is_leaky: bool,
    ) -> Option<Again> {
        let was_alone = self.asked_for == 1;
        let runs_again = self.slot.isolation == Isolation::Auto && !was_alone;
        result.leaky = was_alone && is_leaky;
        match fault {
            // Unless it is one of those that have their results that the process has come to grief over.
            Some(_) if runs_again && !self.released => {
                let company = self.companions(Some(&item.name));
                return Some(Again { item, verdict: None, company: Some(company) });
            }
            Some(Fault { outcome, how, stderr }) => {
                result.outcome = outcome;
                result.message = Some(match was_alone {
                    true => format!("the test passed, and then its process {how}"),
                    false => format!("the process of its batch, of which this test was the last, {how}"),
                });
                result.stderr.text.push_str(&stderr);
            }
            None if runs_again && is_leaky => return Some(Again { item, verdict: None, company: None }),
            None => {}
        }
        self.finish_test(item.key, result);
        None
    }

    /// Settles the test that was executing when the process ended, and those that the binary does not have.
    fn finish_running(&mut self, ended: &io::Result<End>) -> Option<Again> {
        let first = self.pending.first()?;
        let lacks_tests = self.transcript.lacks_tests(self.asked_for)
            && ended.as_ref().is_ok_and(|end| end.by == EndedBy::Itself && outcome::is_exit_of_harness(end.status));
        if lacks_tests && self.slot.isolation != Isolation::Auto {
            for item in self.pending.rest() {
                (self.emit)(Message::Started { key: item.key });
                let result = TestResult::new(TestOutcome::Error, Duration::ZERO)
                    .with_message("the binary no longer has this test; build it again");
                self.finish_test(item.key, result);
            }
            return None;
        }
        let place = self.running.unwrap_or(first);
        self.start(place);
        let item = self.pending.take(place)?;
        let company = self.companions(None);
        let runs_again = self.slot.isolation == Isolation::Auto;
        if runs_again && (lacks_tests || !company.is_empty()) {
            return Some(Again { item, verdict: None, company: Some(company) });
        }
        let strays = self.strays.remove(&place);
        let (stdout, stderr) =
            strays.map(|strays| (strays.stdout.finish(), strays.stderr.finish())).unwrap_or_default();
        let (outcome, message) = match ended {
            Ok(End { by: EndedBy::TimeLimit, .. }) => {
                let limit = item.timeout_ms.map(Duration::from_millis);
                (TestOutcome::TimedOut, outcome::timeout_message(limit.unwrap_or_default()))
            }
            Ok(end) => (TestOutcome::Crashed, outcome::crash_message(end.status, &stderr.text)),
            Err(error) => {
                (TestOutcome::Error, format!("the test's process could not be watched and was ended: {error}"))
            }
        };
        let at = ended.as_ref().map_or_else(|_| Instant::now(), |end| end.at);
        let mut result = TestResult::new(outcome, at.saturating_duration_since(self.since)).with_message(message);
        (result.stdout, result.stderr) = (stdout, stderr);
        if runs_again {
            // It was alone so far, so that this counts, but what it had written is lost with the harness.
            return Some(Again { item, verdict: Some(result), company: Some(company) });
        }
        self.finish_test(item.key, result);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_contradict_ours_are_left_out() {
        let given = ["--test-threads", "8", "--format=pretty", "-q", "--nocapture", "--skip", "x", "--exact"];
        let given = given.map(str::to_owned);
        assert_eq!(without_ours(&given), ["--nocapture", "--skip", "x"]);
    }
}
