//! The provider `default`: sandboxes made, reached and destroyed by the user's own shell commands.
//!
//! The commands are templates; values are put in quoted for the place where they stand. What is decided here is what
//! each command's output and exit code mean; `docs/PROVIDERS.md` has the contract in a table.
//!
//! The system that this follows has no command that brings files *into* a sandbox. Here they travel as a tar archive in
//! commands (`base64 -d`), which is slow for large trees and needs nothing but a shell, `base64` and `tar` over there.

mod reply;
mod transfer;

#[cfg(any(test, fuzzing))]
pub(super) use reply::fuzz;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use tokio::sync::OnceCell;

use super::{
    Command, CopyDir, ExecOutput, OutputStream, ProviderError, ProviderResult, Sandbox, SandboxProvider, SandboxRequest,
};
use crate::bundled::BundledScripts;
use crate::cache::{ImageCache, ImageKey};
use crate::config::{Config, DefaultProviderConfig, ProviderConfig};
use crate::connector::template::{Value, fill};
use crate::connector::{
    Connector as _, OUTPUT_LIMIT, RunOptions, ShellConnector, collect, describe_exit, shorten, tail,
};

/// How many bytes one of our own commands in a sandbox may print: what it brings out is in base64.
const LONGEST_OUTPUT: usize = 512 << 20;

/// The longest command line that is handed to `exec_command`; a longer one is brought into the sandbox as a file.
const LONGEST_COMMAND: usize = 64 << 10;

/// How many lines of a failed command's output its error shows.
const TAIL_LINES: usize = 15;

/// Sandboxes by shell commands.
#[derive(Debug)]
pub struct DefaultProvider {
    shared: Arc<Shared>,
    cache: Option<(ImageCache, Vec<PathBuf>)>,
    image: OnceCell<Image>,
}

/// What the provider and its sandboxes have in common.
#[derive(Debug, Clone)]
struct Shared {
    config: DefaultProviderConfig,
    shell: ShellConnector,
    scripts: BundledScripts,
    repo_root: Option<String>,
    project_root: Option<String>,
    override_image_id: Option<String>,
    /// `exec_command` has been seen to hand on what is secret.
    hands_on: OnceCell<()>,
}

#[derive(Debug)]
struct Image {
    /// `None` when nothing prepares one.
    id: Option<String>,
    /// Where it was remembered, if it was not made in this run.
    remembered: Option<ImageKey>,
}

impl DefaultProvider {
    /// A provider as configured, without sandbox roots and without an image cache.
    pub fn new(config: DefaultProviderConfig) -> Self {
        let mut shell = ShellConnector::default().with_env(config.env.clone());
        if let Some(dir) = &config.working_dir {
            shell = shell.with_working_dir(dir);
        }
        let shared = Shared {
            config,
            shell,
            scripts: BundledScripts::new(),
            repo_root: None,
            project_root: None,
            override_image_id: None,
            hands_on: OnceCell::new(),
        };
        Self { shared: Arc::new(shared), cache: None, image: OnceCell::new() }
    }

    /// A provider for a whole configuration: with its sandbox roots and, where `checkpoint.build_inputs` says what an
    /// image is made from, with an image cache in the output directory. Relative inputs are below the current directory.
    ///
    /// # Errors
    ///
    /// [`ProviderError::Unusable`] when the configuration names another provider.
    pub fn from_config(config: &Config) -> ProviderResult<Self> {
        let ProviderConfig::Default(own) = &config.provider else {
            return Err(ProviderError::Unusable(
                "the provider `default` was asked for, but [provider] configures another one; set `type = \"default\"`"
                    .to_owned(),
            ));
        };
        let provider = Self::new(own.clone())
            .with_roots(config.offload.sandbox_repo_root.clone(), config.offload.sandbox_project_root.clone());
        let inputs = &config.checkpoint.build_inputs;
        if inputs.is_empty() {
            return Ok(provider);
        }
        let cache = ImageCache::new(config.report.output_dir.join("image-cache.json"));
        Ok(provider.with_cache(cache, inputs.iter().map(PathBuf::from).collect()))
    }

    /// Where the repository is in a sandbox (exported there as `OFFLOAD_ROOT`), and where in it commands run (by
    /// default the repository's root). Without a root, commands run where `exec_command` starts them.
    #[must_use]
    pub fn with_roots(mut self, repo_root: Option<String>, project_root: Option<String>) -> Self {
        let shared = Arc::make_mut(&mut self.shared);
        shared.repo_root = repo_root;
        shared.project_root = project_root;
        self
    }

    /// Remembers the image in `cache` and prepares it anew when `prepare_command` or one of `inputs` (files or
    /// directories) has changed.
    #[must_use]
    pub fn with_cache(mut self, cache: ImageCache, inputs: Vec<PathBuf>) -> Self {
        self.cache = Some((cache, inputs));
        self
    }

    /// Prepares the image anew, whatever is remembered (`--no-cache`).
    #[must_use]
    pub fn without_cache(mut self) -> Self {
        self.cache = None;
        self
    }

    /// Uses this image and prepares none (`--override-image-id`).
    #[must_use]
    pub fn with_image_id(mut self, id: impl Into<String>) -> Self {
        Arc::make_mut(&mut self.shared).override_image_id = Some(id.into());
        self
    }

    /// `copy_dirs`: what each new sandbox gets.
    pub fn copy_dirs(&self) -> Vec<CopyDir> {
        let pairs = self.shared.config.copy_dirs.iter();
        pairs.map(|(local, remote)| CopyDir { local: local.clone(), remote: remote.clone() }).collect()
    }

    async fn image(&self) -> ProviderResult<&Image> {
        self.image.get_or_try_init(|| self.make_image()).await
    }

    async fn make_image(&self) -> ProviderResult<Image> {
        let shared = &self.shared;
        if let Some(id) = &shared.override_image_id {
            return Ok(Image { id: Some(id.clone()), remembered: None });
        }
        let Some(template) = &shared.config.prepare_command else {
            if shared.config.create_command.contains("{image_id}") {
                return Err(ProviderError::Unusable(
                    "`create_command` in [provider] names {image_id}, but nothing makes an image; add a \
                     `prepare_command` that prints the image id, or take {image_id} out"
                        .to_owned(),
                ));
            }
            return Ok(Image { id: None, remembered: None });
        };
        let key = self.image_key(template)?;
        if let (Some((cache, _)), Some(key)) = (&self.cache, &key)
            && let Some(id) = cache.get(key)
        {
            tracing::info!(image = %id, "using the image of an earlier run");
            return Ok(Image { id: Some(id), remembered: Some(key.clone()) });
        }
        let line = shared.line(template, &[])?;
        let output = shared.run("prepare_command", &line, ProviderError::Unusable).await?;
        let id = last_line(&output).ok_or_else(|| {
            ProviderError::Unusable(format!(
                "`prepare_command` printed no image id: the last line of its standard output is to be one. It ran: {}{}",
                shorten(&line),
                tail(&output, TAIL_LINES),
            ))
        })?;
        if let (Some((cache, _)), Some(key)) = (&self.cache, &key)
            && let Err(error) = cache.put(key, &id)
        {
            tracing::warn!(%error, "cannot remember the image; the next run will prepare it again");
        }
        Ok(Image { id: Some(id), remembered: None })
    }

    fn image_key(&self, template: &str) -> ProviderResult<Option<ImageKey>> {
        let Some((_, inputs)) = &self.cache else { return Ok(None) };
        let mut key = ImageKey::new();
        key.add(template);
        key.add(&self.shared.config.working_dir.as_deref().unwrap_or(Path::new("")).to_string_lossy());
        for (name, value) in &self.shared.config.env {
            key.add(name);
            key.add(value);
        }
        for input in inputs {
            key.add_path(input).map_err(|error| {
                ProviderError::Unusable(format!(
                    "cannot read {}, which `build_inputs` in [checkpoint] names: {error}; mend it or take it out",
                    input.display(),
                ))
            })?;
        }
        Ok(Some(key))
    }
}

#[async_trait]
impl SandboxProvider for DefaultProvider {
    async fn create_sandbox(&self, request: &SandboxRequest) -> ProviderResult<Box<dyn Sandbox>> {
        let image = self.image().await?;
        let shared = &self.shared;
        let line =
            shared.line(&shared.config.create_command, &[("image_id", image.id.as_deref().unwrap_or_default())])?;
        let mut options = shared.options();
        options.env.insert("OFFLOAD_SANDBOX_NAME".to_owned(), request.name.clone());
        options.env.insert("OFFLOAD_SANDBOX_INDEX".to_owned(), request.index.to_string());
        let output = match shared.run_with("create_command", &line, &options, ProviderError::Create).await {
            Ok(output) => output,
            Err(error) => {
                if let (Some((cache, _)), Some(key)) = (&self.cache, &image.remembered) {
                    if let Err(error) = cache.forget(key) {
                        tracing::warn!(%error, "cannot forget an image");
                    }
                    return Err(ProviderError::Create(format!(
                        "{error}\nThe image is one that an earlier run prepared. It was forgotten: if it is gone, the \
                         next run prepares it anew."
                    )));
                }
                return Err(error);
            }
        };
        let id = last_line(&output).ok_or_else(|| {
            ProviderError::Create(format!(
                "`create_command` printed no sandbox id: the last line of its standard output is to be one. It ran: \
                 {}{}",
                shorten(&line),
                tail(&output, TAIL_LINES),
            ))
        })?;
        let sandbox = DefaultSandbox {
            id,
            shared: Arc::clone(shared),
            env: request.env.clone(),
            terminated: AtomicBool::new(false),
        };
        for CopyDir { local, remote } in self.copy_dirs() {
            if let Err(error) = sandbox.upload(&local, &remote).await {
                // Nobody else knows of the sandbox yet.
                if let Err(left) = sandbox.terminate().await {
                    tracing::warn!(%left, "a sandbox that could not be filled may have been left behind");
                }
                return Err(ProviderError::Create(format!("cannot fill a new sandbox from `copy_dirs`: {error}")));
            }
        }
        Ok(Box::new(sandbox))
    }

    fn name(&self) -> &str {
        "default"
    }

    async fn prepare(&self) -> ProviderResult<()> {
        self.image().await.map(drop)
    }

    fn image_id(&self) -> Option<String> {
        self.image.get()?.id.clone()
    }
}

impl Shared {
    /// A template with its scripts and values put in.
    fn line(&self, template: &str, values: &[(&str, &str)]) -> ProviderResult<String> {
        let values: Vec<_> = values.iter().map(|(name, value)| (*name, Value::Word(value))).collect();
        self.line_with(template, &values)
    }

    fn line_with(&self, template: &str, values: &[(&str, Value<'_>)]) -> ProviderResult<String> {
        // Scripts first: what a value contains is nobody's to expand.
        let expanded = self.scripts.expand(template).map_err(|error| ProviderError::Unusable(error.to_string()))?;
        Ok(fill(&expanded, values))
    }

    fn options(&self) -> RunOptions {
        let mut env = BTreeMap::from([("OFFLOAD_CPU_CORES".to_owned(), self.config.cpu_cores.to_string())]);
        if let Some(root) = &self.repo_root {
            env.insert("OFFLOAD_ROOT".to_owned(), root.clone());
        }
        RunOptions { working_dir: None, env, timeout: Some(self.config.timeout), output_limit: None }
    }

    async fn run(&self, name: &str, line: &str, error: fn(String) -> ProviderError) -> ProviderResult<ExecOutput> {
        self.run_with(name, line, &self.options(), error).await
    }

    /// Runs one of the commands, whose failure is an error.
    async fn run_with(
        &self,
        name: &str,
        line: &str,
        options: &RunOptions,
        error: fn(String) -> ProviderError,
    ) -> ProviderResult<ExecOutput> {
        let output = self.shell.run(line, options).await.map_err(|cause| error(format!("`{name}`: {cause}")))?;
        if output.exit_code == Some(0) {
            return Ok(output);
        }
        let hint = if output.exit_code.is_none() {
            format!(" of {} s (`timeout_secs` in [provider])", self.config.timeout.as_secs())
        } else {
            String::new()
        };
        Err(error(format!(
            "`{name}` failed: {}{hint}. It ran: {}{}",
            describe_exit(output.exit_code),
            shorten(line),
            tail(&output, TAIL_LINES),
        )))
    }
}

/// The last line that is not blank.
fn last_line(output: &ExecOutput) -> Option<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned)
}

/// A sandbox that is known by its id and reached by commands.
#[derive(Debug)]
pub struct DefaultSandbox {
    id: String,
    shared: Arc<Shared>,
    env: BTreeMap<String, String>,
    terminated: AtomicBool,
}

impl DefaultSandbox {
    /// `command` with what everything in the sandbox gets.
    fn complete(&self, command: &Command) -> Command {
        let mut complete = command.clone();
        complete.env = self.env.clone();
        if let Some(root) = &self.shared.repo_root {
            complete.env.insert("OFFLOAD_ROOT".to_owned(), root.clone());
        }
        complete.env.extend(command.env.clone());
        let root = self.shared.project_root.as_ref().or(self.shared.repo_root.as_ref());
        complete.working_dir = match (root, &command.working_dir) {
            (Some(root), Some(dir)) => Some(Path::new(root).join(dir)),
            (Some(root), None) => Some(PathBuf::from(root)),
            (None, dir) => dir.clone(),
        };
        complete
    }

    /// Executes a line in the sandbox. What is secret is in the environment of `exec_command`, which has to hand it on.
    async fn exec_line(&self, line: &str, command: &Command) -> ProviderResult<OutputStream> {
        if !command.secret.is_empty() {
            self.shared.hands_on.get_or_try_init(|| self.check_hands_on(command)).await?;
        }
        self.exec_unchecked(line, command).await
    }

    /// Whether `exec_command` hands on what is secret. A test that lacks it would fail, and hardly say why.
    async fn check_hands_on(&self, command: &Command) -> ProviderResult<()> {
        let names = command.secret.iter().map(String::as_str).collect::<Vec<_>>();
        // Others cannot be asked for in a shell.
        let plain = |name: &&&str| {
            !name.starts_with(|c: char| c.is_ascii_digit())
                && name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric())
        };
        let checks = names.iter().filter(plain).map(|name| format!("[ -n \"${{{name}+x}}\" ] || echo {name}"));
        let line = Command::shell(checks.collect::<Vec<_>>().join("; ")).to_shell();
        let check = Command { timeout: None, ..command.clone() };
        let output = collect(self.exec_unchecked(&line, &check).await?, OUTPUT_LIMIT).await?;
        let lacking = String::from_utf8_lossy(&output.stdout);
        let mut lacking = lacking.split_ascii_whitespace().filter(|name| names.contains(name));
        match lacking.next() {
            None => Ok(()),
            Some(name) => Err(ProviderError::Exec(format!(
                "the variable {name} is a secret, so it is not part of {{command}} but in the environment of \
                 `exec_command`, which does not hand it on to the sandbox; have it do so, as `docker exec --env {name} \
                 …` does, or say `secret = false`"
            ))),
        }
    }

    async fn exec_unchecked(&self, line: &str, command: &Command) -> ProviderResult<OutputStream> {
        let values = [("sandbox_id", self.id.as_str()), ("command", line)];
        let line = self.shared.line(&self.shared.config.exec_command, &values)?;
        let mut options = self.shared.options();
        options.env.extend(command.secret_env());
        let limit = self.shared.config.timeout;
        options.timeout = Some(command.timeout.map_or(limit, |timeout| timeout.min(limit)));
        Ok(reply::unwrap(self.shared.shell.run_stream(&line, &options).await?))
    }

    /// Runs a command of our own in the sandbox, whose failure is an error.
    async fn exec_own(&self, what: &str, line: String) -> ProviderResult<ExecOutput> {
        let command = self.complete(&Command::shell(line));
        let failed = |what_happened: String| {
            ProviderError::Transfer(format!("cannot {what} in the sandbox {}: {what_happened}", self.id))
        };
        let stream = self.exec_line(&command.to_shell(), &command).await.map_err(|error| failed(error.to_string()))?;
        let output = collect(stream, LONGEST_OUTPUT).await.map_err(|error| failed(error.to_string()))?;
        if output.stdout.len() > LONGEST_OUTPUT {
            return Err(failed(format!("it printed more than {} MiB", LONGEST_OUTPUT >> 20)));
        }
        if output.exit_code == Some(0) {
            return Ok(output);
        }
        Err(failed(format!("{}{}", describe_exit(output.exit_code), tail(&output, TAIL_LINES))))
    }
}

#[async_trait]
impl Sandbox for DefaultSandbox {
    fn id(&self) -> &str {
        &self.id
    }

    async fn exec_stream(&self, command: &Command) -> ProviderResult<OutputStream> {
        let complete = self.complete(command);
        let line = complete.to_shell();
        if line.len() <= LONGEST_COMMAND {
            return self.exec_line(&line, command).await;
        }
        // Whatever starts programs over there takes no argument that long.
        let mut inner = complete.clone();
        let script = inner.script();
        let file = transfer::temporary_name("sh");
        let uploaded = transfer::send_bytes(self, script.as_bytes(), &file).await;
        uploaded.map_err(|error| ProviderError::Exec(error.to_string()))?;
        let run = format!("/bin/sh \"{file}\"; code=$?; rm -f \"{file}\"; exit $code");
        inner.program = "/bin/sh".to_owned();
        inner.args = vec!["-c".to_owned(), run];
        self.exec_line(&inner.to_shell(), command).await
    }

    async fn upload(&self, local: &Path, remote: &Path) -> ProviderResult<()> {
        transfer::upload(self, local, remote).await
    }

    async fn download(&self, paths: &[(PathBuf, PathBuf)]) -> ProviderResult<()> {
        transfer::download(self, paths).await
    }

    async fn terminate(&self) -> ProviderResult<()> {
        if self.terminated.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let line = self.shared.line(&self.shared.config.destroy_command, &[("sandbox_id", &self.id)])?;
        self.shared
            .run("destroy_command", &line, ProviderError::Exec)
            .await
            .map(drop)
            .map_err(|error| ProviderError::Exec(format!("the sandbox {} may have been left behind: {error}", self.id)))
    }
}
