"""Compares `pytest --offload` with plain pytest on random projects.

    target/venv/bin/python tests/oracle --first 1 --seeds 300
    target/venv/bin/python tests/oracle --first 17 --seeds 1 --minimise

Each seed makes a small project, which plain pytest runs, and Offload in some of its modes, chosen by the seed, too. The
outcome of each test, the exit code, the JUnit files, the last line, pytest's cache, what tests wrote down when they
really ran, and what is left behind have to agree. A seed that fails is printed with the command that runs it again.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from compare import Difference, Mode, choose, differences
from execute import prepare, run
from generate import THEMES, generate
from project import Project
from records import Run

Failure = tuple[Mode, list[Difference], list[Run]]


def trial(project: Project, modes: list[Mode], base: Path) -> list[Failure]:
    """Runs a project plainly and in each of the modes; returns the modes in which something is wrong."""
    found = []
    directory = Path(tempfile.mkdtemp(dir=base))
    try:
        plain = run(project, directory / "plain", None)
        for number, mode in enumerate(modes):
            ours = run(project, directory / f"mode-{number}", mode.arguments())
            if said := differences(project, mode, plain, ours):
                found.append((mode, said, ours))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return found


def minimised(project: Project, failure: Failure, base: Path) -> tuple[Project, Failure]:
    """The project without all pieces that a failure of these kinds in this mode does not need."""
    mode, all_said, _ = failure
    kinds = {difference.kind for difference in all_said}

    def fails(smaller: Project) -> Failure | None:
        if not (smaller.tests() or smaller.cases()) or not mode.fits(smaller):
            return None
        # Some failures depend on timing.
        for _ in range(2):
            for found in trial(smaller, [mode], base):
                if kinds & {difference.kind for difference in found[1]}:
                    return found
        return None

    size = max(1, len(project.pieces) // 2)
    while True:
        shrunk = False
        at = 0
        while at < len(project.pieces):
            smaller = project.without(project.pieces[at : at + size])
            if found := fails(smaller):
                project, failure, shrunk = smaller, found, True
            else:
                at += size
        if size == 1 and not shrunk:
            return project, failure
        size = max(1, size // 2)


def one(options: argparse.Namespace, seed: int, base: Path) -> tuple[int, str]:
    """What a user has to know of a seed that fails; nothing of another one."""
    project = generate(seed, options.pending, options.theme)
    modes = choose(project, random.Random(-seed), options.modes)
    return seed, "".join(report(options, seed, project, failure, base) for failure in trial(project, modes, base))


def report(options: argparse.Namespace, seed: int, project: Project, failure: Failure, base: Path) -> str:
    mode, said, _ = failure
    lines = [f"  pytest {' '.join([*mode.arguments(), *project.typed()])}", *(f"    {text}" for _, text in said)]
    more = (f" --modes {options.modes}" if options.modes != 1 else "") + (" --pending" if options.pending else "")
    more += f" --theme {options.theme}" if options.theme else ""
    lines.append(f"  again: target/venv/bin/python tests/oracle --first {seed} --seeds 1{more} --minimise")
    if options.minimise:
        project, (_, said, runs) = minimised(project, failure, base)
        lines += ["  so does this:", *(f"  {piece}" for piece in project.pieces)]
        lines += [*(f"    {text}" for _, text in said), "  what pytest wrote:"]
        lines += [f"  | {line}" for line in runs[-1].output.splitlines()[-40:]]
    if options.keep:
        project.write(options.keep / f"seed-{seed}", edited=False)
    return "\n".join(lines) + "\n"


def main() -> int:
    """Returns 1 if any seed fails."""
    parser = argparse.ArgumentParser(prog="tests/oracle", description="Compares Offload with plain pytest.")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=20, help="how many seeds")
    parser.add_argument("--modes", type=int, default=1, help="how many modes for each seed")
    parser.add_argument("--jobs", type=int, default=(os.cpu_count() or 2) + 1, help="how many seeds at once")
    parser.add_argument("--theme", choices=list(THEMES), help="make projects of one kind only")
    parser.add_argument("--pending", action="store_true", help="also make what is known to fail")
    parser.add_argument("--minimise", action="store_true", help="leave out of failing projects what is not needed")
    parser.add_argument("--keep", type=Path, help="the directory for the projects of seeds that fail")
    options = parser.parse_args()
    begun = time.monotonic()
    failing = 0
    pool = ProcessPoolExecutor(options.jobs, get_context("fork"), prepare)
    with tempfile.TemporaryDirectory(prefix="oracle-") as name, pool:
        seeds = range(options.first, options.first + options.seeds)
        for future in as_completed([pool.submit(one, options, seed, Path(name)) for seed in seeds]):
            seed, text = future.result()
            if text:
                failing += 1
                print(f"seed {seed} fails\n{text}", flush=True)
    print(f"{options.seeds} seeds, {failing} of them failing, in {time.monotonic() - begun:.0f} s")
    return 1 if failing else 0


if __name__ == "__main__":
    sys.exit(main())
