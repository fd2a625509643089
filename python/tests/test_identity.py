"""A test that is reported has run: under its name, with its values, and no other in its place."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest
from conftest import START, Outcome, Runner

#: What writes down that a test has really run. Slow enough for the other worker to help.
LOG = """
import os, time
def ran(name):
    time.sleep(0.02)
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "log"), "a") as file:
        file.write(f"{name}\\n")
"""

CLASSES = LOG + "class Base: pass\n" + "".join(f"class C{i}(Base): pass\n" for i in range(30))

#: Files whose tests are others, or come in another order, whenever they are collected.
UNSTABLE = {
    "classes in a set": CLASSES
    + """
@pytest.mark.parametrize("cls", set(Base.__subclasses__()))
def test_of(request, cls): ran(f"{request.node.name} {cls.__name__}")
""",
    "objects with the same ids": CLASSES
    + """
class Case:
    def __init__(self, number): self.number = number
@pytest.mark.parametrize("case", {Case(number) for number in range(30)})
def test_of(request, case): ran(f"{request.node.name} {case.number}")
""",
    "random ids": LOG
    + """
import uuid
@pytest.mark.parametrize("name", [uuid.uuid4().hex for _ in range(30)])
def test_of(request, name): ran(f"{request.node.name} {name}")
""",
    "the process": LOG
    + """
@pytest.mark.parametrize("number", range(30 + os.getpid() % 7))
def test_of(request, number): ran(f"{request.node.name} {number}")
""",
    "the values and not the ids": LOG
    + """
@pytest.mark.parametrize("number", [os.getpid() * 100 + i for i in range(30)], ids=range(30))
def test_of(request, number): ran(f"{request.node.name} {number % 100}")
""",
}


#: Has the report tell what ran, where no file comes back from.
PRINTED = """
import os, time
def ran(name):
    time.sleep(0.02)
    print("RAN", name)
"""
#: Options with which the report tells.
TELL = ("--junitxml=report.xml", "-ojunit_logging=system-out")


def write_unstable(run: Runner, kind: str) -> None:
    """Writes a file of this kind for sandboxes that are somewhere else, and one beside it."""
    run.write(test_unstable=UNSTABLE[kind].replace(LOG, PRINTED), test_other="def test_other(): pass")


def check_that_what_passed_ran(run: Runner, outcome: Outcome) -> int:
    """Asserts that each test that passed says itself that it ran, with a value of its own; returns how many did."""
    passed = [nodeid.split("::")[1] for nodeid, category in outcome.outcomes if category == "passed"]
    ran = {}
    for case in ElementTree.parse(run.path / "report.xml").iter("testcase"):
        said = [line for line in (case.findtext("system-out") or "").splitlines() if line.startswith("RAN ")]
        if said:
            assert len(said) == 1, "it ran more than once"
            ran[case.get("name")] = said[0]
    assert sorted(passed) == sorted(["test_other", *ran]), outcome.text
    names = {name: said.split()[1] for name, said in ran.items()}
    assert names == {name: name for name in ran}
    assert len({said.split()[2] for said in ran.values()}) == len(ran), "a value ran twice"
    return len(ran)


@pytest.mark.parametrize("mode", ["", "--offload-isolation=test", "--offload-start-method=spawn"])
@pytest.mark.parametrize("kind", UNSTABLE)
def test_what_is_reported_has_run_where_collections_differ(run: Runner, kind: str, mode: str) -> None:
    run.write(test_unstable=UNSTABLE[kind], test_other="def test_other(): pass")
    outcome = run.offload(*([mode] if mode else []))
    assert outcome.exit_code == 0, outcome.text
    reported = {nodeid.split("::")[1] for nodeid, category in outcome.outcomes if category == "passed"}
    reported.discard("test_other")
    lines = (run.path / "log").read_text().splitlines()
    assert {line.split()[0] for line in lines} == reported
    assert max(Counter(lines).values()) == 1
    assert max(Counter(line.split()[1] for line in lines).values()) == 1, "a value ran twice"


def test_tests_whose_worker_is_gone_are_not_run_and_not_passed(run: Runner) -> None:
    dies = "\ndef test_dies(): os._exit(3)\n"
    run.write(test_unstable=LOG + dies + UNSTABLE["random ids"], test_other="def test_other(): pass")
    outcome = run.offload()
    assert outcome.exit_code == 1, outcome.text
    assert "not run: the process that collected this test is gone" in outcome.text
    passed = {nodeid.split("::")[1] for nodeid, category in outcome.outcomes if category == "passed"} - {"test_other"}
    log = run.path / "log"
    assert (
        {line.split()[0] for line in log.read_text().splitlines() if log.exists()} == passed
        if log.exists()
        else (not passed)
    )


LEAKS = {
    "variable": (
        "import os\n@pytest.mark.parametrize('n', range(8))\ndef test_leaks(n):\n"
        " import time; time.sleep(0.01); os.environ['LEAKED'] = '1'\n",
        "import os\nLEAKED = bool(os.environ.get('LEAKED'))\n"
        "@pytest.mark.parametrize('value', [LEAKED] * 30, ids=range(30))\n"
        "def test_sees(value):\n import time; time.sleep(0.02); assert value\n",
    ),
    "directory": (
        "import os\n@pytest.mark.parametrize('n', range(8))\ndef test_leaks(n):\n"
        " import time; time.sleep(0.01); os.chdir('/')\n",
        "VALUES = open('values.txt').read().split()\n"
        "@pytest.mark.parametrize('value', VALUES)\n"
        "def test_sees(value):\n import time; time.sleep(0.02)\n",
    ),
}


#: What tests of one file leave behind, and what another file sees of it when it is imported: nothing, in plain pytest.
TRY = "try: import {0}; SEEN = 1\nexcept ImportError: SEEN = None"
CAPTURED = {
    "variable": ("import os; os.environ['MODE'] = 'other'", "import os; SEEN = os.environ.get('MODE')"),
    "removed variable": ("import os; os.environ.pop('MODE', None)", "import os; SEEN = 'MODE' not in os.environ"),
    "directory": ("import os; os.chdir('/')", "import os; SEEN = not os.path.exists('test_a.py')"),
    "path": ("import sys; sys.path.insert(0, 'elsewhere')", TRY.format("hidden")),
    "arguments": ("import sys; sys.argv[:] = ['other']", "import sys; SEEN = sys.argv == ['other']"),
    "setting": ("import settings; settings.MODE = 'other'", "from settings import MODE; SEEN = MODE"),
    "replaced module": ("import sys; sys.modules['settings'] = 1", "import settings; SEEN = settings == 1"),
    "pretended module": ("import sys; sys.modules['pretended'] = 1", TRY.format("pretended")),
}


@pytest.mark.parametrize("start", START)
@pytest.mark.parametrize("kind", CAPTURED)
def test_a_file_that_is_collected_late_sees_nothing_of_what_tests_left(run: Runner, kind: str, start: str) -> None:
    leaves, sees = CAPTURED[kind]
    if kind == "removed variable":
        run.monkeypatch.setenv("MODE", "some")
    (run.path / "elsewhere").mkdir()
    (run.path / "elsewhere/hidden.py").touch()
    run.write(
        settings="MODE = None",
        conftest="import settings",
        test_a="import time\n@pytest.mark.parametrize('n', range(8))\n"
        f"def test_leaves(n):\n    time.sleep(0.01)\n    {leaves}\n",
        test_b=f"{sees}\nimport os, time\nos.environ['TO_STAY'] = '1'\n"
        "@pytest.mark.parametrize('n', range(40))\ndef test_sees(n):\n    time.sleep(0.02)\n"
        "    assert not SEEN\n    assert os.environ['TO_STAY'] == '1'\n",
    )
    outcome = run.offload(start)
    assert outcome.exit_code == 0, outcome.text


@pytest.mark.parametrize("kind", LEAKS)
def test_what_a_test_leaves_behind_changes_no_other_files_tests(run: Runner, kind: str) -> None:
    leaks, sees = LEAKS[kind]
    (run.path / "values.txt").write_text(" ".join(map(str, range(40))))
    run.write(test_a=leaks, test_b=sees)
    run.same()


@pytest.mark.parametrize("kind", UNSTABLE)
def test_fresh_processes_leave_other_tests_to_the_one_that_collected(run: Runner, kind: str) -> None:
    run.workers = 3
    run.write(test_unstable=UNSTABLE[kind], test_other="def test_other(): pass")
    outcome = run.offload("--offload-start-method=spawn", "--offload-collect=serial")
    passed = {nodeid for nodeid, category in outcome.outcomes if category == "passed"}
    ran = {line.split()[0] for line in (run.path / "log").read_text().splitlines()}
    assert passed == {"test_other.py::test_other"} | {f"test_unstable.py::{name}" for name in ran}
    assert outcome.exit_code == 0, outcome.text
