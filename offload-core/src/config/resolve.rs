//! Lays command line, environment, file and defaults over each other, once.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;

use toml::de::{DeTable, DeValue};

use super::diagnostic::{self, Problem, Where, alternatives};
use super::layer::{Assignment, Layers, Rank};
use super::schema::{self, DefaultValue, KEYS, Key, Kind, LATER_PROVIDERS, Status};
use super::value::{Checked, Place, Reader, check, from_toml, spell_key};
use super::{Config, ConfigError, ConfigSource, SourceKind, build};

/// A key that the command line sets.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    /// The key: `offload.max_parallel`; `groups.*.retry_count` sets a key of every group.
    pub key: &'static str,
    /// The value, as a file would have it.
    pub value: toml::Value,
    /// What the user typed it with: `--parallel`.
    pub origin: String,
}

/// Defaults that depend on who asks: laid over those of the schema, under everything else.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Defaults {
    pub(super) values: Vec<(&'static str, toml::Value)>,
}

impl Defaults {
    /// What is usual for a kind of source: `offload.toml` has to name provider and framework; elsewhere the provider is
    /// `local`, in a Cargo.toml the framework is `cargo` and in a pyproject.toml `pytest`.
    pub fn for_source(source: Option<&ConfigSource>) -> Self {
        let defaults = Self::default();
        match source.map(ConfigSource::kind) {
            Some(SourceKind::OffloadToml) => defaults,
            Some(SourceKind::CargoManifest) => defaults.set("provider.type", "local").set("framework.type", "cargo"),
            Some(SourceKind::PyProject) => defaults.set("provider.type", "local").set("framework.type", "pytest"),
            None => defaults.set("provider.type", "local"),
        }
    }

    /// The same with another default; the last one set for a key counts.
    #[must_use]
    pub fn set(mut self, key: &'static str, value: impl Into<toml::Value>) -> Self {
        self.values.push((key, value.into()));
        self
    }
}

/// The origin of what nobody has set.
const DEFAULT_ORIGIN: &str = "default";

/// A resolved key and where its value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The key: `offload.max_parallel`, `groups.slow.filters`, `provider.env.PATH`.
    pub key: String,
    /// The value as TOML; what came from `${VAR}` is shown as it was written.
    pub value: String,
    /// `default`, `offload.toml:3`, `OFFLOAD_MAX_PARALLEL`, `--parallel`.
    pub origin: String,
    /// How much of the key names the section.
    section: usize,
}

/// A resolved configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The configuration.
    pub config: Config,
    /// Every key that has a value, in the order of the schema.
    pub origins: Vec<Setting>,
    /// The directory of the configuration file; `.` without one. Relative paths in [`Self::config`] are as written.
    pub base_dir: PathBuf,
}

impl Resolved {
    /// Whether anybody has set this key: the command line, the environment or the file.
    pub fn is_set(&self, key: &str) -> bool {
        self.origins.iter().any(|setting| setting.key == key && setting.origin != DEFAULT_ORIGIN)
    }

    /// The configuration as TOML, with a comment on each line that says where the value came from.
    pub fn render(&self) -> String {
        use std::fmt::Write as _;
        // Comments align, except behind the odd long command.
        const WIDTH: usize = 44;
        let mut text = String::new();
        let mut section = "";
        for setting in &self.origins {
            let (name, rest) = setting.key.split_at(setting.section);
            if name != section {
                let gap = if section.is_empty() { "" } else { "\n" };
                let _ = writeln!(text, "{gap}[{name}]");
                section = name;
            }
            let line = format!("{} = {}", rest.trim_start_matches('.'), setting.value);
            // What a format string pads is counted in characters, and so are columns here.
            let _ = writeln!(text, "{line:<WIDTH$}  # {}", setting.origin);
        }
        text
    }
}

/// The value that won.
#[derive(Debug, Clone)]
pub(super) struct Picked {
    pub(super) value: Checked,
    rank: Rank,
    /// Where the value came from, for people.
    origin: String,
}

/// Resolves a configuration: `overrides` over `OFFLOAD_*` in `env` over the file `source` over `defaults` over those of
/// the schema. Strings of the file may refer to variables in `env`.
///
/// # Errors
///
/// [`ConfigError`] with everything that is wrong in any of them.
pub fn resolve(
    source: Option<&ConfigSource>,
    env: impl IntoIterator<Item = (String, String)>,
    overrides: &[Override],
    defaults: Defaults,
) -> Result<Resolved, ConfigError> {
    let text = source.map(ConfigSource::read).transpose()?.unwrap_or_default();
    resolve_text(source.map(|source| (source, text.as_str())), env.into_iter().collect(), overrides, defaults)
}

/// [`resolve`], where the file has been read.
pub(super) fn resolve_text(
    file: Option<(&ConfigSource, &str)>,
    env: BTreeMap<String, String>,
    overrides: &[Override],
    defaults: Defaults,
) -> Result<Resolved, ConfigError> {
    let path = file.map(|(source, _)| source.path().display().to_string()).unwrap_or_default();
    let text = file.map_or("", |(_, text)| text);

    let mut layers = Layers::default();
    let mut marked = Vec::new();
    layers.add_defaults(&defaults);
    if let Some((source, _)) = file {
        // With broken syntax the tree behind it means little: what it lacks would be reported as missing.
        let document = parse(text).map_err(|problems| diagnostic::error(problems, &path, text))?;
        mark(&document, &mut marked);
        let located = source.table(&document).map_err(|problem| diagnostic::error(vec![problem], &path, text))?;
        layers.add_file(&Reader { text, env: &env }, &located, source.kind());
    }
    layers.add_env(&env);
    layers.add_overrides(overrides);

    let resolver = Resolver { path: &path, line_ends: line_ends(text), layers };
    let (config, origins) =
        resolver.run().map_err(|problems| diagnostic::error(problems, &path, &conceal(text, &marked)))?;
    Ok(Resolved { config, origins, base_dir: file.map_or_else(|| PathBuf::from("."), |(source, _)| source.base_dir()) })
}

fn parse(text: &str) -> Result<DeTable<'_>, Vec<Problem>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(document.into_inner());
    }
    let mut problems: Vec<Problem> = Vec::new();
    let mut last_line = None;
    let line_ends = line_ends(text);
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        // What follows an error on the same line is mostly its echo.
        let line = line_of(&line_ends, span.start);
        if last_line.replace(line) != Some(line) {
            problems.push(Problem::new("the file is not valid TOML", Where::Span(span), error.message()));
        }
    }
    Err(problems)
}

/// Finds the places of values in the file that are marked as secrets.
fn mark(table: &DeTable<'_>, marked: &mut Vec<Range<usize>>) {
    if let (Some(value), Some(secret)) = (table.get("value"), table.get("secret"))
        && !matches!(secret.get_ref(), DeValue::Boolean(false))
    {
        marked.push(value.span());
    }
    for (_, value) in table {
        if let DeValue::Table(table) = value.get_ref() {
            mark(table, marked);
        }
    }
}

/// The file as a diagnosis may show it: what is marked as a secret is made unreadable, and stays as long as it is.
fn conceal(text: &str, marked: &[Range<usize>]) -> String {
    let mut marked: Vec<_> = marked.iter().filter(|range| text.get((*range).clone()).is_some()).collect();
    marked.sort_by_key(|range| range.start);
    let (mut shown, mut done) = (String::with_capacity(text.len()), 0);
    for range in marked.into_iter().filter(|range| !range.is_empty()) {
        let start = range.start.max(done);
        if start >= range.end {
            continue;
        }
        shown.push_str(&text[done..start]);
        for c in text[start..range.end].chars() {
            if "\r\n\"'".contains(c) {
                shown.push(c);
            } else {
                shown.extend(std::iter::repeat_n('*', c.len_utf8()));
            }
        }
        done = range.end;
    }
    shown.push_str(&text[done..]);
    shown
}

/// Where lines end.
fn line_ends(text: &str) -> Vec<usize> {
    text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect()
}

/// The number of the line with this byte.
fn line_of(line_ends: &[usize], offset: usize) -> usize {
    1 + line_ends.partition_point(|end| *end < offset)
}

struct Resolver<'a> {
    path: &'a str,
    /// Where lines of the file end.
    line_ends: Vec<usize>,
    layers: Layers,
}

impl Resolver<'_> {
    fn run(mut self) -> Result<(Config, Vec<Setting>), Vec<Problem>> {
        let provider = self.section_type("provider");
        let framework = self.section_type("framework");
        self.layers.check_by_type(|section| {
            let section_type = if section == "provider" { &provider } else { &framework };
            section_type.as_ref().map(|(name, _)| name.clone())
        });
        let section_type = |key: &Key| match key.section() {
            "provider" => provider.as_ref().map(|(name, _)| name.as_str()),
            "framework" => framework.as_ref().map(|(name, _)| name.as_str()),
            _ => Some(""),
        };

        let mut picks: BTreeMap<&'static str, Picked> = BTreeMap::new();
        let mut groups: Vec<(String, BTreeMap<&'static str, Picked>)> =
            self.layers.groups.iter().map(|name| (name.clone(), BTreeMap::new())).collect();
        let mut origins = Vec::new();
        for key in KEYS.iter().filter(|key| key.section() != "groups") {
            // The keys of a section whose type is missing or wrong: which of them apply cannot be told.
            if !section_type(key).map_or(key.leaf() == "type", |name| key.is_for(name)) {
                continue;
            }
            match self.pick(key, None, &picks) {
                Some(picked) => {
                    picks.insert(key.name, picked);
                }
                None => self.require(key, section_type(key)),
            }
        }
        for (name, group) in &mut groups {
            for key in KEYS.iter().filter(|key| key.section() == "groups") {
                if let Some(picked) = self.pick(key, Some(name), &picks) {
                    group.insert(key.leaf(), picked);
                }
            }
        }
        if !self.layers.problems.is_empty() {
            return Err(self.layers.problems);
        }

        for section in schema::SECTIONS {
            if *section == "groups" {
                for (name, group) in &groups {
                    let prefix = format!("groups.{}", spell_key(name));
                    for key in KEYS.iter().filter(|key| key.section() == "groups") {
                        if let Some(picked) = group.get(key.leaf()) {
                            self.show(&prefix, key, picked, &mut origins);
                        }
                    }
                }
            }
            for key in KEYS.iter().filter(|key| key.section() == *section) {
                let applies = section_type(key).is_some_and(|name| key.is_for(name));
                if let Some(picked) = picks.get(key.name).filter(|_| applies) {
                    self.show(section, key, picked, &mut origins);
                }
            }
        }

        let mut config = build::config(&picks, &groups);
        config.notices = self.notices(&picks, provider, framework);
        config.notices.extend(build::notices(&config));
        Ok((config, origins))
    }

    /// The value of `type` in a section and the layer that set it; `None` when it is missing or wrong.
    fn section_type(&self, section: &str) -> Option<(String, Rank)> {
        let key = schema::find(section, "type")?;
        let picked = self.pick(key, None, &BTreeMap::new())?;
        match picked.value {
            Checked::Text(text) => Some((text.value, picked.rank)),
            _ => None,
        }
    }

    /// Whether sandboxes use the CPUs of this machine.
    fn is_here(&self) -> bool {
        self.section_type("provider").is_none_or(|(name, _)| matches!(&*name, "local" | "docker"))
    }

    fn assignments(&self, key: &Key, group: Option<&str>) -> impl Iterator<Item = &Assignment> {
        self.layers.of(key, group)
    }

    /// The value that wins: the highest layer's. Tables are merged, and directories to copy add up.
    fn pick(&self, key: &Key, group: Option<&str>, others: &BTreeMap<&'static str, Picked>) -> Option<Picked> {
        let mut picked = self.default(key, others);
        for Assignment { value, place, rank, .. } in self.assignments(key, group) {
            let Some(value) = value else { continue };
            let value = match (key.kind, picked.take().map(|picked| picked.value), value.clone()) {
                (Kind::CopyDirs, Some(Checked::List(mut all)), Checked::List(more)) => {
                    all.extend(more);
                    Checked::List(all)
                }
                (_, Some(Checked::Table(mut all)), Checked::Table(more)) => {
                    let names: HashSet<&str> = more.iter().map(|(name, ..)| name.as_str()).collect();
                    all.retain(|(known, ..)| !names.contains(known.as_str()));
                    all.extend(more);
                    Checked::Table(all)
                }
                (_, _, value) => value,
            };
            picked = Some(Picked { value, rank: *rank, origin: self.origin(place) });
        }
        picked
    }

    fn default(&self, key: &Key, others: &BTreeMap<&'static str, Picked>) -> Option<Picked> {
        match key.default {
            DefaultValue::Required | DefaultValue::Unset => None,
            DefaultValue::SameAs(other) => others.get(other).map(|picked| Picked {
                origin: if picked.rank == Rank::Default { DEFAULT_ORIGIN.to_owned() } else { format!("as {other}") },
                rank: Rank::Default,
                value: picked.value.clone(),
            }),
            DefaultValue::Toml(_) | DefaultValue::Cpus(_) => {
                let cpus;
                let text = match key.default {
                    DefaultValue::Toml(text) => text,
                    DefaultValue::Cpus(_) if self.is_here() => {
                        cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).to_string();
                        &cpus
                    }
                    DefaultValue::Cpus(other) => other,
                    _ => return None,
                };
                let value = build::default_value(text);
                let value = check(key.name, key.kind, &from_toml(&value, &Place::Default), &mut Vec::new())?;
                Some(Picked { value, rank: Rank::Default, origin: DEFAULT_ORIGIN.to_owned() })
            }
        }
    }

    /// Complains about a key without a value, where it needs one.
    fn require(&mut self, key: &Key, section_type: Option<&str>) {
        // A wrong value is no value, but it has been complained about.
        if key.default != DefaultValue::Required || self.assignments(key, None).next().is_some() {
            return;
        }
        let (section, leaf) = (key.section(), key.leaf());
        if self.layers.unreadable.iter().any(|name| name == section) {
            return;
        }
        let title = match section_type {
            Some(name) if leaf != "type" => format!("{section} `{name}` needs `{}`, which is not set", key.name),
            _ => format!("`{}` is not set", key.name),
        };
        let at = match self.layers.sections.get(section) {
            Some(span) => Where::Span(span.clone()),
            None if !self.path.is_empty() => Where::File,
            None => Where::Named("no configuration file".to_owned()),
        };
        let mut problem = Problem::new(title, at, format!("expected `{leaf}` in `[{section}]`"));
        if let Kind::OneOf(values) = key.kind {
            problem = problem.with_help(format!("set it to {}", alternatives(values)));
        }
        self.layers.problems.push(problem);
    }

    fn origin(&self, place: &Place) -> String {
        match place {
            Place::Default => DEFAULT_ORIGIN.to_owned(),
            Place::File(span) => {
                format!("{}:{}", self.path, line_of(&self.line_ends, span.start))
            }
            Place::Env { name, .. } | Place::Option { name, .. } => name.clone(),
        }
    }

    fn show(&self, section: &str, key: &Key, picked: &Picked, origins: &mut Vec<Setting>) {
        // What does nothing is only worth showing to those who set it.
        if matches!(key.status, Status::NotYet(_)) && picked.rank == Rank::Default {
            return;
        }
        let full = format!("{section}.{}", key.leaf());
        match &picked.value {
            Checked::Table(entries) if !entries.is_empty() => {
                for (name, entry, place) in entries {
                    origins.push(Setting {
                        key: format!("{full}.{}", spell_key(name)),
                        value: super::value::spell(entry),
                        origin: self.origin(place),
                        section: section.len(),
                    });
                }
            }
            value => {
                // Items that add up come from several places.
                let mut origin = Vec::new();
                if let (Kind::CopyDirs, Checked::List(items)) = (key.kind, value) {
                    origin.extend(items.iter().map(|(_, place)| self.origin(place)));
                    origin.dedup();
                }
                if origin.is_empty() {
                    origin.push(picked.origin.clone());
                }
                origins.push(Setting {
                    key: full,
                    value: value.spell(),
                    origin: origin.join(", "),
                    section: section.len(),
                });
            }
        }
    }

    /// Sentences on everything that was set and does nothing.
    fn notices(
        &self,
        picks: &BTreeMap<&'static str, Picked>,
        provider: Option<(String, Rank)>,
        framework: Option<(String, Rank)>,
    ) -> Vec<String> {
        let mut notices = self.layers.notices.clone();
        let provider = provider.unwrap_or((String::new(), Rank::Default));
        let framework = framework.unwrap_or((String::new(), Rank::Default));
        let mut say = |origin: String, text: String| notices.push(format!("{origin}: {text}"));
        let name = &provider.0;
        if let (true, Some(picked)) = (LATER_PROVIDERS.contains(&name.as_str()), picks.get("provider.type")) {
            say(picked.origin.clone(), format!("the provider `{name}` is not there yet: a run with it is refused"));
        }
        for set in self.layers.assignments.iter().filter(|set| set.rank > Rank::Default) {
            let (name, rank) = match set.key.section() {
                "provider" => (provider.0.as_str(), provider.1),
                "framework" => (framework.0.as_str(), framework.1),
                _ => ("", Rank::Default),
            };
            let Some(key) = schema::rows(set.key.name).find(|key| key.is_for(name)) else {
                // Whoever chooses another type on the command line knows that the file's keys are not for it.
                if set.rank >= rank {
                    let types: Vec<&str> = schema::rows(set.key.name).flat_map(|key| key.types).copied().collect();
                    let text = format!(
                        "`{}` has no effect with {} `{name}`: it is for {}",
                        set.key.name,
                        set.key.section(),
                        alternatives(&types),
                    );
                    say(self.origin(&set.place), text);
                }
                continue;
            };
            match key.status {
                Status::Honoured => {}
                Status::NotYet(why) => {
                    say(self.origin(&set.place), format!("`{}` has no effect yet: {why}", key.name));
                }
                Status::WithProviders { types, because } => {
                    let name = provider.0.as_str();
                    if !types.contains(&name) && !LATER_PROVIDERS.contains(&name) {
                        let text = format!("`{}` has no effect with provider `{name}`: {because}", key.name);
                        say(self.origin(&set.place), text);
                    }
                }
            }
        }
        notices
    }
}
