//! Commands and files in containers.

use std::collections::BTreeMap;
use std::time::Duration;

use offload_core::connector::next_event;
use offload_core::provider::ExecEvent;

use super::*;

#[tokio::test]
async fn commands_run_where_the_project_is_with_their_output_apart() {
    let Some(project) = Project::new() else { return };
    project.write("sub/x", "");
    let (_provider, sandbox) = project.sandbox().await;
    let output = sh(&*sandbox, "pwd; ls; echo trouble >&2; exit 3").await;
    assert_eq!(output.exit_code, Some(3));
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{}\nsub\n", project.root().display()));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "trouble\n");

    let mut command = Command::new("/bin/sh", ["-c", "pwd; echo $0 \"$VALUE\"", "it's"]);
    command.working_dir = Some("sub".into());
    command.env = BTreeMap::from([("VALUE".to_owned(), "a b\n$c".to_owned())]);
    let output = run(&*sandbox, &command).await.unwrap();
    let expected = format!("{}/sub\nit's a b\n$c\n", project.root().display());
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);

    assert_eq!(sh(&*sandbox, "kill -SEGV $$").await.exit_code, Some(139));
    assert_eq!(sh(&*sandbox, "kill -KILL $$").await.exit_code, Some(137));
    let code = run(&*sandbox, &Command::new("no-such-program", [""; 0])).await.unwrap().exit_code;
    assert!(matches!(code, Some(126 | 127)), "{code:?}");
    sandbox.terminate().await.unwrap();
    sandbox.terminate().await.unwrap();
    assert_eq!(project.containers(), "");
}

#[tokio::test]
async fn a_command_may_be_longer_than_an_argument_may_be() {
    let Some(project) = Project::new() else { return };
    let (_provider, sandbox) = project.sandbox().await;
    let text = "it's long ".repeat(30_000);
    let output = sh(&*sandbox, &format!("cat <<'END'\n{text}\nEND\nexit 7")).await;
    assert_eq!(output.exit_code, Some(7));
    assert!(output.stdout == format!("{text}\n").into_bytes());
    sandbox.terminate().await.unwrap();
}

#[tokio::test]
async fn the_configuration_decides_what_a_container_is_given() {
    let Some(project) = Project::new() else { return };
    project.write("mounted/x", "from here");
    let project = project.with(|config, docker| {
        docker.env = BTreeMap::from([("FROM_CONFIG".to_owned(), "1".to_owned())]);
        docker.mounts = vec!["./mounted:/mnt/in:ro".to_owned()];
        docker.network = Some("none".to_owned());
        docker.memory = Some("256m".to_owned());
        docker.cpus = Some(0.5);
        docker.user = Some("1234:5678".to_owned());
        config.offload.sandbox_repo_root = Some("/app".to_owned());
    });
    let (_provider, sandbox) = project.sandbox().await;
    assert_eq!(said(&*sandbox, "echo $FROM_CONFIG $OFFLOAD_ROOT; pwd").await, "1 /app\n/app");
    assert_eq!(said(&*sandbox, "cat /mnt/in/x").await, "from here");
    assert_ne!(sh(&*sandbox, "echo > /mnt/in/y").await.exit_code, Some(0));
    assert_eq!(
        said(&*sandbox, "id -u; id -g; stat -c %u:%g mounted mounted/x; echo > new").await,
        "1234\n5678\n1234:5678\n1234:5678"
    );
    let asked =
        "{{.HostConfig.NetworkMode}} {{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.Privileged}}";
    let given = support::docker(&["inspect", "--format", asked, &project.container()]);
    assert_eq!(given, format!("none {} 500000000 false", 256 << 20));
    sandbox.terminate().await.unwrap();
}

#[tokio::test]
async fn files_come_in_and_out() {
    let Some(project) = Project::new() else { return };
    let (_provider, sandbox) = project.sandbox().await;
    let here = tempfile::tempdir().unwrap();
    let path = |name: &str| here.path().join(name);
    std::fs::create_dir(path("in")).unwrap();
    std::fs::write(path("in/a"), "one").unwrap();
    std::os::unix::fs::symlink("a", path("in/link")).unwrap();
    sandbox.upload(&path("in"), Path::new("new/dir")).await.unwrap();
    sandbox.upload(&path("in/a"), Path::new("/elsewhere/b")).await.unwrap();
    assert_eq!(said(&*sandbox, "cat new/dir/a new/dir/link /elsewhere/b; readlink new/dir/link").await, "oneoneonea");

    said(&*sandbox, "mkdir -p out/deep && echo two > out/deep/c && ln -s deep/c out/soft").await;
    let pairs = [("out/deep/c", "file"), ("out/soft", "through a link"), ("out", "new/directory")];
    let pairs: Vec<_> = pairs.iter().map(|(there, here)| (PathBuf::from(there), path(here))).collect();
    sandbox.download(&pairs).await.unwrap();
    for name in ["file", "through a link", "new/directory/deep/c", "new/directory/soft"] {
        assert_eq!(std::fs::read_to_string(path(name)).unwrap(), "two\n", "{name}");
    }
    let missing = [(PathBuf::from("/no/such"), path("x"))];
    let error = sandbox.download(&missing).await.unwrap_err().to_string();
    assert_eq!(error, "cannot bring /no/such out of the sandbox docker-0: there is no such file");
    sandbox.terminate().await.unwrap();
}

/// A command that leaves a process behind in a session of its own, says which, and goes on for ever.
const STRAY: &str = "python3 -c 'import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(1000)' &
                     trap '' TERM; while :; do sleep 1; done";

/// Asserts that a process has ended. It may still be waiting for its parent to take note.
async fn assert_gone(sandbox: &dyn Sandbox, pid: &str) {
    let pid = pid.trim();
    let line = format!("for i in $(seq 1000); do kill -0 {pid} 2>/dev/null || exit 0; sleep 0.01; done; exit 1");
    assert_eq!(sh(sandbox, &line).await.exit_code, Some(0), "{pid} lives");
}

#[tokio::test]
async fn at_its_time_limit_a_command_ends_with_all_that_it_started() {
    let Some(project) = Project::new() else { return };
    let (_provider, sandbox) = project.sandbox().await;
    let command = Command { timeout: Some(Duration::from_millis(1500)), ..Command::shell(STRAY) };
    let output = run(&*sandbox, &command).await.unwrap();
    assert_eq!(output.exit_code, None);
    let stray = String::from_utf8(output.stdout).unwrap();
    assert_gone(&*sandbox, &stray).await;
    sandbox.terminate().await.unwrap();
}

#[tokio::test]
async fn a_command_that_is_dropped_has_ended_before_the_next_begins() {
    let Some(project) = Project::new() else { return };
    let (_provider, sandbox) = project.sandbox().await;
    let mut stream = sandbox.exec_stream(&Command::shell(STRAY)).await.unwrap();
    let Some(Ok(ExecEvent::Stdout(stray))) = next_event(&mut stream).await else { panic!("no output") };
    drop(stream);
    let stray = String::from_utf8(stray).unwrap();
    assert_gone(&*sandbox, &stray).await;
    // Dropped at its end, nothing is ended any more.
    for _ in 0..3 {
        let mut stream = sandbox.exec_stream(&Command::shell("echo")).await.unwrap();
        let _ = next_event(&mut stream).await;
        drop(stream);
    }
    assert_eq!(said(&*sandbox, "echo fine").await, "fine");
    sandbox.terminate().await.unwrap();
}
