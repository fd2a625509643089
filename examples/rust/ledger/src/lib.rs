//! A ledger: money that moves between accounts and is never lost.
//!
//! ```
//! let mut ledger = ledger::Ledger::default();
//! ledger.deposit("ada", 100);
//! ledger.transfer("ada", "grace", 30).unwrap();
//! assert_eq!(ledger.balance("grace"), 30);
//! ```

use std::collections::BTreeMap;

/// Balances in cents, by account.
#[derive(Debug, Default)]
pub struct Ledger {
    balances: BTreeMap<String, u64>,
}

/// Why a transfer did not take place.
#[derive(Debug, PartialEq)]
pub struct NotEnough {
    /// Cents that are missing.
    pub missing: u64,
}

impl Ledger {
    /// Adds money from outside.
    pub fn deposit(&mut self, account: &str, cents: u64) {
        *self.balances.entry(account.to_owned()).or_default() += cents;
    }

    /// The cents of an account; 0 for one that is not known.
    pub fn balance(&self, account: &str) -> u64 {
        self.balances.get(account).copied().unwrap_or(0)
    }

    /// Moves money.
    pub fn transfer(&mut self, from: &str, to: &str, cents: u64) -> Result<(), NotEnough> {
        let balance = self.balance(from);
        if balance < cents {
            return Err(NotEnough { missing: cents - balance });
        }
        self.balances.insert(from.to_owned(), balance - cents);
        self.deposit(to, cents);
        Ok(())
    }

    /// All the money there is.
    pub fn total(&self) -> u64 {
        self.balances.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deposits_add_up() {
        let mut ledger = Ledger::default();
        ledger.deposit("ada", 1);
        ledger.deposit("ada", 2);
        assert_eq!(ledger.balance("ada"), 3);
    }

    #[test]
    fn a_transfer_keeps_the_total() {
        let mut ledger = Ledger::default();
        ledger.deposit("ada", 50);
        ledger.transfer("ada", "grace", 20).unwrap();
        assert_eq!((ledger.balance("ada"), ledger.balance("grace"), ledger.total()), (30, 20, 50));
    }

    #[test]
    fn nobody_spends_what_they_do_not_have() {
        let mut ledger = Ledger::default();
        ledger.deposit("ada", 5);
        assert_eq!(ledger.transfer("ada", "grace", 8), Err(NotEnough { missing: 3 }));
    }

    #[test]
    #[ignore = "takes a minute; run with --run-ignored all"]
    fn a_million_transfers_keep_the_total() {
        let mut ledger = Ledger::default();
        ledger.deposit("ada", 1_000_000);
        for _ in 0..1_000_000 {
            ledger.transfer("ada", "grace", 1).unwrap();
        }
        assert_eq!(ledger.total(), 1_000_000);
    }
}
