//! What processes leave in files: their output outside of tests, and their stacks.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// The most that is read from the end of a file.
const TAIL_BYTES: u64 = 64 << 10;

/// How long the file is; 0 when there is none.
pub(super) fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// The last `lines` lines of what stands in a file behind `from`.
pub(super) fn tail(path: &Path, from: u64, lines: usize) -> String {
    let text = read_end(path, from).unwrap_or_default();
    last_lines(&String::from_utf8_lossy(&text), lines)
}

/// The last `lines` lines of a text.
pub(super) fn last_lines(text: &str, lines: usize) -> String {
    let text = text.trim_end();
    let start = text.rmatch_indices('\n').nth(lines.saturating_sub(1)).map_or(0, |(at, _)| at + 1);
    text[start..].to_owned()
}

fn read_end(path: &Path, from: u64) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(TAIL_BYTES))))?;
    let mut text = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_file_is_its_last_lines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "one\ntwo\nthree\n\n").unwrap();
        assert_eq!(tail(file.path(), 0, 2), "two\nthree");
        assert_eq!(tail(file.path(), 0, 9), "one\ntwo\nthree");
        assert_eq!(tail(file.path(), 4, 9), "two\nthree");
        assert_eq!(tail(Path::new("/nonexistent"), 0, 9), "");
    }
}
