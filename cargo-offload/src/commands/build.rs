//! `build` and `checkpoint-status`: the image that sandboxes start from.

use anyhow::Context;
use offload_core::config::ProviderConfig;

use crate::cli::CommonArgs;
use crate::cli::offload::ImageArgs;
use crate::failure::Outcome;
use crate::settings::{Overrides, Settings};

/// `offload build`: does what all sandboxes of a run share, without running tests, and prints the image's id alone.
pub fn build(common: &CommonArgs, args: &ImageArgs) -> Outcome {
    let settings = Settings::offload(common, Overrides::default())?;
    if !matches!(settings.config.provider, ProviderConfig::Default(_) | ProviderConfig::Docker(_)) {
        anyhow::bail!("the configured provider has no image to build");
    }
    let provider = super::run::provider(&settings.config, args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the asynchronous runtime could not be started")?;
    runtime.block_on(provider.prepare())?;
    match provider.image_id() {
        Some(id) => println!("{id}"),
        None => eprintln!("there is no image to build: [provider] has no `prepare_command`"),
    }
    Ok(0)
}

/// `offload checkpoint-status`
pub fn checkpoint_status() -> Outcome {
    anyhow::bail!("checkpoints belong to providers that layer images (modal, docker), and none of those is there yet")
}
