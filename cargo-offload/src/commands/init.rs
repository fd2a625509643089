//! `init`: writes a commented offload.toml to start from.

use std::io::Write;
use std::path::Path;

use anyhow::Context;

use crate::failure::Outcome;
use crate::settings::detect_framework;

const FILE: &str = "offload.toml";

/// Writes offload.toml into the current directory; never over one that is there.
pub fn init(provider: &str, framework: Option<&str>) -> Outcome {
    let detected = detect_framework(Path::new("."));
    let framework = framework.or(detected).unwrap_or("default");
    let cargo = matches!(framework, "cargo" | "nextest");
    let program = if cargo { "cargo offload" } else { "offload" };
    let text = format!(
        "# Offload's configuration; docs/CONFIGURATION.md lists all keys.\n\
         # `{program} validate` shows every value and where it comes from.\n\n{}\n{}\n{}\n{}{}",
        run_section(provider),
        provider_section(provider)?,
        framework_section(framework)?,
        if cargo { target_sections() } else { String::new() },
        groups_section(framework),
    );
    let mut file = match std::fs::File::create_new(FILE) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            anyhow::bail!("there is an {FILE} already; remove it first if a new one is wanted")
        }
        Err(error) => return Err(error).with_context(|| format!("cannot write {FILE} here")),
    };
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {FILE} here"))?;
    let next = match framework {
        "default" => "name your commands in it, then: offload run",
        _ if cargo => "next: cargo offload",
        _ => "next: offload run",
    };
    println!("wrote {FILE} for the framework `{framework}` and the provider `{provider}`; {next}");
    Ok(0)
}

fn run_section(provider: &str) -> String {
    let cpus = std::thread::available_parallelism().map_or(4, usize::from);
    if provider == "ssh" {
        return "[offload]\n\
                max_parallel = 100        # the most tests (sandboxes) at once; the slots of the hosts are a limit, too\n\
                # test_timeout_secs = 900 # the time limit of one test\n"
            .to_owned();
    }
    format!(
        "[offload]\n\
         max_parallel = {cpus:<10} # the most tests (sandboxes) at once; here: this machine's CPUs\n\
         # test_timeout_secs = 900 # the time limit of one test\n"
    )
}

/// What `cargo offload` does without a file, so that a new file changes nothing.
fn target_sections() -> String {
    "[report]\n\
     output_dir = \"target/offload\"\n\
     \n\
     [history]                 # lets long tests start first\n\
     record_history = \"always\"\n\
     path = \"target/offload/history.jsonl\"\n\n"
        .to_owned()
}

fn provider_section(provider: &str) -> anyhow::Result<&'static str> {
    Ok(match provider {
        "local" => {
            "[provider]\n\
             type = \"local\"          # processes on this machine\n"
        }
        "default" => {
            "[provider]\n\
             type = \"default\"        # shell commands of your own; here: temporary directories\n\
             create_command = \"@tempdir_sandbox.sh create\"\n\
             exec_command = \"@tempdir_sandbox.sh exec {sandbox_id} {command}\"\n\
             destroy_command = \"@tempdir_sandbox.sh destroy {sandbox_id}\"\n\
             download_command = \"@tempdir_sandbox.sh download {sandbox_id} {paths}\"\n\
             copy_dirs = [\".:.\"]      # the project's files, into each sandbox\n"
        }
        "docker" => {
            "[provider]\n\
             type = \"docker\"         # containers\n\
             image = \"debian:stable-slim\"  # or `dockerfile`; with what the tests need, such as python:3-slim\n\
             # env = { KEY = \"value\" }\n\
             # mounts = [\"cache:/root/.cache\"]\n\
             # memory = \"2g\"\n"
        }
        "ssh" => {
            "[provider]\n\
             type = \"ssh\"            # other machines, as `ssh` reaches them\n\
             hosts = [\n    \
                 { host = \"build1\", slots = 4 },  # also: user, port, identity, workdir\n\
             ]\n\
             # env = { KEY = \"value\" }\n\
             # isolate = true        # a copy of the project for each sandbox, not for each host\n"
        }
        other => anyhow::bail!("there is no provider `{other}` to write; there are local, docker, ssh and default"),
    })
}

fn framework_section(framework: &str) -> anyhow::Result<&'static str> {
    Ok(match framework {
        "cargo" | "nextest" => {
            "[framework]\n\
             type = \"cargo\"\n\
             # features = []\n\
             # isolation = \"auto\"  # or \"process\": one process per test, \"binary\": one per batch of tests\n"
        }
        "pytest" => {
            "[framework]\n\
             type = \"pytest\"\n\
             # command = \"python -m pytest\"\n\
             # paths = [\"tests\"]\n"
        }
        "vitest" => {
            "[framework]\n\
             type = \"vitest\"\n\
             # command = \"npx vitest\"\n\
             # run_args = \"--no-file-parallelism\"\n"
        }
        "default" => {
            "[framework]\n\
             type = \"default\"\n\
             # One test id a line:\n\
             discover_command = \"ls tests/*.sh {filters}\"\n\
             run_command = \"for test in {tests}; do sh \\\"$test\\\" || exit 1; done\"\n\
             test_id_format = \"{name}\"\n"
        }
        other => anyhow::bail!("there is no framework `{other}` to write; there are cargo, pytest, vitest and default"),
    })
}

fn groups_section(framework: &str) -> String {
    let filters = match framework {
        "default" => {
            return "[groups.all]\n\
                    # Without a result file, the exit code of a command is all that is known of its tests.\n\
                    schedule_individual = true\n"
                .to_owned();
        }
        "pytest" => "-m 'not slow'",
        "vitest" => "src/unit",
        _ => "",
    };
    format!(
        "# Groups are optional; with groups, they decide which tests run.\n\
         # [groups.all]\n\
         # retry_count = 1\n\
         # filters = \"{filters}\"\n"
    )
}
