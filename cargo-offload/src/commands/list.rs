//! `list` and `collect`: discovers tests without running any.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use offload_core::framework::{Discovered, DiscoverySink, TestFramework, TestRecord};
use serde_json::json;

use crate::cli::cargo::CargoListArgs;
use crate::cli::offload::ListFormat;
use crate::cli::{CommonArgs, MessageFormat, ReportArgs};
use crate::failure::{NOTHING_RUN, Outcome};
use crate::masked;
use crate::settings::{Overrides, Settings};

/// The version of the JSON listing.
const LIST_FORMAT: u32 = 1;

/// `cargo offload list`
pub fn cargo(common: &CommonArgs, args: &CargoListArgs) -> Outcome {
    let settings = super::run::cargo_settings(common, Overrides::default(), &args.selection)?;
    let look = super::run::BuildLook::new(common, &ReportArgs::default());
    let framework = super::run::cargo_framework(&settings, &args.selection, look, true)?;
    let format = match args.message_format {
        MessageFormat::Human => ListFormat::Text,
        MessageFormat::Json => ListFormat::Json,
    };
    list(&framework, format, common.quiet)
}

/// `offload collect`
pub fn offload(common: &CommonArgs, format: ListFormat) -> Outcome {
    let settings = Settings::offload(common, Overrides::default())?;
    let framework = super::run::framework(&settings, super::run::BuildLook::new(common, &ReportArgs::default()))?;
    list(framework.as_ref(), format, common.quiet)
}

fn list(framework: &dyn TestFramework, format: ListFormat, quiet: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the asynchronous runtime could not be started")?;
    let (mut tests, problems) = runtime.block_on(discover(framework, quiet))?;
    tests.sort_by(|a, b| a.id.cmp(&b.id));
    let text = match format {
        ListFormat::Json => {
            let tests: Vec<_> = tests.iter().map(entry).collect();
            masked::json(&format!("{:#}\n", json!({ "format": LIST_FORMAT, "tests": tests }))).into_owned()
        }
        ListFormat::Text => {
            let text = tests.iter().fold(String::new(), |mut text, test| {
                text.push_str(&test.id);
                if let Some(reason) = &test.skipped {
                    text.push_str(&format!(" (skipped: {reason})"));
                }
                text.push('\n');
                text
            });
            masked::text(&text).into_owned()
        }
    };
    // A reader that was closed has read enough.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    Ok(if problems { NOTHING_RUN } else { 0 })
}

/// The tests, and whether some could not be discovered.
async fn discover(framework: &dyn TestFramework, quiet: bool) -> anyhow::Result<(Vec<TestRecord>, bool)> {
    let (sink, mut discovered) = DiscoverySink::new();
    let paths: [PathBuf; 0] = [];
    let discovery = framework.discover_stream(&paths, sink);
    tokio::pin!(discovery);
    let (mut tests, mut problems) = (Vec::new(), false);
    let mut take = |found| match found {
        Discovered::Tests(more) => tests.extend(more),
        Discovered::BuildOutput(line) if !quiet => eprintln!("{}", masked::text(&line)),
        Discovered::Warning(text) => eprintln!("warning: {}", masked::text(&text)),
        Discovered::Problem(text) => {
            problems = true;
            eprintln!("error: {}", masked::text(&text));
        }
        Discovered::BuildOutput(_)
        | Discovered::BuildStarted
        | Discovered::BuildFinished { .. }
        | Discovered::Native(_) => {}
    };
    loop {
        tokio::select! {
            Some(found) = discovered.recv() => take(found),
            end = &mut discovery => {
                end?;
                break;
            }
        }
    }
    while let Ok(found) = discovered.try_recv() {
        take(found);
    }
    Ok((tests, problems))
}

fn entry(test: &TestRecord) -> serde_json::Value {
    let unit = test.suite.unit.as_ref();
    json!({
        "id": test.id,
        "name": test.name,
        "suite": test.suite.id,
        "group": &*test.group,
        "skipped": test.skipped.as_deref(),
        "program": unit.map(|unit| &unit.program),
        "args": unit.map(|unit| &unit.args),
        "working_dir": unit.map(|unit| &unit.cwd),
    })
}
