//! What Cargo says to people: errors of its own, and diagnostics that must not be shown twice.

use std::collections::HashSet;
use std::path::Path;

use cargo_metadata::Metadata;

use crate::framework::FrameworkError;

/// The error for a Cargo that did not even begin to build.
pub(super) fn cargo_failed(dir: &Path, lines: &[String], metadata: Option<&Metadata>) -> FrameworkError {
    let text = lines.join("\n");
    let plain = console::strip_ansi_codes(&text);
    let says = |what: &str| plain.contains(what);
    let names = |metadata: &Metadata| {
        let mut names: Vec<_> = metadata.workspace_packages().iter().map(|p| p.name.to_string()).collect();
        names.sort_unstable();
        names.join(", ")
    };
    let unknown_package =
        says("did not match any packages") || says("not found in workspace") || says("no packages match");
    let hint = if says("could not find `Cargo.toml`") {
        "Change to a directory of a Cargo project, or name its manifest with --manifest-path.".to_owned()
    } else if unknown_package {
        metadata.map_or_else(
            || "Name a package of this workspace.".to_owned(),
            |metadata| format!("The packages of this workspace are: {}.", names(metadata)),
        )
    } else {
        "Mend what Cargo reports and run again; `cargo test --no-run` with the same options shows the same.".to_owned()
    };
    let text = format!("Cargo could not begin to build the tests in {}:\n{}\n{hint}", dir.display(), text.trim_end());
    if unknown_package
        || says("could not find `Cargo.toml`")
        || says("target named")
        || says("does not contain this feature")
    {
        FrameworkError::Usage(text)
    } else {
        FrameworkError::Discovery(text)
    }
}

/// What was shown of a build, so that the second pass repeats nothing.
#[derive(Default)]
pub(super) struct Shown {
    text: String,
    lines: HashSet<String>,
}

impl Shown {
    pub(super) fn add(&mut self, line: &str) {
        let line = console::strip_ansi_codes(line);
        self.text.push_str(&line);
        self.text.push('\n');
        self.lines.insert(line.into_owned());
    }

    /// Whether a line of Cargo's own says something new.
    pub(super) fn is_new_line(&mut self, line: &str) -> bool {
        let plain = console::strip_ansi_codes(line);
        let noise = plain.starts_with("warning: build failed") || plain.starts_with("error: could not compile");
        !noise && self.lines.insert(plain.into_owned())
    }

    /// Whether a rendered diagnostic says something new.
    pub(super) fn is_new_block(&mut self, rendered: &str) -> bool {
        let plain = console::strip_ansi_codes(rendered);
        let plain = plain.trim_end();
        if plain.is_empty() || self.text.contains(plain) {
            return false;
        }
        for line in plain.lines() {
            self.add(line);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_pass_says_only_what_is_new() {
        let mut shown = Shown::default();
        for line in ["\u{1b}[1mCompiling a\u{1b}[0m", "error: no", " --> src/lib.rs:1:1"] {
            shown.add(line);
        }
        assert!(!shown.is_new_line("Compiling a"));
        assert!(shown.is_new_line("Compiling b"));
        assert!(!shown.is_new_line("error: could not compile `a` (lib) due to 1 previous error"));
        assert!(!shown.is_new_block("error: no\n --> src/lib.rs:1:1\n"));
        assert!(shown.is_new_block("error: no\n --> src/other.rs:1:1\n"));
        assert!(!shown.is_new_block("error: no\n --> src/other.rs:1:1\n"));
    }
}
