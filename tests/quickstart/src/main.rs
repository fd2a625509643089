use offload::config::load_config;
use offload::framework::{TestFramework, pytest::PytestFramework};
use offload::orchestrator::{Orchestrator, SandboxPool};
use offload::provider::local::LocalProvider;
use tokio::sync::Mutex;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // Load configuration from TOML file
    let config = load_config(std::path::Path::new("offload.toml"))?;
    // Create provider (runs tests as local processes)
    let provider = LocalProvider::new(Default::default());
    // Create framework (finds pytest tests)
    let framework = PytestFramework::new(Default::default());
    // Discover tests using the framework
    let tests = framework.discover(&[]).await?;
    // Run tests using the orchestrator
    let orchestrator = Orchestrator::new(config, provider, framework, &[], false);
    let sandbox_pool = Mutex::new(SandboxPool::new());
    let result = orchestrator.run_with_tests(&tests, &sandbox_pool).await?;
    std::process::exit(result.exit_code());
}
