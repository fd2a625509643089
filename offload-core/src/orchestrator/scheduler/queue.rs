//! The central queue: which waiting test goes to a sandbox that asks for one.
//!
//! Two wishes compete. Neighbours should stay together, so a sandbox goes on in the suite it is in, and when that is
//! exhausted opens the next one that nobody works on, or helps where the most work is left; those that have their home on
//! it come first. And no long test may be left to the end, so a test that lasts more than a sixteenth of the
//! expected rest of the run is taken first, wherever it belongs, as soon as the short ones that are left are no more than
//! it takes to even the end out. Not earlier: many a test finds something else when one has run before it that usually runs
//! behind it. As the rest gets shorter, the second rule takes over by itself: the end of a run is scheduled longest first.
//!
//! Where there is only ever one sandbox, neither helps anybody, and suites and tests come in their order.
//!
//! Retries come before both, on another sandbox than the one they failed on. Everything is O(log n).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};

use super::estimate::Estimates;
use super::ledger::{NONE, Nanos, State, Test};

/// How long a retry waits for another sandbox before the one on which it failed may have it.
pub(super) const RETRY_PATIENCE: Nanos = 1_000_000_000;

/// A test is critical when it is longer than the rest of the run divided by this: what the longest tests can unbalance
/// the end of a run by is about that part of it.
const CRITICAL_PART: u64 = 16;

/// Nor is it critical as long as there is so many times its length to do for each sandbox in tests that are much shorter.
/// Once would do if tests always took as long as they did before.
const FILLER: u128 = 2;

/// Who asks for a test.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker {
    pub sandbox: u32,
    /// The suite that the sandbox is in.
    pub suite: u32,
    /// Nothing is queued or running there.
    pub empty: bool,
    /// It is free early enough for a retry.
    pub may_retry: bool,
    /// It may be left to run dry so that a test can have it for itself.
    pub may_drain: bool,
    /// How many sandboxes there are.
    pub live: usize,
    /// The expected rest of the run.
    pub rest: Nanos,
    pub now: Nanos,
}

/// What an asker is to get. Valid until the queue changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    Nothing,
    /// Nothing for now: a test wants the sandbox for itself as soon as it is empty.
    Drain,
    /// A test that failed on the sandbox `failed_on`.
    Retry {
        test: u32,
        failed_on: u32,
    },
    /// A test for a sandbox of its own.
    Alone {
        test: u32,
    },
    Ordinary {
        test: u32,
    },
    /// A test that only the sandbox `home` can run.
    Pinned {
        test: u32,
        home: u32,
    },
}

/// The order of suites to open; the greatest comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    untouched: bool,
    /// Has tests of which nothing is known: they are the risk, so they come early.
    unknown: bool,
    /// What is left of those that are being worked on, and of those that cannot be divided. Others come in their order:
    /// nothing is lost by it, and tests that rely on what others before them did are spared.
    work: Nanos,
    suite: Reverse<u32>,
}

#[derive(Debug)]
struct Suite {
    first: u32,
    last: u32,
    waiting: u32,
    /// Those of unknown duration among them.
    unknown: u32,
    known_work: u128,
    /// Its tests go to one sandbox together.
    together: bool,
    /// Sandboxes that are in this suite.
    sandboxes: u32,
    /// The sandbox that should open it, or [`NONE`].
    home: u32,
    rank: Option<Rank>,
}

/// Failed tests that wait for another attempt, by the sandbox on which they failed.
#[derive(Debug, Default)]
struct Retries(BTreeMap<u32, VecDeque<(Nanos, u32)>>);

impl Retries {
    fn push(&mut self, failed_on: u32, now: Nanos, test: u32) {
        self.0.entry(failed_on).or_default().push_back((now, test));
    }

    /// One that failed elsewhere; one that failed here only if there is no elsewhere or it has waited long enough.
    fn find(&self, asker: &Asker) -> Option<(u32, u32)> {
        let elsewhere = self.0.iter().take(2).find(|&(&failed_on, _)| failed_on != asker.sandbox);
        let (&failed_on, tests) = elsewhere.or_else(|| {
            let here = self.0.get_key_value(&asker.sandbox)?;
            let &(since, _) = here.1.front()?;
            (asker.live == 1 || since.saturating_add(RETRY_PATIENCE) <= asker.now).then_some(here)
        })?;
        tests.front().map(|&(_, test)| (test, failed_on))
    }

    fn pop(&mut self, failed_on: u32) {
        if let Some(tests) = self.0.get_mut(&failed_on) {
            tests.pop_front();
            if tests.is_empty() {
                self.0.remove(&failed_on);
            }
        }
    }

    /// Whether nothing failed anywhere else.
    fn only(&self, sandbox: u32) -> bool {
        self.0.keys().take(2).all(|&failed_on| failed_on == sandbox)
    }

    fn waiting_since(&self, sandbox: u32) -> Option<Nanos> {
        self.0.get(&sandbox)?.front().map(|&(since, _)| since)
    }

    fn drain(&mut self) -> impl Iterator<Item = u32> + use<> {
        std::mem::take(&mut self.0).into_values().flatten().map(|(_, test)| test)
    }
}

/// The tests that wait.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Whatever the durations: there is one sandbox for all.
    in_order: bool,
    numbers: HashMap<u32, u32>,
    suites: Vec<Suite>,
    ranking: BTreeSet<Rank>,
    /// The same by the sandbox that is the home of a suite, for suites that have one.
    homes: BTreeMap<u32, BTreeSet<Rank>>,
    /// Suites with ordinary tests of unknown duration.
    unknown_suites: BTreeSet<u32>,
    /// Ordinary tests by known duration. Those that have left the queue some other way are dropped when they come up.
    longest: BinaryHeap<(Nanos, Reverse<u32>)>,
    alone: BinaryHeap<(Nanos, Reverse<u32>)>,
    retries: Retries,
    alone_retries: Retries,
    /// Tests that only one sandbox can run, by that.
    pinned: BTreeMap<u32, VecDeque<u32>>,
    pinned_len: usize,
    len: usize,
    alone_len: usize,
    ordinary_len: usize,
    /// Tests that need no sandbox because they go along with another one of their suite.
    followers: usize,
    known_work: u128,
    unknown: usize,
    by_length: ByLength,
}

/// The work in tests that go anywhere, by the logarithm of their length.
#[derive(Debug)]
struct ByLength([u128; Nanos::BITS as usize + 1]);

impl Default for ByLength {
    fn default() -> Self {
        Self([0; Nanos::BITS as usize + 1])
    }
}

impl ByLength {
    fn class(length: Nanos) -> usize {
        (Nanos::BITS - length.leading_zeros()) as usize
    }

    fn add(&mut self, length: Nanos) {
        self.0[Self::class(length)] += u128::from(length);
    }

    fn remove(&mut self, length: Nanos) {
        self.0[Self::class(length)] -= u128::from(length);
    }

    /// The work in tests that last less than half of `length`, as far as their classes tell.
    fn shorter(&self, length: Nanos) -> u128 {
        self.0[..Self::class(length).saturating_sub(1)].iter().sum()
    }
}

impl Queue {
    /// An empty queue for so many sandboxes at most.
    pub fn for_sandboxes(most: usize) -> Self {
        Self { in_order: most <= 1, ..Self::default() }
    }

    /// The number by which the queue knows a suite. A new one gets the sandbox `home` as its home, and `together` counts.
    pub fn suite(&mut self, name: u32, together: bool, home: u32) -> u32 {
        let suites = &mut self.suites;
        *self.numbers.entry(name).or_insert_with(|| {
            suites.push(Suite {
                first: NONE,
                last: NONE,
                waiting: 0,
                unknown: 0,
                known_work: 0,
                together,
                sandboxes: 0,
                home,
                rank: None,
            });
            // Tests are numbered in 32 bits, and each suite has one at least.
            (suites.len() - 1) as u32
        })
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many sandboxes what waits could occupy.
    pub fn units(&self) -> usize {
        self.len - self.followers - self.pinned_len
    }

    /// Whether the tests of a suite go to one sandbox together.
    pub fn together(&self, suite: u32) -> bool {
        self.suites.get(suite as usize).is_some_and(|suite| suite.together)
    }

    /// How many tests wait for a sandbox of their own.
    pub fn alone_len(&self) -> usize {
        self.alone_len
    }

    /// Everything that waits, as far as one knows.
    pub fn work(&self, estimates: &Estimates) -> u128 {
        self.known_work + self.unknown as u128 * u128::from(estimates.any())
    }

    /// What waits failed on `sandbox`, all of it.
    pub fn all_failed_on(&self, sandbox: u32) -> bool {
        self.ordinary_len == 0
            && self.alone.is_empty()
            && self.retries.only(sandbox)
            && self.alone_retries.only(sandbox)
    }

    /// When `sandbox` may have a retry that failed there.
    pub fn retry_patience_ends(&self, sandbox: u32) -> Option<Nanos> {
        let since = [self.retries.waiting_since(sandbox), self.alone_retries.waiting_since(sandbox)];
        since.into_iter().flatten().min().map(|since| since.saturating_add(RETRY_PATIENCE))
    }

    /// Appends a test: behind its suite, or, when it comes back, before it.
    pub fn push(&mut self, test: u32, comes_back: bool, tests: &mut [Test], estimates: &Estimates, now: Nanos) {
        let record = &mut tests[test as usize];
        record.state = State::Queued;
        self.len += 1;
        match record.expected() {
            Some(expected) => self.known_work += u128::from(expected),
            None => self.unknown += 1,
        }
        if record.alone {
            self.alone_len += 1;
        }
        if record.pinned {
            self.pinned_len += 1;
            let waiting = self.pinned.entry(record.home).or_default();
            if comes_back { waiting.push_front(test) } else { waiting.push_back(test) }
        } else if record.failures > 0 {
            let retries = if record.alone { &mut self.alone_retries } else { &mut self.retries };
            retries.push(record.failed_on, now, test);
        } else if record.alone {
            self.alone.push((record.expected().unwrap_or(Nanos::MAX), Reverse(test)));
        } else {
            self.push_ordinary(test, comes_back, tests, estimates);
        }
    }

    fn push_ordinary(&mut self, test: u32, comes_back: bool, tests: &mut [Test], estimates: &Estimates) {
        let number = tests[test as usize].suite;
        let suite = &mut self.suites[number as usize];
        let (previous, next) = if comes_back { (NONE, suite.first) } else { (suite.last, NONE) };
        match previous {
            NONE => suite.first = test,
            previous => tests[previous as usize].next = test,
        }
        match next {
            NONE => suite.last = test,
            next => tests[next as usize].previous = test,
        }
        let record = &mut tests[test as usize];
        (record.previous, record.next) = (previous, next);
        self.followers += usize::from(suite.together && suite.waiting > 0);
        suite.waiting += 1;
        self.ordinary_len += 1;
        match record.expected() {
            Some(expected) => {
                suite.known_work += u128::from(expected);
                if !suite.together {
                    self.by_length.add(expected);
                }
                // The last one of those that go together stands for all of them.
                let length = if suite.together { Nanos::try_from(suite.known_work).ok() } else { None };
                self.longest.push((length.unwrap_or(expected), Reverse(test)));
            }
            None => {
                suite.unknown += 1;
                if suite.unknown == 1 {
                    self.unknown_suites.insert(number);
                }
            }
        }
        self.rank(number, estimates);
    }

    /// What `asker` is to get.
    pub fn choose(&mut self, asker: &Asker, tests: &[Test], estimates: &Estimates) -> Choice {
        if let Some(&test) = self.pinned.get(&asker.sandbox).and_then(VecDeque::front)
            && (asker.empty || !tests[test as usize].alone)
        {
            return Choice::Pinned { test, home: asker.sandbox };
        }
        if asker.may_retry
            && let Some((test, failed_on)) = self.retries.find(asker)
        {
            return Choice::Retry { test, failed_on };
        }
        let longest = if self.in_order { None } else { self.longest_waiting(tests) };
        let critical = longest.filter(|&(length, _)| {
            length > asker.rest / CRITICAL_PART
                && self.by_length.shorter(length) <= u128::from(length) * FILLER * asker.live as u128
        });
        if let Some((length, choice)) = self.choose_alone(asker, tests)
            && critical.is_none_or(|(critical, _)| length >= critical)
            && !(self.in_order && self.ordinary_len > 0)
        {
            if asker.empty {
                return choice;
            }
            if asker.may_drain {
                return Choice::Drain;
            }
        }
        match self.choose_ordinary(asker, critical, tests, estimates) {
            NONE => Choice::Nothing,
            test => Choice::Ordinary { test },
        }
    }

    fn choose_alone(&self, asker: &Asker, tests: &[Test]) -> Option<(Nanos, Choice)> {
        if let Some((test, failed_on)) = self.alone_retries.find(asker) {
            let length = tests[test as usize].expected().unwrap_or(Nanos::MAX);
            return Some((length, Choice::Retry { test, failed_on }));
        }
        self.alone.peek().map(|&(length, Reverse(test))| (length, Choice::Alone { test }))
    }

    fn choose_ordinary(
        &self,
        asker: &Asker,
        critical: Option<(Nanos, u32)>,
        tests: &[Test],
        estimates: &Estimates,
    ) -> u32 {
        let here = self.first_of(asker.suite);
        if let Some((length, test)) = critical {
            if let Some(&suite) = self.unknown_suites.first()
                && estimates.any().saturating_mul(2) >= length
            {
                // Unknown tests can turn out to be long: they must not be what is left at the end.
                let here_too = self.unknown_suites.contains(&asker.suite);
                return self.first_of(if here_too { asker.suite } else { suite });
            }
            // One in the order of suites that is about as long serves as well.
            let instead = if here == NONE { self.first_to_open(asker.sandbox) } else { here };
            let serves = instead != NONE
                && tests[instead as usize]
                    .expected()
                    .is_some_and(|expected| u128::from(expected) * 8 >= u128::from(length) * 7);
            return if serves { instead } else { test };
        }
        if here == NONE { self.first_to_open(asker.sandbox) } else { here }
    }

    /// The first waiting test of the suite that a sandbox opens next, or [`NONE`].
    fn first_to_open(&self, sandbox: u32) -> u32 {
        let at_home = self.homes.get(&sandbox).and_then(BTreeSet::last);
        at_home.or(self.ranking.last()).map_or(NONE, |rank| self.first_of(rank.suite.0))
    }

    /// The first waiting test of a suite, or [`NONE`].
    pub fn first_of(&self, suite: u32) -> u32 {
        self.suites.get(suite as usize).map_or(NONE, |suite| suite.first)
    }

    /// Removes what was chosen.
    pub fn take(&mut self, choice: Choice, tests: &mut [Test], estimates: &Estimates) -> Option<u32> {
        let test = match choice {
            Choice::Nothing | Choice::Drain => return None,
            Choice::Retry { test, failed_on } => {
                let alone = tests[test as usize].alone;
                if alone { &mut self.alone_retries } else { &mut self.retries }.pop(failed_on);
                test
            }
            Choice::Alone { test } => {
                self.alone.pop();
                test
            }
            Choice::Ordinary { test } => {
                self.remove_ordinary(test, tests, estimates);
                test
            }
            Choice::Pinned { test, home } => {
                if let Some(waiting) = self.pinned.get_mut(&home) {
                    waiting.pop_front();
                    if waiting.is_empty() {
                        self.pinned.remove(&home);
                    }
                }
                self.pinned_len -= 1;
                test
            }
        };
        let record = &tests[test as usize];
        self.len -= 1;
        self.alone_len -= usize::from(record.alone);
        match record.expected() {
            Some(expected) => self.known_work -= u128::from(expected),
            None => self.unknown -= 1,
        }
        Some(test)
    }

    fn remove_ordinary(&mut self, test: u32, tests: &mut [Test], estimates: &Estimates) {
        let record = &mut tests[test as usize];
        let (number, expected) = (record.suite, record.expected());
        let (previous, next) = (record.previous, record.next);
        (record.previous, record.next) = (NONE, NONE);
        let suite = &mut self.suites[number as usize];
        match previous {
            NONE => suite.first = next,
            previous => tests[previous as usize].next = next,
        }
        match next {
            NONE => suite.last = previous,
            next => tests[next as usize].previous = previous,
        }
        suite.waiting -= 1;
        self.followers -= usize::from(suite.together && suite.waiting > 0);
        self.ordinary_len -= 1;
        match expected {
            Some(expected) => {
                suite.known_work -= u128::from(expected);
                if !suite.together {
                    self.by_length.remove(expected);
                }
            }
            None => {
                suite.unknown -= 1;
                if suite.unknown == 0 {
                    self.unknown_suites.remove(&number);
                }
            }
        }
        self.rank(number, estimates);
    }

    /// A sandbox went from one suite to another; either may be [`NONE`].
    pub fn move_sandbox(&mut self, from: u32, to: u32, estimates: &Estimates) {
        if from == to {
            return;
        }
        if let Some(suite) = self.suites.get_mut(from as usize) {
            suite.sandboxes -= 1;
            self.rank(from, estimates);
        }
        if let Some(suite) = self.suites.get_mut(to as usize) {
            suite.sandboxes += 1;
            self.rank(to, estimates);
        }
    }

    /// The sandboxes for which tests wait that no other can run.
    pub fn pinned_homes(&self) -> impl Iterator<Item = u32> {
        self.pinned.keys().copied()
    }

    /// Empties the queue of tests that only the sandbox `home` can run.
    pub fn drain_pinned(&mut self, home: u32, tests: &[Test]) -> Vec<u32> {
        let drained: Vec<u32> = self.pinned.remove(&home).unwrap_or_default().into();
        self.pinned_len -= drained.len();
        self.discount(&drained, tests);
        drained
    }

    /// Empties the queue of failed tests that wait for another attempt.
    pub fn drain_retries(&mut self, tests: &[Test]) -> Vec<u32> {
        let drained: Vec<u32> = self.retries.drain().chain(self.alone_retries.drain()).collect();
        self.discount(&drained, tests);
        drained
    }

    fn discount(&mut self, drained: &[u32], tests: &[Test]) {
        for &test in drained {
            let record = &tests[test as usize];
            self.len -= 1;
            self.alone_len -= usize::from(record.alone);
            match record.expected() {
                Some(expected) => self.known_work -= u128::from(expected),
                None => self.unknown -= 1,
            }
        }
    }

    fn longest_waiting(&mut self, tests: &[Test]) -> Option<(Nanos, u32)> {
        while let Some(&(length, Reverse(test))) = self.longest.peek() {
            let record = &tests[test as usize];
            if record.state == State::Queued && record.failures == 0 && !record.pinned {
                return Some((length, test));
            }
            self.longest.pop();
        }
        None
    }

    fn rank(&mut self, number: u32, estimates: &Estimates) {
        let suite = &mut self.suites[number as usize];
        let rank = (suite.waiting > 0).then(|| {
            let unknown_work = u128::from(suite.unknown) * u128::from(estimates.of_suite(number));
            let work = (suite.known_work + unknown_work) / u128::from(suite.sandboxes + 1);
            let counts = !self.in_order && (suite.together || suite.sandboxes > 0);
            Rank {
                untouched: suite.sandboxes == 0,
                unknown: suite.unknown > 0 && !self.in_order,
                work: if counts { u64::try_from(work).unwrap_or(Nanos::MAX) } else { 0 },
                suite: Reverse(number),
            }
        });
        if rank != suite.rank {
            let old = std::mem::replace(&mut suite.rank, rank);
            if let Some(old) = &old {
                self.ranking.remove(old);
            }
            self.ranking.extend(rank);
            if suite.home != NONE {
                let neighbours = self.homes.entry(suite.home).or_default();
                if let Some(old) = &old {
                    neighbours.remove(old);
                }
                neighbours.extend(rank);
            }
        }
    }
}
