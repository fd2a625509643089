//! The layers that set keys: defaults of the front end, file, environment, command line.
//!
//! Each layer is read into [`Assignment`]s, checked against the schema. All problems of all layers are gathered; nothing
//! here decides which assignment wins.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::diagnostic::{Problem, Where, nearest, nearest_within};
use super::schema::{self, KEYS, Key, SECTIONS};
use super::source::Located;
use super::value::{Checked, Place, Raw, Reader, check, from_env, from_toml, in_order, spell_key};
use super::{Defaults, Override, SourceKind};

/// Which layer set a key; a later one wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    Default,
    File,
    Env,
    Option,
}

/// One key, set by one layer.
#[derive(Debug, Clone)]
pub(super) struct Assignment {
    /// The key; where it has a row for each of several types, the first.
    pub(super) key: &'static Key,
    /// For keys of groups: the group; `None`: all groups.
    pub(super) group: Option<String>,
    /// The value; `None` when it is wrong, which the problems then say.
    pub(super) value: Option<Checked>,
    /// The value while it cannot be checked.
    raw: Option<Raw>,
    pub(super) place: Place,
    pub(super) rank: Rank,
}

/// Everything that the layers hold, lowest first.
#[derive(Debug, Default)]
pub(super) struct Layers {
    pub(super) assignments: Vec<Assignment>,
    /// Where in it a key is set, for a group or for all.
    places: HashMap<(&'static str, Option<String>), Vec<usize>>,
    /// Names of groups in the order of the file.
    pub(super) groups: Vec<String>,
    /// Where the sections of the file are.
    pub(super) sections: BTreeMap<String, Range<usize>>,
    /// Sections of the file that are no tables: nothing can be said about what they lack.
    pub(super) unreadable: Vec<String>,
    pub(super) problems: Vec<Problem>,
    pub(super) notices: Vec<String>,
}

impl Layers {
    fn assign(
        &mut self,
        key: &'static Key,
        group: Option<&str>,
        name: &str,
        raw: Option<Raw>,
        written: Place,
        rank: Rank,
    ) {
        let group = group.map(str::to_owned);
        let (value, raw) = match raw {
            // What it may be depends on a type that another layer may set.
            Some(raw) if schema::rows(key.name).any(|row| row.kind != key.kind) => (None, Some(raw)),
            raw => (raw.and_then(|raw| check(name, key.kind, &raw, &mut self.problems)), None),
        };
        self.places.entry((key.name, group.clone())).or_default().push(self.assignments.len());
        self.assignments.push(Assignment { key, group, value, raw, place: written, rank });
    }

    /// What sets a key for a group, or for all of them, lowest first.
    pub(super) fn of(&self, key: &Key, group: Option<&str>) -> impl Iterator<Item = &Assignment> {
        let at = |group: Option<&str>| self.places.get(&(key.name, group.map(str::to_owned)));
        let own = group.and_then(|group| at(Some(group)));
        let mut places: Vec<usize> = at(None).into_iter().chain(own).flatten().copied().collect();
        places.sort_unstable();
        places.into_iter().map(|place| &self.assignments[place])
    }

    /// Checks what had to wait until the types of the sections are known.
    pub(super) fn check_by_type(&mut self, section_type: impl Fn(&str) -> Option<String>) {
        for set in &mut self.assignments {
            let Some(raw) = set.raw.take() else { continue };
            let name = section_type(set.key.section()).unwrap_or_default();
            let row = schema::rows(set.key.name).find(|row| row.is_for(&name)).unwrap_or(set.key);
            set.value = check(row.name, row.kind, &raw, &mut self.problems);
        }
    }

    /// The defaults that a front end sets apart from the schema's.
    pub(super) fn add_defaults(&mut self, defaults: &Defaults) {
        for (name, value) in &defaults.values {
            self.add_value(name, value, &Place::Default, Rank::Default);
        }
    }

    /// What options of the command line set.
    pub(super) fn add_overrides(&mut self, overrides: &[Override]) {
        for Override { key, value, origin } in overrides {
            let place = Place::Option { name: origin.clone(), text: as_typed(value) };
            self.add_value(key, value, &place, Rank::Option);
        }
    }

    fn add_value(&mut self, name: &str, value: &toml::Value, place: &Place, rank: Rank) {
        // `groups.*.filters` is how a front end sets a key of all groups.
        match KEYS.iter().find(|key| key.name == name.replace(".*.", ".NAME.")) {
            Some(key) => self.assign(key, None, name, Some(from_toml(value, place)), place.clone(), rank),
            None => self.problems.push(Problem::new(
                format!("there is no key `{name}` to set"),
                place.to_where(),
                "this is a mistake of the program, not of yours; please report it",
            )),
        }
    }

    /// What the environment sets.
    pub(super) fn add_env(&mut self, env: &BTreeMap<String, String>) {
        let mut names = BTreeMap::new();
        for key in KEYS {
            names.entry(key.env_spelling()).or_insert(key);
        }
        for (variable, text) in env.iter().filter(|(name, _)| name.starts_with("OFFLOAD_")) {
            match names.get(variable) {
                Some(key) if key.env_name().is_some() => {
                    let raw = from_env(key.kind, variable, text);
                    let place = raw.place.clone();
                    self.assign(key, None, key.name, Some(raw), place, Rank::Env);
                }
                Some(key) if key.section() != "groups" => self.notices.push(format!(
                    "{variable}: the environment variable has no effect: `{}` is a {}, which only the configuration \
                     file can hold",
                    key.name,
                    if matches!(key.kind, schema::Kind::Env | schema::Kind::Table) { "table" } else { "list" },
                )),
                // Other parts of offload, and of the world, have variables of that prefix. Only what looks like a slip
                // of a finger is worth a word.
                _ => {
                    let settable =
                        names.iter().filter(|(_, key)| key.env_name().is_some()).map(|(name, _)| name.as_str());
                    if let Some(meant) = nearest_within(variable, settable, 2) {
                        self.notices.push(format!(
                            "{variable}: the environment variable has no effect; did you mean `{meant}`?"
                        ));
                    }
                }
            }
        }
    }

    /// What the file sets.
    pub(super) fn add_file(&mut self, reader: &Reader<'_>, located: &Located<'_, '_>, kind: SourceKind) {
        let section_name = |section: &str| match located.name.as_str() {
            "" => section.to_owned(),
            prefix => format!("{prefix}.{section}"),
        };
        for (name, span, value) in in_order(located.table) {
            if SECTIONS.contains(&name) {
                self.sections.insert(name.to_owned(), span);
                let shown = section_name(name);
                match value.get_ref() {
                    DeValue::Table(table) if name == "groups" => self.add_groups(reader, &shown, table),
                    DeValue::Table(table) => self.add_section(reader, name, None, &shown, table),
                    _ => {
                        self.unreadable.push(name.to_owned());
                        self.problems.push(not_a_table(&shown, value.span()));
                    }
                }
            } else if kind != SourceKind::OffloadToml && schema::find("offload", name).is_some() {
                // `[tool.offload]` already says the name once.
                self.add_key(reader, "offload", None, &located.name, (name, span, value));
            } else {
                self.problems.push(unknown_section(name, span, value.get_ref(), &located.name));
            }
        }
    }

    fn add_groups(&mut self, reader: &Reader<'_>, shown: &str, table: &DeTable<'_>) {
        for (name, span, value) in in_order(table) {
            let shown = format!("{shown}.{}", spell_key(name));
            match value.get_ref() {
                _ if name.is_empty() => {
                    self.problems.push(Problem::new("a group has an empty name", Where::Span(span), "expected a name"))
                }
                DeValue::Table(table) => {
                    self.groups.push(name.to_owned());
                    self.add_section(reader, "groups", Some(name), &shown, table);
                }
                // Somebody who writes `[groups] filters = "…"` has forgotten the name.
                _ if schema::find("groups", name).is_some() => self.problems.push(
                    Problem::new(format!("`{name}` is not in a group"), Where::Span(span), "expected a group")
                        .with_help(format!("put it under the group's name, as in `[{}]`", shown.replace(name, "NAME"))),
                ),
                _ => self.problems.push(not_a_table(&shown, value.span())),
            }
        }
    }

    fn add_section(
        &mut self,
        reader: &Reader<'_>,
        section: &str,
        group: Option<&str>,
        shown: &str,
        table: &DeTable<'_>,
    ) {
        for entry in in_order(table) {
            self.add_key(reader, section, group, shown, entry);
        }
    }

    fn add_key(
        &mut self,
        reader: &Reader<'_>,
        section: &str,
        group: Option<&str>,
        shown: &str,
        (leaf, span, value): (&str, Range<usize>, &toml::Spanned<DeValue<'_>>),
    ) {
        let Some(key) = schema::find(section, leaf) else {
            self.problems.push(unknown_key(section, leaf, span, shown));
            return;
        };
        if self.of(key, group).any(|set| set.rank == Rank::File && set.group.as_deref() == group) {
            let title = format!("`{}` is set twice", key.name);
            self.problems.push(Problem::new(title, Where::Span(span), "and already has a value above"));
            return;
        }
        let name = match group {
            Some(group) => format!("groups.{}.{leaf}", spell_key(group)),
            None => key.name.to_owned(),
        };
        let raw = reader.read(&name, value, &mut self.problems);
        self.assign(key, group, &name, raw, Place::File(span), Rank::File);
    }
}

/// The value of an option much as it was typed.
fn as_typed(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(items) => items.iter().map(as_typed).collect::<Vec<_>>().join(" "),
        toml::Value::Table(table) => {
            table.iter().map(|(name, value)| format!("{name}={}", as_typed(value))).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

fn not_a_table(shown: &str, span: Range<usize>) -> Problem {
    Problem::new(format!("`{shown}` has the wrong type"), Where::Span(span), format!("expected a table `[{shown}]`"))
}

fn unknown_key(section: &str, leaf: &str, span: Range<usize>, shown: &str) -> Problem {
    let leaves = schema::leaves(section);
    let problem = Problem::new(
        format!("unknown key `{leaf}` in `[{shown}]`"),
        Where::Span(span),
        format!("expected a key of `[{shown}]`"),
    );
    match (nearest(leaf, leaves.iter().copied()), homes(leaf).as_slice()) {
        (Some(meant), _) => problem.with_help(format!("did you mean `{meant}`?")),
        (None, [home, ..]) => problem.with_help(format!("`{leaf}` is a key of `[{home}]`")),
        (None, []) => problem.with_help(format!("the keys here are {}", quoted(&leaves))),
    }
}

fn unknown_section(name: &str, span: Range<usize>, value: &DeValue<'_>, prefix: &str) -> Problem {
    let is_table = matches!(value, DeValue::Table(_));
    let place = if prefix.is_empty() { "at the top level".to_owned() } else { format!("in `[{prefix}]`") };
    let what = if is_table { "section" } else { "key" };
    let problem = Problem::new(format!("unknown {what} `{name}` {place}"), Where::Span(span), "expected a section");
    let meant = nearest(name, SECTIONS.iter().copied()).map(|meant| format!("did you mean `[{meant}]`?"));
    let home = homes(name).first().map(|home| format!("`{name}` is a key of `[{home}]`"));
    // Only within a manifest are keys of `[offload]` at home here too.
    let key = nearest(name, schema::leaves("offload"))
        .filter(|_| !prefix.is_empty())
        .map(|meant| format!("did you mean `{meant}`?"));
    let help = if is_table { meant.or(home) } else { home.or(key).or(meant) };
    problem.with_help(help.unwrap_or_else(|| format!("the sections are {}", quoted(SECTIONS))))
}

/// The sections that have a key of this name.
fn homes(leaf: &str) -> Vec<&'static str> {
    SECTIONS.iter().copied().filter(|section| schema::leaves(section).contains(&leaf)).collect()
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}
