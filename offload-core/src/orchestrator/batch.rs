//! Running a batch of tests as one command, for frameworks and sandboxes without a worker.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::bounded;
use crate::connector::{OUTPUT_LIMIT, collect};
use crate::framework::{TestFramework, TestInstance, TestResult};
use crate::provider::Sandbox;
use crate::secret::Secrets;

/// Runs `tests` with one command and reads their results: one for each, in order.
///
/// # Errors
///
/// What broke, as a sentence. None of it is the fault of a test.
pub(super) async fn run(
    sandbox: &dyn Sandbox,
    framework: &dyn TestFramework,
    tests: &[TestInstance],
    result_file: &str,
    default_timeout: Duration,
    secrets: &Secrets,
) -> Result<Vec<TestResult>, String> {
    let mut command = framework.produce_test_execution_command(tests, result_file);
    if command.timeout.is_none() {
        let limits = tests.iter().map(|test| test.record.timeout.unwrap_or(default_timeout));
        command.timeout = Some(limits.fold(Duration::ZERO, Duration::saturating_add));
    }
    command.conceal(secrets);
    let started = Instant::now();
    let stream = sandbox.exec_stream(&command).await.map_err(|error| error.to_string())?;
    let mut output = collect(stream, OUTPUT_LIMIT).await.map_err(|error| error.to_string())?;
    output.duration = started.elapsed();
    let result = fetch(sandbox, Path::new(result_file)).await?;
    let results = framework.parse_results(tests, &output, result.as_deref()).map_err(|error| error.to_string())?;
    if results.len() == tests.len() {
        Ok(results)
    } else {
        Err(format!(
            "the framework `{}` gave {} results for a batch of {} tests; its parse_results must give one for each",
            framework.name(),
            results.len(),
            tests.len()
        ))
    }
}

/// Brings the result file here and reads it; `None` when the command did not write one.
async fn fetch(sandbox: &dyn Sandbox, remote: &Path) -> Result<Option<Vec<u8>>, String> {
    if sandbox.host_slot().is_some() {
        let contents = read(remote).await;
        let _ = tokio::fs::remove_file(remote).await;
        return contents;
    }
    let dir =
        bounded::private_dir("offload-").map_err(|error| format!("cannot create a temporary directory: {error}"))?;
    let local: PathBuf = dir.path().join("result");
    match sandbox.download(&[(remote.to_owned(), local.clone())]).await {
        Ok(()) => read(&local).await,
        Err(error) => {
            tracing::debug!(sandbox = sandbox.id(), %error, "no result file");
            Ok(None)
        }
    }
}

/// What is in the result file; `None` if there is none.
async fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match bounded::read_async(path, bounded::RESULTS).await {
        Ok(contents) => Ok(Some(contents)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("cannot read the result file that the tests wrote, {}: {error}", path.display())),
    }
}
