//! Removing what dead runs left on hosts, and the copies of files that are kept for the next run.

use std::path::Path;
use std::sync::Arc;

use super::link::Place;
use super::target::Target;
use super::visit::Visit;
use super::{project_name, run_name};
use crate::config::SshProviderConfig;
use crate::provider::{ProviderError, ProviderResult};

/// What [`clean`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Directories of dead runs that were removed.
    pub runs: usize,
    /// Copies of projects' files that were removed.
    pub copies: usize,
    /// Runs that are going on.
    pub in_use: usize,
}

/// Removes, from all hosts of `config`, what runs have left that have ended, and the copies of files that no run uses:
/// those of the project in `directory`, or of all projects of this user (`all`).
///
/// # Errors
///
/// [`ProviderError::Exec`] when not all hosts could be reached; the others are clean.
pub async fn clean(config: &SshProviderConfig, directory: &Path, all: bool) -> ProviderResult<Cleaned> {
    let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let mut visits = tokio::task::JoinSet::new();
    let run = run_name();
    for host in &config.hosts {
        let target = Target::new(host, &directory, Path::new("ssh"));
        let project = project_name(&directory);
        let place = Place { workdir: host.workdir.clone(), project, run: run.clone(), tidy: false };
        visits.spawn(async move {
            let visit = Arc::new(Visit::begin(target, place).await?);
            let cleaned = visit.clean(all).await;
            visit.close().await;
            cleaned.map_err(|trouble| trouble.text().to_owned())
        });
    }
    let (mut cleaned, mut reasons) = (Cleaned::default(), Vec::new());
    for result in visits.join_all().await {
        match result {
            Ok(one) => {
                cleaned.runs += one.runs;
                cleaned.copies += one.copies;
                cleaned.in_use += one.in_use;
            }
            Err(reason) => reasons.push(reason),
        }
    }
    if reasons.is_empty() { Ok(cleaned) } else { Err(ProviderError::Exec(reasons.join("\n"))) }
}
