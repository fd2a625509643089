//! The tests of a process that have no result yet.

use std::collections::{HashMap, HashSet};

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
    pub(super) fn announced(&self) -> impl Iterator<Item = TestKey> {
        self.items
            .iter()
            .zip(&self.started)
            .filter_map(|(item, started)| item.as_ref().filter(|_| *started))
            .map(|item| item.key)
    }

    /// It was said of these before that they have started.
    pub(super) fn forget_announced(&mut self, announced: &mut HashSet<TestKey>) {
        for (item, started) in self.items.iter().zip(&mut self.started) {
            *started = item.as_ref().is_some_and(|item| announced.remove(&item.key));
        }
    }

    pub(super) fn rest(&mut self) -> Vec<RunItem> {
        self.items.drain(..).flatten().collect()
    }
}
