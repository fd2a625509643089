//! One container: how it lives, how commands run in it, and how it is lost.
//!
//! Its first process is a holder, a shell that waits for the end of its standard input and does nothing else. Our end
//! of that input is a connection to the daemon, which closes when this process ends, in whatever way: the holder ends
//! then, and the kernel ends everything else in the container with it. Commands run beside it, as `docker exec` does.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bollard::models::{ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
};
use tokio::io::AsyncWrite;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::connect::{Daemon, has_status, told};
use super::watch::next;
use super::watch::{Fate, Fates};
use crate::provider::{Channel, Command, OutputStream, ProviderError, ProviderResult};

/// What the holder does: it says that it is there, and ends when its input does. A child reads, and is started anew when it
/// is killed together with everything else ([`super::exec`]); the holder itself waits, so that it reaps every process
/// whose parent is gone.
const HOLDER: &str = "echo; exec 3<&0 >/dev/null 2>&1
until { while read -r _; do :; done <&3 & wait $!; }; do :; done";

/// How long the daemon may take to know that a container has ended after its streams have.
const NEWS: Duration = Duration::from_secs(1);

/// How often it is asked meanwhile.
const POLL: Duration = Duration::from_millis(20);

/// How long it may take to send a signal to everything in a container.
const SIGNAL: Duration = Duration::from_secs(10);

/// What a container is made of.
#[derive(Debug, Clone, Default)]
pub(super) struct Spec {
    pub(super) name: Option<String>,
    pub(super) image: String,
    /// How the user knows the image, and what it is for.
    pub(super) image_name: String,
    pub(super) platform: Option<String>,
    pub(super) user: String,
    pub(super) env: Vec<String>,
    pub(super) labels: HashMap<String, String>,
    pub(super) host: HostConfig,
}

/// A container that exists.
pub(super) struct Container {
    pub(super) inner: Arc<Inner>,
    /// How the user knows the image, and what it is for.
    pub(super) image_name: String,
    /// What the container's life hangs on.
    holder: Mutex<Option<Pin<Box<dyn AsyncWrite + Send>>>>,
}

/// What a container has in common with the commands that run in it.
pub(super) struct Inner {
    pub(super) daemon: Daemon,
    pub(super) id: String,
    pub(super) fates: watch::Receiver<Fates>,
    /// How many commands are being ended before their time.
    pub(super) ending: watch::Sender<usize>,
    memory: Option<i64>,
}

impl Container {
    /// Creates a container without starting it.
    pub(super) async fn create(daemon: &Daemon, fates: watch::Receiver<Fates>, spec: Spec) -> Result<Self, Error> {
        let memory = spec.host.memory;
        let body = ContainerCreateBody {
            image: Some(spec.image),
            entrypoint: Some(["/bin/sh", "-c", HOLDER].map(str::to_owned).to_vec()),
            cmd: Some(Vec::new()),
            working_dir: Some("/".to_owned()),
            user: Some(spec.user),
            env: Some(spec.env),
            labels: Some(spec.labels),
            open_stdin: Some(true),
            stdin_once: Some(true),
            attach_stdin: Some(true),
            // The first process of a container does not hear any other.
            stop_signal: Some("SIGKILL".to_owned()),
            healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
            host_config: Some(HostConfig {
                log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
                ..spec.host
            }),
            ..ContainerCreateBody::default()
        };
        let mut options = CreateContainerOptionsBuilder::default().platform(&spec.platform.unwrap_or_default());
        if let Some(name) = &spec.name {
            options = options.name(name);
        }
        let created = daemon.docker.create_container(Some(options.build()), body).await?;
        let inner = Inner { daemon: daemon.clone(), id: created.id, fates, ending: watch::Sender::new(0), memory };
        Ok(Self { inner: Arc::new(inner), image_name: spec.image_name, holder: Mutex::new(None) })
    }

    /// Starts the holder, with its life in our hands.
    pub(super) async fn start(&self) -> ProviderResult<()> {
        let (docker, id) = (&self.inner.daemon.docker, &self.inner.id);
        let options =
            AttachContainerOptionsBuilder::default().stream(true).stdin(true).stdout(true).stderr(true).build();
        let attached = docker
            .attach_container(id, Some(options))
            .await
            .map_err(|error| ProviderError::Create(format!("cannot hold on to a new container: {}", told(&error))))?;
        *self.holder.lock().unwrap_or_else(PoisonError::into_inner) = Some(attached.input);
        let started = docker.start_container(id, None::<StartContainerOptions>).await;
        started.map_err(|error| self.not_started(&told(&error)))?;
        // A shell that cannot run at all has been started, as far as the daemon is concerned.
        let mut output = attached.output;
        let mut said = Vec::new();
        while let Some(Ok(frame)) = next(&mut output).await {
            match frame {
                LogOutput::StdOut { message } if message.ends_with(b"\n") => return Ok(()),
                frame => said.extend_from_slice(&frame.into_bytes()),
            }
        }
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        Err(match (said.as_str(), self.inner.loss().await) {
            ("", Some(loss)) => ProviderError::Create(loss),
            _ => self.not_started(&said),
        })
    }

    fn not_started(&self, said: &str) -> ProviderError {
        let image = &self.image_name;
        if said.contains("exec format error") {
            return ProviderError::Unusable(format!(
                "the image {image} is for another kind of machine than the one that the Docker daemon runs on (exec \
                 format error); take an image for that machine, or install emulation (binfmt)"
            ));
        }
        if said.contains("/bin/sh") {
            return ProviderError::Unusable(format!(
                "the image {image} has no /bin/sh, without which no test can be started in it; take one that has a \
                 shell (\"distroless\" images and those from scratch have none)"
            ));
        }
        ProviderError::Create(format!("the Docker daemon cannot start a container from {image}: {said}"))
    }

    /// Starts a command in the container.
    pub(super) async fn exec(&self, command: &Command, user: Option<&str>) -> ProviderResult<OutputStream> {
        self.start_exec(command, user, false).await.map(|channel| channel.output)
    }

    /// Starts a command in the container that can be written to.
    pub(super) async fn open(&self, command: &Command) -> ProviderResult<Channel> {
        self.start_exec(command, None, true).await
    }

    async fn start_exec(&self, command: &Command, user: Option<&str>, listens: bool) -> ProviderResult<Channel> {
        let inner = &self.inner;
        // What was dropped before must have ended.
        let _ = inner.ending.subscribe().wait_for(|ending| *ending == 0).await;
        let mut words = vec![command.program.clone()];
        words.extend(command.args.iter().cloned());
        let options = CreateExecOptions {
            cmd: Some(words),
            env: Some(command.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
            working_dir: command.working_dir.as_ref().map(|dir| dir.to_string_lossy().into_owned()),
            user: user.map(str::to_owned),
            attach_stdin: Some(listens),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..CreateExecOptions::default()
        };
        let docker = &inner.daemon.docker;
        let started = async {
            let exec = docker.create_exec(&inner.id, options).await?.id;
            let start = StartExecOptions { output_capacity: Some(64 << 10), ..StartExecOptions::default() };
            match docker.start_exec(&exec, Some(start)).await? {
                StartExecResults::Attached { output, input } => Ok((exec, output, input)),
                StartExecResults::Detached => Err(Error::RequestTimeoutError),
            }
        };
        match started.await {
            Ok((exec, output, input)) => {
                let deadline = command.timeout.map(|limit| Instant::now() + limit);
                Ok(Channel { input, output: super::exec::follow(inner, exec, output, deadline) })
            }
            Err(error) => Err(ProviderError::Exec(match inner.loss().await {
                Some(loss) => loss,
                None => format!("cannot start a command in the container {}: {}", inner.short(), told(&error)),
            })),
        }
    }

    /// Removes the container with everything in it.
    pub(super) async fn remove(&self) -> Result<(), String> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match self.inner.daemon.docker.remove_container(&self.inner.id, Some(options)).await {
            Ok(()) => Ok(()),
            // Gone, or going: it removes itself when it has ended.
            Err(error) if has_status(&error, 404) || has_status(&error, 409) => Ok(()),
            // So does it when the daemon has gone, which ends our hold on it.
            Err(_) if !self.inner.daemon.answers().await => Ok(()),
            Err(error) => Err(told(&error)),
        }
    }
}

impl Inner {
    /// The id as people see it.
    pub(super) fn short(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }

    pub(super) fn has_memory_limit(&self) -> bool {
        self.memory.is_some()
    }

    pub(super) fn fate(&self) -> Fate {
        self.fates.borrow().get(&self.id).cloned().unwrap_or_default()
    }

    /// Runs a shell line as root to its end, with a time limit.
    pub(super) async fn signal(&self, line: &str) {
        let words = ["/bin/sh", "-c", line].map(str::to_owned).to_vec();
        let options = CreateExecOptions {
            cmd: Some(words),
            user: Some("0".to_owned()),
            attach_stdout: Some(true),
            ..CreateExecOptions::default()
        };
        let docker = &self.daemon.docker;
        let sent = async {
            let exec = docker.create_exec(&self.id, options).await?.id;
            // What comes after must not be met by a signal that is still on its way.
            if let StartExecResults::Attached { mut output, .. } = docker.start_exec(&exec, None).await? {
                while let Some(Ok(_)) = next(&mut output).await {}
            }
            Ok::<_, Error>(())
        };
        match timeout(SIGNAL, sent).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(container = self.short(), error = told(&error), "cannot end what runs in it");
            }
            Err(_) => tracing::debug!(container = self.short(), "ending what runs in it takes too long"),
        }
    }

    /// The exit code of a command whose streams have ended; `None` when the daemon does not know it.
    pub(super) async fn exit_code(&self, exec: &str) -> Option<i32> {
        let until = Instant::now() + NEWS;
        loop {
            let found = self.daemon.docker.inspect_exec(exec).await.ok()?;
            if let (false, Some(code)) = (found.running.unwrap_or(false), found.exit_code) {
                return i32::try_from(code).ok();
            }
            if Instant::now() >= until {
                return None;
            }
            sleep(POLL).await;
        }
    }

    /// Why the container can be used no more; `None` when it can. What has just ended may take the daemon a moment to
    /// know.
    pub(super) async fn loss(&self) -> Option<String> {
        let until = Instant::now() + NEWS;
        loop {
            match self.daemon.docker.inspect_container(&self.id, None).await {
                Ok(found) => {
                    let state = found.state.unwrap_or_default();
                    if state.paused == Some(true) {
                        return Some(self.paused());
                    }
                    if state.running != Some(true) {
                        break;
                    }
                    if Instant::now() >= until {
                        return None;
                    }
                }
                Err(Error::DockerResponseServerError { .. }) => break,
                Err(_) => {
                    return Some(format!(
                        "the Docker daemon at {} has gone away, and with it the container {}; see what became of it \
                         (`systemctl status docker`)",
                        self.daemon.address,
                        self.short()
                    ));
                }
            }
            sleep(POLL).await;
        }
        // Why is in the daemon's events, which come on another connection.
        let mut fates = self.fates.clone();
        let known = |fates: &Fates| fates.get(&self.id).is_some_and(|fate| fate.exit_code.is_some());
        let _ = timeout(NEWS, async { drop(fates.wait_for(known).await) }).await;
        Some(self.ended())
    }

    /// How the container ended, as far as its events tell.
    fn ended(&self) -> String {
        let fate = self.fate();
        let id = self.short();
        if fate.out_of_memory > 0 {
            let limit = self.memory.map_or_else(
                || "the machine's memory ran out; run fewer containers at once (`max_parallel`)".to_owned(),
                |bytes| format!("it may have {} MiB; raise `memory` in [provider]", bytes >> 20),
            );
            return format!("the container {id} was killed because it ran out of memory: {limit}");
        }
        match (fate.signal, fate.exit_code) {
            (Some(signal), _) => format!(
                "the container {id} was killed from outside with signal {signal} (`docker kill`, `docker rm`, or the \
                 daemon being stopped)"
            ),
            (None, Some(137)) => format!("the container {id} was killed from outside"),
            (None, Some(code)) => format!("the container {id} ended by itself with exit code {code}"),
            (None, None) => format!("the container {id} is gone"),
        }
    }

    pub(super) fn paused(&self) -> String {
        format!(
            "the container {} was paused from outside (`docker pause`) and not continued; its tests run elsewhere",
            self.short()
        )
    }

    /// Returns once the container has been paused for longer than `limit` without a break.
    pub(super) async fn paused_for(&self, limit: Duration) {
        let mut fates = self.fates.clone();
        let is = |paused: bool| move |fates: &Fates| fates.get(&self.id).is_some_and(|fate| fate.paused) == paused;
        loop {
            if fates.wait_for(is(true)).await.is_err() {
                return std::future::pending().await;
            }
            if timeout(limit, async { drop(fates.wait_for(is(false)).await) }).await.is_err() {
                return;
            }
        }
    }
}

/// The next frame of a command's output.
pub(super) type Output = Pin<Box<dyn futures_core::Stream<Item = Result<LogOutput, Error>> + Send>>;

/// Waits until `alarm`; for ever when there is none.
pub(super) async fn until(alarm: Option<Instant>) {
    match alarm {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
