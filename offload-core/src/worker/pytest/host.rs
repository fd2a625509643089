//! The template process and everything that comes of it.
//!
//! One task owns the template and the socket on which it and its forks connect. Others talk to it by messages; a worker
//! that has connected belongs to whoever asked for it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::directory::RunDirectory;
use super::link::{Link, LinkError};
use super::message::{Exit, Hello, Incoming, Outgoing, VERSION};
use super::output;
use super::serve::{PytestWorker, Said};
use super::template::Template;
use crate::event::NativeEvent;
use crate::framework::{Discovered, DiscoverySink};

/// How long a process that has connected may take to say who it is.
const HELLO_PATIENCE: Duration = Duration::from_secs(30);
/// How long the template may take to end when it is told to.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);
/// How long workers that ran no test may take to tear down what collecting set up.
const DISMISSAL_PATIENCE: Duration = Duration::from_secs(10);
/// How many lines of a process's own output an error shows.
const TAIL_LINES: usize = 60;

/// Which tests run on one worker, one after the other. The names are those of pytest-xdist's `--dist`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dist {
    /// None have to. Those of one file stay together as long as that does not lengthen the run.
    #[default]
    Load,
    /// Those of a class; of functions outside of classes, those of a module.
    LoadScope,
    /// Those of a file.
    LoadFile,
    /// Those marked with the same `xdist_group`.
    LoadGroup,
}

impl FromStr for Dist {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "load" => Ok(Self::Load),
            "loadscope" => Ok(Self::LoadScope),
            "loadfile" => Ok(Self::LoadFile),
            "loadgroup" => Ok(Self::LoadGroup),
            _ => Err(format!("expected `load`, `loadscope`, `loadfile` or `loadgroup`, not `{name}`")),
        }
    }
}

impl Dist {
    /// The name of those that the test with this id has to stay with. `file` is the one it is collected from, `group` the
    /// name in its mark.
    pub(crate) fn together(self, id: &str, file: &str, group: Option<&str>) -> Option<Arc<str>> {
        match self {
            Self::Load => None,
            Self::LoadFile => Some(file.into()),
            // Parameters may hold anything, also what separates the parts of an id.
            Self::LoadScope => {
                let parts = id.strip_prefix(file).unwrap_or_default();
                let name = parts.split('[').next().unwrap_or_default();
                let scope = name.rfind("::").map_or("", |end| &name[..end]);
                Some(format!("{file}{scope}").into())
            }
            Self::LoadGroup => group.map(Arc::from),
        }
    }
}

/// How the template is started.
#[derive(Debug, Clone, Default)]
pub struct PytestOptions {
    /// The Python interpreter.
    pub python: PathBuf,
    /// The program that it runs: the worker, one Python file.
    pub script: PathBuf,
    /// The working directory.
    pub cwd: PathBuf,
    /// The environment to start from; `None`: this process's own, which then nobody may change meanwhile.
    pub environment: Option<Vec<(OsString, OsString)>>,
    /// Environment on top of that.
    pub env: BTreeMap<String, String>,
    /// The most workers at once.
    pub workers: usize,
    /// Which tests stay together.
    pub dist: Dist,
    /// Tests and pytest itself write to where this process writes, instead of to files of which errors quote the end.
    pub inherit_output: bool,
    /// Tests run although some files could not be collected.
    pub continue_on_collection_errors: bool,
    /// The `init` message, complete, on one line; `None`: it comes by [`PytestHost::set_init`].
    pub init: Option<String>,
    /// A child of this process that is the template already and waits for what [`PytestHost::meeting_point`] says.
    pub adopted: Option<i32>,
}

/// The template process and its workers.
#[derive(Debug)]
pub struct PytestHost {
    options: PytestOptions,
    init: watch::Sender<Option<String>>,
    next_id: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    orders: Option<mpsc::UnboundedSender<Order>>,
    task: Option<JoinHandle<()>>,
    /// Lines for the template that wait for the one that comes first; `None` once that has been sent.
    after_init: Option<Vec<String>>,
    /// Where what is left to say goes after discovery.
    sink: Option<DiscoverySink>,
    /// Workers that have collected and run nothing yet, by the number of the sandbox that they are meant for.
    waiting: BTreeMap<u32, WorkerProcess>,
    /// Where the template will connect, if that had to be known before it is looked after.
    meeting: Option<Meeting>,
}

/// Where the template and its workers connect, and what they say to be let in.
#[derive(Debug)]
struct Meeting {
    dir: RunDirectory,
    listener: StdListener,
    nonce: String,
}

impl Meeting {
    fn new() -> io::Result<Self> {
        let dir = RunDirectory::new()?;
        dir.remove_others();
        let listener = StdListener::bind(dir.socket())?;
        listener.set_nonblocking(true)?;
        Ok(Self { dir, listener, nonce: nonce() })
    }
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
}

impl WorkerProcess {
    /// Kills it and all that it started.
    pub fn kill(&self) {
        kill_group(self.pid);
    }
}

/// What discovery hears of the template.
#[derive(Debug)]
pub(crate) enum FromTemplate {
    Message(Incoming),
    /// It is gone; a sentence, with what it wrote last.
    Ended(String),
}

/// The answer to the wish for a worker.
pub(crate) type Forked = oneshot::Receiver<Result<WorkerProcess, String>>;

enum Order {
    /// A line for the template.
    Tell(String),
    Fork {
        id: String,
        reply: oneshot::Sender<Result<WorkerProcess, String>>,
    },
    Shutdown {
        now: bool,
    },
}

impl PytestHost {
    /// A host that has started nothing yet.
    pub fn new(options: PytestOptions) -> Self {
        let init = watch::Sender::new(options.init.clone());
        let state = Mutex::new(State { after_init: Some(Vec::new()), ..State::default() });
        Self { options, init, next_id: AtomicU32::new(0), state }
    }

    /// What it was made with.
    pub fn options(&self) -> &PytestOptions {
        &self.options
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

    /// Starts the template. What it says comes out of the receiver; what is left to say after discovery goes to `sink`.
    pub(crate) fn start(&self, sink: DiscoverySink) -> io::Result<mpsc::UnboundedReceiver<FromTemplate>> {
        let meeting = self.state().meeting.take();
        let Meeting { dir, listener, nonce } = meeting.map_or_else(Meeting::new, Ok)?;
        let output = dir.path().join("output");
        let process = match self.options.adopted {
            Some(pid) => Template::adopt(pid)?,
            None => Template::start(&self.options, &dir.socket(), &nonce, &output)?,
        };
        let (orders, inbox) = mpsc::unbounded_channel();
        let (template, from_template) = mpsc::unbounded_channel();
        let actor = Actor {
            options: self.options.clone(),
            dir,
            output,
            listener: UnixListener::from_std(listener)?,
            nonce,
            group: process.group(),
            process,
            link: None,
            told: Vec::new(),
            replace: false,
            inbox,
            template,
            sink: sink.clone(),
            asked: HashMap::new(),
            exits: HashMap::new(),
            live: HashMap::new(),
            greeters: JoinSet::new(),
        };
        let mut state = self.state();
        state.task = Some(tokio::spawn(actor.run()));
        state.orders = Some(orders);
        state.sink = Some(sink);
        Ok(from_template)
    }

    /// Sends the template its `init` message as soon as there is one.
    pub(crate) async fn initialise(&self) {
        let mut init = self.init.subscribe();
        // The sender lives as long as the host.
        if let Ok(line) = init.wait_for(Option::is_some).await {
            let line = line.clone().unwrap_or_default();
            let mut state = self.state();
            let lines = state.after_init.take().unwrap_or_default();
            if let Some(orders) = &state.orders {
                for line in std::iter::once(line).chain(lines) {
                    // If nobody takes it the template is gone, of which others hear.
                    let _ = orders.send(Order::Tell(line));
                }
            }
        }
    }

    /// Gives the template a message, complete, on one line, after `init`. Only the worker's program knows what it says.
    pub fn tell(&self, line: String) {
        if let Some(lines) = &mut self.state().after_init {
            lines.push(line);
            return;
        }
        self.order(Order::Tell(line));
    }

    fn order(&self, order: Order) -> bool {
        self.state().orders.as_ref().is_some_and(|orders| orders.send(order).is_ok())
    }

    /// Asks for a further worker. Its id is one that no other had.
    pub(crate) fn fork(&self) -> (Arc<str>, Forked) {
        let id = format!("gw{}", self.next_id.fetch_add(1, Ordering::Relaxed));
        let (reply, forked) = oneshot::channel();
        let shared = Arc::from(id.as_str());
        // If nobody takes the order the reply is dropped, which says as much.
        self.order(Order::Fork { id, reply });
        (shared, forked)
    }

    /// Leaves a worker for the sandbox `slot`.
    pub(crate) fn put(&self, slot: u32, worker: WorkerProcess) {
        self.state().waiting.insert(slot, worker);
    }

    /// Takes the worker for the sandbox `slot`, if one was left.
    pub(crate) fn take(&self, slot: u32) -> Option<WorkerProcess> {
        self.state().waiting.remove(&slot)
    }

    /// Ends everything: workers that were not taken, the template, and whatever is left of either.
    pub(crate) async fn finish(self: &Arc<Self>, now: bool) {
        let (waiting, sink, task) = {
            let mut state = self.state();
            (std::mem::take(&mut state.waiting), state.sink.take(), state.task.take())
        };
        if !now {
            let mut dismissals = JoinSet::new();
            for (_, worker) in waiting {
                let sink = sink.clone();
                let worker = PytestWorker::with(self, worker, move |said| {
                    if let (Said::Native(_, event), Some(sink)) = (said, &sink) {
                        sink.send(Discovered::Native(event));
                    }
                });
                dismissals.spawn(worker.finish());
            }
            let _ = tokio::time::timeout(DISMISSAL_PATIENCE, dismissals.join_all()).await;
        }
        self.order(Order::Shutdown { now });
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the task of the template process ended abnormally");
        }
    }
}

impl Drop for PytestHost {
    fn drop(&mut self) {
        // The template is killed with the task; workers end when their connections do.
        if let Some(task) = &self.state().task {
            task.abort();
        }
    }
}

/// Owns the template and the socket.
struct Actor {
    options: PytestOptions,
    /// Removed last.
    dir: RunDirectory,
    output: PathBuf,
    listener: UnixListener,
    nonce: String,
    process: Template,
    /// The template's, as long as its end has not been seen.
    group: Option<Pid>,
    link: Option<Link>,
    /// What the template was told, or is to be told once it has connected.
    told: Vec<String>,
    /// Another template takes the place of this one when it has ended.
    replace: bool,
    inbox: mpsc::UnboundedReceiver<Order>,
    template: mpsc::UnboundedSender<FromTemplate>,
    /// Hears what the template has to say for others once discovery does not listen any more.
    sink: DiscoverySink,
    /// Who waits for which worker.
    asked: HashMap<String, oneshot::Sender<Result<WorkerProcess, String>>>,
    /// Who is to hear how which worker ended.
    exits: HashMap<String, oneshot::Sender<Exit>>,
    /// Workers that have not been reported as ended.
    live: HashMap<String, Pid>,
    greeters: JoinSet<Option<(Hello, Link)>>,
}

impl Actor {
    async fn run(mut self) {
        let now = loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => drop(self.greeters.spawn(greet(stream))),
                    Err(error) => tracing::warn!(%error, "a connection could not be accepted"),
                },
                Some(greeted) = self.greeters.join_next() => {
                    if let Ok(Some((hello, link))) = greeted {
                        self.on_hello(hello, link);
                    }
                }
                said = next(&mut self.link) => self.on_template(said),
                order = self.inbox.recv() => match order {
                    Some(Order::Tell(line)) => {
                        if let Some(link) = &mut self.link {
                            link.send_line(&line);
                        }
                        self.told.push(line);
                    }
                    Some(Order::Fork { id, reply }) => self.fork(id, reply),
                    Some(Order::Shutdown { now }) => break now,
                    None => break true,
                },
                status = self.process.wait(), if self.group.is_some() => self.on_end(status),
            }
        };
        self.end(now).await;
    }

    fn on_hello(&mut self, hello: Hello, link: Link) {
        if hello.nonce != self.nonce {
            tracing::warn!(id = hello.id, "a process with a wrong nonce connected");
            return;
        }
        if hello.version != VERSION {
            let text = format!(
                "the pytest worker speaks version {} of the protocol, this program version {VERSION}; \
                 install both from the same release",
                hello.version
            );
            let _ = self.template.send(FromTemplate::Ended(text));
            return;
        }
        if hello.is_template {
            let link = self.link.insert(link);
            for line in &self.told {
                link.send_line(line);
            }
            return;
        }
        let (Some(reply), Some(pid)) = (self.asked.remove(&hello.id), Pid::from_raw(hello.pid)) else {
            tracing::warn!(id = hello.id, "a worker connected that nobody asked for");
            return;
        };
        let (exit, exited) = oneshot::channel();
        self.live.insert(hello.id.clone(), pid);
        self.exits.insert(hello.id.clone(), exit);
        let Hello { id, dump, output, .. } = hello;
        let worker = WorkerProcess { id: id.into(), pid, dump, output, link, exit: exited };
        // Whoever asked may be gone; then the worker hears the end of its connection.
        let _ = reply.send(Ok(worker));
    }

    fn on_template(&mut self, said: Result<Option<Incoming>, LinkError>) {
        match said {
            Ok(Some(Incoming::Exited { id, exit })) => {
                self.live.remove(&id);
                if let Some(heard) = self.exits.remove(&id) {
                    let _ = heard.send(exit);
                } else if let Some(reply) = self.asked.remove(&id) {
                    let words = output::tail(&self.dir.path().join(format!("{id}.stderr")), 0, TAIL_LINES);
                    let words = if words.is_empty() { self.last_words() } else { format!("\n{words}") };
                    let text = format!("the worker {id} ended before it was ready: {exit}{words}");
                    let _ = reply.send(Err(text));
                }
            }
            Ok(Some(Incoming::Replace)) => self.replace = true,
            Ok(Some(Incoming::Log(text))) => tracing::info!(sandbox = "template", "{text}"),
            Ok(Some(message)) => {
                let unheard = self.template.send(FromTemplate::Message(message));
                if let Err(mpsc::error::SendError(FromTemplate::Message(Incoming::Native(kind, data)))) = unheard {
                    self.sink.send(Discovered::Native(NativeEvent::new(kind, data)));
                }
            }
            // How it ended says more than that its connection did.
            Ok(None) => self.link = None,
            Err(error) => {
                let text = format!("The template process of pytest cannot be understood: {error}");
                let _ = self.template.send(FromTemplate::Ended(text));
                self.link = None;
            }
        }
    }

    fn fork(&mut self, id: String, reply: oneshot::Sender<Result<WorkerProcess, String>>) {
        match &mut self.link {
            Some(link) => {
                link.send(&Outgoing::Fork { id: &id });
                self.asked.insert(id, reply);
            }
            None => {
                let text = format!("the worker {id} cannot be forked: the template process is gone");
                let _ = reply.send(Err(text));
            }
        }
    }

    /// The template is gone, whatever the reason.
    fn on_end(&mut self, status: io::Result<ExitStatus>) {
        self.group = None;
        // What it said last may still be there to be read.
        while let Some(link) = &mut self.link {
            match link.next_arrived() {
                Ok(Some(message)) => self.on_template(Ok(Some(message))),
                _ => self.link = None,
            }
        }
        if std::mem::take(&mut self.replace) {
            match Template::start(&self.options, &self.dir.socket(), &self.nonce, &self.output) {
                Ok(process) => {
                    self.group = process.group();
                    self.process = process;
                }
                Err(error) => {
                    let python = self.options.python.display();
                    let text = format!("Another template process cannot be started with {python}: {error}");
                    let _ = self.template.send(FromTemplate::Ended(text));
                }
            }
            return;
        }
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let text = format!("The template process of pytest ended ({how}).{}", self.last_words());
        for (id, reply) in self.asked.drain() {
            let _ = reply.send(Err(format!("the worker {id} cannot be forked: the template process ended ({how})")));
        }
        self.exits.clear();
        let _ = self.template.send(FromTemplate::Ended(text));
    }

    fn last_words(&self) -> String {
        match output::tail(&self.output, 0, TAIL_LINES) {
            words if words.is_empty() => words,
            words => format!("\nThe last that it wrote:\n{words}"),
        }
    }

    async fn end(mut self, now: bool) {
        if let Some(link) = &mut self.link
            && !now
        {
            link.send(&Outgoing::Shutdown);
            let patience = tokio::time::sleep(SHUTDOWN_PATIENCE);
            tokio::pin!(patience);
            loop {
                tokio::select! {
                    said = next(&mut self.link) => self.on_template(said),
                    _ = self.process.wait() => {
                        self.group = None;
                        break;
                    }
                    () = &mut patience => break,
                }
            }
        }
        for &pid in self.live.values() {
            kill_group(pid);
        }
        if let Some(group) = self.group {
            kill_group(group);
            let _ = self.process.wait().await;
        }
    }
}

/// The template's next message; never, while it is not connected.
async fn next(link: &mut Option<Link>) -> Result<Option<Incoming>, LinkError> {
    match link {
        Some(link) => link.next().await,
        None => std::future::pending().await,
    }
}

/// Hears who has connected.
async fn greet(stream: UnixStream) -> Option<(Hello, Link)> {
    let mut link = Link::new(stream);
    match tokio::time::timeout(HELLO_PATIENCE, link.next()).await {
        Ok(Ok(Some(Incoming::Hello(hello)))) => Some((hello, link)),
        other => {
            tracing::warn!(?other, "a process connected and did not say who it is");
            None
        }
    }
}

/// Kills a process and its group, if it leads one.
pub(super) fn kill_group(pid: Pid) {
    // Gone already, most likely.
    let _ = kill_process_group(pid, Signal::KILL);
    let _ = kill_process(pid, Signal::KILL);
}

/// A word that nobody else knows. The directory keeps others out; this keeps out processes that were started by tests.
fn nonce() -> String {
    let random = || std::hash::RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

impl std::fmt::Display for Exit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.signal, self.code) {
            (Some(signal), _) => formatter.write_str(&crate::worker::libtest::killed_by(signal)),
            (None, Some(code)) => write!(formatter, "exit code {code}"),
            (None, None) => formatter.write_str("nobody knows how"),
        }
    }
}

/// A worker is gone: what is said of it, for plugins that look after workers.
pub(super) fn worker_down(worker: &Arc<str>, output: Option<&str>, error: Option<&str>) -> NativeEvent {
    let error = error.map_or_else(|| "null".to_owned(), |error| serde_json::Value::from(error).to_string());
    let data = format!("[{},{error}]", output.unwrap_or("null"));
    NativeEvent { sandbox: Some(Arc::clone(worker)), ..NativeEvent::new("worker_down", data) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_those_of_the_names_and_not_of_parameters() {
        let scope = |id| Dist::LoadScope.together(id, "a/test_b.py", None).unwrap();
        assert_eq!(&*scope("a/test_b.py::test_c"), "a/test_b.py");
        assert_eq!(&*scope("a/test_b.py::TestC::test_d[x::y]"), "a/test_b.py::TestC");
        assert_eq!(&*scope("a/test_b.py::test_c[x::y[z]]"), "a/test_b.py");
        assert_eq!(&*scope("elsewhere"), "a/test_b.py");
    }
}
