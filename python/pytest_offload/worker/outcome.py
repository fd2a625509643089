"""What the reports of a test come to: an outcome, a text, a short message."""

from __future__ import annotations

from typing import Any

import pytest

# The attributes of a report of which nothing is lost in the short message for a passed test.
PLAIN_REPORT = frozenset(
    (
        "_id",
        "duration",
        "keywords",
        "location",
        "longrepr",
        "nodeid",
        "outcome",
        "sections",
        "start",
        "stop",
        "user_properties",
        "when",
    )
)
PHASES = {"setup": 0, "call": 1, "teardown": 2}


def is_plain_pass(reports: list[Any]) -> bool:
    return len(reports) == 3 and all(
        report.outcome == "passed"
        and not report.sections
        and not report.user_properties
        and type(report) is pytest.TestReport
        and PLAIN_REPORT.issuperset(report.__dict__)
        for report in reports
    )


def outcome_of(reports: list[Any]) -> tuple[str, Any]:
    """The outcome of a test and the report that decided it."""
    for report in reports:
        if report.failed and report.when == "call":
            return "failed", report
    for report in reports:
        if report.failed:
            return "error", report
    for report in reports:
        if report.skipped:
            return "skipped", report
    return "passed", None


def text_of(report: Any) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return "{}:{}: {}".format(*report.longrepr)
    return str(report.longreprtext)


def message_of(report: Any) -> str:
    """One line that says why."""
    longrepr = report.longrepr
    if isinstance(longrepr, tuple):
        text = str(longrepr[2])
    else:
        crash = getattr(longrepr, "reprcrash", None)
        text = str(crash.message if crash is not None else longrepr)
    return getattr(report, "wasxfail", "") or text.split("\n", 1)[0][:1000]
