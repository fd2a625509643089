"""What the tests of a file are, in a few characters: by it two processes know that they collected the same.

Node ids alone do not say it. pytest names parameters that have no text of their own by position (`case0`, `case1`), and
where they come from a set, another process has the same names in another order of values.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import hashlib
import types
from collections.abc import Iterable
from typing import Any

from _pytest import nodes

# Values whose text says all and runs no code of the user's.
_TEXTUAL = frozenset((bool, int, float, complex, str, bytes, type(None), type(Ellipsis), range))
_TEXTUAL_MODULES = ("datetime", "decimal", "fractions", "ipaddress", "pathlib", "uuid")
_NAMED = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
# How far values are looked into, and how much of each.
_DEPTH = 4
_LENGTH = 200


def digest_of(items: Iterable[nodes.Item]) -> str:
    """A name for these tests: their node ids in their order, and the values of their parameters."""
    parts: list[str] = []
    known: dict[int, tuple[Any, str]] = {}
    for item in items:
        parts.append(f"\0{item.nodeid}")
        callspec = getattr(item, "callspec", None)
        for name, value in callspec.params.items() if callspec is not None else ():
            if type(value) in _TEXTUAL:
                parts.append(f"\1{name}\2{value!r}")
                continue
            # With the value, so that nothing else gets its address.
            entry = known.get(id(value))
            if entry is None:
                entry = known[id(value)] = (value, _describe(value, _DEPTH))
            parts.append(f"\1{name}\3{entry[1]}")
    return hashlib.sha256("".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _describe(value: Any, depth: int) -> str:
    """What can be told of a value without running code of its class. It is the same in every process."""
    kind = type(value)
    if kind in _TEXTUAL:
        return f"{kind.__name__}:{value!r}"
    if issubclass(kind, _NAMED):
        code = getattr(value, "__code__", None)
        closure = getattr(value, "__closure__", None) or ()
        where = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}.{value.__name__}"
        line = code.co_firstlineno if code is not None else 0
        cells = _list((_cell(cell) for cell in closure), depth) if closure else ""
        return f"{kind.__name__}:{where}:{line}:{cells}"
    name = f"{kind.__module__}.{kind.__qualname__}"
    if issubclass(kind, enum.Enum):
        return f"{name}.{value._name_}"
    if depth == 0:
        return name
    if kind.__module__.split(".", 1)[0] in _TEXTUAL_MODULES:
        return f"{name}:{value!r}"
    if kind is functools.partial:
        return f"{name}:{_list((value.func, value.args, value.keywords), depth)}"
    if kind in (list, tuple):
        return f"{name}:{_list(value, depth)}"
    if kind in (set, frozenset):
        # The order of a set that a test goes through is the same wherever it runs, or not, as in plain pytest.
        return f"{name}:{sorted(_describe(member, depth - 1) for member in value)}"
    if kind is dict:
        return f"{name}:{_list((pair for pair in value.items()), depth)}"
    return f"{name}:{_list(_state(value), depth)}"


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _list(values: Iterable[Any], depth: int) -> str:
    described = []
    for number, value in enumerate(values):
        if number == _LENGTH:
            break
        described.append(_describe(value, depth - 1) if depth > 0 else "")
    return f"[{','.join(described)}]"


def _state(value: Any) -> list[Any]:
    """The attributes of an object, and what it has as one of Python's own types."""
    state: list[Any] = []
    kind = type(value)
    for base in (str, bytes, int, float):
        if issubclass(kind, base):
            state.append(base.__repr__(value))
    for sequence in (tuple, list):
        if issubclass(kind, sequence):
            state.append(list(sequence.__iter__(value)))
    if issubclass(kind, dict):
        state.append(list(dict.items(value)))
    with contextlib.suppress(AttributeError):
        state.extend(object.__getattribute__(value, "__dict__").items())
    for owner in kind.__mro__:
        slots = owner.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            descriptor = owner.__dict__.get(slot)
            if isinstance(descriptor, types.MemberDescriptorType):
                with contextlib.suppress(AttributeError):
                    state.append((slot, descriptor.__get__(value)))
    return state
