"""pytest-cov: has it measure as it does with pytest-xdist, whether that is installed or not.

The controller's pytest-cov combines what the workers' have written. It has to be told, before it starts, that the run
is distributed; and no worker may erase what another has written.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence

_ABSENT = object()


def measured(known: argparse.Namespace) -> bool:
    """Whether pytest-cov will measure this run."""
    return bool(getattr(known, "cov_source", None)) and not getattr(known, "no_cov", False)


@contextlib.contextmanager
def distributed(known: argparse.Namespace) -> Iterator[None]:
    """While this lasts, pytest-cov finds xdist's options set for a distributed run."""
    if not measured(known):
        yield
        return
    before = {name: getattr(known, name, _ABSENT) for name in ("dist", "rsyncdir")}
    known.dist = "load"
    if before["rsyncdir"] is _ABSENT:
        # Read by pytest-cov before version 5.
        known.rsyncdir = []
    try:
        yield
    finally:
        for name, value in before.items():
            if value is _ABSENT:
                delattr(known, name)
            else:
                setattr(known, name, value)


def worker_args(known: argparse.Namespace, args: Sequence[str]) -> list[str]:
    """The arguments of a worker's pytest. Only the controller erases: a worker may start when others have ended."""
    return ["--cov-append", *args] if measured(known) else list(args)
