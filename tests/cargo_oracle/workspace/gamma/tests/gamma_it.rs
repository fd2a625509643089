support::tests!(gamma_it);

/// The program of this build, and not of one with other features.
#[test]
fn gamma_it_uses_tool() {
    support::checked("gamma_it_uses_tool", || {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_gamma-tool")).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("extra: {}\n", cfg!(feature = "extra")));
    });
}
