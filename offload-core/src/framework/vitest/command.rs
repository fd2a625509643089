//! The shell scripts that start vitest.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use super::argument;
use crate::config::VitestFrameworkConfig;
use crate::connector::quote;
use crate::framework::surroundings::exports;

/// The longest expression that is handed to vitest: one argument of a program cannot exceed 128 KiB.
const LONGEST_PATTERN: usize = 60_000;

/// Characters that mean something in a regular expression.
const SPECIAL: &str = "\\^$.|?*+()[]{}/-";

/// The tests of a file that are to be run.
pub(super) struct Wanted<'a> {
    pub(super) filters: &'a str,
    pub(super) file: &'a str,
    /// As [`flat`] gives them.
    pub(super) names: BTreeSet<String>,
    /// Those of all tests in the file.
    pub(super) all: Option<&'a BTreeSet<String>>,
}

/// A name in the form against which vitest matches: suites and title, separated by blanks. What it lists as `a > b` may also
/// be a title as it is, so that is made one with the other.
pub(super) fn flat(name: &str) -> String {
    name.replace(" > ", " ")
}

/// The script that writes a list of all tests to `out`.
pub(super) fn list(
    config: &VitestFrameworkConfig,
    filters: &str,
    paths: &[PathBuf],
    out: &str,
    option: &str,
) -> String {
    let paths: Vec<String> = paths.iter().map(|path| quote(&path.to_string_lossy())).collect();
    let paths = paths.join(" ");
    format!(
        "{}{} list {filters} {option} --json={} {paths}\n",
        exports(&config.env, &config.prepend_path),
        command(config),
        quote(out)
    )
}

/// The script that runs tests and writes what becomes of them to `out`.
pub(super) fn run(config: &VitestFrameworkConfig, wanted: Vec<Wanted<'_>>, out: &str) -> String {
    let out = quote(out);
    let mut script = format!(
        "dir=$(mktemp -d) || exit 125\n\
         mkdir -p -- \"$(dirname -- {out})\" && : >{out} || exit 125\n\
         {}code=0\n",
        exports(&config.env, &config.prepend_path)
    );
    for start in starts(wanted) {
        let files: Vec<String> = start.iter().map(|wanted| quote(&argument(wanted.file))).collect();
        let filters = start.first().map_or("", |wanted| wanted.filters);
        let _ = write!(
            script,
            "{} run {} {} --reporter=default --reporter=junit --outputFile.junit=\"$dir/junit.xml\" -t {} {}\n\
             last=$?; [ $code -ne 0 ] || code=$last\n\
             [ ! -f \"$dir/junit.xml\" ] || cat \"$dir/junit.xml\" >>{out}\n\
             rm -f \"$dir/junit.xml\"\n",
            command(config),
            config.run_args,
            options_only(filters),
            quote(&pattern(&start)),
            files.join(" "),
        );
    }
    script.push_str("rm -rf \"$dir\"\nexit $code\n");
    script
}

/// Puts files together that one start of vitest can run without running any test that is not asked for.
fn starts(wanted: Vec<Wanted<'_>>) -> Vec<Vec<Wanted<'_>>> {
    let mut starts: Vec<Vec<Wanted<'_>>> = Vec::new();
    for file in wanted {
        let fits = |start: &Vec<Wanted<'_>>| {
            let length: usize =
                start.iter().chain([&file]).flat_map(|wanted| &wanted.names).map(|name| 2 * name.len()).sum();
            length < LONGEST_PATTERN
                && start.iter().all(|other| {
                    other.filters == file.filters && !selects_more(&file, other) && !selects_more(other, &file)
                })
        };
        match starts.iter_mut().find(|start| fits(start)) {
            Some(start) => start.push(file),
            None => starts.push(vec![file]),
        }
    }
    starts
}

/// Whether the names wanted in one file would select a test in another that is not wanted there.
fn selects_more(one: &Wanted<'_>, other: &Wanted<'_>) -> bool {
    other.all.is_some_and(|all| one.names.iter().any(|name| all.contains(name) && !other.names.contains(name)))
}

/// The expression that selects the wanted names and nothing else.
fn pattern(start: &[Wanted<'_>]) -> String {
    let names: BTreeSet<&str> = start.iter().flat_map(|wanted| wanted.names.iter().map(String::as_str)).collect();
    let names: Vec<String> = names.into_iter().map(escape).collect();
    format!("^(?:{})$", names.join("|"))
}

/// A name as an expression. Each blank in it may have been ` > `.
fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            ' ' => escaped.push_str("(?: > | )"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            c if SPECIAL.contains(c) => {
                escaped.push('\\');
                escaped.push(c);
            }
            c => escaped.push(c),
        }
    }
    escaped
}

/// What starts vitest. The default never installs anything by itself.
fn command(config: &VitestFrameworkConfig) -> String {
    let command = config.command.trim();
    if command == VitestFrameworkConfig::default().command { "npx --no vitest".to_owned() } else { command.to_owned() }
}

/// Filters without the words that select files or names: those are given when tests run. The value of an option stays with
/// it.
fn options_only(filters: &str) -> String {
    let Some(words) = shlex::split(filters) else { return filters.to_owned() };
    let mut kept = Vec::with_capacity(words.len());
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        let takes_value = word.starts_with('-') && !word.contains('=');
        let value = words.next_if(|next| takes_value && !next.starts_with('-'));
        let name = word.split('=').next().unwrap_or_default();
        if ["-t", "--testNamePattern", "--test-name-pattern"].contains(&name) || !word.starts_with('-') {
            continue;
        }
        kept.push(quote(&word));
        kept.extend(value.map(|value| quote(&value)));
    }
    kept.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn patterns_select_names_that_look_like_patterns() {
        let pattern = pattern(&[Wanted { filters: "", file: "a", names: names(&["adds (1+1)", "a b"]), all: None }]);
        assert_eq!(pattern, "^(?:a(?: > | )b|adds(?: > | )\\(1\\+1\\))$");
        let expression = regex::Regex::new(&pattern).unwrap();
        for (name, matches) in [("adds (1+1)", true), ("a > b", true), ("a b", true), ("a b c", false), ("xa b", false)]
        {
            assert_eq!(expression.is_match(name), matches, "{name}");
        }
    }

    #[test]
    fn files_share_a_start_unless_that_would_run_more() {
        let all = names(&["same", "other"]);
        let wanted = |file, wanted: &[&str]| Wanted { filters: "", file, names: names(wanted), all: Some(&all) };
        let files = |starts: Vec<Vec<Wanted<'_>>>| {
            starts
                .iter()
                .map(|start| start.iter().map(|wanted| wanted.file.to_owned()).collect::<Vec<_>>().join(" "))
                .collect::<Vec<_>>()
        };
        assert_eq!(files(starts(vec![wanted("a", &["same"]), wanted("b", &["same"])])), ["a b"]);
        assert_eq!(
            files(starts(vec![wanted("a", &["same"]), wanted("b", &["other"]), wanted("c", &["same"])])),
            ["a c", "b"]
        );
        let filtered = Wanted { filters: "--project x", ..wanted("b", &["same"]) };
        assert_eq!(files(starts(vec![wanted("a", &["same"]), filtered])), ["a", "b"]);
    }

    #[test]
    fn filters_keep_their_options_when_tests_run() {
        assert_eq!(options_only("src/unit --project 'my app' -t 'fast.*' --retry=2"), "--project 'my app' --retry=2");
        assert_eq!(options_only("--testNamePattern=x src"), "");
    }
}
