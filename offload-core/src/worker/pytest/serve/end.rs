//! How a worker ends: by its own will, with a test, out of time, with everything around it; and what it leaves to say.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Pid;
use tokio::time::Instant;

use super::super::ahead::Pace;
use super::super::host::WorkerProcess;
use super::super::message::{Exit, Incoming};
use super::super::patience::WORTH_SAYING;
use super::super::roll::worker_down;
use super::{Between, Process, Running, Said, Serving, stacks};
use crate::framework::{Captured, TestOutcome, TestResult};
use crate::worker::libtest::timeout_message;
use crate::worker::{Message, TestKey};

/// How long a worker may take to end once it has said good-bye (plugins and libraries clean up at exit).
const BYE_PATIENCE: Duration = Duration::from_secs(10);
/// For how long something that has arrived may not have been noticed.
const LAST_LOOK: Duration = Duration::from_millis(20);
/// How many lines of what a test had written a report shows.
const CAPTURED_LINES: usize = 1000;
/// How many lines of stacks a report shows.
const DUMP_LINES: usize = 500;

impl Serving {
    /// What would end a pytest is the fault of the test that runs, where there is no such pytest.
    pub(super) fn blame(&mut self, kind: &str, data: &str) {
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

    /// The worker ends by its own will.
    pub(super) async fn on_bye(&mut self, output: Option<&str>) {
        let Process::Up(worker) = &self.process else { return };
        let id = Arc::clone(&worker.id);
        let known = !worker.exit.is_terminated();
        let exit = self.wait_for_exit(BYE_PATIENCE).await;
        if let Process::Up(worker) = &self.process {
            if exit.is_none() {
                worker.kill();
            }
            match exit.filter(|exit| exit.is_known() && !exit.is_success()) {
                Some(exit) if !self.cancelled => {
                    let (words, _) = last_words(worker, self.heard).await;
                    self.blame_end(&id, &format!("after its good-bye: {exit}"), words);
                }
                None if known && exit.is_none() => {
                    // Everything was torn down. A Python that runs no tests would wait for such a thread for ever.
                    let text = format!(
                        "The worker {id} was killed, because it did not end within {} s after everything was torn down; \
                         a thread that a test has started may still run",
                        BYE_PATIENCE.as_secs()
                    );
                    let data = serde_json::Value::from(text).to_string();
                    (self.say)(Said::Native(None, self.native("waiting", data.into())));
                }
                _ => {}
            }
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

    /// The worker has ended as it should not, after its tests: an error of the last one, which used what was torn down last.
    fn blame_end(&mut self, id: &str, how: &str, words: Option<String>) {
        let text = format!("the worker {id} ended while it tore down what its tests had set up, {how}");
        let Some(key) = self.last.take() else {
            let words = words.map_or_else(String::new, |words| format!("\n{words}"));
            return (self.say)(Said::Problem(format!("{text}{words}")));
        };
        self.fail_late(key, text, words);
    }

    /// A test that has its result is an error, because of how a process ended after that.
    fn fail_late(&mut self, key: TestKey, text: String, words: Option<String>) {
        let whole = words.as_ref().map_or_else(|| text.clone(), |words| format!("{text}\n\n{words}"));
        let native = self.native("late_crash", serde_json::Value::from(whole).to_string().into());
        (self.say)(Said::Native(Some(key), native));
        let result =
            TestResult { details: words, ..TestResult::new(TestOutcome::Error, Duration::ZERO).with_message(text) };
        (self.say)(Said::LateFailure(key, Box::new(result)));
    }

    /// The process of a single test ended before all of it was torn down. The worker lives.
    pub(super) async fn on_crash(&mut self, key: TestKey, exit: Exit, said: TestResult) {
        let running = self.running.take_if(|running| running.item.key == key);
        let running = running.map(|Running { item, since, .. }| (item, since));
        let running = running.or_else(|| self.remove(key).map(|item| (item, Instant::now())));
        let words = match &self.process {
            Process::Up(worker) => {
                let (words, heard) = last_words(worker, self.heard).await;
                self.heard = heard;
                words
            }
            _ => None,
        };
        let Some((item, since)) = running else {
            if self.last == Some(key) {
                self.fail_late(key, format!("the process of this test ended after its result: {exit}"), words);
            }
            return;
        };
        let message = format!("the process of this test ended: {exit}");
        let result = TestResult {
            details: words,
            stdout: said.stdout,
            stderr: said.stderr,
            ..TestResult::new(TestOutcome::Crashed, since.elapsed()).with_message(message)
        };
        self.last = Some(item.key);
        self.feed();
        self.say(Message::Finished { key: item.key, result: Box::new(result) });
    }

    pub(super) async fn wait_for_exit(&mut self, patience: Duration) -> Option<Exit> {
        match &mut self.process {
            Process::Up(worker) if !worker.exit.is_terminated() => {
                tokio::time::timeout(patience, &mut worker.exit).await.ok()?.ok()
            }
            _ => None,
        }
    }

    /// Takes note of what a dead worker had still said.
    pub(super) async fn hear_the_rest(&mut self) {
        while let Process::Up(worker) = &mut self.process {
            match worker.link.next_arrived() {
                Ok(Some(Incoming::Bye { .. })) => self.parted = true,
                Ok(Some(message)) => self.on_message(message).await,
                _ => break,
            }
        }
    }

    /// The worker is gone. Returns whether the sandbox goes on.
    pub(super) async fn on_death(&mut self, exit: Option<Exit>, fault: Option<String>) -> bool {
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
        let in_order = self.parted && exit.is_none_or(|exit| exit.is_success() || !exit.is_known());
        let expected = self.closing && self.running.is_none() && (self.cancelled || in_order);
        let error = (!expected).then(|| format!("the worker {} ended: {how}", worker.id));
        (self.say)(Said::Native(None, worker_down(&worker.id, None, error.as_deref())));
        self.give_up_at = None;
        if let Some(Running { item, since, .. }) = self.running.take() {
            let message = format!("the worker {} ended while it ran this test: {how}", worker.id);
            let (stdout, stderr) = captured(&worker).await;
            let result = TestResult {
                details: words,
                stdout,
                stderr,
                ..TestResult::new(TestOutcome::Crashed, since.elapsed()).with_message(message)
            };
            self.say(Message::Finished { key: item.key, result: Box::new(result) });
            self.give_all_back();
            return true;
        }
        if self.closing {
            if !expected {
                self.blame_end(&worker.id, &how, words);
            }
            return true;
        }
        let words = words.map_or_else(String::new, |words| format!("\n{words}"));
        self.lose(format!("the worker {} ended between two tests: {how}{words}", worker.id));
        false
    }

    /// The worker's sandbox is gone, whatever the worker did.
    pub(super) fn on_loss(&mut self, reason: String) {
        if let Process::Up(worker) = std::mem::replace(&mut self.process, Process::Down) {
            (self.say)(Said::Native(None, worker_down(&worker.id, None, Some(&reason))));
        }
        if self.closing {
            self.give_all_back();
        } else {
            self.lose(reason);
        }
    }

    pub(super) fn lose(&mut self, reason: String) {
        (self.say)(Said::Lost(reason));
    }

    /// A moment has come at which something should have happened. Returns whether the sandbox goes on.
    pub(super) async fn on_time_up(&mut self) -> bool {
        if self.deadline().is_none_or(|deadline| deadline > Instant::now()) {
            return true;
        }
        // What has arrived comes before what should have: after this process was stopped, nobody has looked yet.
        tokio::time::sleep(LAST_LOOK).await;
        if let Some(output) = self.hear_what_arrived().await {
            self.on_bye(output.as_deref().map(serde_json::value::RawValue::get)).await;
            return true;
        }
        if self.deadline().is_none_or(|deadline| deadline > Instant::now()) {
            return true;
        }
        let now = Instant::now();
        if self.give_up_at.is_some_and(|at| at <= now) {
            let (id, stacks) = match &self.process {
                Process::Up(worker) => (Arc::clone(&worker.id), self.stacks(None).await),
                _ => {
                    self.give_up_at = None;
                    return true;
                }
            };
            if !self.cancelled {
                let limit = self.limit.unwrap_or_default().as_secs_f64();
                self.blame_end(&id, &format!("because that took longer than the limit of {limit} s"), stacks);
            }
            self.stop("it did not end when it was told to");
            return true;
        }
        if let Some((what, since)) = self.between {
            return self.on_long_phase(what, now.saturating_duration_since(since)).await;
        }
        let late = |running: &mut Running| running.since.checked_add(running.item.timeout).is_some_and(|at| at <= now);
        let Some(Running { item, since, process }) = self.running.take_if(late) else { return true };
        let stacks = self.stacks(process).await;
        let (stdout, stderr) = match &self.process {
            Process::Up(worker) => captured(worker).await,
            _ => <(Captured, Captured)>::default(),
        };
        let result = TestResult {
            details: stacks,
            stdout,
            stderr,
            ..TestResult::new(TestOutcome::TimedOut, since.elapsed()).with_message(timeout_message(item.timeout))
        };
        self.stop("a test ran out of time");
        self.say(Message::Finished { key: item.key, result: Box::new(result) });
        self.give_all_back();
        true
    }

    /// Takes note of what has arrived; stops at the worker's last word, which comes out.
    async fn hear_what_arrived(&mut self) -> Option<Option<Box<serde_json::value::RawValue>>> {
        while let Process::Up(worker) = &mut self.process {
            match worker.link.next_arrived() {
                Ok(Some(Incoming::Bye { output })) => return Some(output),
                Ok(Some(message)) => self.on_message(message).await,
                _ => break,
            }
        }
        None
    }

    /// The worker has tests and runs none for long. Returns whether the sandbox goes on.
    async fn on_long_phase(&mut self, what: Between, lasted: Duration) -> bool {
        let id = match &self.process {
            Process::Up(worker) => Arc::clone(&worker.id),
            _ => Arc::from("a worker"),
        };
        let (does, doing) = match what {
            Between::Start => ("starts", "to start"),
            Between::Approach => ("has not begun its next test, whose file it may have to collect", "to begin a test"),
            Between::TearDown | Between::End => {
                ("tears down what its tests have set up", "to tear down what its tests have set up")
            }
        };
        let Some(limit) = self.limit_between(what).filter(|limit| lasted >= *limit) else {
            if lasted >= WORTH_SAYING && !self.announced {
                self.announced = true;
                let inside = match what {
                    Between::TearDown | Between::End => self.inside().await,
                    Between::Start | Between::Approach => None,
                };
                let inside = inside.map_or_else(String::new, |inside| format!(" ({inside})"));
                let text = format!("Waiting for {id} for {} s: it {does}{inside}.", lasted.as_secs());
                tracing::info!("{text}");
                let data = serde_json::Value::from(text).to_string();
                (self.say)(Said::Native(None, self.native("waiting", data.into())));
            }
            return true;
        };
        let limit = limit.as_secs_f64();
        self.between = None;
        if what == Between::TearDown && self.last.is_some() {
            let stacks = self.stacks(None).await;
            self.blame_end(&id, &format!("because that took longer than the limit of {limit} s"), stacks);
            self.stop("it tore down what its tests had set up for too long");
            self.give_all_back();
            return true;
        }
        let stacks = self.stacks(None).await.map_or_else(String::new, |stacks| format!("\n{stacks}"));
        self.stop("it did nothing for too long");
        self.lose(format!("{id} took longer than {limit} s {doing}{stacks}"));
        false
    }

    /// Where the worker, or the process of its test, is in its code, as far as it can still say so.
    async fn stacks(&self, process: Option<Pid>) -> Option<String> {
        let Process::Up(worker) = &self.process else { return None };
        let path = worker.dump.as_deref()?;
        let stacks = worker.site.stacks(process.unwrap_or(worker.pid), path, DUMP_LINES).await;
        stacks.map(|stacks| stacks::without_pytest(&stacks))
    }

    /// What of the user's the worker is in while it tears down.
    async fn inside(&self) -> Option<String> {
        let Process::Up(worker) = &self.process else { return None };
        let text = worker.site.stacks(worker.pid, worker.dump.as_deref()?, DUMP_LINES).await?;
        stacks::torn_down(&text, &self.host.options().cwd)
    }

    /// Kills the worker. Its place is free for another at once.
    pub(super) fn stop(&mut self, why: &str) {
        self.give_up_at = None;
        if let Process::Up(worker) = std::mem::replace(&mut self.process, Process::Down) {
            worker.kill();
            let error = format!("the worker {} was killed: {why}", worker.id);
            (self.say)(Said::Native(None, worker_down(&worker.id, None, Some(&error))));
        }
    }
}

/// What a test had written that did not end: pytest keeps it in files of the worker's.
async fn captured(worker: &WorkerProcess) -> (Captured, Captured) {
    let Some(dump) = worker.dump.as_deref() else { return <(Captured, Captured)>::default() };
    let read = async |kind: &str| {
        let (text, _) = worker.site.tail(&dump.with_extension(kind), 0, CAPTURED_LINES).await;
        Captured::from(text)
    };
    (read("out").await, read("err").await)
}

/// What a worker left that died before it ran any test.
pub(crate) async fn words_of(worker: &WorkerProcess) -> Option<String> {
    last_words(worker, (0, 0)).await.0
}

/// What a dead process left: stacks that its fault handler wrote, and what it wrote outside of tests; of both what is
/// new since that much had been written, and how much has been now.
async fn last_words(worker: &WorkerProcess, heard: (u64, u64)) -> (Option<String>, (u64, u64)) {
    let read = async |path: &Option<PathBuf>, from, lines| match path.as_deref() {
        Some(path) => worker.site.tail(path, from, lines).await,
        None => (String::new(), 0),
    };
    let (stacks, dumped) = read(&worker.dump, heard.0, DUMP_LINES).await;
    let (words, written) = read(&worker.output, heard.1, DUMP_LINES).await;
    let all: Vec<String> = [stacks::without_pytest(&stacks), stacks::last_words(&words)]
        .into_iter()
        .filter(|text| !text.is_empty())
        .collect();
    ((!all.is_empty()).then(|| all.join("\n\n")), (dumped, written))
}
