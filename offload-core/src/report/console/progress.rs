//! How far a run has got, and how that is told: a few lines that are redrawn on a terminal, one line now and then in a
//! log.
//!
//! Takes note of events and makes text. Drawing it is [`ConsoleReporter`](super::ConsoleReporter)'s business.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use crate::event::{RunEvent, TestInfo, TimedEvent};
use crate::framework::{Isolation, TestOutcome};
use crate::report::summary::Palette;
use crate::report::text;

/// As many of the tests that run longest are named.
const NAMED: usize = 4;

/// A test is named once it has run that long: names that come and go at once cannot be read.
const NAMED_AFTER: Duration = Duration::from_secs(1);

/// Columns of the bar, where there is room.
const BAR_WIDTH: usize = 24;

/// A bar that is shorter says nothing.
const BAR_MIN_WIDTH: usize = 8;

/// The state of a run, as far as progress is concerned.
#[derive(Debug, Default)]
pub(super) struct RunProgress {
    building: bool,
    isolation: Option<Isolation>,
    all_found: bool,
    to_run: usize,
    done: usize,
    passed: usize,
    failed: usize,
    flaky: usize,
    skipped: usize,
    sandboxes: HashSet<Arc<str>>,
    running: HashMap<ById, Running>,
    /// When the last test ended, by sandbox.
    last_results: HashMap<Arc<str>, Duration>,
}

/// Where a test runs, and since when.
#[derive(Debug)]
struct Running {
    sandbox: Arc<str>,
    since: Duration,
}

/// What is named as running long.
struct Named {
    name: String,
    elapsed: Duration,
}

/// A test that equals another with the same id.
#[derive(Debug)]
struct ById(Arc<TestInfo>);

impl Borrow<str> for ById {
    fn borrow(&self) -> &str {
        &self.0.id
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

impl RunProgress {
    pub(super) fn on_event(&mut self, event: &TimedEvent) {
        match &event.event {
            RunEvent::RunStarted { isolation, .. } => self.isolation = *isolation,
            RunEvent::BuildStarted => self.building = true,
            RunEvent::BuildFinished { .. } => self.building = false,
            RunEvent::TestsFound { to_run, .. } => self.to_run += to_run,
            RunEvent::DiscoveryFinished { to_run, .. } => {
                self.to_run = *to_run;
                self.all_found = true;
            }
            RunEvent::SandboxReady { sandbox, .. } => {
                self.sandboxes.insert(Arc::clone(sandbox));
            }
            RunEvent::SandboxFinished { sandbox, .. } => {
                self.sandboxes.remove(sandbox);
            }
            RunEvent::SandboxLost { sandbox, requeued, .. } => {
                self.sandboxes.remove(sandbox);
                for id in requeued {
                    self.ended(id, event.at);
                }
            }
            RunEvent::TestStarted { test, sandbox, .. } => {
                let running = || Running { sandbox: Arc::clone(sandbox), since: event.at };
                self.running.entry(ById(Arc::clone(test))).or_insert_with(running);
            }
            RunEvent::AttemptFailed { test, .. } => self.ended(&test.id, event.at),
            RunEvent::LateFailure { .. } => self.failed += 1,
            RunEvent::TestFinished { test, outcome, flaky, attempts, .. } => {
                self.ended(&test.id, event.at);
                match outcome {
                    TestOutcome::Passed => self.passed += 1,
                    TestOutcome::Skipped => self.skipped += 1,
                    TestOutcome::NotRun => {}
                    _ => self.failed += 1,
                }
                self.flaky += usize::from(*flaky);
                // Tests that were never meant to run do not count towards those that are to be run.
                self.done += usize::from(*outcome != TestOutcome::Skipped || !attempts.is_empty());
            }
            _ => {}
        }
    }

    fn ended(&mut self, id: &str, at: Duration) {
        if let Some(running) = self.running.remove(id) {
            self.last_results.insert(running.sandbox, at);
        }
    }

    /// `running 120 tests`, once they are all found.
    pub(super) fn announcement(&self, skipped: usize) -> String {
        let mut line = format!("running {}", text::count(self.to_run, "test"));
        if skipped > 0 {
            let _ = write!(line, ", {skipped} skipped");
        }
        if self.isolation == Some(Isolation::Auto) && self.to_run > 0 {
            line.push_str(" (quick ones share processes; what fails there runs again alone)");
        }
        line
    }

    /// One line for a log.
    pub(super) fn line(&self, now: Duration) -> String {
        let mut line = format!("[{:>5}s] {}", now.as_secs(), self.counts(Palette::new(false)));
        for (index, Named { name, elapsed }) in self.longest(now).into_iter().enumerate() {
            let lead = if index == 0 { "; running longest: " } else { ", " };
            let _ = write!(line, "{lead}{name} ({}s)", elapsed.as_secs());
        }
        line
    }

    /// The lines that are redrawn on a terminal of `width` columns.
    pub(super) fn lines(&self, now: Duration, width: usize, palette: Palette) -> String {
        let time = format!("[{:>5}s] ", now.as_secs());
        let counts = self.counts(palette);
        let room = width.saturating_sub(time.len() + console::measure_text_width(&counts));
        let first = if room > BAR_MIN_WIDTH && self.to_run > 0 {
            // One column stays between bar and counts.
            format!("{time}{} {counts}", self.bar((room - 1).min(BAR_WIDTH), palette))
        } else if room > 0 || self.to_run == 0 {
            time + &counts
        } else {
            time + &self.short_counts(palette)
        };
        let mut out = console::truncate_str(&first, width, "…").into_owned();
        for Named { name, elapsed } in self.longest(now) {
            let time = format!("{:>6}s  ", elapsed.as_secs());
            let name = text::keep_end(&name, width.saturating_sub(time.len()));
            let _ = write!(out, "\n{}{}", palette.dim(&time), palette.test(&name));
        }
        out
    }

    fn bar(&self, width: usize, palette: Palette) -> String {
        let filled = (self.done * width / self.to_run.max(1)).min(width);
        let done = "━".repeat(filled);
        let done = if self.failed > 0 { palette.bad(&done) } else { palette.good(&done) };
        done + &palette.dim(&"─".repeat(width - filled))
    }

    /// What matters most, for a narrow terminal.
    fn short_counts(&self, palette: Palette) -> String {
        let more = if self.all_found { "" } else { "+" };
        let mut out = format!("{}/{}{more}", self.done, self.to_run);
        if self.failed > 0 {
            let _ = write!(out, ", {}", palette.bad(&format!("{} failed", self.failed)));
        }
        out.push_str(&self.sandboxes_in_use());
        out
    }

    /// `; 2 sandboxes`
    fn sandboxes_in_use(&self) -> String {
        match self.sandboxes.len() {
            0 => String::new(),
            1 => "; 1 sandbox".to_owned(),
            n => format!("; {n} sandboxes"),
        }
    }

    fn counts(&self, palette: Palette) -> String {
        if self.to_run == 0 && self.done == 0 && !self.all_found {
            return if self.building { "building" } else { "looking for tests" }.to_owned();
        }
        let more = if self.all_found { "" } else { "+" };
        let mut out = format!("{}/{}{more} tests", self.done, self.to_run);
        for (n, what, paint) in [
            (self.passed, "passed", Palette::good as fn(Palette, &str) -> String),
            (self.failed, "failed", Palette::bad),
            (self.flaky, "flaky", Palette::warn),
            (self.skipped, "skipped", Palette::warn),
        ] {
            if n > 0 {
                let _ = write!(out, ", {}", paint(palette, &format!("{n} {what}")));
            }
        }
        out.push_str(&self.sandboxes_in_use());
        if self.building {
            out.push_str("; building");
        }
        out
    }

    /// What runs longest. Of tests that one process runs together (doctests) nobody knows which of them wait for others,
    /// so they are named together, from when one of them last ended.
    fn longest(&self, now: Duration) -> Vec<Named> {
        let mut sandboxes: HashMap<&str, Vec<(&TestInfo, Duration)>> = HashMap::new();
        for (test, running) in &self.running {
            sandboxes.entry(&running.sandbox).or_default().push((&test.0, running.since));
        }
        let named = sandboxes.into_iter().filter_map(|(sandbox, tests)| {
            let &(test, _) = tests.first()?;
            let first = tests.iter().map(|&(_, since)| since).min()?;
            let began = self.last_results.get(sandbox).map_or(first, |&last| last.max(first));
            let name = match tests.len() {
                1 => text::name(&test.id).into_owned(),
                count => format!("{}: {count} tests together", text::name(&test.suite)),
            };
            Some(Named { name, elapsed: now.saturating_sub(began) })
        });
        let mut named: Vec<_> = named.filter(|named| named.elapsed >= NAMED_AFTER).collect();
        named.sort_by(|a, b| b.elapsed.cmp(&a.elapsed).then_with(|| a.name.cmp(&b.name)));
        named.truncate(NAMED);
        named
    }
}
