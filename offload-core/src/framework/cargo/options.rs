//! What a command line can say about Cargo and tests, and how Cargo is told.
//!
//! Selection is Cargo's own: its options are passed on as they are, so that `cargo offload` selects what `cargo test`
//! selects. Test names are not Cargo's business; see [`super::select`].

use std::path::PathBuf;

use crate::config::{CargoFrameworkConfig, GroupConfig};
use crate::framework::{FrameworkError, FrameworkResult};

/// Which tests run as far as `#[ignore]` is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RunIgnored {
    /// Ignored tests are reported as skipped.
    #[default]
    Default,
    /// Only ignored tests run; the others are not part of the run.
    Only,
    /// All tests run.
    All,
}

/// Everything that a command line can say about a Cargo run. The default is plain `cargo test`, in the current directory.
#[derive(Debug, Clone, Default)]
pub struct CargoOptions {
    /// Where Cargo runs; the process's working directory when absent.
    pub current_dir: Option<PathBuf>,
    /// `--manifest-path`
    pub manifest_path: Option<PathBuf>,
    /// `--package`: package specs, globs too.
    pub packages: Vec<String>,
    /// `--workspace`
    pub workspace: bool,
    /// `--exclude`
    pub exclude: Vec<String>,
    /// `--lib`
    pub lib: bool,
    /// `--bins`
    pub bins: bool,
    /// `--bin NAME`
    pub bin: Vec<String>,
    /// `--tests`
    pub tests: bool,
    /// `--test NAME`
    pub test: Vec<String>,
    /// `--examples`
    pub examples: bool,
    /// `--example NAME`
    pub example: Vec<String>,
    /// `--benches`
    pub benches: bool,
    /// `--bench NAME`
    pub bench: Vec<String>,
    /// `--all-targets`
    pub all_targets: bool,
    /// `--doc`: doctests only.
    pub doc: bool,
    /// `--features`
    pub features: Vec<String>,
    /// `--all-features`
    pub all_features: bool,
    /// `--no-default-features`
    pub no_default_features: bool,
    /// `--release`
    pub release: bool,
    /// Cargo's `--profile`
    pub profile: Option<String>,
    /// `--target`: a target triple.
    pub target: Option<String>,
    /// `--target-dir`
    pub target_dir: Option<PathBuf>,
    /// `--locked`
    pub locked: bool,
    /// `--offline`
    pub offline: bool,
    /// `--frozen`
    pub frozen: bool,
    /// How many processes a build may use; by default what Cargo's configuration says, or the number of CPUs.
    pub build_jobs: Option<usize>,
    /// Cargo's `--color`: `Some(true)` always, `Some(false)` never.
    pub color: Option<bool>,
    /// Cargo's `--quiet`: warnings and errors, but not what is being compiled.
    pub quiet: bool,
    /// Test names that run, as substrings; all when empty.
    pub filters: Vec<String>,
    /// Filters and skips are whole names.
    pub exact: bool,
    /// Test names that do not run, as substrings.
    pub skip: Vec<String>,
    /// Whether ignored tests run.
    pub run_ignored: RunIgnored,
    /// What follows `--`: for the test harness. What selects tests there is understood as `cargo test` does.
    pub harness_args: Vec<String>,
    /// Groups of tests; if there are any, they define the run.
    pub groups: Vec<GroupConfig>,
    /// Further attempts for tests that no group gives any.
    pub retries: u32,
    /// No test starts before the build has ended.
    pub wait_for_build: bool,
    /// How many tests run at once on this machine. Informative: the gate serves any number.
    pub slots: usize,
    /// Tests run on other machines: without doctests, which need Rust, and with nothing of this process's environment.
    pub elsewhere: bool,
    /// Where `cache/` is kept; `target/offload` when empty.
    pub output_dir: PathBuf,
}

impl CargoOptions {
    /// These options with what a configuration file adds to them.
    pub(super) fn with_config(mut self, config: &CargoFrameworkConfig) -> Self {
        // What is typed replaces what the file says; features add up, as in Cargo.
        if self.packages.is_empty() && !self.workspace {
            self.packages.extend(config.package.clone());
        }
        if !self.selects_targets() {
            self.bin.extend(config.bin.clone());
        }
        self.features.extend(config.features.iter().cloned());
        if config.include_ignored && self.run_ignored == RunIgnored::Default {
            self.run_ignored = RunIgnored::Only;
        }
        self.interpret_harness_args();
        self
    }

    /// Takes out of the harness's arguments what selects tests, because tests are selected before a harness runs, and
    /// what would contradict the way in which the harness is run.
    fn interpret_harness_args(&mut self) {
        let mut kept = Vec::new();
        let mut args = std::mem::take(&mut self.harness_args).into_iter();
        while let Some(arg) = args.next() {
            let (name, value) = match arg.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
                _ => (arg.as_str(), None),
            };
            match name {
                "--ignored" => self.run_ignored = RunIgnored::Only,
                "--include-ignored" => self.run_ignored = RunIgnored::All,
                "--exact" => self.exact = true,
                "--skip" => self.skip.extend(value.or_else(|| args.next())),
                // How many at once, in which form and colour is decided by this run, not by each process of it.
                "--test-threads" | "--format" | "--color" | "--logfile" => {
                    if value.is_none() {
                        args.next();
                    }
                }
                "-q" | "--quiet" | "--list" => {}
                "-Z" | "--shuffle-seed" if value.is_none() => {
                    kept.push(arg);
                    kept.extend(args.next());
                }
                _ if name.starts_with('-') => kept.push(arg),
                _ => self.filters.push(arg),
            }
        }
        self.harness_args = kept;
    }

    /// Whether targets are selected: without that, doctests run too.
    pub(super) fn selects_targets(&self) -> bool {
        self.all_targets
            || self.lib
            || self.bins
            || self.tests
            || self.examples
            || self.benches
            || [&self.bin, &self.test, &self.example, &self.bench].iter().any(|names| !names.is_empty())
    }

    /// Whether doctests run.
    pub(super) fn wants_doctests(&self) -> bool {
        self.doc || !self.selects_targets()
    }

    /// Which packages.
    pub(super) fn package_args(&self) -> Vec<String> {
        let mut args = Args::default();
        args.flag("--workspace", self.workspace);
        args.options("--package", &self.packages);
        args.options("--exclude", &self.exclude);
        args.0
    }

    /// Which targets.
    pub(super) fn target_args(&self) -> Vec<String> {
        let mut args = Args::default();
        args.flag("--lib", self.lib);
        args.flag("--bins", self.bins);
        args.options("--bin", &self.bin);
        args.flag("--tests", self.tests);
        args.options("--test", &self.test);
        args.flag("--examples", self.examples);
        args.options("--example", &self.example);
        args.flag("--benches", self.benches);
        args.options("--bench", &self.bench);
        args.flag("--all-targets", self.all_targets);
        args.0
    }

    /// The targets for `cargo build --keep-going` that have what [`Self::target_args`] selects of `cargo test`. May be
    /// more than that: `cargo build` can select the test of a library or a binary only together with all tests.
    pub(super) fn keep_going_target_args(&self) -> Vec<String> {
        let mut args = Args::default();
        let default = !self.selects_targets();
        let own_tests = self.lib || self.bins || !self.bin.is_empty() || !self.example.is_empty();
        args.flag("--tests", default || self.tests || self.examples || own_tests);
        args.options("--test", &self.test);
        args.flag("--examples", default || self.examples);
        args.flag("--benches", self.benches);
        args.options("--bench", &self.bench);
        args.flag("--all-targets", self.all_targets);
        args.0
    }

    /// How it is built, apart from features.
    pub(super) fn build_args(&self) -> Vec<String> {
        let mut args = Args::default();
        args.flag("--release", self.release);
        args.options("--profile", &self.profile);
        args.options("--target", &self.target);
        args.options("--target-dir", self.target_dir.as_ref().map(|dir| dir.to_string_lossy()));
        args.0.extend(self.workspace_args());
        args.0
    }

    /// Where Cargo is called.
    pub(super) fn working_dir(&self) -> FrameworkResult<PathBuf> {
        let dir = match &self.current_dir {
            Some(dir) => std::path::absolute(dir),
            None => std::env::current_dir(),
        };
        dir.map_err(|error| {
            let text = format!("cannot find out the working directory: {error}; change to one that exists");
            FrameworkError::Usage(text)
        })
    }

    /// With which features.
    pub(super) fn feature_args(&self) -> Vec<String> {
        let mut args = Args::default();
        args.options("--features", &self.features);
        args.flag("--all-features", self.all_features);
        args.flag("--no-default-features", self.no_default_features);
        args.0
    }

    /// Which workspace, and whether it may change.
    pub(super) fn workspace_args(&self) -> Vec<String> {
        let mut args = Args::default();
        args.options("--manifest-path", self.manifest_path.as_ref().map(|path| path.to_string_lossy()));
        args.flag("--locked", self.locked);
        args.flag("--offline", self.offline);
        args.flag("--frozen", self.frozen);
        args.0
    }

    /// How loud a build is.
    pub(super) fn noise_args(&self) -> Vec<String> {
        let mut args = Args::default();
        args.flag("--quiet", self.quiet);
        args.0
    }

    /// In which colours.
    pub(super) fn color_args(&self) -> Vec<String> {
        let mut args = Args::default();
        args.options("--color", self.color.map(|always| if always { "always" } else { "never" }));
        args.0
    }
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, name: &str, wanted: bool) {
        if wanted {
            self.0.push(name.to_owned());
        }
    }

    fn options<T: AsRef<str>>(&mut self, name: &str, values: impl IntoIterator<Item = T>) {
        for value in values {
            self.0.push(name.to_owned());
            self.0.push(value.as_ref().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn what_follows_the_dashes_selects_tests_as_in_cargo_test() {
        let options = CargoOptions {
            harness_args: words("--ignored parse --skip slow --skip=net --test-threads 1 --nocapture --format=json -q"),
            ..CargoOptions::default()
        }
        .with_config(&CargoFrameworkConfig::default());
        assert_eq!(options.run_ignored, RunIgnored::Only);
        assert_eq!(options.filters, ["parse"]);
        assert_eq!(options.skip, ["slow", "net"]);
        assert_eq!(options.harness_args, ["--nocapture"]);
    }

    #[test]
    fn the_command_line_comes_before_the_file() {
        let config = CargoFrameworkConfig {
            package: Some("from-file".to_owned()),
            bin: Some("tool".to_owned()),
            features: words("extra"),
            include_ignored: true,
            ..CargoFrameworkConfig::default()
        };
        let typed =
            CargoOptions { packages: words("typed"), lib: true, features: words("a"), ..CargoOptions::default() }
                .with_config(&config);
        assert_eq!(typed.packages, ["typed"]);
        assert!(typed.bin.is_empty());
        assert_eq!(typed.features, ["a", "extra"]);
        assert_eq!(typed.run_ignored, RunIgnored::Only);
        let plain = CargoOptions::default().with_config(&config);
        assert_eq!(plain.package_args(), ["--package", "from-file"]);
        assert_eq!(plain.target_args(), ["--bin", "tool"]);
    }
}
