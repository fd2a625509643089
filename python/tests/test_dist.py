"""`--offload-dist`: which tests run in one sandbox, as pytest-xdist documents its `--dist`."""

from __future__ import annotations

import collections
import importlib.util

import pytest
from conftest import MANY, Runner

RECORDING = """
import os, pathlib
@pytest.fixture(autouse=True)
def record(request, worker_id):
    yield
    line = f"{os.getpid()} {worker_id} {request.node.nodeid}\\n"
    with open(pathlib.Path(__file__).with_name("where"), "a") as file: file.write(line)
"""

# Long enough for all workers to be there before the first scope is done.
SCOPES = """
import time
@pytest.mark.parametrize("value", ["a", "b::c", "d"])
def test_function(value): time.sleep(0.02)
class TestOne:
    def test_a(self): time.sleep(0.02)
    def test_b(self): pass
    def test_c(self): pass
class TestTwo:
    def test_a(self): time.sleep(0.02)
    def test_b(self): pass
"""

GROUPS = """
import time
@pytest.mark.xdist_group("db")
def test_db(): time.sleep(0.02)
@pytest.mark.xdist_group(name="cache")
def test_cache(): pass
def test_free_a(): time.sleep(0.02)
def test_free_b(): pass
"""


def where(run: Runner) -> dict[str, tuple[str, list[str]]]:
    """By worker: the tests that it ran, in order."""
    tests: dict[str, list[str]] = collections.defaultdict(list)
    for line in (run.path / "where").read_text().splitlines():
        pid, worker, nodeid = line.split(" ", 2)
        tests[f"{pid} {worker}"].append(nodeid)
    return tests


def scopes_per_worker(run: Runner, scope_of) -> dict[str, set[str]]:
    workers: dict[str, set[str]] = collections.defaultdict(set)
    for worker, tests in where(run).items():
        for nodeid in tests:
            scope = scope_of(nodeid)
            if scope is not None:
                workers[scope].add(worker)
    return workers


def test_a_single_worker_takes_tests_in_their_order(run: Runner) -> None:
    test = "import time\n@pytest.mark.parametrize('n', range({}))\ndef test(n): time.sleep({})"
    files = {"test_a": test.format(2, 0), "test_b": test.format(30, 0), "test_c": test.format(5, 0)}
    run.write(conftest=RECORDING, **files, test_d=test.format(2, 0.2))
    run.workers = 1
    expected = [f"test_{name}.py::test[{n}]" for name, count in zip("abcd", (2, 30, 5, 2)) for n in range(count)]
    # The second run knows how long they take.
    for _ in range(2):
        run.offload()
        (tests,) = where(run).values()
        assert tests == expected
        (run.path / "where").unlink()


def write_scopes(run: Runner) -> None:
    run.workers = 4
    run.write(conftest=RECORDING, test_a=SCOPES, test_b=SCOPES, sub__test_c=SCOPES)


def test_loadfile_keeps_a_file_together_and_in_order(run: Runner) -> None:
    write_scopes(run)
    outcome = run.offload("--offload-dist=loadfile")
    assert outcome.counts == {"passed": 24}, outcome.text
    workers = scopes_per_worker(run, lambda nodeid: nodeid.split("::")[0])
    assert [len(found) for found in workers.values()] == [1] * 3, workers
    # Three files cannot keep four sandboxes busy.
    assert len(where(run)) == 3
    for tests in where(run).values():
        names = [nodeid.split("::", 1)[1] for nodeid in tests]
        assert names[3:] == [
            "TestOne::test_a",
            "TestOne::test_b",
            "TestOne::test_c",
            "TestTwo::test_a",
            "TestTwo::test_b",
        ]


def test_loadscope_keeps_classes_and_modules_together(run: Runner) -> None:
    write_scopes(run)
    outcome = run.offload("--offload-dist=loadscope")
    assert outcome.counts == {"passed": 24}, outcome.text
    workers = scopes_per_worker(run, lambda nodeid: nodeid.split("[")[0].rpartition("::")[0])
    assert [len(found) for found in workers.values()] == [1] * 9, workers
    assert len(where(run)) == 4


def test_loadgroup_keeps_groups_together_across_files(run: Runner) -> None:
    run.workers = 3
    run.write(conftest=RECORDING, test_a=GROUPS, test_b=GROUPS, test_c=GROUPS)
    outcome = run.offload("--offload-dist=loadgroup", "--strict-markers")
    assert outcome.counts == {"passed": 12}, outcome.text
    marked = {"test_db": "db", "test_cache": "cache"}
    workers = scopes_per_worker(run, lambda nodeid: marked.get(nodeid.split("::")[1]))
    assert {name: len(found) for name, found in workers.items()} == {"db": 1, "cache": 1}, workers


def test_what_is_left_of_a_scope_after_a_crash_stays_together(run: Runner) -> None:
    body = "import os\nimport time\n" + "\n".join(f"def test_{number}(): time.sleep(0.01)" for number in range(6))
    crash = body.replace("def test_2(): time.sleep(0.01)", "def test_2(): os._exit(1)")
    run.write(conftest=RECORDING, test_a=crash, test_b=body)
    outcome = run.offload("--offload-dist=loadfile")
    assert outcome.counts == {"passed": 11, "failed": 1}, outcome.text
    rest = [tests for tests in where(run).values() if "test_a.py::test_3" in tests]
    assert [[t for t in tests if t.startswith("test_a")] for tests in rest] == [
        [f"test_a.py::test_{n}" for n in (3, 4, 5)]
    ]


def test_every_dist_gives_the_results_of_plain_pytest(run: Runner) -> None:
    run.write(test_a=SCOPES, test_b=GROUPS + "def test_fails(): assert 0\n", test_c="def test_x(): pytest.skip('x')")
    plain = run.plain()
    for dist in ("load", "loadscope", "loadfile", "loadgroup"):
        assert run.offload(f"--offload-dist={dist}").comparable() == plain.comparable()


@pytest.mark.skipif(importlib.util.find_spec("xdist") is not None, reason="these options are xdist's own then")
def test_options_of_xdist_mean_the_same_where_it_is_not_installed(run: Runner) -> None:
    run.workers = 0
    (run.path / "pytest.ini").write_text("[pytest]\naddopts = -n 3 --dist loadfile\n")
    hook = "@pytest.hookimpl(optionalhook=True)\ndef pytest_xdist_auto_num_workers(config): return 4"
    run.write(conftest=hook, test_a=MANY)
    for args, said in (
        ((), "3 sandboxes of provider local (-n 3 --dist loadfile)"),
        (("-n2", "--dist=worksteal"), "2 sandboxes of provider local (-n 2 --dist worksteal)"),
        (("-n", "auto"), "4 sandboxes of provider local (-n auto --dist loadfile)"),
        (("--tx=2*popen", "-d", "--maxschedchunk=1", "--no-loadscope-reorder"), "3 sandboxes of provider local (-n 3"),
        (("--offload-parallel=1",), "1 sandbox of provider local"),
        (("-n0",), "offload: not used, because of -n 0"),
    ):
        outcome = run.offload(*args)
        assert said in outcome.text
        assert outcome.counts == {"passed": 6}
    refused = run.plain()
    assert refused.exit_code == 4
    assert "-n needs pytest-xdist, which is not installed, or --offload" in refused.errors
    assert "expected a number, auto or logical, not 'many'" in run.offload("-n", "many").errors


def test_environments_of_xdist_are_sandboxes(run: Runner) -> None:
    run.workers = 0
    (run.path / "pytest.ini").write_text("[pytest]\naddopts = --tx 3*popen\n")
    run.write(test_a="def test_uid(testrun_uid): assert testrun_uid == 'mine'")
    outcome = run.offload("-d", "--testrunuid=mine")
    assert "3 sandboxes of provider local (--tx 3*popen --dist load)" in outcome.text
    assert outcome.counts == {"passed": 1}


@pytest.mark.parametrize("most", [0, 2])
def test_a_run_ends_after_as_many_crashes_as_are_allowed(run: Runner, most: int) -> None:
    run.workers = 1
    run.write(test_a="import os\n" + "".join(f"def test_{n}(): os._exit(3)\n" for n in range(8)))
    outcome = run.offload(f"--max-worker-restart={most}")
    assert outcome.exit_code == 1, outcome.text
    assert outcome.counts == {"failed": most + 1}
    assert f"maximum crashed workers reached: {most} (--max-worker-restart)" in outcome.text
    assert "expected a number from 0, not 'few'" in run.offload("--max-worker-restart=few").errors


def test_what_is_typed_turns_off_what_is_configured(run: Runner) -> None:
    (run.path / "pytest.ini").write_text("[pytest]\naddopts = --offload\n")
    run.write(test_a=MANY)
    assert "offload:" in run.plain().text
    outcome = run.plain("--no-offload")
    assert outcome.counts == {"passed": 6}
    assert "offload:" not in outcome.text
