//! Files that tests leave in a sandbox come back, and nothing else does.

use std::path::Path;
use std::process::Command;

use crate::docker_support::image;
use crate::sshd_support::Sshd;
use crate::support::{Run, Workspace, cargo_offload, manifest, offload};

const TEMPDIR: &str = r#"type = "default"
create_command = "@tempdir_sandbox.sh create"
exec_command = "@tempdir_sandbox.sh exec {sandbox_id} {command}"
destroy_command = "@tempdir_sandbox.sh destroy {sandbox_id}"
copy_dirs = ["t:t"]
"#;

fn project(provider: &str, globs: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "[report]\n{globs}\n[framework]\ntype = \"default\"\ndiscover_command = \"ls t/*.sh\"\nrun_command = \
         'code=0; for test in {{tests}}; do sh \"$test\" || code=1; done; exit $code'\ntest_id_format = \
         \"{{name}}\"\n[groups.each]\nschedule_individual = true\n[offload]\nmax_parallel = 1\n[provider]\n{provider}"
    );
    std::fs::write(dir.path().join("offload.toml"), config).unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

/// Everything below `artifacts` with what is in it, without the names of sandboxes and our own marker.
fn brought(output_dir: &Path) -> Vec<String> {
    fn walk(dir: &Path, prefix: &str, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), &format!("{name}/"), found);
            } else {
                found.push(format!("{name}: {}", std::fs::read_to_string(entry.path()).unwrap().trim()));
            }
        }
    }
    let mut found = Vec::new();
    let Ok(sandboxes) = std::fs::read_dir(output_dir.join("artifacts")) else { return found };
    for sandbox in sandboxes.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        walk(&sandbox, "", &mut found);
    }
    found.sort();
    found
}

/// Where tests may run, as what stands in `[provider]`, and the host if it is one.
pub fn providers() -> Vec<(String, Option<Sshd>)> {
    let mut providers = vec![("type = \"local\"\n".to_owned(), None), (TEMPDIR.to_owned(), None)];
    providers.extend(image().map(|image| (format!("type = \"docker\"\nimage = \"{image}\"\n"), None)));
    providers.extend(Sshd::start().map(|sshd| (crate::ssh::provider(&sshd, 1), Some(sshd))));
    providers
}

fn command(dir: &Path, sshd: Option<&Sshd>) -> Command {
    let mut command = offload(dir);
    command.envs(sshd.map(|sshd| ("PATH", sshd.search_path())));
    command
}

fn clean(provider: &str, dir: &Path) {
    if provider.contains("docker") {
        Run::new(offload(dir), ["clean"]).exits(0);
    }
}

#[test]
fn files_come_back_from_every_provider() {
    let test = "mkdir -p \"out/a b/deep\"; echo 1 >\"out/a b/it's.png\"; echo 2 >'out/a b/deep/$x.png'\n\
                echo 3 >out/no.txt; echo 4 >top.log; ln -s top.log link.log; ln -s /etc out/etc; mkfifo fifo.log\n";
    let globs = "download_globs = [\"out/**/*.png\", \"*.log\", \"nothing/*\", \"out/etc/*\"]";
    for (provider, sshd) in providers() {
        let dir = project(&provider, globs, &[("t/a.sh", test)]);
        let run = Run::new(command(dir.path(), sshd.as_ref()), ["run"]).exits(0).never_says("warning");
        let found = brought(run.reports.path());
        assert_eq!(found, ["out/a b/deep/$x.png: 2", "out/a b/it's.png: 1", "top.log: 4"], "{provider}");
        clean(&provider, dir.path());
    }
}

#[test]
fn files_come_only_after_a_failure_if_that_is_asked_for() {
    let globs = "download_globs = [\"*.log\"]\ndownload_globs_failure_only = true";
    for (provider, sshd) in providers() {
        let dir = project(&provider, globs, &[("t/good.sh", "echo good >good.log\n")]);
        let run = Run::new(command(dir.path(), sshd.as_ref()), ["run"]).exits(0);
        assert_eq!(brought(run.reports.path()), [""; 0], "{provider}");
        std::fs::write(dir.path().join("t/bad.sh"), "echo bad >bad.log; exit 1\n").unwrap();
        let _ = std::fs::remove_file(dir.path().join("good.log"));
        let run = Run::new(command(dir.path(), sshd.as_ref()), ["run"]).exits(1);
        assert!(brought(run.reports.path()).contains(&"bad.log: bad".to_owned()), "{provider}");
        clean(&provider, dir.path());
    }
}

#[test]
fn what_workers_leave_comes_back_at_the_end_of_their_sandbox() {
    let library = "#[test] fn leaves() { std::fs::write(\"left.txt\", \"left\").unwrap(); }\n\
                   #[test] fn fails() { panic!() }\n";
    let metadata = "[package.metadata.offload.report]\ndownload_globs = [\"left.*\"]\n";
    let files =
        [("Cargo.toml", &*(manifest("leaves-files") + metadata)), ("src/lib.rs", library), (".gitignore", "left.txt")];
    let workspace = Workspace::shared("leaves-files", &files);
    let run = Run::new(cargo_offload(&workspace.dir), ["-j", "2"]).exits(1);
    // Local sandboxes share their files: once is enough.
    assert_eq!(brought(run.reports.path()), ["left.txt: left"]);
    let Some(image) = image() else { return };
    let mut command = cargo_offload(&workspace.dir);
    command.env("OFFLOAD_PROVIDER_IMAGE", image);
    let run = Run::new(command, ["-j", "1", "--provider", "docker"]).exits(1);
    assert_eq!(brought(run.reports.path()), ["left.txt: left"]);
    Run::new(offload(&workspace.dir), ["clean"]).exits(0);
}

#[test]
fn what_workers_leave_comes_back_from_a_host_too() {
    let Some(sshd) = Sshd::start() else { return };
    let config = format!("[provider]\n{}[report]\ndownload_globs = [\"left-*\"]\n", crate::ssh::provider(&sshd, 2));
    let library = "#[test] fn a() { std::fs::write(\"left-a\", \"a\").unwrap(); }\n\
                   #[test] fn b() { std::fs::write(\"left-b\", \"b\").unwrap(); }\n";
    let files = [("Cargo.toml", &*manifest("leaves-files-far")), ("src/lib.rs", library), ("offload.toml", &*config)];
    let workspace = Workspace::shared("leaves-files-far", &files);
    let mut run = cargo_offload(&workspace.dir);
    run.env("PATH", sshd.search_path());
    let run = Run::new(run, ["-j", "1"]).exits(0);
    assert_eq!(brought(run.reports.path()), ["left-a: a", "left-b: b"]);

    let python = crate::python_support::python();
    let pytest = format!("[framework]\ntype = \"pytest\"\ncommand = \"{} -m pytest\"\n", python.display());
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("t")).unwrap();
    std::fs::write(dir.path().join("offload.toml"), format!("{config}{pytest}")).unwrap();
    std::fs::write(dir.path().join("t/test_it.py"), "def test(): open('left-p', 'w').write('p')\n").unwrap();
    let run = Run::new(command(dir.path(), Some(&sshd)), ["run", "-j", "1"]).exits(0);
    assert_eq!(brought(run.reports.path()), ["left-p: p"]);
}

#[test]
fn a_sandbox_cannot_write_elsewhere_and_what_an_earlier_run_brought_is_gone() {
    // The sandbox says of everything that asks for files that it has one whose name leads out.
    let lying = TEMPDIR.replace(
        "exec_command = \"@tempdir_sandbox.sh exec {sandbox_id} {command}\"",
        "exec_command = '''case {command} in *walk*) printf '/tmp\\0../../evil.txt\\0' ;; \
         *) exec @tempdir_sandbox.sh exec {sandbox_id} {command} ;; esac'''",
    );
    let globs = "download_globs = [\"**/evil.txt\", \"*.txt\"]";
    let dir = project(&lying, globs, &[("t/a.sh", "exit 0\n")]);
    let reports = dir.path().join("deep/er/reports");
    let mut command = offload(dir.path());
    command.env("OFFLOAD_REPORT_OUTPUT_DIR", &reports).arg("run");
    let run = Run::from_output(command.output().unwrap(), tempfile::tempdir().unwrap()).exits(0);
    run.says("evil.txt: its name leads elsewhere");
    assert!(!dir.path().join("deep/evil.txt").exists() && !dir.path().join("deep/er/evil.txt").exists());

    let honest = project(TEMPDIR, "download_globs = [\"*.log\"]", &[("t/a.sh", "echo 1 >new.log\n")]);
    let (ours, theirs) = (honest.path().join("ours"), honest.path().join("theirs"));
    let run = |reports: &Path| {
        let mut command = offload(honest.path());
        command.env("OFFLOAD_REPORT_OUTPUT_DIR", reports).arg("run");
        Run::from_output(command.output().unwrap(), tempfile::tempdir().unwrap()).exits(0);
        brought(reports)
    };
    // A directory of that name that is not ours keeps all that is in it.
    let own = theirs.join("artifacts/own");
    std::fs::create_dir_all(own.parent().unwrap()).unwrap();
    std::fs::write(&own, "").unwrap();
    assert_eq!((run(&ours), run(&theirs)), (vec!["new.log: 1".to_owned()], vec!["new.log: 1".to_owned()]));
    std::fs::write(honest.path().join("t/a.sh"), "echo 1 >other.log\n").unwrap();
    assert_eq!(run(&ours), ["other.log: 1"]);
    assert_eq!(run(&theirs), ["new.log: 1", "other.log: 1"]);
    assert!(own.exists());
}

#[test]
fn what_is_too_large_stays_and_the_rest_comes() {
    let test = "truncate -s 300M large.log; echo 1 >small.log\n";
    let dir = project("type = \"local\"\n", "download_globs = [\"*.log\"]", &[("t/a.sh", test)]);
    let run = Run::new(offload(dir.path()), ["run"]).exits(0);
    assert_eq!(brought(run.reports.path()), ["small.log: 1"]);
    run.says("large.log: it has 300 MiB, and the most is 256 MiB");
}

#[test]
fn patterns_that_mean_nothing_are_told_with_their_place() {
    let dir = project("type = \"local\"\n", "download_globs = [\"../*\", \"a[\"]", &[]);
    let run = Run::new(offload(dir.path()), ["run"]).exits(3);
    run.says("`report.download_globs` cannot contain `../*`").says("expected a pattern: unclosed character class");
}
