use std::io::{self, Write};

use offload_core::event::TimedEvent;
use offload_core::report::Reporter;
use offload_core::report::json::JsonReporter;

use crate::events::everything;

struct Failing(io::ErrorKind, usize);

impl Write for Failing {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.1 == 0 {
            return Err(self.0.into());
        }
        self.1 -= 1;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn every_line_is_a_versioned_event() {
    let mut text = Vec::new();
    everything(&mut JsonReporter::new(&mut text));
    let text = String::from_utf8(text).unwrap();
    for line in text.lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(value["format"], 1, "{line}");
        assert!(value["event"].is_string() && value["at_secs"].is_number(), "{line}");
        assert_eq!(line.matches("\"format\"").count(), 1, "{line}");
        serde_json::from_str::<TimedEvent>(line).unwrap();
    }
    let lines: Vec<_> = text.lines().collect();
    insta::assert_snapshot!([lines[0], lines[2], lines[4], lines[5]].join("\n"), @r#"
    {"at_secs":0.0,"event":"run_started","format":1,"run_id":"run","started_at_secs":1795402908.5,"framework":"cargo","provider":"local","max_sandboxes":2,"isolation":"auto"}
    {"format":1,"at_secs":0.0,"event":"discovery_finished","to_run":9,"skipped":1}
    {"format":1,"at_secs":0.0,"event":"test_started","test":{"id":"pkg::it tests::passes","name":"tests::passes","suite":"pkg::it"},"attempt":1,"sandbox":"local-1"}
    {"format":1,"at_secs":0.012,"event":"test_finished","test":{"id":"pkg::it tests::passes","name":"tests::passes","suite":"pkg::it"},"outcome":"passed","attempts":[{"number":1,"sandbox":"local-1","started_at_secs":0.0,"outcome":"passed","duration_secs":0.012}]}
    "#);
    assert!(lines.last().unwrap().contains("\"event\":\"run_finished\""));
}

#[test]
fn a_reader_that_goes_away_is_no_error_and_a_full_disk_is_one() {
    let mut gone = JsonReporter::new(Failing(io::ErrorKind::BrokenPipe, 2));
    everything(&mut gone);
    gone.finish().unwrap();
    let mut full = JsonReporter::new(Failing(io::ErrorKind::StorageFull, 2));
    everything(&mut full);
    let error = full.finish().unwrap_err();
    insta::assert_snapshot!(error, @r#"cannot write events as JSON to standard output: no storage space; check where it is redirected to"#);
}
