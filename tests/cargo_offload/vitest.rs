//! `framework.type = "vitest"`, with real vitest.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Run, offload};

/// Where vitest is installed: once, below the target directory. `None`, with a word about it, where there is no Node.js and
/// `OFFLOAD_TEST_REQUIRE` does not demand it.
fn node_modules() -> Option<PathBuf> {
    if Command::new("npm").arg("--version").output().is_err() {
        let required = std::env::var("OFFLOAD_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.split(' ').any(|word| word == "node"), "there is no npm, and it is required");
        eprintln!("skipped: there is no npm (apt-get install nodejs npm)");
        return None;
    }
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let lock = std::fs::File::create(base.join("vitest.lock")).unwrap();
    lock.lock().unwrap();
    let dir = base.join("vitest");
    if !dir.join("complete").exists() {
        std::fs::create_dir_all(&dir).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vitest");
        for file in ["package.json", "package-lock.json"] {
            std::fs::copy(source.join(file), dir.join(file)).unwrap();
        }
        let mut npm = Command::new("npm");
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&dir);
        let output = npm.output().unwrap();
        assert!(output.status.success(), "npm ci: {}", String::from_utf8_lossy(&output.stderr));
        std::fs::write(dir.join("complete"), "").unwrap();
    }
    Some(dir.join("node_modules"))
}

fn project(config: &str, files: &[(&str, &str)]) -> Option<tempfile::TempDir> {
    let modules = node_modules()?;
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(modules, dir.path().join("node_modules")).unwrap();
    let write = |path: &str, text: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("package.json", "{ \"type\": \"module\", \"devDependencies\": { \"vitest\": \"*\" } }");
    write("offload.toml", &format!("[provider]\ntype = \"local\"\n[framework]\ntype = \"vitest\"\n{config}"));
    for (path, text) in files {
        write(path, text);
    }
    Some(dir)
}

/// With few sandboxes: each start of vitest keeps a CPU busy for seconds.
fn run(dir: &Path, args: &[&str]) -> Run {
    let mut command = offload(dir);
    command.env("OFFLOAD_MAX_PARALLEL", "2");
    Run::new(command, args)
}

const TESTS: &str = r#"
import { describe, it, test, expect } from 'vitest';
test('adds (1+1) [x]? $5 ^a|b', () => { expect(1 + 1).toBe(2) });
test('adds (1+1)', () => {});
describe('outer', () => {
    describe('inner', () => {
        it('works', () => {});
        it('fails', () => { console.log('said <this>'); console.error('and that'); expect(1).toBe(2) });
        it('decides to skip', (context) => context.skip());
    });
    it.skip('skipped', () => {});
});
test.each([[1, 2], [3, 5]])('each %i + 1 = %i', (a, b) => { expect(b).toBe(a + 1) });
test('same', () => {});
test('a > b', () => {});
describe('a', () => { test('b', () => { throw new Error('boom') }) });
test("it's 'quoted' \"twice\"", () => { expect(process.env.WORD).toBe("it's") });
"#;

const SAME_NAMES: &str = r#"
import { test, expect } from 'vitest';
test('same', () => { expect(true).toBe(false) });
test('prefix', () => {});
test('prefix more', () => {});
"#;

#[test]
fn vitest_with_every_outcome() {
    let files = [("src/a.test.js", TESTS), ("src/odd [dir]/b.test.js", SAME_NAMES), ("b/a.test.js", SAME_NAMES)];
    let Some(dir) = project("env = { WORD = \"it's\" }\n", &files) else { return };
    let run = run(dir.path(), &["run", "-vv"]).exits(1).says("11 passed, 5 failed, 1 skipped");
    let junit = run.junit();
    let failed: Vec<&str> =
        junit.outcomes().into_iter().filter(|(_, outcome)| *outcome == "failure").map(|(id, _)| id).collect();
    assert_eq!(
        failed,
        [
            "b/a.test.js same",
            "src/a.test.js a > b #2",
            "src/a.test.js each 3 + 1 = 5",
            "src/a.test.js outer > inner > fails",
            "src/odd [dir]/b.test.js same",
        ]
    );
    let case = junit.case("src/a.test.js outer > inner > fails");
    assert_eq!(case.message, "expected 1 to be 2 // Object.is equality");
    assert!(case.text.contains("said <this>") && case.text.contains("and that"), "{}", case.text);
    assert!(case.text.contains("src/a.test.js:8:"), "{}", case.text);
}

#[test]
fn a_test_that_is_asked_for_runs_and_others_of_its_name_do_not() {
    // Each notes that it ran; the first in `a` fails once, and is run again.
    let noting = |file: &str, fails: bool| {
        format!(
            "import {{ test }} from 'vitest';\nimport fs from 'node:fs';\n\
             const note = (name) => fs.appendFileSync('ran', '{file} ' + name + '\\n');\n\
             test('same (+)', () => {{ note('same'); if ({fails} && !fs.existsSync('seen')) {{ fs.writeFileSync('seen', ''); \
             throw new Error('first') }} }});\ntest('same', () => note('other'));\n"
        )
    };
    let (a, b) = (noting("a", true), noting("b", false));
    let Some(dir) = project("", &[("a.test.js", &a), ("b.test.js", &b)]) else { return };
    run(dir.path(), &["run", "--retries", "1"]).exits(2).says("4 passed (1 flaky)");
    let ran = std::fs::read_to_string(dir.path().join("ran")).unwrap();
    let mut ran: Vec<&str> = ran.lines().collect();
    ran.sort_unstable();
    assert_eq!(ran, ["a other", "a same", "a same", "b other", "b same"]);
}

#[test]
fn groups_select_by_what_vitest_takes_and_ids_are_as_configured() {
    let config = "[groups.unit]\nfilters = \"src/unit --retry=0\"\n[groups.some]\nfilters = \"src/other -t prefix\"\n";
    let Some(dir) = project(config, &[("src/unit/a.test.js", SAME_NAMES), ("src/other/b.test.js", SAME_NAMES)]) else {
        return;
    };
    let collected = run(dir.path(), &["collect"]).exits(0);
    assert_eq!(
        collected.stdout,
        "src/other/b.test.js > prefix\nsrc/other/b.test.js > prefix more\nsrc/unit/a.test.js > prefix\n\
         src/unit/a.test.js > prefix more\nsrc/unit/a.test.js > same\n"
    );
    run(dir.path(), &["run"]).exits(1).says("4 passed, 1 failed");
}

#[test]
fn the_same_in_copies_of_the_project() {
    let Some(dir) = project("", &[("src/a.test.js", SAME_NAMES)]) else { return };
    let config = "[provider]\ntype = \"default\"\nprepare_command = \"@tempdir_sandbox.sh prepare .\"\ncreate_command = \
                  \"@tempdir_sandbox.sh create {image_id}\"\nexec_command = \"@tempdir_sandbox.sh exec {sandbox_id} \
                  {command}\"\ndestroy_command = \"@tempdir_sandbox.sh destroy {sandbox_id}\"\n[framework]\ntype = \
                  \"vitest\"\n";
    std::fs::write(dir.path().join("offload.toml"), config).unwrap();
    run(dir.path(), &["run"]).exits(1).says("2 passed, 1 failed");
}

#[test]
fn what_breaks_outside_of_tests_is_told() {
    let broken = "import './nope.js';\nimport { test } from 'vitest';\ntest('x', () => {});\n";
    let Some(dir) = project("", &[("src/a.test.js", broken)]) else { return };
    run(dir.path(), &["run"]).exits(3).says("cannot list tests by `npx vitest`").says("Cannot find module './nope.js'");

    // It can be listed here, and not loaded where it is to run.
    let picky = "import { test } from 'vitest';\nimport fs from 'node:fs';\nif (fs.existsSync('loaded')) throw new \
                 Error('not here');\nfs.writeFileSync('loaded', '');\ntest('x', () => {});\n";
    std::fs::write(dir.path().join("src/a.test.js"), picky).unwrap();
    run(dir.path(), &["run"]).exits(1).says("its file could not be loaded: not here");

    let unhandled = "import { test } from 'vitest';\ntest('x', async () => { Promise.reject(new Error('nobody awaits')); \
                     await new Promise((done) => setTimeout(done, 50)) });\n";
    std::fs::write(dir.path().join("src/a.test.js"), unhandled).unwrap();
    run(dir.path(), &["run"]).exits(1).says("but none of these tests did").says("nobody awaits");

    let ends = "import { test } from 'vitest';\ntest('x', () => { process.kill(process.ppid, 'SIGKILL') });\n";
    std::fs::write(dir.path().join("src/a.test.js"), ends).unwrap();
    run(dir.path(), &["run"]).exits(1).says("killed by signal 9");

    std::fs::remove_file(dir.path().join("node_modules")).unwrap();
    run(dir.path(), &["run"]).exits(3).says("`npm ci` does that");
}

#[test]
fn init_writes_a_file_that_works() {
    let Some(dir) = project("", &[("src/a.test.js", "import { test } from 'vitest';\ntest('x', () => {});\n")]) else {
        return;
    };
    std::fs::remove_file(dir.path().join("offload.toml")).unwrap();
    // Known by its package.json, and named.
    run(dir.path(), &["run"]).exits(0).says("1 passed");
    run(dir.path(), &["init"]).exits(0).says("for the framework `vitest`");
    std::fs::remove_file(dir.path().join("offload.toml")).unwrap();
    run(dir.path(), &["init", "-f", "vitest"]).exits(0);
    run(dir.path(), &["run"]).exits(0).says("1 passed");
}
