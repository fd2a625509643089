//! How long a process may take for what is no test: its start, collecting a file, coming to its next test.
//!
//! Time during which this process was stopped itself (Ctrl-Z, a machine that slept) does not count.

use std::time::Duration;

use tokio::time::Instant;

/// How often it is looked whether time passes for this process, too.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// A wait that takes so much longer than it was to take was not ours.
pub(super) const STOPPED: Duration = Duration::from_millis(500);
/// After how long users are told who is waited for.
pub(crate) const WORTH_SAYING: Duration = Duration::from_secs(10);

/// What `future` gives within `limit`; `None` when it takes longer. `say` is called once if it takes long.
pub(crate) async fn within<F: Future>(limit: Option<Duration>, future: F, say: impl FnOnce()) -> Option<F::Output> {
    let mut say = Some(say);
    let mut waited = Duration::ZERO;
    tokio::pin!(future);
    loop {
        let began = Instant::now();
        let wait = limit.map_or(TICK, |limit| TICK.min(limit.saturating_sub(waited)));
        if let Ok(output) = tokio::time::timeout(wait, &mut future).await {
            return Some(output);
        }
        waited += began.elapsed().min(wait + STOPPED);
        if limit.is_some_and(|limit| waited >= limit) {
            return None;
        }
        if waited >= WORTH_SAYING
            && let Some(say) = say.take()
        {
            say();
        }
    }
}
