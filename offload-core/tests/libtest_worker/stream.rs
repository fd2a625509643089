//! The worker at the other end of a byte stream.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use offload_core::framework::{Isolation, TestOutcome};
use offload_core::worker::framing::{Decoder, encode};
use offload_core::worker::libtest::{LibtestOptions, ServeOptions, serve};
use offload_core::worker::{Message, PROTOCOL_VERSION, Request, Unit};

use crate::support::{Fixtures, Session, is_dead, items, pid_in, unit_with_pid_file, wait_until};

/// A worker at the other end of a socket pair.
struct Remote {
    stream: UnixStream,
    decoder: Decoder,
    reader: BufReader<UnixStream>,
    thread: std::thread::JoinHandle<std::io::Result<()>>,
}

impl Remote {
    fn start(silence_ms: u64) -> Self {
        let (here, there) = UnixStream::pair().unwrap();
        here.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let input = there.try_clone().unwrap();
        let libtest = LibtestOptions { kill_grace: Duration::from_millis(50), ..LibtestOptions::default() };
        let thread = std::thread::spawn(move || serve(input, there, ServeOptions { libtest }));
        let reader = BufReader::new(here.try_clone().unwrap());
        let mut remote = Self { stream: here, decoder: Decoder::after_ready("n"), reader, thread };
        remote.send(&Request::Init {
            version: PROTOCOL_VERSION,
            nonce: "n".into(),
            isolation: Isolation::Process,
            no_capture: false,
            yield_on_failure: false,
            silence_ms,
        });
        assert_eq!(remote.next(), Some(Message::Ready { nonce: "n".into() }));
        remote
    }

    fn send(&mut self, request: &Request) {
        let mut line = Vec::new();
        encode(request, &mut line);
        self.stream.write_all(&line).unwrap();
    }

    fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.decoder.next_message().unwrap() {
                return Some(message);
            }
            let bytes = self.reader.fill_buf().unwrap();
            if bytes.is_empty() {
                return None;
            }
            self.decoder.push(bytes);
            let length = bytes.len();
            self.reader.consume(length);
        }
    }

    fn run(&mut self, unit: Unit, names: &[&str]) {
        self.send(&Request::Define { key: 1, unit: Arc::new(unit) });
        self.send(&Request::Run { tests: items(names) });
    }
}

#[test]
fn a_session_over_a_stream_runs_to_its_end() {
    let mut remote = Remote::start(0);
    remote.run(Fixtures::get().unit(), &["passes", "aborts"]);
    remote.send(&Request::Shutdown);
    let mut messages = Vec::new();
    while !matches!(messages.last(), Some(Message::Bye { .. })) {
        messages.push(remote.next().expect("the worker says bye before it hangs up"));
    }
    let outcomes: Vec<_> = messages
        .iter()
        .filter_map(|message| if let Message::Finished { result, .. } = message { Some(result.outcome) } else { None })
        .collect();
    assert_eq!(outcomes, [TestOutcome::Passed, TestOutcome::Crashed]);
    assert_eq!(messages.last(), Some(&Message::Bye { reason: None }));
    remote.thread.join().unwrap().unwrap();
}

#[test]
fn the_end_of_the_input_ends_the_running_test() {
    let dir = tempfile::tempdir().unwrap();
    let (unit, pid_file) = unit_with_pid_file(dir.path());
    let mut remote = Remote::start(0);
    remote.run(unit, &["hangs_with_a_child"]);
    let grandchild = pid_in(&pid_file);
    remote.stream.shutdown(std::net::Shutdown::Write).unwrap();
    remote.thread.join().unwrap().unwrap();
    wait_until("the grandchild dies", || is_dead(&grandchild));
}

#[test]
fn silence_ends_the_running_test() {
    let dir = tempfile::tempdir().unwrap();
    let (unit, pid_file) = unit_with_pid_file(dir.path());
    let mut remote = Remote::start(3000);
    remote.run(unit, &["hangs_with_a_child"]);
    let grandchild = pid_in(&pid_file);
    assert_eq!(remote.next(), Some(Message::Started { key: 0 }));
    assert_eq!(remote.next(), Some(Message::Alive), "the worker is not silent itself");
    let error = remote.thread.join().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "nothing was heard from the orchestrator for 3 s");
    wait_until("the grandchild dies", || is_dead(&grandchild));
}

#[test]
fn a_request_that_is_none_ends_the_session_with_a_reason() {
    let mut remote = Remote::start(0);
    remote.stream.write_all(b"{\"type\":\"run\",\"tests\":7}\n").unwrap();
    let Some(Message::Bye { reason: Some(reason) }) = remote.next() else { panic!("no bye") };
    assert!(reason.contains(r#"{"type":"run","tests":7}"#), "{reason}");
    assert!(remote.thread.join().unwrap().is_err());
}

#[test]
fn another_version_is_refused() {
    let session = Session::new(LibtestOptions::default(), Fixtures::get().unit());
    session.worker.send(Request::Init {
        version: PROTOCOL_VERSION + 1,
        nonce: "n".into(),
        isolation: Isolation::Process,
        no_capture: false,
        yield_on_failure: false,
        silence_ms: 0,
    });
    let Message::Bye { reason: Some(reason) } = session.next() else { panic!("no bye") };
    assert!(reason.contains("install the same version of offload on both sides"), "{reason}");
}
