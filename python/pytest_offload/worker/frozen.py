"""What is there when a process is forked is kept out of garbage collection, and so in memory that both share.

Python then also leaves it out where somebody asks for objects: Hypothesis does, to see whether a random generator that
some library has made is held by anybody, and so do tests that look for leaks. Who asks gets all of it back first: when
`gc.get_referrers` is looked up, and not when it is called, since a function of ours around it would be seen in what it
finds.
"""

from __future__ import annotations

import gc
from typing import Any

ASKS = ("get_objects", "get_referrers")
# What has been taken away from the module `gc`, so that looking it up comes to `_thaw`.
_taken: dict[str, Any] = {}


def freeze() -> None:
    """Freezes all objects there are, for as long as nobody asks for them."""
    gc.freeze()
    module = vars(gc)
    for name in ASKS:
        if name in module:
            _taken[name] = module.pop(name)
    module["__getattr__"] = _thaw


def thaw() -> None:
    """Ends the freeze."""
    for name in list(_taken):
        getattr(gc, name)


def _thaw(name: str) -> Any:
    """`gc.__getattr__`, as long as something is frozen."""
    if name not in _taken:
        raise AttributeError(f"module 'gc' has no attribute {name!r}")
    gc.unfreeze()
    module = vars(gc)
    module.pop("__getattr__", None)
    for taken, function in _taken.items():
        module.setdefault(taken, function)
    _taken.clear()
    return module[name]


def objects() -> list[Any]:
    """The objects that are not frozen, which stay so."""
    get: Any = _taken.get("get_objects") or gc.get_objects
    found: list[Any] = get()
    return found
