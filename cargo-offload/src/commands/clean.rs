//! `clean`: removes what dead runs left on the Docker daemon.

use std::path::PathBuf;

use anyhow::Context;
use offload_core::provider::docker;

use crate::cli::CommonArgs;
use crate::cli::offload::CleanArgs;
use crate::failure::Outcome;
use crate::settings::{Overrides, Settings};

/// `offload clean`
pub fn clean(common: &CommonArgs, args: &CleanArgs) -> Outcome {
    let directory = match args.all {
        true => None,
        false => Some(project(common)?),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the asynchronous runtime could not be started")?;
    let cleaned = runtime.block_on(docker::clean(directory.as_deref()))?;
    let whose = match &directory {
        Some(directory) => format!(" of {}", directory.display()),
        None => String::new(),
    };
    println!("removed {} containers and {} images{whose}", cleaned.containers, cleaned.images);
    if cleaned.in_use > 0 {
        println!("{} more are in use by runs that are going on", cleaned.in_use);
    }
    Ok(0)
}

/// The directory that runs are for, as the configuration says; it need not say anything.
fn project(common: &CommonArgs) -> anyhow::Result<PathBuf> {
    let current = std::env::current_dir().context("the current directory cannot be determined")?;
    if common.config.is_none() && offload_core::config::find_config(&current).is_none() {
        return Ok(current);
    }
    let settings = Settings::offload(common, Overrides::default())?;
    Ok(settings.config.offload.working_dir.unwrap_or(current))
}
