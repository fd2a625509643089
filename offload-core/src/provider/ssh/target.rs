//! One host as the configuration names it, how `ssh` is called for it, and what its complaints mean.
//!
//! It is the system's `ssh` with the user's own configuration: keys, agents, jumps and aliases are as on the command
//! line. What is set here keeps it from asking questions, from forwarding what a run has no use for, and from trusting
//! hosts that nobody has checked.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;

use crate::config::SshHostConfig;
use crate::connector::tail_of;

/// How long a connection may take, in seconds; authentication comes on top.
const CONNECT_SECS: u32 = 10;

/// How often `ssh` asks whether the host is still there, in seconds, and how often it does so in vain: a cut line is
/// given up after 30 s.
const ALIVE_SECS: u32 = 5;
const ALIVE_COUNT: u32 = 6;

/// How long the remaining options may take to be found out.
const PATIENCE: Duration = Duration::from_secs(20);

/// A host.
#[derive(Debug, Clone)]
pub(in crate::provider) struct Target {
    pub(super) config: SshHostConfig,
    /// The program.
    ssh: PathBuf,
    options: Vec<String>,
    /// That of this process, as it was when the target was made: in a Python that runs tests, others change it at any time,
    /// and a process that is started meanwhile is given what is no longer there.
    environment: Arc<[(OsString, OsString)]>,
}

impl Target {
    /// `directory`: below which a relative `identity` is.
    pub(in crate::provider) fn new(config: &SshHostConfig, directory: &Path, ssh: &Path) -> Self {
        let mut options: Vec<String> = Vec::new();
        let mut option = |text: &str| options.extend(["-o".to_owned(), text.to_owned()]);
        for fixed in [
            "BatchMode=yes",
            "ClearAllForwardings=yes",
            "ForwardX11=no",
            "PermitLocalCommand=no",
            "RemoteCommand=none",
            "RequestTTY=no",
            "ControlPersist=no",
        ] {
            option(fixed);
        }
        option(&format!("ConnectTimeout={CONNECT_SECS}"));
        option(&format!("ServerAliveInterval={ALIVE_SECS}"));
        option(&format!("ServerAliveCountMax={ALIVE_COUNT}"));
        if let Some(identity) = &config.identity {
            option("IdentitiesOnly=yes");
            let path = if identity.starts_with("~") { identity.clone() } else { directory.join(identity) };
            options.extend(["-i".to_owned(), path.to_string_lossy().into_owned()]);
        }
        if let Some(user) = &config.user {
            options.extend(["-l".to_owned(), user.clone()]);
        }
        if let Some(port) = config.port {
            options.extend(["-p".to_owned(), port.to_string()]);
        }
        Self { config: config.clone(), ssh: ssh.to_owned(), options, environment: std::env::vars_os().collect() }
    }

    /// How messages call it.
    pub(in crate::provider) fn name(&self) -> String {
        let user = self.config.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let port = self.config.port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{user}{}{port}", self.config.host)
    }

    /// How a user reaches it by hand.
    fn by_hand(&self) -> String {
        let user = self.config.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let port = self.config.port.map(|port| format!("-p {port} ")).unwrap_or_default();
        format!("ssh {port}{user}{}", self.config.host)
    }

    /// `ssh` with everything but what to run.
    pub(super) fn ssh(&self) -> Command {
        self.ssh_with(&[])
    }

    fn ssh_with(&self, first: &[&str]) -> Command {
        let mut ssh = Command::new(&self.ssh);
        ssh.args(first).env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        ssh.args(&self.options).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C is for us to hear; what it means for others, they are told.
        ssh.process_group(0);
        ssh
    }

    /// `ssh` that goes through the connection of another one.
    pub(super) fn through(&self, socket: &Path) -> Command {
        let mut ssh = self.ssh();
        ssh.arg("-S").arg(socket).args(["-o", "ControlMaster=no", "-o", "LogLevel=ERROR", "-T"]);
        // Never on a connection of its own, when the other is gone.
        ssh.args(["-o", "ProxyCommand=false"]);
        ssh
    }

    /// `ssh` on a connection of its own that brings the socket `there` of the host here, with everything but what to run.
    pub(in crate::provider) fn forwarding(&self, here: &Path, there: &str) -> Command {
        // What comes first counts.
        let mut ssh = self.ssh_with(&["-o", "ClearAllForwardings=no"]);
        let mut forward = here.as_os_str().to_owned();
        forward.push(":");
        forward.push(there);
        ssh.args(["-S", "none", "-o", "ControlMaster=no", "-o", "ExitOnForwardFailure=yes", "-T", "-L"]).arg(forward);
        ssh.arg("--").arg(&self.config.host);
        ssh
    }

    /// Sees to it that host keys are checked although the user's configuration says otherwise.
    ///
    /// # Errors
    ///
    /// A sentence when `ssh` cannot be started or does not understand its configuration.
    pub(in crate::provider) async fn check_configuration(&mut self) -> Result<(), String> {
        let mut ssh = self.ssh();
        ssh.arg("-G").arg("--").arg(&self.config.host).stdin(Stdio::null()).kill_on_drop(true);
        let asked = tokio::time::timeout(PATIENCE, ssh.output()).await;
        let output = asked
            .map_err(|_| "`ssh -G` does not come to an end; see what its configuration runs".to_owned())?
            .map_err(|error| not_started(&error))?;
        if !output.status.success() {
            return Err(format!("`ssh` refuses its configuration:{}", tail_of(&output.stderr, 3)));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let checking = text.lines().find_map(|line| line.strip_prefix("stricthostkeychecking "));
        if matches!(checking, Some("no" | "off" | "false")) {
            self.options.extend(["-o".to_owned(), "StrictHostKeyChecking=yes".to_owned()]);
        }
        Ok(())
    }

    /// What it means that no connection came about, after `ssh` said `stderr`.
    pub(in crate::provider) fn explain(&self, stderr: &[u8]) -> String {
        let text = String::from_utf8_lossy(stderr);
        let (name, by_hand, host) = (self.name(), self.by_hand(), &self.config.host);
        let said = tail_of(stderr, 3);
        let last = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
        if text.contains("REMOTE HOST IDENTIFICATION HAS CHANGED") {
            return format!(
                "the host key of {name} is not the one that is known here: the host was set up anew, or somebody is \
                 in between; if the change is expected, forget the old key with `ssh-keygen -R {host}` and connect once \
                 by hand (`{by_hand}`)"
            );
        }
        if text.contains("Host key verification failed") {
            return format!(
                "the host key of {name} is not known here; connect once by hand (`{by_hand}`) and compare its \
                 fingerprint"
            );
        }
        if text.contains("Permission denied") || text.contains("Too many authentication failures") {
            return format!(
                "{name} refuses to let us in ({last}); it has to work without a question (`{by_hand}`): load the key \
                 into the agent, name it (`identity` in [provider]), or add it to the host's authorized_keys"
            );
        }
        let unreachable = [
            "Could not resolve hostname",
            "Connection refused",
            "timed out",
            "No route to host",
            "Network is unreachable",
            "Connection reset",
            "Connection closed",
            "banner exchange",
        ];
        if unreachable.iter().any(|sign| text.contains(sign)) {
            return format!("{name} cannot be reached: {last}");
        }
        format!("`ssh` does not connect to {name}:{said}")
    }
}

/// What it means that `ssh` did not start.
pub(in crate::provider) fn not_started(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            "there is no program `ssh` here; install the OpenSSH client (`apt-get install openssh-client`)".to_owned()
        }
        _ => format!("`ssh` cannot be started: {error}"),
    }
}

/// The directory of the sockets on which `ssh` shares its connections: short, because the name of a socket is, and
/// nobody else's. Others can make a directory of any name in `/tmp`, so there are further names.
pub(in crate::provider) fn socket_directory() -> Result<PathBuf, String> {
    let uid = rustix::process::geteuid().as_raw();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let runtime = runtime.filter(|dir| dir.as_os_str().len() < LONGEST_RUNTIME_DIR && dir.is_dir());
    let first = runtime.map(|dir| dir.join("offload-ssh"));
    let others = (0..SOCKET_DIRECTORIES).map(|number| match number {
        0 => format!("/tmp/offload-ssh-{uid}"),
        _ => format!("/tmp/offload-ssh-{uid}-{number}"),
    });
    first_usable(first.into_iter().chain(others.map(PathBuf::from)), uid)
}

/// The longest path of a directory in which a socket's path is not too long.
const LONGEST_RUNTIME_DIR: usize = 40;

/// How many names in `/tmp` are tried.
const SOCKET_DIRECTORIES: usize = 20;

/// The first directory that can be made, or is there and nobody else's.
fn first_usable(candidates: impl Iterator<Item = PathBuf>, uid: u32) -> Result<PathBuf, String> {
    let mut problem = String::new();
    for directory in candidates {
        match make_private(&directory, uid) {
            Ok(()) => {
                remove_stale(&directory);
                return Ok(directory);
            }
            // The first name is the one that matters to whoever reads this.
            Err(reason) if problem.is_empty() => problem = format!("{}: {reason}", directory.display()),
            Err(_) => {}
        }
    }
    Err(format!("there is no directory for the sockets of `ssh`; the first that was tried is {problem}"))
}

/// Makes a directory that is this user's alone, unless there is one.
fn make_private(directory: &Path, uid: u32) -> Result<(), String> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
    match std::fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error.to_string()),
        _ => {}
    }
    let metadata = directory.symlink_metadata().map_err(|error| error.to_string())?;
    if !metadata.is_dir() || metadata.uid() != uid || metadata.permissions().mode() & 0o077 != 0 {
        return Err("it belongs to somebody else or is open to others; remove it".to_owned());
    }
    Ok(())
}

/// Whether a socket of ours has this name: `docker-`, where it is a daemon's, the number of a process, and a random word.
fn is_socket_name(name: &str) -> bool {
    let name = name.strip_prefix("docker-").unwrap_or(name);
    name.split_once('-')
        .is_some_and(|(pid, word)| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()) && word.len() >= 8)
}

/// Removes sockets of an `ssh` that was killed before it could do so.
fn remove_stale(directory: &Path) {
    use std::os::unix::fs::FileTypeExt as _;
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        // Whoever connects to a file is refused, too.
        let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        if !is_socket || !entry.file_name().to_str().is_some_and(is_socket_name) {
            continue;
        }
        // One that is new may be about to be listened to.
        let age = entry.metadata().ok().and_then(|metadata| metadata.modified().ok()?.elapsed().ok());
        if age.is_none_or(|age| age < PATIENCE) {
            continue;
        }
        let refused = std::os::unix::net::UnixStream::connect(entry.path());
        if refused.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        let config = SshHostConfig {
            host: "build1".to_owned(),
            user: Some("ci".to_owned()),
            port: Some(2222),
            identity: Some("keys/id".into()),
            ..SshHostConfig::default()
        };
        Target::new(&config, Path::new("/project"), Path::new("ssh"))
    }

    #[test]
    fn a_directory_that_somebody_else_has_taken_is_left_to_them() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let (open, file, link) = (dir.path().join("open"), dir.path().join("file"), dir.path().join("link"));
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        let taken = || [open.clone(), file.clone(), link.clone()].into_iter();
        let (free, next) = (dir.path().join("free"), dir.path().join("next"));
        for _ in 0..2 {
            assert_eq!(first_usable(taken().chain([free.clone(), next.clone()]), uid), Ok(free.clone()));
        }
        assert!(!next.exists());
        assert_eq!(free.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let complaint = first_usable(taken(), uid).unwrap_err();
        assert!(
            complaint.ends_with("open: it belongs to somebody else or is open to others; remove it"),
            "{complaint}"
        );
        assert!(first_usable([free].into_iter(), uid + 1).is_err(), "a directory of another user");
    }

    #[test]
    fn only_sockets_of_ours_to_which_nobody_listens_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let old = std::time::SystemTime::now() - 2 * PATIENCE;
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("17-0123abcd"), "of somebody").unwrap();
        let socket = |name: &str| std::os::unix::net::UnixListener::bind(path(name)).unwrap();
        let alive = socket("18-0123abcd");
        drop((socket("19-0123abcd"), socket("docker-20-0123abcd"), socket("their.sock"), socket("a-0123abcd")));
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            let times = rustix::fs::Timestamps {
                last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 },
                last_modification: rustix::fs::Timespec {
                    tv_sec: old.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs().cast_signed(),
                    tv_nsec: 0,
                },
            };
            rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        drop(socket("21-0123abcd"));
        remove_stale(dir.path());
        let mut left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["17-0123abcd", "18-0123abcd", "21-0123abcd", "a-0123abcd", "their.sock"]);
        drop(alive);
    }

    #[test]
    fn the_environment_is_that_of_the_beginning() {
        let target = target();
        let ssh = target.ssh();
        let given: Vec<_> = ssh.as_std().get_envs().filter_map(|(name, value)| Some((name, value?))).collect();
        assert!(
            given.iter().any(|(name, value)| *name == "PATH" && Some(*value) == std::env::var_os("PATH").as_deref())
        );
        assert_eq!(given.len(), std::env::vars_os().count());
    }

    #[test]
    fn options_are_those_of_the_host() {
        let target = target();
        assert_eq!(target.name(), "ci@build1:2222");
        let command = format!("{:?}", target.ssh().as_std());
        for part in ["BatchMode=yes", r#""-i" "/project/keys/id""#, r#""-l" "ci""#, r#""-p" "2222""#] {
            assert!(command.contains(part), "{command}");
        }
    }

    #[test]
    fn complaints_of_ssh_are_explained() {
        let explained = |said: &str| target().explain(said.as_bytes());
        let cases = [
            (
                "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.\n",
                "ssh-keygen -R build1",
            ),
            (
                "No ED25519 host key is known\nHost key verification failed.\n",
                "is not known here; connect once by hand",
            ),
            ("ci@build1: Permission denied (publickey).\n", "refuses to let us in (ci@build1: Permission denied"),
            ("ssh: connect to host build1 port 2222: Connection refused\n", "cannot be reached: ssh: connect to"),
            ("ssh: Could not resolve hostname build1: x\n", "ci@build1:2222 cannot be reached: ssh: Could not"),
            ("something new\n", "`ssh` does not connect to ci@build1:2222:\n  something new"),
        ];
        for (said, expected) in cases {
            assert!(explained(said).contains(expected), "{}", explained(said));
        }
    }
}
