//! The scheduler against a simulated world of arbitrary tests, delays, failures and losses: whatever happens, each test
//! gets one outcome, nothing runs twice at the same time unless hedged, and the run ends.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod plans;
mod world;

use std::time::Duration;

use proptest::prelude::*;

use offload_core::orchestrator::scheduler::{Feed, SchedulerConfig, TestSpec};
use plans::{Plan, RunsOn, SandboxPlan, TestPlan, calm_plan, plan};
use world::World;

/// The bound that holds for any list schedule, and its parts.
fn list_bound(plan: &Plan) -> (Duration, Duration) {
    let total: Duration = plan.tests.iter().map(|test| test.duration).sum();
    let longest = plan.tests.iter().map(|test| test.duration).max().unwrap_or_default();
    (total / u32::try_from(plan.config.max_sandboxes).expect("small"), longest)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_test_gets_one_outcome_whatever_happens(plan in plan()) {
        World::new(&plan).run();
    }

    #[test]
    fn known_durations_keep_to_the_bound_of_list_scheduling(plan in calm_plan(true)) {
        let (share, longest) = list_bound(&plan);
        let span = World::new(&plan).run();
        let slack = plan.sandboxes[0].round_trip * 4;
        prop_assert!(span <= share + longest + slack, "{span:?} > {share:?} + {longest:?} + {slack:?}");
    }

    #[test]
    fn unknown_durations_keep_close_to_it(plan in calm_plan(false)) {
        let (share, longest) = list_bound(&plan);
        let span = World::new(&plan).run();
        // A test that was queued behind one that turned out to be long is taken back only when that shows.
        let slack = plan.sandboxes[0].round_trip * 6 + longest / 2;
        prop_assert!(span <= share + longest + slack, "{span:?} > {share:?} + {longest:?} + {slack:?}");
    }
}

/// Found once in some ten thousand runs: an attempt that is forgotten leaves the number of the attempt as it was.
#[test]
fn a_test_that_is_repeated_after_discovery_may_be_hedged_again() {
    let millis = Duration::from_millis;
    let test = |provisional: bool, duration| TestPlan {
        spec: TestSpec { expected: Some(millis(400)), ..TestSpec::default() },
        duration,
        found: Duration::ZERO,
        failures: vec![provisional],
        poison: false,
        silent: false,
        provisional,
        runs_on: RunsOn::All,
    };
    let sandbox =
        SandboxPlan { creation: Duration::ZERO, created: true, round_trip: Duration::ZERO, dies: None, refuses: false };
    let config = SchedulerConfig {
        max_sandboxes: 2,
        max_fail: None,
        hedge: true,
        feed: Feed::Stream,
        default_duration: millis(400),
    };
    let plan = Plan {
        config,
        tests: vec![test(true, millis(1500)), test(false, millis(400))],
        sandboxes: vec![sandbox],
        discovery_ends: millis(2000),
        stop: None,
        nonsense: Vec::new(),
    };
    let mut world = World::new(&plan);
    world.run();
    assert_eq!(world.hedges, 2);
}
