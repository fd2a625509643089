//! Reports: consumers of [run events](crate::event) that write for people, CI systems and programs.
//!
//! A report sees nothing but events. Only the console report writes to the terminal.

mod atomic;
pub mod console;
pub mod history;
pub mod json;
pub mod junit;
pub mod logs;
pub mod summary;
pub mod text;
pub mod trace;

use std::path::PathBuf;

use crate::event::{RunSummary, TimedEvent};

pub use atomic::ensure_writable;
pub use junit::MasterJunitReport;

/// Prints the summary of a run to standard output: failed tests with their output, what is remarkable, one line of
/// totals.
pub fn print_summary(result: &crate::orchestrator::RunResult) {
    console::print(&result.as_summary());
}

/// A report that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {what} to {}: {source}; {hint}", path.display())]
pub struct ReportError {
    /// What was to be written, for people: `the JUnit report`.
    pub what: &'static str,
    /// Where.
    pub path: PathBuf,
    /// What to do about it.
    pub hint: &'static str,
    /// What happened.
    pub source: std::io::Error,
}

/// Consumes the events of one run.
pub trait Reporter: Send {
    /// Takes note of an event. Events come in order; [`RunEvent::RunFinished`](crate::event::RunEvent) is the last.
    fn on_event(&mut self, event: &TimedEvent);

    /// Refreshes what shows the passing of time. Called a few times a second.
    fn tick(&mut self) {}

    /// Writes a file that other reports have nothing to do with (history, trace). Called once, before the totals are final.
    ///
    /// # Errors
    ///
    /// [`ReportError`] when it cannot be written. It becomes a problem of the run, which the other reports include.
    fn save(&mut self) -> Result<(), ReportError> {
        Ok(())
    }

    /// Writes a file of results. Called once, after [`save`](Self::save) of every reporter and before the last event,
    /// with the totals so far.
    ///
    /// # Errors
    ///
    /// [`ReportError`] when it cannot be written. It becomes a problem of the run.
    fn save_results(&mut self, totals: &RunSummary) -> Result<(), ReportError> {
        let _ = totals;
        Ok(())
    }

    /// Writes what is written at the end. Called once, after the last event.
    ///
    /// # Errors
    ///
    /// [`ReportError`] when the report cannot be written; nothing of an earlier report is then destroyed.
    fn finish(&mut self) -> Result<(), ReportError> {
        Ok(())
    }
}
