"""From the orchestrator's events to the objects that pytest's hooks take."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import pytest

from .nodes import WorkerNode
from .worker import bdd
from .worker.channel import untagged

Phase = Literal["setup", "call", "teardown"]
PHASES: tuple[Phase, Phase, Phase] = ("setup", "call", "teardown")


class Attempt(NamedTuple):
    """One execution of one test."""

    key: int
    nodeid: str
    path: str
    line: int | None
    domain: str
    worker: str
    number: int
    will_retry: bool

    @property
    def location(self) -> tuple[str, int | None, str]:
        return (self.path, self.line, self.domain)


def passed(attempt: Attempt, durations: Sequence[float], node: WorkerNode) -> list[pytest.TestReport]:
    """The reports of a test that passed and had nothing to say."""
    start = time.time() - sum(durations)
    first = _report(attempt, PHASES[0], "passed", None, durations[0], start)
    _mark(first, attempt, node)
    reports = [first]
    # Most tests pass, so this is done most often: the constructor takes the name of the test apart each time.
    for when, duration in zip(PHASES[1:], durations[1:]):
        report = pytest.TestReport.__new__(pytest.TestReport)
        start = reports[-1].stop
        report.__dict__.update(
            first.__dict__,
            when=when,
            duration=duration,
            start=start,
            stop=start + duration,
            keywords=dict(first.keywords),
            sections=[],
            user_properties=[],
        )
        reports.append(report)
    return reports


def crashed(
    attempt: Attempt,
    message: str,
    details: str,
    duration: float,
    sections: list[tuple[str, str]],
    node: WorkerNode,
) -> list[pytest.TestReport]:
    """The reports of a test in which its process died, with what it had written until then."""
    stacks = details.rstrip()
    text = f"{message}\n\n{stacks}" if stacks else message
    now = time.time()
    reports = [
        _report(attempt, "call", "failed", text, duration, now - duration),
        _report(attempt, "teardown", "passed", None, 0, now),
    ]
    reports[0].sections = sections
    for report in reports:
        _mark(report, attempt, node)
    return reports


def crashed_late(attempt: Attempt, text: str, node: WorkerNode) -> list[pytest.TestReport]:
    """The report of a test after which its worker ended as it should not."""
    report = _report(attempt, "teardown", "failed", text, 0, time.time())
    _mark(report, attempt, node)
    return [report]


def received(config: pytest.Config, text: str, attempt: Attempt, node: WorkerNode) -> list[pytest.TestReport]:
    """The reports that a worker sent."""
    reports = []
    for data in json.loads(text):
        attributes = data.pop("$xml_attributes", ())
        report = revived(config, data)
        _mark(report, attempt, node)
        if attributes and not attempt.will_retry:
            _add_xml_attributes(config, report, attributes)
        reports.append(report)
    return reports


def revived(config: pytest.Config, data: dict[str, Any]) -> Any:
    """The report that a worker's pytest serialised. JSON has no tuples, and pytest insists on some."""
    longrepr = data.get("longrepr")
    if isinstance(longrepr, list):
        data["longrepr"] = tuple(longrepr)
    if data.get("location"):
        data["location"] = tuple(data["location"])
    for name in ("sections", "user_properties"):
        if data.get(name):
            data[name] = [(key, untagged(value)) for key, value in data[name]]
    return config.hook.pytest_report_from_serializable(config=config, data=data)


def as_rerun(reports: list[pytest.TestReport]) -> list[pytest.TestReport]:
    """The reports of an attempt that is followed by another one, as pytest-rerunfailures has them.

    Nothing of it counts: neither its subtests nor a call that passed before the teardown failed.
    """
    own = [report for report in reports if not hasattr(report, "context")]
    # A test of unittest passes although a subtest has failed.
    at = next((i for i, report in enumerate(own) if report.failed), min(1, len(own) - 1))
    shown = [report for report in own[:at] if report.when == "setup"] + own[at : at + 1]
    for report in shown:
        for attribute in (bdd.ATTRIBUTE, bdd.OLD_ATTRIBUTE):
            # pytest-bdd's reporters know no attempts.
            report.__dict__.pop(attribute, None)
    if shown:
        shown[-1].outcome = "rerun"  # type: ignore[assignment]
    return shown


def _report(
    attempt: Attempt,
    when: Phase,
    outcome: Literal["passed", "failed"],
    longrepr: str | None,
    duration: float,
    start: float,
) -> pytest.TestReport:
    # The names of a test's keywords are not worth a message; its own is known.
    name = attempt.domain.rpartition(".")[2]
    return pytest.TestReport(
        nodeid=attempt.nodeid,
        location=attempt.location,
        keywords={name: 1},
        outcome=outcome,
        longrepr=longrepr,
        when=when,
        duration=duration,
        start=start,
        stop=start + duration,
    )


def _mark(report: Any, attempt: Attempt, node: WorkerNode) -> None:
    report.node = node
    report.worker_id = attempt.worker
    report.item_index = attempt.key
    report.testrun_uid = node.nodemanager.testrunuid


def _add_xml_attributes(
    config: pytest.Config, report: pytest.TestReport, attributes: Sequence[tuple[str, str]]
) -> None:
    from _pytest.junitxml import xml_key

    xml = config.stash.get(xml_key, None)
    if xml is not None:
        reporter = xml.node_reporter(report)
        for name, value in attributes:
            reporter.add_attribute(name, value)


def warning(data: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `pytest_warning_recorded` for a warning of a worker."""
    category = _category(data["category_module"], data["category"])
    text = data["message"]
    message: Any = text
    try:
        instance = category(text)
        if str(instance) == text:
            message = instance
    except Exception:
        # A class with a constructor of its own; its text is what is shown.
        pass
    return {
        "warning_message": warnings.WarningMessage(
            message=message,
            category=category,
            filename=data["filename"],
            lineno=data["lineno"],
            line=data.get("line"),
        ),
        "when": data["when"],
        "nodeid": data["nodeid"],
        "location": tuple(data["location"]) if data.get("location") else None,
    }


def _category(module: str, name: str) -> type[Warning]:
    """The class of a warning. Never imports: the class may be defined in a test module."""
    known = getattr(sys.modules.get(module), name, None)
    if isinstance(known, type) and issubclass(known, Warning):
        return known
    return type(name, (Warning,), {"__module__": module})
