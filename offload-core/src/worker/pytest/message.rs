//! What is said between this process and the Python processes, as it stands on the wire.
//!
//! A received line is read into one flat structure, whatever its type: that is the quickest way, and it lets reports of
//! pytest's own pass through as the text that they are. [`Incoming`] is what the rest of the program sees. Strings may
//! hold lone surrogates (Python's way to write undecodable file names), which are replaced; unknown types and fields are
//! ignored, so that an older program can work with a newer worker.

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Pid;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::PytestItem;
use crate::framework::{Captured, TestOutcome, TestResult};
use crate::worker::TestKey;
use crate::worker::framing::{Decoder, FrameError};

/// The version of what is said.
pub(super) const VERSION: u32 = 1;

/// From this process to the template or a worker.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Outgoing<'a> {
    Fork {
        id: &'a str,
    },
    Collect {
        units: &'a [u32],
    },
    /// `resume`: how often the worker has said that it yields, as far as is known here.
    Run {
        tests: &'a [RunLine],
        resume: u32,
    },
    TakeBack {
        keys: &'a [TestKey],
    },
    Cancel,
    Shutdown,
}

/// A test to run.
#[derive(Debug, Serialize)]
pub(crate) struct RunLine {
    key: TestKey,
    unit: u32,
    ordinal: u32,
    attempt: u32,
    /// What the tests of the file have to be. Said to a worker that is not the one that collected it first.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Arc<str>>,
}

impl RunLine {
    /// A test of a file whose tests are those with this digest.
    pub fn new(item: &PytestItem, digest: Option<Arc<str>>) -> Self {
        Self { key: item.key, unit: item.unit, ordinal: item.ordinal, attempt: item.attempt, digest }
    }
}

/// From the template or a worker to this process.
#[derive(Debug)]
pub(crate) enum Incoming {
    Hello(Hello),
    Configured {
        collect: String,
        collect_reason: String,
        start: String,
        start_reason: String,
    },
    /// The files, and a name for this numbering of them.
    Units(Vec<UnitLine>, String),
    Collected(Collected),
    CollectDone,
    /// All has been collected; a name for this numbering of it.
    CollectionFinished(String),
    /// A template that comes later has the numbering with this name.
    Numbered {
        digest: String,
    },
    CollectReport {
        report: Arc<str>,
        failed: bool,
        /// Why, as pytest shows it.
        text: String,
    },
    Exited {
        id: String,
        exit: Exit,
    },
    Fatal {
        exit_code: i32,
        text: String,
    },
    /// The template ends: a fresh one has to be in its place.
    Replace,
    /// The process is that of the test alone, where it has one.
    Started(TestKey, Option<Pid>),
    /// How often the test, which starts next, may be tried again if its process dies.
    CrashRetries(TestKey, u32),
    /// Between two tests: it tears down what the last ones have set up.
    TearingDown,
    Finished(TestKey, Box<TestResult>),
    /// The process of the test alone ended without a result. The captured output is that of the result.
    Crashed(TestKey, Exit, Box<TestResult>),
    TakenBack(Vec<TestKey>),
    /// After a failure: it has dropped all that it had, and takes no test until it hears that this is known.
    Yielded,
    /// The tests of this file are others there than those that were reported, so none of them is run.
    Refused {
        unit: u32,
        keys: Vec<TestKey>,
        text: String,
    },
    /// And what it makes of the test, if it is an error.
    LateReport(TestKey, Arc<str>, Option<Box<TestResult>>),
    /// A message that is passed on as it is: its type and what it says, as JSON.
    Native(&'static str, Arc<str>),
    Log(String),
    Bye {
        output: Option<Box<RawValue>>,
    },
    Nothing,
}

/// How a process introduces itself.
#[derive(Debug)]
pub(crate) struct Hello {
    pub version: u32,
    pub nonce: String,
    pub is_template: bool,
    pub id: String,
    pub pid: i32,
    /// Where the stacks go that it writes at a time-out.
    pub dump: Option<PathBuf>,
    /// Where goes what it writes outside of tests.
    pub output: Option<PathBuf>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

impl Exit {
    /// Whether the process ended by itself and said that all was well.
    pub fn is_success(self) -> bool {
        self.code == Some(0) && self.signal.is_none()
    }

    /// Whether there was a process whose end somebody has seen.
    pub fn is_known(self) -> bool {
        self.code.is_some() || self.signal.is_some()
    }
}

/// A file with tests.
#[derive(Debug, Deserialize)]
pub(crate) struct UnitLine {
    pub unit: u32,
    pub path: Lossy,
}

/// The tests of one file.
#[derive(Debug)]
pub(crate) struct Collected {
    pub unit: u32,
    pub path: String,
    pub tests: Vec<TestLine>,
    pub deselected: Option<Box<RawValue>>,
    /// A name for these tests.
    pub digest: String,
}

/// A test that was collected.
#[derive(Debug, Deserialize)]
pub(crate) struct TestLine {
    pub ordinal: u32,
    pub id: Lossy,
    #[serde(default)]
    pub line: Option<i64>,
    #[serde(default)]
    pub domain: Lossy,
    /// The group that the test was marked as being of.
    #[serde(default)]
    pub group: Option<Lossy>,
}

/// Text in which lone surrogates are replaced.
#[derive(Debug, Default, Clone)]
pub(crate) struct Lossy(pub String);

impl<'de> Deserialize<'de> for Lossy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Lossy;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Lossy, E> {
                Ok(Lossy(text.to_owned()))
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Lossy, E> {
                Ok(Lossy(String::from_utf8_lossy(bytes).into_owned()))
            }
        }
        // As bytes, because serde_json refuses lone surrogates only in what must become a `str`.
        deserializer.deserialize_bytes(Text)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Hello,
    Configured,
    Units,
    Collected,
    CollectDone,
    CollectionFinished,
    Numbered,
    CollectReport,
    Warning,
    Log,
    Fatal,
    Replace,
    Exited,
    Started,
    CrashRetries,
    TearingDown,
    Finished,
    Crashed,
    TakenBack,
    Yielded,
    Refused,
    LateReport,
    Property,
    Exit,
    InternalError,
    Data,
    Alive,
    Bye,
    #[serde(other)]
    Unknown,
}

/// One line: the fields of all messages.
#[derive(Debug, Deserialize)]
struct Line {
    r#type: Kind,
    #[serde(default)]
    key: Option<TestKey>,
    #[serde(default)]
    keys: Vec<TestKey>,
    #[serde(default)]
    outcome: Option<Outcome>,
    #[serde(default)]
    durations: Option<[f64; 3]>,
    #[serde(default)]
    reports: Option<Box<RawValue>>,
    #[serde(default)]
    message: Option<Lossy>,
    #[serde(default)]
    text: Option<Lossy>,
    #[serde(default)]
    stdout: Option<Lossy>,
    #[serde(default)]
    stderr: Option<Lossy>,
    #[serde(default)]
    version: u32,
    #[serde(default)]
    nonce: Lossy,
    #[serde(default)]
    role: Lossy,
    #[serde(default)]
    id: Lossy,
    #[serde(default)]
    pid: i32,
    #[serde(default)]
    retries: u32,
    #[serde(default)]
    dump: Option<String>,
    #[serde(default)]
    collect: Lossy,
    #[serde(default)]
    collect_reason: Lossy,
    #[serde(default)]
    start: Lossy,
    #[serde(default)]
    start_reason: Lossy,
    #[serde(default)]
    unit: u32,
    #[serde(default)]
    units: Vec<UnitLine>,
    #[serde(default)]
    digest: Lossy,
    #[serde(default)]
    path: Lossy,
    #[serde(default)]
    tests: Vec<TestLine>,
    #[serde(default)]
    deselected: Option<Box<RawValue>>,
    #[serde(default)]
    report: Option<Box<RawValue>>,
    #[serde(default)]
    warning: Option<Box<RawValue>>,
    #[serde(default)]
    name: Option<Box<RawValue>>,
    #[serde(default)]
    value: Option<Box<RawValue>>,
    #[serde(default)]
    reason: Option<Box<RawValue>>,
    #[serde(default)]
    returncode: Option<Box<RawValue>>,
    #[serde(default)]
    exit_code: Option<i32>,
    #[serde(default)]
    code: Option<i32>,
    #[serde(default)]
    signal: Option<i32>,
    #[serde(default)]
    kind: Option<Box<RawValue>>,
    #[serde(default)]
    payload: Option<Box<RawValue>>,
    #[serde(default)]
    workeroutput: Option<Box<RawValue>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Passed,
    Failed,
    Error,
    Skipped,
}

/// The part of a collection report that matters here.
#[derive(Deserialize)]
struct ReportHead {
    #[serde(default)]
    outcome: Lossy,
}

/// The next message, or `None` when more bytes are needed.
pub(super) fn next(decoder: &mut Decoder) -> Result<Option<Incoming>, FrameError> {
    Ok(decoder.next_message::<Line>()?.map(Line::into_incoming))
}

impl Line {
    fn into_incoming(self) -> Incoming {
        match (self.r#type, self.key) {
            (Kind::Started, Some(key)) => Incoming::Started(key, Pid::from_raw(self.pid)),
            (Kind::Finished, Some(key)) => Incoming::Finished(key, Box::new(self.into_result())),
            (Kind::Crashed, Some(key)) => {
                let exit = Exit { code: self.code, signal: self.signal };
                Incoming::Crashed(key, exit, Box::new(self.into_result()))
            }
            (Kind::LateReport, Some(key)) => match self.reports {
                Some(ref reports) => {
                    let reports = shared(reports);
                    let failed = self.outcome.is_some();
                    Incoming::LateReport(key, reports, failed.then(|| Box::new(self.into_result())))
                }
                None => Incoming::Nothing,
            },
            (Kind::TakenBack, _) => Incoming::TakenBack(self.keys),
            (Kind::CrashRetries, Some(key)) => Incoming::CrashRetries(key, self.retries),
            (Kind::TearingDown, _) => Incoming::TearingDown,
            (Kind::Yielded, _) => Incoming::Yielded,
            (Kind::Refused, _) => {
                Incoming::Refused { unit: self.unit, keys: self.keys, text: self.text.unwrap_or_default().0 }
            }
            (Kind::Hello, _) => Incoming::Hello(Hello {
                version: self.version,
                nonce: self.nonce.0,
                is_template: self.role.0 == "template",
                id: self.id.0,
                pid: self.pid,
                dump: self.dump.map(PathBuf::from),
                output: self.stderr.map(|path| PathBuf::from(path.0)),
            }),
            (Kind::Configured, _) => Incoming::Configured {
                collect: self.collect.0,
                collect_reason: self.collect_reason.0,
                start: self.start.0,
                start_reason: self.start_reason.0,
            },
            (Kind::Units, _) => Incoming::Units(self.units, self.digest.0),
            (Kind::Collected, _) => Incoming::Collected(Collected {
                unit: self.unit,
                path: self.path.0,
                tests: self.tests,
                deselected: self.deselected,
                digest: self.digest.0,
            }),
            (Kind::CollectDone, _) => Incoming::CollectDone,
            (Kind::CollectionFinished, _) => Incoming::CollectionFinished(self.digest.0),
            (Kind::Numbered, _) => Incoming::Numbered { digest: self.digest.0 },
            (Kind::CollectReport, _) => match self.report {
                Some(report) => {
                    let head = serde_json::from_str::<ReportHead>(report.get());
                    let failed = head.is_ok_and(|head| head.outcome.0 == "failed");
                    let text = self.text.unwrap_or_default().0;
                    Incoming::CollectReport { report: shared(&report), failed, text }
                }
                None => Incoming::Nothing,
            },
            (Kind::Exited, _) => {
                Incoming::Exited { id: self.id.0, exit: Exit { code: self.code, signal: self.signal } }
            }
            (Kind::Fatal, _) => {
                Incoming::Fatal { exit_code: self.exit_code.unwrap_or(3), text: self.text.unwrap_or_default().0 }
            }
            (Kind::Replace, _) => Incoming::Replace,
            (Kind::Warning, _) => Incoming::Native("warning", or_null(self.warning.as_deref()).into()),
            (Kind::Property, _) => {
                let (name, value) = (or_null(self.name.as_deref()), or_null(self.value.as_deref()));
                Incoming::Native("property", format!("[{name},{value}]").into())
            }
            (Kind::Exit, _) => {
                let (reason, code) = (or_null(self.reason.as_deref()), or_null(self.returncode.as_deref()));
                Incoming::Native("exit", format!("[{reason},{code}]").into())
            }
            (Kind::InternalError, _) => {
                let text = serde_json::Value::String(self.text.unwrap_or_default().0);
                Incoming::Native("internal_error", text.to_string().into())
            }
            (Kind::Data, _) => {
                let (kind, payload) = (or_null(self.kind.as_deref()), or_null(self.payload.as_deref()));
                Incoming::Native("data", format!("[{kind},{payload}]").into())
            }
            (Kind::Log, _) => Incoming::Log(self.text.unwrap_or_default().0),
            (Kind::Bye, _) => Incoming::Bye { output: self.workeroutput },
            (
                Kind::Alive
                | Kind::Unknown
                | Kind::Started
                | Kind::CrashRetries
                | Kind::Finished
                | Kind::Crashed
                | Kind::LateReport,
                _,
            ) => Incoming::Nothing,
        }
    }

    fn into_result(self) -> TestResult {
        let phases =
            self.durations.map(|phases| phases.map(|secs| Duration::try_from_secs_f64(secs).unwrap_or_default()));
        let duration = phases.iter().flatten().fold(Duration::ZERO, |sum, &phase| sum.saturating_add(phase));
        let outcome = match self.outcome {
            Some(Outcome::Passed) => TestOutcome::Passed,
            Some(Outcome::Failed) => TestOutcome::Failed,
            Some(Outcome::Skipped) => TestOutcome::Skipped,
            Some(Outcome::Error) | None => TestOutcome::Error,
        };
        let text = |text: Option<Lossy>| text.map(|text| text.0).filter(|text| !text.is_empty());
        TestResult {
            message: text(self.message),
            details: text(self.text),
            stdout: Captured::from(text(self.stdout).unwrap_or_default()),
            stderr: Captured::from(text(self.stderr).unwrap_or_default()),
            phases,
            native: self.reports.as_deref().map(shared),
            ..TestResult::new(outcome, duration)
        }
    }
}

fn shared(raw: &RawValue) -> Arc<str> {
    Arc::from(raw.get())
}

fn or_null(raw: Option<&RawValue>) -> &str {
    raw.map_or("null", RawValue::get)
}

impl std::fmt::Display for Exit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.signal, self.code) {
            (Some(signal), _) => formatter.write_str(&crate::worker::libtest::killed_by(signal)),
            (None, Some(code)) => write!(formatter, "exit code {code}"),
            (None, None) => formatter.write_str("nobody knows how"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Option<Incoming>, FrameError> {
        let mut decoder = Decoder::new();
        decoder.push(line.as_bytes());
        decoder.push(b"\n");
        next(&mut decoder)
    }

    #[test]
    fn a_plain_pass_is_read() {
        let message = read(r#"{"type":"finished","key":7,"durations":[0.1,0.25,0],"outcome":"passed"}"#);
        let Ok(Some(Incoming::Finished(7, result))) = message else { panic!("{message:?}") };
        assert_eq!(result.outcome, TestOutcome::Passed);
        assert_eq!(result.duration, Duration::from_millis(350));
        assert_eq!(result.native, None);
    }

    #[test]
    fn reports_pass_through_as_they_are_written() {
        let reports = r#"[{"nodeid":"a\ud800b","x":1e400}]"#;
        let message = read(&format!(r#"{{"type":"finished","key":1,"outcome":"failed","reports":{reports}}}"#));
        let Ok(Some(Incoming::Finished(1, result))) = message else { panic!("{message:?}") };
        assert_eq!(result.native.as_deref(), Some(reports));
    }

    #[test]
    fn lone_surrogates_are_replaced() {
        let message = read(r#"{"type":"log","text":"a\ud800b"}"#);
        let Ok(Some(Incoming::Log(text))) = message else { panic!("{message:?}") };
        assert!(text.starts_with('a') && text.ends_with('b') && text.contains('\u{fffd}'), "{text:?}");
    }

    #[test]
    fn durations_that_are_none_count_as_zero() {
        let message = read(r#"{"type":"finished","key":1,"durations":[-1,1e300,2],"outcome":"passed"}"#);
        let Ok(Some(Incoming::Finished(1, result))) = message else { panic!("{message:?}") };
        assert_eq!(result.duration, Duration::from_secs(2));
    }

    #[test]
    fn unknown_types_and_fields_are_ignored_and_wrong_types_are_not() {
        assert!(matches!(read(r#"{"type":"from_the_future","key":1}"#), Ok(Some(Incoming::Nothing))));
        assert!(matches!(read(r#"{"type":"started","key":1,"new":[{}]}"#), Ok(Some(Incoming::Started(1, None)))));
        assert!(read(r#"{"type":"started","key":"one"}"#).is_err());
        assert!(read(r#"{"key":1}"#).is_err());
        assert!(read("Segmentation fault").is_err());
    }
}
