//! The Docker daemon of the tests, as `tests/with_docker.sh` gives it.

use std::process::Command;

/// The image of the tests; `None`, with a word about it, where there is none and `OFFLOAD_TEST_REQUIRE` does not demand it.
pub fn image() -> Option<String> {
    let image = std::env::var("OFFLOAD_TEST_IMAGE").ok();
    if image.is_none() {
        let required = std::env::var("OFFLOAD_TEST_REQUIRE").unwrap_or_default();
        assert!(
            !required.split(' ').any(|word| word == "docker"),
            "there is no image of the tests, and it is required"
        );
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
