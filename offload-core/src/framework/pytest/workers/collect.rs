//! Has files collected by workers, and puts what they found in order.
//!
//! One task per worker takes pieces off the common [`Shares`] until there are none left, and sees to the worker's
//! replacement if it dies.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::alone::Alone;
use super::share::Shares;
use crate::event::NativeEvent;
use crate::framework::{
    Address, Discovered, DiscoverySink, FrameworkError, FrameworkResult, Sandboxes, Suite, TestRecord,
};
use crate::worker::pytest::{
    Collected, FromTemplate, Incoming, LinkError, Outgoing, PytestHost, UnitLine, WORTH_SAYING, WorkerProcess, within,
    words_of,
};

/// How long after the end of its connection it takes at most to hear how a worker ended.
const EXIT_PATIENCE: Duration = Duration::from_secs(3);
/// How many sandboxes may break, one after the other, in which the same files are collected.
const MOST_REPLACEMENTS: u32 = 3;

/// What has been collected.
pub(super) struct Collection<'a> {
    host: &'a Arc<PytestHost>,
    sink: &'a DiscoverySink,
    /// By file, with the number of the sandbox whose worker has it.
    units: BTreeMap<u32, (Collected, Option<u32>)>,
    failures: usize,
    /// What pytest says of those.
    texts: Vec<String>,
    alone: Option<&'a Alone>,
    /// What the template said of an error inside of pytest, as JSON.
    internal_error: Option<Arc<str>>,
}

/// Where workers come from.
pub(super) struct Collectors {
    host: Arc<PytestHost>,
    /// The number of the sandbox that is there already.
    first: u32,
    /// Where every worker is in a sandbox of its own: what makes those.
    sandboxes: Option<Sandboxes>,
}

impl Collectors {
    /// From the template of this machine.
    pub fn here(host: &Arc<PytestHost>) -> Self {
        Self { host: Arc::clone(host), first: 0, sandboxes: None }
    }

    /// From a template in each sandbox; the one in the sandbox `first` has said what there is to collect.
    pub fn elsewhere(host: &Arc<PytestHost>, first: u32, sandboxes: Sandboxes) -> Self {
        Self { host: Arc::clone(host), first, sandboxes: Some(sandboxes) }
    }

    /// The number of the sandbox that is there already.
    pub fn first(&self) -> u32 {
        self.first
    }

    /// The same, where other sandboxes have templates of their own.
    pub fn home_elsewhere(&self) -> Option<u32> {
        self.sandboxes.as_ref().map(|_| self.first)
    }
}

/// What the task of a worker tells.
enum Found {
    Tests(Collected, u32),
    Report {
        report: Arc<str>,
        failed: bool,
        text: String,
    },
    /// A file could not be collected because the worker died of it.
    Blamed,
    Native(NativeEvent),
}

impl<'a> Collection<'a> {
    pub fn new(host: &'a Arc<PytestHost>, sink: &'a DiscoverySink, alone: Option<&'a Alone>) -> Self {
        Self { host, sink, units: BTreeMap::new(), failures: 0, texts: Vec::new(), alone, internal_error: None }
    }

    /// Takes note of the tests of a file. `home`: the number of the sandbox whose worker has them.
    pub fn add(&mut self, collected: Collected, home: Option<u32>) {
        self.host.set_digest(collected.unit, &collected.digest);
        self.units.insert(collected.unit, (collected, home));
    }

    /// Takes note of something that could not be collected, or was skipped.
    pub fn report(&mut self, report: Arc<str>, failed: bool, text: String) {
        if failed {
            self.failures += 1;
            self.texts.push(text);
        }
        self.native("collect_report", report);
    }

    fn native(&self, kind: &'static str, data: impl Into<Arc<str>>) {
        self.sink.send(Discovered::Native(NativeEvent::new(kind, data)));
    }

    fn found(&mut self, found: Found) -> FrameworkResult<()> {
        match found {
            Found::Tests(collected, slot) => self.add(collected, Some(slot)),
            Found::Report { report, failed, text } => self.report(report, failed, text),
            Found::Blamed => {}
            Found::Native(event) => {
                self.look_at(event.kind, &event.data)?;
                self.sink.send(Discovered::Native(event));
            }
        }
        Ok(())
    }

    /// Where no pytest looks at what workers say: what ends a run.
    fn look_at(&self, kind: &str, data: &str) -> FrameworkResult<()> {
        if self.alone.is_some()
            && kind == "data"
            && let Ok((said, lines)) = serde_json::from_str::<(String, Vec<String>)>(data)
            && said == "usage_error"
        {
            return Err(FrameworkError::Usage(format!("pytest refuses its arguments: {}", lines.join("\n"))));
        }
        Ok(())
    }

    /// Has workers collect `units`.
    ///
    /// # Errors
    ///
    /// When the template breaks, or workers cannot be had.
    pub async fn share_out(
        &mut self,
        units: Vec<UnitLine>,
        template: &mut mpsc::UnboundedReceiver<FromTemplate>,
        collectors: Collectors,
    ) -> FrameworkResult<()> {
        let workers = self.host.options().workers.max(1).min(units.len());
        let mut left = units.len();
        let shares = Arc::new(Mutex::new(Shares::new(units.len(), workers)));
        let units: Arc<[UnitLine]> = units.into();
        let (tell, mut told) = mpsc::unbounded_channel();
        let done = watch::Sender::new(false);
        let mut tasks = JoinSet::new();
        for share in 0..workers {
            let collector = Collector {
                host: Arc::clone(&collectors.host),
                units: Arc::clone(&units),
                shares: Arc::clone(&shares),
                share,
                slot: collectors.first + share as u32,
                sandboxes: collectors.sandboxes.clone(),
                is_ready: share == 0 || collectors.sandboxes.is_none(),
                is_lost: false,
                done: done.subscribe(),
                tell: tell.clone(),
                pending: VecDeque::new(),
                requests: 0,
            };
            tasks.spawn(collector.run());
        }
        drop(tell);
        loop {
            tokio::select! {
                // Told before the tasks end, which is what ends the channel.
                found = told.recv() => match found {
                    Some(found) => {
                        left = left.saturating_sub(usize::from(matches!(found, Found::Tests(..) | Found::Blamed)));
                        self.found(found)?;
                        if left == 0 {
                            // Nobody has to wait for sandboxes any more, for the sake of collecting.
                            done.send_replace(true);
                        }
                    }
                    None => break,
                },
                Some(said) = template.recv() => match said {
                    // The worker of that sandbox notices it too, and has another one.
                    FromTemplate::Ended(_) | FromTemplate::Lost(_) if collectors.sandboxes.is_some() => {}
                    said => self.on_template(said)?,
                },
            }
        }
        let mut failed = None;
        while let Some(ended) = tasks.join_next().await {
            let ended = ended.map_err(|error| format!("collecting was interrupted: {error}")).flatten();
            failed = failed.or(ended.err());
        }
        match failed {
            // What one did not collect others have.
            Some(_) if left == 0 => Ok(()),
            Some(reason) => Err(FrameworkError::Discovery(reason)),
            None => Ok(()),
        }
    }

    fn on_template(&mut self, said: FromTemplate) -> FrameworkResult<()> {
        match said {
            FromTemplate::Ended(text) | FromTemplate::Lost(text) => return Err(FrameworkError::Discovery(text)),
            FromTemplate::Message(Incoming::Fatal { exit_code, text }) => return Err(self.fatal(exit_code, &text)),
            FromTemplate::Message(Incoming::CollectReport { report, failed, text }) => {
                self.report(report, failed, text)
            }
            FromTemplate::Message(Incoming::Native(kind, data)) => self.pass_on(kind, data)?,
            FromTemplate::Message(_) => {}
        }
        Ok(())
    }

    /// Takes note of something that the template says in pytest's own terms.
    ///
    /// # Errors
    ///
    /// When that is a reason to run nothing.
    pub fn pass_on(&mut self, kind: &'static str, data: Arc<str>) -> FrameworkResult<()> {
        self.look_at(kind, &data)?;
        if kind == "internal_error" {
            self.internal_error = Some(Arc::clone(&data));
        }
        self.native(kind, data);
        Ok(())
    }

    /// pytest itself ends the run.
    pub fn fatal(&self, exit_code: i32, text: &str) -> FrameworkError {
        self.native("fatal", serde_json::json!([exit_code, text]).to_string());
        let internal = self.internal_error.as_deref().and_then(|error| serde_json::from_str::<String>(error).ok());
        let why = if text.is_empty() { internal.unwrap_or_default() } else { text.to_owned() };
        FrameworkError::Discovery(format!("pytest cannot run these tests (exit code {exit_code}):\n{why}"))
    }

    /// The tests, in the order in which plain pytest would have them.
    ///
    /// # Errors
    ///
    /// When something could not be collected and that is to end the run.
    pub fn into_tests(mut self, despite_errors: bool) -> FrameworkResult<Vec<TestRecord>> {
        for (collected, _) in self.units.values() {
            if let Some(deselected) = collected.deselected.as_deref().filter(|list| list.get() != "[]") {
                self.native("deselected", deselected.get());
            }
        }
        let mut tests = Vec::new();
        let dist = self.host.options().dist;
        let name: Arc<str> = self.alone.map_or_else(|| Arc::from(""), |group| Arc::from(group.name.as_str()));
        let mut seen: HashMap<String, usize> = HashMap::new();
        for (unit, (mut collected, home)) in std::mem::take(&mut self.units) {
            collected.tests.sort_by_key(|test| test.ordinal);
            let suite = Suite::new(collected.path);
            for test in collected.tests {
                let group = test.group.as_ref().map(|group| &*group.0);
                let record = TestRecord {
                    together: dist.together(&test.id.0, &suite.id, group),
                    line: test.line.and_then(|line| u32::try_from(line).ok()),
                    address: Some(Address { unit, ordinal: test.ordinal, home }),
                    ..TestRecord::new(test.id.0, test.domain.0, Arc::clone(&suite))
                };
                tests.push(match self.alone {
                    Some(group) => in_group(record, group, &name, &mut seen),
                    None => record,
                });
            }
        }
        if self.failures > 0 && !despite_errors {
            // pytest's cache remembers what was collected, whether it runs or not.
            let ids: Vec<&str> = tests.iter().map(|test| &*test.id).collect();
            self.native("nodeids", serde_json::json!(ids).to_string());
        }
        self.sink.send(Discovered::Native(NativeEvent::new("collected", tests.len().to_string())));
        if self.host.names_tests() {
            let ids: Vec<&str> = tests.iter().map(|test| &*test.id).collect();
            self.native("tests", serde_json::json!(ids).to_string());
        }
        if self.failures == 0 {
            return Ok(tests);
        }
        let errors = if self.failures == 1 { "was 1 error" } else { &format!("were {} errors", self.failures) };
        let texts = said(&self.texts);
        if self.alone.is_none() {
            // Of each of them pytest has a report.
            self.native("collection_errors", self.failures.to_string());
        }
        if despite_errors {
            self.sink.send(Discovered::Problem(format!("there {errors} during collection{texts}")));
            return Ok(tests);
        }
        Err(FrameworkError::Discovery(format!(
            "there {errors} during collection, so no test was run; mend them, or run what there is with \
             --continue-on-collection-errors{texts}"
        )))
    }
}

/// What pytest says of files that it could not collect.
fn said(texts: &[String]) -> String {
    let mut texts = texts.iter().filter(|text| !text.is_empty()).peekable();
    let colon = if texts.peek().is_some() { ":" } else { "" };
    texts.fold(colon.to_owned(), |said, text| format!("{said}\n{}", text.trim_end()))
}

/// A test as reports that know nothing of pytest tell it from others: some node ids are not unique.
fn in_group(record: TestRecord, group: &Alone, name: &Arc<str>, seen: &mut HashMap<String, usize>) -> TestRecord {
    let times = seen.entry(record.id.clone()).or_default();
    *times += 1;
    let number = if *times == 1 { String::new() } else { format!(" #{times}") };
    let test = record.id.split_once("::").map_or(&*record.id, |(_, test)| test);
    TestRecord {
        name: format!("{test}{number}"),
        id: format!("{}{number}", record.id),
        group: Arc::clone(name),
        retry_count: group.retry_count,
        schedule_individual: group.schedule_individual,
        ..record
    }
}

/// Collects with one worker after the other, usually one.
struct Collector {
    host: Arc<PytestHost>,
    units: Arc<[UnitLine]>,
    shares: Arc<Mutex<Shares>>,
    /// Which of the shares is its own.
    share: usize,
    /// The number of the sandbox that gets the worker.
    slot: u32,
    /// What makes sandboxes, where they are somewhere else.
    sandboxes: Option<Sandboxes>,
    /// Whether workers can be forked for the sandbox.
    is_ready: bool,
    /// Whether it broke, so that another one has to take its place.
    is_lost: bool,
    /// All has been collected.
    done: watch::Receiver<bool>,
    tell: mpsc::UnboundedSender<Found>,
    /// Files that the worker was given and has not reported, oldest first.
    pending: VecDeque<usize>,
    /// Requests that it has not reported as done.
    requests: usize,
}

impl Collector {
    /// # Errors
    ///
    /// When no worker can be had.
    async fn run(mut self) -> Result<(), String> {
        let mut replacements = 0;
        loop {
            if !self.is_ready && !self.sandbox().await? {
                return Ok(());
            }
            let (id, forked) = self.host.fork(self.slot);
            let worker = within(self.limit(), forked, || self.waits_for(&id, "starts")).await;
            let worker = match worker {
                Some(Ok(forked)) => forked.map_err(|none| none.reason),
                Some(Err(_)) => Err(format!("the worker {id} could not be forked")),
                None => Err(format!("the worker {id} took longer than {} s to start", self.limit_secs())),
            };
            let lost = match worker {
                Ok(mut worker) => match self.collect(&mut worker).await {
                    Ok(()) => {
                        self.host.put(self.slot, worker);
                        return Ok(());
                    }
                    Err(End::Sandbox(reason)) => reason,
                    Err(End::Worker(how)) => {
                        let words = words_of(&worker).await;
                        worker.kill();
                        if let Some(file) = self.pending.pop_front() {
                            self.blame(file, &id, &how, words.as_deref());
                        }
                        self.requests = 0;
                        if self.pending.is_empty() && self.next_piece().is_empty() {
                            return Ok(());
                        }
                        continue;
                    }
                },
                Err(reason) => reason,
            };
            replacements += 1;
            if self.sandboxes.is_none() || replacements > MOST_REPLACEMENTS {
                return Err(lost);
            }
            tracing::warn!(reason = lost, "a sandbox broke while it collected; another one takes its place");
            self.requests = 0;
            self.is_ready = false;
            self.is_lost = true;
        }
    }

    /// Waits for the sandbox; returns whether there is still something to collect in it.
    async fn sandbox(&mut self) -> Result<bool, String> {
        if let Some(sandboxes) = &self.sandboxes {
            let done = async {
                // The sender waits for this task.
                let _ = self.done.wait_for(|done| *done).await;
            };
            let ready = async {
                if self.is_lost { sandboxes.replaced(self.slot).await } else { sandboxes.ready(self.slot).await }
            };
            tokio::select! {
                ready = ready => ready?,
                () = done => return Ok(false),
            }
        }
        self.is_ready = true;
        Ok(true)
    }

    /// Collects until there is nothing left to collect.
    ///
    /// # Errors
    ///
    /// What ended.
    async fn collect(&mut self, worker: &mut WorkerProcess) -> Result<(), End> {
        if !self.pending.is_empty() {
            let files: Vec<usize> = self.pending.iter().copied().collect();
            self.request(worker, &files);
        }
        loop {
            // The next piece travels while the last file of this one is being collected.
            if self.pending.len() <= 1 {
                let piece = self.next_piece();
                if !piece.is_empty() {
                    self.request(worker, &piece);
                }
            }
            if self.requests == 0 {
                return Ok(());
            }
            let what = match self.pending.front() {
                Some(&file) => format!("collects {}", self.units[file].path.0),
                None => "ends its share of collecting".to_owned(),
            };
            let id = Arc::clone(&worker.id);
            let message = match within(self.limit(), worker.link.next(), || self.waits_for(&id, &what)).await {
                Some(Ok(Some(message))) => message,
                Some(other) => return Err(how_it_ended(worker, other.err()).await),
                None => return Err(End::Worker(format!("it took longer than {} s", self.limit_secs()))),
            };
            match message {
                Incoming::Collected(collected) => {
                    let file = self.pending.iter().position(|&file| self.units[file].unit == collected.unit);
                    if let Some(file) = file {
                        self.pending.remove(file);
                        worker.collected.insert(collected.unit);
                        self.tell(Found::Tests(collected, self.slot));
                    }
                }
                Incoming::CollectDone => self.requests = self.requests.saturating_sub(1),
                Incoming::CollectReport { report, failed, text } => {
                    self.tell(Found::Report { report, failed, text });
                }
                Incoming::Native(kind, data) => {
                    let sandbox = Some(Arc::clone(&worker.id));
                    self.tell(Found::Native(NativeEvent { sandbox, ..NativeEvent::new(kind, data) }));
                }
                Incoming::Log(text) => tracing::info!(sandbox = &*worker.id, "{text}"),
                _ => {}
            }
        }
    }

    fn limit(&self) -> Option<Duration> {
        self.host.options().phase_limit
    }

    fn limit_secs(&self) -> f64 {
        self.limit().unwrap_or_default().as_secs_f64()
    }

    fn waits_for(&self, worker: &str, what: &str) {
        let text = format!("Waiting for {worker} for {} s: it {what}.", WORTH_SAYING.as_secs());
        let data = serde_json::Value::from(text).to_string();
        self.tell(Found::Native(NativeEvent::new("waiting", data)));
    }

    /// Takes further files off the shares.
    fn next_piece(&mut self) -> Vec<usize> {
        let piece = self.shares.lock().unwrap_or_else(PoisonError::into_inner).next(self.share);
        self.pending.extend(piece.clone());
        piece.collect()
    }

    fn request(&mut self, worker: &mut WorkerProcess, files: &[usize]) {
        let units: Vec<u32> = files.iter().map(|&file| self.units[file].unit).collect();
        self.requests += 1;
        worker.link.send(&Outgoing::Collect { units: &units });
    }

    fn tell(&self, found: Found) {
        // Nobody listens any more when the run was ended.
        let _ = self.tell.send(found);
    }

    /// A worker died while it collected a file: that is an error of the file.
    fn blame(&self, file: usize, worker: &str, how: &str, words: Option<&str>) {
        let path = &self.units[file].path.0;
        // As pytest serialises its collection reports.
        let report = serde_json::json!({
            "$report_type": "CollectReport",
            "nodeid": path,
            "outcome": "failed",
            "longrepr": format!(
                "the worker {worker} ended while it collected {path}: {how}{}",
                words.map_or_else(String::new, |words| format!("\n\n{words}")),
            ),
            "result": null,
            "sections": [],
        });
        let text = report["longrepr"].as_str().unwrap_or_default().to_owned();
        self.tell(Found::Report { report: report.to_string().into(), failed: true, text });
        self.tell(Found::Blamed);
    }
}

/// What can end in the middle of collecting.
enum End {
    /// The worker: how.
    Worker(String),
    /// All of its sandbox: why.
    Sandbox(String),
}

async fn how_it_ended(worker: &mut WorkerProcess, error: Option<LinkError>) -> End {
    match error {
        Some(LinkError::Lost(reason)) => return End::Sandbox(reason),
        Some(error) => return End::Worker(error.to_string()),
        None => {}
    }
    let exit = tokio::time::timeout(EXIT_PATIENCE, &mut worker.exit).await;
    // Whoever is out of reach cannot answer; what is asked does not matter.
    worker.site.tail(Path::new(""), 0, 0).await;
    match (worker.site.fate(), exit) {
        (Some(reason), _) => End::Sandbox(reason),
        (None, Ok(Ok(exit))) => End::Worker(exit.to_string()),
        (None, _) => End::Worker("it closed its connection".to_owned()),
    }
}
