"""Finding the test files, and collecting those that this process is asked for."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Union

import pytest
from _pytest import nodes, runner

from .fingerprint import digest_of
from .identity import is_in

if TYPE_CHECKING:
    Node = Union[nodes.Item, nodes.Collector]

# Modules whose hooks on the list of items treat items one by one, so that each worker can apply them to its share.
ITEMWISE = (
    "_pytest.",
    "_hypothesis_pytestplugin",
    "anyio.",
    "pytest_asyncio.",
    "pytest_benchmark.",
    "pytest_codspeed.",
    "pytest_freezer",
    "pytest_memray.",
    "pytest_retry.",
    "pytest_sugar",
    "pytest_trio.",
    "xdist.",
)
# Those among them that change the finished list itself: it is finished share by share for them.
FINISHING = ("anyio.",)


class Unit:
    """Tests that are collected together: one file, or consecutive tests of one file."""

    __slots__ = ("_digest", "deselected", "items", "nodes", "path", "refused")

    def __init__(self, path: str, members: list[Node]) -> None:
        self.path = path
        self.nodes = members
        self.items: list[nodes.Item] | None = None
        self.deselected: list[str] = []
        #: Why its tests must not be run here, once that is known.
        self.refused: str | None = None
        self._digest: str | None = None

    def digest(self) -> str:
        """A name for the tests that were collected."""
        if self._digest is None:
            self._digest = digest_of(self.items or ())
        return self._digest


class Differs(Exception):
    """The tests of a file are not those that another process collected and reported."""


def is_directory(node: Node) -> bool:
    directory = getattr(nodes, "Directory", None)
    # Before pytest 8 a package was a file that collected its directory.
    return isinstance(node, directory if directory is not None else pytest.Package)


def _path(node: Node, config: pytest.Config) -> str:
    nodeid_path = node.nodeid.split("::", 1)[0]
    return nodeid_path or os.path.relpath(str(getattr(node, "path", "")), str(config.rootpath))


class Collection:
    """The units of a session, the same in every process that walks the same directories or is forked after it."""

    def __init__(self, session: pytest.Session) -> None:
        self.session = session
        self.units: list[Unit] = []
        # The unit being collected, for reports that arise meanwhile.
        self.current = 0
        self._finish: Any = None

    def whole_list_hooks(self) -> str | None:
        """Why the items must be collected as one list, if they must."""
        option = self.session.config.option
        for name, flag in (("lf", "--lf"), ("failedfirst", "--ff"), ("newfirst", "--nf"), ("stepwise", "--sw")):
            if getattr(option, name, False):
                return f"{flag} needs the whole list of tests"
        hook = self.session.config.hook
        for caller in (hook.pytest_collection_modifyitems, hook.pytest_collection_finish):
            for impl in caller.get_hookimpls():
                module = getattr(impl.function, "__module__", "") or ""
                if not is_in(module, (*ITEMWISE, f"{__package__}.")):
                    where = getattr(impl.plugin, "__file__", None) or impl.plugin_name
                    with contextlib.suppress(ValueError):
                        where = os.path.relpath(where, str(self.session.config.rootpath)) if "/" in where else where
                    return f"{where} has {caller.name}"
        return None

    def walk(self) -> None:
        """Lets pytest collect down to files, and stops it there: no test module is imported."""
        session, hook = self.session, self.session.config.hook
        plugins = session.config.pluginmanager

        # pytest 8 leaves out a directory through which the way to another argument leads.
        once = pytest.__version__.startswith("8.") and not session.config.option.keepduplicates

        def genitems(node: Node) -> Iterator[nodes.Item]:
            if not is_directory(node):
                # A file likewise, and the tests of it that are arguments are left.
                if not (once and node in session._collection_cache):
                    self._add_leaf(node)
                return
            report, duplicate = self._collect_directory(node)
            if duplicate and once:
                return
            if report.passed:
                for child in report.result:
                    yield from genitems(child)
            if not duplicate:
                node.ihook.pytest_collectreport(report=report)

        names = ("pytest_collection_modifyitems", "pytest_collection_finish")
        callers = {}

        def check_pending() -> None:
            type(plugins).check_pending(plugins)
            # The last thing before the hooks on the list of items. Not sooner: conftests on the way register theirs.
            for name in names:
                callers[name] = getattr(hook, name)
                setattr(hook, name, plugins.subset_hook_caller(name, plugins.get_plugins()))

        session.__dict__["genitems"] = genitems
        plugins.__dict__["check_pending"] = check_pending
        try:
            type(session).perform_collect(session)
        finally:
            del session.__dict__["genitems"], plugins.__dict__["check_pending"]
            for name, caller in callers.items():
                setattr(hook, name, caller)

    def _collect_directory(self, node: Any) -> tuple[Any, bool]:
        collect = getattr(self.session, "_collect_one_node", None)
        if collect is None:
            return runner.collect_one_node(node), False
        result: tuple[Any, bool] = collect(node)
        return result

    def _add_leaf(self, node: Node) -> None:
        path = _path(node, self.session.config)
        whole_file = isinstance(node, nodes.File)
        if self.units and not whole_file and self.units[-1].path == path:
            last = self.units[-1].nodes[-1]
            if not isinstance(last, nodes.File):
                # Node ids of one file: consecutive ones are one unit.
                self.units[-1].nodes.append(node)
                return
        self.units.append(Unit(path, [node]))
        self.current = len(self.units)

    def collect_everything(self) -> None:
        """Plain pytest's collection, once. The walk may have been done already."""
        session = self.session
        if self.units:
            items: list[nodes.Item] = []
            for index, unit in enumerate(self.units):
                self.current = index
                for node in unit.nodes:
                    items.extend(session.genitems(node))
            session.items = items
            session.config.hook.pytest_collection_modifyitems(session=session, config=session.config, items=items)
            session.config.hook.pytest_collection_finish(session=session)
        else:
            with contextlib.suppress(session.Failed, session.Interrupted):
                type(session).perform_collect(session)
        session.testscollected = len(session.items)
        self.units = []
        for item in session.items:
            path = _path(item, session.config)
            if not self.units or self.units[-1].path != path:
                self.units.append(Unit(path, []))
                self.units[-1].items = []
            members = self.units[-1].items
            assert members is not None
            members.append(item)

    def collect(self, index: int) -> Unit:
        """The unit, collected by now if it was not before."""
        unit = self.units[index]
        if unit.items is not None:
            return unit
        self.current = index
        session = self.session
        items: list[nodes.Item] = []
        unit.items = items
        with _collection_warnings(session.config):
            for node in unit.nodes:
                items.extend(session.genitems(node))
            session.config.hook.pytest_collection_modifyitems(session=session, config=session.config, items=items)
            before, session.items = session.items, items
            self._finishing_hooks()(session=session)
        session.items = [*before, *items]
        session.testscollected = len(session.items)
        return unit

    def _finishing_hooks(self) -> Any:
        if self._finish is None:
            name = "pytest_collection_finish"
            implementations = getattr(self.session.config.hook, name).get_hookimpls()
            others = [impl.plugin for impl in implementations if not is_in(impl.function.__module__, FINISHING)]
            self._finish = self.session.config.pluginmanager.subset_hook_caller(name, others)
        return self._finish

    def item(self, number: int, ordinal: int, digest: str | None) -> nodes.Item:
        """A test. With `digest`, another process has collected it first, to whose tests this names the way.

        Raises `Differs` where they are others here.
        """
        unit = self.units[number]
        if unit.refused is None and digest is not None:
            unit.refused = self._why_not(number, unit, digest)
        if unit.refused is not None:
            raise Differs(unit.refused)
        items = self.collect(number).items
        if items is None or not 0 <= ordinal < len(items):
            raise Differs(f"{unit.path} has {len(items or ())} tests, and number {ordinal} was asked for")
        return items[ordinal]

    def _why_not(self, number: int, unit: Unit, digest: str) -> str | None:
        """What tells the tests of a unit from those that another process has collected."""
        try:
            self.collect(number)
        except (Exception, SystemExit) as error:
            return f"{type(error).__name__}: {error}"
        if unit.digest() == digest:
            return None
        return f"they are others, have other parameters or come in another order ({len(unit.items or ())} tests)"

    def digest(self) -> str:
        """A name for the numbering of files, by which a freshly started worker checks that it has the same one.

        What the tests of a file are is checked file by file, when one of them is to run.
        """
        names = hashlib.sha256()
        for unit in self.units:
            names.update((f"\0{unit.path}").encode("utf-8", "surrogatepass"))
        return names.hexdigest()


@contextlib.contextmanager
def _collection_warnings(config: pytest.Config) -> Iterator[None]:
    """What pytest's warnings plugin does around collection."""
    if not config.pluginmanager.hasplugin("warnings"):
        yield
        return
    from _pytest.warnings import catch_warnings_for_item

    with catch_warnings_for_item(config=config, ihook=config.hook, when="collect", item=None):
        yield


def describe(index: int, unit: Unit) -> dict[str, Any]:
    """The fields of a `collected` message."""
    tests = []
    for ordinal, item in enumerate(unit.items or ()):
        path, line, domain = item.location
        test = {"ordinal": ordinal, "id": item.nodeid, "line": line, "domain": domain, "group": _group(item)}
        if path != unit.path:
            test["path"] = path
        tests.append(test)
    return {"unit": index, "path": unit.path, "tests": tests, "deselected": unit.deselected, "digest": unit.digest()}


def _group(item: nodes.Item) -> str | None:
    names = {
        str(mark.args[0] if mark.args else mark.kwargs.get("name", "default"))
        for mark in item.iter_markers("xdist_group")
    }
    # As with xdist: what has several marks is a group of its own.
    return "_".join(sorted(names)) if names else None
