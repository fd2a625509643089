//! One behaviour a test; that nothing else ever happens is the business of `tests/scheduler_properties.rs`.

mod order;

use super::*;

const ROUND_TRIP: Duration = Duration::from_micros(100);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn config(max_sandboxes: usize) -> SchedulerConfig {
    SchedulerConfig { max_sandboxes, max_fail: None, hedge: false, feed: Feed::Stream, default_duration: ms(1000) }
}

fn lasting(millis: u64) -> TestSpec {
    TestSpec { expected: Some(ms(millis)), ..TestSpec::default() }
}

/// A scheduler with `specs`, all found.
fn scheduler(config: SchedulerConfig, specs: impl IntoIterator<Item = TestSpec>) -> Scheduler {
    let mut scheduler = Scheduler::new(config);
    for spec in specs {
        scheduler.add_test(spec);
    }
    scheduler.discovery_finished();
    scheduler
}

fn actions(scheduler: &mut Scheduler, now: u64) -> Vec<Action> {
    std::iter::from_fn(|| scheduler.next_action(ms(now))).collect()
}

/// How many sandboxes are created; they are ready at once, one after the other.
fn created(scheduler: &mut Scheduler, now: u64) -> usize {
    let created = actions(scheduler, now);
    assert!(created.iter().all(|action| matches!(action, Action::CreateSandbox(_))), "{created:?}");
    created.len()
}

fn ready(scheduler: &mut Scheduler, sandbox: u32, now: u64) -> Vec<Action> {
    scheduler.sandbox_ready(SandboxIndex(sandbox), ROUND_TRIP, ms(now));
    actions(scheduler, now)
}

fn start(scheduler: &mut Scheduler, sandbox: u32, test: u32, now: u64) -> Vec<Action> {
    scheduler.started(SandboxIndex(sandbox), TestIndex(test), ms(now));
    actions(scheduler, now)
}

fn finish(scheduler: &mut Scheduler, sandbox: u32, test: u32, verdict: Verdict, now: u64) -> Vec<Action> {
    assert!(scheduler.finished(SandboxIndex(sandbox), TestIndex(test), verdict, ms(now)), "{test} was awaited");
    actions(scheduler, now)
}

fn lose(scheduler: &mut Scheduler, sandbox: u32, now: u64) -> Vec<Action> {
    scheduler.sandbox_lost(SandboxIndex(sandbox), ms(now));
    actions(scheduler, now)
}

/// Which tests go to `sandbox`, as first attempts if `attempt` is 1.
fn assign(sandbox: u32, attempt: u32, tests: impl IntoIterator<Item = u32>) -> Action {
    let tests = tests.into_iter().map(|test| Assignment { test: TestIndex(test), attempt }).collect();
    Action::Assign { sandbox: SandboxIndex(sandbox), tests }
}

fn take_back(sandbox: u32, tests: impl IntoIterator<Item = u32>) -> Action {
    Action::TakeBack { sandbox: SandboxIndex(sandbox), tests: tests.into_iter().map(TestIndex).collect() }
}

fn settle(test: u32) -> Action {
    Action::Settle(TestIndex(test))
}

fn create(sandbox: u32) -> Action {
    Action::CreateSandbox(SandboxIndex(sandbox))
}

fn release(sandbox: u32) -> Action {
    Action::Release(SandboxIndex(sandbox))
}

#[test]
fn three_tests_never_start_forty_sandboxes() {
    let mut run = scheduler(config(40), [TestSpec::default(); 3]);
    assert_eq!(created(&mut run, 0), 3);
    assert_eq!(ready(&mut run, 1, 0), [assign(1, 1, [0])], "the others will have one each");
}

#[test]
fn a_suite_that_runs_together_takes_one_sandbox_and_is_not_torn_apart() {
    let doctest = |millis| TestSpec { suite: 1, together: true, retries: 1, ..lasting(millis) };
    let mut run = scheduler(config(40), std::iter::repeat_n(doctest(40), 100).chain([lasting(100)]));
    assert_eq!(created(&mut run, 0), 2, "one test and one suite");
    assert_eq!(ready(&mut run, 0, 0), [assign(0, 1, 0..100)], "the suite as a whole is the longest");
    assert_eq!(ready(&mut run, 1, 0), [assign(1, 1, [100])]);
    assert_eq!(finish(&mut run, 1, 100, Verdict::Passed, 100), [settle(100)], "nothing is taken back for it");
    let retry = Action::Retry { test: TestIndex(7), attempts_left: 1 };
    assert_eq!(finish(&mut run, 0, 7, Verdict::Failed, 200), [retry, assign(1, 2, [7])], "a retry goes by itself");
}

#[test]
fn a_suite_that_runs_together_waits_for_an_empty_sandbox() {
    let doctest = TestSpec { suite: 1, together: true, ..lasting(1) };
    let mut run = scheduler(config(1), [lasting(100), doctest, doctest]);
    created(&mut run, 0);
    assert_eq!(ready(&mut run, 0, 0), [assign(0, 1, [0])]);
    assert_eq!(start(&mut run, 0, 0, 0), []);
    assert_eq!(finish(&mut run, 0, 0, Verdict::Passed, 100), [settle(0), assign(0, 1, [1, 2])]);
}

#[test]
fn no_sandboxes_are_created_that_cannot_shorten_the_run() {
    let mut run = scheduler(config(40), [lasting(100)].into_iter().chain([lasting(5); 30]));
    assert_eq!(created(&mut run, 0), 5, "2 × 250 ms of work in 100 ms");
}

#[test]
fn no_sandboxes_are_created_when_that_takes_longer_than_all_that_is_left() {
    let mut run = Scheduler::new(config(40));
    run.add_test(lasting(50));
    assert_eq!(created(&mut run, 0), 1);
    ready(&mut run, 0, 10_000);
    for _ in 0..20 {
        run.add_test(lasting(50));
    }
    assert!(!actions(&mut run, 10_000).iter().any(|action| matches!(action, Action::CreateSandbox(_))));
}

#[test]
fn the_longest_test_goes_first_and_neighbours_follow() {
    let specs = (0..40).map(|test| TestSpec { suite: test / 10, ..lasting(if test == 25 { 2000 } else { 50 }) });
    let mut run = scheduler(config(2), specs);
    assert_eq!(created(&mut run, 0), 2);
    assert_eq!(ready(&mut run, 0, 0), [assign(0, 1, [25])]);
    assert_eq!(ready(&mut run, 1, 0), [assign(1, 1, [0, 1])], "a suite where nobody is");
    start(&mut run, 1, 0, 0);
    for test in 0..8 {
        start(&mut run, 1, test + 1, 50);
        assert_eq!(finish(&mut run, 1, test, Verdict::Passed, 50), [settle(test)]);
        assert_eq!(actions(&mut run, 50), []);
        run.started(SandboxIndex(1), TestIndex(test + 1), ms(50));
    }
}

#[test]
fn a_long_round_trip_is_bridged_by_queued_tests() {
    let mut run = scheduler(config(2), [lasting(10); 1000]);
    assert_eq!(created(&mut run, 0), 2);
    run.sandbox_ready(SandboxIndex(0), ms(50), ms(0));
    let [Action::Assign { tests, .. }] = &actions(&mut run, 0)[..] else { panic!("one assignment") };
    assert!((10..=20).contains(&tests.len()), "two round trips' worth: {}", tests.len());
}

#[test]
fn an_idle_sandbox_gets_what_waits_elsewhere() {
    let mut run = Scheduler::new(config(2));
    for _ in 0..4 {
        run.add_test(lasting(100));
    }
    assert_eq!(created(&mut run, 0), 2);
    assert_eq!(ready(&mut run, 0, 0), [assign(0, 1, [0, 1])]);
    assert_eq!(ready(&mut run, 1, 0), [assign(1, 1, [2, 3])]);
    start(&mut run, 0, 0, 0);
    start(&mut run, 1, 2, 0);
    start(&mut run, 1, 3, 10);
    assert_eq!(finish(&mut run, 1, 2, Verdict::Passed, 10), [settle(2)]);
    assert_eq!(finish(&mut run, 1, 3, Verdict::Passed, 20), [settle(3), take_back(0, [1])]);
    run.taken_back(SandboxIndex(0), &[TestIndex(1)], ms(20));
    assert_eq!(actions(&mut run, 20), [assign(1, 1, [1])]);
}

#[test]
fn what_waits_behind_a_stuck_test_is_taken_back_when_that_shows() {
    let mut run = scheduler(config(2), [lasting(20), lasting(10), lasting(10)]);
    assert_eq!(created(&mut run, 0), 2);
    run.sandbox_ready(SandboxIndex(0), ms(20), ms(0));
    run.sandbox_ready(SandboxIndex(1), ms(20), ms(0));
    assert_eq!(actions(&mut run, 0), [assign(0, 1, [0]), assign(1, 1, [1, 2])]);
    start(&mut run, 0, 0, 0);
    start(&mut run, 1, 1, 0);
    assert_eq!(finish(&mut run, 0, 0, Verdict::Passed, 5), [settle(0)], "test 2 should begin before it could be here");
    assert_eq!(run.next_wakeup(), Some(ms(20)));
    assert_eq!(actions(&mut run, 20), [take_back(1, [2])]);
}

#[test]
fn a_retry_runs_on_another_sandbox() {
    let mut run = scheduler(config(2), [TestSpec { retries: 1, ..lasting(100) }, lasting(100)]);
    assert_eq!(created(&mut run, 0), 2);
    ready(&mut run, 0, 0);
    ready(&mut run, 1, 0);
    start(&mut run, 0, 0, 0);
    start(&mut run, 1, 1, 0);
    let retry = Action::Retry { test: TestIndex(0), attempts_left: 1 };
    assert_eq!(finish(&mut run, 0, 0, Verdict::Failed, 50), [retry], "sandbox 1 is free soon");
    assert_eq!(finish(&mut run, 1, 1, Verdict::Passed, 100), [settle(1), assign(1, 2, [0]), release(0)]);
    assert_eq!(finish(&mut run, 1, 0, Verdict::Failed, 100), [settle(0), release(1)]);
    assert!(run.is_done());
}

#[test]
fn a_retry_does_not_wait_for_ever_for_another_sandbox() {
    let mut run = scheduler(config(2), [TestSpec { retries: 1, ..lasting(60_000) }, lasting(60_000)]);
    assert_eq!(created(&mut run, 0), 2);
    ready(&mut run, 0, 0);
    ready(&mut run, 1, 0);
    start(&mut run, 0, 0, 0);
    start(&mut run, 1, 1, 0);
    let retry = Action::Retry { test: TestIndex(0), attempts_left: 1 };
    assert_eq!(finish(&mut run, 0, 0, Verdict::Failed, 50), [retry]);
    assert_eq!(run.next_wakeup(), Some(ms(1050)));
    assert_eq!(actions(&mut run, 1049), []);
    assert_eq!(actions(&mut run, 1050), [assign(0, 2, [0])]);
}

#[test]
fn a_retry_does_not_go_round_in_circles() {
    let mut run = scheduler(config(2), [TestSpec { retries: 1, ..lasting(100) }, lasting(1000)]);
    assert_eq!(created(&mut run, 0), 2);
    run.sandbox_ready(SandboxIndex(0), ROUND_TRIP, ms(0));
    run.sandbox_ready(SandboxIndex(1), ROUND_TRIP, ms(0));
    assert_eq!(actions(&mut run, 0), [assign(0, 1, [1]), assign(1, 1, [0])]);
    start(&mut run, 0, 1, 0);
    start(&mut run, 1, 0, 0);
    let retry = Action::Retry { test: TestIndex(0), attempts_left: 1 };
    let after = finish(&mut run, 1, 0, Verdict::Failed, 1100);
    assert_eq!(after, [retry, assign(0, 2, [0])], "behind a test that is late, and not back to where it failed");
}

#[test]
fn a_second_sandbox_is_created_for_a_retry_if_there_may_be_one() {
    let retry = Action::Retry { test: TestIndex(0), attempts_left: 1 };
    for (max, next) in [(1, assign(0, 2, [0])), (2, create(1))] {
        let mut run = scheduler(config(max), [TestSpec { retries: 1, ..lasting(100) }]);
        assert_eq!(created(&mut run, 0), 1);
        ready(&mut run, 0, 0);
        assert_eq!(finish(&mut run, 0, 0, Verdict::Failed, 50), [retry.clone(), next]);
    }
}

#[test]
fn what_is_forgotten_is_repeated_after_the_build() {
    for verdict in [Verdict::Passed, Verdict::Failed] {
        let mut run = Scheduler::new(config(1));
        run.add_test(lasting(10));
        assert_eq!(created(&mut run, 0), 1);
        ready(&mut run, 0, 0);
        run.forgotten(SandboxIndex(0), TestIndex(0), verdict, ms(10));
        assert_eq!(actions(&mut run, 10), [Action::Repeat(TestIndex(0))]);
        run.discovery_finished();
        assert_eq!(actions(&mut run, 20), [assign(0, 1, [0])]);
        // It may have been started before the build ended.
        run.forgotten(SandboxIndex(0), TestIndex(0), verdict, ms(30));
        assert_eq!(actions(&mut run, 30), [Action::Repeat(TestIndex(0)), assign(0, 1, [0])]);
        assert_eq!(finish(&mut run, 0, 0, verdict, 40), [settle(0), release(0)], "this one counts");
    }
}

#[test]
fn the_slower_copy_of_a_hedged_test_is_cancelled_and_ignored() {
    let mut run = scheduler(SchedulerConfig { hedge: true, ..config(2) }, [lasting(1000), lasting(1000)]);
    assert_eq!(created(&mut run, 0), 2);
    ready(&mut run, 0, 0);
    ready(&mut run, 1, 0);
    start(&mut run, 0, 0, 0);
    start(&mut run, 1, 1, 0);
    assert_eq!(finish(&mut run, 1, 1, Verdict::Passed, 1000), [settle(1)]);
    assert_eq!(run.next_wakeup(), Some(ms(2000)));
    assert_eq!(actions(&mut run, 2000), [assign(1, 1, [0])]);
    start(&mut run, 1, 0, 2000);
    let cancel = Action::Cancel { sandbox: SandboxIndex(0), test: TestIndex(0) };
    assert_eq!(finish(&mut run, 1, 0, Verdict::Passed, 3000), [cancel, settle(0), release(1)]);
    assert!(run.is_done());
    assert!(!run.finished(SandboxIndex(0), TestIndex(0), Verdict::Failed, ms(3000)));
    assert_eq!(actions(&mut run, 3000), [release(0)]);
}

#[test]
fn a_retry_of_a_hedged_test_waits_until_the_cancelled_copy_has_ended() {
    let spec = TestSpec { retries: 1, ..lasting(1000) };
    let mut run = scheduler(SchedulerConfig { hedge: true, ..config(3) }, [spec, lasting(1000), lasting(1000)]);
    assert_eq!(created(&mut run, 0), 3);
    (0..3).for_each(|sandbox| drop(ready(&mut run, sandbox, 0)));
    (0..3).for_each(|test| drop(start(&mut run, test, test, 0)));
    finish(&mut run, 1, 1, Verdict::Passed, 1000);
    finish(&mut run, 2, 2, Verdict::Passed, 1000);
    assert_eq!(actions(&mut run, 2000), [assign(1, 1, [0])]);
    let cancel = Action::Cancel { sandbox: SandboxIndex(0), test: TestIndex(0) };
    let retry = Action::Retry { test: TestIndex(0), attempts_left: 1 };
    let after = finish(&mut run, 1, 0, Verdict::Failed, 2500);
    assert_eq!(after[..2], [cancel, retry]);
    assert!(!after.iter().any(|action| matches!(action, Action::Assign { .. })), "{after:?}");
    run.taken_back(SandboxIndex(0), &[TestIndex(0)], ms(2600));
    assert_eq!(actions(&mut run, 2600)[0], assign(0, 2, [0]));
}

#[test]
fn a_test_that_is_lost_three_times_while_it_runs_is_given_up() {
    let mut run = scheduler(config(1), [lasting(100)]);
    for sandbox in 0..3 {
        assert!(actions(&mut run, 0).ends_with(&[create(sandbox)]) || sandbox > 0);
        assert_eq!(ready(&mut run, sandbox, 0), [assign(sandbox, 1, [0])]);
        start(&mut run, sandbox, 0, 0);
        let expected = if sandbox < 2 { create(sandbox + 1) } else { Action::GiveUp(TestIndex(0)) };
        assert_eq!(lose(&mut run, sandbox, 0), [expected]);
    }
    assert!(run.is_done());
}

#[test]
fn the_run_is_aborted_when_no_sandbox_can_be_created() {
    let mut run = scheduler(config(1), [lasting(100); 2]);
    assert_eq!(created(&mut run, 0), 1);
    for sandbox in 0..3 {
        assert_eq!(lose(&mut run, sandbox, 0), [create(sandbox + 1)]);
    }
    assert_eq!(lose(&mut run, 3, 0), [Action::Abort]);
    assert_eq!(run.unsettled().count(), 2);
    assert!(run.is_done());
}

#[test]
fn the_run_goes_on_with_the_sandboxes_that_could_be_created() {
    let mut run = scheduler(config(40), [lasting(1000); 400]);
    assert_eq!(created(&mut run, 0), 40);
    for sandbox in 10..40 {
        assert!(lose(&mut run, sandbox, 0).iter().all(|action| matches!(action, Action::CreateSandbox(_))));
    }
    let mut replaced = 40;
    while run.sandboxes.live() > 10 {
        lose(&mut run, replaced, 0);
        replaced += 1;
    }
    assert!(replaced < 50, "one does not go on trying");
    let next = ready(&mut run, 0, 0);
    assert!(matches!(next[..], [Action::CreateSandbox(_), Action::Assign { .. }]), "{next:?}");
}

#[test]
fn a_sandbox_that_refuses_tests_is_replaced() {
    let mut run = scheduler(config(1), [lasting(100)]);
    assert_eq!(created(&mut run, 0), 1);
    let mut last = ready(&mut run, 0, 0);
    for _ in 0..3 {
        assert_eq!(last, [assign(0, 1, [0])]);
        run.taken_back(SandboxIndex(0), &[TestIndex(0)], ms(0));
        last = actions(&mut run, 0);
    }
    assert_eq!(last, [release(0), create(1)]);
}

#[test]
fn after_max_fail_nothing_is_started_and_what_waits_comes_back() {
    let spec = TestSpec { retries: 1, ..lasting(10) };
    let mut run = scheduler(SchedulerConfig { max_fail: Some(1), ..config(1) }, [lasting(100), spec, spec]);
    assert_eq!(created(&mut run, 0), 1);
    assert_eq!(ready(&mut run, 0, 0), [assign(0, 1, [0, 1])]);
    assert_eq!(start(&mut run, 0, 0, 0), []);
    assert_eq!(finish(&mut run, 0, 0, Verdict::Failed, 10), [settle(0), Action::MaxFailReached, take_back(0, [1])]);
    assert!(!run.is_done());
    run.taken_back(SandboxIndex(0), &[TestIndex(1)], ms(10));
    assert_eq!(actions(&mut run, 10), [release(0)]);
    assert!(run.is_done());
    assert_eq!(run.unsettled().collect::<Vec<_>>(), [TestIndex(1), TestIndex(2)]);
}

#[test]
fn after_max_fail_the_rest_of_a_batch_comes_back() {
    let feed = Feed::Batches { max: 10, one_suite: true, longest: None };
    let config = SchedulerConfig { max_fail: Some(1), feed, ..config(1) };
    let mut run = scheduler(config, [lasting(10); 6]);
    assert_eq!(created(&mut run, 0), 1);
    assert_eq!(ready(&mut run, 0, 0), [assign(0, 1, [0, 1, 2])]);
    assert_eq!(start(&mut run, 0, 0, 0), []);
    assert_eq!(finish(&mut run, 0, 0, Verdict::Failed, 10), [settle(0), Action::MaxFailReached, take_back(0, [1, 2])]);
    // It had started by then, and was ended.
    assert_eq!(start(&mut run, 0, 1, 10), []);
    run.taken_back(SandboxIndex(0), &[TestIndex(1), TestIndex(2)], ms(11));
    assert_eq!(actions(&mut run, 11), [release(0)]);
    assert!(run.is_done());
    assert_eq!(run.unsettled().count(), 5);
}

#[test]
fn nothing_is_started_after_the_last_test_that_is_wanted() {
    let mut run = scheduler(config(2), [lasting(100); 12]);
    assert_eq!(created(&mut run, 0), 2);
    assert_eq!(ready(&mut run, 0, 0), [assign(0, 1, [0, 1])]);
    assert_eq!(ready(&mut run, 1, 0), [assign(1, 1, [2, 3])]);
    for (sandbox, test) in [(0, 0), (1, 2)] {
        assert_eq!(start(&mut run, sandbox, test, 0), []);
    }
    run.stop_after(TestIndex(5));
    assert_eq!(actions(&mut run, 1), [], "what is queued comes before it");
    run.stop_after(TestIndex(2));
    assert_eq!(actions(&mut run, 2), [take_back(1, [3])]);
    run.stop_after(TestIndex(9));
    run.taken_back(SandboxIndex(1), &[TestIndex(3)], ms(3));
    assert_eq!(finish(&mut run, 1, 2, Verdict::Passed, 5)[0], settle(2));
    assert!(!run.is_done());
    assert_eq!(finish(&mut run, 0, 0, Verdict::Passed, 6)[0], settle(0));
    assert_eq!(start(&mut run, 0, 1, 6), [release(1)]);
    assert_eq!(finish(&mut run, 0, 1, Verdict::Passed, 7), [settle(1), release(0)]);
    assert!(run.is_done());
    assert_eq!(run.unsettled().map(|test| test.0).collect::<Vec<_>>(), (3..12).collect::<Vec<_>>());
}

#[test]
fn a_stop_asks_queued_tests_back_and_settles_what_waits_for_a_retry() {
    let spec = TestSpec { retries: 3, ..lasting(10) };
    let mut run = scheduler(config(1), [spec; 100]);
    assert_eq!(created(&mut run, 0), 1);
    assert_eq!(ready(&mut run, 0, 0), [assign(0, 1, [0, 1])]);
    assert_eq!(start(&mut run, 0, 0, 0), []);
    assert_eq!(start(&mut run, 0, 1, 5), [assign(0, 1, [2])]);
    assert_eq!(finish(&mut run, 0, 0, Verdict::Failed, 5).len(), 1);
    run.stop();
    assert_eq!(actions(&mut run, 6), [take_back(0, [2]), settle(0)]);
    run.taken_back(SandboxIndex(0), &[TestIndex(2)], ms(6));
    assert!(!run.is_done(), "a test is still running");
    assert_eq!(finish(&mut run, 0, 1, Verdict::Failed, 10), [settle(1), release(0)], "no retry any more");
    assert!(run.is_done());
}

#[test]
fn a_test_that_must_be_alone_is_alone() {
    let mut run = scheduler(config(2), [lasting(50), lasting(50), TestSpec { alone: true, ..lasting(80) }]);
    assert_eq!(created(&mut run, 0), 2);
    assert_eq!(ready(&mut run, 0, 0), [assign(0, 1, [2])]);
    assert_eq!(start(&mut run, 0, 2, 0), []);
    assert_eq!(finish(&mut run, 0, 2, Verdict::Passed, 80), [settle(2), assign(0, 1, [0])]);
}

#[test]
fn a_busy_sandbox_runs_dry_for_a_test_that_must_be_alone() {
    let mut run = Scheduler::new(config(2));
    for _ in 0..10 {
        run.add_test(lasting(50));
    }
    assert_eq!(created(&mut run, 0), 2);
    ready(&mut run, 0, 0);
    run.add_test(TestSpec { alone: true, ..lasting(500) });
    start(&mut run, 0, 0, 0);
    start(&mut run, 0, 1, 50);
    assert_eq!(finish(&mut run, 0, 0, Verdict::Passed, 50), [settle(0)]);
    assert_eq!(finish(&mut run, 0, 1, Verdict::Passed, 100), [settle(1), assign(0, 1, [10])]);
}

#[test]
fn unknown_tests_do_not_wait_for_the_end() {
    let unknown = TestSpec { suite: 1, ..TestSpec::default() };
    let mut run = scheduler(config(2), [lasting(100); 20].into_iter().chain([unknown]));
    assert_eq!(created(&mut run, 0), 2);
    assert_eq!(ready(&mut run, 0, 0)[0], assign(0, 1, [20, 0]));
}

#[test]
fn batches_are_of_one_suite_and_shrink_towards_the_end() {
    let feed = Feed::Batches { max: 50, one_suite: true, longest: None };
    let specs = (0..100).map(|test| TestSpec { suite: u32::from(test >= 90), ..lasting(10) });
    let mut run = scheduler(SchedulerConfig { feed, ..config(1) }, specs);
    assert_eq!(created(&mut run, 0), 1);
    let mut sizes = Vec::new();
    let mut last = ready(&mut run, 0, 0);
    while let Some(Action::Assign { tests, .. }) = last.pop() {
        sizes.push(tests.len());
        for assignment in tests {
            last = finish(&mut run, 0, assignment.test.0, Verdict::Passed, 0);
        }
    }
    assert_eq!(sizes.iter().sum::<usize>(), 100);
    assert_eq!(sizes[0], 50);
    assert!(sizes.ends_with(&[1]) && sizes.len() < 20, "{sizes:?}");
    assert!(run.is_done());
}

#[test]
fn long_tests_of_one_suite_are_shared_out_while_there_are_short_ones_to_fill_the_end() {
    // Eight of 2 s in one file, 192 of 10 ms in twelve others: 8.96 s for each of two sandboxes.
    let long = (0..8).map(|_| TestSpec { suite: 0, ..lasting(2_000) });
    let short = (0..192).map(|test| TestSpec { suite: 1 + test / 16, ..lasting(10) });
    let mut run = scheduler(config(2), long.chain(short));
    assert_eq!(created(&mut run, 0), 2);
    let mut actions = ready(&mut run, 0, 0);
    actions.extend(ready(&mut run, 1, 0));
    let mut free_at = [0, 0];
    let mut queues: [VecDeque<u32>; 2] = Default::default();
    loop {
        for action in actions.drain(..) {
            if let Action::Assign { sandbox, tests } = action {
                queues[sandbox.0 as usize].extend(tests.iter().map(|assignment| assignment.test.0));
            }
        }
        let busy = (0..2).filter(|&sandbox: &usize| !queues[sandbox].is_empty());
        let length = |test: u32| if test < 8 { 2_000 } else { 10 };
        let Some(next) = busy.min_by_key(|&sandbox| free_at[sandbox] + length(queues[sandbox][0])) else { break };
        let Some(test) = queues[next].pop_front() else { break };
        free_at[next] += length(test);
        actions = finish(&mut run, next as u32, test, Verdict::Passed, free_at[next]);
    }
    assert!(run.is_done());
    let end = free_at[0].max(free_at[1]);
    assert!(end <= 9_060, "took {end} ms");
}

/// The suites of what the first sandbox is given, one after the other, where every test passes at once.
fn order_of_suites(run: &mut Scheduler, suite_of: impl Fn(u32) -> u32) -> Vec<u32> {
    let mut order = Vec::new();
    let mut next = ready(run, 0, 0);
    while !next.is_empty() {
        for action in std::mem::take(&mut next) {
            let Action::Assign { sandbox, tests } = action else { continue };
            assert_eq!(sandbox, SandboxIndex(0), "there is no other yet");
            for assignment in tests {
                order.push(suite_of(assignment.test.0));
                next.extend(finish(run, 0, assignment.test.0, Verdict::Passed, 0));
            }
        }
    }
    order.dedup();
    order
}

#[test]
fn a_sandbox_opens_suites_that_are_at_home_there_and_then_helps_with_others() {
    let home = |suite| Some(SandboxIndex(u32::from(suite < 2)));
    let specs = (0..40).map(|test| TestSpec { suite: test / 10, home: home(test / 10), ..lasting(50) });
    let mut run = scheduler(config(2), specs);
    assert_eq!(created(&mut run, 0), 2);
    assert_eq!(order_of_suites(&mut run, |test| test / 10), [2, 3, 0, 1]);
}

#[test]
fn suites_are_opened_in_their_order_however_large_they_are() {
    let suite_of = |test| u32::from(test >= 5) + u32::from(test >= 35) + u32::from(test >= 45);
    for known in [true, false] {
        let spec = if known { lasting(50) } else { TestSpec::default() };
        let mut run = scheduler(config(2), (0..60).map(|test| TestSpec { suite: suite_of(test), ..spec }));
        assert_eq!(created(&mut run, 0), 2);
        assert_eq!(order_of_suites(&mut run, suite_of), [0, 1, 2, 3]);
    }
}
