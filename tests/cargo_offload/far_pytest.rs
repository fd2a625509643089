//! pytest's tests in sandboxes that are somewhere else, and that break while it is not known yet what there is to run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use offload_core::config::{Config, HistoryConfig};
use offload_core::connector::quote;
use offload_core::framework::pytest::PytestWorkers;
use offload_core::orchestrator::{Orchestrator, RunResult};
use offload_core::provider::{
    Channel, Command, OutputStream, ProviderError, ProviderResult, Sandbox, SandboxProvider, SandboxRequest,
};
use offload_core::worker::pytest::{Elsewhere, PytestOptions};
use serde_json::json;

use crate::python_support::{project, python};
use crate::remote::channel;

/// Processes of this machine, each of which knows its number as `PLACE`. What they leave is in the directory.
struct Places(PathBuf);

#[async_trait::async_trait]
impl SandboxProvider for Places {
    async fn create_sandbox(&self, request: &SandboxRequest) -> ProviderResult<Box<dyn Sandbox>> {
        Ok(Box::new(Place { id: format!("place-{}", request.index), index: request.index, scratch: self.0.clone() }))
    }
}

struct Place {
    id: String,
    index: usize,
    scratch: PathBuf,
}

#[async_trait::async_trait]
impl Sandbox for Place {
    fn id(&self) -> &str {
        &self.id
    }

    async fn exec_stream(&self, _command: &Command) -> ProviderResult<OutputStream> {
        Err(ProviderError::Exec("workers run the tests".to_owned()))
    }

    async fn open_channel(&self, command: &Command) -> ProviderResult<Option<Channel>> {
        let scratch = quote(&self.scratch.to_string_lossy());
        let shell = format!("export PLACE={} OFFLOAD_SCRATCH={scratch}; exec {}", self.index, command.to_shell());
        Ok(Some(channel(&shell)))
    }

    async fn upload(&self, _local: &Path, _remote: &Path) -> ProviderResult<()> {
        Ok(())
    }

    async fn download(&self, _paths: &[(PathBuf, PathBuf)]) -> ProviderResult<()> {
        Err(ProviderError::Transfer("there is nothing".to_owned()))
    }

    async fn terminate(&self) -> ProviderResult<()> {
        Ok(())
    }
}

/// Runs the tests in two places; earlier runs found some in two files. `args` are those of pytest.
fn run(dir: &Path, args: &[&str]) -> RunResult {
    let history = dir.join("durations.jsonl");
    let lines: Vec<String> = (0..2)
        .map(|file| format!("{{\"id\":\"test_{file}.py::test\",\"passed\":{{\"n\":1,\"samples\":[0.01]}}}}\n"))
        .collect();
    std::fs::write(&history, lines.concat()).unwrap();
    let args: Vec<String> = ["-p", "no:cacheprovider"].iter().chain(args).map(|&arg| arg.to_owned()).collect();
    let init = json!({
        "type": "init",
        "args": args,
        "mainargv": ["pytest"],
        "rootdir_cwd": dir,
        "workers": 2,
        "run_uid": "0123456789abcdef",
        "collect": "auto",
        "start_method": "auto",
        "isolation": "worker",
        "basetemp": null,
        "max_fail": 0,
        "standalone": true,
        "alone": true,
        "cwd_on_path": true,
    });
    let options = PytestOptions {
        cwd: dir.to_owned(),
        env: BTreeMap::from([("PYTHONHASHSEED".to_owned(), "1".to_owned())]),
        workers: 2,
        init: Some(init.to_string()),
        alone: true,
        elsewhere: Some(Elsewhere {
            python: quote(&python().to_string_lossy()),
            root: Some(dir.to_owned()),
            selects: Elsewhere::selects(&args),
        }),
        ..PytestOptions::default()
    };
    let mut config =
        Config { history: HistoryConfig { path: history, ..HistoryConfig::default() }, ..Config::default() };
    config.offload.max_parallel = 2;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let orchestrator = Orchestrator::new(config, Places(dir.to_owned()), PytestWorkers::new(options), &[], false);
        orchestrator.with_reporters(Vec::new()).run(&[]).await.unwrap()
    })
}

const TESTS: &str = "import pytest\n@pytest.mark.parametrize('n', range(5))\ndef test(n): pass\n";

#[test]
fn sandboxes_that_will_be_needed_start_together() {
    // Each waits for the other, in vain if that is started only when this one has said what there is.
    let conftest = "import os, pathlib, time\n\
                    pathlib.Path('begun-' + os.environ['PLACE']).touch()\n\
                    other = pathlib.Path('begun-' + str(1 - int(os.environ['PLACE'])))\n\
                    until = time.monotonic() + 60\n\
                    while not other.exists() and time.monotonic() < until: time.sleep(0.01)\n\
                    assert other.exists()\n";
    let dir = project(&[("conftest.py", conftest), ("test_0.py", TESTS), ("test_1.py", TESTS)]);
    let result = run(dir.path(), &[]);
    assert_eq!((result.summary.passed, result.exit_code(), result.lost.len()), (10, 0, 0), "{result:?}");
}

#[test]
fn one_sandbox_is_started_for_a_test_that_is_asked_for_by_name() {
    let conftest = "import os, pathlib\npathlib.Path('begun-' + os.environ['PLACE']).touch()\n";
    let dir = project(&[("conftest.py", conftest), ("test_0.py", TESTS)]);
    let result = run(dir.path(), &["test_0.py::test[3]"]);
    assert_eq!((result.summary.passed, result.exit_code()), (1, 0), "{result:?}");
    assert!(!dir.path().join("begun-1").exists());
}

#[test]
fn where_the_first_sandbox_breaks_another_says_what_there_is_to_run() {
    // The parent of the process that this is imported in is what stands between it and the orchestrator.
    let conftest = "import os, pathlib, signal, time\n\
                    pathlib.Path('begun-' + os.environ['PLACE']).touch()\n\
                    if os.environ['PLACE'] == '0':\n\
                    \x20   until = time.monotonic() + 60\n\
                    \x20   while not pathlib.Path('begun-1').exists() and time.monotonic() < until: time.sleep(0.01)\n\
                    \x20   os.kill(os.getppid(), signal.SIGKILL)\n\
                    \x20   os._exit(1)\n";
    let dir = project(&[("conftest.py", conftest), ("test_0.py", TESTS), ("test_1.py", TESTS)]);
    let result = run(dir.path(), &[]);
    assert_eq!((result.summary.passed, result.exit_code()), (10, 0), "{result:?}");
}
