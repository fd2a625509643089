//! Ctrl-C, SIGTERM and SIGHUP end a run in order; the second one ends it at once, as SIGQUIT does. Ctrl-Z stops the tests,
//! too, which are in process groups of their own.

use offload_core::orchestrator::CancelHandle;
use offload_core::worker::{continue_tests, stop_tests};
use rustix::process::{Signal, getpid, kill_process};
use tokio::signal::unix::{SignalKind, signal};

/// SIGTSTP, which Ctrl-Z sends.
const STOP: i32 = 20;

/// Cancels the run at each signal, for as long as the returned task lives.
///
/// # Errors
///
/// When the operating system refuses a signal handler.
pub fn cancel_on_signals(cancel: CancelHandle) -> std::io::Result<tokio::task::JoinHandle<()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut quit = signal(SignalKind::quit())?;
    // Where it is ignored there is nobody who could have the run go on.
    let mut stop = if is_ignored(STOP) { None } else { Some(signal(SignalKind::from_raw(STOP))?) };
    Ok(tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => cancel.cancel(),
                _ = terminate.recv() => cancel.cancel(),
                _ = hangup.recv() => cancel.cancel(),
                _ = quit.recv() => {
                    cancel.cancel();
                    cancel.cancel();
                }
                Some(()) = async { stop.as_mut()?.recv().await } => {
                    stop_tests();
                    // Returns when this process goes on.
                    let _ = kill_process(getpid(), Signal::STOP);
                    continue_tests();
                }
            }
        }
    }))
}

/// Whether this process was started with a signal ignored.
fn is_ignored(number: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (number - 1) & 1 == 1
}
