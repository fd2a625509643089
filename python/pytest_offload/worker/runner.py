"""Running tests one by one as the orchestrator sends them."""

from __future__ import annotations

import collections
import contextlib
import copy
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Callable

import pytest
from _pytest import nodes, runner

from .channel import shorten
from .charge import Charge
from .collection import Differs
from .coverage import CoverageKeeper
from .isolated import Isolated
from .originals import monotonic
from .outcome import PHASES, is_plain_pass, message_of, outcome_of, text_of
from .process import Dumps, outside_of_tests
from .reruns import CrashRetries
from .world import World

if TYPE_CHECKING:
    from .channel import Message
    from .plugin import WorkerPlugin

# A worker that has tests to run looks for messages this often at most, in seconds.
LISTEN_INTERVAL = 0.002


class Worker:
    """Runs tests as they are assigned."""

    def __init__(self, plugin: WorkerPlugin) -> None:
        self.plugin = plugin
        self.channel = plugin.channel
        self.session = plugin.session
        self.queue: collections.deque[Message] = collections.deque()
        self.ending = False
        # How often everything was given back because of a failure, after which it is decided whether the run goes on.
        self.yields = 0
        self.yields_on_failure = bool(plugin.init.get("yield_on_failure"))
        self._listened = 0.0
        # The test that ran last and may have left scopes standing.
        self.last: tuple[int, nodes.Item] | None = None
        # Items that have run before, with the number of properties that they had when new.
        self.ran: dict[nodes.Item, int] = {}
        self.isolated = Isolated(self) if self.plugin.init.get("isolation") == "test" else None
        self.coverage = CoverageKeeper(plugin)
        self._dumps = Dumps(plugin)
        self._charge = Charge(plugin.collection, whole=plugin.init["collect"] == "serial")
        #: How things were before the first test, where files may be collected after it.
        self.world: World | None = None
        self._crash_retries = CrashRetries(plugin.channel, plugin.session.config)

    def run(self) -> None:
        while True:
            # With enough to do, nothing that is said is urgent to within a few milliseconds.
            if len(self.queue) < 2 or monotonic() >= self._listened + LISTEN_INTERVAL:
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
                # What was on its way when this worker yielded counts as given back.
                if message.get("resume", 0) == self.yields:
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
        self._listened = monotonic()

    def _item(self, test: Message) -> nodes.Item | None:
        """The test, or nothing where it is not certain that it is the one that will be reported."""
        plugin = self.plugin
        silent, plugin.silent = plugin.silent, True
        late = self.world is not None and plugin.collection.units[test["unit"]].items is None
        world = self.world.before_tests() if late and self.world is not None else contextlib.nullcontext()
        try:
            with outside_of_tests(self.session.config, self.last and self.last[1]), world:
                return plugin.collection.item(  # type: ignore[no-any-return]
                    test["unit"], test["ordinal"], test.get("digest")
                )
        except Differs as error:
            reports = [report for _, report in plugin._collect_reports if report.failed]
            text = "".join(f"\n{report.longreprtext}" for report in reports)
            self._refuse(test, shorten(f"{error}{text}"))
            return None
        finally:
            plugin._collect_reports.clear()
            plugin.silent = silent

    def _refuse(self, test: Message, text: str) -> None:
        """Gives back the tests of a file that is another one here."""
        unit = test["unit"]
        keys = [test["key"]] + [other["key"] for other in self.queue if other["unit"] == unit and other is not test]
        self.queue = collections.deque(other for other in self.queue if other["unit"] != unit)
        self.channel.send("refused", unit=unit, keys=keys, text=text)

    def _next_item(self) -> nodes.Item | None:
        """The test that comes next, as far as that is known."""
        while self.queue:
            item = self._item(self.queue[0])
            if item is not None:
                return item
        return None

    def _run_next(self) -> None:
        test = self.queue.popleft()
        key = test["key"]
        item = self._item(test)
        if item is None:
            return
        self._crash_retries.tell(key, item)
        if self.isolated is not None:
            passed = self.isolated.run(key, item)
            self._dumps.forget()
            if not passed:
                self._yield_after_failure()
            return
        # A copy of a test is no test's neighbour, but shares its parents: they are left standing.
        following = self._next_item()
        stay = following in (None, item) or self._charge.matters(item, following)
        nextitem = copy.copy(item) if stay else following
        if not self._tear_down_stale(item):
            self._yield_after_failure()
            if self.yields_on_failure:
                return
        if item in self.ran:
            self._renew(item)
        else:
            self.ran[item] = len(item.user_properties)
        if self.last is None and any(unit.items is None for unit in self.plugin.collection.units):
            self.world = World(str(self.session.config.rootpath))
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
        except BaseException as error:
            plugin.leave_if_forked()
            if isinstance(error, pytest.exit.Exception):
                self._tear_down_at_exit(item, error)
            # Where there is a pytest that ends with this, it shows what there is; elsewhere the test is to blame.
            if plugin.reports and not plugin.init.get("alone"):
                self._send_result(key)
            raise
        plugin.leave_if_forked()
        self.last = (key, item)
        passed = self._send_result(key)
        self._dumps.pass_on()
        self.coverage.keep()
        if not passed and self.isolated is None:
            self._yield_after_failure()
        if self.session.shouldstop or self.session.shouldfail:
            # A plugin in the worker wants the run to end.
            reason = str(self.session.shouldfail or self.session.shouldstop)
            payload = {"key": key, "reason": reason, "failed": bool(self.session.shouldfail)}
            self.channel.send("data", kind="stop", payload=payload)
            self.queue.clear()
            self.session.__dict__.update(_shouldstop=False, _shouldfail=False, shouldstop=False, shouldfail=False)

    def execute_alone(self, key: int, item: nodes.Item) -> bool:
        """Runs a test for which everything is set up and torn down. Returns whether what comes down late did so."""
        stay = self._charge.matters(item, None)
        self._execute(key, item, copy.copy(item) if stay else None)
        if not stay:
            return True
        if self.isolated is not None:
            # What comes down late can fail, and is to be heard of after the result.
            self.isolated.post_passed(key)
        return self._tear_down_stale(None)

    def _tear_down_at_exit(self, item: nodes.Item, error: Any) -> None:
        """A test has ended the run. As in any pytest, what cannot be torn down then is an error, expected or not."""

        def tear_down() -> None:
            __tracebackhide__ = True
            self._scopes_down(item, [])

        call = runner.CallInfo.from_call(tear_down, when="teardown", reraise=(pytest.exit.Exception,))
        if call.excinfo is not None:
            # That the run ends is nothing that went wrong before it.
            call.excinfo.value.__context__ = None
            with self._charge.settled(item, []):
                self.plugin.reports.append(item.ihook.pytest_runtest_makereport(item=item, call=call))
            error.returncode = pytest.ExitCode.TESTS_FAILED

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
        for definition in fixtures_of(item):
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
        if when == "setup":
            # pytest does not take note that a fixture failed that was interrupted, and would neither tear it down nor
            # be able to set it up again for other tests.
            for definition in fixtures_of(item):
                if getattr(definition, "cached_result", ()) is None and getattr(definition, "_finalizers", None):
                    definition.cached_result = (None, None, (error, error.__traceback__))
            nextitem = None
        if when != "teardown":
            plugin.reports.append(runner.call_and_report(item, "teardown", log=False, nextitem=nextitem))

    # -- wider scopes

    def _yield_after_failure(self) -> None:
        """Where failures can end the run: gives back everything, and takes no test before that one is known."""
        if self.yields_on_failure:
            self.queue.clear()
            self.yields += 1
            self.channel.send("yielded")

    def _tear_down_stale(self, item: nodes.Item | None) -> bool:
        """Tears down scopes that the last test left standing and `item` does not need. Returns whether that worked."""

        def tear_down(last: nodes.Item, needed: list[Any]) -> None:
            __tracebackhide__ = True
            # Hooks that look at what follows took the last test's own copy for it, and now see what does follow.
            caller = last.ihook.pytest_runtest_teardown
            told = {impl.plugin for impl in caller.get_hookimpls() if "nextitem" in impl.argnames}
            if told == {runner}:
                self._scopes_down(last, needed)
                return
            plugins = self.session.config.pluginmanager
            hook = plugins.subset_hook_caller("pytest_runtest_teardown", plugins.get_plugins() - told)
            hook(item=last, nextitem=item)

        return self._tear_down(item.listchain() if item is not None else [], tear_down)

    def _scopes_down(self, _last: nodes.Item, needed: list[Any]) -> None:
        __tracebackhide__ = True
        self.session._setupstate.teardown_exact(_Chain(needed) if needed else None)

    def _tear_down(self, needed: list[Any], how: Callable[[nodes.Item, list[Any]], None]) -> bool:
        stack = self.session._setupstate.stack
        standing = list(stack)
        if self.last is None or standing == needed[: len(standing)]:
            return True
        key, last = self.last
        plugin = self.plugin
        ending = [node for node in standing if node not in needed]
        # Of most nodes there is only their own teardown, which does nothing.
        ending = [node for node in ending if len(stack[node][0]) > 1] or ending
        if self.isolated is None:
            # The process of a single test says nothing before all is torn down: until then it has no result.
            self.channel.send("tearing_down")
        last._report_sections = []
        capture = self.session.config.pluginmanager.getplugin("capturemanager")
        capturing = capture.item_capture("teardown", last) if capture is not None else contextlib.nullcontext()

        def tear_down() -> None:
            __tracebackhide__ = True
            with capturing:
                how(last, needed)

        call = runner.CallInfo.from_call(tear_down, when="teardown", reraise=(pytest.exit.Exception,))
        plugin.leave_if_forked()
        if call.excinfo is not None:
            with self._charge.settled(last, ending):
                report = last.ihook.pytest_runtest_makereport(item=last, call=call)
            failure: dict[str, Any] = {}
            if report.failed:
                failure.update(outcome="error", durations=[0.0, 0.0, call.duration], message=message_of(report))
                failure.update(text=shorten(text_of(report)), stdout=report.capstdout, stderr=report.capstderr)
            self.channel.post("late_report", key=key, reports=[plugin.serialize(report)], **failure)
            return not failure
        return True

    # -- results

    def _send_result(self, key: int) -> bool:
        """Returns whether the test has not failed."""
        plugin = self.plugin
        reports, plugin.reports = plugin.reports, []
        attributes = plugin.xml.attributes if plugin.xml is not None else []
        durations = [0.0, 0.0, 0.0]
        for report in reports:
            if report.when in PHASES:
                durations[PHASES[report.when]] += report.duration
        if not attributes and is_plain_pass(reports):
            if self.isolated is not None:
                self.isolated.passed(durations)
            else:
                self.channel.post_passed(key, durations)
            return True
        config = self.session.config
        if len(reports) != 3:
            for report in reports:
                # Subtests settle the outcome of their test when its status is asked for.
                config.hook.pytest_report_teststatus(report=report, config=config)
        outcome, decisive = outcome_of(reports)
        fields: dict[str, Any] = {}
        if decisive is not None:
            # A test that fails can fail again when it is torn down.
            texts = [text_of(report) for report in reports if report.failed] or [text_of(decisive)]
            fields["text"] = shorten("\n\n".join(texts))
            fields["message"] = message_of(decisive)
        last = reports[-1]
        fields["stdout"] = shorten(last.capstdout)
        fields["stderr"] = shorten(last.capstderr)
        data = [plugin.serialize(report) for report in reports]
        if attributes:
            data[-1]["$xml_attributes"] = list(attributes)
            attributes.clear()
        self.channel.post("finished", key=key, durations=durations, outcome=outcome, reports=data, **fields)
        failed = outcome in ("failed", "error")
        if failed and self.isolated is not None:
            self.isolated.failed()
        return not failed


def fixtures_of(item: nodes.Item) -> Iterator[Any]:
    """The definitions of all fixtures that a test may use."""
    info = getattr(item, "_fixtureinfo", None)
    for definitions in info.name2fixturedefs.values() if info is not None else ():
        yield from definitions


class _Chain:
    """Looks to pytest's teardown like a next item with these parents."""

    def __init__(self, chain: list[Any]) -> None:
        self._chain = chain

    def listchain(self) -> list[Any]:
        return self._chain
