//! What is to happen in a simulated world: which tests, sandboxes, failures, losses and delays there are.

use std::time::Duration;

use offload_core::orchestrator::scheduler::{Feed, SandboxIndex, SchedulerConfig, TestSpec};
use proptest::prelude::*;

#[derive(Debug, Clone)]
pub struct TestPlan {
    pub spec: TestSpec,
    pub duration: Duration,
    /// When discovery finds it.
    pub found: Duration,
    /// How its attempts end, one after the other; passed after that.
    pub failures: Vec<bool>,
    /// Kills the sandbox that runs it.
    pub poison: bool,
    /// The worker forgets to say that it started.
    pub silent: bool,
    /// What it was given before discovery ended is forgotten.
    pub provisional: bool,
    /// Who can run it, if not all sandboxes can.
    pub runs_on: RunsOn,
}

/// Which sandboxes can run a test. Others refuse it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunsOn {
    All,
    /// The one that [`TestSpec::home`] names.
    Home,
    None,
}

#[derive(Debug, Clone)]
pub struct SandboxPlan {
    pub creation: Duration,
    pub created: bool,
    pub round_trip: Duration,
    /// Dies this long after it was ready.
    pub dies: Option<Duration>,
    /// Gives back whatever it is given.
    pub refuses: bool,
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub config: SchedulerConfig,
    pub tests: Vec<TestPlan>,
    /// By number of the sandbox, over and over.
    pub sandboxes: Vec<SandboxPlan>,
    pub discovery_ends: Duration,
    pub stop: Option<Duration>,
    /// Facts that make no sense: sandbox, test, kind, time.
    pub nonsense: Vec<(u32, u32, u8, Duration)>,
}

fn millis(range: std::ops::Range<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_millis)
}

fn test_plan() -> impl Strategy<Value = TestPlan> {
    let spec =
        (0..5u32, prop::option::of(millis(0..3000)), 0..3u32, prop::bool::weighted(0.1), prop::option::of(0..6u32))
            .prop_map(|(suite, expected, retries, alone, home)| TestSpec {
                suite,
                expected,
                retries,
                alone,
                together: suite == 4,
                home: home.map(SandboxIndex),
            });
    let failures = prop::collection::vec(prop::bool::weighted(0.4), 0..4);
    let provisional = prop::bool::weighted(0.3);
    let runs_on = prop_oneof![8 => Just(RunsOn::All), 2 => Just(RunsOn::Home), 1 => Just(RunsOn::None)];
    let rest = (provisional, runs_on);
    (spec, millis(0..5000), millis(0..4000), failures, prop::bool::weighted(0.02), prop::bool::weighted(0.1), rest)
        .prop_map(|(spec, duration, found, failures, poison, silent, (provisional, runs_on))| TestPlan {
            spec,
            duration,
            found,
            failures,
            poison,
            silent,
            provisional,
            runs_on,
        })
}

fn sandbox_plan() -> impl Strategy<Value = SandboxPlan> {
    let dies = prop::option::weighted(0.2, millis(0..8000));
    (millis(0..3000), prop::bool::weighted(0.9), millis(0..200), dies, prop::bool::weighted(0.05)).prop_map(
        |(creation, created, round_trip, dies, refuses)| SandboxPlan { creation, created, round_trip, dies, refuses },
    )
}

fn config() -> impl Strategy<Value = SchedulerConfig> {
    let feed = prop_oneof![
        2 => Just(Feed::Stream),
        1 => (1..10usize, any::<bool>(), proptest::option::of(1..2000u64)).prop_map(|(max, one_suite, longest)| {
            Feed::Batches { max, one_suite, longest: longest.map(Duration::from_millis) }
        }),
    ];
    (1..8usize, prop::option::weighted(0.2, 1..5usize), any::<bool>(), feed, millis(1..2000)).prop_map(
        |(max_sandboxes, max_fail, hedge, feed, default_duration)| SchedulerConfig {
            max_sandboxes,
            max_fail,
            hedge,
            feed,
            default_duration,
        },
    )
}

pub fn plan() -> impl Strategy<Value = Plan> {
    let nonsense = prop::collection::vec((0..12u32, 0..50u32, 0..4u8, millis(0..10_000)), 0..10);
    (
        config(),
        prop::collection::vec(test_plan(), 0..40),
        prop::collection::vec(sandbox_plan(), 1..12),
        millis(0..5000),
        prop::option::weighted(0.15, millis(0..10_000)),
        nonsense,
    )
        .prop_map(|(config, tests, sandboxes, discovery_ends, stop, nonsense)| Plan {
            config,
            tests,
            sandboxes,
            discovery_ends,
            stop,
            nonsense,
        })
}

/// Only tests and their durations matter: nothing breaks, everything is known at once.
pub fn calm_plan(known: bool) -> impl Strategy<Value = Plan> {
    let tests = prop::collection::vec((0..4u32, 1..2000u64), 1..40);
    (tests, 1..8usize, millis(0..60)).prop_map(move |(tests, max_sandboxes, round_trip)| Plan {
        config: SchedulerConfig {
            max_sandboxes,
            max_fail: None,
            hedge: false,
            feed: Feed::Stream,
            default_duration: Duration::from_secs(1),
        },
        tests: tests
            .into_iter()
            .map(|(suite, millis)| TestPlan {
                provisional: false,
                runs_on: RunsOn::All,
                spec: TestSpec {
                    suite,
                    expected: known.then_some(Duration::from_millis(millis)),
                    ..TestSpec::default()
                },
                duration: Duration::from_millis(millis),
                found: Duration::ZERO,
                failures: Vec::new(),
                poison: false,
                silent: false,
            })
            .collect(),
        sandboxes: vec![SandboxPlan {
            creation: Duration::ZERO,
            created: true,
            round_trip,
            dies: None,
            refuses: false,
        }],
        discovery_ends: Duration::ZERO,
        stop: None,
        nonsense: Vec::new(),
    })
}
