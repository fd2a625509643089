//! What breaks, and what the user is told.

use std::time::Duration;

use offload_core::connector::next_event;
use offload_core::provider::ExecEvent;

use super::*;

/// What comes of a command that says that it has begun, after `fault` has struck.
async fn struck(project: &Project, line: &str, fault: impl AsyncFnOnce(&str)) -> String {
    let (_provider, sandbox) = project.sandbox().await;
    let mut stream = sandbox.exec_stream(&Command::shell(format!("echo begun; {line}"))).await.unwrap();
    let first = next_event(&mut stream).await;
    assert!(matches!(&first, Some(Ok(ExecEvent::Stdout(text))) if text == b"begun\n"), "{first:?}");
    fault(&project.container()).await;
    let told = loop {
        match next_event(&mut stream).await {
            Some(Ok(ExecEvent::Exit(code))) => panic!("it ended as if nothing had been: {code:?}"),
            Some(Ok(_)) => {}
            Some(Err(error)) => break error.to_string(),
            None => panic!("it ended without a word"),
        }
    };
    // What comes later is told, too.
    let later = run(&*sandbox, &Command::shell("true")).await.unwrap_err().to_string();
    assert!(later.contains("the container "), "{later}");
    sandbox.terminate().await.unwrap();
    assert_eq!(project.containers(), "");
    told
}

#[tokio::test]
async fn a_container_that_is_killed_is_lost() {
    let Some(project) = Project::new() else { return };
    let told = struck(&project, "sleep 1000", async |container| {
        support::docker(&["kill", container]);
    });
    let told = told.await;
    assert!(told.contains("was killed from outside with signal 9"), "{told}");
}

#[tokio::test]
async fn a_container_that_is_removed_is_lost() {
    let Some(project) = Project::new() else { return };
    let told = struck(&project, "sleep 1000", async |container| {
        support::docker(&["rm", "--force", container]);
    });
    let told = told.await;
    assert!(told.contains("was killed from outside"), "{told}");
}

#[tokio::test]
async fn a_container_that_is_paused_for_long_is_lost() {
    let Some(project) = Project::new() else { return };
    let told = struck(&project, "sleep 1000", async |container| {
        support::docker(&["pause", container]);
    });
    let told = told.await;
    assert!(told.contains("was paused from outside (`docker pause`) and not continued"), "{told}");
}

#[tokio::test]
async fn a_container_that_is_paused_for_a_moment_is_not_lost() {
    let Some(project) = Project::new() else { return };
    let (_provider, sandbox) = project.sandbox().await;
    let mut stream = sandbox.exec_stream(&Command::shell("echo begun; sleep 1; echo end")).await.unwrap();
    let _ = next_event(&mut stream).await;
    support::docker(&["pause", &project.container()]);
    support::docker(&["unpause", &project.container()]);
    let output = offload_core::connector::collect(stream, usize::MAX).await.unwrap();
    assert_eq!((output.exit_code, output.stdout.as_slice()), (Some(0), b"end\n".as_slice()));
    sandbox.terminate().await.unwrap();
}

#[tokio::test]
async fn a_test_that_eats_all_memory_is_told_from_a_lost_container() {
    let Some(project) = Project::new() else { return };
    let project = project.with(|_, docker| docker.memory = Some("48m".to_owned()));
    let (_provider, sandbox) = project.sandbox().await;
    let output = sh(&*sandbox, "python3 -c 'x = bytearray(200 << 20)'; exit $?").await;
    assert_eq!(output.exit_code, Some(137));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("the container ran out of memory (`memory` in [provider])"), "{told}");
    assert_eq!(said(&*sandbox, "echo fine").await, "fine");
    sandbox.terminate().await.unwrap();
}

#[tokio::test]
async fn an_image_without_a_shell_is_told() {
    let Some(project) = Project::new() else { return };
    let mut empty = std::process::Command::new("sh");
    empty.arg("-c").arg("tar cf - --files-from /dev/null | docker import - offload-test:empty");
    assert!(empty.output().unwrap().status.success());
    let project = project.with(|_, docker| docker.image = Some("offload-test:empty".to_owned()));
    let error = project.error().await;
    assert!(matches!(error, ProviderError::Unusable(_)));
    let error = error.to_string();
    assert!(error.starts_with("the image offload-test:empty (linux/"), "{error}");
    assert!(error.contains("has no /bin/sh, without which no test can be started in it"), "{error}");
    support::docker(&["rmi", "offload-test:empty"]);
    assert_eq!(project.containers(), "");
}

#[tokio::test]
async fn an_image_for_another_machine_is_told() {
    let Some(project) = Project::new() else { return };
    // A program for a machine that nobody has: an ELF header for the processor 0x1234.
    let mut program = b"\x7fELF\x02\x01\x01".to_vec();
    program.resize(16, 0);
    program.extend_from_slice(&[2, 0, 0x34, 0x12, 1, 0, 0, 0]);
    program.resize(64, 0);
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("bin")).unwrap();
    std::fs::write(root.path().join("bin/sh"), program).unwrap();
    let line = format!(
        "chmod 755 {0}/bin/sh && tar cf - -C {0} bin | docker import - offload-test:foreign",
        root.path().display()
    );
    assert!(std::process::Command::new("sh").arg("-c").arg(line).output().unwrap().status.success());
    let project = project.with(|_, docker| docker.image = Some("offload-test:foreign".to_owned()));
    let error = project.error().await;
    assert!(matches!(error, ProviderError::Unusable(_)));
    assert!(error.to_string().contains("is for another kind of machine"), "{error}");
    support::docker(&["rmi", "offload-test:foreign"]);
}

#[tokio::test]
async fn an_image_that_nobody_has_is_told() {
    let Some(project) = Project::new() else { return };
    let project = project.with(|_, docker| docker.image = Some("localhost:1/no/such:image".to_owned()));
    let error = project.provider().prepare().await.unwrap_err();
    assert!(matches!(error, ProviderError::Unusable(_)));
    let error = error.to_string();
    assert!(
        error.starts_with("the Docker daemon has no image localhost:1/no/such:image and cannot pull it: "),
        "{error}"
    );
    assert!(error.ends_with("or `docker build` first"), "{error}");
}

#[tokio::test]
async fn what_a_dead_run_left_is_removed_and_what_a_live_one_has_is_not() {
    let Some(project) = Project::new() else { return };
    let label = format!("offload.project={}", project.root().display());
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let owner = format!("offload.owner={}:{}:1", host.trim(), child.id());
    child.wait().unwrap();
    let image = support::image().unwrap();
    support::docker(&["create", "--label", &label, "--label", &owner, &image, "/bin/sh"]);
    let (_provider, sandbox) = project.sandbox().await;
    let cleaned = offload_core::provider::docker::clean(Some(&project.root())).await.unwrap();
    assert_eq!((cleaned.containers, cleaned.in_use > 0), (1, true));
    assert_eq!(said(&*sandbox, "echo fine").await, "fine");
    sandbox.terminate().await.unwrap();
    let cleaned = offload_core::provider::docker::clean(Some(&project.root())).await.unwrap();
    assert_eq!((cleaned.containers, cleaned.images, cleaned.in_use), (0, 1, 0));
    assert_eq!(support::docker(&["images", "-q", "--filter", &project.label()]), "");
}

#[tokio::test]
async fn an_image_that_is_removed_between_two_containers_is_made_again() {
    let Some(project) = Project::new() else { return };
    project.write("file", "content");
    let (provider, sandbox) = project.sandbox().await;
    sandbox.terminate().await.unwrap();
    offload_core::provider::docker::clean(Some(&project.root())).await.unwrap();
    let Err(error) = provider.create_sandbox(&project.request()).await else { panic!("there is a sandbox") };
    assert_eq!(error.to_string(), "the image of this run was removed while it was in use");
    let sandbox = provider.create_sandbox(&project.request()).await.unwrap();
    assert_eq!(said(&*sandbox, "cat file").await, "content");
    tokio::time::timeout(Duration::from_secs(60), sandbox.terminate()).await.unwrap().unwrap();
}
