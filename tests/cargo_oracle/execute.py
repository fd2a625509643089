"""Runs `cargo test` or `cargo offload` once and finds what it reports, what it did, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional
from xml.etree import ElementTree

# Far more than any of these runs takes on a busy machine: what takes longer hangs.
PATIENCE = 400.0
HUNG = -999


@dataclass
class Done:
    """What tests wrote to the log when they really ran."""

    starts: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    # By process: how many tests had started there before, in the order in which they wrote.
    ordinals: dict[str, list[int]] = field(default_factory=dict)
    # By process: the tests that started there, in the order in which they did.
    tests: dict[str, list[str]] = field(default_factory=dict)
    # The states of its processes that a test found: what it looked for was there (`dirty`) or not.
    states: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Case:
    """A test of a report."""

    name: str
    suite: str
    outcome: str
    flaky: bool = False
    attempts: int = -1
    text: str = ""
    # The tests after which it did not pass in a process that it shared, if it passed alone.
    company: Optional[tuple[str, ...]] = None


@dataclass
class Run:
    """What came of a run."""

    code: int
    output: str
    done: Done
    left: list[str]
    # Of `cargo test`: `ok`, `FAILED` or `ignored`.
    lines: dict[str, str] = field(default_factory=dict)
    junit: list[Case] = field(default_factory=list)
    # Attributes of the file and its suites that disagree with the elements.
    wrong_totals: list[str] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    # What `logs --failures` and `logs --errors` show.
    logs: str = ""


def log_name(name: str) -> str:
    """The name under which a test writes to the log."""
    name = name.removeprefix("extra::")
    return re.sub(r"^.* - (\S+) \(line \d+\)$", r"\1", name)


def run_cargo_test(
    where: Path, directory: Path, arguments: list[str], harness: list[str], environment: dict[str, str]
) -> Run:
    """Runs `cargo test`, one test after the other."""
    command = ["cargo", "test", "--offline", "--no-fail-fast", *arguments, "--", "--test-threads=1", *harness]
    run = execute(command, where, directory, environment | {"ORACLE_PLAIN": "1"})
    pattern = re.compile(r"^test (.+?)(?: - should panic| - compile fail| - compile)* \.\.\. (ok|FAILED|ignored)", re.M)
    for name, outcome in pattern.findall(run.output):
        # What tests print themselves ends in a number.
        if not re.search(r"_\d+$", name):
            run.lines[log_name(name)] = outcome
    return run


def run_offload(
    program: Path, where: Path, directory: Path, arguments: list[str], harness: list[str], environment: dict[str, str]
) -> Run:
    """Runs `cargo offload`."""
    reports = directory / "reports"
    environment = {"OFFLOAD_REPORT_OUTPUT_DIR": str(reports)} | environment
    command = [str(program), "offload", "--offline", *arguments, *(["--", *harness] if harness else [])]
    run = execute(command, where, directory, environment)
    path = reports / "junit.xml"
    if path.exists():
        run.junit, run.wrong_totals = read_junit(path)
    if "--message-format=json" in arguments:
        for line in (directory / "stdout").read_bytes().splitlines():
            try:
                run.events.append(json.loads(line))
            except ValueError:
                run.wrong_totals.append(f"a line of standard output is no JSON: {line[:200]!r}")
    if path.exists() and run.code not in (0, HUNG):
        for which in ("--failures", "--errors"):
            logs = [str(program), "offload", "logs", which]
            told = subprocess.run(logs, cwd=where, env=clean(environment), capture_output=True, check=False)
            run.logs += told.stdout.decode(errors="replace")
    return run


def clean(environment: dict[str, str]) -> dict[str, str]:
    """The environment of this process without what Cargo, CI and test runners put there."""
    beginnings = ("CARGO_", "RUST_", "OFFLOAD_", "ORACLE_", "MAKE", "MFLAGS", "CLICOLOR")
    names = ("CARGO", "RUSTC", "RUSTFLAGS", "CI", "NO_COLOR", "FORCE_COLOR", "RUSTC_WRAPPER")
    kept = {
        key: value
        for key, value in os.environ.items()
        if key == "CARGO_HOME" or not (key.startswith(beginnings) or key in names)
    }
    return kept | environment


def execute(command: list[str], where: Path, directory: Path, environment: dict[str, str]) -> Run:
    temporary = directory / "tmp"
    temporary.mkdir(parents=True)
    log, token = directory / "log", f"oracle-{uuid.uuid4().hex}"
    environment = environment | {"ORACLE_LOG": str(log), "ORACLE_TOKEN": token, "TMPDIR": str(temporary)}
    with open(directory / "stdout", "wb") as stdout, open(directory / "stderr", "wb") as stderr:
        plain = "ORACLE_PLAIN" in environment
        process = subprocess.Popen(
            command,
            cwd=where,
            env=clean(environment),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stdout if plain else stderr,
        )
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            code = HUNG
    left = leftovers(token, temporary, hung=code == HUNG)
    process.wait()
    output = "".join((directory / name).read_text(errors="replace") for name in ("stdout", "stderr"))
    return Run(code, output, read_log(log), left)


def leftovers(token: str, temporary: Path, hung: bool) -> list[str]:
    """What is there once the run has ended: processes, which are killed, and files in the temporary directory."""
    left = []
    for _ in range(100):
        found = processes(token)
        # What a test has started on purpose to outlive it is its own affair, as under `cargo test`.
        if all("ORACLE_CHILD" in environment for _, environment in found):
            break
        time.sleep(0.05)
    for pid, environment in found:
        child = re.search(r"ORACLE_CHILD=([^\0]*)", environment)
        if not hung:
            left.append(f"child of {child[1]}" if child else f"process {pid}")
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            continue
    return left + sorted(f"file {path.name}" for path in temporary.iterdir() if not hung)


def processes(token: str) -> list[tuple[int, str]]:
    """The processes, other than those that have ended, in whose environment the token is, with that."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if token in environment:
                found.append((int(entry.name), environment))
    return found


def read_log(path: Path) -> Done:
    done = Done()
    for line in path.read_text().splitlines() if path.exists() else []:
        word, name, pid, value = line.split("\t")
        if word == "start":
            done.starts[name] += 1
            done.ordinals.setdefault(pid, []).append(int(value))
            done.tests.setdefault(pid, []).append(name)
        elif word == "end":
            done.ends[name] += 1
        else:
            done.states.setdefault(name, []).append(value)
    return done


def read_junit(path: Path) -> tuple[list[Case], list[str]]:
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        return [], [f"the JUnit file is malformed: {error}"]
    cases = []
    wrong = check_totals(root)
    for suite in root.iter("testsuite"):
        wrong += check_totals(suite)
        marks = {
            element.get("name", "").removeprefix(MARK): tuple(filter(None, element.get("value", "").split(", ")))
            for element in suite.iter("property")
            if element.get("name", "").startswith(MARK)
        }
        for element in suite.iter("testcase"):
            outcome = "passed"
            for tag in ("failure", "error", "skipped"):
                for child in element.findall(tag):
                    outcome = tag if tag == "skipped" else child.get("type", tag)
            flaky = any(element.find(tag) is not None for tag in ("flakyFailure", "flakyError"))
            reruns = sum(len(element.findall(kind)) for kind in REPEATED)
            attempts = reruns + (outcome not in ("skipped", "not_run"))
            text = " ".join(element.itertext())
            if element.get("classname") != suite.get("name") and outcome != "error":
                wrong.append(f"{element.get('classname')} in suite {suite.get('name')}")
            name, classname = element.get("name", ""), element.get("classname", "")
            cases.append(Case(name, classname, outcome, flaky, attempts, text, marks.get(name)))
    return cases, wrong


# Before the name of a test, in the name of the property that tells after which others it does not pass.
MARK = "shares_state:"
REPEATED = ("flakyFailure", "flakyError", "rerunFailure", "rerunError")


def check_totals(element: ElementTree.Element) -> list[str]:
    """What an element says of how much is in it, as far as it is wrong."""
    counts = {"tests": len(list(element.iter("testcase")))}
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        counts[attribute] = sum(case.find(tag) is not None for case in element.iter("testcase"))
    told = {name: element.get(name) for name in counts}
    return [
        f"JUnit: {element.tag} {element.get('name')} has {counts[name]} {name} and says {value}"
        for name, value in told.items()
        if value is not None and int(value) != counts[name]
    ]
