//! `--provider docker`, from a command line to containers that are gone.

use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::Daemon;
use crate::docker_support::{docker, image};
use crate::sshd_support::Sshd;
use crate::support::{Run, cargo_offload, offload, wait_until};

/// A project whose images are removed at the end.
pub struct Project(tempfile::TempDir);

impl Project {
    /// With these files and, as `offload.toml`, `config` after a `[provider]` for the image of the tests; `None` where
    /// there is no daemon.
    pub fn new(config: &str, files: &[(&str, &str)]) -> Option<Self> {
        let image = image()?;
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("offload.toml", &format!("[provider]\ntype = \"docker\"\nimage = \"{image}\"\n{config}"));
        for (path, text) in files {
            write(path, text);
        }
        Some(Self(dir))
    }

    pub fn dir(&self) -> &Path {
        self.0.path()
    }

    pub fn run(&self, args: &[&str]) -> Run {
        Run::new(offload(self.dir()), args)
    }

    pub fn label(&self) -> String {
        format!("label=offload.project={}", self.dir().canonicalize().unwrap().display())
    }

    /// How many of the project's containers have a file `/begun`.
    fn begun(&self) -> usize {
        let begun = |id: &&str| {
            let mut docker = std::process::Command::new("docker");
            docker.args(["exec", id, "test", "-e", "/begun"]).output().unwrap().status.success()
        };
        self.containers().lines().filter(begun).count()
    }

    pub fn containers(&self) -> String {
        docker(&["ps", "--all", "--quiet", "--filter", &self.label()])
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        self.run(&["clean"]).exits(0);
    }
}

const PYTEST: &str = "[framework]\ntype = \"pytest\"\ncommand = \"python3 -m pytest\"\n[offload]\nmax_parallel = 2\n";

/// Shell scripts as tests, each alone in its command.
pub const SHELL_TESTS: &str = r#"
[framework]
type = "default"
discover_command = "ls t/*.sh"
run_command = "for test in {tests}; do sh \"$test\" || exit 1; done"
test_id_format = "{name}"

[groups.each]
schedule_individual = true

[offload]
max_parallel = 2
"#;

#[test]
fn pytest_runs_in_containers_and_paths_are_those_of_the_repository() {
    let tests = "import os, pytest\n\
                 def test_passes(): assert open('/proc/1/comm').read() == 'sh\\n'\n\
                 def test_fails(): print('from the container'); assert os.getcwd() == 'elsewhere'\n\
                 @pytest.mark.skip(reason='why not')\n\
                 def test_skipped(): pass\n";
    let Some(project) = Project::new(PYTEST, &[("tests/test_it.py", tests)]) else { return };
    let run = project.run(&["run"]).exits(1).says("1 passed, 1 failed, 1 skipped").says("from the container");
    // The directory of the tests is where it is here.
    let run = run.says(&format!("assert '{}' == 'elsewhere'", project.dir().canonicalize().unwrap().display()));
    assert_eq!(run.junit().cases.len(), 3);
    assert_eq!(project.containers(), "");
}

#[test]
fn any_framework_runs_in_containers_from_the_command_line_alone() {
    let files =
        [("t/good.sh", "read first </proc/1/comm; test $first = sh\n"), ("t/bad.sh", "echo what went wrong; exit 1\n")];
    let Some(project) = Project::new(SHELL_TESTS, &files) else { return };
    let config = std::fs::read_to_string(project.dir().join("offload.toml")).unwrap();
    let framework = config.split("[framework]").nth(1).unwrap();
    std::fs::write(project.dir().join("offload.toml"), format!("[provider]\ntype = \"local\"\n[framework]{framework}"))
        .unwrap();
    project.run(&["run"]).exits(1).says("2 failed");
    let mut command = offload(project.dir());
    command.env("OFFLOAD_PROVIDER_IMAGE", image().unwrap());
    Run::new(command, ["run", "--provider", "docker"]).exits(1).says("1 passed, 1 failed").says("what went wrong");
}

#[test]
fn however_a_run_ends_no_container_stays() {
    for signal in [Signal::INT, Signal::KILL] {
        let files = [("t/a.sh", "touch /begun; sleep 1000\n"), ("t/b.sh", "touch /begun; sleep 1000\n")];
        let Some(project) = Project::new(SHELL_TESTS, &files) else { return };
        let mut command = offload(project.dir());
        let mut run = command.arg("run").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until("two tests run in containers", || project.begun() == 2);
        kill_process(Pid::from_child(&run), signal).unwrap();
        let status = run.wait().unwrap();
        if signal == Signal::INT {
            assert_eq!(status.code(), Some(130));
            assert_eq!(project.containers(), "");
        }
        wait_until("the containers are gone", || project.containers().is_empty());
    }
}

#[test]
fn a_run_that_ends_while_its_image_is_made_leaves_nothing() {
    for signal in [Signal::INT, Signal::KILL] {
        let config = format!("{SHELL_TESTS}sandbox_init_cmd = \"touch /begun; sleep 1000\"\n");
        let Some(project) = Project::new(&config, &[("t/a.sh", "")]) else { return };
        let mut command = offload(project.dir());
        let mut run = command.arg("run").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until("the image is being made", || project.begun() == 1);
        kill_process(Pid::from_child(&run), signal).unwrap();
        let status = run.wait().unwrap();
        if signal == Signal::INT {
            assert_eq!((status.code(), project.containers().as_str()), (Some(130), ""));
        }
        wait_until("the container is gone", || project.containers().is_empty());
    }
}

#[test]
fn what_was_created_and_never_started_goes_with_the_next_run() {
    let Some(project) = Project::new(SHELL_TESTS, &[("t/a.sh", "")]) else { return };
    let label = project.label();
    let label = label.strip_prefix("label=").unwrap();
    docker(&["create", "--label", label, "--label", "offload.owner=another-host:1:1", &image().unwrap(), "/bin/sh"]);
    assert_ne!(project.containers(), "");
    project.run(&["run"]).exits(0);
    assert_eq!(project.containers(), "");
}

#[test]
fn what_others_have_made_from_an_image_of_ours_stays() {
    let Some(project) = Project::new(SHELL_TESTS, &[("t/a.sh", "")]) else { return };
    project.run(&["run"]).exits(0);
    let images = || docker(&["images", "--quiet", "--no-trunc", "--filter", &project.label()]);
    let ours = images().lines().next().unwrap().to_owned();
    let name = format!("offload-test-{}", std::process::id());
    // It has the labels of the image, as has what is made from it.
    docker(&["create", "--name", &name, &ours, "/bin/sh"]);
    docker(&["commit", &name, &name]);
    project.run(&["run"]).exits(0);
    project.run(&["clean"]);
    let containers = project.containers();
    docker(&["rm", &name]);
    let clean = project.run(&["clean"]);
    let images = images();
    docker(&["rmi", &name]);
    assert_eq!(containers.lines().count(), 1, "theirs stays");
    assert_eq!(clean.code, Some(0), "{}", clean.text());
    assert_eq!(images.lines().count(), 1, "theirs stays:\n{images}");
    assert!(!images.contains(&ours), "ours is gone");
}

#[test]
fn two_runs_at_once_do_not_disturb_each_other() {
    let seen = tempfile::tempdir().unwrap();
    // Each waits for the other, writes where the other reads, and finds its own.
    let test = "hostname=$(cat /etc/hostname)\necho $hostname >state; touch /seen/$hostname\n\
                until [ $(ls /seen | wc -l) -ge 2 ]; do sleep 0.05; done\nsleep 0.3; test $(cat state) = $hostname\n";
    let mounts = format!("mounts = [\"{}:/seen\"]\n{SHELL_TESTS}", seen.path().display());
    let Some(project) = Project::new(&mounts, &[("t/a.sh", test)]) else { return };
    let runs: Vec<_> = std::iter::repeat_with(|| {
        let reports = tempfile::tempdir().unwrap();
        let mut command = offload(project.dir());
        command.arg("run").env("OFFLOAD_REPORT_OUTPUT_DIR", reports.path());
        (command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap(), reports)
    })
    .take(2)
    .collect();
    wait_until("both run their tests", || std::fs::read_dir(seen.path()).unwrap().count() >= 2);
    // While they do, nothing of theirs is taken for dead.
    let clean = project.run(&["clean"]);
    for (run, reports) in runs {
        Run::from_output(run.wait_with_output().unwrap(), reports).exits(0).says("1 passed");
    }
    assert_eq!(clean.code, Some(0), "{}", clean.text());
    assert_eq!(project.containers(), "");
}

#[test]
fn a_container_that_is_killed_or_paused_costs_no_test() {
    for (fault, told) in [("kill", "was killed from outside with signal 9"), ("pause", "was paused from outside")] {
        // The first that comes waits for its fate.
        let test = "if mkdir /seen/first 2>/dev/null; then touch /seen/begun; sleep 1000; fi\n";
        let seen = tempfile::tempdir().unwrap();
        let mounts = format!("mounts = [\"{}:/seen\"]\n{SHELL_TESTS}", seen.path().display());
        let Some(project) = Project::new(&mounts, &[("t/a.sh", test), ("t/b.sh", "exit 0\n")]) else { return };
        let mut command = offload(project.dir());
        let reports = tempfile::tempdir().unwrap();
        command.args(["run", "-j", "1"]).env("OFFLOAD_REPORT_OUTPUT_DIR", reports.path());
        let run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_until("the test runs", || seen.path().join("begun").exists());
        docker(&[fault, &project.containers()]);
        Run::from_output(run.wait_with_output().unwrap(), reports).exits(0).says("2 passed").says(told);
        assert_eq!(project.containers(), "");
    }
}

#[test]
fn a_daemon_that_is_not_there_is_told_once_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let config = "[provider]\ntype = \"docker\"\nimage = \"x\"\n[framework]\ntype = \"default\"\n\
                  discover_command = \"echo a\"\nrun_command = \"true {tests}\"\ntest_id_format = \"{name}\"\n";
    std::fs::write(dir.path().join("offload.toml"), config).unwrap();
    let command = |program: &str| {
        let mut command = offload(dir.path());
        command.arg(program).env("DOCKER_HOST", "unix:///no/such.sock");
        command
    };
    let what = "there is no Docker daemon at unix:///no/such.sock; start it (`sudo systemctl start docker`), or set \
                DOCKER_HOST\n";
    let run = Run::new(command("run"), [""; 0]).exits(3);
    assert_eq!(run.stderr.matches(what).count(), 1, "{}", run.stderr);
    for program in ["build", "clean"] {
        let run = Run::new(command(program), [""; 0]).exits(3);
        assert_eq!(run.stderr, format!("error: {what}"));
    }
}

#[test]
fn values_that_mean_nothing_are_told_before_anything_runs() {
    let Some(project) = Project::new(&format!("memory = \"lots\"\n{SHELL_TESTS}"), &[("t/a.sh", "")]) else { return };
    let run = project.run(&["run"]).exits(3);
    assert_eq!(
        run.stderr,
        "error: `memory` in [provider] is \"lots\"; expected a number with a unit, such as \"512m\" or \"2g\"\n"
    );
}

#[test]
fn rust_tests_are_built_here_and_run_there_with_all_that_they_need() {
    let Some(image) = image() else { return };
    let manifest = |name: &str, more: &str| {
        format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n{more}")
    };
    let app = manifest("app", "[dependencies]\nplugin = { path = \"../plugin\" }\nmacros = { path = \"../macros\" }\n");
    let test = r#"
#[test] fn runs_the_program() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_app")).output().unwrap();
    assert_eq!(output.stdout, b"from the program\n");
}
#[test] fn reads_a_fixture() { assert_eq!(std::fs::read_to_string("tests/fixture").unwrap(), "fixture"); }
#[test] fn reads_what_the_build_script_wrote() {
    assert_eq!(std::fs::read_to_string(concat!(env!("OUT_DIR"), "/generated")).unwrap(), "generated");
}
#[test] fn writes_where_cargo_says() {
    std::fs::write(concat!(env!("CARGO_TARGET_TMPDIR"), "/x"), "x").unwrap();
}
#[test] fn is_in_a_container() {
    let name = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    println!("{:?}, run by {:?}", name(1), name(std::os::unix::process::parent_id()));
    panic!("to see the output");
}
"#;
    let files = [
        (".gitignore", "/target\n".to_owned()),
        ("Cargo.toml", "[workspace]\nresolver = \"2\"\nmembers = [\"app\", \"plugin\", \"macros\"]\n".to_owned()),
        ("app/Cargo.toml", app),
        ("app/build.rs", BUILD_SCRIPT.to_owned()),
        ("app/src/lib.rs", "/// ```\n/// assert!(true);\n/// ```\npub fn f() {}\n#[test] fn loads() { assert_eq!(plugin::seven(), 7) }\n".to_owned()),
        ("app/src/main.rs", "fn main() { println!(\"from the program\") }\n".to_owned()),
        ("app/tests/it.rs", test.to_owned()),
        ("app/tests/fixture", "fixture".to_owned()),
        ("plugin/Cargo.toml", manifest("plugin", "[lib]\ncrate-type = [\"dylib\"]\n")),
        ("plugin/src/lib.rs", "pub fn seven() -> i32 { 7 }\n#[test] fn counts() { assert_eq!(seven(), 7) }\n".to_owned()),
        ("macros/Cargo.toml", manifest("macros", "[lib]\nproc-macro = true\n")),
        ("macros/src/lib.rs", "#[test] fn inside_a_macro_crate() {}\n".to_owned()),
    ];
    let Some(project) = Project::new("", &[]) else { return };
    std::fs::remove_file(project.dir().join("offload.toml")).unwrap();
    for (path, text) in &files {
        let path = project.dir().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let run = || {
        let mut command = cargo_offload(project.dir());
        command.env("OFFLOAD_PROVIDER_IMAGE", &image).env("RUSTFLAGS", "-C prefer-dynamic");
        Run::new(command, ["--workspace", "--provider", "docker"])
    };
    let first = run().exits(1).says(r#""sh\n", run by "worker\n""#);
    let junit = first.junit();
    let outcomes = junit.outcomes();
    let failed: Vec<_> = outcomes.iter().filter(|(_, outcome)| **outcome != "passed").collect();
    assert_eq!(outcomes.len(), 9, "{outcomes:?}\n{}", first.text());
    assert_eq!(failed.len(), 2, "{failed:?}\n{}", first.text());
    first.says("1 skipped");
    // What is built anew travels anew.
    std::fs::write(project.dir().join("app/src/main.rs"), "fn main() { println!(\"something else\") }\n").unwrap();
    let second = run().exits(1);
    assert_eq!(second.junit().outcomes()["app::it runs_the_program"], "failure");
}

const BUILD_SCRIPT: &str = r#"
fn main() {
    std::fs::write(std::path::Path::new(&std::env::var("OUT_DIR").unwrap()).join("generated"), "generated").unwrap();
}
"#;

#[test]
fn a_daemon_that_is_restarted_costs_no_test() {
    let seen = tempfile::tempdir().unwrap();
    let test = "if mkdir /seen/first 2>/dev/null; then touch /seen/begun; sleep 1000; fi\n";
    let mounts = format!("mounts = [\"{}:/seen\"]\n{SHELL_TESTS}", seen.path().display());
    let Some(project) = Project::new(&mounts, &[("t/a.sh", test), ("t/b.sh", "exit 0\n")]) else { return };
    let mut daemon = Daemon::with_image(Vec::new());

    let reports = tempfile::tempdir().unwrap();
    let mut command = offload(project.dir());
    command.args(["run", "-j", "1"]).env("DOCKER_HOST", daemon.host());
    command.env("OFFLOAD_REPORT_OUTPUT_DIR", reports.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let run = command.spawn().unwrap();
    wait_until("the test runs", || seen.path().join("begun").exists());
    daemon.stop();
    daemon.start();
    let run = Run::from_output(run.wait_with_output().unwrap(), reports).exits(0).says("2 passed");
    run.says("1 test starts again elsewhere").never_says("may be left behind");
    assert_eq!(daemon.containers(), "");
}

/// Certificates for a daemon at 127.0.0.1 and for those who use it, by two authorities that know nothing of each other.
const CERTIFICATES: &str = r#"
set -e
for name in right wrong; do
    mkdir $name
    cd $name
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=$name -keyout authority.pem -out ca.pem
    for side in server client; do
        openssl req -newkey rsa:2048 -nodes -subj /CN=$side -keyout $side-key.pem -out $side.csr
        printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=%sAuth\n' $side >$side.ext
        openssl x509 -req -days 2 -in $side.csr -CA ca.pem -CAkey authority.pem -CAcreateserial -extfile $side.ext -out $side.pem
    done
    cp client.pem cert.pem
    cp client-key.pem key.pem
    cd ..
done
cp -r right mixed
cp wrong/cert.pem wrong/key.pem mixed
"#;

#[test]
fn a_daemon_behind_tls_is_used_by_those_who_prove_who_they_are() {
    let config = format!("network = \"none\"\n{SHELL_TESTS}");
    let Some(project) = Project::new(&config, &[("t/a.sh", "read first </proc/1/comm; test $first = sh\n")]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut openssl = std::process::Command::new("sh");
    let made = openssl.args(["-c", CERTIFICATES]).current_dir(dir.path()).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let mut options: Vec<String> = ["--host", "tcp://127.0.0.1:2376", "--tlsverify"].map(str::to_owned).to_vec();
    for (option, name) in [("cacert", "ca.pem"), ("cert", "server.pem"), ("key", "server-key.pem")] {
        options.extend([format!("--tls{option}"), path(&format!("right/{name}"))]);
    }
    let daemon = Daemon::with_image(options);
    let net = format!("/proc/{}/ns/net", daemon.pid());
    let run = |args: &[&str], env: &[(&str, &str)]| {
        let offload = offload(project.dir());
        let mut command = std::process::Command::new("nsenter");
        command.arg(format!("--net={net}")).arg(offload.get_program()).current_dir(project.dir());
        for (name, _) in offload.get_envs() {
            command.env_remove(name);
        }
        command.env_remove("DOCKER_HOST").env("DOCKER_CONFIG", dir.path().join("config")).envs(env.iter().copied());
        Run::new(command, args)
    };
    let tls = |certificates: &str| {
        let certificates = path(certificates);
        let env =
            [("DOCKER_HOST", "tcp://127.0.0.1:2376"), ("DOCKER_TLS_VERIFY", "1"), ("DOCKER_CERT_PATH", &certificates)];
        run(&["run"], &env)
    };
    tls("right").exits(0).says("1 passed");
    // As `docker context create` stores it.
    let mut docker = std::process::Command::new("docker");
    let endpoint = format!(
        "host=tcp://127.0.0.1:2376,ca={},cert={},key={}",
        path("right/ca.pem"),
        path("right/cert.pem"),
        path("right/key.pem")
    );
    docker
        .args(["context", "create", "secured", "--docker", &endpoint])
        .env("DOCKER_CONFIG", dir.path().join("config"));
    let created = docker.env_remove("DOCKER_HOST").output().unwrap();
    assert!(created.status.success(), "{created:?}");
    run(&["run"], &[("DOCKER_CONTEXT", "secured")]).exits(0).says("1 passed");
    assert_eq!(daemon.containers(), "");

    tls("wrong").exits(3).says("does not prove that it is the one").says("UnknownIssuer");
    tls("mixed").exits(3).says("does not take the certificate").says("mixed/cert.pem");
    tls("nowhere").exits(3).says("nowhere/ca.pem cannot be read").says("DOCKER_CERT_PATH is to name");
    run(&["run"], &[("DOCKER_HOST", "tcp://127.0.0.1:2376")])
        .exits(3)
        .says("is to be reached with TLS; set DOCKER_TLS_VERIFY=1");
}

/// Where the daemon of the tests listens.
pub fn socket() -> String {
    let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
    host.strip_prefix("unix://").unwrap().to_owned()
}

#[test]
fn a_daemon_on_another_machine_is_used_through_ssh() {
    let Some(project) = Project::new(SHELL_TESTS, &[("t/a.sh", "read first </proc/1/comm; test $first = sh\n")]) else {
        return;
    };
    let Some(mut sshd) = Sshd::start() else { return };
    let socket = socket();
    let run = |sshd: &Sshd, socket: &str| {
        let mut command = offload(project.dir());
        command.env("DOCKER_HOST", format!("ssh://127.0.0.1:{}{socket}", sshd.port)).env("PATH", sshd.search_path());
        Run::new(command, ["run"])
    };
    run(&sshd, &socket).exits(0).says("1 passed");
    assert_eq!(project.containers(), "");
    wait_until("the connection is closed", || sshd.connections().is_empty());

    let missing = run(&sshd, "/no/such.sock").exits(3);
    let told = format!("there is no Docker daemon at ssh://127.0.0.1:{}/no/such.sock: there is no socket", sshd.port);
    assert_eq!(missing.stderr.matches(&told).count(), 1, "{}", missing.stderr);
    sshd.stop();
    let told = format!("cannot be used: 127.0.0.1:{} cannot be reached: ssh: connect to host", sshd.port);
    let gone = run(&sshd, &socket).exits(3);
    assert_eq!(gone.stderr.matches(&told).count(), 1, "{}", gone.stderr);
}

#[test]
fn a_run_that_is_killed_leaves_nothing_behind_ssh() {
    let Some(project) = Project::new(SHELL_TESTS, &[("t/a.sh", "touch /begun; sleep 1000\n")]) else { return };
    let Some(sshd) = Sshd::start() else { return };
    let socket = socket();
    for signal in [Signal::INT, Signal::KILL] {
        let mut command = offload(project.dir());
        command.env("DOCKER_HOST", format!("ssh://127.0.0.1:{}{socket}", sshd.port)).env("PATH", sshd.search_path());
        let mut run = command.arg("run").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until("the test runs", || project.begun() == 1);
        kill_process(Pid::from_child(&run), signal).unwrap();
        run.wait().unwrap();
        wait_until("the container is gone", || project.containers().is_empty());
        wait_until("the connection is closed", || sshd.connections().is_empty());
    }
}

#[test]
fn tests_in_containers_are_skipped_only_where_nobody_demands_them() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/with_docker.sh");
    let run = |required: Option<&str>| {
        let dir = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new("/bin/sh");
        // A machine without Docker.
        command.args([script, "/bin/echo", "the tests"]).current_dir(dir.path()).env("PATH", dir.path());
        command.env_remove("OFFLOAD_TEST_REQUIRE").envs(required.map(|words| ("OFFLOAD_TEST_REQUIRE", words)));
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let why = "there is no docker (apt-get install docker.io mmdebstrap)\n";
    let skipped = format!("docker: its tests are skipped: {why}");
    assert_eq!(run(None), (Some(0), "the tests\n".to_owned(), skipped.clone()));
    assert_eq!(run(Some("ssh")), (Some(0), "the tests\n".to_owned(), skipped));
    let failed = format!("docker: OFFLOAD_TEST_REQUIRE demands its tests, and they cannot run: {why}");
    assert_eq!(run(Some("ssh docker")), (Some(1), String::new(), failed));
}
