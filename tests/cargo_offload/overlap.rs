//! Tests run while Cargo still builds.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::{Run, Workspace, cargo_offload};

fn member(name: &str) -> String {
    format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n")
}

/// `late` is not built before a unit test of `early` has run, and that test needs the program that `late` builds.
fn interlocked() -> Workspace {
    let build_script = r#"
fn main() {
    let marker = std::path::PathBuf::from(std::env::var("OVERLAP_DIR").unwrap()).join("marker");
    for _ in 0..3000 {
        if marker.exists() { return; }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("no test has run while this was being built");
}
"#;
    let needs_late = r#"
#[cfg(test)]
#[test] fn uses_the_program() {
    let dir = std::path::PathBuf::from(std::env::var("OVERLAP_DIR").unwrap());
    std::fs::write(dir.join("marker"), "").unwrap();
    let attempts = std::fs::read_to_string(dir.join("attempts")).unwrap_or_default();
    std::fs::write(dir.join("attempts"), attempts + "x").unwrap();
    let program = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("late");
    let status = std::process::Command::new(program).status().expect("the program is there");
    assert!(status.success());
}
"#;
    let files = [
        ("Cargo.toml", "[workspace]\nresolver = \"2\"\nmembers = [\"early\", \"late\"]\n"),
        ("early/Cargo.toml", &*member("early")),
        ("early/src/lib.rs", needs_late),
        ("late/Cargo.toml", &*member("late")),
        ("late/build.rs", build_script),
        ("late/src/main.rs", "fn main() {}\n"),
        // Cargo builds a package's programs for its integration tests only.
        ("late/tests/none.rs", ""),
    ];
    Workspace::shared("interlocked", &files)
}

#[test]
fn a_test_runs_before_the_build_ends_and_again_if_it_failed_for_that() {
    let workspace = interlocked();
    let dir = tempfile::tempdir().unwrap();
    let mut command = cargo_offload(&workspace.dir);
    command.env("OVERLAP_DIR", dir.path()).env("CARGO_TARGET_DIR", dir.path().join("target"));
    let run = Run::new(command, ["--build-jobs", "2", "--message-format", "json"]).exits(0);
    let attempts = std::fs::read_to_string(dir.path().join("attempts")).unwrap();
    assert_eq!(attempts, "xx", "once too early, once after the build\n{}", run.text());
    let events: Vec<serde_json::Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let position = |name: &str| events.iter().position(|event| event["event"] == name).unwrap();
    assert!(position("test_started") < position("build_finished"), "{}", run.stdout);
    // The early failure is nobody's fault: no attempt of it is reported, no retry used, nothing flaky.
    let finished = &events[position("test_finished")];
    assert_eq!(finished["attempts"].as_array().unwrap().len(), 1, "{finished}");
    assert_eq!(run.junit().case("early uses_the_program").children, Vec::<String>::new());
}

/// A program, an example, another member's program and another member's dynamic library, and tests that use them.
fn users_of_outputs(dir: &Path) -> Workspace {
    let integration = r#"
fn says_good(program: std::path::PathBuf) {
    let output = std::process::Command::new(&program).output().unwrap_or_else(|error| panic!("{program:?}: {error}"));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "good");
}
fn profile() -> std::path::PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned()
}
#[test] fn own_program() { says_good(env!("CARGO_BIN_EXE_cli").into()) }
#[test] fn own_example() { says_good(profile().join("examples/demo")) }
#[test] fn program_of_another() { says_good(profile().join("other-cli")) }
#[test] fn library_of_another() {
    let name = format!("{}dynamic{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let library = std::fs::read(profile().join("deps").join(name)).unwrap();
    let has = |what: &[u8]| library.windows(what.len()).any(|window| window == what);
    assert!(has(b"symbol_good") && !has(b"symbol_bad"));
}
"#;
    // The user of the outputs is the first to be built.
    let wrapper = "#!/bin/sh\ncase \" $* \" in *' --test '*) ;; *) sleep 0.$((($$ % 5) + 1)) ;; esac\nexec \"$@\"\n";
    let files = [
        ("Cargo.toml", "[workspace]\nresolver = \"2\"\nmembers = [\"app\", \"other\", \"dynamic\"]\n"),
        (".cargo/config.toml", "[build]\nrustc-wrapper = \"./wrap.sh\"\n"),
        ("wrap.sh", wrapper),
        ("app/Cargo.toml", &*(member("app") + "[[bin]]\nname = \"cli\"\npath = \"src/main.rs\"\n")),
        ("app/tests/it.rs", integration),
        ("other/Cargo.toml", &*(member("other") + "[[bin]]\nname = \"other-cli\"\npath = \"src/main.rs\"\n")),
        ("other/tests/none.rs", ""),
        ("dynamic/Cargo.toml", &*(member("dynamic") + "[lib]\ncrate-type = [\"cdylib\", \"rlib\"]\n")),
    ];
    for (path, text) in files {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    std::fs::set_permissions(dir.join("wrap.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    Workspace { dir: dir.to_owned() }
}

/// Has everything in the workspace of [`users_of_outputs`] say `word`.
fn say(dir: &Path, word: &str) {
    let program = format!("fn main() {{ println!(\"{word}\") }}\n");
    let library = format!("#[no_mangle] pub extern \"C\" fn symbol_{word}() {{}}\n");
    for (path, text) in [
        ("app/src/main.rs", &program),
        ("app/examples/demo.rs", &program),
        ("other/src/main.rs", &program),
        ("dynamic/src/lib.rs", &library),
    ] {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        make_newer(&path);
    }
}

/// Cargo compares times, and file systems may keep whole ticks of the clock only.
fn make_newer(path: &Path) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(1)).unwrap();
}

#[test]
fn tests_never_meet_outputs_of_an_earlier_build() {
    let dir = tempfile::tempdir().unwrap();
    let workspace = users_of_outputs(dir.path());
    for (word, code, totals) in [("good", 0, "4 passed"), ("bad", 1, "4 failed"), ("good", 0, "4 passed")] {
        say(dir.path(), word);
        let run = workspace.offload([""; 0]).exits(code);
        assert!(run.text().contains(totals), "they say {word}\n{}", run.text());
    }
}

/// What no longer compiles is there as an earlier build has made it. `cargo test` runs nothing then; here unit tests run.
#[test]
fn no_test_passes_with_a_program_that_no_longer_compiles() {
    let dir = tempfile::tempdir().unwrap();
    let workspace = users_of_outputs(dir.path());
    say(dir.path(), "good");
    workspace.offload([""; 0]).exits(0).says("4 passed");
    for broken in ["app/src/main.rs", "app/examples/demo.rs", "other/src/main.rs"] {
        let path = dir.path().join(broken);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, "fn main() { it_does_not }").unwrap();
        make_newer(&path);
        let run = workspace.offload([""; 0]).exits(3).never_says("passed");
        // Where Cargo does not call the test fresh, it does not build it.
        assert!(run.text().contains("did not compile") || !run.text().contains("4 tests of app::it"), "{}", run.text());
        std::fs::write(&path, text).unwrap();
        make_newer(&path);
        workspace.offload([""; 0]).exits(0).says("4 passed");
    }
}

/// A unit test runs at once. What it met was old, so that nothing that it said counts, a pass neither.
/// `tests` selects the tests; each opens one of the outputs.
fn unit_tests_of_unfinished_outputs(config: &str, tests: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let library = r#"
#[cfg(test)]
fn has_looked(name: &str) {
    if let Some(marker) = std::env::var_os("MARKER") {
        std::fs::write(std::path::Path::new(&marker).join(name), "").unwrap();
    }
}
#[cfg(test)]
#[test] fn program_says_good() {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/debug/late");
    let output = std::process::Command::new(program).output().unwrap();
    has_looked("program");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "good");
}
#[cfg(test)]
#[test] fn library_says_good() {
    let name = format!("{}dynamic{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let library = std::fs::read(std::env::current_exe().unwrap().with_file_name(name)).unwrap();
    has_looked("library");
    assert!(library.windows(11).any(|window| window == b"symbol_good"));
}
"#;
    let build_script = r#"
fn main() {
    println!("cargo::rerun-if-changed=src");
    let Some(marker) = std::env::var_os("MARKER") else { return };
    let marker = std::path::Path::new(&marker);
    for _ in 0..3000 {
        if marker.read_dir().unwrap().count() == std::env::var("TESTS").unwrap().parse().unwrap() { return; }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("no test has run while this was being built");
}
"#;
    let write = |path: &str, text: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    };
    write(".cargo/config.toml", config);
    write("Cargo.toml", "[workspace]\nresolver = \"2\"\nmembers = [\"early\", \"late\"]\n");
    write("early/Cargo.toml", &member("early"));
    write("early/src/lib.rs", library);
    write("late/Cargo.toml", &(member("late") + "[lib]\nname = \"dynamic\"\ncrate-type = [\"cdylib\", \"rlib\"]\n"));
    write("late/build.rs", build_script);
    write("late/tests/none.rs", "");
    let say = |word: &str| {
        let program = format!("fn main() {{ println!(\"{word}\") }}\n");
        let library = format!("#[no_mangle] pub extern \"C\" fn symbol_{word}() {{}}\n");
        for (path, text) in [("late/src/main.rs", program), ("late/src/lib.rs", library)] {
            write(path, &text);
            make_newer(&dir.path().join(path));
        }
    };
    say("good");
    let workspace = Workspace { dir: dir.path().to_owned() };
    workspace.offload(tests).exits(0);
    for (word, code, totals) in [("bad", 1, "failed"), ("good", 0, "passed")] {
        say(word);
        let marker = dir.path().join(format!("marker-{word}"));
        std::fs::create_dir(&marker).unwrap();
        let mut command = cargo_offload(dir.path());
        command.env("MARKER", &marker).env("TESTS", tests.len().to_string());
        let run = Run::new(command, [&["--build-jobs", "2"], tests].concat()).exits(code);
        assert!(run.text().contains(&format!("{} {totals}", tests.len())), "{}", run.text());
    }
}

#[test]
fn a_unit_test_that_opened_an_unfinished_output_runs_again() {
    unit_tests_of_unfinished_outputs("", &["program_says_good", "library_says_good"]);
}

#[test]
fn unfinished_outputs_are_seen_in_a_build_directory_too() {
    unit_tests_of_unfinished_outputs("[build]\nbuild-dir = \"intermediate\"\n", &["library_says_good"]);
}

/// Cargo lets one build at a time into a target directory. A test that calls it waits, and that is not its time.
#[test]
fn the_clock_of_a_test_that_waits_for_the_build_stands_still() {
    let dir = tempfile::tempdir().unwrap();
    let library = r#"
#[cfg(test)]
#[test] fn calls_cargo() {
    std::fs::write(std::env::var("MARKER").unwrap(), "").unwrap();
    let status = std::process::Command::new(env!("CARGO")).args(["build", "--offline", "--package", "early"]).status();
    assert!(status.unwrap().success());
}
"#;
    let build_script = r#"
fn main() {
    let marker = std::env::var("MARKER").unwrap();
    for _ in 0..3000 {
        // Longer than the limit.
        if std::path::Path::new(&marker).exists() { return std::thread::sleep(std::time::Duration::from_secs(4)); }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("no test has run while this was being built");
}
"#;
    let files = [
        ("Cargo.toml", "[workspace]\nresolver = \"2\"\nmembers = [\"early\", \"late\"]\n"),
        ("early/Cargo.toml", &*member("early")),
        ("early/src/lib.rs", library),
        ("late/Cargo.toml", &*member("late")),
        ("late/build.rs", build_script),
        ("late/src/lib.rs", ""),
    ];
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let mut command = cargo_offload(dir.path());
    command.env("MARKER", dir.path().join("marker"));
    Run::new(command, ["--build-jobs", "2", "--timeout", "3"]).exits(0).says("1 test: 1 passed");
}

#[test]
fn without_overlap_no_test_starts_before_the_build_has_ended() {
    let files = [
        ("Cargo.toml", &*crate::support::manifest("in_turn")),
        ("src/lib.rs", "#[test] fn unit() {}\n"),
        ("tests/a.rs", "#[test] fn a() {}\n"),
        ("tests/b.rs", "#[test] fn b() {}\n"),
    ];
    let dir = crate::offload_run::project(&files);
    let args = ["--overlap", "off", "--message-format", "json"];
    let run = crate::support::Run::new(crate::support::cargo_offload(dir.path()), args).exits(0);
    let place = |event: &str| run.stdout.lines().position(|line| line.contains(&format!("\"{event}\"")));
    assert!(place("build_finished").unwrap() < place("test_started").unwrap(), "{}", run.stdout);
    assert_eq!(run.stdout.matches("\"test_finished\"").count(), 3);
    crate::support::Run::new(crate::support::cargo_offload(dir.path()), ["--overlap", "maybe"]).exits(3).says("maybe");
}
