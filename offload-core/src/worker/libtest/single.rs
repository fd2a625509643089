//! One process for one test: the form in which tests share nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use super::batch::Again;
use super::batch::log::Log;
use super::capture::{Capture, Lines, Overlong};
use super::outcome::{self, LineResult};
use super::process::{EndedBy, Observer, Stream};
use super::slot::{Slot, has_flag, start_error};
use crate::bounded;
use crate::framework::{TestOutcome, TestResult};
use crate::worker::{Harness, Message, RunItem, TestKey, Unit};

/// What the harness writes to standard error where it is asked for a log.
pub(super) const LOG_WARNING: &str = "warning: `--logfile` is deprecated\n";

/// Runs one test in one process.
pub(super) fn run(slot: &mut Slot, item: &RunItem, unit: &Unit, no_capture: bool) {
    match run_once(slot, item, unit, no_capture, true) {
        Some(result) => slot.conclude(item, result),
        None => give_back(slot, item),
    }
}

/// Runs a test alone that did not pass in a batch, of which it was said that it has started. Returns whether it failed.
pub(super) fn run_after_batch(slot: &mut Slot, again: Again, unit: &Unit, no_capture: bool) -> bool {
    let Again { item, verdict, company } = again;
    let Some(mut result) = run_once(slot, &item, unit, no_capture, false) else {
        give_back(slot, &item);
        return false;
    };
    let failed = result.outcome.is_failure();
    let is_final = verdict.is_some();
    match verdict {
        None if !failed => result.shares_state = company,
        None => {}
        Some(verdict) if failed => {
            (result.outcome, result.duration) = (verdict.outcome, verdict.duration);
        }
        Some(verdict) => {
            let alone = "what it wrote was lost when its process ended; alone it does not fail";
            let message = verdict.message.as_deref().map_or(alone.to_owned(), |message| format!("{message}; {alone}"));
            result = TestResult { message: Some(message), ..verdict };
        }
    }
    slot.conclude(&item, result);
    failed || is_final
}

/// Runs a test in a process, or two where one leaves doubt; `None`: it was given back. With `announce` it is said that it has
/// started.
fn run_once(slot: &mut Slot, item: &RunItem, unit: &Unit, no_capture: bool, announce: bool) -> Option<TestResult> {
    match execute(slot, item, unit, no_capture, None, announce) {
        Executed::Ended(result) => Some(*result),
        Executed::GivenBack => None,
        Executed::Unsaid(..) => execute_with_log(slot, item, unit, no_capture),
    }
}

fn give_back(slot: &mut Slot, item: &RunItem) {
    slot.release();
    slot.emit(slot.mailbox.give_back(item.key));
}

/// What became of a process.
enum Executed {
    Ended(Box<TestResult>),
    /// It was ended because the test is not wanted here any more.
    GivenBack,
    /// It exited, with this code, as the harness exits that was not heard to say how the test went.
    Unsaid(Box<TestResult>, i32),
}

/// Runs a test again whose process exited as the harness exits, without a word of it. Only a log tells a test that has closed
/// or redirected its standard output from one that has left with `std::process::exit`; a log for every test would cost
/// each of them. `None`: it was given back.
fn execute_with_log(slot: &mut Slot, item: &RunItem, unit: &Unit, no_capture: bool) -> Option<TestResult> {
    let log = match tempfile::Builder::new().prefix("offload-log-").tempfile() {
        Ok(log) => log,
        Err(error) => {
            return Some(TestResult::new(TestOutcome::Error, Duration::ZERO).with_message(format!(
                "the test's process exited without a word of the harness, and no file can be made in the directory for \
                 temporary files into which the harness could write it: {error}"
            )));
        }
    };
    let mut result = match execute(slot, item, unit, no_capture, Some(log.path()), false) {
        Executed::Ended(result) => result,
        Executed::GivenBack => return None,
        Executed::Unsaid(mut result, code) => {
            let text = bounded::read(log.path(), bounded::RESULTS).unwrap_or_default();
            let entry = Log::default().push(&text, |name| name == item.name).into_iter().next();
            let reading = outcome::of_log(entry, &item.name, code, (&result.stdout.text, &result.stderr.text));
            (result.outcome, result.message) = (reading.outcome, reading.message);
            result
        }
    };
    if let Some(own) = result.stderr.text.strip_prefix(LOG_WARNING) {
        result.stderr.text = own.to_owned();
    }
    Some(*result)
}

fn execute(
    slot: &mut Slot,
    item: &RunItem,
    unit: &Unit,
    no_capture: bool,
    log: Option<&Path>,
    announce: bool,
) -> Executed {
    let mut command = slot.command(unit);
    if unit.harness == Harness::Libtest {
        // A flag given twice is refused, so those that the user gave are left to them.
        let given = |flag: &str| has_flag(&unit.extra_args, flag);
        command.arg(&item.name);
        if !given("--exact") {
            command.arg("--exact");
        }
        if !given("--nocapture") && !given("--no-capture") {
            // The pipes capture; and what other threads and children of the test write is then captured with it.
            command.arg("--nocapture");
        }
        if let Some(log) = log {
            command.arg("--logfile").arg(log);
        }
    }
    command.args(&unit.extra_args);

    let began = Instant::now();
    let process = slot.start(&mut command);
    if announce && !slot.mailbox.has_started(item.key) {
        slot.hold(Message::Started { key: item.key });
    }
    if no_capture {
        slot.release();
    }
    let process = match process {
        Ok(process) => process,
        Err(_) if !slot.is_wanted() => return Executed::GivenBack,
        Err(error) => {
            let result = TestResult::new(TestOutcome::Error, Duration::ZERO).with_message(start_error(unit, &error));
            return Executed::Ended(Box::new(result));
        }
    };
    // The command's strings are of no use any more, and freeing them overlaps with the process.
    drop(command);

    let limit = item.timeout_ms.map(Duration::from_millis);
    let (limits, is_paused) = (slot.limits(), slot.is_paused());
    let mut output = Output {
        stdout: Capture::new(slot.options.output_limit),
        stderr: Capture::new(slot.options.output_limit),
        deadline: limit.and_then(|limit| began.checked_add(limit)),
        live: no_capture.then(|| Live::new(item, unit.harness)),
        held: &mut slot.held,
        emit: &*slot.on_message,
    };
    let ended = process.watch(limits, &is_paused, &slot.mailbox, &mut output, &mut slot.buffer);
    output.flush();
    let (mut stdout, stderr) = (output.stdout.finish(), output.stderr.finish());

    let mut unsaid = None;
    let mut result = match ended {
        Err(error) => TestResult::new(TestOutcome::Error, began.elapsed())
            .with_message(format!("the test's process could not be watched and was ended: {error}")),
        Ok(end) => {
            let duration = end.at - began;
            let mut result = match end.by {
                EndedBy::Order => return Executed::GivenBack,
                EndedBy::TimeLimit => TestResult::new(TestOutcome::TimedOut, duration)
                    .with_message(outcome::timeout_message(limit.unwrap_or(duration))),
                EndedBy::Itself => {
                    let reading = match unit.harness {
                        Harness::Opaque => Some(outcome::of_opaque(end.status, &stderr.text)),
                        _ => outcome::of_libtest(end.status, &item.name, (&stdout, &stderr), unit.custom_harness),
                    };
                    unsaid = end.status.code().filter(|_| reading.is_none());
                    let (outcome, message) =
                        reading.map_or((TestOutcome::Crashed, None), |reading| (reading.outcome, reading.message));
                    TestResult { message, ..TestResult::new(outcome, duration) }
                }
            };
            result.leaky = end.leaky;
            result
        }
    };
    if !no_capture {
        if unit.harness == Harness::Libtest {
            outcome::strip_harness(&mut stdout.text, &item.name);
        }
        (result.stdout, result.stderr) = (stdout, stderr);
    }
    match unsaid {
        Some(code) => Executed::Unsaid(Box::new(result), code),
        None => Executed::Ended(Box::new(result)),
    }
}

/// What the process of one test writes.
struct Output<'a> {
    stdout: Capture,
    stderr: Capture,
    deadline: Option<Instant>,
    live: Option<Live>,
    held: &'a mut Vec<Message>,
    emit: &'a dyn Fn(Message),
}

impl Observer for Output<'_> {
    fn output(&mut self, stream: Stream, bytes: &[u8]) {
        match stream {
            Stream::Stdout => self.stdout.push(bytes),
            Stream::Stderr => self.stderr.push(bytes),
            Stream::Log => {}
        }
        if let Some(live) = &mut self.live {
            live.push(stream, bytes, self.emit);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn runs_on(&mut self) {
        self.held.drain(..).for_each(self.emit);
    }

    fn wants_output_early(&self) -> bool {
        self.live.is_some()
    }
}

impl Output<'_> {
    fn flush(&mut self) {
        if let Some(live) = &mut self.live {
            live.finish(self.emit);
        }
    }
}

/// Passes output on while it comes, in whole lines, without the harness's own.
struct Live {
    key: TestKey,
    stdout: Lines,
    stderr: Lines,
    filter: Filter,
}

/// Where in the harness's output the stream is.
enum Filter {
    /// Nothing is the harness's.
    Off,
    /// Before `running 1 test`.
    Announcement { name: String },
    /// In the test's own output.
    Test { name: String },
    /// After the harness's verdict.
    Summary,
}

impl Live {
    fn new(item: &RunItem, harness: Harness) -> Self {
        let lines = || Lines::new(64 << 10, Overlong::Split);
        let filter = match harness {
            Harness::Libtest => Filter::Announcement { name: item.name.clone() },
            _ => Filter::Off,
        };
        Self { key: item.key, stdout: lines(), stderr: lines(), filter }
    }

    fn push(&mut self, stream: Stream, bytes: &[u8], emit: &dyn Fn(Message)) {
        let Self { key, stdout, stderr, filter } = self;
        match stream {
            Stream::Stdout => stdout.push(bytes, |line| filter.pass(&String::from_utf8_lossy(line), *key, emit)),
            Stream::Stderr => stderr.push(bytes, |line| send(&String::from_utf8_lossy(line), *key, emit)),
            Stream::Log => {}
        }
    }

    fn finish(&mut self, emit: &dyn Fn(Message)) {
        let (stdout, stderr) = (self.stdout.finish(), self.stderr.finish());
        self.filter.pass(&String::from_utf8_lossy(&stdout), self.key, emit);
        send(&String::from_utf8_lossy(&stderr), self.key, emit);
    }
}

impl Filter {
    fn pass(&mut self, line: &str, key: TestKey, emit: &dyn Fn(Message)) {
        match self {
            Self::Off => send(line, key, emit),
            Self::Announcement { .. } if line.trim().is_empty() => {}
            Self::Announcement { name } => {
                let announced = outcome::is_announcement(line);
                *self = if announced { Self::Test { name: std::mem::take(name) } } else { Self::Off };
                if !announced {
                    send(line, key, emit);
                }
            }
            Self::Test { name } => {
                let verdict = format!("test {name}");
                let own = match line.rfind(&verdict).map(|at| (at, outcome::result_line(&line[at..]))) {
                    Some((at, Some((_, LineResult::Ok | LineResult::Failed | LineResult::Ignored(_))))) => at,
                    _ => line.len(),
                };
                send(&line[..own], key, emit);
                if own < line.len() {
                    *self = Self::Summary;
                }
            }
            Self::Summary => {}
        }
    }
}

fn send(text: &str, key: TestKey, emit: &dyn Fn(Message)) {
    if !text.is_empty() {
        emit(Message::Output { key, text: text.to_owned() });
    }
}
