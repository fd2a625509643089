support::tests!(alpha_one);

#[test]
fn alpha_one_uses_program() {
    support::checked("alpha_one_uses_program", || {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_alpha")).output().unwrap();
        assert_eq!(output.stdout, b"alpha\n");
    });
}

#[test]
fn alpha_one_is_in_its_directory() {
    support::checked("alpha_one_is_in_its_directory", || {
        assert_eq!(std::env::current_dir().unwrap().as_os_str(), env!("CARGO_MANIFEST_DIR"));
        assert_eq!(std::env::var("CARGO_PKG_NAME").unwrap(), "alpha");
    });
}
