//! What breaks around containers: what the user is told, and that nothing of ours stays.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use crate::daemon::Daemon;
use crate::docker::{Project, SHELL_TESTS, socket};
use crate::docker_support::{docker, image};
use crate::support::{Run, cargo_offload, manifest, offload};

/// An image that lives as long as this does: that of the tests, after a shell line has run in it.
struct Image(String);

impl Image {
    fn without(name: &str, line: &str) -> Option<Self> {
        let (tag, container) = (format!("offload-test:without-{name}"), format!("offload-test-without-{name}"));
        docker(&["run", "--name", &container, &image()?, "/bin/sh", "-c", line]);
        docker(&["commit", &container, &tag]);
        docker(&["rm", &container]);
        Some(Self(tag))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rmi", "--force", &self.0]).output();
    }
}

/// A file system of 64 KiB that lives as long as this does.
struct SmallVolume(String);

impl SmallVolume {
    fn new(name: &str) -> Self {
        let options = ["--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=64k"];
        docker(&[&["volume", "create", "--driver", "local"], &options[..], &[name]].concat());
        Self(name.to_owned())
    }
}

impl Drop for SmallVolume {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["volume", "rm", "--force", &self.0]).output();
    }
}

const PYTEST: &str = "[framework]\ntype = \"pytest\"\ncommand = \"python3 -m pytest\"\n[offload]\nmax_parallel = 1\n\
                      sandbox_repo_root = \"/project\"\n";

#[test]
fn an_image_without_python_or_pytest_is_told() {
    for (name, line, said) in [
        ("python", "rm /usr/bin/python3*", ": there is no Python\n  /bin/sh: 1: exec: python3: not found\n"),
        (
            "pytest",
            "rm -r /usr/lib/python3/dist-packages/*pytest*",
            "There is no pytest for the Python in the image offload-test:without-pytest",
        ),
    ] {
        let Some(lacking) = Image::without(name, line) else { return };
        let Some(project) = Project::new(PYTEST, &[("t/test_it.py", "def test(): pass\ndef test_2(): pass\n")]) else {
            return;
        };
        let mut command = offload(project.dir());
        command.env("OFFLOAD_PROVIDER_IMAGE", &lacking.0);
        let run = Run::new(command, ["run"]).exits(3).says(said);
        assert_eq!(run.stderr.matches("error:").count(), 1, "{}", run.stderr);
        assert_eq!(project.containers(), "");
    }
}

#[test]
fn whoever_may_not_use_the_daemon_is_told() {
    let Some(project) = Project::new(SHELL_TESTS, &[("t/a.sh", "")]) else { return };
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    // Nobody but root may go there; root may go anywhere.
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let program = project.dir().join("offload");
    std::fs::copy(env!("CARGO_BIN_EXE_offload"), &program).unwrap();
    for path in [project.dir(), program.as_path()] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).arg("build");
    command.current_dir(project.dir()).env("DOCKER_HOST", format!("unix://{}", socket.display()));
    let run = Run::from_output(command.output().unwrap(), tempfile::tempdir().unwrap()).exits(3);
    assert_eq!(
        run.stderr,
        format!(
            "error: you are not permitted to use the Docker daemon at unix://{}; join its group (`sudo usermod -aG docker \
             $USER`, then log in again), or run Docker rootless\n",
            socket.display()
        )
    );
}

/// The daemon of the tests at another address, where it says that the newest API that it knows is of version 1.24, as
/// Docker 1.12 did: no Docker as old as that can be had.
fn aged(at: &Path) {
    let behind = socket();
    let listener = UnixListener::bind(at).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, daemon) = (client.unwrap(), UnixStream::connect(&behind).unwrap());
            let (mut asked, mut asks) = (client.try_clone().unwrap(), daemon.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut asked, &mut asks);
                let _ = asks.shutdown(Shutdown::Write);
            });
            std::thread::spawn(move || {
                let (mut daemon, mut client, mut buffer) = (daemon, client, [0; 1 << 16]);
                while let Ok(length @ 1..) = daemon.read(&mut buffer) {
                    let answer = &mut buffer[..length];
                    let key = b"\"ApiVersion\":\"1.";
                    for at in 0..answer.len().saturating_sub(key.len() + 2) {
                        if answer[at..].starts_with(key) {
                            answer[at + key.len()..][..2].copy_from_slice(b"24");
                        }
                    }
                    if client.write_all(answer).is_err() {
                        break;
                    }
                }
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
}

#[test]
fn a_daemon_that_is_too_old_is_told() {
    let Some(project) = Project::new(SHELL_TESTS, &[("t/a.sh", "")]) else { return };
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    aged(&socket);
    let mut command = offload(project.dir());
    command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
    let run = Run::new(command, ["run"]).exits(3);
    let told = format!(
        "the Docker daemon at unix://{} is too old: it knows version 1.24 of the API, and Offload needs 1.41, which is in \
         Docker 20.10 and newer; update it\n",
        socket.display()
    );
    assert_eq!(run.stderr.matches(&told).count(), 1, "{}", run.stderr);
    assert_eq!(project.containers(), "");
}

/// A runtime for containers whose root cannot be written to: Docker's own, told so.
const READ_ONLY_RUNTIME: &str = r#"#!/bin/sh
for word; do
    if test "$last" = --bundle; then sed -i 's/"root":{/"root":{"readonly":true,/' "$word/config.json"; fi
    last=$word
done
exec runc "$@"
"#;

#[test]
fn where_nothing_can_be_written_those_tests_fail_that_write() {
    let config = |framework: &str| format!("network = \"none\"\n{framework}");
    let Some(project) = Project::new(&config(SHELL_TESTS), &[("t/a.sh", "exit 0\n"), ("t/b.sh", "echo >x\n")]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let runtime = dir.path().join("runtime");
    std::fs::write(&runtime, READ_ONLY_RUNTIME).unwrap();
    std::fs::set_permissions(&runtime, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let options = [format!("--add-runtime=readonly={}", runtime.display()), "--default-runtime=readonly".to_owned()];
    let daemon = Daemon::with_image(options.to_vec());
    let run = |project: &Project| {
        let mut command = offload(project.dir());
        command.env("DOCKER_HOST", daemon.host());
        Run::new(command, ["run"])
    };
    run(&project).exits(1).says("1 passed, 1 failed").says("cannot create x: Read-only file system");

    let tests = "def test_reads(): open('offload.toml').close()\ndef test_writes(): open('x', 'w').close()\n\
                 def test_tmp_path(tmp_path): (tmp_path / 'x').touch()\n";
    let project = Project::new(&config(PYTEST), &[("t/test_it.py", tests)]).unwrap();
    run(&project).exits(1).says("2 passed, 1 failed").says("Read-only file system: 'x'");
    let toml = project.dir().join("offload.toml");
    let text = std::fs::read_to_string(&toml).unwrap();
    std::fs::write(&toml, format!("{text}sandbox_init_cmd = \"echo >/x\"\n")).unwrap();
    run(&project).exits(3).says("cannot create /x: Read-only file system");

    // Not even memory that processes share.
    let none = format!("mounts = [\"{}:/dev/shm:ro\"]\n{PYTEST}", dir.path().display());
    let project = Project::new(&config(&none), &[("t/test_it.py", tests)]).unwrap();
    let told = run(&project).exits(3).says("The template process of pytest cannot be started in the image ");
    told.says("No usable temporary directory found in ['/tmp', ").says("; mount one there that can be written to");
    assert_eq!(daemon.containers(), "");
}

#[test]
fn a_test_that_eats_all_memory_fails_and_others_pass() {
    let config = format!("memory = \"48m\"\n{SHELL_TESTS}");
    let files = [("t/a.sh", "python3 -c 'x = bytearray(200 << 20)'\n"), ("t/b.sh", "exit 0\n")];
    let Some(project) = Project::new(&config, &files) else { return };
    let run = project.run(&["run"]).exits(1).says("1 passed, 1 failed");
    run.says("the container ran out of memory (`memory` in [provider])");
    assert_eq!(project.containers(), "");
}

#[test]
fn a_disk_that_is_full_or_cannot_be_written_is_told_as_such() {
    let Some(project) = Project::new(SHELL_TESTS, &[]) else { return };
    let small = SmallVolume::new("offload-test-small");
    let write = |config: &str| {
        let text = format!("[provider]\ntype = \"docker\"\nimage = \"{}\"\n{config}", image().unwrap());
        std::fs::write(project.dir().join("offload.toml"), text).unwrap();
    };
    std::fs::create_dir_all(project.dir().join("t")).unwrap();
    // A test fills the disk: that is its failure, and no one else's.
    let fills = "import os\ndef test_fills():\n    with open('/full/x', 'wb') as file: file.write(bytes(1 << 20))\n\
                 def test_other(): pass\n";
    std::fs::write(project.dir().join("t/test_it.py"), fills).unwrap();
    write(&format!("mounts = [\"{}:/full\"]\n{PYTEST}", small.0));
    project.run(&["run"]).exits(1).says("1 passed, 1 failed").says("No space left on device");
    // Nothing of ours fits.
    write(&format!("mounts = [\"{}:/tmp\"]\n{PYTEST}", small.0));
    std::fs::write(project.dir().join("t/test_it.py"), "def test(): pass\ndef test_2(): pass\n").unwrap();
    let line = "dd if=/dev/zero of=/full/fill bs=1k count=1000 2>/dev/null; sleep 1000";
    let volume = format!("{}:/full", small.0);
    let held = docker(&["run", "--detach", "--volume", &volume, &image().unwrap(), "/bin/sh", "-c", line]);
    crate::support::wait_until("the disk is full", || {
        docker(&["exec", &held, "/bin/sh", "-c", "df /full | tail -n 1"]).contains("100%")
    });
    // The worker finds another place, a pytest command needs this one.
    project.run(&["run"]).exits(0).says("2 passed");
    let commands = PYTEST.replace("[offload]", "collect = \"local\"\n[offload]");
    write(&format!("mounts = [\"{}:/tmp\"]\n{commands}", small.0));
    project.run(&["run"]).exits(3).says("No space left on device");
    docker(&["rm", "--force", &held]);
    let only_read = tempfile::tempdir().unwrap();
    write(&format!("mounts = [\"{}:/tmp:ro\"]\n{commands}", only_read.path().display()));
    project.run(&["run"]).exits(3).says("Read-only file system");
    assert_eq!(project.containers(), "");
}

#[test]
fn a_binary_whose_c_library_is_not_there_is_told() {
    let Some(image) = image() else { return };
    let Some(project) = Project::new("", &[]) else { return };
    std::fs::remove_file(project.dir().join("offload.toml")).unwrap();
    std::fs::create_dir(project.dir().join("src")).unwrap();
    std::fs::write(project.dir().join("Cargo.toml"), manifest("needs-a-loader")).unwrap();
    std::fs::write(project.dir().join("src/lib.rs"), "#[test] fn runs() {}\n").unwrap();
    // A loader that is here and not there, as one of another C library is.
    let here = tempfile::tempdir().unwrap();
    let loader = here.path().join("ld.so");
    std::os::unix::fs::symlink("/lib64/ld-linux-x86-64.so.2", &loader).unwrap();
    let mut command = cargo_offload(project.dir());
    command.env("OFFLOAD_PROVIDER_IMAGE", image);
    command.env("RUSTFLAGS", format!("-C link-arg=-Wl,--dynamic-linker={}", loader.display()));
    let run = Run::new(command, ["--provider", "docker", "-j", "1"]);
    run.exits(1).says("it was built for another C library than there is here").says("take a system, such as an image");
    assert_eq!(project.containers(), "");
}
