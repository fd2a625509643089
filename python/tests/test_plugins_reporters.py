"""Plugins that replace pytest's terminal reporter, or write reports of their own, from what workers say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import START, Runner

FEATURE = """
Feature: Sums
  Scenario: Add
    Given a number 1
    When I add 2
    Then I get 3
  Scenario: Fail
    Given a number 1
    When I add 2
    Then I get 4
"""
STEPS = """
from pytest_bdd import scenarios, given, when, then, parsers
scenarios("sums.feature")
@given(parsers.parse("a number {n:d}"), target_fixture="x")
def a_number(n): return [n]
@when(parsers.parse("I add {n:d}"))
def add(x, n): x[0] += n
@then(parsers.parse("I get {n:d}"))
def get(x, n): assert x[0] == n
def test_plain(): pass
"""


@pytest.fixture
def bdd(run: Runner) -> Runner:
    run.load("pytest_bdd.plugin")
    (run.path / "sums.feature").write_text(FEATURE)
    run.write(test_sums=STEPS)
    return run


@pytest.mark.parametrize("mode", [*START, "--offload-isolation=test"])
def test_the_gherkin_reporter_shows_scenarios(bdd: Runner, mode: str) -> None:
    outcome = bdd.offload(mode, "--gherkin-terminal-reporter", "-vv")
    assert outcome.counts == {"passed": 2, "failed": 1}, outcome.text + outcome.errors
    steps = "Scenario: {}\n        Given a number 1\n        When I add 2\n        Then I get {}\n    {}"
    assert steps.format("Add", 3, "PASSED") in outcome.text
    assert steps.format("Fail", 4, "FAILED") in outcome.text


def timeless(value: Any) -> Any:
    """The report without what differs from run to run."""
    if isinstance(value, dict):
        return {key: timeless(member) for key, member in value.items() if key not in ("duration", "error_message")}
    return sorted(map(timeless, value), key=str) if isinstance(value, list) else value


@pytest.mark.parametrize("mode", [*START, "--offload-isolation=test", "--offload-retries=1"])
def test_the_cucumber_report_is_that_of_plain_pytest(bdd: Runner, mode: str) -> None:
    reports = []
    for run in (bdd.plain, lambda *args: bdd.offload(mode, *args)):
        outcome = run("--cucumberjson=report.json")
        assert outcome.counts["failed"] == 1, outcome.text
        reports.append(timeless(json.loads((bdd.path / "report.json").read_text())))
    assert len(reports[0][0]["elements"]) == 2
    assert reports[0] == reports[1]
