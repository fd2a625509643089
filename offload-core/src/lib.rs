//! Offload: a parallel test runner that spreads one test suite over many isolated sandboxes and answers as one run.
//!
//! This crate is the whole runner without a command line. It is organised as the data flows:
//!
//! - a [framework](TestFramework) finds tests and knows how to run them,
//! - a [provider](SandboxProvider) creates, reaches and destroys sandboxes,
//! - the [orchestrator](Orchestrator) brings both together: a [scheduler](orchestrator::Scheduler) that does no I/O
//!   decides, one [`TestRunner`](orchestrator::TestRunner) per sandbox acts,
//! - everything that happens is a [`RunEvent`](event::RunEvent), and [reports](report) are made from those alone.
//!
//! # Quick start
//!
//! ```no_run
//! use tokio::sync::Mutex;
//! use offload_core as offload;
//! use offload::config::load_config;
//! use offload::orchestrator::{Orchestrator, SandboxPool};
//! use offload::provider::local::LocalProvider;
//! use offload::framework::{TestFramework, pytest::PytestFramework};
//!
//! #[tokio::main]
//! async fn main() -> anyhow::Result<()> {
//!     let config = load_config(std::path::Path::new("offload.toml"))?;
//!     let provider = LocalProvider::new(Default::default());
//!     let framework = PytestFramework::new(Default::default());
//!     let tests = framework.discover(&[]).await?;
//!     let orchestrator = Orchestrator::new(config, provider, framework, &[], false);
//!     let sandbox_pool = Mutex::new(SandboxPool::new());
//!     let result = orchestrator.run_with_tests(&tests, &sandbox_pool).await?;
//!     std::process::exit(result.exit_code());
//! }
//! ```

mod bounded;
pub mod bundled;
pub mod cache;
pub mod config;
pub mod connector;
pub mod event;
pub mod files;
pub mod framework;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod orchestrator;
pub mod provider;
mod random;
pub mod report;
pub mod secret;
pub mod temporary;
pub mod worker;

pub use config::{Config, load_config};
pub use framework::{TestFramework, TestInstance, TestOutcome, TestRecord, TestResult};
pub use orchestrator::{Orchestrator, RunResult, SandboxPool};
pub use provider::{Sandbox, SandboxProvider};
pub use report::print_summary;
