//! Files on their way to hosts and back.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::Arc;

use offload_core::provider::{Built, CopyDir};

use super::*;

#[tokio::test]
async fn links_modes_empty_directories_and_any_name_survive() {
    let Some(project) = Project::new() else { return };
    let odd = OsStr::from_bytes(b"caf\xe9 100%\n it's");
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(200));
    project.write("run.sh", "#!/bin/sh\necho ran\n").write(odd, "odd").write(&long, "long");
    let root = project.root();
    std::fs::set_permissions(root.join("run.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(root.join("empty")).unwrap();
    symlink("run.sh", root.join("link")).unwrap();
    symlink("../nowhere", root.join("dangling")).unwrap();

    let (provider, sandbox) = project.sandbox().await;
    assert_eq!(said(&*sandbox, "./run.sh && ./link").await, "ran\nran");
    assert_eq!(
        said(&*sandbox, "stat -c '%a' run.sh; ls empty; readlink link dangling").await,
        "755\nrun.sh\n../nowhere"
    );
    assert_eq!(said(&*sandbox, &format!("cat {long} caf*; ls | wc -l")).await, "longodd7");
    assert_eq!(said(&*sandbox, "ls | od -An -c | tr -d ' \\n'").await.matches("caf351100%\\nit'").count(), 1);
    project.ends(provider, sandbox).await;
}

/// What is kept on the host of a path of the project, by its absolute path here.
fn kept(project: &Project, path: &str) -> PathBuf {
    let base = project.sshd.left().into_iter().find(|path| path.ends_with("/base")).unwrap();
    let root = project.root();
    project.sshd.workdir().join(base).join(root.strip_prefix("/").unwrap()).join(path)
}

#[tokio::test]
async fn the_next_run_brings_only_what_has_changed_and_removes_what_is_gone() {
    let Some(project) = Project::new() else { return };
    project.write("same", "1").write("edited", "1").write("gone/a", "").write("was-file", "").write("was-dir/x", "");
    let (provider, sandbox) = project.sandbox().await;
    // What tests write stays in the run.
    said(&*sandbox, "echo by a test >edited; echo new >written").await;
    project.ends(provider, sandbox).await;
    // A mark that a second transfer would remove.
    std::fs::write(kept(&project, "same"), "kept").unwrap();
    assert_eq!(std::fs::read_to_string(kept(&project, "edited")).unwrap(), "1");

    let root = project.root();
    project.write("edited", "2");
    for gone in ["gone", "was-dir"] {
        std::fs::remove_dir_all(root.join(gone)).unwrap();
    }
    std::fs::remove_file(root.join("was-file")).unwrap();
    project.write("was-file/now", "").write("was-dir", "");
    let (provider, sandbox) = project.sandbox().await;
    assert_eq!(
        said(&*sandbox, "cat same edited; find . | sort").await,
        "kept2.\n./edited\n./same\n./was-dir\n./was-file\n./was-file/now"
    );
    project.ends(provider, sandbox).await;
}

#[tokio::test]
async fn a_transfer_that_was_broken_off_is_made_anew() {
    let Some(project) = Project::new() else { return };
    project.write("a", "1").write("readonly/b", "1");
    std::fs::set_permissions(project.root().join("readonly"), std::fs::Permissions::from_mode(0o555)).unwrap();
    let (provider, sandbox) = project.sandbox().await;
    project.ends(provider, sandbox).await;
    let file = kept(&project, "a");
    let record = file.ancestors().find(|path| path.ends_with("base")).unwrap().with_extension("json");
    std::fs::write(&file, "half").unwrap();
    std::fs::remove_file(record).unwrap();
    let (provider, sandbox) = project.sandbox().await;
    assert_eq!(said(&*sandbox, "cat a readonly/b").await, "11");
    project.ends(provider, sandbox).await;
}

#[tokio::test]
async fn what_is_included_excluded_and_copied_is_there_and_nothing_else() {
    let Some(project) = Project::new() else { return };
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("x"), "from elsewhere").unwrap();
    let project = project.with(|_, ssh| {
        ssh.include = vec!["build/lib".to_owned()];
        ssh.exclude = vec!["*.bin".to_owned()];
        ssh.copy_dirs = vec![
            (elsewhere.path().to_owned(), "fixtures".into()),
            // A directory that the host has keeps what is in it.
            (elsewhere.path().to_owned(), "/usr/share".into()),
            (elsewhere.path().join("x"), "/no/such/place".into()),
        ];
    });
    project.write(".gitignore", "build\n").write("build/lib/a", "").write("build/b", "").write("c.bin", "");
    let (provider, sandbox) = project.sandbox().await;
    assert_eq!(said(&*sandbox, "find . -type f | sort").await, "./.gitignore\n./build/lib/a\n./fixtures/x");
    assert_eq!(
        said(&*sandbox, "cat /usr/share/x /no/such/place; ls -d /usr/share/doc").await,
        "from elsewherefrom elsewhere/usr/share/doc"
    );
    assert!(!Path::new("/usr/share/x").exists() && !Path::new("/no").exists());
    project.ends(provider, sandbox).await;
}

#[tokio::test]
async fn what_was_built_is_where_it_was_built_and_nothing_changes_on_the_host() {
    let Some(project) = Project::new() else { return };
    project.write("src", "1");
    let target = tempfile::tempdir().unwrap();
    let binary = target.path().join("debug/deps/it");
    std::fs::create_dir_all(binary.parent().unwrap()).unwrap();
    std::fs::write(&binary, "#!/bin/sh\necho built\n").unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    let built = Built {
        files: vec![binary.clone()],
        copies: vec![CopyDir { local: binary.clone(), remote: "/.offload/worker".into() }],
        ..Built::default()
    };
    let provider = project.provider();
    let request = SandboxRequest { built: Arc::new(built), ..SandboxRequest::default() };
    let sandbox = provider.create_sandbox(&request).await.unwrap();
    // Here host and client are one machine: what tests do to the project's files, they do not do to these.
    assert_eq!(
        said(&*sandbox, "echo 2 >src; cat src; /.offload/worker; ls /proc/self/fd | wc -l").await,
        "2\nbuilt\n4"
    );
    said(&*sandbox, &format!("{0} && echo broken >{0}", binary.display())).await;
    assert_eq!(std::fs::read_to_string(project.root().join("src")).unwrap(), "1");
    assert!(std::fs::read_to_string(&binary).unwrap().contains("built"));
    assert!(!Path::new("/.offload").exists());
    project.ends(provider, sandbox).await;
}

#[tokio::test]
async fn sandboxes_of_a_host_share_files_unless_they_are_isolated() {
    for isolate in [false, true] {
        let Some(project) = Project::new() else { return };
        let project = project.with(|_, ssh| ssh.isolate = isolate);
        project.write("file", "1");
        let provider = project.provider();
        assert_eq!((provider.isolates(), provider.is_elsewhere()), (isolate, true));
        let request = |index| SandboxRequest { index, ..SandboxRequest::default() };
        let one = provider.create_sandbox(&request(0)).await.unwrap();
        let two = provider.create_sandbox(&request(1)).await.unwrap();
        said(&*one, "echo 2 >file; mkdir locked; touch locked/x; chmod 555 locked").await;
        assert_eq!(said(&*two, "cat file").await, if isolate { "1" } else { "2" });
        one.terminate().await.unwrap();
        assert!(!project.sshd.runs().iter().any(|path| path.ends_with("sandbox-0")));
        project.ends(provider, two).await;
    }
}

#[tokio::test]
async fn files_and_directories_are_brought_in_and_out() {
    let Some(project) = Project::new() else { return };
    project.write("x", "1");
    let (provider, sandbox) = project.sandbox().await;
    let here = tempfile::tempdir().unwrap();
    std::fs::write(here.path().join("in"), "brought in").unwrap();
    sandbox.upload(&here.path().join("in"), Path::new("new/place")).await.unwrap();
    said(&*sandbox, "mkdir -p out/deep; cat new/place >out/deep/file; ln -s deep/file out/link; ln -s out it").await;
    let pairs = [("out/deep/file", "file"), ("it/link", "by-link"), ("it", "all")];
    let pairs = pairs.map(|(there, name)| (PathBuf::from(there), here.path().join(name)));
    sandbox.download(&pairs).await.unwrap();
    for name in ["file", "by-link", "all/deep/file", "all/link"] {
        assert_eq!(std::fs::read_to_string(here.path().join(name)).unwrap(), "brought in", "{name}");
    }
    let none = [(PathBuf::from("none"), here.path().join("none"))];
    let error = sandbox.download(&none).await.unwrap_err().to_string();
    assert_eq!(error, "cannot bring none out of the sandbox 127.0.0.1-0: there is no such file");
    let error = sandbox.upload(Path::new("/no such"), Path::new("x")).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot bring /no such into the sandbox 127.0.0.1-0: cannot read /no such"), "{error}");
    project.ends(provider, sandbox).await;
}

#[tokio::test]
async fn a_repository_may_be_elsewhere_in_the_sandboxes() {
    let Some(project) = Project::new() else { return };
    let project = project.with(|config, _| config.offload.sandbox_repo_root = Some("/app/code".to_owned()));
    project.write("x", "1");
    let (provider, sandbox) = project.sandbox().await;
    assert_eq!(said(&*sandbox, "pwd; echo $OFFLOAD_ROOT; cat /app/code/x").await, "/app/code\n/app/code\n1");
    assert!(!sandbox.has_same_paths());
    project.ends(provider, sandbox).await;
}

#[tokio::test]
async fn users_without_rights_see_files_where_they_are_expected_and_are_themselves() {
    let Some(sshd) = Sshd::with_plain_user("") else { return };
    let project = Project::on(sshd);
    project.write("x", "1");
    let built = Built {
        copies: vec![CopyDir { local: project.root().join("x"), remote: "/.offload/worker".into() }],
        ..Built::default()
    };
    let provider = project.provider();
    let request = SandboxRequest { built: Arc::new(built), ..SandboxRequest::default() };
    let sandbox = provider.create_sandbox(&request).await.unwrap();
    let Some(()) = provider.warnings().is_empty().then_some(()) else {
        eprintln!("skipped: this kernel gives users no namespaces");
        return;
    };
    assert_eq!(
        said(&*sandbox, "pwd; cat x /.offload/worker; echo 2 >x; id -u").await,
        format!("{}\n11{}", project.root().display(), plain_user())
    );
    assert!(!Path::new("/.offload").exists());
    // At its time limit such a command ends, too.
    let command = Command { timeout: Some(std::time::Duration::from_millis(300)), ..Command::shell("sleep 1000") };
    assert_eq!(run(&*sandbox, &command).await.unwrap().exit_code, None);
    project.ends(provider, sandbox).await;
}

fn plain_user() -> u32 {
    let user = rustix::process::getuid();
    if user.is_root() { 65534 } else { user.as_raw() }
}

#[tokio::test]
async fn a_host_without_views_runs_tests_in_a_directory_of_its_own() {
    let hide = "mkdir -p /tmp/$$ && ln -s /usr/bin/* /tmp/$$ && rm -f /tmp/$$/unshare /tmp/$$/flock; PATH=/tmp/$$; export PATH";
    let hide = hide.replace("/tmp/$$", "$(dirname $0)/bare");
    let hide = hide.replace("mkdir -p", "[ -d $(dirname $0)/bare ] || mkdir");
    let Some(sshd) = Sshd::with_plain_user(&hide) else { return };
    let project = Project::on(sshd);
    project.write("sub/x", "1");
    let (provider, sandbox) = project.sandbox().await;
    let there = said(&*sandbox, "pwd").await;
    assert!(there.ends_with(&format!("/tree{}", project.root().display())), "{there}");
    assert!(there.starts_with(project.sshd.workdir().to_str().unwrap()), "{there}");
    assert_eq!(said(&*sandbox, "echo $OFFLOAD_ROOT; cat sub/x").await, format!("{there}\n1"));
    let mut command = Command::shell("cat x; echo result >r");
    command.working_dir = Some(project.root().join("sub"));
    assert_eq!(run(&*sandbox, &command).await.unwrap().stdout, b"1");
    let here = project.sshd.path("r");
    sandbox.download(&[(project.root().join("sub/r"), here.clone())]).await.unwrap();
    assert_eq!(std::fs::read_to_string(here).unwrap(), "result\n");
    let warnings = provider.warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("gives no view of its file system"), "{warnings:?}");
    assert_eq!(provider.warnings(), [""; 0]);
    assert!(!sandbox.has_same_paths());
    project.ends(provider, sandbox).await;
}
