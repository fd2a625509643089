//! The report for people: progress while a run goes on, failures as they happen, the summary at its end.
//!
//! Two streams, so that `cargo offload > log` gives a log worth keeping and still shows what goes on:
//!
//! - **standard output** gets what is a result: failures, lines per test (`-v`), what tests write without capture, the
//!   summary;
//! - **standard error** gets what is not: the build's output, warnings and problems, progress.
//!
//! On a terminal, progress is a bar at the bottom; everything else is written above it. Without a terminal, or with
//! `CI=true`, it is a plain line whenever nothing has been said for a while. Without colours no control character but
//! line feed and tab is ever written, whatever tests write.
//!
//! The words are [`summary`](super::summary)'s. This is the only module of the library that writes to the terminal.

mod margin;
mod progress;

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike as _};

use self::margin::Margin;
use self::progress::RunProgress;
use super::summary::{
    LostSandbox, Palette, SUMMARY_FAILURES, Summary, failure_block, lost_sandbox, retry_line, status_line, stop_reason,
    test_line,
};
use super::{ReportError, Reporter};
use crate::event::{FinishedTest, RunEvent, RunSummary, StopReason, TestInfo, TimedEvent};
use crate::framework::TestOutcome;

/// Without a bar, progress is told after this much silence.
const SILENCE: Duration = Duration::from_secs(10);

/// Above a bar, text is written at most this often: each time, the bar is taken away and drawn again.
const FLUSH_INTERVAL: Duration = Duration::from_millis(50);

/// The bar is redrawn at most so often.
const REDRAWS_PER_SECOND: u8 = 20;

/// At most as many lines of each stream of a failed test are shown as it happens.
const LIVE_LINES: usize = 100;

/// At most as much of a line that a test has not ended yet is held back.
const PARTIAL_LIMIT: usize = 16 * 1024;

/// `--progress`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Progress {
    /// A bar on a terminal, unless `CI` is set; plain lines otherwise.
    #[default]
    Auto,
    /// A bar wherever there is a terminal.
    Bar,
    /// Plain lines.
    Plain,
    /// None.
    None,
}

/// `--color`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ColorChoice {
    /// On a terminal, as `NO_COLOR`, `CLICOLOR_FORCE` and `CI` have it.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What the user asked for.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ConsoleOptions {
    /// -1: failures and the line of totals only; 0: as usual; 1 and more: a line per test.
    pub verbosity: i8,
    /// How progress is told.
    pub progress: Progress,
    /// Whether to use colours.
    pub color: ColorChoice,
    /// A test that ran longer is named in the summary (`offload.slow_test_secs`).
    pub slow_test: Duration,
    /// Reports that are written, to be named at the end.
    pub reports: Vec<PathBuf>,
}

/// Where the console report writes to, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Surroundings {
    /// Standard output is a terminal that knows colours and can move its cursor (`TERM` is not `dumb`).
    pub stdout_terminal: bool,
    /// Standard error is such a terminal.
    pub stderr_terminal: bool,
    /// `NO_COLOR` is set and not empty.
    pub no_color: bool,
    /// `CLICOLOR_FORCE` is set and not `0`.
    pub force_color: bool,
    /// `CI` is set and neither empty nor `false`.
    pub ci: bool,
}

impl Surroundings {
    /// Those of this process.
    pub fn detect() -> Self {
        let set = |name, but: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != but);
        let able = set("TERM", "dumb");
        Self {
            stdout_terminal: able && io::stdout().is_terminal(),
            stderr_terminal: able && io::stderr().is_terminal(),
            no_color: set("NO_COLOR", ""),
            force_color: set("CLICOLOR_FORCE", "0"),
            ci: set("CI", "false"),
        }
    }

    /// Whether text for standard output is coloured.
    pub fn color_stdout(&self, choice: ColorChoice) -> bool {
        self.color(choice, self.stdout_terminal)
    }

    /// Whether text for standard error is coloured: what Cargo is to be told, too.
    pub fn color_stderr(&self, choice: ColorChoice) -> bool {
        self.color(choice, self.stderr_terminal)
    }

    fn color(&self, choice: ColorChoice, terminal: bool) -> bool {
        match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => !self.no_color && (self.force_color || (terminal && !self.ci)),
        }
    }

    fn progress(&self, progress: Progress) -> Progress {
        match progress {
            Progress::Auto if self.stderr_terminal && !self.ci => Progress::Bar,
            Progress::Bar if self.stderr_terminal => Progress::Bar,
            Progress::Auto | Progress::Bar | Progress::Plain => Progress::Plain,
            Progress::None => Progress::None,
        }
    }
}

/// Prints a run for people.
pub struct ConsoleReporter {
    options: ConsoleOptions,
    stdout: Box<dyn Write + Send>,
    stderr: Box<dyn Write + Send>,
    out_palette: Palette,
    err_palette: Palette,
    plain_progress: bool,
    bar: Option<ProgressBar>,
    /// The columns of the terminal that the bar is on, which may change.
    width: fn() -> usize,
    progress: RunProgress,
    /// Text to be written, in order.
    pending: Vec<(Stream, String)>,
    flushed_at: Duration,
    spoke_at: Duration,
    /// The last event's time and when it came, to know what time it is between events.
    clock: Option<(Duration, Instant)>,
    /// Lines that tests have not ended yet.
    partial: HashMap<String, String>,
    remarkable: Vec<FinishedTest>,
    failures_with_output: usize,
    lost: Vec<LostSandbox>,
    problems: Vec<String>,
    totals: Option<RunSummary>,
    failure: Option<io::Error>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stream {
    Out,
    Err,
}

impl ConsoleReporter {
    /// A reporter for this process's standard output and standard error.
    pub fn stdio(options: ConsoleOptions) -> Self {
        Self::new(options, Surroundings::detect(), Box::new(io::stdout()), Box::new(io::stderr()))
    }

    /// A reporter that writes to `stdout` and `stderr`, which are what `surroundings` says. A bar, if there is to be
    /// one, is drawn on this process's standard error.
    pub fn new(
        options: ConsoleOptions,
        surroundings: Surroundings,
        stdout: Box<dyn Write + Send>,
        stderr: Box<dyn Write + Send>,
    ) -> Self {
        let width = || usize::from(Margin::new(Term::stderr()).width());
        let terminal = || Margin::new(Term::buffered_stderr());
        let target = || ProgressDrawTarget::term_like_with_hz(Box::new(terminal()), REDRAWS_PER_SECOND);
        Self::with_draw_target(options, surroundings, stdout, stderr, target, width)
    }

    fn with_draw_target(
        options: ConsoleOptions,
        surroundings: Surroundings,
        stdout: Box<dyn Write + Send>,
        stderr: Box<dyn Write + Send>,
        target: impl FnOnce() -> ProgressDrawTarget,
        width: fn() -> usize,
    ) -> Self {
        let progress = surroundings.progress(options.progress);
        let bar = (progress == Progress::Bar).then(|| {
            #[expect(clippy::expect_used, reason = "the template is a constant")]
            let style = ProgressStyle::with_template("{msg}").expect("the template is well-formed");
            ProgressBar::with_draw_target(None, target()).with_style(style)
        });
        let plain_progress = progress != Progress::None && bar.is_none() && options.verbosity >= 0;
        Self {
            out_palette: Palette::new(surroundings.color_stdout(options.color)),
            err_palette: Palette::new(surroundings.color_stderr(options.color)),
            plain_progress,
            options,
            stdout,
            stderr,
            bar,
            width,
            progress: RunProgress::default(),
            pending: Vec::new(),
            flushed_at: Duration::ZERO,
            spoke_at: Duration::ZERO,
            clock: None,
            partial: HashMap::new(),
            remarkable: Vec::new(),
            failures_with_output: 0,
            lost: Vec::new(),
            problems: Vec::new(),
            totals: None,
            failure: None,
        }
    }

    fn out(&mut self, text: &str) {
        self.say(Stream::Out, text);
    }

    fn err(&mut self, text: &str) {
        self.say(Stream::Err, text);
    }

    fn say(&mut self, stream: Stream, text: &str) {
        match self.pending.last_mut() {
            Some((last, pending)) if *last == stream => {
                pending.push_str(text);
                pending.push('\n');
            }
            _ => self.pending.push((stream, format!("{text}\n"))),
        }
    }

    /// Writes what is pending, above the bar if there is one.
    fn flush(&mut self, now: Duration) {
        self.flushed_at = now;
        if self.pending.is_empty() {
            return;
        }
        self.spoke_at = now;
        let pending = std::mem::take(&mut self.pending);
        let (stdout, stderr) = (&mut self.stdout, &mut self.stderr);
        let mut write = || -> io::Result<()> {
            for (stream, text) in &pending {
                let writer = if *stream == Stream::Out { &mut *stdout } else { &mut *stderr };
                writer.write_all(text.as_bytes())?;
                writer.flush()?;
            }
            Ok(())
        };
        let written = match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        };
        if let Err(error) = written
            && self.failure.is_none()
        {
            self.failure = Some(error);
        }
    }

    fn redraw(&mut self, now: Duration) {
        if let Some(bar) = &self.bar {
            bar.set_message(self.progress.lines(now, (self.width)(), self.err_palette));
        }
    }

    fn tick_at(&mut self, now: Duration) {
        if self.bar.is_some() {
            self.flush(now);
            self.redraw(now);
        } else if self.plain_progress && self.totals.is_none() && now.saturating_sub(self.spoke_at) >= SILENCE {
            let line = self.progress.line(now);
            self.err(&line);
            self.flush(now);
        }
    }

    fn tell(&mut self, event: &RunEvent) {
        let verbosity = self.options.verbosity;
        let (out, err) = (self.out_palette, self.err_palette);
        match event {
            RunEvent::BuildOutput { line } => {
                let line = err.output(line);
                self.err(&line);
            }
            RunEvent::DiscoveryFinished { to_run, skipped } if self.plain_progress && to_run + skipped > 0 => {
                let line = self.progress.announcement(*skipped);
                self.err(&line);
            }
            RunEvent::TestOutput { test, text } => self.test_output(test, text),
            RunEvent::TestSlow { test, elapsed } if verbosity >= 0 => {
                let line = status_line(&out.warn("SLOW"), Some(*elapsed), &out.test(&test.id));
                self.out(&format!("{line}: still running"));
            }
            RunEvent::AttemptFailed { test, attempt, attempts_left } => {
                self.end_output(test);
                if verbosity >= 1 {
                    self.out(&retry_line(test, attempt, *attempts_left, &out));
                }
            }
            RunEvent::TestFinished { test, .. } => {
                self.end_output(test);
                if let Some(finished) = FinishedTest::from_event(event) {
                    self.test_finished(finished);
                }
            }
            RunEvent::LateFailure { test, attempt } => {
                let (test, attempts) = (test.clone(), vec![attempt.clone()]);
                let outcome = attempt.result.outcome;
                self.test_finished(FinishedTest { test, outcome, flaky: false, attempts, reason: None });
            }
            RunEvent::SandboxLost { sandbox, reason, requeued } => {
                let lost = LostSandbox { sandbox: sandbox.clone(), reason: reason.clone(), requeued: requeued.len() };
                if verbosity >= 0 {
                    self.err(&format!("{} {}", err.warn("warning:"), lost_sandbox(&lost)));
                }
                self.lost.push(lost);
            }
            RunEvent::Warning { text } if verbosity >= 0 => {
                self.err(&format!("{} {}", err.warn("warning:"), err.output(text.trim_end())));
            }
            RunEvent::Problem { text } => {
                self.err(&format!("{} {}", err.bad("error:"), err.output(text.trim_end())));
                self.problems.push(text.clone());
            }
            // Of sandboxes that do not work, a problem has told.
            RunEvent::Stopping { reason } if verbosity >= 0 && *reason != StopReason::Infrastructure => {
                self.err(&format!("{} {}; ending the run", err.warn("stopping:"), stop_reason(*reason)));
            }
            RunEvent::RunFinished { summary } => self.totals = Some(summary.clone()),
            _ => {}
        }
    }

    fn test_finished(&mut self, mut test: FinishedTest) {
        let palette = self.out_palette;
        let failed = test.outcome.is_failure() && test.outcome != TestOutcome::NotRun;
        if failed {
            self.out(&failure_block(&test, &palette, LIVE_LINES, "; the summary has more"));
        } else if self.options.verbosity >= 1 {
            self.out(&test_line(&test, &palette));
        }
        if self.options.verbosity < 0 || !test.is_remarkable(self.options.slow_test) {
            return;
        }
        // The summary shows the output of the last attempt of so many failures; nothing else is kept.
        let keep_last = failed && self.failures_with_output < SUMMARY_FAILURES;
        self.failures_with_output += usize::from(keep_last);
        let strip = test.attempts.len() - usize::from(keep_last && !test.attempts.is_empty());
        for attempt in &mut test.attempts[..strip] {
            attempt.result.details = None;
            attempt.result.stdout = Default::default();
            attempt.result.stderr = Default::default();
        }
        self.remarkable.push(test);
    }

    /// Prints whole lines only, so that tests that write at the same time do not cut each other's.
    fn test_output(&mut self, test: &TestInfo, text: &str) {
        let partial = match self.partial.get_mut(&test.id) {
            Some(partial) => partial,
            None => self.partial.entry(test.id.clone()).or_default(),
        };
        partial.push_str(text);
        let whole = match partial.rfind('\n') {
            Some(end) => Some(partial.drain(..=end).collect::<String>()),
            None if partial.len() > PARTIAL_LIMIT => Some(std::mem::take(partial)),
            None => None,
        };
        if let Some(whole) = whole {
            self.out(&self.out_palette.output(whole.strip_suffix('\n').unwrap_or(&whole)));
        }
    }

    fn end_output(&mut self, test: &TestInfo) {
        if let Some(rest) = self.partial.remove(&test.id)
            && !rest.is_empty()
        {
            self.out(&self.out_palette.output(&rest));
        }
    }
}

impl Reporter for ConsoleReporter {
    fn on_event(&mut self, event: &TimedEvent) {
        self.clock = Some((event.at, Instant::now()));
        self.progress.on_event(event);
        self.tell(&event.event);
        if self.bar.is_none() {
            self.flush(event.at);
            self.tick_at(event.at);
        } else if event.at.saturating_sub(self.flushed_at) >= FLUSH_INTERVAL {
            self.tick_at(event.at);
        }
    }

    fn tick(&mut self) {
        if let Some((at, since)) = self.clock {
            self.tick_at(at + since.elapsed());
        }
    }

    fn finish(&mut self) -> Result<(), ReportError> {
        if let Some(totals) = self.totals.take() {
            let summary = Summary {
                totals: &totals,
                tests: &self.remarkable,
                lost: &self.lost,
                // With nothing between them and the summary they need not be said again.
                problems: if totals.total == 0 { &[] } else { &self.problems },
                slow_test: self.options.slow_test,
                reports: &self.options.reports,
                quiet: self.options.verbosity < 0,
            };
            let color = self.out_palette == Palette::new(true);
            let rendered = summary.render(color);
            self.out(rendered.trim_end_matches('\n'));
        }
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.flush(self.flushed_at);
        match self.failure.take() {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(ReportError {
                what: "results",
                path: PathBuf::from("standard output"),
                hint: "check where it is redirected to",
                source: error,
            }),
            _ => Ok(()),
        }
    }
}

/// Prints a summary to standard output, with colours where they fit.
pub fn print(summary: &Summary<'_>) {
    let color = Surroundings::detect().color_stdout(ColorChoice::Auto);
    // Nobody reads what cannot be written: there is no one to tell.
    let _ = io::stdout().write_all(summary.render(color).as_bytes());
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
