"""Workers are forked only where nobody can tell."""

from __future__ import annotations

import pytest
from conftest import Runner

TESTS = "\n".join(f"def test_{i}(worker_id): assert worker_id in ('gw0', 'gw1')" for i in range(6))

OBSERVERS = {
    "environment": "import os\nNAME = os.environ.get('PYTEST_XDIST_WORKER')",
    "getenv": "import os\nNAME = os.getenv('PYTEST_XDIST_WORKER')",
    "workerinput": "def pytest_configure(config):\n    getattr(config, 'workerinput', {}).get('workerid')",
    "thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
    "listener": "import socket\nsocket_ = socket.create_server(('127.0.0.1', 0))",
    "connection": "import socket\nclient = socket.socket(type=socket.SOCK_DGRAM)\nclient.connect(('127.0.0.1', 9))",
    "process": "import subprocess\nprocess = subprocess.Popen(['sleep', '20'])",
}

INNOCENT = {
    "membership": "import os\nINSIDE = 'PYTEST_XDIST_WORKER' in os.environ",
    "copy": "import os\nENV = dict(os.environ)\nENV2 = os.environ.copy()\nENV3 = {**os.environ}",
    "other variables": "import os\nPATH = os.environ['PATH']",
    "pair of sockets": "import socket\npair = socket.socketpair()",
    "event loop": "import asyncio\nloop = asyncio.new_event_loop()",
    "hasattr": "def pytest_configure(config):\n    config.inside = hasattr(config, 'workerinput')",
}


@pytest.mark.parametrize("what", OBSERVERS)
def test_workers_are_started_fresh(run: Runner, what: str) -> None:
    run.write(conftest=OBSERVERS[what], test_a=TESTS, test_b=TESTS)
    outcome = run.offload()
    assert outcome.counts == {"passed": 12}, outcome.text + outcome.errors
    assert "workers are started fresh (" in outcome.text


def test_a_project_whose_workers_are_started_fresh_is_remembered(run: Runner) -> None:
    conftest = """
def pytest_configure(config):
    if hasattr(config, "workerinput"):
        config.workerinput["workerid"]
def pytest_unconfigure(config):
    with open("ends", "a") as file:
        print(getattr(config, "workerinput", {}).get("workerid", "controller"), file=file)
"""
    run.write(conftest=conftest, test_a=TESTS, test_b=TESTS)
    # Orders that come out of sets are those of the template that stays.
    run.write(test_b="@pytest.mark.parametrize('x', {f'x{i}' for i in range(40)})\ndef test_b(x): pass")
    ends = run.path / "ends"
    for _ in range(2):
        outcome = run.offload()
        assert outcome.counts == {"passed": 46}, outcome.text + outcome.errors
        assert "workers are started fresh (" in outcome.text
        assert sorted(ends.read_text().split()) == ["controller", "gw0", "gw1"]
        ends.unlink()
    (run.path / "conftest.py").write_text("")
    for _ in range(2):
        assert "workers are forked" in run.offload().text


@pytest.mark.parametrize("what", INNOCENT)
def test_workers_are_forked(run: Runner, what: str) -> None:
    run.write(conftest=INNOCENT[what], test_a=TESTS)
    outcome = run.offload()
    assert outcome.counts == {"passed": 6}
    assert "workers are forked" in outcome.text


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_nothing_is_left_open_that_a_strict_project_would_hear_of(run: Runner, start: str) -> None:
    (run.path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    run.write(
        test_a="import gc\n" + TESTS,
        test_b="import gc\n@pytest.mark.parametrize('i', range(8))\ndef test_b(i): gc.collect()",
    )
    outcome = run.offload(f"--offload-start-method={start}")
    assert outcome.counts == {"passed": 14}, outcome.text


@pytest.mark.parametrize("collect", ["serial", "parallel"])
def test_spawn_gives_what_plain_pytest_gives(run: Runner, collect: str) -> None:
    run.write(
        conftest="def pytest_collection_modifyitems(items): items[:] = [i for i in items if '3' not in i.name]",
        test_a="\n".join(f"def test_{i}(): assert {i} != 2" for i in range(6)),
        test_b="@pytest.mark.parametrize('x', 'abc')\ndef test_b(x): assert x != 'b'",
        sub__test_c="raise ValueError",
    )
    run.same("--offload-start-method=spawn", f"--offload-collect={collect}", "--continue-on-collection-errors")


def test_fresh_workers_collect_in_the_same_order(run: Runner) -> None:
    run.write(
        test_a="@pytest.mark.parametrize('x', {f'x{i}' for i in range(40)})\ndef test_a(x): pass",
        test_b="import os\ndef test_b(): assert 'PYTHONHASHSEED' not in os.environ",
    )
    outcome = run.offload("--offload-start-method=spawn", "--offload-collect=serial")
    assert outcome.counts == {"passed": 41}, outcome.text


# The template has collected by then, and goes on as the first worker.
CANNOT_BEGIN = """
import os, pytest
def pytest_collection_finish(session):
    if getattr(session.config, "workerinput", {}).get("workerid") and os.path.exists("begun"):
        raise ValueError("not in " + "this process")
    open("begun", "w").close()
"""


def test_a_worker_that_cannot_begin_says_why(run: Runner) -> None:
    run.write(conftest=CANNOT_BEGIN, test_a=TESTS)
    outcome = run.offload("--offload-start-method=spawn")
    # The first one has all tests.
    assert (outcome.exit_code, outcome.counts) == (0, {"passed": 6}), outcome.text
    assert "LOST gw1" in outcome.text
    assert "not in this process" in outcome.text


def test_workers_that_cannot_begin_end_the_run(run: Runner) -> None:
    run.write(conftest=CANNOT_BEGIN, test_a="import os\ndef test_crash(): os._exit(1)\n" + TESTS)
    outcome = run.offload("--offload-start-method=spawn")
    assert outcome.exit_code == 3, outcome.text
    assert "not in this process" in outcome.text


def test_every_worker_has_its_own_identity_when_started_fresh(run: Runner) -> None:
    run.write(
        conftest="import os\nNAME = os.environ.get('PYTEST_XDIST_WORKER')",
        test_a="import conftest, pytest\n@pytest.mark.parametrize('i', range(8))\n"
        "def test_a(i, worker_id): assert conftest.NAME == worker_id",
    )
    assert run.offload().counts == {"passed": 8}


def test_a_plugin_that_breaks_in_the_template_only_is_told(run: Runner) -> None:
    run.write(test_a="def test(): pass\n")
    (run.path / "brittle.py").write_text(
        "def pytest_addoption(parser, pluginmanager):\n"
        "    if pluginmanager.hasplugin('offload-worker'):\n"
        "        raise ValueError('not in a worker')\n"
    )
    (run.path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    outcome = run.offload("-p", "brittle")
    assert outcome.exit_code == 3
    assert "ValueError: not in a worker" in outcome.text + outcome.errors
