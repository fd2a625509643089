//! Runs the scheduler against simulated sandboxes in virtual time and prints how good and how cheap it is.
//!
//! `cargo run --release --example simulate_scheduler [TESTS SANDBOXES]`, by default 1,000,000 tests over 10,000
//! sandboxes. Each row is a run in a process of its own, so that memory can be read off the process: CPU and memory are
//! those of the scheduler *and* the simulation, so they are upper bounds (Linux only; elsewhere they read 0).
//!
//! The bound that a schedule is measured against is max(total work / sandboxes, longest test): no schedule can be
//! shorter. The column `greedy` is what a scheduler without any cost of communication gets that hands out the next test
//! in order of discovery. Without knowledge of durations there is nothing better, and both depend on luck: a test of
//! many times the mean that happens to be among the last to start makes the run as much longer. How often that happens
//! is a matter of the durations alone. So unknown log-normal durations with sigma 0.8 have no limit; a second table
//! compares means over many seeds instead, on a fifth of the tests and sandboxes. Exit code 1 if a limit is missed.

#![allow(clippy::expect_used, clippy::panic, reason = "a simulation that cannot go on has shown a bug")]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::process::{Command, ExitCode};
use std::time::Duration;

use offload_core::orchestrator::scheduler::{
    Action, Feed, SandboxIndex, Scheduler, SchedulerConfig, TestIndex, TestSpec, Verdict,
};

/// Limits: makespan over bound with known and unknown durations, microseconds and bytes per test.
const KNOWN: f64 = 1.05;
const UNKNOWN: f64 = 1.25;
const MICROSECONDS: f64 = 10.0;
const BYTES: f64 = 1000.0;

/// Runs of the second table, and how far above the mean of the greedy scheduler ours may be.
const SEEDS: u64 = 40;
const GREEDY: f64 = 1.02;

/// How long tests last.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Durations {
    /// Uniform, 10 to 100 ms.
    Light,
    /// Log-normal, median 50 ms. With sigma 0.6 the slowest percent take four times the median, with 0.8 six times.
    Skewed { sigma: f64 },
    /// Pareto, at least 20 ms, alpha 1.5: the variance is infinite.
    HeavyTailed,
}

const ALL: [(&str, Durations); 4] = [
    ("light", Durations::Light),
    ("skewed, 0.6", Durations::Skewed { sigma: 0.6 }),
    ("skewed, 0.8", Durations::Skewed { sigma: 0.8 }),
    ("heavy-tailed", Durations::HeavyTailed),
];

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In (0, 1].
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    fn duration(&mut self, durations: Durations) -> Duration {
        let seconds = match durations {
            Durations::Light => 0.010 + 0.090 * self.unit(),
            Durations::Skewed { sigma } => {
                let normal = (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
                0.050 * (sigma * normal).exp()
            }
            Durations::HeavyTailed => 0.020 * self.unit().powf(-1.0 / 1.5),
        };
        Duration::from_secs_f64(seconds)
    }
}

/// One simulated run.
#[derive(Debug, Clone)]
struct Row {
    name: String,
    durations: Durations,
    known: bool,
    tests: u32,
    sandboxes: usize,
    round_trip: Duration,
}

impl Row {
    /// The longest makespan over the bound.
    fn limit(&self) -> Option<f64> {
        match self.durations {
            _ if self.known => Some(KNOWN),
            Durations::Skewed { sigma } if sigma > 0.6 => None,
            _ => Some(UNKNOWN),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Ready(u32),
    Arrives { sandbox: u32, test: u32 },
    TakeBackArrives { sandbox: u32, test: u32 },
    Ends { sandbox: u32 },
    StartedHeard { sandbox: u32, test: u32 },
    FinishedHeard { sandbox: u32, test: u32 },
    TakenBackHeard { sandbox: u32, test: u32 },
}

#[derive(Default)]
struct Sandbox {
    running: Option<u32>,
    queue: VecDeque<u32>,
}

struct World {
    durations: Vec<Duration>,
    round_trip: Duration,
    sandboxes: Vec<Sandbox>,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    sequence: u64,
}

impl World {
    fn at(&mut self, when: Duration, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((when, self.sequence, event)));
    }

    fn start_next(&mut self, sandbox: u32, now: Duration) {
        let state = &mut self.sandboxes[sandbox as usize];
        if state.running.is_none()
            && let Some(test) = state.queue.pop_front()
        {
            state.running = Some(test);
            self.at(now + self.durations[test as usize], Event::Ends { sandbox });
            self.at(now + self.round_trip / 2, Event::StartedHeard { sandbox, test });
        }
    }

    fn act(&mut self, action: Action, now: Duration) {
        let there = now + self.round_trip / 2;
        match action {
            Action::CreateSandbox(sandbox) => {
                self.sandboxes.resize_with(self.sandboxes.len().max(sandbox.0 as usize + 1), Sandbox::default);
                self.at(now, Event::Ready(sandbox.0));
            }
            Action::Assign { sandbox, tests } => {
                for assignment in tests {
                    self.at(there, Event::Arrives { sandbox: sandbox.0, test: assignment.test.0 });
                }
            }
            Action::TakeBack { sandbox, tests } => {
                for test in tests {
                    self.at(there, Event::TakeBackArrives { sandbox: sandbox.0, test: test.0 });
                }
            }
            _ => {}
        }
    }

    /// Lets something happen in a sandbox, or tells the scheduler what it hears.
    fn happen(&mut self, event: Event, scheduler: &mut Scheduler, now: Duration) {
        let heard = now + self.round_trip / 2;
        match event {
            Event::Ready(sandbox) => scheduler.sandbox_ready(SandboxIndex(sandbox), self.round_trip, now),
            Event::Arrives { sandbox, test } => {
                self.sandboxes[sandbox as usize].queue.push_back(test);
                self.start_next(sandbox, now);
            }
            Event::TakeBackArrives { sandbox, test } => {
                let queue = &mut self.sandboxes[sandbox as usize].queue;
                if let Some(position) = queue.iter().position(|&queued| queued == test) {
                    queue.remove(position);
                    self.at(heard, Event::TakenBackHeard { sandbox, test });
                }
            }
            Event::Ends { sandbox } => {
                if let Some(test) = self.sandboxes[sandbox as usize].running.take() {
                    self.at(heard, Event::FinishedHeard { sandbox, test });
                }
                self.start_next(sandbox, now);
            }
            Event::StartedHeard { sandbox, test } => scheduler.started(SandboxIndex(sandbox), TestIndex(test), now),
            Event::FinishedHeard { sandbox, test } => {
                scheduler.finished(SandboxIndex(sandbox), TestIndex(test), Verdict::Passed, now);
            }
            Event::TakenBackHeard { sandbox, test } => {
                scheduler.taken_back(SandboxIndex(sandbox), &[TestIndex(test)], now);
            }
        }
    }
}

/// What a run came to.
struct Figures {
    ratio: f64,
    greedy: f64,
    created: usize,
    microseconds: f64,
    bytes: f64,
}

fn simulate(row: &Row, seed: u64) -> Figures {
    let mut random = Random(seed);
    let durations: Vec<Duration> = (0..row.tests).map(|_| random.duration(row.durations)).collect();
    let greedy = greedy(&durations, row.sandboxes).as_secs_f64();
    let (cpu_before, memory_before) = (cpu(), memory());
    let total: Duration = durations.iter().sum();
    let longest = durations.iter().max().copied().unwrap_or_default();
    let bound = (total.as_secs_f64() / row.sandboxes as f64).max(longest.as_secs_f64());

    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_sandboxes: row.sandboxes,
        max_fail: None,
        hedge: false,
        feed: Feed::Stream,
        default_duration: Duration::from_secs(1),
    });
    for (index, &duration) in (0..).zip(&durations) {
        scheduler.add_test(TestSpec {
            suite: index / 50,
            expected: row.known.then_some(duration),
            ..TestSpec::default()
        });
    }
    scheduler.discovery_finished();
    let mut world =
        World { durations, round_trip: row.round_trip, sandboxes: Vec::new(), events: BinaryHeap::new(), sequence: 0 };
    let mut now = Duration::ZERO;
    loop {
        while let Some(action) = scheduler.next_action(now) {
            world.act(action, now);
        }
        if scheduler.is_done() {
            break;
        }
        let next = world.events.peek().map(|Reverse((when, ..))| *when);
        match (next, scheduler.next_wakeup()) {
            (Some(next), Some(wakeup)) if wakeup < next => now = wakeup,
            (None, Some(wakeup)) => now = wakeup,
            (None, None) => panic!("nothing will ever happen, and the run is not done"),
            (Some(_), _) => {
                if let Some(Reverse((when, _, event))) = world.events.pop() {
                    now = when;
                    world.happen(event, &mut scheduler, now);
                }
            }
        }
    }
    Figures {
        greedy: greedy / bound,
        ratio: now.as_secs_f64() / bound,
        created: world.sandboxes.len(),
        microseconds: (cpu() - cpu_before).as_secs_f64() * 1e6 / f64::from(row.tests),
        bytes: memory().saturating_sub(memory_before) as f64 / f64::from(row.tests),
    }
}

/// The makespan of handing each test to whichever sandbox is free first.
fn greedy(durations: &[Duration], sandboxes: usize) -> Duration {
    let mut free: BinaryHeap<Reverse<Duration>> = (0..sandboxes).map(|_| Reverse(Duration::ZERO)).collect();
    for duration in durations {
        let Reverse(at) = free.pop().unwrap_or_default();
        free.push(Reverse(at + *duration));
    }
    free.into_iter().map(|Reverse(at)| at).max().unwrap_or_default()
}

/// Prints means over many seeds for durations that are skewed and unknown; whether ours is as good as greedy's.
fn compare_with_greedy(rows: &[Row]) -> bool {
    println!("\n{:<13} {:>9} {:>10} {:>10} {:>7}", "mean", "tests", "sandboxes", "span/bound", "greedy");
    let mut all_good = true;
    // The round trip of the first rows will do.
    let unknown = rows[..ALL.len() * 2].iter().filter(|row| !row.known);
    for row in unknown.filter(|row| matches!(row.durations, Durations::Skewed { .. })) {
        let row = Row { tests: row.tests / 5, sandboxes: (row.sandboxes / 5).max(1), ..row.clone() };
        let runs: Vec<Figures> = (1..=SEEDS).map(|seed| simulate(&row, seed)).collect();
        let mean = |of: fn(&Figures) -> f64| runs.iter().map(of).sum::<f64>() / SEEDS as f64;
        let (ours, greedy) = (mean(|run| run.ratio), mean(|run| run.greedy));
        let good = ours <= greedy * GREEDY;
        let (tests, sandboxes) = (row.tests, row.sandboxes);
        println!(
            "{:<13} {tests:>9} {sandboxes:>10} {ours:>10.4} {greedy:>7.3}  {}",
            row.name,
            if good { "ok" } else { "MISSED" }
        );
        all_good &= good;
    }
    all_good
}

/// CPU time of this process's only thread.
fn cpu() -> Duration {
    let nanoseconds = std::fs::read_to_string("/proc/self/schedstat")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    Duration::from_nanos(nanoseconds)
}

/// The most memory that this process has ever had, in bytes.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|peak| peak.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn rows(tests: u32, sandboxes: usize) -> Vec<Row> {
    let mut rows = Vec::new();
    for round_trip in [Duration::from_micros(100), Duration::from_millis(1)] {
        for (name, durations) in ALL {
            for known in [true, false] {
                rows.push(Row { name: name.to_owned(), durations, known, tests, sandboxes, round_trip });
            }
        }
    }
    rows
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |index: usize, default: u32| arguments.get(index).and_then(|text| text.parse().ok()).unwrap_or(default);
    let rows = rows(number(0, 1_000_000), number(1, 10_000) as usize);
    // One row, in a process of its own.
    if let Some(row) = arguments.get(2).and_then(|index| rows.get(index.parse::<usize>().ok()?)) {
        let figures = simulate(row, 42);
        let limit = row.limit();
        let good = limit.is_none_or(|limit| figures.ratio <= limit)
            && figures.microseconds < MICROSECONDS
            && figures.bytes < BYTES;
        println!(
            "{:<13} {:<8} {:>8.1} ms {:>9} {:>10} {:>10.4} {:>7} {:>7.3} {:>10.2} {:>10.0}  {}",
            row.name,
            if row.known { "known" } else { "unknown" },
            row.round_trip.as_secs_f64() * 1e3,
            row.tests,
            figures.created,
            figures.ratio,
            limit.map_or_else(|| "-".to_owned(), |limit| format!("{limit:.2}")),
            figures.greedy,
            figures.microseconds,
            figures.bytes,
            if good { "ok" } else { "MISSED" }
        );
        return if good { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    println!(
        "{:<13} {:<8} {:>11} {:>9} {:>10} {:>10} {:>7} {:>7} {:>10} {:>10}",
        "durations", "", "round trip", "tests", "sandboxes", "span/bound", "limit", "greedy", "us/test", "bytes/test"
    );
    let program = std::env::current_exe().expect("the running program has a path");
    let mut all_good = true;
    for (index, row) in rows.iter().enumerate() {
        let arguments = [row.tests.to_string(), row.sandboxes.to_string(), index.to_string()];
        let status = Command::new(&program).args(arguments).status().expect("this program can be started");
        all_good &= status.success();
    }
    all_good &= compare_with_greedy(&rows);
    if all_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
