//! Commands on hosts, and how they end.

use std::collections::BTreeMap;
use std::time::Duration;

use offload_core::connector::next_event;
use offload_core::provider::ExecEvent;
use tokio::io::AsyncWriteExt as _;

use super::*;

#[tokio::test]
async fn commands_run_where_the_project_is_with_their_output_apart() {
    let Some(project) = Project::new() else { return };
    let project = project.with(|_, ssh| ssh.env = BTreeMap::from([("FROM_CONFIG".to_owned(), "1".to_owned())]));
    project.write("sub/x", "");
    let (provider, sandbox) = project.sandbox().await;
    let output = sh(&*sandbox, "pwd; ls; echo trouble >&2; exit 3").await;
    assert_eq!(output.exit_code, Some(3));
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{}\nsub\n", project.root().display()));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "trouble\n");

    let mut command = Command::new("/bin/sh", ["-c", "pwd; echo $0 \"$VALUE\" $FROM_CONFIG", "it's"]);
    command.working_dir = Some("sub".into());
    command.env = BTreeMap::from([("VALUE".to_owned(), "a b\n$c".to_owned())]);
    let output = run(&*sandbox, &command).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text, format!("{}/sub\nit's a b\n$c 1\n", project.root().display()));
    // What no shell has as a variable.
    let mut command = Command::new("env", [""; 0]);
    command.env = BTreeMap::from([("odd.name-1".to_owned(), "it's odd".to_owned())]);
    let output = run(&*sandbox, &command).await.unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("\nodd.name-1=it's odd\n"), "{output:?}");

    assert_eq!(sh(&*sandbox, "kill -SEGV $$").await.exit_code, Some(139));
    assert_eq!(sh(&*sandbox, "kill -KILL $$").await.exit_code, Some(137));
    // Everything that belongs to the command, and not the sandbox.
    assert_eq!(sh(&*sandbox, "kill -KILL 0").await.exit_code, Some(137));
    assert_eq!(sh(&*sandbox, "exit 255").await.exit_code, Some(255));
    let code = run(&*sandbox, &Command::new("no-such-program", [""; 0])).await.unwrap().exit_code;
    assert!(matches!(code, Some(126 | 127)), "{code:?}");
    sandbox.terminate().await.unwrap();
    project.ends(provider, sandbox).await;
}

#[tokio::test]
async fn a_command_may_be_longer_than_an_argument_may_be() {
    let Some(project) = Project::new() else { return };
    let (provider, sandbox) = project.sandbox().await;
    let text = "it's long ".repeat(30_000);
    let output = sh(&*sandbox, &format!("cat <<'END'\n{text}\nEND\nexit 7")).await;
    assert_eq!(output.exit_code, Some(7));
    assert!(output.stdout == format!("{text}\n").into_bytes());
    project.ends(provider, sandbox).await;
}

#[tokio::test]
async fn nothing_of_a_command_is_in_the_arguments_of_a_process() {
    let Some(project) = Project::new() else { return };
    let (provider, sandbox) = project.sandbox().await;
    let mut command = Command::shell("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; echo $TOKEN | rev");
    command.env = BTreeMap::from([("TOKEN".to_owned(), "open-sesame".to_owned())]);
    let output = run(&*sandbox, &command).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("emases-nepo") && !text.contains("open-sesame"), "{text}");
    project.ends(provider, sandbox).await;
}

#[tokio::test]
async fn at_its_time_limit_a_command_ends_with_everything_that_it_started() {
    let Some(project) = Project::new() else { return };
    let (provider, sandbox) = project.sandbox().await;
    let pids = project.sshd.path("pids");
    let line = format!("trap '' TERM; sleep 1000 & echo $! $$ >{}; wait; sleep 1000", pids.display());
    let command = Command { timeout: Some(Duration::from_millis(500)), ..Command::shell(line) };
    let output = run(&*sandbox, &command).await.unwrap();
    assert_eq!(output.exit_code, None);
    for pid in std::fs::read_to_string(&pids).unwrap().split_whitespace() {
        // It has been killed by now, and may still be about to go.
        wait_until("what the command started is gone", || !is_running(pid)).await;
    }
    assert_eq!(said(&*sandbox, "echo fine").await, "fine");
    project.ends(provider, sandbox).await;
}

/// Whether a process exists that is not only waited for.
pub(crate) fn is_running(pid: &str) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z')
}

pub(crate) async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(60), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "gave up waiting until {what}");
}

#[tokio::test]
async fn what_is_dropped_has_ended_before_the_next_command_begins() {
    let Some(project) = Project::new() else { return };
    let (provider, sandbox) = project.sandbox().await;
    let mut stream = sandbox.exec_stream(&Command::shell("echo $$; exec sleep 1000")).await.unwrap();
    let Some(Ok(ExecEvent::Stdout(pid))) = next_event(&mut stream).await else { panic!("it says nothing") };
    drop(stream);
    let pid = String::from_utf8(pid).unwrap();
    assert_eq!(said(&*sandbox, &format!("kill -0 {} 2>/dev/null || echo gone", pid.trim())).await, "gone");
    project.ends(provider, sandbox).await;
}

#[tokio::test]
async fn what_a_command_leaves_in_the_background_ends_with_it() {
    let Some(project) = Project::new() else { return };
    let (provider, sandbox) = project.sandbox().await;
    let pid = said(&*sandbox, "sleep 1000 & echo $!").await;
    wait_until("it has ended", || !is_running(&pid)).await;
    // One that has gone away from its session holds nobody up.
    let line = "mkfifo gone; setsid sh -c 'echo $$ >gone; exec sleep 1000' & read pid <gone; rm gone; echo $pid";
    let pid = said(&*sandbox, line).await;
    assert!(is_running(&pid));
    said(&*sandbox, &format!("kill {pid}")).await;
    project.ends(provider, sandbox).await;
}

#[tokio::test]
async fn a_channel_is_binary_and_keeps_its_streams_apart() {
    let Some(project) = Project::new() else { return };
    let (provider, sandbox) = project.sandbox().await;
    let mut channel = sandbox.open_channel(&Command::shell("cat; echo the end >&2; exit 4")).await.unwrap().unwrap();
    // Each piece is answered before the next one is sent.
    for piece in [&b"\x00\xff\x1e\n"[..], b"no newline", b"\r\n\n", &[7; 100_000]] {
        channel.input.write_all(piece).await.unwrap();
        channel.input.flush().await.unwrap();
        let mut came = Vec::new();
        while came.len() < piece.len() {
            let Some(Ok(ExecEvent::Stdout(bytes))) = next_event(&mut channel.output).await else { panic!() };
            came.extend(bytes);
        }
        assert!(came == piece);
    }
    drop(channel.input);
    let output = collect(channel.output, usize::MAX).await.unwrap();
    assert_eq!((output.exit_code, output.stdout.len()), (Some(4), 0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "the end\n");
    project.ends(provider, sandbox).await;
}

#[tokio::test]
async fn a_slow_reader_holds_up_the_writer_and_loses_nothing() {
    let Some(project) = Project::new() else { return };
    let (provider, sandbox) = project.sandbox().await;
    let written = project.sshd.path("written");
    let line = format!(
        "i=0; while [ $i -lt 400 ]; do head -c 65536 /dev/zero; i=$((i+1)); echo $i >{}; done; echo end >&2",
        written.display()
    );
    let mut stream = sandbox.exec_stream(&Command::shell(line)).await.unwrap();
    let written = || std::fs::read_to_string(&written).ok().and_then(|text| text.trim().parse::<u32>().ok());
    // Somewhere on the way there is no more room.
    let mut last = written();
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if last.is_some() && last == written() {
            break;
        }
        last = written();
    }
    assert!(last.unwrap() < 400, "everything is in memory");
    let mut size = 0;
    while let Some(Ok(event)) = next_event(&mut stream).await {
        if let ExecEvent::Stdout(bytes) = event {
            size += bytes.len();
        }
    }
    assert_eq!(size, 400 * 65536);
    drop(stream);
    project.ends(provider, sandbox).await;
}

#[tokio::test]
async fn many_sandboxes_share_few_connections() {
    let Some(project) = Project::new() else { return };
    let project = project.with(|_, ssh| ssh.hosts[0].slots = Some(9));
    let provider = project.provider();
    provider.prepare().await.unwrap();
    assert_eq!(provider.most_sandboxes().await, Some(9));
    let mut sandboxes = Vec::new();
    for index in 0..9 {
        let request = SandboxRequest { index, ..SandboxRequest::default() };
        sandboxes.push(provider.create_sandbox(&request).await.unwrap());
    }
    let mut running = Vec::new();
    for sandbox in &sandboxes {
        running.push(sandbox.open_channel(&Command::shell("echo here; cat")).await.unwrap().unwrap());
        // There is room for one more on each.
        assert_eq!(said(&**sandbox, "echo there").await, "there");
    }
    assert_eq!(project.sshd.connections().len(), 3);
    for channel in &mut running {
        assert_eq!(next_event(&mut channel.output).await.unwrap().unwrap(), ExecEvent::Stdout(b"here\n".to_vec()));
    }
    drop(running);
    for sandbox in &sandboxes {
        sandbox.terminate().await.unwrap();
    }
    provider.finish().await;
    assert_eq!(project.sshd.runs(), [""; 0]);
    wait_until("the connections are closed", || project.sshd.connections().is_empty()).await;
}
