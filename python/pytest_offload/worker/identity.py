"""Noticing who asks which worker it is where there is no answer yet: in the template."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Callable, ClassVar

from .channel import untagged

if TYPE_CHECKING:
    from types import FrameType

    from .channel import Message

# Modules that read the worker's identity early and correctly: they look again in the worker.
IDENTITY_READERS = (
    "pytest_cov.",
    "pytest_benchmark.",
    "_pytest.",
    "__main__",
    f"{__package__}.",
    "os",
    "_collections_abc",
    "collections.abc",
    "pluggy.",
)


class IdentityWatch:
    """Notices code that asks, in the template, which worker it is.

    Such code (a log file per worker opened in a conftest) would give every fork the same answer, so its project gets
    freshly started workers. Copying the whole environment is not asking.
    """

    KEY = "PYTEST_XDIST_WORKER"

    def __init__(self) -> None:
        self.reader: str | None = None
        self._environ_class = type(os.environ)

    def start(self) -> None:
        watch = self

        class WatchedEnviron(self._environ_class):  # type: ignore[misc, name-defined]
            # Copying lists the keys and reads each, one by one or all keys first: a read is part of a copy if the key
            # has just been listed, or if all keys before it have been read, one after the other.
            order: ClassVar[list[str]] = []
            listed: ClassVar[str | None] = None
            read: ClassVar[int] = 0

            def __getitem__(self, key: str) -> str:
                cls = type(self)
                follows = cls.read < len(cls.order) and cls.order[cls.read] == key
                cls.read = cls.read + 1 if follows else 0
                if key == watch.KEY and cls.listed != key and not follows:
                    watch.note(sys._getframe(1), f"os.environ[{key!r}]")
                value: str = super().__getitem__(key)
                return value

            def __contains__(self, key: object) -> bool:
                return isinstance(key, str) and os.fsencode(key) in self._data

            def __iter__(self) -> Iterator[str]:
                cls = type(self)
                cls.order = list(super().__iter__())
                cls.read = 0
                for key in cls.order:
                    cls.listed = key
                    yield key
                cls.listed = None

        os.environ.__class__ = WatchedEnviron

    def stop(self) -> None:
        os.environ.__class__ = self._environ_class

    def note(self, frame: FrameType | None, what: str) -> None:
        while frame is not None:
            module = frame.f_globals.get("__name__", "")
            if module == f"{__package__}.program":
                # Only readers that look again. Above it is, in a fork of the controller, what that was doing.
                return
            if not is_in(module, IDENTITY_READERS):
                if self.reader is None:
                    self.reader = f"{module} reads {what}"
                return
            if is_in(module, ("pytest_cov.",)):
                return
            frame = frame.f_back


class WorkerInput(dict[str, Any]):
    """`config.workerinput`, watched until the first worker exists.

    What the controller's plugins add to it comes when they are configured; here it is waited for when it is asked for.
    """

    watch: IdentityWatch | None = None
    #: Waits for what is still to come; None once it is here.
    fetch: Callable[[], Message] | None = None
    #: What differs from worker to worker.
    personal: frozenset[str] = frozenset(("workerid",))

    def __getitem__(self, key: str) -> Any:
        if key not in self:
            raise KeyError(key)
        if key in self.personal and self.watch is not None:
            self.watch.note(sys._getframe(1), f"config.workerinput[{key!r}]")
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self:
            return default
        # Not dict's own `get`, which nobody watches.
        return self[key]

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (self._complete() and super().__contains__(key))

    def __iter__(self) -> Iterator[str]:
        self._complete()
        return super().__iter__()

    def keys(self) -> Any:
        self._complete()
        return super().keys()

    def values(self) -> Any:
        self._complete()
        return super().values()

    def items(self) -> Any:
        self._complete()
        return super().items()

    def _complete(self) -> bool:
        """Whether there is more now."""
        fetch, self.fetch = self.fetch, None
        if fetch is None:
            return False
        nodes = fetch()["nodes"]
        first = nodes["gw0"]
        names = set().union(*nodes.values())
        self.personal |= {name for name in names if any(node.get(name) != first.get(name) for node in nodes.values())}
        self.update(untagged(first))
        return True


def is_in(module: str, prefixes: Iterable[str]) -> bool:
    return any(module == p.rstrip(".") or (p.endswith(".") and module.startswith(p)) for p in prefixes)
