//! The framework `default`: any test runner that shell commands can drive.
//!
//! One command lists test ids, another runs some of them and may write a JUnit file. Test ids are the user's: they go
//! through unchanged, quoted for the place where the template names them. Where commands run is the
//! [provider](crate::provider)'s business; only discovery runs here.

pub(super) mod junit;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{
    Captured, Discovered, DiscoverySink, FrameworkError, FrameworkResult, Suite, TestFramework, TestInstance,
    TestOutcome, TestRecord, TestResult,
};
use crate::config::{DefaultFrameworkConfig, GroupConfig};
use crate::connector::template::{Value, fill};
use crate::connector::{Connector as _, RunOptions, ShellConnector, describe_exit, quote, shorten, tail};
use crate::provider::{Command, ExecOutput};

/// How many lines of a command's output an error shows.
const TAIL_LINES: usize = 20;

/// How many bytes of test ids `discover_command` may print.
const LONGEST_LIST: usize = 256 << 20;

/// How many bytes of a stream each test of a batch is given, where the stream is that of the batch.
const SHARED_OUTPUT: usize = 16 << 10;

/// Tests by the user's commands.
#[derive(Debug, Clone)]
pub struct DefaultFramework {
    config: DefaultFrameworkConfig,
    groups: Vec<GroupConfig>,
    root: PathBuf,
}

impl DefaultFramework {
    /// A framework as configured, without groups, that discovers in the current directory.
    pub fn new(config: DefaultFrameworkConfig) -> Self {
        Self { config, groups: Vec::new(), root: PathBuf::from(".") }
    }

    /// Discovers with each group's filters; a test belongs to the first group that finds it.
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

    /// What the discover command prints for these filters, without comments and blank lines.
    async fn list(&self, filters: &str) -> FrameworkResult<Vec<String>> {
        let line = fill(&self.config.discover_command, &[("filters", Value::Words(filters))]);
        let shell = ShellConnector::default().with_working_dir(self.place());
        let options = RunOptions { output_limit: Some(LONGEST_LIST), ..RunOptions::default() };
        let output = shell.run(&line, &options).await;
        let output = output.map_err(|error| {
            FrameworkError::Discovery(format!("cannot discover tests by `discover_command` in [framework]: {error}"))
        })?;
        if output.stdout.len() > LONGEST_LIST {
            return Err(FrameworkError::Discovery(format!(
                "cannot discover tests: `discover_command` in [framework] printed more than {} MiB. It ran: {}",
                LONGEST_LIST >> 20,
                shorten(&line),
            )));
        }
        if output.exit_code != Some(0) {
            return Err(FrameworkError::Discovery(format!(
                "cannot discover tests: `discover_command` in [framework] failed: {}. It ran: {}{}",
                describe_exit(output.exit_code),
                shorten(&line),
                tail(&output, TAIL_LINES),
            )));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let ids = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Ok(ids.map(str::to_owned).collect())
    }

    /// Where discovery runs.
    fn place(&self) -> PathBuf {
        self.config.working_dir.as_ref().map_or_else(|| self.root.clone(), |dir| self.root.join(dir))
    }

    /// Whether the run command is expected to write a JUnit file.
    fn writes_results(&self) -> bool {
        self.config.result_file.is_some() || self.config.run_command.contains("{result_file}")
    }

    /// The results of a batch of which nothing is known but how its command ended.
    fn by_exit_code(tests: &[TestInstance], output: &ExecOutput) -> Vec<TestResult> {
        let share = share(output, tests);
        let result = match output.exit_code {
            Some(0) => TestResult::new(TestOutcome::Passed, share),
            None => TestResult::new(TestOutcome::TimedOut, share)
                .with_message(format!("`run_command` was {}", describe_exit(None))),
            code => {
                let others = match tests.len() {
                    0 | 1 => String::new(),
                    n => format!(" (one command ran {n} tests; without a result file its exit code is that of all)"),
                };
                TestResult::new(TestOutcome::Failed, share)
                    .with_message(format!("`run_command` failed: {}{others}", describe_exit(code)))
            }
        };
        // The output is that of all tests together; each gets it, but not at any length.
        let captured = |bytes: &[u8]| match tests.len() {
            0 | 1 => Captured::from(String::from_utf8_lossy(bytes).into_owned()),
            _ => {
                let dropped = bytes.len().saturating_sub(SHARED_OUTPUT);
                let mut text = String::from_utf8_lossy(&bytes[dropped..]).into_owned();
                if dropped > 0 {
                    text.insert_str(0, &format!("[... {dropped} bytes dropped ...]\n"));
                }
                Captured { text, dropped_bytes: dropped as u64 }
            }
        };
        let (stdout, stderr) = (captured(&output.stdout), captured(&output.stderr));
        tests.iter().map(|_| TestResult { stdout: stdout.clone(), stderr: stderr.clone(), ..result.clone() }).collect()
    }

    /// The result of a test that the result file does not name.
    fn unreported(
        &self,
        test: &TestInstance,
        output: &ExecOutput,
        share: Duration,
        example: Option<&str>,
    ) -> TestResult {
        let names = match example {
            Some(example) => format!("the results name other tests, such as {example:?}"),
            None => "there are no results".to_owned(),
        };
        let (outcome, message) = match output.exit_code {
            None => (TestOutcome::TimedOut, format!("`run_command` was {}", describe_exit(None))),
            // Wrong names, most likely, and then for all of them: that is what the user has to learn.
            Some(0) => (
                TestOutcome::Error,
                format!(
                    "not reported: `run_command` succeeded, but {names}; check `test_id_format` ({:?}) in [framework] \
                     and that the command runs {:?}",
                    self.config.test_id_format,
                    test.id(),
                ),
            ),
            Some(code) if code > 128 => {
                (TestOutcome::Crashed, format!("`run_command` was {}; {names}", describe_exit(Some(code))))
            }
            code => (
                TestOutcome::Error,
                format!("not reported: `run_command` failed ({}) and {names}", describe_exit(code)),
            ),
        };
        let details = tail(output, TAIL_LINES);
        let details = details.trim_start_matches('\n');
        TestResult {
            details: (!details.is_empty()).then(|| details.to_owned()),
            ..TestResult::new(outcome, share).with_message(message)
        }
    }
}

/// What a discovery that hands out tests as it finds them found in all. Its warnings and problems go to the log, which
/// is the only place that [`TestFramework::discover`] leaves for them.
pub(super) async fn gather<F: Future<Output = FrameworkResult<()>>>(
    discover: impl FnOnce(DiscoverySink) -> F,
) -> FrameworkResult<Vec<TestRecord>> {
    let (sink, mut found) = DiscoverySink::new();
    discover(sink).await?;
    let mut tests = Vec::new();
    while let Ok(discovered) = found.try_recv() {
        match discovered {
            Discovered::Tests(more) => tests.extend(more),
            Discovered::Warning(text) | Discovered::Problem(text) => tracing::warn!("{text}"),
            _ => {}
        }
    }
    Ok(tests)
}

/// What one test of a batch took, as far as the batch's duration tells.
fn share(output: &ExecOutput, tests: &[TestInstance]) -> Duration {
    output.duration / u32::try_from(tests.len()).unwrap_or(u32::MAX).max(1)
}

#[async_trait]
impl TestFramework for DefaultFramework {
    /// Finds tests by `discover_command`. Paths, if there are any, are appended to the filters.
    async fn discover(&self, paths: &[PathBuf]) -> FrameworkResult<Vec<TestRecord>> {
        gather(|sink| self.discover_stream(paths, sink)).await
    }

    fn produce_test_execution_command(&self, tests: &[TestInstance], result_file: &str) -> Command {
        let ids: Vec<String> = tests.iter().map(|test| quote(test.id())).collect();
        let ids = ids.join(" ");
        let values = [("tests", Value::Words(&ids)), ("result_file", Value::Word(result_file))];
        let line = fill(&self.config.run_command, &values);
        let command = match &self.config.result_file {
            // The command was told where; its own place needs no look.
            Some(own) if !self.config.run_command.contains("{result_file}") => {
                let (own, result_file) = (quote(own), quote(result_file));
                // In a subshell, so that an `exit` of the command's own does not skip the copy.
                Command::shell(format!(
                    "rm -f -- {own}\n(\n{line}\n)\ncode=$?\n\
                     [ ! -f {own} ] || cp -- {own} {result_file}\nexit $code"
                ))
            }
            _ => Command::shell(line),
        };
        Command { working_dir: self.config.working_dir.clone(), ..command }
    }

    fn parse_results(
        &self,
        tests: &[TestInstance],
        output: &ExecOutput,
        result_file: Option<&[u8]>,
    ) -> FrameworkResult<Vec<TestResult>> {
        if !self.writes_results() {
            return Ok(Self::by_exit_code(tests, output));
        }
        let cases = match result_file {
            None => Vec::new(),
            Some(bytes) => match junit::parse(bytes) {
                Ok(cases) => cases,
                // Whoever ended before its time leaves half a file.
                Err(_) if output.exit_code != Some(0) => Vec::new(),
                Err(what) => {
                    return Err(FrameworkError::Results(format!(
                        "cannot read the results that `run_command` wrote: {what}; the file is to be JUnit XML{}",
                        tail(output, TAIL_LINES),
                    )));
                }
            },
        };
        let mut by_id: HashMap<String, TestResult> = HashMap::with_capacity(cases.len());
        let mut example = None;
        for case in cases {
            let id = case.id(&self.config.test_id_format);
            example.get_or_insert_with(|| id.clone());
            match by_id.entry(id) {
                std::collections::hash_map::Entry::Vacant(entry) => drop(entry.insert(case.result)),
                // Some runners write a second case when the tear-down fails after the test has passed.
                std::collections::hash_map::Entry::Occupied(mut entry) => junit::merge(entry.get_mut(), case.result),
            }
        }
        let share = share(output, tests);
        let result = |test: &TestInstance| match by_id.get(test.id()) {
            Some(result) => result.clone(),
            None => self.unreported(test, output, share, example.as_deref()),
        };
        Ok(tests.iter().map(result).collect())
    }

    fn name(&self) -> &str {
        "default"
    }

    async fn discover_stream(&self, paths: &[PathBuf], sink: DiscoverySink) -> FrameworkResult<()> {
        let everything = [GroupConfig::default()];
        let groups = if self.groups.is_empty() { &everything[..] } else { &self.groups };
        let paths: Vec<String> = paths.iter().map(|path| quote(&path.to_string_lossy())).collect();
        let suite = Suite::new("default");
        let mut lists: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let mut seen = HashSet::new();
        for group in groups {
            if !lists.contains_key(group.filters.as_str()) {
                let filters = [std::slice::from_ref(&group.filters), &paths].concat().join(" ");
                let ids = self.list(filters.trim()).await?;
                let mut own = HashSet::new();
                let twice: Vec<&String> = ids.iter().filter(|id| !own.insert(id.as_str())).collect();
                if let Some(first) = twice.first() {
                    sink.send(Discovered::Warning(format!(
                        "`discover_command` printed {} test {} more than once, such as {first:?}; each runs once",
                        twice.len(),
                        if twice.len() == 1 { "id" } else { "ids" },
                    )));
                }
                lists.insert(&group.filters, ids);
            }
            let name: Arc<str> = Arc::from(group.name.as_str());
            let new = lists[group.filters.as_str()].iter().filter(|id| seen.insert((*id).clone()));
            let tests = new.map(|id| TestRecord {
                group: Arc::clone(&name),
                retry_count: group.retry_count,
                schedule_individual: group.schedule_individual,
                ..TestRecord::new(id.clone(), id.clone(), Arc::clone(&suite))
            });
            if !sink.send(Discovered::Tests(tests.collect())) {
                break;
            }
        }
        Ok(())
    }
}
