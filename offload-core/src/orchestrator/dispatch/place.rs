//! What a sandbox has to do, and which of its tests take long.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::orchestrator::runner::TestRunner;
use crate::worker::TestKey;

/// An attempt that a sandbox has, started or not.
pub(super) struct Assigned {
    pub(super) attempt: u32,
    pub(super) started_at: Option<Duration>,
    pub(super) slow: bool,
    /// It was handed out while what it may look at was being built: what the gate had seen by then.
    pub(super) early: Option<u64>,
}

/// A sandbox, from the decision to create it to its end.
pub(super) struct Place {
    pub(super) id: Arc<str>,
    pub(super) runner: Option<TestRunner>,
    pub(super) assigned: HashMap<TestKey, Assigned>,
    pub(super) busy: Duration,
    /// Whether a test failed in it; `None` while none has ended.
    pub(super) failed: Option<bool>,
    /// When a test in it ended.
    pub(super) last_result: Duration,
}

impl Place {
    pub(super) fn new(id: Arc<str>) -> Self {
        let (runner, assigned, last_result) = (None, HashMap::new(), Duration::ZERO);
        Self { id, runner, assigned, busy: Duration::ZERO, failed: None, last_result }
    }

    /// The tests that have run for longer than `limit` since this was last asked, and for how long.
    ///
    /// Many tests may be said to have started at once, as a package's doctests are, of which rustdoc runs `at_once` or
    /// fewer: which, nobody tells, so none is slow before so few are left, nor while the one before it ran.
    pub(super) fn slow(&mut self, now: Duration, limit: Duration, at_once: usize) -> Vec<(TestKey, Duration)> {
        let began = |test: &Assigned| test.started_at.map(|started_at| started_at.max(self.last_result));
        let elapsed = |test: &Assigned| began(test).map(|began| now.saturating_sub(began));
        let slow = |(&key, test): (&TestKey, &Assigned)| {
            let elapsed = elapsed(test).filter(|&elapsed| elapsed > limit && !test.slow)?;
            Some((key, elapsed))
        };
        let mut found: Vec<_> = self.assigned.iter().filter_map(slow).collect();
        if found.is_empty() || self.assigned.values().filter(|test| test.started_at.is_some()).count() > at_once {
            return Vec::new();
        }
        found.sort_unstable();
        for (key, _) in &found {
            if let Some(test) = self.assigned.get_mut(key) {
                test.slow = true;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn place(started: impl IntoIterator<Item = Option<u64>>) -> Place {
        let mut place = Place::new(Arc::from("local-0"));
        for (key, started) in (0..).zip(started) {
            place
                .assigned
                .insert(key, Assigned { attempt: 1, started_at: started.map(secs), slow: false, early: None });
        }
        place
    }

    #[test]
    fn a_test_is_slow_once() {
        let mut place = place([Some(5), None, None]);
        assert_eq!(place.slow(secs(65), LIMIT, 2), []);
        assert_eq!(place.slow(secs(66), LIMIT, 2), [(0, secs(61))]);
        assert_eq!(place.slow(secs(67), LIMIT, 2), []);
    }

    #[test]
    fn tests_that_wait_for_others_of_their_run_are_not_slow() {
        let mut place = place([Some(0); 5]);
        assert_eq!(place.slow(secs(100), LIMIT, 2), [], "which of the five run?");
        for (key, at) in [(3, 110), (1, 120), (0, 130)] {
            place.assigned.remove(&key);
            place.last_result = secs(at);
        }
        assert_eq!(place.slow(secs(190), LIMIT, 2), [], "no more than 60 s since they may have begun");
        assert_eq!(place.slow(secs(191), LIMIT, 2), [(2, secs(61)), (4, secs(61))]);
    }
}
