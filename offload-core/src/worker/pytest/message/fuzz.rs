//! What holds for anything that a Python process may send.

use serde::de::IgnoredAny;

use super::{Decoder, Incoming, next};
use crate::fuzzing::{pieces, split_first};

/// However a stream is cut, the same messages and errors come of it. What is passed on as JSON is JSON.
pub fn pytest_messages(input: &[u8]) {
    let (seed, bytes) = split_first(input);
    let whole = read(std::iter::once(bytes));
    assert_eq!(whole, read(pieces(seed, bytes)), "it depends on where the stream is cut");
}

fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let mut decoder = Decoder::new().with_max_line(2000);
    let mut read = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match next(&mut decoder) {
                Ok(None) => break,
                Ok(Some(message)) => {
                    check(&message);
                    read.push(format!("{message:?}"));
                }
                Err(error) => read.push(error.to_string()),
            }
        }
    }
    read
}

fn check(message: &Incoming) {
    let json = match message {
        Incoming::Native(_, data) => Some(data),
        Incoming::LateReport(_, reports, _) => Some(reports),
        Incoming::CollectReport { report, .. } => Some(report),
        Incoming::Finished(_, result) | Incoming::Crashed(_, _, result) => result.native.as_ref(),
        _ => None,
    };
    if let Some(json) = json {
        assert!(serde_json::from_str::<IgnoredAny>(json).is_ok(), "{json} is no JSON");
    }
}
