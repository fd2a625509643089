//! The provider that `docs/PROVIDERS.md` shows as an example, compiled and used.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

#[path = "custom_provider/provider.rs"]
mod provider;

use std::collections::BTreeMap;
use std::path::Path;

use offload_core::connector::collect;
use offload_core::provider::{Command, SandboxProvider, SandboxRequest};

const PAGE: &str = include_str!("../../docs/PROVIDERS.md");
const EXAMPLE: &str = include_str!("custom_provider/provider.rs");

#[test]
fn the_page_shows_this_very_provider() {
    assert!(EXAMPLE.lines().count() < 80, "it is to stay small");
    assert!(
        PAGE.contains(&format!("```rust\n{EXAMPLE}```\n")),
        "docs/PROVIDERS.md differs from tests/custom_provider/provider.rs; copy the file into the page"
    );
}

#[tokio::test]
async fn it_works() {
    let env = BTreeMap::from([("NAME".to_owned(), "it's".to_owned())]);
    let request = SandboxRequest { index: 7, env, ..SandboxRequest::default() };
    let sandbox = provider::ScratchProvider.create_sandbox(&request).await.unwrap();
    assert_eq!(sandbox.id(), "scratch-7");

    let here = tempfile::tempdir().unwrap();
    let input = here.path().join("in $put");
    std::fs::write(&input, "data").unwrap();
    sandbox.upload(&input, Path::new("deep/file")).await.unwrap();
    let command = Command::shell("printf '%s %s' \"$NAME\" \"$(cat deep/file)\" | tee out; exit 4");
    let output = collect(sandbox.exec_stream(&command).await.unwrap(), 1000).await.unwrap();
    assert_eq!((output.exit_code, output.stdout.as_slice()), (Some(4), b"it's data".as_slice()));
    let back = here.path().join("new/back");
    sandbox.download(&[("out".into(), back.clone())]).await.unwrap();
    assert_eq!(std::fs::read(back).unwrap(), b"it's data");
    assert!(sandbox.download(&[("gone".into(), here.path().join("gone"))]).await.is_err());

    let place = collect(sandbox.exec_stream(&Command::shell("pwd")).await.unwrap(), 1000).await.unwrap();
    let place = String::from_utf8(place.stdout).unwrap();
    sandbox.terminate().await.unwrap();
    assert!(!Path::new(place.trim()).exists());
}
