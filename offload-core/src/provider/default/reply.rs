//! The two forms in which `exec_command` may answer: the command's own output, or one JSON object that holds it.
//!
//! The first character that is no white space decides whether there may be an object; only then is standard output held
//! back until the end. Whatever is not exactly an object of that form is passed on as it came.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use serde::Deserialize;

use crate::provider::{ExecEvent, OutputStream, ProviderResult};

/// More than this is no reply: it is passed on.
const LONGEST_REPLY: usize = 64 << 20;

#[derive(Deserialize)]
struct Reply {
    exit_code: i32,
    stdout: Option<String>,
    stderr: Option<String>,
}

/// The same output, with a JSON reply replaced by what it says.
pub(super) fn unwrap(inner: OutputStream) -> OutputStream {
    Box::pin(Unwrap { inner, state: State::Undecided, held: Vec::new(), ready: VecDeque::new() })
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// Only white space so far.
    Undecided,
    /// It began with a brace.
    Holding,
    /// It is the command's own output.
    Passing,
}

struct Unwrap {
    inner: OutputStream,
    state: State,
    held: Vec<u8>,
    ready: VecDeque<ExecEvent>,
}

impl Unwrap {
    fn take(&mut self, event: ExecEvent) {
        match event {
            ExecEvent::Stdout(bytes) if self.state != State::Passing => {
                self.held.extend_from_slice(&bytes);
                if self.state == State::Undecided {
                    self.state = match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
                        None => State::Undecided,
                        Some(b'{') => State::Holding,
                        Some(_) => State::Passing,
                    };
                }
                if self.state == State::Passing || self.held.len() > LONGEST_REPLY {
                    self.pass();
                }
            }
            ExecEvent::Exit(code) => {
                let reply = match (self.state, code) {
                    // At a time-out there is nobody who could have written a whole reply.
                    (State::Holding, Some(_)) => serde_json::from_slice::<Reply>(&self.held).ok(),
                    _ => None,
                };
                match reply {
                    Some(reply) if reply.stdout.is_some() || reply.stderr.is_some() => {
                        self.ready.extend(reply.stdout.map(|text| ExecEvent::Stdout(text.into_bytes())));
                        self.ready.extend(reply.stderr.map(|text| ExecEvent::Stderr(text.into_bytes())));
                        self.ready.push_back(ExecEvent::Exit(Some(reply.exit_code)));
                    }
                    _ => {
                        self.pass();
                        self.ready.push_back(ExecEvent::Exit(code));
                    }
                }
            }
            other => self.ready.push_back(other),
        }
    }

    fn pass(&mut self) {
        self.state = State::Passing;
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            self.ready.push_back(ExecEvent::Stdout(held));
        }
    }
}

impl Stream for Unwrap {
    type Item = ProviderResult<ExecEvent>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            match std::task::ready!(self.inner.as_mut().poll_next(cx)) {
                Some(Ok(event)) => self.take(event),
                other => return Poll::Ready(other),
            }
        }
    }
}
