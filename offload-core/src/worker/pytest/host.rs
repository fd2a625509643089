//! The template processes of a run and everything that comes of them.
//!
//! On this machine there is one ([`here`](super::here)). Sandboxes that are somewhere else have one each
//! ([`far`](super::far)), with the same numbering of what was collected: the leading one says what there is, and whoever
//! comes to something else is not used. Each template has a task, to which others talk by messages; a worker that has
//! connected belongs to whoever asked for it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Pid;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::far::Far;
use super::here::{Here, Meeting};
use super::link::Link;
use super::message::{Exit, Incoming};
use super::options::PytestOptions;
use super::relay::{self, NoRelay, Stream};
use super::roll::{NoWorker, Reply, Roll};
use super::serve::{PytestWorker, Said};
use super::site::Site;
use crate::event::NativeEvent;
use crate::framework::{Discovered, DiscoverySink};
use crate::provider::{ProviderError, ProviderResult, Sandbox};
use crate::random;
use crate::worker::TestKey;

/// How long workers that ran no test may take to tear down what collecting set up.
const DISMISSAL_PATIENCE: Duration = Duration::from_secs(10);
/// The number of the template of this machine.
const HERE: u32 = 0;

/// The template process and its workers.
#[derive(Debug)]
pub struct PytestHost {
    options: PytestOptions,
    init: watch::Sender<Option<String>>,
    next_id: AtomicU32,
    state: Mutex<State>,
    lead: watch::Sender<Lead>,
}

/// Which template numbers what there is to collect. All others have to come to the same.
#[derive(Debug, Clone, Default)]
struct Lead {
    /// The number of its sandbox. It is discovery's to talk to.
    slot: u32,
    /// The name of its numbering, once it has walked the directories.
    numbering: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    /// By the number of the sandbox; on this machine there is one for all.
    templates: BTreeMap<u32, Handle>,
    /// What templates were told after `init`, for those that come later.
    told: Vec<String>,
    /// What the template says to which discovery has not listened yet.
    first: Option<mpsc::UnboundedReceiver<FromTemplate>>,
    /// Where what is left to say goes after discovery.
    sink: Option<DiscoverySink>,
    /// Workers that have collected and run nothing yet, by the number of the sandbox that they are meant for.
    waiting: BTreeMap<u32, WorkerProcess>,
    /// Names for the tests of each file, as they were collected first.
    digests: HashMap<u32, Arc<str>>,
    /// How often tests may be tried again whose process dies, where they say so themselves.
    crash_retries: HashMap<TestKey, u32>,
    /// Whoever follows the run wants to know the names of all tests.
    names_tests: bool,
    /// Where the template will connect, if that had to be known before it is looked after.
    meeting: Option<Meeting>,
}

/// A template process, for those who ask something of it.
#[derive(Debug)]
struct Handle {
    site: Site,
    orders: mpsc::UnboundedSender<Order>,
    task: JoinHandle<()>,
    initialised: bool,
}

/// A worker that has connected.
#[derive(Debug)]
pub(crate) struct WorkerProcess {
    pub id: Arc<str>,
    pub pid: Pid,
    pub dump: Option<PathBuf>,
    pub output: Option<PathBuf>,
    pub link: Link,
    /// How it ended, once the template knows.
    pub exit: oneshot::Receiver<Exit>,
    pub site: Site,
    /// The files that it was the first to collect: what is reported are its tests.
    pub collected: HashSet<u32>,
}

impl WorkerProcess {
    /// Kills it and all that it started.
    pub fn kill(&self) {
        self.site.kill(self.pid);
    }
}

/// What discovery hears of the template.
#[derive(Debug)]
pub(crate) enum FromTemplate {
    Message(Incoming),
    /// It is gone; a sentence, with what it wrote last.
    Ended(String),
    /// Its sandbox is gone.
    Lost(String),
}

/// The answer to the wish for a worker.
pub(crate) type Forked = oneshot::Receiver<Result<WorkerProcess, NoWorker>>;

/// What a template is asked for.
pub(super) enum Order {
    /// A line for it.
    Tell(String),
    Fork {
        id: String,
        reply: Reply,
    },
    /// Variables for a template that is started again.
    Environ(BTreeMap<OsString, Option<OsString>>),
    Shutdown {
        now: bool,
    },
}

impl PytestHost {
    /// A host that has started nothing yet.
    pub fn new(options: PytestOptions) -> Self {
        let init = watch::Sender::new(options.init.clone());
        let lead = watch::Sender::new(Lead::default());
        Self { options, init, next_id: AtomicU32::new(0), state: Mutex::default(), lead }
    }

    /// What it was made with.
    pub fn options(&self) -> &PytestOptions {
        &self.options
    }

    /// Whether tests are collected and run in sandboxes that are somewhere else.
    pub fn is_elsewhere(&self) -> bool {
        self.options.elsewhere.is_some()
    }

    /// Gives the `init` message, complete, on one line, if that was not known at the beginning. The template waits for it.
    pub fn set_init(&self, line: String) {
        self.init.send_replace(Some(line));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The path of the socket to which an adopted template connects, and the nonce that it says there. To be asked for
    /// before discovery begins.
    ///
    /// # Errors
    ///
    /// When the directory of the run cannot be made.
    pub fn meeting_point(&self) -> io::Result<(PathBuf, String)> {
        let mut state = self.state();
        let meeting = match state.meeting.take() {
            Some(meeting) => meeting,
            None => Meeting::new()?,
        };
        let point = (meeting.dir.socket(), meeting.nonce.clone());
        state.meeting = Some(meeting);
        Ok(point)
    }

    /// Where what is left to say goes.
    pub(crate) fn report_to(&self, sink: DiscoverySink) {
        self.state().sink = Some(sink);
    }

    /// Starts the template of this machine. What it says comes out of the receiver; what is left to say after discovery
    /// goes to `sink`.
    pub(crate) fn start(&self, sink: DiscoverySink) -> io::Result<mpsc::UnboundedReceiver<FromTemplate>> {
        let meeting = self.state().meeting.take().map_or_else(Meeting::new, Ok)?;
        let (orders, inbox) = mpsc::unbounded_channel();
        let (here, from_template) = Here::start(self.options.clone(), meeting, inbox, sink.clone())?;
        let mut state = self.state();
        let task = tokio::spawn(here.run());
        state.templates.insert(HERE, Handle { site: Site::Here, orders, task, initialised: false });
        state.sink = Some(sink);
        Ok(from_template)
    }

    /// Starts a template in a sandbox that is somewhere else. The leading one is discovery's to talk to
    /// ([`Self::first`]); with any other this waits until it is ready to make workers.
    pub(crate) async fn open(&self, slot: u32, sandbox: &dyn Sandbox) -> ProviderResult<()> {
        let place = sandbox.place();
        let never = |what: &str| {
            ProviderError::Unusable(format!(
                "pytest's tests cannot run in {place}: {what}\nWhat is needed there is Python 3.9 or newer with pytest: \
                 install both (in the image, or by `sandbox_init_cmd` in [offload]), or let `command` in [framework] \
                 say what starts pytest there"
            ))
        };
        let Some(elsewhere) = &self.options.elsewhere else { return Ok(()) };
        let nonce = random::word();
        let command = relay::command(&elsewhere.python, &nonce);
        let channel = sandbox.open_channel(&command).await?;
        let channel = channel.ok_or_else(|| never("a program that is to be talked to cannot be started there"))?;
        let stream = Stream::open(channel, &nonce).await.map_err(|error| match error {
            NoRelay::Never(what) => never(&what),
            NoRelay::Broken(what) => ProviderError::Exec(format!("no worker can be started in {place}: {what}")),
        })?;
        stream.start(&self.options.env, self.options.inherit_output);
        let wire = stream.wire();
        // Without a sink there is no discovery, and nobody to hear anything.
        let sink = self.state().sink.clone().unwrap_or_else(|| DiscoverySink::new().0);
        let (roll, from_template) = Roll::new(Site::There(wire.clone()), nonce, PathBuf::new(), sink.clone());
        let (orders, inbox) = mpsc::unbounded_channel();
        let far = Far { stream, roll, inbox, place: place.clone() };
        let (site, task) = (Site::There(wire.clone()), tokio::spawn(far.run()));
        self.state().templates.insert(slot, Handle { site, orders, task, initialised: false });
        wire.measure().await;
        if self.leads(slot) {
            self.state().first = Some(from_template);
            return Ok(());
        }
        self.initialise(slot).await;
        self.agree(slot, from_template, &sink, &place).await
    }

    /// Makes the template of this sandbox the one that numbers, before any has.
    pub(crate) fn lead(&self, slot: u32) {
        self.lead.send_modify(|lead| lead.slot = slot);
    }

    fn leads(&self, slot: u32) -> bool {
        let lead = self.lead.borrow();
        lead.numbering.is_none() && lead.slot == slot
    }

    /// Waits until a template has walked the directories, as the leading one does. It may be made the leading one
    /// meanwhile.
    async fn agree(
        &self,
        slot: u32,
        mut template: mpsc::UnboundedReceiver<FromTemplate>,
        sink: &DiscoverySink,
        place: &str,
    ) -> ProviderResult<()> {
        let mut lead = self.lead.subscribe();
        let mut own: Option<String> = None;
        loop {
            if self.leads(slot) {
                let mut state = self.state();
                state.first = Some(template);
                if let Some(template) = state.templates.get(&slot) {
                    // What it found is to be told after all.
                    let _ = template.orders.send(Order::Tell(r#"{"type":"announce"}"#.to_owned()));
                }
                return Ok(());
            }
            if let (Some(own), Some(numbering)) = (&own, &lead.borrow().numbering) {
                return if own == numbering { Ok(()) } else { Err(differs(place)) };
            }
            let said = tokio::select! {
                said = template.recv() => said,
                // The sender lives as long as the host.
                _ = lead.changed() => continue,
            };
            match said {
                Some(FromTemplate::Message(Incoming::Numbered { digest })) => own = Some(digest),
                Some(FromTemplate::Message(Incoming::Native(kind, data))) => {
                    sink.send(Discovered::Native(NativeEvent::new(kind, data)));
                }
                Some(FromTemplate::Message(Incoming::Fatal { exit_code, text })) => {
                    return Err(ProviderError::Exec(format!(
                        "pytest ended in {place} (exit code {exit_code}):\n{text}"
                    )));
                }
                Some(FromTemplate::Message(_)) => {}
                Some(FromTemplate::Ended(text) | FromTemplate::Lost(text)) => return Err(ProviderError::Exec(text)),
                None => return Err(ProviderError::Exec(format!("the template process in {place} is gone"))),
            }
        }
    }

    /// What the template says that was started first and is discovery's to talk to.
    pub(crate) fn first(&self) -> Option<mpsc::UnboundedReceiver<FromTemplate>> {
        self.state().first.take()
    }

    /// Makes a numbering the one that all templates must have. Those that come from now on only say what theirs is.
    pub(crate) fn set_numbering(&self, digest: String) {
        self.lead.send_modify(|lead| lead.numbering = lead.numbering.take().or(Some(digest)));
    }

    /// How long a message takes to a sandbox that is somewhere else, and back.
    pub(crate) fn round_trip(&self, slot: u32) -> Option<Duration> {
        self.state().templates.get(&slot).map(|template| template.site.way().round_trip)
    }

    /// Ends the template of a sandbox that is somewhere else, and a worker that nobody wanted.
    pub(crate) async fn close(self: &Arc<Self>, slot: u32) {
        if !self.is_elsewhere() {
            return;
        }
        let (worker, template, sink) = {
            let mut state = self.state();
            (state.waiting.remove(&slot), state.templates.remove(&slot), state.sink.clone())
        };
        if let Some(worker) = worker {
            let _ = tokio::time::timeout(DISMISSAL_PATIENCE, self.dismiss(slot, worker, sink)).await;
        }
        if let Some(template) = template {
            template.end(false).await;
        }
    }

    /// Sends a template its `init` message as soon as there is one.
    pub(crate) async fn initialise(&self, slot: u32) {
        let mut init = self.init.subscribe();
        // The sender lives as long as the host.
        if let Ok(line) = init.wait_for(Option::is_some).await {
            let mut line = line.clone().unwrap_or_default();
            let mut state = self.state();
            let State { templates, told, .. } = &mut *state;
            if let Some(fields) = line.strip_prefix('{').filter(|_| self.is_elsewhere() && !self.leads(slot)) {
                line = format!("{{\"again\":true,{fields}");
            }
            // One that was another's follower has been told already.
            if let Some(template) = templates.get_mut(&slot).filter(|template| !template.initialised) {
                template.initialised = true;
                for line in std::iter::once(line).chain(told.iter().cloned()) {
                    // If nobody takes it the template is gone, of which others hear.
                    let _ = template.orders.send(Order::Tell(line));
                }
            }
        }
    }

    /// Changes variables for a template of this machine that is started again; `None` removes one.
    pub fn set_environ(&self, changed: BTreeMap<OsString, Option<OsString>>) {
        if let Some(template) = self.state().templates.get(&HERE) {
            // If nobody takes it there will be no other template.
            let _ = template.orders.send(Order::Environ(changed));
        }
    }

    /// Gives the templates a message, complete, on one line, after `init`. Only the worker's program knows what it says.
    pub fn tell(&self, line: String) {
        let mut state = self.state();
        for template in state.templates.values().filter(|template| template.initialised) {
            let _ = template.orders.send(Order::Tell(line.clone()));
        }
        state.told.push(line);
    }

    /// Asks for a further worker for the sandbox `slot`. Its id is one that no other had.
    pub(crate) fn fork(&self, slot: u32) -> (Arc<str>, Forked) {
        let id = format!("gw{}", self.next_id.fetch_add(1, Ordering::Relaxed));
        let (reply, forked) = oneshot::channel();
        let shared = Arc::from(id.as_str());
        let template = if self.is_elsewhere() { slot } else { HERE };
        if let Some(template) = self.state().templates.get(&template) {
            // If nobody takes the order the reply is dropped, which says as much.
            let _ = template.orders.send(Order::Fork { id, reply });
        }
        (shared, forked)
    }

    /// Takes note of what the tests of a file are.
    pub(crate) fn set_digest(&self, unit: u32, digest: &str) {
        self.state().digests.insert(unit, digest.into());
    }

    /// What the tests of a file have to be in any other process.
    pub(crate) fn digest(&self, unit: u32) -> Option<Arc<str>> {
        self.state().digests.get(&unit).cloned()
    }

    /// Takes note of what a test says itself on how often it may be tried again if its process dies.
    pub(crate) fn set_crash_retries(&self, key: TestKey, most: u32) {
        self.state().crash_retries.insert(key, most);
    }

    /// How often a test may be tried again whose process died.
    pub(crate) fn crash_retries(&self, key: TestKey) -> u32 {
        self.state().crash_retries.get(&key).copied().unwrap_or(self.options.crash_retries)
    }

    /// Has all tests be named once they are collected, by an event `tests` of pytest's.
    pub fn name_tests(&self) {
        self.state().names_tests = true;
    }

    /// Whether all tests are to be named.
    pub(crate) fn names_tests(&self) -> bool {
        self.state().names_tests
    }

    /// Leaves a worker for the sandbox `slot`.
    pub(crate) fn put(&self, slot: u32, worker: WorkerProcess) {
        self.state().waiting.insert(slot, worker);
    }

    /// Takes the worker for the sandbox `slot`, if one was left.
    pub(crate) fn take(&self, slot: u32) -> Option<WorkerProcess> {
        self.state().waiting.remove(&slot)
    }

    /// Has a worker tear down what collecting set up.
    fn dismiss(
        self: &Arc<Self>,
        slot: u32,
        worker: WorkerProcess,
        sink: Option<DiscoverySink>,
    ) -> impl Future<Output = ()> + use<> {
        let worker = PytestWorker::with(self, slot, worker, move |said| {
            if let (Said::Native(_, event), Some(sink)) = (said, &sink) {
                sink.send(Discovered::Native(event));
            }
        });
        worker.finish()
    }

    /// Ends everything: workers that were not taken, the templates, and whatever is left of either.
    pub(crate) async fn finish(self: &Arc<Self>, now: bool) {
        let (waiting, sink) = {
            let mut state = self.state();
            (std::mem::take(&mut state.waiting), state.sink.take())
        };
        if !now {
            let mut dismissals = JoinSet::new();
            for (slot, worker) in waiting {
                dismissals.spawn(self.dismiss(slot, worker, sink.clone()));
            }
            let _ = tokio::time::timeout(DISMISSAL_PATIENCE, dismissals.join_all()).await;
        }
        let templates = std::mem::take(&mut self.state().templates);
        let ends: JoinSet<()> = templates.into_values().map(|template| template.end(now)).collect();
        ends.join_all().await;
    }
}

impl Handle {
    async fn end(self, now: bool) {
        let _ = self.orders.send(Order::Shutdown { now });
        if let Err(error) = self.task.await
            && !error.is_cancelled()
        {
            tracing::error!(%error, "the task of the template process ended abnormally");
        }
    }
}

fn differs(place: &str) -> ProviderError {
    ProviderError::Unusable(format!(
        "The tests that pytest collects in {place} are others than those in the first sandbox, or come in another order. \
         Make collection repeatable: no sets and no random parameters, and the same files in all sandboxes"
    ))
}

impl Drop for PytestHost {
    fn drop(&mut self) {
        // The template is killed with the task; workers end when their connections do.
        for template in self.state().templates.values() {
            template.task.abort();
        }
    }
}
