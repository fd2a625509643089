//! In which order tests run, and when that is another one than they were found in.

use super::*;

/// What ran: on which sandbox, and which test.
type Order = Vec<(u32, u32)>;

/// Runs everything on so many sandboxes; `lengths` says how long each test takes. Returns the order in which tests
/// started, and how long it took all of them.
fn run_all(run: &mut Scheduler, sandboxes: u32, lengths: impl Fn(u32) -> u64) -> (Order, u64) {
    let mut given = vec![VecDeque::new(); sandboxes as usize];
    let mut running: Vec<Option<(u64, u32)>> = vec![None; sandboxes as usize];
    let (mut order, mut now) = (Vec::new(), 0);
    let mut next: VecDeque<Action> = (0..sandboxes).flat_map(|sandbox| ready(run, sandbox, 0)).collect();
    loop {
        while let Some(action) = next.pop_front() {
            match action {
                Action::Assign { sandbox, tests } => {
                    given[sandbox.0 as usize].extend(tests.iter().map(|assignment| assignment.test.0));
                }
                Action::TakeBack { sandbox, tests } => {
                    given[sandbox.0 as usize].retain(|&test| !tests.contains(&TestIndex(test)));
                    run.taken_back(sandbox, &tests, ms(now));
                    next.extend(actions(run, now));
                }
                _ => {}
            }
            for sandbox in 0..sandboxes {
                if running[sandbox as usize].is_none()
                    && let Some(test) = given[sandbox as usize].pop_front()
                {
                    order.push((sandbox, test));
                    running[sandbox as usize] = Some((now + lengths(test), test));
                    next.extend(start(run, sandbox, test, now));
                }
            }
        }
        let ends = (0..).zip(&running).filter_map(|(sandbox, test)| test.map(|(end, test)| (end, sandbox, test)));
        let Some((end, sandbox, test)) = ends.min() else { return (order, now) };
        now = end;
        running[sandbox as usize] = None;
        next.extend(finish(run, sandbox, test, Verdict::Passed, now));
    }
}

#[test]
fn a_single_sandbox_takes_all_in_their_order() {
    let specs = [
        lasting(10),
        lasting(2000),
        TestSpec { suite: 1, together: true, ..lasting(500) },
        TestSpec { suite: 2, ..TestSpec::default() },
        TestSpec { suite: 2, alone: true, ..lasting(5000) },
        TestSpec { suite: 3, ..lasting(3000) },
    ];
    let mut run = scheduler(config(1), specs);
    assert_eq!(created(&mut run, 0), 1);
    let (order, _) = run_all(&mut run, 1, |_| 1000);
    let order: Vec<u32> = order.into_iter().map(|(_, test)| test).collect();
    assert_eq!(order, [0, 1, 2, 3, 5, 4], "what wants the sandbox for itself waits until it is empty");
}

#[test]
fn a_long_test_is_not_taken_out_of_its_place_while_there_are_short_ones_to_even_the_end_out() {
    let (short, long) = (100, 600);
    let suite = |suite| TestSpec { suite, ..lasting(short) };
    let specs = (0..6).flat_map(|number| [suite(number); 10]).chain([TestSpec { suite: 6, ..lasting(long) }]);
    let mut run = scheduler(config(2), specs.chain([suite(7); 5]));
    assert_eq!(created(&mut run, 0), 2);
    let (order, took) = run_all(&mut run, 2, |test| if test == 60 { long } else { short });
    let place = order.iter().position(|&(_, test)| test == 60).unwrap();
    assert!((35..55).contains(&place), "{order:?}");
    for sandbox in 0..2 {
        let before = order[..place].iter().filter(|(there, _)| *there == sandbox);
        assert!(before.map(|(_, test)| test).is_sorted(), "{order:?}");
    }
    assert!(took <= (65 * short + long) / 2 + short, "{took} ms");
}
