//! What people and programs read.

use crate::support::{Run, Workspace, cargo_offload};

fn three() -> Workspace {
    let library = "#[test] fn one() {}\n#[test] fn two() { panic!(\"two is odd\") }\n#[test] #[ignore] fn three() {}\n";
    Workspace::package("three", library)
}

#[test]
fn without_a_terminal_there_are_no_control_characters() {
    for ci in [false, true] {
        let mut command = cargo_offload(&three().dir);
        if ci {
            command.env("CI", "true");
        }
        let run = Run::new(command, ["--lib"]).exits(1);
        assert!(!run.text().contains(|c: char| c.is_control() && c != '\n'), "{:?}", run.text());
    }
}

#[test]
fn colours_can_be_forced_and_forbidden() {
    let with = |key: &str, args: &[&str]| {
        let mut command = cargo_offload(&three().dir);
        command.env(key, "1");
        Run::new(command, [&["--lib"], args].concat()).exits(1).stdout.contains("\u{1b}[")
    };
    assert!(with("CLICOLOR_FORCE", &[]));
    assert!(!with("CLICOLOR_FORCE", &["--color", "never"]));
    assert!(with("NO_COLOR", &["--color", "always"]));
    assert!(!with("NO_COLOR", &[]));
}

#[test]
fn verbose_gives_a_line_for_each_test_and_quiet_only_what_matters() {
    three().offload(["--lib", "-v"]).exits(1).says("three one").says("three two").says("three three");
    let quiet = three().offload(["--lib", "-q"]).exits(1).says("two is odd").never_says("three one");
    assert!(quiet.says("1 failed").stdout.lines().count() < 20);
}

#[test]
fn uncaptured_tests_write_to_the_output() {
    let library = "#[test] fn talks() { println!(\"hello from a test\"); }\n";
    let workspace = Workspace::package("talking", library);
    workspace.offload(["--lib"]).exits(0).never_says("hello from a test");
    workspace.offload(["--lib", "--no-capture"]).exits(0).says("hello from a test");
}

#[test]
fn json_is_one_versioned_object_a_line_and_nothing_else() {
    let run = three().offload(["--lib", "--message-format", "json"]).exits(1);
    let events: Vec<serde_json::Value> =
        run.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect();
    assert!(events.iter().all(|event| event["format"] == 1), "{}", run.stdout);
    let named = |name: &str| events.iter().filter(|event| event["event"] == name).collect::<Vec<_>>();
    assert_eq!(events.first().unwrap()["event"], "run_started");
    assert_eq!(events.last().unwrap()["event"], "run_finished");
    let mut outcomes: Vec<_> = named("test_finished")
        .iter()
        .map(|event| (event["test"]["id"].as_str().unwrap(), event["outcome"].as_str().unwrap()))
        .collect();
    outcomes.sort_unstable();
    assert_eq!(outcomes, [("three one", "passed"), ("three three", "skipped"), ("three two", "failed")]);
    assert_eq!(named("test_started").len(), 2);
    assert_eq!(events.last().unwrap()["summary"]["exit_code"], 1);
}

#[test]
fn a_reader_that_goes_away_is_no_disaster() {
    let mut command = cargo_offload(&three().dir);
    let reports = tempfile::tempdir().unwrap();
    command.args(["--lib", "-v"]).env("OFFLOAD_REPORT_OUTPUT_DIR", reports.path());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let run = Run::from_output(child.wait_with_output().unwrap(), reports).exits(1);
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    assert_eq!(run.junit().cases.len(), 3);
}

#[test]
fn help_names_every_command_and_option() {
    let help = three().offload(["--help"]).exits(0);
    for word in
        ["list", "init", "validate", "logs", "--isolation", "--retries", "--junit", "--no-capture", "Exit codes"]
    {
        assert!(help.stdout.contains(word), "{word} is missing in\n{}", help.stdout);
    }
}

#[test]
fn quiet_keeps_warnings_and_leaves_out_what_is_compiled() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("src")).unwrap();
    std::fs::write(dir.path().join("Cargo.toml"), crate::support::manifest("hushed")).unwrap();
    std::fs::write(dir.path().join("src/lib.rs"), "fn unused() {}\n#[test] fn passes() {}\n").unwrap();
    let run = Run::new(cargo_offload(dir.path()), ["--lib", "-q"]).exits(0);
    run.says("never used").never_says("Compiling").never_says("Finished");
}

#[test]
fn the_list_for_programs_is_as_documented() {
    let run = three().offload(["list", "--lib", "--message-format", "json"]).exits(0);
    let list: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(list["format"], 1);
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/JSON.md")).unwrap();
    let (_, section) = page.split_once("## The list of tests").unwrap();
    let mut documented: Vec<_> =
        section.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0)).collect();
    documented.sort_unstable();
    let tests = list["tests"].as_array().unwrap();
    assert_eq!(tests.len(), 3);
    for test in tests {
        assert_eq!(test.as_object().unwrap().keys().collect::<Vec<_>>(), documented);
    }
}
