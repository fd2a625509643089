//! A simulated world for the scheduler to act in, in virtual time.
//!
//! The world is a model of its own: it keeps account of who has what from the actions alone, and checks each action
//! against that account.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use offload_core::orchestrator::scheduler::{Action, Assignment, Feed, SandboxIndex, Scheduler, TestIndex, Verdict};

use crate::plans::{Plan, RunsOn, SandboxPlan, TestPlan};

/// More happenings than any run of this size needs.
const STEPS: usize = 50_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Found(usize),
    DiscoveryEnds,
    Stop,
    Nonsense(usize),
    Ready(u32),
    NotCreated(u32),
    Dies(u32),
    Lost(u32),
    Arrives(u32, u32),
    TakeBackArrives(u32, u32),
    CancelArrives(u32, u32),
    Ends(u32, u64),
    StartedHeard(u32, u32),
    FinishedHeard(u32, u32),
    TakenBackHeard(u32, u32),
    RefusedHeard(u32, u32),
}

#[derive(Debug, Default)]
struct Place {
    ready: bool,
    /// The scheduler was told that it is lost, or has released it.
    gone: bool,
    dead: bool,
    /// In the scheduler's eyes: test, and whether it was cancelled.
    has: Vec<(u32, bool)>,
    queue: Vec<u32>,
    running: Option<(u32, u64)>,
}

pub struct World<'a> {
    plan: &'a Plan,
    scheduler: Scheduler,
    now: Duration,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    sequence: u64,
    places: Vec<Place>,
    /// Plans of the tests, as the scheduler numbers them.
    found: Vec<usize>,
    recorded: Vec<Vec<Verdict>>,
    /// Attempts that were executed, recorded or not.
    executed: Vec<usize>,
    hedged: BTreeSet<(u32, u32)>,
    /// How many tests were hedged, however often.
    pub hedges: usize,
    settled: BTreeMap<u32, Action>,
    parked: BTreeSet<u32>,
    /// Tests that a sandbox has refused, as the scheduler knows.
    refused: BTreeSet<u32>,
    discovering: bool,
    halted: bool,
    aborted: bool,
    max_failed: bool,
    actions: usize,
}

impl<'a> World<'a> {
    pub fn new(plan: &'a Plan) -> Self {
        Self {
            plan,
            scheduler: Scheduler::new(plan.config.clone()),
            now: Duration::ZERO,
            events: BinaryHeap::new(),
            sequence: 0,
            places: Vec::new(),
            found: Vec::new(),
            recorded: Vec::new(),
            executed: Vec::new(),
            hedged: BTreeSet::new(),
            hedges: 0,
            settled: BTreeMap::new(),
            parked: BTreeSet::new(),
            refused: BTreeSet::new(),
            discovering: true,
            halted: false,
            aborted: false,
            max_failed: false,
            actions: 0,
        }
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((self.now + delay, self.sequence, event)));
    }

    fn test(&self, test: u32) -> &'a TestPlan {
        &self.plan.tests[self.found[test as usize]]
    }

    fn sandbox(&self, sandbox: u32) -> &'a SandboxPlan {
        &self.plan.sandboxes[sandbox as usize % self.plan.sandboxes.len()]
    }

    fn half_trip(&self, sandbox: u32) -> Duration {
        self.sandbox(sandbox).round_trip / 2
    }

    /// Runs to the end; the makespan.
    pub fn run(&mut self) -> Duration {
        for (index, test) in self.plan.tests.iter().enumerate() {
            self.after(test.found.min(self.plan.discovery_ends), Event::Found(index));
        }
        self.after(self.plan.discovery_ends, Event::DiscoveryEnds);
        if let Some(stop) = self.plan.stop {
            self.after(stop, Event::Stop);
        }
        for (index, nonsense) in self.plan.nonsense.iter().enumerate() {
            self.after(nonsense.3, Event::Nonsense(index));
        }
        for _ in 0..STEPS {
            while let Some(action) = self.scheduler.next_action(self.now) {
                self.actions += 1;
                assert!(self.actions < STEPS, "actions without end: {action:?}");
                self.act(action);
            }
            if self.scheduler.is_done() {
                self.check_end();
                return self.now;
            }
            let next = self.events.peek().map(|Reverse((when, ..))| *when);
            let wakeup = self.scheduler.next_wakeup();
            if let Some(wakeup) = wakeup
                && next.is_none_or(|next| wakeup < next)
            {
                assert!(wakeup > self.now, "a wake-up in the past");
                self.now = wakeup;
                continue;
            }
            let Reverse((when, _, event)) = self.events.pop().expect("the run is not done, yet nothing will happen");
            self.now = when;
            self.happen(event);
        }
        panic!("the run does not end");
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Found(index) => {
                let test = self.scheduler.add_test(self.plan.tests[index].spec);
                assert_eq!(test.0 as usize, self.found.len());
                self.found.push(index);
                self.recorded.push(Vec::new());
                self.executed.push(0);
            }
            Event::DiscoveryEnds => {
                self.discovering = false;
                self.parked.clear();
                self.scheduler.discovery_finished();
            }
            Event::Stop => {
                self.halted = true;
                self.scheduler.stop();
            }
            Event::Nonsense(index) => self.talk_nonsense(index),
            Event::Ready(sandbox) => {
                let place = &mut self.places[sandbox as usize];
                (place.ready, place.dead) = (true, false);
                let plan = self.sandbox(sandbox);
                if let Some(dies) = plan.dies {
                    self.after(dies, Event::Dies(sandbox));
                }
                self.scheduler.sandbox_ready(SandboxIndex(sandbox), plan.round_trip, now);
            }
            Event::NotCreated(sandbox) => self.lose(sandbox),
            Event::Dies(sandbox) => {
                self.places[sandbox as usize].dead = true;
                self.after(self.half_trip(sandbox), Event::Lost(sandbox));
            }
            Event::Lost(sandbox) => self.lose(sandbox),
            Event::Arrives(sandbox, test) => {
                if self.places[sandbox as usize].dead {
                    return;
                }
                if self.sandbox(sandbox).refuses {
                    self.after(self.half_trip(sandbox), Event::TakenBackHeard(sandbox, test));
                } else if !self.can_run(sandbox, test) {
                    self.after(self.half_trip(sandbox), Event::RefusedHeard(sandbox, test));
                } else {
                    self.places[sandbox as usize].queue.push(test);
                    self.start_next(sandbox);
                }
            }
            Event::TakeBackArrives(sandbox, test) | Event::CancelArrives(sandbox, test) => {
                let cancel = matches!(event, Event::CancelArrives(..));
                let place = &mut self.places[sandbox as usize];
                if place.dead {
                    return;
                }
                let before = place.queue.len();
                place.queue.retain(|&queued| queued != test);
                let was_running = cancel && place.running.take_if(|running| running.0 == test).is_some();
                if was_running || place.queue.len() < before {
                    self.after(self.half_trip(sandbox), Event::TakenBackHeard(sandbox, test));
                }
                self.start_next(sandbox);
            }
            Event::Ends(sandbox, run) => {
                let place = &mut self.places[sandbox as usize];
                let ended = place.running.take_if(|running| running.1 == run);
                let Some((test, _)) = ended.filter(|_| !place.dead) else { return };
                if self.test(test).poison {
                    self.happen(Event::Dies(sandbox));
                    return;
                }
                self.after(self.half_trip(sandbox), Event::FinishedHeard(sandbox, test));
                self.start_next(sandbox);
            }
            Event::StartedHeard(sandbox, test) => self.scheduler.started(SandboxIndex(sandbox), TestIndex(test), now),
            Event::FinishedHeard(sandbox, test) => self.hear_finished(sandbox, test),
            Event::TakenBackHeard(sandbox, test) => {
                self.places[sandbox as usize].has.retain(|&(held, _)| held != test);
                self.scheduler.taken_back(SandboxIndex(sandbox), &[TestIndex(test)], now);
            }
            Event::RefusedHeard(sandbox, test) => {
                self.places[sandbox as usize].has.retain(|&(held, _)| held != test);
                self.refused.insert(test);
                self.scheduler.refused(SandboxIndex(sandbox), &[TestIndex(test)], now);
            }
        }
    }

    fn can_run(&self, sandbox: u32, test: u32) -> bool {
        let plan = self.test(test);
        match plan.runs_on {
            RunsOn::All => true,
            RunsOn::Home => plan.spec.home == Some(SandboxIndex(sandbox)),
            RunsOn::None => false,
        }
    }

    fn lose(&mut self, sandbox: u32) {
        let place = &mut self.places[sandbox as usize];
        place.gone = true;
        place.has.clear();
        // Told twice: the second time means nothing.
        self.scheduler.sandbox_lost(SandboxIndex(sandbox), self.now);
        self.scheduler.sandbox_lost(SandboxIndex(sandbox), self.now);
    }

    fn talk_nonsense(&mut self, index: usize) {
        let (sandbox, test, kind, _) = self.plan.nonsense[index];
        let has = |place: &Place| place.has.iter().any(|&(held, _)| held == test);
        let known = self.places.get(sandbox as usize);
        if known.is_some_and(has) {
            return; // That would make sense.
        }
        let (sandbox, test) = (SandboxIndex(sandbox), TestIndex(test));
        match kind {
            0 => self.scheduler.started(sandbox, test, self.now),
            1 => assert!(!self.scheduler.finished(sandbox, test, Verdict::Failed, self.now)),
            2 => self.scheduler.taken_back(sandbox, &[test, test], self.now),
            _ if known.is_none_or(|place| place.ready) => {
                self.scheduler.sandbox_ready(sandbox, Duration::MAX, self.now);
            }
            _ => {}
        }
    }

    fn start_next(&mut self, sandbox: u32) {
        let place = &mut self.places[sandbox as usize];
        if place.running.is_some() || place.queue.is_empty() {
            return;
        }
        let test = place.queue.remove(0);
        self.sequence += 1;
        let run = self.sequence;
        place.running = Some((test, run));
        let plan = self.test(test);
        if !plan.silent {
            self.after(self.half_trip(sandbox), Event::StartedHeard(sandbox, test));
        }
        self.after(plan.duration, Event::Ends(sandbox, run));
    }

    fn hear_finished(&mut self, sandbox: u32, test: u32) {
        let plan = self.test(test);
        let index = test as usize;
        let place = &mut self.places[sandbox as usize];
        let held = place.has.iter().position(|&(held, _)| held == test).map(|position| place.has.remove(position));
        let wanted = held.is_some_and(|(_, cancelled)| !cancelled);
        let failed = plan.failures.get(self.executed[index]).copied().unwrap_or(false);
        let verdict = if failed { Verdict::Failed } else { Verdict::Passed };
        let (place, number) = (SandboxIndex(sandbox), TestIndex(test));
        let repeat = plan.provisional && self.discovering;
        let counts = if repeat {
            self.scheduler.forgotten(place, number, verdict, self.now);
            false
        } else {
            self.scheduler.finished(place, number, verdict, self.now)
        };
        assert_eq!(counts, wanted && !repeat, "whether the result of {test} on {sandbox} counts");
        if wanted {
            self.executed[index] += 1;
        }
        if counts {
            self.recorded[index].push(verdict);
        }
    }

    fn act(&mut self, action: Action) {
        match action.clone() {
            Action::CreateSandbox(sandbox) => self.create(sandbox.0),
            Action::Assign { sandbox, tests } => self.assign(sandbox.0, &tests),
            Action::TakeBack { sandbox, tests } => {
                assert!(self.plan.config.feed == Feed::Stream || self.halted, "batches are left alone until the end");
                for test in tests {
                    self.check_has(sandbox.0, test.0);
                    self.after(self.half_trip(sandbox.0), Event::TakeBackArrives(sandbox.0, test.0));
                }
            }
            Action::Cancel { sandbox, test } => {
                self.check_has(sandbox.0, test.0);
                let has = &mut self.places[sandbox.0 as usize].has;
                has.iter_mut().filter(|(held, _)| *held == test.0).for_each(|(_, cancelled)| *cancelled = true);
                self.after(self.half_trip(sandbox.0), Event::CancelArrives(sandbox.0, test.0));
            }
            Action::Release(sandbox) => {
                let place = &mut self.places[sandbox.0 as usize];
                assert!(place.ready && !place.gone && place.has.is_empty(), "released: {place:?}");
                (place.gone, place.dead) = (true, true);
            }
            Action::Settle(test) => {
                let verdicts = &self.recorded[test.0 as usize];
                let retries = self.test(test.0).spec.retries as usize;
                let last = verdicts.last().expect("a settled test has a recorded attempt");
                assert!(*last == Verdict::Passed || verdicts.len() == retries + 1 || self.is_halting());
                assert!(self.settled.insert(test.0, action).is_none(), "{test:?} has two outcomes");
            }
            Action::Refuse(test) => {
                assert!(self.refused.contains(&test.0), "nobody has refused {test:?}");
                assert!(self.settled.insert(test.0, action).is_none(), "{test:?} has two outcomes");
            }
            Action::GiveUp(test) => {
                assert!(self.settled.insert(test.0, action).is_none(), "{test:?} has two outcomes");
            }
            Action::Retry { test, attempts_left } => {
                let verdicts = &self.recorded[test.0 as usize];
                assert_eq!(verdicts.last(), Some(&Verdict::Failed));
                let retries = self.test(test.0).spec.retries;
                assert_eq!(attempts_left as usize, retries as usize + 1 - verdicts.len());
            }
            Action::Repeat(test) => {
                assert!(self.test(test.0).provisional);
                // What comes next is another execution, under the same number.
                self.hedged.retain(|&(hedged, _)| hedged != test.0);
                if self.discovering {
                    self.parked.insert(test.0);
                }
            }
            Action::Abort => {
                assert!(!std::mem::replace(&mut self.aborted, true));
                self.halted = true;
            }
            Action::MaxFailReached => {
                assert!(!std::mem::replace(&mut self.max_failed, true));
                self.halted = true;
            }
        }
    }

    /// Whether the run is being ended; actions on the way say so only afterwards.
    fn is_halting(&self) -> bool {
        self.halted || self.plan.config.max_fail.is_some()
    }

    fn create(&mut self, sandbox: u32) {
        assert!(!self.halted, "a sandbox is created although nothing more is started");
        assert_eq!(sandbox as usize, self.places.len(), "sandboxes are numbered in order");
        self.places.push(Place::default());
        let live = self.places.iter().filter(|place| !place.gone).count();
        assert!(live <= self.plan.config.max_sandboxes, "{live} sandboxes");
        let plan = self.sandbox(sandbox);
        self.after(plan.creation, if plan.created { Event::Ready(sandbox) } else { Event::NotCreated(sandbox) });
    }

    fn assign(&mut self, sandbox: u32, tests: &[Assignment]) {
        assert!(!self.halted, "a test is assigned although nothing more is started");
        assert!(!tests.is_empty());
        let place = &self.places[sandbox as usize];
        assert!(place.ready && !place.gone, "assigned to a sandbox that is not there: {place:?}");
        if let Feed::Batches { max, one_suite, .. } = self.plan.config.feed {
            assert!(place.has.is_empty() && tests.len() <= max, "{tests:?} on {place:?}");
            let suites: BTreeSet<u32> = tests.iter().map(|test| self.test(test.test.0).spec.suite).collect();
            assert!(!one_suite || suites.len() == 1, "{suites:?} in one batch");
        }
        let goes_together = |test: &Assignment| {
            let Assignment { test, attempt } = *test;
            attempt == 1
                && !self.refused.contains(&test.0)
                && !self.test(test.0).spec.alone
                && self.test(test.0).spec.together
        };
        if self.plan.config.feed == Feed::Stream && !self.plan.config.hedge && tests.iter().any(goes_together) {
            assert!(place.has.is_empty() && tests.iter().all(goes_together), "{tests:?} on {place:?}");
        }
        for assignment in tests {
            self.check_assignment(sandbox, *assignment);
            self.places[sandbox as usize].has.push((assignment.test.0, false));
            self.after(self.half_trip(sandbox), Event::Arrives(sandbox, assignment.test.0));
        }
        let has = &self.places[sandbox as usize].has;
        assert!(has.len() == 1 || has.iter().all(|&(test, _)| !self.test(test).spec.alone), "not alone: {has:?}");
    }

    fn check_assignment(&mut self, sandbox: u32, Assignment { test, attempt }: Assignment) {
        let spec = &self.test(test.0).spec;
        assert!(!self.settled.contains_key(&test.0), "{test:?} is settled and runs again");
        assert!(!self.parked.contains(&test.0), "{test:?} was to be repeated after discovery");
        assert_eq!(attempt as usize, self.recorded[test.0 as usize].len() + 1, "the number of the attempt");
        let home = spec.home == Some(SandboxIndex(sandbox));
        assert!(home || !self.refused.contains(&test.0), "{test:?} was refused and is not at home on {sandbox}");
        assert!(attempt <= spec.retries + 1);
        let copies = self.places.iter().zip(0..).flat_map(|(place, number)| {
            place.has.iter().filter(move |&&(held, _)| held == test.0).map(move |&(_, cancelled)| (number, cancelled))
        });
        let copies: Vec<(u32, bool)> = copies.collect();
        if let Some(&(elsewhere, cancelled)) = copies.first() {
            assert!(copies.len() == 1 && elsewhere != sandbox && !cancelled, "{test:?} runs at {copies:?} already");
            assert!(self.plan.config.hedge && !spec.alone, "{test:?} runs twice");
            self.hedges += 1;
            assert!(self.hedged.insert((test.0, attempt)) || self.losses_possible(), "{test:?} is hedged twice");
        }
    }

    fn losses_possible(&self) -> bool {
        self.plan.sandboxes.iter().any(|plan| plan.dies.is_some() || plan.refuses)
            || self.plan.tests.iter().any(|test| test.poison)
    }

    fn check_has(&self, sandbox: u32, test: u32) {
        let place = &self.places[sandbox as usize];
        assert!(!place.gone && place.has.iter().any(|&(held, _)| held == test), "{place:?} does not have {test}");
    }

    fn check_end(&self) {
        let unsettled: BTreeSet<u32> = self.scheduler.unsettled().map(|test| test.0).collect();
        let found = 0..self.found.len() as u32;
        for test in found {
            assert_ne!(unsettled.contains(&test), self.settled.contains_key(&test), "the outcome of {test}");
        }
        assert!(unsettled.is_empty() || self.halted, "{unsettled:?} have no outcome, without a reason");
        for place in &self.places {
            assert!(place.gone || !place.ready || !place.has.is_empty(), "never released: {place:?}");
        }
        if !self.losses_possible() && self.plan.sandboxes.iter().all(|plan| plan.created) {
            assert!(!self.aborted, "nothing broke");
            assert!(!self.settled.values().any(|action| matches!(action, Action::GiveUp(_))), "nothing broke");
        }
    }
}
