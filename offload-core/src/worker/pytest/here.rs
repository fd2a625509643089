//! The template process of this machine and its workers.
//!
//! One task owns the process and the socket on which it and its forks connect.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::net::UnixListener as StdListener;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Pid;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::directory::RunDirectory;
use super::host::{FromTemplate, Order};
use super::link::Link;
use super::message::Outgoing;
use super::options::PytestOptions;
use super::output;
use super::program;
use super::roll::{Roll, TAIL_LINES, lacks_pytest, next};
use super::site::{Site, kill_group};
use super::template::Template;
use crate::framework::DiscoverySink;
use crate::random;

/// How long the template may take to end when it is told to.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// How often it is tried again to let a process in for which there is no room, and for how long if nobody else is there.
const SCARCITY_PAUSE: Duration = Duration::from_millis(100);
const SCARCITY_PATIENCE: Duration = Duration::from_secs(10);
/// From when on others do the work of processes that cannot be let in.
const TURNED_AWAY_AFTER: Duration = Duration::from_millis(500);

/// Where the template and its workers connect, and what they say to be let in.
#[derive(Debug)]
pub(super) struct Meeting {
    pub dir: RunDirectory,
    listener: StdListener,
    pub nonce: String,
}

impl Meeting {
    pub fn new() -> io::Result<Self> {
        let dir = RunDirectory::new()?;
        dir.remove_others();
        let listener = StdListener::bind(dir.socket())?;
        listener.set_nonblocking(true)?;
        Ok(Self { dir, listener, nonce: random::word() })
    }
}

/// Owns the template of this machine and the socket.
pub(super) struct Here {
    options: PytestOptions,
    /// Removed last.
    dir: RunDirectory,
    output: PathBuf,
    listener: UnixListener,
    process: Template,
    /// The template's, as long as its end has not been seen.
    group: Option<Pid>,
    /// How the process ended, where the template itself, its child, is still connected.
    bereft: Option<io::Result<ExitStatus>>,
    inbox: mpsc::UnboundedReceiver<Order>,
    roll: Roll,
}

impl Here {
    /// Starts the template, or takes over the one that is there. What it says comes out of the receiver.
    pub fn start(
        options: PytestOptions,
        Meeting { dir, listener, nonce }: Meeting,
        inbox: mpsc::UnboundedReceiver<Order>,
        sink: DiscoverySink,
    ) -> io::Result<(Self, mpsc::UnboundedReceiver<FromTemplate>)> {
        let process = match options.adopted {
            Some(pid) => Template::adopt(pid)?,
            None => {
                if options.script.as_os_str().is_empty() {
                    program::write(dir.path())?;
                }
                Template::start(&options, &dir, &nonce, &BTreeMap::new())?
            }
        };
        let (roll, from_template) = Roll::new(Site::Here, nonce, dir.path().to_owned(), sink);
        let here = Self {
            options,
            output: dir.output(),
            dir,
            listener: UnixListener::from_std(listener)?,
            group: process.group(),
            process,
            bereft: None,
            inbox,
            roll,
        };
        Ok((here, from_template))
    }

    pub async fn run(mut self) {
        // Since when nothing can be accepted.
        let mut scarce: Option<Instant> = None;
        let now = loop {
            let pause = async {
                if scarce.is_some() {
                    tokio::time::sleep(SCARCITY_PAUSE).await;
                }
                self.listener.accept().await
            };
            tokio::select! {
                accepted = pause => match accepted {
                    Ok((stream, _)) => {
                        scarce = None;
                        self.roll.greet(Link::new(stream));
                    }
                    Err(error) => scarce = Some(self.on_scarcity(&error, scarce)),
                },
                step = self.roll.step(&mut self.inbox) => if let ControlFlow::Break(now) = step {
                    break now;
                },
                status = self.process.wait(), if self.is_running() => self.on_exit(status),
            }
            if self.roll.link.is_none()
                && let Some(status) = self.bereft.take()
            {
                self.on_end(status);
            }
        };
        self.end(now).await;
        drop(self.dir);
    }

    /// A process has connected and cannot be let in, for lack of file descriptors or memory. It waits until another one has
    /// ended; if there is none, there will never be room.
    fn on_scarcity(&mut self, error: &io::Error, since: Option<Instant>) -> Instant {
        let since = since.unwrap_or_else(|| {
            self.roll.warn(format!(
                "There is no room for all workers ({error}), so fewer run at once. A higher limit (`ulimit -n`) or fewer \
                 sandboxes (--offload-parallel) avoid that."
            ));
            Instant::now()
        });
        if since.elapsed() >= TURNED_AWAY_AFTER && self.roll.has_workers() {
            self.roll.turn_away(&error.to_string());
        }
        if since.elapsed() >= SCARCITY_PATIENCE && !self.roll.has_workers() {
            let text = format!("No worker can connect: {error}. Raise the limit, as with `ulimit -n 256`.");
            self.roll.end("there is no room for a connection", FromTemplate::Ended(text));
        }
        since
    }

    /// Whether the end of the process has not been seen.
    fn is_running(&self) -> bool {
        self.group.is_some() && self.bereft.is_none()
    }

    /// The process has ended. The template need not have: it may have been the keeper, its parent, that was killed.
    fn on_exit(&mut self, status: io::Result<ExitStatus>) {
        // What it said last may still be there to be read.
        if self.roll.hear_what_arrived() {
            self.bereft = Some(status);
        } else {
            self.on_end(status);
        }
    }

    /// The template is gone, whatever the reason.
    fn on_end(&mut self, status: io::Result<ExitStatus>) {
        self.group = None;
        if std::mem::take(&mut self.roll.replace) {
            match Template::start(&self.options, &self.dir, self.roll.nonce(), &self.roll.environ) {
                Ok(process) => {
                    self.group = process.group();
                    self.process = process;
                }
                Err(error) => {
                    let python = self.options.python.display();
                    let text = format!("Another template process cannot be started with {python}: {error}");
                    let _ = self.roll.template.send(FromTemplate::Ended(text));
                }
            }
            return;
        }
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let words = self.last_words();
        let text = if self.options.alone && lacks_pytest(&words) {
            format!(
                "The Python that `command` in [framework] starts has no pytest: install it there, or let `command` name \
                 another one (\"/opt/venv/bin/python -m pytest\").{words}"
            )
        } else {
            format!("The template process of pytest ended ({how}).{words}")
        };
        self.roll.end(&format!("the template process ended ({how})"), FromTemplate::Ended(text));
    }

    fn last_words(&self) -> String {
        match output::tail(&self.output, 0, TAIL_LINES) {
            words if words.is_empty() => words,
            words => format!("\nThe last that it wrote:\n{words}"),
        }
    }

    async fn end(&mut self, now: bool) {
        if let Some(link) = &mut self.roll.link
            && !now
        {
            link.send(&Outgoing::Shutdown);
            let patience = tokio::time::sleep(SHUTDOWN_PATIENCE);
            tokio::pin!(patience);
            loop {
                tokio::select! {
                    said = next(&mut self.roll.link) => self.roll.on_template(said),
                    _ = self.process.wait(), if self.is_running() => {
                        self.group = None;
                        break;
                    }
                    () = &mut patience => break,
                }
                if self.bereft.is_some() && self.roll.link.is_none() {
                    self.group = None;
                    break;
                }
            }
        }
        self.roll.kill_workers();
        if let Some(group) = self.group {
            kill_group(group);
            if self.bereft.is_none() {
                let _ = self.process.wait().await;
            }
        }
    }
}
