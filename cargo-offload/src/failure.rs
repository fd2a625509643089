//! From what went wrong to what the user reads and the exit code.

use std::io::Write;

/// The exit code when nothing could be run: usage, configuration, build, discovery or infrastructure.
pub const NOTHING_RUN: i32 = 3;

/// What a command comes to: an exit code, or an error to be shown (exit code [`NOTHING_RUN`]).
pub type Outcome = anyhow::Result<i32>;

/// Shows an error and gives the exit code.
pub fn exit_code(outcome: Outcome) -> i32 {
    match outcome {
        Ok(code) => code,
        Err(error) => {
            let text = chain(&error);
            // Diagnoses that come with their own heading and snippet are whole.
            let text = if text.starts_with("error") { text } else { format!("error: {text}") };
            let _ = writeln!(std::io::stderr(), "{}", crate::masked::text(text.trim_end()));
            NOTHING_RUN
        }
    }
}

/// The error and its causes, from the outermost inwards, without those that an outer one has told already.
fn chain(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |told, cause| {
        let cause = cause.to_string();
        match told.as_str() {
            "" => cause,
            _ if told.contains(&cause) => told,
            _ => format!("{told}: {cause}"),
        }
    })
}
