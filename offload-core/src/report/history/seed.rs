//! Lines of test history as offload 0.10 writes them.
//!
//! ```json
//! {"k":"<config>:<test>","v":{"n":12,"f":1,"last_run":"…","ok":[["<run>",<time>,<secs>],…],"fail":[…]}}
//! ```
//!
//! `n` counts all runs of the test, `f` those that failed; `ok` and `fail` are samples of both. `config` is the
//! configuration file of the run: what all of them say of a test counts.

use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Entry, Reservoir, micros};

#[derive(Deserialize)]
struct Line {
    k: String,
    v: Value,
}

#[derive(Deserialize)]
struct Value {
    #[serde(default)]
    n: u64,
    #[serde(default)]
    f: u64,
    #[serde(default)]
    ok: Vec<Sample>,
    #[serde(default)]
    fail: Vec<Sample>,
}

/// The run, when it was, and how many seconds the test took.
type Sample = (IgnoredAny, IgnoredAny, f64);

/// The test that a line is of, and what it says; `None` if it is something else.
pub(super) fn read(line: &[u8]) -> Option<(String, Entry)> {
    let Line { k, v } = serde_json::from_slice(line).ok()?;
    // A name of a file may have any character, but this is what follows it.
    let (config, test) = k.split_once(".toml:").or_else(|| k.split_once(':'))?;
    if config.is_empty() || test.is_empty() {
        return None;
    }
    let reservoir = |samples: Vec<Sample>, count: u64| {
        let samples: Vec<u64> =
            samples.iter().filter_map(|sample| Duration::try_from_secs_f64(sample.2).ok()).map(micros).collect();
        Reservoir { seen: count.max(samples.len() as u64), samples }
    };
    let entry = Entry { passed: reservoir(v.ok, v.n.saturating_sub(v.f)), failed: reservoir(v.fail, v.f), alone: 0 };
    Some((test.to_owned(), entry))
}
