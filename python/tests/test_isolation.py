"""`--offload-isolation=test`: every test in a process of its own, and in nothing else different from plain pytest."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import pytest
from conftest import Runner, plugins

ISOLATED = "--offload-isolation=test"

STATE = """
import os
SEEN = []
PIDS = os.path.join(os.path.dirname(__file__), "pids")
@pytest.fixture(scope="session")
def directory(tmp_path_factory): return tmp_path_factory.mktemp("session")
@pytest.fixture(scope="module", autouse=True)
def module():
    yield
    with open(os.path.join(os.path.dirname(__file__), "torn_down"), "a") as file: file.write("x")
@pytest.mark.parametrize("number", range(8))
def test_state(number, directory, tmp_path):
    SEEN.append(number)
    assert SEEN == [number]
    with open(PIDS, "a") as file: file.write(f"{os.getpid()}\\n")
"""

ALL_OUTCOMES = """
import sys, unittest
def test_passes(capsys): print("x"); assert capsys.readouterr().out == "x\\n"
def test_prints_and_fails(): print("to out"); sys.stderr.write("to err"); assert 0
def test_skipped(): pytest.skip("no")
@pytest.mark.xfail
def test_xfail(): assert 0
@pytest.mark.xfail(strict=True)
def test_xpass(): pass
@pytest.fixture
def bad_setup(): raise ValueError("up")
def test_setup(bad_setup): pass
@pytest.fixture
def bad_teardown():
    yield
    raise ValueError("down")
def test_teardown(bad_teardown): pass
def test_exits(): raise SystemExit(3)
def test_property(record_property): record_property("a", (1, 2))
def test_warns():
    import warnings
    warnings.warn("careful")
class TestUnit(unittest.TestCase):
    def test_unit(self): self.assertEqual(1, 2)
"""


def test_no_test_sees_what_another_did(run: Runner) -> None:
    run.write(test_a=STATE)
    outcome = run.offload(ISOLATED)
    assert outcome.counts == {"passed": 8}, outcome.text
    assert len(set((run.path / "pids").read_text().split())) == 8
    # Each process tears down what it has set up.
    assert (run.path / "torn_down").read_text() == "x" * 8


def test_every_outcome_is_that_of_plain_pytest(run: Runner) -> None:
    run.write(test_a=ALL_OUTCOMES)
    plain, isolated = run.plain("-rA"), run.offload(ISOLATED, "-rA")
    assert isolated.comparable() == plain.comparable()
    assert isolated.warnings == plain.warnings
    assert "to out" in isolated.text
    assert "to err" in isolated.text


CRASHES = {
    "faulthandler._sigsegv()": r"killed by signal 11 \(SIGSEGV\)",
    "os._exit(0)": "exit code 0",
    "os._exit(3)": "exit code 3",
    "os.kill(os.getpid(), signal.SIGKILL)": r"killed by signal 9 \(SIGKILL\)",
}


@pytest.mark.parametrize("what", CRASHES)
def test_a_crash_is_reported_with_what_was_printed(run: Runner, what: str) -> None:
    crash = f"import faulthandler, os, signal\ndef test_bad():\n    print('last words')\n    {what}\n"
    run.write(test_a=crash + "\n".join(f"def test_{number}(): pass" for number in range(6)))
    outcome = run.offload(ISOLATED)
    assert outcome.counts == {"failed": 1, "passed": 6}
    assert re.search(
        f"CRASHED test_a.py::test_bad on gw\\d: the process of this test ended: {CRASHES[what]}", outcome.text
    )
    assert "Captured stdout call" in outcome.text
    assert "last words" in outcome.text
    # The worker lives on: no test but this one had to go elsewhere.
    assert len(re.findall("CRASHED", outcome.text)) == 1


def test_a_timeout_shows_the_stack_of_the_test_and_nothing_below_it(run: Runner) -> None:
    run.write(test_a="import time\ndef helper(): time.sleep(60)\ndef test_bad(): helper()\ndef test_good(): pass\n")
    outcome = run.offload(ISOLATED, "--offload-timeout=2")
    assert outcome.counts == {"failed": 1, "passed": 1}
    assert re.search(r'File ".*test_a.py", line \d+ in helper', outcome.text)
    assert "/worker/" not in outcome.text


def test_pytest_exit_and_internal_errors_end_the_run(run: Runner) -> None:
    run.write(test_a="def test_a(): pytest.exit('enough', 7)")
    outcome = run.offload(ISOLATED)
    assert outcome.exit_code == 7
    assert "enough" in outcome.text
    run.write(conftest="def pytest_runtest_setup(): raise RuntimeError\ndef pytest_runtest_logreport(): 1/0\n")
    assert run.offload(ISOLATED).exit_code == run.plain().exit_code == 3


def test_ctrl_c_tears_down_the_test_that_runs(run: Runner) -> None:
    run.write(
        test_a="""
import time
@pytest.fixture
def resource():
    yield
    open("torn_down", "w").close()
def test_a(resource): open("running", "w").close(); time.sleep(60)
def test_b(): pass
"""
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *plugins(), "--offload", "--offload-parallel=2", ISOLATED],
        cwd=run.path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (run.path / "running").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 2, text
    assert (run.path / "torn_down").exists()


#: What pytest charges to the last test, which is expected to fail, comes down after other tests here.
WIDE = """
import os
@pytest.fixture(scope="module", autouse=True)
def wide():
    yield
    {end}
def test_first(): {body}
@pytest.mark.xfail(raises=ZeroDivisionError)
def test_last(): 1 / 0
"""


def test_what_is_torn_down_late_is_reported_after_the_result(run: Runner) -> None:
    run.workers = 1
    run.write(test_a=WIDE.format(end="assert 0", body="pass"))
    outcome = run.offload(ISOLATED, "-v", "--junitxml=report.xml")
    assert (outcome.exit_code, outcome.counts) == (1, {"passed": 1, "xfailed": 1, "errors": 2}), outcome.text
    words = re.findall(r"^\[gw0\].* ([A-Z]+) test_a.py::test_first", outcome.text, re.MULTILINE)
    assert words == ["PASSED", "ERROR"], outcome.text
    assert re.findall(r'name="(\w+)" time', (run.path / "report.xml").read_text()) == ["test_first", "test_last"]


# A line of the live log goes out at once, and takes the result with it.
@pytest.mark.parametrize("log", ["", "logging.error('down'); "])
@pytest.mark.parametrize("body", ["pass", "pytest.skip('on purpose')", "assert 0"])
def test_a_crash_when_a_wide_fixture_comes_down_counts(run: Runner, body: str, log: str) -> None:
    run.workers = 1
    run.write(test_a="import logging\n" + WIDE.format(end=f"{log}os._exit(0)", body=body))
    outcome = run.offload(ISOLATED, "--junitxml=report.xml", "-o", "log_cli=true")
    assert outcome.exit_code == 1, outcome.text
    crashed = set(re.findall(r"^(?:FAILED|ERROR) test_a.py::(\w+)", outcome.text, re.MULTILINE))
    assert crashed == {"test_first", "test_last"}, outcome.text
    junit = ElementTree.parse(run.path / "report.xml").getroot()
    assert all(len(case) for case in junit.iter("testcase"))


@pytest.mark.parametrize("end", ["os._exit(1)", "os.kill(os.getpid(), 9)"])
def test_a_crash_at_the_end_of_the_process_counts(run: Runner, end: str) -> None:
    run.write(test_a=f"import atexit, os\ndef test_bad(): atexit.register(lambda: {end})\ndef test_good(): pass\n")
    outcome = run.offload(ISOLATED)
    assert (outcome.exit_code, outcome.counts) == (1, {"passed": 2, "errors": 1}), outcome.text
    assert "ERROR test_a.py::test_bad" in outcome.text
    assert "the process of this test ended after its result" in outcome.text
