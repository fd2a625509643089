"""Compares `pytest --offload` with plain pytest on random projects.

    target/venv/bin/python tests/oracle --first 1 --seeds 300
    target/venv/bin/python tests/oracle --first 17 --seeds 1 --minimise

Each seed makes a small project, which plain pytest runs, and Offload in some of its modes, chosen by the seed, too. The
outcome of each test, the exit code, the JUnit file, what tests wrote down when they really ran, and what is left behind
have to agree. A seed that fails is printed with the command that runs it again.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from compare import Mode, choose, differences
from execute import Run, run
from project import Project, generate


def trial(project: Project, modes: list[Mode], base: Path) -> list[tuple[Mode, list[str], Run]]:
    """Runs a project plainly and in each of the modes; returns the modes in which something is wrong."""
    found = []
    directory = Path(tempfile.mkdtemp(dir=base))
    try:
        plain = run(project, directory / "plain", [], plain=True)
        for number, mode in enumerate(modes):
            ours = run(project, directory / f"mode-{number}", mode.arguments(), plain=False)
            if said := differences(project, mode, plain, ours):
                found.append((mode, said, ours))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return found


def minimised(project: Project, mode: Mode, base: Path) -> Project:
    """The project without all pieces that a failure in this mode does not need."""
    shrinking = True
    while shrinking:
        shrinking = False
        for piece in project.pieces:
            smaller = project.without(piece)
            # Some failures depend on timing.
            if smaller.tests() and any(trial(smaller, [mode], base) for _ in range(2)):
                project, shrinking = smaller, True
    return project


def main() -> int:
    """Returns 1 if any seed fails."""
    parser = argparse.ArgumentParser(prog="tests/oracle", description="Compares Offload with plain pytest.")
    parser.add_argument("--kind", choices=["pytest"], default="pytest", help="what is made of a seed")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=20, help="how many seeds")
    parser.add_argument("--modes", type=int, default=1, help="how many modes for each seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2, help="how many seeds at once")
    parser.add_argument("--pending", action="store_true", help="also make what is known to fail")
    parser.add_argument("--minimise", action="store_true", help="leave out of failing projects what is not needed")
    options = parser.parse_args()
    begun = time.monotonic()
    failing = 0
    with tempfile.TemporaryDirectory(prefix="oracle-") as name, ThreadPoolExecutor(options.jobs) as pool:
        base = Path(name)

        def one(seed: int) -> tuple[int, str]:
            project = generate(seed, options.pending)
            modes = choose(project, random.Random(-seed), options.modes)
            found = trial(project, modes, base)
            return seed, "".join(report(options, seed, project, mode, said, ours, base) for mode, said, ours in found)

        futures = [pool.submit(one, seed) for seed in range(options.first, options.first + options.seeds)]
        for future in as_completed(futures):
            seed, text = future.result()
            if text:
                failing += 1
                print(f"seed {seed} fails\n{text}", flush=True)
    print(f"{options.seeds} seeds, {failing} of them failing, in {time.monotonic() - begun:.0f} s")
    return 1 if failing else 0


def report(
    options: argparse.Namespace, seed: int, project: Project, mode: Mode, said: list[str], ours: Run, base: Path
) -> str:
    """What a user has to know of a failure."""
    lines = [f"  pytest {' '.join(mode.arguments())}", *(f"    {line}" for line in said)]
    pending = " --pending" if options.pending else ""
    lines.append(
        f"  again: target/venv/bin/python tests/oracle --kind {options.kind} --first {seed} --seeds 1"
        f" --modes {options.modes}{pending} --minimise"
    )
    if options.minimise:
        project = minimised(project, mode, base)
        lines += [f"  {piece}" for piece in project.pieces]
        lines += ["  what pytest wrote in the first run:", *(f"  | {line}" for line in ours.output.splitlines()[-40:])]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
