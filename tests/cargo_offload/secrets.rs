//! Secrets reach the tests, and nobody else.

use std::path::Path;
use std::process::Command;

use crate::docker_support::image;
use crate::sshd_support::Sshd;
use crate::support::{Run, Workspace, cargo_offload, manifest, offload};

/// The secret that comes from the environment. The other is in the file, and every format writes it in another way.
const OUTER: &str = "swordfish-1";

const ENV: &str = r#"
MARKED = { value = "hunter2<&\"'\\>ä", secret = true }
FROM_OUTSIDE = "Bearer ${OUTER}"
OPEN = { value = "${SHOWN}", secret = false }
PLAIN = "plain-value"
"#;

/// Prints everything, also where others would see it, and fails.
const TELLTALE: &str = r#"
test "$FROM_OUTSIDE" = 'Bearer swordfish-1' && test "$OPEN" = open-value || { echo incomplete; exit 1; }
env
printf '{"token": "%s"}\n' 'hunter2<&\"'"'"'\\>ä' >&2
printf '%s\n%s\n' "$MARKED" swordfish-1 >pattern
for file in /proc/[0-9]*/cmdline; do
    if tr '\0' '\n' <$file 2>/dev/null | grep -qF -f pattern; then echo it is in the arguments of a process; fi
done
rm pattern
exit 1
"#;

fn project(config: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("t")).unwrap();
    std::fs::write(dir.path().join("offload.toml"), config).unwrap();
    for (path, text) in files {
        std::fs::write(dir.path().join(path), text).unwrap();
    }
    dir
}

fn command(dir: &Path) -> Command {
    let mut command = offload(dir);
    command.env("OUTER", OUTER).env("SHOWN", "open-value");
    command
}

/// Fails if a secret is in what was printed or in a file that was written.
fn is_silent(run: Run) -> Run {
    let mut texts = vec![("the output".to_owned(), run.text())];
    for entry in std::fs::read_dir(run.reports.path()).unwrap() {
        let path = entry.unwrap().path();
        texts.push((path.display().to_string(), String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned()));
    }
    for (place, text) in texts {
        for secret in ["hunter2", OUTER] {
            assert!(!text.contains(secret), "{secret} is in {place}:\n{text}");
        }
    }
    run.never_says("it is in the arguments of a process").never_says("incomplete")
}

const SHELL_TESTS: &str = r#"
[framework]
type = "default"
discover_command = "ls t/*.sh"
run_command = "for test in {tests}; do sh \"$test\" || exit 1; done"
test_id_format = "{name}"
[groups.each]
schedule_individual = true
"#;

const TEMPDIR: &str = r#"type = "default"
create_command = "@tempdir_sandbox.sh create"
exec_command = "@tempdir_sandbox.sh exec {sandbox_id} {command}"
destroy_command = "@tempdir_sandbox.sh destroy {sandbox_id}"
copy_dirs = ["t:t"]
"#;

#[test]
fn no_report_says_a_secret() {
    let config = format!("[provider]\ntype = \"local\"\n[provider.env]{ENV}{SHELL_TESTS}");
    let dir = project(&config, &[("t/telltale.sh", TELLTALE)]);
    let args = ["run", "-vv", "--trace", "--record-history", "--retries", "1"];
    let run = is_silent(Run::new(command(dir.path()), args).exits(1));
    let run = run.says("MARKED=***\n").says("FROM_OUTSIDE=Bearer ***\n").says("{\"token\": \"***\"}");
    let run = run.says("OPEN=open-value\n").says("PLAIN=plain-value\n");
    assert!(run.junit().cases.values().next().unwrap().text.contains("MARKED=***\n"));
    for file in ["junit.xml", "trace.json"] {
        assert!(run.reports.path().join(file).exists(), "{file}");
    }
    let history = std::fs::read_to_string(dir.path().join("offload-history.jsonl")).unwrap();
    assert!(history.contains("telltale") && !history.contains("hunter2") && !history.contains(OUTER), "{history}");
    is_silent(Run::new(command(dir.path()), ["run", "--message-format", "json"]).exits(1)).says("MARKED=***\\n");
    let validated = is_silent(Run::new(command(dir.path()), ["validate"]).exits(0));
    validated.says("env.MARKED = { value = \"***\", secret = true }").says("env.FROM_OUTSIDE = \"Bearer ${OUTER}\"");
}

#[test]
fn what_a_test_is_called_and_what_goes_wrong_before_it_are_masked() {
    let failing = format!("[provider]\n{TEMPDIR}[provider.env]{ENV}{SHELL_TESTS}")
        .replace("@tempdir_sandbox.sh create", "echo creating with $FROM_OUTSIDE >&2; exit 9");
    let dir = project(&failing, &[("t/a.sh", "")]);
    let mut logging = command(dir.path());
    logging.env("OFFLOAD_LOG", "trace");
    is_silent(Run::new(logging, ["run", "-j", "1"]).exits(3)).says("creating with Bearer ***");

    let named = format!("[provider]\ntype = \"local\"\n[provider.env]{ENV}{SHELL_TESTS}");
    let dir = project(&named, &[("t/for-swordfish-1.sh", "exit 1\n")]);
    is_silent(Run::new(command(dir.path()), ["run", "-vv"]).exits(1)).says("t/for-***.sh");
    is_silent(Run::new(command(dir.path()), ["collect"]).exits(0)).says("t/for-***.sh");
    is_silent(Run::new(command(dir.path()), ["collect", "-f", "json"]).exits(0)).says("\"id\": \"t/for-***.sh\"");

    let pytest = "[provider]\ntype = \"local\"\n[framework]\ntype = \"pytest\"\n\
                  command = \"echo $TOKEN; echo started with $TOKEN; false\"\n[framework.env]\nTOKEN = \"${OUTER}\"\n";
    let dir = project(pytest, &[]);
    is_silent(Run::new(command(dir.path()), ["run"]).exits(3)).says("started with ***");
    is_silent(Run::new(command(dir.path()), ["collect"]).exits(3)).says("started with ***");
}

#[test]
fn the_variables_of_pytest_are_not_in_its_command_line() {
    let test = "import os, glob\n\
                def test_telltale():\n    \
                    assert os.environ['MARKED'] == 'hunter2<&\"\\'\\\\>ä' and os.environ['OPEN'] == 'open-value'\n    \
                    assert os.environ['ROOTED'] == 'swordfish-1:' + os.environ.get('OFFLOAD_ROOT', os.getcwd()) + '/x'\n    \
                    print(dict(os.environ))\n    \
                    for path in glob.glob('/proc/[0-9]*/cmdline'):\n        \
                        try: line = open(path, 'rb').read()\n        \
                        except OSError: continue\n        \
                        assert os.environ['MARKED'].encode() not in line and b'swordfish' not in line, 'in the arguments'\n    \
                    assert os.environ['FROM_OUTSIDE'] == 'nothing'\n";
    let framework = format!(
        "[framework]\ntype = \"pytest\"\ncommand = \"python3 -m pytest\"\n[framework.env]{ENV}ROOTED = \"${{OUTER}}:{{root}}/x\"\n"
    );
    for (provider, sshd) in crate::artifacts::providers() {
        // On a host there is no environment of ours that would say which Python.
        let python = crate::python_support::python();
        let far = framework.replace("python3", python.to_str().unwrap());
        let framework = if sshd.is_some() { &far } else { &framework };
        let dir = project(&format!("[provider]\n{provider}{framework}"), &[("t/test_it.py", test)]);
        let mut tells = command(dir.path());
        tells.envs(sshd.as_ref().map(|sshd| ("PATH", sshd.search_path())));
        let run = is_silent(Run::new(tells, ["run", "-vv"]).exits(1));
        run.says("AssertionError: assert 'Bearer ***' == 'nothing'")
            .says("'OPEN': 'open-value'")
            .says("'MARKED': '***'");
        if provider.contains("docker") {
            Run::new(command(dir.path()), ["clean"]).exits(0);
        }
    }
}

#[test]
fn a_command_that_does_not_hand_a_secret_on_is_told_before_tests_fail_for_it() {
    let forgetful = TEMPDIR.replace("@tempdir_sandbox.sh exec", "env -u TOKEN @tempdir_sandbox.sh exec");
    let framework = "[framework]\ntype = \"pytest\"\ncommand = \"python3 -m pytest\"\nenv = { TOKEN = \"${OUTER}\" }\n";
    let dir = project(&format!("[provider]\n{forgetful}{framework}"), &[("t/test_it.py", "def test(): pass\n")]);
    let run = is_silent(Run::new(command(dir.path()), ["run", "-j", "1"]).exits(1));
    run.says("the variable TOKEN is a secret").says("as `docker exec --env TOKEN …` does");
}

#[test]
fn a_container_is_given_what_its_image_does_not_hold() {
    let Some(image) = image() else { return };
    let config = format!("[provider]\ntype = \"docker\"\nimage = \"{image}\"\n[provider.env]{ENV}{SHELL_TESTS}");
    // The image has no `grep`.
    let test = TELLTALE.replace(
        "grep -qF -f pattern",
        "python3 -c 'import os, sys; words = sys.stdin.read(); sys.exit(os.environ[\"MARKED\"] not in words)'",
    );
    let dir = project(&config, &[("t/telltale.sh", &test)]);
    is_silent(Run::new(command(dir.path()), ["run", "-vv"]).exits(1)).says("MARKED=***\n");
    let failing = config.replace("[framework]", "[offload]\nsandbox_init_cmd = \"echo $MARKED; exit 5\"\n[framework]");
    std::fs::write(dir.path().join("offload.toml"), failing).unwrap();
    is_silent(Run::new(command(dir.path()), ["run"]).exits(3)).says("exit code 5\n  ***");
    Run::new(command(dir.path()), ["clean"]).exits(0);
}

#[test]
fn a_host_is_given_what_is_in_no_file_and_in_no_command_line() {
    let Some(sshd) = Sshd::start() else { return };
    let provider = crate::ssh::provider(&sshd, 1);
    let config = format!("[provider]\n{provider}[provider.env]{ENV}{SHELL_TESTS}");
    // The host is this machine: its processes are those of the run, too.
    let dir = project(&config, &[("t/telltale.sh", TELLTALE)]);
    let mut run = command(dir.path());
    run.env("PATH", sshd.search_path()).env("OFFLOAD_LOG", "trace");
    is_silent(Run::new(run, ["run", "-vv", "--trace"]).exits(1)).says("MARKED=***\n");
    for path in sshd.left().iter().filter(|path| !path.ends_with("telltale.sh")) {
        let text = std::fs::read(sshd.workdir().join(path)).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&text).contains(OUTER), "a secret is in {path}");
    }
}

#[test]
fn a_secret_that_comes_in_pieces_is_masked() {
    let library = r#"
#[test] fn tells() {
    use std::io::Write as _;
    let token = std::env::var("TOKEN").unwrap();
    let (first, second) = token.split_at(4);
    for piece in ["it is ", first, second, " and ", first] {
        std::io::stdout().write_all(piece.as_bytes()).unwrap();
        std::io::stdout().flush().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
"#;
    let metadata = "[package.metadata.offload.provider.env]\nTOKEN = { value = \"hunter2hunter2\", secret = true }\n";
    let files = [("Cargo.toml", &*(manifest("tells-secrets") + metadata)), ("src/lib.rs", library)];
    let workspace = Workspace::shared("tells-secrets", &files);
    let run = Run::new(cargo_offload(&workspace.dir), ["--no-capture"]).exits(0);
    run.says("it is *** and hunt").never_says("hunter2");
}
