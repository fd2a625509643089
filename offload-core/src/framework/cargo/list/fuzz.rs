//! What holds for anything that Cargo and test binaries may write.

use super::super::process::message;
use super::*;
use crate::fuzzing::split_first;

/// An input: which reader, and what it reads.
pub fn cargo_output(input: &[u8]) {
    let (kind, text) = split_first(input);
    match kind % 4 {
        0 => {
            for line in String::from_utf8_lossy(text).lines() {
                if let Some(message) = message(line) {
                    let _ = format!("{message:?}");
                }
            }
        }
        1 => {
            let Some(tests) = parse_json(text) else { return };
            // Each is named by what was written.
            let names: usize = tests.iter().map(|test| test.name.len()).sum();
            assert!(names <= text.len(), "the names are longer than what was read");
        }
        _ => {
            let Some(tests) = parse_terse(text) else { return };
            let lossy = String::from_utf8_lossy(text);
            assert_eq!(tests.len(), lossy.lines().filter(|line| !line.trim().is_empty()).count());
            let again: String = tests.iter().map(|test| format!("{}: test\n", test.name)).collect();
            assert_eq!(parse_terse(again.as_bytes()).as_ref(), Some(&tests), "what is written is read otherwise");
            assert!(mark_ignored(tests.clone(), &tests).iter().all(|test| test.ignored.is_some()));
        }
    }
}
