//! Cargo's own configuration holds: wrappers of rustc, the machine that is built for, runners.

use std::os::unix::fs::PermissionsExt;

use crate::support::{Run, Workspace, cargo_offload, manifest, program};

const LIBRARY: &str = "/// ```\n/// assert!(true);\n/// ```\npub fn documented() {}\n#[test] fn unit() {}\n";

fn workspace(name: &str, config: &str) -> Workspace {
    let files = [
        ("Cargo.toml", &*manifest(name)),
        ("src/lib.rs", LIBRARY),
        ("wrap.sh", "#!/bin/sh\nexec \"$@\"\n"),
        (".cargo/config.toml", config),
    ];
    let workspace = Workspace::shared(name, &files);
    std::fs::set_permissions(workspace.dir.join("wrap.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    workspace
}

#[test]
fn wrappers_of_rustc_change_nothing() {
    let plain = workspace("rustc_wrappers", "");
    let wrapper = plain.dir.join("wrap.sh");
    for variables in [
        &["RUSTC_WRAPPER"][..],
        &["RUSTC_WORKSPACE_WRAPPER"],
        &["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"],
        &["CARGO_BUILD_RUSTC_WRAPPER"],
    ] {
        for value in [wrapper.as_os_str(), "".as_ref()] {
            let mut command = cargo_offload(&plain.dir);
            command.envs(variables.iter().map(|name| (name, value)));
            Run::new(command, [""; 0]).exits(0).says("2 tests: 2 passed");
        }
    }
    let configured = workspace("rustc_wrappers_configured", "[build]\nrustc-wrapper = \"./wrap.sh\"\n");
    configured.offload([""; 0]).exits(0).says("2 tests: 2 passed");
}

#[test]
fn the_host_as_a_target_has_its_runner() {
    let library = "#[test] fn has_runner() { assert_eq!(std::env::var(\"FROM_RUNNER\").as_deref(), Ok(\"yes\")); }";
    let config = "[target.'cfg(unix)']\nrunner = [\"env\", \"FROM_RUNNER=yes\"]\n";
    let files = [("Cargo.toml", &*manifest("host_tuple")), ("src/lib.rs", library), (".cargo/config.toml", config)];
    let workspace = Workspace::shared("host_tuple", &files);
    workspace.offload(["--target", "host-tuple"]).exits(0).says("1 test: 1 passed");
    let mut command = cargo_offload(&workspace.dir);
    command.env("CARGO_BUILD_TARGET", "host-tuple");
    Run::new(command, [""; 0]).exits(0).says("1 test: 1 passed");
}

#[test]
fn what_configuration_files_include_holds() {
    let library = "#[test] fn included() { let has = |name| std::env::var(name).unwrap_or_default(); \
                   assert_eq!(has(\"FROM_INCLUDED\"), \"own\"); assert_eq!(has(\"FROM_NESTED\"), \"nested\"); \
                   assert_eq!(has(\"FROM_RUNNER\"), \"yes\"); assert!(has(\"PATH_OF\").ends_with(\"/more/data\")); }";
    let files = [
        ("Cargo.toml", &*manifest("includes")),
        ("src/lib.rs", library),
        ("run.sh", "#!/bin/sh\nFROM_RUNNER=yes exec \"$@\"\n"),
        (
            ".cargo/config.toml",
            "include = [\"a.toml\", { path = \"none.toml\", optional = true }, { path = \"../more/.cargo/b.toml\" }]\n\
             [env]\nFROM_INCLUDED = \"own\"\n",
        ),
        (
            ".cargo/a.toml",
            "[env]\nFROM_INCLUDED = \"a\"\nFROM_NESTED = \"a\"\n[target.'cfg(unix)']\nrunner = \"./run.sh\"\n",
        ),
        ("more/.cargo/b.toml", "include = [\"c.toml\"]\n[env]\nPATH_OF = { value = \"data\", relative = true }\n"),
        ("more/.cargo/c.toml", "[env]\nFROM_NESTED = \"nested\"\nUNUSED = \"x\"\n"),
    ];
    let workspace = Workspace::shared("includes", &files);
    std::fs::set_permissions(workspace.dir.join("run.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let cargo = program("cargo", &workspace.dir).arg("test").output().unwrap();
    assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stdout));
    workspace.offload([""; 0]).exits(0).says("1 test: 1 passed");
}

#[test]
fn one_test_thread_means_one_test_at_a_time() {
    let test = "{ let lock = concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/lock\"); std::fs::File::create_new(lock).unwrap(); \
                std::thread::sleep(std::time::Duration::from_millis(50)); std::fs::remove_file(lock).unwrap(); }";
    let tests = |names: &[&str]| names.iter().map(|name| format!("#[test] fn {name}() {test}\n")).collect::<String>();
    let files = [
        ("Cargo.toml", &*manifest("one_thread")),
        ("src/lib.rs", &*tests(&["a", "b", "c"])),
        ("tests/one.rs", &*tests(&["d", "e"])),
        ("tests/two.rs", &*tests(&["f", "g"])),
    ];
    let workspace = Workspace::shared("one_thread", &files);
    for isolation in ["auto", "process", "binary"] {
        let mut command = cargo_offload(&workspace.dir);
        command.env("RUST_TEST_THREADS", "1");
        Run::new(command, ["--isolation", isolation]).exits(0).says("7 tests: 7 passed");
    }
}

#[test]
fn colours_are_those_that_cargo_is_told() {
    let workspace = workspace("colours", "");
    let coloured = |value: &str, args: &[&str]| {
        let mut command = cargo_offload(&workspace.dir);
        command.env("CARGO_TERM_COLOR", value);
        Run::new(command, args).exits(0).stdout.contains('\u{1b}')
    };
    assert!(coloured("always", &[]));
    assert!(!coloured("never", &[]));
    assert!(!coloured("auto", &[]));
    assert!(!coloured("always", &["--color", "never"]));
}
