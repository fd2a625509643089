//! How long a test of unknown duration is taken to last: what the run itself has shown so far.

use std::time::Duration;

use super::ledger::{Nanos, expectation};

/// Results of one suite that are needed before its own mean is believed.
const ENOUGH: u64 = 3;

#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    count: u64,
    total: u128,
}

impl Mean {
    fn add(&mut self, each: Nanos, count: u64) {
        self.count += count;
        self.total += u128::from(each) * u128::from(count);
    }

    fn get(self) -> Option<Nanos> {
        let mean = self.total.checked_div(u128::from(self.count))?;
        Some(u64::try_from(mean).unwrap_or(Nanos::MAX))
    }
}

/// Means of durations: of the run, of each suite, and of what history says.
#[derive(Debug)]
pub(super) struct Estimates {
    default: Nanos,
    history: Mean,
    run: Mean,
    suites: Vec<Mean>,
}

impl Estimates {
    pub fn new(default: Duration) -> Self {
        Self { default: expectation(default), history: Mean::default(), run: Mean::default(), suites: Vec::new() }
    }

    /// A test of any suite.
    pub fn any(&self) -> Nanos {
        self.run.get().or(self.history.get()).unwrap_or(self.default)
    }

    /// A test of `suite`.
    pub fn of_suite(&self, suite: u32) -> Nanos {
        match self.suites.get(suite as usize) {
            Some(mean) if mean.count >= ENOUGH => mean.get().unwrap_or(self.default),
            _ => self.any(),
        }
    }

    /// Whether this run has shown how long tests of `suite` take.
    pub fn knows(&self, suite: u32) -> bool {
        self.suites.get(suite as usize).is_some_and(|mean| mean.count >= ENOUGH)
    }

    /// Earlier runs knew the duration of a test.
    pub fn remember(&mut self, expected: Nanos) {
        self.history.add(expected, 1);
    }

    /// `count` tests of `suite` (`None`: of several suites) took `each` in this run.
    pub fn learn(&mut self, suite: Option<u32>, each: Duration, count: u64) {
        let each = expectation(each);
        self.run.add(each, count);
        if let Some(suite) = suite {
            let suite = suite as usize;
            if self.suites.len() <= suite {
                self.suites.resize(suite + 1, Mean::default());
            }
            self.suites[suite].add(each, count);
        }
    }
}
