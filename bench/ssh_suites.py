"""`cargo offload --provider ssh` beside `cargo offload` here: what the way to a host costs."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys

import cargo_suites
from contest import ROOT, WORK, Contender, report, take_turns, write

sys.path.append(str(ROOT / "python" / "tests"))

from line import Line, Missing
from sshd import SERVER, Sshd

SANDBOXES = 4
# What connecting and bringing files may take, in seconds.
HEAD_START = 1.0


def compare_ssh(runs: int) -> bool:
    """5,000 trivial Rust tests, in 4 slots of a host on loopback and in 4 here."""
    if not shutil.which(SERVER):
        print(f"ssh: left out, there is no {SERVER} (apt-get install openssh-server)", file=sys.stderr)
        return True
    workspace = cargo_suites.trivial_workspace("ssh", crates=8, tests=625)
    # What Cargo writes is brought by name, not as a file of the project.
    write(workspace / ".gitignore", "/target\n")
    cargo_suites.build(workspace)
    host = Sshd(WORK / "ssh-host")
    try:
        config = WORK / "ssh-host" / "offload.toml"
        write(
            config,
            f'[provider]\ntype = "ssh"\nhosts = [{host.item(SANDBOXES)}]\n[framework]\ntype = "cargo"\n'
            f'[offload]\nworking_dir = "{workspace}"\n',
        )
        here = cargo_suites.offload(f"cargo offload -j{SANDBOXES}", workspace, f"-j{SANDBOXES}")
        there = cargo_suites.offload("… --provider ssh", workspace, "-c", str(config), f"-j{SANDBOXES}")
        there.env["PATH"] = host.search_path
        take_turns([here, there], runs)
    finally:
        host.stop()
    ratio = (there.median - HEAD_START) / here.median
    met = report(f"5,000 trivial tests, {SANDBOXES} slots of a host on loopback", [here, there], [])
    print(f"- less {HEAD_START:.0f} s: **{ratio:.2f}** (target: at most 1.10; {'met' if ratio <= 1.1 else 'MISSED'})")
    return met and ratio <= 1.1


DELAYED_TESTS, TEST_SECONDS, DELAYED_SANDBOXES = 20_000, 0.01, 8
ROUND_TRIP = 0.05


class Delayed(Contender):
    """A run on a host that is far away, measured from its first sandbox to its last result."""

    def __init__(self, name: str, workspace: pathlib.Path, host: Sshd, line: Line, way: float) -> None:
        self._line = line
        #: How long anything is on its way there, in seconds.
        self._way = way
        config = WORK / "ssh-host" / f"{name.replace(' ', '-')}.toml"
        write(
            config,
            f'[provider]\ntype = "ssh"\nhosts = [{host.item(DELAYED_SANDBOXES)}]\n[framework]\ntype = "cargo"\n'
            f'[offload]\nworking_dir = "{workspace}"\n',
        )
        command = [str(cargo_suites.OFFLOAD), "offload", "-c", str(config), f"-j{DELAYED_SANDBOXES}"]
        super().__init__(name, [*command, "--message-format", "json"], workspace, cargo_suites.cargo_env(workspace))
        self.env["PATH"] = host.search_path

    def run(self, counted: bool) -> None:
        """Runs it once."""
        self._line.delay(self._way)
        process = subprocess.run(self.command, cwd=self.cwd, env=self.env, capture_output=True, check=True, text=True)
        events = [json.loads(line) for line in process.stdout.splitlines()]
        ready = [event["at_secs"] for event in events if event["event"] == "sandbox_ready"]
        finished = [event["at_secs"] for event in events if event["event"] == "test_finished"]
        if len(finished) < DELAYED_TESTS:
            raise SystemExit(f"error: {len(finished)} results of {DELAYED_TESTS} tests")
        if counted:
            self.times.append(max(finished) - min(ready))


def compare_latency(runs: int) -> bool:
    """20,000 tests of 10 ms in 8 slots of a host, with 50 ms of added round trip and with none."""
    if not shutil.which(SERVER):
        print(f"ssh-latency: left out, there is no {SERVER} (apt-get install openssh-server)", file=sys.stderr)
        return True
    try:
        line = Line()
    except Missing as why:
        print(f"ssh-latency: left out: {why}", file=sys.stderr)
        return True
    workspace = WORK / "ssh-latency"
    cargo_suites.write_workspace(workspace, ["slow"])
    sleep = f"std::thread::sleep(std::time::Duration::from_secs_f64({TEST_SECONDS}))"
    # A harness takes longer to start the more tests it has.
    targets = 40
    body = "".join(f"#[test]\nfn t{number:03}() {{ {sleep} }}\n" for number in range(DELAYED_TESTS // targets))
    cargo_suites.write_crate(
        workspace, "slow", {"src/lib.rs": "", **{f"tests/m{n:02}.rs": body for n in range(targets)}}
    )
    write(workspace / ".gitignore", "/target\n")
    cargo_suites.build(workspace)
    host = Sshd(WORK / "ssh-host", line)
    try:
        none = Delayed("no added round trip", workspace, host, line, 0.0)
        some = Delayed("50 ms of added round trip", workspace, host, line, ROUND_TRIP / 2)
        take_turns([none, some], max(1, runs // 2), warmup=0)
    finally:
        host.stop()
        line.close()
    title = "20,000 tests of 10 ms in 8 slots of a host, first sandbox to last result"
    return report(title, [none, some], [(some.name, none.name, 1.15)])
