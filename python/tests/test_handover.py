"""What the controller sets up reaches the workers, in the order in which it does under pytest-xdist."""

from __future__ import annotations

import pytest
from conftest import START, Runner

CONFTEST = """
import os, time, uuid
RUN_ID = os.environ.setdefault("RUN_ID", uuid.uuid4().hex)

def log(what):
    with open("log", "a") as file:
        print(what, os.environ.get("FROM_CONFIGURE"), os.environ.get("FROM_START"), RUN_ID, file=file)

def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        os.environ["FROM_CONFIGURE"] = "1"
    log("configure " + ("worker" if hasattr(config, "workerinput") else "controller"))

def pytest_sessionstart(session):
    if not hasattr(session.config, "workerinput"):
        # Long enough for a worker that does not wait.
        time.sleep(0.2)
        open("made", "w").close()
        os.environ["FROM_START"] = "2"
        log("start controller")
        return
    assert os.path.exists("made")
    {worker}
    log("start worker")
"""
TEST = """
import os
from conftest import RUN_ID
def test_environment():
    assert (os.environ["FROM_CONFIGURE"], os.environ["FROM_START"], os.environ["RUN_ID"]) == ("1", "2", RUN_ID)
"""


def lines(run: Runner) -> list[str]:
    return (run.path / "log").read_text().splitlines()


@pytest.mark.parametrize("start", [(), *((start,) for start in START)], ids=str)
def test_the_controller_comes_first(run: Runner, start: tuple[str, ...]) -> None:
    run.write(conftest=CONFTEST.replace("{worker}", "pass"), test_a=TEST, test_b=TEST)
    for _ in range(2):
        (run.path / "made").unlink(missing_ok=True)
        (run.path / "log").unlink(missing_ok=True)
        outcome = run.offload(*start)
        assert outcome.exit_code == 0, outcome.text
        first, second, *others = lines(run)
        assert first.startswith("configure controller 1 None ")
        run_id = first.split()[-1]
        assert second == f"start controller 1 2 {run_id}"
        assert set(others) == {f"configure worker 1 2 {run_id}", f"start worker 1 2 {run_id}"}


@pytest.mark.parametrize("start", [(), START[1:]], ids=str)
def test_what_a_worker_does_once_by_its_name_it_does_once(run: Runner, start: tuple[str, ...]) -> None:
    worker = "os.mkdir('db_' + session.config.workerinput['workerid'])"
    run.write(conftest=CONFTEST.replace("{worker}", worker), test_a=TEST, test_b=TEST)
    for _ in range(2):
        for path in ("made", "log"):
            (run.path / path).unlink(missing_ok=True)
        for path in run.path.glob("db_*"):
            path.rmdir()
        outcome = run.offload(*start)
        assert outcome.exit_code == 0, outcome.text
        workers = [line for line in lines(run) if line.startswith("start worker")]
        assert len(workers) == len(list(run.path.glob("db_*"))) == 2


@pytest.mark.parametrize("start", START)
def test_what_a_worker_sets_up_by_its_name_in_pytest_configure(run: Runner, start: str) -> None:
    run.write(
        conftest="""
import os
def pytest_configure(config):
    if hasattr(config, "workerinput") and os.environ["FORK"] == "0":
        os.mkdir("db_" + config.workerinput["workerid"])
def pytest_unconfigure(config):
    if hasattr(config, "workerinput") and os.environ["FORK"] == "0":
        os.rmdir("db_" + config.workerinput["workerid"])
""",
        test_a=TEST.split("from conftest")[0] + "def test_a(): assert len(os.listdir('.')) > 2",
        test_b="def test_b(): pass",
    )
    run.monkeypatch.setenv("FORK", "1" if start == START[0] else "0")
    outcome = run.offload(start)
    assert outcome.exit_code == 0, outcome.text
    assert not list(run.path.glob("db_*"))


def test_a_worker_that_has_become_one_is_replaced_when_it_dies(run: Runner) -> None:
    run.write(
        conftest="def pytest_sessionstart(session): getattr(session.config, 'workerinput', {}).get('workerid')",
        test_a="import os\ndef test_dies(): os._exit(3)\n" + "".join(f"def test_{n}(): pass\n" for n in range(9)),
    )
    run.workers = 1
    outcome = run.offload()
    assert outcome.counts == {"failed": 1, "passed": 9}, outcome.text
    assert "CRASHED test_a.py::test_dies on gw0: " in outcome.text
    assert "exit code 3" in outcome.text
