//! What the daemon says happens to our containers.
//!
//! A container that ends looks the same from every stream, whatever ended it: the stream ends. Why is known from the
//! daemon's events alone, because a container that has ended is removed at once.

use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use bollard::Docker;
use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptionsBuilder;
use futures_core::Stream;
use tokio::sync::watch;

/// How long to wait before the daemon is asked again after it has gone away.
const AGAIN: Duration = Duration::from_millis(500);

/// What is known of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fate {
    /// How many times a process of it was killed because memory ran out.
    pub(super) out_of_memory: u32,
    /// The signal that somebody sent to it last.
    pub(super) signal: Option<String>,
    /// Its exit code, once it has ended.
    pub(super) exit_code: Option<i64>,
    pub(super) paused: bool,
}

/// What is known of all containers, by id.
pub(super) type Fates = HashMap<String, Fate>;

/// Follows the daemon's events until it is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    fates: watch::Receiver<Fates>,
    task: tokio::task::JoinHandle<()>,
}

impl Watch {
    /// Follows what happens to containers with this label.
    pub(super) fn start(docker: Docker, label: String) -> Self {
        let (sender, fates) = watch::channel(Fates::new());
        let task = tokio::spawn(async move {
            loop {
                let filters = HashMap::from([("type", vec!["container"]), ("label", vec![label.as_str()])]);
                // The daemon remembers the latest events: what happened before it heard of us is not lost.
                let options = EventsOptionsBuilder::default().since("1").filters(&filters).build();
                let mut events = Box::pin(docker.events(Some(options)));
                while let Some(Ok(event)) = next(&mut events).await {
                    sender.send_if_modified(|fates| note(fates, event));
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
        Self { fates, task }
    }

    /// What is known, now and from now on.
    pub(super) fn fates(&self) -> watch::Receiver<Fates> {
        self.fates.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Takes note of an event; returns whether it says anything new.
fn note(fates: &mut Fates, event: EventMessage) -> bool {
    let Some(actor) = event.actor else { return false };
    let (Some(id), Some(action)) = (actor.id, event.action) else { return false };
    let attributes: BTreeMap<String, String> = actor.attributes.unwrap_or_default().into_iter().collect();
    let fate = fates.entry(id).or_default();
    let before = fate.clone();
    match action.as_str() {
        "oom" => fate.out_of_memory += 1,
        "kill" => fate.signal = attributes.get("signal").cloned(),
        "pause" => fate.paused = true,
        "unpause" => fate.paused = false,
        "die" => fate.exit_code = Some(attributes.get("exitCode").and_then(|code| code.parse().ok()).unwrap_or(-1)),
        _ => {}
    }
    *fate != before
}

/// The next item of a stream.
pub(super) async fn next<S: Stream + ?Sized>(stream: &mut Pin<Box<S>>) -> Option<S::Item> {
    poll_fn(|cx| stream.as_mut().poll_next(cx)).await
}
