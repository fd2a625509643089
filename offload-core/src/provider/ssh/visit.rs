//! A run on one host, as long as its connections last: how files get there, and where tests find them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as StdMutex};

use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Mutex, OnceCell};

use super::clean::Cleaned;
use super::link::{About, Link, Place, SANDBOXES};
use super::session::{Job, start};
use super::target::Target;
use crate::connector::{OUTPUT_LIMIT, collect, describe_exit, next_event, quote, tail};
use crate::files::{Archive, FileSet, Manifest, Owner};
use crate::provider::luggage::Luggage;
use crate::provider::{Channel, ExecEvent, ExecOutput};

/// How many lines of what a host complains about an error shows.
const TAIL_LINES: usize = 5;

/// What keeps a host from being used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It will be the same the next time.
    Host(String),
    /// The connection is gone.
    Lost(String),
    /// The files here are at fault.
    Files(String),
}

impl Trouble {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Host(text) | Self::Lost(text) | Self::Files(text) => text,
        }
    }
}

/// Where the files of a sandbox are.
#[derive(Debug)]
pub(super) struct Files {
    /// Everything that has travelled, by its absolute path.
    tree: String,
    /// What goes before a command so that it finds the files where they are expected; `None`: it cannot.
    pub(super) view: Option<View>,
}

/// A view of the file system in which the files are where they are expected.
pub(super) struct View {
    pub(super) enter: String,
    /// The view is there as long as this is.
    _holder: StdMutex<Channel>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("enter", &self.enter).finish_non_exhaustive()
    }
}

impl Files {
    /// Where, in this sandbox, something is that belongs to `path`.
    pub(super) fn locate(&self, luggage: &Luggage, path: &Path) -> PathBuf {
        match &self.view {
            None if path.starts_with(&luggage.root) => {
                Path::new(&format!("{}{}", self.tree, path.display())).to_owned()
            }
            _ => path.to_owned(),
        }
    }

    pub(super) fn enter(&self) -> &str {
        self.view.as_ref().map_or("", |view| &view.enter)
    }
}

/// A run on a host.
#[derive(Debug)]
pub(super) struct Visit {
    pub(super) target: Arc<Target>,
    pub(super) about: About,
    place: Place,
    first: Arc<Link>,
    more: Mutex<Vec<Arc<Link>>>,
    /// What all sandboxes share, or are copies of.
    tree: OnceCell<String>,
    shared: OnceCell<Arc<Files>>,
}

impl Visit {
    /// Connects.
    pub(super) async fn begin(mut target: Target, place: Place) -> Result<Self, String> {
        target.check_configuration().await?;
        let target = Arc::new(target);
        let (first, about) = Link::open(&target, &place, 0).await?;
        Ok(Self { target, about, place, first, more: Mutex::default(), tree: OnceCell::new(), shared: OnceCell::new() })
    }

    /// Why the host can be used no more; `None` when it can. One connection that fails takes the others with it: what runs
    /// there shares files.
    pub(super) fn loss(&self) -> Option<String> {
        let more = self.more.try_lock().ok();
        let more = more.iter().flat_map(|links| links.iter()).find_map(|link| link.loss());
        self.first.loss().or(more)
    }

    /// Ends everything on the host.
    pub(super) async fn close(&self) {
        let more = std::mem::take(&mut *self.more.lock().await);
        for link in &more {
            link.close().await;
        }
        self.first.close().await;
    }

    /// Removes what dead runs have left here, of this project or of all.
    pub(super) async fn clean(&self, all: bool) -> Result<Cleaned, Trouble> {
        let project = if all { "*" } else { &self.place.project };
        let script = format!(
            "dir={} project={} own={}\n{}{}",
            quote(&self.about.dir),
            quote(project),
            quote(&self.run()),
            include_str!("dead.sh"),
            include_str!("clean.sh"),
        );
        let output = self.run_own(&self.first, "remove what runs have left", &script).await?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut counts = text.split_whitespace().map(|count| count.parse().unwrap_or(0));
        let mut next = || counts.next().unwrap_or(0);
        Ok(Cleaned { runs: next(), copies: next(), in_use: next() })
    }

    /// The connection for a slot.
    pub(super) async fn link(&self, slot: usize) -> Result<Arc<Link>, Trouble> {
        let Some(at) = (slot / SANDBOXES).checked_sub(1) else { return Ok(Arc::clone(&self.first)) };
        let mut more = self.more.lock().await;
        while more.len() <= at {
            let (link, _) = Link::open(&self.target, &self.place, more.len() + 1).await.map_err(Trouble::Lost)?;
            more.push(link);
        }
        more.get(at).cloned().ok_or_else(|| Trouble::Lost("the connection was closed".to_owned()))
    }

    fn project(&self) -> String {
        format!("{}/{}", self.about.dir, self.place.project)
    }

    fn run(&self) -> String {
        format!("{}/{}", self.project(), self.place.run)
    }

    /// The files that all sandboxes here share.
    pub(super) async fn shared(&self, luggage: &Luggage) -> Result<Arc<Files>, Trouble> {
        let make = async {
            let tree = self.tree(luggage).await?;
            let view = self.view(&self.first, luggage, &tree, &format!("{}/stage", self.run())).await?;
            Ok(Arc::new(Files { tree, view }))
        };
        self.shared.get_or_try_init(|| make).await.cloned()
    }

    /// A copy of the files for a sandbox of its own.
    pub(super) async fn own(&self, link: &Arc<Link>, luggage: &Luggage, name: &str) -> Result<Arc<Files>, Trouble> {
        let from = self.tree(luggage).await?;
        let place = format!("{}/{}", self.run(), name);
        let tree = format!("{place}/tree");
        self.run_own(link, "copy the files", &copy(&from, &tree)).await?;
        let view = self.view(link, luggage, &tree, &format!("{place}/stage")).await?;
        Ok(Arc::new(Files { tree, view }))
    }

    /// Removes what [`Self::own`] made.
    pub(super) async fn discard(&self, link: &Arc<Link>, name: &str) -> Result<(), Trouble> {
        let place = quote(&format!("{}/{}", self.run(), name));
        let script = format!("rm -rf {place} 2>/dev/null || {{ chmod -R u+rwx {place}; rm -rf {place}; }}");
        self.run_own(link, "remove a sandbox", &script).await.map(drop)
    }

    async fn tree(&self, luggage: &Luggage) -> Result<String, Trouble> {
        self.tree.get_or_try_init(|| self.bring(luggage)).await.cloned()
    }

    /// Brings the files into a directory of the run's own: what has changed since the last run into a copy that stays on
    /// the host, and all of it from there.
    async fn bring(&self, luggage: &Luggage) -> Result<String, Trouble> {
        let tree = format!("{}/tree", self.run());
        if !self.about.locks {
            // Two runs could disturb each other.
            self.unpack(&tree, "", luggage.files.clone()).await?;
            return Ok(tree);
        }
        let project = self.project();
        let (lock, known) = self.lock(&project).await?;
        let (changed, gone) = match &known {
            Some(known) => (luggage.files.changed_since(known), luggage.files.gone_since(known)),
            None => (luggage.files.clone(), Vec::new()),
        };
        let host = self.target.name();
        tracing::info!(host, changed = changed.len(), bytes = changed.size(), gone = gone.len(), "bringing files");
        let base = format!("{project}/base");
        let mark = format!("rm -f {}\n", quote(&format!("{project}/base.json")));
        let anew = || async {
            let remove = format!("{mark}rm -rf {0} 2>/dev/null || {{ chmod -R u+rwx {0}; rm -rf {0}; }}", quote(&base));
            self.run_own(&self.first, "remove old files", &remove).await?;
            self.unpack(&base, "", luggage.files.clone()).await
        };
        let same = known.is_some() && changed.is_empty() && gone.is_empty();
        if known.is_none() {
            anew().await?;
        } else if !same {
            let mut updated = Ok(());
            if !gone.is_empty() {
                updated = self.remove(&base, &mark, &gone).await;
            }
            if updated.is_ok() && !changed.is_empty() {
                updated = self.unpack(&base, &mark, changed).await;
            }
            match updated {
                Err(Trouble::Host(error)) => {
                    tracing::debug!(host, error, "the copy on the host cannot be updated");
                    anew().await?;
                }
                updated => updated?,
            }
        }
        let copy = copy(&base, &tree);
        if same {
            self.run_own(&self.first, "copy the files", &copy).await?;
        } else {
            let manifest = serde_json::to_vec(&luggage.files.manifest()).unwrap_or_default();
            let file = quote(&format!("{project}/base.json"));
            let script = format!("umask 077; cat >{file}.part && mv {file}.part {file} || exit 1; {copy}");
            self.feed("copy the files", &script, &manifest).await?;
        }
        drop(lock);
        Ok(tree)
    }

    /// Keeps other runs from the copy that stays, as long as the channel is there; and what that copy holds.
    async fn lock(&self, project: &str) -> Result<(Channel, Option<Manifest>), Trouble> {
        let (lock, file) = (quote(&format!("{project}/lock")), quote(&format!("{project}/base.json")));
        let script = format!(
            "umask 077\nexec 9>{lock} || exit 1\nflock 9 || exit 1\n\
             if [ -f {file} ]; then wc -c <{file}; cat {file}; else echo 0; fi\n\
             exec cat >/dev/null"
        );
        let job = Job { script: script.into_bytes(), listens: true, ..Job::default() };
        let mut channel = start(&self.first, job).await.map_err(Trouble::Lost)?;
        let (mut came, mut said) = (Vec::new(), Vec::new());
        loop {
            let header = came.iter().position(|byte| *byte == b'\n');
            if let Some(header) = header {
                let size = String::from_utf8_lossy(&came[..header]).trim().parse::<usize>().unwrap_or(0);
                if let Some(json) = came.get(header + 1..header + 1 + size) {
                    // A copy about which nothing is known is made anew.
                    return Ok((channel, serde_json::from_slice(json).ok()));
                }
            }
            match next_event(&mut channel.output).await {
                Some(Ok(ExecEvent::Stdout(bytes))) => came.extend(bytes),
                Some(Ok(ExecEvent::Stderr(bytes))) => said.extend(bytes),
                Some(Ok(ExecEvent::Exit(code))) => {
                    let output = ExecOutput { exit_code: code, stderr: said, ..ExecOutput::default() };
                    return Err(self.trouble("lock the files", &output));
                }
                Some(Err(error)) => return Err(Trouble::Lost(error.to_string())),
                None => return Err(Trouble::Lost("a session ended without a word".to_owned())),
            }
        }
    }

    async fn remove(&self, base: &str, before: &str, gone: &[PathBuf]) -> Result<(), Trouble> {
        use std::os::unix::ffi::OsStrExt as _;
        let mut names = Vec::new();
        for path in gone {
            names.push(b'.');
            names.extend_from_slice(path.as_os_str().as_bytes());
            names.push(0);
        }
        let script = format!("{before}cd {} && xargs -0 rm -rf --", quote(base));
        self.feed("remove files that are gone", &script, &names).await
    }

    /// Runs a script of ours to its end, which is to be a good one.
    async fn run_own(&self, link: &Arc<Link>, what: &str, script: &str) -> Result<ExecOutput, Trouble> {
        let job = Job { script: script.as_bytes().to_vec(), ..Job::default() };
        let channel = start(link, job).await.map_err(Trouble::Lost)?;
        let output = collect(channel.output, OUTPUT_LIMIT).await.map_err(|error| Trouble::Lost(error.to_string()))?;
        if output.exit_code == Some(0) { Ok(output) } else { Err(self.trouble(what, &output)) }
    }

    /// As [`Self::run_own`], with something to read.
    async fn feed(&self, what: &str, script: &str, bytes: &[u8]) -> Result<(), Trouble> {
        let job = Job { script: script.as_bytes().to_vec(), listens: true, ..Job::default() };
        let Channel { mut input, output } = start(&self.first, job).await.map_err(Trouble::Lost)?;
        let write = async move {
            // If that fails, the end of the command tells why.
            let _ = input.write_all(bytes).await;
            let _ = input.shutdown().await;
        };
        let ((), output) = tokio::join!(write, collect(output, OUTPUT_LIMIT));
        let output = output.map_err(|error| Trouble::Lost(error.to_string()))?;
        if output.exit_code == Some(0) { Ok(()) } else { Err(self.trouble(what, &output)) }
    }

    async fn unpack(&self, directory: &str, before: &str, files: FileSet) -> Result<(), Trouble> {
        let directory = quote(directory);
        let script = format!("umask 022; {before}mkdir -p {directory} && cd {directory} && tar xpof -");
        unpack(&self.first, script, "", files).await.map_err(|failure| match failure {
            Failure::Ended(output) => self.trouble("unpack the files", &output),
            Failure::Lost(reason) => Trouble::Lost(reason),
            Failure::Files(reason) => Trouble::Files(reason),
        })
    }

    /// What it means that a command of ours failed.
    fn trouble(&self, what: &str, output: &ExecOutput) -> Trouble {
        let (host, dir) = (self.target.name(), &self.about.dir);
        let said = String::from_utf8_lossy(&output.stderr);
        // The last is how tar says it.
        let full = ["No space left on device", "Disk quota exceeded", "Wrote only"];
        if full.iter().any(|sign| said.contains(sign)) {
            return Trouble::Host(format!(
                "the disk of {host} is full (in {dir}); make room, or name another place (`workdir` in [provider])"
            ));
        }
        let how = describe_exit(output.exit_code);
        Trouble::Host(format!("{host} cannot {what} in {dir}: {how}{}", tail(output, TAIL_LINES)))
    }

    /// A view in which the files of `tree` are where they are expected; `None` where the host gives none.
    async fn view(
        &self,
        link: &Arc<Link>,
        luggage: &Luggage,
        tree: &str,
        stage: &str,
    ) -> Result<Option<View>, Trouble> {
        let About { uid, gid, views, .. } = &self.about;
        let (unshare, enter) = match views.as_deref() {
            Some("root") => ("unshare --mount", String::new()),
            Some("user") => (
                "unshare --user --map-root-user --mount",
                format!(" --user --preserve-credentials unshare --user --map-user={uid} --map-group={gid}"),
            ),
            _ => return Ok(None),
        };
        let mut shown = String::new();
        for path in luggage.files.roots() {
            let Some(path) = path.to_str() else { return Ok(None) };
            let how = if Path::new(path) == luggage.root { '=' } else { '+' };
            shown.push(' ');
            shown.push_str(&quote(&format!("{how}{path}")));
        }
        let view = format!("{}\necho $$\nexec cat >/dev/null\n", include_str!("view.sh"));
        let script = format!(
            "mkdir -p {stage} && PATH=$PATH:/usr/sbin:/sbin tree={} stage={stage} exec {unshare} /bin/sh -c {} offload-view{shown}",
            quote(tree),
            quote(&view),
            stage = quote(stage),
        );
        let job = Job { script: script.into_bytes(), listens: true, ..Job::default() };
        let mut channel = start(link, job).await.map_err(Trouble::Lost)?;
        let (mut came, mut said) = (Vec::new(), Vec::new());
        loop {
            match next_event(&mut channel.output).await {
                Some(Ok(ExecEvent::Stdout(bytes))) => came.extend(bytes),
                Some(Ok(ExecEvent::Stderr(bytes))) => said.extend(bytes),
                Some(Ok(ExecEvent::Exit(_))) => {
                    let said = String::from_utf8_lossy(&said).trim().to_owned();
                    tracing::debug!(host = self.target.name(), said, "no view of the file system");
                    return Ok(None);
                }
                Some(Err(error)) => return Err(Trouble::Lost(error.to_string())),
                None => return Err(Trouble::Lost("a session ended without a word".to_owned())),
            }
            if came.ends_with(b"\n") {
                let pid = String::from_utf8_lossy(&came).trim().to_owned();
                let enter = format!("nsenter --target {pid} --mount{enter}");
                return Ok(Some(View { enter, _holder: StdMutex::new(channel) }));
            }
        }
    }
}

/// Why an archive was not unpacked.
pub(super) enum Failure {
    Ended(ExecOutput),
    Lost(String),
    Files(String),
}

/// Runs a script that reads an archive.
pub(super) async fn unpack(link: &Arc<Link>, script: String, enter: &str, files: FileSet) -> Result<(), Failure> {
    let job = Job { script: script.into_bytes(), enter: enter.to_owned(), listens: true, ..Job::default() };
    let Channel { input, output } = start(link, job).await.map_err(Failure::Lost)?;
    let archive = Archive::start(files, Owner::default());
    let (sent, output) = tokio::join!(send(archive, input), collect(output, OUTPUT_LIMIT));
    let output = output.map_err(|error| Failure::Lost(error.to_string()))?;
    match sent {
        Err(reason) => Err(Failure::Files(reason)),
        Ok(()) if output.exit_code == Some(0) => Ok(()),
        Ok(()) => Err(Failure::Ended(output)),
    }
}

/// Writes an archive. That nobody takes it is no error here: who should have, tells why.
async fn send(mut archive: Archive, mut input: std::pin::Pin<Box<dyn AsyncWrite + Send>>) -> Result<(), String> {
    let mut taken = true;
    while let Some(piece) = archive.stream.next().await {
        match piece {
            Ok(bytes) => {
                if input.write_all(&bytes).await.is_err() {
                    taken = false;
                    break;
                }
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    let _ = input.shutdown().await;
    drop((input, archive.stream));
    match archive.written.await {
        Ok(Err(error)) if taken => Err(error.to_string()),
        Err(error) => Err(format!("writing the archive was interrupted: {error}")),
        _ => Ok(()),
    }
}

/// A script that copies what is in `from`: never by hard links, because tests may write in place.
fn copy(from: &str, to: &str) -> String {
    let (from, to) = (quote(&format!("{from}/.")), quote(to));
    format!(
        "umask 022; mkdir -p {to} && if cp --reflink=auto --version >/dev/null 2>&1; then cp -a --reflink=auto {from} {to}; \
         else cp -a {from} {to}; fi"
    )
}
