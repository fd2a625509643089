//! The provider `local`, from outside.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use offload_core::config::LocalProviderConfig;
use offload_core::connector::{collect, next_event};
use offload_core::provider::local::LocalProvider;
use offload_core::provider::{Command, ExecEvent, ExecOutput, ProviderError, Sandbox, SandboxProvider, SandboxRequest};

async fn sandbox(config: LocalProviderConfig) -> Box<dyn Sandbox> {
    let request = SandboxRequest {
        name: "run-3".to_owned(),
        index: 3,
        env: BTreeMap::from([("FROM_REQUEST".to_owned(), "it's \"r\"".to_owned())]),
        ..SandboxRequest::default()
    };
    LocalProvider::new(config).create_sandbox(&request).await.unwrap()
}

async fn exec(sandbox: &dyn Sandbox, command: &Command) -> ExecOutput {
    collect(sandbox.exec_stream(command).await.unwrap(), 1 << 20).await.unwrap()
}

fn in_dir(dir: &Path) -> LocalProviderConfig {
    LocalProviderConfig { working_dir: Some(dir.to_owned()), ..LocalProviderConfig::default() }
}

#[tokio::test]
async fn commands_run_in_the_working_directory_with_all_environments() {
    let dir = tempfile::Builder::new().prefix("it's a $dir\n").tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    let env = BTreeMap::from([("FROM_CONFIG".to_owned(), "c `x`\n".to_owned())]);
    let sandbox = sandbox(LocalProviderConfig { env, ..in_dir(dir.path()) }).await;
    assert_eq!(sandbox.id(), "local-3");
    assert_eq!(sandbox.host_slot().unwrap().env.len(), 2);

    let mut command =
        Command::new("sh", ["-c", "printf '%s|' \"$FROM_CONFIG\" \"$FROM_REQUEST\" \"$OWN\" \"$@\"; pwd -P", "-"]);
    command.args.extend(["a b".to_owned(), "$HOME'\"\n".to_owned()]);
    command.env.insert("OWN".to_owned(), "o".to_owned());
    command.working_dir = Some(PathBuf::from("sub"));
    let output = exec(&*sandbox, &command).await;
    let place = dir.path().canonicalize().unwrap().join("sub");
    let expected = format!("c `x`\n|it's \"r\"|o|a b|$HOME'\"\n|{}\n", place.display());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    assert_eq!(output.exit_code, Some(0));
}

#[tokio::test]
async fn command_lines_go_to_the_configured_shell() {
    let dir = tempfile::tempdir().unwrap();
    let shell = dir.path().join("my shell");
    std::fs::write(&shell, "#!/bin/sh\nprintf 'mine:%s:%s' \"$1\" \"$2\"\n").unwrap();
    std::fs::set_permissions(&shell, std::fs::Permissions::from_mode(0o755)).unwrap();
    let shell = Some(shell.to_str().unwrap().to_owned());
    let sandbox = sandbox(LocalProviderConfig { shell, ..in_dir(dir.path()) }).await;
    assert_eq!(exec(&*sandbox, &Command::shell("echo $x")).await.stdout, b"mine:-c:echo $x");
}

#[tokio::test]
async fn terminate_ends_what_runs_and_refuses_what_comes_later() {
    let dir = tempfile::tempdir().unwrap();
    let sandbox = sandbox(in_dir(dir.path())).await;
    let line = "trap '' TERM; sleep 1000 & echo $! ; wait";
    let mut stream = sandbox.exec_stream(&Command::shell(line)).await.unwrap();
    let Some(Ok(ExecEvent::Stdout(pid))) = next_event(&mut stream).await else { panic!("no output") };
    let pid: i32 = String::from_utf8(pid).unwrap().trim().parse().unwrap();
    sandbox.terminate().await.unwrap();
    // The group was killed before terminate returned; init may still have to reap.
    let dead = || std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
    for _ in 0..1000 {
        if dead() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(dead());
    let error = sandbox.exec_stream(&Command::shell("true")).await.map(drop).unwrap_err();
    assert_eq!(error.to_string(), "cannot run a command in the sandbox local-3: it was terminated");
    sandbox.terminate().await.unwrap();
}

#[tokio::test]
async fn processes_left_behind_end_with_their_command() {
    let dir = tempfile::tempdir().unwrap();
    let sandbox = sandbox(in_dir(dir.path())).await;
    let output = exec(&*sandbox, &Command::shell("(while :; do sleep 0.01; date +%N >alive; done) & :")).await;
    assert_eq!(output.exit_code, Some(0));
    let file = dir.path().join("alive");
    // Whatever was being written is done by the time that the file has been seen unchanged for a good while.
    let mut last = std::fs::read(&file).ok();
    let mut unchanged = 0;
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let now = std::fs::read(&file).ok();
        unchanged = if now == last { unchanged + 1 } else { 0 };
        last = now;
        if unchanged > 100 {
            return;
        }
    }
    panic!("the loop lives on");
}

#[tokio::test]
async fn files_go_in_and_out_as_they_are() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tree = here.path().join("a 'tree' $x\n");
    std::fs::create_dir_all(tree.join("deep/er")).unwrap();
    std::fs::write(tree.join("deep/run.sh"), "#!").unwrap();
    std::fs::set_permissions(tree.join("deep/run.sh"), std::fs::Permissions::from_mode(0o754)).unwrap();
    std::os::unix::fs::symlink("../nowhere", tree.join("deep/er/link")).unwrap();

    let sandbox = sandbox(in_dir(there.path())).await;
    sandbox.upload(&tree, Path::new("new/place")).await.unwrap();
    sandbox.upload(&tree, Path::new("new/place")).await.unwrap();
    let back = here.path().join("back/again");
    let one = here.path().join("one");
    let pairs = [("new/place".into(), back.clone()), ("new/place/deep/run.sh".into(), one.clone())];
    sandbox.download(&pairs).await.unwrap();
    assert_eq!(std::fs::metadata(back.join("deep/run.sh")).unwrap().permissions().mode() & 0o777, 0o754);
    assert_eq!(std::fs::read_link(back.join("deep/er/link")).unwrap(), Path::new("../nowhere"));
    assert_eq!(std::fs::read(one).unwrap(), b"#!");

    sandbox.upload(&there.path().join("new/place"), Path::new("new/../new/place")).await.expect("onto itself");
    let error = sandbox.upload(there.path(), Path::new("new/inside")).await.unwrap_err();
    assert!(error.to_string().ends_with("the target lies within the source; choose one outside of it"), "{error}");
    let error = sandbox.download(&[("gone".into(), back)]).await.unwrap_err();
    assert!(matches!(&error, ProviderError::Transfer(text) if text.contains("gone")), "{error}");
}

#[tokio::test]
async fn a_missing_working_directory_is_no_use() {
    let provider = LocalProvider::new(in_dir(Path::new("/no/such/dir")));
    let error = provider.create_sandbox(&SandboxRequest::default()).await.map(drop).unwrap_err();
    assert!(matches!(error, ProviderError::Unusable(_)));
    let text = error.to_string();
    assert!(text.starts_with("cannot run tests in /no/such/dir: "), "{text}");
    assert!(text.ends_with("create the directory or change `working_dir` in [provider]"), "{text}");
    assert!(provider.prepare().await.is_err());
    assert!(!provider.isolates());
}
