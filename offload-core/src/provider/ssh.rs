//! The provider `ssh`: sandboxes that are slots of other machines.
//!
//! Hosts are reached by the system's `ssh`, a few shared connections to each. The project's files travel once per host,
//! into a directory of the run's own, and tests see them at the same absolute paths as here, in a view of the file system
//! that nobody else on the host has. Everything over there hangs on the connection: when this process ends, in whatever
//! way, so does that.
//!
//! `target` is how `ssh` is called, `link` one connection, `session` one command, `visit` a run on one host. This file
//! decides which sandbox goes where.

mod clean;
mod link;
mod marks;
mod session;
mod target;
mod visit;

pub(super) use target::{Target, not_started, socket_directory};

#[cfg(any(test, fuzzing))]
pub(super) use marks::fuzz;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch::Sender;
use tokio::sync::{Mutex, OnceCell, watch};
use tokio::time::{Instant, timeout};

pub use self::clean::{Cleaned, clean};
use self::link::{Link, Place};
use self::session::{Job, start};
use self::visit::{Failure, Files, Trouble, Visit, unpack};
use super::luggage::{Luggage, Packing};
use super::{
    Built, Channel, Command, OutputStream, ProviderError, ProviderResult, Sandbox, SandboxProvider, SandboxRequest,
};
use crate::cache::ImageKey;
use crate::config::{Config, ProviderConfig, SshProviderConfig};
use crate::connector::{collect, quote, quote_always, tail};
use crate::files::FileSet;
use crate::random;

/// How long after an attempt to reach a host the next one is made.
const RETRY: Duration = Duration::from_secs(10);

/// How long it takes at most to see that a host has a free slot again.
const POLL: Duration = Duration::from_secs(2);

/// Sandboxes that are slots of other machines.
#[derive(Debug)]
pub struct SshProvider {
    packing: Packing,
    config: SshProviderConfig,
    hosts: Vec<Arc<Host>>,
    luggage: OnceCell<Arc<Luggage>>,
    warnings: StdMutex<Vec<String>>,
    /// Changes whenever a slot becomes free.
    freed: Sender<()>,
    /// Nobody needs a sandbox any more.
    given_up: Sender<bool>,
}

#[derive(Debug)]
struct Host {
    target: Target,
    place: Place,
    slots: Option<usize>,
    standing: Mutex<Standing>,
    /// How many times it was connected to.
    visits: AtomicU32,
    taken: StdMutex<BTreeSet<usize>>,
}

/// Whether a host can be used.
#[derive(Debug, Clone)]
enum Standing {
    New,
    Up(Arc<Visit>),
    /// Not at that time.
    Down {
        reason: String,
        tried: Instant,
    },
    /// Not in this run.
    Out(String),
}

impl Host {
    /// The host as it is now; if it is not connected to, that is tried, unless it was lately.
    async fn visit(&self) -> Result<Arc<Visit>, String> {
        let mut standing = self.standing.lock().await;
        match &*standing {
            Standing::Up(visit) => match visit.loss() {
                None => return Ok(Arc::clone(visit)),
                Some(_) => {
                    // What is left of it is of no use to anybody.
                    let visit = Arc::clone(visit);
                    tokio::spawn(async move { visit.close().await });
                }
            },
            Standing::Down { reason, tried } if tried.elapsed() < RETRY => return Err(reason.clone()),
            Standing::Out(reason) => return Err(reason.clone()),
            Standing::New | Standing::Down { .. } => {}
        }
        let number = self.visits.fetch_add(1, Ordering::Relaxed);
        let place = Place { run: format!("{}-{number}", self.place.run), ..self.place.clone() };
        match Visit::begin(self.target.clone(), place).await {
            Ok(visit) => {
                let visit = Arc::new(visit);
                *standing = Standing::Up(Arc::clone(&visit));
                Ok(visit)
            }
            Err(reason) => {
                *standing = Standing::Down { reason: reason.clone(), tried: Instant::now() };
                Err(reason)
            }
        }
    }

    /// Ends everything there.
    async fn leave(&self) {
        let mut standing = self.standing.lock().await;
        if let Standing::Up(visit) = &*standing {
            visit.close().await;
            *standing = Standing::Out("the run is over".to_owned());
        }
    }
}

impl SshProvider {
    /// A provider for a whole configuration. Relative paths are below its `working_dir`.
    ///
    /// # Errors
    ///
    /// [`ProviderError::Unusable`] when the configuration names another provider, or one of its values means nothing.
    pub fn from_config(config: &Config) -> ProviderResult<Self> {
        let ProviderConfig::Ssh(own) = &config.provider else {
            return Err(ProviderError::Unusable(
                "the provider `ssh` was asked for, but [provider] configures another one; set `type = \"ssh\"`"
                    .to_owned(),
            ));
        };
        if own.hosts.is_empty() {
            return Err(ProviderError::Unusable(
                "the provider `ssh` has no host: name some, as in `hosts = [{ host = \"build1\", slots = 8 }]`"
                    .to_owned(),
            ));
        }
        let mut packing = Packing::from_config(config, "ssh")?;
        packing.include.clone_from(&own.include);
        packing.exclude.clone_from(&own.exclude);
        packing.copy_dirs.clone_from(&own.copy_dirs);
        let project = project_name(&packing.directory);
        let run = run_name();
        let hosts = own.hosts.iter().map(|host| {
            Arc::new(Host {
                target: Target::new(host, &packing.directory, Path::new("ssh")),
                place: Place { workdir: host.workdir.clone(), project: project.clone(), run: run.clone(), tidy: true },
                slots: host.slots,
                standing: Mutex::new(Standing::New),
                visits: AtomicU32::new(0),
                taken: StdMutex::default(),
            })
        });
        Ok(Self {
            config: own.clone(),
            hosts: hosts.collect(),
            packing,
            luggage: OnceCell::new(),
            warnings: StdMutex::default(),
            freed: Sender::new(()),
            given_up: Sender::new(false),
        })
    }

    /// The program that is used as `ssh`, instead of the one in `PATH`.
    #[must_use]
    pub fn with_ssh(mut self, program: &Path) -> Self {
        for (host, config) in self.hosts.iter_mut().zip(&self.config.hosts) {
            if let Some(host) = Arc::get_mut(host) {
                host.target = Target::new(config, &self.packing.directory, program);
            }
        }
        self
    }

    fn warn(&self, text: String) {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    /// A slot on one of the hosts: the one that has the most to spare.
    async fn slot(&self) -> ProviderResult<(Arc<Visit>, Slot)> {
        let mut freed = self.freed.subscribe();
        loop {
            freed.mark_unchanged();
            let (mut best, mut busy, mut reasons) = (None, false, Vec::new());
            for host in &self.hosts {
                let visit = match host.visit().await {
                    Ok(visit) => visit,
                    Err(reason) => {
                        reasons.push(reason);
                        continue;
                    }
                };
                let slots = host.slots.unwrap_or(visit.about.cpus);
                let taken = host.taken.lock().unwrap_or_else(PoisonError::into_inner).len();
                if taken >= slots {
                    busy = true;
                } else if best.as_ref().is_none_or(|(_, _, load)| taken * 1000 / slots < *load) {
                    best = Some((host, visit, taken * 1000 / slots));
                }
            }
            if let Some((host, visit, _)) = best {
                return Ok((visit, Slot::take(host, &self.freed)));
            }
            if !busy {
                return Err(self.none(reasons).await);
            }
            // More sandboxes are wanted than there are slots, since a host has gone.
            let _ = timeout(POLL, freed.changed()).await;
        }
    }

    /// What it means that no host can be used.
    async fn none(&self, mut reasons: Vec<String>) -> ProviderError {
        reasons.dedup();
        let text = match reasons.as_slice() {
            [only] => only.clone(),
            several => format!("none of the hosts can be used:\n  {}", several.join("\n  ")),
        };
        for host in &self.hosts {
            if !matches!(&*host.standing.lock().await, Standing::Out(_)) {
                return ProviderError::Create(text);
            }
        }
        ProviderError::Unusable(text)
    }

    async fn luggage(&self, built: &Arc<Built>) -> ProviderResult<&Arc<Luggage>> {
        let gather = async {
            let (packing, built) = (self.packing.clone(), Arc::clone(built));
            let gathered = tokio::task::spawn_blocking(move || packing.gather(&built)).await;
            gathered
                .map_err(|error| ProviderError::Unusable(format!("gathering the files was interrupted: {error}")))?
                .map(Arc::new)
                .map_err(ProviderError::Unusable)
        };
        self.luggage.get_or_try_init(|| gather).await
    }

    async fn sandbox(&self, request: &SandboxRequest) -> ProviderResult<Box<dyn Sandbox>> {
        let luggage = Arc::clone(self.luggage(&request.built).await?);
        loop {
            let (visit, slot) = self.slot().await?;
            match self.fill(request, &luggage, &visit, &slot).await {
                Ok((link, files, own)) => {
                    return Ok(Box::new(self.furnish(request, luggage, visit, slot, link, files, own)));
                }
                Err(Trouble::Files(reason)) => return Err(ProviderError::Unusable(reason)),
                Err(Trouble::Lost(reason)) => return Err(ProviderError::Create(reason)),
                Err(Trouble::Host(reason)) => {
                    let mut standing = slot.host.standing.lock().await;
                    if !matches!(&*standing, Standing::Out(_)) {
                        *standing = Standing::Out(reason.clone());
                        self.warn(format!("The host {} is left out: {reason}", visit.target.name()));
                        drop(standing);
                        visit.close().await;
                    }
                }
            }
        }
    }

    /// Sees to it that the sandbox has its files.
    async fn fill(
        &self,
        request: &SandboxRequest,
        luggage: &Luggage,
        visit: &Visit,
        slot: &Slot,
    ) -> Result<(Arc<Link>, Arc<Files>, Option<String>), Trouble> {
        let link = visit.link(slot.number).await?;
        if !self.config.isolate {
            return Ok((link, visit.shared(luggage).await?, None));
        }
        let name = format!("sandbox-{}", request.index);
        let files = visit.own(&link, luggage, &name).await?;
        Ok((link, files, Some(name)))
    }

    #[expect(clippy::too_many_arguments, reason = "it only puts together what was made before")]
    fn furnish(
        &self,
        request: &SandboxRequest,
        luggage: Arc<Luggage>,
        visit: Arc<Visit>,
        slot: Slot,
        link: Arc<Link>,
        files: Arc<Files>,
        own: Option<String>,
    ) -> SshSandbox {
        let mut env = self.config.env.clone();
        env.extend(request.env.clone());
        let moved = files.view.is_none() || self.packing.repo_root.is_some();
        if moved {
            let root = files.locate(&luggage, &luggage.root);
            env.insert("OFFLOAD_ROOT".to_owned(), root.to_string_lossy().into_owned());
        }
        if files.view.is_none() && slot.is_first_without_view() {
            self.warn(format!(
                "The host {} gives no view of its file system in which the project could be at the same path as here \
                 (`unshare` and `nsenter` of util-linux do that where the kernel lets users have namespaces): tests run \
                 in {}, which OFFLOAD_ROOT names.",
                visit.target.name(),
                files.locate(&luggage, &luggage.directory).display()
            ));
        }
        SshSandbox {
            id: format!("{}-{}", visit.target.config.host, request.index),
            directory: files.locate(&luggage, &luggage.directory),
            luggage,
            moved,
            env,
            visit,
            link,
            files: StdMutex::new(Some(files)),
            own,
            ending: Sender::new(0),
            slot: StdMutex::new(Some(slot)),
        }
    }
}

/// What tells a run from all others on the same hosts.
fn run_name() -> String {
    format!("run-{:x}-{}", std::process::id(), random::word().get(..12).unwrap_or_default())
}

/// The name of the directory of a project's runs on a host.
fn project_name(directory: &Path) -> String {
    let name = directory.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let plain: String = name.chars().filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit()).take(20).collect();
    let mut key = ImageKey::new();
    key.add(&rustix::system::uname().nodename().to_string_lossy());
    key.add(&directory.to_string_lossy());
    format!("{}{}", if plain.is_empty() { String::new() } else { format!("{plain}-") }, key.short())
}

/// A slot of a host that nobody else has.
#[derive(Debug)]
struct Slot {
    host: Arc<Host>,
    number: usize,
    freed: Sender<()>,
}

impl Slot {
    fn take(host: &Arc<Host>, freed: &Sender<()>) -> Self {
        let mut taken = host.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let number = (0..).find(|number| !taken.contains(number)).unwrap_or(0);
        taken.insert(number);
        drop(taken);
        Self { host: Arc::clone(host), number, freed: freed.clone() }
    }

    /// Whether nobody has been told yet that the host has no views.
    fn is_first_without_view(&self) -> bool {
        self.number == 0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.host.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
        self.freed.send_replace(());
    }
}

#[async_trait]
impl SandboxProvider for SshProvider {
    async fn create_sandbox(&self, request: &SandboxRequest) -> ProviderResult<Box<dyn Sandbox>> {
        let mut given_up = self.given_up.subscribe();
        tokio::select! {
            created = self.sandbox(request) => created,
            () = gone(&mut given_up) => {
                Err(ProviderError::Create("the run ended before the sandbox was there".to_owned()))
            }
        }
    }

    fn name(&self) -> &str {
        "ssh"
    }

    async fn prepare(&self) -> ProviderResult<()> {
        let mut given_up = self.given_up.subscribe();
        let mut attempts = tokio::task::JoinSet::new();
        for host in &self.hosts {
            let host = Arc::clone(host);
            attempts.spawn(async move { host.visit().await });
        }
        let results = tokio::select! {
            results = attempts.join_all() => results,
            () = gone(&mut given_up) => return Ok(()),
        };
        let reasons: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        if reasons.len() == self.hosts.len() {
            return Err(ProviderError::Unusable(self.none(reasons).await.to_string()));
        }
        for reason in reasons {
            self.warn(format!("A host is left out: {reason}"));
        }
        Ok(())
    }

    fn give_up(&self) {
        self.given_up.send_replace(true);
    }

    fn isolates(&self) -> bool {
        self.config.isolate
    }

    fn is_elsewhere(&self) -> bool {
        true
    }

    async fn most_sandboxes(&self) -> Option<usize> {
        let mut most = 0;
        for host in &self.hosts {
            if let Standing::Up(visit) = &*host.standing.lock().await {
                most += host.slots.unwrap_or(visit.about.cpus);
            }
        }
        Some(most.max(1))
    }

    fn warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn finish(&self) {
        let mut leaving = tokio::task::JoinSet::new();
        for host in &self.hosts {
            let host = Arc::clone(host);
            leaving.spawn(async move { host.leave().await });
        }
        leaving.join_all().await;
    }
}

/// Returns once nobody needs a sandbox any more.
async fn gone(given_up: &mut watch::Receiver<bool>) {
    if given_up.wait_for(|given_up| *given_up).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// A slot of a host.
pub struct SshSandbox {
    id: String,
    visit: Arc<Visit>,
    link: Arc<Link>,
    luggage: Arc<Luggage>,
    /// Where tests run.
    directory: PathBuf,
    /// The repository is not where it is here.
    moved: bool,
    env: BTreeMap<String, String>,
    files: StdMutex<Option<Arc<Files>>>,
    /// The name of its directory, if it has one of its own.
    own: Option<String>,
    ending: Sender<usize>,
    slot: StdMutex<Option<Slot>>,
}

impl SshSandbox {
    fn files(&self) -> Option<Arc<Files>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A path in the sandbox.
    fn locate(&self, path: &Path) -> PathBuf {
        let path = self.directory.join(path);
        match self.files() {
            Some(files) => files.locate(&self.luggage, &path),
            None => path,
        }
    }

    async fn start(&self, command: &Command, listens: bool) -> ProviderResult<Channel> {
        // What was dropped before must have ended.
        let _ = self.ending.subscribe().wait_for(|ending| *ending == 0).await;
        let script = script(&self.env, command, &self.locate(command.working_dir.as_deref().unwrap_or(Path::new(""))));
        let job = Job { listens, timeout: command.timeout, ending: Some(self.ending.clone()), ..self.job(script) };
        start(&self.link, job).await.map_err(ProviderError::Exec)
    }

    fn job(&self, script: Vec<u8>) -> Job {
        let enter = self.files().map(|files| files.enter().to_owned()).unwrap_or_default();
        Job { script, enter, ..Job::default() }
    }

    fn transfer(&self, what: &str, path: &Path, error: &str) -> ProviderError {
        ProviderError::Transfer(format!("cannot bring {} {what} the sandbox {}: {error}", path.display(), self.id))
    }

    /// The archive of a path, written to `local`.
    async fn fetch(&self, remote: &Path, local: &Path) -> Result<(), String> {
        let path = quote(&self.locate(remote).to_string_lossy());
        // A link stands for what it points to.
        let script = format!(
            "path=$(readlink -f -- {path}) && [ -e \"$path\" ] || {{ echo 'there is no such file' >&2; exit 1; }}\n\
             cd \"${{path%/*}}/\" && exec tar cf - -- \"${{path##*/}}\""
        );
        let channel = start(&self.link, self.job(script.into_bytes())).await?;
        let output = collect(channel.output, usize::MAX).await.map_err(|error| error.to_string())?;
        if output.exit_code != Some(0) {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        let local = local.to_owned();
        let unpacked =
            tokio::task::spawn_blocking(move || crate::files::unpack(output.stdout.as_slice(), &local)).await;
        unpacked.map_err(|error| error.to_string())?.map(drop).map_err(|error| error.to_string())
    }
}

/// What a shell is to read so that it runs `command` in `directory`. Nothing of it is in the arguments of a process but
/// the command's own.
fn script(env: &BTreeMap<String, String>, command: &Command, directory: &Path) -> Vec<u8> {
    let mut script = String::new();
    let mut odd = String::new();
    let mut all = env.clone();
    all.extend(command.env.clone());
    for (name, value) in &all {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.chars().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit()) {
            script.push_str(&format!("export {name}={}\n", quote_always(value)));
        } else {
            // Shells do not know such names.
            odd.push_str(&format!(" {}", quote(&format!("{name}={value}"))));
        }
    }
    script.push_str(&format!("cd {} || exit 127\n", quote(&directory.to_string_lossy())));
    let bare = Command { env: BTreeMap::new(), working_dir: None, ..command.clone() };
    match (command.program.as_str(), command.args.as_slice()) {
        ("/bin/sh", [flag, line]) if flag == "-c" && odd.is_empty() => script.push_str(line),
        _ if odd.is_empty() => script.push_str(&format!("exec {}", bare.to_shell())),
        _ => script.push_str(&format!("exec env{odd} {}", bare.to_shell())),
    }
    script.into_bytes()
}

#[async_trait]
impl Sandbox for SshSandbox {
    fn id(&self) -> &str {
        &self.id
    }

    async fn exec_stream(&self, command: &Command) -> ProviderResult<OutputStream> {
        self.start(command, false).await.map(|channel| channel.output)
    }

    async fn open_channel(&self, command: &Command) -> ProviderResult<Option<Channel>> {
        self.start(command, true).await.map(Some)
    }

    fn has_same_paths(&self) -> bool {
        !self.moved
    }

    fn place(&self) -> String {
        format!("the host {}", self.visit.target.name())
    }

    async fn upload(&self, local: &Path, remote: &Path) -> ProviderResult<()> {
        let (source, target) = (local.to_owned(), self.locate(remote));
        let files = tokio::task::spawn_blocking(move || {
            let mut files = FileSet::new();
            files.add_path(&source, &target).map(|()| files)
        });
        let files = files.await.map_err(|error| self.transfer("into", local, &error.to_string()))?;
        let files = files.map_err(|error| self.transfer("into", local, &error.to_string()))?;
        let enter = self.files().map(|files| files.enter().to_owned()).unwrap_or_default();
        let unpacked = unpack(&self.link, "umask 022; cd / && exec tar xpof -".to_owned(), &enter, files).await;
        unpacked.map_err(|failure| {
            let reason = match failure {
                Failure::Ended(output) => format!("tar failed there:{}", tail(&output, 3)),
                Failure::Lost(reason) | Failure::Files(reason) => reason,
            };
            self.transfer("into", local, &reason)
        })
    }

    async fn download(&self, paths: &[(PathBuf, PathBuf)]) -> ProviderResult<()> {
        for (remote, local) in paths {
            self.fetch(remote, local).await.map_err(|error| self.transfer("out of", remote, &error))?;
        }
        Ok(())
    }

    async fn terminate(&self) -> ProviderResult<()> {
        // What runs is ended by whoever started it; what was dropped has ended before the slot is anybody else's.
        let ended = async {
            let _ = self.ending.subscribe().wait_for(|ending| *ending == 0).await;
        };
        tokio::select! {
            () = ended => {}
            _ = self.link.fallen() => {}
        }
        drop(self.files.lock().unwrap_or_else(PoisonError::into_inner).take());
        let discarded = match &self.own {
            Some(own) if self.link.loss().is_none() => self.visit.discard(&self.link, own).await,
            _ => Ok(()),
        };
        drop(self.slot.lock().unwrap_or_else(PoisonError::into_inner).take());
        match discarded {
            Err(Trouble::Host(reason)) => Err(ProviderError::Exec(reason)),
            _ => Ok(()),
        }
    }
}
