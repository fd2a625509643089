"""What a run has left of itself: reports, JUnit files, the console's totals, pytest's cache."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree


@dataclass
class Junit:
    """A JUnit file."""

    # Each element's name, and what it says of its test.
    elements: list[tuple[str, str]] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)
    # What keeps it from being read.
    problem: str = ""


@dataclass
class Run:
    """What came of a run."""

    # None: it did not end.
    code: int | None
    # By node id: the verdicts of the reports that were made of it, in the order in which they came.
    reports: dict[str, list[str]]
    # By node id: whose words the reports show as captured.
    captured: dict[str, set[str]]
    # Files that could not be collected.
    uncollected: list[str]
    # How often each test was said to have started and to have finished.
    started: Counter[str]
    finished: Counter[str]
    junit: Junit
    # Offload's own.
    offload: Junit
    # What the last line says: how many tests passed, and so on.
    console: dict[str, int]
    # The same, from the reports.
    counted: Counter[str]
    # What pytest keeps for the next run.
    cache: dict[str, Any]
    # Names that tests wrote when they ran, and how often.
    ran: Counter[str]
    # Tests whose value is not that of their name.
    impostors: list[str]
    left: list[str]
    output: str

    def outcomes(self) -> dict[str, str]:
        return {name: summary(verdicts) for name, verdicts in self.reports.items()}


def summary(verdicts: list[str]) -> str:
    """One word for a test: its call or what was in its place, with subtests, and a teardown that failed."""
    word, torn = "none", ""
    subtests: Counter[str] = Counter()
    for verdict in verdicts:
        when, outcome = verdict.split()
        if when == "subtest":
            subtests[outcome] += 1
        elif when == "setup" and outcome == "failed":
            word = "error"
        elif when == "teardown":
            torn = "+error" if outcome == "failed" else torn
        elif outcome != "passed" or when == "call":
            word = outcome
    inner = "".join(f" {count} {outcome}" for outcome, count in sorted(subtests.items()))
    return f"{word}{inner}{torn}"


def read_run(code: int | None, records: Path, project: Path, left: list[str]) -> Run:
    """What a run has left in its directory of records, and in that of the project."""
    ran: Counter[str] = Counter()
    impostors = []
    log = records / "log"
    for line in log.read_text().splitlines() if log.exists() else []:
        name, value = line.split("\t")
        name = name[1:-1]
        ran[name] += 1
        if value and value not in name:
            impostors.append(f"{name} with the value {value}")
    output = (records / "output").read_text(errors="replace")
    run = Run(
        code=code,
        reports={},
        captured={},
        uncollected=[],
        started=Counter(),
        finished=Counter(),
        junit=read_junit(records / "junit.xml"),
        offload=read_junit(records / "offload.xml"),
        console=read_console(output),
        counted=Counter(),
        cache=read_cache(project / ".pytest_cache" / "v" / "cache"),
        ran=ran,
        impostors=impostors,
        left=left,
        output=output,
    )
    reports = records / "reports"
    for line in reports.read_text().splitlines() if reports.exists() else []:
        kind, *entry = json.loads(line)
        if kind == "report":
            _take_report(run, *entry)
        elif kind == "collect":
            run.uncollected.append(entry[0])
            run.counted["error"] += 1
        elif kind == "deselected":
            run.counted["deselected"] += entry[0]
        else:
            (run.started if kind == "start" else run.finished)[entry[0]] += 1
    return run


def _take_report(run: Run, name: str, when: str, outcome: str, xfail: bool, spoken: list[str]) -> None:
    if xfail:
        outcome = {"skipped": "xfailed", "passed": "xpassed"}.get(outcome, outcome)
    if outcome == "rerun":
        run.counted["rerun"] += 1
        return
    run.reports.setdefault(name, []).append(f"{when} {outcome}")
    if outcome != "passed":
        run.captured.setdefault(name, set()).update(spoken)
    if when == "subtest":
        run.counted[f"subtests {outcome}"] += 1
    elif outcome == "failed" and when != "call":
        run.counted["error"] += 1
    elif outcome != "passed" or when == "call":
        run.counted[outcome] += 1


def read_junit(path: Path) -> Junit:
    if not path.exists():
        return Junit(problem="there is no file")
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        return Junit(problem=f"it is not XML: {error}")
    elements = []
    totals: Counter[str] = Counter()
    for suite in root.iter("testsuite"):
        totals.update({key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")})
    for case in root.iter("testcase"):
        words = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        elements.append((f"{case.get('classname')}::{case.get('name')}", "+".join(words) or "passed"))
    return Junit(elements, dict(totals))


def read_console(output: str) -> dict[str, int]:
    """The totals of the last line, by their names in the singular."""
    lines = re.findall(r"^=+ (.+) in [\d.]+s(?: \([\d:]+\))? =+$", output, re.MULTILINE)
    totals = {}
    for part in lines[-1].split(", ") if lines else []:
        number, _, name = part.partition(" ")
        if number.isdigit():
            totals[re.sub(r"s$", "", name) if name in ("errors", "warnings") else name] = int(number)
    return totals


def read_cache(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("lastfailed", "nodeids", "stepwise"):
        path = directory / name
        if path.exists():
            value = json.loads(path.read_text())
            found[name] = sorted(value) if name != "stepwise" else value
    return found
