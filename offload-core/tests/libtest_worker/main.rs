//! The libtest worker against real test binaries: what it says of tests that pass, fail, crash, hang, leak and flood.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod auto;
mod ending;
mod outcomes;
mod output;
mod stream;
mod support;
