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
    let text = format!(
        "# Offload's configuration. Every key is optional unless it says otherwise; docs/CONFIGURATION.md lists all.\n\
         # `offload validate` shows every value and where it comes from.\n\n{}\n{}\n{}\n{}",
        run_section(),
        provider_section(provider)?,
        framework_section(framework)?,
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
    let next = if framework == "cargo" { "cargo offload" } else { "offload run" };
    println!("wrote {FILE} for the framework `{framework}` and the provider `{provider}`; next: {next}");
    Ok(0)
}

fn run_section() -> &'static str {
    "[offload]\n\
     # max_parallel = 4        # the most tests (sandboxes) at once\n\
     # test_timeout_secs = 900 # the time limit of one test\n"
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
        other => anyhow::bail!("there is no provider `{other}` to write; there are local and default"),
    })
}

fn framework_section(framework: &str) -> anyhow::Result<&'static str> {
    Ok(match framework {
        "cargo" | "nextest" => {
            "[framework]\n\
             type = \"cargo\"\n\
             # features = []\n\
             # isolation = \"process\"  # or \"binary\": a batch of a binary's tests in one process\n"
        }
        "pytest" => {
            "[framework]\n\
             type = \"pytest\"\n\
             # command = \"python -m pytest\"\n\
             # paths = [\"tests\"]\n"
        }
        "default" => {
            "[framework]\n\
             type = \"default\"\n\
             # One test id a line:\n\
             discover_command = \"ls tests/*.sh {filters}\"\n\
             run_command = \"for test in {tests}; do sh \\\"$test\\\" || exit 1; done\"\n\
             test_id_format = \"{name}\"\n"
        }
        other => anyhow::bail!("there is no framework `{other}` to write; there are cargo, pytest and default"),
    })
}

fn groups_section(framework: &str) -> String {
    let filters = match framework {
        "pytest" => "-m 'not slow'",
        _ => "",
    };
    format!(
        "# Groups are optional; with groups, they decide which tests run.\n\
         # [groups.all]\n\
         # retry_count = 1\n\
         # filters = \"{filters}\"\n"
    )
}
