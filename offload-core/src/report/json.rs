//! One JSON object per event and line, for programs (`--message-format json`).
//!
//! Each line is a [`TimedEvent`] in its serialised form with the version of that form in the field `format`, so that a
//! line means the same when it is taken out of its stream: `{"format":1,"at_secs":0.1,"event":"test_finished",…}`.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use super::{ReportError, Reporter};
use crate::event::{FORMAT_VERSION, RunEvent, TimedEvent};

/// Writes events as JSON lines.
///
/// A reader that goes away (`… | head`) ends the report quietly; any other failure to write ends it too and is
/// reported by [`Reporter::finish`]. Neither ends the run.
pub struct JsonReporter<W> {
    writer: W,
    buffer: Vec<u8>,
    failure: Option<io::Error>,
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<u32>,
    #[serde(flatten)]
    event: &'a TimedEvent,
}

impl<W: Write + Send> JsonReporter<W> {
    /// A reporter that writes to `writer`, one write per line.
    pub fn new(writer: W) -> Self {
        Self { writer, buffer: Vec::new(), failure: None }
    }

    fn attempt(&mut self, write: impl FnOnce(&mut W) -> io::Result<()>) {
        if self.failure.is_none()
            && let Err(error) = write(&mut self.writer)
        {
            self.failure = Some(error);
        }
    }
}

impl<W: Write + Send> Reporter for JsonReporter<W> {
    fn on_event(&mut self, event: &TimedEvent) {
        if self.failure.is_some() || matches!(event.event, RunEvent::Native(_)) {
            return;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        // The first event has the field by itself.
        let format = (!matches!(event.event, RunEvent::RunStarted { .. })).then_some(FORMAT_VERSION);
        let serialized = serde_json::to_writer(&mut buffer, &Line { format, event });
        buffer.push(b'\n');
        self.attempt(|writer| {
            serialized?;
            writer.write_all(&buffer)
        });
        self.buffer = buffer;
    }

    fn tick(&mut self) {
        self.attempt(W::flush);
    }

    fn finish(&mut self) -> Result<(), ReportError> {
        self.attempt(W::flush);
        match self.failure.take() {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(ReportError {
                what: "events as JSON",
                path: PathBuf::from("standard output"),
                hint: "check where it is redirected to",
                source: error,
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
