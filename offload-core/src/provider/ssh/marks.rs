//! Marks in the output of a session: where that of our own begins, after whatever a login shell has printed, and where it
//! ends, whatever still holds the pipe open.
//!
//! A mark is a byte that text does not have and a word that nobody can guess, so it can stand anywhere, in binary data
//! too. Only what may be the beginning of a mark is held back, so a line is never delayed.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

/// Begins every mark.
const FIRST: u8 = 0x1e;

/// Finds the marks of one session in one of its streams.
#[derive(Debug)]
pub(super) struct Marks {
    mark: Vec<u8>,
    /// What has come and not been handed out.
    buffer: Vec<u8>,
    state: State,
    /// How much stands before the first mark.
    skipped: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Before,
    Within,
    After,
}

/// What has come of a piece of output.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The rest of the line with the first mark.
    pub(super) began: Option<String>,
    /// Output of the command.
    pub(super) bytes: Vec<u8>,
    /// The rest of the line with the last mark.
    pub(super) ended: Option<String>,
}

/// The most that may stand before the first mark: a login shell that prints without end is none.
pub(super) const LONGEST_BANNER: usize = 1 << 20;

impl Marks {
    pub(super) fn new(nonce: &str) -> Self {
        let mark = [&[FIRST], nonce.as_bytes()].concat();
        Self { mark, buffer: Vec::new(), state: State::Before, skipped: 0 }
    }

    /// Whether the first mark has been found.
    pub(super) fn has_begun(&self) -> bool {
        self.state != State::Before
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state == State::After
    }

    /// Whether it is hopeless that the first mark will still come.
    pub(super) fn is_lost(&self) -> bool {
        self.skipped > LONGEST_BANNER
    }

    /// What has come before the first mark and was kept.
    pub(super) fn banner(&self) -> &[u8] {
        &self.buffer
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Found {
        let mut found = Found::default();
        if self.state == State::After {
            return found;
        }
        self.buffer.extend_from_slice(bytes);
        if self.state == State::Before {
            self.skipped += bytes.len();
            match self.line() {
                Some((_, rest, next)) => {
                    self.buffer.drain(..next);
                    found.began = Some(rest);
                    self.state = State::Within;
                }
                None => {
                    // The end is what errors show; a mark is shorter.
                    let surplus = self.buffer.len().saturating_sub(8 << 10);
                    self.buffer.drain(..surplus);
                    return found;
                }
            }
        }
        match self.line() {
            Some((at, rest, _)) => {
                found.bytes = self.buffer.drain(..at).collect();
                self.buffer = Vec::new();
                found.ended = Some(rest);
                self.state = State::After;
            }
            None => {
                let safe = self.safe();
                found.bytes = self.buffer.drain(..safe).collect();
            }
        }
        found
    }

    /// What is left when the stream has ended.
    pub(super) fn rest(&mut self) -> Vec<u8> {
        if self.state == State::Within { std::mem::take(&mut self.buffer) } else { Vec::new() }
    }

    /// Where the next mark begins, what follows it on its line, and where the next line begins.
    fn line(&self) -> Option<(usize, String, usize)> {
        let mut from = 0;
        loop {
            let at = from + self.buffer.get(from..)?.iter().position(|byte| *byte == FIRST)?;
            let rest = &self.buffer[at..];
            if let Some(line) = rest.strip_prefix(self.mark.as_slice()) {
                let length = line.iter().position(|byte| *byte == b'\n')?;
                let text = String::from_utf8_lossy(&line[..length]).trim().to_owned();
                return Some((at, text, at + self.mark.len() + length + 1));
            }
            from = at + 1;
        }
    }

    /// How much of the buffer is surely before the next mark.
    fn safe(&self) -> usize {
        let mut from = 0;
        while let Some(at) = self.buffer[from..].iter().position(|byte| *byte == FIRST) {
            let rest = &self.buffer[from + at..];
            if rest.starts_with(&self.mark) || self.mark.starts_with(rest) {
                return from + at;
            }
            from += at + 1;
        }
        self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a stream, in pieces of `size`.
    fn read(stream: &[u8], size: usize) -> (Option<String>, Vec<u8>, Option<String>) {
        let mut marks = Marks::new("abc");
        let mut all = Found::default();
        for piece in stream.chunks(size) {
            let found = marks.push(piece);
            all.began = all.began.or(found.began);
            all.bytes.extend(found.bytes);
            all.ended = all.ended.or(found.ended);
        }
        all.bytes.extend(marks.rest());
        (all.began, all.bytes, all.ended)
    }

    #[test]
    fn what_is_between_the_marks_is_the_output_however_it_comes() {
        let stream = b"Welcome!\n\x1eab\n\x1eabc 17\nbinary \x1e\x1eab\x00\xff\n\x1eabc 3\nof no interest";
        for size in 1..=stream.len() {
            let (began, bytes, ended) = read(stream, size);
            assert_eq!(began.as_deref(), Some("17"));
            assert_eq!(bytes, b"binary \x1e\x1eab\x00\xff\n");
            assert_eq!(ended.as_deref(), Some("3"));
        }
    }

    #[test]
    fn a_line_is_not_held_back() {
        let mut marks = Marks::new("abc");
        marks.push(b"\x1eabc\n");
        assert_eq!(marks.push(b"{}\n").bytes, b"{}\n");
        assert_eq!(marks.push(b"x\x1e").bytes, b"x");
        assert_eq!(marks.push(b"y\x1ea").bytes, b"\x1ey");
        assert_eq!(marks.rest(), b"\x1ea");
    }

    #[test]
    fn a_banner_without_end_is_noticed_and_its_end_kept() {
        let mut marks = Marks::new("abc");
        while !marks.is_lost() {
            assert_eq!(marks.push(&[b'x'; 4096]), Found::default());
        }
        marks.push(b"the end");
        assert!(marks.banner().ends_with(b"xthe end") && marks.banner().len() <= 8 << 10);
        assert!(!marks.has_begun());
    }
}
