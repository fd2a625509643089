//! A trace of the run for Perfetto (or chrome://tracing): a track per sandbox, a slice per attempt.
//!
//! The format is the JSON array form of the Trace Event Format: complete events (`"ph":"X"`) with times in microseconds,
//! and metadata events that name the tracks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use super::{ReportError, Reporter, atomic};
use crate::event::{Attempt, RunEvent, TestInfo, TimedEvent};

/// Writes a trace file at the end of the run.
pub struct TraceReporter {
    path: PathBuf,
    tracks: BTreeMap<Arc<str>, usize>,
    events: Vec<serde_json::Value>,
}

impl TraceReporter {
    /// A trace that goes to `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path, tracks: BTreeMap::new(), events: Vec::new() }
    }

    fn attempt(&mut self, test: &TestInfo, attempt: &Attempt) {
        let next = self.tracks.len() + 1;
        let track = *self.tracks.entry(Arc::clone(&attempt.sandbox)).or_insert(next);
        self.events.push(json!({
            "name": test.name,
            "cat": test.suite,
            "ph": "X",
            "pid": 1,
            "tid": track,
            "ts": attempt.started_at.as_micros(),
            "dur": attempt.result.duration.as_micros(),
            "args": { "id": test.id, "outcome": attempt.result.outcome, "attempt": attempt.number },
        }));
    }
}

impl Reporter for TraceReporter {
    fn on_event(&mut self, event: &TimedEvent) {
        match &event.event {
            RunEvent::BuildFinished { duration, .. } => self.events.push(json!({
                "name": "build", "ph": "X", "pid": 1, "tid": 0,
                "ts": event.at.saturating_sub(*duration).as_micros(), "dur": duration.as_micros(),
            })),
            RunEvent::TestFinished { test, attempts, .. } => {
                for attempt in attempts {
                    self.attempt(test, attempt);
                }
            }
            _ => {}
        }
    }

    fn save(&mut self) -> Result<(), ReportError> {
        let names = self.tracks.iter().map(|(sandbox, track)| {
            json!({ "name": "thread_name", "ph": "M", "pid": 1, "tid": track, "args": { "name": &**sandbox } })
        });
        let mut events: Vec<_> = names.collect();
        events.append(&mut self.events);
        let text = json!({ "traceEvents": events }).to_string();
        atomic::replace(&self.path, "the trace", |file| file.write_all(text.as_bytes()))
    }
}
