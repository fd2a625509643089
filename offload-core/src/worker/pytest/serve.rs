//! One sandbox's worker: tests in, results out, a new worker when one breaks.
//!
//! The worker that runs a test when it dies, or when the test runs out of time, costs exactly that test; whatever it had
//! not started is given back, and the next tests get a new fork. A worker that dies without running a test is a fault of
//! the sandbox.
//!
//! A worker looks at its messages between two tests, so what it has been told of cannot be taken back while it runs a
//! long one. It is therefore told only of what keeps it busy; the rest of the queue stays here, where it can be given
//! back at once.

mod end;
mod stacks;

pub(crate) use end::words_of;

use std::collections::VecDeque;
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
use super::patience::{STOPPED, TICK, WORTH_SAYING};
use super::roll::NoWorker;
use crate::event::NativeEvent;
use crate::framework::TestResult;
use crate::worker::{Message, TestKey};

/// How long after the end of its connection it takes at most to hear how a worker ended.
const EXIT_PATIENCE: Duration = Duration::from_secs(3);
/// How long a cancelled test may take to end, and what it set up to be torn down.
const CANCEL_PATIENCE: Duration = Duration::from_secs(5);

/// What a worker says to whoever started it.
#[derive(Debug)]
pub(crate) enum Said {
    /// Something about a test.
    Message(Message),
    /// Something of pytest's own, about a test or none.
    Native(Option<TestKey>, NativeEvent),
    /// Tests that cannot be run here, because their file has other tests here than those that were reported.
    Refused(Vec<TestKey>, String),
    /// What a finished test had left standing could not be torn down.
    LateFailure(TestKey, Box<TestResult>),
    /// The worker ended badly, and no test can be blamed for that.
    Problem(String),
    /// Another process, of this name, has taken the worker's place.
    Replaced(Arc<str>),
    /// The worker broke, and not because of a test.
    Lost(String),
    /// There is no room for the worker beside others.
    NoRoom(String),
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
        let starts = matches!(process, Process::Forking(_));
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
            last: None,
            parted: false,
            between: starts.then(|| (Between::Start, Instant::now())),
            announced: false,
            yields: 0,
            limit: None,
            cancelled: false,
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
    Forked(Result<WorkerProcess, NoWorker>),
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

/// What a worker does that has tests and runs none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Between {
    /// It starts.
    Start,
    /// It comes to its next test, of which it may have to collect the file first.
    Approach,
    /// It tears down what its last tests have set up.
    TearDown,
    /// It does so at its end, when it has no tests any more.
    End,
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
    /// The test that has ended last in this process.
    last: Option<TestKey>,
    /// The process has said its last word.
    parted: bool,
    /// What it does while it has tests and runs none, and since when.
    between: Option<(Between, Instant)>,
    /// Whether users know that it is waited for.
    announced: bool,
    /// How often this process has yielded after a failure.
    yields: u32,
    /// The longest time limit of a test so far: it holds for the end of the worker, too.
    limit: Option<Duration>,
    /// The worker was told to drop what it has.
    cancelled: bool,
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
            if let Some(deadline) = deadline {
                let wake = deadline.min(Instant::now() + TICK);
                if sleep.is_elapsed() || sleep.deadline() > wake {
                    sleep.as_mut().reset(wake);
                }
            }
            let next = tokio::select! {
                order = orders.recv(), if open => Next::Order(order),
                next = self.process.next() => next,
                () = &mut sleep, if deadline.is_some() => Next::TimeIsUp,
            };
            if deadline.is_some() {
                let late = Instant::now().saturating_duration_since(sleep.deadline());
                if late > STOPPED {
                    self.put_off(late);
                }
            }
            match next {
                Next::Order(Some(order)) => self.on_order(order).await,
                Next::Order(None) => {
                    open = false;
                    self.close();
                }
                Next::Forked(Ok(worker)) => self.on_forked(Box::new(worker)),
                Next::Forked(Err(NoWorker { reason, no_room })) => {
                    self.process = Process::Down;
                    if !self.closing {
                        return (self.say)(if no_room { Said::NoRoom(reason) } else { Said::Lost(reason) });
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
                Next::TimeIsUp => {
                    if !self.on_time_up().await {
                        return;
                    }
                }
            }
        }
    }

    fn say(&self, message: Message) {
        (self.say)(Said::Message(message));
    }

    fn deadline(&self) -> Option<Instant> {
        let test = self.running.as_ref().and_then(|running| running.since.checked_add(running.item.timeout));
        let between = self.between.and_then(|(what, since)| {
            let limit = self.limit_between(what).and_then(|limit| since.checked_add(limit));
            let saying = (!self.announced).then(|| since + WORTH_SAYING);
            [limit, saying].into_iter().flatten().min()
        });
        [test, between, self.give_up_at].into_iter().flatten().min()
    }

    fn limit_between(&self, what: Between) -> Option<Duration> {
        match what {
            Between::Start | Between::Approach => self.host.options().phase_limit,
            Between::TearDown => self.limit,
            // Its own limit: when it is given up.
            Between::End => None,
        }
    }

    /// Time has passed that does not count: this process was stopped, or the machine slept.
    fn put_off(&mut self, by: Duration) {
        let begun = self.running.iter_mut().map(|running| &mut running.since);
        for moment in begun.chain(self.between.iter_mut().map(|(_, since)| since)).chain(&mut self.give_up_at) {
            *moment += by;
        }
    }

    /// Takes note of what the worker does now, while it runs no test.
    fn enter(&mut self, what: Option<Between>) {
        self.between = what.map(|what| (what, Instant::now()));
        self.announced = false;
    }

    async fn on_order(&mut self, order: Order) {
        match order {
            Order::Run(tests) => {
                match self.process {
                    Process::Up(_) | Process::Forking(_) => {}
                    Process::Down => {
                        let (id, forked) = self.host.fork(self.slot);
                        self.process = Process::Forking(forked);
                        self.enter(Some(Between::Start));
                        (self.say)(Said::Replaced(id));
                    }
                }
                self.limit = tests.iter().map(|test| test.timeout).chain(self.limit).max();
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
                (self.closing, self.cancelled) = (true, true);
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
        let told = self.give_up_at.is_some();
        self.closing = true;
        match &mut self.process {
            Process::Up(_) if told => {}
            Process::Up(worker) => {
                worker.link.send(&Outgoing::Shutdown);
                self.give_up_at = self.limit.and_then(|limit| Instant::now().checked_add(limit));
                self.enter(Some(Between::End));
            }
            // It hears so once it is there.
            Process::Forking(_) | Process::Down => {}
        }
    }

    fn on_forked(&mut self, mut worker: Box<WorkerProcess>) {
        if self.closing {
            worker.link.send(&Outgoing::Shutdown);
        }
        (self.last, self.parted, self.yields) = (None, false, 0);
        self.enter(None);
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
        let line = |item: &PytestItem| {
            let known = worker.collected.contains(&item.unit);
            RunLine::new(item, if known { None } else { self.host.digest(item.unit) })
        };
        let tests: Vec<RunLine> = self.queue.iter().skip(self.told).take(more).map(line).collect();
        self.told += tests.len();
        worker.link.send(&Outgoing::Run { tests: &tests, resume: self.yields });
        if self.running.is_none() && self.between.is_none() {
            self.enter(Some(Between::Approach));
        }
    }

    fn remove(&mut self, key: TestKey) -> Option<PytestItem> {
        let position = self.queue.iter().position(|item| item.key == key)?;
        self.told -= usize::from(position < self.told);
        self.queue.remove(position)
    }

    async fn on_message(&mut self, message: Incoming) {
        let tears_down = matches!(message, Incoming::TearingDown);
        self.take_in(message).await;
        if self.closing {
            return;
        }
        let busy = self.running.is_none() && self.told > 0 && matches!(self.process, Process::Up(_));
        match (busy, tears_down) {
            (false, _) if self.between.is_none() => {}
            (false, _) => self.enter(None),
            (true, true) => self.enter(Some(Between::TearDown)),
            (true, false) => self.enter(Some(Between::Approach)),
        }
    }

    async fn take_in(&mut self, message: Incoming) {
        match message {
            Incoming::Started(key, process) => {
                if let Some(item) = self.remove(key) {
                    self.running = Some(Running { item, since: Instant::now(), process });
                    self.say(Message::Started { key });
                }
            }
            Incoming::CrashRetries(key, most) => self.host.set_crash_retries(key, most),
            Incoming::Crashed(key, exit, said) => self.on_crash(key, exit, *said).await,
            Incoming::Finished(key, result) => {
                let running = self.running.take_if(|running| running.item.key == key).map(|running| running.item);
                let Some(item) = running.or_else(|| self.remove(key)) else { return };
                self.pace.observe(item.unit, result.duration);
                self.last = Some(key);
                self.feed();
                self.say(Message::Finished { key, result });
            }
            Incoming::TakenBack(keys) => {
                self.give_back(&keys);
                // The worker may have nothing left of what it was told, and no result of it will come to ask for more.
                self.feed();
            }
            Incoming::Yielded => {
                self.yields += 1;
                self.give_all_back();
            }
            Incoming::Refused { unit, mut keys, text } => {
                keys.retain(|&key| self.remove(key).is_some());
                // And those of which it was not told.
                let rest = self.queue.iter().skip(self.told).filter(|item| item.unit == unit);
                let rest: Vec<TestKey> = rest.map(|item| item.key).collect();
                keys.extend(rest.into_iter().filter(|&key| self.remove(key).is_some()));
                (self.say)(Said::Refused(keys, text));
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
}

impl Process {
    /// What the process does next; never returns while there is none.
    async fn next(&mut self) -> Next {
        match self {
            Self::Down => std::future::pending().await,
            Self::Forking(forked) => {
                let gone = || Err("a worker cannot be forked: the template process is gone".to_owned().into());
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
