"""`pytest --offload` on hosts, against plain pytest here: a real server on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest
from conftest import Outcome, Runner, plugins
from sshd import SERVER, Sshd
from test_docker import SUITE

if not os.path.exists(SERVER) and "ssh" in os.environ.get("OFFLOAD_TEST_REQUIRE", "").split():
    raise RuntimeError(f"there is no {SERVER}, and it is required")
pytestmark = pytest.mark.skipif(not os.path.exists(SERVER), reason=f"needs {SERVER} (apt-get install openssh-server)")


class Hosts:
    """Runs the same project with plain pytest here and with `--offload` on a host."""

    def __init__(self, run: Runner, monkeypatch: pytest.MonkeyPatch, sshd: Sshd) -> None:
        self.run = run
        self.path = run.path
        self.sshd = sshd
        self.configure(run.workers)
        # A home directory does not travel, and pytester makes the project one.
        monkeypatch.setenv("HOME", str(self.path.parent))
        monkeypatch.setenv("PATH", sshd.search_path)
        # For the controllers of both; on the host there is nothing of ours.
        monkeypatch.setenv("PYTEST_PLUGINS", "recorder")

    def configure(self, slots: int) -> None:
        text = (
            f'[provider]\ntype = "ssh"\nhosts = [{self.sshd.item(slots)}]\n'
            f'[framework]\ntype = "pytest"\ncommand = "{sys.executable} -m pytest"\n'
        )
        (self.path / "offload.toml").write_text(text, encoding="utf-8")

    def offload(self, *args: str) -> Outcome:
        outcome = self.run._run(*plugins(), "--offload", f"--offload-parallel={self.run.workers}", *args)
        assert self.sshd.runs() == [], "something was left behind"
        return outcome

    def same(self, *args: str) -> Outcome:
        plain, offload = self.run._run(*args), self.offload(*args)
        assert offload.comparable() == plain.comparable(), f"{plain.text}\n{offload.text}\n{offload.errors}"
        return offload


@pytest.fixture
def hosts(run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hosts]:
    sshd = Sshd(tmp_path / "sshd")
    yield Hosts(run, monkeypatch, sshd)
    sshd.stop()


def wait_until(what: str, is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < until, f"waited in vain until {what}"
        time.sleep(0.05)


def test_outcomes_are_those_of_plain_pytest(hosts: Hosts) -> None:
    hosts.run.write(**SUITE)
    outcome = hosts.same("-rA")
    assert "2 sandboxes of provider ssh" in outcome.text
    # As in the repository, of which the tests are in a copy.
    assert "tests/test_outcomes.py:6: AssertionError" in outcome.text


def test_more_workers_than_slots_are_no_obstacle(hosts: Hosts) -> None:
    hosts.run.write(**SUITE)
    hosts.configure(1)
    hosts.same()


def test_a_connection_that_breaks_costs_no_test(hosts: Hosts, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    hosts.run.write(
        tests__test_long=f"""
import os, time
def test_waits():
    if not os.path.exists({str(begun)!r}):
        open({str(begun)!r}, "w").close()
        time.sleep(1000)
""",
        tests__test_short="\n".join(f"def test_{number}(): pass" for number in range(20)),
    )
    command = [sys.executable, "-m", "pytest", *plugins(), "--offload", "--offload-parallel=2"]
    process = subprocess.Popen(command, cwd=hosts.path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_until("a test runs", begun.exists)
    hosts.sshd.cut()
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert "21 passed" in text
    wait_until("nothing is left", lambda: hosts.sshd.runs() == [])


def test_killed_runs_leave_nothing(hosts: Hosts, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    hosts.run.write(
        tests__test_long=f"import time\ndef test_waits(): open({str(begun)!r}, 'w').close(); time.sleep(1000)"
    )
    command = [sys.executable, "-m", "pytest", *plugins(), "--offload", "--offload-parallel=2"]
    process = subprocess.Popen(command, cwd=hosts.path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until("a test runs", begun.exists)
    process.kill()
    process.wait()
    wait_until("nothing is left", lambda: hosts.sshd.runs() == [] and hosts.sshd.connections() == [])
