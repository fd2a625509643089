//! Stacks as Python's fault handler writes them, innermost frame first: what of them is the test's.

use std::path::Path;

use super::super::output::last_lines;

/// How many lines that were written by a process that died a report shows, if no stack is among them.
const LAST_WORDS: usize = 40;
/// How many lines from the beginning of a stack.
const STACK_LINES: usize = 200;
/// How many lines before it.
const LEAD_LINES: usize = 20;
/// What the fault handler writes first when a process crashes.
const CRASH: &str = "Fatal Python error:";
/// Parts of the paths of what runs tests.
const RUNNER: [&str; 5] = ["/_pytest/", "/pluggy/", "/pytest_offload/", "/pytest/__main__.py\"", "\"<frozen runpy>\""];

/// The function of pytest that calls everything that can fail.
const CALLER: &str = " in from_call";

/// What is being torn down: the fixture, finalizer, hook or exit function that the stacks of a worker are in.
///
/// Paths below `directory` are shortened.
pub(super) fn torn_down(text: &str, directory: &Path) -> Option<String> {
    let frames: Vec<Frame<'_>> = text.lines().filter(|line| is_frame(line)).filter_map(Frame::parse).collect();
    let mut called: Option<&Frame<'_>> = None;
    for frame in &frames {
        if frame.is_runners() {
            let kind = match (frame.file.rsplit('/').next(), frame.function) {
                (Some("fixtures.py"), "_teardown_yield_fixture") => Some("the fixture"),
                (Some("fixtures.py"), "finish") | (Some("runner.py"), "teardown_exact") => Some("the finalizer"),
                (Some("ending.py"), "run_exit_handlers") => Some("the exit function"),
                (_, "_multicall") if called.is_some_and(Frame::is_hook) => Some("the hook"),
                _ => None,
            };
            if let (Some(kind), Some(called)) = (kind, called) {
                let file = Path::new(called.file);
                let file = file.strip_prefix(directory).unwrap_or(file).display();
                return Some(format!("{kind} {}, {file}:{}", called.function, called.line));
            }
        } else {
            // The outermost of those between two frames of what runs tests.
            called = Some(frame);
        }
    }
    None
}

/// A line of a stack.
struct Frame<'a> {
    file: &'a str,
    line: &'a str,
    function: &'a str,
}

impl<'a> Frame<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (file, rest) = text.strip_prefix("  File \"")?.split_once("\", line ")?;
        let (line, function) = rest.split_once(" in ")?;
        Some(Self { file, line, function })
    }

    /// Whether it is of what runs tests.
    fn is_runners(&self) -> bool {
        let file = format!("\"{}\"", self.file);
        RUNNER.iter().any(|part| file.contains(part))
    }

    fn is_hook(&self) -> bool {
        self.function.starts_with("pytest_")
    }
}

/// Leaves out the frames of pytest below those of the test, as pytest does. A stack that has no others stays whole.
pub(super) fn without_pytest(text: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    let mut at = 0;
    while let Some(&line) = lines.get(at) {
        if !is_frame(line) {
            kept.push(line);
            at += 1;
            continue;
        }
        let end = lines[at..].iter().position(|line| !is_frame(line)).map_or(lines.len(), |length| at + length);
        let frames = &lines[at..end];
        // Below this, nothing is the test's, however pytest was started.
        let called = frames.iter().position(|frame| frame.contains("/_pytest/") && frame.ends_with(CALLER));
        let frames = &frames[..called.unwrap_or(frames.len())];
        let shown = frames.iter().rposition(|frame| !RUNNER.iter().any(|part| frame.contains(part)));
        // A stack without anything of the test stays whole.
        let shown = shown.map_or(&lines[at..end], |last| &frames[..=last]);
        kept.extend(shown);
        at = end;
    }
    kept.join("\n").trim_end().to_owned()
}

fn is_frame(line: &str) -> bool {
    line.starts_with("  File ")
}

/// Of what a process wrote before it died: the stack of its crash from its beginning, or else the last lines.
pub(super) fn last_words(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    match lines.iter().rposition(|line| line.starts_with(CRASH)) {
        Some(crash) => {
            let rest = without_pytest(&lines[crash..].join("\n"));
            let lead = lines[crash.saturating_sub(LEAD_LINES)..crash].join("\n");
            let stack: Vec<&str> = rest.lines().take(STACK_LINES).collect();
            format!("{lead}\n{}", stack.join("\n")).trim().to_owned()
        }
        None => last_lines(text, LAST_WORDS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_frames_of_a_crash_stay_and_those_of_pytest_go() {
        let deep: String = (0..90).map(|n| format!("  File \"/p/test_a.py\", line {n} in f{n}\n")).collect();
        let text = format!(
            "noise\nFatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most recent call first):\n{deep}  \
             File \"/v/_pytest/python.py\", line 1 in call\n  File \"/v/pluggy/_callers.py\", line 2 in m\n\nExtension: x"
        );
        let words = last_words(&text);
        assert!(words.starts_with("noise\nFatal Python error"), "{words}");
        assert!(words.contains("in f0\n") && words.contains("in f89\n"), "{words}");
        assert!(!words.contains("_pytest") && words.ends_with("Extension: x"), "{words}");
    }

    #[test]
    fn what_is_torn_down_is_named() {
        let stack = |frames: &[&str]| {
            let frames: String = frames.iter().map(|frame| format!("  File \"{frame}\n")).collect();
            format!("Thread 0x2 (most recent call first):\n{frames}")
        };
        let named = |frames: &[&str]| torn_down(&stack(frames), Path::new("/p"));
        let fixture = [
            "/lib/python3/subprocess.py\", line 1 in wait",
            "/p/conftest.py\", line 7 in db",
            "/v/_pytest/fixtures.py\", line 2 in _teardown_yield_fixture",
            "/v/_pytest/fixtures.py\", line 3 in finish",
            "/v/_pytest/runner.py\", line 4 in teardown_exact",
            "/v/_pytest/runner.py\", line 5 in pytest_sessionfinish",
            "/v/pluggy/_callers.py\", line 6 in _multicall",
        ];
        assert_eq!(named(&fixture).as_deref(), Some("the fixture db, conftest.py:7"));
        let finalizer = [&["/elsewhere/x.py\", line 9 in close"], &fixture[3..]].concat();
        assert_eq!(named(&finalizer).as_deref(), Some("the finalizer close, /elsewhere/x.py:9"));
        let hook = ["/p/conftest.py\", line 8 in helper", "/p/conftest.py\", line 9 in pytest_unconfigure", fixture[6]];
        assert_eq!(named(&hook).as_deref(), Some("the hook pytest_unconfigure, conftest.py:9"));
        let exit = ["/p/a.py\", line 1 in bye", "/v/pytest_offload/worker/ending.py\", line 2 in run_exit_handlers"];
        assert_eq!(named(&exit).as_deref(), Some("the exit function bye, a.py:1"));
        assert_eq!(named(&fixture[3..]), None);
    }

    #[test]
    fn frames_between_those_of_the_test_stay() {
        let text = "Thread 0x1:\n  File \"/p/a.py\", line 1 in helper\n  File \"/v/_pytest/raises.py\", line 1 in r\n  \
                    File \"/p/a.py\", line 2 in test\n  File \"/v/_pytest/python.py\", line 3 in call";
        assert!(without_pytest(text).ends_with("line 2 in test"));
        let started = "Thread 0x1:\n  File \"/p/a.py\", line 1 in test\n  File \"/v/_pytest/python.py\", line 1 in x\n  \
                       File \"/v/_pytest/runner.py\", line 3 in from_call\n  File \"/bin/pytest\", line 8 in <module>";
        assert!(without_pytest(started).ends_with("line 1 in test"));
        let own = "Thread 0x1:\n  File \"/v/_pytest/main.py\", line 1 in main";
        assert_eq!(without_pytest(own), own);
    }
}
