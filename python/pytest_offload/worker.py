"""The program that runs tests: the template process and the workers that it makes.

The orchestrator starts this file in a fresh Python (the *template*). It configures pytest exactly as a worker of
pytest-xdist is configured, finds the test files, and then forks *workers*, which collect, run tests and stream results.
Imports are paid for once, not once per worker.

It is one file, and needs nothing but the standard library and pytest, because it is also carried into sandboxes that
have nothing else. ``PROTOCOL.md`` documents what it says and is told. What is decided elsewhere: which test runs where,
when a test has had its time, what is retried, and everything that a user sees.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import gc
import hashlib
import json
import mmap
import os
import select
import shutil
import signal
import socket
import struct
import sys
import time
import types
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Union

_HERE = os.path.dirname(os.path.realpath(__file__))
if __name__ == "__main__":
    # Python puts this file's directory first on the path, where its neighbours would hide modules of the user.
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != _HERE]

import pytest  # noqa: E402
from _pytest import nodes, runner  # noqa: E402

if TYPE_CHECKING:
    from types import FrameType

    Message = dict[str, Any]
    Node = Union[nodes.Item, nodes.Collector]

VERSION = 1
DUMP_SIGNAL = signal.SIGRTMAX - 2 if hasattr(signal, "SIGRTMAX") else signal.SIGUSR2
# A worker that has tests to run looks for messages this often at most, in seconds.
LISTEN_INTERVAL = 0.002
# Tests replace functions of the standard library, for longer than one test.
_getpid, _getppid, _getcwd, _chdir = os.getpid, os.getppid, os.getcwd, os.chdir
_monotonic, _sleep = time.monotonic, time.sleep
# Captured output and failure texts longer than this lose their middle.
TEXT_LIMIT = 4 * 1024 * 1024
# Modules whose hooks on the list of items treat items one by one, so that each worker can apply them to its share.
ITEMWISE = ("_pytest.", "_hypothesis_pytestplugin", "pytest_asyncio.", "xdist.")
# Modules that read the worker's identity early and correctly: they look again in the worker.
IDENTITY_READERS = (
    "pytest_cov.",
    "pytest_benchmark.",
    "_pytest.",
    "__main__",
    "pytest_offload.worker",
    "os",
    "_collections_abc",
    "collections.abc",
    "pluggy.",
)
# xdist's options as they are where nothing is distributed.
XDIST_OPTIONS: tuple[tuple[str, Any], ...] = (("dist", "no"), ("numprocesses", None), ("tx", []), ("distload", False))
# As xdist describes its marker, for where xdist is not installed.
XDIST_GROUP = "xdist_group(name): with --offload-dist=loadgroup, tests of one group run in one sandbox, in order."
# The options of the plugin, for where it is not: those of `pytest --offload` can be in a project's `addopts`.
PLUGIN_FLAGS = ("--offload", "--offload-fail-on-flaky")
PLUGIN_OPTIONS = (
    "--offload-provider",
    "--offload-parallel",
    "--offload-retries",
    "--offload-timeout",
    "--offload-isolation",
    "--offload-dist",
    "--offload-collect",
    "--offload-start-method",
    "--offload-config",
    "--offload-junit",
)
# The attributes of a report of which nothing is lost in the short message for a passed test.
PLAIN_REPORT = frozenset(
    (
        "_id",
        "duration",
        "keywords",
        "location",
        "longrepr",
        "nodeid",
        "outcome",
        "sections",
        "start",
        "stop",
        "user_properties",
        "when",
    )
)


# ---------------------------------------------------------------------------------------------------------------------
# The channel


class Closed(Exception):
    """The orchestrator has gone."""


_encode = json.JSONEncoder(separators=(",", ":"), default=str, allow_nan=False).encode


def to_json(message: object) -> str:
    """One line of JSON, whatever plugins have put into reports: what JSON cannot hold becomes its text."""
    try:
        return _encode(message)
    except (ValueError, TypeError):
        return _encode(_plain(message))


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        return value
    return str(value)


class Channel:
    """JSON lines over a Unix socket. Blocking and without a thread: tests may fork, and may count threads."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        # A test may close or replace the low descriptors.
        self._received = bytearray()
        self._unsent: list[str] = []
        #: Called before anything is written.
        self.before_sending: Callable[[], None] | None = None

    def fileno(self) -> int:
        return self._socket.fileno()

    def post(self, kind: str, /, **fields: object) -> None:
        """Holds a message back until `flush`: what belongs together is one write and wakes the reader once."""
        fields["type"] = kind
        self._unsent.append(to_json(fields))

    def post_started(self, key: int) -> None:
        """Said of every test, as is the next one: without the general encoder, which costs more than the rest of it."""
        self._unsent.append(f'{{"type":"started","key":{key}}}')

    def post_passed(self, key: int, durations: list[float]) -> None:
        """The result of a test of which there is nothing else to say. Durations are finite."""
        self._unsent.append(f'{{"type":"finished","key":{key},"durations":{durations},"outcome":"passed"}}')

    def flush(self) -> None:
        if not self._unsent:
            return
        data = ("\n".join(self._unsent) + "\n").encode("ascii")
        self._unsent.clear()
        if self.before_sending is not None:
            self.before_sending()
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Closed(str(error)) from error

    def discard(self) -> None:
        """Forgets what has been held back."""
        self._unsent.clear()

    def send(self, kind: str, /, **fields: object) -> None:
        self.post(kind, **fields)
        self.flush()

    def receive(self, block: bool) -> list[Message]:
        """The messages that have come in; waits for at least one if `block`. Raises `Closed` at the end."""
        messages: list[Message] = []
        while True:
            if not block or messages:
                ready, _, _ = select.select([self._socket], [], [], 0) if self.fileno() < 1024 else self._poll()
                if not ready:
                    return messages
            try:
                data = self._socket.recv(1 << 16)
            except OSError as error:
                raise Closed(str(error)) from error
            if not data:
                raise Closed("the orchestrator closed the connection")
            self._received += data
            if b"\n" in data:
                *lines, rest = bytes(self._received).split(b"\n")
                self._received = bytearray(rest)
                messages.extend(json.loads(line) for line in lines if line)

    def _poll(self) -> tuple[list[Any], None, None]:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return [fd for fd, _ in poll.poll(0)], None, None

    def close(self) -> None:
        """Closes this process's copy only; a parent or child keeps its own."""
        os.close(self._socket.detach())


# ---------------------------------------------------------------------------------------------------------------------
# Who reads the worker's identity before there is a worker


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
            if not _is_in(module, IDENTITY_READERS):
                if self.reader is None:
                    self.reader = f"{module} reads {what}"
                return
            if _is_in(module, ("pytest_cov.",)):
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
        self.update(_untagged(first))
        return True


def _is_in(module: str, prefixes: Iterable[str]) -> bool:
    return any(module == p.rstrip(".") or (p.endswith(".") and module.startswith(p)) for p in prefixes)


# ---------------------------------------------------------------------------------------------------------------------
# Collection


class Unit:
    """Tests that are collected together: one file, or consecutive tests of one file."""

    __slots__ = ("deselected", "items", "nodes", "path")

    def __init__(self, path: str, members: list[Node]) -> None:
        self.path = path
        self.nodes = members
        self.items: list[nodes.Item] | None = None
        self.deselected: list[str] = []


def _is_directory(node: Node) -> bool:
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
                if not _is_in(module, (*ITEMWISE, __name__)):
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
            if not _is_directory(node):
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
        session.items = [*session.items, *items]
        session.testscollected = len(session.items)
        return unit

    def item(self, unit: int, ordinal: int) -> nodes.Item:
        items = self.collect(unit).items
        if items is None or not 0 <= ordinal < len(items):
            raise LookupError(
                f"{self.units[unit].path} gave {len(items or ())} tests here, and test number {ordinal} was asked for: "
                "its tests differ from one collection to the next; collect once with --offload-collect=serial"
            )
        return items[ordinal]

    def digest(self) -> str:
        """A name for the numbering, by which a freshly started worker checks that it has the same one."""
        names = hashlib.sha256()
        for unit in self.units:
            names.update((f"\0{unit.path}").encode("utf-8", "surrogatepass"))
            for item in unit.items or ():
                names.update((f"\1{item.nodeid}").encode("utf-8", "surrogatepass"))
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
    return {"unit": index, "path": unit.path, "tests": tests, "deselected": unit.deselected}


def _group(item: nodes.Item) -> str | None:
    mark = item.get_closest_marker("xdist_group")
    if mark is None:
        return None
    return str(mark.args[0] if mark.args else mark.kwargs.get("name", "default"))


# ---------------------------------------------------------------------------------------------------------------------
# Plugins that stand in for pytest's own


class QuietTerminal:
    """The terminal reporter for code that asks for it; writes nothing, hears no hooks."""

    def __init__(self, reporter: Any) -> None:
        self.__dict__["_reporter"] = reporter
        reporter._tw._file = open(os.devnull, "w")  # noqa: SIM115 - open as long as the process lives

    def __getattr__(self, name: str) -> Any:
        if name.startswith("pytest_"):
            raise AttributeError(name)
        return getattr(self.__dict__["_reporter"], name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.__dict__["_reporter"], name, value)


class XmlRecorder:
    """What the fixtures `record_xml_attribute` and `record_testsuite_property` need of the JUnit plugin."""

    def __init__(self, channel: Channel, family: str) -> None:
        self.family = "xunit1" if family == "legacy" else family
        self.attributes: list[tuple[str, str]] = []
        self._channel = channel

    def node_reporter(self, _nodeid: object) -> XmlRecorder:
        return self

    def add_attribute(self, name: str, value: object) -> None:
        self.attributes.append((str(name), str(value)))

    def add_global_property(self, name: str, value: object) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name parameter needs to be a string, but {type(name).__name__} given")
        if os.environ.get("PYTEST_CURRENT_TEST", "").endswith("(call)"):
            self._channel.post("property", name=name, value=str(value))
        else:
            # A fixture of a wide scope says it in every worker.
            self._channel.post("data", kind="property_once", payload=[name, str(value)])


@pytest.fixture(scope="session")
def worker_id(request: pytest.FixtureRequest) -> str:
    """The id of the current worker ('gw0', 'gw1', ...)."""
    return os.environ["PYTEST_XDIST_WORKER"]


@pytest.fixture(scope="session")
def testrun_uid(request: pytest.FixtureRequest) -> str:
    """An id that is shared by all workers of a run and differs between runs."""
    return os.environ["PYTEST_XDIST_TESTRUNUID"]


def register_group_marker(config: pytest.Config) -> None:
    """Makes xdist's marker a known one where xdist is not installed."""
    if not any(line.startswith("xdist_group") for line in config.getini("markers")):
        config.addinivalue_line("markers", XDIST_GROUP)


def xdist_fixtures() -> types.ModuleType:
    """A plugin with xdist's fixtures, for where xdist is not installed."""
    plugin = types.ModuleType("offload_fixtures")
    plugin.__dict__.update(worker_id=worker_id, testrun_uid=testrun_uid)
    return plugin


def stand_in_for_xdist(config: pytest.Config) -> None:
    """Has plugins find xdist where it is not installed, in the controller as in the workers.

    Many register what they have for workers only where there is a plugin of that name, and rely on it in every process
    that has a `config.workerinput`.
    """
    plugins = config.pluginmanager
    # Named by `-p`, it has the name of its module.
    if plugins.hasplugin("xdist") or plugins.hasplugin("xdist.plugin"):
        return
    plugins.add_hookspecs(_xdist_hooks())
    plugins.register(types.ModuleType("offload_xdist"), "xdist")
    # Who has found the plugin may look at its options without asking whether there are any.
    for name, value in XDIST_OPTIONS:
        if not hasattr(config.option, name):
            setattr(config.option, name, copy.copy(value))


def _xdist_hooks() -> types.ModuleType:
    """Declares the hooks of xdist's that plugins implement. Those that are not called here are so never called."""

    def pytest_configure_node(node: object) -> None:
        pass

    def pytest_testnodeready(node: object) -> None:
        pass

    def pytest_testnodedown(node: object, error: object) -> None:
        pass

    def pytest_xdist_setupnodes(config: pytest.Config, specs: object) -> None:
        pass

    def pytest_xdist_newgateway(gateway: object) -> None:
        pass

    def pytest_xdist_node_collection_finished(node: object, ids: object) -> None:
        pass

    @pytest.hookspec(firstresult=True)
    def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> None:
        pass

    @pytest.hookspec(firstresult=True)
    def pytest_xdist_auto_num_workers(config: pytest.Config) -> None:
        pass

    def pytest_handlecrashitem(crashitem: object, report: object, sched: object) -> None:
        pass

    specs = types.ModuleType("offload_xdist_hooks")
    specs.__dict__.update({name: spec for name, spec in locals().items() if name.startswith("pytest_")})
    return specs


# ---------------------------------------------------------------------------------------------------------------------
# The plugin: what a worker's pytest does differently


class WorkerPlugin:
    """Hooks into one pytest session, first as the template, later (in a fork) as a worker."""

    def __init__(self, channel: Channel, nonce: str, init: Message, watch: IdentityWatch) -> None:
        # The name under which pytest registers it; the controller's plugin looks for it and keeps still.
        self.__name__ = "offload-worker"
        self.channel = channel
        self.nonce = nonce
        self.init = init
        self.watch = watch
        self.worker_id: str | None = init.get("worker_id")
        self.session: Any = None
        self.workerinput: WorkerInput = WorkerInput()
        self.collection: Any = None
        self.reports: list[Any] = []
        self.xml: XmlRecorder | None = None
        # Whether what collection says has been said already by another process.
        self.silent = self.worker_id is not None or bool(init.get("again"))
        self.pid = os.getpid()
        self.finished = False
        # What the controller's plugins have for each worker, once that is known, and messages that came before it.
        self.nodes: Message | None = None if init.get("await_workerinput") else {"nodes": {"gw0": {}}, "ask": False}
        self.early: list[Message] = []
        self.coverage: CoverageKeeper | None = None
        self.greeted = False
        # The template is a fork of the controller, and a fresh one has to take its place.
        self.replace = False
        self._deselected: list[str] = []
        self._collect_reports: list[tuple[int, Any]] = []
        self._lastfailed: Any = None

    # -- configuration

    def receive_nodes(self) -> Message:
        """Waits for the controller's plugins to be configured. Their answer may be that there will be no run."""
        while self.nodes is None:
            try:
                messages = self.channel.receive(block=True)
            except Closed:
                os._exit(1)
            self.hear(messages)
        return self.nodes

    def hear(self, messages: list[Message]) -> None:
        """Keeps messages that come before there is a loop for them."""
        for message in messages:
            if message["type"] == "workerinput":
                self.nodes = self._without_collocation(message)
            elif message["type"] == "shutdown":
                os._exit(0)
            else:
                self.early.append(message)

    def _without_collocation(self, message: Message) -> Message:
        """Has pytest-cov hand over what it measured where the controller does not find it in a file."""
        if self.init.get("elsewhere"):
            for node in message["nodes"].values():
                if "cov_master_host" in node:
                    node["cov_master_host"] = ""
        return message

    def pytest_addoption(self, parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
        if not self.init.get("standalone"):
            return
        # Whether the plugin is installed or not, it has nothing to do here.
        for name in ("offload", "pytest_offload.plugin"):
            pluginmanager.set_blocked(name)
        group = parser.getgroup("offload", "of the plugin that started this process")
        for flag in PLUGIN_FLAGS:
            group.addoption(flag, action="store_true")
        for flag in PLUGIN_OPTIONS:
            group.addoption(flag)

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> None:
        worker_id = self.worker_id or "gw0"
        workerinput = WorkerInput(
            workerid=worker_id,
            workercount=self.init["workers"],
            testrunuid=self.init["run_uid"],
            mainargv=self.init["mainargv"],
        )
        if self.worker_id is None:
            workerinput.watch = self.watch
            workerinput.fetch = self.receive_nodes
        else:
            workerinput.update(_untagged(self.init.get("workerinput", {})))
        self.workerinput = workerinput
        if not self.init.get("alone"):
            # By this plugins know that there is a controller, from which some need more than is here.
            config.workerinput = workerinput  # type: ignore[attr-defined]
            config.workeroutput = {}  # type: ignore[attr-defined]
        option = config.option
        for name, value in XDIST_OPTIONS:
            if hasattr(option, name):
                setattr(option, name, copy.copy(value))
        option.usepdb = False
        if not config.pluginmanager.hasplugin("xdist"):
            config.pluginmanager.register(xdist_fixtures(), "offload-fixtures")
            register_group_marker(config)
            if not self.init.get("alone"):
                stand_in_for_xdist(config)

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        plugins = config.pluginmanager
        reporter = plugins.getplugin("terminalreporter")
        if reporter is not None:
            plugins.unregister(reporter)
            plugins.register(QuietTerminal(reporter), "terminalreporter")
        if getattr(config.option, "xmlpath", None):
            from _pytest.junitxml import xml_key

            self.xml = XmlRecorder(self.channel, config.getini("junit_family"))
            stash: Any = config.stash
            stash[xml_key] = self.xml

    @pytest.hookimpl(tryfirst=True)
    def pytest_unconfigure(self, config: pytest.Config) -> None:
        if self.xml is not None:
            from _pytest.junitxml import xml_key

            stash: Any = config.stash
            stash.setdefault(xml_key, self.xml)
            del stash[xml_key]

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.session = session
        self.collection = Collection(session)
        reporter = session.config.pluginmanager.getplugin("terminalreporter")
        if reporter is not None:
            reporter._session = session
        # pytest's own pytest_collection calls this: every hook around collection stays as it is.
        session.__dict__["perform_collect"] = self._perform_collect

    # -- collection

    def _perform_collect(self, args: object = None, genitems: bool = True) -> Sequence[nodes.Item]:
        session, collection = self.session, self.collection
        del session.__dict__["perform_collect"]
        wanted = self.init["collect"]
        reason = None if wanted == "parallel" else collection.whole_list_hooks()
        if wanted == "serial":
            reason = "--offload-collect=serial"
        if reason is None:
            maxfail, session.config.option.maxfail = session.config.option.maxfail, 0
            collection.walk()
            session.config.option.maxfail = maxfail
            if wanted != "parallel":
                # Directories that were walked may have brought conftests with them.
                reason = collection.whole_list_hooks()
        if reason is not None:
            collection.collect_everything()
        self.init["collect"], self.init["collect_reason"] = ("serial", reason) if reason else ("parallel", "")
        return list(session.items)

    def pytest_deselected(self, items: Sequence[nodes.Item]) -> None:
        self._deselected.extend(item.nodeid for item in items)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.passed:
            # A file that could not be collected in the last run is forgotten as failed by the controller's cache.
            if self._lastfailed is None:
                cache = getattr(self.session.config, "cache", None)
                self._lastfailed = cache.get("cache/lastfailed", {}) if cache is not None else {}
            if report.nodeid not in self._lastfailed:
                return
        self._collect_reports.append((self.collection.current, report))

    def send_collect_reports(self) -> None:
        """Sends what collection had to say. Later than it arises: only now is it known what comes last."""
        last = len(self.collection.units) - 1
        for unit, report in self._collect_reports:
            if not self.silent:
                data = self.serialize(report)
                data["$unit"] = unit
                data["$last"] = unit >= last and not self.session.shouldfail
                text = _shorten(str(report.longreprtext)) if report.failed and self.init.get("standalone") else ""
                self.channel.post("collect_report", report=data, text=text)
        self._collect_reports.clear()

    def collect(self, indices: Iterable[int]) -> None:
        """A worker's share of the collection."""
        for index in indices:
            self._deselected = []
            try:
                unit = self.collection.collect(index)
            except pytest.UsageError as error:
                # An expression for -k or -m, looked at for the first time.
                self.channel.send("data", kind="usage_error", payload=[str(arg) for arg in error.args])
                raise
            unit.deselected = self._deselected
            self.send_collect_reports()
            self.channel.send("collected", **describe(index, unit))
        self.session.config.hook.pytest_collection_finish(session=self.session)
        self.send_nodeids()
        self.channel.send("collect_done")

    def send_nodeids(self) -> None:
        """Names every test for pytest's cache, where a run may end before it has started them all."""
        option = self.session.config.option
        if self.init["max_fail"] or getattr(option, "stepwise", False):
            nodeids = [item.nodeid for item in self.session.items]
            self.channel.post("data", kind="nodeids", payload=nodeids)

    def serialize(self, report: Any) -> dict[str, Any]:
        config = self.session.config
        sections = getattr(report, "sections", None)
        if sections:
            report.sections = [(name, _shorten(text)) for name, text in sections]
        properties = getattr(report, "user_properties", None)
        if properties:
            report.user_properties = [(name, _tagged(value)) for name, value in properties]
        data: dict[str, Any] = config.hook.pytest_report_to_serializable(config=config, report=report)
        return data

    # -- the test loop

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if self.worker_id is None:
            template = Template(self)
            if template.spawn_reason and self.init.get("forked"):
                # Freshly started workers and this process, which has the controller's hash seed, would differ.
                self.replace = True
                return True
            worker_id = template.serve()
            if worker_id is None:  # pragma: no cover - the template never gets here
                return True
        else:
            check_digest(self)
            become_worker(self, self.worker_id, forked=False)
        # When a run stops is decided where all results are seen.
        session.config.option.maxfail = 0
        session.testsfailed = 0
        stepwise = session.config.pluginmanager.getplugin("stepwiseplugin")
        if stepwise is not None:
            session.config.pluginmanager.unregister(stepwise)
        worker = Worker(self)
        worker.run()
        self.coverage = worker.coverage
        self.finished = True
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        yield
        self.leave_if_forked()

    def leave_if_forked(self) -> None:
        """A test that forks and lets the child return must not be reported twice."""
        if _getpid() != self.pid:
            os._exit(0)

    # -- what goes to the controller besides reports

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: object
    ) -> None:
        # The controller configures itself the same way and has those warnings already.
        if (when == "config" and not self.finished) or (when == "collect" and self.silent):
            return
        message = warning_message.message
        category = warning_message.category
        self.channel.post(
            "warning",
            warning={
                "message": str(message),
                "category": category.__name__,
                "category_module": category.__module__,
                "filename": warning_message.filename,
                "lineno": warning_message.lineno,
                "line": warning_message.line,
                "when": when,
                "nodeid": nodeid,
                "location": location,
            },
        )

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        if isinstance(excinfo.value, pytest.exit.Exception):
            value = excinfo.value
            self.channel.send("exit", reason=str(value.msg), returncode=value.returncode)

    @pytest.hookimpl(tryfirst=True)
    def pytest_internalerror(self, excrepr: object) -> bool:
        if self.worker_id is not None and not self.greeted:
            # Nobody listens to a process that has not said who it is; what it wrote is looked at.
            path = os.path.join(os.path.dirname(self.channel.path), f"{self.worker_id}.stderr")
            with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{excrepr}\n")
            return True
        with contextlib.suppress(Closed):
            self.channel.send("internal_error", text=str(excrepr))
        return True


def _tagged(value: object) -> object:
    """JSON has no tuples, sets or bytes; reporters show what a test recorded as Python writes it."""
    if isinstance(value, list):
        return [_tagged(member) for member in value]
    if isinstance(value, tuple):
        return {"$tuple": [_tagged(member) for member in value]}
    if isinstance(value, (set, frozenset)):
        return {"$set": [_tagged(member) for member in value]}
    if isinstance(value, bytes):
        return {"$bytes": value.decode("latin-1")}
    if isinstance(value, dict):
        pairs = [(_tagged(key), _tagged(member)) for key, member in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in pairs):
            return dict(pairs)
        return {"$dict": pairs}
    return value


def _untagged(value: Any) -> Any:
    """The inverse of `_tagged`."""
    if isinstance(value, list):
        return [_untagged(member) for member in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((tag, content),) = value.items()
        if tag == "$tuple":
            return tuple(_untagged(member) for member in content)
        if tag == "$set":
            return {_untagged(member) for member in content}
        if tag == "$bytes":
            return content.encode("latin-1")
        if tag == "$dict":
            return {_untagged(key): _untagged(member) for key, member in content}
    return {key: _untagged(member) for key, member in value.items()}


def _shorten(text: str) -> str:
    if len(text) <= TEXT_LIMIT:
        return text
    half = TEXT_LIMIT // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n[... {left_out} characters left out by offload ...]\n{text[-half:]}"


# ---------------------------------------------------------------------------------------------------------------------
# The template


class Template:
    """Makes workers on request and says when they have ended."""

    def __init__(self, plugin: WorkerPlugin) -> None:
        self.plugin = plugin
        self.channel = plugin.channel
        # By pid: the worker's id and the descriptor that becomes readable when it ends (-1: none).
        self.workers: dict[int, tuple[str, int]] = {}
        # Workers that have been asked for, and what the controller's plugins have for those that it has named.
        self.wanted: list[str] = []
        self.nodes: dict[str, Message] = {}
        self.asked: set[str] = set()
        self.forked = False
        self.spawn_reason = self._why_not_fork()

    def serve(self) -> str | None:
        """Answers requests until the end. Returns the worker's id, in a forked worker only."""
        plugin, channel = self.plugin, self.channel
        self._announce()
        channel.flush()
        gc.collect()
        gc.freeze()
        try:
            # Forks only afterwards: workers have what the controller's plugins give them from the beginning.
            plugin.receive_nodes()
            messages, plugin.early = plugin.early, []
            while True:
                for message in messages:
                    if message["type"] == "shutdown":
                        self._end(0)
                    if message["type"] == "workerinput":
                        self.nodes.update(plugin._without_collocation(message)["nodes"])
                    if message["type"] == "announce":
                        # Its numbering is the one that counts, after all.
                        plugin.init["again"] = plugin.silent = False
                        self._announce()
                        channel.flush()
                    if message["type"] == "fork":
                        self.wanted.append(message["id"])
                for worker_id in self._ready():
                    if self._start(worker_id):
                        return worker_id
                self._wait()
                messages = channel.receive(block=False)
        except Closed:
            self._end(1)
        return None

    def _ready(self) -> Iterator[str]:
        """The wanted workers that can be started. Of one that takes another's place the controller has to be told."""
        nodes = self.plugin.receive_nodes()
        for worker_id in list(self.wanted):
            if worker_id not in nodes["nodes"] and worker_id not in self.nodes and nodes["ask"]:
                if worker_id not in self.asked:
                    self.asked.add(worker_id)
                    self.channel.send("data", kind="node", payload=worker_id)
                continue
            self.wanted.remove(worker_id)
            yield worker_id

    def _input(self, worker_id: str) -> Message:
        """What the controller's plugins have for this worker."""
        given: dict[str, Message] = self.plugin.receive_nodes()["nodes"]
        # Where no plugin makes a difference, what the first worker has is for all.
        return self.nodes.get(worker_id) or given.get(worker_id) or given["gw0"]

    def _announce(self) -> None:
        plugin, channel = self.plugin, self.channel
        units = plugin.collection.units
        digest = plugin.collection.digest()
        if plugin.init.get("again"):
            channel.post("numbered", digest=digest)
            return
        channel.post(
            "configured",
            collect=plugin.init["collect"],
            collect_reason=plugin.init["collect_reason"],
            start="spawn" if self.spawn_reason else "fork",
            start_reason=self.spawn_reason or "",
        )
        plugin.send_collect_reports()
        if plugin.init["collect"] == "parallel":
            channel.post("units", units=[{"unit": i, "path": u.path} for i, u in enumerate(units)], digest=digest)
            return
        if units and plugin._deselected:
            units[0].deselected = plugin._deselected
        elif plugin._deselected:
            channel.post("collected", unit=0, path="", tests=[], deselected=plugin._deselected)
        for index, unit in enumerate(units):
            channel.post("collected", **describe(index, unit))
        config = plugin.session.config
        lines = config.hook.pytest_report_collectionfinish(
            config=config,
            start_path=config.invocation_params.dir,
            items=plugin.session.items,
        )
        channel.post("data", kind="collectionfinish", payload=[_lines(entry) for entry in reversed(lines)])
        stepwise = getattr(config.pluginmanager.getplugin("stepwiseplugin"), "cached_info", None)
        if stepwise is not None:
            failed = stepwise.last_failed
            state = {
                "last_test_count": stepwise.last_test_count,
                "last_failed": None if failed is None else str(failed),
            }
            channel.post("data", kind="stepwise", payload=state)
        plugin.send_nodeids()
        channel.post("collection_finished", digest=digest)

    def _why_not_fork(self) -> str | None:
        wanted = self.plugin.init["start_method"]
        self.plugin.watch.stop()
        self.plugin.workerinput.watch = None
        if wanted == "spawn":
            return "--offload-start-method=spawn"
        if wanted == "fork":
            return None
        if not sys.platform.startswith("linux"):
            return f"fork is not safe on {sys.platform}"
        if self.plugin.watch.reader:
            return self.plugin.watch.reader + ", before there are workers"
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            return "a child process was started before there are workers"
        except ChildProcessError:
            pass
        # Threads that end at fork (OpenBLAS's) are no danger; this makes them end.
        pid = _fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        threads = len(os.listdir("/proc/self/task"))
        if threads > 1:
            return f"{threads - 1} threads were started before there are workers"
        if self._connected():
            return "a connection was opened before there are workers"
        return None

    def _connected(self) -> bool:
        """Whether there is a socket that workers must not share: one that is connected to somebody, or awaits that."""
        database = getattr(getattr(self.plugin.session.config, "failures_db", None), "sock", None)
        for fd, name in open_sockets():
            if name in self.plugin.init["sockets"] or fd == self.channel.fileno():
                continue
            if database is not None and fd == database.fileno():
                # pytest-rerunfailures's, which each worker opens anew.
                continue
            with socket.socket(fileno=os.dup(fd)) as copy:
                if copy.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
                    continue
                try:
                    # A pair of sockets, as every event loop has one, has no name.
                    if copy.getpeername():
                        return True
                except OSError:
                    if copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        return True
        return False

    def _start(self, worker_id: str) -> bool:
        """True in the forked worker."""
        if self.spawn_reason:
            pid = self._spawn(worker_id)
        else:
            capture = self.plugin.session.config.pluginmanager.getplugin("capturemanager")
            if capture is not None and capture.is_globally_capturing():
                capture.read_global_capture()
            self.forked = True
            pid = _fork()
            if pid == 0:
                for _, pidfd in self.workers.values():
                    if pidfd >= 0:
                        os.close(pidfd)
                self.channel.close()
                workerinput = self.plugin.workerinput
                workerinput.fetch = None
                workerinput.update(_untagged(self._input(worker_id)))
                become_worker(self.plugin, worker_id, forked=True)
                return True
        pidfd = -1
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(pid)
        self.workers[pid] = (worker_id, pidfd)
        return False

    def _spawn(self, worker_id: str) -> int:
        directory = os.path.dirname(self.channel.path)
        path = os.path.join(directory, f"{worker_id}.json")
        workerinput = self._input(worker_id)
        init = dict(
            self.plugin.init, worker_id=worker_id, digest=self.plugin.collection.digest(), workerinput=workerinput
        )
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(to_json(init))
        environ = dict(self.plugin.init["environ"], PYTEST_XDIST_WORKER=worker_id)
        command = [*self.plugin.init["command"], self.channel.path, self.plugin.nonce, path]
        return os.posix_spawn(command[0], command, environ)

    def _wait(self) -> None:
        """Waits for a message; reports workers that end meanwhile."""
        while True:
            poll = select.poll()
            poll.register(self.channel.fileno(), select.POLLIN)
            blind = False
            for _, pidfd in self.workers.values():
                if pidfd >= 0:
                    poll.register(pidfd, select.POLLIN)
                else:
                    blind = True
            ready = {fd for fd, _ in poll.poll(20 if blind else None)}
            for pid, (worker_id, pidfd) in list(self.workers.items()):
                if pidfd in ready or pidfd < 0:
                    self._reap(pid, worker_id, pidfd)
            if self.channel.fileno() in ready:
                return

    def _reap(self, pid: int, worker_id: str, pidfd: int) -> None:
        # The process is looked at, and only then let go: until then its number names its process group for certain.
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        _kill_group(pid)
        _, status = os.waitpid(pid, 0)
        del self.workers[pid]
        if pidfd >= 0:
            os.close(pidfd)
        killed = os.WIFSIGNALED(status)
        self.channel.send(
            "exited",
            id=worker_id,
            pid=pid,
            code=None if killed else os.WEXITSTATUS(status),
            signal=os.WTERMSIG(status) if killed else None,
        )

    def _end(self, code: int) -> None:
        if code == 0 and not self.spawn_reason and not self.forked:
            # No worker has what collection did here.
            controller = getattr(self.plugin.session.config.pluginmanager.getplugin("_cov"), "cov_controller", None)
            if controller is not None:
                controller.finish()
        for pid in self.workers:
            _kill_group(pid)
            with contextlib.suppress(OSError):
                # A worker that is too young to have its own group.
                os.kill(pid, signal.SIGKILL)
        for pid in self.workers:
            with contextlib.suppress(OSError):
                os.waitpid(pid, 0)
        if code != 0:
            # Whoever made the directory is not there to remove it.
            shutil.rmtree(os.path.dirname(self.channel.path), ignore_errors=True)
        os._exit(code)


def _lines(entry: str | Sequence[str]) -> Sequence[str]:
    return [entry] if isinstance(entry, str) else list(entry)


def open_sockets() -> list[tuple[int, str]]:
    """Descriptors and names of the sockets that this process has."""
    found = []
    for entry in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with contextlib.suppress(OSError):
            name = os.readlink(f"/proc/self/fd/{entry}")
            if name.startswith("socket:"):
                found.append((int(entry), name))
    return found


def _fork() -> int:
    with warnings.catch_warnings():
        # Python warns of threads; they have been looked for, or the user insists.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _kill_group(pgid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pgid, signal.SIGKILL)


# ---------------------------------------------------------------------------------------------------------------------
# The worker


def become_worker(plugin: WorkerPlugin, worker_id: str, forked: bool) -> None:
    """Everything in which a worker's process differs from the template's."""
    config = plugin.session.config
    if forked:
        lead_group(plugin.init)
        plugin.channel = Channel(plugin.channel.path)
        if plugin.xml is not None:
            plugin.xml._channel = plugin.channel
    plugin.worker_id = worker_id
    plugin.pid = _getpid()
    # The template's to send, if anybody's.
    plugin._collect_reports.clear()
    plugin.silent = plugin.init["collect"] == "serial"
    os.environ["PYTEST_XDIST_WORKER"] = worker_id
    plugin.workerinput["workerid"] = worker_id
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        # Or all workers would share one temporary file.
        capture.stop_global_capturing()
    directory = os.path.dirname(plugin.channel.path)
    hello: dict[str, Any] = {"dump": os.path.join(directory, f"{worker_id}.stacks")}
    if not plugin.init.get("inherit_output"):
        hello["stderr"] = redirect_output(directory, worker_id)
    _serve_stacks(hello["dump"])
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if isinstance(reporter, QuietTerminal) and not config.getini("log_cli"):
        # What a plugin says before it ends the process belongs to what is shown of that.
        reporter._tw._file.close()
        reporter._tw._file = open(os.dup(2), "w", buffering=1)  # noqa: SIM115 - as above
    if capture is not None:
        capture.start_global_capturing()
        capture.suspend_global_capture(in_=False)
        if "stderr" in hello:
            pass_uncaptured_on(plugin, capture, hello["stderr"])
    factory = getattr(config, "_tmp_path_factory", None)
    if factory is not None and plugin.init.get("basetemp"):
        os.makedirs(plugin.init["basetemp"], mode=0o700, exist_ok=True)
        factory._basetemp = None
        factory._given_basetemp = type(config.rootpath)(plugin.init["basetemp"], f"popen-{worker_id}")
    if forked:
        renew_plugins(config)
    say_hello(plugin.channel, plugin.nonce, "worker", worker_id, **hello)
    plugin.greeted = True
    if plugin.init.get("elsewhere"):
        plugin.channel.send("data", kind="workerinfo", payload=worker_info())


def lead_group(init: Message) -> None:
    """Makes this process the leader of a group, which ends with it: so do processes that tests have started."""
    if init.get("elsewhere"):
        # Whoever ends the sandbox ends the session in which it was begun, should nothing else be able to.
        os.setpgid(0, 0)
    else:
        # And away from the terminal, which would stop a worker that reads from it.
        os.setsid()


def worker_info() -> dict[str, Any]:
    """What reports say of a worker's Python."""
    import platform

    return {
        "version": sys.version,
        "version_info": tuple(sys.version_info),
        "sysplatform": sys.platform,
        "platform": platform.platform(),
        "executable": sys.executable,
        "cwd": os.getcwd(),
    }


def renew_plugins(config: Any) -> None:
    """What plugins have from the template and must have for themselves."""
    coverage = config.pluginmanager.getplugin("_cov")
    if coverage is not None:
        coverage.pid = os.getpid()
    # Where xdist is installed, pytest-rerunfailures counts in the controller, over a connection.
    database: Any = getattr(config, "failures_db", None)
    if hasattr(database, "sock") and hasattr(config, "workerinput"):
        database.sock.close()
        given = config.workerinput
        arguments = [given[name] for name in ("sock_port", "statusdb_token") if name in given]
        config.failures_db = type(database)(*arguments)


@contextlib.contextmanager
def outside_of_tests(config: pytest.Config, last: nodes.Item | None) -> Iterator[None]:
    """What pytest-cov measures meanwhile is counted for no test, also not for the one that ran last."""
    contexts: Any = config.pluginmanager.getplugin("_cov_contexts")
    if contexts is None or last is None:
        yield
        return
    contexts.cov_controller.cov.switch_context("")
    try:
        yield
    finally:
        contexts.switch_context(last, "teardown")


class CoverageKeeper:
    """Writes down every now and then what pytest-cov has measured: a worker that dies loses only what came since."""

    INTERVAL = 1.0
    # Saving takes at most this share of the time.
    SHARE = 0.02

    def __init__(self, plugin: WorkerPlugin) -> None:
        self._plugin = plugin
        measuring = plugin.session.config.pluginmanager.getplugin("_cov")
        self._controller: Any = getattr(measuring, "cov_controller", None)
        self._next = _monotonic() + self.INTERVAL
        self._named = False

    def name(self) -> None:
        """Tells the controller which file is written to: where nobody takes it in, it has to be removed."""
        if self._controller is not None and not self._named and not self._plugin.init.get("elsewhere"):
            self._named = True
            path = self._controller.cov.get_data().data_filename()
            self._plugin.channel.send("data", kind="coverage_file", payload=path)

    def keep(self) -> None:
        now = _monotonic()
        if now < self._next or self._controller is None:
            return
        # Results do not wait for this.
        self._plugin.channel.flush()
        with contextlib.suppress(OSError):
            directory = _getcwd()
            _chdir(self._controller.topdir)
            try:
                self._controller.cov.save()
            finally:
                _chdir(directory)
            self.name()
        after = _monotonic()
        self._next = after + max(self.INTERVAL, (after - now) / self.SHARE)


def redirect_output(directory: str, name: str) -> str:
    """Points descriptors 1 and 2 at a file of this process's own, for what escapes pytest's capture."""
    path = os.path.join(directory, f"{name}.stderr")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    return path


def pass_uncaptured_on(plugin: WorkerPlugin, capture: Any, path: str) -> None:
    """What a test says while it has switched capture off (`capsys.disabled()`) is meant for the terminal."""
    fd = os.open(path, os.O_RDONLY)
    switched_off = type(capture).global_and_fixture_disabled

    @contextlib.contextmanager
    def global_and_fixture_disabled() -> Iterator[None]:
        before = os.fstat(fd).st_size
        try:
            with switched_off(capture):
                yield
        finally:
            said = os.fstat(fd).st_size - before
            if said > 0 and _getpid() == plugin.pid:
                text = os.pread(fd, min(said, TEXT_LIMIT), before).decode("utf-8", "replace")
                plugin.channel.post("data", kind="output", payload=text)

    capture.global_and_fixture_disabled = global_and_fixture_disabled


def _serve_stacks(path: str) -> None:
    import faulthandler

    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    # Served by faulthandler's C code: inside C calls, and while some thread keeps the interpreter's lock.
    faulthandler.register(DUMP_SIGNAL, file=fd, all_threads=True)
    if faulthandler.is_enabled():
        # The template's descriptor is not this worker's.
        faulthandler.enable(file=os.dup(2))


def say_hello(channel: Channel, nonce: str, role: str, name: str, **more: object) -> None:
    channel.send("hello", version=VERSION, nonce=nonce, role=role, id=name, pid=os.getpid(), **more)


def check_digest(plugin: WorkerPlugin) -> None:
    """A freshly started worker must number the tests as the template does."""
    if plugin.collection.digest() != plugin.init["digest"]:
        raise RuntimeError(
            f"worker {plugin.worker_id} collected other tests than the first process, or in another order. "
            "Make collection repeatable "
            "(no sets, no random parameters), or have workers forked with --offload-start-method=fork"
        )


class Worker:
    """Runs tests as they are assigned."""

    def __init__(self, plugin: WorkerPlugin) -> None:
        self.plugin = plugin
        self.channel = plugin.channel
        self.session = plugin.session
        self.queue: collections.deque[Message] = collections.deque()
        self.ending = False
        self._listened = 0.0
        # The test that ran last and may have left scopes standing.
        self.last: tuple[int, nodes.Item] | None = None
        # Items that have run before, with the number of properties that they had when new.
        self.ran: dict[nodes.Item, int] = {}
        self.isolated = Isolated(self) if self.plugin.init.get("isolation") == "test" else None
        self.coverage = CoverageKeeper(plugin)

    def run(self) -> None:
        while True:
            # With enough to do, nothing that is said is urgent to within a few milliseconds.
            if len(self.queue) < 2 or _monotonic() >= self._listened + LISTEN_INTERVAL:
                self._listen(block=not self.queue and not self.ending)
            if self.queue:
                self._run_next()
            elif self.ending:
                break
        self._tear_down_stale(None)

    def _listen(self, block: bool) -> None:
        if block:
            self.channel.flush()
        for message in self.channel.receive(block):
            kind = message["type"]
            if kind == "run":
                self.queue.extend(message["tests"])
            elif kind == "collect":
                self.plugin.collect(message["units"])
            elif kind == "take_back":
                wanted = set(message["keys"])
                kept = [test for test in self.queue if test["key"] not in wanted]
                taken = [test["key"] for test in self.queue if test["key"] in wanted]
                self.queue = collections.deque(kept)
                self.channel.send("taken_back", keys=taken)
            elif kind == "cancel":
                self.queue.clear()
                self.ending = True
            elif kind == "shutdown":
                self.ending = True
        self._listened = _monotonic()

    def _item(self, test: Message) -> nodes.Item:
        silent, self.plugin.silent = self.plugin.silent, True
        try:
            with outside_of_tests(self.session.config, self.last and self.last[1]):
                return self.plugin.collection.item(test["unit"], test["ordinal"])  # type: ignore[no-any-return]
        finally:
            self.plugin._collect_reports.clear()
            self.plugin.silent = silent

    def _run_next(self) -> None:
        test = self.queue.popleft()
        key = test["key"]
        item = self._item(test)
        if self.isolated is not None:
            self.isolated.run(key, item)
            return
        # A copy of a test is no test's neighbour, but shares its parents: they are left standing.
        following = self._item(self.queue[0]) if self.queue else None
        nextitem = following if following not in (None, item) else copy.copy(item)
        self._tear_down_stale(item)
        if item in self.ran:
            self._renew(item)
        else:
            self.ran[item] = len(item.user_properties)
        self.channel.post_started(key)
        self.channel.flush()
        self._execute(key, item, nextitem)

    def _execute(self, key: int, item: nodes.Item, nextitem: nodes.Item | None) -> None:
        plugin = self.plugin
        plugin.reports = []
        try:
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=nextitem)
        except KeyboardInterrupt:
            plugin.leave_if_forked()
            if self._must_end():
                raise
            self._report_interrupt(item, nextitem)
        except BaseException:
            plugin.leave_if_forked()
            # Where there is a pytest that ends with this, it shows what there is; elsewhere the test is to blame.
            if plugin.reports and not plugin.init.get("alone"):
                self._send_result(key)
            raise
        plugin.leave_if_forked()
        self.last = (key, item)
        self._send_result(key)
        self.coverage.keep()
        if self.session.shouldstop or self.session.shouldfail:
            # A plugin in the worker wants the run to end.
            reason = str(self.session.shouldfail or self.session.shouldstop)
            payload = {"key": key, "reason": reason, "failed": bool(self.session.shouldfail)}
            self.channel.send("data", kind="stop", payload=payload)
            self.queue.clear()
            self.session.__dict__.update(_shouldstop=False, _shouldfail=False, shouldstop=False, shouldfail=False)

    def _must_end(self) -> bool:
        """Whether it was the orchestrator that interrupted this process."""
        if self.isolated is not None and self.isolated.is_child:
            return self.isolated.cancelled
        self._listen(block=False)
        return self.ending

    def _renew(self, item: nodes.Item) -> None:
        """Makes an item that has run fit to run again, as pytest-rerunfailures does."""
        del item.user_properties[self.ran[item] :]
        item._report_sections = []
        self._tear_down([self.session], self._scopes_down)
        info = getattr(item, "_fixtureinfo", None)
        for definitions in info.name2fixturedefs.values() if info is not None else ():
            for definition in definitions:
                result = getattr(definition, "cached_result", None)
                if result is not None and result[2] is not None:
                    definition.cached_result = None

    def _report_interrupt(self, item: nodes.Item, nextitem: nodes.Item | None) -> None:
        """A test that raises KeyboardInterrupt has failed; nobody has asked this process to stop."""
        plugin = self.plugin
        when = ("setup", "call", "teardown")[min(len(plugin.reports), 2)]
        error = sys.exc_info()[1]
        assert error is not None

        def again() -> None:
            raise error.with_traceback(error.__traceback__)

        call: Any = runner.CallInfo.from_call(again, when=when)  # type: ignore[arg-type]
        plugin.reports.append(item.ihook.pytest_runtest_makereport(item=item, call=call))
        if when != "teardown":
            plugin.reports.append(runner.call_and_report(item, "teardown", log=False, nextitem=nextitem))

    # -- wider scopes

    def _tear_down_stale(self, item: nodes.Item | None) -> None:
        """Tears down scopes that the last test left standing and `item` does not need."""

        def tear_down(last: nodes.Item, needed: list[Any]) -> None:
            # Hooks that look at what follows took the last test's own copy for it, and now see what does follow.
            caller = last.ihook.pytest_runtest_teardown
            told = {impl.plugin for impl in caller.get_hookimpls() if "nextitem" in impl.argnames}
            if told == {runner}:
                self._scopes_down(last, needed)
                return
            plugins = self.session.config.pluginmanager
            hook = plugins.subset_hook_caller("pytest_runtest_teardown", plugins.get_plugins() - told)
            hook(item=last, nextitem=item)

        self._tear_down(item.listchain() if item is not None else [], tear_down)

    def _scopes_down(self, _last: nodes.Item, needed: list[Any]) -> None:
        self.session._setupstate.teardown_exact(_Chain(needed) if needed else None)

    def _tear_down(self, needed: list[Any], how: Callable[[nodes.Item, list[Any]], None]) -> None:
        standing = list(self.session._setupstate.stack)
        if self.last is None or standing == needed[: len(standing)]:
            return
        key, last = self.last
        plugin = self.plugin
        last._report_sections = []
        capture = self.session.config.pluginmanager.getplugin("capturemanager")
        capturing = capture.item_capture("teardown", last) if capture is not None else contextlib.nullcontext()

        def tear_down() -> None:
            with capturing:
                how(last, needed)

        call = runner.CallInfo.from_call(tear_down, when="teardown", reraise=(pytest.exit.Exception,))
        plugin.leave_if_forked()
        if call.excinfo is not None:
            report = last.ihook.pytest_runtest_makereport(item=last, call=call)
            failure: dict[str, Any] = {}
            if report.failed:
                failure.update(outcome="error", durations=[0.0, 0.0, call.duration], message=_message(report))
                failure.update(text=_shorten(_text(report)), stdout=report.capstdout, stderr=report.capstderr)
            self.channel.post("late_report", key=key, reports=[plugin.serialize(report)], **failure)

    # -- results

    def _send_result(self, key: int) -> None:
        plugin = self.plugin
        reports, plugin.reports = plugin.reports, []
        attributes = plugin.xml.attributes if plugin.xml is not None else []
        durations = [0.0, 0.0, 0.0]
        for report in reports:
            if report.when in PHASES:
                durations[PHASES[report.when]] += report.duration
        if not attributes and _is_plain_pass(reports):
            if self.isolated is not None:
                self.isolated.passed(durations)
            else:
                self.channel.post_passed(key, durations)
            return
        config = self.session.config
        if len(reports) != 3:
            for report in reports:
                # Subtests settle the outcome of their test when its status is asked for.
                config.hook.pytest_report_teststatus(report=report, config=config)
        outcome, decisive = _outcome(reports)
        fields: dict[str, Any] = {}
        if decisive is not None:
            # A test that fails can fail again when it is torn down.
            texts = [_text(report) for report in reports if report.failed] or [_text(decisive)]
            fields["text"] = _shorten("\n\n".join(texts))
            fields["message"] = _message(decisive)
        last = reports[-1]
        fields["stdout"] = _shorten(last.capstdout)
        fields["stderr"] = _shorten(last.capstderr)
        data = [plugin.serialize(report) for report in reports]
        if attributes:
            data[-1]["$xml_attributes"] = list(attributes)
            attributes.clear()
        self.channel.post("finished", key=key, durations=durations, outcome=outcome, reports=data, **fields)


PHASES = {"setup": 0, "call": 1, "teardown": 2}


class Isolated:
    """Runs each test in a fork of the worker, which sets up and tears down everything that the test needs.

    Shared memory tells what exit codes cannot, since a test can exit with any. Of a plain pass it tells everything:
    what the worker says in the place of its children need not be said by each in freshly copied memory. For anything
    else the child speaks on the worker's connection, on which the worker is silent meanwhile.
    """

    DELIVERED = 0
    CANCELLED = 1
    PASSED = 2
    STARTED = 3
    DURATIONS = struct.Struct("@3d")
    # Behind the bytes above.
    DURATIONS_AT = 8

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._shared = mmap.mmap(-1, self.DURATIONS_AT + self.DURATIONS.size)
        self._worker_pid = os.getpid()
        self._frozen = 0
        self.is_child = False

    @property
    def cancelled(self) -> bool:
        return bool(self._shared[self.CANCELLED])

    def run(self, key: int, item: nodes.Item) -> None:
        """Runs a test and waits for its process."""
        worker = self._worker
        collected = worker.session.testscollected
        if collected != self._frozen:
            # Pages with what has been collected stay shared if no child's garbage collector looks at them.
            self._frozen = collected
            gc.collect()
            gc.freeze()
        worker.channel.flush()
        self._shared[self.DELIVERED] = self._shared[self.PASSED] = 0
        self._shared[self.STARTED] = 0
        pid = _fork()
        if pid == 0:
            self._be_child(key, item)
        worker.channel.send("started", key=key, pid=pid)
        self._shared[self.STARTED] = 1
        status = self._wait(pid)
        if worker.ending and self.cancelled:
            raise KeyboardInterrupt
        if not self._shared[self.DELIVERED]:
            killed = os.WIFSIGNALED(status)
            worker.channel.post(
                "crashed",
                key=key,
                code=None if killed else os.WEXITSTATUS(status),
                signal=os.WTERMSIG(status) if killed else None,
                **self._captured(),
            )
        elif self._shared[self.PASSED]:
            durations = self.DURATIONS.unpack_from(self._shared, self.DURATIONS_AT)
            worker.channel.post_passed(key, list(durations))

    def passed(self, durations: list[float]) -> None:
        """In the child: the test has passed, and there is nothing more to say about it."""
        self.DURATIONS.pack_into(self._shared, self.DURATIONS_AT, *durations)
        self._shared[self.PASSED] = 1

    def _await_start(self) -> None:
        """In the child: waits until the worker has said that the test has started. Two must not speak at once."""
        while not self._shared[self.STARTED] and _getppid() == self._worker_pid:
            _sleep(0.0001)

    def _wait(self, pid: int) -> int:
        while True:
            try:
                return os.waitpid(pid, 0)[1]
            except KeyboardInterrupt:
                self._worker._listen(block=False)
                if self._worker.ending:
                    self._shared[self.CANCELLED] = 1
                    os.kill(pid, signal.SIGINT)

    def _captured(self) -> dict[str, str]:
        """What the test had written when it died. Its capture is the worker's."""
        capture = self._worker.session.config.pluginmanager.getplugin("capturemanager")
        if capture is None or not capture.is_globally_capturing():
            return {}
        out, err = capture.read_global_capture()
        return {"stdout": _shorten(out), "stderr": _shorten(err)}

    def _be_child(self, key: int, item: nodes.Item) -> None:
        worker = self._worker
        plugin, channel = worker.plugin, worker.channel
        self.is_child = True
        code = 1
        try:
            plugin.pid = os.getpid()
            channel.before_sending = self._await_start
            worker._execute(key, item, None)
            save_coverage(worker.session.config)
            worker.coverage.name()
            channel.flush()
            self._shared[self.DELIVERED] = 1
            code = 0
        except pytest.exit.Exception as error:
            channel.send("exit", reason=str(error.msg), returncode=error.returncode)
            self._shared[self.DELIVERED] = 1
        except KeyboardInterrupt:
            # The run is being ended; what the test has set up is torn down as in any interrupted pytest.
            with contextlib.suppress(BaseException):
                worker.session._setupstate.teardown_exact(None)
        except Closed:
            pass
        except BaseException:
            with contextlib.suppress(Closed):
                excinfo = pytest.ExceptionInfo.from_current()
                worker.session.config.notify_exception(excinfo, worker.session.config.option)
                self._shared[self.DELIVERED] = 1
        finally:
            os._exit(code)


def save_coverage(config: pytest.Config) -> None:
    """Writes what pytest-cov has measured in a process that ends without pytest's own end."""
    coverage = getattr(getattr(config.pluginmanager.getplugin("_cov"), "cov_controller", None), "cov", None)
    if coverage is not None:
        coverage.stop()
        coverage.save()


class _Chain:
    """Looks to pytest's teardown like a next item with these parents."""

    def __init__(self, chain: list[Any]) -> None:
        self._chain = chain

    def listchain(self) -> list[Any]:
        return self._chain


def _is_plain_pass(reports: list[Any]) -> bool:
    return len(reports) == 3 and all(
        report.outcome == "passed"
        and not report.sections
        and not report.user_properties
        and type(report) is pytest.TestReport
        and PLAIN_REPORT.issuperset(report.__dict__)
        for report in reports
    )


def _outcome(reports: list[Any]) -> tuple[str, Any]:
    """The outcome of a test and the report that decided it."""
    for report in reports:
        if report.failed and report.when == "call":
            return "failed", report
    for report in reports:
        if report.failed:
            return "error", report
    for report in reports:
        if report.skipped:
            return "skipped", report
    return "passed", None


def _text(report: Any) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return "{}:{}: {}".format(*report.longrepr)
    return str(report.longreprtext)


def _message(report: Any) -> str:
    """One line that says why."""
    longrepr = report.longrepr
    if isinstance(longrepr, tuple):
        text = str(longrepr[2])
    else:
        crash = getattr(longrepr, "reprcrash", None)
        text = str(crash.message if crash is not None else longrepr)
    return getattr(report, "wasxfail", "") or text.split("\n", 1)[0][:1000]


# ---------------------------------------------------------------------------------------------------------------------
# The program


def settle_elsewhere(init: Message, directory: str) -> None:
    """Makes of what was typed on another machine what it means here. The working directory is the project's here."""
    here, there = os.getcwd(), init["rootdir_cwd"]
    if here != there:
        # What stays when the directories are left out that both have in common at the end.
        root, other = here.split("/"), there.split("/")
        while len(root) > 1 and len(other) > 1 and root[-1] == other[-1]:
            root.pop(), other.pop()
        before, after = "/".join(other), "/".join(root)

        def moved(arg: str) -> str:
            option, equals, value = arg.partition("=") if arg.startswith("-") else ("", "", arg)
            inside = value == before or value.startswith((f"{before}/", f"{before}::"))
            return f"{option}{equals}{after}{value[len(before) :]}" if inside else arg

        init["args"] = [moved(arg) for arg in init["args"]]
        init["rootdir_cwd"] = here
    if init.get("cache") is not None:
        cache = os.path.join(directory, "cache")
        init["args"] = ["-o", f"cache_dir={cache}", *init["args"]]
        for key, value in init.pop("cache").items():
            path = os.path.join(cache, "v", *key.split("/"))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                json.dump(value, file)


def without_our_plugin(args: Sequence[str]) -> list[str]:
    """The arguments without `-p pytest_offload.plugin`: its options are stood in for, and it has nothing to do here."""
    kept: list[str] = []
    for arg in args:
        if arg == "pytest_offload.plugin" and kept and kept[-1] == "-p":
            kept.pop()
        elif arg != "-ppytest_offload.plugin":
            kept.append(arg)
    return kept


def main(argv: list[str], forked: bool) -> int:
    socket_path, nonce = argv[1:3]
    environ = dict(os.environ)
    channel = Channel(socket_path)
    name = "template"
    early: list[Message] = []
    if len(argv) > 3:
        with open(argv[3], encoding="ascii") as file:
            init: Message = json.load(file)
        name = init["worker_id"]
        lead_group(init)
    else:
        if os.getpgrp() != os.getpid():
            os.setpgid(0, 0)
        say_hello(channel, nonce, "template", name)
        init, *early = channel.receive(block=True)
        if init["type"] != "init":
            raise ValueError("expected init, got {!r}".format(init["type"]))
        init["environ"] = environ
        init["forked"] = forked
        init["sockets"] = [name for _, name in open_sockets()]
        init["command"] = [sys.executable, "-u", os.path.abspath(__file__)]
    for variable in init.get("hide", ()):
        # Set for this process only, and of no concern to those that tests start.
        os.environ.pop(variable, None)
    if init.get("sys_path"):
        sys.path[:] = init["sys_path"]
    if init.get("elsewhere"):
        settle_elsewhere(init, os.path.dirname(socket_path))
    if init.get("standalone"):
        init["args"] = without_our_plugin(init["args"])
        # Nothing is to be left behind, and nobody else to be met.
        init["basetemp"] = os.path.join(os.path.dirname(socket_path), "tmp")
        if init.get("cwd_on_path"):
            sys.path.insert(0, init["rootdir_cwd"])
    os.chdir(init["rootdir_cwd"])
    sys.argv[:] = init.get("mainargv") or ["pytest"]
    os.environ["PYTEST_XDIST_WORKER"] = init.get("worker_id") or "gw0"
    os.environ["PYTEST_XDIST_WORKER_COUNT"] = str(init["workers"])
    os.environ["PYTEST_XDIST_TESTRUNUID"] = init["run_uid"]
    errors = None
    if not init.get("inherit_output"):
        errors = redirect_output(os.path.dirname(socket_path), name)
    watch = IdentityWatch()
    if name == "template":
        watch.start()
    plugin = WorkerPlugin(channel, nonce, init, watch)
    plugin.hear(early)
    try:
        code = int(pytest.main(list(init["args"]), plugins=[plugin]))
    except Closed:
        raise
    except Exception:
        plugin.leave_if_forked()
        if plugin.worker_id is not None:
            raise
        # Of pytest or a plugin, before there was a session: shown as whatever else keeps pytest from starting.
        import traceback

        traceback.print_exc()
        code = int(pytest.ExitCode.INTERNAL_ERROR)
    plugin.leave_if_forked()
    channel = plugin.channel
    if plugin.replace:
        channel.discard()
        channel.send("replace")
        return 0
    if plugin.finished or plugin.worker_id is not None:
        output = getattr(plugin.session.config, "workeroutput", {}) if plugin.session is not None else {}
        if plugin.coverage is not None:
            plugin.coverage.name()
        channel.send("bye", workeroutput=_tagged(output))
        return 0
    text = ""
    if errors is not None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        with open(errors, encoding="utf-8", errors="replace") as file:
            text = file.read()[-TEXT_LIMIT:]
    channel.send("fatal", exit_code=code, text=text)
    return code


def run(argv: list[str], forked: bool = False) -> int:
    """The whole program, up to its exit code. `forked`: this process is a fork of the controller."""
    code = 1
    try:
        code = main(argv, forked)
    except Closed:
        pass
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
    return code


if __name__ == "__main__":
    # No exit handlers: they are the template's, and run in a fork they would undo what others still use.
    os._exit(run(sys.argv))
