//! The framework `cargo` against real Cargo: small workspaces, made on the spot, without dependencies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use offload_core::config::{CargoFrameworkConfig, GroupConfig};
use offload_core::framework::cargo::{CargoFramework, CargoOptions, RunIgnored};
use offload_core::framework::{
    Discovered, DiscoverySink, Execution, FrameworkError, TestFramework, TestInstance, TestOutcome, TestRecord,
};
use offload_core::provider::ExecOutput;
use offload_core::worker::{Harness, Unit};

struct Workspace {
    _dir: tempfile::TempDir,
    root: PathBuf,
}

impl Workspace {
    /// A workspace in a directory whose name is as bad as names get.
    fn new(members: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap().join("päth with späces");
        fs::create_dir(&root).unwrap();
        let this = Self { _dir: dir, root };
        let members = members.iter().map(|member| format!("{member:?}, ")).collect::<String>();
        this.write("Cargo.toml", &format!("[workspace]\nresolver = \"2\"\nmembers = [{members}]\n"));
        this
    }

    fn write(&self, path: &str, text: &str) -> &Self {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn package(&self, name: &str, rest: &str) -> &Self {
        let manifest = format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n{rest}");
        self.write(&format!("{name}/Cargo.toml"), &manifest)
    }

    fn options(&self) -> CargoOptions {
        CargoOptions { current_dir: Some(self.root.clone()), offline: true, ..CargoOptions::default() }
    }

    fn framework(&self, options: CargoOptions) -> CargoFramework {
        CargoFramework::with_options(CargoFrameworkConfig::default(), options)
    }

    async fn discover(&self, options: CargoOptions) -> Found {
        Found::from(&self.framework(options)).await
    }
}

#[derive(Debug)]
struct Found {
    tests: Vec<TestRecord>,
    output: String,
    warnings: Vec<String>,
    problems: Vec<String>,
    built: Option<bool>,
    error: Option<FrameworkError>,
}

impl Found {
    async fn from(framework: &CargoFramework) -> Self {
        let (sink, mut receiver) = DiscoverySink::new();
        let error = framework.discover_stream(&[], sink).await.err();
        let mut found =
            Self { tests: vec![], output: String::new(), warnings: vec![], problems: vec![], built: None, error };
        while let Some(discovered) = receiver.recv().await {
            match discovered {
                Discovered::Tests(tests) => found.tests.extend(tests),
                Discovered::BuildOutput(line) => found.output += &(line + "\n"),
                Discovered::Warning(warning) => found.warnings.push(warning),
                Discovered::Problem(problem) => found.problems.push(problem),
                Discovered::BuildFinished { success, .. } => found.built = Some(success),
                Discovered::BuildStarted | Discovered::Native(_) => {}
            }
        }
        found
    }

    fn ids(&self) -> BTreeSet<&str> {
        assert!(self.error.is_none(), "{self:?}");
        let ids: BTreeSet<_> = self.tests.iter().map(|test| test.id.as_str()).collect();
        assert_eq!(ids.len(), self.tests.len(), "ids are unique");
        ids
    }

    fn get(&self, id: &str) -> &TestRecord {
        self.tests.iter().find(|test| test.id == id).unwrap_or_else(|| panic!("no {id} in {:?}", self.ids()))
    }

    fn instances(&self) -> Vec<TestInstance> {
        let instance = |test: &TestRecord| TestInstance { record: Arc::new(test.clone()), attempt: 1 };
        self.tests.iter().filter(|test| test.skipped.is_none()).map(instance).collect()
    }
}

fn unit(test: &TestRecord) -> &Unit {
    test.suite.unit.as_ref().unwrap()
}

/// A workspace with every kind of target.
fn every_kind() -> Workspace {
    let ws = Workspace::new(&["app", "mac", "util"]);
    ws.package(
        "app",
        "description = \"sömething \\\"quoted\\\"\"\nauthors = [\"A <a@x>\", \"B\"]\nrust-version = \"1.70\"\n\
         [dependencies]\nrenamed = { package = \"util\", path = \"../util\" }\n\
         [[example]]\nname = \"shown\"\ntest = true\n[[example]]\nname = \"plain\"\n\
         [[bench]]\nname = \"fast\"\ntest = true\n\
         [[test]]\nname = \"custom\"\nharness = false\n\
         [[test]]\nname = \"mimic\"\nharness = false\n",
    )
    .write(
        "app/build.rs",
        "fn main() { let out = std::env::var(\"OUT_DIR\").unwrap();
         println!(\"cargo:rustc-env=FROM_SCRIPT=a b\"); println!(\"cargo:rustc-link-search=native={out}/native\");
         println!(\"cargo:rustc-link-search=/usr/lib\"); println!(\"cargo:rerun-if-changed=build.rs\"); }",
    )
    .write(
        "app/src/lib.rs",
        "mod deep { #[test] fn works() {} #[test] #[ignore = \"slow\"] fn later() {}
         #[test] #[should_panic] fn p() { panic!() } }",
    )
    .write("app/src/main.rs", "fn main() { println!(\"app\") } #[test] fn in_bin() {}")
    .write("app/src/bin/other.rs", "fn main() {} #[test] fn in_other() {}")
    .write(
        "app/tests/io.rs",
        "#[test] fn runs() { assert!(std::path::Path::new(env!(\"CARGO_BIN_EXE_app\")).exists()) }",
    )
    .write("app/tests/custom.rs", "fn main() { println!(\"does what it wants\") }")
    .write(
        "app/tests/mimic.rs",
        "fn main() { if std::env::args().any(|a| a == \"--list\") {
            if !std::env::args().any(|a| a == \"--ignored\") { println!(\"one: test\"); } } }",
    )
    .write("app/examples/shown.rs", "fn main() { panic!(\"never run\") } #[test] fn in_example() {}")
    .write("app/examples/plain.rs", "fn main() { panic!(\"never run\") }")
    .write("app/benches/fast.rs", "#[test] fn in_bench() {}")
    .package("mac", "[lib]\nproc-macro = true\n")
    .write("mac/src/lib.rs", "#[test] fn in_macro() {}")
    .package("util", "")
    .write("util/src/lib.rs", "#[test] fn in_util() {}");
    ws
}

#[tokio::test]
async fn every_kind_of_target_is_found_under_its_name() {
    let ws = every_kind();
    let found = ws.discover(ws.options()).await;
    let expected = [
        "app deep::later",
        "app deep::p",
        "app deep::works",
        "app::bench/fast in_bench",
        "app::bin/app in_bin",
        "app::bin/other in_other",
        "app::custom custom",
        "app::example/shown in_example",
        "app::io runs",
        "app::mimic one",
        "mac in_macro",
        "util in_util",
    ];
    assert_eq!(found.ids(), BTreeSet::from(expected), "{found:#?}");
    assert_eq!(found.built, Some(true));
    assert!(found.output.contains("Compiling app"), "{}", found.output);
    assert_eq!(found.get("app deep::later").skipped.as_deref(), Some("ignored, slow"));
    assert_eq!(unit(found.get("app::custom custom")).harness, Harness::Opaque);
    assert_eq!(unit(found.get("app::mimic one")).harness, Harness::Libtest);

    // A second time nothing is compiled, the verdict on the custom harness is remembered, all else is the same.
    let cache = fs::read_to_string(ws.root.join("target/offload/cache/cargo.json")).unwrap();
    assert!(cache.contains("custom-"), "{cache}");
    let again = ws.discover(ws.options()).await;
    assert!(!again.output.contains("Compiling"), "{}", again.output);
    assert_eq!(again.ids(), found.ids());

    // nextest, where it is installed, has the same names, but for the program that it refuses.
    let mut nextest = Command::new("cargo-nextest");
    nextest.args(["nextest", "list", "--offline", "--list-type=binaries-only", "--message-format=oneline"]);
    if let Ok(output) = nextest.current_dir(&ws.root).stdin(Stdio::null()).output() {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let theirs: BTreeSet<_> = text.lines().collect();
        let ours: BTreeSet<_> = found.tests.iter().map(|test| test.suite.id.as_str()).collect();
        assert_eq!(ours, theirs);
    }
}

/// What a process got: working directory, arguments, environment.
type Dump = (String, String, BTreeSet<String>);

/// The entry without the library directories that contain `part`.
#[tokio::test]
async fn benches_bring_what_can_be_benchmarked() {
    let ws = Workspace::new(&["pkg"]);
    ws.package("pkg", "[[test]]\nname = \"both\"\nbench = true\n[[bin]]\nname = \"never\"\nbench = false\n")
        .write("pkg/src/lib.rs", "#[test] fn t() {}")
        .write("pkg/src/main.rs", "fn main() {}\n#[test] fn t() {}")
        .write("pkg/src/bin/never.rs", "fn main() {}\n#[test] fn t() {}")
        .write("pkg/tests/both.rs", "#[test] fn t() {}")
        .write("pkg/tests/other.rs", "#[test] fn t() {}")
        .write("pkg/benches/speed.rs", "#[test] fn t() {}");
    let found = ws.discover(CargoOptions { benches: true, ..ws.options() }).await;
    let expected = ["pkg t", "pkg::bin/pkg t", "pkg::both t", "pkg::bench/speed t"];
    assert_eq!(found.ids(), BTreeSet::from(expected), "{found:#?}");
}

fn without(entry: &str, part: &str) -> String {
    match entry.strip_prefix("LD_LIBRARY_PATH=") {
        Some(path) => path.split(':').filter(|dir| !dir.contains(part)).collect::<Vec<_>>().join(":"),
        None => entry.to_owned(),
    }
}

fn read_dumps(dir: &Path) -> BTreeMap<String, Dump> {
    let mut dumps = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let mut parts = text.splitn(3, '\0');
        let mut next = || parts.next().unwrap().to_owned();
        let (cwd, args, env) = (next(), next(), next());
        let env = env.split('\0').filter(|entry| {
            !entry.is_empty() && !["DUMP_DIR=", "_=", "OLDPWD="].iter().any(|name| entry.starts_with(name))
        });
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        dumps.insert(name, (cwd, args, env.map(str::to_owned).collect()));
    }
    dumps
}

#[tokio::test]
async fn tests_get_what_cargo_test_gives_them() {
    let ws = every_kind();
    ws.write(
        "dump it.sh",
        "#!/bin/sh\nif [ -n \"$DUMP_DIR\" ]; then\n\
         { printf '%s\\0%s\\0' \"$PWD\" \"$1 $2\"; env -0; } > \"$DUMP_DIR/$(basename \"$2\")\"\nfi\nshift\nexec \"$@\"\n",
    )
    .write(
        ".cargo/config.toml",
        "[target.'cfg(unix)']\nrunner = [\"./dump it.sh\", \"first\"]\n\
         [env]\nRELATIVE = { value = \"some/dir\", relative = true }\nPATH = \"not forced\"\n\
         LANG = { value = \"xx\", force = true }\nCARGO_PKG_NAME = \"never\"\nPLAIN = \"1\"\n",
    );
    let script = ws.root.join("dump it.sh");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();

    let (theirs, ours) = (ws.root.join("theirs"), ws.root.join("ours"));
    fs::create_dir(&theirs).unwrap();
    fs::create_dir(&ours).unwrap();
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["test", "--offline", "--tests"])
        .current_dir(&ws.root)
        .env("DUMP_DIR", &theirs)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let found = ws.discover(CargoOptions { tests: true, ..ws.options() }).await;
    for test in &found.tests {
        let unit = unit(test);
        let mut command = Command::new(&unit.program);
        command.args(&unit.args).current_dir(&unit.cwd).envs(&unit.env).env("DUMP_DIR", &ours);
        assert!(command.stdout(Stdio::null()).status().unwrap().success(), "{}", test.id);
    }
    let (theirs, ours) = (read_dumps(&theirs), read_dumps(&ours));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    assert_eq!(ours.len(), 10);
    for (binary, ours) in &ours {
        let theirs = &theirs[binary];
        // Where all is fresh, the build script of another package may be announced after a binary.
        let foreign = if binary.starts_with("mac-") || binary.starts_with("util-") { "/build/app-" } else { "nothing" };
        let env = |dump: &Dump| dump.2.iter().map(|entry| without(entry, foreign)).collect::<BTreeSet<_>>();
        let (ours_env, theirs_env) = (env(ours), env(theirs));
        let more: Vec<_> = ours_env.difference(&theirs_env).collect();
        let less: Vec<_> = theirs_env.difference(&ours_env).collect();
        assert_eq!((more, less), (vec![], vec![]), "ours and theirs for {binary}");
        assert_eq!((&ours.0, &ours.1), (&theirs.0, &theirs.1), "{binary}");
    }
    let io = ours.iter().find(|(binary, _)| binary.starts_with("io-")).unwrap().1;
    for part in
        ["CARGO_BIN_EXE_app=", "FROM_SCRIPT=a b", "OUT_DIR=", "RELATIVE=/", "LANG=xx", "CARGO_PKG_RUST_VERSION=1.70"]
    {
        assert!(io.2.iter().any(|entry| entry.starts_with(part)), "{part} in {:#?}", io.2);
    }
}

#[tokio::test]
async fn a_compile_error_hides_nothing_that_can_be_built() {
    let ws = Workspace::new(&["broken", "fine", "other"]);
    ws.package("broken", "")
        .write("broken/src/lib.rs", "#[test] fn never() { let x: u8 = \"not a number\"; }\n")
        .package("fine", "")
        .write("fine/src/lib.rs", "#[test] fn good() {}")
        .write("fine/tests/bad.rs", "#[test] fn never() { missing() }")
        .package("other", "")
        .write("other/src/lib.rs", "#[test] fn good() {}");
    let options = CargoOptions { build_jobs: Some(1), color: Some(true), ..ws.options() };
    let found = ws.discover(options).await;
    assert_eq!(found.ids(), BTreeSet::from(["fine good", "other good"]));
    assert_eq!(found.built, Some(false));
    assert_eq!(found.problems.len(), 1, "{:?}", found.problems);
    assert!(found.problems[0].starts_with("Some targets do not compile"), "{:?}", found.problems);
    assert!(found.output.contains("\u{1b}["), "colours are kept: {}", found.output);
    let plain = console::strip_ansi_codes(&found.output);
    assert_eq!(plain.matches("error[E0308]: mismatched types").count(), 1, "{plain}");
    assert_eq!(plain.matches("error[E0425]: cannot find function `missing`").count(), 1, "{plain}");
}

#[tokio::test]
async fn what_cargo_refuses_is_said_in_its_words_and_with_a_way_out() {
    let ws = Workspace::new(&["only"]);
    ws.package("only", "").write("only/src/lib.rs", "");
    let unknown = ws.discover(CargoOptions { packages: vec!["nope".into()], ..ws.options() }).await;
    assert!(matches!(unknown.error, Some(FrameworkError::Usage(_))), "{unknown:?}");
    let text = unknown.error.unwrap().to_string();
    assert!(text.contains("`nope`") && text.contains("The packages of this workspace are: only."), "{text}");
    assert!(!unknown.output.contains("nope"), "said once: {}", unknown.output);

    let target = ws.discover(CargoOptions { test: vec!["nope".into()], ..ws.options() }).await;
    let text = target.error.unwrap().to_string();
    assert!(text.contains("no test target named `nope`"), "{text}");

    let empty = tempfile::tempdir().unwrap();
    let options = CargoOptions { current_dir: Some(empty.path().to_owned()), ..CargoOptions::default() };
    let nowhere = ws.discover(options).await.error.unwrap().to_string();
    assert!(nowhere.contains("could not find `Cargo.toml`") && nowhere.contains("--manifest-path"), "{nowhere}");
}

#[tokio::test]
async fn doctests_of_all_kinds_are_found_and_remembered() {
    let ws = Workspace::new(&["docs", "none"]);
    let source = "/// ```\n/// assert!(true);\n/// ```\npub fn f() {}\n/// ```compile_fail\n/// let x: u8 = \"\";\n\
                  /// ```\npub fn g() {}\n/// ```should_panic\n/// panic!();\n/// ```\npub fn h() {}\n/// ```ignore\n\
                  /// ```\npub fn i() {}\n/// ```no_run\n/// loop {}\n/// ```\npub fn j() {}\n";
    ws.package("docs", "").write("docs/src/lib.rs", source);
    ws.package("none", "").write("none/src/lib.rs", "#[test] fn t() {}");
    let found = ws.discover(ws.options()).await;
    let expected = [
        "docs::doc docs/src/lib.rs - f (line 1)",
        "docs::doc docs/src/lib.rs - g (line 5)",
        "docs::doc docs/src/lib.rs - h (line 9)",
        "docs::doc docs/src/lib.rs - i (line 13)",
        "docs::doc docs/src/lib.rs - j (line 16)",
        "none t",
    ];
    assert_eq!(found.ids(), BTreeSet::from(expected), "{found:#?}");
    assert_eq!(found.get(expected[3]).skipped.as_deref(), Some("ignored"));
    let doc = unit(found.get(expected[0]));
    assert_eq!(doc.harness, Harness::Doctest);
    assert_eq!(doc.args[..2], ["test", "--doc"]);

    // Remembered: a listing that is not asked for again is the one that was written down.
    let cache = ws.root.join("target/offload/cache/cargo.json");
    let text = fs::read_to_string(&cache).unwrap();
    fs::write(&cache, text.replace("- f (line 1)", "- remembered (line 1)")).unwrap();
    let again = ws.discover(CargoOptions { doc: true, ..ws.options() }).await;
    assert!(again.ids().contains("docs::doc docs/src/lib.rs - remembered (line 1)"), "{again:#?}");
    assert!(!again.ids().contains("none t"), "--doc means doctests only");

    // ... until the library changes.
    ws.write("docs/src/lib.rs", &source.replace("fn j", "fn k"));
    let changed = ws.discover(ws.options()).await;
    assert!(changed.ids().contains("docs::doc docs/src/lib.rs - k (line 16)"), "{changed:#?}");
    assert!(changed.ids().contains("docs::doc docs/src/lib.rs - f (line 1)"), "{changed:#?}");

    // A target selection leaves doctests out, as in `cargo test`.
    let lib = ws.discover(CargoOptions { lib: true, ..ws.options() }).await;
    assert_eq!(lib.ids(), BTreeSet::from(["none t"]));

    // Run as a batch: the results are those of rustdoc.
    let framework = ws.framework(ws.options());
    let found = Found::from(&framework).await;
    let results = run_batch(&framework, &found.instances());
    assert_eq!(results.len(), 5);
    assert!(results.iter().all(|(_, outcome, _)| *outcome == TestOutcome::Passed), "{results:?}");
}

#[tokio::test]
async fn merged_doctests_are_found() {
    let ws = Workspace::new(&["merged"]);
    let source = "/// ```\n/// assert!(true);\n/// ```\npub fn f() {}\n/// ```\n/// ```\npub fn g() {}\n";
    ws.package("merged", "").write("merged/src/lib.rs", source);
    let manifest = ws.root.join("merged/Cargo.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("2021", "2024")).unwrap();
    let found = ws.discover(ws.options()).await;
    assert!(found.problems.is_empty(), "{found:#?}");
    let expected = ["merged::doc merged/src/lib.rs - f (line 1)", "merged::doc merged/src/lib.rs - g (line 5)"];
    assert_eq!(found.ids(), BTreeSet::from(expected));
}

#[tokio::test]
async fn packages_are_selected_as_cargo_selects_them() {
    let ws = Workspace::new(&["one", "two"]);
    for name in ["one", "two"] {
        let features = if name == "one" { "[features]\nonly-one = []\n" } else { "" };
        ws.package(name, features)
            .write(&format!("{name}/src/lib.rs"), "/// ```\n/// ```\npub fn f() {}\n#[test] fn t() {}");
    }
    let suites = async |options: CargoOptions| {
        let found = ws.discover(options).await;
        assert!(found.problems.is_empty() && found.error.is_none(), "{found:#?}");
        found.tests.iter().map(|test| test.suite.id.clone()).collect::<Vec<_>>().into_iter().collect::<BTreeSet<_>>()
    };
    let both = BTreeSet::from(["one", "one::doc", "two", "two::doc"].map(str::to_owned));
    let one = BTreeSet::from(["one", "one::doc"].map(str::to_owned));
    assert_eq!(suites(ws.options()).await, both);
    let inside = CargoOptions { current_dir: Some(ws.root.join("one/src")), ..ws.options() };
    assert_eq!(suites(inside.clone()).await, one);
    assert_eq!(suites(CargoOptions { workspace: true, ..inside }).await, both);
    assert_eq!(suites(CargoOptions { packages: vec!["o*".into()], ..ws.options() }).await, one);
    assert_eq!(suites(CargoOptions { packages: vec!["one".into()], workspace: true, ..ws.options() }).await, both);
    assert_eq!(suites(CargoOptions { workspace: true, exclude: vec!["two".into()], ..ws.options() }).await, one);
    assert_eq!(suites(CargoOptions { manifest_path: Some("one/Cargo.toml".into()), ..ws.options() }).await, one);
    assert_eq!(suites(CargoOptions { features: vec!["only-one".into()], ..ws.options() }).await, both);
}

#[tokio::test]
async fn names_groups_and_ignored_tests_are_selected_in_memory() {
    let ws = Workspace::new(&["p"]);
    ws.package("p", "").write(
        "p/src/lib.rs",
        "#[test] fn alpha() {} #[test] fn alphabet() {} #[test] fn beta() {} #[test] #[ignore] fn gamma() {}",
    );
    let ids = |found: Found| found.ids().into_iter().map(str::to_owned).collect::<Vec<_>>();
    let filters = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();

    let found = ws.discover(CargoOptions { filters: filters(&["alpha"]), ..ws.options() }).await;
    assert_eq!(ids(found), ["p alpha", "p alphabet"]);
    let found = ws.discover(CargoOptions { filters: filters(&["alpha"]), exact: true, ..ws.options() }).await;
    assert_eq!(ids(found), ["p alpha"]);
    let found = ws.discover(CargoOptions { skip: filters(&["alpha"]), ..ws.options() }).await;
    assert_eq!(ids(found), ["p beta", "p gamma"]);

    let found = ws.discover(CargoOptions { run_ignored: RunIgnored::Only, ..ws.options() }).await;
    assert_eq!(ids(found), ["p gamma"]);
    let found = ws.discover(CargoOptions { run_ignored: RunIgnored::All, ..ws.options() }).await;
    assert_eq!(found.get("p gamma").skipped, None);
    assert_eq!(unit(found.get("p gamma")).extra_args, ["--include-ignored"]);

    let group = |name: &str, filters: &str, retry_count: u32, schedule_individual: bool| GroupConfig {
        name: name.into(),
        retry_count,
        filters: filters.into(),
        schedule_individual,
    };
    let groups = vec![group("first", "alphabet", 3, true), group("second", "alpha -p p --lib", 1, false)];
    let found = ws.discover(CargoOptions { groups, ..ws.options() }).await;
    let first = found.get("p alphabet");
    assert_eq!((&*first.group, first.retry_count, first.schedule_individual), ("first", 3, true));
    let second = found.get("p alpha");
    assert_eq!((&*second.group, second.retry_count, second.schedule_individual), ("second", 1, false));
    assert_eq!(found.tests.len(), 2);
    assert!(found.warnings[0].starts_with("2 tests that no group selects are not part of the run"), "{found:?}");
}

/// Runs tests as a sandbox without a worker does.
fn run_batch(framework: &CargoFramework, tests: &[TestInstance]) -> Vec<(String, TestOutcome, Option<String>)> {
    let command = framework.produce_test_execution_command(tests, "unused.xml");
    let output = Command::new(&command.program).args(&command.args).output().unwrap();
    let output = ExecOutput {
        exit_code: output.status.code(),
        stdout: output.stdout,
        stderr: output.stderr,
        duration: Duration::from_secs(1),
    };
    let results = framework.parse_results(tests, &output, None).unwrap();
    assert_eq!(results.len(), tests.len());
    tests.iter().zip(results).map(|(test, result)| (test.id().to_owned(), result.outcome, result.message)).collect()
}

#[tokio::test]
async fn a_batch_without_a_worker_reports_every_test() {
    let ws = Workspace::new(&["p"]);
    ws.package("p", "[[test]]\nname = \"custom\"\nharness = false\n")
        .write(
            "p/src/lib.rs",
            "#[test] fn a_passes() { println!(\"test b_fails ... ok\") } #[test] fn b_fails() { panic!(\"no\") }
             #[test] fn c_aborts() { std::process::abort() } #[test] fn d_is_lost() {}",
        )
        .write("p/tests/custom.rs", "fn main() { std::process::exit(3) }")
        .write(
            "p/tests/io.rs",
            "#[test] #[should_panic] fn e_panics() { panic!() } #[test] fn f_exits() { std::process::exit(0) }",
        );
    let framework = ws.framework(ws.options());
    let mut found = Found::from(&framework).await;
    found.tests.sort_by(|a, b| a.name.cmp(&b.name));
    let results = run_batch(&framework, &found.instances());
    let brief: Vec<_> =
        results.iter().map(|(id, outcome, message)| (id.as_str(), *outcome, message.as_deref())).collect();
    let exited = "the process left with exit code 0 in the middle of the test";
    assert_eq!(
        brief,
        [
            ("p a_passes", TestOutcome::Passed, None),
            ("p b_fails", TestOutcome::Failed, None),
            ("p c_aborts", TestOutcome::Crashed, Some("killed by signal 6 (SIGABRT)")),
            ("p::custom custom", TestOutcome::Failed, Some("exit code 3")),
            ("p d_is_lost", TestOutcome::Error, Some("the batch ended before this test started")),
            ("p::io e_panics", TestOutcome::Passed, None),
            ("p::io f_exits", TestOutcome::Crashed, Some(exited)),
        ]
    );
}

#[tokio::test]
async fn the_build_is_ended_with_the_discovery_and_frees_the_gate() {
    let ws = Workspace::new(&["slow"]);
    // The build script tells when it runs, and never ends by itself.
    let fifo = ws.root.join("alive");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    ws.package("slow", "").write("slow/src/lib.rs", "").write(
        "slow/build.rs",
        &format!(
            "fn main() {{ let _held = std::fs::OpenOptions::new().write(true).open({fifo:?}).unwrap();
             loop {{ std::thread::park() }} }}"
        ),
    );
    let framework = Arc::new(ws.framework(ws.options()));
    let Execution::Libtest(execution) = framework.execution() else { panic!("no worker") };
    let gate = execution.gate.unwrap();
    assert!(!gate.pass(0, &|| false).holds_token(), "no build, no token");

    let discovery = tokio::spawn({
        let framework = framework.clone();
        async move {
            let (sink, _receiver) = DiscoverySink::new();
            framework.discover_stream(&[], sink).await
        }
    });
    // Opening returns when the build script has opened the other end.
    let mut held = tokio::task::spawn_blocking(move || fs::File::open(fifo).unwrap()).await.unwrap();
    assert!(gate.pass(0, &|| false).holds_token(), "while the build runs, tests share its slots");
    discovery.abort();
    assert!(discovery.await.unwrap_err().is_cancelled());
    // The end of the file is the end of the build script.
    let read = tokio::task::spawn_blocking(move || std::io::Read::read(&mut held, &mut [0; 1]).unwrap()).await.unwrap();
    assert_eq!(read, 0);
    assert!(!gate.pass(0, &|| false).holds_token());
}

#[tokio::test]
async fn the_jobserver_does_not_reach_the_tests() {
    let ws = Workspace::new(&["p"]);
    ws.package("p", "").write("p/src/lib.rs", "#[test] fn t() {}");
    let found = ws.discover(CargoOptions { build_jobs: Some(2), ..ws.options() }).await;
    let names: BTreeSet<_> = unit(found.get("p t")).env.keys().map(String::as_str).collect();
    for name in ["CARGO_MAKEFLAGS", "MAKEFLAGS", "MFLAGS", "RUSTC_BOOTSTRAP"] {
        assert!(!names.contains(name), "{names:?}");
    }
    assert!(!found.output.contains("jobserver"), "Cargo has nothing to complain of: {}", found.output);
}
