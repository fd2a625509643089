"""Where a run stops after failures, a worker that has failed runs nothing further, as in plain pytest."""

from __future__ import annotations

import pytest
from conftest import START, Runner

PROJECT = """
import os
import time
import pytest

@pytest.fixture(autouse=True)
def log(request):
    with open("log", "a") as file:
        file.write(request.node.name + " ")

@pytest.fixture
def broken_setup():
    assert 0

@pytest.fixture
def broken_teardown():
    yield
    assert 0

@pytest.fixture(scope="class")
def broken_late():
    yield
    assert 0

def test_first(): pass
{failing}
class TestRest:
    def test_a(self): pass
    def test_b(self): assert 0
    def test_c(self): pass
    def test_d(self): assert 0
    def test_e(self): pass
"""

FAILURES = {
    "call": "def test_fails(): assert 0",
    "setup": "def test_fails(broken_setup): pass",
    "teardown": "def test_fails(broken_teardown): pass",
    "late teardown": "class TestFails:\n    def test_fails(self, broken_late): pass",
    "strict": "@pytest.mark.xfail(strict=True)\ndef test_fails(): pass",
    "interrupt": "def test_fails(): os.kill(os.getpid(), 9)",
    "exit": "def test_fails(): os._exit(0)",
    "slow": "def test_fails(): time.sleep(60)",
}
#: Those that plain pytest does not survive, or does not know.
FATAL = ("interrupt", "exit", "slow")


def ran(run: Runner) -> list[str]:
    log = run.path / "log"
    names = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return names


@pytest.mark.parametrize("isolation", ["worker", "test"])
@pytest.mark.parametrize("stop", ["-x", "--maxfail=2"])
@pytest.mark.parametrize("failing", FAILURES)
def test_the_worker_that_failed_runs_nothing_further(run: Runner, failing: str, stop: str, isolation: str) -> None:
    run.workers = 1
    run.write(test_a=PROJECT.format(failing=FAILURES[failing]))
    if failing in FATAL:
        expected = ["test_first", "test_fails"]
        expected += [] if stop == "-x" else ["test_a", "test_b"]
    else:
        run.plain(stop)
        expected = ran(run)
    outcome = run.offload(stop, f"--offload-isolation={isolation}", "--offload-timeout=2")
    assert ran(run) == expected, outcome.text
    assert outcome.exit_code == 1
    assert outcome.counts.get("passed", 0) <= len(expected), outcome.text


@pytest.mark.parametrize("start", START)
def test_retries_come_before_the_end(run: Runner, start: str) -> None:
    run.workers = 1
    run.write(test_a=PROJECT.format(failing=FAILURES["call"]))
    outcome = run.offload("-x", "--offload-retries=2", start)
    assert ran(run) == ["test_first"] + 3 * ["test_fails"], outcome.text
    assert outcome.exit_code == 1


def test_stepwise_stops_too(run: Runner) -> None:
    run.workers = 1
    run.write(test_a=PROJECT.format(failing=FAILURES["call"]))
    for args in (("--stepwise",), ("--stepwise", "--stepwise-skip")):
        run.plain(*args, "-p", "no:cacheprovider")
        expected = ran(run)
        outcome = run.offload(*args, "-p", "no:cacheprovider")
        assert ran(run) == expected, outcome.text


def test_two_workers_run_what_comes_before_the_failure(run: Runner) -> None:
    run.write(test_a=PROJECT.format(failing=""), test_b="def test_never(): pass\n" * 1)
    outcome = run.offload("-x", "--offload-dist=loadfile")
    names = ran(run)
    assert names[0] == "test_first", outcome.text
    assert "test_a" in names, outcome.text
    assert "test_e" not in names, outcome.text
    assert outcome.counts == {"failed": 1, "passed": 2}


def test_flaky_tests_are_named_when_a_run_stops_early(run: Runner) -> None:
    run.workers = 1
    run.write(
        test_a="""
import os
def test_flaky():
    if not os.path.exists("seen"):
        open("seen", "w").close()
        assert 0
def test_fails(): assert 0
def test_never(): pass
"""
    )
    outcome = run.offload("-x", "--offload-retries=1")
    assert outcome.exit_code == 1
    assert "FLAKY test_a.py::test_flaky passed on a retry" in outcome.text, outcome.text
