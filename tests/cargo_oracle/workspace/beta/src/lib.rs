//! Documentation tests of an edition in which they are compiled together.

pub use support::{Kind, act};

#[unsafe(no_mangle)]
pub extern "C" fn beta_value() -> i32 {
    17
}

/// ```
/// beta::act("beta_doc_a", beta::Kind::Alone);
/// ```
pub fn beta_doc_a() {}

/// ```
/// beta::act("beta_doc_b", beta::Kind::Alone);
/// ```
pub fn beta_doc_b() {}

/// ```should_panic
/// beta::act("beta_doc_panics", beta::Kind::Panics);
/// ```
pub fn beta_doc_panics() {}

/// ```ignore
/// beta::act("beta_doc_ignored", beta::Kind::Alone);
/// ```
pub fn beta_doc_ignored() {}

/// ```compile_fail
/// let number: i32 = "text";
/// ```
pub fn beta_doc_compile_fail() {}

/// ```no_run
/// beta::act("beta_doc_no_run", beta::Kind::Alone);
/// ```
pub fn beta_doc_no_run() {}

support::tests!(beta_lib);
