"""What was typed or configured for pytest-xdist, and means the same here.

A project that moves keeps `-n 4 --dist loadfile` in its `addopts`. Where xdist is not installed the options are this
plugin's; where it is, they are its own, and it does not act on them.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from .options import Settings

#: How xdist's ways of distributing tests are called here.
DIST = {
    "load": "load",
    "worksteal": "load",
    "loadscope": "loadscope",
    "loadfile": "loadfile",
    "loadgroup": "loadgroup",
}
#: The hook by which a project says what `-n auto` is.
AUTO_HOOK = "pytest_xdist_auto_num_workers"


class Asked(NamedTuple):
    """What xdist's options ask for; None: nothing."""

    workers: int | None = None
    dist: str | None = None
    #: The options, as they are typed.
    words: str = ""


def is_installed() -> bool:
    return importlib.util.find_spec("xdist") is not None


def add_options(group: Any) -> None:
    """The options of xdist that say how many and how, for where it is not installed."""
    if is_installed():
        return
    group._addoption(
        "-n",
        "--numprocesses",
        dest="numprocesses",
        metavar="N",
        default=None,
        type=_count,
        help="With --offload: how many sandboxes work at once, as with pytest-xdist (a number, auto, logical).",
    )
    group.addoption("--maxprocesses", type=int, default=None, help="With --offload: the most sandboxes of -n auto.")
    group.addoption(
        "--dist",
        default="no",
        choices=("no", "each", *DIST),
        help="With --offload: which tests stay together, as with pytest-xdist.",
    )
    group._addoption("-d", dest="distload", action="store_true", default=False, help="With --offload: --dist=load.")
    group.addoption("--tx", action="append", default=[], help="With --offload: N*popen means -n N.")
    group.addoption(
        "--max-worker-restart",
        dest="maxworkerrestart",
        default=None,
        help="With --offload: after how many crashes no more tests are run.",
    )
    group.addoption("--testrunuid", default=None, help="With --offload: the id of the run that all workers share.")
    group.addoption("--maxschedchunk", type=int, default=None, help="Without effect: known for pytest-xdist's sake.")
    group.addoption("--loadscope-reorder", action="store_true", default=True, help="Without effect, likewise.")
    group.addoption("--no-loadscope-reorder", dest="loadscope_reorder", action="store_false", help="Likewise.")


def _count(text: str) -> int | str:
    if text in ("auto", "logical"):
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, auto or logical, not {text!r}") from None


def refuse_without_offload(options: argparse.Namespace) -> None:
    """The options mean nothing in a run that is not offloaded, where there is no xdist."""
    if getattr(options, "numprocesses", None) and not is_installed():
        raise pytest.UsageError("-n needs pytest-xdist, which is not installed, or --offload")


def is_plain(options: argparse.Namespace) -> bool:
    """Whether the options ask for a run in this process."""
    return getattr(options, "numprocesses", None) == 0 and getattr(options, "offload_parallel", None) is None


def asked(config: pytest.Config, options: argparse.Namespace, cpus: int) -> Asked:
    """What the options ask for; raises `pytest.UsageError` for what cannot be done here."""
    words = []
    count = getattr(options, "numprocesses", None)
    workers = None
    if count is not None:
        workers = auto_workers(config, cpus) if isinstance(count, str) else int(count)
        most = getattr(options, "maxprocesses", None)
        workers = min(workers, most) if most else workers
        words.append(f"-n {count}")
        if workers < 0:
            raise pytest.UsageError(f"-n {count}: there cannot be fewer than no sandboxes")
    else:
        workers = _environments(getattr(options, "tx", None) or [], words)
    dist = getattr(options, "dist", "no")
    if dist == "no" and getattr(options, "distload", False):
        dist = "load"
    if dist == "each":
        raise pytest.UsageError("--dist=each runs every test in every environment; --offload runs each test once")
    if dist != "no":
        words.append(f"--dist {dist}")
    return Asked(workers or None, DIST.get(dist), " ".join(words))


def most_crashes(options: argparse.Namespace) -> int | None:
    """After how many crashes the run is to end; None: never."""
    said = getattr(options, "maxworkerrestart", None)
    if said is None:
        return None
    if not said.isdigit():
        raise pytest.UsageError(f"--max-worker-restart: expected a number from 0, not {said!r}")
    return int(said)


def _environments(specs: list[str], words: list[str]) -> int | None:
    """How many processes `--tx 2*popen` asks for."""
    count = 0
    for spec in specs:
        number, star, rest = spec.partition("*")
        if not star:
            number, rest = "1", spec
        if not number.isdigit() or rest != "popen":
            raise pytest.UsageError(
                f"--tx {spec} is not supported by --offload: other machines are hosts of --offload-provider=ssh"
            )
        count += int(number)
        words.append(f"--tx {spec}")
    return count or None


def auto_workers(config: pytest.Config, cpus: int) -> int:
    """How many workers `-n auto` means, as xdist would have it."""
    said = os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS", "")
    if said.isdigit() and int(said) > 0:
        return int(said)
    hook = getattr(config.hook, AUTO_HOOK, None)
    own = [impl for impl in hook.get_hookimpls() if impl.plugin_name not in ("xdist", "xdist.plugin")] if hook else []
    for impl in reversed(own):
        result = impl.function(*([config] if "config" in impl.argnames else []))
        if result is not None:
            return int(result)
    return cpus


def asks_conftest(config: pytest.Config, options: argparse.Namespace) -> bool:
    """Whether a conftest may say how many workers `-n auto` means. It has to be loaded first."""
    if not isinstance(getattr(options, "numprocesses", None), str):
        return False
    directories = {config.rootpath, Path(config.invocation_params.dir)}
    directories.update(Path(arg.split("::", 1)[0]) for arg in map(str, config.invocation_params.args))
    for directory in directories:
        try:
            if AUTO_HOOK.encode() in (directory / "conftest.py").read_bytes():
                return True
        except OSError:
            continue
    return False


def answer(config: pytest.Config, settings: Settings) -> None:
    """Has xdist's options say how the run is distributed, as in xdist's controller; xdist itself keeps still."""
    for name in ("dsession", "terminaldistreporter"):
        config.pluginmanager.set_blocked(name)
    option = config.option
    option.dist = settings.dist
    option.numprocesses = settings.workers
    option.tx = ["popen"] * settings.workers
    if hasattr(option, "distload"):
        option.distload = False
