//! What is drawn on a terminal. What is printed is tested from outside.

use std::sync::{Arc, Mutex};

use indicatif::TermLike;

use super::*;
use crate::event::{Attempt, StopReason};
use crate::framework::TestResult;

const COLUMNS: usize = 100;

/// A terminal of [`COLUMNS`] columns at first, as far as indicatif needs one: it writes lines filled up with spaces, so that
/// the next one wraps.
#[derive(Debug, Clone, Default)]
struct Screen(Arc<Mutex<Cells>>);

#[derive(Debug)]
struct Cells {
    columns: usize,
    lines: Vec<Vec<char>>,
    row: usize,
    column: usize,
}

impl Default for Cells {
    fn default() -> Self {
        Self { columns: COLUMNS, lines: Vec::new(), row: 0, column: 0 }
    }
}

impl Screen {
    fn text(&self) -> String {
        let cells = self.0.lock().unwrap();
        let lines: Vec<_> = cells.lines.iter().map(|line| line.iter().collect::<String>()).collect();
        lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n").trim_end().to_owned()
    }

    /// Makes the terminal narrower: lines that do not fit any more go on in further rows.
    fn narrow(&self, columns: usize) {
        let mut cells = self.0.lock().unwrap();
        let (row, column) = (cells.row, cells.column);
        let mut lines = Vec::new();
        for (index, line) in std::mem::take(&mut cells.lines).into_iter().enumerate() {
            if index == row {
                (cells.row, cells.column) = (lines.len() + column.saturating_sub(1) / columns, column);
            }
            let more = line.len().saturating_sub(1) / columns;
            lines.extend((0..=more).map(|part| line.iter().skip(part * columns).take(columns).copied().collect()));
        }
        cells.column -= column.saturating_sub(1) / columns * columns;
        (cells.columns, cells.lines) = (columns, lines);
    }

    /// Erases from the cursor to the end of the line, and all lines below.
    fn erase(&self, below: bool) {
        let mut cells = self.0.lock().unwrap();
        let (row, column) = (cells.row, cells.column);
        if let Some(line) = cells.lines.get_mut(row) {
            line.truncate(column);
        }
        if below {
            cells.lines.truncate(row + 1);
        }
    }

    fn put(&self, c: char) {
        let mut cells = self.0.lock().unwrap();
        match c {
            '\r' => cells.column = 0,
            '\n' => (cells.row, cells.column) = (cells.row + 1, 0),
            c => {
                if cells.column == cells.columns {
                    (cells.row, cells.column) = (cells.row + 1, 0);
                }
                let (row, column) = (cells.row, cells.column);
                if cells.lines.len() <= row {
                    cells.lines.resize(row + 1, Vec::new());
                }
                let line = &mut cells.lines[row];
                if line.len() <= column {
                    line.resize(column + 1, ' ');
                }
                line[column] = c;
                cells.column += 1;
            }
        }
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        u16::try_from(self.0.lock().unwrap().columns).unwrap()
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.0.lock().unwrap().row -= n;
        Ok(())
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.0.lock().unwrap().row += n;
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        panic!("indicatif does not use it")
    }

    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        panic!("indicatif does not use it")
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(text)?;
        self.write_str("\n")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        let mut parts = text.split("\x1b[");
        parts.next().unwrap_or_default().chars().for_each(|c| self.put(c));
        for part in parts {
            let (what, rest) = part.split_at(1);
            match what {
                "K" => self.erase(false),
                "J" => self.erase(true),
                other => panic!("unknown escape sequence: {other}"),
            }
            rest.chars().for_each(|c| self.put(c));
        }
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        let mut cells = self.0.lock().unwrap();
        cells.column = 0;
        let row = cells.row;
        if let Some(line) = cells.lines.get_mut(row) {
            line.clear();
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What is printed goes to the same screen.
impl Write for Screen {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.write_str(std::str::from_utf8(buffer).unwrap())?;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn info(id: &str) -> Arc<TestInfo> {
    Arc::new(TestInfo {
        id: id.to_owned(),
        name: id.to_owned(),
        suite: "pkg".to_owned(),
        group: Arc::from(""),
        line: None,
        number: 0,
    })
}

fn at(millis: u64, event: RunEvent) -> TimedEvent {
    TimedEvent { at: Duration::from_millis(millis), event }
}

fn started(test: &Arc<TestInfo>, sandbox: &str) -> RunEvent {
    RunEvent::TestStarted { test: test.clone(), attempt: 1, sandbox: Arc::from(sandbox) }
}

fn finished(test: &Arc<TestInfo>, outcome: TestOutcome) -> RunEvent {
    let result = TestResult::new(outcome, Duration::from_millis(5));
    let attempt = Attempt { number: 1, sandbox: Arc::from("local-1"), started_at: Duration::ZERO, result };
    RunEvent::TestFinished { test: test.clone(), outcome, flaky: false, attempts: vec![attempt], reason: None }
}

#[test]
fn a_terminal_shows_what_happened_above_and_how_far_it_is_below() {
    let screen = Screen::default();
    let terminal = Surroundings { stderr_terminal: true, stdout_terminal: true, ..Surroundings::default() };
    let options =
        ConsoleOptions { color: ColorChoice::Never, slow_test: Duration::from_secs(60), ..Default::default() };
    let target = ProgressDrawTarget::term_like(Box::new(screen.clone()));
    let (out, err) = (Box::new(screen.clone()), Box::new(screen.clone()));
    let mut reporter = ConsoleReporter::with_draw_target(options, terminal, out, err, || target, || COLUMNS);
    let (slow, fails) = (info("pkg tests::slow"), info("pkg tests::fails"));

    reporter.on_event(&at(0, RunEvent::BuildStarted));
    reporter.on_event(&at(100, RunEvent::BuildOutput { line: "Compiling pkg".to_owned() }));
    insta::assert_snapshot!(screen.text(), @r#"
    Compiling pkg
    [    0s] building
    "#);
    for (millis, event) in [
        (3_000, RunEvent::TestsFound { to_run: 4, skipped: 0 }),
        (3_000, RunEvent::SandboxReady { sandbox: "local-1".into(), duration: Duration::ZERO }),
        (3_000, RunEvent::SandboxReady { sandbox: "local-2".into(), duration: Duration::ZERO }),
        (3_000, started(&slow, "local-1")),
        (3_000, started(&fails, "local-2")),
        (8_000, finished(&fails, TestOutcome::Failed)),
    ] {
        reporter.on_event(&at(millis, event));
    }
    insta::assert_snapshot!(screen.text(), @r#"
    Compiling pkg
         FAIL [   0.005s] pkg tests::fails

    [    8s] ━━━━━━────────────────── 1/4+ tests, 1 failed; 2 sandboxes; building
         5s  pkg tests::slow
    "#);
    reporter.on_event(&at(9_000, RunEvent::Stopping { reason: StopReason::Interrupted }));
    reporter.on_event(&at(9_001, finished(&slow, TestOutcome::Passed)));
    let summary = RunSummary { total: 4, passed: 1, failed: 1, not_run: 2, ..Default::default() };
    reporter.on_event(&at(9_002, RunEvent::RunFinished { summary }));
    reporter.finish().unwrap();
    insta::assert_snapshot!(screen.text(), @r#"
    Compiling pkg
         FAIL [   0.005s] pkg tests::fails

    stopping: interrupted; ending the run

    failures:

         FAIL [   0.005s] pkg tests::fails

    Summary [   0.000s] 4 tests: 1 passed, 1 failed, 2 not run
    "#);
}

#[test]
fn what_is_typed_while_the_bar_is_there_leaves_nothing_of_it_behind() {
    let screen = Screen::default();
    let terminal = Surroundings { stderr_terminal: true, stdout_terminal: true, ..Surroundings::default() };
    let options = ConsoleOptions { color: ColorChoice::Never, ..Default::default() };
    let target = ProgressDrawTarget::term_like(Box::new(Margin::new(screen.clone())));
    let (out, err) = (Box::new(screen.clone()), Box::new(screen.clone()));
    let width = || usize::from(Margin::new(Screen::default()).width());
    let mut reporter = ConsoleReporter::with_draw_target(options, terminal, out, err, || target, width);
    reporter.on_event(&at(0, RunEvent::TestsFound { to_run: 1, skipped: 0 }));
    reporter.on_event(&at(100, started(&info("pkg tests::slow"), "local-1")));
    reporter.on_event(&at(5_000, RunEvent::Warning { text: "it takes long".to_owned() }));
    insta::assert_snapshot!(screen.text(), @r#"
    warning: it takes long
    [    5s] ──────────────────────── 0/1+ tests
         4s  pkg tests::slow
    "#);
    // Lines are drawn over each other, again and again.
    reporter.on_event(&at(6_000, started(&info("pkg tests::other"), "local-2")));
    reporter.on_event(&at(9_000, RunEvent::DiscoveryFinished { to_run: 2, skipped: 0 }));
    insta::assert_snapshot!(screen.text(), @r#"
    warning: it takes long
    [    9s] ──────────────────────── 0/2 tests
         8s  pkg tests::slow
         3s  pkg tests::other
    "#);
    // As a terminal shows Ctrl-C.
    screen.write_str("^C").unwrap();
    reporter.finish().unwrap();
    assert_eq!(screen.text(), "warning: it takes long");
}

#[test]
fn a_bar_that_is_broken_by_a_narrower_terminal_is_removed_whole() {
    static WIDTH: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let narrow = |screen: &Screen, columns| {
        screen.narrow(columns);
        WIDTH.store(columns - 4, std::sync::atomic::Ordering::Relaxed);
    };
    for reflows in [true, false] {
        let screen = Screen::default();
        let terminal = Surroundings { stderr_terminal: true, stdout_terminal: true, ..Surroundings::default() };
        let options = ConsoleOptions { color: ColorChoice::Never, ..Default::default() };
        let target = ProgressDrawTarget::term_like(Box::new(Margin::with_reflow(screen.clone(), reflows)));
        let (out, err) = (Box::new(screen.clone()), Box::new(screen.clone()));
        let width = || WIDTH.load(std::sync::atomic::Ordering::Relaxed);
        narrow(&screen, COLUMNS);
        let mut reporter = ConsoleReporter::with_draw_target(options, terminal, out, err, || target, width);
        let name = "pkg tests::with::a::name::that::takes::more::than::half::of::the::terminal";
        reporter.on_event(&at(0, RunEvent::DiscoveryFinished { to_run: 9, skipped: 0 }));
        reporter.on_event(&at(0, started(&info(name), "local-1")));
        reporter.on_event(&at(0, started(&info("pkg short"), "local-2")));
        reporter.on_event(&at(5_000, RunEvent::Warning { text: "it takes long".to_owned() }));
        // Nothing that is shorter is broken, although a line on the screen was 96 columns wide for indicatif.
        narrow(&screen, 85);
        assert_eq!(screen.text().lines().count(), 4, "{}", screen.text());
        narrow(&screen, 40);
        assert_eq!(screen.text().lines().count(), 7, "{}", screen.text());
        reporter.on_event(&at(9_000, RunEvent::Warning { text: "it still does".to_owned() }));
        reporter.finish().unwrap();
        let whole = screen.text() == "warning: it takes long\nwarning: it still does";
        assert_eq!(whole, reflows, "{}", screen.text());
    }
}

#[test]
fn a_narrow_terminal_shows_what_matters_most() {
    let mut progress = RunProgress::default();
    progress.on_event(&at(0, RunEvent::DiscoveryFinished { to_run: 1_000, skipped: 5 }));
    for sandbox in ["a", "b"] {
        progress.on_event(&at(0, RunEvent::SandboxReady { sandbox: sandbox.into(), duration: Duration::ZERO }));
    }
    progress.on_event(&at(0, finished(&info("t"), TestOutcome::Failed)));
    let first = |width| progress.lines(Duration::from_secs(7), width, Palette::new(false));
    assert_eq!(first(120), "[    7s] ──────────────────────── 1/1000 tests, 1 failed; 2 sandboxes");
    assert_eq!(first(60), "[    7s] ─────────────── 1/1000 tests, 1 failed; 2 sandboxes");
    assert_eq!(first(50), "[    7s] 1/1000 tests, 1 failed; 2 sandboxes");
    assert_eq!(first(42), "[    7s] 1/1000, 1 failed; 2 sandboxes");
    assert_eq!(first(26), "[    7s] 1/1000, 1 failed…");
}

#[test]
fn the_bar_fits_its_terminal() {
    let mut progress = RunProgress::default();
    let names =
        ["pkg::integration tests::very::deep::down::in::modules::a_name_of_some_length", "pkg 日本語のテスト名"];
    progress.on_event(&at(0, RunEvent::TestsFound { to_run: 100_000, skipped: 0 }));
    for name in names.into_iter().chain(["a", "b", "c", "d"]) {
        progress.on_event(&at(0, started(&info(name), name)));
    }
    for width in [0, 1, 10, 40, 71, 72, 200] {
        let lines = progress.lines(Duration::from_secs(7), width, Palette::new(true));
        for line in lines.lines() {
            // The time before a name is the least that a line has.
            assert!(console::measure_text_width(line) <= width.max(10), "{width}: {line:?}");
        }
        assert_eq!(lines.lines().count(), 5);
    }
}

#[test]
fn where_a_bar_is_drawn() {
    let terminal = Surroundings { stderr_terminal: true, ..Surroundings::default() };
    let log = Surroundings::default();
    let ci = Surroundings { ci: true, ..terminal };
    assert_eq!(terminal.progress(Progress::Auto), Progress::Bar);
    assert_eq!(ci.progress(Progress::Auto), Progress::Plain);
    assert_eq!(ci.progress(Progress::Bar), Progress::Bar);
    assert_eq!(log.progress(Progress::Bar), Progress::Plain);
    assert_eq!(terminal.progress(Progress::None), Progress::None);
}

#[test]
fn tests_that_one_process_runs_together_are_named_together() {
    let mut progress = RunProgress::default();
    progress.on_event(&at(0, RunEvent::DiscoveryFinished { to_run: 4, skipped: 0 }));
    let together = ["pkg::doc a", "pkg::doc b", "pkg::doc c"].map(info);
    for test in &together {
        progress.on_event(&at(0, started(test, "s1")));
    }
    progress.on_event(&at(1_000, started(&info("t"), "s2")));
    let line = progress.line(Duration::from_secs(5));
    assert_eq!(line, "[    5s] 0/4 tests; running longest: pkg: 3 tests together (5s), t (4s)");
    progress.on_event(&at(7_000, finished(&together[1], TestOutcome::Passed)));
    let line = progress.line(Duration::from_secs(9));
    assert_eq!(line, "[    9s] 1/4 tests, 1 passed; running longest: t (8s), pkg: 2 tests together (2s)");
    progress.on_event(&at(10_000, finished(&together[0], TestOutcome::Passed)));
    let line = progress.line(Duration::from_secs(11));
    assert_eq!(line, "[   11s] 2/4 tests, 2 passed; running longest: t (10s), pkg::doc c (1s)");
}

#[test]
fn a_test_that_runs_twice_or_lost_its_sandbox_is_counted_right() {
    let mut progress = RunProgress::default();
    let test = info("t");
    progress.on_event(&at(0, RunEvent::DiscoveryFinished { to_run: 1, skipped: 0 }));
    progress.on_event(&at(0, started(&test, "s1")));
    progress.on_event(&at(4_000, started(&test, "s2")));
    let line = progress.line(Duration::from_secs(5));
    assert_eq!(line, "[    5s] 0/1 tests; running longest: t (5s)");
    let lost = RunEvent::SandboxLost { sandbox: "s1".into(), reason: String::new(), requeued: vec!["t".to_owned()] };
    progress.on_event(&at(5_000, lost));
    assert_eq!(progress.line(Duration::from_secs(6)), "[    6s] 0/1 tests");
    progress.on_event(&at(6_000, finished(&test, TestOutcome::Passed)));
    assert_eq!(progress.line(Duration::from_secs(6)), "[    6s] 1/1 tests, 1 passed");
}
