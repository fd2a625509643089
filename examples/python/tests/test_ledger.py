"""What a real suite has: tests that pass, one that fails, one that is flaky, one that is skipped."""

import pathlib
import sys
import tempfile

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from ledger import Ledger, NotEnough  # noqa: E402


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger()
    ledger.deposit("ada", 100)
    return ledger


@pytest.mark.parametrize("cents", [1, 50, 100])
def test_transfers_arrive(ledger: Ledger, cents: int) -> None:
    ledger.transfer("ada", "grace", cents)
    assert ledger.balances["grace"] == cents


def test_nobody_spends_what_they_do_not_have(ledger: Ledger) -> None:
    with pytest.raises(NotEnough):
        ledger.transfer("ada", "grace", 101)


def test_interest_is_paid(ledger: Ledger) -> None:
    print("balance before:", ledger.balances["ada"])
    assert ledger.balances["ada"] == 102, "interest of 2 % was never implemented"


def test_the_bank_answers() -> None:
    # A service that answers every second time.
    state = pathlib.Path(tempfile.gettempdir()) / "offload-example-flaky-python"
    if not state.exists():
        state.write_text("asked once")
        pytest.fail("the bank did not answer")
    state.unlink()


@pytest.mark.skip(reason="the exchange is closed")
def test_exchange() -> None:
    raise AssertionError
