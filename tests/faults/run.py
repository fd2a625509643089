"""Runs a scenario, with its faults or without, and finds what came of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import processes
from inject import Done, Injector
from scenario import Fault

# Far more than any of these runs takes on a busy machine: what takes longer hangs.
PATIENCE_SECS = 180.0
# How long processes may take to end once a run has.
END_SECS = 20.0


@dataclass
class Result:
    """What a run says of a test."""

    # "passed", "failed", "skipped" or "error", and whether a teardown failed besides.
    outcome: str
    torn_badly: bool = False
    text: str = ""
    # Attempts that were repeated: what is said of each.
    repeated: list[str] = field(default_factory=list)


@dataclass
class Observed:
    """What can be seen of a run from outside."""

    code: int
    done: list[Done]
    results: dict[str, Result]
    # By the name of the report: elements by the names of their tests, each with the tags of what went wrong.
    reports: dict[str, dict[str, list[str]]]
    # Reports that cannot be read.
    broken: list[str]
    # Names that tests wrote when they began and ended.
    begun: Counter[str]
    ended: Counter[str]
    # Who is there when it has ended, and the names of the files.
    left_processes: list[str]
    left_files: list[str]
    output: str

    @property
    def killed(self) -> bool:
        """Whether the runner had no say in its end."""
        return self.code < 0

    def lethal(self, *roles: str) -> list[Done]:
        """The faults of processes of these roles that end what they befall."""
        return [done for done in self.done if done.fault.role in roles and done.fault.is_lethal]


class Place:
    """The directories of one scenario."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.project, self.temporary = base / "project", base / "tmp"
        self.log, self.results, self.output = base / "log", base / "results", base / "output"
        self.reports = base / "reports"
        for made in (self.project, self.temporary, self.reports):
            made.mkdir(parents=True)

    def clean(self) -> None:
        """Forgets what an earlier run has said. What it left behind stays."""
        for file in (self.log, self.results, self.output, *self.reports.iterdir()):
            file.unlink(missing_ok=True)


def watch(
    kind: str, place: Place, command: list[str], environment: dict[str, str], faults: list[Fault], far: int | None
) -> tuple[int, list[Done], list[str]]:
    """Runs a command while faults befall it. Returns its exit code, the faults, and the processes that are left."""
    token = f"faults-{uuid.uuid4().hex}"
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "OFFLOAD", "CARGO_"))}
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CARGO", "RUST_TEST_THREADS"):
        clean.pop(name, None)
    environment = clean | {"FAULTS_TOKEN": token, "TMPDIR": str(place.temporary)} | environment
    with open(place.output, "wb") as output:
        process = subprocess.Popen(
            command,
            cwd=place.project,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=place.results.open("ab") if kind == "cargo" else output,
            stderr=output,
            # Where the tests run in the background of a script, Ctrl-C is ignored; what they start is to hear of it.
            preexec_fn=_with_default_signals,
            start_new_session=True,
        )
    injector = Injector(kind, process.pid, far, faults, place.log, place.results)
    injector.start()
    try:
        code = process.wait(PATIENCE_SECS)
    except subprocess.TimeoutExpired:
        code = HUNG
    injector.end()
    left = left_processes(token, hung=code == HUNG)
    process.wait()
    return code, injector.done, left


# The exit code of a run that did not end.
HUNG = -999


def _with_default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def left_processes(token: str, hung: bool) -> list[str]:
    """Who is there once the run has ended. Nobody is afterwards."""
    deadline = time.monotonic() + (0 if hung else END_SECS)
    while (found := processes.with_token(token)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in found:
        processes.send(process, signal.SIGKILL)
    return [f"{process.pid} {process.state} {' '.join(process.command)[:120]}" for process in found]


def left_files(place: Place) -> list[str]:
    """What is in the directory for temporary files that is not pytest's own."""
    return [entry.name for entry in place.temporary.iterdir() if not entry.name.startswith("pytest-of-")]


def read_log(path: Path) -> tuple[Counter[str], Counter[str]]:
    """How often tests began and ended."""
    begun: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    for line in path.read_text().splitlines() if path.exists() else []:
        word, _, name = line.partition(" ")
        {"begin": begun, "end": ended}.get(word, Counter())[name] += 1
    return begun, ended


def read_junit(path: Path, broken: list[str]) -> dict[str, list[str]] | None:
    """The elements of a JUnit file by class and name; None where there is none or it cannot be read."""
    if not path.exists():
        return None
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        broken.append(f"{path.name}: {error}")
        return None
    found: dict[str, list[str]] = {}
    for case in root.iter("testcase"):
        tags = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found.setdefault(f"{case.get('classname')}::{case.get('name')}", []).append("+".join(tags))
    return found


def read_text(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(errors="replace")
    return ""
