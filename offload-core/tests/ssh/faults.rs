//! What breaks, and what the user is told.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use offload_core::connector::next_event;
use offload_core::provider::ExecEvent;

use super::commands::{is_running, wait_until};
use super::*;

/// Why no sandbox can be had.
async fn refusal(project: &Project) -> ProviderError {
    project.provider().prepare().await.unwrap_err()
}

#[tokio::test]
async fn a_host_with_another_key_is_not_trusted_whatever_the_configuration_says() {
    let Some(mut sshd) = Sshd::start() else { return };
    sshd.change_key();
    let project = Project::on(sshd);
    for lax in [false, true] {
        if lax {
            let config = project.sshd.path("ssh_config");
            let text = std::fs::read_to_string(&config).unwrap();
            std::fs::write(&config, text + " StrictHostKeyChecking no\n").unwrap();
        }
        let error = refusal(&project).await;
        assert!(matches!(error, ProviderError::Unusable(_)));
        let error = error.to_string();
        assert!(error.starts_with("the host key of 127.0.0.1:"), "{error}");
        assert!(error.contains("is not the one that is known here") && error.contains("`ssh-keygen -R"), "{error}");
    }
}

#[tokio::test]
async fn a_host_that_nobody_knows_is_not_trusted() {
    let Some(project) = Project::new() else { return };
    std::fs::write(project.sshd.path("known_hosts"), "").unwrap();
    let config = project.sshd.path("ssh_config");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.clone() + " StrictHostKeyChecking no\n").unwrap();
    let error = refusal(&project).await.to_string();
    assert!(error.contains("is not known here; connect once by hand (`ssh -p "), "{error}");
    // Who wants new hosts to be trusted once may say so.
    std::fs::write(&config, text + " StrictHostKeyChecking accept-new\n").unwrap();
    let (provider, sandbox) = project.sandbox().await;
    project.ends(provider, sandbox).await;
}

#[tokio::test]
async fn a_host_that_does_not_let_us_in_is_told_without_a_question() {
    let Some(project) = Project::new() else { return };
    std::fs::write(project.sshd.path("authorized_keys"), "").unwrap();
    let error = refusal(&project).await.to_string();
    assert!(error.contains("refuses to let us in (") && error.contains("Permission denied (publickey"), "{error}");
}

#[tokio::test]
async fn a_user_a_port_and_a_key_may_be_named() {
    let Some(project) = Project::new() else { return };
    let config = project.sshd.path("ssh_config");
    let text = std::fs::read_to_string(&config).unwrap();
    let user = text.lines().find_map(|line| line.trim().strip_prefix("User ")).unwrap().to_owned();
    let text: String = text
        .lines()
        .filter(|line| !line.contains("IdentityFile") && !line.contains("User "))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(&config, format!("{text} User nobody-at-all\n Hostname 127.0.0.1\n")).unwrap();
    let project = project.with(|_, ssh| ssh.hosts[0].user = Some(user));
    // Relative to the directory of the run.
    std::fs::copy(project.sshd.path("user_key"), project.root().join("key")).unwrap();
    std::fs::set_permissions(project.root().join("key"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let project = project.with(|_, ssh| ssh.hosts[0].identity = Some("key".into()));
    let (provider, sandbox) = project.sandbox().await;
    assert_eq!(said(&*sandbox, "echo in").await, "in");
    project.ends(provider, sandbox).await;
}

#[tokio::test]
async fn a_login_shell_may_print_a_banner_and_be_any_shell() {
    let banner = "echo Welcome to this host; echo 'do not be alarmed' >&2; printf 'no newline'; exec ";
    let mut shells = vec![format!("{banner} sh -c \"$SSH_ORIGINAL_COMMAND\"")];
    for other in ["/usr/bin/fish", "/bin/bash", "/bin/tcsh", "/bin/zsh"] {
        if Path::new(other).exists() {
            shells.push(format!("{banner} {other} -c \"$SSH_ORIGINAL_COMMAND\""));
        }
    }
    for shell in shells {
        let Some(sshd) = Sshd::with_shell(&shell) else { return };
        let project = Project::on(sshd);
        project.write("x", "1");
        let (provider, sandbox) = project.sandbox().await;
        let output = sh(&*sandbox, "cat x; echo trouble >&2; exit 3").await;
        let streams = (output.stdout.as_slice(), output.stderr.as_slice());
        assert_eq!((output.exit_code, streams), (Some(3), (&b"1"[..], &b"trouble\n"[..])), "{shell}");
        let channel = sandbox.open_channel(&Command::shell("cat")).await.unwrap().unwrap();
        drop(channel.input);
        assert_eq!(collect(channel.output, 1000).await.unwrap().stdout, b"");
        project.ends(provider, sandbox).await;
    }
}

#[tokio::test]
async fn a_login_shell_that_runs_nothing_is_told() {
    let Some(sshd) = Sshd::with_shell("echo This account is currently not available.; exit 1") else { return };
    let error = refusal(&Project::on(sshd)).await.to_string();
    assert!(error.contains("does not run what it is told, or ends at once"), "{error}");
    assert!(error.contains("This account is currently not available."), "{error}");
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_to_is_told() {
    let Some(project) = Project::new() else { return };
    std::fs::write(project.sshd.path("file"), "").unwrap();
    let place = project.sshd.path("file/below");
    let project = project.with(|_, ssh| ssh.hosts[0].workdir = Some(place.to_str().unwrap().to_owned()));
    let error = refusal(&project).await.to_string();
    assert!(error.starts_with("the working directory on 127.0.0.1:"), "{error}");
    assert!(error.contains("name a directory that can be written to (`workdir` in [provider])"), "{error}");
    assert!(error.contains("mkdir: ") && error.contains("Not a directory"), "{error}");
}

/// A small disk, where the tests may mount one.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Option<Self> {
        let place = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        let mounted = mount.args(["-n", "-t", "tmpfs", "-o", "size=1m", "offload-test"]).arg(place.path()).output();
        if !mounted.unwrap().status.success() {
            eprintln!("skipped: a small disk cannot be mounted here");
            return None;
        }
        Some(Self(place))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").args(["-n", "-l"]).arg(self.0.path()).output();
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_other_hosts_serve() {
    let Some(project) = Project::new() else { return };
    let Some(disk) = Disk::new() else { return };
    let small = SshHostConfig { workdir: Some(disk.0.path().to_str().unwrap().to_owned()), ..host(&project.sshd) };
    let project = project.with(|_, ssh| ssh.hosts = vec![small.clone()]);
    project.write("big", &"x".repeat(2 << 20));
    let provider = project.provider();
    let Err(error) = provider.create_sandbox(&SandboxRequest::default()).await else { panic!("there is a sandbox") };
    assert!(matches!(error, ProviderError::Unusable(_)));
    let error = error.to_string();
    assert!(error.starts_with("the disk of 127.0.0.1:") && error.contains("is full (in "), "{error}");
    let roomy = host(&project.sshd);
    let project = project.with(|_, ssh| ssh.hosts = vec![small, roomy]);
    let (provider, sandbox) = project.sandbox().await;
    let warnings = provider.warnings();
    assert!(
        warnings.len() == 1
            && warnings[0].starts_with("The host 127.0.0.1:")
            && warnings[0].contains("is left out: the disk"),
        "{warnings:?}"
    );
    assert_eq!(said(&*sandbox, "wc -c <big").await, (2 << 20).to_string());
    project.ends(provider, sandbox).await;
}

/// A wire between `ssh` and a server: what arrives at its own port goes on to the server's, unless it is cut.
struct Wire {
    port: u16,
    cut: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Wire {
    fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Self { port: listener.local_addr().unwrap().port(), cut: Arc::default(), streams: Arc::default() };
        let (cut, streams) = (Arc::clone(&wire.cut), Arc::clone(&wire.streams));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", server))) else { return };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let cut = Arc::clone(&cut);
                    std::thread::spawn(move || {
                        let mut buffer = [0; 4096];
                        while let Ok(length @ 1..) = from.read(&mut buffer) {
                            // Nothing is lost on a cut wire, as TCP sees to it, and nothing arrives.
                            while cut.load(Ordering::SeqCst) {
                                std::thread::sleep(Duration::from_millis(5));
                            }
                            if to.write_all(&buffer[..length]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                streams.lock().unwrap().extend([client, server]);
            }
        });
        wire
    }

    /// For a moment, or for good.
    fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }

    /// Tears the wire out: both ends hear of it.
    fn tear(&self) {
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A project whose host is at the other end of a wire.
fn on_a_wire() -> Option<(Project, Wire)> {
    let project = Project::new()?;
    let wire = Wire::to(project.sshd.port);
    let known = std::fs::read_to_string(project.sshd.path("known_hosts")).unwrap();
    let of_wire = known.replace(&format!(":{} ", project.sshd.port), &format!(":{} ", wire.port));
    std::fs::write(project.sshd.path("known_hosts"), known + &of_wire).unwrap();
    let port = wire.port;
    Some((project.with(|_, ssh| ssh.hosts[0].port = Some(port)), wire))
}

/// The error with which a command ends.
async fn loss(stream: &mut offload_core::provider::OutputStream) -> String {
    loop {
        match next_event(stream).await {
            Some(Ok(ExecEvent::Exit(code))) => panic!("it ended as if nothing had been: {code:?}"),
            Some(Ok(_)) => {}
            Some(Err(error)) => return error.to_string(),
            None => panic!("it ended without a word"),
        }
    }
}

#[tokio::test]
async fn a_connection_that_breaks_loses_the_sandbox_and_the_host_serves_again() {
    let Some((project, wire)) = on_a_wire() else { return };
    project.write("x", "1");
    let (provider, sandbox) = project.sandbox().await;
    let mut stream = sandbox.exec_stream(&Command::shell("echo begun; sleep 1000")).await.unwrap();
    assert_eq!(next_event(&mut stream).await.unwrap().unwrap(), ExecEvent::Stdout(b"begun\n".to_vec()));
    wire.tear();
    let told = loss(&mut stream).await;
    assert!(told.starts_with(&format!("the connection to 127.0.0.1:{} was lost: ", wire.port)), "{told}");
    assert!(sandbox.exec_stream(&Command::shell("true")).await.is_err());
    sandbox.terminate().await.unwrap();
    // What was there before has gone, with its test.
    let sandbox = provider.create_sandbox(&SandboxRequest::default()).await.unwrap();
    assert_eq!(said(&*sandbox, "cat x").await, "1");
    project.ends(provider, sandbox).await;
}

#[tokio::test]
async fn a_cut_shorter_than_the_limit_is_survived_and_a_longer_one_loses_the_sandbox() {
    let Some((project, wire)) = on_a_wire() else { return };
    let (provider, sandbox) = project.sandbox().await;
    let mut channel = sandbox.open_channel(&Command::shell("echo begun; exec cat")).await.unwrap().unwrap();
    assert_eq!(next_event(&mut channel.output).await.unwrap().unwrap(), ExecEvent::Stdout(b"begun\n".to_vec()));
    wire.cut(true);
    tokio::time::sleep(Duration::from_secs(10)).await;
    wire.cut(false);
    tokio::io::AsyncWriteExt::write_all(&mut channel.input, b"still here\n").await.unwrap();
    assert_eq!(next_event(&mut channel.output).await.unwrap().unwrap(), ExecEvent::Stdout(b"still here\n".to_vec()));
    wire.cut(true);
    let told = loss(&mut channel.output).await;
    assert!(told.contains("was lost: Timeout, server 127.0.0.1 not responding"), "{told}");
    drop(channel.input);
    sandbox.terminate().await.unwrap();
    provider.finish().await;
    // Over there it is noticed at last.
    wire.tear();
    let gone = async {
        while !project.sshd.runs().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.unwrap();
}

#[tokio::test]
async fn a_run_whose_own_process_is_killed_over_there_loses_its_sandboxes() {
    let Some(project) = Project::new() else { return };
    let (provider, sandbox) = project.sandbox().await;
    let mut stream = sandbox.exec_stream(&Command::shell("sleep 1000 & echo $!; wait")).await.unwrap();
    let Some(Ok(ExecEvent::Stdout(line))) = next_event(&mut stream).await else { panic!("it says who it is") };
    let command = String::from_utf8(line).unwrap();
    let runs = project.sshd.runs();
    let pid = runs.iter().find(|path| path.ends_with("/connections/0/pid")).unwrap();
    let pid = std::fs::read_to_string(project.sshd.workdir().join(pid)).unwrap();
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let told = loss(&mut stream).await;
    assert!(told.contains("the run's own process on 127.0.0.1:") && told.ends_with("was ended from outside"), "{told}");
    sandbox.terminate().await.unwrap();
    provider.finish().await;
    // Nobody was left to do it.
    assert_ne!(project.sshd.runs(), [""; 0]);
    let (provider, sandbox) = project.sandbox().await;
    assert_eq!(project.sshd.runs().iter().filter(|path| path.ends_with("/connections")).count(), 1);
    wait_until("what it ran has gone, too", || !is_running(command.trim())).await;
    project.ends(provider, sandbox).await;
}

#[tokio::test]
async fn a_host_that_is_rebooted_serves_again() {
    let Some(mut project) = Project::new() else { return };
    let (provider, sandbox) = project.sandbox().await;
    project.sshd.restart();
    let error = run(&*sandbox, &Command::shell("true")).await.unwrap_err().to_string();
    assert!(error.contains("the connection to 127.0.0.1:") && error.contains("was lost"), "{error}");
    sandbox.terminate().await.unwrap();
    let sandbox = provider.create_sandbox(&SandboxRequest::default()).await.unwrap();
    assert_eq!(said(&*sandbox, "echo again").await, "again");
    project.ends(provider, sandbox).await;
}

#[tokio::test]
async fn a_run_that_ends_while_all_slots_are_taken_waits_for_none() {
    let Some(project) = Project::new() else { return };
    let project = project.with(|_, ssh| ssh.hosts[0].slots = Some(1));
    let (provider, sandbox) = project.sandbox().await;
    let provider = Arc::new(provider);
    let waiting = tokio::spawn({
        let provider = Arc::clone(&provider);
        async move { provider.create_sandbox(&SandboxRequest { index: 1, ..SandboxRequest::default() }).await.map(drop) }
    });
    tokio::task::yield_now().await;
    provider.give_up();
    let error = waiting.await.unwrap().unwrap_err().to_string();
    assert_eq!(error, "the run ended before the sandbox was there");
    sandbox.terminate().await.unwrap();
    provider.finish().await;
    assert_eq!(project.sshd.runs(), [""; 0]);
}

#[tokio::test]
async fn a_server_that_allows_few_sessions_is_told() {
    let Some(sshd) = Sshd::with(|_| "MaxSessions 1".to_owned()) else { return };
    let project = Project::on(sshd);
    let Err(error) = project.provider().create_sandbox(&SandboxRequest::default()).await else { panic!() };
    let error = error.to_string();
    assert!(error.contains("at least 8 sessions on a connection (`MaxSessions`"), "{error}");
}
