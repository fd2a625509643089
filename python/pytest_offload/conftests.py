"""Conftests that cannot be loaded here.

Where tests run somewhere else, this machine need not have what they import. The conftests are loaded here all the same,
for their options and hooks; one that needs what is not installed here is left out.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _pytest.config import ConftestImportFailure


def forgive(config: pytest.Config, tell: Callable[[str], None]) -> None:
    """From now on, a conftest that imports a module that is not here counts as empty, and `tell` hears a sentence."""
    plugins: Any = config.pluginmanager
    load = plugins._importconftest

    def load_if_possible(path: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return load(path, *args, **kwargs)
        except ConftestImportFailure as failure:
            missing = _missing(failure)
            if missing is None:
                raise
        where = Path(path)
        if where.is_relative_to(config.invocation_params.dir):
            where = where.relative_to(config.invocation_params.dir)
        tell(f"{where} is not loaded here ({missing}): its hooks work in the sandboxes only")
        empty = types.ModuleType("conftest")
        # pytest asks for it again by this name.
        plugins.register(empty, name=str(path))
        return empty

    plugins._importconftest = load_if_possible


def _missing(failure: ConftestImportFailure) -> str | None:
    """What is not installed, if it is that."""
    # Before pytest 8.1 it was part of a tuple.
    known: Any = failure
    cause = known.cause if hasattr(known, "cause") else known.excinfo[1]
    return str(cause) if isinstance(cause, ModuleNotFoundError) else None


def are_likely(config: pytest.Config) -> bool:
    """Whether pytest will find a conftest when it starts: where it looks for those that it loads at once."""
    here, root = Path(config.invocation_params.dir), config.rootpath
    named = [here / str(arg).split("::", 1)[0] for arg in config.invocation_params.args if not str(arg).startswith("-")]
    named += [root / path for path in config.getini("testpaths")]
    places = {root, here}
    for path in named:
        places.add(path)
        places.update(parent for parent in path.parents if parent.is_relative_to(root))
    # Of those, directories that begin like this are looked into, too.
    return any((place / "conftest.py").exists() or any(place.glob("test*/conftest.py")) for place in places)
