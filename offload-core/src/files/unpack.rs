//! What is brought out of a sandbox: an archive of one path, written to a path here.
//!
//! The archive comes from a place where tests have run, so it is not trusted: nothing is written outside of that path.

use std::io;
use std::path::{Path, PathBuf};

/// Writes what an archive of one path holds to `local`; returns where to look instead if it holds a link.
pub(crate) fn unpack(archive: impl io::Read, local: &Path) -> io::Result<Option<PathBuf>> {
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
