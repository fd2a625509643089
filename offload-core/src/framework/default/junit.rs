//! Reading the JUnit XML that other test runners write.
//!
//! There is no one JUnit format. What is read here is what they have in common: `testcase` elements anywhere, with
//! `name`, `classname` and `time`, and in them `failure`, `error`, `skipped`, `system-out` and `system-err`.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

use std::time::Duration;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use crate::framework::{Captured, TestOutcome, TestResult};

/// One `testcase`.
#[derive(Debug)]
pub(in crate::framework) struct Case {
    pub(in crate::framework) name: String,
    pub(in crate::framework) classname: String,
    pub(in crate::framework) result: TestResult,
}

impl Case {
    /// The test id by a format of `{name}` and `{classname}`; the name alone when the format is empty.
    pub(super) fn id(&self, format: &str) -> String {
        if format.is_empty() { self.name.clone() } else { id(format, &self.name, &self.classname) }
    }
}

/// A test id by a format of `{name}` and `{classname}`.
pub(in crate::framework) fn id(format: &str, name: &str, classname: &str) -> String {
    // In one pass: a name may contain `{name}`.
    let mut id = String::new();
    let mut rest = format;
    while let Some(start) = rest.find('{') {
        id.push_str(&rest[..start]);
        rest = &rest[start..];
        if let Some(after) = rest.strip_prefix("{name}") {
            id.push_str(name);
            rest = after;
        } else if let Some(after) = rest.strip_prefix("{classname}") {
            id.push_str(classname);
            rest = after;
        } else {
            id.push('{');
            rest = &rest[1..];
        }
    }
    id + rest
}

/// Adds what a second case of the same test says: the worse outcome counts.
pub(super) fn merge(result: &mut TestResult, other: TestResult) {
    let weight = |outcome| match outcome {
        TestOutcome::Skipped => 0,
        TestOutcome::Passed => 1,
        TestOutcome::Failed => 3,
        _ => 2,
    };
    let duration = result.duration.saturating_add(other.duration);
    if weight(other.outcome) > weight(result.outcome) {
        *result = other;
    }
    result.duration = duration;
}

/// What the text being read belongs to.
#[derive(Clone, Copy)]
enum Part {
    Details,
    Stdout,
    Stderr,
}

/// All cases of a file, or what is wrong with it.
pub(in crate::framework) fn parse(bytes: &[u8]) -> Result<Vec<Case>, String> {
    // Whatever the tests wrote is in there; it need not be UTF-8.
    let text = String::from_utf8_lossy(bytes);
    let mut reader = Reader::from_str(&text);
    let mut cases = Vec::new();
    let mut case: Option<Case> = None;
    let mut part: Option<Part> = None;
    let mut open = 0_usize;
    loop {
        let event = reader.read_event().map_err(|error| format!("{error} (at byte {})", reader.error_position()))?;
        match event {
            Event::Start(element) => {
                open += 1;
                enter(&element, &mut case, &mut part)?;
            }
            Event::Empty(element) => {
                enter(&element, &mut case, &mut part)?;
                leave(element.local_name().as_ref(), &mut case, &mut part, &mut cases);
            }
            Event::End(element) => {
                open = open.saturating_sub(1);
                leave(element.local_name().as_ref(), &mut case, &mut part, &mut cases);
            }
            Event::Text(text) => add(&mut case, part, &text),
            Event::CData(text) => add(&mut case, part, &text),
            Event::GeneralRef(reference) => {
                let name = reference.to_string();
                let resolved = match name.as_str() {
                    "lt" => Some('<'),
                    "gt" => Some('>'),
                    "amp" => Some('&'),
                    "quot" => Some('"'),
                    "apos" => Some('\''),
                    _ => reference.resolve_char_ref().ok().flatten(),
                };
                match resolved {
                    Some(c) => add(&mut case, part, c.encode_utf8(&mut [0; 4])),
                    None => add(&mut case, part, &format!("&{name};")),
                }
            }
            Event::Eof if open > 0 => return Err("the file ends in the middle".to_owned()),
            Event::Eof => return Ok(cases),
            _ => {}
        }
    }
}

fn enter(element: &BytesStart<'_>, case: &mut Option<Case>, part: &mut Option<Part>) -> Result<(), String> {
    let (mut name, mut classname, mut message, mut time) = (None, None, None, None);
    for attribute in element.attributes() {
        let attribute = attribute.map_err(|error| error.to_string())?;
        let slot = match attribute.key.local_name().as_ref() {
            "name" => &mut name,
            "classname" => &mut classname,
            "message" => &mut message,
            "time" => &mut time,
            _ => continue,
        };
        // Unescaped, but not normalised: test names contain newlines and tabs.
        *slot = Some(quick_xml::escape::unescape(&attribute.value).map_err(|error| error.to_string())?.into_owned());
    }
    let outcome = match element.local_name().as_ref() {
        "testcase" => {
            let seconds = time.and_then(|time| time.replace(',', "").trim().parse().ok());
            let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or_default();
            *case = Some(Case {
                name: name.unwrap_or_default(),
                classname: classname.unwrap_or_default(),
                result: TestResult::new(TestOutcome::Passed, duration),
            });
            *part = None;
            return Ok(());
        }
        "failure" => TestOutcome::Failed,
        "error" => TestOutcome::Error,
        "skipped" => TestOutcome::Skipped,
        "system-out" => {
            *part = Some(Part::Stdout);
            return Ok(());
        }
        "system-err" => {
            *part = Some(Part::Stderr);
            return Ok(());
        }
        _ => return Ok(()),
    };
    if let Some(case) = case {
        if case.result.outcome == TestOutcome::Passed || outcome == TestOutcome::Failed {
            case.result.outcome = outcome;
            case.result.message =
                message.and_then(|text| text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned));
        }
        *part = Some(Part::Details);
    }
    Ok(())
}

fn leave(element: &str, case: &mut Option<Case>, part: &mut Option<Part>, cases: &mut Vec<Case>) {
    match element {
        "testcase" => {
            if let Some(mut case) = case.take() {
                let details = case.result.details.take();
                case.result.details = details.filter(|text| !text.trim().is_empty());
                cases.push(case);
            }
            *part = None;
        }
        "failure" | "error" | "skipped" | "system-out" | "system-err" => *part = None,
        _ => {}
    }
}

fn add(case: &mut Option<Case>, part: Option<Part>, text: &str) {
    let (Some(case), Some(part)) = (case, part) else { return };
    let place: &mut Captured = match part {
        Part::Details => {
            case.result.details.get_or_insert_default().push_str(text);
            return;
        }
        Part::Stdout => &mut case.result.stdout,
        Part::Stderr => &mut case.result.stderr,
    };
    place.text.push_str(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_read_wherever_they_are() {
        let xml = r#"<?xml version="1.0"?>
<testsuites><testsuite name="outer"><system-out>not of a test</system-out><testsuite name="inner">
<testcase name="a &lt;&quot;&#10;&amp;é" classname="C" time="1,234.5"/>
<testcase name="b" time="junk"><failure message="&#10; first&#10;second" type="T">long &lt;form&gt; &#x2713; <![CDATA[<raw>]]></failure>
<system-out>out</system-out><system-err>err</system-err></testcase>
<testcase name="c"><skipped message="why"/></testcase>
<testcase name="d"><error>only text</error><failure message="worse"/></testcase>
</testsuite></testsuite></testsuites>"#;
        let cases = parse(xml.as_bytes()).unwrap();
        let names: Vec<_> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names, ["a <\"\n&é", "b", "c", "d"]);
        assert_eq!(cases[0].result, TestResult::new(TestOutcome::Passed, Duration::from_millis(1_234_500)));
        let b = &cases[1].result;
        assert_eq!((b.outcome, b.message.as_deref()), (TestOutcome::Failed, Some("first")));
        assert_eq!(b.details.as_deref(), Some("long <form> ✓ <raw>"));
        assert_eq!((b.stdout.text.as_str(), b.stderr.text.as_str()), ("out", "err"));
        assert_eq!(cases[2].result.outcome, TestOutcome::Skipped);
        assert_eq!(cases[2].result.message.as_deref(), Some("why"));
        assert_eq!(cases[3].result.outcome, TestOutcome::Failed);
    }

    #[test]
    fn a_torn_file_is_not_taken_for_a_whole_one() {
        for torn in
            ["<testsuite><testcase name='a'/>", "<testsuite><testcase name=", "<testsuite><testcase name='a'></b>"]
        {
            assert!(parse(torn.as_bytes()).is_err(), "{torn}");
        }
        assert!(parse(b"").unwrap().is_empty());
    }

    #[test]
    fn ids_follow_the_format() {
        let cases = parse(b"<testcase name='{classname}' classname='K'/>").unwrap();
        assert_eq!(cases[0].id("{classname} > {name} {x}"), "K > {classname} {x}");
        assert_eq!(cases[0].id(""), "{classname}");
    }
}
