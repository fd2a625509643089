"""What tests do to their process: exactly that test is reported, all others have their own results, the run ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest
from conftest import Runner, plugins

OTHERS = "\n".join(f"def test_{i}(): pass" for i in range(10))

BAD = {
    "segfault": "import faulthandler; faulthandler._sigsegv()",
    "exit": "import os; os._exit(0)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
}

HARMLESS = {
    "closes its standard descriptors": "import os; [os.close(fd) for fd in (0, 1, 2)]",
    "forks and lets the child return": "import os; os.fork()",
    "changes the working directory": "import os; os.chdir('/')",
    "replaces sys.stdout": "import sys, io; sys.stdout = io.StringIO()",
    "leaves a thread behind": "import threading, time\n    threading.Thread(target=time.sleep, args=(60,)).start()",
    "leaves a process behind": "import subprocess; subprocess.Popen(['sleep', '61'])",
    "writes garbage to its standard output": 'import os; os.write(1, b\'\\xff{"type":"bye"}\\n\' * 100)',
    "prints much": "print('x' * 50_000_000)",
}


def processes(run: Runner) -> list[str]:
    """The processes that a run of this test has started and that are still there."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environ = (directory / "environ").read_bytes()
            if f"OFFLOAD_TEST_RECORD={run.path}/".encode() in environ and int(directory.name) != os.getpid():
                found.append((directory / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """After every test here: no process of ours, no directory of ours."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield
    assert not [command for command in processes(run) if command]
    assert not [path.name for path in tmp_path.iterdir() if "offload" in path.name]


@pytest.mark.parametrize("what", BAD)
def test_a_crash_is_that_tests_failure(run: Runner, what: str) -> None:
    run.write(test_a=OTHERS, test_b=f"def test_bad(): {BAD[what]}\n" + OTHERS)
    outcome = run.offload("-v")
    assert outcome.counts == {"failed": 1, "passed": 20}
    assert ("test_b.py::test_bad", "failed") in outcome.outcomes
    assert outcome.exit_code == 1
    assert re.search(r"CRASHED test_b.py::test_bad on gw\d: .+", outcome.text)


@pytest.mark.parametrize("what", HARMLESS)
def test_what_does_not_break_a_worker(run: Runner, what: str) -> None:
    run.write(test_a=OTHERS, test_b=f"def test_bad():\n    {HARMLESS[what]}\n" + OTHERS)
    outcome = run.offload()
    assert outcome.counts == {"passed": 21}, outcome.text
    assert outcome.exit_code == 0


@pytest.mark.parametrize(
    "body",
    ["import time; time.sleep(60)", "import ctypes; ctypes.PyDLL(None).sleep(60)", "while True: pass"],
    ids=["sleeps", "holds the GIL", "loops"],
)
def test_timeouts_show_stacks(run: Runner, body: str) -> None:
    run.write(test_a=OTHERS, test_b=f"def helper():\n    {body}\ndef test_bad(): helper()")
    outcome = run.offload("--offload-timeout=2")
    assert outcome.counts == {"failed": 1, "passed": 10}
    assert re.search(r'File ".*test_b.py", line \d+ in helper', outcome.text)


def test_retries_are_reruns(run: Runner) -> None:
    run.write(
        test_a="""
import os
def test_flaky():
    if not os.path.exists("seen"):
        open("seen", "w").close()
        assert 0, "the first time"
def test_always(): assert 0
@pytest.fixture(scope="module")
def once():
    if not os.path.exists("seen2"):
        open("seen2", "w").close()
        raise ValueError("set up badly")
def test_with_fixture(once): pass
"""
    )
    outcome = run.offload("--offload-retries=2", "-v")
    assert outcome.counts == {"failed": 1, "passed": 2, "rerun": 4}
    assert outcome.exit_code == 1
    assert "FLAKY test_a.py::test_flaky passed on a retry" in outcome.text
    assert "RERUN test_a.py::test_flaky" in outcome.text
    (run.path / "seen").unlink()
    args = ("--offload-retries=1", "-k", "test_flaky")
    assert run.offload(*args).exit_code == 0
    (run.path / "seen").unlink()
    assert run.offload(*args, "--offload-fail-on-flaky").exit_code == 1
    (run.path / "seen").unlink()
    assert run.offload(*args, "--offload-flaky=fail").exit_code == 1
    (run.path / "seen").unlink()
    (run.path / "pyproject.toml").write_text("[tool.offload]\nflaky = 'fail'\n")
    outcome = run.offload(*args)
    assert outcome.exit_code == 1
    assert "FLAKY test_a.py::test_flaky" in outcome.text
    (run.path / "seen").unlink()
    assert run.offload(*args, "--offload-flaky=pass").exit_code == 0


def test_ctrl_c_ends_the_run(run: Runner) -> None:
    run.write(test_a="import time\ndef test_a(): open('running', 'w').close(); time.sleep(60)\ndef test_b(): pass")
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *plugins(), "--offload", "--offload-parallel=2"],
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
    assert process.returncode == 2
    assert "KeyboardInterrupt" in text
    assert "INTERRUPTED test_a.py::test_a on gw0 was running" in text


def state(pid: int) -> str:
    """What a process does at the moment: R, S, T and so on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_that_is_told_to_stop_stops_its_tests_and_goes_on_with_them(run: Runner) -> None:
    run.write(
        test_a="""
import os, time
def test_a():
    with open("part", "w") as file: file.write(str(os.getpid()))
    os.rename("part", "running")
    while not os.path.exists("end"): time.sleep(0.01)
"""
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *plugins(), "--offload", "--offload-timeout=30"],
        cwd=run.path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until((run.path / "running").exists)
    worker = int((run.path / "running").read_text())
    os.kill(process.pid, signal.SIGTSTP)
    wait_until(lambda: state(process.pid) == "T" and state(worker) == "T")
    os.kill(process.pid, signal.SIGCONT)
    wait_until(lambda: state(worker) != "T")
    (run.path / "end").touch()
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text


def test_a_time_out_ends_what_has_left_the_group(run: Runner) -> None:
    run.write(test_a="import subprocess\ndef test_a(): subprocess.run(['setsid', 'sleep', '1001'])")
    outcome = run.offload("--offload-timeout=1")
    assert outcome.exit_code == 1
    assert "TIMEOUT test_a.py::test_a on gw0" in outcome.text
    # That nothing is left is looked at after every test here.


def test_a_template_that_dies_ends_the_run(run: Runner) -> None:
    run.write(
        conftest="import os, sys\ndef pytest_collection(session):\n"
        "    if hasattr(session.config, 'workerinput'): os._exit(9)",
        test_a=OTHERS,
    )
    assert run.offload().exit_code == 3


def test_a_template_that_dies_at_once_ends_the_run(run: Runner) -> None:
    run.write(
        killer="""
import contextlib, os, signal
from pytest_offload import early

meet = early.Fork.meet

def killed(self, *where):
    os.kill(self.pid, signal.SIGTERM)
    # Whoever else waits for it may have been first.
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
    meet(self, *where)

early.Fork.meet = killed
""",
        test_a=OTHERS,
    )
    outcome = run.offload("-p", "killer", "--offload-start-method=fork")
    assert outcome.exit_code == 3
    assert "The template process of pytest ended (signal: 15" in outcome.text


def test_an_interrupt_does_not_lose_how_a_test_ended(run: Runner) -> None:
    run.write(
        conftest="""
import os, sys

waitpid = os.waitpid

def interrupted(pid, options):
    ended = waitpid(pid, options)
    if sys._getframe(1).f_code.co_filename.endswith("isolated.py"):
        raise KeyboardInterrupt
    return ended

os.waitpid = interrupted
""",
        test_a=OTHERS,
        test_b="import os\ndef test_exits(): os._exit(7)",
    )
    outcome = run.offload("--offload-isolation=test")
    assert outcome.counts == {"failed": 1, "passed": 10}, outcome.text
    assert "exit code 7" in outcome.text


def test_an_interrupted_fixture_costs_one_test(run: Runner) -> None:
    run.workers = 1
    run.write(
        conftest="""
import os, signal
@pytest.fixture(scope="session", autouse=True)
def wide():
    if not os.path.exists("seen"):
        open("seen", "w").close()
        os.kill(os.getpid(), signal.SIGINT)
""",
        test_a=OTHERS,
    )
    outcome = run.offload()
    assert outcome.counts == {"errors": 1, "passed": 9}, outcome.text
    assert outcome.exit_code == 1


@pytest.mark.parametrize("above", [1, 2], ids=["template", "keeper"])
def test_workers_outlive_those_above_them(run: Runner, above: int) -> None:
    run.write(
        conftest="",
        test_a=f"""
import os, signal, time
def parent(pid):
    with open(f"/proc/{{pid}}/stat") as stat: return int(stat.read().rpartition(")")[2].split()[1])
def test_kills():
    victim = os.getpid()
    for _ in range({above}): victim = parent(victim)
    controller = parent(victim)
    for _ in range({above}, 2): controller = parent(controller)
    assert os.path.basename(os.readlink(f"/proc/{{controller}}/cwd")) == os.path.basename(os.getcwd())
    assert b"--offload" in open(f"/proc/{{controller}}/cmdline", "rb").read()
    os.kill(victim, signal.SIGKILL)
    # That this is noticed takes its time.
    time.sleep(0.5)
"""
        + OTHERS,
        test_b=OTHERS,
    )
    outcome = run.offload()
    assert outcome.counts == {"passed": 21}, outcome.text
    assert outcome.exit_code == 0
