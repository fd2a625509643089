//! `cargo offload` and `offload` from outside: real processes over real workspaces, judged by what they print, the files
//! they leave and their exit codes.

// A test that cannot set up its world has failed.
#![allow(clippy::unwrap_used)]

mod support;

mod bad_input;
mod basics;
mod equality;
mod faults;
mod help;
mod interrupts;
mod offload_run;
mod output;
mod overlap;
