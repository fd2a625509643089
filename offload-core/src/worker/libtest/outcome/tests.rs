use super::super::batch::log::Log;
use super::*;

fn read(status: ExitStatus, name: &str, stdout: &str, stderr: &str) -> Reading {
    of_libtest(status, name, (&stdout.to_owned().into(), &stderr.to_owned().into()), true).unwrap()
}

/// Whether output at exit code 0 leaves no doubt.
fn says_enough(stdout: &str) -> bool {
    of_libtest(exited(0), "a::b", (&stdout.to_owned().into(), &Captured::default()), false).is_some()
}

fn exited(code: i32) -> ExitStatus {
    ExitStatus::from_raw(code << 8)
}

fn killed(signal: i32) -> ExitStatus {
    ExitStatus::from_raw(signal)
}

const PASSED: &str = "\nrunning 1 test\nhello\ntest a::b ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 \
                      measured; 6 filtered out; finished in 0.00s\n\n";

#[test]
fn a_pass_needs_the_summary() {
    assert_eq!(read(exited(0), "a::b", PASSED, "").outcome, TestOutcome::Passed);
    let cut = PASSED.split("test result").next().unwrap();
    let reading = read(exited(0), "a::b", cut, "");
    assert_eq!(reading.outcome, TestOutcome::Crashed);
    assert!(reading.message.unwrap().contains("exited with code 0 in the middle of the test"));
}

#[test]
fn the_standard_harness_has_the_last_word() {
    assert!(says_enough(PASSED));
    assert!(says_enough(&format!("printed before main\n{PASSED}")));
    assert!(says_enough(&PASSED.replace("hello", PASSED)), "a test that runs tests itself");
    for unsaid in ["", "hello\n", "\nrunning 1 test\n", "printed before main\n\nrunning 1 test\nhello\n"] {
        assert!(!says_enough(unsaid), "{unsaid}");
    }
    assert!(!says_enough(&format!("\nrunning 1 test\n{PASSED}")), "a test that ran tests itself and then left");
    assert!(!says_enough(&PASSED.replace("ok. 1 passed", "ok. 2 passed")));
}

#[test]
fn a_log_has_the_result() {
    let of_log = |log: &str, code| {
        let entry = Log::default().push(log.as_bytes(), |name| name == "a::b").pop();
        of_log(entry, "a::b", code, ("", "thread 'a::b' panicked at src/lib.rs:1:1:\nwhy\n"))
    };
    assert_eq!(of_log("ok a::b\n", 0).outcome, TestOutcome::Passed);
    assert_eq!(of_log("ok a::b\n", 101).outcome, TestOutcome::Failed);
    assert_eq!(of_log("failed a::b\n", 0).outcome, TestOutcome::Failed);
    assert_eq!(of_log("failed a::b\n", 101), Reading::new(TestOutcome::Failed, "panicked at src/lib.rs:1:1: why"));
    let unlike =
        "failed: panic did not contain expected string\n      panic message: \"x\"\n expected substring: \"y\" a::b\n";
    let message = "panic did not contain expected string: panic message: \"x\", expected substring: \"y\"";
    assert_eq!(of_log(unlike, 101), Reading::new(TestOutcome::Failed, message));
    assert_eq!(of_log("ignored: slow a::b\n", 0), Reading::new(TestOutcome::Skipped, "slow"));
    assert_eq!(of_log("", 0).outcome, TestOutcome::Crashed);
    assert_eq!(of_log("", 101).outcome, TestOutcome::Crashed);
}

#[test]
fn a_summary_that_the_test_printed_does_not_count() {
    let stdout = "\nrunning 1 test\ntest result: ok. 1 passed; 0 failed; 0 ignored\ntest result: FAILED. 0 passed; 1 failed; 0 ignored\n";
    assert_eq!(read(exited(101), "a", stdout, "").outcome, TestOutcome::Failed);
}

#[test]
fn the_json_summary_of_the_users_choice_is_understood() {
    let stdout = "{ \"type\": \"suite\", \"event\": \"started\", \"test_count\": 1 }\n{ \"type\": \"suite\", \"event\": \
                  \"ok\", \"passed\": 1, \"failed\": 0, \"ignored\": 0, \"measured\": 0, \"filtered_out\": 6, \
                  \"exec_time\": 0.000093 }\n";
    assert_eq!(read(exited(0), "a", stdout, "").outcome, TestOutcome::Passed);
}

#[test]
fn a_harness_without_a_summary_is_judged_by_its_exit() {
    let reading = read(exited(0), "bench", "Testing bench\nSuccess\n", "");
    assert_eq!(reading.outcome, TestOutcome::Passed);
    let reading = read(exited(1), "bench", "Testing bench\n", "it broke\n");
    assert_eq!((reading.outcome, reading.message.as_deref()), (TestOutcome::Failed, Some("exit code 1: it broke")));
}

#[test]
fn refused_arguments_are_no_failure() {
    let reading = read(exited(101), "a", "", "error: Unrecognized option: 'frob'\n");
    assert_eq!(reading.outcome, TestOutcome::Error);
    assert_eq!(reading.message.as_deref(), Some("the test binary refused its arguments: Unrecognized option: 'frob'"));
}

#[test]
fn signals_have_names() {
    assert_eq!(crash_message(killed(9), ""), "killed by signal 9 (SIGKILL)");
    assert_eq!(crash_message(killed(34), ""), "killed by signal 34");
}

#[test]
fn only_the_harness_is_stripped() {
    let strip = |text: &str| {
        let mut text = text.to_owned();
        strip_harness(&mut text, "a::b");
        text
    };
    assert_eq!(strip(PASSED), "hello\n");
    assert_eq!(strip("\nrunning 1 test\nno newlinetest a::b ... ok\n\ntest result: ok. 1 passed\n"), "no newline");
    assert_eq!(strip("\nrunning 1 test\ntest a::b ... x\nok\n\ntest result: ok. 1 passed\n"), "x\n");
    assert_eq!(
        strip(
            "\nrunning 1 test\ntest a::b - should panic ... x\nFAILED\n\nfailures:\n\nfailures:\n    a::b\n\ntest result: FAILED. 0 passed\n"
        ),
        "x\n"
    );
    assert_eq!(
        strip(
            "\nrunning 1 test\ntest a::b ... ok\nmine\ntest a::b ... FAILED\n\nfailures:\n    a::b\n\ntest result: FAILED. 0 passed\n"
        ),
        "test a::b ... ok\nmine\n",
        "the last verdict is the harness's"
    );
    assert_eq!(strip("\nrunning 1 test\nthen it died"), "then it died");
    assert_eq!(strip("\nrunning 1 test"), "");
    assert_eq!(strip("running late\ntest result: fine\n"), "running late\ntest result: fine\n");
}

#[test]
fn panics_are_found_in_all_forms() {
    let cases = [
        ("thread 'a' panicked at src/lib.rs:3:5:\nboom\nnote: run with\n", "panicked at src/lib.rs:3:5: boom"),
        ("\nthread 'a' (42) panicked at src/lib.rs:3:5:\nboom\n", "panicked at src/lib.rs:3:5: boom"),
        ("thread 'a' panicked at 'boom', src/lib.rs:3:5\nnote: run with\n", "panicked at src/lib.rs:3:5: boom"),
        (
            "thread 'a' panicked at 'assertion failed: `(left == right)`\n  left: `1`,\n right: `2`', src/lib.rs:3:5\n",
            "panicked at src/lib.rs:3:5: assertion failed: `(left == right)` (left: `1`,, right: `2`)",
        ),
        (
            "thread '<unnamed>' panicked at x.rs:1:1:\nother\n\nthread 'a' panicked at y.rs:2:2:\nmine\n",
            "panicked at y.rs:2:2: mine",
        ),
        ("thread '<unnamed>' panicked at x.rs:1:1:\nother\n", "panicked at x.rs:1:1: other"),
        ("thread 'a' panicked at x.rs:1:1:", "panicked at x.rs:1:1"),
    ];
    for (text, expected) in cases {
        assert_eq!(panic_message("a", text).as_deref(), Some(expected), "{text}");
    }
    for text in [
        "",
        "thread",
        "thread 'a",
        "thread 'a' panicked at ",
        "thread 'a' panicked at 'x",
        "my thread 'a' panicked at x:1:1:",
    ] {
        assert_eq!(panic_message("a", text), None, "{text}");
    }
}

#[test]
fn a_failure_of_a_harness_that_imitates_is_read() {
    let stdout = "running 1 test\ntest a ... FAILED\n\nfailures:\n\n---- a ----\nnot equal\n\nfailures:\n    a\n\ntest result: FAILED. 0 passed; 1 failed; 0 ignored\n";
    let reading = read(exited(101), "a", stdout, "");
    assert_eq!((reading.outcome, reading.message.as_deref()), (TestOutcome::Failed, Some("not equal")));
}

#[test]
fn long_messages_are_cut() {
    let message = panic_message("a", &format!("thread 'a' panicked at x.rs:1:1:\n{}", "é".repeat(10_000))).unwrap();
    assert_eq!(message.chars().count(), LONGEST_MESSAGE + 1);
}

#[test]
fn result_lines_are_read() {
    assert_eq!(result_line("test a b - should panic ... ok"), Some(("a b - should panic", LineResult::Ok)));
    assert_eq!(result_line("test a ... ignored, why not"), Some(("a", LineResult::Ignored(Some("why not".into())))));
    assert_eq!(result_line("test a ... FAILED <0.010s>"), Some(("a", LineResult::Failed)));
    assert_eq!(result_line("test a ... has been running for over 60 seconds"), None);
    assert_eq!(strip_kind("a - compile fail"), "a");
}
