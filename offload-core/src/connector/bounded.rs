//! The beginning and the end of an output that may be of any length.

use std::collections::VecDeque;

/// Keeps the first and the last half of `limit` bytes.
#[derive(Debug)]
pub(super) struct HeadTail {
    half: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    dropped: u64,
}

impl HeadTail {
    pub(super) fn new(limit: usize) -> Self {
        Self { half: limit / 2, head: Vec::new(), tail: VecDeque::new(), dropped: 0 }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let (first, rest) = bytes.split_at(bytes.len().min(self.half - self.head.len()));
        self.head.extend_from_slice(first);
        // Of a piece that is longer than the tail only its end matters.
        let skipped = rest.len().saturating_sub(self.half);
        let excess = (self.tail.len() + rest.len() - skipped).saturating_sub(self.half);
        self.tail.drain(..excess);
        self.tail.extend(&rest[skipped..]);
        self.dropped += (skipped + excess) as u64;
    }

    /// What was kept; where something is missing, a line says how much.
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        if self.dropped > 0 {
            self.head.extend_from_slice(format!("\n[... {} bytes dropped ...]\n", self.dropped).as_bytes());
        }
        self.head.extend(self.tail);
        self.head
    }
}

#[cfg(test)]
mod tests {
    use super::HeadTail;

    #[test]
    fn keeps_everything_up_to_the_limit() {
        let mut kept = HeadTail::new(10);
        kept.push(b"0123");
        kept.push(b"456789");
        assert_eq!(kept.into_bytes(), b"0123456789");
    }

    #[test]
    fn keeps_both_ends_and_counts_what_is_between() {
        for step in [1, 2, 3, 7, 100] {
            let all: Vec<u8> = (0..100).map(|n| b'a' + n % 26).collect();
            let mut kept = HeadTail::new(10);
            all.chunks(step).for_each(|piece| kept.push(piece));
            let expected = [&all[..5], b"\n[... 90 bytes dropped ...]\n", &all[95..]].concat();
            assert_eq!(kept.into_bytes(), expected, "in steps of {step}");
        }
    }
}
