//! One sandbox's worker: tests in, results out, a new worker when one breaks.
//!
//! The worker that runs a test when it dies, or when the test runs out of time, costs exactly that test; whatever it had
//! not started is given back, and the next tests get a new fork. A worker that dies without running a test is a fault of
//! the sandbox.
//!
//! A worker looks at its messages between two tests, so what it has been told of cannot be taken back while it runs a
//! long one. It is therefore told only of what keeps it busy; the rest of the queue stays here, where it can be given
//! back at once.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Pid;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::PytestItem;
use super::ahead::{self, Pace};
use super::host::{Forked, PytestHost, WorkerProcess};
use super::link::LinkError;
use super::message::{Exit, Incoming, Outgoing, RunLine};
use super::roll::worker_down;
use crate::event::NativeEvent;
use crate::framework::{TestOutcome, TestResult};
use crate::worker::libtest::timeout_message;
use crate::worker::{Message, TestKey};

/// How long after the end of its connection it takes at most to hear how a worker ended.
const EXIT_PATIENCE: Duration = Duration::from_secs(3);
/// How long a cancelled test may take to end, and what it set up to be torn down.
const CANCEL_PATIENCE: Duration = Duration::from_secs(5);
/// How long a worker may take to end once it has said good-bye (plugins and libraries clean up at exit).
const BYE_PATIENCE: Duration = Duration::from_secs(10);
/// How many lines of stacks a report shows.
const DUMP_LINES: usize = 500;
/// How many lines that were written by a process that died a report shows.
const LAST_WORDS: usize = 40;

/// What a worker says to whoever started it.
#[derive(Debug)]
pub(crate) enum Said {
    /// Something about a test.
    Message(Message),
    /// Something of pytest's own, about a test or none.
    Native(Option<TestKey>, NativeEvent),
    /// What a finished test had left standing could not be torn down.
    LateFailure(TestKey, Box<TestResult>),
    /// Another process, of this name, has taken the worker's place.
    Replaced(Arc<str>),
    /// The worker broke, and not because of a test.
    Lost(String),
}

enum Order {
    Run(Vec<PytestItem>),
    TakeBack(Vec<TestKey>),
    Cancel(Vec<TestKey>),
    Kill,
}

/// The worker of one sandbox.
#[derive(Debug)]
pub(crate) struct PytestWorker {
    orders: mpsc::UnboundedSender<Order>,
    task: JoinHandle<()>,
}

impl PytestWorker {
    /// Takes the worker that was left for the sandbox `slot`, or has one forked. Returns its id too.
    pub fn start(host: &Arc<PytestHost>, slot: u32, say: impl Fn(Said) + Send + Sync + 'static) -> (Arc<str>, Self) {
        match host.take(slot) {
            Some(worker) => (Arc::clone(&worker.id), Self::with(host, slot, worker, say)),
            None => {
                let (id, forked) = host.fork(slot);
                (id, Self::spawn(host, slot, Process::Forking(forked), say))
            }
        }
    }

    /// Takes a worker of the sandbox `slot` over.
    pub fn with(
        host: &Arc<PytestHost>,
        slot: u32,
        worker: WorkerProcess,
        say: impl Fn(Said) + Send + Sync + 'static,
    ) -> Self {
        Self::spawn(host, slot, Process::Up(Box::new(worker)), say)
    }

    fn spawn(host: &Arc<PytestHost>, slot: u32, process: Process, say: impl Fn(Said) + Send + Sync + 'static) -> Self {
        let (orders, inbox) = mpsc::unbounded_channel();
        let serving = Serving {
            host: Arc::clone(host),
            slot,
            say: Box::new(say),
            process,
            queue: VecDeque::new(),
            told: 0,
            pace: Pace::default(),
            running: None,
            blamed: false,
            heard: (0, 0),
            closing: false,
            give_up_at: None,
        };
        Self { orders, task: tokio::spawn(serving.run(inbox)) }
    }

    /// Appends tests to the queue.
    pub fn run(&self, tests: Vec<PytestItem>) {
        // Once the worker is lost nobody takes orders any more; its tests have been given back with it.
        let _ = self.orders.send(Order::Run(tests));
    }

    /// Asks for tests back that have not started.
    pub fn take_back(&self, tests: Vec<TestKey>) {
        let _ = self.orders.send(Order::TakeBack(tests));
    }

    /// Ends tests; all, and the worker with them, when `tests` is empty.
    pub fn cancel(&self, tests: Vec<TestKey>) {
        let _ = self.orders.send(Order::Cancel(tests));
    }

    /// Kills the worker.
    pub fn kill(&self) {
        let _ = self.orders.send(Order::Kill);
    }

    /// Has the worker tear down what it set up and waits for its end.
    pub async fn finish(self) {
        drop(self.orders);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the task of a worker ended abnormally");
        }
    }
}

/// The process behind a worker.
enum Process {
    /// None until there is a test again.
    Down,
    Forking(Forked),
    Up(Box<WorkerProcess>),
}

/// What happens next.
enum Next {
    Order(Option<Order>),
    Forked(Result<WorkerProcess, String>),
    Said(Result<Option<Incoming>, LinkError>),
    Exited(Option<Exit>),
    TimeIsUp,
}

/// A test that has started.
struct Running {
    item: PytestItem,
    since: Instant,
    /// The process of this test alone, if it has one.
    process: Option<Pid>,
}

struct Serving {
    host: Arc<PytestHost>,
    /// The number of the sandbox.
    slot: u32,
    say: Box<dyn Fn(Said) + Send + Sync>,
    process: Process,
    /// What the worker has and has not started, or will have once it is there.
    queue: VecDeque<PytestItem>,
    /// How many of those, from the first, the worker has been told of.
    told: usize,
    pace: Pace,
    running: Option<Running>,
    /// The worker is ending because of a test, of which this has been told.
    blamed: bool,
    /// How much the worker had written, stacks and output, when a test last ended in a process of its own.
    heard: (u64, u64),
    /// No more tests will come.
    closing: bool,
    /// When a worker that was told to end is killed.
    give_up_at: Option<Instant>,
}

impl Serving {
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut open = true;
        // One sleep serves many deadlines: it is only moved when it ends too early.
        let sleep = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(sleep);
        while open || !matches!(self.process, Process::Down) {
            let deadline = self.deadline();
            if let Some(deadline) = deadline
                && (sleep.is_elapsed() || sleep.deadline() > deadline)
            {
                sleep.as_mut().reset(deadline);
            }
            let next = tokio::select! {
                order = orders.recv(), if open => Next::Order(order),
                next = self.process.next() => next,
                () = &mut sleep, if deadline.is_some() => Next::TimeIsUp,
            };
            match next {
                Next::Order(Some(order)) => self.on_order(order).await,
                Next::Order(None) => {
                    open = false;
                    self.close();
                }
                Next::Forked(Ok(worker)) => self.on_forked(Box::new(worker)),
                Next::Forked(Err(reason)) => {
                    self.process = Process::Down;
                    if !self.closing {
                        return self.lose(reason);
                    }
                }
                Next::Said(Ok(Some(message))) => {
                    if let Incoming::Bye { output } = message {
                        self.on_bye(output.as_deref().map(serde_json::value::RawValue::get)).await;
                    } else {
                        self.on_message(message).await;
                    }
                }
                Next::Said(Ok(None)) => {
                    let exit = self.wait_for_exit(EXIT_PATIENCE).await;
                    if !self.on_death(exit, None).await {
                        return;
                    }
                }
                Next::Said(Err(LinkError::Lost(reason))) => return self.on_loss(reason),
                Next::Said(Err(error)) => {
                    if let Process::Up(worker) = &self.process {
                        worker.kill();
                    }
                    let exit = self.wait_for_exit(EXIT_PATIENCE).await;
                    if !self.on_death(exit, Some(error.to_string())).await {
                        return;
                    }
                }
                Next::Exited(exit) => {
                    self.hear_the_rest().await;
                    if !self.on_death(exit, None).await {
                        return;
                    }
                }
                Next::TimeIsUp => self.on_time_up().await,
            }
        }
    }

    fn say(&self, message: Message) {
        (self.say)(Said::Message(message));
    }

    fn deadline(&self) -> Option<Instant> {
        let test = self.running.as_ref().and_then(|running| running.since.checked_add(running.item.timeout));
        [test, self.give_up_at].into_iter().flatten().min()
    }

    async fn on_order(&mut self, order: Order) {
        match order {
            Order::Run(tests) => {
                match self.process {
                    Process::Up(_) | Process::Forking(_) => {}
                    Process::Down => {
                        let (id, forked) = self.host.fork(self.slot);
                        self.process = Process::Forking(forked);
                        (self.say)(Said::Replaced(id));
                    }
                }
                self.queue.extend(tests);
                self.feed();
            }
            Order::TakeBack(keys) => {
                let told = self.queue.iter().take(self.told).map(|item| item.key);
                let told: Vec<TestKey> = told.filter(|key| keys.contains(key)).collect();
                if let Process::Up(worker) = &mut self.process
                    && !told.is_empty()
                {
                    worker.link.send(&Outgoing::TakeBack { keys: &told });
                }
                let here: Vec<TestKey> = keys.into_iter().filter(|key| !told.contains(key)).collect();
                self.give_back(&here);
            }
            Order::Cancel(keys) if !keys.is_empty() => {
                // One test cannot be ended without the process that runs it.
                if self.running.as_ref().is_some_and(|running| keys.contains(&running.item.key)) {
                    self.running = None;
                    self.stop("a test was ended that is not wanted any more");
                }
                self.give_back(&keys);
                self.say(Message::TakenBack { tests: keys });
            }
            Order::Cancel(_) => {
                self.closing = true;
                // A result that has arrived counts, whether it has been looked at or not.
                self.hear_the_rest().await;
                // A worker that has nothing to do ends as after any other run.
                if let Process::Up(worker) = &mut self.process
                    && (self.running.is_some() || !self.queue.is_empty())
                {
                    worker.link.send(&Outgoing::Cancel);
                    // The message is read between two tests; this ends the one that runs.
                    if self.running.is_some() {
                        worker.site.interrupt(worker.pid);
                    }
                    self.give_up_at = Some(Instant::now() + CANCEL_PATIENCE);
                }
                self.give_all_back();
            }
            Order::Kill => {
                self.closing = true;
                self.hear_the_rest().await;
                self.give_all_back();
                self.stop("it was killed because the run was interrupted");
            }
        }
    }

    /// No more orders will come: the worker is to end in peace.
    fn close(&mut self) {
        let cancelled = self.give_up_at.is_some();
        self.closing = true;
        match &mut self.process {
            Process::Up(_) if cancelled => {}
            Process::Up(worker) => worker.link.send(&Outgoing::Shutdown),
            // It hears so once it is there.
            Process::Forking(_) | Process::Down => {}
        }
    }

    fn on_forked(&mut self, mut worker: Box<WorkerProcess>) {
        if self.closing {
            worker.link.send(&Outgoing::Shutdown);
        }
        self.process = Process::Up(worker);
        self.feed();
    }

    /// Tells the worker of as many tests as keep it busy, and of several at a time.
    fn feed(&mut self) {
        let Process::Up(worker) = &mut self.process else { return };
        if self.closing {
            return;
        }
        let running = self.running.as_ref().map(|running| &running.item);
        let more = ahead::more(self.queue.iter(), self.told, running, self.pace, worker.site.way());
        if more == 0 {
            return;
        }
        let tests: Vec<RunLine> = self.queue.iter().skip(self.told).take(more).map(RunLine::from).collect();
        self.told += tests.len();
        worker.link.send(&Outgoing::Run { tests: &tests });
    }

    fn remove(&mut self, key: TestKey) -> Option<PytestItem> {
        let position = self.queue.iter().position(|item| item.key == key)?;
        self.told -= usize::from(position < self.told);
        self.queue.remove(position)
    }

    async fn on_message(&mut self, message: Incoming) {
        match message {
            Incoming::Started(key, process) => {
                if let Some(item) = self.remove(key) {
                    self.running = Some(Running { item, since: Instant::now(), process });
                    self.say(Message::Started { key });
                }
            }
            Incoming::Crashed(key, exit, said) => self.on_crash(key, exit, *said).await,
            Incoming::Finished(key, result) => {
                let running = self.running.take_if(|running| running.item.key == key).map(|running| running.item);
                let Some(item) = running.or_else(|| self.remove(key)) else { return };
                self.pace.observe(item.unit, result.duration);
                self.feed();
                self.say(Message::Finished { key, result });
            }
            Incoming::TakenBack(keys) => {
                self.give_back(&keys);
                // The worker may have nothing left of what it was told, and no result of it will come to ask for more.
                self.feed();
            }
            Incoming::LateReport(key, reports, failure) => {
                (self.say)(Said::Native(Some(key), self.native("late_report", reports)));
                if let Some(result) = failure {
                    (self.say)(Said::LateFailure(key, result));
                }
            }
            Incoming::Native(kind, data) => {
                if self.host.options().alone {
                    self.blame(kind, &data);
                }
                (self.say)(Said::Native(None, self.native(kind, data)));
            }
            Incoming::CollectReport { report, .. } => {
                (self.say)(Said::Native(None, self.native("collect_report", report)));
            }
            Incoming::Log(text) => self.say(Message::Log { text }),
            _ => {}
        }
    }

    /// What would end a pytest is the fault of the test that runs, where there is no such pytest.
    fn blame(&mut self, kind: &str, data: &str) {
        let (what, why) = match kind {
            "exit" => (
                "the test ended the whole session",
                serde_json::from_str::<(String, Option<i32>)>(data).map(|said| said.0),
            ),
            "internal_error" => ("pytest broke while it ran this test", serde_json::from_str(data)),
            _ => return,
        };
        let Some(Running { item, since, .. }) = self.running.take() else { return };
        let why = why.unwrap_or_default();
        let last = why.trim_end().lines().next_back().unwrap_or_default().to_owned();
        self.blamed = true;
        let result = TestResult {
            details: (last != why).then_some(why),
            ..TestResult::new(TestOutcome::Error, since.elapsed()).with_message(format!("{what}: {last}"))
        };
        self.say(Message::Finished { key: item.key, result: Box::new(result) });
    }

    fn native(&self, kind: &'static str, data: Arc<str>) -> NativeEvent {
        let sandbox = match &self.process {
            Process::Up(worker) => Some(Arc::clone(&worker.id)),
            _ => None,
        };
        NativeEvent { sandbox, ..NativeEvent::new(kind, data) }
    }

    /// Answers the wish for tests back: with those of them that are still in the queue.
    fn give_back(&mut self, keys: &[TestKey]) {
        let tests: Vec<TestKey> = keys.iter().copied().filter(|&key| self.remove(key).is_some()).collect();
        self.say(Message::TakenBack { tests });
    }

    fn give_all_back(&mut self) {
        self.told = 0;
        let running = self.running.take().map(|running| running.item.key);
        let tests: Vec<TestKey> = running.into_iter().chain(self.queue.drain(..).map(|item| item.key)).collect();
        if !tests.is_empty() {
            self.say(Message::TakenBack { tests });
        }
    }

    /// The worker ends by its own will.
    async fn on_bye(&mut self, output: Option<&str>) {
        let Process::Up(worker) = &self.process else { return };
        let id = Arc::clone(&worker.id);
        if self.wait_for_exit(BYE_PATIENCE).await.is_none()
            && let Process::Up(worker) = &self.process
        {
            tracing::warn!(sandbox = &*id, "the worker said good-bye and did not end");
            worker.kill();
        }
        self.process = Process::Down;
        self.give_up_at = None;
        (self.say)(Said::Native(None, worker_down(&id, output, None)));
        let uncalled = self.host.options().alone && !self.closing && !std::mem::take(&mut self.blamed);
        if uncalled && !(self.queue.is_empty() && self.running.is_none()) {
            return self.lose(format!("the worker {id} ended between two tests, and pytest said nothing"));
        }
        self.give_all_back();
    }

    /// The process of a single test ended without a result. The worker lives.
    async fn on_crash(&mut self, key: TestKey, exit: Exit, said: TestResult) {
        let running = self.running.take_if(|running| running.item.key == key);
        let (item, since) = match running {
            Some(Running { item, since, .. }) => (item, since),
            None => match self.remove(key) {
                Some(item) => (item, Instant::now()),
                None => return,
            },
        };
        let words = match &self.process {
            Process::Up(worker) => {
                let (words, heard) = last_words(worker, self.heard).await;
                self.heard = heard;
                words
            }
            _ => None,
        };
        let message = format!("the process of this test ended: {exit}");
        let result = TestResult {
            details: words,
            stdout: said.stdout,
            stderr: said.stderr,
            ..TestResult::new(TestOutcome::Crashed, since.elapsed()).with_message(message)
        };
        self.feed();
        self.say(Message::Finished { key: item.key, result: Box::new(result) });
    }

    async fn wait_for_exit(&mut self, patience: Duration) -> Option<Exit> {
        match &mut self.process {
            Process::Up(worker) if !worker.exit.is_terminated() => {
                tokio::time::timeout(patience, &mut worker.exit).await.ok()?.ok()
            }
            _ => None,
        }
    }

    /// Takes note of what a dead worker had still said.
    async fn hear_the_rest(&mut self) {
        while let Process::Up(worker) = &mut self.process {
            match worker.link.next_arrived() {
                Ok(Some(Incoming::Bye { .. })) => {}
                Ok(Some(message)) => self.on_message(message).await,
                _ => break,
            }
        }
    }

    /// The worker is gone. Returns whether the sandbox goes on.
    async fn on_death(&mut self, exit: Option<Exit>, fault: Option<String>) -> bool {
        let Process::Up(worker) = std::mem::replace(&mut self.process, Process::Down) else { return true };
        let (words, _) = last_words(&worker, std::mem::take(&mut self.heard)).await;
        if let Some(fate) = worker.site.fate() {
            // It died with everything around it.
            self.process = Process::Up(worker);
            self.on_loss(fate);
            return false;
        }
        self.pace = Pace::default();
        if exit.is_none() {
            // Its connection is closed and it may still live.
            worker.kill();
        }
        let how = match (&fault, exit) {
            (Some(fault), _) => fault.clone(),
            (None, Some(exit)) => exit.to_string(),
            (None, None) => "it closed its connection".to_owned(),
        };
        let expected = self.closing && self.running.is_none();
        let error = (!expected).then(|| format!("the worker {} ended: {how}", worker.id));
        (self.say)(Said::Native(None, worker_down(&worker.id, None, error.as_deref())));
        self.give_up_at = None;
        if let Some(Running { item, since, .. }) = self.running.take() {
            let message = format!("the worker {} ended while it ran this test: {how}", worker.id);
            let result = TestResult {
                details: words,
                ..TestResult::new(TestOutcome::Crashed, since.elapsed()).with_message(message)
            };
            self.say(Message::Finished { key: item.key, result: Box::new(result) });
            self.give_all_back();
            return true;
        }
        if self.closing {
            return true;
        }
        let words = words.map_or_else(String::new, |words| format!("\n{words}"));
        self.lose(format!("the worker {} ended between two tests: {how}{words}", worker.id));
        false
    }

    /// The worker's sandbox is gone, whatever the worker did.
    fn on_loss(&mut self, reason: String) {
        if let Process::Up(worker) = std::mem::replace(&mut self.process, Process::Down) {
            (self.say)(Said::Native(None, worker_down(&worker.id, None, Some(&reason))));
        }
        if self.closing {
            self.give_all_back();
        } else {
            self.lose(reason);
        }
    }

    fn lose(&mut self, reason: String) {
        (self.say)(Said::Lost(reason));
    }

    async fn on_time_up(&mut self) {
        let now = Instant::now();
        if self.give_up_at.is_some_and(|at| at <= now) {
            self.stop("it did not end when it was told to");
            return;
        }
        let late = |running: &mut Running| running.since.checked_add(running.item.timeout).is_some_and(|at| at <= now);
        let Some(Running { item, since, process }) = self.running.take_if(late) else { return };
        let stacks = match &self.process {
            Process::Up(worker) => match worker.dump.as_deref() {
                Some(path) => worker.site.stacks(process.unwrap_or(worker.pid), path, DUMP_LINES).await,
                None => None,
            },
            _ => None,
        };
        let result = TestResult {
            details: stacks,
            ..TestResult::new(TestOutcome::TimedOut, since.elapsed()).with_message(timeout_message(item.timeout))
        };
        self.stop("a test ran out of time");
        self.say(Message::Finished { key: item.key, result: Box::new(result) });
        self.give_all_back();
    }

    /// Kills the worker. Its place is free for another at once.
    fn stop(&mut self, why: &str) {
        self.give_up_at = None;
        if let Process::Up(worker) = std::mem::replace(&mut self.process, Process::Down) {
            worker.kill();
            let error = format!("the worker {} was killed: {why}", worker.id);
            (self.say)(Said::Native(None, worker_down(&worker.id, None, Some(&error))));
        }
    }
}

impl Process {
    /// What the process does next; never returns while there is none.
    async fn next(&mut self) -> Next {
        match self {
            Self::Down => std::future::pending().await,
            Self::Forking(forked) => {
                let gone = || Err("a worker cannot be forked: the template process is gone".to_owned());
                Next::Forked(forked.await.unwrap_or_else(|_| gone()))
            }
            Self::Up(worker) => {
                tokio::select! {
                    biased;
                    said = worker.link.next() => Next::Said(said),
                    // Without a template nobody knows how a worker ended, and its connection says that it did.
                    Ok(exit) = &mut worker.exit, if !worker.exit.is_terminated() => Next::Exited(Some(exit)),
                }
            }
        }
    }
}

/// What a dead process left: stacks that its fault handler wrote, and what it wrote outside of tests; of both what is
/// new since that much had been written, and how much has been now.
async fn last_words(worker: &WorkerProcess, heard: (u64, u64)) -> (Option<String>, (u64, u64)) {
    let read = async |path: &Option<PathBuf>, from, lines| match path.as_deref() {
        Some(path) => worker.site.tail(path, from, lines).await,
        None => (String::new(), 0),
    };
    let (stacks, dumped) = read(&worker.dump, heard.0, DUMP_LINES).await;
    let (words, written) = read(&worker.output, heard.1, LAST_WORDS).await;
    let all: Vec<String> = [stacks, words].into_iter().filter(|text| !text.is_empty()).collect();
    ((!all.is_empty()).then(|| all.join("\n\n")), (dumped, written))
}
