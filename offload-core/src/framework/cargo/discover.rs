//! One discovery: the build as a stream, test binaries listed the moment they are there, doctests at the end.
//!
//! What compiles is decided by `cargo test --no-run`, so that it is exactly what `cargo test` would compile. That
//! command stops at the first error, and only `cargo build` has `--keep-going`; so after a failed build a second pass
//! builds whatever can still be built, and what it says again is not shown again.

mod held;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cargo_metadata::{Artifact, Message, Metadata, Package, PackageId, Target, TargetKind};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::held::{Held, LeftOut};
use super::cache::Cache;
use super::config::load_config;
use super::diagnostics::{Shown, cargo_failed};
use super::doctest::{self, OnePackage};
use super::gate::{BuildGate, BuildGuard};
use super::list::{self, Listed};
use super::options::{CargoOptions, RunIgnored};
use super::outputs::{Output, Outputs};
use super::process::{CargoProcess, Said, cargo_command, not_started};
use super::select::{Origin, Selected, Selection, selected_packages};
use super::sources::Sources;
use super::toolchain::Toolchain;
use super::unit::{BuildFacts, binary_id};
use crate::framework::{Discovered, DiscoverySink, FrameworkError, FrameworkResult, Suite, TestRecord};
use crate::provider::Built;
use crate::worker::{Harness, Unit};

/// The most test binaries that are listed at once, doctests that are looked for at once. Never more than tests run.
const LISTED_AT_ONCE: usize = 4;

/// When users are told that a binary is waited for.
const LISTED_SOON: Duration = Duration::from_secs(10);

/// Runs one discovery. `note_root` hears where the workspace is before the first test is found, `note_built` what was
/// built when the build has ended.
pub(super) async fn discover(
    options: &CargoOptions,
    gate: &Arc<BuildGate>,
    sink: &DiscoverySink,
    note_root: impl FnOnce(&Path),
    note_built: impl FnOnce(Built),
) -> FrameworkResult<()> {
    let selection = Selection::new(options)?;
    let dir = options.working_dir()?;
    let config = load_config(&dir)?;
    let cpus = || std::thread::available_parallelism().map_or(1, usize::from);
    let configured = config.build.jobs.map(|jobs| match usize::try_from(jobs) {
        Ok(jobs) => jobs,
        // As in Cargo: so many fewer than there are.
        Err(_) => cpus().saturating_sub(jobs.unsigned_abs() as usize),
    });
    let jobs = options.build_jobs.or(configured).unwrap_or_else(cpus).max(1);

    // The build starts first: everything else is done while it goes on.
    let started = Instant::now();
    let guard = gate.close(jobs).map_err(|error| {
        FrameworkError::Discovery(format!(
            "cannot create the pipe that the build and the tests share: {error}; run again"
        ))
    })?;
    sink.send(Discovered::BuildStarted);
    let build = start_build(&dir, &first_pass_args(options), &guard, options.doc)?;
    let metadata = read_metadata(options, &dir, true).await?;
    note_root(metadata.workspace_root.as_std_path());
    let output_dir = if options.output_dir.as_os_str().is_empty() {
        metadata.target_directory.join("offload").into_std_path_buf()
    } else {
        dir.join(&options.output_dir)
    };
    let mut cache = Cache::load(&output_dir);
    let toolchain = Toolchain::resolve(config, options.target.as_deref(), &mut cache).await?;

    let packages: HashMap<_, _> =
        metadata.packages.iter().map(|package| (package.id.clone(), Arc::new(package.clone()))).collect();
    let selected = selected_packages(options, &metadata, &dir).await;
    gate.outputs.expect(expected_outputs(options, &selected, &packages));
    let mut discovery = Discovery {
        options,
        selection,
        outputs: &gate.outputs,
        sink,
        dir,
        metadata,
        packages,
        toolchain,
        cache,
        facts: BuildFacts::new(options.elsewhere),
        libraries: HashMap::new(),
        seen: HashSet::new(),
        listings: JoinSet::new(),
        permits: Arc::new(Semaphore::new(LISTED_AT_ONCE.min(if options.slots > 0 {
            options.slots
        } else {
            usize::MAX
        }))),
        building: true,
        held: Vec::new(),
        left_out: LeftOut::default(),
        needed: BTreeSet::new(),
        ungrouped: 0,
        doctests: Vec::new(),
    };
    let success = discovery.build(build, &guard).await;
    let left_out = gate.outputs.finish_all();
    let success = success?;
    drop(guard);
    discovery.building = false;
    if !success {
        discovery.left_out.outputs = left_out;
    }
    note_built(discovery.built());
    sink.send(Discovered::BuildFinished { success, duration: started.elapsed() });
    discovery.release();
    if options.wants_doctests() {
        discovery.find_doctests(&selected).await?;
    }
    discovery.finish_listings().await;
    discovery.announce_doctests();
    discovery.tell_what_is_left_out();
    discovery.cache.save();
    if discovery.ungrouped > 0 {
        let (tests, are) = if discovery.ungrouped == 1 { ("test", "is") } else { ("tests", "are") };
        sink.send(Discovered::Warning(format!(
            "{} {tests} that no group selects {are} not part of the run; a group without filters selects the rest",
            discovery.ungrouped
        )));
    }
    if !success {
        sink.send(Discovered::Problem(
            "Some targets do not compile, so their tests are missing from this run; mend the errors that Cargo reports \
             above and run again"
                .to_owned(),
        ));
    }
    Ok(())
}

const MESSAGES: &str = "--message-format=json-render-diagnostics";

/// What `cargo test` would compile.
fn first_pass_args(options: &CargoOptions) -> Vec<String> {
    let mut args: Vec<String> = if options.doc {
        // Cannot be told not to run: rustdoc is replaced by something that does nothing. `cargo build --lib` would
        // build the library without the features that only dev-dependencies turn on.
        vec!["test".to_owned(), "--doc".to_owned(), MESSAGES.to_owned()]
    } else {
        vec!["test".to_owned(), "--no-run".to_owned(), MESSAGES.to_owned()]
    };
    args.extend(options.package_args());
    if !options.doc {
        args.extend(options.target_args());
    }
    args.extend(options.feature_args());
    args.extend(options.build_args());
    args.extend(options.noise_args());
    args.extend(options.color_args());
    args
}

/// What can still be compiled after an error. Diagnostics come as messages, so that they can be told apart.
fn second_pass_args(options: &CargoOptions) -> Vec<String> {
    let form = if options.color == Some(true) { "json-diagnostic-rendered-ansi" } else { "json" };
    let mut args = vec!["build".to_owned(), "--keep-going".to_owned(), format!("--message-format={form}")];
    args.extend(options.package_args());
    args.extend(if options.doc { vec!["--lib".to_owned()] } else { options.keep_going_target_args() });
    args.extend(options.feature_args());
    args.extend(options.build_args());
    args.extend(options.noise_args());
    args.extend(options.color_args());
    args
}

fn start_build(dir: &Path, args: &[String], guard: &BuildGuard, doc: bool) -> FrameworkResult<CargoProcess> {
    let mut command = cargo_command(dir, args.iter().cloned());
    if doc {
        command.env("RUSTDOC", "true");
    }
    guard.configure(&mut command);
    CargoProcess::start(command)
}

async fn read_metadata(options: &CargoOptions, dir: &Path, members_only: bool) -> FrameworkResult<Metadata> {
    let mut args = vec!["metadata".to_owned(), "--format-version=1".to_owned()];
    if members_only {
        args.push("--no-deps".to_owned());
    } else {
        args.extend(options.feature_args());
    }
    args.extend(options.workspace_args());
    args.extend(options.color_args());
    let mut command = tokio::process::Command::from(cargo_command(dir, args));
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.map_err(|error| not_started(&error))?;
    if !output.status.success() {
        let lines: Vec<_> = String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect();
        return Err(cargo_failed(dir, &lines, None));
    }
    let mut metadata =
        cargo_metadata::MetadataCommand::parse(String::from_utf8_lossy(&output.stdout)).map_err(|error| {
            FrameworkError::Discovery(format!(
                "cannot read what `cargo metadata` printed in {}: {error}; check that this is Cargo 1.71 or newer",
                dir.display()
            ))
        })?;
    // `--target-dir` is an option of builds only.
    if let Some(target_dir) = &options.target_dir
        && let Ok(target_dir) = cargo_metadata::camino::Utf8PathBuf::from_path_buf(dir.join(target_dir))
    {
        if metadata.build_directory.as_ref() == Some(&metadata.target_directory) {
            metadata.build_directory = Some(target_dir.clone());
        }
        metadata.target_directory = target_dir;
    }
    Ok(metadata)
}

/// What the build may put where tests find it. One that is named and never comes makes tests wait for the end of the
/// build; one that is left out may be found by a test while it is old.
fn expected_outputs(
    options: &CargoOptions,
    selected: &[PackageId],
    packages: &HashMap<PackageId, Arc<Package>>,
) -> HashSet<Output> {
    let mut outputs = HashSet::new();
    // Libraries are built for the sake of others, too.
    let mut reached: Vec<&Package> = selected.iter().filter_map(|id| packages.get(id)).map(|it| &**it).collect();
    let mut number = 0;
    while let Some(&package) = reached.get(number) {
        for dependency in &package.dependencies {
            let members = packages.values().filter(|member| member.name.as_str() == dependency.name);
            for member in members {
                if !reached.iter().any(|known| known.id == member.id) {
                    reached.push(member);
                }
            }
        }
        number += 1;
    }
    for package in &reached {
        let uses_programs = |target: &Target| target.is_test() || target.is_bench();
        // Cargo builds a package's programs for the sake of its integration tests and benchmarks.
        let programs = options.selects_targets() || package.targets.iter().any(uses_programs);
        let is_selected = selected.contains(&package.id);
        for target in &package.targets {
            let expected = if target.is_bin() {
                is_selected && programs
            } else if target.is_example() {
                is_selected && (!target.test || options.selects_targets())
            } else {
                true
            };
            outputs.extend(Output::of(&package.id, target).filter(|_| expected));
        }
    }
    outputs
}

/// A test binary or library that was asked for its tests.
struct Listing {
    package: Arc<Package>,
    /// `None` for doctests.
    target: Option<Target>,
    unit: Unit,
    /// The file whose identity says whether the answer still holds.
    file: PathBuf,
    outcome: ListOutcome,
}

enum ListOutcome {
    /// A standard harness, or one that lists like it.
    Tests(Vec<Listed>),
    /// A target without the standard harness answered (or its answer was remembered).
    Probed(Option<Vec<Listed>>),
    /// Doctests, to be remembered as learnt from this, besides the library.
    Doctests {
        tests: Vec<Listed>,
        remember: Option<String>,
    },
    Failed(String),
}

struct Discovery<'a> {
    options: &'a CargoOptions,
    selection: Selection,
    sink: &'a DiscoverySink,
    dir: PathBuf,
    metadata: Metadata,
    packages: HashMap<PackageId, Arc<Package>>,
    toolchain: Toolchain,
    cache: Cache,
    facts: BuildFacts,
    /// Built libraries that can have doctests.
    libraries: HashMap<PackageId, PathBuf>,
    outputs: &'a Outputs,
    /// Test binaries that were announced.
    seen: HashSet<PathBuf>,
    listings: JoinSet<Listing>,
    permits: Arc<Semaphore>,
    building: bool,
    /// Tests that wait for what they may use to be built.
    held: Vec<Held>,
    left_out: LeftOut,
    /// What was built and may be needed while tests run.
    needed: BTreeSet<PathBuf>,
    ungrouped: usize,
    /// Doctests that were found, until all are known.
    doctests: Vec<(Arc<Package>, Unit, Vec<Listed>)>,
}

impl Discovery<'_> {
    /// Follows the build to its end. Returns whether everything was built.
    async fn build(&mut self, first: CargoProcess, guard: &BuildGuard) -> FrameworkResult<bool> {
        let mut shown = Shown::default();
        if self.pass(first, &mut shown, false).await? {
            return Ok(true);
        }
        let second = start_build(&self.dir, &second_pass_args(self.options), guard, false)?;
        self.pass(second, &mut shown, true).await?;
        Ok(false)
    }

    async fn pass(&mut self, mut cargo: CargoProcess, shown: &mut Shown, again: bool) -> FrameworkResult<bool> {
        let mut finished = None;
        // Errors before the first message may be Cargo's own; then they are the error and not the build's output.
        let mut held: Vec<String> = Vec::new();
        let mut any_message = false;
        loop {
            let said = tokio::select! {
                biased;
                Some(listing) = self.listings.join_next() => {
                    self.listed(listing);
                    continue;
                }
                said = cargo.next() => said,
            };
            match said {
                None => break,
                Some(Said::Line(line)) if again => {
                    if shown.is_new_line(&line) {
                        self.sink.send(Discovered::BuildOutput(line));
                    }
                }
                Some(Said::Line(line)) => {
                    if !any_message && (!held.is_empty() || console::strip_ansi_codes(&line).starts_with("error")) {
                        held.push(line);
                    } else {
                        shown.add(&line);
                        self.sink.send(Discovered::BuildOutput(line));
                    }
                }
                Some(Said::Message(message)) => {
                    any_message = true;
                    for line in held.drain(..) {
                        shown.add(&line);
                        self.sink.send(Discovered::BuildOutput(line));
                    }
                    match *message {
                        Message::CompilerArtifact(artifact) => self.artifact(artifact, again).await?,
                        Message::BuildScriptExecuted(script) => self.facts.add_script(script),
                        Message::BuildFinished(end) => finished = Some(end.success),
                        Message::CompilerMessage(message) if again => {
                            let rendered = message.message.rendered.unwrap_or_default();
                            if self.selects(&message.package_id, &message.target) && shown.is_new_block(&rendered) {
                                for line in rendered.lines() {
                                    self.sink.send(Discovered::BuildOutput(line.to_owned()));
                                }
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
        let status = cargo.wait().await?;
        match finished {
            Some(success) => {
                for line in held {
                    self.sink.send(Discovered::BuildOutput(line));
                }
                Ok(success && status.success())
            }
            None if again => Ok(false),
            None => Err(cargo_failed(&self.dir, &held, Some(&self.metadata))),
        }
    }

    /// Whether the options select a target. The second pass builds more than what was asked for.
    fn selects(&self, package: &PackageId, target: &Target) -> bool {
        let options = self.options;
        // Libraries and binaries are built for the sake of others, too: their errors always matter.
        if !options.selects_targets() || options.all_targets || !self.packages.contains_key(package) {
            return true;
        }
        match target.kind.first() {
            Some(TargetKind::Test) => options.tests || options.test.contains(&target.name),
            Some(TargetKind::Example) => options.examples || options.example.contains(&target.name) || options.tests,
            Some(TargetKind::Bench) => options.benches || options.bench.contains(&target.name) || options.tests,
            _ => true,
        }
    }

    /// Whether the options select the tests of a target. In the first pass Cargo has decided that.
    fn selects_tests_of(&self, target: &Target) -> bool {
        let options = self.options;
        if options.doc {
            return false;
        }
        if !options.selects_targets() || options.all_targets {
            return true;
        }
        let tests = options.tests && target.test;
        match target.kind.first() {
            Some(TargetKind::Test) => tests || options.test.contains(&target.name),
            Some(TargetKind::Example) => tests || options.examples || options.example.contains(&target.name),
            Some(TargetKind::Bench) => tests || options.benches || options.bench.contains(&target.name),
            Some(TargetKind::Bin) => tests || options.bins || options.benches || options.bin.contains(&target.name),
            // `--benches` takes libraries and binaries with `bench = true` along, which is the default.
            _ => tests || options.lib || options.benches,
        }
    }

    /// What tests need that was built.
    fn built(&mut self) -> Built {
        self.needed.extend(self.facts.script_output(&self.metadata));
        let temporary = self.metadata.target_directory.join("tmp").into_std_path_buf();
        Built {
            files: std::mem::take(&mut self.needed).into_iter().collect(),
            // What `CARGO_TARGET_TMPDIR` names.
            directories: temporary.is_dir().then_some(temporary).into_iter().collect(),
            ..Built::default()
        }
    }

    async fn artifact(&mut self, artifact: Artifact, again: bool) -> FrameworkResult<()> {
        self.needed.extend(BuildFacts::needed(&artifact, &self.toolchain));
        self.facts.add_library(&artifact);
        if let Some(library) = doctest::library(&artifact) {
            self.libraries.insert(artifact.package_id.clone(), library);
        }
        if !artifact.profile.test {
            self.outputs.finish(&artifact);
            if self.outputs.are_final() && !self.options.wait_for_build {
                self.release();
            }
            return Ok(());
        }
        let Some(executable) = artifact.executable.clone() else { return Ok(()) };
        let executable = executable.into_std_path_buf();
        if (again && !self.selects_tests_of(&artifact.target)) || !self.seen.insert(executable.clone()) {
            return Ok(());
        }
        let Some(package) = self.package(&artifact.package_id).await? else {
            self.problem(&executable, "belongs to a package that `cargo metadata` does not know");
            return Ok(());
        };
        let Some(mut unit) = self.facts.unit(&artifact, &package, &self.metadata, &self.toolchain) else {
            self.problem(&executable, "is not where Cargo puts test binaries");
            return Ok(());
        };
        unit.extra_args.clone_from(&self.options.harness_args);
        let custom = unit.custom_harness;
        let remembered = self.cache.opaque(&executable);
        let permits = self.permits.clone();
        let only_ignored = self.options.run_ignored == RunIgnored::Only;
        let target = Some(artifact.target);
        let sink = self.sink.clone();
        self.listings.spawn(async move {
            // The semaphore is never closed; without a permit the listing would only be less orderly.
            let _permit = permits.acquire().await;
            let opaque = custom && remembered.unwrap_or_else(|| !list::may_list(&executable));
            let outcome = {
                let listing = async {
                    if opaque {
                        ListOutcome::Probed(None)
                    } else if custom {
                        list::probe(&unit, only_ignored).await.map_or_else(ListOutcome::Failed, ListOutcome::Probed)
                    } else {
                        list::list(&unit).await.map_or_else(ListOutcome::Failed, ListOutcome::Tests)
                    }
                };
                tokio::pin!(listing);
                match tokio::time::timeout(LISTED_SOON, &mut listing).await {
                    Ok(outcome) => outcome,
                    Err(_) => {
                        let (file, secs) = (executable.display(), LISTED_SOON.as_secs());
                        sink.send(Discovered::Warning(format!(
                            "Waiting for {file} for {secs} s: it was asked for a list of its tests."
                        )));
                        listing.await
                    }
                }
            };
            Listing { package, target, unit, file: executable, outcome }
        });
        Ok(())
    }

    /// The package with this id. Tests of packages outside the workspace can be asked for with `--package`.
    async fn package(&mut self, id: &PackageId) -> FrameworkResult<Option<Arc<Package>>> {
        if !self.packages.contains_key(id) {
            let all = read_metadata(self.options, &self.dir, false).await?;
            for package in all.packages {
                self.packages.entry(package.id.clone()).or_insert_with(|| Arc::new(package));
            }
        }
        Ok(self.packages.get(id).cloned())
    }

    fn problem(&self, binary: &Path, what: &str) {
        self.sink.send(Discovered::Problem(format!(
            "cannot list the tests of {}: it {what}; its tests are missing from this run",
            binary.display()
        )));
    }

    /// Takes in the answer of one binary or library.
    fn listed(&mut self, listing: Result<Listing, tokio::task::JoinError>) {
        let Listing { package, target, mut unit, file, outcome } = match listing {
            Ok(listing) => listing,
            Err(error) => {
                self.sink.send(Discovered::Problem(format!("listing tests failed inside the runner: {error}")));
                return;
            }
        };
        let tests = match outcome {
            ListOutcome::Tests(tests) => tests,
            ListOutcome::Probed(answer) => {
                self.cache.set_opaque(&file, answer.is_none());
                answer.unwrap_or_else(|| {
                    unit.harness = Harness::Opaque;
                    vec![Listed::new(target.as_ref().map_or("main", |target| target.name.as_str()))]
                })
            }
            ListOutcome::Doctests { tests, remember } => {
                if let Some(context) = remember {
                    self.cache.set_doctests(&file, &context, tests.clone());
                }
                self.doctests.push((package, unit, tests));
                return;
            }
            ListOutcome::Failed(what) => {
                let whose = match target {
                    Some(_) => format!("the tests of {}: it", file.display()),
                    None => format!("the doctests of {}:", package.name),
                };
                self.sink.send(Discovered::Problem(format!(
                    "cannot list {whose} {what}\nThese tests are missing from this run; run the command by hand to see more"
                )));
                return;
            }
        };
        let mut tests = self.records(&package, target.as_ref(), unit, tests);
        let uses_programs = |target: &Target| target.is_test() || target.is_bench() || target.is_example();
        let uses_programs = target.as_ref().is_some_and(uses_programs);
        if self.building && self.options.wait_for_build {
            self.hold(&package, uses_programs, &mut tests);
        } else if self.building && !self.outputs.are_final() {
            // With `build.build-dir` set, intermediate files have a directory of their own.
            let target_directory = &self.metadata.target_directory;
            let build_directory = self.metadata.build_directory.as_ref().filter(|dir| *dir != target_directory);
            let directories: Vec<&Path> =
                [Some(target_directory), build_directory].into_iter().flatten().map(|dir| dir.as_std_path()).collect();
            if uses_programs || !self.outputs.watch(&directories) {
                self.hold(&package, uses_programs, &mut tests);
            }
            tests.iter_mut().for_each(|test| test.provisional = true);
        } else if uses_programs {
            self.leave_out(&package.id, &mut tests);
        }
        if !tests.is_empty() {
            self.sink.send(Discovered::Tests(tests));
        }
    }

    fn records(
        &mut self,
        package: &Package,
        target: Option<&Target>,
        mut unit: Unit,
        tests: Vec<Listed>,
    ) -> Vec<TestRecord> {
        // A program without the standard harness gets what was typed, as from Cargo.
        let opaque = unit.harness == Harness::Opaque;
        unit.extra_args.extend(match self.options.run_ignored {
            RunIgnored::Default => None,
            RunIgnored::Only if opaque => Some("--ignored".to_owned()),
            RunIgnored::Only | RunIgnored::All => Some("--include-ignored".to_owned()),
        });
        let id = target.map_or_else(|| format!("{}::doc", package.name), |target| binary_id(package, target));
        let suite = Arc::new(Suite { id, unit: Some(Arc::new(unit)) });
        let origin = Origin {
            package,
            kind: target.and_then(|target| target.kind.first()),
            target: target.map_or("", |target| target.name.as_str()),
        };
        let mut records = Vec::with_capacity(tests.len());
        for test in tests {
            let (group, retries, individual) =
                match self.selection.select(origin, &test.name, opaque || test.ignored.is_some()) {
                    Selected::Yes { group, retries, individual } => (group, retries, individual),
                    Selected::No => continue,
                    Selected::NoGroup => {
                        self.ungrouped += 1;
                        continue;
                    }
                };
            let mut record = TestRecord::new(format!("{} {}", suite.id, test.name), test.name, suite.clone());
            record.group = group;
            record.retry_count = retries;
            record.schedule_individual = individual;
            record.skipped = test.ignored.filter(|_| self.selection.skips_ignored()).map(|reason| {
                Arc::from(if reason.is_empty() { "ignored".to_owned() } else { format!("ignored, {reason}") })
            });
            records.push(record);
        }
        records
    }

    /// Starts to look for the doctests of the selected packages.
    async fn find_doctests(&mut self, selected: &[PackageId]) -> FrameworkResult<()> {
        let context = self.doctest_context();
        let one_package = if selected.len() > 1 || self.options.packages.len() > 1 {
            let dir = self.metadata.target_directory.join("offload");
            match OnePackage::prepare(dir.as_std_path(), &self.toolchain.rustdoc) {
                Ok(one_package) => Some(one_package),
                Err(error) => {
                    self.sink.send(Discovered::Problem(format!(
                        "cannot write the script that selects doctests into {dir}: {error}; doctests are missing from \
                         this run; make room or the directory writable and run again"
                    )));
                    return Ok(());
                }
            }
        } else {
            None
        };
        for id in selected {
            let Some(library) = self.libraries.remove(id) else { continue };
            let Some(package) = self.package(id).await? else {
                self.problem(&library, "belongs to a package that `cargo metadata` does not know");
                continue;
            };
            let mut unit =
                doctest::unit(self.options, &package, one_package.as_ref(), &self.dir, &self.toolchain.cargo);
            unit.extra_args.clone_from(&self.options.harness_args);
            let remembered = self.cache.doctests(&library);
            let root = self.metadata.workspace_root.clone().into_std_path_buf();
            let (permits, context) = (self.permits.clone(), context.clone());
            self.listings.spawn(async move {
                let _permit = permits.acquire().await;
                let own = package.manifest_path.parent().map_or(&*root, |dir| dir.as_std_path());
                let sources =
                    Sources::read(&library, &root, own).unwrap_or(Sources { may_ignore: true, ..Sources::default() });
                let context = sources.cacheable.then(|| format!("{context}\n{}", sources.unseen));
                let outcome = match remembered.filter(|(learnt_from, _)| context.as_ref() == Some(learnt_from)) {
                    Some((_, tests)) => ListOutcome::Doctests { tests, remember: None },
                    None => doctest::list(&unit, sources.may_ignore)
                        .await
                        .map_or_else(ListOutcome::Failed, |tests| ListOutcome::Doctests { tests, remember: context }),
                };
                Listing { package, target: None, unit, file: library, outcome }
            });
        }
        Ok(())
    }

    /// The doctests of a package are one run, which is parallel in itself: each gets a share of the slots by its size.
    fn announce_doctests(&mut self) {
        let mut found = std::mem::take(&mut self.doctests);
        found.sort_by(|(a, ..), (b, ..)| a.id.cmp(&b.id));
        let all: usize = found.iter().map(|(_, _, tests)| tests.len()).sum();
        for (package, mut unit, tests) in found {
            if self.options.slots > 0 {
                let threads = (self.options.slots * tests.len()).div_ceil(all.max(1)).max(1);
                unit.extra_args.push(format!("--test-threads={threads}"));
            }
            let mut tests = self.records(&package, None, unit, tests);
            if self.options.elsewhere {
                let reason: Arc<str> = Arc::from("doctests need Rust; they run with provider `local` only");
                tests.iter_mut().for_each(|test| test.skipped = Some(Arc::clone(&reason)));
            }
            if !tests.is_empty() {
                self.sink.send(Discovered::Tests(tests));
            }
        }
    }

    fn doctest_context(&self) -> String {
        let Toolchain { rustdoc, rustdoc_flags, .. } = &self.toolchain;
        format!("{}\n{rustdoc_flags}\n{}", rustdoc.display(), self.options.feature_args().join(" "))
    }

    async fn finish_listings(&mut self) {
        while let Some(listing) = self.listings.join_next().await {
            self.listed(listing);
        }
    }
}
