//! Numbers and words that nobody can guess.
//!
//! The standard library's hash maps have keys from the operating system's randomness, so that nobody can choose what
//! collides in them. What such a hasher makes of nothing is as good as those keys.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

/// A number.
pub(crate) fn number() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A word of 32 letters and digits.
pub(crate) fn word() -> String {
    format!("{:016x}{:016x}", number(), number())
}
