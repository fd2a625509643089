"""The options of `--offload` and what they resolve to.

Everything is resolved once, into a plain `Settings`, before the first process is started; the rest of the package
never looks at the command line. The extension lays command line, environment and file over each other, by the same
rules as for `offload run`. What is not there yet is an error, never ignored.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pytest

from . import xdist

# What a run cannot be offloaded with, and the option that asks for it. Some end before there is a run.
PLAIN = {
    "collectonly": "--collect-only",
    "usepdb": "--pdb",
    "trace": "--trace",
    "setupshow": "--setup-show",
    "setuponly": "--setup-only",
    "setupplan": "--setup-plan",
}
# What can make sandboxes.
PROVIDERS = ("local", "docker", "ssh")
NO_RUN = ("help", "version", "markers", "showfixtures", "show_fixtures_per_test", "cacheshow")


# Named tuples, because every run of pytest that has the plugin waits for these classes, and dataclasses compile code.
class Settings(NamedTuple):
    """How a run is offloaded."""

    workers: int
    #: What makes the sandboxes.
    provider: str
    #: The whole configuration, as the extension has it.
    configuration: Any
    #: Where a provider may keep what it remembers.
    output_dir: str
    retries: int
    #: Seconds that a test may take; None: no limit.
    timeout: float | None
    #: Failures after which the run ends, where pytest's own options do not say; None: never.
    max_fail: int | None
    dist: str
    isolation: str
    collect: str
    start_method: str
    junit: str | None
    #: Where durations are kept; None: nowhere.
    history: Path | None
    record_history: bool
    #: Environment variables of the tests.
    env: dict[str, str]
    #: What is to be masked in all that the run says.
    secrets: tuple[str, ...]
    fail_on_flaky: bool
    #: xdist's options that say how this run is distributed, for the header.
    asked: str
    #: How many workers may crash before the run ends; None: any number.
    most_crashes: int | None
    #: Sentences on what was configured and has no effect, for the header.
    notices: tuple[str, ...]

    def __repr__(self) -> str:
        # Where a traceback shows it, secrets and the environment are not to be seen.
        return f"Settings(provider={self.provider!r}, workers={self.workers})"


class Option(NamedTuple):
    """A command-line option that sets a key of the configuration."""

    flag: str
    key: str
    help: str
    metavar: str | None = None
    type: Callable[[str], Any] = str
    choices: tuple[str, ...] | None = None

    @property
    def dest(self) -> str:
        return self.flag[2:].replace("-", "_")


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("offload", "running tests in parallel sandboxes (offload)")
    add = group.addoption
    add("--offload", action="store_true", default=False, help="Run the tests in parallel sandboxes.")
    add(
        "--no-offload",
        action="store_const",
        const=False,
        dest="offload",
        help="Run the tests in this process, whatever the configuration says.",
    )
    xdist.add_options(group)
    for option in OPTIONS:
        more: dict[str, Any] = {"metavar": option.metavar, "type": option.type}
        if option.choices is not None:
            more = {"choices": option.choices}
        add(option.flag, default=None, help=option.help, **more)
    add(
        "--offload-config",
        metavar="PATH",
        default=None,
        help="The configuration file (default: the nearest offload.toml, or pyproject.toml with [tool.offload]).",
    )
    add("--offload-junit", metavar="PATH", default=None, help="Write Offload's own JUnit report, with every attempt.")
    add("--offload-fail-on-flaky", action="store_true", default=False, help="Fail if a test passed only on a retry.")


def _parallel(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1, or auto, not {text!r}")
    return int(text)


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


# What can be typed and configured alike. Without a value, the configuration decides.
OPTIONS = (
    Option("--offload-provider", "provider.type", "What makes the sandboxes (default: local).", "NAME"),
    Option(
        "--offload-parallel",
        "offload.max_parallel",
        "How many sandboxes work at once: a number, or auto for one per CPU (default: auto).",
        "N",
        _parallel,
    ),
    Option(
        "--offload-retries",
        "offload.retry_count",
        "How often a failed test is tried again (default: 0).",
        "N",
        _count,
    ),
    Option(
        "--offload-flaky",
        "offload.flaky",
        "What a run amounts to in which a test passed only on a retry (default: pass). It is named in any case.",
        choices=("pass", "fail"),
    ),
    Option(
        "--offload-timeout",
        "offload.test_timeout_secs",
        "Seconds that a test may take; then it fails with the stack of every thread (default: no limit).",
        "SECS",
        _seconds,
    ),
    Option(
        "--offload-isolation",
        "framework.isolation",
        "What shares a process: the tests of a worker, or nothing (default: worker).",
        choices=("worker", "test"),
    ),
    Option(
        "--offload-dist",
        "framework.dist",
        "Which tests stay together, as with pytest-xdist's --dist (default: load).",
        choices=("load", "loadscope", "loadfile", "loadgroup"),
    ),
    Option(
        "--offload-collect",
        "framework.collect",
        "Whether workers share collection out, or one process collects everything (default: auto, which shares out "
        "unless something needs the whole list of tests).",
        choices=("auto", "serial", "parallel"),
    ),
    Option(
        "--offload-start-method",
        "framework.start_method",
        "How workers are started (default: auto, which forks where nobody can tell the difference).",
        choices=("auto", "fork", "spawn"),
    ),
)


def plain_reason(options: argparse.Namespace) -> str | None:
    """The option that makes a run plain; an empty string where there is no run at all."""
    if any(getattr(options, name, None) for name in NO_RUN):
        return ""
    for name, flag in PLAIN.items():
        if getattr(options, name, None):
            return flag
    return "-n 0" if xdist.is_plain(options) else None


def resolve(config: pytest.Config, options: argparse.Namespace) -> Settings:
    """The settings of a run; raises `pytest.UsageError` for what cannot be done."""
    asked = xdist.asked(config, options, available_cpus())
    found = _configured(config, options)
    provider = found["provider"]
    if provider not in PROVIDERS:
        raise pytest.UsageError(
            f"the provider {provider} is not supported by pytest --offload; use one of {', '.join(PROVIDERS)} "
            "(--offload-provider, or provider.type in the configuration)"
        )
    if provider != "local" and found["collect"] == "local":
        raise pytest.UsageError(
            'pytest --offload collects where the tests run: take framework.collect = "local" out of the configuration, '
            "or use `offload run`"
        )
    workers = available_cpus() if found["parallel"] is None else found["parallel"]
    if options.offload_parallel is None and asked.workers is not None:
        workers = asked.workers
    if any(getattr(options, name, False) for name in ("stepwise", "stepwise_skip", "stepwise_reset")):
        # Stepwise means: in order, up to the first failure.
        workers = 1
    env = dict(found["env"])
    if found["prepend_path"] and provider == "local":
        env["PATH"] = os.pathsep.join([*found["prepend_path"], env.get("PATH", os.environ.get("PATH", os.defpath))])
    history = Path(found["history"]) if found["history"] is not None else durations_in_cache(config)
    return Settings(
        workers=workers,
        provider=provider,
        configuration=found["configuration"],
        output_dir=found["output_dir"] if provider == "local" else output_dir(config, found["output_dir"]),
        retries=found["retries"],
        timeout=found["timeout"],
        max_fail=found["max_fail"],
        dist=found["dist"] if options.offload_dist is not None or asked.dist is None else asked.dist,
        isolation=found["isolation"],
        collect="auto" if found["collect"] in ("sandbox", "local") else found["collect"],
        start_method=found["start_method"],
        junit=options.offload_junit or found["junit"],
        history=history,
        record_history=found["record_history"] is not False,
        env=env,
        secrets=tuple(found["secrets"]),
        fail_on_flaky=options.offload_fail_on_flaky or found["fail_on_flaky"],
        asked=asked.words,
        most_crashes=xdist.most_crashes(options),
        notices=tuple(found["notices"]),
    )


def _configured(config: pytest.Config, options: argparse.Namespace) -> dict[str, Any]:
    """Command line over environment over file over defaults."""
    from . import _core

    typed = []
    for option in OPTIONS:
        value = getattr(options, option.dest)
        if value is not None:
            typed.append(
                (option.key, available_cpus() if value == "auto" and option.type is _parallel else value, option.flag)
            )
    try:
        return _core.settings(str(config.invocation_params.dir), options.offload_config, typed)
    except ValueError as error:
        text = str(error)
        raise pytest.UsageError(text[len("error: ") :] if text.startswith("error: ") else text) from None


def durations_in_cache(config: pytest.Config) -> Path | None:
    """The file in pytest's cache that tells how long tests take; None where there is no cache."""
    if not config.pluginmanager.hasplugin("cacheprovider"):
        return None
    from _pytest.cacheprovider import Cache

    directory = Cache.cache_dir_from_config(config, _ispytest=True)
    existing = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        # As with what pytest itself keeps there: a run does not fail for that.
        return None
    return Path(directory, "d", "offload", "durations.jsonl")


def output_dir(config: pytest.Config, configured: str | None) -> str:
    """Where a provider keeps what it remembers: where reports go, or in pytest's cache."""
    if configured is not None:
        return configured
    durations = durations_in_cache(config)
    if durations is None:
        return "test-results"
    make_cache(config, durations)
    return str(durations.parent)


def make_cache(config: pytest.Config, durations: Path) -> None:
    """Has pytest make its cache, with all that belongs into a new one, if durations are kept there and it is not there.

    What then writes the durations makes directories only, and can have done so before this process comes to its tests.
    """
    if durations.parent.exists() or durations != durations_in_cache(config):
        return
    from _pytest.cacheprovider import Cache

    cache = Cache(durations.parents[2], config, _ispytest=True)
    # Older versions of pytest make what belongs there for a value, and not for a directory.
    cache.set("offload/version", 1)
    cache.mkdir("offload")


def available_cpus() -> int:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1
