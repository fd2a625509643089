//! Values that nobody is to read, and their removal from everything that a run says.
//!
//! Tests print what they are given, tools echo their environment when they fail, and an error shows the end of an output.
//! So what is secret is looked for in all text that leaves a run, in the forms that it takes there: as it is, line by
//! line, and as JSON, XML, Python, Rust, URLs, base64 and shells write it. What is shorter than four characters is no secret that could be kept: it would be
//! found everywhere.
//!
//! This module knows values and texts. Which values are secret is the [configuration](crate::config)'s to say, and the
//! orchestrator masks whatever becomes an [event](crate::event).

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

/// What stands in the place of a secret.
pub const MASK: &str = "***";

/// The least number of characters that are looked for.
const SHORTEST: usize = 4;

/// What is longer is looked for in the usual forms only.
const LONGEST_IN_ALL_FORMS: usize = 4096;

/// What says that a text was cut: what follows it may be the end of a secret, and what precedes it the beginning of one.
const CUTS: [&str; 4] = ["\n[... ", " bytes dropped ...]\n", "...", "…"];

/// Values that are to be masked. Cheap to clone; none are by default.
#[derive(Clone, Default)]
pub struct Secrets(Option<Arc<Known>>);

struct Known {
    values: BTreeSet<String>,
    forms: Vec<String>,
    finder: AhoCorasick,
}

impl Secrets {
    /// These values. Those that are too short are left out.
    pub fn new<S: Into<String>>(values: impl IntoIterator<Item = S>) -> Self {
        let long = |text: &str| text.chars().count() >= SHORTEST;
        let values: BTreeSet<String> = values.into_iter().map(Into::into).filter(|value| long(value)).collect();
        let mut forms = BTreeSet::new();
        for value in &values {
            // A key of many lines is mostly met line by line.
            for part in std::iter::once(value.as_str()).chain(value.lines().map(str::trim)).filter(|part| long(part)) {
                forms.extend(spellings(part));
            }
        }
        let forms: Vec<String> = forms.into_iter().collect();
        if forms.is_empty() {
            return Self(None);
        }
        match AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&forms) {
            Ok(finder) => Self(Some(Arc::new(Known { values, forms, finder }))),
            // The library takes gigabytes of patterns; an environment cannot hold them.
            Err(error) => {
                tracing::error!(%error, "secrets cannot be looked for");
                Self(None)
            }
        }
    }

    /// Whether there is nothing to mask.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The values themselves.
    pub fn values(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|known| known.values.iter().map(String::as_str))
    }

    /// Whether one of them is in `text`, as it is.
    pub fn are_in(&self, text: &str) -> bool {
        self.values().any(|value| text.contains(value))
    }

    /// `text` without them. What is left of one where the text was cut is masked, too.
    pub fn mask<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let Some(known) = &self.0 else { return Cow::Borrowed(text) };
        let mut ranges: Vec<(usize, usize)> =
            known.finder.find_iter(text).map(|found| (found.start(), found.end())).collect();
        for cut in CUTS {
            for (at, _) in text.match_indices(cut) {
                ranges.extend(known.beginning_at_end(&text[..at]));
                let after = at + cut.len();
                ranges.extend(known.end_at_beginning(&text[after..]).map(|(from, to)| (after + from, after + to)));
            }
        }
        if ranges.is_empty() {
            return Cow::Borrowed(text);
        }
        ranges.sort_unstable();
        let mut masked = String::with_capacity(text.len());
        let mut done = 0;
        for (from, to) in ranges {
            if from >= done {
                masked.push_str(&text[done..from]);
                masked.push_str(MASK);
            }
            done = done.max(to);
        }
        masked.push_str(&text[done..]);
        Cow::Owned(masked)
    }

    /// As [`Self::mask`], for JSON that somebody else has written: only strings that are values can hold a secret, and what
    /// comes of it is JSON, too.
    pub fn mask_json<'t>(&self, json: &'t str) -> Cow<'t, str> {
        if matches!(self.mask(json), Cow::Borrowed(_)) {
            return Cow::Borrowed(json);
        }
        let mut masked = String::with_capacity(json.len());
        let mut rest = json;
        while let Some(quote) = rest.find('"') {
            let (before, string) = rest.split_at(quote + 1);
            masked.push_str(before);
            let mut escaped = false;
            let end = string.bytes().position(|byte| {
                let ends = byte == b'"' && !escaped;
                escaped = byte == b'\\' && !escaped;
                ends
            });
            let (content, after) = string.split_at(end.unwrap_or(string.len()));
            let is_key = after.get(1..).is_some_and(|after| after.trim_start().starts_with(':'));
            masked.push_str(&if is_key { Cow::Borrowed(content) } else { self.mask(content) });
            masked.push_str(&after[..after.len().min(1)]);
            rest = after.get(1..).unwrap_or_default();
        }
        masked.push_str(rest);
        Cow::Owned(masked)
    }

    /// Masks `text` where it is.
    pub fn mask_in(&self, text: &mut String) {
        if let Cow::Owned(masked) = self.mask(text) {
            *text = masked;
        }
    }

    /// Masks a shared text; it is copied only where there is something to mask.
    pub fn mask_shared(&self, text: &mut Arc<str>) {
        if let Cow::Owned(masked) = self.mask(text) {
            *text = masked.into();
        }
    }

    /// How many bytes at the end of `text` may be the beginning of a secret of which more is to come.
    fn unfinished(&self, text: &str) -> usize {
        let begins = |known: &Arc<Known>| {
            let candidates = known.forms.iter().flat_map(|form| prefixes(form));
            candidates.filter(|prefix| text.ends_with(prefix)).map(str::len).max()
        };
        self.0.as_ref().and_then(begins).unwrap_or(0)
    }
}

impl Known {
    fn beginning_at_end(&self, text: &str) -> Option<(usize, usize)> {
        let found = self.forms.iter().flat_map(|form| prefixes(form));
        let longest = found.filter(|prefix| prefix.chars().count() >= SHORTEST && text.ends_with(prefix)).map(str::len);
        longest.max().map(|length| (text.len() - length, text.len()))
    }

    fn end_at_beginning(&self, text: &str) -> Option<(usize, usize)> {
        let suffixes = self.forms.iter().flat_map(|form| form.char_indices().skip(1).map(|(at, _)| &form[at..]));
        let longest = suffixes.filter(|suffix| suffix.chars().count() >= SHORTEST && text.starts_with(suffix));
        longest.map(str::len).max().map(|length| (0, length))
    }
}

/// Everything that `form` begins with, but for itself.
fn prefixes(form: &str) -> impl Iterator<Item = &str> {
    form.char_indices().skip(1).map(|(at, _)| &form[..at])
}

impl PartialEq for Secrets {
    fn eq(&self, other: &Self) -> bool {
        self.values().eq(other.values())
    }
}

/// Values are not shown, whoever asks.
impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Secrets").field(&self.values().count()).finish()
    }
}

/// The forms in which `value` is written: as it is, in XML, in Python and in a shell, and all of these in JSON (also in JSON
/// within JSON).
fn spellings(value: &str) -> BTreeSet<String> {
    let json = |text: &str| {
        let quoted = serde_json::Value::from(text).to_string();
        quoted[1..quoted.len() - 1].to_owned()
    };
    let ascii = |text: &str| {
        let mut escaped = String::new();
        let mut units = [0; 2];
        for c in text.chars() {
            if c.is_ascii() {
                escaped.push(c);
            } else {
                escaped.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
            }
        }
        escaped
    };
    let xml = value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let quoted_xml = xml.replace('"', "&quot;");
    // As Python shows a string, in either kind of quotation marks, and as it stands in a shell's.
    let repr = value.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t");
    let quoted_repr = repr.replace('\'', "\\'");
    let shell = value.replace('\'', "'\\''");
    let mut all = BTreeSet::from([value.to_owned(), quoted_xml.replace('\'', "&apos;"), xml, quoted_xml]);
    all.extend([repr, quoted_repr, shell]);
    if value.len() <= LONGEST_IN_ALL_FORMS {
        all.extend(python_escapes(value));
        all.extend(encodings(value));
    }
    // Python writes JSON in ASCII.
    for _ in 0..2 {
        let more: Vec<String> = all.iter().flat_map(|text| [json(text), ascii(&json(text))]).collect();
        all.extend(more);
    }
    all
}

/// As Python writes a string in ASCII (`ascii()`, ids of pytest's), and as it shows the bytes of one.
fn python_escapes(value: &str) -> Vec<String> {
    let plain = |c: char| match c {
        '\\' => Some("\\\\".to_owned()),
        '\n' => Some("\\n".to_owned()),
        '\r' => Some("\\r".to_owned()),
        '\t' => Some("\\t".to_owned()),
        ' '..='~' => Some(c.to_string()),
        _ => None,
    };
    let ascii: String = value
        .chars()
        .map(|c| {
            plain(c).unwrap_or_else(|| match u32::from(c) {
                code @ 0..=0xff => format!("\\x{code:02x}"),
                code @ 0x100..=0xffff => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            })
        })
        .collect();
    let bytes: String = value
        .bytes()
        .map(|byte| {
            Some(byte).filter(u8::is_ascii).and_then(|byte| plain(byte.into())).unwrap_or(format!("\\x{byte:02x}"))
        })
        .collect();
    let quoted = [ascii.replace('\'', "\\'"), bytes.replace('\'', "\\'")];
    quoted.into_iter().chain([ascii, bytes]).collect()
}

/// As it stands in a URL, in base64, in a word of a shell, in Rust, and as an attribute of XML with its lines.
fn encodings(value: &str) -> Vec<String> {
    let percent = |kept: &str, space: &str, lower: bool| -> String {
        let escape = |byte: u8| match byte {
            b' ' => space.to_owned(),
            byte if byte.is_ascii_alphanumeric() || kept.as_bytes().contains(&byte) => char::from(byte).to_string(),
            byte if lower => format!("%{byte:02x}"),
            byte => format!("%{byte:02X}"),
        };
        value.bytes().map(escape).collect()
    };
    let mut forms = Vec::new();
    for kept in ["-_.~", "-_.~/", "-_.!~*'()", "-_.!~*'();/?:@&=+$,#"] {
        for space in ["%20", "+"] {
            forms.extend([percent(kept, space, false), percent(kept, space, true)]);
        }
    }
    let base64 = [STANDARD.encode(value), URL_SAFE.encode(value)];
    forms.extend(base64.iter().map(|text| text.trim_end_matches('=').to_owned()));
    // `printf %q`.
    let special = |c: char| c.is_ascii() && !c.is_ascii_alphanumeric() && !"-_./:=@%+,^~".contains(c);
    forms.push(value.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect());
    let rust = format!("{value:?}");
    forms.push(rust[1..rust.len() - 1].to_owned());
    let xml = value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    forms.push(xml.replace('\n', "&#10;").replace('\r', "&#13;").replace('\t', "&#9;"));
    forms.push(xml.replace('\'', "&apos;").replace('\n', "&#10;").replace('\r', "&#13;").replace('\t', "&#9;"));
    forms.retain(|form| form.chars().count() >= SHORTEST);
    forms
}

/// A text that comes in pieces. What may be the beginning of a secret is held back until more of it has come.
#[derive(Debug, Default)]
pub struct Pieces {
    held: String,
}

impl Pieces {
    /// What can be shown of all that has come so far, and was not shown yet.
    pub fn push(&mut self, secrets: &Secrets, piece: &str) -> String {
        self.held.push_str(piece);
        secrets.mask_in(&mut self.held);
        let end = self.held.len() - secrets.unfinished(&self.held);
        let rest = self.held.split_off(end);
        std::mem::replace(&mut self.held, rest)
    }

    /// What was held back, when nothing more will come.
    pub fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn masked(secrets: &[&str], text: &str) -> String {
        Secrets::new(secrets.iter().copied()).mask(text).into_owned()
    }

    #[test]
    fn secrets_are_masked_in_every_form_that_they_take() {
        let value = "p<\"&'ä\\w0rd";
        for text in [
            value.to_owned(),
            serde_json::json!({ "token": value }).to_string(),
            serde_json::json!(serde_json::json!({ "token": value }).to_string()).to_string(),
            r#"{"token": "p<\"&'\u00e4\\w0rd"}"#.to_owned(),
            "<x>p&lt;\"&amp;'ä\\w0rd</x>".to_owned(),
            "{'x': 'p<\"&\\'ä\\\\w0rd'}".to_owned(),
            crate::connector::quote(value),
            "<x a='p&lt;&quot;&amp;&apos;ä\\w0rd'/>".to_owned(),
        ] {
            let masked = masked(&[value], &text);
            assert!(!masked.contains("w0rd") && masked.contains(MASK), "{text}: {masked}");
        }
    }

    /// Each line is what another program makes of the value; the first three are Python's `ascii`, `repr` of its bytes and
    /// `json.dumps`.
    #[test]
    fn secrets_beyond_ascii_are_masked_as_other_programs_write_them() {
        let value = "pä€😀 'w0rd/&x";
        for text in [
            r#""p\xe4\u20ac\U0001f600 'w0rd/&x""#,
            r#"b"p\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80 'w0rd/&x""#,
            r#""p\u00e4\u20ac\ud83d\ude00 'w0rd/&x""#,
            "https://host/?q=p%C3%A4%E2%82%AC%F0%9F%98%80%20%27w0rd%2F%26x",
            "https://host/?q=p%C3%A4%E2%82%AC%F0%9F%98%80+%27w0rd%2F%26x",
            "https://host/p%c3%a4%e2%82%ac%f0%9f%98%80%20%27w0rd/%26x",
            "cMOk4oKs8J+YgCAndzByZC8meA==",
            "cMOk4oKs8J-YgCAndzByZC8meA==",
            r"pä€😀\ \'w0rd/\&x",
            r#"{"text": "test_a[p\\xe4\\u20ac\\U0001f600 'w0rd/&x]"}"#,
            "<a b=\"pä€😀 &apos;w0rd/&amp;x\"/>",
        ] {
            let masked = masked(&[value], text);
            assert!(masked.contains(MASK), "{text}: {masked}");
            assert!(!masked.contains("w0rd") && !masked.contains("cMOk"), "{text}: {masked}");
        }
    }

    proptest! {
        #[test]
        fn a_secret_is_found_in_what_is_made_of_it(value in "[a-zä€😀 '\"\\\\&<>/\\n\\t]{4,20}") {
            let secrets = Secrets::new([value.as_str()]);
            for form in spellings(&value).into_iter().filter(|form| form.chars().count() >= SHORTEST) {
                let masked = secrets.mask(&form).into_owned();
                prop_assert!(masked.contains(MASK) || value.trim().chars().count() < SHORTEST, "{:?}: {:?}", form, masked);
                prop_assert!(!masked.contains(&form) || masked.len() < SHORTEST, "{:?}", masked);
            }
        }
    }

    #[test]
    fn each_line_of_a_key_is_a_secret() {
        let key = "-----BEGIN KEY-----\nMIIEvQIBADANBg\nabc\n-----END KEY-----\n";
        assert_eq!(masked(&[key], "read MIIEvQIBADANBg, abc"), "read ***, abc");
        assert_eq!(masked(&[key], &format!("<{key}>")), "<***>");
    }

    #[test]
    fn what_is_too_short_is_left_and_the_longest_goes_first() {
        assert!(Secrets::new(["abc", "", "äöü"]).is_empty());
        assert_eq!(masked(&["abcd", "abcdef"], "abcdefg abcd"), "***g ***");
        assert_eq!(masked(&["äöüß"], "äöüß"), MASK);
    }

    #[test]
    fn what_a_cut_has_left_of_a_secret_is_masked() {
        let cut = |text: &str| masked(&["hunter2hunter2"], text);
        assert_eq!(cut("a hunter2hu\n[... 9 bytes dropped ...]\nter2 b"), "a ***\n[... 9 bytes dropped ...]\n*** b");
        assert_eq!(cut("'hunter2...unter2'"), "'***...***'");
        assert_eq!(cut("run hunter2h…"), "run ***…");
        // Too little to tell anything.
        assert_eq!(cut("the hun..."), "the hun...");
        assert_eq!(cut("hunter is no secret"), "hunter is no secret");
    }

    #[test]
    fn json_stays_json() {
        let secrets = Secrets::new(["true", "1234", "when", "a\"b\\c"]);
        let json = r#"{"when": "it is true", "n": 1234, "ok": true, "s": "when\" a\"b\\c \\", "l": ["1234"]}"#;
        let masked = secrets.mask_json(json);
        assert_eq!(masked, r#"{"when": "it is ***", "n": 1234, "ok": true, "s": "***\" *** \\", "l": ["***"]}"#);
        assert!(serde_json::from_str::<serde_json::Value>(&masked).is_ok());
        assert!(matches!(Secrets::new(["else"]).mask_json(json), Cow::Borrowed(_)));
    }

    #[test]
    fn values_are_not_shown_to_those_who_debug() {
        assert_eq!(format!("{:?}", Secrets::new(["hunter2"])), "Secrets(1)");
    }

    fn boundary(text: &str, at: usize) -> usize {
        (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap()
    }

    proptest! {
        #[test]
        fn pieces_make_the_same_text_however_they_are_cut(
            words in prop::collection::vec(prop::sample::select(vec!["hunter2", "hunt", "er2", "x", "\n", "ä", "hun"]), 0..20),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let secrets = Secrets::new(["hunter2", "2hunt"]);
            let text = words.concat();
            let mut places: Vec<usize> = cuts.iter().map(|cut| boundary(&text, cut.index(text.len() + 1))).collect();
            places.extend([0, text.len()]);
            places.sort_unstable();
            let mut pieces = Pieces::default();
            let mut shown = String::new();
            for pair in places.windows(2) {
                shown.push_str(&pieces.push(&secrets, &text[pair[0]..pair[1]]));
            }
            shown.push_str(&pieces.finish());
            for value in secrets.values() {
                prop_assert!(!shown.contains(value), "{shown:?}");
            }
            prop_assert_eq!(shown.matches("***").count() > 0, text.contains("hunter2") || text.contains("2hunt"));
        }
    }
}
