"""What is written for pytest-xdist, its hooks and what they pass to workers, works with `--offload`."""

from __future__ import annotations

import pytest
from conftest import MANY, START, Runner


def test_xdist_beside_it(run: Runner) -> None:
    run.load("xdist.plugin", "xdist.looponfail")
    (run.path / "pytest.ini").write_text("[pytest]\naddopts = -n2 --dist=loadfile --max-worker-restart=3\n")
    run.write(
        test_a="""
import xdist
@pytest.mark.parametrize("i", range(4))
def test_worker(i, worker_id, testrun_uid, request):
    assert xdist.is_xdist_worker(request)
    assert not xdist.is_xdist_controller(request)
    assert xdist.get_xdist_worker_id(request) == worker_id == request.config.workerinput["workerid"]
    assert testrun_uid == request.config.workerinput["testrunuid"]
def test_fails(): assert 0
""",
        test_b=MANY,
    )
    plain = run.plain()
    offload = run.offload()
    assert offload.comparable() == plain.comparable()
    assert "offload: 2 sandboxes of provider local, instead of -n 2 from the configuration" in offload.text
    typed = run.offload("-n2")
    assert typed.exit_code == 4
    assert "-n 2 and --offload are two ways of running tests in parallel" in typed.errors


NODES = """
import pytest
VALUES = {"tuple": (1, ("x",)), "set": {1, 2}, "bytes": b"\\xff\\x00", "dict": {1: [None, 2.5, True]}}
class Controller:
    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node):
        node.workerinput.update(VALUES, number=int(node.workerinput["workerid"][2:]))
    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error):
        output = getattr(node, "workeroutput", None)
        with open("down", "a") as file:
            file.write(f"{node.gateway.id} {output is not None and output['values'] == VALUES} {bool(error)}\\n")
def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Controller())
def pytest_sessionfinish(session):
    if hasattr(session.config, "workerinput"):
        session.config.workeroutput["values"] = VALUES
"""


@pytest.mark.parametrize("start", START)
@pytest.mark.parametrize("xdist", [(), ("xdist.plugin",)], ids=["alone", "beside xdist"])
def test_what_is_passed_to_workers_and_back(run: Runner, start: str, xdist: tuple[str, ...]) -> None:
    run.load(*xdist)
    run.workers = 1
    run.write(
        conftest=NODES,
        test_a="""
import os
from conftest import VALUES
def check(config):
    given = config.workerinput
    assert {name: given[name] for name in VALUES} == VALUES
    assert f"gw{given['number']}" == given["workerid"]
def test_1(pytestconfig): check(pytestconfig)
def test_crash(): os._exit(3)
def test_2(pytestconfig): check(pytestconfig)
""",
    )
    outcome = run.offload(start)
    assert outcome.counts == {"failed": 1, "passed": 2}, outcome.text
    assert (run.path / "down").read_text().splitlines() == ["gw0 False True", "gw1 True False"]


def test_what_differs_between_workers_is_not_shared_by_forks(run: Runner) -> None:
    run.load()
    run.write(
        conftest=NODES.replace(
            "config.pluginmanager.register(Controller())\n",
            "config.pluginmanager.register(Controller())\n"
            "    else:\n        config.mine = config.workerinput['number']\n",
        ),
        test_a="@pytest.mark.parametrize('i', range(8))\n"
        "def test_a(i, pytestconfig): assert f'gw{pytestconfig.mine}' == pytestconfig.workerinput['workerid']",
    )
    outcome = run.offload()
    assert outcome.counts == {"passed": 8}, outcome.text
    assert "config.workerinput['number'], before there are workers" in outcome.text


def test_what_cannot_be_passed_to_workers_is_named(run: Runner) -> None:
    run.load()
    run.write(conftest=NODES.replace('{"tuple": (1, ("x",)),', '{"tuple": object(),'), test_a=MANY)
    outcome = run.offload()
    assert outcome.exit_code == 3
    assert "workerinput['tuple'] is of type object, which cannot be sent to a worker" in outcome.text + outcome.errors


XDIST_ASKED_FOR = """
class ForWorkers:
    def pytest_configure_node(self, node):
        node.workerinput["given"] = "given"
    def pytest_testnodedown(self, node, error):
        open("down", "a").write(node.workerinput["given"] + " ")
def pytest_configure(config):
    if config.pluginmanager.hasplugin("xdist"):
        assert (config.option.numprocesses, config.getoption("dist")) == (None, "no")
        config.pluginmanager.register(ForWorkers())
    if hasattr(config, "workerinput"):
        config.given = config.workerinput["given"]
"""


@pytest.mark.parametrize("start", START)
def test_a_plugin_that_asks_for_xdist_is_told_the_same_in_every_process(run: Runner, start: str) -> None:
    run.load()
    run.write(
        conftest=XDIST_ASKED_FOR,
        test_a="def test_a(pytestconfig): assert pytestconfig.given == 'given'\ndef test_b(): pass",
    )
    outcome = run.offload(start)
    assert outcome.exit_code == 0, outcome.text + outcome.errors
    assert set((run.path / "down").read_text().split()) == {"given"}
