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
    # What is said to this plugin itself comes first.
    assert "offload: 2 sandboxes of provider local (-n 2 --dist loadfile)" in offload.text
    run.workers = 0
    for args, said in (
        ((), "2 sandboxes of provider local (-n 2 --dist loadfile)"),
        (("-n3", "--dist=load"), "3 sandboxes of provider local (-n 3 --dist load)"),
        (("-n", "auto", "--maxprocesses=1"), "1 sandbox of provider local (-n auto --dist loadfile)"),
    ):
        outcome = run.offload(*args)
        assert said in outcome.text
        assert outcome.comparable() == plain.comparable()
    run.monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "3")
    assert "3 sandboxes of provider local (-n auto" in run.offload("-n", "auto").text
    assert "offload: not used, because of -n 0" in run.offload("-n0").text
    refused = run.offload("--dist=each")
    assert refused.exit_code == 4
    assert "--dist=each runs every test in every environment" in refused.errors
    refused = run.offload("-n1", "--tx=ssh=somewhere")
    assert refused.exit_code in (0, 1)


def test_a_conftest_says_how_many_workers_auto_is(run: Runner) -> None:
    run.load("xdist.plugin")
    run.workers = 0
    run.write(conftest="def pytest_xdist_auto_num_workers(config): return 3", test_a=MANY)
    outcome = run.offload("-n", "auto")
    assert outcome.exit_code == 0, outcome.text
    assert "offload: 3 sandboxes of provider local (-n auto)" in outcome.text


CONTROLLER = """
import pytest
def pytest_configure(config):
    with open("options", "a") as file:
        role = "worker" if hasattr(config, "workerinput") else "controller"
        file.write(f"{role} {config.option.dist} {config.option.numprocesses}\\n")
"""


@pytest.mark.parametrize("xdist", [(), ("xdist.plugin",)], ids=["alone", "beside xdist"])
def test_the_controller_knows_that_it_is_one(run: Runner, xdist: tuple[str, ...]) -> None:
    run.load(*xdist)
    run.write(
        conftest=CONTROLLER,
        test_a=MANY,
    )
    assert run.offload("--offload-dist=loadfile").exit_code == 0
    lines = set((run.path / "options").read_text().splitlines())
    assert lines == {"controller loadfile 2", "worker no None"}


def test_groups_of_several_marks_are_one(run: Runner) -> None:
    run.load("xdist.plugin")
    run.write(
        test_a="""
import os
@pytest.mark.xdist_group("b")
class TestA:
    @pytest.mark.xdist_group("a")
    def test_1(self): open("a_b", "a").write(os.environ["PYTEST_XDIST_WORKER"] + " ")
    @pytest.mark.xdist_group("a")
    def test_2(self): open("a_b", "a").write(os.environ["PYTEST_XDIST_WORKER"] + " ")
    def test_3(self): pass
""",
        test_b="""
import os
@pytest.mark.xdist_group("a")
@pytest.mark.xdist_group("b")
def test_4(): open("a_b", "a").write(os.environ["PYTEST_XDIST_WORKER"] + " ")
""",
    )
    assert run.offload("--offload-dist=loadgroup").exit_code == 0
    workers = (run.path / "a_b").read_text().split()
    assert len(workers) == 3
    assert len(set(workers)) == 1


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
        expected = (None, "no") if hasattr(config, "workerinput") else (2, "load")
        assert (config.option.numprocesses, config.getoption("dist")) == expected
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


HOOKS = """
class Hooks:
    def pytest_xdist_setupnodes(self, config, specs):
        self.note("setupnodes", len(specs))
    def pytest_xdist_newgateway(self, gateway):
        self.note("newgateway", gateway.id)
    def pytest_testnodeready(self, node):
        self.note("ready", node.gateway.id)
    def pytest_xdist_node_collection_finished(self, node, ids):
        self.note("collected", node.gateway.id, *ids)
    def pytest_runtest_logreport(self, report):
        assert report.worker_id == report.node.workerinput["workerid"]
        assert report.testrun_uid == report.node.workerinput["testrunuid"]
    def pytest_handlecrashitem(self, crashitem, report, sched):
        self.note("crash", crashitem)
    def note(self, *what):
        with open("hooks", "a") as file:
            print(*what, file=file)
def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Hooks())
"""


@pytest.mark.parametrize("xdist", [(), ("xdist.plugin",)], ids=["alone", "beside xdist"])
def test_hooks_of_xdist_are_called(run: Runner, xdist: tuple[str, ...]) -> None:
    run.load(*xdist)
    run.workers = 1
    run.write(conftest=HOOKS, test_a="import os\ndef test_dies(): os._exit(3)\n" + MANY)
    assert run.offload().exit_code == 1
    said = (run.path / "hooks").read_text().splitlines()
    ids = ["test_a.py::test_dies", *(f"test_a.py::test_{number}" for number in range(6))]
    assert said[:4] == ["setupnodes 1", "newgateway gw0", "ready gw0", f"collected gw0 {' '.join(ids)}"]
    assert "crash test_a.py::test_dies" in said


@pytest.mark.parametrize("mode", [*START, "--offload-collect=serial"])
def test_every_worker_is_said_to_find_all_tests(run: Runner, mode: str) -> None:
    run.load()
    run.write(conftest=HOOKS, test_a=MANY, test_b="def test_last(): pass")
    assert run.offload(mode, "-k", "test_last or test_3").exit_code == 0
    said = [line.split() for line in (run.path / "hooks").read_text().splitlines()]
    ids = ["test_a.py::test_3", "test_b.py::test_last"]
    assert [words for words in said if words[0] == "collected"] == [["collected", gw, *ids] for gw in ("gw0", "gw1")]


def test_reruns_repeat_crashes(run: Runner) -> None:
    run.load("pytest_rerunfailures", "xdist.plugin")
    run.write(
        test_a="""
import os
def test_dies_once():
    if not os.path.exists("died"):
        open("died", "w").close()
        os._exit(3)
def test_dies(): os._exit(4)
def test_fails_after_a_crash():
    if not os.path.exists("crashed"):
        open("crashed", "w").close()
        os._exit(3)
    assert 0
""",
        test_b=MANY,
    )
    outcome = run.offload("--reruns=2")
    assert outcome.counts["failed"] == 2, outcome.text
    assert outcome.counts["passed"] == 7, outcome.text
    assert [category for nodeid, category in outcome.outcomes if nodeid.endswith("test_dies")].count("rerun") == 2
    assert [category for nodeid, category in outcome.outcomes if nodeid.endswith("dies_once")].count("rerun") == 1


@pytest.mark.parametrize("xdist", [(), ("xdist.plugin",)], ids=["alone", "beside xdist"])
@pytest.mark.parametrize("mode", [*START, "--offload-isolation=test"])
@pytest.mark.parametrize("option", ["", "--reruns=1"])
def test_a_mark_of_rerunfailures_repeats_crashes(run: Runner, mode: str, option: str, xdist: tuple[str, ...]) -> None:
    run.load("pytest_rerunfailures", *xdist)
    run.write(
        test_a="""
import os
def die(name, times):
    with open(name, "a+") as file:
        file.write("x")
        file.seek(0)
        if len(file.read()) <= times: os._exit(3)
@pytest.mark.flaky(reruns=2)
def test_third(): die("third", 2)
@pytest.mark.flaky(reruns=2)
def test_always(): die("always", 9)
@pytest.mark.flaky(reruns=0)
def test_never(): die("never", 9)
def test_unmarked(): die("unmarked", 9)
""",
        test_b=MANY,
    )
    outcome = run.offload(mode, *([option] if option else []))
    ran = {name: len((run.path / name).read_text()) for name in ("third", "always", "never", "unmarked")}
    assert ran == {"third": 3, "always": 3, "never": 1, "unmarked": 2 if option else 1}, outcome.text
    assert outcome.counts["failed"] == 3
    assert outcome.counts["rerun"] == (5 if option else 4)


@pytest.mark.parametrize("start", START)
def test_pytest_retry(run: Runner, start: str) -> None:
    run.load("pytest_retry.retry_plugin")
    run.write(
        test_a="""
import os
@pytest.mark.flaky(retries=2)
def test_flaky():
    if not os.path.exists("seen"):
        open("seen", "w").close()
        assert 0
""",
        test_b=MANY,
    )
    plain = run.plain()
    (run.path / "seen").unlink()
    outcome = run.offload(start)
    assert outcome.comparable() == plain.comparable(), outcome.text
    assert outcome.counts["retried"] == 1
