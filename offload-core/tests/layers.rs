//! The invariants of docs/ARCHITECTURE.md that can be read off the sources.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};

/// All sources below `dir` (a file or directory under src/), without their unit tests.
fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    fn walk(path: &Path, found: &mut Vec<(PathBuf, String)>) {
        if path.is_dir() {
            for entry in std::fs::read_dir(path).unwrap() {
                walk(&entry.unwrap().path(), found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !["tests.rs", "fuzz.rs"].iter().any(|name| path.ends_with(name))
        {
            let text = std::fs::read_to_string(path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap().to_owned();
            found.push((path.to_owned(), code));
        }
    }
    let mut found = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    walk(&root.join(dir), &mut found);
    walk(&root.join(format!("{dir}.rs")), &mut found);
    assert!(!found.is_empty(), "there are no sources at {dir}");
    found
}

/// The lines of code (comments left out) for which `is_bad` holds, as `file:line: text`.
fn offences(dir: &str, is_bad: impl Fn(&str) -> bool) -> Vec<String> {
    let mut offences = Vec::new();
    for (path, text) in sources(dir) {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            if is_bad(code) {
                offences.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    offences
}

#[test]
fn the_scheduler_is_pure() {
    let impure =
        ["tokio", "std::thread", "std::io", "std::fs", "std::process", "std::env", "Instant", "SystemTime", "rand::"];
    let crate_uses = |line: &str| line.trim_start().starts_with("use crate::");
    let bad =
        offences("orchestrator/scheduler", |line| impure.iter().any(|word| line.contains(word)) || crate_uses(line));
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn reports_see_only_events() {
    // What events are made of.
    let allowed = ["crate::bounded", "crate::event", "crate::framework", "crate::report", "print_summary(result: &"];
    let bad = offences("report", |line| {
        line.contains("crate::") && !allowed.iter().any(|module| line.contains(module)) && !line.contains("pub(crate)")
    });
    assert!(bad.is_empty(), "{bad:#?}");
    let frameworks = ["framework::cargo", "framework::pytest", "framework::default", "TestFramework"];
    let bad = offences("report", |line| frameworks.iter().any(|module| line.contains(module)));
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn only_the_console_prints() {
    let printing = ["println!", "print!(", "dbg!", "stdout()", "stderr()"];
    let bad: Vec<_> = offences("", |line| printing.iter().any(|word| line.contains(word)))
        .into_iter()
        // The worker of another machine speaks its protocol there.
        .filter(|line| !line.contains("report/console") && !line.contains("worker/libtest/serve.rs"))
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn frameworks_and_providers_know_nothing_of_each_other_and_of_the_run() {
    let bad = offences("provider", |line| line.contains("crate::framework") || line.contains("crate::orchestrator"));
    assert!(bad.is_empty(), "{bad:#?}");
    let providers = ["provider::local", "provider::default", "crate::orchestrator", "crate::report"];
    let bad = offences("framework", |line| providers.iter().any(|word| line.contains(word)));
    assert!(bad.is_empty(), "{bad:#?}");
}
