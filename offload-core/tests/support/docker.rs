//! The Docker daemon of the tests, as `tests/with_docker.sh` gives it.

use std::process::Command;

/// The image of the tests; `None`, with a word about it, where there is none.
pub fn image() -> Option<String> {
    let image = std::env::var("OFFLOAD_TEST_IMAGE").ok();
    if image.is_none() {
        eprintln!("skipped: there is no Docker daemon with the image of the tests; see tests/with_docker.sh");
    }
    image
}

/// What `docker` prints.
pub fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
