//! What holds for anything that a test process may write.

use super::super::batch::log::Log;
use super::super::capture::{Capture, Lines, Overlong};
use super::*;
use crate::fuzzing::{pieces, split_first, split_line};

/// An input: how the output is cut, the exit status and the kind of harness, the test's name, and what the process wrote
/// to both streams, with a NUL between.
pub fn libtest_outcome(input: &[u8]) {
    let (seed, rest) = split_first(input);
    let (how, rest) = split_first(rest);
    let (name, written) = split_line(rest);
    let at = written.iter().position(|byte| *byte == 0).unwrap_or(written.len());
    let (stdout, stderr) = (&written[..at], written.get(at + 1..).unwrap_or_default());
    let (stdout, stderr) = (captured(seed, stdout), captured(seed, stderr));
    lines(seed, written);

    let status = match how % 8 {
        0 | 1 => ExitStatus::from_raw(0),
        2 => ExitStatus::from_raw(9),
        3 => ExitStatus::from_raw(1 << 8),
        _ => ExitStatus::from_raw(FAILURE_CODE << 8),
    };
    let custom = how & 8 != 0;
    let reading = of_libtest(status, &name, (&stdout, &stderr), custom);
    match &reading {
        None => assert!(is_exit_of_harness(status) && !custom, "there must be an outcome"),
        Some(reading) => {
            check_message(reading.message.as_deref());
            if reading.outcome == TestOutcome::Passed {
                assert!(status.success(), "passed with {status}");
                assert!(custom || stdout.text.contains("test result: ") || stdout.text.contains("\"passed\":"));
            }
        }
    }
    assert_eq!(of_opaque(status, &stderr.text).outcome == TestOutcome::Passed, status.success());
    for code in [0, FAILURE_CODE] {
        let entry = Log::default().push(stdout.text.as_bytes(), |known| known == name).pop();
        check_message(of_log(entry, &name, code, (&stdout.text, &stderr.text)).message.as_deref());
    }

    let mut own = stdout.text.clone();
    strip_harness(&mut own, &name);
    assert!(stdout.text.contains(&own), "{own:?} was not written");
    for line in stdout.text.lines() {
        if let Some((name, _)) = result_line(line) {
            assert!(line.contains(strip_kind(name)));
        }
    }
}

fn check_message(message: Option<&str>) {
    let Some(message) = message else { return };
    assert!(!message.contains('\n'), "{message:?} has several lines");
    assert!(message.chars().count() <= 2 * LONGEST_MESSAGE, "a message of {} characters", message.chars().count());
}

/// What is kept of a stream does not depend on how it came.
fn captured(seed: u8, bytes: &[u8]) -> Captured {
    let capture = |pieces: &mut dyn Iterator<Item = &[u8]>, limit| {
        let mut capture = Capture::new(limit);
        pieces.for_each(|piece| capture.push(piece));
        capture.finish()
    };
    for limit in [0, 7, 64] {
        let whole = capture(&mut std::iter::once(bytes), limit);
        assert_eq!(whole, capture(&mut pieces(seed, bytes), limit), "it depends on how the output came");
        assert!(whole.text.len() <= 3 * (limit + 2) + 64, "{} bytes are kept of {limit}", whole.text.len());
    }
    capture(&mut std::iter::once(bytes), 1 << 20)
}

/// Lines are all of what came, but for the rest of those that are cut off.
fn lines(seed: u8, bytes: &[u8]) {
    let read = |overlong| {
        let (mut lines, mut came) = (Lines::new(16, overlong), Vec::new());
        for piece in pieces(seed, bytes) {
            lines.push(piece, |line| came.push(line.to_vec()));
        }
        came.push(lines.finish());
        came
    };
    assert_eq!(read(Overlong::Split).concat(), bytes);
    let whole: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    for line in read(Overlong::Truncate) {
        let begins = |whole: &&[u8]| whole.starts_with(&line);
        assert!(line.is_empty() || whole.iter().any(begins), "{line:?} is not the beginning of a line");
    }
}
