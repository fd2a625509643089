//! `clean`: removes what dead runs left, on the hosts of the configuration or on the Docker daemon.

use std::path::Path;

use anyhow::Context;
use offload_core::config::{Config, ProviderConfig};
use offload_core::provider::{docker, ssh};

use crate::cli::CommonArgs;
use crate::cli::offload::CleanArgs;
use crate::failure::Outcome;
use crate::settings::{Overrides, Settings};

/// `offload clean`
pub fn clean(common: &CommonArgs, args: &CleanArgs) -> Outcome {
    let current = std::env::current_dir().context("the current directory cannot be determined")?;
    let config = configuration(common, &current, args.all)?;
    let directory = config.offload.working_dir.clone().unwrap_or(current);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the asynchronous runtime could not be started")?;
    let whose = if args.all { String::new() } else { format!(" of {}", directory.display()) };
    let in_use = if let ProviderConfig::Ssh(hosts) = &config.provider {
        let cleaned = runtime.block_on(ssh::clean(hosts, &directory, args.all))?;
        println!("removed {} directories of dead runs and {} copies of files{whose}", cleaned.runs, cleaned.copies);
        cleaned.in_use
    } else {
        let directory: Option<&Path> = (!args.all).then_some(&directory);
        let cleaned = runtime.block_on(docker::clean(directory))?;
        println!("removed {} containers and {} images{whose}", cleaned.containers, cleaned.images);
        cleaned.in_use
    };
    if in_use > 0 {
        println!("{in_use} more are in use by runs that are going on");
    }
    Ok(0)
}

/// What is configured; nothing need be. One that is broken is no reason not to remove what all projects have left on
/// the Docker daemon.
fn configuration(common: &CommonArgs, current: &Path, all: bool) -> anyhow::Result<Config> {
    if common.config.is_none() && offload_core::config::find_config(current).is_none() {
        return Ok(Config::default());
    }
    match Settings::offload(common, Overrides::default()) {
        Err(_) if all && common.config.is_none() => Ok(Config::default()),
        settings => Ok(settings?.config),
    }
}
