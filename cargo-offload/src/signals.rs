//! Ctrl-C, SIGTERM and SIGHUP end a run in order; the second one ends it at once.

use offload_core::orchestrator::CancelHandle;
use tokio::signal::unix::{SignalKind, signal};

/// Cancels the run at each signal, for as long as the returned task lives.
///
/// # Errors
///
/// When the operating system refuses a signal handler.
pub fn cancel_on_signals(cancel: CancelHandle) -> std::io::Result<tokio::task::JoinHandle<()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            cancel.cancel();
        }
    }))
}
