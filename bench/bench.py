"""Measures Offload side by side with the tools that people use instead, and prints tables of ratios.

Suites are generated below target/bench; what is measured against, all of it published, is installed there when it is
not on the path. How is in `contest`; what is in `cargo_suites`, `real_crates`, `pytest_suites`, `docker_suites` and
`ssh_suites`.

    python3 bench/bench.py [--runs N] [--only NAME …]
"""

from __future__ import annotations

import argparse
import sys

import cargo_suites
import docker_suites
import pytest_suites
import real_crates
import ssh_suites
from contest import SLOTS, WORK, processor, tool_version

COMPARISONS = {
    "process": cargo_suites.compare_process,
    "shared": cargo_suites.compare_shared,
    "real-crates": real_crates.compare_real,
    "overlap": cargo_suites.compare_overlap,
    "fixed": cargo_suites.compare_fixed,
    "scheduler": cargo_suites.simulate_scheduler,
    "pytest-trivial": pytest_suites.compare_trivial,
    "pytest-imports": pytest_suites.compare_imports,
    "pytest-skewed": pytest_suites.compare_skewed,
    "pytest-single": pytest_suites.compare_single,
    "pytest-isolation": pytest_suites.compare_isolation,
    "pytest-workers": pytest_suites.compare_first_test,
    "pytest-memory": pytest_suites.compare_memory,
    "docker-start": docker_suites.compare_start,
    "docker-workers": docker_suites.compare_workers,
    "ssh": ssh_suites.compare_ssh,
    "ssh-latency": ssh_suites.compare_latency,
}


def main() -> int:
    """Runs the comparisons that were asked for and prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each command (default 5)")
    parser.add_argument("--only", action="append", choices=list(COMPARISONS), help="only this comparison")
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    print(f"# {SLOTS} processors, {processor()}, {tool_version('rustc')}, {tool_version('cargo-nextest', 'nextest')}")
    missed = [name for name in options.only or COMPARISONS if not COMPARISONS[name](options.runs)]
    if missed:
        print(f"\ntargets missed in: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
