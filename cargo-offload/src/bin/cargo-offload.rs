//! `cargo offload`: the tests of a Cargo workspace.

fn main() {
    std::process::exit(cargo_offload::cargo_main(std::env::args_os()));
}
