"""What is there when a process is forked is kept out of garbage collection, and so in memory that both share.

Python then also leaves it out where somebody asks for objects: Hypothesis does, to see whether a random generator that
some library has made is held by anybody, and so do tests that look for leaks. Who asks gets all of it back first.
"""

from __future__ import annotations

import gc
from types import BuiltinFunctionType
from typing import Any, Callable

ASKS = ("get_objects", "get_referrers")


def freeze() -> None:
    """Freezes all objects there are, for as long as nobody asks for them."""
    gc.freeze()
    for name in ASKS:
        ask = getattr(gc, name)
        if isinstance(ask, BuiltinFunctionType):
            setattr(gc, name, _thawing(name, ask))


def _thawing(name: str, ask: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    def thaw(*args: Any, **kwargs: Any) -> list[Any]:
        gc.unfreeze()
        if getattr(gc, name) is thaw:
            setattr(gc, name, ask)
        # What was asked about is held by a tuple of ours, too.
        return [found for found in ask(*args, **kwargs) if found is not args]

    return thaw
