//! The floor under every runner that gives each test a process: a bare program that spawns and waits.
//!
//! `spawn_floor THREADS FILE`, where each line of FILE is `binary<TAB>test name`. Each of THREADS threads takes the next
//! line, runs `binary NAME --exact` with its output thrown away, and waits for it. Prints the number of processes, of
//! failures, and the seconds it took. With `--worker` before THREADS the libtest worker does the same, one per thread;
//! the ratio of the two is what the worker costs.

use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Instant;

use anyhow::{Context, bail};
use offload_core::framework::TestOutcome;
use offload_core::worker::libtest::{LibtestOptions, LibtestWorker};
use offload_core::worker::{Harness, Message, Request, RunItem, Unit};

fn main() -> anyhow::Result<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let with_worker = args.first().is_some_and(|arg| arg == "--worker");
    if with_worker {
        args.remove(0);
    }
    let [threads, file] = args.as_slice() else { bail!("usage: spawn_floor [--worker] THREADS FILE") };
    let threads: usize = threads.parse().context("THREADS is not a number")?;
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
    let tests: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once('\t')).collect();

    let began = Instant::now();
    let failures = if with_worker { run_with_workers(threads, &tests)? } else { run_bare(threads, &tests) };
    println!("{} processes, {failures} failures, {:.3} s", tests.len(), began.elapsed().as_secs_f64());
    Ok(())
}

fn run_bare(threads: usize, tests: &[(&str, &str)]) -> usize {
    let (next, failures) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((binary, name)) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut command = Command::new(binary);
                    command.args([name, "--exact"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                    if !command.status().is_ok_and(|status| status.success()) {
                        failures.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    failures.into_inner()
}

fn run_with_workers(threads: usize, tests: &[(&str, &str)]) -> anyhow::Result<usize> {
    let (sender, messages) = channel();
    let mut units: HashMap<&str, u32> = HashMap::new();
    let mut workers = Vec::new();
    for slot in 0..threads {
        let sender = sender.clone();
        let options = LibtestOptions { slot, ..LibtestOptions::default() };
        workers.push(LibtestWorker::spawn(options, move |message| drop(sender.send((slot, message))))?);
    }
    for (binary, _) in tests {
        let key = u32::try_from(units.len())?;
        if units.contains_key(binary) {
            continue;
        }
        units.insert(binary, key);
        let unit = Arc::new(Unit {
            harness: Harness::Libtest,
            custom_harness: false,
            program: binary.into(),
            args: Vec::new(),
            extra_args: Vec::new(),
            cwd: std::env::current_dir()?,
            env: Default::default(),
        });
        workers.iter().for_each(|worker| worker.send(Request::Define { key, unit: Arc::clone(&unit) }));
    }
    let mut queue = (0u32..).zip(tests).map(|(key, (binary, name))| RunItem {
        key,
        unit: units[binary],
        name: (*name).to_owned(),
        attempt: 1,
        alone: false,
        timeout_ms: Some(60_000),
    });
    // Two tests ahead keep a slot busy.
    for worker in workers.iter().chain(&workers) {
        worker.send(Request::Run { tests: queue.by_ref().take(1).collect() });
    }
    let (mut finished, mut failures) = (0, 0);
    while finished < tests.len() {
        if let (slot, Message::Finished { result, .. }) = messages.recv()? {
            finished += 1;
            failures += usize::from(result.outcome != TestOutcome::Passed);
            workers[slot].send(Request::Run { tests: queue.by_ref().take(1).collect() });
        }
    }
    Ok(failures)
}
