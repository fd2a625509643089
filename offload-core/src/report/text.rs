//! Text that came from tests, made fit for where it is shown.
//!
//! What a test writes and how it is named is untrusted: it can hold escape sequences that move the cursor, bytes that
//! XML forbids, or a hundred thousand lines. Every report takes such text through this module; what is shown where is
//! the business of the reports.

use std::borrow::Cow;
use std::fmt::Write as _;

use console::AnsiCodeIterator;

/// Text without escape sequences and without control characters other than line feed and tab.
///
/// Carriage returns become line feeds (one for `\r\n`), so that what a progress bar wrote stays readable.
pub fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for (part, is_escape) in AnsiCodeIterator::new(text) {
        if !is_escape {
            push_printable(&mut out, part);
        }
    }
    Cow::Owned(out)
}

/// Like [`plain`], but colours and other text attributes (SGR sequences) are kept and reset at the end.
pub fn colored(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut styled = false;
    for (part, is_escape) in AnsiCodeIterator::new(text) {
        if !is_escape {
            push_printable(&mut out, part);
        } else if part.starts_with("\u{1b}[") && part.ends_with('m') {
            out.push_str(part);
            styled = !(part == "\u{1b}[0m" || part == "\u{1b}[m");
        }
    }
    if styled {
        out.push_str("\u{1b}[0m");
    }
    Cow::Owned(out)
}

/// A name on one line: control characters are written as escapes (`\n`, `\u{1b}`).
pub fn name(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Text for an XML 1.0 document: escape sequences are removed, other characters that XML forbids are replaced by
/// U+FFFD. Markup is not escaped here.
pub fn xml(text: &str) -> Cow<'_, str> {
    let clean = if text.contains('\u{1b}') { console::strip_ansi_codes(text) } else { Cow::Borrowed(text) };
    if !clean.contains(is_forbidden_in_xml) {
        return clean;
    }
    Cow::Owned(clean.chars().map(|c| if is_forbidden_in_xml(c) { char::REPLACEMENT_CHARACTER } else { c }).collect())
}

/// Shortens `text` to `width` columns by cutting its beginning: the end of a test's name says most.
pub fn keep_end(text: &str, width: usize) -> Cow<'_, str> {
    if console::measure_text_width(text) <= width {
        return Cow::Borrowed(text);
    }
    let Some(room) = width.checked_sub(1) else { return Cow::Borrowed("") };
    let mut columns = 0;
    let mut start = text.len();
    for (index, c) in text.char_indices().rev() {
        columns += console::measure_text_width(c.encode_utf8(&mut [0; 4]));
        if columns > room {
            break;
        }
        start = index;
    }
    Cow::Owned(format!("…{}", &text[start..]))
}

/// The beginning and the end of `text` in at most about `limit` bytes, cut at characters, with a line in the middle
/// that says how much is missing, `dropped` included: what was missing before.
pub fn bound_bytes(text: &str, limit: usize, dropped: u64) -> Cow<'_, str> {
    if text.len() <= limit {
        return Cow::Borrowed(text);
    }
    let boundary = |index: &usize| text.is_char_boundary(*index);
    let head = (0..=limit / 2).rev().find(boundary).unwrap_or(0);
    let tail = (text.len() - limit / 2..=text.len()).find(boundary).unwrap_or(text.len());
    let dropped = dropped + (tail - head) as u64;
    Cow::Owned(format!("{}\n[... {dropped} bytes dropped ...]\n{}", &text[..head], &text[tail..]))
}

/// The first and the last lines of `text`, at most `limit` of them, with a line in between that says how many are
/// missing and `hint` at where they are.
pub fn bound_lines<'a>(text: &'a str, limit: usize, hint: &str) -> Cow<'a, str> {
    let total = text.lines().count();
    if total <= limit {
        return Cow::Borrowed(text);
    }
    let head = limit / 2;
    let tail = limit - head;
    let mut out = String::new();
    for line in text.lines().take(head) {
        let _ = writeln!(out, "{line}");
    }
    let _ = writeln!(out, "[... {} lines left out{hint} ...]", total - limit);
    for line in text.lines().skip(total - tail) {
        let _ = writeln!(out, "{line}");
    }
    Cow::Owned(out)
}

/// `1 test`, `2 tests`.
pub fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

fn is_unprintable(c: char) -> bool {
    c.is_control() && c != '\n' && c != '\t'
}

fn is_forbidden_in_xml(c: char) -> bool {
    matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}')
}

fn push_printable(out: &mut String, text: &str) {
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\r' {
            if chars.peek() != Some(&'\n') {
                out.push('\n');
            }
        } else if !is_unprintable(c) {
            out.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_has_no_control_characters_left() {
        assert_eq!(plain("a\u{1b}[31mred\u{1b}[0m\tb\r\nc\rd\u{7}\u{9b}\u{1b}]0;title\u{7}e\0"), "ared\tb\nc\nde");
        assert!(matches!(plain("nothing to do\n"), Cow::Borrowed(_)));
        let every: String = (0..0x300).filter_map(char::from_u32).chain("\u{1b}[".chars()).collect();
        assert!(!plain(&every).contains(is_unprintable), "a broken sequence slips through");
    }

    #[test]
    fn colors_are_kept_and_ended_and_cursor_moves_are_not() {
        assert_eq!(colored("\u{1b}[2J\u{1b}[1;31mred\u{1b}[3A"), "\u{1b}[1;31mred\u{1b}[0m");
        assert_eq!(colored("\u{1b}[31mred\u{1b}[0m."), "\u{1b}[31mred\u{1b}[0m.");
    }

    #[test]
    fn names_stay_on_one_line() {
        assert_eq!(name("a\nb\u{1b}[0m<é>"), "a\\nb\\u{1b}[0m<é>");
    }

    #[test]
    fn xml_text_has_only_what_xml_allows() {
        assert_eq!(xml("a\0b\u{1b}[31mc\u{1b}[0m\u{1b}\u{ffff}\t\r\né😀"), "a\u{fffd}bc\u{fffd}\u{fffd}\t\r\né😀");
    }

    #[test]
    fn shortening_keeps_the_end_and_the_width() {
        assert_eq!(keep_end("crate tests::name", 30), "crate tests::name");
        assert_eq!(keep_end("crate tests::name", 7), "…::name");
        assert_eq!(keep_end("日本語日本語", 5), "…本語");
        assert_eq!(keep_end("abc", 0), "");
    }

    #[test]
    fn bounded_text_says_what_is_missing() {
        assert_eq!(bound_bytes("äöüäöü", 4, 0), "ä\n[... 8 bytes dropped ...]\nü");
        assert_eq!(bound_lines("1\n2\n3\n4\n5\n", 2, " (see x)"), "1\n[... 3 lines left out (see x) ...]\n5\n");
        assert_eq!(bound_lines("1\n2\n", 2, ""), "1\n2\n");
    }
}
