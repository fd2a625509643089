//! The template's process: one that is started here, or a fork of the controller's that is taken over.
//!
//! A fresh Python takes a tenth of a second and more to load pytest. Where the controller is a pytest, it forks before
//! it has loaded anything of the project's; that fork waits to be told where to connect, and is the template. It can
//! turn out to be of no use, because workers have to be started fresh; then a fresh template takes its place.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, WaitOptions, waitpid};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::directory::RunDirectory;
use super::options::PytestOptions;
use super::program;
use super::site::kill_group;

/// Tells a template that it takes the place of another one, with what had changed by then.
const STARTED_AGAIN: &str = "OFFLOAD_TEMPLATE_AGAIN";

/// The template's process, a child of this one.
#[derive(Debug)]
pub(super) enum Template {
    Started(Child),
    Adopted(Adopted),
}

impl Template {
    /// Starts a fresh one, which connects to the socket in `dir` and says `nonce`. `environ`: variables that are set or removed.
    pub fn start(
        options: &PytestOptions,
        dir: &RunDirectory,
        nonce: &str,
        environ: &BTreeMap<OsString, Option<OsString>>,
    ) -> io::Result<Self> {
        let mut command = Command::new(&options.python);
        if let Some(environment) = &options.environment {
            command.env_clear().envs(environment.iter().map(|(name, value)| (name, value)));
        }
        for (name, value) in environ {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if !environ.is_empty() {
            command.env(STARTED_AGAIN, "1");
        }
        let own = Some(options.script.clone()).filter(|script| !script.as_os_str().is_empty());
        command
            .args(&options.python_args)
            .arg("-u")
            .arg(own.unwrap_or_else(|| program::path(dir.path())))
            .arg(dir.socket())
            .arg(nonce)
            .current_dir(&options.cwd)
            .envs(&options.env)
            .stdin(Stdio::null())
            // A Ctrl-C of the terminal is for this process, which tells the others.
            .process_group(0)
            .kill_on_drop(true);
        if !options.inherit_output {
            let file = OpenOptions::new().create(true).append(true).open(dir.output())?;
            command.stdout(file.try_clone()?).stderr(file);
        }
        command.spawn().map(Self::Started)
    }

    /// Takes over the child `pid`.
    pub fn adopt(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        // A thread, because nothing else that waits for a process is safe to use and misses nothing.
        let ended = tokio::task::spawn_blocking(move || match waitpid(Some(pid), WaitOptions::empty())? {
            Some((_, status)) => Ok(ExitStatus::from_raw(status.as_raw())),
            None => Err(io::ErrorKind::WouldBlock.into()),
        });
        Ok(Self::Adopted(Adopted { pid, ended }))
    }

    /// Its process group, as long as its end has not been seen.
    pub fn group(&self) -> Option<Pid> {
        match self {
            Self::Started(child) => child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)),
            Self::Adopted(adopted) => Some(adopted.pid),
        }
    }

    /// Waits for its end. Nothing is lost when this is dropped before.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        match self {
            Self::Started(child) => child.wait().await,
            Self::Adopted(adopted) => adopted.wait().await,
        }
    }
}

#[derive(Debug)]
pub(super) struct Adopted {
    pid: Pid,
    /// How it ended.
    ended: JoinHandle<io::Result<ExitStatus>>,
}

impl Adopted {
    async fn wait(&mut self) -> io::Result<ExitStatus> {
        (&mut self.ended).await.map_err(io::Error::other).flatten()
    }
}

impl Drop for Adopted {
    fn drop(&mut self) {
        // Its number is its own for as long as nobody has heard of its end.
        if !self.ended.is_finished() {
            kill_group(self.pid);
        }
    }
}
