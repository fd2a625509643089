"""Commands that take turns, and the table of their times.

Every figure is the wall time of a whole process. The commands of a comparison take turns there and back (A B C C B A …)
within one run, so that a machine whose speed drifts treats them alike, and so that none always follows the one that
leaves the most dirty pages; tables quote medians, and ratios are of those medians.
"""

from __future__ import annotations

import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORK = ROOT / "target" / "bench"
SLOTS = os.cpu_count() or 2


class Contender:
    """A command that takes part in a comparison."""

    def __init__(self, name: str, command: list[str], cwd: pathlib.Path, env: dict[str, str] | None = None) -> None:
        self.name = name
        self.command = command
        self.cwd = cwd
        self.env = {**os.environ, **(env or {})}
        self.times: list[float] = []
        self.cpu_times: list[float] = []

    def run(self, counted: bool) -> None:
        """Runs it once; a command that does not succeed measures nothing."""
        begun, cpu = time.perf_counter(), cpu_of_children()
        process = subprocess.run(
            self.command, cwd=self.cwd, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        elapsed = time.perf_counter() - begun
        if process.returncode != 0:
            sys.stderr.buffer.write(process.stdout[-4000:] + process.stderr[-4000:])
            raise SystemExit(f"error: `{' '.join(self.command)}` in {self.cwd} exited with {process.returncode}")
        if counted:
            self.times.append(elapsed)
            self.cpu_times.append(cpu_of_children() - cpu)

    @property
    def median(self) -> float:
        """Of the counted runs, in seconds."""
        return statistics.median(self.times)

    @property
    def cpu(self) -> float:
        """What it and its children took of the processors, likewise."""
        return statistics.median(self.cpu_times)


def cpu_of_children() -> float:
    """What all children so far have taken of the processors, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def take_turns(contenders: list[Contender], runs: int, before=None, warmup: int = 1) -> None:
    """Runs all contenders in turn, there and back; `before` is called before each run of each."""
    for number in range(-warmup, runs):
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            if before:
                before(contender)
            contender.run(counted=number >= 0)


def report(title: str, contenders: list[Contender], targets: list[tuple[str, str, float]]) -> bool:
    """Prints the table; a target is (who, against whom, at most how many times its median)."""
    print(f"\n## {title}\n")
    print("| | median s | min s | max s |")
    print("| --- | ---: | ---: | ---: |")
    for contender in contenders:
        low, high = min(contender.times), max(contender.times)
        print(f"| {contender.name} | {contender.median:.3f} | {low:.3f} | {high:.3f} |")
    medians = {contender.name: contender.median for contender in contenders}
    print()
    met_all = True
    for who, against, limit in targets:
        ratio = medians[who] / medians[against]
        met = ratio <= limit
        met_all = met_all and met
        print(f"- {who} / {against}: **{ratio:.2f}** (target: at most {limit:.2f}; {'met' if met else 'MISSED'})")
    sys.stdout.flush()
    return met_all


def write(path: pathlib.Path, text: str) -> None:
    """Writes a file of a workspace, leaving alone one that is as wanted (Cargo looks at modification times)."""
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def tool_version(*command: str) -> str:
    """The first line of a tool's version."""
    program = shutil.which(command[0])
    if not program:
        return f"{command[0]}: not on the path"
    output = subprocess.run([program, *command[1:], "--version"], capture_output=True, text=True, check=False).stdout
    return output.splitlines()[0] if output else command[0]


def processor() -> str:
    """The processor's name, as far as the kernel knows it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown processor"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
