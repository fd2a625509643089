//! Marks, for those who check what holds for any output.

use super::Marks;

/// What stands with the first mark, between the marks, and with the last.
pub(crate) fn between_marks(pieces: &mut dyn Iterator<Item = &[u8]>) -> (Option<String>, Vec<u8>, Option<String>) {
    let mut marks = Marks::new("abc");
    let (mut began, mut bytes, mut ended) = (None, Vec::new(), None);
    for piece in pieces {
        let found = marks.push(piece);
        began = began.or(found.began);
        bytes.extend(found.bytes);
        ended = ended.or(found.ended);
        assert_eq!((began.is_some(), ended.is_some()), (marks.has_begun(), marks.has_ended()));
        if !marks.has_begun() {
            assert!(marks.banner().len() <= 8 << 10, "{} bytes of a banner are kept", marks.banner().len());
        }
    }
    bytes.extend(marks.rest());
    (began, bytes, ended)
}
