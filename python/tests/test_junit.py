"""The report of `--junitxml`: each test once and under its name, whatever was tried again where."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest
from conftest import Runner

#: Tests that fail at first, in every phase, on whichever worker they run.
FAILS_AT_FIRST = """
import pathlib
def first(name):
    path = pathlib.Path(__file__).with_name("tried-" + name)
    tried = path.exists()
    path.touch()
    return not tried

@pytest.fixture
def sets_up(request):
    assert not first(request.node.name + "-setup")

@pytest.fixture
def tears_down(request):
    yield
    assert not first(request.node.name + "-teardown")

@pytest.mark.parametrize("number", range(3))
def test_call(request, number): assert not first(request.node.name)
@pytest.mark.parametrize("number", range(3))
def test_setup(sets_up, number): pass
@pytest.mark.parametrize("number", range(3))
def test_teardown(tears_down, number): pass
@pytest.mark.parametrize("number", range(3))
def test_call_and_teardown(request, tears_down, number): assert not first(request.node.name)
def test_always(tears_down): assert False
def test_passes(): pass
"""


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("mode", ["", "--offload-isolation=test"])
def test_each_test_is_there_once_whatever_was_tried_again(run: Runner, workers: int, mode: str) -> None:
    run.write(test_tried=FAILS_AT_FIRST, test_other="def test_other(): pass")
    run.workers = workers
    outcome = run.offload("--offload-retries=3", "--junitxml=report.xml", *([mode] if mode else []))
    assert outcome.exit_code == 1, outcome.text
    suite = ElementTree.parse(run.path / "report.xml").getroot()[0]
    cases = list(suite.iter("testcase"))
    names = Counter(f"{case.get('classname')}::{case.get('name')}" for case in cases)
    assert (len(names), set(names.values())) == (15, {1}), names
    broken = {case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None}
    assert broken == {"test_always"}
    assert suite.get("failures") == "1"
    elements = sum(len(case.findall("failure")) + len(case.findall("error")) for case in cases)
    assert int(suite.get("failures", "")) + int(suite.get("errors", "")) == elements


@pytest.mark.parametrize("collect", ["serial", "parallel"])
@pytest.mark.parametrize("args", [(), ("--continue-on-collection-errors",)], ids=str)
def test_our_own_report_has_what_could_not_be_collected(run: Runner, args: tuple[str, ...], collect: str) -> None:
    run.write(test_a="import nothing_of_that_name", test_b="def test_1(): pass")
    outcome = run.offload("--offload-junit=report.xml", f"--offload-collect={collect}", *args)
    assert outcome.exit_code == (1 if args else 2), outcome.text
    assert outcome.counts == ({"passed": 1, "errors": 1} if args else {"errors": 1}), outcome.text
    root = ElementTree.parse(run.path / "report.xml").getroot()
    (error,) = root.iter("error")
    assert root.get("errors") == "1"
    assert "nothing_of_that_name" in (error.text or "")


@pytest.mark.skipif(not hasattr(pytest, "Subtests"), reason="this pytest has no subtests")
@pytest.mark.parametrize("mode", ["worker", "test"])
def test_subtests_of_attempts_that_are_repeated_do_not_count(run: Runner, mode: str) -> None:
    run.write(
        test_a="""
import pathlib, unittest
class Case(unittest.TestCase):
    def test_case(self):
        tried = pathlib.Path(__file__).with_name("tried")
        for number in range(4):
            with self.subTest(number=number):
                assert number != 2 or tried.exists() or tried.touch()
"""
    )
    outcome = run.offload("--offload-retries=1", "-v", f"--offload-isolation={mode}")
    assert outcome.exit_code == 0, outcome.text
    counts = Counter(category for _, category in outcome.outcomes)
    assert counts == {"passed": 1, "rerun": 1, "subtests passed": 4}, outcome.text


def test_a_call_that_passed_in_an_attempt_that_is_repeated_does_not_count(run: Runner) -> None:
    run.write(test_tried=FAILS_AT_FIRST.replace("def test_always(tears_down): assert False", ""))
    outcome = run.offload("--offload-retries=3")
    assert (outcome.exit_code, outcome.counts) == (0, {"passed": 13, "rerun": 12}), outcome.text


#: A wide fixture whose teardown fails after each attempt, and a test whose attempts fail until the last one.
TORN_DOWN_TWICE = """
import pathlib, pytest
@pytest.fixture(scope="module")
def wide():
    yield
    assert 0, "torn down"
@pytest.mark.parametrize("fails", [{}])
def test_wide(wide, fails):
    tried = pathlib.Path(__file__).with_name("tried")
    first = not tried.exists()
    tried.touch()
    assert not (fails or first)
"""


@pytest.mark.parametrize(("fails", "elements"), [(False, 1), (True, 2)])
def test_what_several_attempts_left_standing_is_in_one_element(run: Runner, fails: bool, elements: int) -> None:
    run.write(test_a=TORN_DOWN_TWICE.format(fails))
    run.workers = 1
    outcome = run.offload("--offload-retries=1", "--junitxml=report.xml")
    assert (outcome.exit_code, outcome.counts["errors"]) == (1, 2), outcome.text
    suite = ElementTree.parse(run.path / "report.xml").getroot()[0]
    cases = list(suite.iter("testcase"))
    # A call that failed has an element of its own in plain pytest, too.
    assert len(cases) == elements
    assert len(cases[-1].findall("error")) == 2
    assert suite.get("errors") == "2"
