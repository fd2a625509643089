//! One connection to a host, shared by several sessions.
//!
//! Its first session is a holder (`holder.sh`), whose life hangs on our end of its standard input, and on whose life
//! everything hangs that was started over there: it ends when this process does, in whatever way, or when the line has
//! been cut for long. The `ssh` that runs it is the master of the connection; further sessions go through its socket.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};

use super::marks::Marks;
use super::target::{Target, not_started, socket_directory};
use crate::connector::{quote, quote_always, tail_of};
use crate::random;

/// Sandboxes that share a connection. Each has one session, and two for a moment; servers allow ten by default.
pub(super) const SANDBOXES: usize = 4;

/// The most sessions beside the holder's.
const SESSIONS: usize = 7;

/// How long a host may take to say the first word.
const PATIENCE: Duration = Duration::from_secs(40);

/// How often the holder hears that we are there.
const BEAT: Duration = Duration::from_secs(5);

/// After how many seconds without a beat it gives up: longer than it takes us to give a connection up.
const SILENCE_SECS: u32 = 60;

/// How long the holder may take to end everything.
const FAREWELL: Duration = Duration::from_secs(20);

/// How long an `ssh` may go on after its last session.
const GONE: Duration = Duration::from_secs(1);

/// How much of what `ssh` says is kept.
const LAST_WORDS: usize = 4 << 10;

/// Where things are on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) workdir: Option<String>,
    /// The name of the directory of the project.
    pub(super) project: String,
    /// The name of the directory of the run in that.
    pub(super) run: String,
    /// Whether what dead runs have left there is removed first.
    pub(super) tidy: bool,
}

impl Place {
    /// A line for the shell that sets `dir` to the directory for everything of Offload's.
    pub(super) fn assignment(&self) -> String {
        match self.workdir.as_deref() {
            None => "dir=${XDG_CACHE_HOME:-$HOME/.cache}/offload".to_owned(),
            Some("~") => "dir=$HOME".to_owned(),
            Some(path) if path.starts_with('/') => format!("dir={}", quote(path.trim_end_matches('/'))),
            Some(path) => format!("dir=$HOME/{}", quote(path.trim_start_matches("~/").trim_end_matches('/'))),
        }
    }
}

/// What a host says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct About {
    /// The directory for everything of Offload's.
    pub(super) dir: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) cpus: usize,
    /// How a command gets a view of the file system of its own: `root` or `user`; `None`: it cannot.
    pub(super) views: Option<String>,
    /// Whether there is `flock`.
    pub(super) locks: bool,
}

/// A connection that was established.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) target: Arc<Target>,
    socket: PathBuf,
    /// The directory of the connection on the host.
    pub(super) own: String,
    orders: mpsc::UnboundedSender<Order>,
    down: watch::Receiver<Option<String>>,
    pub(super) sessions: Arc<Semaphore>,
}

/// What the holder is told.
#[derive(Debug)]
enum Order {
    End(String),
    Kill(String),
    Quit,
}

/// What is given to `ssh` to run: a shell that reads a script, up to the line [`end`], and runs it. The script is not an
/// argument, where everybody on either machine could read it. Any login shell understands this.
pub(super) fn bootstrap(nonce: &str) -> String {
    let read = r#"n=$(printf "\nx"); n=${n%x}; s=; while :; do IFS= read -r l || exit 1; [ "$l" = "$0" ] && break; s=$s$l$n; done; eval "$s""#;
    format!("exec /bin/sh -c {} {}", quote_always(read), end(nonce))
}

/// The line that ends a script.
pub(super) fn end(nonce: &str) -> String {
    format!("offload-{nonce}")
}

impl Link {
    /// Connects. `number`: of the connection among those to the host; the first one also says something about the host.
    ///
    /// # Errors
    ///
    /// A sentence about what went wrong and what to do.
    pub(super) async fn open(target: &Arc<Target>, place: &Place, number: usize) -> Result<(Arc<Self>, About), String> {
        let nonce = random::word();
        let socket = socket_directory()?.join(format!("{}-{}", std::process::id(), nonce.get(..8).unwrap_or_default()));
        let mut ssh = target.ssh();
        ssh.arg("-S").arg(&socket).args(["-o", "ControlMaster=yes", "-T", "--"]);
        ssh.arg(&target.config.host).arg(bootstrap(&nonce));
        let mut child = ssh.spawn().map_err(|error| not_started(&error))?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err("`ssh` was started without its streams".to_owned());
        };
        let mut ssh = Ssh { child, stdin: Some(stdin), stdout, stderr, marks: Marks::new(&nonce), said: Vec::new() };
        let script = format!(
            "{}\nproject={} run={} number={number} nonce={nonce} patience={SILENCE_SECS} tidy={}\n{}{}{}\n",
            place.assignment(),
            quote(&place.project),
            quote(&place.run),
            if place.tidy { "yes" } else { "" },
            include_str!("dead.sh"),
            include_str!("holder.sh"),
            end(&nonce),
        );
        let about = match timeout(PATIENCE, ssh.begin(target, script.as_bytes())).await {
            Ok(Ok(lines)) => lines,
            Ok(Err(reason)) => {
                ssh.kill().await;
                return Err(reason);
            }
            Err(_) => {
                ssh.kill().await;
                return Err(format!(
                    "{} has not answered within {} s{}",
                    target.name(),
                    PATIENCE.as_secs(),
                    tail_of(&ssh.said, 3)
                ));
            }
        };
        let (orders, inbox) = mpsc::unbounded_channel();
        let (fallen, down) = watch::channel(None);
        tokio::spawn(ssh.drive(Arc::clone(target), socket.clone(), inbox, fallen));
        let about = About::parse(&about, target)?;
        let own = format!("{}/{}/{}/connections/{number}", about.dir, place.project, place.run);
        let sessions = Arc::new(Semaphore::new(SESSIONS));
        Ok((Arc::new(Self { target: Arc::clone(target), socket, own, orders, down, sessions }), about))
    }

    /// `ssh` for a further session.
    pub(super) fn ssh(&self, nonce: &str) -> tokio::process::Command {
        let mut ssh = self.target.through(&self.socket);
        ssh.arg("--").arg(&self.target.config.host).arg(bootstrap(nonce));
        ssh
    }

    /// Sends SIGTERM, or SIGKILL, to everything in the session that process `pid` leads.
    pub(super) fn end(&self, pid: &str, kill: bool) {
        let order = if kill { Order::Kill(pid.to_owned()) } else { Order::End(pid.to_owned()) };
        // When nobody takes it, the connection has gone, and everything over there with it.
        let _ = self.orders.send(order);
    }

    /// Why the connection can be used no more; `None` when it can.
    pub(super) fn loss(&self) -> Option<String> {
        self.down.borrow().clone()
    }

    /// As [`Self::loss`], which may take a moment to be known.
    pub(super) async fn loss_within(&self, patience: Duration) -> Option<String> {
        let mut down = self.down.clone();
        let _ = timeout(patience, async { drop(down.wait_for(Option::is_some).await) }).await;
        self.loss()
    }

    /// Returns why, once the connection can be used no more.
    pub(super) async fn fallen(&self) -> String {
        let mut down = self.down.clone();
        match down.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "the connection was dropped".to_owned(),
        }
    }

    /// Ends everything that was started through it, and the connection.
    pub(super) async fn close(&self) {
        let _ = self.orders.send(Order::Quit);
        let _ = self.loss_within(FAREWELL).await;
    }
}

/// The `ssh` with the holder.
struct Ssh {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    stderr: ChildStderr,
    marks: Marks,
    said: Vec<u8>,
}

impl Ssh {
    /// Sends the script and waits until the holder is ready; returns what it says of the host.
    async fn begin(&mut self, target: &Target, script: &[u8]) -> Result<String, String> {
        if let Some(stdin) = &mut self.stdin {
            // If that fails, the end of `ssh` tells why.
            let _ = stdin.write_all(script).await;
            let _ = stdin.flush().await;
        }
        let mut lines = Vec::new();
        let (mut out, mut err) = (vec![0; 4096], vec![0; 4096]);
        let mut listening = true;
        loop {
            tokio::select! {
                read = self.stdout.read(&mut out) => match read {
                    Ok(length @ 1..) => {
                        lines.extend(self.marks.push(&out[..length]).bytes);
                        if self.marks.is_lost() {
                            return Err(format!("the login shell of {} prints without end", target.name()));
                        }
                        if lines.ends_with(b"\nready\n") || lines == b"ready\n" {
                            return Ok(String::from_utf8_lossy(&lines).into_owned());
                        }
                    }
                    _ => break,
                },
                read = self.stderr.read(&mut err), if listening => match read {
                    Ok(length @ 1..) => self.hear(&err[..length]),
                    _ => listening = false,
                },
            }
        }
        while let Ok(Ok(length @ 1..)) = timeout(GONE, self.stderr.read(&mut err)).await {
            self.hear(&err[..length]);
        }
        let status = timeout(GONE, self.child.wait()).await.ok().and_then(Result::ok);
        Err(self.failure(target, &String::from_utf8_lossy(&lines), status))
    }

    /// Why there is no holder.
    fn failure(&self, target: &Target, lines: &str, status: Option<ExitStatus>) -> String {
        let name = target.name();
        if lines.lines().any(|line| line.starts_with("unusable")) {
            let what = if String::from_utf8_lossy(&self.said).contains("No space left") {
                "the disk is full; make room, or name another place (`workdir` in [provider])"
            } else {
                "name a directory that can be written to (`workdir` in [provider])"
            };
            return format!("the working directory on {name} cannot be used: {what}:{}", tail_of(&self.said, 3));
        }
        if !self.marks.has_begun() && status.and_then(|status| status.code()) == Some(255) {
            return target.explain(&self.said);
        }
        let said = if self.said.trim_ascii().is_empty() { self.marks.banner() } else { &self.said };
        format!(
            "the login shell of {name} does not run what it is told, or ends at once; `ssh {} true` has to work:{}",
            target.config.host,
            tail_of(said, 3)
        )
    }

    fn hear(&mut self, bytes: &[u8]) {
        self.said.extend_from_slice(bytes);
        let surplus = self.said.len().saturating_sub(LAST_WORDS);
        self.said.drain(..surplus);
    }

    async fn kill(&mut self) {
        let _ = self.child.kill().await;
    }

    /// Passes on orders until the connection ends, or is to end.
    async fn drive(
        mut self,
        target: Arc<Target>,
        socket: PathBuf,
        mut orders: mpsc::UnboundedReceiver<Order>,
        down: watch::Sender<Option<String>>,
    ) {
        self.said.clear();
        let mut beat = tokio::time::interval(BEAT);
        let (mut out, mut err) = (vec![0; 4096], vec![0; 4096]);
        let mut listening = true;
        let mut closing: Option<Instant> = None;
        loop {
            tokio::select! {
                order = orders.recv(), if closing.is_none() => match order {
                    Some(Order::End(pid)) => self.say(&format!("end {pid}\n")).await,
                    Some(Order::Kill(pid)) => self.say(&format!("kill {pid}\n")).await,
                    Some(Order::Quit) | None => {
                        self.say("quit\n").await;
                        self.stdin = None;
                        closing = Some(Instant::now() + FAREWELL);
                    }
                },
                _ = beat.tick(), if closing.is_none() => self.say("alive\n").await,
                // The holder's end is the connection's, though `ssh` may wait for other sessions.
                read = self.stdout.read(&mut out) => match read {
                    Ok(1..) => {}
                    _ => break,
                },
                read = self.stderr.read(&mut err), if listening => match read {
                    Ok(length @ 1..) => self.hear(&err[..length]),
                    _ => listening = false,
                },
                () = until(closing) => break,
            }
        }
        while let Ok(Ok(length @ 1..)) = timeout(GONE / 4, self.stderr.read(&mut err)).await {
            self.hear(&err[..length]);
        }
        let status = timeout(GONE, self.child.wait()).await.ok().and_then(Result::ok);
        if status.is_none() {
            self.kill().await;
        }
        let _ = std::fs::remove_file(&socket);
        let name = target.name();
        let text = String::from_utf8_lossy(&self.said);
        let last = text.lines().map(str::trim).rfind(|line| !line.is_empty());
        let reason = match (closing, status.and_then(|status| status.code()), last) {
            (Some(_), ..) => format!("the connection to {name} was closed"),
            (None, Some(255), Some(last)) => format!("the connection to {name} was lost: {last}"),
            (None, Some(255), None) => format!("the connection to {name} was lost"),
            (None, ..) => format!("the run's own process on {name} was ended from outside"),
        };
        down.send_replace(Some(reason));
    }

    async fn say(&mut self, line: &str) {
        if let Some(stdin) = &mut self.stdin
            && let Err(error) = stdin.write_all(line.as_bytes()).await
        {
            tracing::debug!(%error, "the holder of a connection hears nothing any more");
        }
    }
}

impl About {
    fn parse(lines: &str, target: &Target) -> Result<Self, String> {
        let mut about = Self { cpus: 1, ..Self::default() };
        for line in lines.lines() {
            match line.split_once(' ') {
                Some(("dir", dir)) => about.dir = dir.to_owned(),
                Some(("cpus", cpus)) => about.cpus = cpus.parse().unwrap_or(1).max(1),
                Some(("views", how)) => about.views = Some(how.to_owned()),
                Some(("user", numbers)) => {
                    let mut numbers = numbers.split(' ').map(|number| number.parse().unwrap_or(0));
                    about.uid = numbers.next().unwrap_or(0);
                    about.gid = numbers.next().unwrap_or(0);
                }
                None if line == "locks" => about.locks = true,
                _ => {}
            }
        }
        if about.dir.starts_with('/') {
            Ok(about)
        } else {
            Err(format!("{} has no home directory; name an absolute path (`workdir` in [provider])", target.name()))
        }
    }
}

/// Waits until `alarm`; for ever when there is none.
pub(super) async fn until(alarm: Option<Instant>) {
    match alarm {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_below_the_home_unless_they_are_absolute() {
        let dir = |workdir: Option<&str>| {
            let workdir = workdir.map(str::to_owned);
            Place { workdir, project: String::new(), run: String::new(), tidy: true }.assignment()
        };
        assert_eq!(dir(None), "dir=${XDG_CACHE_HOME:-$HOME/.cache}/offload");
        assert_eq!(dir(Some("~/a b/")), "dir=$HOME/'a b'");
        assert_eq!(dir(Some("~")), "dir=$HOME");
        assert_eq!(dir(Some("/scratch/")), "dir=/scratch");
        assert_eq!(dir(Some("cache")), "dir=$HOME/cache");
    }

    #[test]
    fn the_bootstrap_runs_what_it_reads_up_to_its_end() {
        use std::io::Write as _;
        let nonce = random::word();
        for (input, expected) in [
            (format!("printf '<%s>' 'a\nb'\\\\\n{}\ncat\nrest", end(&nonce)), "<a\nb\\>"),
            // Half a script is not run.
            ("echo half\n".to_owned(), ""),
        ] {
            let mut shell = std::process::Command::new("sh");
            shell.arg("-c").arg(bootstrap(&nonce)).stdin(std::process::Stdio::piped());
            let mut shell = shell.stdout(std::process::Stdio::piped()).spawn().unwrap();
            shell.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(shell.wait_with_output().unwrap().stdout).unwrap(), expected);
        }
    }

    #[test]
    fn what_says_whose_a_directory_is_goes_with_the_directory_itself() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run-1");
        std::fs::create_dir_all(run.join("tree/locked")).unwrap();
        std::fs::write(run.join("mark"), "").unwrap();
        std::fs::write(run.join("pid"), "").unwrap();
        let script = format!("{}\nremove() {{ echo \"${{1##*/}}\"; }}\nremove_run \"$1\"", include_str!("dead.sh"));
        let mut shell = std::process::Command::new("sh");
        let removed = shell.args(["-c", &script, "sh"]).arg(&run).output().unwrap();
        assert_eq!(String::from_utf8(removed.stdout).unwrap(), "pid\ntree\nrun-1\n");
    }
}
