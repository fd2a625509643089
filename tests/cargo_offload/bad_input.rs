//! Mistakes, typed in: each gets a sentence that says what to do, and exit code 3.

use crate::support::{Run, Workspace, cargo_offload, manifest, offload};

fn simple() -> Workspace {
    Workspace::package("simple", "#[test] fn passes() {}\n")
}

#[test]
fn outside_of_any_package() {
    let dir = tempfile::tempdir().unwrap();
    let run = Run::new(cargo_offload(dir.path()), [] as [&str; 0]).exits(3);
    run.says("Cargo.toml").never_says("panicked");
}

#[test]
fn a_package_that_does_not_exist() {
    simple().offload(["-p", "nonesuch"]).exits(3).says("nonesuch").never_says("panicked");
}

#[test]
fn a_target_that_does_not_exist() {
    simple().offload(["--test", "nonesuch"]).exits(3).says("nonesuch").never_says("panicked");
}

#[test]
fn no_sandboxes_at_all() {
    simple().offload(["--parallel", "0"]).exits(3).says("--parallel").never_says("panicked");
}

#[test]
fn options_that_do_not_exist() {
    simple().offload(["--paralel", "2"]).exits(3).says("--parallel");
    simple().offload(["--isolation", "none"]).exits(3).says("process").says("binary");
    simple().offload(["--timeout", "soon"]).exits(3);
    simple().offload(["--timeout", "-1"]).exits(3);
    simple().offload(["--timeout", "0"]).exits(3).says("--timeout");
}

#[test]
fn a_provider_that_is_not_there_yet() {
    simple().offload(["--provider", "modal"]).exits(3).says("modal").says("local");
    simple().offload(["--provider", "nonesuch"]).exits(3).says("nonesuch").says("local");
}

#[test]
fn all_mistakes_of_a_configuration_file_at_once() {
    let config = "[offload]\nmax_paralel = 4\ntest_timeout_secs = \"long\"\n\n[groups.a]\nretry_count = -1\n";
    let files = [
        ("Cargo.toml", &*manifest("misconfigured")),
        ("src/lib.rs", "#[test] fn passes() {}"),
        ("offload.toml", config),
    ];
    let run = Workspace::shared("misconfigured", &files).offload([] as [&str; 0]).exits(3);
    run.says("offload.toml:2:1")
        .says("max_parallel")
        .says("offload.toml:3:")
        .says("offload.toml:6:")
        .never_says("1 passed");
}

#[test]
fn a_configuration_file_that_cannot_be_read() {
    simple().offload(["-c", "nonesuch.toml"]).exits(3).says("nonesuch.toml");
    let dir = tempfile::tempdir().unwrap();
    simple().offload(["-c".as_ref(), dir.path().as_os_str()]).exits(3);
}

#[test]
fn a_report_directory_that_cannot_be_written_is_found_before_the_tests_run() {
    let run = simple().offload(["--output-dir", "/proc/nonesuch"]).exits(3);
    run.says("/proc/nonesuch").never_says("1 passed").never_says("panicked");
    let run = simple().offload(["--junit", "/proc/nonesuch/junit.xml"]).exits(3);
    run.says("/proc/nonesuch").never_says("1 passed");
}

#[test]
fn a_full_disk_loses_no_result() {
    // A device on which every write fails as on a full disk.
    let run = simple().offload(["--lib", "--junit", "/dev/full"]).exits(3);
    run.says("1 passed").says("/dev/full").says("No space left").never_says("panicked");
}

#[test]
fn names_with_everything_in_them() {
    // Harnesses of their own can give tests any name.
    let harness = r#"
fn main() {
    let names = ["a <b> & \"c\" 'd'", "ünïcödé ✓", "x::y"];
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        if args.iter().any(|arg| arg == "--ignored") { return; }
        for name in names { println!("{name}: test"); }
        return;
    }
    let wanted = args.iter().find(|arg| names.contains(&arg.as_str())).expect("one name");
    println!("running 1 test\ntest {wanted} ... ok\n");
    println!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.00s");
}
"#;
    let manifest = manifest("odd_names") + "\n[[test]]\nname = \"odd\"\nharness = false\n";
    let files = [("Cargo.toml", &*manifest), ("src/lib.rs", ""), ("tests/odd.rs", harness)];
    let run = Workspace::shared("odd_names", &files).offload(["--test", "odd"]).exits(0);
    let expected = ["odd_names::odd a <b> & \"c\" 'd'", "odd_names::odd x::y", "odd_names::odd ünïcödé ✓"];
    assert_eq!(run.junit().cases.keys().collect::<Vec<_>>(), expected);
}

#[test]
fn what_does_not_compile_hides_nothing_that_does() {
    let broken = "#[test] fn never() { let x: u32 = \"not a number\"; }";
    let files = [
        ("Cargo.toml", &*manifest("half_broken")),
        ("src/lib.rs", "#[test] fn fine() {}"),
        ("tests/broken.rs", broken),
        ("tests/whole.rs", "#[test] fn whole() {}"),
    ];
    let run = Workspace::shared("half_broken", &files).offload([] as [&str; 0]).exits(3);
    let junit = run.junit();
    assert_eq!(junit.case("half_broken fine").outcome, "passed");
    assert_eq!(junit.case("half_broken::whole whole").outcome, "passed");
    run.says("mismatched types").says("broken.rs");
}

#[test]
fn a_place_that_cannot_be_written_is_named_once() {
    let run = simple().offload(["--output-dir", "/proc/nonesuch"]).exits(3);
    assert_eq!(run.stderr.matches("/proc/nonesuch").count(), 1, "{}", run.stderr);
    assert_eq!(run.stderr.matches("os error").count(), 1, "{}", run.stderr);
    run.never_says(".offload-");
}

#[test]
fn logs_without_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("junit.xml");
    simple().offload(["logs".as_ref(), "--junit".as_ref(), missing.as_os_str()]).exits(3).says("--junit");
    simple().offload(["logs", "--test-regex", "("]).exits(3).says("--test-regex").says("unclosed group");
}

#[test]
fn histories_that_are_not_there_are_not_merged() {
    let dir = tempfile::tempdir().unwrap();
    let run = Run::new(offload(dir.path()), ["history", "merge", "base", "ours", "theirs"]).exits(3);
    run.says("there is no such file");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was written");
}

#[test]
fn a_command_behind_options_of_all_commands() {
    for args in [&["-v", "list"][..], &["--color", "never", "list"], &["-q", "--color=never", "list"]] {
        assert_eq!(simple().offload(args).exits(0).stdout, "simple passes\n", "{args:?}");
    }
    simple().offload(["-c", "nonesuch.toml", "validate"]).exits(3).says("nonesuch.toml");
}

#[test]
fn a_filter_that_is_called_like_a_command_is_not_guessed_at() {
    let run = simple().offload(["-p", "simple", "list"]).exits(3);
    run.says("cargo offload list …").says("cargo offload run … list");
    simple().offload(["run", "list"]).exits(0).says("no test matches the filters");
}

#[test]
fn options_of_other_runners_are_explained() {
    simple().offload(["--no-run"]).exits(3).says("cargo offload list").never_says("as a value");
    simple().offload(["--profile", "ci"]).exits(3).says("--cargo-profile");
    simple().offload(["-E", "test(a)"]).exits(3).says("substrings");
    simple().offload(["--no-fail-fast", "--lib"]).exits(0).says("1 passed");
    simple().offload(["--no-fail-fast", "--fail-fast"]).exits(3);
}

/// Cargo refuses it; there is no target that both would leave.
#[test]
fn doctests_only_and_a_target_contradict_each_other() {
    for other in [&["--lib"][..], &["--test", "x"], &["--all-targets"]] {
        simple().offload([&["--doc"], other].concat()).exits(3).says("'--doc' cannot be used with").says(other[0]);
    }
}

#[test]
fn numbers_that_are_none() {
    for option in ["--parallel", "--retries", "--max-fail", "--build-jobs"] {
        for value in ["many", "-1"] {
            simple().offload([option, value]).exits(3).says(option).says("expected a whole number");
        }
    }
}

#[test]
fn what_follows_the_dashes_concerns_the_run_as_with_cargo_test() {
    let library = "#[test] fn talks() { println!(\"hello from a test\"); }\n";
    let workspace = Workspace::package("talking_twice", library);
    workspace.offload(["--lib", "--", "--nocapture"]).exits(0).says("hello from a test");
    let started = |args: &[&str]| {
        let run = workspace.offload([&["--lib", "--message-format", "json"], args].concat()).exits(0);
        let first: serde_json::Value = serde_json::from_str(run.stdout.lines().next().unwrap()).unwrap();
        first["max_sandboxes"].as_u64().unwrap()
    };
    assert_eq!(started(&["--", "--test-threads=3"]), 3);
    assert_eq!(started(&["--", "--test-threads", "4"]), 4);
    assert_eq!(started(&["--test-threads", "5"]), 5);
    workspace.offload(["--lib", "--", "--test-threads=x"]).exits(3).says("--test-threads");
    workspace.offload(["--lib", "--", "--show-output"]).exits(0).says("note: `--show-output`");
    workspace.offload(["--lib", "--", "--skip", "--nocapture", "talks"]).exits(0).never_says("hello");
}

#[test]
fn paths_that_are_not_utf8_are_refused_and_not_changed() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"\xff"));
    simple().offload(["--lib".as_ref(), "--output-dir".as_ref(), odd.as_os_str()]).exits(3).says("UTF-8");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
