//! How many tests a worker is told of in advance.
//!
//! Too few, and it waits for a message after each; too many, and they are stuck behind a long test: a worker looks at its
//! messages between two tests only. So it is told of some milliseconds of work, as far as anybody knows how long tests
//! take, and of nothing behind a test that is long.

use std::time::Duration;

use super::PytestItem;

/// A worker is told of tests for this long ahead...
const AHEAD: Duration = Duration::from_millis(5);
/// ...and of this many at most.
const AHEAD_TESTS: usize = 16;
/// The same where what it says may be held back on its way.
const HELD_AHEAD_TESTS: usize = 64;
/// While a test runs that lasts longer, or nobody knows how long, nothing more is told.
const LONG: Duration = Duration::from_millis(50);
/// What a test is taken to last where nobody knows yet, and a worker is too far away to be asked soon.
const GUESS: Duration = Duration::from_millis(10);
/// How many tests such a worker is told of at most.
const FAR_AHEAD_TESTS: usize = 1000;

/// The way to a worker and back.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Way {
    /// How long a message there and its answer take.
    pub round_trip: Duration,
    /// How long the answer may wait for others, to come with them, while the worker is busy.
    pub held: Duration,
}

/// How long tests take in the file that a worker is in.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace(Option<(u32, Duration)>);

impl Pace {
    /// A test has finished.
    pub fn observe(&mut self, unit: u32, duration: Duration) {
        let each = match self.0 {
            Some((here, each)) if here == unit => (each * 3 + duration) / 4,
            _ => duration,
        };
        self.0 = Some((unit, each.max(duration)));
    }

    /// How long a test will take: as earlier runs say, else as its neighbours did.
    fn estimate(&self, item: &PytestItem) -> Option<Duration> {
        item.expected.or_else(|| self.0.filter(|(here, _)| *here == item.unit).map(|(_, each)| each))
    }
}

/// How many more of the tests in `queue` the worker is to be told of. It knows of the first `told`, and `running` is what
/// it runs.
pub(super) fn more<'a>(
    queue: impl ExactSizeIterator<Item = &'a PytestItem> + Clone,
    told: usize,
    running: Option<&PytestItem>,
    pace: Pace,
    way: Way,
) -> usize {
    // What is said takes so long to arrive.
    let Way { round_trip, held } = way;
    let far = round_trip * 2 > AHEAD;
    let (time, most) = match far {
        true => (round_trip * 2 + held * 2, FAR_AHEAD_TESTS),
        false if held.is_zero() => (AHEAD, AHEAD_TESTS),
        false => (AHEAD + held * 2, HELD_AHEAD_TESTS),
    };
    if !far && running.is_some_and(|item| pace.estimate(item).is_none_or(|each| each > LONG)) {
        return 0;
    }
    let known = queue.clone().take(told).map(|item| pace.estimate(item).unwrap_or(GUESS)).sum::<Duration>();
    if told > 0 && (known > time / 2 || told > most / 2) {
        return 0;
    }
    let (mut count, mut work) = (told, known);
    for item in queue.skip(told) {
        let estimate = pace.estimate(item).or(far.then_some(GUESS));
        // The one that is next is told in any case.
        if count > 0 && (estimate.is_none() || work >= time || count >= most) {
            break;
        }
        count += 1;
        work += estimate.unwrap_or(AHEAD);
    }
    count - told
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Way = Way { round_trip: Duration::ZERO, held: Duration::ZERO };

    fn items(unit: u32, expected: &[Option<u64>]) -> Vec<PytestItem> {
        let item = |expected: &Option<u64>| PytestItem {
            key: 0,
            unit,
            ordinal: 0,
            attempt: 1,
            timeout: Duration::MAX,
            expected: expected.map(Duration::from_micros),
        };
        expected.iter().map(item).collect()
    }

    #[test]
    fn short_tests_are_told_of_in_bunches() {
        let queue = items(1, &[Some(500); 40]);
        assert_eq!(more(queue.iter(), 0, None, Pace::default(), HERE), 10);
        assert_eq!(more(queue.iter(), 8, None, Pace::default(), HERE), 0, "half of the time is left");
        assert_eq!(more(queue.iter(), 4, None, Pace::default(), HERE), 6);
        let queue = items(1, &[Some(0); 40]);
        assert_eq!(more(queue.iter(), 0, None, Pace::default(), HERE), AHEAD_TESTS);
    }

    #[test]
    fn nothing_is_told_behind_a_test_that_is_long_or_unknown() {
        let queue = items(1, &[Some(500); 4]);
        for running in [Some(2_000_000), None] {
            let running = items(1, &[running]);
            assert_eq!(more(queue.iter(), 0, running.first(), Pace::default(), HERE), 0);
        }
        let running = items(1, &[Some(10_000)]);
        assert_eq!(more(queue.iter(), 0, running.first(), Pace::default(), HERE), 4);
    }

    #[test]
    fn of_a_file_of_which_nothing_is_known_one_test_is_told() {
        let queue = items(1, &[None; 40]);
        let mut pace = Pace::default();
        assert_eq!(more(queue.iter(), 0, None, pace, HERE), 1);
        pace.observe(2, Duration::from_millis(1));
        assert_eq!(more(queue.iter(), 0, None, pace, HERE), 1, "another file says nothing");
        pace.observe(1, Duration::from_millis(1));
        assert_eq!(more(queue.iter(), 0, None, pace, HERE), 5);
    }

    #[test]
    fn a_worker_that_is_far_away_is_told_of_what_bridges_the_way() {
        let far = Way { round_trip: Duration::from_millis(50), held: Duration::ZERO };
        let queue = items(1, &[None; 40]);
        assert_eq!(more(queue.iter(), 0, None, Pace::default(), far), 10);
        let running = items(1, &[None]);
        assert_eq!(more(queue.iter(), 0, running.first(), Pace::default(), far), 10);
    }
    #[test]
    fn a_worker_whose_results_are_held_back_is_told_of_what_lasts_until_they_come() {
        let way = Way { round_trip: Duration::from_millis(1), held: Duration::from_millis(10) };
        let queue = items(1, &[Some(1000); 100]);
        assert_eq!(more(queue.iter(), 0, None, Pace::default(), way), 25);
        assert_eq!(more(queue.iter(), 12, None, Pace::default(), way), 13);
        let unknown = items(1, &[None; 40]);
        assert_eq!(more(unknown.iter(), 0, None, Pace::default(), way), 1, "it may be long");
    }
}
