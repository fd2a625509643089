"""The end of a worker counts: what breaks after its last test is an error."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from conftest import START, Runner, plugins

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


#: The test after which plain pytest tears the module down, and another one, which is the last here on its worker.
LAST = """
@pytest.fixture(scope="{scope}")
def resource():
    yield
    assert 0, "cannot be torn down"

{one}
@pytest.mark.usefixtures("resource")
def test_one(): assert {holds}

{other}
def test_other(): assert {other_holds}
"""
XFAIL = "@pytest.mark.xfail"


@pytest.mark.parametrize("mode", ["parallel=2", "isolation=test", "dist=loadfile"])
@pytest.mark.parametrize("scope", ["module", "session"])
def test_a_teardown_that_fails_after_an_expected_failure_is_an_error_as_in_plain_pytest(
    run: Runner, mode: str, scope: str
) -> None:
    run.write(test_a=LAST.format(scope=scope, one=XFAIL, holds=0, other="", other_holds=1), test_b="def test_b(): pass")
    outcome = run.offload(f"--offload-{mode}", "--junitxml=report.xml")
    assert (outcome.exit_code, outcome.counts) == (1, {"passed": 2, "xfailed": 1, "errors": 1}), outcome.text
    assert run.plain().exit_code == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_teardown_that_fails_is_expected_if_the_last_test_of_the_scope_is(run: Runner, workers: int) -> None:
    run.workers = workers
    run.write(test_a=LAST.format(scope="module", one="", holds=1, other=XFAIL, other_holds=0))
    run.write(test_b="def test_b(): pass")
    assert run.plain().exit_code == 0
    outcome = run.offload()
    assert (outcome.exit_code, outcome.counts) == (0, {"passed": 2, "xfailed": 2}), outcome.text


@pytest.mark.parametrize("mode", ["isolation=worker", "isolation=test"])
@pytest.mark.parametrize("scope", ["function", "session"])
@pytest.mark.parametrize("mark", ["", XFAIL])
def test_an_exit_does_not_hide_what_cannot_be_torn_down(run: Runner, mode: str, scope: str, mark: str) -> None:
    run.write(
        test_a=f"""
@pytest.fixture(scope="{scope}")
def resource():
    yield
    assert 0, "cannot be torn down"
{mark}
def test_exits(resource): pytest.exit("enough", returncode=0)
"""
    )
    outcome = run.offload(f"--offload-{mode}")
    assert (outcome.exit_code, outcome.counts) == (1, {"errors": 1}), outcome.text
    assert "cannot be torn down" in outcome.text


#: Tears down until the line that says so has been shown.
SLOW = """
import os, time
def until_it_is_said():
    give_up = time.monotonic() + 60
    while "Waiting for" not in open("shown").read() and time.monotonic() < give_up:
        time.sleep(0.1)
"""
SLOW_ENDS = {
    "the fixture resource, conftest.py:": "session fixture",
    "the hook pytest_sessionfinish, conftest.py:": "pytest_sessionfinish",
    "the hook pytest_unconfigure, conftest.py:": "pytest_unconfigure",
}


@pytest.mark.parametrize("what", SLOW_ENDS)
def test_a_long_teardown_is_named(run: Runner, what: str) -> None:
    conftest = AFTER_TESTS[SLOW_ENDS[what]].replace("{how}", "until_it_is_said()")
    run.write(conftest=SLOW + conftest, test_a="def test_passes(): pass")
    command = [sys.executable, "-m", "pytest", *plugins(), "--offload", "--offload-parallel=1"]
    with (run.path / "shown").open("w") as shown:
        subprocess.run(command, cwd=run.path, stdout=shown, stderr=subprocess.STDOUT, check=True, timeout=120)
    text = (run.path / "shown").read_text()
    assert f"offload: Waiting for gw0 for 10 s: it tears down what its tests have set up ({what}" in text
