"""The options of `--offload` and what they resolve to.

Everything is resolved once, into a plain `Settings`, before the first process is started; the rest of the package
never looks at the command line. An option whose feature is not there yet is an error, never ignored.
"""

from __future__ import annotations

import argparse
import copy
import os
from dataclasses import dataclass

import pytest

# What a run cannot be offloaded with, and the option that asks for it. Some end before there is a run.
PLAIN = {
    "collectonly": "--collect-only",
    "usepdb": "--pdb",
    "trace": "--trace",
    "setupshow": "--setup-show",
    "setuponly": "--setup-only",
    "setupplan": "--setup-plan",
}
NO_RUN = ("help", "version", "markers", "showfixtures", "show_fixtures_per_test", "cacheshow")


@dataclass(frozen=True)
class Settings:
    """How a run is offloaded."""

    workers: int
    retries: int
    #: Seconds that a test may take; None: no limit.
    timeout: float | None
    dist: str
    isolation: str
    collect: str
    start_method: str
    junit: str | None
    fail_on_flaky: bool
    #: xdist's options from the configuration that this run replaces, for the header.
    replaced: str


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("offload", "running tests in parallel sandboxes (offload)")
    add = group.addoption
    add("--offload", action="store_true", default=False, help="Run the tests in parallel sandboxes.")
    add("--offload-provider", metavar="NAME", default="local", help="What makes the sandboxes (default: local).")
    add(
        "--offload-parallel",
        metavar="N",
        type=_parallel,
        default="auto",
        help="How many sandboxes work at once: a number, or auto for one per CPU (default: auto).",
    )
    add(
        "--offload-retries",
        metavar="N",
        type=_count,
        default=0,
        help="How often a failed test is tried again (default: 0).",
    )
    add(
        "--offload-timeout",
        metavar="SECS",
        type=_seconds,
        default=None,
        help="Seconds that a test may take; then it fails with the stack of every thread (default: no limit).",
    )
    add(
        "--offload-isolation",
        choices=("worker", "test"),
        default="worker",
        help="What shares a process: the tests of a worker, or nothing (default: worker).",
    )
    add(
        "--offload-dist",
        choices=("load", "loadscope", "loadfile", "loadgroup"),
        default="load",
        help="Which tests stay together, as with pytest-xdist's --dist (default: load).",
    )
    add(
        "--offload-collect",
        choices=("auto", "serial", "parallel"),
        default="auto",
        help="Whether workers share collection out, or one process collects everything (default: auto, which shares "
        "out unless something needs the whole list of tests).",
    )
    add(
        "--offload-start-method",
        choices=("auto", "fork", "spawn"),
        default="auto",
        help="How workers are started (default: auto, which forks where nobody can tell the difference).",
    )
    add("--offload-config", metavar="PATH", default=None, help="The configuration file (default: offload.toml).")
    add("--offload-junit", metavar="PATH", default=None, help="Write Offload's own JUnit report, with every attempt.")
    add("--offload-fail-on-flaky", action="store_true", default=False, help="Fail if a test passed only on a retry.")


def _parallel(text: str) -> str:
    if text != "auto" and (not text.isdigit() or int(text) < 1):
        raise argparse.ArgumentTypeError(f"expected a number from 1, or auto, not {text!r}")
    return text


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a number from 0, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds, more than 0, not {text!r}")
    return seconds


def plain_reason(options: argparse.Namespace) -> str | None:
    """The option that makes a run plain; an empty string where there is no run at all."""
    if any(getattr(options, name, None) for name in NO_RUN):
        return ""
    for name, flag in PLAIN.items():
        if getattr(options, name, None):
            return flag
    return None


def resolve(config: pytest.Config, options: argparse.Namespace) -> Settings:
    """The settings of a run; raises `pytest.UsageError` for what cannot be done."""
    _refuse_what_is_missing(options)
    replaced = _replaced_xdist_options(config, options)
    parallel = options.offload_parallel
    workers = available_cpus() if parallel == "auto" else int(parallel)
    if any(getattr(options, name, False) for name in ("stepwise", "stepwise_skip", "stepwise_reset")):
        # Stepwise means: in order, up to the first failure.
        workers = 1
    return Settings(
        workers=workers,
        retries=options.offload_retries,
        timeout=options.offload_timeout,
        dist=options.offload_dist,
        isolation=options.offload_isolation,
        collect=options.offload_collect,
        start_method=options.offload_start_method,
        junit=options.offload_junit,
        fail_on_flaky=options.offload_fail_on_flaky,
        replaced=replaced,
    )


def _refuse_what_is_missing(options: argparse.Namespace) -> None:
    if options.offload_provider != "local":
        raise pytest.UsageError(
            f"--offload-provider={options.offload_provider} is not supported by this version of offload; "
            "the only value is 'local'"
        )
    if options.offload_config is not None:
        raise pytest.UsageError(
            "--offload-config is not supported by this version of offload; give the options on the command line or "
            "in pytest's addopts"
        )


def _replaced_xdist_options(config: pytest.Config, options: argparse.Namespace) -> str:
    if not _xdist_options(options):
        return ""
    typed = config._parser.parse_known_args(
        [str(arg) for arg in config.invocation_params.args], namespace=copy.copy(config.option)
    )
    both = _xdist_options(typed)
    if both:
        raise pytest.UsageError(
            f"{both} and --offload are two ways of running tests in parallel: drop {both} "
            "(--offload-parallel=N sets the number of sandboxes), or drop --offload"
        )
    return _xdist_options(options)


def _xdist_options(options: argparse.Namespace) -> str:
    """xdist's options that ask for distribution, as typed."""
    count = getattr(options, "numprocesses", None)
    if count:
        return f"-n {count}"
    if getattr(options, "distload", False):
        return "-d"
    return "--tx" if getattr(options, "tx", None) else ""


def available_cpus() -> int:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1
