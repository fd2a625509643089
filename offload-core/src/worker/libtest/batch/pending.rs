//! The tests of a process that have no result yet.

use std::collections::HashMap;

use crate::worker::libtest::mailbox::Mailbox;
use crate::worker::{RunItem, TestKey};

/// The tests that have no result yet.
pub(super) struct Pending {
    /// In the order of the queue.
    pub(super) items: Vec<Option<RunItem>>,
    /// Of which it was said that they have started.
    pub(super) started: Vec<bool>,
    pub(super) by_name: HashMap<String, usize>,
    pub(super) left: usize,
}

impl Pending {
    /// The tests, and those among them whose name came before.
    pub(super) fn new(items: Vec<RunItem>) -> (Self, Vec<RunItem>) {
        let (mut kept, mut by_name, mut twice) = (Vec::with_capacity(items.len()), HashMap::new(), Vec::new());
        for item in items {
            if by_name.contains_key(&item.name) {
                twice.push(item);
            } else {
                by_name.insert(item.name.clone(), kept.len());
                kept.push(Some(item));
            }
        }
        let left = kept.len();
        (Self { started: vec![false; left], items: kept, by_name, left }, twice)
    }

    pub(super) fn is_test(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The place of a test that has no result yet.
    pub(super) fn place(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied().filter(|&place| self.items[place].is_some())
    }

    /// The place of the test that comes next: a harness runs its tests by name, in whatever order it is given them.
    pub(super) fn first(&self) -> Option<usize> {
        let left = self.items.iter().enumerate().filter_map(|(place, item)| Some((place, &item.as_ref()?.name)));
        left.min_by_key(|(_, name)| *name).map(|(place, _)| place)
    }

    pub(super) fn take(&mut self, place: usize) -> Option<RunItem> {
        let item = self.items[place].take()?;
        self.left -= 1;
        Some(item)
    }

    /// The tests without a result of which it was said that they have started.
    pub(super) fn started(&self) -> impl Iterator<Item = TestKey> {
        let started = self.items.iter().zip(&self.started).filter(|(_, started)| **started);
        started.filter_map(|(item, _)| item.as_ref()).map(|item| item.key)
    }

    /// Asks of which of them that was said before.
    pub(super) fn note_started(&mut self, mailbox: &Mailbox) {
        for (item, started) in self.items.iter().zip(&mut self.started) {
            *started = item.as_ref().is_some_and(|item| mailbox.has_started(item.key));
        }
    }

    pub(super) fn rest(&mut self) -> Vec<RunItem> {
        self.items.drain(..).flatten().collect()
    }
}
