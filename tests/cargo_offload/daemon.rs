//! A Docker daemon of a test's own, for what would disturb others.

use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::docker_support::image;
use crate::support::wait_until;

/// In a network of its own, too: two daemons would fight about one.
pub struct Daemon {
    dir: tempfile::TempDir,
    options: Vec<String>,
    process: Option<Child>,
}

impl Daemon {
    /// Starts one that has the image of the tests.
    pub fn with_image(options: Vec<String>) -> Self {
        let mut daemon = Self { dir: tempfile::tempdir().unwrap(), options, process: None };
        daemon.start();
        let loaded = daemon.docker(&format!("docker save {} | docker --host $OWN_DOCKER_HOST load", image().unwrap()));
        assert!(loaded.status.success(), "{loaded:?}");
        daemon
    }

    /// What is `DOCKER_HOST` for those who use it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.dir.path().join("docker.sock").display())
    }

    /// The process, whose network namespace is the daemon's.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    /// Runs a line of shell in which it is at `$OWN_DOCKER_HOST`.
    pub fn docker(&self, line: &str) -> Output {
        Command::new("sh").arg("-c").arg(line).env("OWN_DOCKER_HOST", self.host()).output().unwrap()
    }

    /// All containers that it knows.
    #[track_caller]
    pub fn containers(&self) -> String {
        let listed = self.docker("docker --host $OWN_DOCKER_HOST ps --all --quiet");
        assert!(listed.status.success(), "{listed:?}");
        String::from_utf8(listed.stdout).unwrap()
    }

    pub fn start(&mut self) {
        let path = |name: &str| self.dir.path().join(name);
        let mut dockerd = Command::new("unshare");
        let begin = "ip link set lo up; exec dockerd \"$@\"";
        dockerd.args(["--net", "sh", "-c", begin, "dockerd", "--host", &self.host()]).args(&self.options);
        for (option, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            dockerd.arg(option).arg(path(name));
        }
        let log = std::fs::File::create(path("log")).unwrap();
        let mut process = dockerd.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        wait_until("the daemon answers", || {
            let log = || std::fs::read_to_string(path("log")).unwrap();
            assert!(process.try_wait().unwrap().is_none(), "dockerd ended: {}", log());
            self.docker("docker --host $OWN_DOCKER_HOST version").status.success()
        });
        self.process = Some(process);
    }

    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = kill_process(Pid::from_child(&process), Signal::TERM);
            process.wait().unwrap();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}
