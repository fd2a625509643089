//! `cargo offload` and `offload` from outside: real processes over real workspaces, judged by what they print, the files
//! they leave and their exit codes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

#[path = "../../offload-core/tests/support/docker.rs"]
mod docker_support;
#[allow(dead_code, reason = "the framework's own tests need more of it")]
#[path = "../../offload-core/tests/support/python.rs"]
mod python_support;
#[allow(dead_code, reason = "the provider's own tests need more of it")]
#[path = "../../offload-core/tests/support/sshd.rs"]
mod sshd_support;
mod support;

mod artifacts;
mod bad_input;
mod basics;
mod bounds;
mod cargo_config;
mod daemon;
mod docker;
mod docker_faults;
mod equality;
mod far_pytest;
mod faults;
mod help;
mod interrupts;
mod mixed;
mod offload_run;
mod older_files;
mod output;
mod overlap;
mod pytest_workers;
mod remote;
mod run_problems;
mod secrets;
mod selections;
mod ssh;
mod verdicts;
mod vitest;
