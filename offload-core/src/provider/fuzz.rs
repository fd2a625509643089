//! What holds for anything that a sandbox's shell may write.

use super::ExecEvent;
use super::default::fuzz::unwrapped;
use super::ssh::fuzz::between_marks;
use crate::fuzzing::{pieces, split_first};

/// However the output of a session comes, the same is found between its marks, and little is held back. A reply in JSON is
/// understood, or passed on as it came.
pub fn sandbox_output(input: &[u8]) {
    let (seed, bytes) = split_first(input);
    let whole = between_marks(&mut std::iter::once(bytes));
    assert_eq!(whole, between_marks(&mut pieces(seed, bytes)), "it depends on how the output came");

    let exit = [Some(0), Some(1), None][usize::from(seed) % 3];
    let whole = unwrapped(&mut std::iter::once(bytes), exit);
    assert_eq!(whole, unwrapped(&mut pieces(seed, bytes), exit), "it depends on how the output came");
    assert_eq!(whole.iter().filter(|event| matches!(event, ExecEvent::Exit(_))).count(), 1, "there must be one end");
    if exit.is_none() {
        assert_eq!(whole.first() == Some(&ExecEvent::Exit(None)), bytes.is_empty(), "output is lost");
    }
}
