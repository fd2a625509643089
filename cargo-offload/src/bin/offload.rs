//! `offload`: any test suite, as offload.toml says.

fn main() {
    std::process::exit(cargo_offload::offload_main(std::env::args_os()));
}
