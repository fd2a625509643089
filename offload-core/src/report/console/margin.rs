//! The part of the terminal that the progress bar may use: all but a margin at the right.
//!
//! A bar must not leave pieces of itself behind, whatever happens to the terminal between two redraws: something is typed,
//! or the window becomes narrower.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::TermLike;

/// Columns at the right that stay empty. A terminal shows what is typed where the cursor is: behind the bar. There it
/// must not begin a new line, or the next redraw misses one: every Ctrl-C (`^C`) would leave a piece of the bar behind.
const ROOM_FOR_ECHO: u16 = 4;

/// Erases what is right of the cursor.
const ERASE_LINE: &str = "\x1b[K";
/// Moves to the beginning of the line and erases everything from there on.
const ERASE_BELOW: &str = "\r\x1b[J";

/// A terminal, a little narrower than it is.
///
/// Where it ends, a line ends: indicatif fills lines up with spaces and leaves it to the terminal to wrap. The spaces are
/// not written: lines that are as short as they can be seldom need a second row when the terminal becomes narrower.
#[derive(Debug)]
pub(super) struct Margin<T> {
    terminal: T,
    /// Lines that do not fit any more are broken anew when the terminal becomes narrower.
    reflows: bool,
    drawn: Mutex<Drawn>,
}

/// What is on the terminal of what was written since it was last erased.
#[derive(Debug, Default)]
struct Drawn {
    /// The finished lines.
    lines: Vec<Line>,
    /// The line that the cursor is in.
    line: Line,
    /// How far the last of its rows goes in indicatif's eyes: with the spaces that were not written.
    column: usize,
    /// It was erased, and nothing was written since.
    erased: bool,
}

/// A line, which may take several rows.
#[derive(Debug, Default, Clone, Copy)]
struct Line {
    columns: usize,
    /// How many rows indicatif takes it to have.
    believed: usize,
    /// How many it had when it was written.
    written: usize,
}

fn rows(columns: usize, width: usize) -> usize {
    columns.div_ceil(width.max(1)).max(1)
}

impl Drawn {
    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        self.lines.push(line);
        self.column = 0;
    }

    /// How many rows the lines take that indicatif takes to have so many.
    fn rows(&self, believed: usize, rows_of: impl Fn(&Line) -> usize) -> usize {
        let (mut left, mut rows) = (believed, 0);
        for line in std::iter::once(&self.line).chain(self.lines.iter().rev()) {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(line.believed.max(1));
            rows += rows_of(line).max(1);
        }
        rows
    }
}

impl<T> Margin<T> {
    pub(super) fn new(terminal: T) -> Self {
        let is_set = |name: &str| std::env::var_os(name).is_some();
        // Most terminals do it. Those that are known not to: xterm, GNU screen, the console of Linux.
        let keeps = is_set("XTERM_VERSION") || is_set("STY") || std::env::var("TERM").is_ok_and(|term| term == "linux");
        Self::with_reflow(terminal, is_set("TMUX") || !keeps)
    }

    pub(super) fn with_reflow(terminal: T, reflows: bool) -> Self {
        Self { terminal, reflows, drawn: Mutex::default() }
    }

    fn drawn(&self) -> MutexGuard<'_, Drawn> {
        self.drawn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: TermLike> TermLike for Margin<T> {
    fn width(&self) -> u16 {
        self.terminal.width().saturating_sub(ROOM_FOR_ECHO).max(1)
    }

    fn height(&self) -> u16 {
        self.terminal.height()
    }

    /// Indicatif's first step whenever it draws or clears: back to the first of the bar's lines. As it does not know where
    /// that is if the width has changed, everything from there on is erased here, and its steps until it writes are left
    /// out.
    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        let mut state = self.drawn();
        if state.erased || (state.lines.is_empty() && state.line.columns == 0) {
            return Ok(());
        }
        let drawn = std::mem::take(&mut *state);
        state.erased = true;
        let width = usize::from(self.terminal.width());
        let rows = drawn.rows(n + 1, |line| if self.reflows { rows(line.columns, width) } else { line.written });
        self.terminal.move_cursor_up(rows - 1)?;
        self.terminal.write_str(ERASE_BELOW)
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        if self.drawn().erased { Ok(()) } else { self.terminal.move_cursor_down(n) }
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.terminal.move_cursor_right(n)
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.terminal.move_cursor_left(n)
    }

    fn write_line(&self, line: &str) -> io::Result<()> {
        self.write_str(line)?;
        self.drawn().end_line();
        self.terminal.write_line("")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        let mut drawn = self.drawn();
        if text == "\r" {
            drawn.column = 0;
            return self.terminal.write_str(text);
        }
        let (columns, width) = (console::measure_text_width(text), usize::from(self.width()));
        if columns > 0 && drawn.column >= width {
            drawn.end_line();
            self.terminal.write_line("")?;
        }
        drawn.erased &= columns == 0;
        drawn.column = (drawn.column + columns).checked_sub(1).map_or(0, |last| last % width + 1);
        if columns > 0 && text.bytes().all(|byte| byte == b' ') {
            return self.terminal.write_str(ERASE_LINE);
        }
        drawn.line.columns += columns;
        drawn.line.believed = rows(drawn.line.columns, width);
        drawn.line.written = rows(drawn.line.columns, self.terminal.width().into());
        self.terminal.write_str(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        if self.drawn().erased { Ok(()) } else { self.terminal.clear_line() }
    }

    fn flush(&self) -> io::Result<()> {
        self.terminal.flush()
    }
}
