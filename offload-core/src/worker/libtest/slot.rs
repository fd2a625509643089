//! The thread of a worker: takes tests off the queue, one process after the other.

use std::collections::HashSet;
use std::io;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::mailbox::{Mailbox, Together, Verdict};
use super::process::{Limits, Process, is_scarcity};
use super::{LibtestOptions, batch, doctest, single};
use crate::framework::{Isolation, TestOutcome, TestResult};
use crate::worker::{Harness, Message, RunItem, StartPermit, Unit, UnitKey};

/// The longest list of names on one command line, in bytes: a quarter of what Linux allows for arguments and environment
/// together at the usual stack limit.
const LONGEST_NAMES: usize = 512 << 10;

/// How much is read at once: what a pipe holds.
const BUFFER: usize = 64 << 10;

/// Messages about quick tests are held back at most for this long: each delivery wakes the orchestrator's thread, which
/// then takes the processor from a test.
const HOLD: Duration = Duration::from_millis(5);

/// How long a test waits for others to give back what it takes to start it.
const SCARCITY_PATIENCE: Duration = Duration::from_secs(60);

/// Between two attempts to start it.
const SCARCITY_PAUSE: Duration = Duration::from_millis(20);

/// With as few tests left in the queue, the orchestrator has to hear of it before the queue runs dry.
const FEW: usize = 2;

/// What the thread of a worker has.
pub(super) struct Slot {
    pub(super) options: LibtestOptions,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) on_message: Arc<dyn Fn(Message) + Send + Sync>,
    /// Where the output of processes passes through.
    pub(super) buffer: Vec<u8>,
    /// Messages that wait for others, and since when.
    pub(super) held: Vec<Message>,
    held_since: Instant,
    /// How long a test waits for what it takes to start it.
    scarcity_patience: Duration,
    /// It was said that there is too little of that.
    said_scarce: bool,
    /// Units whose binaries cannot run several tests in a process in a way that can be followed.
    alone: HashSet<UnitKey>,
}

impl Slot {
    pub(super) fn new(
        options: LibtestOptions,
        mailbox: Arc<Mailbox>,
        on_message: Arc<dyn Fn(Message) + Send + Sync>,
    ) -> Self {
        Self {
            options,
            mailbox,
            on_message,
            buffer: vec![0; BUFFER],
            held: Vec::new(),
            held_since: Instant::now(),
            scarcity_patience: SCARCITY_PATIENCE,
            said_scarce: false,
            alone: HashSet::new(),
        }
    }

    /// Runs tests until there will be none any more.
    pub(super) fn run(mut self) {
        while self.mailbox.wait_for_work() {
            // Tests stay in the queue, where they can be taken back, until they may start.
            let permit = match self.options.gate.clone() {
                Some(gate) if !gate.is_open() => {
                    self.release();
                    gate.pass(self.options.slot, &|| self.mailbox.is_idle())
                }
                _ => StartPermit::default(),
            };
            let together = |isolation, unit: &Unit, key: UnitKey| match unit.harness {
                Harness::Doctest => Together::All,
                Harness::Libtest if shares_process(isolation, unit) && !self.alone.contains(&key) => {
                    Together::UpTo(LONGEST_NAMES)
                }
                Harness::Libtest | Harness::Opaque => Together::One,
            };
            let Some(work) = self.mailbox.take(together) else { continue };
            match (work.unit.clone(), &work.items[..]) {
                (Err(unit), items) => self.refuse(unit, items),
                (Ok(unit), _) if unit.harness == Harness::Doctest => {
                    self.release();
                    doctest::run(&mut self, work.items, &unit, work.no_capture);
                }
                (Ok(unit), [item]) if work.together == Together::One => {
                    single::run(&mut self, item, &unit, work.no_capture);
                }
                (Ok(unit), _) => {
                    self.release();
                    let key = work.items[0].unit;
                    if !batch::run(&mut self, work, &unit) {
                        tracing::debug!(program = %unit.program.display(), "runs its tests in a process each");
                        self.alone.insert(key);
                    }
                }
            }
            drop(permit);
            if let Some(message) = self.mailbox.yield_queue() {
                self.release();
                self.emit(message);
            }
        }
        self.release();
        self.emit(self.mailbox.farewell());
    }

    fn refuse(&self, unit: UnitKey, items: &[RunItem]) {
        for item in items {
            self.emit(Message::Started { key: item.key });
            let result = TestResult::new(TestOutcome::Error, Duration::ZERO)
                .with_message(format!("the worker was not told what unit {unit} is; this is a bug of offload"));
            self.emit(self.mailbox.finish(item.key, result));
        }
    }

    pub(super) fn emit(&self, message: Message) {
        (self.on_message)(message);
    }

    /// Emits a message soon: with those that follow, if they do at once.
    pub(super) fn hold(&mut self, message: Message) {
        if self.held.is_empty() {
            self.held_since = Instant::now();
        }
        self.held.push(message);
    }

    /// Gives a test its result.
    pub(super) fn conclude(&mut self, item: &RunItem, result: TestResult) {
        let message = self.mailbox.finish(item.key, result);
        self.hold(message);
        self.release_when_due();
    }

    /// Emits what is held, if it has been held for long enough.
    pub(super) fn release_when_due(&mut self) {
        if self.mailbox.queued() <= FEW || self.held_since.elapsed() >= HOLD {
            self.release();
        }
    }

    /// Emits what is held.
    pub(super) fn release(&mut self) {
        for message in self.held.drain(..) {
            (self.on_message)(message);
        }
    }

    /// Tells whether a build goes on. A test that calls Cargo waits for it, and no limit counts that.
    pub(super) fn is_paused(&self) -> impl Fn() -> bool + use<> {
        let gate = self.options.gate.clone();
        move || gate.as_ref().is_some_and(|gate| !gate.is_open())
    }

    pub(super) fn limits(&self) -> Limits {
        Limits { kill_grace: self.options.kill_grace, leak_timeout: self.options.leak_timeout }
    }

    /// The command of a unit, up to where our own arguments begin.
    pub(super) fn command(&self, unit: &Unit) -> Command {
        let mut command = Command::new(&unit.program);
        command.args(&unit.args).current_dir(&unit.cwd);
        if !self.options.env.is_empty() {
            command.envs(&self.options.env);
        }
        if !unit.env.is_empty() {
            command.envs(&unit.env);
        }
        command
    }

    /// Whether what was taken off the queue is still to be run.
    pub(super) fn is_wanted(&self) -> bool {
        self.mailbox.verdict() == Verdict::Continue
    }

    /// Starts a process; where there is too little of what it takes, waits for other tests to give it back.
    pub(super) fn start(&mut self, command: &mut Command) -> io::Result<Process> {
        self.patiently(|_| Process::start(command))
    }

    /// The same for whatever else an attempt takes; one that fails gives all of it back.
    pub(super) fn patiently<T>(&mut self, mut attempt: impl FnMut(&Self) -> io::Result<T>) -> io::Result<T> {
        let give_up = Instant::now() + self.scarcity_patience;
        loop {
            match attempt(self) {
                Err(error) if is_scarcity(&error) && Instant::now() < give_up && self.is_wanted() => {
                    let text = format!(
                        "Tests could not be started ({error}), so fewer of them run at once; raise the limit (ulimit -n, \
                         ulimit -u) or run fewer at once (--parallel)"
                    );
                    self.release();
                    if !std::mem::replace(&mut self.said_scarce, true) {
                        self.emit(Message::Warning { text });
                    }
                    std::thread::sleep(SCARCITY_PAUSE);
                }
                Err(error) => {
                    if is_scarcity(&error) {
                        // Nobody gives anything back, so that the next tests need not wait as long.
                        self.scarcity_patience = SCARCITY_PAUSE;
                    }
                    return Err(error);
                }
                Ok(started) => {
                    self.scarcity_patience = SCARCITY_PATIENCE;
                    return Ok(started);
                }
            }
        }
    }
}

/// Whether tests of a unit may run in one process.
fn shares_process(isolation: Isolation, unit: &Unit) -> bool {
    match isolation {
        Isolation::Process => false,
        // Other harnesses take one name, or none: each process would run all tests again.
        Isolation::Binary => !unit.custom_harness,
        // What a runner makes of many tests is not known.
        Isolation::Auto => {
            unit.args.is_empty() && !unit.custom_harness && !has_flag(&unit.extra_args, "--test-threads")
        }
    }
}

/// Whether a flag is among arguments, alone or with `=value`.
pub(super) fn has_flag(args: &[String], flag: &str) -> bool {
    args.iter().any(|arg| arg.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('=')))
}

/// Why a program could not be started, and what to do about it.
pub(super) fn start_error(unit: &Unit, error: &io::Error) -> String {
    let (program, cwd) = (unit.program.display(), unit.cwd.display());
    if !unit.cwd.is_dir() {
        return format!(
            "cannot start {program} in {cwd}: that directory does not exist; was it moved after the build?"
        );
    }
    let hint = match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOENT) if unit.program.exists() => {
            "it is there, and the loader that it names is not: it was built for another C library than there is here; \
             take a system, such as an image, like the one that built it, or build with --target"
        }
        Some(rustix::io::Errno::NOENT) => "it does not exist; build it again",
        Some(rustix::io::Errno::NOEXEC) => {
            "this machine cannot execute it; was it built for another target, and is a runner configured for that?"
        }
        Some(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => {
            "check that the file is executable and that its file system is not mounted noexec"
        }
        Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
            "too many files are open; raise the limit (ulimit -n) or run fewer tests at once (--parallel)"
        }
        Some(rustix::io::Errno::AGAIN | rustix::io::Errno::NOMEM) => {
            "there are too many processes or too little memory; raise the limit (ulimit -u) or run fewer tests at once \
             (--parallel)"
        }
        Some(rustix::io::Errno::TOOBIG) => "its arguments and environment are too long",
        Some(rustix::io::Errno::TXTBSY) => "something still writes to it; is a build going on?",
        _ => "try to run it by hand",
    };
    format!("cannot start {program}: {error}; {hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(program: &str, cwd: &str) -> Unit {
        Unit {
            harness: Harness::Libtest,
            custom_harness: false,
            program: program.into(),
            args: Vec::new(),
            extra_args: Vec::new(),
            cwd: cwd.into(),
            env: Default::default(),
        }
    }

    #[test]
    fn errors_of_starting_say_what_to_do() {
        let cases = [
            (2, "/x/t: No such file or directory (os error 2); it does not exist; build it again"),
            (8, "is a runner configured for that?"),
            (13, "check that the file is executable"),
            (24, "ulimit -n"),
            (11, "ulimit -u"),
        ];
        for (code, expected) in cases {
            let text = start_error(&unit("/x/t", "/"), &io::Error::from_raw_os_error(code));
            assert!(text.contains(expected), "{text}");
        }
        let text = start_error(&unit("/bin/sh", "/"), &io::Error::from_raw_os_error(2));
        assert!(text.contains("it was built for another C library than there is here"), "{text}");
        let text = start_error(&unit("/x/t", "/no/such/dir"), &io::Error::from_raw_os_error(2));
        assert_eq!(
            text,
            "cannot start /x/t in /no/such/dir: that directory does not exist; was it moved after the build?"
        );
    }

    #[test]
    fn flags_are_found_with_and_without_values() {
        let args = ["--test-threads=3".to_owned(), "--exactly".to_owned()];
        assert!(has_flag(&args, "--test-threads"));
        assert!(!has_flag(&args, "--exact"));
    }
}
