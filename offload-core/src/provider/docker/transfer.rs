//! Files into and out of containers, as tar archives that stream.

use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
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
use crate::files::{FileSet, FilesError, Owner};

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

/// Writes what an archive of one path holds to `local`; returns where to look instead if it holds a link.
fn unpack(archive: std::fs::File, local: &Path) -> io::Result<Option<PathBuf>> {
    if let Some(parent) = local.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut archive = tar::Archive::new(archive);
    archive.set_preserve_permissions(true);
    let mut entries = archive.entries()?;
    let mut first = entries.next().ok_or_else(|| io::Error::other("nothing came"))??;
    match first.header().entry_type() {
        tar::EntryType::Symlink => {
            return first.link_name()?.map(|link| Some(link.into_owned())).ok_or_else(|| io::Error::other("no target"));
        }
        tar::EntryType::Directory => {}
        _ => {
            let mut file = std::fs::File::create(local)?;
            return io::copy(&mut first, &mut file).map(|_| None);
        }
    }
    std::fs::create_dir_all(local)?;
    for entry in entries {
        let mut entry = entry?;
        let target = inside(local, &entry.path()?)?;
        if entry.header().entry_type() == tar::EntryType::Link {
            // Another name of a file that came before.
            let other = entry.link_name()?.unwrap_or_default();
            std::fs::copy(inside(local, &other)?, target)?;
        } else {
            entry.unpack(target)?;
        }
    }
    Ok(None)
}

/// Where an entry of a directory's archive goes. Its first component is the directory's own name.
fn inside(local: &Path, entry: &Path) -> io::Result<PathBuf> {
    let below: PathBuf = entry.components().skip(1).collect();
    let escapes = below.components().any(|part| !matches!(part, std::path::Component::Normal(_)));
    if escapes || leads_through_link(local, &below) {
        return Err(io::Error::other(format!("it holds {}, which leads out of it", entry.display())));
    }
    Ok(local.join(below))
}

/// Whether a directory on the way to `below` is a link, which may lead anywhere.
fn leads_through_link(local: &Path, below: &Path) -> bool {
    below.ancestors().skip(1).any(|above| local.join(above) != local && local.join(above).is_symlink())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive of a directory `d` with what `fill` puts there, unpacked into an empty directory.
    fn unpacked(
        fill: impl FnOnce(&mut tar::Builder<&mut std::fs::File>),
    ) -> (tempfile::TempDir, io::Result<Option<PathBuf>>) {
        let mut file = tempfile::tempfile().unwrap();
        let mut builder = tar::Builder::new(&mut file);
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        builder.append_data(&mut header, "d", io::empty()).unwrap();
        fill(&mut builder);
        builder.finish().unwrap();
        drop(builder);
        io::Seek::rewind(&mut file).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let result = unpack(file, &dir.path().join("here"));
        (dir, result)
    }

    fn entry(builder: &mut tar::Builder<&mut std::fs::File>, kind: tar::EntryType, name: &str, rest: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(if kind.is_file() { rest.len() as u64 } else { 0 });
        // The names that are tried here are those that the crate refuses to write.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        if !kind.is_file() {
            header.as_gnu_mut().unwrap().linkname[..rest.len()].copy_from_slice(rest.as_bytes());
        }
        header.set_cksum();
        let body = if kind.is_file() { rest.as_bytes() } else { b"" };
        builder.append(&header, body).unwrap();
    }

    #[test]
    fn a_directory_comes_with_its_links() {
        let (dir, result) = unpacked(|builder| {
            entry(builder, tar::EntryType::Regular, "d/a", "one");
            entry(builder, tar::EntryType::Link, "d/hard", "d/a");
            entry(builder, tar::EntryType::Symlink, "d/soft", "a");
        });
        result.unwrap();
        let here = dir.path().join("here");
        for name in ["a", "hard", "soft"] {
            assert_eq!(std::fs::read_to_string(here.join(name)).unwrap(), "one", "{name}");
        }
    }

    #[test]
    fn nothing_is_written_outside_of_the_directory() {
        let outside = tempfile::tempdir().unwrap();
        let outside = outside.path().to_str().unwrap();
        for names in [vec!["d/../../out"], vec!["d/link", "d/link/out"]] {
            let (dir, result) = unpacked(|builder| {
                for name in names {
                    let link = name.ends_with("link");
                    let kind = if link { tar::EntryType::Symlink } else { tar::EntryType::Regular };
                    entry(builder, kind, name, outside);
                }
            });
            let error = result.unwrap_err().to_string();
            assert!(error.ends_with("out, which leads out of it"), "{error}");
            assert!(!dir.path().join("out").exists() && !Path::new(outside).join("out").exists());
        }
        let (_dir, result) = unpacked(|builder| entry(builder, tar::EntryType::Link, "d/hard", "d/../../x"));
        assert!(result.unwrap_err().to_string().contains("leads out of it"));
    }
}
