"""Compares `cargo offload` with `cargo test` on random workspaces.

    python3 tests/cargo_oracle --first 1 --seeds 300
    python3 tests/cargo_oracle --first 17 --seeds 1 --minimise

Most seeds are a scenario for the tests of one workspace, which is built once: what each does, which are selected, how
they are run. One in ten is a workspace of its own, which is edited between runs. Outcomes, exit code, reports, what
tests wrote down when they really ran, and what is left behind have to agree. A seed that fails is printed with the
command that runs it again.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Optional, Union

import edited
import project
import scenario
from compare import beside_process, differences
from execute import Run, clean, run_cargo_test, run_offload
from project import Project
from scenario import Mode, Scenario

ROOT = Path(__file__).resolve().parents[2]
# One seed in so many is a workspace that is compiled and edited.
EDITED = 10

Subject = Union[Scenario, Project]


def generate(seed: int) -> Subject:
    """What a seed makes."""
    return project.generate(seed) if seed % EDITED == 0 else scenario.generate(seed)


@contextmanager
def workspaces(count: int) -> Iterator[queue.SimpleQueue[Path]]:
    """Built copies of the workspace that no other process uses. They stay for the next time."""
    base = ROOT / "target" / "cargo-oracle"
    free = queue.SimpleQueue[Path]()
    number = 0
    with ExitStack() as locks:
        while free.qsize() < count:
            directory = base / f"worker-{number}"
            number += 1
            directory.mkdir(parents=True, exist_ok=True)
            lock = locks.enter_context(open(directory / "lock", "w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            prepare(directory)
            free.put(directory)
        yield free


def prepare(directory: Path) -> None:
    """Copies the workspace, as far as it is another, and builds everything that any scenario needs."""
    source, target = ROOT / "tests" / "cargo_oracle" / "workspace", directory / "workspace"
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
        elif not copy.exists() or copy.read_bytes() != path.read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    shutil.rmtree(target / "target" / "offload", ignore_errors=True)
    builds = [
        ["--workspace", "--all-targets"],
        ["--workspace", "--tests"],
        ["-p", "gamma", "--tests", "--features", "extra"],
        ["-p", "gamma"],
    ]
    for arguments in builds:
        command = ["cargo", "test", "--offline", "--quiet", "--no-run", *arguments]
        subprocess.run(command, cwd=target, env=clean({}), check=True)
    subprocess.run(["cargo", "build", "--offline", "--quiet"], cwd=target, env=clean({}), check=True)


class Trial:
    """Runs scenarios, each in a workspace that is free."""

    def __init__(self, program: Path, free: queue.SimpleQueue[Path], base: Path) -> None:
        self.program, self.free, self.base = program, free, base

    def run(self, subject: Subject) -> tuple[list[str], Optional[Run]]:
        """What is wrong, and the run in which it is."""
        place = self.free.get()
        directory = Path(tempfile.mkdtemp(dir=self.base))
        try:
            if isinstance(subject, Project):
                return edited.trial(subject, self.program, directory)
            return self.compare(subject, place / "workspace", directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            self.free.put(place)

    def compare(self, scenario: Scenario, where: Path, directory: Path) -> tuple[list[str], Optional[Run]]:
        (directory / "scenario").write_text(scenario.text())
        history = directory / "history.jsonl"
        environment = {"ORACLE_SCENARIO": str(directory / "scenario"), "OFFLOAD_HISTORY_PATH": str(history)}
        if scenario.mode.history == "damaged":
            history.write_bytes(b'{"test": "x"\n\xff\n{}\n')
        selection, harness = list(scenario.selection), list(scenario.harness)

        def plain() -> Run:
            return run_cargo_test(where, directory / "plain", selection, harness, environment)

        expected = plain() if scenario.plain_first else None
        threads = {"RUST_TEST_THREADS": scenario.mode.threads} if scenario.mode.threads else {}

        def offload(mode: Mode, name: str) -> Run:
            arguments = [*selection, *mode.arguments()]
            own = [*mode.harness, *harness]
            return run_offload(self.program, where, directory / name, arguments, own, environment | threads)

        runs = [
            offload(scenario.mode, f"run-{number}") for number in range(2 if scenario.mode.history == "kept" else 1)
        ]
        expected = expected or plain()
        for ours in runs:
            if said := differences(scenario, expected, ours):
                return said, ours
        if scenario.mode.beside_process:
            other = offload(replace(scenario.mode, isolation="process"), "process")
            for ours in runs:
                if said := beside_process(scenario, ours, other):
                    return said, ours
        return [], None


def minimised(trial: Trial, subject: Subject) -> Subject:
    """The subject without all that a failure does not need."""
    shrinking = True
    while shrinking:
        shrinking = False
        for smaller in subject.smaller():
            # Some failures depend on timing.
            if any(trial.run(smaller)[0] for _ in range(2)):
                subject, shrinking = smaller, True
                break
    return subject


def main() -> int:
    """Returns 1 if any seed fails."""
    parser = argparse.ArgumentParser(prog="tests/cargo_oracle", description="Compares Offload with cargo test.")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=15, help="how many seeds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2, help="how many seeds at once")
    parser.add_argument("--program", type=Path, default=ROOT / "target/debug/cargo-offload", help="the cargo-offload")
    parser.add_argument("--minimise", action="store_true", help="leave out what a failure does not need")
    parser.add_argument("--show", action="store_true", help="show what is made of each seed")
    options = parser.parse_args()
    begun = time.monotonic()
    failing = 0
    with (
        tempfile.TemporaryDirectory(prefix="oracle-") as name,
        workspaces(min(options.jobs, options.seeds)) as free,
        ThreadPoolExecutor(options.jobs) as pool,
    ):
        built = time.monotonic()
        trial = Trial(options.program, free, Path(name))

        def one(seed: int) -> tuple[int, str]:
            subject = generate(seed)
            if options.show:
                print(f"seed {seed}: cargo offload {' '.join(command(subject))}\n{subject}")
            said, ours = trial.run(subject)
            return seed, report(options, trial, seed, subject, said, ours) if said else ""

        futures = [pool.submit(one, seed) for seed in range(options.first, options.first + options.seeds)]
        for future in as_completed(futures):
            seed, text = future.result()
            if text:
                failing += 1
                print(f"seed {seed} fails\n{text}", flush=True)
    ended = time.monotonic()
    print(
        f"{options.seeds} seeds, {failing} of them failing, in {ended - built:.0f} s"
        f" after {built - begun:.0f} s for the workspace"
    )
    return 1 if failing else 0


def command(subject: Subject) -> list[str]:
    """The arguments of `cargo offload`."""
    if isinstance(subject, Project):
        return [*subject.arguments, *subject.options]
    return [*subject.selection, *subject.mode.arguments(), "--", *subject.mode.harness, *subject.harness]


def report(
    options: argparse.Namespace, trial: Trial, seed: int, subject: Subject, said: list[str], ours: Optional[Run]
) -> str:
    """What a user has to know of a failure."""
    if options.minimise:
        subject = minimised(trial, subject)
        said, ours = trial.run(subject)
        said = said or ["it does not fail any more"]
    lines = [f"  cargo offload {' '.join(command(subject))}", *(f"    {line}" for line in said)]
    lines.append(f"  again: python3 tests/cargo_oracle --first {seed} --seeds 1 --minimise")
    if options.minimise:
        lines += [f"  {line}" for line in str(subject).splitlines()]
        shown = ours.output.splitlines()[-60:] if ours else []
        lines += ["  what Offload wrote:", *(f"  | {line[:1000]}" for line in shown)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
