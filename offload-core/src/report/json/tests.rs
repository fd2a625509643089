//! `docs/JSON.md` names every event and every field, and nothing else.
//!
//! The samples below have every optional field. They are written without `..` and matched without `_`, so that whoever
//! adds an event or a field is sent here by the compiler.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::event::{Attempt, RunSummary, StopReason, TestInfo};
use crate::framework::{Captured, Isolation, TestOutcome, TestResult};

const PAGE: &str = include_str!("../../../../docs/JSON.md");
const SECOND: Duration = Duration::from_secs(1);

fn sample_test() -> Arc<TestInfo> {
    Arc::new(TestInfo {
        id: "s n".into(),
        name: "n".into(),
        suite: "s".into(),
        group: Arc::from("g"),
        line: Some(1),
        number: 0,
    })
}

fn sample_attempt() -> Attempt {
    let output = Captured { text: "written".into(), dropped_bytes: 1 };
    let result = TestResult {
        outcome: TestOutcome::Failed,
        duration: SECOND,
        message: Some("why".into()),
        details: Some("where".into()),
        stdout: output.clone(),
        stderr: output,
        leaky: true,
        shared_process: true,
        shares_state: Some(vec!["s other".into()]),
        phases: None,
        native: None,
    };
    Attempt { number: 1, sandbox: "local-0".into(), started_at: SECOND, result }
}

fn sample_summary() -> RunSummary {
    RunSummary {
        total: 1,
        passed: 1,
        failed: 1,
        timed_out: 1,
        crashed: 1,
        errors: 1,
        flaky: 1,
        skipped: 1,
        not_run: 1,
        duration: SECOND,
        problems: 1,
        stopped: Some(StopReason::Interrupted),
        exit_code: 1,
    }
}

/// A sample of the event that is declared after `event`'s.
fn after(event: &RunEvent) -> Option<RunEvent> {
    let (test, sandbox, duration, text) = (sample_test(), Arc::from("local-0"), SECOND, "text".to_owned());
    Some(match event {
        RunEvent::RunStarted { .. } => RunEvent::BuildStarted,
        RunEvent::BuildStarted => RunEvent::BuildOutput { line: text },
        RunEvent::BuildOutput { .. } => RunEvent::BuildFinished { success: true, duration },
        RunEvent::BuildFinished { .. } => RunEvent::TestsFound { to_run: 1, skipped: 1 },
        RunEvent::TestsFound { .. } => RunEvent::DiscoveryFinished { to_run: 1, skipped: 1 },
        RunEvent::DiscoveryFinished { .. } => RunEvent::SandboxReady { sandbox, duration },
        RunEvent::SandboxReady { .. } => RunEvent::SandboxLost { sandbox, reason: text, requeued: Vec::new() },
        RunEvent::SandboxLost { .. } => RunEvent::SandboxFinished { sandbox, busy: duration },
        RunEvent::SandboxFinished { .. } => RunEvent::TestStarted { test, attempt: 1, sandbox },
        RunEvent::TestStarted { .. } => RunEvent::TestOutput { test, text },
        RunEvent::TestOutput { .. } => RunEvent::TestSlow { test, elapsed: duration },
        RunEvent::TestSlow { .. } => RunEvent::AttemptFailed { test, attempt: sample_attempt(), attempts_left: 1 },
        RunEvent::AttemptFailed { .. } => RunEvent::TestFinished {
            test,
            outcome: TestOutcome::Passed,
            flaky: true,
            attempts: vec![sample_attempt()],
            reason: Some(text),
        },
        RunEvent::TestFinished { .. } => RunEvent::LateFailure { test, attempt: sample_attempt() },
        RunEvent::LateFailure { .. } => RunEvent::Warning { text },
        RunEvent::Warning { .. } => RunEvent::Problem { text },
        RunEvent::Problem { .. } => RunEvent::Stopping { reason: StopReason::MaxFail },
        RunEvent::Stopping { .. } => RunEvent::RunFinished { summary: sample_summary() },
        // What only Python is told has no place in the JSON.
        RunEvent::Native(_) | RunEvent::RunFinished { .. } => return None,
    })
}

fn outcomes() -> Vec<TestOutcome> {
    let after = |outcome: &TestOutcome| match outcome {
        TestOutcome::Passed => Some(TestOutcome::Failed),
        TestOutcome::Failed => Some(TestOutcome::Skipped),
        TestOutcome::Skipped => Some(TestOutcome::Error),
        TestOutcome::Error => Some(TestOutcome::TimedOut),
        TestOutcome::TimedOut => Some(TestOutcome::Crashed),
        TestOutcome::Crashed => Some(TestOutcome::NotRun),
        TestOutcome::NotRun => None,
    };
    std::iter::successors(Some(TestOutcome::Passed), after).collect()
}

fn stop_reasons() -> Vec<StopReason> {
    let after = |reason: &StopReason| match reason {
        StopReason::MaxFail => Some(StopReason::Interrupted),
        StopReason::Interrupted => Some(StopReason::Infrastructure),
        StopReason::Infrastructure => None,
    };
    std::iter::successors(Some(StopReason::MaxFail), after).collect()
}

/// The first column of the table below each heading of the third level.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let mut sections: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    let mut section = None;
    for line in PAGE.lines() {
        if line.starts_with('#') {
            section = line.strip_prefix("### ").map(|heading| heading.trim_matches('`').to_owned());
            if let Some(section) = &section {
                sections.insert(section.clone(), BTreeSet::new());
            }
        } else if let (Some(section), Some((first, _))) =
            (&section, line.strip_prefix("| `").and_then(|row| row.split_once('`')))
        {
            sections.get_mut(section).unwrap().insert(first.to_owned());
        }
    }
    sections
}

/// Notes the fields of `value`, and of every object in it, under the name that the page has for them.
fn note(name: &str, value: &Value, fields: &mut BTreeMap<String, BTreeSet<String>>) {
    let noted = fields.entry(name.to_owned()).or_default();
    let object = value.as_object().unwrap();
    let everywhere = ["format", "event", "at_secs"];
    noted.extend(object.keys().filter(|key| !everywhere.contains(&key.as_str())).cloned());
    for (key, value) in object {
        let name = match key.as_str() {
            "test" => "test",
            "attempt" | "attempts" => "attempt",
            "stdout" | "stderr" => "output",
            "summary" => "totals",
            other => other,
        };
        for value in value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice) {
            if value.is_object() {
                note(name, value, fields);
            }
        }
    }
}

#[test]
fn the_page_and_the_events_agree() {
    let first = RunEvent::RunStarted {
        format: FORMAT_VERSION,
        run_id: "run".into(),
        started_at_secs: 1.0,
        framework: "cargo".into(),
        provider: "local".into(),
        max_sandboxes: 1,
        isolation: Some(Isolation::Auto),
    };
    let mut text = Vec::new();
    let mut reporter = JsonReporter::new(&mut text);
    for event in std::iter::successors(Some(first), after) {
        reporter.on_event(&TimedEvent { at: SECOND, event });
    }
    let mut fields = BTreeMap::new();
    for line in std::str::from_utf8(&text).unwrap().lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        assert_eq!(value["format"], FORMAT_VERSION);
        note(value["event"].as_str().unwrap(), &value, &mut fields);
    }
    let name = |value: Value| value.as_str().unwrap().to_owned();
    let names = outcomes().into_iter().map(|outcome| name(serde_json::to_value(outcome).unwrap()));
    fields.insert("outcome".into(), names.collect());
    let names = stop_reasons().into_iter().map(|reason| name(serde_json::to_value(reason).unwrap()));
    fields.insert("reason to stop".into(), names.collect());
    assert_eq!(documented(), fields, "left: docs/JSON.md, right: what is written");
}

#[test]
fn the_page_names_the_version() {
    assert!(PAGE.contains(&format!("Every line has `format`, now {FORMAT_VERSION}.")));
}
