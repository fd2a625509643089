//! What a harness that runs one test at a time prints, and what others print in between.
//!
//! Results are not read here: they come from the [log](super::log). This tells which test was running last, what came past
//! the harness's capture, and what failed tests had written.

use std::collections::HashMap;

use crate::framework::Captured;
use crate::worker::libtest::capture::{Capture, Lines, Overlong};
use crate::worker::libtest::outcome::{is_announcement, strip_kind};

/// More than this of a line is dropped.
const LONGEST_LINE: usize = 1 << 20;

/// Where in the harness's output the stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Before `running 3 tests`.
    Beginning,
    Tests,
    /// The output of failed tests.
    Failures,
    End,
}

/// Reads what a harness prints.
pub(super) struct Transcript {
    lines: Lines,
    stage: Stage,
    limit: usize,
    /// The test whose line came last.
    last: Option<String>,
    /// How many tests the harness said that it runs.
    announced: Option<usize>,
    has_summary: bool,
    section: Option<(String, Capture)>,
    sections: HashMap<String, Captured>,
}

/// Something that came past the harness's capture, and in the line of which test.
pub(super) struct Stray<'a> {
    pub(super) test: Option<&'a str>,
    pub(super) bytes: &'a [u8],
}

impl Transcript {
    /// Keeps `limit` bytes of the output of each test that failed.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            lines: Lines::new(LONGEST_LINE, Overlong::Truncate),
            stage: Stage::Beginning,
            limit,
            last: None,
            announced: None,
            has_summary: false,
            section: None,
            sections: HashMap::new(),
        }
    }

    /// Takes bytes. `is_test` knows the names that there can be.
    pub(super) fn push(&mut self, bytes: &[u8], is_test: &dyn Fn(&str) -> bool, stray: &mut dyn FnMut(Stray<'_>)) {
        let mut lines = std::mem::replace(&mut self.lines, Lines::new(0, Overlong::Truncate));
        lines.push(bytes, |line| self.line(line, is_test, stray));
        self.lines = lines;
        // The harness says what it runs before it does, and how it went on the same line.
        if self.stage == Stage::Tests
            && let Some(line) = std::str::from_utf8(self.lines.unfinished()).ok()
            && let Some((name, _)) = begun_test(line, is_test)
            && self.last.as_deref() != Some(name)
        {
            self.last = Some(name.to_owned());
        }
    }

    /// Takes the end of the output.
    pub(super) fn finish(&mut self, is_test: &dyn Fn(&str) -> bool, stray: &mut dyn FnMut(Stray<'_>)) {
        let rest = self.lines.finish();
        if !rest.is_empty() {
            self.line(&rest, is_test, stray);
        }
        self.end_section();
    }

    /// The test that was begun last, if the harness was heard to say so.
    pub(super) fn last(&self) -> Option<&str> {
        self.last.as_deref()
    }

    /// Whether the harness was heard at all.
    pub(super) fn has_begun(&self) -> bool {
        self.announced.is_some()
    }

    /// Whether the harness has come to its end.
    pub(super) fn has_ended(&self) -> bool {
        self.has_summary
    }

    /// Whether the harness has come to its end with fewer tests than it was asked for.
    pub(super) fn lacks_tests(&self, asked_for: usize) -> bool {
        self.has_ended() && self.announced.is_some_and(|announced| announced < asked_for)
    }

    /// What a failed test had written, as the harness repeats it at its end.
    pub(super) fn take_section(&mut self, name: &str) -> Option<Captured> {
        self.sections.remove(name)
    }

    fn line(&mut self, line: &[u8], is_test: &dyn Fn(&str) -> bool, stray: &mut dyn FnMut(Stray<'_>)) {
        let text = String::from_utf8_lossy(line);
        let trimmed = text.trim_end();
        if self.stage == Stage::Beginning {
            if is_announcement(trimmed) {
                self.announced = trimmed.split(' ').nth(1).and_then(|number| number.parse().ok());
                self.stage = Stage::Tests;
            } else if !trimmed.is_empty() {
                stray(Stray { test: None, bytes: line });
            }
            return;
        }
        // Whatever seemed to be the end before it was not the harness's.
        if self.section.is_none()
            && let Some((name, rest)) = begun_test(&text, is_test)
        {
            self.stage = Stage::Tests;
            self.last = Some(name.to_owned());
            let rest = without_verdict(rest);
            if !rest.is_empty() {
                stray(Stray { test: self.last.as_deref(), bytes: rest.as_bytes() });
            }
            return;
        }
        match (self.stage, trimmed) {
            (_, "failures:") => {
                self.stage = if self.section.is_some() { Stage::End } else { Stage::Failures };
                self.end_section();
            }
            (Stage::Tests | Stage::Failures | Stage::End, summary) if summary.starts_with("test result: ") => {
                self.end_section();
                self.has_summary = true;
                self.stage = Stage::End;
            }
            (Stage::Failures, heading) if self.begin_section(heading, is_test) => {}
            (Stage::Failures, _) => {
                if let Some((_, capture)) = &mut self.section {
                    capture.push(line);
                }
            }
            (Stage::Tests, "" | "ok" | "FAILED") => {}
            (Stage::Tests, _) => stray(Stray { test: self.last.as_deref(), bytes: line }),
            _ => {}
        }
    }

    fn begin_section(&mut self, heading: &str, is_test: &dyn Fn(&str) -> bool) -> bool {
        let name = heading.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        let Some(name) = name.filter(|name| is_test(name) && !self.sections.contains_key(*name)) else { return false };
        if self.section.as_ref().is_some_and(|(current, _)| current == name) {
            return false;
        }
        let name = name.to_owned();
        self.end_section();
        self.section = Some((name, Capture::new(self.limit)));
        true
    }

    fn end_section(&mut self) {
        if let Some((name, capture)) = self.section.take() {
            let mut captured = capture.finish();
            // The harness ends each with an empty line, and all with one more.
            let end = captured.text.trim_end_matches('\n').len();
            captured.text.truncate((end + 1).min(captured.text.len()));
            self.sections.insert(name, captured);
        }
    }
}

/// The name of the test whose line this is, and the rest of the line.
fn begun_test<'a>(line: &'a str, is_test: &dyn Fn(&str) -> bool) -> Option<(&'a str, &'a str)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let name = strip_kind(name);
    is_test(name).then_some((name, rest))
}

/// What is left of a line after its test's name, without the verdict at its end.
fn without_verdict(rest: &str) -> &str {
    let line = rest.trim_end_matches(['\r', '\n']);
    if line.starts_with("ignored") {
        return "";
    }
    let own = ["ok", "FAILED"].iter().find_map(|verdict| line.strip_suffix(verdict));
    own.unwrap_or(if line.is_empty() { "" } else { rest })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "from a constructor\n\nrunning 4 tests\ntest a ... ok\ntest b ... a child\nrunning 1 test\ntest x ... ok\n\n\
                          test result: ok. 1 passed;\n\nFAILED\ntest c - should panic ... partok\ntest d ... FAILED\n\nfailures:\n\n---- b \
                          stdout ----\none\n---- b stdout ----\ntwo\n\n---- d stdout ----\nthree\n\n\nfailures:\n    b\n    d\n\n\
                          test result: FAILED. 2 passed; 2 failed;\n\n";

    fn read(output: &str, chunk: usize) -> (Transcript, String) {
        let mut transcript = Transcript::new(1000);
        let mut strays = String::new();
        let is_test = |name: &str| ["a", "b", "c", "d", "e"].contains(&name);
        let mut stray = |stray: Stray<'_>| {
            strays.push_str(&format!("{:?}: {:?}\n", stray.test, String::from_utf8_lossy(stray.bytes)));
        };
        output.as_bytes().chunks(chunk).for_each(|bytes| transcript.push(bytes, &is_test, &mut stray));
        transcript.finish(&is_test, &mut stray);
        (transcript, strays)
    }

    #[test]
    fn what_a_harness_prints_is_told_from_what_others_print() {
        for chunk in [1, 7, 10_000] {
            let (mut transcript, strays) = read(OUTPUT, chunk);
            let expected = "None: \"from a constructor\\n\"\nSome(\"b\"): \"a child\\n\"\nSome(\"b\"): \"running 1 test\\n\"\n\
                            Some(\"b\"): \"test x ... ok\\n\"\nSome(\"c\"): \"part\"\n";
            assert_eq!(strays, expected);
            assert_eq!(
                transcript.take_section("b").map(|section| section.text).as_deref(),
                Some("one\n---- b stdout ----\ntwo\n")
            );
            assert_eq!(transcript.take_section("d").map(|section| section.text).as_deref(), Some("three\n"));
            assert_eq!(transcript.last(), Some("d"));
            assert!(transcript.lacks_tests(5) && !transcript.lacks_tests(4));
        }
    }

    #[test]
    fn the_test_that_runs_is_known_by_an_unfinished_line() {
        let (transcript, strays) = read("\nrunning 2 tests\ntest a ... ok\ntest b ... half a li", 3);
        assert_eq!(transcript.last(), Some("b"));
        assert_eq!(strays, "Some(\"b\"): \"half a li\"\n");
        assert!(!transcript.lacks_tests(3));
    }
}
