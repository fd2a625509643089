//! Cargo's own configuration holds: wrappers of rustc, the machine that is built for, runners.

use std::os::unix::fs::PermissionsExt;

use crate::support::{Run, Workspace, cargo_offload, manifest};

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
