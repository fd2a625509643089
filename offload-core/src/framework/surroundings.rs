//! `env` and `prepend_path` of a framework's configuration, for a command whose sandbox may have the repository elsewhere.
//!
//! Variables are part of a command's environment, and never of its text: their values may be secrets, and what a command
//! says can be read by everybody on the machine. Only what contains `{root}` has to be put together by the shell over
//! there, which alone knows that place.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::connector::quote_always;

/// What stands for the repository's root.
const ROOT: &str = "{root}";

/// The root in a shell, as part of a word.
const ROOT_THERE: &str = "\"${OFFLOAD_ROOT:-$PWD}\"";

/// The variables of the command.
pub(super) fn variables(env: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for (name, value) in env {
        if value.contains(ROOT) {
            variables.extend(value.split(ROOT).enumerate().map(|(n, part)| (part_name(name, n), part.to_owned())));
        } else {
            variables.insert(name.clone(), value.clone());
        }
    }
    variables
}

/// The shell lines that complete the [`variables`].
pub(super) fn exports(env: &BTreeMap<String, String>, prepend_path: &[String]) -> String {
    let mut lines = String::new();
    for (name, value) in env.iter().filter(|(_, value)| value.contains(ROOT)) {
        let parts: Vec<String> = (0..value.split(ROOT).count()).map(|n| part_name(name, n)).collect();
        let words: Vec<String> = parts.iter().map(|part| format!("\"${part}\"")).collect();
        let _ = writeln!(lines, "export {name}={}; unset {}", words.join(ROOT_THERE), parts.join(" "));
    }
    if !prepend_path.is_empty() {
        let entries: Vec<String> = prepend_path.iter().map(|entry| with_root(entry)).collect();
        let _ = writeln!(lines, "export PATH={}:\"$PATH\"", entries.join(":"));
    }
    lines
}

fn part_name(name: &str, number: usize) -> String {
    format!("OFFLOAD_PART_{number}_{name}")
}

/// `value` as one shell word.
fn with_root(value: &str) -> String {
    value.split(ROOT).map(quote_always).collect::<Vec<_>>().join(ROOT_THERE)
}
