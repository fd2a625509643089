//! Files into and out of containers, as tar archives that stream.

use std::io::{self, Read as _, Write as _};
use std::path::Path;

use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::{DownloadFromContainerOptionsBuilder, UploadToContainerOptionsBuilder};

use super::connect::{has_status, told};
use super::watch::next;
use crate::files::{Archive, FilesError, unpack};

/// How many symbolic links are followed to a file that is to be brought out.
const MOST_LINKS: usize = 8;

/// Sends an archive into a container, to be unpacked at its root.
pub(super) async fn send(archive: Archive, docker: &Docker, container: &str) -> Result<(), String> {
    let options = UploadToContainerOptionsBuilder::default().path("/").build();
    let body = bollard::body_try_stream(archive.stream);
    let sent = docker.upload_to_container(container, Some(options), body).await;
    outcome(sent, archive.written).await
}

/// What went wrong first: a file here, or the daemon.
pub(super) async fn outcome(
    sent: Result<(), Error>,
    written: tokio::task::JoinHandle<Result<(), FilesError>>,
) -> Result<(), String> {
    match (written.await, sent) {
        // The daemon has hung up, and its answer says why.
        (Ok(Err(_)), Err(error)) if matches!(error, Error::DockerResponseServerError { .. }) => Err(told(&error)),
        (Ok(Err(error)), _) => Err(error.to_string()),
        (Err(error), _) => Err(format!("writing the archive was interrupted: {error}")),
        (Ok(Ok(())), Err(error)) => Err(told(&error)),
        (Ok(Ok(())), Ok(())) => Ok(()),
    }
}

/// Brings a file or directory out of a container.
pub(super) async fn download(docker: &Docker, container: &str, remote: &Path, local: &Path) -> Result<(), String> {
    let mut remote = remote.to_owned();
    for _ in 0..MOST_LINKS {
        let archive = fetch(docker, container, &remote).await?;
        let target = local.to_owned();
        let found = tokio::task::spawn_blocking(move || unpack(archive, &target)).await;
        match found.map_err(|error| error.to_string())?.map_err(|error| error.to_string())? {
            None => return Ok(()),
            Some(link) => remote = remote.parent().unwrap_or(Path::new("/")).join(link),
        }
    }
    Err("it is a link to a link to a link, without end".to_owned())
}

/// The bytes of a file in a container that may not be running.
pub(super) async fn read(docker: &Docker, container: &str, remote: &str) -> Result<Vec<u8>, String> {
    let archive = fetch(docker, container, Path::new(remote)).await?;
    let mut archive = tar::Archive::new(archive);
    let mut entries = archive.entries().map_err(|error| error.to_string())?;
    let mut entry = entries.next().ok_or("nothing came")?.map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// The archive of a path, in a temporary file.
async fn fetch(docker: &Docker, container: &str, remote: &Path) -> Result<std::fs::File, String> {
    let path = remote.to_str().ok_or("its path is not valid UTF-8, and Docker can only be asked for such")?;
    let options = DownloadFromContainerOptionsBuilder::default().path(path).build();
    let mut body = Box::pin(docker.download_from_container(container, Some(options)));
    let mut file = tempfile::tempfile().map_err(|error| format!("no temporary file: {error}"))?;
    while let Some(chunk) = next(&mut body).await {
        let chunk = chunk.map_err(|error| match has_status(&error, 404) {
            true => "there is no such file".to_owned(),
            false => told(&error),
        })?;
        file.write_all(&chunk).map_err(|error| format!("cannot write a temporary file: {error}"))?;
    }
    io::Seek::rewind(&mut file).map_err(|error| error.to_string())?;
    Ok(file)
}
