use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use offload_core::event::{RunEvent, StopReason};
use offload_core::framework::TestOutcome::*;
use offload_core::report::Reporter;
use offload_core::report::console::{ColorChoice, ConsoleOptions, ConsoleReporter, Progress, Surroundings};

use crate::events::{Run, everything, ms, result, test};

/// A writer whose text can be looked at.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Page {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Page {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(buffer);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn options() -> ConsoleOptions {
    ConsoleOptions {
        slow_test: ms(60_000),
        reports: vec![PathBuf::from("target/offload/junit.xml")],
        ..ConsoleOptions::default()
    }
}

/// What is written to standard output and standard error.
fn print(options: ConsoleOptions, run: impl FnOnce(&mut dyn Reporter)) -> (String, String) {
    let (out, err) = (Page::default(), Page::default());
    let mut reporter =
        ConsoleReporter::new(options, Surroundings::default(), Box::new(out.clone()), Box::new(err.clone()));
    run(&mut reporter);
    reporter.finish().unwrap();
    (out.text(), err.text())
}

#[test]
fn a_log_has_failures_as_they_happen_and_again_in_the_summary() {
    let (out, err) = print(options(), everything);
    insta::assert_snapshot!(out, @r#"
         FAIL [   0.123s] pkg::it tests::fails
        panicked at tests/it.rs:3:5
      --- stdout ---
        one <line> & red ]]>
      --- stderr ---
        thread 'tests::fails' panicked at tests/it.rs:3:5:
        left != right

      TIMEOUT [   0.050s] pkg fails_always after 3 attempts
        timed out after 0.05 s
        stack of "main"

        CRASH [   0.004s] pkg crash
        killed by signal 11 (SIGSEGV)

        ERROR [   0.000s] pkg gone
        no such test in the binary


    failures:

         FAIL [   0.123s] pkg::it tests::fails
        panicked at tests/it.rs:3:5
      --- stdout ---
        one <line> & red ]]>
      --- stderr ---
        thread 'tests::fails' panicked at tests/it.rs:3:5:
        left != right

      TIMEOUT [   0.050s] pkg fails_always after 3 attempts
        timed out after 0.05 s
        stack of "main"

        CRASH [   0.004s] pkg crash
        killed by signal 11 (SIGSEGV)

        ERROR [   0.000s] pkg gone
        no such test in the binary

         SLOW [  61.000s] pkg slow_and_leaky

        FLAKY [   0.020s] pkg flaky<&>"'ü: passed on attempt 3

        LEAKY [  61.000s] pkg slow_and_leaky: left processes behind that held its output

       SHARED [   0.005s] pkg needs_a_process: passes alone, not in one process after tests::passes, crash

         LOST sandbox local-2 was lost: the worker died (exit code 3); 1 test starts again elsewhere

      PROBLEM cannot build `other`: 1 error
              mend it

    Summary [  61.401s] 10 tests: 4 passed (1 flaky), 4 failed (1 timed out, 1 crashed, 1 could not be executed), 1 skipped, 1 not run; 1 problem
    report: target/offload/junit.xml
    "#);
    insta::assert_snapshot!(err, @r#"
    running 9 tests, 1 skipped (quick ones share processes; what fails there runs again alone)
    [   61s] 7/9 tests, 3 passed, 4 failed, 1 flaky; 1 sandbox
    warning: sandbox local-2 was lost: the worker died (exit code 3); 1 test starts again elsewhere
    error: cannot build `other`: 1 error
    mend it
    "#);
}

#[test]
fn verbose_has_a_line_per_test() {
    let (out, _) = print(ConsoleOptions { verbosity: 1, ..options() }, |reporter| {
        let mut run = Run::start(reporter);
        run.test(&test("pkg", "a"), vec![result(Passed, 12)]);
        run.test(&test("pkg", "b"), vec![result(Failed, 5).with_message("oh\nno"), result(Passed, 1)]);
        run.without_attempt(&test("pkg", "c"), Skipped, "ignored");
        run.without_attempt(&test("pkg", "d"), NotRun, "interrupted");
        run.end(|totals| totals.stopped = Some(StopReason::Interrupted));
    });
    insta::assert_snapshot!(out, @r#"
         PASS [   0.012s] pkg a
    RETRY 1/1 [   0.005s] pkg b: failed, oh
        FLAKY [   0.001s] pkg b: passed on attempt 2
         SKIP [         ] pkg c: ignored
      NOT RUN [         ] pkg d: interrupted

        FLAKY [   0.001s] pkg b: passed on attempt 2

    Summary [   0.018s] 4 tests: 2 passed (1 flaky), 1 skipped, 1 not run; stopped early: interrupted
    report: target/offload/junit.xml
    "#);
}

#[test]
fn quiet_has_failures_and_the_totals_only() {
    let (out, err) = print(ConsoleOptions { verbosity: -1, ..options() }, |reporter| {
        let mut run = Run::start(reporter);
        run.event(RunEvent::Warning { text: "something".to_owned() });
        run.event(RunEvent::DiscoveryFinished { to_run: 2, skipped: 0 });
        run.test(&test("pkg", "a"), vec![result(Passed, 12)]);
        run.test(&test("pkg", "b"), vec![result(Failed, 5).with_message("oh no")]);
        run.wait(60_000).event(RunEvent::TestsFound { to_run: 0, skipped: 0 });
        run.end(|_| ());
    });
    insta::assert_snapshot!(out, @r#"
         FAIL [   0.005s] pkg b
        oh no

    Summary [  60.017s] 2 tests: 1 passed, 1 failed
    "#);
    assert_eq!(err, "");
}

#[test]
fn nothing_found_is_said() {
    let (out, _) = print(ConsoleOptions::default(), |reporter| Run::start(reporter).end(|_| ()));
    assert_eq!(out, "Summary [   0.000s] no tests were found\n");
}

#[test]
fn without_colors_no_control_character_is_written_whatever_tests_write() {
    let nasty: String =
        (0..0x100).filter_map(char::from_u32).chain("\u{1b}[2J\u{1b}[31m\u{1b}]0;t\u{7}".chars()).collect();
    let mut failed = result(Crashed, 1).with_message(nasty.clone());
    failed.details = Some(nasty.clone());
    failed.stdout = nasty.clone().into();
    let (out, err) = print(ConsoleOptions { verbosity: 1, ..options() }, |reporter| {
        let test = test(&nasty, "name");
        let mut run = Run::start(reporter);
        run.event(RunEvent::BuildOutput { line: nasty.clone() });
        run.event(RunEvent::Warning { text: nasty.clone() });
        run.event(RunEvent::Problem { text: nasty.clone() });
        run.event(RunEvent::TestSlow { test: test.clone(), elapsed: ms(1) });
        run.event(RunEvent::TestOutput { test: test.clone(), text: nasty.clone() });
        run.event(RunEvent::SandboxLost { sandbox: nasty.as_str().into(), reason: nasty.clone(), requeued: vec![] });
        run.started(&test, 1).wait(11_000).event(RunEvent::TestsFound { to_run: 1, skipped: 0 });
        run.test(&test, vec![failed.clone(), failed]);
        run.without_attempt(&test, Skipped, &nasty);
        run.end(|totals| totals.problems = 1);
    });
    for text in [out, err] {
        assert!(text.len() > 500);
        assert!(!text.contains(|c: char| c.is_control() && c != '\n' && c != '\t'), "{text:?}");
    }
}

#[test]
fn colors_are_used_where_they_are_wanted() {
    let (out, err) = print(ConsoleOptions { color: ColorChoice::Always, ..options() }, |reporter| {
        let mut run = Run::start(reporter);
        run.event(RunEvent::BuildOutput { line: "\u{1b}[1;32mCompiling\u{1b}[0m pkg".to_owned() });
        run.test(&test("pkg", "b"), vec![result(Failed, 5)]);
        run.end(|_| ());
    });
    assert!(out.contains("\u{1b}[31m\u{1b}[1mFAIL\u{1b}[0m"), "{out:?}");
    assert!(err.contains("\u{1b}[1;32mCompiling\u{1b}[0m pkg"), "{err:?}");
}

#[test]
fn the_environment_decides_on_colors() {
    let terminal = Surroundings { stdout_terminal: true, stderr_terminal: true, ..Surroundings::default() };
    let color = |surroundings: Surroundings, choice| surroundings.color_stdout(choice);
    assert!(color(terminal, ColorChoice::Auto));
    assert!(!color(terminal, ColorChoice::Never));
    assert!(!color(Surroundings::default(), ColorChoice::Auto));
    assert!(color(Surroundings::default(), ColorChoice::Always));
    assert!(!color(Surroundings { ci: true, ..terminal }, ColorChoice::Auto));
    assert!(!color(Surroundings { no_color: true, force_color: true, ..terminal }, ColorChoice::Auto));
    assert!(color(Surroundings { force_color: true, ci: true, ..Surroundings::default() }, ColorChoice::Auto));
    assert!(color(Surroundings { no_color: true, ..terminal }, ColorChoice::Always));
}

#[test]
fn after_ten_quiet_seconds_a_log_says_how_far_the_run_is() {
    let run = |reporter: &mut dyn Reporter| {
        let mut run = Run::start(reporter);
        run.event(RunEvent::BuildStarted).wait(9_000).event(RunEvent::BuildStarted);
        run.wait(2_000).event(RunEvent::BuildFinished { success: true, duration: ms(11_000) });
        run.event(RunEvent::TestsFound { to_run: 3, skipped: 1 });
        run.event(RunEvent::SandboxReady { sandbox: "local-1".into(), duration: ms(1) });
        run.test(&test("pkg", "a"), vec![result(Passed, 12)]);
        run.started(&test("pkg", "b"), 1).wait(5_000).started(&test("pkg", "c"), 1);
        run.wait(6_000).event(RunEvent::TestsFound { to_run: 1, skipped: 0 });
        run.event(RunEvent::DiscoveryFinished { to_run: 4, skipped: 1 });
        run.wait(9_000).event(RunEvent::BuildStarted);
        run.end(|_| ());
    };
    let (_, err) = print(options(), run);
    insta::assert_snapshot!(err, @r#"
    [   11s] looking for tests
    [   22s] 1/4+ tests, 1 passed; 1 sandbox; running longest: pkg: 2 tests together (11s)
    running 4 tests, 1 skipped (quick ones share processes; what fails there runs again alone)
    "#);
    let (_, err) = print(ConsoleOptions { progress: Progress::None, ..options() }, run);
    assert_eq!(err, "");
}

#[test]
fn what_uncaptured_tests_write_comes_in_whole_lines() {
    let (out, _) = print(options(), |reporter| {
        let (a, b) = (test("pkg", "a"), test("pkg", "b"));
        let mut run = Run::start(reporter);
        let mut write = |test: &_, text: &str| {
            run.event(RunEvent::TestOutput { test: Arc::clone(test), text: text.to_owned() });
        };
        write(&a, "one ");
        write(&b, "two\nthree");
        write(&a, "four\n");
        run.test(&b, vec![result(Passed, 1)]);
        run.tick();
    });
    assert_eq!(out, "two\none four\nthree\n");
}

#[test]
fn long_lists_and_long_output_are_bounded() {
    let (out, _) = print(options(), |reporter| {
        let mut failed = result(Failed, 1);
        failed.stdout = (0..10_000).map(|line| format!("{line}\n")).collect::<String>().into();
        let mut run = Run::start(reporter);
        for number in 0..40 {
            run.test(&test("pkg", &format!("flaky_{number}")), vec![failed.clone(), result(Passed, 1)]);
            run.test(&test("pkg", &format!("fails_{number}")), vec![failed.clone()]);
        }
        run.end(|_| ());
    });
    let (live, summary) = out.split_once("failures:").unwrap();
    assert_eq!(live.matches("[... 9900 lines left out; the summary has more ...]").count(), 40);
    assert_eq!(summary.matches("[... 9600 lines left out; the JUnit report has more ...]").count(), 30);
    for number in 0..40 {
        assert!(summary.contains(&format!("pkg fails_{number}\n")));
    }
    assert!(summary.contains("… and 30 more (flaky)"));
    assert!(summary.contains("80 tests: 40 passed (40 flaky), 40 failed\n"), "{summary}");
}

#[test]
fn an_output_that_goes_away_does_not_end_the_run_and_a_full_disk_is_told() {
    struct Full(io::ErrorKind);
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let finish = |kind| {
        let stderr = Box::new(Page::default());
        let mut reporter = ConsoleReporter::new(options(), Surroundings::default(), Box::new(Full(kind)), stderr);
        everything(&mut reporter);
        reporter.finish()
    };
    finish(io::ErrorKind::BrokenPipe).unwrap();
    let error = finish(io::ErrorKind::StorageFull).unwrap_err().to_string();
    assert_eq!(error, "cannot write results to standard output: no storage space; check where it is redirected to");
}
