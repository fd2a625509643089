//! `worker`: the libtest worker on standard input and output, started by an orchestrator on another machine.

use anyhow::Context;
use offload_core::worker::libtest::{ServeOptions, serve_stdio};

use crate::failure::Outcome;

/// Serves until the orchestrator ends the session or is gone.
pub fn serve() -> Outcome {
    serve_stdio(ServeOptions::default()).context("the worker's connection to its orchestrator broke")?;
    Ok(0)
}
