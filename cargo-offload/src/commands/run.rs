//! `run`: discovers and runs tests.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use offload_core::config::{CargoFrameworkConfig, Config, FrameworkConfig, ProviderConfig};
use offload_core::framework::TestFramework;
use offload_core::framework::cargo::{CargoFramework, CargoOptions};
use offload_core::framework::default::DefaultFramework;
use offload_core::framework::pytest::{PytestFramework, PytestWorkers};
use offload_core::framework::vitest::VitestFramework;
use offload_core::orchestrator::{Orchestrator, history_reporter};
use offload_core::provider::default::DefaultProvider;
use offload_core::provider::docker::DockerProvider;
use offload_core::provider::local::LocalProvider;
use offload_core::provider::ssh::SshProvider;
use offload_core::provider::{CopyDir, SandboxProvider};
use offload_core::report::console::{ColorChoice, ConsoleOptions, ConsoleReporter, Progress, Surroundings};
use offload_core::report::json::JsonReporter;
use offload_core::report::junit::MasterJunitReport;
use offload_core::report::trace::TraceReporter;
use offload_core::report::{Reporter, ensure_writable};

use crate::cli::cargo::{CargoRunArgs, SelectionArgs};
use crate::cli::offload::{ImageArgs, OffloadRunArgs};
use crate::cli::typed::take_from_harness;
use crate::cli::{Color, CommonArgs, ExecutionArgs, MessageFormat, NoTests, ProgressArg, ReportArgs};
use crate::failure::Outcome;
use crate::settings::{Overrides, Settings};
use crate::signals::cancel_on_signals;

/// `cargo offload run`
pub fn cargo(common: &CommonArgs, mut args: CargoRunArgs) -> Outcome {
    let notes = match take_from_harness(&mut args) {
        Ok(notes) => notes,
        Err(error) => return Ok(crate::usage(&error)),
    };
    for note in notes {
        let _ = writeln!(std::io::stderr(), "note: {note}");
    }
    let settings = cargo_settings(common, Overrides::cargo(&args), &args.selection)?;
    let framework =
        cargo_framework(&settings, &args.selection, BuildLook::new(common, &args.report), args.overlap != "off")?;
    let provider = provider(&settings.config, &ImageArgs::default())?;
    let selection = &args.selection;
    let filtered = !selection.filters.is_empty() || !selection.skip.is_empty() || !selection.harness_args.is_empty();
    let run =
        Run { common, execution: &args.execution, report: &args.report, trace: false, env: BTreeMap::new(), filtered };
    run.execute(settings, provider, Arc::new(framework), Vec::new())
}

/// `offload run`
pub fn offload(common: &CommonArgs, mut args: OffloadRunArgs) -> Outcome {
    args.execution.parallel = args.execution.parallel.or(args.sandboxes);
    if args.ci && args.report.progress == ProgressArg::Auto {
        args.report.progress = ProgressArg::Plain;
    }
    let args = &args;
    if args.show_estimated_cost {
        anyhow::bail!("--show-estimated-cost is for providers that cost money, and none of those is there yet");
    }
    if args.collect_only {
        return super::list::offload(common, crate::cli::offload::ListFormat::Text);
    }
    let settings = Settings::offload(common, Overrides::default().execution(&args.execution).report(&args.report))?;
    let env = variables(&args.env)?;
    let framework: Arc<dyn TestFramework> = match PytestWorkers::alone(&settings.config, &env) {
        Some(workers) => Arc::new(workers),
        None => framework(&settings, BuildLook::new(common, &args.report))?,
    };
    let copy_dirs = args.copy_dirs.iter().map(|pair| copy_dir(pair)).collect::<anyhow::Result<Vec<_>>>()?;
    let provider = provider(&settings.config, &args.image)?;
    let run = Run { common, execution: &args.execution, report: &args.report, trace: args.trace, env, filtered: false };
    run.execute(settings, provider, framework, copy_dirs)
}

/// The settings of a `cargo offload` command.
pub fn cargo_settings(
    common: &CommonArgs,
    overrides: Overrides,
    selection: &SelectionArgs,
) -> anyhow::Result<Settings> {
    Settings::cargo(common, overrides, || {
        let options = selection.to_options();
        Ok(offload_core::framework::cargo::target_directory(&options)?)
    })
}

/// The Cargo framework for what was configured and typed.
pub fn cargo_framework(
    settings: &Settings,
    selection: &SelectionArgs,
    look: BuildLook,
    overlap: bool,
) -> anyhow::Result<CargoFramework> {
    let FrameworkConfig::Cargo(config) = &settings.config.framework else {
        anyhow::bail!("the configuration is not for Cargo");
    };
    let options = CargoOptions { wait_for_build: !overlap, ..selection.to_options() };
    Ok(framework_of(config, cargo_options(settings, options, look)))
}

/// The framework, which runs tests elsewhere by this very program.
fn framework_of(config: &CargoFrameworkConfig, options: CargoOptions) -> CargoFramework {
    let elsewhere = options.elsewhere;
    let framework = CargoFramework::with_options(config.clone(), options);
    match std::env::current_exe() {
        Ok(program) if elsewhere && program.is_file() => framework.with_worker(program),
        _ => framework,
    }
}

fn cargo_options(settings: &Settings, mut options: CargoOptions, look: BuildLook) -> CargoOptions {
    let config = &settings.config;
    options.color = Some(look.colors);
    options.quiet = look.quiet;
    options.groups.clone_from(&config.groups);
    options.retries = config.offload.retry_count;
    options.slots = config.offload.max_parallel;
    options.output_dir.clone_from(&config.report.output_dir);
    options.elsewhere = matches!(config.provider, ProviderConfig::Docker(_) | ProviderConfig::Ssh(_));
    options
}

/// The framework that the configuration names, with what it needs to list tests and to run them by commands.
pub fn framework(settings: &Settings, look: BuildLook) -> anyhow::Result<Arc<dyn TestFramework>> {
    let config = &settings.config;
    let root = config.offload.working_dir.clone().unwrap_or_default();
    Ok(match &config.framework {
        FrameworkConfig::Cargo(cargo) => {
            let options = CargoOptions { current_dir: Some(root), ..CargoOptions::default() };
            Arc::new(framework_of(cargo, cargo_options(settings, options, look)))
        }
        FrameworkConfig::Pytest(pytest) => Arc::new(
            PytestFramework::new(pytest.clone())
                .with_root(root)
                .with_groups(config.groups.clone())
                .with_parallel_collection(config.offload.max_parallel_collection),
        ),
        FrameworkConfig::Default(default) => {
            Arc::new(DefaultFramework::new(default.clone()).with_root(root).with_groups(config.groups.clone()))
        }
        FrameworkConfig::Vitest(vitest) => {
            Arc::new(VitestFramework::new(vitest.clone()).with_root(root).with_groups(config.groups.clone()))
        }
    })
}

/// The provider that the configuration names.
pub fn provider(config: &Config, image: &ImageArgs) -> anyhow::Result<Arc<dyn SandboxProvider>> {
    let has_images = matches!(config.provider, ProviderConfig::Default(_) | ProviderConfig::Docker(_));
    if !has_images && (image.no_cache || image.override_image_id.is_some()) {
        anyhow::bail!("--no-cache and --override-image-id are for providers with images; this one has none");
    }
    Ok(match &config.provider {
        ProviderConfig::Local(local) => Arc::new(LocalProvider::new(local.clone())),
        ProviderConfig::Default(_) => {
            let mut provider = DefaultProvider::from_config(config)?;
            if image.no_cache {
                provider = provider.without_cache();
            }
            if let Some(id) = &image.override_image_id {
                provider = provider.with_image_id(id.clone());
            }
            Arc::new(provider)
        }
        ProviderConfig::Docker(_) => {
            let mut provider = DockerProvider::from_config(config)?;
            if image.no_cache {
                provider = provider.without_cache();
            }
            if let Some(id) = &image.override_image_id {
                provider = provider.with_image_id(id.clone());
            }
            Arc::new(provider)
        }
        ProviderConfig::Ssh(_) => Arc::new(SshProvider::from_config(config)?),
        ProviderConfig::Unavailable { .. } => return Err(unavailable(config)),
    })
}

/// `--env`: variables for everything in the sandboxes.
fn variables(entries: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let pair = |entry: &String| {
        let pair = entry.split_once('=').filter(|(key, _)| !key.is_empty());
        let (key, value) = pair.with_context(|| format!("`--env {entry}`: expected KEY=VALUE"))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    entries.iter().map(pair).collect()
}

/// The sentence for a provider or framework that is known and not there yet.
fn unavailable(config: &Config) -> anyhow::Error {
    match config.check_available() {
        Err(error) => error.into(),
        Ok(()) => anyhow::anyhow!("nothing can be run with this configuration"),
    }
}

fn copy_dir(pair: &str) -> anyhow::Result<CopyDir> {
    let halves = pair.split_once(':').filter(|(local, remote)| !local.is_empty() && !remote.is_empty());
    let (local, remote) = halves.with_context(|| format!("`--copy-dir {pair}`: expected LOCAL:REMOTE"))?;
    let local = std::path::absolute(local).with_context(|| format!("`--copy-dir {pair}`"))?;
    if !local.exists() {
        anyhow::bail!("`--copy-dir {pair}`: there is no {}", local.display());
    }
    Ok(CopyDir { local, remote: remote.into() })
}

/// How what the build prints looks.
#[derive(Debug, Clone, Copy)]
pub struct BuildLook {
    colors: bool,
    quiet: bool,
}

impl BuildLook {
    /// As the options say.
    pub fn new(common: &CommonArgs, report: &ReportArgs) -> Self {
        let human = report.message_format == MessageFormat::Human;
        Self { colors: human && Surroundings::detect().color_stderr(color_choice(common)), quiet: common.quiet }
    }
}

/// `--color`, or else what Cargo is told, as the console report takes it.
pub fn color_choice(common: &CommonArgs) -> ColorChoice {
    match common.color {
        Color::Auto => match std::env::var("CARGO_TERM_COLOR").as_deref() {
            Ok("always") => ColorChoice::Always,
            Ok("never") => ColorChoice::Never,
            _ => ColorChoice::Auto,
        },
        Color::Always => ColorChoice::Always,
        Color::Never => ColorChoice::Never,
    }
}

/// A run that is about to take place.
struct Run<'a> {
    common: &'a CommonArgs,
    execution: &'a ExecutionArgs,
    report: &'a ReportArgs,
    trace: bool,
    env: BTreeMap<String, String>,
    /// Whether filters were typed, which may have left nothing to run.
    filtered: bool,
}

impl Run<'_> {
    fn execute(
        self,
        settings: Settings,
        provider: Arc<dyn SandboxProvider>,
        framework: Arc<dyn TestFramework>,
        mut copy_dirs: Vec<CopyDir>,
    ) -> Outcome {
        let config = settings.config;
        if let ProviderConfig::Default(default) = &config.provider {
            let configured = default.copy_dirs.iter();
            copy_dirs.extend(
                configured
                    .map(|(local, remote)| CopyDir { local: settings.base_dir.join(local), remote: remote.clone() }),
            );
        }
        ensure_writable(&config.report.output_dir)?;
        if let Some(parent) = config.report.junit_path().as_deref().and_then(std::path::Path::parent) {
            ensure_writable(parent)?;
        }
        for notice in &config.notices {
            let _ = writeln!(std::io::stderr(), "note: {notice}");
        }
        let reporters = self.reporters(&config);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("the asynchronous runtime could not be started")?;
        let result = runtime.block_on(async {
            let orchestrator = Orchestrator::new(config, provider, framework, &copy_dirs, false)
                .with_reporters(reporters)
                .with_no_capture(self.execution.no_capture)
                .with_tests_required(self.execution.no_tests == NoTests::Fail)
                .with_env(self.env);
            let signals = cancel_on_signals(orchestrator.cancel_handle())
                .context("signals cannot be handled, so the run could not be interrupted")?;
            let result = orchestrator.run(&[]).await;
            signals.abort();
            anyhow::Ok(result?)
        })?;
        for error in &result.report_errors {
            let _ = writeln!(std::io::stderr(), "error: {error}");
        }
        let complete = result.exit_code() == 0 || self.execution.no_tests == NoTests::Fail;
        if self.filtered && result.summary.total == 0 && complete {
            let _ = writeln!(
                std::io::stderr(),
                "note: no test matches the filters; `cargo offload list` shows the names of all"
            );
        }
        Ok(result.exit_code())
    }

    fn reporters(&self, config: &Config) -> Vec<Box<dyn Reporter>> {
        let mut reporters: Vec<Box<dyn Reporter>> = Vec::new();
        let junit = config.report.junit_path();
        match self.report.message_format {
            MessageFormat::Json => reporters.push(Box::new(JsonReporter::new(std::io::stdout()))),
            MessageFormat::Human => reporters.push(Box::new(ConsoleReporter::stdio(ConsoleOptions {
                verbosity: self.common.verbosity(),
                progress: match self.report.progress {
                    ProgressArg::Auto => Progress::Auto,
                    ProgressArg::Bar => Progress::Bar,
                    ProgressArg::Plain => Progress::Plain,
                    ProgressArg::None => Progress::None,
                },
                color: color_choice(self.common),
                slow_test: config.offload.slow_test,
                reports: junit.iter().map(|path| shortened(path)).collect(),
            }))),
        }
        if let Some(path) = junit {
            reporters.push(Box::new(MasterJunitReport::new(path)));
        }
        if let Some(history) = history_reporter(config) {
            reporters.push(Box::new(history));
        }
        if self.trace {
            reporters.push(Box::new(TraceReporter::new(config.report.output_dir.join("trace.json"))));
        }
        reporters
    }
}

/// A path as people read it: relative to where they are, if it is below.
fn shortened(path: &std::path::Path) -> PathBuf {
    let current = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&current).unwrap_or(path).to_owned()
}
