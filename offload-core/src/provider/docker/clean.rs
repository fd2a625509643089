//! Removing what dead runs left behind.
//!
//! Containers end with their run and remove themselves. What is left are containers that were created and never started,
//! or that a daemon forgot to end, and the images of projects, which are kept for the next run.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use bollard::query_parameters::{
    ListContainersOptionsBuilder, ListImagesOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder,
};

use super::connect::{Daemon, has_status, told};
use super::{LABEL_OWNER, LABEL_PROJECT};
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
    let refused = |what: &str, error: &bollard::errors::Error| {
        ProviderError::Exec(format!("the Docker daemon at {} cannot {what}: {}", daemon.address, told(error)))
    };
    let filters = HashMap::from([("label", vec![label.as_str()])]);
    let mut cleaned = Cleaned::default();

    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    let found =
        daemon.docker.list_containers(Some(options)).await.map_err(|error| refused("list containers", &error))?;
    for container in found {
        let labels = container.labels.unwrap_or_default();
        let running = container.state.is_some_and(|state| state.as_ref() == "running");
        if !is_dead(labels.get(LABEL_OWNER).map_or("", String::as_str), running) {
            cleaned.in_use += 1;
            continue;
        }
        let id = container.id.unwrap_or_default();
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match daemon.docker.remove_container(&id, Some(options)).await {
            Ok(()) => cleaned.containers += 1,
            // It is gone, or goes at this moment.
            Err(error) if has_status(&error, 404) || has_status(&error, 409) => {}
            Err(error) => return Err(refused(&format!("remove the container {id}"), &error)),
        }
    }

    let options = ListImagesOptionsBuilder::default().filters(&filters).build();
    let found = daemon.docker.list_images(Some(options)).await.map_err(|error| refused("list images", &error))?;
    for image in found {
        let names: Vec<String> = image.repo_tags.into_iter().filter(|name| name != "<none>:<none>").collect();
        let names = if names.is_empty() { vec![image.id] } else { names };
        for name in names {
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
    let (Some(owners_host), Some(pid)) = (parts.next(), parts.next().and_then(|pid| pid.parse::<i32>().ok())) else {
        return !running;
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

    #[test]
    fn only_what_hangs_on_a_process_that_is_gone_is_dead() {
        assert!(!is_dead(&owner(), true) && !is_dead(&owner(), false));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let gone = format!("{}:{}:1", host(), child.id());
        child.wait().unwrap();
        assert!(is_dead(&gone, true) && is_dead(&gone, false));
        assert!(!is_dead("some-other-host:1:1", true) && is_dead("some-other-host:1:1", false));
        assert!(!is_dead("", true) && is_dead("", false));
    }
}
