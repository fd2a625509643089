//! Sandboxes that exist before a run needs them.

use std::collections::VecDeque;

use crate::provider::{ProviderError, Sandbox};

/// Sandboxes that are ready and idle. A run takes from its pool before it asks the provider for new ones, and destroys
/// what it took; what is left stays in the pool.
#[derive(Default)]
pub struct SandboxPool {
    idle: VecDeque<Box<dyn Sandbox>>,
}

impl SandboxPool {
    /// An empty pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many sandboxes are idle.
    pub fn len(&self) -> usize {
        self.idle.len()
    }

    /// Whether no sandbox is idle.
    pub fn is_empty(&self) -> bool {
        self.idle.is_empty()
    }

    /// Adds a sandbox.
    pub fn put(&mut self, sandbox: Box<dyn Sandbox>) {
        self.idle.push_back(sandbox);
    }

    /// Takes the sandbox that has been idle longest.
    pub fn take(&mut self) -> Option<Box<dyn Sandbox>> {
        self.idle.pop_front()
    }

    /// Destroys all idle sandboxes; returns what went wrong.
    pub async fn terminate_all(&mut self) -> Vec<ProviderError> {
        let mut errors = Vec::new();
        while let Some(sandbox) = self.idle.pop_front() {
            if let Err(error) = sandbox.terminate().await {
                errors.push(error);
            }
        }
        errors
    }
}
