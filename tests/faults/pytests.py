"""Scenarios of pytest: the project, the command, and what the run reports."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import run
from run import Observed, Place, Result
from scenario import Fault, Scenario

sys.path.append(str(Path(__file__).parent.parent.parent / "python" / "tests"))

from sshd import Sshd

# What every test does: it says that it runs, acts, and says that it has come to its end.
PRELUDE = """
import os, time
import pytest

def note(word, name):
    file = os.open(os.environ["FAULTS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{word} {name}\\n".encode())
    os.close(file)

def do(request, action):
    name = request.node.nodeid
    note("begin", name)
    if action == "slow":
        time.sleep(0.05)
    elif action == "fail":
        pytest.fail("on purpose")
    elif action == "skip":
        pytest.skip("on purpose")
    elif action == "flaky":
        mark = os.environ["FAULTS_LOG"] + "-" + name.replace("/", "-")
        if not os.path.exists(mark):
            open(mark, "w").close()
            pytest.fail("on purpose")
    note("end", name)
"""

FIXTURE = """
@pytest.fixture(scope="session", autouse=True)
def wide():
    time.sleep({secs})
    yield
    time.sleep({secs})
"""

RECORDER = """
import json, os

def pytest_configure(config):
    global active
    active = not hasattr(config, "workerinput")

def pytest_runtest_logreport(report):
    if active:
        entry = [report.nodeid, report.when, report.outcome, report.longreprtext[-2000:]]
        with open(os.environ["FAULTS_RESULTS"], "a") as file:
            file.write(json.dumps(entry) + "\\n")
"""


class Pytest:
    """A project of pytest, in a directory of its own."""

    def __init__(self, scenario: Scenario, place: Place) -> None:
        self.scenario, self.place = scenario, place
        self.sshd = Sshd(place.base / "sshd") if scenario.over_ssh else None
        fixture = {"quick": FIXTURE.format(secs=0), "slow": FIXTURE.format(secs=0.1)}.get(scenario.session_fixture, "")
        (place.project / "conftest.py").write_text(PRELUDE + fixture)
        for name, actions in scenario.tests.items():
            text = "from conftest import do\n"
            text += "".join(f"def test_{n}(request): do(request, {action!r})\n" for n, action in enumerate(actions))
            (place.project / name).write_text(text)
        (place.project / "pytest.ini").write_text("[pytest]\n")
        (place.base / "plugin").mkdir()
        (place.base / "plugin" / "faults_recorder.py").write_text(RECORDER)
        if self.sshd is not None:
            slots = next(option for option in scenario.options if "parallel" in option).partition("=")[2]
            (place.project / "offload.toml").write_text(
                f'[provider]\ntype = "ssh"\nhosts = [{self.sshd.item(int(slots))}]\n'
                f'[framework]\ntype = "pytest"\ncommand = "{sys.executable} -m pytest"\n'
                # Not there by itself: the recorder is for this machine only.
                f'[framework.env]\nFAULTS_LOG = "{place.log}"\n'
            )

    def expected(self) -> dict[str, str]:
        """What each test does, by its name."""
        return {
            f"{file}::test_{number}": action
            for file, actions in self.scenario.tests.items()
            for number, action in enumerate(actions)
        }

    def run(self, faults: list[Fault]) -> Observed:
        place = self.place
        place.clean()
        environment = {
            "FAULTS_LOG": str(place.log),
            "FAULTS_RESULTS": str(place.results),
            "PYTHONPATH": str(place.base / "plugin"),
            # Not an option, which hosts would be given, too.
            "PYTEST_PLUGINS": "faults_recorder",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        if self.sshd is not None:
            environment |= {"PATH": self.sshd.search_path, "HOME": str(place.base)}
        command = [sys.executable, "-m", "pytest", "--offload", *self.scenario.options]
        command += [f"--junitxml={place.reports}/junit.xml", f"--offload-junit={place.reports}/offload.xml"]
        # With its connections, those that serve them.
        far = self.sshd._process.pid if self.sshd is not None and self.sshd._process is not None else None
        code, done, left = run.watch("pytest", place, command, environment, faults, far)
        if self.sshd is not None:
            left += run.left_processes(f"TMPDIR={self.sshd.temp}", hung=False)
        broken: list[str] = []
        reports = {
            name: elements
            for name in ("junit.xml", "offload.xml")
            if (elements := run.read_junit(place.reports / name, broken)) is not None
        }
        broken += [f"{name} is left of writing" for name in os.listdir(place.reports) if name not in reports]
        begun, ended = run.read_log(place.log)
        results = self._results()
        text = run.read_text(place.output)
        return Observed(code, done, results, reports, broken, begun, ended, left, self._left_files(), text)

    def _left_files(self) -> list[str]:
        left = run.left_files(self.place)
        if self.sshd is not None:
            deadline = time.monotonic() + run.END_SECS
            while self.sshd.runs() and time.monotonic() < deadline:
                time.sleep(0.02)
            left += [f"{path.name} on the host" for path in self.sshd.runs()]
        return left

    def _results(self) -> dict[str, Result]:
        results: dict[str, Result] = {}
        lines = run.read_text(self.place.results).split("\n")
        for line in lines[:-1]:
            name, when, outcome, text = json.loads(line)
            result = results.setdefault(name, Result("none"))
            if outcome == "rerun":
                result.repeated.append(text)
            elif when == "teardown":
                result.torn_badly |= outcome == "failed"
                result.text += text
            elif when == "call" or outcome != "passed":
                result.outcome = "error" if when == "setup" and outcome == "failed" else outcome
                result.text += text
        return results

    def junit_name(self, report: str, name: str) -> str:
        """The element of a test."""
        path, _, test = name.partition("::")
        if report == "offload.xml":
            return f"{path}::{test}"
        return f"{path.replace('.py', '').replace('/', '.')}::{test}"

    def stop(self) -> None:
        if self.sshd is not None:
            self.sshd.stop()
