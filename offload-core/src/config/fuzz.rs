//! What holds for any configuration file.

#![allow(clippy::panic, reason = "a promise that does not hold is to panic")]

use super::resolve::resolve_text;
use super::{ConfigSource, Defaults};
use crate::fuzzing::split_first;
use crate::secret::MASK;

/// An input: the kind of the file, and the file. It is understood, or an error names it; a configuration that is shown as
/// a file is read again the same.
pub fn configuration(input: &[u8]) {
    let (kind, bytes) = split_first(input);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let name = ["offload.toml", "pyproject.toml", "Cargo.toml"][usize::from(kind % 3)];
    let source = ConfigSource::from_path(name);
    let env = || [("HOME", "/home/me"), ("EMPTY", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    let resolve = |source: &ConfigSource, text: &str| {
        resolve_text(Some((source, text)), env().into(), &[], Defaults::for_source(Some(source)))
    };
    match resolve(&source, text) {
        Err(error) => {
            let shown = error.to_string();
            assert!(shown.starts_with("error: ") && shown.contains(name), "{shown}");
            assert!(shown.len() <= 64 * 1024 + 200 * text.len(), "an error of {} bytes", shown.len());
        }
        Ok(resolved) => {
            let shown = resolved.render();
            if shown.contains(MASK) {
                return;
            }
            let again = resolve(&ConfigSource::from_path("offload.toml"), &shown);
            let again = again.unwrap_or_else(|error| panic!("what is shown cannot be read: {error}\n{shown}"));
            let (mut first, mut second) = (resolved.config, again.config);
            first.notices.clear();
            second.notices.clear();
            assert_eq!(first, second, "what is shown is read otherwise:\n{shown}");
        }
    }
}
