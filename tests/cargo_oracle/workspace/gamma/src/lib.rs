//! A package with a feature, a build script and a procedural macro.

/// ```
/// support::act("gamma_doc_a", support::Kind::Alone);
/// ```
pub fn gamma_doc_a() {}

/// ```compile_fail
/// support::act("gamma_doc_compiles", support::Kind::Alone);
/// let number: i32 = "text";
/// ```
pub fn gamma_doc_compile_fail() {}

support::tests!(gamma_lib);

#[cfg(all(test, feature = "extra"))]
mod extra {
    support::tests!(gamma_lib_extra);
}

#[test]
fn gamma_lib_macro() {
    support::checked("gamma_lib_macro", || assert_eq!(macros::number!(), 23));
}

#[test]
fn gamma_lib_build_script() {
    support::checked("gamma_lib_build_script", || {
        assert_eq!(env!("GAMMA_BUILT"), "by a script");
        assert_eq!(include_str!(concat!(env!("OUT_DIR"), "/gamma.txt")), "generated");
        let at_run_time = std::env::var("OUT_DIR").unwrap();
        assert_eq!(std::fs::read_to_string(at_run_time + "/gamma.txt").unwrap(), "generated");
    });
}
