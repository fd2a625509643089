//! From events of a run to what the plugin's callback gets.
//!
//! A [`Collector`] takes what matters of each event into a [`Queue`], on the orchestrator's thread and without Python;
//! the thread that holds the interpreter makes tuples of it, in batches.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use offload_core::event::{Attempt, FinishedTest, NativeEvent, RunEvent, RunSummary, TestInfo, TimedEvent};
use offload_core::framework::TestOutcome;
use offload_core::report::Reporter;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

/// What the plugin hears of.
pub enum Event {
    Started { test: Arc<TestInfo>, worker: Arc<str> },
    Attempt { test: Arc<TestInfo>, attempt: Box<Attempt>, will_retry: bool },
    WithoutAttempt { test: Arc<TestInfo>, outcome: TestOutcome, reason: String },
    Native(NativeEvent),
    Lost { worker: Arc<str>, reason: String },
    Warning(String),
    Problem(String),
    Flaky(Vec<String>),
    Summary { summary: Box<RunSummary>, idle: Option<(Arc<str>, f64)> },
}

/// Events on their way to the plugin.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    taken_at: Option<Instant>,
    ended: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: Event) {
        let mut state = self.lock();
        state.events.push(event);
        if state.events.len() == 1 {
            self.changed.notify_all();
        }
    }

    /// Has what could not be handed over come first again.
    pub fn put_back(&self, mut events: Vec<Event>) {
        let mut state = self.lock();
        events.append(&mut state.events);
        state.events = events;
    }

    /// No more events will come.
    pub fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits for events for at most `patience`, and then, unless the last ones were taken that long ago, until `flush`
    /// has passed since, so that many come together. The second value: whether these were the last.
    pub fn take(&self, patience: Duration, flush: Duration) -> (Vec<Event>, bool) {
        let wait = |state, patience, until: fn(&mut State) -> bool| {
            let waited = self.changed.wait_timeout_while(state, patience, |state| !until(state));
            waited.unwrap_or_else(PoisonError::into_inner).0
        };
        let mut state = wait(self.lock(), patience, |state| state.ended || !state.events.is_empty());
        if let Some(rest) = state.taken_at.and_then(|at| flush.checked_sub(at.elapsed()))
            && !state.events.is_empty()
        {
            state = wait(state, rest, |state| state.ended);
        }
        if !state.events.is_empty() {
            state.taken_at = Some(Instant::now());
        }
        (std::mem::take(&mut state.events), state.ended)
    }

    /// Waits for the end for at most `patience`; returns whether it has come.
    pub fn wait_for_end(&self, patience: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), patience, |state| !state.ended);
        waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }
}

/// Puts the events of a run into a queue.
pub struct Collector {
    queue: Arc<Queue>,
    flaky: Vec<String>,
    /// When each worker came, and how long it has been at work when it goes.
    workers: HashMap<Arc<str>, Duration>,
    idle: Option<(Arc<str>, f64)>,
    /// pytest's own words on the next problem have been passed on.
    explained: bool,
}

impl Collector {
    pub fn new(queue: Arc<Queue>) -> Self {
        Self { queue, flaky: Vec::new(), workers: HashMap::new(), idle: None, explained: false }
    }

    fn finished(&mut self, test: &FinishedTest) {
        let info = Arc::clone(&test.test);
        if test.flaky {
            self.flaky.push(info.id.clone());
        }
        self.queue.push(match (test.attempts.last(), &test.reason) {
            (Some(attempt), None) => {
                Event::Attempt { test: info, attempt: Box::new(attempt.clone()), will_retry: false }
            }
            (_, reason) => {
                let reason = reason.clone().unwrap_or_default();
                Event::WithoutAttempt { test: info, outcome: test.outcome, reason }
            }
        });
    }
}

impl Reporter for Collector {
    fn on_event(&mut self, event: &TimedEvent) {
        match &event.event {
            RunEvent::TestStarted { test, sandbox, .. } => {
                self.queue.push(Event::Started { test: Arc::clone(test), worker: Arc::clone(sandbox) });
            }
            RunEvent::AttemptFailed { test, attempt, .. } => {
                let attempt = Box::new(attempt.clone());
                self.queue.push(Event::Attempt { test: Arc::clone(test), attempt, will_retry: true });
            }
            RunEvent::TestFinished { .. } => {
                if let Some(test) = FinishedTest::from_event(&event.event) {
                    self.finished(&test);
                }
            }
            RunEvent::Native(native) => {
                self.explained |= matches!(native.kind, "fatal" | "collection_errors");
                self.queue.push(Event::Native(native.clone()));
            }
            RunEvent::SandboxReady { sandbox, .. } => {
                self.workers.insert(Arc::clone(sandbox), event.at);
            }
            RunEvent::SandboxFinished { sandbox, busy } => {
                if let Some(since) = self.workers.remove(sandbox) {
                    let life = event.at.saturating_sub(since).as_secs_f64();
                    let share = if life > 0.0 { (1.0 - busy.as_secs_f64() / life).clamp(0.0, 1.0) } else { 0.0 };
                    if self.idle.as_ref().is_none_or(|(_, most)| share > *most) {
                        self.idle = Some((Arc::clone(sandbox), share));
                    }
                }
            }
            RunEvent::SandboxLost { sandbox, reason, .. } => {
                self.queue.push(Event::Lost { worker: Arc::clone(sandbox), reason: reason.clone() });
            }
            RunEvent::Warning { text } => self.queue.push(Event::Warning(text.clone())),
            RunEvent::Problem { text } => {
                let explained = std::mem::take(&mut self.explained);
                if !explained {
                    self.queue.push(Event::Problem(text.clone()));
                }
            }
            RunEvent::RunFinished { summary } => {
                self.queue.push(Event::Flaky(std::mem::take(&mut self.flaky)));
                let (summary, idle) = (Box::new(summary.clone()), self.idle.take());
                self.queue.push(Event::Summary { summary, idle });
            }
            _ => {}
        }
    }
}

/// A batch of events, as the callback takes it.
///
/// # Errors
///
/// When the interpreter is out of memory, or cannot read what a worker wrote.
pub fn to_list<'py>(py: Python<'py>, events: &[Event]) -> PyResult<Bound<'py, PyList>> {
    let loads = py.import("json")?.getattr("loads")?;
    let list = PyList::empty(py);
    for event in events {
        list.append(event.to_tuple(py, &loads)?)?;
    }
    Ok(list)
}

impl Event {
    fn to_tuple<'py>(&self, py: Python<'py>, loads: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyTuple>> {
        match self {
            Self::Started { test, worker } => {
                ("started", test.number, &*test.id, test.line, &*test.suite, &*test.name, &**worker).into_pyobject(py)
            }
            Self::Attempt { test, attempt, will_retry } => attempt_tuple(py, test, attempt, *will_retry),
            Self::WithoutAttempt { test, outcome: TestOutcome::NotRun, reason } => {
                ("not_run", test.number, &*test.id, &**reason).into_pyobject(py)
            }
            Self::WithoutAttempt { test, reason, .. } => {
                let crash = ("crashed", &*test.id, "", &**reason, "", test.number, &*test.suite, test.line);
                join(crash.into_pyobject(py)?, (&*test.name, false, 1).into_pyobject(py)?)
            }
            Self::Native(event) => native_tuple(py, event, loads),
            Self::Lost { worker, reason } => ("worker_lost", &**worker, &**reason).into_pyobject(py),
            Self::Warning(text) => ("run_warning", &**text).into_pyobject(py),
            Self::Problem(text) => ("problem", &**text).into_pyobject(py),
            Self::Flaky(ids) => ("flaky", ids).into_pyobject(py),
            Self::Summary { summary, idle } => {
                let text = serde_json::to_string(summary).unwrap_or_else(|_| "{}".to_owned());
                let dict = loads.call1((text,))?.cast_into::<PyDict>()?;
                if let Some((worker, share)) = idle {
                    dict.set_item("idle_worker", &**worker)?;
                    dict.set_item("idle_share", share)?;
                }
                ("summary", dict).into_pyobject(py)
            }
        }
    }
}

fn attempt_tuple<'py>(
    py: Python<'py>,
    test: &TestInfo,
    attempt: &Attempt,
    will_retry: bool,
) -> PyResult<Bound<'py, PyTuple>> {
    let result = &attempt.result;
    let outcome = match result.outcome {
        TestOutcome::Crashed | TestOutcome::TimedOut => {
            let message = result.message.as_deref().unwrap_or_default();
            let details = result.details.as_deref().unwrap_or_default();
            let head = ("crashed", &*test.id, &*attempt.sandbox, message, details).into_pyobject(py)?;
            let timed_out = result.outcome == TestOutcome::TimedOut;
            let seconds = result.duration.as_secs_f64();
            let tail =
                (test.number, &*test.suite, test.line, &*test.name, will_retry, attempt.number, seconds, timed_out);
            let captured = (&*result.stdout.text, &*result.stderr.text);
            return join(join(head, tail.into_pyobject(py)?)?, captured.into_pyobject(py)?);
        }
        TestOutcome::Passed => "passed",
        TestOutcome::Failed => "failed",
        TestOutcome::Skipped => "skipped",
        TestOutcome::Error | TestOutcome::NotRun => "error",
    };
    let phases = result.phases.unwrap_or([Duration::ZERO, result.duration, Duration::ZERO]);
    let [setup, call, teardown] = phases.map(|phase| phase.as_secs_f64());
    let head = ("finished", test.number, &*test.id, &*test.suite, test.line, &*test.name, &*attempt.sandbox);
    let native = result.native.as_deref();
    let tail = ((setup, call, teardown), native, outcome, will_retry, attempt.number);
    join(head.into_pyobject(py)?, tail.into_pyobject(py)?)
}

fn native_tuple<'py>(py: Python<'py>, event: &NativeEvent, loads: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyTuple>> {
    let worker = event.sandbox.as_deref();
    if matches!(event.kind, "late_report" | "late_crash") {
        let test = event.test.as_deref();
        let (number, id) = test.map_or((None, ""), |test| (Some(test.number), &test.id));
        return (event.kind, number, id, &*event.data).into_pyobject(py);
    }
    let data = loads.call1((&*event.data,))?;
    match event.kind {
        // A list of what belongs into the tuple.
        "property" | "exit" | "fatal" => join((event.kind,).into_pyobject(py)?, as_tuple(&data)?),
        "worker_down" => {
            let data = as_tuple(&data)?;
            let output = data.get_item(0)?;
            let output = if output.is_none() { output } else { py.import("json")?.call_method1("dumps", (output,))? };
            (event.kind, worker, output, data.get_item(1)?).into_pyobject(py)
        }
        "data" => {
            let data = as_tuple(&data)?;
            let payload = py.import("json")?.call_method1("dumps", (data.get_item(1)?,))?;
            (event.kind, worker, data.get_item(0)?, payload).into_pyobject(py)
        }
        kind => (kind, data).into_pyobject(py),
    }
}

fn as_tuple<'py>(list: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyTuple>> {
    Ok(list.cast::<PyList>()?.to_tuple())
}

fn join<'py>(head: Bound<'py, PyTuple>, tail: Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyTuple>> {
    Ok(head.as_any().add(tail)?.cast_into::<PyTuple>()?)
}
