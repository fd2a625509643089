"""pytest's live log: a line says which test it is of, and none is lost."""

from __future__ import annotations

import re

import pytest
from conftest import START, Runner

LOGS = """
import logging, threading
log = logging.getLogger("app")
log.warning("imported")
@pytest.fixture(scope="module")
def wide():
    log.info("wide up"); yield; log.info("wide down")
@pytest.fixture
def narrow():
    log.info("narrow up"); yield; log.info("narrow down")
def test_one(wide, narrow): log.info("one\\nand more")
def test_two(wide):
    thread = threading.Thread(target=log.error, args=("two",))
    thread.start(); thread.join()
def test_quiet(): log.debug("debug")
"""
CONFTEST = """
import logging
def pytest_sessionstart(session): logging.getLogger("app").info("session started")
def pytest_sessionfinish(session): logging.getLogger("app").info("session finished")
"""
LINE = re.compile(r"(?:\[gw0\] )?(?:test_a\.py::(\w+) )?(?:\((\w+)\) )?(?:[A-Z]+ +app:\w+\.py:\d+ )(.*)")
SHARED = [
    ("test_one", "setup", "wide up"),
    ("test_one", "setup", "narrow up"),
    ("test_one", "call", "one"),
    ("test_one", "teardown", "narrow down"),
    ("test_two", "call", "two"),
    ("test_quiet", "teardown", "wide down"),
]
APART = [
    *SHARED[:4],
    ("test_one", "teardown", "wide down"),
    ("test_two", "setup", "wide up"),
    SHARED[4],
    ("test_two", "teardown", "wide down"),
]


@pytest.mark.parametrize(
    "enable", ["-olog_cli=true -olog_level=INFO", "--log-cli-level=INFO", "--log-cli-level=INFO -s"]
)
@pytest.mark.parametrize("mode", [*START, "--offload-isolation=test"])
def test_a_live_log_line_says_which_test_it_is_of(run: Runner, enable: str, mode: str) -> None:
    run.write(conftest=CONFTEST, test_a=LOGS)
    run.workers = 1
    outcome = run.offload(mode, *enable.split())
    assert outcome.counts == {"passed": 3}, outcome.text
    said = [match.groups() for match in map(LINE.fullmatch, outcome.text.splitlines()) if match]
    assert [line for line in said if line[0]] == (APART if mode.endswith("=test") else SHARED)
    assert [line for line in said if line[1] == "collection"] == [(None, "collection", "imported")]
    # The controller's session, and the worker's.
    assert [line[2] for line in said if line[1] in (None, "sessionfinish")] == [
        "session started",
        "session finished",
        "session finished",
    ]
    assert "[gw0] test_a.py::test_one (call) and more\n" in outcome.text


def test_no_line_and_no_result_is_lost_where_threads_log(run: Runner) -> None:
    run.write(
        test_a="""
import logging, threading
log = logging.getLogger("app")
def chatter():
    for i in range(100): log.warning("said %d", i)
@pytest.mark.parametrize("n", range(20))
def test_talks(n):
    threads = [threading.Thread(target=chatter) for _ in range(3)]
    for thread in threads: thread.start()
    chatter()
    for thread in threads: thread.join()
"""
    )
    outcome = run.offload("-olog_cli=true")
    assert outcome.counts == {"passed": 20}, outcome.text
    lines = [line for line in outcome.text.splitlines() if "said" in line]
    assert len(lines) == 8000
    assert all(
        re.fullmatch(r"\[gw\d\] test_a\.py::test_talks\[\d+\] \(call\) WARNING .* said \d+", line) for line in lines
    )
