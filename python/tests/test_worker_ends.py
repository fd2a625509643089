"""The end of a worker counts: what breaks after its last test is an error."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from conftest import START, Runner

#: What a worker may do after its last test. `{how}` is code that runs there.
AFTER_TESTS = {
    "session fixture": """
import os, signal
@pytest.fixture(scope="session", autouse=True)
def resource():
    yield
    {how}
""",
    "pytest_sessionfinish": """
import os, signal
def pytest_sessionfinish(session):
    if hasattr(session.config, "workerinput"):
        {how}
""",
    "pytest_unconfigure": """
import os, signal
def pytest_unconfigure(config):
    if hasattr(config, "workerinput"):
        {how}
""",
    "exit handler": """
import atexit, os, signal
def at_end():
    {how}
@pytest.fixture(scope="session", autouse=True)
def resource():
    atexit.register(at_end)
""",
}

DEATHS = {"exits": "os._exit(3)", "signal": "os.kill(os.getpid(), signal.SIGSEGV)"}


@pytest.mark.parametrize("how", DEATHS)
@pytest.mark.parametrize("where", AFTER_TESTS)
@pytest.mark.parametrize("start", START)
def test_a_worker_that_dies_after_its_last_test_makes_the_run_fail(
    run: Runner, where: str, how: str, start: str
) -> None:
    run.workers = 1
    run.write(conftest=AFTER_TESTS[where].replace("{how}", DEATHS[how]), test_a="def test_passes(): pass")
    outcome = run.offload("--junitxml=report.xml", start)
    assert outcome.exit_code == 1, outcome.text
    assert outcome.counts in ({"passed": 1, "error": 1}, {"passed": 1, "errors": 1}), outcome.text
    assert "ended while it tore down what its tests had set up" in outcome.text
    assert "test_a.py::test_passes" in outcome.text
    suite = ElementTree.parse(run.path / "report.xml").getroot()[0]
    # Some versions of pytest count a test that passed and broke afterwards twice, but write one element.
    assert (suite.get("errors"), len(suite.findall("testcase"))) == ("1", 1)


def test_a_teardown_that_never_ends_is_ended_by_the_limit(run: Runner) -> None:
    run.workers = 1
    hangs = "import time\n" + AFTER_TESTS["session fixture"].replace("{how}", "time.sleep(1000)")
    run.write(conftest=hangs, test_a="def test_passes(): pass")
    outcome = run.offload("--offload-timeout=2")
    assert outcome.exit_code == 1, outcome.text
    assert "longer than the limit of 2 s" in outcome.text
    assert "in resource" in outcome.text, "a stack says where"
