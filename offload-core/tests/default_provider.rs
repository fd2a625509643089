//! The provider `default` with real shell scripts: a sandbox is a temporary directory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use offload_core::cache::ImageCache;
use offload_core::config::{Config, DefaultProviderConfig, ProviderConfig};
use offload_core::connector::collect;
use offload_core::provider::default::DefaultProvider;
use offload_core::provider::{Command, ExecOutput, ProviderError, Sandbox, SandboxProvider, SandboxRequest};

/// A directory whose name has everything in it that shells trip over, but for a newline: ids are lines.
fn nasty_dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("it's \"a\" $HOME `id` \\ {command} ;& ").tempdir().unwrap()
}

/// Sandboxes by the bundled script, made in `base`, of a project in `base`.
fn tempdir_config(base: &Path) -> DefaultProviderConfig {
    let project = base.join("project $x");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("data.txt"), "data").unwrap();
    DefaultProviderConfig {
        prepare_command: Some("@tempdir_sandbox.sh prepare .".to_owned()),
        create_command: "@tempdir_sandbox.sh create {image_id}".to_owned(),
        exec_command: "@tempdir_sandbox.sh exec {sandbox_id} {command}".to_owned(),
        destroy_command: "@tempdir_sandbox.sh destroy \"{sandbox_id}\"".to_owned(),
        download_command: Some("@tempdir_sandbox.sh download '{sandbox_id}' {paths}".to_owned()),
        working_dir: Some(project),
        env: BTreeMap::from([("OFFLOAD_SANDBOX_DIR".to_owned(), base.to_str().unwrap().to_owned())]),
        ..DefaultProviderConfig::default()
    }
}

/// Commands that do nothing but what a test is about.
fn stub(exec: &str) -> DefaultProviderConfig {
    DefaultProviderConfig {
        create_command: "echo the-id".to_owned(),
        exec_command: exec.to_owned(),
        destroy_command: "true".to_owned(),
        ..DefaultProviderConfig::default()
    }
}

async fn create(config: DefaultProviderConfig) -> Box<dyn Sandbox> {
    DefaultProvider::new(config).create_sandbox(&SandboxRequest::default()).await.unwrap()
}

async fn exec(sandbox: &dyn Sandbox, command: &Command) -> ExecOutput {
    collect(sandbox.exec_stream(command).await.unwrap(), 1 << 24).await.unwrap()
}

async fn exec_text(sandbox: &dyn Sandbox, line: &str) -> String {
    let output = exec(sandbox, &Command::shell(line)).await;
    assert_eq!(output.exit_code, Some(0), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_sandbox_lives_from_create_to_destroy() {
    let base = nasty_dir();
    let provider = DefaultProvider::new(tempdir_config(base.path()));
    provider.prepare().await.unwrap();
    let request = SandboxRequest {
        env: BTreeMap::from([("FROM_REQUEST".to_owned(), "r's \"$\"\n".to_owned())]),
        ..SandboxRequest::default()
    };
    let one = provider.create_sandbox(&request).await.unwrap();
    let two = provider.create_sandbox(&request).await.unwrap();
    assert!(one.id().starts_with(base.path().to_str().unwrap()), "{}", one.id());

    // Arguments, environment and exit code arrive as they are.
    let mut command =
        Command::new("sh", ["-c", "cat data.txt; printf '|%s' \"$FROM_REQUEST\" \"$OWN\" \"$@\"; exit 3", "-"]);
    command.args.extend(["a  b", "it's", "\"$HOME\" `id`", "two\nlines\n", "", "{sandbox_id}"].map(str::to_owned));
    command.env.insert("OWN".to_owned(), "'o'\n".to_owned());
    let output = exec(&*one, &command).await;
    let expected = "data|r's \"$\"\n|'o'\n|a  b|it's|\"$HOME\" `id`|two\nlines\n||{sandbox_id}";
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    assert_eq!(output.exit_code, Some(3));

    // Sandboxes have nothing in common.
    exec_text(&*one, "echo changed >data.txt; echo new >'a new $file'").await;
    assert_eq!(exec_text(&*two, "cat data.txt; ls").await, "datadata.txt\n");

    let out = base.path().join("out");
    let pairs = [("data.txt".into(), out.join("one\n'$x'")), ("./a new $file".into(), out.join("two"))];
    one.download(&pairs).await.unwrap();
    assert_eq!(fs::read_to_string(out.join("one\n'$x'")).unwrap(), "changed\n");
    assert_eq!(fs::read_to_string(out.join("two")).unwrap(), "new\n");
    let error = one.download(&[("gone".into(), out.join("gone"))]).await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("`download_command` failed: exit code 1. It ran: "), "{text}");

    let places = [PathBuf::from(one.id()), PathBuf::from(two.id())];
    one.terminate().await.unwrap();
    one.terminate().await.expect("once is enough");
    two.terminate().await.unwrap();
    assert!(places.iter().all(|place| !place.exists()));
    assert_eq!(fs::read_to_string(base.path().join("project $x/data.txt")).unwrap(), "data");
}

#[tokio::test]
async fn ids_with_newlines_survive_in_every_kind_of_quotes() {
    let id = "line one\nit's \"two\" $HOME `id` \\";
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("id"), id).unwrap();
    for template in
        ["printf %s {image_id} | od -c", "printf %s \"{image_id}\" | od -c", "printf %s '{image_id}' | od -c"]
    {
        let provider = DefaultProvider::new(DefaultProviderConfig {
            create_command: format!("{template} | tr -d '\\n'; echo"),
            ..stub("sh -c {command}")
        })
        .with_image_id(id);
        let expected = DefaultProvider::new(DefaultProviderConfig {
            create_command: "cat id | od -c | tr -d '\\n'; echo".to_owned(),
            working_dir: Some(dir.path().to_owned()),
            ..stub("sh -c {command}")
        });
        let request = SandboxRequest::default();
        let id = provider.create_sandbox(&request).await.unwrap().id().to_owned();
        assert_eq!(id, expected.create_sandbox(&request).await.unwrap().id(), "{template}");
    }
}

#[tokio::test]
async fn the_last_line_is_the_id() {
    let provider = DefaultProvider::new(DefaultProviderConfig {
        prepare_command: Some("echo building; echo ' image 1 '; echo; echo ' '".to_owned()),
        create_command: "echo hello; echo \"sandbox of {image_id}\"".to_owned(),
        ..stub("true")
    });
    let sandbox = provider.create_sandbox(&SandboxRequest::default()).await.unwrap();
    assert_eq!(sandbox.id(), "sandbox of image 1");
}

#[tokio::test]
async fn a_json_reply_is_what_it_says() {
    let reply = r#"printf '\n {"exit_code": 5, "stdout": "o\\u00e9\\n", "stderr": "e", "more": []} \n'; exit 1"#;
    let output = exec(&*create(stub(reply)).await, &Command::shell("x")).await;
    assert_eq!((output.exit_code, output.stdout.as_slice()), (Some(5), "oé\n".as_bytes()));
    assert_eq!(output.stderr, b"e");
}

#[tokio::test]
async fn what_is_no_reply_passes_as_it_came() {
    for text in [
        "plain {\"exit_code\": 5, \"stdout\": \"\"}",
        "{\"exit_code\": 5}",
        "{\"exit_code\": \"5\", \"stdout\": \"\"}",
        "{\"exit_code\": 5, \"stdout\": \"\"} and more",
        "{\"exit_code\": 5, \"stdout\": ",
        "{",
        "  ",
    ] {
        let output = exec(&*create(stub(&format!("printf %s '{text}'; exit 4"))).await, &Command::shell("x")).await;
        assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
        assert_eq!(output.exit_code, Some(4));
    }
}

#[tokio::test]
async fn files_come_in_without_a_command_for_it() {
    let base = nasty_dir();
    let tree = base.path().join("tree of 'files'");
    fs::create_dir_all(tree.join("deep")).unwrap();
    let blob: Vec<u8> = (0..200_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(tree.join("deep/blob"), &blob).unwrap();
    fs::write(tree.join("run"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(tree.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("deep/blob", tree.join("link")).unwrap();

    let mut config = tempdir_config(base.path());
    config.copy_dirs = vec![(tree.clone(), "copied by 'config'".into())];
    config.download_command = None;
    let sandbox = create(config).await;
    assert_eq!(exec_text(&*sandbox, "cd 'copied by '\\''config'\\'; ./run; readlink link").await, "ran\ndeep/blob\n");
    sandbox.upload(&tree.join("run"), Path::new("new/dir/$name")).await.unwrap();
    assert_eq!(exec_text(&*sandbox, "'new/dir/$name'; ls -A new/dir").await, "ran\n$name\n");

    // And out again, without a command for that either.
    let back = base.path().join("back");
    let pairs = [("copied by 'config'".into(), back.clone()), ("new/dir/$name".into(), base.path().join("one"))];
    sandbox.download(&pairs).await.unwrap();
    assert_eq!(fs::read(back.join("deep/blob")).unwrap(), blob);
    assert_eq!(fs::read_link(back.join("link")).unwrap(), Path::new("deep/blob"));
    assert_eq!(fs::read_to_string(base.path().join("one")).unwrap(), "#!/bin/sh\necho ran\n");
    let error = sandbox.download(&[("gone $x".into(), back)]).await.unwrap_err().to_string();
    assert!(
        error.starts_with("cannot read gone $x in the sandbox ") && error.ends_with("there is no such file"),
        "{error}"
    );
    sandbox.terminate().await.unwrap();
}

#[tokio::test]
async fn a_command_that_no_argument_can_hold_runs_all_the_same() {
    let base = nasty_dir();
    let sandbox = create(tempdir_config(base.path())).await;
    let long = "it's $x ".repeat(40_000);
    let mut command = Command::shell(format!(
        "x={}; printf '%s %s' \"${{#x}}\" \"$OWN\"; exit 6",
        offload_core::connector::quote(&long)
    ));
    command.env.insert("OWN".to_owned(), "o'".to_owned());
    let output = exec(&*sandbox, &command).await;
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{} o'", long.len()));
    assert_eq!(output.exit_code, Some(6));
    sandbox.terminate().await.unwrap();
}

#[tokio::test]
async fn the_roots_reach_the_commands() {
    let config = Config {
        provider: ProviderConfig::Default(DefaultProviderConfig {
            create_command: "echo \"$OFFLOAD_ROOT-$OFFLOAD_SANDBOX_NAME-$OFFLOAD_SANDBOX_INDEX-$OFFLOAD_CPU_CORES\""
                .to_owned(),
            cpu_cores: 0.5,
            ..stub("env -i /bin/sh -c {command}")
        }),
        offload: offload_core::config::OffloadConfig {
            sandbox_repo_root: Some("/usr".to_owned()),
            sandbox_project_root: Some("/usr/bin".to_owned()),
            ..Default::default()
        },
        ..Config::default()
    };
    let provider = DefaultProvider::from_config(&config).unwrap();
    let request = SandboxRequest { name: "run-1".to_owned(), index: 1, ..SandboxRequest::default() };
    let sandbox = provider.create_sandbox(&request).await.unwrap();
    assert_eq!(sandbox.id(), "/usr-run-1-1-0.5");
    assert_eq!(exec_text(&*sandbox, "echo $OFFLOAD_ROOT; pwd").await, "/usr\n/usr/bin\n");
    let error = DefaultProvider::from_config(&Config::default()).unwrap_err();
    assert!(matches!(error, ProviderError::Unusable(_)), "{error}");
}

#[tokio::test]
async fn failures_say_what_ran_and_what_it_said() {
    let request = SandboxRequest::default();
    let failing = |prepare: Option<&str>, create: &str| {
        DefaultProvider::new(DefaultProviderConfig {
            prepare_command: prepare.map(str::to_owned),
            create_command: create.to_owned(),
            ..stub("true")
        })
    };
    let error = failing(Some("echo no cloud today >&2; exit 9"), "true").prepare().await.unwrap_err();
    assert!(matches!(error, ProviderError::Unusable(_)));
    assert_eq!(
        error.to_string(),
        "`prepare_command` failed: exit code 9. It ran: echo no cloud today >&2; exit 9\n  no cloud today"
    );
    let error = failing(None, "echo quota; kill -9 $$").create_sandbox(&request).await.map(drop).unwrap_err();
    assert!(matches!(error, ProviderError::Create(_)), "may be tried again");
    assert_eq!(
        error.to_string(),
        "`create_command` failed: killed by signal 9 (SIGKILL). It ran: echo quota; kill -9 $$\n  quota"
    );
    for (prepare, create, text) in [
        (Some("true"), "true", "`prepare_command` printed no image id"),
        (None, "true", "`create_command` printed no sandbox id"),
        (None, "echo {image_id}", "`create_command` in [provider] names {image_id}, but nothing makes an image"),
        (None, "@nothing.sh", "no bundled script is called @nothing.sh; there is @tempdir_sandbox.sh"),
    ] {
        let error = failing(prepare, create).create_sandbox(&request).await.map(drop).unwrap_err();
        assert!(error.to_string().starts_with(text), "{error}");
    }

    let config = DefaultProviderConfig { destroy_command: "echo in use >&2; false".to_owned(), ..stub("true") };
    assert_eq!(
        create(config).await.terminate().await.unwrap_err().to_string(),
        "the sandbox the-id may have been left behind: `destroy_command` failed: exit code 1. It ran: echo in use >&2; \
         false\n  in use"
    );
}

#[tokio::test]
async fn commands_have_their_time_limits() {
    let config = DefaultProviderConfig { timeout: Duration::from_millis(200), ..stub("sleep 1000") };
    let output = exec(&*create(config).await, &Command::shell("x")).await;
    assert_eq!(output.exit_code, None, "the provider's limit");
    let command = Command { timeout: Some(Duration::from_millis(200)), ..Command::shell("sleep 1000") };
    let output = exec(&*create(stub("sh -c {command}")).await, &command).await;
    assert_eq!(output.exit_code, None, "the command's own limit");
    let config = DefaultProviderConfig {
        create_command: "sleep 1000".to_owned(),
        timeout: Duration::from_millis(1200),
        ..stub("true")
    };
    let error = DefaultProvider::new(config).create_sandbox(&SandboxRequest::default()).await.map(drop).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`create_command` failed: ended at its time limit of 1 s (`timeout_secs` in [provider]). It ran: sleep 1000"
    );
}

#[tokio::test]
async fn an_image_is_remembered_until_an_input_changes_or_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("Dockerfile");
    fs::write(&input, "1").unwrap();
    let provider = || {
        let config = DefaultProviderConfig {
            prepare_command: Some("echo x >>runs; wc -l <runs".to_owned()),
            create_command: "test ! -e gone && echo of-{image_id}".to_owned(),
            working_dir: Some(dir.path().to_owned()),
            ..stub("true")
        };
        DefaultProvider::new(config).with_cache(ImageCache::new(dir.path().join("cache.json")), vec![input.clone()])
    };
    let id = async |provider: DefaultProvider| {
        provider.create_sandbox(&SandboxRequest::default()).await.map(|sandbox| sandbox.id().to_owned())
    };
    assert_eq!(id(provider()).await.unwrap(), "of-1");
    assert_eq!(id(provider()).await.unwrap(), "of-1");
    fs::write(&input, "2").unwrap();
    assert_eq!(id(provider()).await.unwrap(), "of-2");
    assert_eq!(id(provider().without_cache()).await.unwrap(), "of-3");
    assert_eq!(id(provider().with_image_id("mine")).await.unwrap(), "of-mine");
    fs::write(dir.path().join("gone"), "").unwrap();
    let error = id(provider()).await.unwrap_err().to_string();
    assert!(error.ends_with("It was forgotten: if it is gone, the next run prepares it anew."), "{error}");
    fs::remove_file(dir.path().join("gone")).unwrap();
    assert_eq!(id(provider()).await.unwrap(), "of-4");
}
