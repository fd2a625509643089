//! What holds for any history file.

use super::*;
use crate::fuzzing::split_first;

/// An input: the size of reservoirs, and two histories with a NUL between. What is written is read again the same, what
/// cannot be read stays, and merging does not depend on the order of the sides.
pub fn history(input: &[u8]) {
    let (size, text) = split_first(input);
    let size = usize::from(size % 24);
    let mut parts = text.splitn(2, |byte| *byte == 0);
    let (ours, damages) = History::parse(parts.next().unwrap_or_default());
    let (theirs, _) = History::parse(parts.next().unwrap_or_default());
    assert!(damages.len() <= ours.foreign.len(), "a line is damaged and not kept");
    check(&ours);
    check(&theirs);

    let base = History::default();
    for base in [&base, &theirs] {
        let merged = merge(&ours, &theirs, base, size);
        assert_eq!(merged.tests, merge(&theirs, &ours, base, size).tests, "it depends on the order of the sides");
        check(&merged);
        for entry in merged.tests.values() {
            assert!(entry.passed.samples.len() <= size && entry.failed.samples.len() <= size);
        }
    }
    let merged = merge(&ours, &ours, &ours, usize::MAX);
    let ids = |history: &History| history.tests.keys().cloned().collect::<Vec<_>>();
    assert_eq!(ids(&merged), ids(&ours), "a history that nobody has changed has changed");

    let mut grown = ours.clone();
    for id in ours.ids().map(str::to_owned).collect::<Vec<_>>() {
        grown.record(&id, TestOutcome::Passed, Duration::from_millis(5), size);
        assert!(grown.tests[&id].passed.samples.len() <= size);
        assert_eq!(grown.expected(&id).is_some(), grown.entry(&id).is_some_and(Entry::has_samples));
    }
    check(&grown);
}

fn check(history: &History) {
    let mut text = history.to_jsonl().into_bytes();
    for line in &history.foreign {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    let (again, _) = History::parse(&text);
    assert_eq!(again.tests, history.tests, "what is written is read otherwise");
    assert_eq!(again.foreign, history.foreign, "a line that is not ours is lost");
    for id in history.ids() {
        history.expected(id);
    }
}

impl Entry {
    fn has_samples(&self) -> bool {
        !self.passed.samples.is_empty() || !self.failed.samples.is_empty()
    }
}
