//! Keeps what a process writes, within bounds: the beginning and the end of each stream.

use crate::framework::Captured;

/// The head and the tail of one stream.
#[derive(Debug, Default)]
pub(super) struct Capture {
    /// How much is kept of either end, in bytes.
    half: usize,
    head: Vec<u8>,
    /// The end of the stream, as a ring of at most `half` bytes once the head is full.
    tail: Vec<u8>,
    /// Where the oldest byte of a full ring is.
    oldest: usize,
    total: u64,
}

impl Capture {
    /// A capture that keeps about `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { half: limit.div_ceil(2).max(1), ..Self::default() }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let (to_head, rest) = bytes.split_at(bytes.len().min(self.half - self.head.len()));
        self.head.extend_from_slice(to_head);
        // Of more than a ring full only the end survives anyway.
        let rest = &rest[rest.len().saturating_sub(self.half)..];
        let (to_grow, to_wrap) = rest.split_at(rest.len().min(self.half - self.tail.len()));
        self.tail.extend_from_slice(to_grow);
        if !to_wrap.is_empty() {
            let before_end = to_wrap.len().min(self.half - self.oldest);
            self.tail[self.oldest..self.oldest + before_end].copy_from_slice(&to_wrap[..before_end]);
            self.tail[..to_wrap.len() - before_end].copy_from_slice(&to_wrap[before_end..]);
            self.oldest = (self.oldest + to_wrap.len()) % self.half;
        }
    }

    /// What was kept, as text.
    pub(super) fn finish(mut self) -> Captured {
        let dropped_bytes = self.total - (self.head.len() + self.tail.len()) as u64;
        self.tail.rotate_left(self.oldest);
        if dropped_bytes == 0 {
            // Joined before it is decoded: a character may lie across the two.
            self.head.append(&mut self.tail);
            return Captured { text: into_text(self.head), dropped_bytes };
        }
        let mut text = into_text(self.head);
        text.push_str(&format!("\n[... {dropped_bytes} bytes dropped ...]\n"));
        text.push_str(&String::from_utf8_lossy(&self.tail));
        Captured { text, dropped_bytes }
    }
}

/// Text without a copy where the bytes are UTF-8, as they nearly always are.
fn into_text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Cuts a stream into whole lines, for output that is of use while it comes.
#[derive(Debug)]
pub(super) struct Lines {
    partial: Vec<u8>,
    longest: usize,
    overlong: Overlong,
    /// Within a line whose beginning has been passed on cut off.
    skipping: bool,
}

/// What becomes of a line that is longer than is good for the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overlong {
    /// It comes in pieces.
    Split,
    /// Its beginning comes, the rest is dropped.
    Truncate,
}

impl Lines {
    /// Lines of at most about `longest` bytes.
    pub(super) fn new(longest: usize, overlong: Overlong) -> Self {
        Self { partial: Vec::new(), longest, overlong, skipping: false }
    }

    /// Takes bytes; calls `line` for each line that is complete, with its end.
    pub(super) fn push(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            let (head, rest) = bytes.split_at(end + 1);
            bytes = rest;
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            if self.partial.is_empty() {
                line(head);
            } else {
                self.partial.extend_from_slice(head);
                line(&self.partial);
                self.partial.clear();
            }
        }
        if self.skipping {
            return;
        }
        self.partial.extend_from_slice(bytes);
        if self.partial.len() > self.longest {
            line(&self.partial);
            self.partial.clear();
            self.skipping = self.overlong == Overlong::Truncate;
        }
    }

    /// What there is of a line that is not complete.
    pub(super) fn unfinished(&self) -> &[u8] {
        &self.partial
    }

    /// The unfinished line at the end of the stream.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.partial)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn capture(limit: usize, chunks: &[&[u8]]) -> Captured {
        let mut capture = Capture::new(limit);
        chunks.iter().for_each(|chunk| capture.push(chunk));
        capture.finish()
    }

    #[test]
    fn little_output_is_kept_whole() {
        assert_eq!(capture(8, &[b"abc", b"", b"defgh"]), "abcdefgh".to_owned().into());
        assert_eq!(capture(4, &[&"é".as_bytes()[..1], &"é".as_bytes()[1..]]).text, "é");
        assert_eq!(capture(2, &["é".as_bytes()]).text, "é", "a character across the middle");
    }

    #[test]
    fn much_output_keeps_its_ends_and_says_so() {
        let captured = capture(8, &[b"0123456789", b"abcdefghij"]);
        assert_eq!(captured.text, "0123\n[... 12 bytes dropped ...]\nghij");
        assert_eq!(captured.dropped_bytes, 12);
    }

    #[test]
    fn invalid_utf8_is_replaced() {
        assert_eq!(capture(100, &[b"a\xffb"]).text, "a\u{FFFD}b");
    }

    #[test]
    fn lines_come_whole() {
        let (mut lines, mut seen) = (Lines::new(100, Overlong::Split), Vec::new());
        for chunk in ["a", "b\nc\nd", "e\n", "f"] {
            lines.push(chunk.as_bytes(), |line| seen.push(String::from_utf8(line.to_vec()).unwrap()));
        }
        assert_eq!(seen, ["ab\n", "c\n", "de\n"]);
        assert_eq!(lines.finish(), b"f");
    }

    #[test]
    fn overlong_lines_are_split_or_cut_off() {
        for (overlong, expected) in
            [(Overlong::Split, vec!["abcd", "efgh", "i\n", "j\n"]), (Overlong::Truncate, vec!["abcd", "j\n"])]
        {
            let (mut lines, mut seen) = (Lines::new(3, overlong), Vec::new());
            for chunk in ["ab", "cd", "efgh", "i\nj\n"] {
                lines.push(chunk.as_bytes(), |line| seen.push(String::from_utf8(line.to_vec()).unwrap()));
            }
            assert_eq!(seen, expected, "{overlong:?}");
        }
    }

    proptest! {
        #[test]
        fn a_ring_equals_slicing(limit in 1usize..20, chunks in prop::collection::vec("[a-z]{0,12}", 0..12)) {
            let whole = chunks.concat();
            let half = limit.div_ceil(2);
            let bytes: Vec<&[u8]> = chunks.iter().map(|chunk| chunk.as_bytes()).collect();
            let captured = capture(limit, &bytes);
            if whole.len() <= 2 * half {
                prop_assert_eq!(captured.text, whole);
            } else {
                let dropped = whole.len() - 2 * half;
                let expected = format!("{}\n[... {dropped} bytes dropped ...]\n{}", &whole[..half], &whole[whole.len() - half..]);
                prop_assert_eq!(captured.text, expected);
            }
        }
    }
}
