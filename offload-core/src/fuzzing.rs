//! What is checked of everything that is read from outside, for any input: one function for each kind.
//!
//! The programs in `fuzz/` call these with what cargo-fuzz makes up, and the test below with each file of `fuzz/seeds`.
//! A function panics if its input breaks a promise of the code that reads it. The first bytes of an input say how
//! the rest is used, so that a seed is one file. It is no part of the public interface.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a promise that does not hold is to panic")]

mod junit;

pub use self::junit::junit;
pub use crate::config::fuzz::configuration;
pub use crate::framework::fuzz::{cargo_output, pytest_lines};
pub use crate::provider::fuzz::sandbox_output;
pub use crate::report::history::fuzz::history;
pub use crate::worker::fuzz::{doctests, libtest_outcome, pytest_messages, relay, worker_frames};

/// Checks an input.
#[cfg(test)]
type Check = fn(&[u8]);

/// All kinds, by the names of their programs.
#[cfg(test)]
const ALL: [(&str, Check); 11] = [
    ("cargo_output", cargo_output),
    ("configuration", configuration),
    ("doctests", doctests),
    ("history", history),
    ("junit", junit),
    ("libtest_outcome", libtest_outcome),
    ("pytest_lines", pytest_lines),
    ("pytest_messages", pytest_messages),
    ("relay", relay),
    ("sandbox_output", sandbox_output),
    ("worker_frames", worker_frames),
];

/// The first byte of an input and the rest.
pub(crate) fn split_first(input: &[u8]) -> (u8, &[u8]) {
    input.split_first().map_or((0, input), |(first, rest)| (*first, rest))
}

/// The first line of an input, as text, and the rest.
pub(crate) fn split_line(input: &[u8]) -> (String, &[u8]) {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    (String::from_utf8_lossy(&input[..end]).into_owned(), input.get(end + 1..).unwrap_or_default())
}

/// `bytes` in pieces whose sizes follow from `seed`.
pub(crate) fn pieces(seed: u8, mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let longest = 1 << (seed % 8);
    let mut state = u32::from(seed) + 1;
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let size = 1 + (state >> 16) as usize % longest;
        let (piece, rest) = bytes.split_at(size.min(bytes.len()));
        bytes = rest;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_was_found_stays_mended() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
        for (name, check) in ALL {
            let mut files = 0;
            for entry in std::fs::read_dir(seeds.join(name)).expect(name) {
                let path = entry.unwrap().path();
                let input = std::fs::read(&path).unwrap();
                if std::panic::catch_unwind(|| check(&input)).is_err() {
                    assert!(path.as_os_str().is_empty(), "{} breaks a promise", path.display());
                }
                files += 1;
            }
            assert!(files > 0, "there are no seeds for {name}");
        }
    }

    #[test]
    fn pieces_are_the_whole() {
        for seed in 0..=255 {
            assert_eq!(pieces(seed, b"0123456789").collect::<Vec<_>>().concat(), b"0123456789");
        }
    }
}
