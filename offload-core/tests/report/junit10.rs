//! The rules of the schema `junit-10` of Jenkins' xUnit plugin, and a reader to apply them to.

use std::collections::BTreeMap;

use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};

#[derive(Debug, Default, Clone)]
pub struct Element {
    pub name: String,
    pub attributes: BTreeMap<String, String>,
    pub text: String,
    pub children: Vec<Element>,
}

impl Element {
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    pub fn all(&self, name: &str) -> Vec<&Element> {
        self.children.iter().filter(|child| child.name == name).collect()
    }

    pub fn only(&self, name: &str) -> &Element {
        let all = self.all(name);
        assert_eq!(all.len(), 1, "<{name}> in {self:#?}");
        all[0]
    }

    /// The children's names.
    pub fn outline(&self) -> Vec<&str> {
        self.children.iter().map(|child| child.name.as_str()).collect()
    }
}

pub fn read(xml: &str) -> Element {
    let mut reader = quick_xml::Reader::from_str(xml);
    let mut open = vec![Element::default()];
    loop {
        match reader.read_event().unwrap() {
            Event::Start(start) => open.push(element(&start)),
            Event::Empty(start) => open.last_mut().unwrap().children.push(element(&start)),
            Event::End(_) => {
                let closed = open.pop().unwrap();
                open.last_mut().unwrap().children.push(closed);
            }
            Event::Text(text) => open.last_mut().unwrap().text.push_str(&text.xml10_content()),
            Event::CData(text) => open.last_mut().unwrap().text.push_str(&text.xml10_content()),
            Event::GeneralRef(reference) => {
                let c = match reference.resolve_char_ref().unwrap() {
                    Some(c) => c.to_string(),
                    None => quick_xml::escape::resolve_xml_entity(&reference.xml10_content()).unwrap().to_owned(),
                };
                open.last_mut().unwrap().text.push_str(&c);
            }
            Event::Eof => break,
            Event::Decl(decl) => assert_eq!(decl.version().unwrap(), "1.0"),
            other => panic!("a report has no {other:?}"),
        }
    }
    assert_eq!(open.len(), 1, "elements are left open");
    assert_eq!(open[0].children.len(), 1, "one root");
    open.remove(0).children.remove(0)
}

fn element(start: &BytesStart<'_>) -> Element {
    let attributes = start
        .attributes()
        .map(|attribute| {
            let attribute = attribute.unwrap();
            let value = attribute.normalized_value(XmlVersion::Implicit1_0).unwrap().into_owned();
            (attribute.key.as_ref().to_owned(), value)
        })
        .collect();
    Element { name: start.name().as_ref().to_owned(), attributes, ..Element::default() }
}

/// What the schema says of an element: attributes (required ones with `!`), children, and whether it may hold text.
struct Rule {
    attributes: &'static [&'static str],
    children: &'static [&'static str],
    /// The children come at most once each and in this order.
    sequence: bool,
    text: bool,
}

fn rule(name: &str) -> Option<Rule> {
    let rule = |attributes, children, sequence, text| Some(Rule { attributes, children, sequence, text });
    match name {
        "testsuites" => rule(&["name", "time", "tests", "failures", "errors"], &["testsuite"], false, false),
        "testsuite" => rule(
            &[
                "name!",
                "tests!",
                "failures!",
                "errors!",
                "group",
                "time",
                "skipped",
                "timestamp",
                "hostname",
                "id",
                "package",
                "file",
                "log",
                "url",
            ],
            &["testsuite", "properties", "testcase", "system-out", "system-err"],
            false,
            false,
        ),
        "testcase" => rule(
            &["name!", "time", "classname", "group"],
            &[
                "skipped",
                "error",
                "failure",
                "rerunFailure",
                "rerunError",
                "flakyFailure",
                "flakyError",
                "system-out",
                "system-err",
            ],
            false,
            false,
        ),
        "properties" => rule(&[], &["property"], false, false),
        "property" => rule(&["name!", "value!"], &[], false, false),
        "failure" | "error" | "skipped" => rule(&["type", "message"], &[], false, true),
        "rerunFailure" | "rerunError" | "flakyFailure" | "flakyError" => {
            rule(&["message", "type!"], &["stackTrace", "system-out", "system-err"], true, true)
        }
        "stackTrace" | "system-out" | "system-err" => rule(&[], &[], false, true),
        _ => None,
    }
}

/// Everything in which `element` breaks the schema.
pub fn violations(element: &Element) -> Vec<String> {
    let name = &element.name;
    let Some(rule) = rule(name) else { return vec![format!("<{name}> is unknown")] };
    let mut found = Vec::new();
    for attribute in element.attributes.keys() {
        if !rule.attributes.iter().any(|known| known.trim_end_matches('!') == attribute) {
            found.push(format!("<{name}> has no attribute {attribute}"));
        }
    }
    for required in rule.attributes.iter().filter_map(|attribute| attribute.strip_suffix('!')) {
        if !element.attributes.contains_key(required) {
            found.push(format!("<{name}> lacks {required}"));
        }
    }
    // SUREFIRE_TIME; test cases may have any string, but readers want the same of it.
    if let Some(time) = element.attributes.get("time") {
        let number = regex::Regex::new(r"^([0-9]{0,3},)*[0-9]*(\.[0-9]*)?$").unwrap();
        if !number.is_match(time) {
            found.push(format!("<{name}> has the time {time}"));
        }
    }
    if !rule.text && !element.text.trim().is_empty() {
        found.push(format!("<{name}> holds the text {:?}", element.text));
    }
    let mut last = 0;
    for child in &element.children {
        match rule.children.iter().position(|known| *known == child.name) {
            None => found.push(format!("<{}> in <{name}>", child.name)),
            Some(place) if rule.sequence => {
                if place < last {
                    found.push(format!("<{}> in <{name}> in the wrong place", child.name));
                }
                last = place + 1;
            }
            Some(_) => {}
        }
        found.extend(violations(child));
    }
    found
}

#[test]
fn the_rules_are_rules() {
    let wrong = |xml: &str| violations(&read(xml)).join("; ");
    assert_eq!(wrong("<testsuites><testcase name='a'/></testsuites>"), "<testcase> in <testsuites>");
    assert_eq!(wrong("<testcase name='a'><properties/></testcase>"), "<properties> in <testcase>");
    assert_eq!(
        wrong("<testcase name='a' time='1e5' x='1'/>"),
        "<testcase> has no attribute x; <testcase> has the time 1e5"
    );
    assert_eq!(
        wrong("<testcase name='a'><rerunError><system-err/><stackTrace/></rerunError></testcase>"),
        "<rerunError> lacks type; <stackTrace> in <rerunError> in the wrong place"
    );
    assert_eq!(wrong("<testsuites>x</testsuites>"), "<testsuites> holds the text \"x\"");
}
