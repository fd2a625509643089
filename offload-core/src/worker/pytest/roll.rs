//! Who is there: a template process, and the workers that came of it.
//!
//! The same for processes of this machine and for those elsewhere: they introduce themselves, the template is told what
//! to do and says which worker has ended. How connections come about, and how the end of the template is noticed, differs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Pid;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::host::{FromTemplate, Order, WorkerProcess};
use super::link::{Link, LinkError};
use super::message::{Exit, Hello, Incoming, Outgoing, VERSION};
use super::site::Site;
use crate::event::NativeEvent;
use crate::framework::{Discovered, DiscoverySink};
use crate::worker::groups;

/// How long a process that has connected may take to say who it is.
const HELLO_PATIENCE: Duration = Duration::from_secs(30);
/// How many lines of a process's own output an error shows.
pub(super) const TAIL_LINES: usize = 60;

/// Where the answer to the wish for a worker goes.
pub(super) type Reply = oneshot::Sender<Result<WorkerProcess, NoWorker>>;

/// Why there is no worker.
#[derive(Debug)]
pub(crate) struct NoWorker {
    pub reason: String,
    /// File descriptors or memory are scarce: fewer at once may do.
    pub no_room: bool,
}

impl From<String> for NoWorker {
    fn from(reason: String) -> Self {
        Self { reason, no_room: false }
    }
}

pub(super) struct Roll {
    site: Site,
    nonce: String,
    /// Where processes leave what they write.
    pub directory: PathBuf,
    /// To the template, while it is connected.
    pub link: Option<Link>,
    /// What the template was told, or is to be told once it has connected.
    told: Vec<String>,
    /// Another template takes the place of this one when it has ended.
    pub replace: bool,
    /// Variables that it gets, or does not get, besides those of this one.
    pub environ: BTreeMap<OsString, Option<OsString>>,
    pub template: mpsc::UnboundedSender<FromTemplate>,
    /// Hears what the template has to say for others once discovery does not listen any more.
    sink: DiscoverySink,
    /// Who waits for which worker.
    asked: HashMap<String, Reply>,
    /// Who is to hear how which worker ended.
    exits: HashMap<String, oneshot::Sender<Exit>>,
    /// Workers that have not been reported as ended.
    live: HashMap<String, Pid>,
    pub greeters: JoinSet<Option<(Hello, Link)>>,
    /// Answers for which something has to be read first.
    answers: JoinSet<()>,
}

impl Roll {
    pub fn new(
        site: Site,
        nonce: String,
        directory: PathBuf,
        sink: DiscoverySink,
    ) -> (Self, mpsc::UnboundedReceiver<FromTemplate>) {
        let (template, from_template) = mpsc::unbounded_channel();
        let roll = Self {
            site,
            nonce,
            directory,
            link: None,
            told: Vec::new(),
            replace: false,
            environ: BTreeMap::new(),
            template,
            sink,
            asked: HashMap::new(),
            exits: HashMap::new(),
            live: HashMap::new(),
            greeters: JoinSet::new(),
            answers: JoinSet::new(),
        };
        (roll, from_template)
    }

    /// Takes in what happens next: somebody says who it is, the template speaks, or something is asked for. Breaks off when
    /// the end is asked for, with whether that is to be at once.
    pub async fn step(&mut self, inbox: &mut mpsc::UnboundedReceiver<Order>) -> ControlFlow<bool> {
        tokio::select! {
            Some(greeted) = self.greeters.join_next() => {
                if let Ok(Some((hello, link))) = greeted {
                    self.on_hello(hello, link);
                }
            }
            said = next(&mut self.link) => self.on_template(said),
            order = inbox.recv() => match order {
                Some(Order::Tell(line)) => self.tell(line),
                Some(Order::Fork { id, reply }) => self.fork(id, reply),
                Some(Order::Environ(changed)) => self.environ.extend(changed),
                Some(Order::Shutdown { now }) => return ControlFlow::Break(now),
                None => return ControlFlow::Break(true),
            },
        }
        ControlFlow::Continue(())
    }

    /// What a process says to be let in.
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    /// Somebody has connected.
    pub fn greet(&mut self, link: Link) {
        self.greeters.spawn(greet(link));
    }

    pub fn on_hello(&mut self, hello: Hello, link: Link) {
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
        if matches!(self.site, Site::Here) {
            groups::enter(pid);
        }
        self.exits.insert(hello.id.clone(), exit);
        let Hello { id, dump, output, .. } = hello;
        let (site, collected) = (self.site.clone(), HashSet::new());
        let worker = WorkerProcess { id: id.into(), pid, dump, output, link, exit: exited, site, collected };
        // Whoever asked may be gone; then the worker hears the end of its connection.
        let _ = reply.send(Ok(worker));
    }

    pub fn tell(&mut self, line: String) {
        if let Some(link) = &mut self.link {
            link.send_line(&line);
        }
        self.told.push(line);
    }

    pub fn on_template(&mut self, said: Result<Option<Incoming>, LinkError>) {
        match said {
            Ok(Some(Incoming::Exited { id, exit })) => {
                if let Some(pid) = self.live.remove(&id) {
                    groups::leave(pid);
                }
                if let Some(heard) = self.exits.remove(&id) {
                    let _ = heard.send(exit);
                } else if let Some(reply) = self.asked.remove(&id) {
                    let (site, path) = (self.site.clone(), self.directory.join(format!("{id}.stderr")));
                    let template = self.directory.join("output");
                    self.answers.spawn(async move {
                        let (mut words, _) = site.tail(&path, 0, TAIL_LINES).await;
                        if words.is_empty() {
                            words = site.tail(&template, 0, TAIL_LINES).await.0;
                        }
                        let words = if words.is_empty() { words } else { format!("\n{words}") };
                        let text = format!("the worker {id} ended before it was ready: {exit}{words}");
                        let _ = reply.send(Err(text.into()));
                    });
                }
            }
            Ok(Some(Incoming::Replace)) => self.replace = true,
            Ok(Some(Incoming::Log(text))) => tracing::info!(sandbox = "template", "{text}"),
            Ok(Some(message)) => {
                let unheard = self.template.send(FromTemplate::Message(message));
                if let Err(mpsc::error::SendError(FromTemplate::Message(Incoming::Native(kind, data)))) = unheard {
                    self.pass_on(kind, data);
                }
            }
            // How it ended says more than that its connection did.
            Ok(None) | Err(LinkError::Lost(_)) => self.link = None,
            Err(error) => {
                let text = format!("The template process of pytest cannot be understood: {error}");
                let _ = self.template.send(FromTemplate::Ended(text));
                self.link = None;
            }
        }
    }

    /// Something for those who know pytest.
    pub fn pass_on(&self, kind: &'static str, data: impl Into<Arc<str>>) {
        self.sink.send(Discovered::Native(NativeEvent::new(kind, data)));
    }

    /// Something that users should know.
    pub fn warn(&self, text: String) {
        self.sink.send(Discovered::Warning(text));
    }

    /// Nobody can be let in: what waits for workers has to do without.
    pub fn turn_away(&mut self, why: &str) {
        for (_, reply) in self.asked.drain() {
            let _ = reply.send(Err(NoWorker { reason: why.to_owned(), no_room: true }));
        }
    }

    /// Whether a worker is there that has not been reported as ended.
    pub fn has_workers(&self) -> bool {
        !self.live.is_empty()
    }

    pub fn fork(&mut self, id: String, reply: Reply) {
        match &mut self.link {
            Some(link) => {
                link.send(&Outgoing::Fork { id: &id });
                self.asked.insert(id, reply);
            }
            None => {
                let text = format!("the worker {id} cannot be forked: the template process is gone");
                let _ = reply.send(Err(text.into()));
            }
        }
    }

    /// Takes in what the template has said. Returns whether it can say more.
    pub fn hear_what_arrived(&mut self) -> bool {
        while let Some(link) = &mut self.link {
            match link.next_arrived() {
                Ok(Some(message)) => self.on_template(Ok(Some(message))),
                Ok(None) if !link.has_ended() => return true,
                _ => self.link = None,
            }
        }
        false
    }

    /// Takes in what the template has still said. It says nothing more.
    pub fn hear_the_rest(&mut self) {
        self.hear_what_arrived();
        self.link = None;
    }

    /// There is no template any more: nothing comes of what was asked of it.
    pub fn end(&mut self, how: &str, news: FromTemplate) {
        for (id, reply) in self.asked.drain() {
            let _ = reply.send(Err(format!("the worker {id} cannot be forked: {how}").into()));
        }
        self.exits.clear();
        let _ = self.template.send(news);
    }

    pub fn kill_workers(&self) {
        for &pid in self.live.values() {
            self.site.kill(pid);
            groups::leave(pid);
        }
    }
}

/// Whether these are the last words of a Python without pytest.
pub(super) fn lacks_pytest(words: &str) -> bool {
    words.contains("No module named 'pytest'") || words.contains("No module named '_pytest'")
}

/// The template's next message; never, while it is not connected.
pub(super) async fn next(link: &mut Option<Link>) -> Result<Option<Incoming>, LinkError> {
    match link {
        Some(link) => link.next().await,
        None => std::future::pending().await,
    }
}

/// Hears who has connected.
async fn greet(mut link: Link) -> Option<(Hello, Link)> {
    match tokio::time::timeout(HELLO_PATIENCE, link.next()).await {
        Ok(Ok(Some(Incoming::Hello(hello)))) => Some((hello, link)),
        other => {
            tracing::warn!(?other, "a process connected and did not say who it is");
            None
        }
    }
}

/// A worker is gone: what is said of it, for plugins that look after workers.
pub(super) fn worker_down(worker: &Arc<str>, output: Option<&str>, error: Option<&str>) -> NativeEvent {
    let error = error.map_or_else(|| "null".to_owned(), |error| serde_json::Value::from(error).to_string());
    let data = format!("[{},{error}]", output.unwrap_or("null"));
    NativeEvent { sandbox: Some(Arc::clone(worker)), ..NativeEvent::new("worker_down", data) }
}
