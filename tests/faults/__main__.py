"""Kills and stops the processes of random runs, and looks whether what they report happened.

    target/venv/bin/python tests/faults --kind pytest --first 1 --seeds 300
    target/venv/bin/python tests/faults --kind cargo --first 17 --seeds 1 --verbose

Each seed makes a small project, a way to run it, and faults: signals for workers, the template, the controller and so
on, at moments that are events of the run. Whatever befalls it, a run has to report what happened and nothing else, and
to leave nothing. One that was killed may leave files, which the next run has to remove. A seed that fails is printed
with the faults and the command that runs it again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from crates import Crates
from judge import Kind, needs_next_run, wrong
from pytests import Pytest
from run import Observed, Place
from scenario import Scenario, draw
from sshd import SERVER

# How much is said of one seed.
MOST_LINES = 8


def prepare(scenario: Scenario, place: Place) -> Kind:
    return Pytest(scenario, place) if scenario.kind == "pytest" else Crates(scenario, place)


def trial(scenario: Scenario, base: Path) -> tuple[list[str], Observed]:
    """Runs a scenario; returns what was wrong, and what was seen."""
    directory = Path(tempfile.mkdtemp(dir=base))
    kind = prepare(scenario, Place(directory))
    try:
        seen = kind.run(scenario.faults)
        found = wrong(kind, seen)
        if needs_next_run(kind, seen) and not found:
            following = kind.run([])
            found = [f"in the next run: {what}" for what in wrong(kind, following)]
            if found:
                seen.output += f"\n-- the next run, exit code {following.code}\n{following.output}"
        return found, seen
    finally:
        kind.stop()
        shutil.rmtree(directory, ignore_errors=True)


def describe(scenario: Scenario, found: list[str], seen: Observed, verbose: bool) -> str:
    """What a user has to know of a failure."""
    place = " over ssh" if scenario.over_ssh else ""
    lines = [f"  {scenario.count()} tests in {len(scenario.tests)} files{place}: {' '.join(scenario.options)}"]
    lines += [f"  {done}" for done in seen.done]
    lines += [f"    {line}" for line in found[:MOST_LINES]]
    if len(found) > MOST_LINES:
        lines.append(f"    and {len(found) - MOST_LINES} more")
    lines.append(
        f"  again: target/venv/bin/python tests/faults --kind {scenario.kind} --first {scenario.seed} --seeds 1"
    )
    if verbose:
        lines += [f"  exit code {seen.code}; what it wrote:", *(f"  | {line}" for line in seen.output.splitlines())]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Returns 1 if any seed fails."""
    parser = argparse.ArgumentParser(
        prog="tests/faults", description="Kills processes of runs and looks what they say."
    )
    parser.add_argument("--kind", choices=["pytest", "cargo"], default="pytest", help="what is made of a seed")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=15, help="how many seeds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2, help="how many seeds at once")
    parser.add_argument("--verbose", action="store_true", help="show what failing runs wrote")
    options = parser.parse_args()
    begun = time.monotonic()
    failing = 0
    injected: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="faults-") as name, ThreadPoolExecutor(options.jobs) as pool:

        def one(seed: int) -> tuple[int, str, Observed]:
            scenario = draw(seed, options.kind, os.path.exists(SERVER))
            found, seen = trial(scenario, Path(name))
            return seed, describe(scenario, found, seen, options.verbose) if found else "", seen

        futures = [pool.submit(one, seed) for seed in range(options.first, options.first + options.seeds)]
        for future in as_completed(futures):
            seed, text, seen = future.result()
            injected.update(f"{done.fault.signal.name} {done.fault.role}" for done in seen.done)
            if text:
                failing += 1
                print(f"seed {seed} fails\n{text}", flush=True)
    if options.verbose:
        print("\n".join(f"{times:6} {what}" for what, times in sorted(injected.items())))
    secs = time.monotonic() - begun
    print(f"{options.seeds} seeds, {injected.total()} faults, {failing} seeds failing, in {secs:.0f} s")
    return 1 if failing else 0


if __name__ == "__main__":
    sys.exit(main())
