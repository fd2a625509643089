"""A ledger: money that moves between accounts and is never lost."""


class NotEnough(Exception):
    """An account holds less than what is to be moved."""


class Ledger:
    """Balances in cents, by account."""

    def __init__(self) -> None:
        self.balances: dict = {}

    def deposit(self, account: str, cents: int) -> None:
        """Adds money from outside."""
        self.balances[account] = self.balances.get(account, 0) + cents

    def transfer(self, source: str, target: str, cents: int) -> None:
        """Moves money."""
        if self.balances.get(source, 0) < cents:
            raise NotEnough(source)
        self.balances[source] -= cents
        self.deposit(target, cents)
