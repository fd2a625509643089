//! What holds for anything that `cargo test --doc` may write.

#![allow(clippy::expect_used, reason = "a promise that does not hold is to panic")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use super::super::LibtestOptions;
use super::*;
use crate::fuzzing::{pieces, split_first, split_line};

/// An input: how the output is cut, how the command ends, the tests' names with commas between, and what it writes. Each
/// test has one result, however the output comes.
pub fn doctests(input: &[u8]) {
    let (seed, rest) = split_first(input);
    let (how, rest) = split_first(rest);
    let (names, output) = split_line(rest);
    let names: Vec<&str> = names.split(',').take(20).collect();
    let whole = follow(&names, how, &mut std::iter::once(output));
    assert_eq!(whole.len(), names.len(), "not each doctest has one result: {whole:?}");
    assert_eq!(whole, follow(&names, how, &mut pieces(seed, output)), "it depends on how the output came");
}

/// What became of each test, without the time that it took.
fn follow(names: &[&str], how: u8, output: &mut dyn Iterator<Item = &[u8]>) -> BTreeMap<TestKey, String> {
    let mailbox = Mailbox::new(&LibtestOptions::default()).expect("a pair of sockets");
    let said = RefCell::new(Vec::new());
    let emit = |message| said.borrow_mut().push(message);
    let mut reader = Reader {
        mailbox: &mailbox,
        emit: &emit,
        shown_as: None,
        parser: Parser::new(1 << 10),
        open: Open::new(names.iter().enumerate().map(item).collect()),
        limit: None,
        since: Instant::now(),
        lines: Lines::new(64, Overlong::Split),
        stderr: Capture::new(1 << 10),
    };
    output.for_each(|piece| reader.output(Stream::Stdout, piece));
    reader.finish(end(how));
    let mut fates = BTreeMap::new();
    let mut settle = |key, fate| {
        let before = fates.insert(key, fate);
        assert!(before.is_none(), "test {key} was {before:?} already");
    };
    for message in said.take() {
        match message {
            Message::Finished { key, result } => {
                let TestResult { outcome, message, stdout, .. } = *result;
                settle(key, format!("{outcome:?} {message:?} {stdout:?}"));
            }
            Message::TakenBack { tests } => tests.into_iter().for_each(|key| settle(key, "given back".to_owned())),
            _ => {}
        }
    }
    fates
}

fn item((key, name): (usize, &&str)) -> RunItem {
    let item = serde_json::json!({ "key": key, "unit": 0, "name": name, "attempt": 1 });
    serde_json::from_value(item).expect("a test as the protocol has it")
}

fn end(how: u8) -> io::Result<End> {
    let by = [EndedBy::Itself, EndedBy::TimeLimit, EndedBy::Order][usize::from(how / 8) % 3];
    let status = ExitStatus::from_raw([0, 9, 101 << 8, 1 << 8][usize::from(how % 4)]);
    match how {
        255 => Err(io::ErrorKind::Other.into()),
        _ => Ok(End { status, by, at: Instant::now(), leaky: how & 4 != 0 }),
    }
}
