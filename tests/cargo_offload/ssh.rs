//! `--provider ssh`, from a command line to hosts on which nothing is left.

use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::sshd_support::Sshd;
use crate::support::{Run, cargo_offload, is_running, offload, wait_until};

/// A project and a host with two slots.
struct Project {
    dir: tempfile::TempDir,
    sshd: Sshd,
}

impl Project {
    /// With these files and, as `offload.toml`, `config` after a `[provider]`; `None` where there is no server.
    fn new(config: &str, files: &[(&str, &str)]) -> Option<Self> {
        Some(Self::on(Sshd::start()?, config, files))
    }

    fn on(sshd: Sshd, config: &str, files: &[(&str, &str)]) -> Self {
        let hosts = format!("hosts = [{}]", item(&sshd, 2));
        Self::with_hosts(sshd, &hosts, config, files)
    }

    fn with_hosts(sshd: Sshd, hosts: &str, config: &str, files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let project = Self { dir, sshd };
        project.write("offload.toml", &format!("[provider]\ntype = \"ssh\"\n{hosts}\n{config}"));
        for (path, text) in files {
            project.write(path, text);
        }
        project
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.dir().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = offload(self.dir());
        command.env("PATH", self.sshd.search_path()).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Run {
        Run::new(self.command(args), [""; 0])
    }
}

/// A server as an item of `hosts`.
fn item(sshd: &Sshd, slots: u32) -> String {
    let (port, workdir) = (sshd.port, sshd.workdir());
    format!("{{ host = \"127.0.0.1\", port = {port}, slots = {slots}, workdir = \"{}\" }}", workdir.display())
}

/// What stands in `[provider]` for a server.
pub fn provider(sshd: &Sshd, slots: u32) -> String {
    format!("type = \"ssh\"\nhosts = [{}]\n", item(sshd, slots))
}

/// Shell scripts as tests, each alone in its command.
const SHELL_TESTS: &str = r#"
[framework]
type = "default"
discover_command = "ls t/*.sh"
run_command = "for test in {tests}; do sh \"$test\" || exit 1; done"
test_id_format = "{name}"

[groups.each]
schedule_individual = true
"#;

#[test]
fn pytest_runs_on_hosts_and_paths_are_those_of_the_repository() {
    let tests = "import os, pytest\n\
                 def test_passes(): assert os.environ['SSH_CONNECTION']\n\
                 def test_fails(): print('from the host'); assert os.getcwd() == 'elsewhere'\n\
                 @pytest.mark.skip(reason='why not')\n\
                 def test_skipped(): pass\n";
    let python = crate::python_support::python();
    let config = format!("[framework]\ntype = \"pytest\"\ncommand = \"{} -m pytest\"\n", python.display());
    let Some(project) = Project::new(&config, &[("tests/test_it.py", tests)]) else { return };
    let run = project.run(&["run"]).exits(1).says("1 passed, 1 failed, 1 skipped").says("from the host");
    let run = run.says(&format!("assert '{}' == 'elsewhere'", project.dir().canonicalize().unwrap().display()));
    assert_eq!(run.junit().cases.len(), 3);
    assert_eq!(project.sshd.runs(), [""; 0]);
}

#[test]
fn any_framework_runs_on_hosts_in_as_many_sandboxes_as_there_are_slots() {
    let seen = tempfile::tempdir().unwrap();
    let test = format!(
        "touch {0}/$$; ls {0} | wc -l; echo $SSH_CONNECTION; sleep 0.2; rm {0}/$$; exit 1\n",
        seen.path().display()
    );
    let files: Vec<(String, String)> = (0..8).map(|n| (format!("t/{n}.sh"), test.clone())).collect();
    let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let Some(project) = Project::new(SHELL_TESTS, &files) else { return };
    let run = project.run(&["run"]).exits(1).says("8 failed").says("127.0.0.1");
    let counts: Vec<u32> =
        run.stdout.lines().chain(run.stderr.lines()).filter_map(|line| line.trim().parse().ok()).collect();
    assert!(!counts.is_empty() && counts.iter().all(|count| *count <= 2), "{counts:?}\n{}", run.text());
    assert_eq!(project.sshd.runs(), [""; 0]);
}

#[test]
fn however_a_run_ends_nothing_of_it_stays_on_the_host() {
    for signal in [Signal::INT, Signal::KILL] {
        let seen = tempfile::tempdir().unwrap();
        // One has a child in a process group of its own, as test runners do.
        let line = format!("echo $$ >{0}/a.part; mv {0}/a.part {0}/a; sleep 1000\n", seen.path().display());
        let group = format!(
            "timeout 900 sh -c 'echo $$ >{0}/b.part; mv {0}/b.part {0}/b; sleep 1000'\n",
            seen.path().display()
        );
        let Some(project) = Project::new(SHELL_TESTS, &[("t/a.sh", &line), ("t/b.sh", &group)]) else { return };
        let mut run = project.command(&["run"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let pid = |name: &str| std::fs::read_to_string(seen.path().join(name)).ok();
        wait_until("two tests run", || pid("a").is_some() && pid("b").is_some());
        kill_process(Pid::from_child(&run), signal).unwrap();
        let status = run.wait().unwrap();
        if signal == Signal::INT {
            assert_eq!(status.code(), Some(130));
            assert_eq!(project.sshd.runs(), [""; 0]);
        }
        for name in ["a", "b"] {
            let pid = pid(name).unwrap().trim().parse().unwrap();
            wait_until("the test has ended", || !is_running(pid));
        }
        wait_until("the run's directory is gone", || project.sshd.runs().is_empty());
        wait_until("the connections are closed", || project.sshd.connections().is_empty());
    }
}

#[test]
fn directories_of_the_user_stay_whatever_they_are_called() {
    let Some(project) = Project::new(SHELL_TESTS, &[("t/a.sh", "")]) else { return };
    project.run(&["run"]).exits(0);
    let base = project.sshd.left().into_iter().find(|path| path.ends_with("/base")).unwrap();
    let place = project.sshd.workdir().join(Path::new(&base).parent().unwrap());
    let theirs = project.sshd.workdir().join("experiments");
    let made: Vec<_> = [&place, &theirs]
        .iter()
        .flat_map(|above| ["run-2024", "new-1", "run-copied", "run-link"].map(|name| above.join(name)))
        .chain([theirs.join("base")])
        .collect();
    for directory in &made {
        std::fs::create_dir_all(directory).unwrap();
        std::fs::write(directory.join("thesis.tex"), "").unwrap();
    }
    for above in [&place, &theirs] {
        // What a mark names is elsewhere, and a link to one proves nothing.
        std::fs::write(above.join("run-copied/mark"), "directory of an offload run, format 1: run-other\n").unwrap();
        std::fs::write(above.join("mark"), "directory of an offload run, format 1: run-link\n").unwrap();
        std::os::unix::fs::symlink("../mark", above.join("run-link/mark")).unwrap();
    }
    std::fs::write(theirs.join("used"), "").unwrap();
    project.run(&["run"]).exits(0);
    project.run(&["clean", "--all"]).exits(0).says("removed 0 directories of dead runs and 1 copies of files");
    for directory in &made {
        assert!(directory.join("thesis.tex").exists(), "{}", directory.display());
    }
    assert!(theirs.join("used").exists() && !place.join("base").exists());
}

#[test]
fn what_a_dead_run_left_goes_with_the_next_run_and_with_clean() {
    let Some(project) = Project::new(SHELL_TESTS, &[("t/a.sh", "")]) else { return };
    project.run(&["run"]).exits(0);
    let base = project.sshd.left().into_iter().find(|path| path.ends_with("/base")).unwrap();
    let place = project.sshd.workdir().join(Path::new(&base).parent().unwrap());
    // As left by a host that was switched off.
    let leave = || {
        let own = place.join("run-dead-0/connections/0");
        std::fs::create_dir_all(own.join("pids")).unwrap();
        std::fs::create_dir_all(place.join("run-dead-0/tree/locked")).unwrap();
        std::fs::write(own.join("pid"), "1\n").unwrap();
        let mark = "directory of an offload run, format 1: run-dead-0\n";
        std::fs::write(place.join("run-dead-0/mark"), mark).unwrap();
    };
    leave();
    project.run(&["run"]).exits(0);
    assert_eq!(project.sshd.runs(), [""; 0]);
    leave();
    project.run(&["clean"]).exits(0).says("removed 1 directories of dead runs and 1 copies of files of ");
    assert_eq!(project.sshd.left(), [""; 0]);
    // Another project's.
    project.run(&["run"]).exits(0);
    let other =
        Project::with_hosts(Sshd::start().unwrap(), &format!("hosts = [{}]", item(&project.sshd, 1)), SHELL_TESTS, &[]);
    let clean = |args: &[&str]| {
        let mut command = offload(other.dir());
        command.env("PATH", project.sshd.search_path()).args(args);
        Run::new(command, [""; 0]).exits(0)
    };
    clean(&["clean"]).says("removed 0 directories of dead runs and 0 copies");
    clean(&["clean", "--all"]).says("removed 0 directories of dead runs and 1 copies");
    assert_eq!(project.sshd.left(), [""; 0]);
}

#[test]
fn two_runs_at_once_do_not_disturb_each_other() {
    let seen = tempfile::tempdir().unwrap();
    // Each waits for the other, writes where the other reads, and finds its own.
    let test = format!(
        "echo $$ >state; touch {0}/$$; until [ $(ls {0} | wc -l) -ge 2 ]; do sleep 0.05; done\n\
         sleep 0.3; test $(cat state) = $$\n",
        seen.path().display()
    );
    let Some(project) = Project::new(SHELL_TESTS, &[("t/a.sh", &test)]) else { return };
    let run = |reports: &Path| {
        let mut command = project.command(&["run"]);
        command.env("OFFLOAD_REPORT_OUTPUT_DIR", reports).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, two) = (run(first.path()), run(second.path()));
    wait_until("both run their tests", || std::fs::read_dir(seen.path()).unwrap().count() >= 2);
    // While they do, nothing of theirs is taken for dead.
    let clean = project.run(&["clean"]);
    Run::from_output(one.wait_with_output().unwrap(), first).exits(0).says("1 passed");
    Run::from_output(two.wait_with_output().unwrap(), second).exits(0).says("1 passed");
    assert_eq!(clean.code, Some(0), "{}", clean.text());
    assert_eq!(project.sshd.runs(), [""; 0]);
}

#[test]
fn a_host_that_goes_away_costs_no_test() {
    let seen = tempfile::tempdir().unwrap();
    // The first that comes waits for its host to go.
    let test = format!(
        "if mkdir {0}/first 2>/dev/null; then echo $SSH_CONNECTION >{0}/part; mv {0}/part {0}/begun; sleep 1000; fi\n",
        seen.path().display()
    );
    let Some(one) = Sshd::start() else { return };
    let two = one.second();
    let hosts = format!("hosts = [{}, {}]", item(&one, 1), item(&two, 1));
    let files = [("t/a.sh", test.as_str()), ("t/b.sh", "exit 0\n"), ("t/c.sh", "exit 0\n")];
    let mut project = Project::with_hosts(one, &hosts, SHELL_TESTS, &files);
    let mut two = two;
    let reports = tempfile::tempdir().unwrap();
    let mut command = project.command(&["run", "-j", "2"]);
    command.env("OFFLOAD_REPORT_OUTPUT_DIR", reports.path());
    let run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the test runs", || seen.path().join("begun").exists());
    let begun = std::fs::read_to_string(seen.path().join("begun")).unwrap();
    if begun.trim().ends_with(&project.sshd.port.to_string()) {
        project.sshd.stop()
    } else {
        two.stop()
    }
    let run = Run::from_output(run.wait_with_output().unwrap(), reports).exits(0).says("3 passed");
    run.says("1 test starts again elsewhere").says("the connection to 127.0.0.1:");
    wait_until("nothing is left", || project.sshd.runs().is_empty() && two.runs().is_empty());
}

#[test]
fn hosts_that_cannot_be_used_are_left_out_or_end_the_run() {
    let Some(sshd) = Sshd::start() else { return };
    let mut gone = sshd.second();
    gone.stop();
    let hosts = format!("hosts = [{}, {}]", item(&sshd, 1), item(&gone, 1));
    let project = Project::with_hosts(sshd, &hosts, SHELL_TESTS, &[("t/a.sh", ""), ("t/b.sh", "")]);
    let what = format!(
        "127.0.0.1:{} cannot be reached: ssh: connect to host 127.0.0.1 port {}: Connection refused",
        gone.port, gone.port
    );
    project.run(&["run"]).exits(0).says("2 passed").says(&format!("A host is left out: {what}"));
    project.write("offload.toml", &format!("[provider]\ntype = \"ssh\"\nhosts = [{}]\n{SHELL_TESTS}", item(&gone, 1)));
    let run = project.run(&["run"]).exits(3);
    assert_eq!(run.stderr.matches(&what).count(), 1, "{}", run.stderr);
    project.run(&["clean"]).exits(3).says(&what);
}

#[test]
fn a_host_that_is_not_the_one_or_lets_nobody_in_is_told_once() {
    let Some(project) = Project::new(SHELL_TESTS, &[("t/a.sh", "")]) else { return };
    let refused = |what: &str| {
        let run = project.run(&["run"]).exits(3);
        assert_eq!(run.stderr.matches(what).count(), 1, "{}", run.stderr);
        assert_eq!(run.stderr.matches("error:").count(), 1, "{}", run.stderr);
    };
    std::fs::write(project.sshd.path("authorized_keys"), "").unwrap();
    refused("refuses to let us in (");
    let mut project = project;
    project.sshd.change_key();
    let run = project.run(&["run"]).exits(3);
    let what = format!("the host key of 127.0.0.1:{} is not the one that is known here", project.sshd.port);
    assert_eq!(run.stderr.matches(&what).count(), 1, "{}", run.stderr);
    assert_eq!(project.sshd.left(), [""; 0]);
}

#[test]
fn where_there_is_no_ssh_that_is_said() {
    let Some(project) = Project::new(SHELL_TESTS, &[("t/a.sh", "")]) else { return };
    let bin = tempfile::tempdir().unwrap();
    for program in ["sh", "ls"] {
        std::os::unix::fs::symlink(format!("/bin/{program}"), bin.path().join(program)).unwrap();
    }
    let mut command = project.command(&["run"]);
    command.env("PATH", bin.path());
    let run = Run::new(command, [""; 0]).exits(3);
    assert_eq!(
        run.stderr.matches("there is no program `ssh` here; install the OpenSSH client").count(),
        1,
        "{}",
        run.stderr
    );
}

#[test]
fn rust_tests_are_built_here_and_run_there_by_the_worker() {
    let test = r#"
#[test] fn runs_the_program() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_app")).output().unwrap();
    assert_eq!(output.stdout, b"from the program\n");
}
#[test] fn reads_a_fixture() { assert_eq!(std::fs::read_to_string("tests/fixture").unwrap(), "fixture"); }
#[test] fn reads_what_the_build_script_wrote() {
    assert_eq!(std::fs::read_to_string(concat!(env!("OUT_DIR"), "/generated")).unwrap(), "generated");
}
#[test] fn writes_where_cargo_says_and_where_it_is() {
    std::fs::write(concat!(env!("CARGO_TARGET_TMPDIR"), "/x"), "x").unwrap();
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/written"), "x").unwrap();
}
#[test] fn is_on_a_host() {
    let name = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    println!("run by {:?} for {:?}", name(std::os::unix::process::parent_id()), std::env::var("SSH_CONNECTION").unwrap());
    panic!("to see the output");
}
"#;
    let manifest = "[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n";
    let build =
        "fn main() { std::fs::write(std::env::var(\"OUT_DIR\").unwrap() + \"/generated\", \"generated\").unwrap() }";
    let files = [
        (".gitignore", "/target\n"),
        ("Cargo.toml", manifest),
        ("build.rs", build),
        ("src/main.rs", "fn main() { println!(\"from the program\") }\n"),
        ("tests/it.rs", test),
        ("tests/fixture", "fixture"),
    ];
    let Some(project) = Project::new("[framework]\ntype = \"cargo\"\n", &files) else { return };
    let run = || {
        let mut command = cargo_offload(project.dir());
        command.env("PATH", project.sshd.search_path());
        Run::new(command, [""; 0])
    };
    let first = run().exits(1).says("run by \"worker\\n\" for \"127.0.0.1");
    let junit = first.junit();
    let failed: Vec<_> = junit.outcomes().into_iter().filter(|(_, outcome)| *outcome != "passed").collect();
    assert_eq!((junit.cases.len(), failed.len()), (5, 1), "{failed:?}\n{}", first.text());
    assert!(!project.dir().join("written").exists() && !project.dir().join("target/tmp/x").exists());
    // What is built anew travels anew.
    project.write("src/main.rs", "fn main() { println!(\"something else\") }\n");
    assert_eq!(run().exits(1).junit().outcomes()["app::it runs_the_program"], "failure");
    assert_eq!(project.sshd.runs(), [""; 0]);
}

#[test]
fn a_worker_whose_host_goes_away_costs_no_test() {
    let seen = tempfile::tempdir().unwrap();
    let test = format!(
        "#[test] fn a() {{ if std::fs::create_dir(\"{0}/first\").is_ok() {{\n\
         std::fs::write(\"{0}/part\", std::env::var(\"SSH_CONNECTION\").unwrap()).unwrap();\n\
         std::fs::rename(\"{0}/part\", \"{0}/begun\").unwrap(); std::thread::sleep(std::time::Duration::from_secs(1000)) }} }}\n\
         #[test] fn b() {{}}\n#[test] fn c() {{}}\n",
        seen.path().display()
    );
    let manifest = "[package]\nname = \"lost\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n";
    let Some(one) = Sshd::start() else { return };
    let mut two = one.second();
    let hosts = format!("hosts = [{}, {}]", item(&one, 1), item(&two, 1));
    let files = [("Cargo.toml", manifest), ("src/lib.rs", test.as_str()), (".gitignore", "/target\n")];
    let mut project = Project::with_hosts(one, &hosts, "[framework]\ntype = \"cargo\"\n", &files);
    let reports = tempfile::tempdir().unwrap();
    let mut command = cargo_offload(project.dir());
    command.args(["--lib", "-j", "2"]).env("PATH", project.sshd.search_path());
    command.env("OFFLOAD_REPORT_OUTPUT_DIR", reports.path());
    let run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the test runs", || seen.path().join("begun").exists());
    let begun = std::fs::read_to_string(seen.path().join("begun")).unwrap();
    if begun.trim().ends_with(&project.sshd.port.to_string()) {
        project.sshd.stop()
    } else {
        two.stop()
    }
    let run = Run::from_output(run.wait_with_output().unwrap(), reports).exits(0).says("3 passed");
    run.says("was lost: the connection to 127.0.0.1:");
    wait_until("nothing is left", || project.sshd.runs().is_empty() && two.runs().is_empty());
}
