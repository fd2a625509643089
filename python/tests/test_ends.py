"""How runs end before their time, and what comes late: nothing delivered is lost, nothing is left behind."""

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
from xml.etree import ElementTree

import pytest
from conftest import Runner, plugins
from test_faults import processes

MANY = "\n".join(f"def test_{i}(): pass" for i in range(10))
# Says that it runs, and goes on whatever it is told.
STUBBORN = """
import signal, time
def test_stubborn():
    signal.signal(signal.SIGINT, lambda *_: open("told", "w").close())
    open("running", "w").close()
    end = time.monotonic() + 120
    while time.monotonic() < end: time.sleep(0.05)
"""


@pytest.fixture(autouse=True)
def temporary(run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def begun(run: Runner) -> Iterator[subprocess.Popen[str]]:
    """A run whose tests are those of the directory, once one of them says that it runs."""
    run.write(
        conftest="""
def pytest_configure(config):
    global controller
    controller = not hasattr(config, "workerinput")
def pytest_runtest_logreport(report):
    if report.when == "call" and controller:
        with open("reported", "a") as file: file.write("x")
""",
        test_a=STUBBORN,
        test_b=MANY,
    )
    command = [sys.executable, "-m", "pytest", *plugins(), "--offload", "--offload-parallel=2"]
    process = subprocess.Popen(
        command, cwd=run.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    reported = run.path / "reported"
    wait_for(lambda: (run.path / "running").exists() and reported.exists() and reported.stat().st_size == 10)
    yield process
    if process.poll() is None:
        process.kill()
        process.communicate()


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def left(run: Runner, temporary: Path) -> list[str]:
    """What a run has left behind: processes and directories."""
    return [*filter(None, processes(run)), *(path.name for path in temporary.glob("offload*"))]


def test_ctrl_c_twice(run: Runner, begun: subprocess.Popen[str], temporary: Path) -> None:
    begun.send_signal(signal.SIGINT)
    wait_for((run.path / "told").exists)
    begun.send_signal(signal.SIGINT)
    text, _ = begun.communicate(timeout=60)
    assert begun.returncode == 2
    assert "KeyboardInterrupt" in text
    assert "10 passed" in text
    assert not left(run, temporary)


def test_the_controller_is_killed(run: Runner, begun: subprocess.Popen[str], temporary: Path) -> None:
    begun.kill()
    begun.communicate()
    wait_for(lambda: not left(run, temporary))


def test_what_was_killed_with_everything_is_removed_by_the_next_run(
    run: Runner, begun: subprocess.Popen[str], temporary: Path
) -> None:
    # Stopped, so that none sees the others go.
    for pid in members(run):
        os.kill(pid, signal.SIGSTOP)
    # The controller last: at its end the system has the template's group go on, and hangs up on it, which does not end
    # it where that is ignored (`nohup`).
    for pid in members(run):
        if pid != begun.pid:
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: members(run) == [begun.pid])
    begun.kill()
    begun.communicate()
    assert list(temporary.glob("offload*")), "nothing was left to be removed"
    run.write(test_a=MANY, test_b=MANY)
    assert run.offload().counts == {"passed": 20}
    wait_for(lambda: not left(run, temporary))


def members(run: Runner) -> list[int]:
    """The processes that belong to a run of this test and have not ended."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"OFFLOAD_TEST_RECORD={run.path}/".encode() in (directory / "environ").read_bytes():
                found.append(int(directory.name))
    return found


@pytest.mark.parametrize("args", [(), ("--maxfail=9",)], ids=str)
def test_exit_keeps_what_was_delivered(run: Runner, args: tuple[str, ...]) -> None:
    run.workers = 1
    run.write(test_a=MANY + "\ndef test_exit(): pytest.exit('enough', 5)\ndef test_never(): assert 0")
    outcome = run.same(*args)
    assert outcome.exit_code == 5
    assert outcome.counts == {"passed": 10}


def test_exit_with_results_of_several_workers(run: Runner) -> None:
    run.write(
        test_a="""
import os, time
from pathlib import Path
@pytest.mark.parametrize("i", range(3))
def test_first(i, worker_id): Path(f"first{i}").write_text(worker_id)
def test_waits_for_the_other(worker_id):
    while not os.path.exists("other"): time.sleep(0.01)
    Path("exit").write_text(worker_id)
    pytest.exit("enough", 5)
""",
        test_b="""
def test_1(): pass
def test_2(): open("other", "w").close()
""",
    )
    outcome = run.offload("--maxfail=9")
    assert outcome.exit_code == 5
    worker = (run.path / "exit").read_text()
    before = [path.name[-1] for path in run.path.glob("first[0-9]") if path.read_text() == worker]
    # Which tests the other worker had finished, or was still running, is not certain.
    assert {nodeid for nodeid, _ in outcome.outcomes} >= {f"test_a.py::test_first[{i}]" for i in before}


def test_after_a_failure_nothing_is_started_that_comes_later(run: Runner) -> None:
    run.write(
        conftest="""
def pytest_sessionfinish(session):
    if hasattr(session.config, "workerinput"):
        open("gone-" + session.config.workerinput["workerid"], "w").close()
""",
        test_a="""
import glob, os, time
def test_outlasts_the_other_worker():
    while not glob.glob("gone-*"): time.sleep(0.01)
""",
        test_b="""
import time
# The worker of the other file may have one of these waiting behind its test.
@pytest.mark.parametrize("i", range(5))
def test_earlier(i): pass
def test_fails(): assert 0
@pytest.mark.parametrize("i", range(400))
def test_later(i):
    time.sleep(0.02)
    open(f"ran-{i}", "w").close()
""",
    )
    outcome = run.offload("-x")
    assert outcome.counts == {"passed": 6, "failed": 1}
    assert len(list(run.path.glob("ran-*"))) < 400


def test_output_of_switched_off_capture_reaches_the_terminal(run: Runner) -> None:
    run.write(
        test_a="""
import os, sys
def test_capsys(capsys):
    print("captured by capsys")
    with capsys.disabled():
        print("straight" + " out")
        print("straight" + " err", file=sys.stderr)
    print("captured after")
def test_capfd(capfd):
    with capfd.disabled(): os.write(1, b"raw" + b" bytes\\n")
    assert capfd.readouterr().out == ""
@pytest.fixture
def loud(capsys):
    with capsys.disabled(): print("from the" + " fixture")
@pytest.mark.parametrize("i", range(4))
def test_loud(i, loud, capsys):
    with capsys.disabled(): print(f"test {i}")
"""
    )
    for start in ("fork", "spawn"):
        text = run.same(f"--offload-start-method={start}").text
        for said in ("straight out", "straight err", "raw bytes", *(f"test {i}" for i in range(4))):
            assert text.count(said) == 1, text
        assert text.count("from the fixture") == 4
        assert "captured" not in text


LATE = """
@pytest.fixture(scope="module")
def wide():
    yield
    raise ValueError("late")
def test_1(wide): pass
def test_2(wide): pass
"""


def both_with_elements(run: Runner, *args: str) -> list[tuple[tuple[object, ...], list[str]]]:
    """What comes of a run of plain pytest and of one of ours, each with the elements of its JUnit file."""

    def elements() -> list[str]:
        text = re.sub(r' (time|timestamp|hostname)="[^"]*"', "", (run.path / "out.xml").read_text())
        return sorted(re.split(r"(?=<testcase )|</testsuite>", text))

    return [(command("--junitxml=out.xml", *args).comparable(), elements()) for command in (run.plain, run.offload)]


@pytest.mark.parametrize("args", [(), ("-x",), ("--maxfail=3",), ("-o", "junit_family=xunit1")], ids=str)
def test_what_fails_late_counts(run: Runner, args: tuple[str, ...]) -> None:
    run.workers = 1
    run.write(test_a=LATE, test_b=MANY)
    plain, ours = both_with_elements(run, *args)
    assert plain == ours
    assert ours[0][0] == 1


@pytest.mark.parametrize("mark", ["", "xfail", "xfail(strict=True)"])
@pytest.mark.parametrize("body", ["pass", "assert 0", "pytest.skip('on purpose')"])
def test_what_fails_late_is_in_the_element_that_plain_pytest_puts_it_in(run: Runner, mark: str, body: str) -> None:
    run.workers = 1
    decorator = f"@pytest.mark.{mark}\n" if mark else ""
    run.write(test_a=LATE.replace("def test_2(wide): pass", f"{decorator}def test_2(wide): {body}"), test_b=MANY)
    plain, ours = both_with_elements(run)
    assert plain == ours


@pytest.mark.parametrize("fails", [False, True])
def test_what_fails_late_is_in_the_report_of_offload(run: Runner, fails: bool) -> None:
    run.workers = 1
    run.write(test_a=LATE.replace("def test_2(wide): pass", f"def test_2(wide): assert not {fails}"), test_b=MANY)
    outcome = run.offload("--offload-junit=ours.xml")
    assert outcome.exit_code == 1
    root = ElementTree.parse(run.path / "ours.xml").getroot()
    broken = [case for case in root.iter("testcase") if len(case)]
    assert [case.get("name") for case in broken] == ["test_2"]
    (problem,) = broken[0]
    assert (problem.tag, "ValueError: late" in str(problem.text)) == ("failure" if fails else "error", True)
    assert (root.get("tests"), root.get("errors")) == ("12", "0" if fails else "1")
