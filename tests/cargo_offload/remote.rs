//! Rust tests by a worker in sandboxes that are somewhere else: here a process whose pipes stand for the way there.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use offload_core::config::Config;
use offload_core::connector::{Connector as _, RunOptions, ShellConnector, quote};
use offload_core::framework::cargo::{CargoFramework, CargoOptions};
use offload_core::orchestrator::{Orchestrator, RunResult};
use offload_core::provider::{
    Channel, Command, ExecEvent, OutputStream, ProviderError, ProviderResult, Sandbox, SandboxProvider, SandboxRequest,
};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;

use crate::support::Workspace;

/// Sandboxes whose worker is started by a line for the shell, in which `WORKER` is the worker.
struct Elsewhere {
    /// By the number of the sandbox; the last one counts for all further ones.
    lines: Vec<String>,
    /// How often a command was run instead.
    commands: Arc<AtomicUsize>,
}

impl Elsewhere {
    fn new(lines: &[&str]) -> Self {
        let worker = format!("{} worker", quote(env!("CARGO_BIN_EXE_cargo-offload")));
        let lines = lines.iter().map(|line| line.replace("WORKER", &worker)).collect();
        Self { lines, commands: Arc::default() }
    }
}

#[async_trait::async_trait]
impl SandboxProvider for Elsewhere {
    async fn create_sandbox(&self, request: &SandboxRequest) -> ProviderResult<Box<dyn Sandbox>> {
        let copied =
            request.built.copies.iter().any(|copy| copy.local == Path::new(env!("CARGO_BIN_EXE_cargo-offload")));
        assert!(copied, "the worker is to be brought along: {:?}", request.built);
        let line = self.lines.get(request.index).or(self.lines.last()).unwrap().clone();
        Ok(Box::new(Place { id: format!("place-{}", request.index), line, commands: Arc::clone(&self.commands) }))
    }
}

struct Place {
    id: String,
    line: String,
    commands: Arc<AtomicUsize>,
}

#[async_trait::async_trait]
impl Sandbox for Place {
    fn id(&self) -> &str {
        &self.id
    }

    async fn exec_stream(&self, command: &Command) -> ProviderResult<OutputStream> {
        self.commands.fetch_add(1, Ordering::SeqCst);
        ShellConnector::default().run_stream(&command.to_shell(), &RunOptions::default()).await
    }

    async fn open_channel(&self, command: &Command) -> ProviderResult<Option<Channel>> {
        assert_eq!(command.args, ["worker"]);
        Ok(Some(channel(&self.line)))
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

/// A process of the shell whose pipes stand for the way to somewhere else.
pub(crate) fn channel(line: &str) -> Channel {
    let mut shell = tokio::process::Command::new("sh");
    shell.arg("-c").arg(line).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = shell.kill_on_drop(true).spawn().unwrap();
    let (input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (events, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok(length @ 1..) = output.read(&mut buffer).await {
            if events.send(Ok(ExecEvent::Stdout(buffer[..length].to_vec()))).await.is_err() {
                return;
            }
        }
        let code = child.wait().await.unwrap().code();
        let _ = events.send(Ok(ExecEvent::Exit(Some(code.unwrap_or(137))))).await;
    });
    Channel { input: Box::pin(input), output: Box::pin(Events(receiver)) }
}

struct Events(mpsc::Receiver<ProviderResult<ExecEvent>>);

impl futures_core::Stream for Events {
    type Item = ProviderResult<ExecEvent>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

/// Runs the tests of a package in `parallel` such sandboxes; also, how many commands ran instead of a worker.
fn run(name: &str, library: &str, lines: &[&str], parallel: usize) -> (RunResult, usize) {
    let workspace = Workspace::package(name, library);
    let reports = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.offload.max_parallel = parallel;
    config.report.output_dir = reports.path().to_owned();
    let options = CargoOptions {
        current_dir: Some(workspace.dir.clone()),
        lib: true,
        elsewhere: true,
        output_dir: reports.path().to_owned(),
        ..CargoOptions::default()
    };
    let framework = CargoFramework::with_options(Default::default(), options);
    let framework = framework.with_worker(env!("CARGO_BIN_EXE_cargo-offload"));
    let provider = Elsewhere::new(lines);
    let commands = Arc::clone(&provider.commands);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let result = runtime.block_on(async {
        let orchestrator = Orchestrator::new(config, provider, framework, &[], false).with_reporters(Vec::new());
        orchestrator.run(&[]).await.unwrap()
    });
    (result, commands.load(Ordering::SeqCst))
}

const MIXED: &str = "#[test] fn passes() {}\n#[test] fn fails() { panic!(\"on purpose\") }\n\
                     #[test] fn crashes() { std::process::abort() }\n#[test] #[ignore] fn ignored() {}\n";

#[test]
fn a_worker_elsewhere_runs_the_tests_whatever_is_printed_before_it() {
    for line in ["exec WORKER", "echo 'Welcome to this machine'; printf 'no end of line'; exec WORKER"] {
        let (result, commands) = run("remote_mixed", MIXED, &[line], 2);
        let summary = &result.summary;
        assert_eq!((summary.passed, summary.failed, summary.crashed, summary.skipped), (1, 2, 1, 1), "{result:?}");
        assert_eq!((result.exit_code(), result.lost.len(), commands), (1, 0, 0), "{result:?}");
        let failed = result.tests.iter().find(|test| test.test.name == "fails").unwrap();
        assert!(format!("{failed:?}").contains("on purpose"), "{failed:?}");
    }
}

#[test]
fn where_the_worker_cannot_run_tests_run_by_commands() {
    let (result, commands) = run("remote_mixed", MIXED, &["echo 'no such libc'; exit 1"], 1);
    assert_eq!((result.summary.passed, result.summary.failed, result.lost.len()), (1, 2, 0), "{result:?}");
    assert!(commands > 0);
}

#[test]
fn tests_of_a_worker_that_dies_run_elsewhere() {
    // The first that comes takes its worker along.
    let library = "#[test] fn takes_its_worker_along() {\n\
                   let once = concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/target/once\");\n\
                   if std::fs::create_dir(once).is_ok() {\n\
                   let worker = std::os::unix::process::parent_id().to_string();\n\
                   std::process::Command::new(\"kill\").args([\"-9\", &worker]).status().unwrap(); } }\n\
                   #[test] fn another() {}\n";
    let once = Workspace::package("remote_killed", library).dir.join("target/once");
    let _ = std::fs::remove_dir(&once);
    let (result, _) = run("remote_killed", library, &["exec WORKER"], 1);
    assert_eq!((result.summary.passed, result.exit_code()), (2, 0), "{result:?}");
    assert_eq!(result.lost.len(), 1, "{result:?}");
    assert_eq!(result.lost[0].reason, "its worker ended: killed by signal 9 (SIGKILL)");
}

#[test]
fn a_worker_that_talks_nonsense_is_given_up() {
    let answer = "read -r init; nonce=${init#*nonce\\\":\\\"}; nonce=${nonce%%\\\"*}; \
                  echo \"{\\\"type\\\":\\\"ready\\\",\\\"nonce\\\":\\\"$nonce\\\"}\"; read -r more; echo nonsense; cat >/dev/null";
    let (result, commands) = run("remote_mixed", MIXED, &[answer, "exec WORKER"], 1);
    assert_eq!((result.summary.passed, result.summary.failed, commands), (1, 2, 0), "{result:?}");
    assert_eq!(result.lost.len(), 1, "{result:?}");
    let reason = &result.lost[0].reason;
    assert!(reason.contains("is not a valid message") && reason.ends_with("nonsense"), "{reason}");
}
