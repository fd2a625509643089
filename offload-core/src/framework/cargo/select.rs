//! Which of the tests that were found are part of the run: name filters, groups, package specs.
//!
//! Names are matched as libtest matches them, here and not there, so that one listing serves every question.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use cargo_metadata::{Metadata, Package, PackageId, TargetKind};

use super::options::{CargoOptions, RunIgnored};
use super::process::cargo_command;
use crate::config::GroupConfig;
use crate::framework::{FrameworkError, FrameworkResult};

/// Test names, as `cargo test FILTER… -- --exact --skip …` selects them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Names {
    filters: Vec<String>,
    skip: Vec<String>,
    exact: bool,
}

impl Names {
    fn matches(&self, name: &str) -> bool {
        let is_match = |pattern: &String| if self.exact { name == pattern } else { name.contains(pattern.as_str()) };
        (self.filters.is_empty() || self.filters.iter().any(is_match)) && !self.skip.iter().any(is_match)
    }
}

/// A group of tests with a treatment of its own.
#[derive(Debug)]
struct Group {
    name: Arc<str>,
    retries: u32,
    individual: bool,
    names: Names,
    packages: Vec<String>,
    kinds: Vec<Kind>,
}

/// Part of what is selected by a kind of target.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Lib,
    Bins,
    Tests,
    Examples,
    Benches,
    Doc,
    Bin(String),
    Test(String),
    Example(String),
    Bench(String),
}

/// What a test belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    pub(super) package: &'a Package,
    /// The target's kind; `None` for doctests.
    pub(super) kind: Option<&'a TargetKind>,
    /// The target's name.
    pub(super) target: &'a str,
}

/// What is to be done with a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Selected {
    /// Part of the run.
    Yes { group: Arc<str>, retries: u32, individual: bool },
    /// Left out by a filter.
    No,
    /// Left out because no group wants it.
    NoGroup,
}

/// Decides which tests are part of the run.
#[derive(Debug)]
pub(super) struct Selection {
    names: Names,
    groups: Vec<Group>,
    retries: u32,
    run_ignored: RunIgnored,
    /// `Arc`s, because every test gets one.
    no_group: Arc<str>,
}

impl Selection {
    pub(super) fn new(options: &CargoOptions) -> FrameworkResult<Self> {
        Ok(Self {
            names: Names { filters: options.filters.clone(), skip: options.skip.clone(), exact: options.exact },
            groups: options.groups.iter().map(parse_group).collect::<FrameworkResult<_>>()?,
            retries: options.retries,
            run_ignored: options.run_ignored,
            no_group: Arc::from(""),
        })
    }

    /// Whether and how a test is part of the run.
    pub(super) fn select(&self, origin: Origin<'_>, name: &str, ignored: bool) -> Selected {
        if !self.names.matches(name) || (self.run_ignored == RunIgnored::Only && !ignored) {
            return Selected::No;
        }
        if self.groups.is_empty() {
            return Selected::Yes { group: self.no_group.clone(), retries: self.retries, individual: false };
        }
        let group = self.groups.iter().find(|group| {
            group.names.matches(name)
                && (group.packages.is_empty() || group.packages.iter().any(|spec| spec_matches(spec, origin.package)))
                && (group.kinds.is_empty() || group.kinds.iter().any(|kind| kind.matches(origin)))
        });
        match group {
            Some(group) => {
                Selected::Yes { group: group.name.clone(), retries: group.retries, individual: group.individual }
            }
            None => Selected::NoGroup,
        }
    }

    /// Whether ignored tests are reported as skipped.
    pub(super) fn skips_ignored(&self) -> bool {
        self.run_ignored == RunIgnored::Default
    }
}

impl Kind {
    fn matches(&self, origin: Origin<'_>) -> bool {
        let named = |name: &String| name == origin.target;
        match (self, origin.kind) {
            (Self::Doc, None) => true,
            (Self::Lib, Some(kind)) => is_library(kind),
            (Self::Bins, Some(TargetKind::Bin))
            | (Self::Tests, Some(TargetKind::Test))
            | (Self::Examples, Some(TargetKind::Example))
            | (Self::Benches, Some(TargetKind::Bench)) => true,
            (Self::Bin(name), Some(TargetKind::Bin))
            | (Self::Test(name), Some(TargetKind::Test))
            | (Self::Example(name), Some(TargetKind::Example))
            | (Self::Bench(name), Some(TargetKind::Bench)) => named(name),
            _ => false,
        }
    }
}

/// Whether a target of this kind is its package's library.
pub(super) fn is_library(kind: &TargetKind) -> bool {
    !matches!(
        kind,
        TargetKind::Bin | TargetKind::Test | TargetKind::Example | TargetKind::Bench | TargetKind::CustomBuild
    )
}

fn parse_group(config: &GroupConfig) -> FrameworkResult<Group> {
    let usage = |what: String| {
        FrameworkError::Usage(format!(
            "the filters of group `{}` cannot be understood: {what} in `{}`; a group's filters are parts of test names, \
             `--exact`, `--skip NAME`, `--package SPEC`, `--lib`, `--bins`, `--tests`, `--examples`, `--benches`, `--doc` \
             and `--bin|--test|--example|--bench NAME`",
            config.name, config.filters
        ))
    };
    let words = shlex::split(&config.filters).ok_or_else(|| usage("a quote is not closed".to_owned()))?;
    let mut group = Group {
        name: Arc::from(config.name.as_str()),
        retries: config.retry_count,
        individual: config.schedule_individual,
        names: Names::default(),
        packages: Vec::new(),
        kinds: Vec::new(),
    };
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let (option, mut value) = match word.split_once('=') {
            Some((option, value)) if word.starts_with("--") => (option.to_owned(), Some(value.to_owned())),
            _ => (word.clone(), None),
        };
        let mut value =
            || value.take().or_else(|| words.next()).ok_or_else(|| usage(format!("`{option}` needs a value")));
        match option.as_str() {
            "--" => {}
            "--exact" => group.names.exact = true,
            "--skip" => group.names.skip.push(value()?),
            "-p" | "--package" => group.packages.push(value()?),
            "--lib" => group.kinds.push(Kind::Lib),
            "--bins" => group.kinds.push(Kind::Bins),
            "--tests" => group.kinds.push(Kind::Tests),
            "--examples" => group.kinds.push(Kind::Examples),
            "--benches" => group.kinds.push(Kind::Benches),
            "--doc" => group.kinds.push(Kind::Doc),
            "--bin" => group.kinds.push(Kind::Bin(value()?)),
            "--test" => group.kinds.push(Kind::Test(value()?)),
            "--example" => group.kinds.push(Kind::Example(value()?)),
            "--bench" => group.kinds.push(Kind::Bench(value()?)),
            _ if word.starts_with('-') => return Err(usage(format!("`{word}` is unknown"))),
            _ => group.names.filters.push(word),
        }
    }
    Ok(group)
}

/// The packages that Cargo selects, each once.
pub(super) async fn selected_packages(options: &CargoOptions, metadata: &Metadata, dir: &Path) -> Vec<PackageId> {
    // As in Cargo, `--workspace` makes `--package` meaningless.
    if options.packages.is_empty() || options.workspace {
        return selected_members(options, metadata, dir).into_iter().map(|package| package.id.clone()).collect();
    }
    let mut selected: Vec<PackageId> = Vec::new();
    for spec in &options.packages {
        let members = || metadata.packages.iter().filter(|package| spec_matches(spec, package));
        let ids = match package_id(options, spec, dir).await {
            // Globs are for members only.
            None => members().map(|package| package.id.clone()).collect(),
            Some(id) => vec![id],
        };
        let new: Vec<_> = ids.into_iter().filter(|id| !selected.contains(id)).collect();
        selected.extend(new);
    }
    selected
}

/// Asks Cargo which package a spec means, in the workspace or among what it depends on. `None` for a glob, and where
/// Cargo says that it means none or several, which the build says, too.
async fn package_id(options: &CargoOptions, spec: &str, dir: &Path) -> Option<PackageId> {
    let args =
        ["pkgid".to_owned()].into_iter().chain(options.workspace_args()).chain(["--".to_owned(), spec.to_owned()]);
    let mut command = tokio::process::Command::from(cargo_command(dir, args));
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.ok()?;
    let id = String::from_utf8(output.stdout).ok()?;
    // Before Cargo 1.77 it was printed in another form than that of the metadata.
    let id = id.trim();
    (output.status.success() && id.split_once("://").is_some_and(|(scheme, _)| scheme.contains('+')))
        .then(|| PackageId { repr: id.to_owned() })
}

fn selected_members<'a>(options: &CargoOptions, metadata: &'a Metadata, dir: &Path) -> Vec<&'a Package> {
    let members = metadata.workspace_packages();
    let mut selected = if options.workspace {
        members
    } else {
        // In a member's directory Cargo takes that member, at the root the default members.
        let manifest = match &options.manifest_path {
            Some(path) => Some(dir.join(path)),
            None => dir.ancestors().map(|dir| dir.join("Cargo.toml")).find(|manifest| manifest.is_file()),
        };
        let manifest = manifest.and_then(|manifest| manifest.canonicalize().ok());
        let is_this = |path: &Path| path.canonicalize().ok() == manifest;
        let root = metadata.workspace_root.join("Cargo.toml");
        match members.iter().find(|package| is_this(package.manifest_path.as_std_path())) {
            Some(package) if !is_this(root.as_std_path()) => vec![*package],
            _ => metadata.workspace_default_packages(),
        }
    };
    selected.retain(|package| !options.exclude.iter().any(|spec| spec_matches(spec, package)));
    selected
}

/// Whether a package spec (`name`, `name@1.2`, a glob, a URL) means `package`.
fn spec_matches(spec: &str, package: &Package) -> bool {
    if spec.contains("://") {
        let (url, fragment) = spec.split_once('#').map_or((spec, None), |(url, fragment)| (url, Some(fragment)));
        let whose = package.id.repr.split('#').next().unwrap_or_default();
        let whose = if url.split("://").next().is_some_and(|scheme| scheme.contains('+')) {
            whose
        } else {
            whose.split_once('+').map_or(whose, |(_, url)| url)
        };
        let is_version = |fragment: &str| fragment.starts_with(|c: char| c.is_ascii_digit());
        return url.trim_end_matches('/') == whose.trim_end_matches('/')
            && fragment.is_none_or(|fragment| {
                if is_version(fragment) { is_version_of(fragment, package) } else { spec_matches(fragment, package) }
            });
    }
    let (name, version) = match spec.split_once(['@', ':']) {
        Some((name, version)) => (name, Some(version)),
        None => (spec, None),
    };
    version.is_none_or(|version| is_version_of(version, package)) && glob_matches(name, &package.name)
}

/// Whether `wanted` is the version of a package, or the beginning of it.
fn is_version_of(wanted: &str, package: &Package) -> bool {
    let version = package.version.to_string();
    version == wanted || version.strip_prefix(wanted).is_some_and(|rest| rest.starts_with('.'))
}

/// Globs as Cargo has them in package specs: `*`, `?` and `[…]`.
fn glob_matches(pattern: &str, name: &str) -> bool {
    if !pattern.contains(['*', '?', '[']) {
        return pattern == name;
    }
    let mut expression = String::from("^");
    let mut in_class = false;
    for c in pattern.chars() {
        match c {
            '*' if !in_class => expression.push_str(".*"),
            '?' if !in_class => expression.push('.'),
            '[' if !in_class => {
                in_class = true;
                expression.push('[');
            }
            ']' if in_class => {
                in_class = false;
                expression.push(']');
            }
            '!' if in_class && expression.ends_with('[') => expression.push('^'),
            c if in_class => expression.push(c),
            c => expression.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    expression.push('$');
    regex::Regex::new(&expression).is_ok_and(|expression| expression.is_match(name))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(filters: &[&str], skip: &[&str], exact: bool) -> Names {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        Names { filters: owned(filters), skip: owned(skip), exact }
    }

    #[test]
    fn names_match_as_in_libtest() {
        assert!(names(&[], &[], false).matches("a::b"));
        assert!(names(&["x", "::b"], &[], false).matches("a::b"));
        assert!(!names(&["b"], &["a:"], false).matches("a::b"));
        assert!(!names(&["b"], &[], true).matches("a::b"));
        assert!(names(&["a::b"], &["a"], true).matches("a::b"), "--skip is exact too");
    }

    #[test]
    fn package_globs_are_cargos() {
        assert!(glob_matches("serde*", "serde_json"));
        assert!(glob_matches("a?c[0-9]", "abc7"));
        assert!(!glob_matches("a[!b]c", "abc"));
        assert!(!glob_matches("a.c", "abc"));
        assert!(!glob_matches("ser", "serde"));
    }

    #[test]
    fn a_filter_that_means_nothing_is_named() {
        let group = |filters: &str| {
            parse_group(&GroupConfig { name: "slow".into(), filters: filters.into(), ..GroupConfig::default() })
        };
        let error = group("-E 'test(x)'").unwrap_err().to_string();
        assert!(error.starts_with("the filters of group `slow` cannot be understood: `-E` is unknown"), "{error}");
        assert!(group("--skip").unwrap_err().to_string().contains("`--skip` needs a value"));
        assert!(group("it's").unwrap_err().to_string().contains("a quote is not closed"));
        let good = group("'a b' --skip=c -p 'x*' --test io").unwrap();
        assert_eq!(good.names, names(&["a b"], &["c"], false));
        assert_eq!((good.packages, good.kinds), (vec!["x*".to_owned()], vec![Kind::Test("io".to_owned())]));
    }
}
