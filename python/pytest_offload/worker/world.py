"""What tests have left behind is hidden from a file that is collected after them.

Plain pytest imports every test module before the first test runs. A worker that helps with another's file imports it
when it has run tests, and these may have changed what the module reads: a variable, the working directory, the path of
imports, a setting of the project. The module is to see them as they were.
"""

from __future__ import annotations

import contextlib
import os
import sys
import types
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

_MISSING: Any = object()
# Values that a module reads as its settings. Numbers are left alone: what counts up must not count again.
_SETTINGS = (str, bool, type(None))


class World:
    """The state of this process before its first test, as far as modules look at it when they are imported."""

    def __init__(self, rootdir: str) -> None:
        self._environ = dict(os.environ)
        self._directory = _directory()
        self._path = list(sys.path)
        self._argv = list(sys.argv)
        self._modules = dict(sys.modules)
        self._settings = {
            name: {key: value for key, value in vars(module).items() if isinstance(value, _SETTINGS)}
            for name, module in self._modules.items()
            if _belongs_to(module, rootdir)
        }

    @contextlib.contextmanager
    def before_tests(self) -> Iterator[None]:
        """Has it be as it was. What is changed meanwhile stays changed; the rest comes back as it is now."""
        environ = _Swapped(os.environ, self._environ, _differing(os.environ, self._environ))
        modules = _Swapped(sys.modules, self._modules, self._replaced())
        settings = [
            _Swapped(vars(self._modules[name]), before, changed)
            for name, before in self._settings.items()
            if (changed := _changed(vars(self._modules[name]), before))
        ]
        directory, path, argv = _directory(), list(sys.path), list(sys.argv)
        if self._directory is not None and directory != self._directory:
            with contextlib.suppress(OSError):
                os.chdir(self._directory)
        sys.path[:], sys.argv[:] = self._path, self._argv
        try:
            yield
        finally:
            for swapped in (environ, modules, *settings):
                swapped.undo()
            if directory is not None and _directory() == self._directory != directory:
                with contextlib.suppress(OSError):
                    os.chdir(directory)
            # pytest puts the directory of a test module in front.
            added = [entry for entry in sys.path if entry not in self._path]
            self._path[:0] = added
            sys.path[:] = [entry for entry in added if entry not in path] + path
            sys.argv[:] = argv

    def _replaced(self) -> set[str]:
        """Modules in whose place, or under whose name, there is something else. What was imported meanwhile stays."""
        now = sys.modules
        names = {name for name, module in self._modules.items() if now.get(name, _MISSING) is not module}
        strange = (name for name, module in list(now.items()) if not isinstance(module, types.ModuleType))
        return names | {name for name in strange if name not in self._modules}


def _differing(now: Mapping[str, Any], before: dict[str, Any]) -> set[str]:
    names = now.keys() | before.keys()
    return {name for name in names if not _same(now.get(name, _MISSING), before.get(name, _MISSING))}


def _changed(now: dict[str, Any], before: dict[str, Any]) -> set[str]:
    """Settings that have another value; what is no setting any more stays."""
    return {name for name in _differing(now, before) & before.keys() if isinstance(now.get(name, _MISSING), _SETTINGS)}


class _Swapped:
    """Some entries of a mapping that have the values that they once had, until that is undone."""

    def __init__(self, mapping: MutableMapping[str, Any], before: dict[str, Any], names: set[str]) -> None:
        self._mapping = mapping
        self._before = before
        self._now = {name: mapping.get(name, _MISSING) for name in names}
        for name in names:
            self._set(name, before.get(name, _MISSING))
        self._start = dict(mapping)

    def undo(self) -> None:
        end = dict(self._mapping)
        changed = _differing(end, self._start)
        # The next file to be collected sees it, too.
        for name in changed:
            if name in end:
                self._before[name] = end[name]
            else:
                self._before.pop(name, None)
        for name in self._now.keys() - changed:
            self._set(name, self._now[name])

    def _set(self, name: str, value: Any) -> None:
        if value is _MISSING:
            self._mapping.pop(name, None)
        else:
            self._mapping[name] = value


def _same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, str) and isinstance(other, str) and one == other)


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None


def _belongs_to(module: Any, rootdir: str) -> bool:
    file = getattr(module, "__file__", None)
    return (
        isinstance(module, types.ModuleType)
        and isinstance(file, str)
        and file.startswith(rootdir + os.sep)
        and f"{os.sep}site-packages{os.sep}" not in file
    )
