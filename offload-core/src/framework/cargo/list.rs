//! Asks test binaries for the tests that they hold.
//!
//! A binary is listed in the environment in which its tests run, through the same runner. One spawn is enough where the
//! harness can list as JSON, which tells ignored tests too; harnesses that cannot are asked twice. A target without the
//! standard harness may not know the question at all and just run: it is asked only where it looks as if it did, it gets a
//! time limit, and unless it answers properly it is one opaque test.

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use crate::bounded;
use crate::worker::Unit;

/// How long a standard harness may take to list its tests.
const LIST_LIMIT: Duration = Duration::from_secs(60);

/// How long a target without the standard harness may take to answer `--list`.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// A test, as its binary lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Listed {
    pub(super) name: String,
    /// The harness leaves the test out unless told otherwise, for this reason (may be empty).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ignored: Option<String>,
}

impl Listed {
    /// A test that is not ignored.
    pub(super) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ignored: None }
    }
}

/// Lists the tests of a binary with the standard harness. The error says what happened, for people.
pub(super) async fn list(unit: &Unit) -> Result<Vec<Listed>, String> {
    let json = run(unit, &["--list", "--format", "json", "-Z", "unstable-options"], true, LIST_LIMIT).await?;
    if let Ended::Exited { status, stdout, .. } = &json
        && status.success()
        && let Some(tests) = parse_json(stdout)
    {
        return Ok(tests);
    }
    let all = terse(unit, &["--list", "--format", "terse"], LIST_LIMIT).await?;
    if all.is_empty() {
        return Ok(all);
    }
    let ignored = terse(unit, &["--list", "--format", "terse", "--ignored"], LIST_LIMIT).await?;
    Ok(mark_ignored(all, &ignored))
}

/// Lists the tests of a binary without the standard harness; `None` if it is one opaque test.
///
/// A harness that lists the same with `--ignored` does not know that option, or ignores all its tests. Where `only_ignored`
/// tests are to run, Cargo would run all of them either way; elsewhere each says when it runs whether it is ignored.
pub(super) async fn probe(unit: &Unit, only_ignored: bool) -> Result<Option<Vec<Listed>>, String> {
    let args = ["--list", "--format", "terse"];
    let Ended::Exited { status, stdout, .. } = run(unit, &args, false, PROBE_LIMIT).await? else { return Ok(None) };
    let Some(all) = status.success().then(|| parse_terse(&stdout)).flatten().filter(|tests| !tests.is_empty()) else {
        return Ok(None);
    };
    match terse(unit, &["--list", "--format", "terse", "--ignored"], PROBE_LIMIT).await {
        Ok(ignored) if only_ignored || ignored.len() < all.len() => Ok(Some(mark_ignored(all, &ignored))),
        Err(what) if only_ignored => Err(what),
        _ => Ok(Some(all)),
    }
}

/// Whether a target without the standard harness looks as if it could list its tests: it has the name of the option in it,
/// or a library that knows it. Whoever is asked and cannot answer runs, and everything in it a second time.
pub(super) fn may_list(executable: &Path) -> bool {
    // The latter as symbols are mangled, with the length of a crate's name before it.
    const SIGNS: &str = "--list|libtest[_-]mimic|9criterion|5divan|datatest";
    let Ok(signs) = regex::bytes::Regex::new(SIGNS) else { return true };
    bounded::read(executable, bounded::REPORT).map_or(true, |program| signs.is_match(&program))
}

/// Marks those of `all` that are listed in `ignored` too.
pub(super) fn mark_ignored(mut all: Vec<Listed>, ignored: &[Listed]) -> Vec<Listed> {
    let ignored: std::collections::HashSet<_> = ignored.iter().map(|test| test.name.as_str()).collect();
    for test in &mut all {
        if ignored.contains(test.name.as_str()) {
            test.ignored = Some(String::new());
        }
    }
    all
}

async fn terse(unit: &Unit, args: &[&str], limit: Duration) -> Result<Vec<Listed>, String> {
    match run(unit, args, false, limit).await? {
        Ended::TimedOut => Err(format!("did not end within {} s", limit.as_secs())),
        Ended::TooMuch => Err(format!("wrote more than {} MiB", bounded::RESULTS >> 20)),
        Ended::Exited { status, stdout, stderr } => match parse_terse(&stdout) {
            Some(tests) if status.success() => Ok(tests),
            _ => Err(format!("ended with {status} and wrote:\n{}{}", excerpt(&stdout), excerpt(&stderr))),
        },
    }
}

/// The first lines of what a program wrote.
fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).lines().take(20).fold(String::new(), |text, line| text + line + "\n")
}

/// Reads the JSON form; `None` if it is something else.
fn parse_json(stdout: &[u8]) -> Option<Vec<Listed>> {
    #[derive(Deserialize)]
    struct Line<'a> {
        event: &'a str,
        name: Option<String>,
        ignore: Option<bool>,
        ignore_message: Option<String>,
    }
    let mut tests = Vec::new();
    let mut complete = false;
    for line in stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        // What static initialisers write is nobody's listing.
        let Ok(line) = serde_json::from_slice::<Line>(line) else { continue };
        match (line.event, line.name) {
            ("discovered", Some(name)) => {
                let ignored = line.ignore.unwrap_or(false).then(|| line.ignore_message.unwrap_or_default());
                tests.push(Listed { name, ignored });
            }
            ("completed", _) => complete = true,
            _ => {}
        }
    }
    complete.then_some(tests)
}

/// Reads the terse form; `None` if a line is something else.
pub(super) fn parse_terse(stdout: &[u8]) -> Option<Vec<Listed>> {
    String::from_utf8_lossy(stdout)
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| line.strip_suffix(": test").or_else(|| line.strip_suffix(": benchmark")).map(Listed::new))
        .collect()
}

enum Ended {
    Exited {
        status: ExitStatus,
        stdout: Vec<u8>,
        stderr: Vec<u8>,
    },
    TimedOut,
    /// It wrote more than any list is long.
    TooMuch,
}

/// More was written than is kept.
struct TooMuch;

/// All that is written to a pipe.
async fn read_bounded(pipe: impl AsyncRead + Unpin, limit: u64) -> Result<Vec<u8>, TooMuch> {
    let mut bytes = Vec::new();
    // A pipe that breaks has ended.
    let _ = pipe.take(limit + 1).read_to_end(&mut bytes).await;
    if bytes.len() as u64 > limit { Err(TooMuch) } else { Ok(bytes) }
}

/// Ends a process and everything that it started in its group, unless it was waited for.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        kill_group(&self.0);
    }
}

/// Kills the process group that `child` leads, if `child` was not waited for yet.
pub(super) fn kill_group(child: &Child) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid
        && let Err(error) = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL)
    {
        tracing::debug!(%error, ?pid, "cannot kill a process group");
    }
}

async fn run(unit: &Unit, args: &[&str], json: bool, limit: Duration) -> Result<Ended, String> {
    let mut command = Command::new(&unit.program);
    command.args(&unit.args).args(args).envs(&unit.env).current_dir(&unit.cwd);
    if json {
        // Lets a stable libtest list as JSON; 0 leaves a rustc that the program might start as it is.
        command.env("RUSTC_BOOTSTRAP", "0");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    let child = command.spawn().map_err(|error| format!("cannot be started: {error}"))?;
    let mut group = Group(child);
    let stdout_pipe = group.0.stdout.take().ok_or("has no standard output")?;
    let stderr_pipe = group.0.stderr.take().ok_or("has no standard error")?;
    // Waited for last: until then the group can still be killed.
    let most = bounded::RESULTS;
    let read = async { tokio::try_join!(read_bounded(stdout_pipe, most), read_bounded(stderr_pipe, most)) };
    match tokio::time::timeout(limit, read).await {
        Err(_) => Ok(Ended::TimedOut),
        Ok(Err(TooMuch)) => Ok(Ended::TooMuch),
        Ok(Ok((stdout, stderr))) => match tokio::time::timeout(limit, group.0.wait()).await {
            Err(_) => Ok(Ended::TimedOut),
            Ok(Err(error)) => Err(format!("cannot be waited for: {error}")),
            Ok(Ok(status)) => Ok(Ended::Exited { status, stdout, stderr }),
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn json_listings_tell_ignored_tests_and_skip_noise() {
        let text = br#"hello from a constructor
{ "type": "suite", "event": "discovery" }
{ "type": "test", "event": "discovered", "name": "a::b", "ignore": false, "ignore_message": "" }
{ "type": "test", "event": "discovered", "name": "c \"d\"", "ignore": true, "ignore_message": "slow" }
{ "type": "suite", "event": "completed", "tests": 2, "benchmarks": 0, "total": 2, "ignored": 1 }
"#;
        let tests = parse_json(text).unwrap();
        assert_eq!(tests, [Listed::new("a::b"), Listed { name: "c \"d\"".into(), ignored: Some("slow".into()) }]);
        assert_eq!(parse_json(b"a::b: test\n"), None);
        assert_eq!(parse_json(br#"{ "type": "suite", "event": "discovery" }"#), None, "cut off");
    }

    #[test]
    fn terse_listings_are_all_or_nothing() {
        assert_eq!(parse_terse(b"a: test\n\nb: benchmark\n"), Some(vec![Listed::new("a"), Listed::new("b")]));
        assert_eq!(parse_terse(b"a: test\nrunning everything\n"), None);
    }

    #[tokio::test]
    async fn a_listing_without_end_is_not_read_to_the_end() {
        assert!(read_bounded(tokio::io::repeat(b'a'), 1000).await.is_err());
        assert_eq!(read_bounded(&[b'a'; 1000][..], 1000).await.ok(), Some(vec![b'a'; 1000]));
    }
}
