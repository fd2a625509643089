//! Prints the balances of `NAME=CENTS` arguments and their total.

fn main() {
    let mut ledger = ledger::Ledger::default();
    for arg in std::env::args().skip(1) {
        let (name, cents) = arg.split_once('=').unwrap_or((&arg, "0"));
        ledger.deposit(name, cents.parse().unwrap_or(0));
        println!("{}", line(name, ledger.balance(name)));
    }
    println!("{}", line("total", ledger.total()));
}

fn line(name: &str, cents: u64) -> String {
    format!("{name:<10} {:>8}.{:02}", cents / 100, cents % 100)
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn cents_have_two_digits() {
        assert_eq!(line("ada", 1205), "ada              12.05");
    }
}
