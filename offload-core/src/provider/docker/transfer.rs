//! Files into and out of containers, as tar archives that stream.

use std::io::{self, Read as _, Write};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::{DownloadFromContainerOptionsBuilder, UploadToContainerOptionsBuilder};
use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::mpsc;

use super::connect::{has_status, told};
use super::watch::next;
use crate::files::{FileSet, FilesError, Owner, unpack};

/// How much is sent at once.
const CHUNK: usize = 256 << 10;

/// How many symbolic links are followed to a file that is to be brought out.
const MOST_LINKS: usize = 8;

/// A [`FileSet`] that is being written as a tar archive while somebody reads it.
pub(super) struct Archive {
    pub(super) stream: ArchiveStream,
    written: tokio::task::JoinHandle<Result<(), FilesError>>,
}

/// The bytes of an [`Archive`].
pub(super) struct ArchiveStream(mpsc::Receiver<io::Result<Bytes>>);

impl Archive {
    pub(super) fn start(files: FileSet, owner: Owner) -> Self {
        let (sender, receiver) = mpsc::channel(8);
        let written = tokio::task::spawn_blocking(move || {
            let mut chunks = Chunks { sender: sender.clone(), buffer: Vec::with_capacity(CHUNK) };
            let result = files.write_tar(owner, &mut chunks);
            if let Err(error) = &result {
                // Whoever reads must not take half an archive for a whole one.
                let _ = sender.blocking_send(Err(io::Error::other(error.to_string())));
            }
            result
        });
        Self { stream: ArchiveStream(receiver), written }
    }

    /// Sends it into the container, to be unpacked at its root.
    pub(super) async fn send(self, docker: &Docker, container: &str) -> Result<(), String> {
        let options = UploadToContainerOptionsBuilder::default().path("/").build();
        let body = bollard::body_try_stream(self.stream);
        let sent = docker.upload_to_container(container, Some(options), body).await;
        outcome(sent, self.written).await
    }

    /// The stream, and what is to be asked once it has been read.
    pub(super) fn split(self) -> (ArchiveStream, tokio::task::JoinHandle<Result<(), FilesError>>) {
        (self.stream, self.written)
    }
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

impl Stream for ArchiveStream {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

struct Chunks {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK)));
        let gone = |_| io::Error::other("the daemon takes no more of it");
        self.sender.blocking_send(Ok(chunk)).map_err(gone)
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
