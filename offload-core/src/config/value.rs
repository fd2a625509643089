//! Values as someone wrote them, and what the schema makes of them.
//!
//! [`Raw`] is the common form of what files, environment variables and options hold; [`check`] turns it into a
//! [`Checked`] value of the key's kind, or says what is wrong with it.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::diagnostic::{Problem, Where, alternatives, nearest};
use super::expand::{ExpandError, Text, expand};
use super::hosts::{Host, check_hosts, spell_host};
use super::schema::{Kind, MAX_SECS};

/// Where a value was written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Place {
    /// Nowhere: it is a default.
    Default,
    /// In the file, at these bytes.
    File(Range<usize>),
    /// In this environment variable.
    Env {
        /// Its name.
        name: String,
        /// What it holds.
        text: String,
    },
    /// In this option.
    Option {
        /// The option.
        name: String,
        /// What it was given.
        text: String,
    },
}

impl Place {
    pub(super) fn to_where(&self) -> Where {
        match self {
            Self::Default => Where::Named("default".to_owned()),
            Self::File(span) => Where::Span(span.clone()),
            Self::Env { name, text } => Where::Named(format!("environment: {name}={text}")),
            Self::Option { name, text } => Where::Named(format!("command line: {name} {text}")),
        }
    }
}

/// A value as someone wrote it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Raw {
    pub(super) data: Data,
    pub(super) place: Place,
}

/// What a [`Raw`] value is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Data {
    Text(Text),
    Int(i128),
    Float(f64),
    Bool(bool),
    Date(String),
    List(Vec<Raw>),
    Table(Vec<(String, Raw)>),
}

impl Data {
    fn what(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Int(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Bool(_) => "a boolean",
            Self::Date(_) => "a date",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

/// Keys and values of a table in the order of the file.
pub(super) fn in_order<'t>(table: &'t DeTable<'_>) -> Vec<(&'t str, Range<usize>, &'t toml::Spanned<DeValue<'t>>)> {
    let mut entries: Vec<_> = table.iter().map(|(key, value)| (key.get_ref().as_ref(), key.span(), value)).collect();
    entries.sort_by_key(|(_, span, _)| span.start);
    entries
}

/// Reads values of a file.
pub(super) struct Reader<'a> {
    /// The text of the file.
    pub(super) text: &'a str,
    /// What `${VAR}` refers to.
    pub(super) env: &'a BTreeMap<String, String>,
}

impl Reader<'_> {
    /// The value at a key, with references expanded; `None` when that went wrong and is among the problems.
    pub(super) fn read(
        &self,
        key: &str,
        value: &toml::Spanned<DeValue<'_>>,
        problems: &mut Vec<Problem>,
    ) -> Option<Raw> {
        let data = match value.get_ref() {
            DeValue::String(text) => match expand(text, self.env) {
                Ok(text) => Data::Text(text),
                Err(error) => {
                    problems.push(self.expand_problem(key, error, value.span()));
                    return None;
                }
            },
            DeValue::Integer(int) => {
                // Beyond 128 bits any number is as wrong as the greatest.
                Data::Int(i128::from_str_radix(int.as_str(), int.radix()).unwrap_or(i128::MAX))
            }
            DeValue::Float(float) => Data::Float(float.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(yes) => Data::Bool(*yes),
            DeValue::Datetime(date) => Data::Date(date.to_string()),
            DeValue::Array(items) => {
                // All items are looked at before giving up: all problems at once.
                let items: Vec<_> = items.iter().map(|item| self.read(key, item, problems)).collect();
                Data::List(items.into_iter().collect::<Option<_>>()?)
            }
            DeValue::Table(table) => {
                let entries: Vec<_> = in_order(table)
                    .into_iter()
                    .map(|(name, _, value)| {
                        Some((name.to_owned(), self.read(&format!("{key}.{name}"), value, problems)?))
                    })
                    .collect();
                Data::Table(entries.into_iter().collect::<Option<_>>()?)
            }
        };
        Some(Raw { data, place: Place::File(value.span()) })
    }

    fn expand_problem(&self, key: &str, error: ExpandError, span: Range<usize>) -> Problem {
        let (title, written, label, help) = match error {
            ExpandError::Unset { name } => (
                format!("`{key}` refers to the environment variable `{name}`, which is not set"),
                format!("${{{name}}}"),
                "not set",
                format!("set `{name}`, or write `${{{name}:-default}}` to go on without it"),
            ),
            ExpandError::Malformed { reference } => (
                format!("`{key}` has a `${{` that does not begin a reference to an environment variable"),
                reference,
                "expected `${NAME}` or `${NAME:-default}`",
                "write `$${` for a plain `${`".to_owned(),
            ),
        };
        let source = self.text.get(span.clone()).unwrap_or_default();
        let at = match source.find(&written) {
            Some(offset) => span.start + offset..span.start + offset + written.len(),
            // Written with escapes: the whole string will do.
            None => span,
        };
        Problem::new(title, Where::Span(at), label).with_help(help)
    }
}

/// The value that an environment variable holds for a key.
pub(super) fn from_env(kind: Kind, name: &str, text: &str) -> Raw {
    let data = match kind {
        Kind::Int { .. } => text.trim().parse().ok().map(Data::Int),
        Kind::Seconds | Kind::TimeLimit | Kind::Amount => text.trim().parse().ok().map(Data::Float),
        Kind::Bool => match text.trim() {
            "true" | "1" => Some(Data::Bool(true)),
            "false" | "0" => Some(Data::Bool(false)),
            _ => None,
        },
        _ => None,
    };
    let data = data.unwrap_or_else(|| Data::Text(Text::plain(text)));
    Raw { data, place: Place::Env { name: name.to_owned(), text: text.to_owned() } }
}

/// The value that an option was given.
pub(super) fn from_toml(value: &toml::Value, place: &Place) -> Raw {
    let data = match value {
        toml::Value::String(text) => Data::Text(Text::plain(text)),
        toml::Value::Integer(int) => Data::Int(i128::from(*int)),
        toml::Value::Float(float) => Data::Float(*float),
        toml::Value::Boolean(yes) => Data::Bool(*yes),
        toml::Value::Datetime(date) => Data::Date(date.to_string()),
        toml::Value::Array(items) => Data::List(items.iter().map(|item| from_toml(item, place)).collect()),
        toml::Value::Table(table) => {
            Data::Table(table.iter().map(|(name, value)| (name.clone(), from_toml(value, place))).collect())
        }
    };
    Raw { data, place: place.clone() }
}

/// A value that its key can have.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Checked {
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(Text),
    /// The items, each with its place.
    List(Vec<(Text, Place)>),
    /// The hosts of the provider `ssh`.
    Hosts(Vec<Host>),
    /// The entries, each with its place; what is not a string is spelled as TOML.
    Table(Vec<(String, Entry, Place)>),
}

impl Checked {
    /// The value as TOML, secrets hidden.
    pub(super) fn spell(&self) -> String {
        match self {
            Self::Int(int) => int.to_string(),
            Self::Float(float) => toml::Value::Float(*float).to_string(),
            Self::Bool(yes) => yes.to_string(),
            Self::Text(text) => spell_text(&text.written()),
            Self::List(items) => format!("[{}]", spelled(items.iter().map(|(text, _)| spell_text(&text.written())))),
            Self::Hosts(hosts) => format!("[{}]", spelled(hosts.iter().map(spell_host))),
            Self::Table(entries) if entries.is_empty() => "{}".to_owned(),
            Self::Table(entries) => {
                let entries = entries.iter().map(|(name, entry, _)| format!("{} = {}", spell_key(name), spell(entry)));
                format!("{{ {} }}", spelled(entries))
            }
        }
    }
}

/// An entry of a table.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Entry {
    Text(Text),
    Other(String),
}

/// What `kind` makes of a value; `None` when it is not one, and why is then among the problems.
pub(super) fn check(key: &str, kind: Kind, raw: &Raw, problems: &mut Vec<Problem>) -> Option<Checked> {
    let result = match (kind, &raw.data) {
        (Kind::Int { min, max }, Data::Int(int)) => match i64::try_from(*int) {
            Ok(int) if (min..=max).contains(&int) => Ok(Checked::Int(int)),
            Ok(int) if int < min => Err(bad(key, &format!("be {int}"), raw, expected(kind))),
            _ => Err(bad(key, &format!("be {int}"), raw, format!("expected at most {max}"))),
        },
        (Kind::Seconds | Kind::TimeLimit | Kind::Amount, Data::Int(_) | Data::Float(_)) => {
            let number = match raw.data {
                Data::Int(int) => int as f64,
                Data::Float(float) => float,
                _ => f64::NAN,
            };
            if kind == Kind::Amount && number > 0.0 && number.is_finite()
                || kind == Kind::Seconds && (0.0..=MAX_SECS as f64).contains(&number)
                || kind == Kind::TimeLimit && (0.001..=MAX_SECS as f64).contains(&number)
            {
                Ok(Checked::Float(number))
            } else if number > MAX_SECS as f64 {
                Err(bad(key, &format!("be {number}"), raw, format!("expected at most {MAX_SECS}")))
            } else {
                Err(bad(key, &format!("be {number}"), raw, expected(kind)))
            }
        }
        (Kind::Bool, Data::Bool(yes)) => Ok(Checked::Bool(*yes)),
        (Kind::Text, Data::Text(text)) => Ok(Checked::Text(text.clone())),
        (Kind::Path | Kind::Command(_) | Kind::TestIdFormat | Kind::OneOf(_), Data::Text(text)) => {
            check_text(key, kind, text, raw).map(|()| Checked::Text(text.clone()))
        }
        (Kind::Texts | Kind::Globs | Kind::Paths | Kind::CopyDirs, Data::List(items)) => {
            return check_items(key, kind, items, problems).map(Checked::List);
        }
        (Kind::Hosts, Data::List(items)) => return check_hosts(key, items, problems).map(Checked::Hosts),
        (Kind::Env, Data::Table(entries)) => return check_env(key, entries, problems),
        (Kind::Table, Data::Table(entries)) => Ok(Checked::Table(
            entries.iter().map(|(name, raw)| (name.clone(), entry(&raw.data), raw.place.clone())).collect(),
        )),
        _ => Err(wrong_type(&format!("`{key}`"), &expected(kind), kind, raw)),
    };
    result.map_err(|problem| problems.push(problem)).ok()
}

fn check_items(key: &str, kind: Kind, items: &[Raw], problems: &mut Vec<Problem>) -> Option<Vec<(Text, Place)>> {
    let before = problems.len();
    let mut texts = Vec::with_capacity(items.len());
    for item in items {
        let Data::Text(text) = &item.data else {
            problems.push(wrong_type(&format!("an item of `{key}`"), "expected a string", Kind::Text, item));
            continue;
        };
        match (kind, text.value.split_once(':')) {
            (Kind::CopyDirs, Some((local, remote))) if !local.is_empty() && !remote.is_empty() => {}
            (Kind::CopyDirs, _) => {
                let label = "expected a path here, a colon and a path in the sandbox";
                problems.push(
                    bad(key, &format!("contain `{}`", text.shown()), item, label.to_owned())
                        .with_help("write it like `fixtures:/app/fixtures`"),
                );
                continue;
            }
            (Kind::Globs, _) if text.value.is_empty() || text.value.split('/').any(|part| part == "..") => {
                let label = "expected a pattern without `..`".to_owned();
                problems.push(bad(key, &format!("contain `{}`", text.shown()), item, label));
                continue;
            }
            (Kind::Globs, _) => {
                if let Err(error) = globset::Glob::new(&text.value) {
                    let label = format!("expected a pattern: {}", error.kind());
                    problems.push(bad(key, &format!("contain `{}`", text.shown()), item, label));
                    continue;
                }
            }
            (Kind::Paths, _) if text.value.is_empty() => {
                problems.push(bad(key, "contain an empty path", item, "expected a path".to_owned()));
                continue;
            }
            _ => {}
        }
        texts.push((text.clone(), item.place.clone()));
    }
    (problems.len() == before).then_some(texts)
}

fn check_env(key: &str, entries: &[(String, Raw)], problems: &mut Vec<Problem>) -> Option<Checked> {
    let before = problems.len();
    let mut variables = Vec::with_capacity(entries.len());
    for (name, raw) in entries {
        let Some(raw) = &with_secrecy(key, name, raw, problems) else { continue };
        match &raw.data {
            // The operating system knows no such names and values.
            Data::Text(text) if name.is_empty() || name.contains(['=', '\0']) || text.value.contains('\0') => {
                let label = "expected a name without `=`, and neither with a NUL character".to_owned();
                problems.push(bad(key, &format!("have the variable `{}`", name.escape_debug()), raw, label));
            }
            Data::Text(text) => variables.push((name.clone(), Entry::Text(text.clone()), raw.place.clone())),
            _ => problems.push(wrong_type(&format!("`{key}.{name}`"), "expected a string", Kind::Text, raw)),
        }
    }
    (problems.len() == before).then_some(Checked::Table(variables))
}

/// `{ value = "…", secret = true }` as a string that says of itself whether it is a secret; anything else as it is.
fn with_secrecy(key: &str, name: &str, raw: &Raw, problems: &mut Vec<Problem>) -> Option<Raw> {
    let Data::Table(fields) = &raw.data else { return Some(raw.clone()) };
    let before = problems.len();
    let (mut text, mut secret) = (None, None);
    for (field, raw) in fields {
        let full = format!("`{key}.{name}.{field}`");
        match (field.as_str(), &raw.data) {
            ("value", Data::Text(value)) => text = Some(value.clone()),
            ("secret", Data::Bool(yes)) => secret = Some(*yes),
            ("value", _) => problems.push(wrong_type(&full, "expected a string", Kind::Text, raw)),
            ("secret", _) => problems.push(wrong_type(&full, "expected `true` or `false`", Kind::Bool, raw)),
            _ => problems.push(Problem::new(
                format!("unknown key {full}"),
                raw.place.to_where(),
                "expected `value` or `secret`",
            )),
        }
    }
    if text.is_none() && problems.len() == before {
        let label = "expected a string, or `{ value = \"…\", secret = true }`";
        problems.push(Problem::new(format!("`{key}.{name}` has no `value`"), raw.place.to_where(), label));
    }
    let data = Data::Text(text?.with_secrecy(secret));
    (problems.len() == before).then(|| Raw { data, place: raw.place.clone() })
}

fn entry(data: &Data) -> Entry {
    match data {
        Data::Text(text) => Entry::Text(text.clone()),
        Data::Int(int) => Entry::Other(int.to_string()),
        Data::Float(float) => Entry::Other(toml::Value::Float(*float).to_string()),
        Data::Bool(yes) => Entry::Other(yes.to_string()),
        Data::Date(date) => Entry::Other(date.clone()),
        Data::List(items) => Entry::Other(format!("[{}]", spelled(items.iter().map(|item| spell(&entry(&item.data)))))),
        Data::Table(entries) => Entry::Other(format!(
            "{{ {} }}",
            spelled(entries.iter().map(|(name, raw)| format!("{} = {}", spell_key(name), spell(&entry(&raw.data)))))
        )),
    }
}

fn spelled(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

/// An entry as TOML, secrets hidden.
pub(super) fn spell(entry: &Entry) -> String {
    match entry {
        Entry::Text(text) => match text.secret {
            Some(secret) => format!("{{ value = {}, secret = {secret} }}", spell_text(&text.written())),
            None => spell_text(&text.written()),
        },
        Entry::Other(other) => other.clone(),
    }
}

/// A string as TOML.
pub(super) fn spell_text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A key as TOML.
pub(super) fn spell_key(name: &str) -> String {
    if !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
        name.to_owned()
    } else {
        spell_text(name)
    }
}

fn check_text(key: &str, kind: Kind, text: &Text, raw: &Raw) -> Result<(), Problem> {
    let value = text.value.as_str();
    match kind {
        Kind::Path | Kind::Command(_) if value.trim().is_empty() => Err(bad(key, "be empty", raw, expected(kind))),
        Kind::Command(placeholders) => match placeholders.iter().find(|placeholder| !value.contains(**placeholder)) {
            Some(missing) => Err(Problem::new(
                format!("`{key}` has no `{missing}`"),
                raw.place.to_where(),
                format!("expected a command with `{missing}` in it"),
            )),
            None => Ok(()),
        },
        Kind::TestIdFormat => {
            let rest = value.replace("{name}", "").replace("{classname}", "");
            if value.contains("{name}") && !rest.contains(['{', '}']) {
                return Ok(());
            }
            let label = "expected `{name}` in it, and no other placeholder than `{classname}`".to_owned();
            Err(bad(key, &format!("be `{}`", text.shown()), raw, label))
        }
        Kind::OneOf(values) if !values.contains(&value) => {
            let label = format!("expected {}", alternatives(values));
            let problem = bad(key, &format!("be `{}`", text.shown()), raw, label);
            Err(match nearest(value, values.iter().copied()) {
                Some(meant) => problem.with_help(format!("did you mean `{meant}`?")),
                None => problem,
            })
        }
        _ => Ok(()),
    }
}

/// A value of the right type that cannot be: `what` completes the sentence "`offload.max_parallel` cannot …".
pub(super) fn bad(key: &str, what: &str, raw: &Raw, label: String) -> Problem {
    Problem::new(format!("`{key}` cannot {what}"), raw.place.to_where(), label)
}

pub(super) fn wrong_type(subject: &str, expected: &str, kind: Kind, raw: &Raw) -> Problem {
    let problem = Problem::new(
        format!("{subject} has the wrong type"),
        raw.place.to_where(),
        format!("{expected}, found {}", raw.data.what()),
    );
    match quoting_help(kind, raw) {
        Some(help) => problem.with_help(help),
        None => problem,
    }
}

/// What to do where only quotes or brackets are wrong. Only files have those.
fn quoting_help(kind: Kind, raw: &Raw) -> Option<String> {
    if !matches!(raw.place, Place::File(_)) {
        return None;
    }
    let unquoted = match (&raw.data, kind) {
        (Data::Text(text), Kind::Texts | Kind::Globs | Kind::Paths | Kind::CopyDirs) => {
            return Some(format!("write it as a list: `[{}]`", spell_text(&text.written())));
        }
        // `${N}` without quotes would not be TOML.
        (Data::Text(text), _) if text.is_expanded() => None,
        (Data::Text(text), Kind::Int { .. }) => text.value.parse::<i64>().is_ok().then_some(text),
        (Data::Text(text), Kind::Seconds | Kind::TimeLimit | Kind::Amount) => {
            text.value.parse::<f64>().is_ok().then_some(text)
        }
        (Data::Text(text), Kind::Bool) => text.value.parse::<bool>().is_ok().then_some(text),
        (Data::Int(_) | Data::Float(_) | Data::Bool(_) | Data::Date(_), Kind::Text | Kind::Path | Kind::Command(_)) => {
            return Some(format!("write it in quotes: `\"{}\"`", spell(&entry(&raw.data))));
        }
        _ => None,
    };
    unquoted.map(|text| format!("write it without quotes: `{}`", text.shown()))
}

fn expected(kind: Kind) -> String {
    match kind {
        Kind::Int { min: 0, .. } => "expected an integer of 0 or more".to_owned(),
        Kind::Int { min, .. } => format!("expected an integer of at least {min}"),
        Kind::Seconds => "expected a number of seconds of 0 or more".to_owned(),
        Kind::TimeLimit => "expected a number of seconds above 0".to_owned(),
        Kind::Amount => "expected a number greater than 0".to_owned(),
        Kind::Bool => "expected `true` or `false`".to_owned(),
        Kind::Text => "expected a string".to_owned(),
        Kind::Command(_) => "expected a command in a string".to_owned(),
        Kind::TestIdFormat => "expected a string with `{name}` in it".to_owned(),
        Kind::Path => "expected a path in a string".to_owned(),
        Kind::OneOf(values) => format!("expected {}", alternatives(values)),
        Kind::Texts => "expected a list of strings".to_owned(),
        Kind::Globs => "expected a list of patterns in strings".to_owned(),
        Kind::Paths => "expected a list of paths".to_owned(),
        Kind::CopyDirs => "expected a list of strings `LOCAL:REMOTE`".to_owned(),
        Kind::Hosts => "expected a list of tables such as `{ host = \"build1\", slots = 8 }`".to_owned(),
        Kind::Env => "expected a table of strings".to_owned(),
        Kind::Table => "expected a table".to_owned(),
    }
}
