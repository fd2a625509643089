//! Runs a batch of tests by one shell script and reads its output: the way for sandboxes without a worker.
//!
//! The script runs one process per unit, its tests one after another in the harness's stable format, with marker lines
//! around it. The harness prints a test's name before it runs the test, so a process that dies blames the test whose
//! name came last. Times of single tests are not in that format: the batch's time is shared out evenly.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::doctest::plain_name;
use crate::connector::quote;
use crate::framework::{FrameworkError, FrameworkResult, TestInstance, TestOutcome, TestResult};
use crate::provider::{Command, ExecOutput};
use crate::worker::libtest::line_filters;
use crate::worker::{Harness, Unit};

/// Starts a line that the script itself writes. Nothing else begins a line so.
const MARKER: &str = "##offload-unit";

/// Tests of one unit, in the order of the batch.
struct Part<'a> {
    unit: &'a Arc<Unit>,
    tests: Vec<usize>,
}

/// The units of a batch, in the order of their first tests. Command and results are made from the same division.
fn parts(tests: &[TestInstance]) -> Vec<Part<'_>> {
    let mut parts: Vec<Part<'_>> = Vec::new();
    let mut known: HashMap<*const Unit, usize> = HashMap::new();
    for (index, test) in tests.iter().enumerate() {
        let Some(unit) = &test.record.suite.unit else { continue };
        // The same test twice in a process would have one result: each further attempt has a process of its own.
        let part = known.get(&Arc::as_ptr(unit)).copied().filter(|&part| {
            let Part { tests: others, .. } = &parts[part];
            !others.iter().any(|&other| tests[other].record.name == test.record.name)
        });
        match part {
            Some(part) if unit.harness != Harness::Opaque => parts[part].tests.push(index),
            _ => {
                known.insert(Arc::as_ptr(unit), parts.len());
                parts.push(Part { unit, tests: vec![index] });
            }
        }
    }
    parts
}

/// The command that runs `tests`. Paths below `repository` follow `$OFFLOAD_ROOT` where the sandbox sets it.
pub(super) fn command(tests: &[TestInstance], repository: Option<&Path>) -> Command {
    let root = Root(repository.and_then(Path::to_str).filter(|root| *root != "/"));
    let mut script = String::new();
    if let Some(root) = root.0 {
        let _ = writeln!(script, "root=${{OFFLOAD_ROOT:-{}}}", quote(root));
    }
    for (number, part) in parts(tests).iter().enumerate() {
        let unit = part.unit;
        let _ = writeln!(script, "printf '\\n{MARKER} {number} begins\\n'");
        let _ = write!(script, "( cd {} && env", root.word(&unit.cwd.to_string_lossy()));
        for (name, value) in &unit.env {
            let _ = write!(script, " {}={}", quote(name), root.word(value));
        }
        let _ = write!(script, " {}", root.word(&unit.program.to_string_lossy()));
        for arg in &unit.args {
            let _ = write!(script, " {}", root.word(arg));
        }
        match unit.harness {
            Harness::Libtest => {
                script.push_str(" --exact --test-threads=1");
                for &test in &part.tests {
                    let _ = write!(script, " {}", quote(&tests[test].record.name));
                }
            }
            Harness::Doctest => script.push_str(" --"),
            Harness::Opaque => {}
        }
        for arg in &unit.extra_args {
            let _ = write!(script, " {}", quote(arg));
        }
        if unit.harness == Harness::Doctest {
            for filter in line_filters(part.tests.iter().map(|&test| tests[test].record.name.as_str())) {
                let _ = write!(script, " {}", quote(filter));
            }
        }
        // Without a terminal and with both streams in one, a crash's last words stay where they belong.
        let _ = writeln!(script, " ) 2>&1 </dev/null\nprintf '\\n{MARKER} {number} ends %s\\n' \"$?\"");
    }
    Command::shell(script)
}

/// The repository's root here, which may be elsewhere in the sandbox.
struct Root<'a>(Option<&'a str>);

impl Root<'_> {
    /// `text` as a word for the shell, with every path below the root moved.
    fn word(&self, text: &str) -> String {
        let Some(root) = self.0 else { return quote(text) };
        let mut word = String::new();
        let mut plain_from = 0;
        for (start, _) in text.match_indices(root) {
            let end = start + root.len();
            let before = text[..start].chars().next_back();
            let after = text[end..].chars().next();
            if start < plain_from
                || !matches!(before, None | Some(':' | '='))
                || !matches!(after, None | Some('/' | ':'))
            {
                continue;
            }
            if start > plain_from {
                word.push_str(&quote(&text[plain_from..start]));
            }
            word.push_str("\"$root\"");
            plain_from = end;
        }
        if plain_from < text.len() || word.is_empty() {
            word.push_str(&quote(&text[plain_from..]));
        }
        word
    }
}

/// The results of `tests`, in their order.
pub(super) fn results(tests: &[TestInstance], output: &ExecOutput) -> FrameworkResult<Vec<TestResult>> {
    let text = String::from_utf8_lossy(&output.stdout);
    let parts = parts(tests);
    if !parts.is_empty() && output.exit_code.is_some() && !text.contains(MARKER) {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(FrameworkError::Results(format!(
            "the command for {} tests ended with exit code {} before the first of them could start:\n{}{}",
            tests.len(),
            output.exit_code.unwrap_or_default(),
            text.trim_end(),
            stderr.trim_end()
        )));
    }
    let each = output.duration / u32::try_from(tests.len().max(1)).unwrap_or(u32::MAX);
    let lost =
        || TestResult::new(TestOutcome::Error, Duration::ZERO).with_message("the batch ended before this test started");
    let mut results: Vec<TestResult> = tests.iter().map(|_| lost()).collect();
    for (number, part) in parts.iter().enumerate() {
        let begins = format!("{MARKER} {number} begins\n");
        let Some((_, rest)) = text.split_once(&begins) else { continue };
        let (body, end) = match rest.split_once(&format!("\n{MARKER} {number} ends ")) {
            Some((body, rest)) => (body, rest.lines().next().and_then(|code| code.trim().parse::<i32>().ok())),
            None => (rest, None),
        };
        let names = part.tests.iter().map(|&test| (tests[test].record.name.as_str(), test)).collect();
        for (test, result) in read_part(part.unit.harness, &names, body, end, output.exit_code.is_none()) {
            results[test] = result;
            results[test].duration = each;
        }
    }
    Ok(results)
}

/// Reads what one process wrote. `end` is its exit code, if it came that far.
fn read_part(
    harness: Harness,
    names: &HashMap<&str, usize>,
    body: &str,
    end: Option<i32>,
    timed_out: bool,
) -> Vec<(usize, TestResult)> {
    let result = |outcome| TestResult::new(outcome, Duration::ZERO);
    let unfinished = || match end {
        None if timed_out => result(TestOutcome::TimedOut).with_message("ended at the time limit of its batch"),
        end => result(TestOutcome::Crashed).with_message(describe_end(end)),
    };
    if harness == Harness::Opaque {
        let mut result = match end {
            Some(0) => result(TestOutcome::Passed),
            Some(code) if code < 128 => result(TestOutcome::Failed).with_message(format!("exit code {code}")),
            _ => unfinished(),
        };
        result.stdout = body.to_owned().into();
        return names.values().map(|&test| (test, result.clone())).collect();
    }

    let mut outcomes: Vec<(&str, usize, TestResult)> = Vec::new();
    let mut running: Option<(&str, usize)> = None;
    let mut running_from = 0;
    let mut offset = 0;
    for line in body.split_inclusive('\n') {
        let start = offset;
        offset += line.len();
        let line = line.trim_end_matches('\n');
        let begun = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... ").or_else(|| Some((rest.strip_suffix(" ...")?, ""))));
        let tail = match begun {
            Some((name, tail)) => match known(names, harness, name) {
                Some(test) => {
                    running = Some(test);
                    running_from = start;
                    tail
                }
                None => line,
            },
            None => line,
        };
        // What a test writes past the capture stands between its name and its result.
        if let Some((name, test)) = running
            && let Some(outcome) = verdict(tail)
        {
            outcomes.push((name, test, result(outcome)));
            running = None;
        }
    }
    for (name, _, result) in &mut outcomes {
        if result.outcome != TestOutcome::Failed {
            continue;
        }
        if let Some(section) = failure_section(body, name) {
            result.message =
                section.lines().find(|line| line.contains("panicked at")).map(|line| line.trim().to_owned());
            result.stdout = section.to_owned().into();
        }
    }
    let mut found: Vec<_> = outcomes.into_iter().map(|(_, test, result)| (test, result)).collect();
    if let Some((_, test)) = running {
        let mut result = unfinished();
        result.stdout = body[running_from..].to_owned().into();
        found.push((test, result));
    } else if let Some(code) = end.filter(|_| found.len() < names.len()) {
        // Nobody was running: the process refused (no such test, a library that is missing).
        let mut result = result(TestOutcome::Error).with_message(refusal(code, body));
        result.stdout = body.to_owned().into();
        let reported: Vec<_> = found.iter().map(|&(test, _)| test).collect();
        found.extend(names.values().filter(|test| !reported.contains(test)).map(|&test| (test, result.clone())));
    }
    found
}

/// Why a process ended without a word on tests, for people.
fn refusal(code: i32, body: &str) -> String {
    // What the shell and the dynamic loader say of a program for another system.
    let foreign = ["No such file or directory", "not found", "Exec format error", "shared libraries"];
    if !body.contains("\nrunning ") && foreign.iter().any(|words| body.contains(words)) {
        return format!(
            "the test binary does not run in the sandbox (exit code {code}): the sandbox has another kind of processor \
             or an older or other C library than the machine that built it; take an image like that machine's system, \
             or build with --target"
        );
    }
    format!("not reported; the process ended with exit code {code}")
}

/// The test that the harness calls `name`.
fn known<'a>(names: &HashMap<&'a str, usize>, harness: Harness, name: &str) -> Option<(&'a str, usize)> {
    let name = match harness {
        Harness::Doctest => plain_name(name),
        _ => name.strip_suffix(" - should panic").unwrap_or(name),
    };
    names.get_key_value(name).map(|(&name, &test)| (name, test))
}

/// The result that ends a line, if one does.
fn verdict(tail: &str) -> Option<TestOutcome> {
    if tail.ends_with("FAILED") || tail.contains("FAILED (") {
        Some(TestOutcome::Failed)
    } else if tail.ends_with("ok") {
        Some(TestOutcome::Passed)
    } else if tail == "ignored" || tail.starts_with("ignored, ") {
        Some(TestOutcome::Skipped)
    } else if tail.starts_with("bench:") {
        Some(TestOutcome::Passed)
    } else {
        None
    }
}

/// What the harness kept of a failed test's output.
fn failure_section<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    let head = body.match_indices("---- ").find(|(at, _)| {
        let rest = &body[at + 5..];
        rest.strip_prefix(name).is_some_and(|rest| rest.starts_with(" stdout ----\n") || rest.starts_with(" - "))
    })?;
    let section = &body[head.0..];
    let section = section.split_once('\n')?.1;
    let end = ["\n---- ", "\nfailures:\n"].iter().filter_map(|end| section.find(end)).min().unwrap_or(section.len());
    Some(section[..end].trim_end())
}

/// How a process ended that should not have.
fn describe_end(code: Option<i32>) -> String {
    match code {
        None => "its sandbox ended it".to_owned(),
        Some(code) if code > 128 => {
            let signal = code - 128;
            let name = match signal {
                4 => " (SIGILL)",
                6 => " (SIGABRT)",
                7 => " (SIGBUS)",
                8 => " (SIGFPE)",
                9 => " (SIGKILL)",
                11 => " (SIGSEGV)",
                15 => " (SIGTERM)",
                _ => "",
            };
            format!("killed by signal {signal}{name}")
        }
        Some(code) => format!("the process left with exit code {code} in the middle of the test"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_below_the_root_move_with_it() {
        let root = Root(Some("/home/me/the repo"));
        assert_eq!(root.word("/home/me/the repo/target/x y"), "\"$root\"'/target/x y'");
        assert_eq!(root.word("/home/me/the repo"), "\"$root\"");
        assert_eq!(root.word("/a:/home/me/the repo/b:/home/me/the repo2"), "/a:\"$root\"'/b:/home/me/the repo2'");
        assert_eq!(root.word("/x/home/me/the repo"), "'/x/home/me/the repo'");
        assert_eq!(Root(None).word("it's"), "'it'\\''s'");
        assert_eq!(root.word(""), "''");
    }

    fn read(body: &str, end: Option<i32>, timed_out: bool) -> Vec<(TestOutcome, Option<String>)> {
        let names = [("a", 0), ("b", 1), ("c", 2)].into();
        let mut found = read_part(Harness::Libtest, &names, body, end, timed_out);
        found.sort_by_key(|(test, _)| *test);
        found.into_iter().map(|(_, result)| (result.outcome, result.message)).collect()
    }

    #[test]
    fn a_death_blames_the_test_that_was_running_only() {
        let found = read("running 3 tests\ntest a ... ok\ntest b - should panic ... bye\n", Some(139), false);
        assert_eq!(
            found,
            [(TestOutcome::Passed, None), (TestOutcome::Crashed, Some("killed by signal 11 (SIGSEGV)".to_owned())),]
        );
    }

    #[test]
    fn a_time_out_is_the_running_tests() {
        let found = read("test a ... ", None, true);
        assert_eq!(found[0].0, TestOutcome::TimedOut);
    }

    #[test]
    fn output_between_name_and_verdict_does_not_confuse() {
        let found = read(
            "test a ... raw\nmore rawFAILED\ntest b ... ignored, why\ntest c ... ok\n\nfailures:\n\n---- a stdout ----\n\nthread 'a' panicked at src/lib.rs:1:1:\nno\n\n\nfailures:\n    a\n",
            Some(101),
            false,
        );
        assert_eq!(
            found,
            [
                (TestOutcome::Failed, Some("thread 'a' panicked at src/lib.rs:1:1:".to_owned())),
                (TestOutcome::Skipped, None),
                (TestOutcome::Passed, None),
            ]
        );
    }

    #[test]
    fn a_process_that_refuses_is_an_error_of_each_test() {
        for (said, code, expected) in [
            (
                "error while loading shared libraries: x.so: cannot open\n",
                127,
                "does not run in the sandbox (exit code 127)",
            ),
            ("/x: version `GLIBC_2.99' not found (required by /x)\n", 1, "does not run in the sandbox (exit code 1)"),
            ("env: '/x': No such file or directory\n", 127, "does not run in the sandbox (exit code 127)"),
            (
                "\nrunning 3 tests\nthread panicked: not found\n",
                101,
                "not reported; the process ended with exit code 101",
            ),
        ] {
            let found = read(said, Some(code), false);
            let told = |(outcome, message): &(TestOutcome, Option<String>)| {
                *outcome == TestOutcome::Error && message.as_ref().is_some_and(|message| message.contains(expected))
            };
            assert!(found.len() == 3 && found.iter().all(told), "{found:?}");
        }
    }
}
