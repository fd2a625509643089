"""The plugin that makes a pytest a template or a worker: options, hooks, and what is reported from them."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest
from _pytest import nodes

from . import bdd
from .channel import Channel, Closed, shorten, tagged, untagged
from .collection import Collection, describe
from .coverage import CoverageKeeper
from .ending import end_process
from .identity import IdentityWatch, WorkerInput
from .livelog import LiveLog, install
from .originals import getpid
from .process import become_worker, check_digest
from .runner import Worker
from .standins import (
    PLUGIN_FLAGS,
    PLUGIN_OPTIONS,
    PLUGIN_XDIST_FLAGS,
    PLUGIN_XDIST_OPTIONS,
    XDIST_OPTIONS,
    QuietTerminal,
    XmlRecorder,
    has_foreign_plugins,
    register_group_marker,
    silence,
    stand_in_for_xdist,
    xdist_fixtures,
)
from .template import Template

if TYPE_CHECKING:
    from .channel import Message
    from .keeper import Keeper


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
        # Another template has to take the place of this one.
        self.replace = False
        # Who starts workers when this process has become one.
        self.keeper: Keeper | None = None
        self.live_log: LiveLog | None = None
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
                end_process(0)
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
        if importlib.util.find_spec("xdist") is None:
            # Of xdist's options, those that this plugin has where xdist is not installed.
            group._addoption("-n", "--numprocesses", dest="numprocesses")
            group._addoption("-d", dest="distload", action="store_true")
            for flag in PLUGIN_XDIST_OPTIONS:
                group.addoption(flag)
            for flag in PLUGIN_XDIST_FLAGS:
                group.addoption(flag, action="store_true")

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> int | None:
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
            workerinput.update(untagged(self.init.get("workerinput", {})))
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
        return self._follow_controller(config)

    def _follow_controller(self, config: pytest.Config) -> int | None:
        """Lets the controller's plugins do first what they do before there are workers.

        If they have changed variables, a template that has had them from the beginning takes the place of this one: the
        result is the exit code with which it ends.
        """
        if self.worker_id is not None or not self.init.get("await_workerinput") or self.init.get("elsewhere"):
            return None
        if not has_foreign_plugins(config):
            return None
        changed = self.receive_nodes().get("environ", {})
        if self.init["again_started"]:
            return None
        if any(os.environ.get(name) != value for name, value in changed.items()):
            self.replace = True
            return 0
        return None

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        plugins = config.pluginmanager
        reporter = plugins.getplugin("terminalreporter")
        if reporter is not None:
            # Other plugins may still replace it.
            silence(reporter)
        if getattr(config.option, "xmlpath", None):
            from _pytest.junitxml import xml_key

            self.xml = XmlRecorder(self.channel, config.getini("junit_family"))
            stash: Any = config.stash
            stash[xml_key] = self.xml

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_unconfigure(self, config: pytest.Config) -> Iterator[None]:
        if self.xml is not None:
            from _pytest.junitxml import xml_key

            stash: Any = config.stash
            stash.setdefault(xml_key, self.xml)
            del stash[xml_key]
        with warnings.catch_warnings():
            # pytest does not record these. They are for the terminal, as they are with xdist.
            warnings.showwarning = self._pass_warning_on
            yield

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.session = session
        self.collection = Collection(session)
        plugins = session.config.pluginmanager
        reporter: Any = plugins.getplugin("terminalreporter")
        if reporter is not None:
            plugins.unregister(reporter)
            plugins.register(QuietTerminal(reporter), "terminalreporter")
            reporter._session = session
        bdd.register(session.config)
        self.live_log = install(self, session.config)
        benchmarks: Any = getattr(session.config, "_benchmarksession", None)
        if hasattr(benchmarks, "xdist_worker"):
            # It warns in the first worker that it disables benchmarks; which worker has some is not known.
            benchmarks.xdist_worker = "gw0"
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
                text = shorten(str(report.longreprtext)) if report.failed else ""
                self.channel.post("collect_report", report=data, text=text)
        self._collect_reports.clear()

    def collect(self, indices: Iterable[int]) -> None:
        """A worker's share of the collection."""
        if self.live_log is not None:
            self.live_log.outside_of_tests("collection")
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
            report.sections = [(name, shorten(text)) for name, text in sections]
        properties = getattr(report, "user_properties", None)
        if properties:
            report.user_properties = [(name, tagged(value)) for name, value in properties]
        data: dict[str, Any] = config.hook.pytest_report_to_serializable(config=config, report=report)
        return data

    # -- the test loop

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if self.worker_id is None:
            template = Template(self)
            if template.spawn_reason and self.init.get("forked") and self.init["collect"] == "serial":
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
        # As it is now: plugins go on to use a report of an attempt that failed.
        self.reports.append(report if report.passed else copy.copy(report))

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        yield
        self.leave_if_forked()

    def leave_if_forked(self) -> None:
        """A test that forks and lets the child return must not be reported twice."""
        if getpid() != self.pid:
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

    def _pass_warning_on(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,
        line: str | None = None,
    ) -> None:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        self.channel.post("data", kind="last_warning", payload=text)

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
