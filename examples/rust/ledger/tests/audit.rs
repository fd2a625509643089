//! A test that fails, and one that fails every other time: what a real suite has, for the demonstration.

use ledger::Ledger;

#[test]
fn interest_is_paid() {
    let mut ledger = Ledger::default();
    ledger.deposit("ada", 1000);
    println!("balance before: {}", ledger.balance("ada"));
    assert_eq!(ledger.balance("ada"), 1020, "interest of 2 % was never implemented");
}

#[test]
fn the_bank_answers() {
    // A service that answers every second time: flaky, and found out with --retries.
    let state = std::env::temp_dir().join("offload-example-flaky");
    if std::fs::remove_file(&state).is_err() {
        std::fs::write(&state, "asked once").unwrap();
        panic!("the bank did not answer");
    }
}
