//! What people type who know `cargo test` or `cargo nextest`, where clap alone would misunderstand it: a command behind
//! options, a filter that is called like a command, options of other runners, options for the harness that concern the
//! run.
//!
//! Everything here is either honoured or answered; nothing is silently taken for something else.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Error};

use super::cargo::{CargoCli, CargoRunArgs};

/// Options that exist elsewhere, and what they are here.
const ELSEWHERE: [(&str, &str); 11] = [
    ("--no-run", "`cargo offload list` builds the tests and runs none"),
    ("--ignored", "`--run-ignored only` runs ignored tests, `--run-ignored all` runs them too"),
    ("--profile", "`--cargo-profile NAME` chooses Cargo's profile"),
    ("--jobs", "`--parallel N` is for tests, `--build-jobs N` for the compiler"),
    ("--show-output", "`--no-capture` shows what tests write, also when they pass"),
    ("--filterset", "filters are substrings of test names here; groups in offload.toml know packages and targets"),
    ("--filter-expr", "filters are substrings of test names here; groups in offload.toml know packages and targets"),
    ("-E", "filters are substrings of test names here; groups in offload.toml know packages and targets"),
    ("--no-tests-fail", "`--no-tests=fail`"),
    ("--slow-timeout", "`--timeout SECS` ends a test, `offload.slow_test_secs` says when a test is slow"),
    ("--output-format", "`--message-format json` is for programs"),
];

/// Arguments with a command behind options of all commands (`-v list`) as clap understands them (`list -v`).
pub fn command_first(mut args: Vec<OsString>) -> Vec<OsString> {
    let mut at = 1;
    while let Some(arg) = args.get(at).and_then(|arg| arg.to_str()) {
        if at > 1 && is_command(arg) {
            let command = args.remove(at);
            args.insert(1, command);
            break;
        }
        at += match arg {
            "-c" | "--config" | "--color" => 2,
            "--verbose" | "--quiet" => 1,
            _ if arg.starts_with("--config=") || arg.starts_with("--color=") => 1,
            _ if arg.starts_with("-c") && !arg.starts_with("--") => 1,
            _ if arg.len() > 1 && arg[1..].chars().all(|c| c == 'v' || c == 'q') && arg.starts_with('-') => 1,
            _ => break,
        };
    }
    args
}

fn is_command(word: &str) -> bool {
    word == "help" || CargoCli::command().get_subcommands().any(|command| command.get_name() == word)
}

/// Refuses a filter that may as well be meant as a command: `-p tools list` must not run tests.
///
/// # Errors
///
/// Says how to write either.
pub fn check_filters(cli: &CargoCli) -> Result<(), Error> {
    let ambiguous = cli.run.selection.filters.iter().find(|filter| cli.command.is_none() && is_command(filter));
    match ambiguous {
        None => Ok(()),
        Some(word) => Err(CargoCli::command().error(
            ErrorKind::ArgumentConflict,
            format!(
                "`{word}` is the name of a command, but stands where filters stand\n\n  \
                 tip: to use the command, name it first: 'cargo offload {word} …'\n  \
                 tip: to filter by that name, say so: 'cargo offload run … {word}'"
            ),
        )),
    }
}

/// The error with what an option of another runner is here, instead of guesses from its letters.
pub fn explain(mut error: Error) -> Error {
    let unknown = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(unknown)) if error.kind() == ErrorKind::UnknownArgument => unknown.clone(),
        _ => return error,
    };
    // Whoever mistypes an option does not look for a test of that name.
    error.remove(ContextKind::Suggested);
    if let Some((_, here)) = ELSEWHERE.iter().find(|(elsewhere, _)| *elsewhere == unknown) {
        error.remove(ContextKind::SuggestedArg);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![(*here).into()]));
    }
    error
}

/// Takes out of the arguments for the harness what concerns the run as a whole, as with `cargo test`; gives a note for
/// each that has no effect here.
///
/// # Errors
///
/// A value that makes no sense.
pub fn take_from_harness(args: &mut CargoRunArgs) -> Result<Vec<String>, Error> {
    let mut notes = Vec::new();
    let mut kept = Vec::new();
    let mut typed = std::mem::take(&mut args.selection.harness_args).into_iter();
    while let Some(arg) = typed.next() {
        let (name, value) = match arg.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (arg.clone(), None),
        };
        match name.as_str() {
            "--test-threads" => {
                let value = value.or_else(|| typed.next()).unwrap_or_default();
                let threads = super::whole_number(&value).map_err(|expected| {
                    let text = format!("invalid value '{value}' for '--test-threads' behind '--': {expected}");
                    CargoCli::command().error(ErrorKind::ValueValidation, text)
                })?;
                args.execution.parallel.get_or_insert(threads);
            }
            "--nocapture" | "--no-capture" => args.execution.no_capture = true,
            "--show-output" => notes.push(
                "`--show-output` has no effect here; `--no-capture` shows what tests write, also when they pass".into(),
            ),
            "--list" => notes.push("`--list` has no effect here; `cargo offload list` lists the tests".into()),
            "-q" | "--quiet" => {
                notes.push(format!("`{name}` behind `--` has no effect here; before it, it makes the run quiet"));
            }
            "--format" | "--color" | "--logfile" => {
                if value.is_none() {
                    typed.next();
                }
                notes.push(format!("`{name}` behind `--` has no effect here: no harness writes to the terminal"));
            }
            "--skip" | "--shuffle-seed" | "-Z" if value.is_none() => {
                kept.push(arg);
                kept.extend(typed.next());
            }
            _ => kept.push(arg),
        }
    }
    args.selection.harness_args = kept;
    Ok(notes)
}
