//! A [`FileSet`] as a tar archive, the same for the same files.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use tar::{Builder, EntryType, Header};

use super::{Entry, FileSet, FilesError, Kind, Source};

/// Whose files they are in the sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner {
    /// The number of the user.
    pub uid: u64,
    /// The number of the group.
    pub gid: u64,
}

impl FileSet {
    /// Writes everything as a tar archive to be unpacked at the root of a file system: sorted by path, with modes and
    /// times as here, and with one owner for all.
    ///
    /// # Errors
    ///
    /// [`FilesError`] when a file cannot be read, has changed since the set was made, or `to` cannot be written to.
    pub fn write_tar(&self, owner: Owner, to: impl Write) -> Result<(), FilesError> {
        let mut builder = Builder::new(to);
        for (path, entry) in &self.entries {
            append(&mut builder, path, entry, owner).map_err(|error| match &entry.source {
                Source::Path(source) => FilesError::unreadable(source, &error),
                Source::Bytes(_) => FilesError::unreadable(path, &error),
            })?;
        }
        let finished = builder.into_inner().and_then(|mut to| to.flush());
        finished.map_err(|error| FilesError(format!("cannot write an archive of the project's files: {error}")))
    }
}

fn append(builder: &mut Builder<impl Write>, path: &Path, entry: &Entry, owner: Owner) -> io::Result<()> {
    let path = path.strip_prefix("/").unwrap_or(path);
    let mut header = Header::new_gnu();
    header.set_uid(owner.uid);
    header.set_gid(owner.gid);
    header.set_mode(entry.mode);
    header.set_mtime(entry.modified);
    header.set_size(0);
    match &entry.kind {
        Kind::Directory => {
            header.set_entry_type(EntryType::Directory);
            builder.append_data(&mut header, path, io::empty())
        }
        Kind::Link { target } => {
            header.set_entry_type(EntryType::Symlink);
            builder.append_link(&mut header, path, target)
        }
        Kind::File { size, .. } => {
            header.set_entry_type(EntryType::Regular);
            header.set_size(*size);
            match &entry.source {
                Source::Path(source) => {
                    let mut contents = Exactly { file: File::open(source)?, left: *size };
                    builder.append_data(&mut header, path, &mut contents)
                }
                Source::Bytes(bytes) => builder.append_data(&mut header, path, &bytes[..]),
            }
        }
    }
}

/// As many bytes of a file as its header promised: any other number would make garbage of the whole archive.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read(&mut buffer[..wanted])?;
        if read == 0 && wanted > 0 {
            return Err(io::Error::other("it became shorter while it was being read"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}
