//! The shell script that runs pytest with Offload's plugin.
//!
//! Everything that pytest needs to know is in the script: the plugin and the tests are here-documents, written to a
//! temporary directory that the plugin removes. So a batch is one command, wherever the sandbox is, and neither the
//! number nor the names of tests meet the limits of an argument list.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::launch::Launch;
use super::{Place, Session};
use crate::config::PytestFrameworkConfig;
use crate::connector::quote;
use crate::framework::surroundings::exports;

const PLUGIN: &str = include_str!("plugin.py");

/// The module name under which the plugin is loaded.
const MODULE: &str = "_offload_pytest_batch";

/// One start of pytest.
pub(super) struct Invocation<'a> {
    pub(super) filters: &'a str,
    pub(super) session: Option<&'a Session>,
    /// The tests, and the key by which results name each.
    pub(super) tests: Vec<(usize, Place)>,
}

/// The script that writes a list of all tests to `out`.
pub(super) fn list(config: &PytestFrameworkConfig, filters: &str, paths: &[PathBuf], out: &str) -> String {
    let mut script = preamble(config, out);
    let paths: Vec<String> = paths.iter().map(|path| quote(&path.to_string_lossy())).collect();
    let arguments = format!("--collect-only -q {} {filters} {}", config.discovery_args, paths.join(" "));
    start(&mut script, config, 0, "list", &[], arguments.trim_end());
    script.push_str("rm -rf \"$dir\"\nexit $code\n");
    script
}

/// The script that runs tests and writes what becomes of them to `out`.
pub(super) fn run(config: &PytestFrameworkConfig, invocations: &[Invocation<'_>], out: &str) -> String {
    let mut script = preamble(config, out);
    for (number, invocation) in invocations.iter().enumerate() {
        let mut arguments = String::new();
        if let Some(session) = invocation.session {
            // Found by pytest from the arguments that it was given at discovery; other arguments would lead elsewhere.
            if let Some(inifile) = &session.inifile {
                let _ = write!(arguments, "-c {} ", quote(inifile));
            }
            let _ = write!(arguments, "--rootdir={} ", quote(&session.rootdir));
        }
        let _ = write!(arguments, "{} {}", config.run_args, without_paths(invocation.filters));
        // Files only: which of their tests run, the plugin knows.
        let files: BTreeSet<&str> = invocation.tests.iter().map(|(_, place)| place.file.as_str()).collect();
        for file in files {
            let _ = write!(arguments, " {}", quote(&argument(file)));
        }
        start(&mut script, config, number, "run", &invocation.tests, arguments.trim_start());
    }
    script.push_str("rm -rf \"$dir\"\nexit $code\n");
    script
}

/// Makes the temporary directory, and completes the environment.
fn preamble(config: &PytestFrameworkConfig, out: &str) -> String {
    let out = quote(out);
    let mut script = format!(
        "dir=$(mktemp -d) || exit 125\n\
         mkdir -p -- \"$(dirname -- {out})\" && : >{out} || exit 125\n\
         out=$(cd -- \"$(dirname -- {out})\" && pwd)/$(basename -- {out})\n\
         code=0\n"
    );
    let _ = write!(script, "cat >\"$dir/plugin\" <<'OFFLOAD_PLUGIN'\n{PLUGIN}OFFLOAD_PLUGIN\n");
    script.push_str(&exports(&config.env, &config.prepend_path));
    script
}

/// Starts pytest once. `code` keeps the first exit code that is not 0.
fn start(
    script: &mut String,
    config: &PytestFrameworkConfig,
    number: usize,
    mode: &str,
    tests: &[(usize, Place)],
    arguments: &str,
) {
    let _ = write!(
        script,
        "mkdir \"$dir/{number}\" && cp \"$dir/plugin\" \"$dir/{number}/{MODULE}.py\" || exit 125\n\
         cat >\"$dir/{number}/tests\" <<'OFFLOAD_TESTS'\n"
    );
    for (key, place) in tests {
        // One line each, whatever is in them: JSON has no newlines.
        let line = serde_json::json!({ "key": key, "id": place.nodeid, "nth": place.nth });
        let _ = writeln!(script, "{line}");
    }
    let _ = write!(
        script,
        "OFFLOAD_TESTS\n(\n\
         export OFFLOAD_PYTEST_MODE={mode} OFFLOAD_PYTEST_OUT=\"$out\"\n\
         [ -z \"${{PYTHONPATH+x}}\" ] || export OFFLOAD_PYTEST_PYTHONPATH=\"$PYTHONPATH\"\n\
         export PYTHONPATH=\"$dir/{number}${{PYTHONPATH:+:$PYTHONPATH}}\"\n\
         {} -p {MODULE} {arguments}\n\
         )\nlast=$?; [ $code -ne 0 ] || code=$last\n",
        command(config),
    );
}

/// What starts pytest. The default works where Python is only called `python3`, too.
fn command(config: &PytestFrameworkConfig) -> String {
    let command = config.command.trim();
    if command == PytestFrameworkConfig::default().command {
        return "\"$(command -v python || command -v python3 || echo python)\" -m pytest".to_owned();
    }
    command.to_owned()
}

/// The beginning of a shell line that starts Python: its arguments follow.
pub(super) fn python(config: &PytestFrameworkConfig, launch: &Launch) -> String {
    let mut line = exports(&BTreeMap::new(), &config.prepend_path);
    let _ = write!(line, "exec {}", launch.python);
    line
}

/// A file as an argument that is no option and no node id.
fn argument(file: &str) -> String {
    if file.starts_with('-') { format!("./{file}") } else { file.to_owned() }
}

/// Filters without the words that are paths: at run time the files are given, and a directory would be collected whole.
/// A word after an option may be its value and stays; that costs time, not correctness.
fn without_paths(filters: &str) -> String {
    let Some(words) = shlex::split(filters) else { return filters.to_owned() };
    let mut kept: Vec<String> = Vec::with_capacity(words.len());
    let mut after_option = false;
    for word in words {
        let path = word.split("::").next().unwrap_or_default();
        let is_path = !after_option && !word.starts_with('-') && Path::new(path).components().next().is_some();
        after_option = word.starts_with('-') && !word.contains('=');
        if !is_path {
            kept.push(quote(&word));
        }
    }
    kept.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_among_filters_are_for_discovery_only() {
        assert_eq!(without_paths("tests/unit -m 'not slow' --runslow=x tests/a.py::t"), "-m 'not slow' --runslow=x");
        assert_eq!(without_paths("--runslow tests/unit"), "--runslow tests/unit");
        assert_eq!(without_paths(""), "");
        assert_eq!(without_paths("-k 'it"), "-k 'it");
    }

    #[test]
    fn the_plugin_costs_little_quoting() {
        // Each level of quoting makes four characters of an apostrophe, and scripts go through several.
        assert!(PLUGIN.matches('\'').count() < 10);
        assert!(!PLUGIN.contains("\nOFFLOAD_PLUGIN"));
    }
}
