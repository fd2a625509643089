//! The part of the terminal that the progress bar may use: all but a margin at the right.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use indicatif::TermLike;

/// Columns at the right that stay empty. A terminal shows what is typed where the cursor is: behind the bar. There it
/// must not begin a new line, or the next redraw misses one: every Ctrl-C (`^C`) would leave a piece of the bar behind.
const ROOM_FOR_ECHO: u16 = 4;

/// A terminal, a little narrower than it is.
///
/// Where it ends, a line ends: indicatif fills lines up with spaces and leaves it to the terminal to wrap.
#[derive(Debug)]
pub(super) struct Margin<T> {
    terminal: T,
    /// How many columns were written of the line that the cursor is in.
    column: AtomicUsize,
}

impl<T> Margin<T> {
    pub(super) fn new(terminal: T) -> Self {
        Self { terminal, column: AtomicUsize::new(0) }
    }
}

impl<T: TermLike> TermLike for Margin<T> {
    fn width(&self) -> u16 {
        self.terminal.width().saturating_sub(ROOM_FOR_ECHO).max(1)
    }

    fn height(&self) -> u16 {
        self.terminal.height()
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.terminal.move_cursor_up(n)
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.terminal.move_cursor_down(n)
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.terminal.move_cursor_right(n)
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.terminal.move_cursor_left(n)
    }

    fn write_line(&self, line: &str) -> io::Result<()> {
        self.write_str(line)?;
        self.column.store(0, Ordering::Relaxed);
        self.terminal.write_line("")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        if text == "\r" {
            self.column.store(0, Ordering::Relaxed);
            return self.terminal.write_str(text);
        }
        let columns = console::measure_text_width(text);
        if columns > 0 && self.column.load(Ordering::Relaxed) >= usize::from(self.width()) {
            self.column.store(0, Ordering::Relaxed);
            self.terminal.write_line("")?;
        }
        self.column.fetch_add(columns, Ordering::Relaxed);
        self.terminal.write_str(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.column.store(0, Ordering::Relaxed);
        self.terminal.clear_line()
    }

    fn flush(&self) -> io::Result<()> {
        self.terminal.flush()
    }
}
