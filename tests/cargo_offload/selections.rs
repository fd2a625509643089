//! Which tests run, however they are selected: the same as with `cargo test`, and with the same exit code.

use std::collections::BTreeMap;

use crate::support::{Workspace, cargo_offload, program};

/// A harness of its own that knows the usual options, as libtest-mimic does. `IGNORED` says which of its tests are.
const HARNESS: &str = r#"
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| args.iter().any(|arg| arg == name);
    let exact = has("--exact");
    let mut names: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    names.retain(|name| !["terse", "json", "unstable-options"].contains(&name.as_str()));
    let tests: &[(&str, bool)] = &TESTS;
    let (mut passed, mut failed, mut left) = (0, 0, 0);
    for (name, ignored) in tests {
        if has("--ignored") && !ignored { continue; }
        if !names.is_empty() && !names.iter().any(|n| if exact { *n == name } else { name.contains(n.as_str()) }) { continue; }
        if has("--list") { println!("{name}: test"); continue; }
        let fails = name.ends_with("fails");
        let runs = !ignored || has("--ignored") || has("--include-ignored");
        println!("test {name} ... {}", if !runs { "ignored" } else if fails { "FAILED" } else { "ok" });
        *(if !runs { &mut left } else if fails { &mut failed } else { &mut passed }) += 1;
    }
    if has("--list") { return; }
    let verdict = if failed > 0 { "FAILED" } else { "ok" };
    println!("\ntest result: {verdict}. {passed} passed; {failed} failed; {left} ignored; 0 measured; 0 filtered out\n");
    std::process::exit(if failed > 0 { 101 } else { 0 });
}
"#;

/// A repository with a package that the workspace has, too, in the same version: as if it had been published.
fn published() -> String {
    let files = [
        ("Cargo.toml", "[package]\nname = \"twin\"\nversion = \"0.1.0\"\nedition = \"2021\"\n"),
        ("src/lib.rs", "//! ```\n//! twin::old();\n//! ```\npub fn old() {}\n#[test] fn published_unit() {}\n"),
    ];
    let dir = Workspace::shared("selections-published", &files).dir;
    if !dir.join(".git").exists() {
        let author = ["-c", "user.name=test", "-c", "user.email=test@example.invalid"];
        for args in [&["init", "--quiet"][..], &["add", "."], &["commit", "--quiet", "--message=published"]] {
            let mut git = program("git", &dir);
            assert!(git.args(author).args(args).status().unwrap().success(), "git {args:?}");
        }
    }
    format!("file://{}", dir.display())
}

fn workspace() -> Workspace {
    let published = published();
    let package = |name: &str, more: &str| {
        format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n{more}")
    };
    let app = package(
        "app",
        "\n[features]\nextra = []\nfrom_dev = []\n\n[dependencies]\noutside = { path = \"../../outside\" }\n\n\
         [dev-dependencies]\n# Turns on a feature of the library that only tests have, and is called as the library.\n\
         helper = { path = \"../helper\" }\npublished = { package = \"twin\", git = \"PUBLISHED\" }\n\n\
         [[test]]\nname = \"all_ignored\"\nharness = false\n\n[[test]]\nname = \"some_ignored\"\nharness = false\n\n\
         [[test]]\nname = \"opaque\"\nharness = false\n\n[[test]]\nname = \"with_extra\"\nrequired-features = [\"extra\"]\n",
    );
    let helper = package("helper", "\n[dependencies]\napp = { path = \"../app\", features = [\"from_dev\"] }\n");
    let twin = package("twin", "\n[dev-dependencies]\npublished = { package = \"twin\", git = \"PUBLISHED\" }\n");
    let [app, twin] = [app, twin].map(|manifest| manifest.replace("PUBLISHED", &published));
    let all_ignored = HARNESS.replace("&TESTS", r#"&[("mimic_a", true), ("mimic_b_fails", true)]"#);
    let some_ignored = HARNESS.replace("&TESTS", r#"&[("mimic_c", false), ("mimic_d_fails", true)]"#);
    let app_lib = "//! ```\n//! app::only_with_dev();\n//! ```\n\
                   #[cfg(feature = \"from_dev\")] pub fn only_with_dev() {}\n\
                   #[test] fn app_unit() {}\n#[test] #[ignore] fn app_unit_ignored() {}\n\
                   #[cfg(feature = \"extra\")] #[test] fn app_unit_extra() {}\n";
    let outside = "//! ```\n//! outside::f();\n//! ```\npub fn f() {}\n#[test] fn outside_unit() {}\n";
    let twin_lib = "//! ```\n//! twin::g();\n//! ```\npub fn g() {}\n#[test] fn twin_unit() {}\n";
    let files = [
        (
            "root/Cargo.toml",
            "[workspace]\nresolver = \"2\"\nmembers = [\"app\", \"helper\", \"twin\"]\ndefault-members = [\"app\", \"twin\"]\n",
        ),
        ("root/app/Cargo.toml", &app),
        ("root/app/src/lib.rs", app_lib),
        ("root/app/src/main.rs", "fn main() {}\n#[test] fn app_bin() {}\n"),
        ("root/app/examples/shown.rs", "fn main() {}\n#[test] fn app_example() {}\n"),
        ("root/app/benches/timed.rs", "#[test] fn app_bench() {}\n"),
        (
            "root/app/tests/plain.rs",
            "#[test] fn app_integration() {}\n#[test] #[ignore] fn app_integration_ignored() {}\n",
        ),
        ("root/app/tests/with_extra.rs", "#[test] fn app_with_extra() {}\n"),
        ("root/app/tests/all_ignored.rs", &all_ignored),
        ("root/app/tests/some_ignored.rs", &some_ignored),
        ("root/app/tests/opaque.rs", "fn main() { println!(\"test opaque ... ok\"); }\n"),
        ("root/helper/Cargo.toml", &helper),
        ("root/helper/src/lib.rs", "#[test] fn helper_unit() {}\n"),
        ("root/twin/Cargo.toml", &twin),
        ("root/twin/src/lib.rs", twin_lib),
        ("root/twin/tests/t.rs", "#[test] fn twin_integration() {}\n"),
        ("outside/Cargo.toml", &(package("outside", "") + "\n[workspace]\n")),
        ("outside/src/lib.rs", outside),
        ("outside/tests/o.rs", "#[test] fn outside_integration() {}\n"),
    ];
    let mut workspace = Workspace::shared("selections", &files);
    workspace.dir = workspace.dir.join("root");
    workspace
}

/// How often each test had which outcome, and whether everything was well.
type Outcomes = (BTreeMap<(String, String), usize>, bool);

fn cargo_test(workspace: &Workspace, args: &[&str]) -> Outcomes {
    let mut command = program("cargo", &workspace.dir);
    let output = command.args(["test", "--no-fail-fast"]).args(args).output().unwrap();
    let mut outcomes = BTreeMap::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let Some((name, outcome)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) else {
            continue;
        };
        let outcome = match outcome.split([',', ' ']).next().unwrap() {
            "ok" => "passed",
            "FAILED" => "failure",
            "ignored" => "skipped",
            other => panic!("unknown outcome {other:?} in {line:?}"),
        };
        *outcomes.entry((name.to_owned(), outcome.to_owned())).or_default() += 1;
    }
    (outcomes, output.status.success())
}

fn offload(workspace: &Workspace, args: &[&str]) -> Outcomes {
    let run = crate::support::Run::new(cargo_offload(&workspace.dir), args);
    let mut outcomes = BTreeMap::new();
    if run.reports.path().join("junit.xml").exists() {
        for (id, case) in run.junit().cases {
            let name = id.split_once(' ').map_or(id.as_str(), |(_, name)| name).to_owned();
            *outcomes.entry((name, case.outcome)).or_default() += 1;
        }
    }
    (outcomes, run.code == Some(0))
}

#[test]
fn the_tests_that_run_are_those_of_cargo_test() {
    let workspace = workspace();
    let url = |member: &str| format!("file://{}", workspace.dir.join(member).display());
    let (app, twin) = (url("app"), url("twin"));
    let outside = format!("file://{}", workspace.dir.with_file_name("outside").display());
    let specs = [
        format!("path+{app}#app@0.1.0"),
        format!("path+{app}#0.1.0"),
        app,
        format!("path+{twin}#twin@0.1.0"),
        format!("{outside}#0.1"),
    ];
    let mut selections: Vec<Vec<&str>> = [
        "",
        "--workspace",
        "--workspace --exclude app",
        "--workspace --exclude tw*",
        "-p app",
        "-p a*",
        "-p app@0.1.0",
        "-p outside",
        "-p outside -p helper",
        "-p outside --doc",
        "-p outside --lib",
        "-p app --doc",
        "--doc",
        "--lib",
        "--bins",
        "--tests",
        "--examples",
        "--benches",
        "--all-targets",
        "--test plain",
        "--features extra -p app",
        "-p app --features extra --test with_extra",
        "app_",
        "-p app -- --ignored",
        "-p app -- --include-ignored",
        "-p app --test all_ignored -- --ignored",
        "-p app --test all_ignored",
        "-p app --test some_ignored -- --ignored",
        "-p app --test opaque -- --ignored",
        "-p app --lib -- app_unit --exact",
        "-p app --lib -- --skip ignored",
    ]
    .iter()
    .map(|args| args.split_whitespace().collect())
    .collect();
    selections.extend(specs.iter().map(|spec| vec!["-p", spec.as_str()]));
    let mut wrong = Vec::new();
    let mut seen = 0;
    for args in selections {
        // A program that knows no options runs whatever is asked for; as a test it has its target's name.
        let (mut expected, mut actual) = (cargo_test(&workspace, &args), offload(&workspace, &args));
        if args.iter().any(|arg| arg.starts_with("app_") || *arg == "--skip") {
            expected.0.retain(|(name, _), _| name != "opaque");
            actual.0.retain(|(name, _), _| name != "opaque");
        }
        seen += expected.0.len();
        if expected != actual {
            wrong.push(format!("{args:?}\ncargo test: {expected:?}\n   offload: {actual:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(seen > 150, "only {seen} tests were compared");
}

#[test]
fn a_program_without_the_standard_harness_runs_once() {
    let program = "fn main() { use std::io::Write; let log = concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/log\"); \
                   let mut log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap(); \
                   writeln!(log, \"{:?}\", std::env::args().skip(1).collect::<Vec<_>>()).unwrap(); FAIL }";
    let manifest = crate::support::manifest("runs_once")
        + "[[test]]\nname = \"passes\"\nharness = false\n[[test]]\nname = \"fails\"\nharness = false\n";
    let (passes, fails) = (program.replace("FAIL", ""), program.replace("FAIL", "panic!(\"as it should\")"));
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in [("Cargo.toml", &manifest), ("tests/passes.rs", &passes), ("tests/fails.rs", &fails)] {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    for _ in 0..2 {
        crate::support::Run::new(cargo_offload(dir.path()), ["-j1"]).exits(1).says("1 passed, 1 failed");
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
        assert_eq!(log, "[]\n[]\n", "each ran once, as from `cargo test`");
        std::fs::remove_file(dir.path().join("log")).unwrap();
    }
}

/// A harness of its own may know `--list` and nothing else of what the standard one knows.
#[test]
fn tests_of_another_harness_run_once_whatever_they_share() {
    let harness = HARNESS.replace("&TESTS", r#"&[("mimic_e", false), ("mimic_f", false), ("mimic_g_fails", false)]"#);
    let log = "{ use std::io::Write; let log = concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/log\"); \
               let mut log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap(); \
               writeln!(log, \"{name}\").unwrap(); }\n        let fails =";
    let harness = harness.replace("let fails =", log);
    let manifest = crate::support::manifest("other_harness") + "[[test]]\nname = \"other\"\nharness = false\n";
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("tests")).unwrap();
    std::fs::write(dir.path().join("Cargo.toml"), manifest).unwrap();
    std::fs::write(dir.path().join("tests/other.rs"), harness).unwrap();
    for isolation in ["process", "binary"] {
        crate::support::Run::new(cargo_offload(dir.path()), ["-j1", "--isolation", isolation])
            .exits(1)
            .says("2 passed, 1 failed");
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
        let mut ran: Vec<_> = log.lines().collect();
        ran.sort_unstable();
        assert_eq!(ran, ["mimic_e", "mimic_f", "mimic_g_fails"], "--isolation {isolation}");
        std::fs::remove_file(dir.path().join("log")).unwrap();
    }
}
