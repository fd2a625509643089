"""Runs one command in a project and finds what it says, what it did, and what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from project import RECORDER, Project

# Far more than any of these projects takes on a busy machine: what takes longer hangs.
PATIENCE = 120.0


@dataclass
class Run:
    """What came of a run."""

    code: int
    # By node id: the verdicts of the reports that were made of it, in the order in which they came.
    reports: dict[str, list[str]]
    junit: list[tuple[str, str]]
    totals: dict[str, int]
    # Names that tests wrote when they ran, and how often.
    ran: Counter[str]
    # Tests whose value is not that of their name.
    impostors: list[str]
    left: list[str]
    output: str

    def outcomes(self) -> dict[str, str]:
        return {name: summary(verdicts) for name, verdicts in self.reports.items()}


def summary(verdicts: list[str]) -> str:
    """One word for a test: its call or what was in its place, with a teardown that failed."""
    word = "none"
    for verdict in verdicts:
        when, outcome = verdict.split()
        if when == "setup" and outcome == "failed":
            word = "error"
        elif when == "teardown":
            word += "+error" if outcome == "failed" and "+" not in word else ""
        elif outcome != "passed" or when == "call":
            word = outcome
    return word


def processes(token: str) -> list[int]:
    """The processes, other than those that have ended, in whose environment the token is."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if token.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def run(project: Project, directory: Path, arguments: list[str], plain: bool) -> Run:
    """Runs pytest once, in a directory that is made for it."""
    where, temporary = directory / "project", directory / "tmp"
    for made in (where, temporary, directory / "plugin"):
        made.mkdir(parents=True)
    project.write(where)
    (directory / "plugin" / "oracle_recorder.py").write_text(RECORDER)
    token = f"oracle-{uuid.uuid4().hex}"
    log, reports, junit = (directory / name for name in ("log", "reports", "junit.xml"))
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "OFFLOAD", "ORACLE"))
    }
    environment |= {
        "ORACLE_TOKEN": token,
        "ORACLE_LOG": str(log),
        "ORACLE_REPORTS": str(reports),
        "PYTHONPATH": str(directory / "plugin"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(temporary),
    }
    if plain:
        environment["ORACLE_PLAIN"] = "1"
    command = [sys.executable, "-m", "pytest", "-p", "oracle_recorder", f"--junitxml={junit}", *arguments]
    if any(broken.goes_on for broken in project.broken()):
        command.append("--continue-on-collection-errors")
    with open(directory / "output", "wb") as output:
        process = subprocess.Popen(
            command, cwd=where, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            code = -999
    left = leftovers(token, temporary, hung=code == -999)
    process.wait()
    ran: Counter[str] = Counter()
    impostors = []
    for line in log.read_text().splitlines() if log.exists() else []:
        name, value = line.split("\t")
        name = name[1:-1]
        ran[name] += 1
        if value and value not in name:
            impostors.append(f"{name} with the value {value}")
    text = (directory / "output").read_text(errors="replace")
    elements, totals = read_junit(junit)
    return Run(code, read_reports(reports), elements, totals, ran, impostors, left, text)


def leftovers(token: str, temporary: Path, hung: bool) -> list[str]:
    """What is there once the run has ended: processes, which are killed then, and files in the temporary directory."""
    deadline = time.monotonic() + (0 if hung else 10)
    while (found := processes(token)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in found:
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            continue
    names = [f"the process {pid}" for pid in found]
    return names + [entry.name for entry in temporary.iterdir() if not entry.name.startswith("pytest-of-")]


def read_reports(path: Path) -> dict[str, list[str]]:
    reports: dict[str, list[str]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        name, when, outcome, xfail = json.loads(line)
        if outcome == "rerun":
            continue
        if xfail:
            outcome = {"skipped": "xfailed", "passed": "xpassed"}.get(outcome, outcome)
        reports.setdefault(name, []).append(f"{when} {outcome}")
    return reports


def read_junit(path: Path) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """The elements, each with what it says of its test, and the totals of the file."""
    if not path.exists():
        return [], {}
    suite = ElementTree.parse(path).getroot()[0]
    elements = []
    for case in suite.iter("testcase"):
        words = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        elements.append((f"{case.get('classname')}::{case.get('name')}", "+".join(words) or "passed"))
    return elements, {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
