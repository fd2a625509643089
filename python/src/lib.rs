//! `pytest_offload._core`: the orchestrator for the pytest plugin, and the program `offload` for the wheel.
//!
//! Thin on purpose: `settings` resolves the configuration; a `Session` takes options, runs the orchestrator on a thread
//! of its own and hands its events to a Python callback in batches. What pytest makes of them is the plugin's business.

mod event;
mod nap;
mod options;
mod session;
mod settings;

use std::ffi::OsString;

use pyo3::prelude::*;

/// The program `offload`: takes its arguments from `sys.argv` and returns its exit code.
#[pyfunction]
fn main(py: Python<'_>) -> PyResult<i32> {
    let args: Vec<OsString> = py.import("sys")?.getattr("argv")?.extract()?;
    // Python's own handler would wait for the interpreter, which waits for the program.
    let signal = py.import("signal")?;
    signal.call_method1("signal", (signal.getattr("SIGINT")?, signal.getattr("SIG_DFL")?))?;
    Ok(py.detach(|| cargo_offload::offload_main(args)))
}

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<session::Session>()?;
    module.add_class::<settings::Configuration>()?;
    module.add_function(wrap_pyfunction!(settings::settings, module)?)?;
    module.add_function(wrap_pyfunction!(main, module)?)
}
