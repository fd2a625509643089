//! The program from outside.

use std::process::Command;

#[test]
fn the_total_is_printed_last() {
    let output = Command::new(env!("CARGO_BIN_EXE_report")).args(["ada=150", "grace=50"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with("total             2.00\n"), "{text}");
}
