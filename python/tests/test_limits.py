"""Time limits hold for what is no test, too, and time during which the run itself was stopped is nobody's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import START, Runner, plugins

#: A fixture whose teardown does not end, between the tests of two files or classes.
HANGS = """
import time
@pytest.fixture(scope="{scope}")
def hangs():
    yield
    time.sleep(600)
class TestFirst:
    def test_last_user(self, hangs): pass
class TestSecond:
    def test_next(self): pass
"""


@pytest.mark.parametrize("start", START)
@pytest.mark.parametrize("scope", ["class", "module"])
def test_a_teardown_that_does_not_end_between_two_tests_is_an_error(run: Runner, scope: str, start: str) -> None:
    run.workers = 1
    run.write(test_a=HANGS.format(scope=scope), test_b="def test_other(): pass")
    outcome = run.offload("--offload-timeout=2", start)
    assert outcome.exit_code == 1, outcome.text
    assert "took longer than the limit of 2 s" in outcome.text
    assert outcome.counts == {"passed": 3, "errors": 1}, outcome.text
    assert "in hangs" in outcome.text
    assert "/_pytest/" not in outcome.text


def start(run: Runner, *args: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "pytest", *plugins(), "--offload", "--offload-parallel=2", *args]
    return subprocess.Popen(words, cwd=run.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


@pytest.mark.parametrize("isolation", ["worker", "test"])
def test_a_run_that_was_stopped_invents_no_time_outs(run: Runner, isolation: str) -> None:
    # Each test is within its limit, and all together are not.
    body = "def test_{0}():\n    open('began', 'a').close()\n    time.sleep(0.4)\n"
    run.write(test_a="import time\n" + "".join(body.format(number) for number in range(8)))
    process = start(run, "--offload-timeout=1", f"--offload-isolation={isolation}")
    wait_for(run.path / "began")
    os.kill(process.pid, signal.SIGSTOP)
    # So long that every test that runs is over its limit by the clock.
    time.sleep(3)
    os.kill(process.pid, signal.SIGCONT)
    text, _ = process.communicate(timeout=120)
    assert "8 passed" in text, text
    assert process.returncode == 0


#: Stands still in every process but the one that was started by the test.
STANDS_STILL = """
import os, signal
if os.getppid() != {parent}:
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_template_that_stands_still_ends_the_run(run: Runner) -> None:
    run.write(conftest=STANDS_STILL.format(parent=os.getpid()), test_a="def test_a(): pass")
    outcome = run.offload("--offload-timeout=1")
    assert "Waiting for the template process for 10 s: it " in outcome.text, outcome.text
    assert "the template process of pytest was to end within 60 s what it did not end: it " in outcome.text
    assert outcome.exit_code not in (0, 5), outcome.text


def test_scarce_descriptors_mean_fewer_workers_and_no_hang(run: Runner) -> None:
    run.write(test_a="import time\n" + "".join(f"def test_{n}(): time.sleep(0.05)\n" for n in range(40)))
    words = [sys.executable, "-m", "pytest", *plugins(), "--offload", "--offload-parallel=8", "-p", "no:cacheprovider"]
    passed = 0
    for most in range(20, 30):
        limited = ["/bin/sh", "-c", f'ulimit -n {most}; exec "$@"', "sh", *words]
        ended = subprocess.run(limited, cwd=run.path, capture_output=True, text=True, timeout=120)
        text = ended.stdout + ended.stderr
        if ended.returncode == 0:
            assert "40 passed" in text, text
            passed += 1
        else:
            # Too little for anything; but then it says so.
            assert "Too many open files" in text, text
    assert passed, text


@pytest.mark.parametrize("isolation", ["worker", "test"])
@pytest.mark.parametrize("start", START)
def test_what_a_test_had_written_is_shown_when_it_does_not_end(run: Runner, start: str, isolation: str) -> None:
    run.write(
        test_a="""
import os, sys, time
def test_before(): print("written by another")
def test_dies():
    print("on standard output")
    print("on standard error", file=sys.stderr)
    os.system("echo by a child")
    os.kill(os.getpid(), 11)
def test_hangs():
    print("before it hangs")
    time.sleep(600)
"""
    )
    outcome = run.offload("--offload-timeout=2", start, f"--offload-isolation={isolation}")
    assert outcome.counts == {"failed": 2, "passed": 1}, outcome.text
    for text in ("on standard output", "on standard error", "by a child", "before it hangs"):
        assert text in outcome.text.replace(f'print("{text}', ""), outcome.text
    assert "Captured stdout call" in outcome.text
    assert "written by another" not in outcome.text
    assert "TIMEOUT test_a.py::test_hangs" in outcome.text
    assert "CRASHED test_a.py::test_dies" in outcome.text
    assert " in test_dies" in outcome.text


@pytest.mark.parametrize("start", START)
def test_a_crash_while_a_file_is_imported_shows_where(run: Runner, start: str) -> None:
    run.write(
        test_a="import faulthandler\ndef falls(): faulthandler._sigsegv()\nfalls()\ndef test_a(): pass",
        test_b="def test_b(): pass",
    )
    outcome = run.offload(start, "--continue-on-collection-errors", "--offload-collect=parallel")
    assert outcome.counts == {"passed": 1, "errors": 1}, outcome.text
    assert "ended while it collected test_a.py: killed by signal 11 (SIGSEGV)" in outcome.text
    assert 'test_a.py", line 3 in falls' in outcome.text


@pytest.mark.parametrize("isolation", ["worker", "test"])
@pytest.mark.parametrize("start", START)
def test_stacks_of_a_slow_test_reach_the_terminal(run: Runner, start: str, isolation: str) -> None:
    (run.path / "pytest.ini").write_text("[pytest]\nfaulthandler_timeout = 0.2\n")
    run.workers = 1
    run.write(test_a="import time\ndef test_slow(): time.sleep(0.6)\ndef test_quick(): pass\ndef test_last(): pass")
    outcome = run.offload(start, f"--offload-isolation={isolation}")
    assert outcome.counts == {"passed": 3}, outcome.text
    assert outcome.text.count("Timeout (0:00:00.2") == 1, outcome.text
    assert " in test_slow" in outcome.text
