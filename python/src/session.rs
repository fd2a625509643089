//! A run of the orchestrator, on a thread of its own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use offload_core::framework::pytest::PytestWorkers;
use offload_core::orchestrator::{CancelHandle, Orchestrator};
use offload_core::report::Reporter;
use offload_core::report::history::HistoryReporter;
use offload_core::report::junit::MasterJunitReport;
use offload_core::worker::pytest::PytestHost;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::event::{Collector, Queue, to_list};
use crate::nap;
use crate::options::{Options, init_message};

/// How often Python may handle signals while a session runs.
const POLL: Duration = Duration::from_millis(50);

/// A run of tests. It begins when the session is made; `run` hands its events over.
#[pyclass(module = "pytest_offload._core", frozen)]
pub struct Session {
    options: Py<PyDict>,
    queue: Arc<Queue>,
    cancel: CancelHandle,
    host: Arc<PytestHost>,
    flush: Duration,
    meeting_point: Option<(OsString, String)>,
    thread: Mutex<Option<JoinHandle<Result<i32, String>>>>,
}

#[pymethods]
impl Session {
    #[new]
    fn new(options: Bound<'_, PyDict>) -> PyResult<Self> {
        offload_core::temporary::ensure_temp_dir()?;
        let Options { config, pytest, provider, junit, history, flush } = Options::from_dict(&options)?;
        let queue = Arc::new(Queue::default());
        let mut reporters: Vec<Box<dyn Reporter>> = Vec::new();
        if let Some(path) = junit {
            reporters.push(Box::new(MasterJunitReport::new(path)));
        }
        if let Some(path) = history {
            reporters.push(Box::new(HistoryReporter::new(path, config.history.reservoir_size)));
        }
        // Last: what the plugin hears of is in the reports already.
        reporters.push(Box::new(Collector::new(Arc::clone(&queue))));
        let adopted = pytest.adopted.is_some();
        let framework = PytestWorkers::new(pytest);
        let host = Arc::clone(framework.host());
        let orchestrator = Orchestrator::new(config, provider, framework, &[], false).with_reporters(reporters);
        let meeting_point = if adopted { Some(host.meeting_point()?) } else { None };
        let meeting_point = meeting_point.map(|(path, nonce)| (path.into_os_string(), nonce));
        let cancel = orchestrator.cancel_handle();
        let end = EndOfQueue(Arc::clone(&queue));
        let thread = std::thread::Builder::new().name("offload".to_owned()).spawn(move || {
            let _end = end;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .on_thread_park(nap::before_waiting)
                .on_thread_unpark(nap::after_waiting)
                .build()
                .map_err(|error| format!("the asynchronous runtime could not be started: {error}"))?;
            let result = runtime.block_on(orchestrator.run(&[])).map_err(|error| error.to_string())?;
            match &result.report_errors[..] {
                [] => Ok(result.exit_code()),
                errors => Err(errors.join("\n")),
            }
        })?;
        let options = options.unbind();
        Ok(Self { options, queue, cancel, host, flush, meeting_point, thread: Mutex::new(Some(thread)) })
    }

    /// Gives the template its `init` message, for a session that was made with the option `hold`; `extra` is merged into
    /// it. The template has started meanwhile and waits.
    #[pyo3(signature = (extra = None))]
    fn configure(&self, py: Python<'_>, extra: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
        self.host.set_init(init_message(self.options.bind(py), extra)?);
        Ok(())
    }

    /// Where a template that was forked before the session is to connect: the path of a socket, and the nonce to say there.
    #[getter]
    fn meeting_point(&self) -> Option<(OsString, String)> {
        self.meeting_point.clone()
    }

    /// Gives the template a message, which it has after `init`: a dictionary that JSON can hold.
    fn tell(&self, py: Python<'_>, message: &Bound<'_, PyDict>) -> PyResult<()> {
        self.host.tell(py.import("json")?.call_method1("dumps", (message,))?.extract()?);
        Ok(())
    }

    /// Hands events over until the run is over, every now and then an empty list, and returns the exit code that `offload` would have.
    ///
    /// An exception of the callback, or of a signal handler, ends the run and comes out of here once everything is
    /// cleaned up.
    fn run(&self, py: Python<'_>, on_event: &Bound<'_, PyAny>) -> PyResult<i32> {
        loop {
            let (events, ended) = py.detach(|| self.queue.take(POLL, self.flush));
            if let Err(error) = self.hand_over(py, events, on_event) {
                self.abandon(py);
                return Err(error);
            }
            if ended {
                return self.join(py);
            }
        }
    }

    /// The events that an exception kept `run` from handing over.
    fn leftover<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        to_list(py, &self.queue.take(Duration::ZERO, Duration::ZERO).0)
    }

    /// Ends the run: the first time running tests are ended and reports are written, the second time everything is
    /// killed. Returns at once.
    fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Starts no test with a key after `key`: results of those are not wanted. Returns at once.
    fn drop_after(&self, key: u32) {
        self.cancel.stop_after(key);
    }

    /// Has the run tell the node ids of all tests once they are collected.
    fn name_tests(&self) {
        self.host.name_tests();
    }

    /// Changes variables for a template that is started again; `None` removes one.
    fn set_environ(&self, changed: BTreeMap<OsString, Option<OsString>>) {
        self.host.set_environ(changed);
    }

    /// Stops the tests that run on this machine, or has them go on.
    #[staticmethod]
    fn stop_tests(stop: bool) {
        if stop {
            offload_core::worker::stop_tests();
        } else {
            offload_core::worker::continue_tests();
        }
    }

    /// Ends the run, if it still goes on, and waits for its end.
    fn close(&self, py: Python<'_>) {
        self.abandon(py);
    }
}

impl Session {
    fn hand_over(&self, py: Python<'_>, events: Vec<crate::event::Event>, on_event: &Bound<'_, PyAny>) -> PyResult<()> {
        // A signal can come while this is done.
        let list = match to_list(py, &events) {
            Ok(list) => list,
            Err(error) => {
                self.queue.put_back(events);
                return Err(error);
            }
        };
        // Also without events: the callback may have put off what a signal means.
        on_event.call1((list,))?;
        py.check_signals()
    }

    /// Ends the run; a signal meanwhile ends it at once.
    fn abandon(&self, py: Python<'_>) {
        if !py.detach(|| self.queue.wait_for_end(Duration::ZERO)) {
            self.cancel.cancel();
        }
        while !py.detach(|| self.queue.wait_for_end(POLL)) {
            if py.check_signals().is_err() {
                self.cancel.cancel();
            }
        }
        // Whatever went wrong, there is an exception on its way already.
        let _ = self.join(py);
    }

    fn join(&self, py: Python<'_>) -> PyResult<i32> {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return Err(PyRuntimeError::new_err("a session can be run only once")) };
        match py.detach(|| thread.join()) {
            Ok(result) => result.map_err(PyRuntimeError::new_err),
            Err(_) => Err(PyRuntimeError::new_err("offload has a bug: the orchestrator's thread panicked")),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            self.cancel.cancel();
            self.cancel.cancel();
            let _ = thread.join();
        }
    }
}

/// Says that no more events will come, however the thread ends.
struct EndOfQueue(Arc<Queue>);

impl Drop for EndOfQueue {
    fn drop(&mut self) {
        self.0.end();
    }
}
