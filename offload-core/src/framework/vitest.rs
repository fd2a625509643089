//! The framework `vitest`, one command per batch.
//!
//! Vitest lists tests by file and name, and selects them by files and one regular expression over names, for all files of
//! a start alike. So a batch is as many starts as it takes to select exactly the tests that are asked for, which is one,
//! unless files have tests of the same name. Results are read from vitest's own JUnit report and matched by file, name, and
//! the number among tests of both.
//!
//! Tests that are skipped in the source are not listed by vitest, and so they are not found.
//!
//! - `command` writes the shell scripts,
//! - here is what is found and remembered in between.

mod command;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;

use self::command::Wanted;
use super::default::gather;
use super::default::junit::{self, Case};
use super::{
    Discovered, DiscoverySink, FrameworkError, FrameworkResult, Suite, TestFramework, TestInstance, TestOutcome,
    TestRecord, TestResult, surroundings,
};
use crate::bounded;
use crate::config::{GroupConfig, VitestFrameworkConfig};
use crate::connector::{Connector as _, RunOptions, ShellConnector, describe_exit, tail, tail_of};
use crate::provider::{Command, ExecOutput};

/// How many lines of vitest's own output an error shows.
const TAIL_LINES: usize = 40;

/// Tests of vitest.
#[derive(Debug)]
pub struct VitestFramework {
    config: VitestFrameworkConfig,
    groups: Vec<GroupConfig>,
    root: PathBuf,
    known: Mutex<Known>,
}

/// What discovery has found.
#[derive(Debug, Default)]
struct Known {
    /// By test id.
    places: HashMap<String, Place>,
    /// All names in a file, in the form in which they are selected.
    names: BTreeMap<String, BTreeSet<String>>,
}

/// Where a test is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    /// The file, from the directory in which vitest is started.
    file: String,
    /// As vitest lists it: suites and title, separated by ` > `.
    name: String,
    /// The number among tests of the same name in the file, from 0.
    nth: usize,
}

/// A test as vitest lists it.
#[derive(Debug, Deserialize)]
struct Listed {
    name: String,
    file: PathBuf,
}

impl VitestFramework {
    /// A framework as configured, without groups, that discovers in the current directory.
    pub fn new(config: VitestFrameworkConfig) -> Self {
        Self { config, groups: Vec::new(), root: PathBuf::from("."), known: Mutex::default() }
    }

    /// Discovers with each group's filters (arguments of vitest's); a test belongs to the first group that finds it.
    #[must_use]
    pub fn with_groups(mut self, groups: Vec<GroupConfig>) -> Self {
        self.groups = groups;
        self
    }

    /// Discovers in this directory.
    #[must_use]
    pub fn with_root(mut self, root: impl Into<PathBuf>) -> Self {
        self.root = root.into();
        self
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has vitest list the tests that `filters` and `paths` select.
    async fn list(&self, filters: &str, paths: &[PathBuf]) -> FrameworkResult<Vec<Listed>> {
        let config = &self.config;
        let failed = |what: String| {
            let with = if filters.is_empty() { String::new() } else { format!(" with the filters `{filters}`") };
            FrameworkError::Discovery(format!("cannot list tests by `{}`{with}: {what}", config.command))
        };
        let root = self.root.canonicalize().map_err(|error| failed(error.to_string()))?;
        let out = tempfile::NamedTempFile::new().map_err(|error| failed(format!("no temporary file: {error}")))?;
        let mut options = RunOptions {
            working_dir: Some(root.clone()),
            env: surroundings::variables(&config.env),
            ..RunOptions::default()
        };
        options.env.insert("OFFLOAD_ROOT".to_owned(), root.to_string_lossy().into_owned());
        let mut output = ExecOutput::default();
        // Without running the files, newer ones would give the names of parametrized tests unexpanded; older ones have no
        // other way, and do not know the option.
        for option in ["--no-static-parse", ""] {
            let line = command::list(config, filters, paths, &out.path().to_string_lossy(), option);
            output = ShellConnector::default().run(&line, &options).await.map_err(|error| failed(error.to_string()))?;
            if output.exit_code == Some(0) || !String::from_utf8_lossy(&output.stderr).contains("staticParse") {
                break;
            }
        }
        let said = tail_of(&[output.stdout.as_slice(), output.stderr.as_slice()].concat(), TAIL_LINES);
        match output.exit_code {
            Some(0) => {}
            Some(127) => {
                return Err(failed(format!(
                    "a program was not found; install Node.js, or set `command` in [framework] to what starts vitest \
                     here{said}"
                )));
            }
            code => {
                return Err(failed(format!(
                    "{}; if vitest is not installed here, `npm ci` does that. Its own output:{said}",
                    describe_exit(code)
                )));
            }
        }
        let written = bounded::read(out.path(), bounded::REPORT).map_err(|error| failed(error.to_string()))?;
        if written.is_empty() {
            // No file matched.
            return Ok(Vec::new());
        }
        serde_json::from_slice(&written)
            .map_err(|error| failed(format!("its list cannot be read ({error}); is it vitest 3 or newer?{said}")))
    }

    /// Hands out the tests of a group, but for those that an earlier group has.
    fn records(&self, group: &GroupConfig, listed: &[Listed], seen: &mut HashSet<Place>) -> Vec<TestRecord> {
        let root = self.root.canonicalize().unwrap_or_else(|_| self.root.clone());
        let mut known = self.known();
        let mut counts: HashMap<(String, &str), usize> = HashMap::new();
        let mut suites: HashMap<String, Arc<Suite>> = HashMap::new();
        let name_of_group: Arc<str> = Arc::from(group.name.as_str());
        let mut records = Vec::new();
        for test in listed {
            let file = test.file.strip_prefix(&root).unwrap_or(&test.file).to_string_lossy().into_owned();
            let count = counts.entry((file.clone(), &test.name)).or_default();
            let place = Place { file: file.clone(), name: test.name.clone(), nth: *count };
            *count += 1;
            known.names.entry(file.clone()).or_default().insert(command::flat(&test.name));
            if !seen.insert(place.clone()) {
                continue;
            }
            let number = if place.nth == 0 { String::new() } else { format!(" #{}", place.nth + 1) };
            let mut id = junit::id(&self.config.test_id_format, &place.name, &file) + &number;
            // With a format that leaves the file out, others may have the same.
            if known.places.contains_key(&id) {
                id = format!("{file} > {}{number}", place.name);
            }
            let suite = suites.entry(file.clone()).or_insert_with(|| Suite::new(file));
            records.push(TestRecord {
                group: Arc::clone(&name_of_group),
                retry_count: group.retry_count,
                schedule_individual: group.schedule_individual,
                // Loading a file costs vitest more than most tests in it.
                together: Some(Arc::from(place.file.as_str())),
                ..TestRecord::new(id.clone(), format!("{}{number}", place.name), Arc::clone(suite))
            });
            known.places.insert(id, place);
        }
        records
    }
}

impl Default for VitestFramework {
    fn default() -> Self {
        Self::new(VitestFrameworkConfig::default())
    }
}

/// What the reports of a batch say of each test.
struct Report {
    cases: HashMap<(String, String), Vec<TestResult>>,
    /// Files that could not be loaded.
    broken: HashMap<String, TestResult>,
    /// Something failed, be it asked for or not.
    has_failures: bool,
}

impl Report {
    fn new(cases: Vec<Case>) -> Self {
        let mut report = Self { cases: HashMap::new(), broken: HashMap::new(), has_failures: false };
        for case in cases {
            report.has_failures |= case.result.outcome.is_failure();
            if case.name == case.classname && case.result.outcome.is_failure() {
                report.broken.insert(case.classname.clone(), case.result.clone());
            }
            report.cases.entry((case.classname, plain(&case.name))).or_default().push(case.result);
        }
        report
    }

    /// The result of a test; files are named from vitest's own root, which may be further down.
    fn of(&self, place: &Place) -> Option<TestResult> {
        let name = plain(&place.name);
        let mut files = std::iter::successors(Some(place.file.as_str()), |file| Some(file.split_once('/')?.1));
        let found = files.find_map(|file| self.cases.get(&(file.to_owned(), name.clone())));
        found.and_then(|results| results.get(place.nth)).cloned()
    }

    fn broken(&self, file: &str) -> Option<&TestResult> {
        let mut files = std::iter::successors(Some(file), |file| Some(file.split_once('/')?.1));
        files.find_map(|file| self.broken.get(file))
    }
}

/// A name as it is after it has been an attribute in XML.
fn plain(name: &str) -> String {
    let blank = |c: char| if matches!(c, '\t' | '\n' | '\r') { ' ' } else { c };
    name.chars().map(blank).filter(|c| !c.is_control()).collect()
}

#[async_trait]
impl TestFramework for VitestFramework {
    async fn discover(&self, paths: &[PathBuf]) -> FrameworkResult<Vec<TestRecord>> {
        gather(|sink| self.discover_stream(paths, sink)).await
    }

    fn produce_test_execution_command(&self, tests: &[TestInstance], result_file: &str) -> Command {
        let known = self.known();
        let mut wanted: Vec<Wanted<'_>> = Vec::new();
        for test in tests {
            let filters = self.groups.iter().find(|group| group.name == *test.record.group);
            let filters = filters.map_or("", |group| group.filters.as_str());
            let Some(place) = known.places.get(test.id()) else { continue };
            let name = command::flat(&place.name);
            match wanted.iter_mut().find(|wanted| wanted.file == place.file && wanted.filters == filters) {
                Some(wanted) => drop(wanted.names.insert(name)),
                None => {
                    let all = known.names.get(&place.file);
                    wanted.push(Wanted { filters, file: &place.file, names: BTreeSet::from([name]), all });
                }
            }
        }
        let env = surroundings::variables(&self.config.env);
        Command { env, ..Command::shell(command::run(&self.config, wanted, result_file)) }
    }

    fn parse_results(
        &self,
        tests: &[TestInstance],
        output: &ExecOutput,
        result_file: Option<&[u8]>,
    ) -> FrameworkResult<Vec<TestResult>> {
        let cases = junit::parse(result_file.unwrap_or_default()).unwrap_or_default();
        let report = Report::new(cases);
        let known = self.known();
        let share = output.duration / u32::try_from(tests.len()).unwrap_or(u32::MAX).max(1);
        let mut results: Vec<TestResult> = tests
            .iter()
            .map(|test| {
                let place = known.places.get(test.id());
                place.and_then(|place| report.of(place)).unwrap_or_else(|| {
                    let broken = place.and_then(|place| report.broken(&place.file));
                    unreported(output, share, broken)
                })
            })
            .collect();
        if output.exit_code != Some(0)
            && !report.has_failures
            && !results.iter().any(|result| result.outcome.is_failure())
        {
            // An error outside of all tests, such as a promise that nobody awaits: plain vitest fails, too.
            let message = format!("vitest failed ({}), but none of these tests did", describe_exit(output.exit_code));
            for result in &mut results {
                result.outcome = TestOutcome::Error;
                result.message = Some(message.clone());
                result.details = Some(tail(output, TAIL_LINES).trim_start_matches('\n').to_owned());
            }
        }
        Ok(results)
    }

    fn name(&self) -> &str {
        "vitest"
    }

    async fn discover_stream(&self, paths: &[PathBuf], sink: DiscoverySink) -> FrameworkResult<()> {
        let everything = [GroupConfig::default()];
        let groups = if self.groups.is_empty() { &everything[..] } else { &self.groups };
        let mut lists: BTreeMap<&str, Vec<Listed>> = BTreeMap::new();
        let mut seen = HashSet::new();
        for group in groups {
            if !lists.contains_key(group.filters.as_str()) {
                lists.insert(&group.filters, self.list(&group.filters, paths).await?);
            }
            let records = self.records(group, &lists[group.filters.as_str()], &mut seen);
            if !sink.send(Discovered::Tests(records)) {
                break;
            }
        }
        Ok(())
    }
}

/// The result of a test that vitest says nothing of.
fn unreported(output: &ExecOutput, share: Duration, broken: Option<&TestResult>) -> TestResult {
    if let Some(broken) = broken {
        let why = broken.message.as_deref().unwrap_or("an error");
        let message = format!("its file could not be loaded: {why}");
        return TestResult { message: Some(message), outcome: TestOutcome::Error, ..broken.clone() };
    }
    let (outcome, message) = match output.exit_code {
        None => (TestOutcome::TimedOut, format!("vitest was {}", describe_exit(None))),
        Some(0) => (TestOutcome::Error, "vitest does not know this test where it was to run".to_owned()),
        Some(code) if code > 128 => (TestOutcome::Crashed, format!("vitest was {}", describe_exit(Some(code)))),
        Some(127) => {
            (TestOutcome::Error, "vitest was not found in the sandbox; install it there (`npm ci`)".to_owned())
        }
        code => (TestOutcome::Error, format!("vitest did not run it ({})", describe_exit(code))),
    };
    let details = tail(output, TAIL_LINES);
    TestResult {
        details: (!details.is_empty()).then(|| details.trim_start_matches('\n').to_owned()),
        ..TestResult::new(outcome, share).with_message(message)
    }
}

/// A file as vitest is told of it.
fn argument(file: &str) -> String {
    if Path::new(file).is_absolute() || file.starts_with("../") { file.to_owned() } else { format!("./{file}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_of_the_same_name_are_told_apart_and_none_answers_for_another() {
        let framework = VitestFramework::default().with_root("/");
        let listed = |name: &str| Listed { name: name.to_owned(), file: "/web/a.test.js".into() };
        let list = [listed("dup"), listed("dup"), listed("s > t")];
        let records = framework.records(&GroupConfig::default(), &list, &mut HashSet::new());
        let ids: Vec<&str> = records.iter().map(|record| record.id.as_str()).collect();
        assert_eq!(ids, ["web/a.test.js > dup", "web/a.test.js > dup #2", "web/a.test.js > s > t"]);
        let asked = |at: usize| [TestInstance { record: Arc::new(records[at].clone()), attempt: 1 }];
        // As vitest writes it where its root is `web`.
        let report = "<testsuites><testcase classname='a.test.js' name='dup'/><testcase classname='a.test.js' name='dup'>\
                      <failure message='why'/></testcase><testcase classname='a.test.js' name='s &gt; t'><skipped/>\
                      </testcase></testsuites>";
        let output = ExecOutput { exit_code: Some(1), ..ExecOutput::default() };
        let outcome = |at: usize| {
            framework.parse_results(&asked(at), &output, Some(report.as_bytes())).unwrap().remove(0).outcome
        };
        assert_eq!([0, 1, 2].map(outcome), [TestOutcome::Passed, TestOutcome::Failed, TestOutcome::Skipped]);
        // Nothing in the report explains the exit code: nobody passes for sure.
        let passed = report.replace("<failure message='why'/>", "");
        let results = framework.parse_results(&asked(0), &output, Some(passed.as_bytes())).unwrap();
        assert_eq!(results[0].message.as_deref(), Some("vitest failed (exit code 1), but none of these tests did"));
    }
}
