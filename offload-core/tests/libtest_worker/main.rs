//! The libtest worker against real test binaries: what it says of tests that pass, fail, crash, hang, leak and flood.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod ending;
mod outcomes;
mod output;
mod stream;
mod support;
