//! Removing what dead runs left behind.
//!
//! Containers end with their run and remove themselves. What is left are containers that were created and never started,
//! or that a daemon forgot to end, and the images of projects, which are kept for the next run.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use bollard::errors::Error;
use bollard::query_parameters::{
    ListContainersOptionsBuilder, ListImagesOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder,
};

use super::connect::{Daemon, has_status, told};
use super::{LABEL_OWNER, LABEL_PROJECT, LABEL_SANDBOX, is_in, repository};
use crate::provider::{ProviderError, ProviderResult};

/// What [`clean`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Containers removed.
    pub containers: usize,
    /// Names of images removed.
    pub images: usize,
    /// Containers and images of runs that are still going on.
    pub in_use: usize,
}

/// Removes containers and images of runs that have ended: those of the project in `directory`, or all.
///
/// # Errors
///
/// [`ProviderError::Unusable`] when the daemon cannot be used; [`ProviderError::Exec`] when it refuses.
pub async fn clean(directory: Option<&Path>) -> ProviderResult<Cleaned> {
    let daemon = Daemon::connect().await?;
    let label = match directory {
        Some(directory) => {
            let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
            format!("{LABEL_PROJECT}={}", directory.display())
        }
        None => LABEL_PROJECT.to_owned(),
    };
    let refused = |what: &str, error: &Error| {
        ProviderError::Exec(format!("the Docker daemon at {} cannot {what}: {}", daemon.address, told(error)))
    };
    let filters = HashMap::from([("label", vec![label.as_str()])]);
    let (containers, in_use) =
        remove_containers(&daemon, &label, true).await.map_err(|(what, error)| refused(&what, &error))?;
    let mut cleaned = Cleaned { containers, images: 0, in_use };

    let options = ListImagesOptionsBuilder::default().filters(&filters).build();
    let found = daemon.docker.list_images(Some(options)).await.map_err(|error| refused("list images", &error))?;
    for image in found {
        // What somebody has built upon an image of ours has its labels, and other names.
        let repository = repository(image.labels.get(LABEL_PROJECT).map_or("", String::as_str));
        for name in image.repo_tags.into_iter().filter(|name| is_in(name, &repository)) {
            let options = RemoveImageOptionsBuilder::default().build();
            match daemon.docker.remove_image(&name, Some(options), None).await {
                Ok(_) => cleaned.images += 1,
                Err(error) if has_status(&error, 404) => {}
                Err(error) if has_status(&error, 409) => cleaned.in_use += 1,
                Err(error) => return Err(refused(&format!("remove the image {name}"), &error)),
            }
        }
    }
    Ok(cleaned)
}

/// Removes dead containers with this label; returns how many, and how many others live. That one runs counts as life
/// unless `running_too`.
async fn remove_containers(daemon: &Daemon, label: &str, running_too: bool) -> Result<(usize, usize), (String, Error)> {
    let (mut removed, mut in_use) = (0, 0);
    for (id, labels, running) in list(daemon, label).await.map_err(|error| ("list containers".to_owned(), error))? {
        let owner = labels.get(LABEL_OWNER).map_or("", String::as_str);
        if (running && !running_too) || !is_dead(owner, running) {
            in_use += 1;
            continue;
        }
        if remove(daemon, &id).await.map_err(|error| (format!("remove the container {id}"), error))? {
            removed += 1;
        }
    }
    Ok((removed, in_use))
}

/// Id, labels and whether it runs, of each container with this label.
async fn list(daemon: &Daemon, label: &str) -> Result<Vec<(String, HashMap<String, String>, bool)>, Error> {
    let filters = HashMap::from([("label", vec![label])]);
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    let found = daemon.docker.list_containers(Some(options)).await?;
    let described = found.into_iter().map(|container| {
        let running = container.state.is_some_and(|state| matches!(state.as_ref(), "running" | "paused"));
        (container.id.unwrap_or_default(), container.labels.unwrap_or_default(), running)
    });
    Ok(described.collect())
}

/// Removes a container; returns whether it was still there.
async fn remove(daemon: &Daemon, id: &str) -> Result<bool, Error> {
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    match daemon.docker.remove_container(id, Some(options)).await {
        Ok(()) => Ok(true),
        // It is gone, or goes at this moment.
        Err(error) if has_status(&error, 404) || has_status(&error, 409) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes containers of dead runs of a project. What stands in the way of that concerns nobody now.
pub(super) async fn remove_dead(daemon: &Daemon, project: &str) {
    // Processes are known by host and number, which may mislead where several containers share a daemon.
    match remove_containers(daemon, &format!("{LABEL_PROJECT}={project}"), false).await {
        Ok((0, _)) => {}
        Ok((removed, _)) => tracing::info!(removed, "containers of dead runs were removed"),
        Err((what, error)) => tracing::debug!(error = told(&error), "cannot {what}"),
    }
}

/// Removes what an owner was about to create when it gave up: containers in which an image was being made, and that of
/// one sandbox.
pub(super) async fn remove_unfinished(daemon: &Daemon, owner: &str, sandbox: &str) {
    for (id, labels, _) in list(daemon, &format!("{LABEL_OWNER}={owner}")).await.unwrap_or_default() {
        if labels.get(LABEL_SANDBOX).is_none_or(|name| name == sandbox)
            && let Err(error) = remove(daemon, &id).await
        {
            tracing::warn!(error = told(&error), "a container may be left behind; see `offload clean`");
        }
    }
}

/// What tells this process, and within it each call, from all others.
pub(super) fn owner() -> String {
    format!("{}:{}:{:x}", host(), std::process::id(), unique())
}

/// A number that no other call in no other process gives.
pub(super) fn unique() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    #[allow(clippy::cast_possible_truncation, reason = "the low bits are those that differ")]
    let now = now.as_nanos() as u64;
    now.wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed)) ^ (u64::from(std::process::id()) << 44)
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().replace(':', "-")
}

/// Whether nobody needs what hangs on this process any more. Of a process elsewhere only its containers tell: they end
/// when it does.
fn is_dead(owner: &str, running: bool) -> bool {
    let mut parts = owner.split(':');
    // What somebody has made from an image of ours has its labels, which name no process.
    let (Some(owners_host), Some(pid)) = (parts.next(), parts.next().and_then(|pid| pid.parse::<i32>().ok())) else {
        return false;
    };
    if owners_host != host() {
        return !running;
    }
    match rustix::process::Pid::from_raw(pid) {
        Some(pid) => rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH),
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::docker::OWNER_OF_IMAGES;

    #[test]
    fn only_what_hangs_on_a_process_that_is_gone_is_dead() {
        assert!(!is_dead(&owner(), true) && !is_dead(&owner(), false));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let gone = format!("{}:{}:1", host(), child.id());
        child.wait().unwrap();
        assert!(is_dead(&gone, true) && is_dead(&gone, false));
        assert!(!is_dead("some-other-host:1:1", true) && is_dead("some-other-host:1:1", false));
        for foreign in ["", OWNER_OF_IMAGES, "host", "host:x:1"] {
            assert!(!is_dead(foreign, true) && !is_dead(foreign, false), "{foreign}");
        }
    }
}
