//! What tests write: as much as is kept of it, and whose it is.

use offload_core::framework::TestOutcome;
use offload_core::worker::libtest::LibtestOptions;
use offload_core::worker::{Message, Request};

use crate::support::{Fixtures, Session, items, run_one};

#[test]
fn a_flood_of_output_keeps_its_ends() {
    let result = run_one("floods");
    assert_eq!(result.outcome, TestOutcome::Passed);
    let text = &result.stdout.text;
    assert!(text.starts_with("the beginning\nxxx"), "{}", &text[..40]);
    assert!(text.ends_with("xxx\nthe end\n"), "{}", &text[text.len() - 40..]);
    assert!(text.len() < 2 << 20, "{}", text.len());
    assert!(result.stdout.dropped_bytes > 90 << 20);
    assert!(text.contains(&format!("\n[... {} bytes dropped ...]\n", result.stdout.dropped_bytes)));
}

#[test]
fn output_that_is_not_utf8_is_replaced() {
    assert_eq!(run_one("writes_bytes").stdout.text, "a\u{FFFD}b\n");
}

#[test]
fn output_past_the_harness_belongs_to_the_test_that_runs() {
    let results = Session::binary(Fixtures::get().unit()).run(&items(&["passes", "talks_past_the_harness"]));
    let result = &results["talks_past_the_harness"];
    assert_eq!(result.outcome, TestOutcome::Passed);
    assert_eq!(result.stdout.text, "no newline");
    assert_eq!(results["passes"].stdout.text, "");
}

#[test]
fn uncaptured_output_comes_as_messages_without_the_harness() {
    let options = LibtestOptions { no_capture: true, ..LibtestOptions::default() };
    let session = Session::new(options, Fixtures::get().unit());
    session.worker.send(Request::Run { tests: items(&["passes"]) });
    let mut seen = Vec::new();
    let result = loop {
        match session.next() {
            Message::Output { key: 0, text } => seen.push(text),
            Message::Finished { result, .. } => break result,
            other => assert_eq!(other, Message::Started { key: 0 }),
        }
    };
    seen.sort();
    assert_eq!(seen, ["hello err\n", "hello out\n"]);
    assert!(result.stdout.is_empty() && result.stderr.is_empty());
}
