//! The outcome of every test is that of `cargo test`.

use std::collections::BTreeMap;

use crate::support::{Workspace, program};

/// Outcomes by test name, as `cargo test` prints them. Names are unique in the workspaces below.
fn cargo_test(workspace: &Workspace) -> BTreeMap<String, String> {
    let mut command = program("cargo", &workspace.dir);
    let output = command.args(["test", "--workspace", "--no-fail-fast"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut outcomes = BTreeMap::new();
    for line in text.lines() {
        let Some((name, outcome)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) else {
            continue;
        };
        let name = [" - should panic", " - compile fail", " - compile"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(name);
        let outcome = match outcome.split([',', ' ']).next().unwrap() {
            "ok" => "passed",
            "FAILED" => "failure",
            "ignored" => "skipped",
            other => panic!("unknown outcome {other:?} in {line:?}"),
        };
        assert!(outcomes.insert(name.to_owned(), outcome.to_owned()).is_none(), "{name} is not unique");
    }
    outcomes
}

/// Outcomes by test name, as `cargo offload` reports them.
fn cargo_offload(workspace: &Workspace, isolation: &str) -> BTreeMap<String, String> {
    let run = workspace.offload(["--workspace", "--isolation", isolation]);
    let junit = run.junit();
    let outcomes: BTreeMap<_, _> =
        junit.cases.iter().map(|(id, case)| (id.split_once(' ').unwrap().1.to_owned(), case.outcome.clone())).collect();
    assert_eq!(outcomes.len(), junit.cases.len(), "names are unique");
    outcomes
}

#[test]
fn a_workspace_of_every_kind_of_target() {
    let member = |name: &str, more: &str| {
        format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n{more}")
    };
    let doc_tests = r#"
//! ```
//! assert!(true);
//! ```
//! ```should_panic
//! panic!("as it should");
//! ```
//! ```compile_fail
//! let x: u32 = "";
//! ```
//! ```no_run
//! loop {}
//! ```
//! ```ignore
//! never
//! ```
//! ```
//! assert!(false, "documentation that is wrong");
//! ```
#[test] fn lib_unit() {}
#[test] fn lib_fails() -> Result<(), String> { Err("an error value".into()) }
#[test] #[should_panic(expected = "this")] fn lib_should_panic() { panic!("this one") }
#[test] #[should_panic] fn lib_does_not_panic() {}
#[test] #[ignore] fn lib_ignored() {}
"#;
    let everything = member(
        "everything",
        "\n[dependencies]\nrenamed = { package = \"original\", path = \"../original\" }\n\
         macros = { path = \"../macros\" }\n\n[[example]]\nname = \"tested\"\ntest = true\n\n\
         [[bench]]\nname = \"tested_bench\"\ntest = true\n\n[[test]]\nname = \"own_harness\"\nharness = false\n",
    );
    let build_script = "fn main() { println!(\"cargo:rustc-env=FROM_BUILD=yes\"); \
                        std::fs::write(std::env::var(\"OUT_DIR\").unwrap() + \"/made\", \"made\").unwrap(); }";
    let integration = r#"
#[test] fn integration_runs_the_binary() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_everything")).output().unwrap();
    assert_eq!(output.stdout, b"everything\n");
    assert_eq!(std::env::var("CARGO_BIN_EXE_everything").is_ok(), option_env!("UNSET").is_none());
}
#[test] fn integration_uses_renamed() { assert_eq!(renamed::three(), 3); }
#[test] fn integration_uses_macro() { assert_eq!(macros::four!(), 4); }
#[test] fn integration_temporary_directory() { assert!(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).is_dir()); }
#[test] fn integration_fails() { panic!("in an integration test") }
"#;
    let files = [
        (
            "Cargo.toml",
            "[workspace]\nresolver = \"2\"\nmembers = [\"everything\", \"original\", \"macros\", \"modern\"]\n",
        ),
        ("everything/Cargo.toml", everything.as_str()),
        ("everything/build.rs", build_script),
        ("everything/src/lib.rs", doc_tests),
        ("everything/src/main.rs", "fn main() { println!(\"everything\"); }\n#[test] fn bin_unit() {}\n"),
        ("everything/examples/tested.rs", "fn main() {}\n#[test] fn example_unit() {}\n"),
        ("everything/examples/untested.rs", "fn main() { panic!(\"must not be run\") }\n"),
        ("everything/benches/tested_bench.rs", "#[test] fn bench_unit() {}\n"),
        ("everything/tests/integration.rs", integration),
        ("everything/tests/own_harness.rs", "fn main() {}\n"),
        (
            "everything/tests/build_script.rs",
            "#[test] fn sees_the_build_script() { assert_eq!(env!(\"FROM_BUILD\"), \"yes\"); \
             assert_eq!(std::fs::read_to_string(std::env::var(\"OUT_DIR\").unwrap() + \"/made\").unwrap(), \"made\"); }\n",
        ),
        ("original/Cargo.toml", &member("original", "")),
        ("original/src/lib.rs", "pub fn three() -> u32 { 3 }\n#[test] fn original_unit() {}\n"),
        // Edition 2024: rustdoc merges what it can into one binary and runs the rest one by one.
        ("modern/Cargo.toml", &member("modern", "").replace("2021", "2024")),
        ("modern/src/lib.rs", doc_tests.split("#[test]").next().unwrap()),
        ("macros/Cargo.toml", &member("macros", "\n[lib]\nproc-macro = true\n")),
        (
            "macros/src/lib.rs",
            "#[proc_macro] pub fn four(_: proc_macro::TokenStream) -> proc_macro::TokenStream { \"4\".parse().unwrap() }\n\
             #[test] fn macro_unit() {}\n",
        ),
    ];
    let workspace = Workspace::shared("every kind – ünïcode", &files);
    let expected = cargo_test(&workspace);
    for isolation in ["auto", "process", "binary"] {
        let mut actual = cargo_offload(&workspace, isolation);
        // `cargo test` prints nothing of a target with a harness of its own.
        assert_eq!(actual.remove("own_harness").as_deref(), Some("passed"), "{actual:?}");
        assert_eq!(actual, expected, "{isolation}");
    }
    assert!(expected.len() > 20, "{expected:?}");
}

#[test]
fn a_doctest_is_executed_once_and_only_what_failed_again() {
    let mut library = String::new();
    for number in 10..30 {
        library += &format!(
            "/// ```\n/// use std::io::Write;\n\
             /// let runs = std::fs::OpenOptions::new().append(true).open(std::env::var(\"RUNS\").unwrap());\n\
             /// writeln!(runs.unwrap(), \"{number}\").unwrap();\n/// assert_ne!({number}, 17);\n/// ```\n\
             pub fn f{number}() {{}}\n"
        );
    }
    let workspace = Workspace::package("once", &library);
    for isolation in ["auto", "process", "binary"] {
        let runs = tempfile::NamedTempFile::new().unwrap();
        let mut command = crate::support::cargo_offload(&workspace.dir);
        command.env("RUNS", runs.path());
        let args = ["--doc", "--retries", "1", "-j", "2", "--isolation", isolation];
        let run = crate::support::Run::new(command, args).exits(1);
        assert_eq!(run.junit().cases.len(), 20);
        let mut executed: Vec<u32> =
            std::fs::read_to_string(runs.path()).unwrap().lines().map(|line| line.parse().unwrap()).collect();
        executed.sort_unstable();
        let mut expected: Vec<u32> = (10..30).chain([17]).collect();
        expected.sort_unstable();
        assert_eq!(executed, expected, "{isolation}");
    }
}

#[test]
fn doctests_see_the_features_of_everything_that_is_selected() {
    let member = |name: &str, edition: u32, more: &str| {
        format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"{edition}\"\n{more}")
    };
    let used = "/// ```\n/// assert!(used::extra());\n/// ```\npub fn extra() -> bool { cfg!(feature = \"extra\") }\n\
                /// ```\n/// assert!(std::env::var_os(\"RUSTDOC\").is_none());\n/// ```\n#[cfg(feature = \"extra\")]\n\
                pub fn only_with_it() {}\n";
    let user = "/// ```\n/// assert!(user::f());\n/// ```\npub fn f() -> bool { used::extra() }\n";
    let files = [
        ("Cargo.toml", "[workspace]\nresolver = \"2\"\nmembers = [\"used\", \"user\"]\n"),
        ("used/Cargo.toml", &member("used", 2024, "[features]\nextra = []\n")),
        ("used/src/lib.rs", used),
        (
            "user/Cargo.toml",
            &member("user", 2021, "[dependencies]\nused = { path = \"../used\", features = [\"extra\"] }\n"),
        ),
        ("user/src/lib.rs", user),
    ];
    let workspace = Workspace::shared("unified features", &files);
    let expected = cargo_test(&workspace);
    assert_eq!(expected.len(), 3, "{expected:?}");
    assert!(expected.values().all(|outcome| outcome == "passed"), "{expected:?}");
    assert_eq!(cargo_offload(&workspace, "process"), expected);
    // Alone, the package has only what was asked for.
    let alone = workspace.offload(["-p", "used"]).exits(1).junit();
    assert_eq!(alone.cases.len(), 1);
}

/// A rustdoc of the user's own, by a path that is relative to where Cargo is called.
#[test]
fn doctests_of_several_packages_have_the_users_rustdoc() {
    use std::os::unix::fs::PermissionsExt;

    let member = |name: &str| format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n");
    let library = "/// ```\n/// assert_eq!(std::env::var(\"RUSTDOC\").as_deref(), Ok(\"./my rustdoc\"));\n/// ```\n\
                   pub fn f() {}\n";
    let files = [
        ("Cargo.toml", "[workspace]\nresolver = \"3\"\nmembers = [\"first\", \"second\"]\n"),
        ("first/Cargo.toml", &member("first")),
        ("first/src/lib.rs", library),
        ("second/Cargo.toml", &member("second")),
        ("second/src/lib.rs", library),
        ("my rustdoc", "#!/bin/sh\necho called >> \"$CALLS\"\nexec rustdoc \"$@\"\n"),
    ];
    let workspace = Workspace::shared("rustdoc of the user", &files);
    let script = workspace.dir.join("my rustdoc");
    std::fs::set_permissions(script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let own_rustdoc = |mut command: std::process::Command, calls: &tempfile::NamedTempFile| {
        command.env("RUSTDOC", "./my rustdoc").env("CALLS", calls.path());
        command
    };

    let calls = tempfile::NamedTempFile::new().unwrap();
    let mut cargo = own_rustdoc(program("cargo", &workspace.dir), &calls);
    assert!(cargo.args(["test", "--doc"]).output().unwrap().status.success(), "they pass under `cargo test`");
    assert_eq!(std::fs::read_to_string(calls.path()).unwrap().lines().count(), 2);

    for selection in [&["--doc"][..], &["--doc", "-p", "first"]] {
        let calls = tempfile::NamedTempFile::new().unwrap();
        let command = own_rustdoc(crate::support::cargo_offload(&workspace.dir), &calls);
        let junit = crate::support::Run::new(command, selection).exits(0).junit();
        assert_eq!(junit.cases.len(), if selection.len() == 1 { 2 } else { 1 });
        assert!(std::fs::read_to_string(calls.path()).unwrap().lines().count() >= junit.cases.len());
    }
}
