//! Files that tests, scripts or other users put where something else is expected: bounded, typed and private.

use std::path::Path;
use std::process::Command;

use crate::offload_run::{project, run};

/// A run whose tests write `write` to the result file.
fn config(write: &str) -> String {
    format!(
        "[provider]\ntype = \"local\"\n[framework]\ntype = \"default\"\ndiscover_command = \"echo a\"\n\
         run_command = '''{write} # {{tests}}'''\ntest_id_format = \"{{name}}\"\n"
    )
}

fn pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn a_result_file_that_is_a_pipe_or_endless_ends_with_a_sentence() {
    for (write, what) in [
        ("rm -f {result_file}; mkfifo {result_file}", "it is not a regular file"),
        ("truncate -s 30G {result_file}", "it is longer than 256 MiB"),
    ] {
        let dir = project(&[("offload.toml", &config(write))]);
        run(dir.path(), &["run"]).exits(1).says(what).says("cannot read the result file");
    }
}

#[test]
fn result_files_are_in_a_private_directory_with_names_that_nobody_can_guess() {
    let write = "stat -c %a \"$(dirname {result_file})\" > mode; echo {result_file} > name; \
                 echo '<testsuite><testcase name=\"a\"/></testsuite>' > {result_file}";
    let dir = project(&[("offload.toml", &config(write))]);
    run(dir.path(), &["run"]).exits(0).says("1 passed");
    assert_eq!(std::fs::read_to_string(dir.path().join("mode")).unwrap(), "700\n");
    let first = std::fs::read_to_string(dir.path().join("name")).unwrap();
    assert!(!Path::new(first.trim()).parent().unwrap().exists(), "nothing is left of {first}");
    run(dir.path(), &["run"]).exits(0);
    assert_ne!(std::fs::read_to_string(dir.path().join("name")).unwrap(), first);
}

#[test]
fn pipes_in_place_of_our_files_do_not_hang_a_run() {
    let history = "\n[history]\nrecord_history = \"always\"\npath = \"history.jsonl\"\n";
    let dir = project(&[("offload.toml", &(config("true") + history))]);
    pipe(&dir.path().join("history.jsonl"));
    run(dir.path(), &["run"]).exits(3).says("1 passed").says("history.jsonl: it is not a regular file");

    let dir = project(&[("offload.toml", &config("true"))]);
    pipe(&dir.path().join("junit.xml"));
    let junit = dir.path().join("junit.xml").display().to_string();
    run(dir.path(), &["run", "--junit", &junit]).exits(3).says("1 passed").says("nobody reads from it");
    run(dir.path(), &["logs", "--junit", &junit]).exits(3).says("it is not a regular file");

    let dir = project(&[("t.sh", "")]);
    pipe(&dir.path().join("offload.toml"));
    run(dir.path(), &["run", "--config", "offload.toml"]).exits(3).says("it is not a regular file");
}
