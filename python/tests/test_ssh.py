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
from line import Line, Missing
from sshd import SERVER, Sshd
from test_docker import SUITE
from test_identity import TELL, UNSTABLE, check_that_what_passed_ran, write_unstable

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


class Far:
    """Two hosts of a slot each, both at the end of a line."""

    def __init__(self, hosts: Hosts, directory: Path, lines: list[Line]) -> None:
        self.path = hosts.path
        self.log = directory / "log"
        self.log.touch()
        self.lines = lines
        self.sshds = [Sshd(directory / f"far-{number}", line) for number, line in enumerate(lines)]
        one, other = self.sshds
        one.introduce(other)
        self.environ = {**os.environ, "PATH": one.search_path}
        text = (
            f'[provider]\ntype = "ssh"\nhosts = [{one.item(1)}, {other.item(1)}]\n'
            f'[framework]\ntype = "pytest"\ncommand = "{sys.executable} -m pytest"\n'
        )
        (self.path / "offload.toml").write_text(text, encoding="utf-8")

    def write(self, count: int, waits: str) -> None:
        """Tests that note where they begin, and go on when `waits`, a loop's condition, no longer holds."""
        (self.path / "test_far.py").write_text(
            f"""
import os, pytest, time
@pytest.mark.parametrize("n", range({count}))
def test_far(n):
    host = os.environ["SSH_CONNECTION"].split()[2]
    with open({str(self.log)!r}, "a") as log:
        log.write(f"{{n}} {{host}}\\n")
    while {waits}:
        time.sleep(0.01)
""",
            encoding="utf-8",
        )

    def begun(self) -> list[tuple[str, int]]:
        """Which tests have begun, on which host."""
        hosts = [line.address for line in self.lines]
        words = [line.split() for line in self.log.read_text(encoding="utf-8").splitlines()]
        return [(number, hosts.index(host)) for number, host in words]

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pytest", *plugins(), "--offload", "--offload-parallel=2"]
        return subprocess.Popen(
            command, cwd=self.path, env=self.environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )


@pytest.fixture
def far(hosts: Hosts, tmp_path: Path) -> Iterator[Far]:
    lines: list[Line] = []
    try:
        lines.append(Line())
        lines.append(Line(0.025))
    except Missing as why:
        for line in lines:
            line.close()
        pytest.skip(str(why))
    far = Far(hosts, tmp_path, lines)
    yield far
    for sshd in far.sshds:
        sshd.stop()
    for line in lines:
        line.close()


def wait_until(what: str, is_so: Callable[[], bool], patience: float = 60) -> None:
    until = time.monotonic() + patience
    while not is_so():
        assert time.monotonic() < until, f"waited in vain until {what}"
        time.sleep(0.05)


def test_outcomes_are_those_of_plain_pytest(hosts: Hosts) -> None:
    hosts.run.write(**SUITE)
    outcome = hosts.same("-rA")
    assert "2 sandboxes of provider ssh" in outcome.text
    # As in the repository, of which the tests are in a copy.
    assert "tests/test_outcomes.py:6: AssertionError" in outcome.text


@pytest.mark.parametrize("mode", ["", "--offload-isolation=test"])
@pytest.mark.parametrize("kind", UNSTABLE)
def test_what_is_reported_has_run_where_collections_differ(hosts: Hosts, kind: str, mode: str) -> None:
    write_unstable(hosts.run, kind)
    outcome = hosts.offload(*TELL, *([mode] if mode else []))
    assert outcome.exit_code == 0, outcome.text
    assert check_that_what_passed_ran(hosts.run, outcome) >= 30


def test_more_workers_than_slots_are_no_obstacle(hosts: Hosts) -> None:
    hosts.run.write(**SUITE)
    hosts.configure(1)
    hosts.same()


def test_a_host_that_is_left_out_is_told_of(hosts: Hosts) -> None:
    hosts.run.write(**SUITE)
    hosts.configure(2)
    config = hosts.path / "offload.toml"
    gone = '{ host = "offload-test.invalid" }, '
    config.write_text(config.read_text(encoding="utf-8").replace("[{", f"[{gone}{{"), encoding="utf-8")
    outcome = hosts.same()
    assert "WARNING A host is left out: offload-test.invalid cannot be reached: " in outcome.text


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


# Ends the relay, a parent of this process's at some distance, once, on the host.
LOSE = """
import os, signal, time
def lose(distance):
    try: open({mark!r}, "x").close()
    except FileExistsError: return
    pid = os.getpid()
    for _ in range(distance):
        with open(f"/proc/{{pid}}/stat") as stat: pid = int(stat.read().rpartition(")")[2].split()[1])
    os.kill(pid, signal.SIGKILL)
    time.sleep(120)
"""
TEMPLATE = "def pytest_configure(config):\n    if hasattr(config, 'workerinput'): lose(1)\n"


@pytest.mark.parametrize("of", ["template", "worker"])
def test_the_only_sandbox_is_lost_while_it_collects(hosts: Hosts, tmp_path: Path, of: str) -> None:
    hosts.run.workers = 1
    hosts.configure(1)
    lose = LOSE.format(mark=str(tmp_path / "mark"))
    hosts.run.write(
        conftest=lose + (TEMPLATE if of == "template" else ""),
        test_a=("import conftest\nconftest.lose(2)\n" if of == "worker" else "") + "def test_a(): pass",
        test_b="def test_b(): pass",
    )
    outcome = hosts.offload("--offload-collect=parallel")
    assert (outcome.exit_code, outcome.counts) == (0, {"passed": 2}), outcome.text
    assert (tmp_path / "mark").exists()


def test_a_relay_that_stands_still_costs_no_test(hosts: Hosts, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    hosts.run.write(
        tests__test_long=f"""
import os, signal, time
def test_waits():
    try:
        file = open({str(stopped)!r}, "x")
    except FileExistsError:
        return
    # The worker is the template's child, and the template the relay's.
    with open(f"/proc/{{os.getppid()}}/stat") as stat:
        relay = int(stat.read().rpartition(")")[2].split()[1])
    with file:
        file.write(f"{{relay}} {{os.getpid()}}")
    os.kill(relay, signal.SIGSTOP)
    time.sleep(1000)
""",
        tests__test_short="\n".join(f"def test_{number}(): pass" for number in range(20)),
    )
    outcome = hosts.offload()
    assert outcome.exit_code == 0, outcome.text
    assert "21 passed" in outcome.text
    # The connection stands, and the server answers: nothing but the silence tells.
    assert "was lost: nothing was heard from it for 30 s" in outcome.text
    pids = stopped.read_text(encoding="utf-8").split()
    wait_until("its processes are gone", lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


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


def test_a_short_cut_of_the_line_is_survived(far: Far, tmp_path: Path) -> None:
    go = tmp_path / "go"
    far.write(2, f"not os.path.exists({str(go)!r})")
    process = far.start()
    wait_until("a test runs on each host", lambda: sorted(host for _, host in far.begun()) == [0, 1])
    far.lines[1].cut()
    # What is tested is a cut of this length.
    time.sleep(10)
    go.touch()
    far.lines[1].mend()
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert "2 passed" in text
    assert len(far.begun()) == 2, "no test ran twice"
    assert "lost" not in text


def test_a_long_cut_of_the_line_loses_a_host_and_no_test(far: Far) -> None:
    # Those that begin on the second host never end, and the others when one has begun there.
    there = far.lines[1].address
    far.write(20, f'host == "{there}" or "{there}" not in open({str(far.log)!r}).read()')
    process = far.start()
    wait_until("a test runs there", lambda: 1 in [host for _, host in far.begun()])
    far.lines[1].cut()
    text, _ = process.communicate(timeout=180)
    assert process.returncode == 0, text
    assert "20 passed" in text
    begun = far.begun()
    (lost,) = [number for number, host in begun if host == 1]
    assert (lost, 0) in begun
    assert f"the host {there}:{far.sshds[1].port} was lost" in text, text
    # Over there it is noticed when the line is whole again, or by the silence.
    far.lines[1].mend()
    wait_until("nothing is left on the host", lambda: far.sshds[1].runs() == [], patience=150)
    assert far.sshds[0].runs() == []
