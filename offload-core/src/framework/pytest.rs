//! The framework `pytest`, one command per batch.
//!
//! A small plugin, carried in this binary and in every command (so that nothing has to be brought into a sandbox
//! first), lists tests and runs exactly those that it is given. Results are matched by identity: the node id, and the
//! number among tests of the same node id. Nothing depends on names in JUnit files, so `test_id_format` is not needed.
//!
//! - `command` writes the shell script that runs pytest with the plugin,
//! - `results` reads what the plugin wrote,
//! - `launch` finds the Python behind a command that starts pytest,
//! - here is what is found and remembered in between.
//!
//! Where a program can be talked to there is a quicker way, and one that keeps all that pytest and its plugins can do:
//! `workers`.

mod command;
mod launch;
mod results;
mod workers;

#[cfg(any(test, fuzzing))]
pub use results::fuzz::pytest_lines;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::command::Invocation;
use self::results::Listing;
use super::default::gather;
use super::{
    Discovered, DiscoverySink, FrameworkError, FrameworkResult, Suite, TestFramework, TestInstance, TestRecord,
    TestResult, surroundings,
};
use crate::bounded;
use crate::config::{GroupConfig, PytestFrameworkConfig};
use crate::connector::{Connector as _, RunOptions, ShellConnector, describe_exit, tail_of};
use crate::provider::{Command, ExecOutput};

pub use workers::PytestWorkers;

/// The beginning of a shell line that starts the Python with which `command` starts pytest: Python's arguments follow.
/// Where the command does not say which that is, it is the one that is there.
pub fn python_command(config: &PytestFrameworkConfig) -> String {
    let any = || launch::Launch::of(&PytestFrameworkConfig::default());
    launch::Launch::of(config).or_else(any).map_or_else(String::new, |launch| command::python(config, &launch))
}

/// How many lines of pytest's own output an error shows.
const TAIL_LINES: usize = 60;

/// Tests of pytest.
#[derive(Debug)]
pub struct PytestFramework {
    config: Arc<PytestFrameworkConfig>,
    groups: Vec<GroupConfig>,
    root: PathBuf,
    collectors: usize,
    known: Mutex<Known>,
}

/// What discovery learnt that a test's id does not say.
#[derive(Debug, Default)]
struct Known {
    /// Tests whose file or node id is not what their id says.
    tests: HashMap<String, Place>,
    /// How pytest was configured for each set of filters: root directory and configuration file.
    sessions: HashMap<String, Session>,
}

/// Where a test is.
#[derive(Debug, Clone, PartialEq)]
struct Place {
    /// The file, from the directory in which pytest is started.
    file: String,
    nodeid: String,
    /// The number among tests of the same node id, from 0.
    nth: usize,
}

/// What pytest found out about its configuration, relative to the directory in which it was started.
#[derive(Debug, Clone, PartialEq)]
struct Session {
    rootdir: String,
    inifile: Option<String>,
}

impl Place {
    /// The place of most tests: what the node id says.
    fn of(id: &str) -> Self {
        let file = id.split_once("::").map_or(id, |(file, _)| file);
        Self { file: file.to_owned(), nodeid: id.to_owned(), nth: 0 }
    }

    /// The id of the test: its node id, and a number where others have the same.
    fn id(&self) -> String {
        if self.nth == 0 { self.nodeid.clone() } else { format!("{} #{}", self.nodeid, self.nth + 1) }
    }
}

impl PytestFramework {
    /// A framework as configured, without groups, that collects in the current directory.
    pub fn new(config: PytestFrameworkConfig) -> Self {
        Self {
            config: Arc::new(config),
            groups: Vec::new(),
            root: PathBuf::from("."),
            collectors: 0,
            known: Mutex::default(),
        }
    }

    /// Collects with each group's filters (arguments of pytest's); a test belongs to the first group that finds it.
    #[must_use]
    pub fn with_groups(mut self, groups: Vec<GroupConfig>) -> Self {
        self.groups = groups;
        self
    }

    /// Collects in this directory.
    #[must_use]
    pub fn with_root(mut self, root: impl Into<PathBuf>) -> Self {
        self.root = root.into();
        self
    }

    /// How many groups are collected at once; 0: as many as there are CPUs.
    #[must_use]
    pub fn with_parallel_collection(mut self, collectors: usize) -> Self {
        self.collectors = collectors;
        self
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The filters of the test's group.
    fn filters(&self, group: &str) -> &str {
        self.groups.iter().find(|known| known.name == group).map_or("", |group| &group.filters)
    }

    /// Hands out the tests of a group, but for those that an earlier group has.
    fn records(&self, group: &GroupConfig, listing: &Listing, seen: &mut HashSet<String>) -> Vec<TestRecord> {
        let mut known = self.known();
        if let Some(session) = &listing.session {
            known.sessions.insert(group.filters.clone(), session.clone());
        }
        let name: Arc<str> = Arc::from(group.name.as_str());
        let mut suites: HashMap<&str, Arc<Suite>> = HashMap::new();
        let mut records = Vec::new();
        for place in &listing.tests {
            let id = place.id();
            if !seen.insert(id.clone()) {
                continue;
            }
            let (file, test) = place.nodeid.split_once("::").unwrap_or((&place.nodeid, &place.nodeid));
            let test = if place.nth == 0 { test.to_owned() } else { format!("{test} #{}", place.nth + 1) };
            let suite = Arc::clone(suites.entry(file).or_insert_with(|| Suite::new(file)));
            if *place != Place::of(&id) {
                known.tests.insert(id.clone(), place.clone());
            }
            records.push(TestRecord {
                group: Arc::clone(&name),
                retry_count: group.retry_count,
                schedule_individual: group.schedule_individual,
                ..TestRecord::new(id, test, suite)
            });
        }
        records
    }
}

impl Default for PytestFramework {
    fn default() -> Self {
        Self::new(PytestFrameworkConfig::default())
    }
}

/// Runs pytest over one set of filters.
async fn collect(
    config: &PytestFrameworkConfig,
    root: PathBuf,
    filters: &str,
    paths: &[PathBuf],
) -> FrameworkResult<Listing> {
    let failed = |what: String| {
        let with = if filters.is_empty() { String::new() } else { format!(" with the filters `{filters}`") };
        FrameworkError::Discovery(format!("cannot collect tests by `{}`{with}: {what}", config.command))
    };
    let out = tempfile::NamedTempFile::new().map_err(|error| failed(format!("no temporary file: {error}")))?;
    let line = command::list(config, filters, paths, &out.path().to_string_lossy());
    let root = std::path::absolute(&root).map_err(|error| failed(error.to_string()))?;
    let env = surroundings::variables(&config.env);
    let mut options = RunOptions { working_dir: Some(root.clone()), env, ..RunOptions::default() };
    options.env.insert("OFFLOAD_ROOT".to_owned(), root.to_string_lossy().into_owned());
    let output = ShellConnector::default().run(&line, &options).await.map_err(|error| failed(error.to_string()))?;
    let written = bounded::read(out.path(), bounded::REPORT).map_err(|error| failed(error.to_string()))?;
    let mut listing = results::listing(&written).map_err(&failed)?;
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let said = tail_of(&text, TAIL_LINES);
    match output.exit_code {
        // 5: nothing was collected.
        Some(0 | 5) if listing.session.is_some() => Ok(listing),
        // The user wants to go on without what could not be collected.
        Some(1) if listing.session.is_some() && !listing.tests.is_empty() => {
            listing.problem = Some(format!("some tests could not be collected by `{}`:{said}", config.command));
            Ok(listing)
        }
        Some(0 | 5) => Err(failed(format!("it did not load Offload's plugin; is it pytest?{said}"))),
        Some(127) => Err(failed(format!(
            "a program was not found; set `command` in [framework] to what starts pytest here{said}"
        ))),
        Some(1) if listing.session.is_none() => Err(failed(format!(
            "it ended with exit code 1; is pytest installed for that Python? `command` in [framework] can name another \
             one{said}"
        ))),
        code => Err(failed(format!("{}; its own output:{said}", describe_exit(code)))),
    }
}

#[async_trait]
impl TestFramework for PytestFramework {
    async fn discover(&self, paths: &[PathBuf]) -> FrameworkResult<Vec<TestRecord>> {
        gather(|sink| self.discover_stream(paths, sink)).await
    }

    fn produce_test_execution_command(&self, tests: &[TestInstance], result_file: &str) -> Command {
        let known = self.known();
        // Each group's tests need its arguments: `--runslow` decides at run time too.
        let mut invocations: Vec<Invocation<'_>> = Vec::new();
        for (key, test) in tests.iter().enumerate() {
            let filters = self.filters(&test.record.group);
            let place = known.tests.get(test.id()).cloned().unwrap_or_else(|| Place::of(test.id()));
            match invocations.iter_mut().find(|invocation| invocation.filters == filters) {
                Some(invocation) => invocation.tests.push((key, place)),
                None => invocations.push(Invocation {
                    filters,
                    session: known.sessions.get(filters),
                    tests: vec![(key, place)],
                }),
            }
        }
        let env = surroundings::variables(&self.config.env);
        Command { env, ..Command::shell(command::run(&self.config, &invocations, result_file)) }
    }

    fn parse_results(
        &self,
        tests: &[TestInstance],
        output: &ExecOutput,
        result_file: Option<&[u8]>,
    ) -> FrameworkResult<Vec<TestResult>> {
        results::parse(tests.len(), output, result_file.unwrap_or_default())
    }

    fn name(&self) -> &str {
        "pytest"
    }

    async fn discover_stream(&self, paths: &[PathBuf], sink: DiscoverySink) -> FrameworkResult<()> {
        let everything = [GroupConfig::default()];
        let groups = if self.groups.is_empty() { &everything[..] } else { &self.groups };
        let paths: Arc<[PathBuf]> = Arc::from(if paths.is_empty() { &self.config.paths[..] } else { paths });
        let cpus = || std::thread::available_parallelism().map_or(1, usize::from);
        let permits = Arc::new(Semaphore::new(if self.collectors == 0 { cpus() } else { self.collectors }));

        let mut distinct: Vec<&str> = Vec::new();
        for group in groups {
            if !distinct.contains(&group.filters.as_str()) {
                distinct.push(&group.filters);
            }
        }
        // Dropping the set, on an error, ends those that are still collecting.
        let mut collecting = JoinSet::new();
        for (number, filters) in distinct.iter().enumerate() {
            let (config, root) = (Arc::clone(&self.config), self.root.clone());
            let (paths, permits, filters) = (Arc::clone(&paths), Arc::clone(&permits), (*filters).to_owned());
            collecting.spawn(async move {
                let _permit = permits.acquire().await;
                (number, collect(&config, root, &filters, &paths).await)
            });
        }

        let mut listings: HashMap<&str, Listing> = HashMap::new();
        let mut waiting = groups.iter().peekable();
        let mut seen = HashSet::new();
        while let Some(joined) = collecting.join_next().await {
            let (number, listing) = joined
                .map_err(|error| FrameworkError::Discovery(format!("collecting tests was interrupted: {error}")))?;
            let listing = listing?;
            if let Some(problem) = &listing.problem {
                sink.send(Discovered::Problem(problem.clone()));
            }
            listings.insert(distinct[number], listing);
            // A test belongs to the first group that has it, so groups are handed out in their order.
            while let Some(group) = waiting.peek()
                && let Some(listing) = listings.get(group.filters.as_str())
            {
                if !sink.send(Discovered::Tests(self.records(group, listing, &mut seen))) {
                    return Ok(());
                }
                waiting.next();
            }
        }
        Ok(())
    }
}
