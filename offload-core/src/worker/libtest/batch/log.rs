//! The harness's log (`--logfile`): one entry for each test that has ended.
//!
//! What tests and their children print cannot be mistaken for it, and it is there however a test treats its output. The
//! form is that of rust-lang/rust, library/test/src/console.rs: `ok NAME`, `failed: MESSAGE NAME`, where the message may
//! have several lines.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::pipe::{PipeFlags, pipe_with};

use crate::worker::libtest::outcome::LineResult;

/// The longest entry, in bytes.
const LONGEST: usize = 1 << 20;

/// A pipe that a harness opens by name, as its log.
pub(super) struct Pipe {
    /// Keeps the pipe open until the harness has opened it, and after that.
    writer: OwnedFd,
}

impl Pipe {
    /// The pipe and its reading end, from which reading does not block. `None` where the system gives descriptors no names.
    pub(super) fn new() -> io::Result<Option<(Self, OwnedFd)>> {
        if !Path::new("/proc/self/fd").exists() {
            return Ok(None);
        }
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&reader, true)?;
        Ok(Some((Self { writer }, reader)))
    }

    /// By what name the harness opens it.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.writer.as_raw_fd()).into()
    }
}

/// A test that has ended.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::worker::libtest) struct Entry {
    pub(in crate::worker::libtest) name: String,
    pub(in crate::worker::libtest) result: LineResult,
    /// The harness's words on a test that failed without a panic of its own.
    pub(in crate::worker::libtest) message: Option<String>,
}

/// Reads a log as it comes.
#[derive(Debug, Default)]
pub(in crate::worker::libtest) struct Log {
    /// The lines of an entry that is not complete, and an unfinished line.
    text: Vec<u8>,
    /// Where the unfinished line begins.
    line: usize,
}

impl Log {
    /// Takes bytes; returns the entries that are complete. `is_test` knows the names that there can be.
    pub(in crate::worker::libtest) fn push(&mut self, bytes: &[u8], is_test: impl Fn(&str) -> bool) -> Vec<Entry> {
        let mut entries = Vec::new();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.text.extend_from_slice(piece);
            if self.text.ends_with(b"\n") {
                let text = String::from_utf8_lossy(&self.text[..self.text.len() - 1]).into_owned();
                let last = self.line;
                if let Some(entry) = parse(&text, text.get(last..).unwrap_or(&text), &is_test) {
                    entries.push(entry);
                    self.text.clear();
                } else if !["failed: ", "ignored: "].iter().any(|begin| text.starts_with(begin)) {
                    self.text.clear();
                }
                self.line = self.text.len();
            }
            if self.text.len() > LONGEST {
                self.text.clear();
                self.line = 0;
            }
        }
        entries
    }
}

/// Reads an entry whose last line is `last`.
fn parse(text: &str, last: &str, is_test: &impl Fn(&str) -> bool) -> Option<Entry> {
    let (word, rest) = text.split_once(' ')?;
    let known = |name: &str| is_test(name).then(|| name.to_owned());
    let bare = |result| Some(Entry { name: known(rest)?, result, message: None });
    match word {
        "ok" => return bare(LineResult::Ok),
        "failed" if known(rest).is_some() => return bare(LineResult::Failed),
        "ignored" => return bare(LineResult::Ignored(None)),
        _ => {}
    }
    // A message may end with anything; a name of a harness that imitates the standard one may have spaces.
    let (at, name) = last.match_indices(' ').find_map(|(at, _)| Some((at, known(&last[at + 1..])?)))?;
    let message = text[..text.len() - last.len() + at].split_once(' ').map(|(_, message)| message.to_owned());
    let result = match word {
        "failed:" | "failed" => LineResult::Failed,
        "ignored:" => return Some(Entry { name, result: LineResult::Ignored(message), message: None }),
        _ => return None,
    };
    Some(Entry { name, result, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "ok a\nfailed m::b\nnothing known\nfailed: panic did not contain expected string\n      panic message: \
                       \"other a\"\n expected substring: \"x y\" c\nignored: because a d\nignored a\nfailed (time limit exceeded) \
                       m::b\nok two words\n";

    fn read(chunks: &[&[u8]]) -> Vec<Entry> {
        let is_test = |name: &str| ["a", "m::b", "c", "d", "two words"].contains(&name);
        let mut log = Log::default();
        chunks.iter().flat_map(|chunk| log.push(chunk, is_test)).collect()
    }

    #[test]
    fn entries_of_all_kinds_are_read_wherever_they_are_cut() {
        let whole = read(&[LOG.as_bytes()]);
        let names: Vec<_> = whole.iter().map(|entry| (entry.name.as_str(), &entry.result)).collect();
        let because = LineResult::Ignored(Some("because a".to_owned()));
        let expected = [
            ("a", &LineResult::Ok),
            ("m::b", &LineResult::Failed),
            ("c", &LineResult::Failed),
            ("d", &because),
            ("a", &LineResult::Ignored(None)),
            ("m::b", &LineResult::Failed),
            ("two words", &LineResult::Ok),
        ];
        assert_eq!(names, expected);
        let message =
            "panic did not contain expected string\n      panic message: \"other a\"\n expected substring: \"x y\"";
        assert_eq!(whole[2].message.as_deref(), Some(message));
        for cut in 0..LOG.len() {
            let (one, other) = LOG.as_bytes().split_at(cut);
            assert_eq!(read(&[one, other]), whole, "cut at {cut}");
        }
    }
}
