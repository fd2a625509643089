//! An archive that is written while somebody reads it, wherever it is going.

use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{FileSet, FilesError, Owner};

/// How much is handed over at once.
const CHUNK: usize = 256 << 10;

/// A [`FileSet`] that is being written as a tar archive while somebody reads it.
pub(crate) struct Archive {
    pub(crate) stream: ArchiveStream,
    /// What is to be asked once the stream has been read.
    pub(crate) written: JoinHandle<Result<(), FilesError>>,
}

/// The bytes of an [`Archive`].
pub(crate) struct ArchiveStream(mpsc::Receiver<io::Result<Bytes>>);

impl Archive {
    pub(crate) fn start(files: FileSet, owner: Owner) -> Self {
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
}

impl ArchiveStream {
    /// The next piece; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<io::Result<Bytes>> {
        self.0.recv().await
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
        let gone = |_| io::Error::other("whoever it is sent to takes no more of it");
        self.sender.blocking_send(Ok(chunk)).map_err(gone)
    }
}
