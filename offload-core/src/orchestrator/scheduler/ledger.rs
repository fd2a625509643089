//! What is known of each test: where it stands, how often it failed, on which sandboxes it is.
//!
//! A run may have millions of tests, so a test is a few dozen bytes in one vector, and links between tests are numbers.

use std::time::Duration;

/// Nanoseconds: since the beginning of the run, or of expected work.
pub(super) type Nanos = u64;

/// In place of the number of a sandbox or test: none.
pub(super) const NONE: u32 = u32::MAX;

/// The longest duration a test is expected to have: what comes from a history file cannot make sums meaningless.
const LONGEST: Nanos = 1_000_000 * 1_000_000_000;

/// The shortest, so that no number of tests is thought to be free.
const SHORTEST: Nanos = 20_000;

/// A moment of the run.
pub(super) fn moment(now: Duration) -> Nanos {
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// An expected duration, within bounds that can be added up.
pub(super) fn expectation(duration: Duration) -> Nanos {
    moment(duration).clamp(SHORTEST, LONGEST)
}

/// Where a test stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// In the central queue.
    Queued,
    /// Looked at what was still being built; repeated when discovery has ended.
    Parked,
    /// Queued or running on a sandbox, its result wanted.
    Out,
    /// To be queued as soon as the last sandbox that was told to end it has done so.
    Between,
    /// Will not be run: the run was halted.
    Left,
    /// Has its outcome.
    Settled,
}

/// One test.
#[derive(Debug)]
pub(super) struct Test {
    /// What earlier runs say of its duration; [`Nanos::MAX`] for nothing.
    expected: Nanos,
    /// Its suite, as the queue numbers them.
    pub suite: u32,
    /// Further attempts after a failure.
    pub retries: u32,
    /// Attempts that failed.
    pub failures: u32,
    /// Where the last one did.
    pub failed_on: u32,
    /// The sandboxes that have it; two while it is hedged.
    places: [u32; 2],
    /// Its neighbours in the queue of its suite.
    pub previous: u32,
    pub next: u32,
    /// How often it was lost while it ran.
    pub losses: u8,
    pub state: State,
    pub alone: bool,
    /// It has failed for good.
    pub failed: bool,
    /// The sandbox that has what it takes to run it, or [`NONE`].
    pub home: u32,
    /// No other sandbox can run it.
    pub pinned: bool,
    /// It is elsewhere, and it is not certain that it can be run there.
    pub astray: bool,
    /// Whether this attempt has had a duplicate.
    pub hedged: bool,
    /// While it is out: whether it was counted among those whose failure would be repeated.
    pub counted_retry: bool,
}

impl Test {
    pub fn new(suite: u32, spec: &super::TestSpec) -> Self {
        Self {
            expected: spec.expected.map_or(Nanos::MAX, expectation),
            suite,
            retries: spec.retries,
            failures: 0,
            failed_on: NONE,
            places: [NONE; 2],
            previous: NONE,
            next: NONE,
            losses: 0,
            state: State::Left,
            alone: spec.alone,
            failed: false,
            home: spec.home.map_or(NONE, |home| home.0),
            pinned: false,
            astray: false,
            hedged: false,
            counted_retry: false,
        }
    }

    /// What earlier runs say of its duration.
    pub fn expected(&self) -> Option<Nanos> {
        (self.expected != Nanos::MAX).then_some(self.expected)
    }

    /// The number of the attempt that is under way or comes next.
    pub fn attempt(&self) -> u32 {
        self.failures + 1
    }

    /// Whether a failure of the present attempt would be repeated.
    pub fn may_retry(&self) -> bool {
        self.failures < self.retries
    }

    /// A sandbox has it now. The scheduler never hands a test to a third one.
    pub fn occupy(&mut self, sandbox: u32) {
        debug_assert!(self.places.contains(&NONE), "a test is on two sandboxes at most");
        let free = usize::from(self.places[0] != NONE);
        self.places[free] = sandbox;
    }

    /// A sandbox does not have it any more.
    pub fn vacate(&mut self, sandbox: u32) {
        for place in &mut self.places {
            if *place == sandbox {
                *place = NONE;
            }
        }
    }

    /// A sandbox that has it.
    pub fn place(&self) -> Option<u32> {
        self.places.into_iter().find(|&place| place != NONE)
    }
}
