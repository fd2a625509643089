//! `validate`: checks the configuration and shows every value with its origin.

use std::io::Write;

use anyhow::Context;

use crate::cli::CommonArgs;
use crate::cli::cargo::SelectionArgs;
use crate::failure::Outcome;
use crate::settings::{Overrides, Settings};

/// `cargo offload validate`
pub fn cargo(common: &CommonArgs) -> Outcome {
    show(&super::run::cargo_settings(common, Overrides::default(), &SelectionArgs::default())?)
}

/// `offload validate`
pub fn offload(common: &CommonArgs) -> Outcome {
    show(&Settings::offload(common, Overrides::default())?)
}

fn show(settings: &Settings) -> Outcome {
    let mut out = std::io::stdout().lock();
    write!(out, "{}", settings.resolved.render()).context("the configuration could not be printed")?;
    for notice in &settings.config.notices {
        let _ = writeln!(std::io::stderr(), "note: {notice}");
    }
    Ok(0)
}
