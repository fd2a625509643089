//! `logs`: tests of the last run with their output, read from its JUnit report.

use std::io::Write;

use anyhow::Context;
use offload_core::report::console::Surroundings;
use offload_core::report::logs::{LogFilter, read, render};
use regex::Regex;

use crate::cli::cargo::SelectionArgs;
use crate::cli::{CommonArgs, LogsArgs};
use crate::failure::Outcome;
use crate::settings::{Overrides, Settings};

/// `cargo offload logs`
pub fn cargo(common: &CommonArgs, args: &LogsArgs) -> Outcome {
    if let Some(path) = &args.junit {
        return show(common, args, path);
    }
    let settings = super::run::cargo_settings(common, Overrides::default(), &SelectionArgs::default())?;
    show_last(common, args, &settings)
}

/// `offload logs`
pub fn offload(common: &CommonArgs, args: &LogsArgs) -> Outcome {
    if let Some(path) = &args.junit {
        return show(common, args, path);
    }
    show_last(common, args, &Settings::offload(common, Overrides::default())?)
}

fn show_last(common: &CommonArgs, args: &LogsArgs, settings: &Settings) -> Outcome {
    let path = settings.config.report.junit_path().context(
        "the configuration says that no JUnit report is written (report.junit = false), so there are no logs",
    )?;
    show(common, args, &path)
}

fn show(common: &CommonArgs, args: &LogsArgs, path: &std::path::Path) -> Outcome {
    let regex = args.test_regex.as_deref().map(Regex::new).transpose();
    let regex = regex.context("--test-regex is not a regular expression")?;
    let filter = LogFilter { failures: args.failures, errors: args.errors, tests: args.test.clone(), regex };
    let color = Surroundings::detect().color_stdout(super::run::color_choice(common));
    let text = render(&read(path)?, &filter, color);
    // A pager that was closed has seen enough.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    Ok(0)
}
