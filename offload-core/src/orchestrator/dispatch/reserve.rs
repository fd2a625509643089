//! Sandboxes that discovery wants, before there are tests and the scheduler asks for any.
//!
//! They are created as all others are and kept until the scheduler asks for a sandbox of their number. It may never do so:
//! then they are destroyed at the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::{Created, Dispatcher, Fact};
use crate::framework::Wanted;
use crate::orchestrator::runner::close;
use crate::orchestrator::scheduler::SandboxIndex;
use crate::provider::{ProviderError, ProviderResult, Sandbox};

pub(super) struct Reserve {
    pub(super) wanted: mpsc::UnboundedReceiver<Wanted>,
    sandboxes: BTreeMap<SandboxIndex, Reserved>,
}

struct Reserved {
    state: State,
    /// Who waits for it.
    replies: Vec<oneshot::Sender<Result<(), String>>>,
}

enum State {
    /// Not before the provider is prepared, and not if there cannot be that many, unless the scheduler `asked` for it.
    Waiting {
        asked: bool,
    },
    Coming,
    /// A lost one is being destroyed, and another one comes after it.
    Going,
    There(ProviderResult<Created>, Duration),
}

impl Reserve {
    pub(super) fn new(wanted: mpsc::UnboundedReceiver<Wanted>) -> Self {
        Self { wanted, sandboxes: BTreeMap::new() }
    }
}

impl Dispatcher<'_> {
    pub(super) fn on_wanted(&mut self, wanted: Wanted) {
        let index = SandboxIndex(wanted.number);
        if wanted.again {
            self.discard(index);
        }
        let reserved = self.reserve.sandboxes.entry(index);
        let reserved =
            reserved.or_insert_with(|| Reserved { state: State::Waiting { asked: false }, replies: Vec::new() });
        match &reserved.state {
            State::Waiting { .. } | State::Coming | State::Going => reserved.replies.push(wanted.reply),
            State::There(created, _) => reply([wanted.reply], created),
        }
        if self.may_create() {
            self.create_reserve();
        }
    }

    /// Destroys a sandbox of which discovery has found that it is lost. Another one takes its number.
    fn discard(&mut self, index: SandboxIndex) {
        let Some(reserved) = self.reserve.sandboxes.get_mut(&index) else { return };
        if !matches!(reserved.state, State::There(..)) {
            return;
        }
        match std::mem::replace(&mut reserved.state, State::Going) {
            State::There(Ok((sandbox, _)), _) => self.destroy_reserved(index, sandbox),
            _ => {
                self.on_gone(index);
            }
        }
    }

    /// A sandbox has been destroyed. Returns whether another one takes its number.
    pub(super) fn on_gone(&mut self, index: SandboxIndex) -> bool {
        let Some(reserved) = self.reserve.sandboxes.get_mut(&index) else { return false };
        if !matches!(reserved.state, State::Going) {
            return false;
        }
        reserved.state = State::Waiting { asked: true };
        if self.may_create() {
            self.create_reserve();
        }
        true
    }

    fn destroy_reserved(&mut self, index: SandboxIndex, sandbox: Arc<dyn Sandbox>) {
        self.terminating += 1;
        let (facts, execution) = (self.facts.clone(), self.context.execution.clone());
        tokio::spawn(async move {
            let result = close(index, sandbox.as_ref(), &execution).await;
            let _ = facts.send(Fact::Terminated(index, result));
        });
    }

    /// Creates those that could not be created when they were asked for.
    pub(super) fn create_reserve(&mut self) {
        let most = self.most;
        let waiting = self.reserve.sandboxes.iter_mut().filter(|(index, reserved)| match reserved.state {
            State::Waiting { asked } => asked || most.is_none_or(|most| (index.0 as usize) < most),
            _ => false,
        });
        let waiting: Vec<SandboxIndex> = waiting
            .map(|(&index, reserved)| {
                reserved.state = State::Coming;
                index
            })
            .collect();
        for index in waiting {
            self.create(index, None);
        }
    }

    /// A sandbox was created. Gives it back when it is the scheduler's.
    pub(super) fn keep_in_reserve(
        &mut self,
        index: SandboxIndex,
        created: ProviderResult<Created>,
        took: Duration,
    ) -> Option<ProviderResult<Created>> {
        let Some(reserved) = self.reserve.sandboxes.remove(&index) else { return Some(created) };
        reply(reserved.replies, &created);
        if let Err(ProviderError::Unusable(what)) = &created {
            // No other would do better.
            self.stop_for_infrastructure(what.clone());
        }
        if self.places.contains_key(&index) {
            return Some(created);
        }
        let reserved = Reserved { state: State::There(created, took), replies: Vec::new() };
        self.reserve.sandboxes.insert(index, reserved);
        None
    }

    /// The scheduler wants a sandbox; returns whether it is one from here.
    pub(super) fn take_from_reserve(&mut self, index: SandboxIndex) -> bool {
        match self.reserve.sandboxes.remove(&index) {
            Some(Reserved { state: State::There(created, took), .. }) => {
                self.on_created(index, created, took);
                true
            }
            Some(mut reserved) => {
                let waits = matches!(reserved.state, State::Waiting { .. });
                if waits {
                    reserved.state = State::Waiting { asked: true };
                }
                self.reserve.sandboxes.insert(index, reserved);
                if waits && self.may_create() {
                    self.create_reserve();
                }
                true
            }
            None => false,
        }
    }

    /// Destroys those that nobody wanted.
    pub(super) fn empty_reserve(&mut self) {
        for (index, reserved) in std::mem::take(&mut self.reserve.sandboxes) {
            if let State::There(Ok((sandbox, _)), _) = reserved.state {
                self.destroy_reserved(index, sandbox);
            }
        }
    }
}

fn reply(to: impl IntoIterator<Item = oneshot::Sender<Result<(), String>>>, created: &ProviderResult<Created>) {
    for reply in to {
        // Discovery may have ended meanwhile.
        let _ = reply.send(created.as_ref().map(drop).map_err(ToString::to_string));
    }
}
