//! Hosts for the tests: real servers on loopback, each with keys, a configuration and a port of its own, that run as
//! whoever runs the tests. Nothing of the user's own `ssh` is read or written.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A server. Killed at the end, with the connections that it serves.
pub struct Sshd {
    pub dir: tempfile::TempDir,
    pub port: u16,
    process: Option<Child>,
}

impl Sshd {
    /// Starts one; `None`, with a word about it, where that cannot be had and `OFFLOAD_TEST_REQUIRE` does not demand it.
    pub fn start() -> Option<Self> {
        Self::with(|_| String::new())
    }

    /// As [`Self::start`], with further lines of configuration.
    pub fn with(lines: impl FnOnce(&Self) -> String) -> Option<Self> {
        let programs = ["/usr/sbin/sshd", "/usr/bin/ssh", "/usr/bin/ssh-keygen"];
        if let Some(missing) = programs.iter().find(|program| !Path::new(program).exists()) {
            let required = std::env::var("OFFLOAD_TEST_REQUIRE").unwrap_or_default();
            assert!(!required.split(' ').any(|word| word == "ssh"), "there is no {missing}, and it is required");
            eprintln!("skipped: there is no {missing} (apt-get install openssh-server)");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("sshd").tempdir_in("/tmp").unwrap();
        let mut sshd = Self { dir, port: 0, process: None };
        sshd.make_key("host_key");
        sshd.make_key("user_key");
        std::fs::copy(sshd.path("user_key.pub"), sshd.path("authorized_keys")).unwrap();
        let lines = lines(&sshd);
        let user = run("id", &["-un"]);
        let key = std::fs::read_to_string(sshd.path("host_key.pub")).unwrap();
        loop {
            sshd.port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let config = format!(
                // With this, bash leaves out what the user's own ~/.bashrc does.
                "SetEnv SHLVL=2\nListenAddress 127.0.0.1:{}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\n\
                 StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n\
                 MaxStartups 100\nPrintMotd no\nLogLevel ERROR\n{lines}\n",
                sshd.port,
                sshd.path("host_key").display(),
                sshd.path("authorized_keys").display(),
            );
            std::fs::write(sshd.path("sshd_config"), config).unwrap();
            if sshd.launch() {
                break;
            }
        }
        std::fs::write(sshd.path("known_hosts"), format!("[127.0.0.1]:{} {key}", sshd.port)).unwrap();
        let config = format!(
            "Host *\n User {user}\n IdentityFile {}\n IdentitiesOnly yes\n UserKnownHostsFile {}\n \
             GlobalKnownHostsFile /dev/null\n IdentityAgent none\n",
            sshd.path("user_key").display(),
            sshd.path("known_hosts").display(),
        );
        std::fs::write(sshd.path("ssh_config"), config).unwrap();
        std::fs::create_dir(sshd.path("bin")).unwrap();
        let script = format!("#!/bin/sh\nexec /usr/bin/ssh -F {} \"$@\"\n", sshd.path("ssh_config").display());
        sshd.script("bin/ssh", &script);
        Some(sshd)
    }

    /// One whose users have `shell`, a script that runs `$SSH_ORIGINAL_COMMAND`, as their login shell.
    pub fn with_shell(shell: &str) -> Option<Self> {
        Self::with(|sshd| format!("ForceCommand {}", sshd.script("login", &format!("#!/bin/sh\n{shell}\n")).display()))
    }

    /// One on which everything is done by a user who has few rights (where the tests run as root), after `before`.
    pub fn with_plain_user(before: &str) -> Option<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        if !rustix::process::getuid().is_root() {
            return Self::with_shell(&format!("{before}\nexec sh -c \"$SSH_ORIGINAL_COMMAND\""));
        }
        Self::with(|sshd| {
            std::fs::set_permissions(sshd.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
            for name in ["home", "work"] {
                std::fs::create_dir(sshd.path(name)).unwrap();
                std::os::unix::fs::chown(sshd.path(name), Some(65534), Some(65534)).unwrap();
            }
            let text = format!(
                "#!/bin/sh\n{before}\nexport HOME={}\nexec setpriv --reuid 65534 --regid 65534 --clear-groups \
                 sh -c \"$SSH_ORIGINAL_COMMAND\"\n",
                sshd.path("home").display()
            );
            format!("ForceCommand {}", sshd.script("login", &text).display())
        })
    }

    /// Another server that the `ssh` of `self` knows, too.
    pub fn second(&self) -> Self {
        let second = Self::start().unwrap();
        let known = |sshd: &Self| std::fs::read_to_string(sshd.path("known_hosts")).unwrap();
        std::fs::write(self.path("known_hosts"), known(self) + &known(&second)).unwrap();
        std::fs::copy(self.path("authorized_keys"), second.path("authorized_keys")).unwrap();
        second
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The program to be used as `ssh`.
    pub fn ssh(&self) -> PathBuf {
        self.path("bin/ssh")
    }

    /// `PATH` with that first.
    pub fn search_path(&self) -> String {
        format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap())
    }

    /// Where runs have their files on this host.
    pub fn workdir(&self) -> PathBuf {
        self.path("work")
    }

    /// A program with this text.
    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Gives the host another key.
    pub fn change_key(&mut self) {
        self.stop();
        std::fs::remove_file(self.path("host_key")).unwrap();
        self.make_key("host_key");
        assert!(self.launch());
    }

    /// Everything below the directory for runs, as paths relative to it.
    pub fn left(&self) -> Vec<String> {
        let output = Command::new("find").arg(self.workdir()).args(["-mindepth", "1", "-printf", "%P\n"]).output();
        String::from_utf8_lossy(&output.unwrap().stdout).lines().map(str::to_owned).collect()
    }

    /// The directories of runs.
    pub fn runs(&self) -> Vec<String> {
        let run = |path: &String| {
            path.split('/').nth(1).is_some_and(|name| name.starts_with("run-") || name.starts_with("new-"))
        };
        self.left().into_iter().filter(run).collect()
    }

    /// The processes that serve connections.
    pub fn connections(&self) -> Vec<i32> {
        let Some(process) = &self.process else { return Vec::new() };
        let pids = Command::new("ps").args(["-o", "pid=", "--ppid", &process.id().to_string()]).output().unwrap();
        String::from_utf8_lossy(&pids.stdout).split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }

    /// Kills the server and the connections that it serves.
    pub fn stop(&mut self) {
        for pid in self.connections() {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            // As root, the one that is left of a connection; otherwise its child is.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Starts the server again, as after a reboot.
    pub fn restart(&mut self) {
        self.stop();
        assert!(self.launch());
    }

    fn make_key(&self, name: &str) {
        let path = self.path(name);
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", path.to_str().unwrap()]);
    }

    /// Returns whether the server answers; it does not where somebody else has taken the port.
    fn launch(&mut self) -> bool {
        let _ = std::fs::create_dir_all("/run/sshd");
        let log = std::fs::File::create(self.path("log")).unwrap();
        let mut sshd = Command::new("/usr/sbin/sshd");
        sshd.arg("-D").arg("-e").arg("-f").arg(self.path("sshd_config"));
        let mut process = sshd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        loop {
            if process.try_wait().unwrap().is_some() {
                let log = std::fs::read_to_string(self.path("log")).unwrap();
                assert!(log.contains("in use"), "sshd does not start: {log}");
                return false;
            }
            let mut word = [0; 4];
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port))
                && stream.read_exact(&mut word).is_ok()
                && &word == b"SSH-"
            {
                self.process = Some(process);
                return true;
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a program prints.
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
