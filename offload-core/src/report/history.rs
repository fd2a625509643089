//! What earlier runs taught: how long each test takes, and how often it passes.
//!
//! The file holds one JSON object per test and line, sorted by test id, so that it can live in a repository with small
//! diffs and be merged by [`merge`]:
//!
//! ```json
//! {"id":"pkg::it tests::a","passed":{"n":41,"samples":[0.012,0.013]},"failed":{"n":1,"samples":[0.5]}}
//! ```
//!
//! `n` counts attempts over all runs; `samples` are durations in seconds, a uniform random choice of
//! `history.reservoir_size` among those `n` (reservoir sampling). `passed` are attempts that passed, `failed` those
//! that failed, timed out or crashed. `alone` is for how many runs yet the test gets a process of its own: it did
//! not pass in one that it shared with others, it failed, or the tests of its binary take so long that it costs nothing. Skipped tests and tests that could not be executed teach nothing.
//!
//! Lines of offload 0.10 are understood, too (the module `seed`): they say what is expected of a test until it has a line
//! of its own, which begins with what they say. They stay in the file as they are, and so does every line that cannot
//! be read.
//!
//! Scheduling by these durations is the [scheduler](crate::orchestrator::scheduler)'s business.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod seed;

use super::{ReportError, Reporter, atomic};
use crate::bounded;
use crate::event::{RunEvent, TestInfo, TimedEvent};
use crate::framework::TestOutcome;

/// For how many runs a test gets a process of its own after it has passed in such a one only, or where it costs nothing.
const ALONE_FOR_LONG: u32 = 20;

/// The same after it has failed: it probably fails again, and would be run twice.
const ALONE_AFTER_FAILURE: u32 = 2;

/// Where the tests of a binary mostly take longer, what a process for each of them costs is not noticed.
const WORTH_A_PROCESS: Duration = Duration::from_millis(25);

/// At most this many damaged lines are named one by one.
const NAMED_DAMAGES: usize = 3;

/// Durations and outcomes of earlier runs, by test id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    tests: BTreeMap<String, Entry>,
    /// What lines of offload 0.10 say of tests that have no line of their own.
    seed: BTreeMap<String, Entry>,
    /// Lines that are not ours, without their ends.
    foreign: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Entry {
    passed: Reservoir,
    failed: Reservoir,
    /// For how many attempts yet the test gets a process of its own.
    alone: u32,
}

/// A uniform choice of the durations of `seen` attempts, in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Reservoir {
    seen: u64,
    samples: Vec<u64>,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    id: std::borrow::Cow<'a, str>,
    #[serde(default)]
    passed: LineReservoir,
    #[serde(default)]
    failed: LineReservoir,
    #[serde(default)]
    alone: u32,
}

#[derive(Deserialize, Default)]
struct LineReservoir {
    n: u64,
    samples: Vec<f64>,
}

impl History {
    /// Reads a history file. A file that is not there is an empty history. Damaged lines are not used; the warnings
    /// say so.
    ///
    /// # Errors
    ///
    /// When there is a file that cannot be read.
    pub fn load(path: &Path) -> io::Result<(Self, Vec<String>)> {
        let bytes = match bounded::read(path, bounded::REPORT) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Self::default(), Vec::new())),
            Err(error) => return Err(error),
        };
        let (history, damages) = Self::parse(&bytes);
        let mut warnings: Vec<_> = damages
            .iter()
            .take(NAMED_DAMAGES)
            .map(|(line, error)| {
                format!(
                    "{}:{line}: not a line of test history ({error}); it is not used, and stays in the file until you \
                     remove it",
                    path.display()
                )
            })
            .collect();
        if let Some(more) = damages.len().checked_sub(NAMED_DAMAGES).filter(|more| *more > 0) {
            warnings.push(format!("{}: {more} more lines are damaged and not used", path.display()));
        }
        Ok((history, warnings))
    }

    /// Reads a history and gives what could not be read by line number (from 1).
    fn parse(text: &[u8]) -> (Self, Vec<(usize, String)>) {
        let mut tests: Vec<(String, Entry)> = Vec::with_capacity(text.len() / 128);
        let (mut seeds, mut foreign, mut damages) = (Vec::new(), Vec::new(), Vec::new());
        let end = |line: &[u8]| line.iter().rposition(|byte| *byte != b'\r').map_or(0, |last| last + 1);
        let lines = text.split(|byte| *byte == b'\n').map(|line| &line[..end(line)]).enumerate();
        for (index, line) in lines.filter(|(_, line)| !line.trim_ascii().is_empty()) {
            match serde_json::from_slice::<Line<'_>>(line) {
                Ok(line) => tests.push((
                    line.id.into_owned(),
                    Entry {
                        passed: Reservoir::read(line.passed),
                        failed: Reservoir::read(line.failed),
                        alone: line.alone,
                    },
                )),
                Err(error) => {
                    match seed::read(line) {
                        Some(seed) => seeds.push(seed),
                        None => damages.push((index + 1, error.to_string())),
                    }
                    foreign.push(line.to_owned());
                }
            }
        }
        (Self { tests: together(tests), seed: together(seeds), foreign }, damages)
    }

    /// Whether nothing is known of any test.
    pub fn is_empty(&self) -> bool {
        self.tests.is_empty() && self.seed.is_empty()
    }

    /// How many tests are known.
    pub fn len(&self) -> usize {
        self.ids().count()
    }

    /// The tests that are known, each once.
    fn ids(&self) -> impl Iterator<Item = &str> {
        let seeded = self.seed.keys().filter(|id| !self.tests.contains_key(*id));
        self.tests.keys().chain(seeded).map(String::as_str)
    }

    /// In how many files tests are known, where ids begin with the file.
    pub fn files(&self) -> usize {
        self.ids().filter_map(|id| id.split("::").next()).collect::<HashSet<_>>().len()
    }

    fn entry(&self, id: &str) -> Option<&Entry> {
        self.tests.get(id).or_else(|| self.seed.get(id))
    }

    /// How long a test can be expected to take: the median of its passed attempts, or, if it never passed, of its
    /// failed ones.
    pub fn expected(&self, id: &str) -> Option<Duration> {
        let entry = self.entry(id)?;
        entry.passed.median().or_else(|| entry.failed.median())
    }

    /// Whether earlier runs say that a test had better have a process of its own.
    pub fn wants_process(&self, id: &str) -> bool {
        self.entry(id).is_some_and(|entry| entry.alone > 0)
    }

    /// Takes note of what an attempt says on the processes of the next ones.
    fn record_process(&mut self, seen: &Seen, suite_is_slow: bool) {
        let Some(entry) = self.tests.get_mut(&seen.test.id) else { return };
        entry.alone = if seen.unfit || (seen.shared_process && suite_is_slow) {
            ALONE_FOR_LONG
        } else if seen.outcome.is_failure() {
            entry.alone.max(ALONE_AFTER_FAILURE)
        } else {
            entry.alone.saturating_sub(1)
        };
    }

    /// Takes note of an attempt, keeping at most `reservoir_size` durations per test and outcome.
    pub fn record(&mut self, id: &str, outcome: TestOutcome, duration: Duration, reservoir_size: usize) {
        let failed = match outcome {
            TestOutcome::Passed => false,
            TestOutcome::Failed | TestOutcome::TimedOut | TestOutcome::Crashed => true,
            TestOutcome::Skipped | TestOutcome::Error | TestOutcome::NotRun => return,
        };
        let entry = match self.tests.get_mut(id) {
            Some(entry) => entry,
            None => self.tests.entry(id.to_owned()).or_insert(self.seed.get(id).cloned().unwrap_or_default()),
        };
        let reservoir = if failed { &mut entry.failed } else { &mut entry.passed };
        reservoir.add(id, micros(duration), reservoir_size);
    }

    /// Our lines of the file.
    pub fn to_jsonl(&self) -> String {
        let mut out = String::with_capacity(self.tests.len() * 256);
        for (id, entry) in &self.tests {
            out.push_str("{\"id\":");
            out.push_str(&serde_json::Value::from(id.as_str()).to_string());
            entry.passed.write("passed", &mut out);
            entry.failed.write("failed", &mut out);
            if entry.alone > 0 {
                let _ = write!(out, ",\"alone\":{}", entry.alone);
            }
            out.push_str("}\n");
        }
        out
    }

    /// Writes the history to `path`, in place of an earlier one.
    ///
    /// # Errors
    ///
    /// [`ReportError`] when it cannot be written; the earlier one is then untouched.
    pub fn write(&self, path: &Path) -> Result<(), ReportError> {
        let text = self.to_jsonl();
        atomic::replace(path, "the test history", |writer| {
            writer.write_all(text.as_bytes())?;
            self.foreign.iter().try_for_each(|line| writer.write_all(line).and_then(|()| writer.write_all(b"\n")))
        })
    }
}

/// Merges two histories that grew from `base`, as a merge driver of Git does. What either side added counts once.
/// The same three files always give the same result, whichever of the two sides is called ours.
pub fn merge(ours: &History, theirs: &History, base: &History, reservoir_size: usize) -> History {
    let nothing = Entry::default();
    let ids = ours.tests.keys().chain(theirs.tests.keys().filter(|id| !ours.tests.contains_key(*id)));
    let tests = ids
        .map(|id| {
            let of = |history: &'_ History| history.entry(id).cloned().unwrap_or_default();
            let base = base.entry(id).unwrap_or(&nothing);
            (id.clone(), Entry::merge(&of(ours), &of(theirs), base, reservoir_size))
        })
        .collect();
    let mut seed = theirs.seed.clone();
    seed.extend(ours.seed.clone());
    History { tests, seed, foreign: merge_foreign(ours, theirs, base) }
}

/// The lines of both sides that are not ours: what one side has removed is gone, what either has added is there.
fn merge_foreign(ours: &History, theirs: &History, base: &History) -> Vec<Vec<u8>> {
    let set = |history: &'_ History| history.foreign.iter().cloned().collect::<HashSet<_>>();
    let (in_ours, in_theirs, in_base) = (set(ours), set(theirs), set(base));
    let kept = |line: &&Vec<u8>, other: &HashSet<Vec<u8>>| other.contains(*line) || !in_base.contains(*line);
    let mut lines: Vec<_> = ours.foreign.iter().filter(|line| kept(line, &in_theirs)).cloned().collect();
    lines.extend(theirs.foreign.iter().filter(|line| !in_ours.contains(*line) && kept(line, &in_ours)).cloned());
    // Whichever side is called ours.
    lines.sort();
    lines
}

/// Entries by test. A line-wise merge leaves a test twice: what both lines know is put together.
fn together(mut tests: Vec<(String, Entry)>) -> BTreeMap<String, Entry> {
    tests.sort_by(|(a, _), (b, _)| a.cmp(b));
    tests.dedup_by(|later, earlier| {
        let same = later.0 == earlier.0;
        if same {
            earlier.1 = Entry::merge(&earlier.1, &later.1, &Entry::default(), usize::MAX);
        }
        same
    });
    tests.into_iter().collect()
}

impl Entry {
    fn merge(ours: &Self, theirs: &Self, base: &Self, limit: usize) -> Self {
        Self {
            passed: Reservoir::merge(&ours.passed, &theirs.passed, &base.passed, limit),
            failed: Reservoir::merge(&ours.failed, &theirs.failed, &base.failed, limit),
            alone: ours.alone.max(theirs.alone),
        }
    }
}

impl Reservoir {
    fn read(line: LineReservoir) -> Self {
        let samples: Vec<u64> =
            line.samples.into_iter().filter_map(|secs| Duration::try_from_secs_f64(secs).ok()).map(micros).collect();
        Self { seen: line.n.max(samples.len() as u64), samples }
    }

    fn write(&self, name: &str, out: &mut String) {
        if self.seen == 0 {
            return;
        }
        let _ = write!(out, ",\"{name}\":{{\"n\":{},\"samples\":[", self.seen);
        for (index, sample) in self.samples.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let _ = write!(out, "{comma}{}.{:06}", sample / 1_000_000, sample % 1_000_000);
            // `0.012000` says no more than `0.012`, and `1.0` is enough of `1.000000`.
            let digits = out.trim_end_matches('0').len();
            out.truncate(digits);
            if out.ends_with('.') {
                out.push('0');
            }
        }
        out.push_str("]}");
    }

    /// Vitter's algorithm R. The choice is made by hashing, so that the same runs give the same file.
    fn add(&mut self, id: &str, sample: u64, limit: usize) {
        self.seen = self.seen.saturating_add(1);
        self.samples.truncate(limit);
        if self.samples.len() < limit {
            self.samples.push(sample);
            return;
        }
        let mut hasher = DefaultHasher::new();
        (id, self.seen, sample).hash(&mut hasher);
        let place = hasher.finish() % self.seen;
        if let Some(replaced) = usize::try_from(place).ok().and_then(|place| self.samples.get_mut(place)) {
            *replaced = sample;
        }
    }

    fn merge(ours: &Self, theirs: &Self, base: &Self, limit: usize) -> Self {
        // How often each value is there: what both sides have, less what both have from the base.
        let mut counts: BTreeMap<u64, i64> = BTreeMap::new();
        for (samples, weight) in [(&ours.samples, 1), (&theirs.samples, 1), (&base.samples, -1)] {
            for sample in samples {
                *counts.entry(*sample).or_default() += weight;
            }
        }
        let mut samples: Vec<u64> = counts
            .into_iter()
            .flat_map(|(sample, count)| std::iter::repeat_n(sample, usize::try_from(count).unwrap_or(0)))
            .collect();
        if samples.len() > limit {
            // Evenly spaced quantiles keep the shape of the distribution.
            let all = samples.len();
            samples = (0..limit).map(|index| samples[(2 * index + 1) * all / (2 * limit)]).collect();
        }
        let seen = ours.seen.saturating_add(theirs.seen).saturating_sub(base.seen).max(samples.len() as u64);
        Self { seen, samples }
    }

    fn median(&self) -> Option<Duration> {
        if self.samples.is_empty() {
            return None;
        }
        let mut sorted = self.samples.clone();
        let middle = sorted.len() / 2;
        let (_, median, _) = sorted.select_nth_unstable(middle);
        Some(Duration::from_micros(*median))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from((duration.as_nanos() + 500) / 1_000).unwrap_or(u64::MAX)
}

/// Adds a run to the history file, at its end.
///
/// The file is read when the run is over, and one run at a time changes it, so that all of several runs at the same time
/// count.
pub struct HistoryReporter {
    path: PathBuf,
    reservoir_size: usize,
    chooses_processes: bool,
    attempts: Vec<Seen>,
}

/// An attempt of this run.
struct Seen {
    test: Arc<TestInfo>,
    outcome: TestOutcome,
    duration: Duration,
    shared_process: bool,
    /// It did not behave in a process that it shared.
    unfit: bool,
}

impl HistoryReporter {
    /// A reporter that adds to the file at `path` (`history.path`), keeping `reservoir_size` durations per test and
    /// outcome (`history.reservoir_size`).
    pub fn new(path: impl Into<PathBuf>, reservoir_size: usize) -> Self {
        Self { path: path.into(), reservoir_size, chooses_processes: false, attempts: Vec::new() }
    }

    /// Also remembers which tests had better have processes of their own: for `framework.isolation = "auto"`.
    #[must_use]
    pub fn choosing_processes(mut self, yes: bool) -> Self {
        self.chooses_processes = yes;
        self
    }

    /// The suites whose tests take so long, in processes that they share, that they need not.
    fn slow_suites(&self) -> HashSet<String> {
        let mut suites: HashMap<&str, Vec<Duration>> = HashMap::new();
        for seen in self.attempts.iter().filter(|seen| seen.shared_process) {
            suites.entry(&seen.test.suite).or_default().push(seen.duration);
        }
        let slow = suites.into_iter().filter_map(|(suite, mut durations)| {
            // Not the mean: what a process does once is on the account of its first test that needs it.
            let middle = durations.len() / 2;
            let (_, median, _) = durations.select_nth_unstable(middle);
            (*median > WORTH_A_PROCESS).then(|| suite.to_owned())
        });
        slow.collect()
    }
}

impl Reporter for HistoryReporter {
    fn on_event(&mut self, event: &TimedEvent) {
        if let RunEvent::TestFinished { test, attempts, .. } = &event.event {
            self.attempts.extend(attempts.iter().map(|attempt| Seen {
                test: Arc::clone(test),
                outcome: attempt.result.outcome,
                duration: attempt.result.duration,
                shared_process: attempt.result.shared_process,
                unfit: attempt.result.shares_state.is_some() || attempt.result.leaky,
            }));
        }
    }

    fn save(&mut self) -> Result<(), ReportError> {
        let _turn = atomic::Turn::wait(&self.path);
        // What cannot be read must not be replaced either: it may be somebody's only history.
        let (mut history, warnings) = History::load(&self.path).map_err(|source| ReportError {
            what: "the test history",
            path: self.path.clone(),
            hint: "make it readable, or name another file in `history.path`",
            source,
        })?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        let slow = self.slow_suites();
        for seen in self.attempts.drain(..) {
            history.record(&seen.test.id, seen.outcome, seen.duration, self.reservoir_size);
            if self.chooses_processes {
                history.record_process(&seen, slow.contains(&seen.test.suite));
            }
        }
        history.write(&self.path)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn passed(history: &mut History, id: &str, durations: impl IntoIterator<Item = u64>) {
        for duration in durations {
            history.record(id, TestOutcome::Passed, ms(duration), 20);
        }
    }

    #[test]
    fn the_file_is_read_as_it_was_written() {
        let mut history = History::default();
        passed(&mut history, "b \"quoted\" ü", [12, 1000, 0]);
        history.record("a", TestOutcome::TimedOut, Duration::from_micros(1_500_001), 20);
        history.record("a", TestOutcome::Skipped, ms(1), 20);
        history.record("c", TestOutcome::NotRun, ms(1), 20);
        insta::assert_snapshot!(history.to_jsonl(), @r#"
        {"id":"a","failed":{"n":1,"samples":[1.500001]}}
        {"id":"b \"quoted\" ü","passed":{"n":3,"samples":[0.012,1.0,0.0]}}
        "#);
        assert_eq!(History::parse(history.to_jsonl().as_bytes()), (history, Vec::new()));
    }

    #[test]
    fn the_expected_duration_is_the_median_of_passes_or_else_of_failures() {
        let mut history = History::default();
        passed(&mut history, "a", [10, 90, 20]);
        history.record("a", TestOutcome::Failed, ms(5000), 20);
        history.record("b", TestOutcome::Crashed, ms(7), 20);
        assert_eq!(history.expected("a"), Some(ms(20)));
        assert_eq!(history.expected("b"), Some(ms(7)));
        assert_eq!(history.expected("c"), None);
    }

    #[test]
    fn a_reservoir_is_bounded_and_fair() {
        let mut history = History::default();
        passed(&mut history, "a", 0..2_000);
        let entry = &history.tests["a"].passed;
        assert_eq!((entry.seen, entry.samples.len()), (2_000, 20));
        let mean = entry.samples.iter().sum::<u64>() / 20_000;
        assert!((500..1_500).contains(&mean), "old or new attempts are preferred: mean {mean}");
        let mut none = History::default();
        none.record("a", TestOutcome::Passed, ms(1), 0);
        assert_eq!(none.expected("a"), None);
    }

    #[test]
    fn damaged_lines_are_left_out_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.jsonl");
        assert!(History::load(&path).unwrap().0.is_empty());
        let good = r#"{"id":"a","passed":{"n":1,"samples":[0.5]},"from_the_future":1}"#;
        std::fs::write(&path, format!("<<<<<<< HEAD\n{good}\n\n{{\"id\":3}}\n=======\nx\ny\n")).unwrap();
        let (history, warnings) = History::load(&path).unwrap();
        assert_eq!(history.expected("a"), Some(ms(500)));
        assert_eq!(warnings.len(), 4, "{warnings:#?}");
        assert!(warnings[0].contains("history.jsonl:1: not a line of test history (expected value"), "{}", warnings[0]);
        assert!(warnings[3].ends_with("2 more lines are damaged and not used"), "{}", warnings[3]);
        history.write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("<<<<<<< HEAD\n{\"id\":3}\n=======\nx\ny\n"), "{text}");
        std::fs::write(&path, b"{\"id\":\"a\",\"passed\":{\"n\":1,\"samples\":[1e300,-1,0.25]}}\n\xff\n").unwrap();
        let (history, warnings) = History::load(&path).unwrap();
        assert_eq!((history.expected("a"), warnings.len()), (Some(ms(250)), 1));
        history.write(&path).unwrap();
        assert!(std::fs::read(&path).unwrap().ends_with(b"\n\xff\n"));
    }

    #[test]
    fn merging_counts_what_both_sides_added_once_and_is_symmetric() {
        let mut base = History::default();
        passed(&mut base, "both", [10, 20]);
        let (mut ours, mut theirs) = (base.clone(), base.clone());
        passed(&mut ours, "both", [30]);
        passed(&mut ours, "ours", [1]);
        passed(&mut theirs, "both", [40, 10]);
        passed(&mut theirs, "theirs", [2]);
        let merged = merge(&ours, &theirs, &base, 20);
        insta::assert_snapshot!(merged.to_jsonl(), @r#"
        {"id":"both","passed":{"n":5,"samples":[0.01,0.01,0.02,0.03,0.04]}}
        {"id":"ours","passed":{"n":1,"samples":[0.001]}}
        {"id":"theirs","passed":{"n":1,"samples":[0.002]}}
        "#);
        assert_eq!(merged, merge(&theirs, &ours, &base, 20));
        let small = merge(&ours, &theirs, &base, 2);
        assert_eq!(small.tests["both"].passed, Reservoir { seen: 5, samples: vec![10_000, 30_000] });
        assert_eq!(merge(&ours, &ours.clone(), &ours, 20), {
            let mut sorted = ours.clone();
            sorted.tests.values_mut().for_each(|entry| entry.passed.samples.sort_unstable());
            sorted
        });
    }

    #[test]
    fn a_test_that_a_line_wise_merge_left_twice_is_put_together() {
        let line = |samples: &str| format!("{{\"id\":\"a\",\"passed\":{{\"n\":1,\"samples\":[{samples}]}}}}\n");
        let (history, damages) = History::parse((line("0.1") + &line("0.2")).as_bytes());
        assert_eq!(damages, []);
        assert_eq!(history.tests["a"].passed, Reservoir { seen: 2, samples: vec![100_000, 200_000] });
    }
}
