//! Every key there is, in one table.
//!
//! Parsing, defaults, diagnostics, the names of environment variables, `offload validate` and `docs/CONFIGURATION.md`
//! all come from (or are tested against) [`KEYS`], so that they cannot disagree. What a value of a [`Kind`] looks like
//! inside is checked in `value`; which of several values wins is decided in `resolve`.

mod keys;

pub use keys::KEYS;

/// The sections, in the order in which they are shown.
pub const SECTIONS: &[&str] = &["offload", "provider", "framework", "groups", "report", "history", "checkpoint"];

/// Values of `provider.type` that are recognised and not there yet.
pub const LATER_PROVIDERS: &[&str] = &["modal", "kubernetes"];

/// The longest time that can be configured, in seconds: over thirty years, and far from any overflow.
pub(super) const MAX_SECS: i64 = 1_000_000_000;

/// What values a key takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A whole number.
    Int {
        /// The least.
        min: i64,
        /// The greatest.
        max: i64,
    },
    /// A time in seconds, fractions allowed, 0 or more.
    Seconds,
    /// A number of seconds that something may take: at least a millisecond.
    TimeLimit,
    /// A number greater than 0.
    Amount,
    /// `true` or `false`.
    Bool,
    /// Any string.
    Text,
    /// A string that is not empty and contains each of these placeholders.
    Command(&'static [&'static str]),
    /// A string made of `{name}` (always) and `{classname}` (or not).
    TestIdFormat,
    /// A path; relative ones are relative to the directory that the run is for.
    Path,
    /// One of these strings.
    OneOf(&'static [&'static str]),
    /// A list of strings.
    Texts,
    /// A list of patterns of files.
    Globs,
    /// A list of paths.
    Paths,
    /// A list of strings `LOCAL:REMOTE`.
    CopyDirs,
    /// A list of hosts: tables, or strings for hosts about which there is nothing more to say.
    Hosts,
    /// A table of strings.
    Env,
    /// A table of anything.
    Table,
}

/// What a key is when nobody sets it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DefaultValue {
    /// It must be set.
    Required,
    /// There is no value.
    Unset,
    /// This, as TOML spells it.
    Toml(&'static str),
    /// What another key is.
    SameAs(&'static str),
    /// The number of CPUs where sandboxes use those of this machine (providers `local` and `docker`); else this.
    Cpus(&'static str),
}

/// Whether a key does anything.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Status {
    /// It does what its documentation says.
    Honoured,
    /// It is accepted, and setting it is answered with a notice: this text, after "has no effect yet: ".
    NotYet(&'static str),
    /// It is honoured with some providers; with others setting it is answered with a notice.
    WithProviders {
        /// The providers with which it is honoured.
        types: &'static [&'static str],
        /// Why not with others, after "has no effect with provider `…`: ".
        because: &'static str,
    },
}

/// One key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Key {
    /// Section and key: `offload.max_parallel`; `groups.NAME.filters` for keys of groups.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// What it is when nobody sets it.
    pub default: DefaultValue,
    /// The values of `provider.type` or `framework.type` that the key is for; empty: it is for all.
    pub types: &'static [&'static str],
    /// Whether it does anything.
    pub status: Status,
    /// What it means.
    pub doc: &'static str,
}

impl Key {
    const fn new(name: &'static str, kind: Kind, default: DefaultValue, doc: &'static str) -> Self {
        Self { name, kind, default, types: &[], status: Status::Honoured, doc }
    }

    const fn of(mut self, types: &'static [&'static str]) -> Self {
        self.types = types;
        self
    }

    const fn not_yet(mut self, why: &'static str) -> Self {
        self.status = Status::NotYet(why);
        self
    }

    const fn with_providers(mut self, types: &'static [&'static str], because: &'static str) -> Self {
        self.status = Status::WithProviders { types, because };
        self
    }

    /// The section: `groups` for `groups.NAME.filters`.
    pub fn section(&self) -> &'static str {
        self.name.split('.').next().unwrap_or(self.name)
    }

    /// The key within its section: `filters` for `groups.NAME.filters`.
    pub fn leaf(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }

    /// Whether the key is for this value of its section's `type`.
    pub fn is_for(&self, section_type: &str) -> bool {
        self.types.is_empty() || self.types.contains(&section_type)
    }

    /// The environment variable that sets the key; `None` for lists, tables and keys of groups.
    pub fn env_name(&self) -> Option<String> {
        if self.section() == "groups" || !self.kind.is_scalar() {
            return None;
        }
        Some(self.env_spelling())
    }

    /// What the environment variable would be called if every key had one.
    pub(super) fn env_spelling(&self) -> String {
        // `OFFLOAD_OFFLOAD_…` would be absurd: the section that is named like the program is left out.
        let name = self.name.strip_prefix("offload.").unwrap_or(self.name);
        format!("OFFLOAD_{}", name.replace('.', "_").to_uppercase())
    }

    /// The default as documentation shows it.
    pub fn default_text(&self) -> String {
        match self.default {
            DefaultValue::Required => "*required*".to_owned(),
            DefaultValue::Unset => String::new(),
            DefaultValue::Toml(text) => format!("`{text}`"),
            DefaultValue::SameAs(key) => format!("that of `{key}`"),
            DefaultValue::Cpus(other) => format!("number of CPUs; `{other}` with providers elsewhere"),
        }
    }
}

impl Kind {
    /// Whether a value is a single thing, so that an environment variable can hold it.
    pub fn is_scalar(self) -> bool {
        !matches!(
            self,
            Self::Texts | Self::Globs | Self::Paths | Self::CopyDirs | Self::Hosts | Self::Env | Self::Table
        )
    }

    /// The type as documentation shows it.
    pub fn type_text(self) -> String {
        match self {
            Self::Int { min, .. } => format!("int ≥ {min}"),
            Self::Seconds => "float ≥ 0".to_owned(),
            Self::TimeLimit => "float > 0".to_owned(),
            Self::Amount => "float > 0".to_owned(),
            Self::Bool => "bool".to_owned(),
            Self::Text => "string".to_owned(),
            Self::Command([]) => "command".to_owned(),
            Self::Command(placeholders) => format!("command with {}", code_list(placeholders)),
            Self::TestIdFormat => "string of `{name}`, `{classname}`".to_owned(),
            Self::Path => "path".to_owned(),
            Self::OneOf(values) => code_list(values),
            Self::Texts => "list of strings".to_owned(),
            Self::Globs => "list of patterns".to_owned(),
            Self::Paths => "list of paths".to_owned(),
            Self::CopyDirs => "list of `LOCAL:REMOTE`".to_owned(),
            Self::Hosts => "list of tables".to_owned(),
            Self::Env => "table of strings".to_owned(),
            Self::Table => "table".to_owned(),
        }
    }
}

fn code_list(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// The rows of a key, by its full name.
pub(super) fn rows(name: &str) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.name == name)
}

/// A key by section and key; a key of `groups` is found whatever the group.
pub(super) fn find(section: &str, leaf: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section() == section && key.leaf() == leaf)
}

/// The keys of a section, each once.
pub(super) fn leaves(section: &str) -> Vec<&'static str> {
    let mut leaves = Vec::new();
    for key in KEYS.iter().filter(|key| key.section() == section) {
        if !leaves.contains(&key.leaf()) {
            leaves.push(key.leaf());
        }
    }
    leaves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_key_share_no_type() {
        for key in KEYS {
            assert!(SECTIONS.contains(&key.section()), "{}", key.name);
            for other in rows(key.name).filter(|other| !std::ptr::eq(*other, key)) {
                // The environment's strings are read before types are known.
                assert_eq!(key.kind.is_scalar(), other.kind.is_scalar(), "{}", key.name);
                assert!(!key.types.is_empty() && !other.types.is_empty(), "{}", key.name);
                assert!(key.types.iter().all(|of| !other.types.contains(of)), "{}", key.name);
            }
        }
    }

    #[test]
    fn environment_names_are_unique() {
        let mut names = std::collections::BTreeMap::new();
        for (name, key) in KEYS.iter().filter_map(|key| Some((key.env_name()?, key.name))) {
            assert_eq!(*names.entry(name).or_insert(key), key);
        }
        assert!(names.contains_key("OFFLOAD_MAX_PARALLEL") && names.contains_key("OFFLOAD_REPORT_OUTPUT_DIR"));
    }
}
