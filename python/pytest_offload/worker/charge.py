"""Whether a failure in the teardown of a wider scope was expected.

In one process pytest charges it to the last test of the scope, and if that test is expected to fail, the failure is no
error. Here the tests of a scope are shared out: the test after which a worker tears it down can be any of them, and its
marks must not decide.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from _pytest import nodes
from _pytest.skipping import evaluate_skip_marks, evaluate_xfail_marks, xfailed_key

from .collection import is_directory

if TYPE_CHECKING:
    from .collection import Collection


class Charge:
    """Knows which test is the last of a scope."""

    def __init__(self, collection: Collection, whole: bool) -> None:
        self._collection = collection
        #: Whether this process has collected all the tests of the run, and not only those of some files.
        self._whole = whole

    def last_of(self, scope: nodes.Node) -> nodes.Item | None:
        """The last test of a scope in the order of the whole run; None where that is not known."""
        if not self._whole and not any(isinstance(n, nodes.File) and not is_directory(n) for n in scope.listchain()):
            return None
        items: list[nodes.Item] = self._collection.session.items
        return next((item for item in reversed(items) if scope in item.listchain()), None)

    def matters(self, item: nodes.Item, following: nodes.Item | None) -> bool:
        """Whether scopes end between two tests that pytest charges to another one than `item`, with other marks."""
        if following is not None and item.parent is following.parent:
            return False
        needed = following.listchain() if following is not None else []
        for scope in item.listchain()[:-1]:
            if scope not in needed:
                last = self.last_of(scope)
                if last is not item and (_is_marked(item) or (last is not None and _is_marked(last))):
                    return True
        return False

    @contextlib.contextmanager
    def settled(self, item: nodes.Item, scopes: list[nodes.Node]) -> Iterator[None]:
        """While this lasts, a failure of `item` is as expected as one in the teardown of these scopes."""
        lasts = [self.last_of(scope) for scope in scopes]
        expectations = [_expectation(last) if last is not None else None for last in lasts]
        stash: Any = item.stash
        missing = object()
        before = stash.get(xfailed_key, missing)
        # Of several scopes any can be the one that failed.
        stash[xfailed_key] = expectations[0] if expectations and all(expectations) else None
        try:
            yield
        finally:
            del stash[xfailed_key]
            if before is not missing:
                stash[xfailed_key] = before


def _is_marked(item: nodes.Item) -> bool:
    return item.get_closest_marker("xfail") is not None


def _expectation(item: nodes.Item) -> Any:
    """What pytest makes of a test's marks when it sets the test up."""
    if xfailed_key in item.stash:
        return item.stash[xfailed_key]
    try:
        return None if evaluate_skip_marks(item) else evaluate_xfail_marks(item)
    except BaseException:
        # A condition that does not work is an error of that test.
        return None
