"""The controller: runs a session of the orchestrator inside the user's pytest and feeds pytest's hooks.

It imports no test module. What a worker reports becomes real reports on pytest's own hooks, so that the terminal,
`--junitxml`, `--lf` and third-party reporters work as they do without Offload. Which test runs where, retries and
time-outs are the orchestrator's business.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import pytest
from _pytest.main import Failed, Interrupted

from . import early, junit, reports, xdist
from .nodes import Nodes, WorkerNode
from .reports import Attempt
from .worker import bdd
from .worker.frozen import freeze

if TYPE_CHECKING:
    from ._core import Session
    from .options import Settings

Event = tuple[Any, ...]


class WorkerError(Exception):
    """An internal error of pytest in another process; its text is what pytest said there."""


class Deselected:
    """A test that was deselected in another process. All that is known of it is its name."""

    def __init__(self, nodeid: str) -> None:
        self.nodeid = nodeid


# Seconds after which a run tells how well its work was shared out.
LONG_RUN = 10.0


class InOrder:
    """Commits tests in collection order, so that what stops a run stops it where plain pytest would stop.

    Results of later tests wait until all earlier ones are in; those after the failure that ends the run are dropped. A
    test's own are in once its worker has begun another or ended: what it tears down in between can fail, too.
    """

    def __init__(self, max_fail: int, drop_after: Callable[[int], None]) -> None:
        self._max_fail = max_fail
        self._drop_after = drop_after
        self._waiting: dict[int, list[Callable[[], None]]] = {}
        self._complete: set[int] = set()
        self._failed: list[int] = []
        self._next = 0
        # The last test of each worker.
        self._last: dict[str, int] = {}

    def add(self, key: int, worker: str, commit: Callable[[], None], final: bool, failed: bool) -> None:
        self._waiting.setdefault(key, []).append(commit)
        if failed and final and self._max_fail:
            self._failed = sorted([*self._failed, key])[: self._max_fail]
            if len(self._failed) == self._max_fail:
                self._drop_after(self._failed[-1])
        if final:
            self.worker_goes_on(worker)
            self._last[worker] = key
            if failed:
                # It ends the run, perhaps, and that at once.
                self.worker_goes_on(worker)

    def worker_goes_on(self, worker: str) -> None:
        """The worker has begun another test, or ended: of the one before nothing can come any more."""
        key = self._last.pop(worker, None)
        if key is None:
            return
        self._complete.add(key)
        while self._next in self._complete:
            self._complete.remove(self._next)
            commits = self._waiting.pop(self._next)
            self._next += 1
            for action in commits:
                action()

    def late(self, key: int, commit: Callable[[], None]) -> None:
        """What is said of a test after its results comes after them."""
        if key < self._next:
            commit()
        else:
            self._waiting.setdefault(key, []).append(commit)

    def rest(self) -> None:
        """Commits what is left although tests before it are missing."""
        self._last.clear()
        for key in sorted(self._waiting):
            for action in self._waiting.pop(key):
                action()


class Controller:
    """The plugin of an offloaded run."""

    def __init__(
        self, config: pytest.Config, settings: Settings, core: Session, run_uid: str, environ: dict[str, str] | None
    ) -> None:
        self.config = config
        self.settings = settings
        self.core = core
        self.session: Any = None
        self.notices = list(settings.notices)
        self.nodes = Nodes(config, settings.workers, run_uid, environ)
        self.flaky: list[str] = []
        self.crashes: list[tuple[str, str, str, str]] = []
        #: Whether a Ctrl-C waits until the events that have come are reported.
        self._pending_interrupt = False
        #: The tests that run, with their workers, and those that ran when the run was interrupted.
        self._running: dict[int, tuple[str, str]] = {}
        self._interrupted: list[tuple[str, str]] = []
        self.summary: dict[str, Any] = {}
        self.lost: list[tuple[str, str]] = []
        self.warnings: list[str] = []
        self.coverage_files: list[Path] = []
        self.problem = ""
        self.not_run = 0
        self.in_order: InOrder | None = None
        self._collect_reports: list[dict[str, Any]] = []
        self._deselected = 0
        self._how = ""
        self._start_method = ""
        self._finish_lines: list[list[str]] = []
        # What workers warned of when their sessions were over: each text once, however many workers it comes from.
        self._last_warnings: dict[str, None] = {}
        self._properties: set[tuple[str, str]] = set()
        self._seen: list[str] = []
        self._parsed: dict[str, Any] = {}
        self._stops: dict[int, dict[str, Any]] = {}
        # Which worker ran the tests that have been reported.
        self._logged: dict[int, str] = {}
        # Of tests that are tried again: what could not be torn down after an attempt, for when they have an outcome.
        self._late: dict[int, list[Callable[[], None]]] = {}
        self._logstart: Callable[..., Any] | None = None
        # What has come and has not been handled yet.
        self._batch: Iterator[Event] = iter(())
        self._leftover: list[Event] = []

    # -- hooks

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> None:
        xdist.answer(config, self.settings)
        config.option.maxfail = config.option.maxfail or self.settings.max_fail or 0

    def pytest_report_header(self) -> list[str]:
        count = self.settings.workers
        line = f"offload: {count} sandbox{'es' if count != 1 else ''} of provider {self.settings.provider}"
        if self.settings.asked:
            line += f" ({self.settings.asked})"
        return [line, *(f"offload: {notice}" for notice in self.notices)]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.session = session
        if self.config.pluginmanager.hasplugin("rich-terminal-reporter"):
            raise pytest.UsageError(
                "--rich is not supported by --offload: pytest-rich's reporter needs the collected tests themselves, "
                "which are in other processes; leave it out (pytest-sugar works)"
            )
        reporter = self._reporter()
        if reporter is not None:
            # Results of many files come interleaved: one line of dots, as under xdist.
            reporter.showfspath = False
        # Called by pytest's own pytest_collection, so that every hook around collection stays.
        session.__dict__["perform_collect"] = lambda *_args, **_kwargs: []
        bdd.register(self.config)
        self.nodes.announce(self.core)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        # Where a run ends early, pytest-cov does not take in what workers have measured.
        for path in self.coverage_files:
            path.unlink(missing_ok=True)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        option = self.config.option
        if option.maxfail or getattr(option, "stepwise", False):
            self.in_order = InOrder(option.maxfail, self.core.drop_after)
        hook = self.config.hook.pytest_runtest_logstart
        reporter = self._reporter()
        if reporter is not None:
            # A line per started test would only be in the way of those that have finished.
            hook = self.config.pluginmanager.subset_hook_caller("pytest_runtest_logstart", [reporter])
        self._logstart = hook if hook.get_hookimpls() else None
        # What is there now, and the reports of a whole run later, is no garbage: looking for some there takes long.
        freeze()
        try:
            with self._stopped_together():
                self.core.run(self._on_events)
            self._log_rest()
        except Interrupted:
            # By pytest itself, which runs nothing after that.
            raise
        except (KeyboardInterrupt, pytest.exit.Exception):
            self._report_what_has_come()
            self._interrupted = list(self._running.values())
            raise
        finally:
            self._take_leave_of_workers()
            self._update_cache()
            self._remember_start_method()
            freeze()
        if self.problem or self.not_run:
            # Neither a failure nor an interruption: something is missing from the results.
            text = self.problem or f"{self.not_run} tests were not run"
            raise pytest.exit.Exception(f"offload: {text}", pytest.ExitCode.INTERNAL_ERROR)
        if self.flaky and self.settings.fail_on_flaky:
            session.testsfailed += 1
        return True

    def pytest_unconfigure(self) -> None:
        # Where pytest does not record them either, and they are written at once.
        sys.stderr.write("".join(self._last_warnings))

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, Any] | None:
        if report.outcome == "rerun":  # type: ignore[comparison-overlap]
            return "rerun", "R", ("RERUN", {"yellow": True})
        return None

    @pytest.hookimpl(tryfirst=True)
    def pytest_internalerror(self, excrepr: Any, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        if not isinstance(excinfo.value, WorkerError):
            return
        # The traceback that helps is the one in the other process.
        text = _Text(str(excinfo.value))
        if hasattr(excrepr, "chain"):
            excrepr.chain = [(text, None, None)]
        excrepr.reprtraceback = text

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        write = terminalreporter.write_line
        # A short run says nothing about how well work was shared out.
        lasted = float(self.summary.get("duration_secs", 0.0))
        idle = lasted > LONG_RUN and terminalreporter.verbosity >= 0 and bool(self.summary.get("idle_worker"))
        if not (self.flaky or self.crashes or self.lost or self.warnings or self._interrupted or idle):
            return
        terminalreporter.write_sep("=", "offload")
        for label, nodeid, worker, message in self.crashes:
            write(f"{label} {nodeid} on {worker}: {message}", red=True)
        for nodeid, worker in self._interrupted:
            write(f"INTERRUPTED {nodeid} on {worker} was running", yellow=True)
        for worker, reason in self.lost:
            write(f"LOST {worker}: {reason}", red=True)
        for text in self.warnings:
            write(f"WARNING {text}", yellow=True)
        for nodeid in self.flaky:
            write(f"FLAKY {nodeid} passed on a retry", yellow=True)
        if idle:
            share = float(self.summary.get("idle_share", 0.0))
            write(f"the slowest sandbox, {self.summary['idle_worker']}, was idle for {share:.0%} of the run")

    @contextlib.contextmanager
    def _stopped_together(self) -> Iterator[None]:
        """Ctrl-Z stops the tests, too, which are in process groups of their own."""

        def stop(*_: object) -> None:
            self.core.stop_tests(True)
            # Returns when this process goes on.
            os.kill(os.getpid(), signal.SIGSTOP)
            self.core.stop_tests(False)

        in_main_thread = threading.current_thread() is threading.main_thread()
        if not in_main_thread or signal.getsignal(signal.SIGTSTP) is not signal.SIG_DFL:
            yield
            return
        signal.signal(signal.SIGTSTP, stop)
        interrupt = signal.getsignal(signal.SIGINT)
        if interrupt is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            if interrupt is signal.default_int_handler:
                signal.signal(signal.SIGINT, interrupt)

    def _on_interrupt(self, *_: object) -> None:
        """Ctrl-C. The events that have come are reported first, unless that takes so long that it comes again."""
        if self._pending_interrupt:
            raise KeyboardInterrupt
        self._pending_interrupt = True

    # -- events

    def _on_events(self, batch: list[Event]) -> None:
        if batch:
            self._batch = iter(batch)
            with self._written_at_once():
                for kind, *fields in self._batch:
                    handler = getattr(self, f"_on_{kind}", None)
                    if handler is not None:
                        handler(*fields)
        if self._pending_interrupt:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def _written_at_once(self) -> Iterator[None]:
        """What the reporter shows of a batch is one write: it would make one for each test."""
        writer = getattr(self._reporter(), "_tw", None)
        if writer is None:
            yield
            return
        writer.flush = lambda: None
        try:
            yield
        finally:
            del writer.flush
            writer.flush()

    def _on_header(self, how: dict[str, Any], *_: object) -> None:
        start, collect = how.get("start"), how.get("collect")
        self._start_method = str(start)
        parts = [f"workers are {'forked' if start == 'fork' else 'started fresh'}"]
        if how.get("start_reason"):
            parts[-1] += f" ({how['start_reason']})"
        parts.append("collection is shared out" if collect == "parallel" else "one process collects")
        if how.get("collect_reason"):
            parts[-1] += f" ({how['collect_reason']})"
        self._how = f"offload: {', '.join(parts)}"

    def _on_collect_report(self, data: dict[str, Any], *_: object) -> None:
        self._collect_reports.append(data)

    def _on_deselected(self, nodeids: list[str], *_: object) -> None:
        self._deselected += len(nodeids)
        self.config.hook.pytest_deselected(items=[Deselected(nodeid) for nodeid in nodeids])

    def _on_nodeids(self, nodeids: list[str], *_: object) -> None:
        self._seen.extend(nodeids)

    def _on_collected(self, count: int, *_: object) -> None:
        session, reporter = self.session, self._reporter()
        more_to_come = False
        for data in sorted(self._collect_reports, key=lambda data: data.get("$unit", 0)):
            fields = {name: value for name, value in data.items() if name not in ("$unit", "$last")}
            report = reports.revived(self.config, fields)
            self.config.hook.pytest_collectreport(report=report)
            if session.shouldfail and not data.get("$last"):
                more_to_come = True
                break
        session.testscollected = count
        if reporter is not None:
            reporter._numcollected = count + self._deselected
            if hasattr(reporter, "tests_count"):
                # pytest-sugar's, which counts them in a list that is not here.
                reporter.tests_count = count
            reporter.report_collect(final=True)
            if self._how and reporter.verbosity >= 0 and not self.config.option.no_header:
                reporter.write_line(self._how)
            for lines in self._finish_lines:
                for line in lines:
                    reporter.write_line(line)
        if session.shouldfail and more_to_come:
            raise Failed(session.shouldfail)
        failed = session.testsfailed
        if failed and not self.config.option.continue_on_collection_errors:
            raise Interrupted(f"{failed} error{'s' if failed != 1 else ''} during collection")

    def _on_tests(self, ids: list[str], *_: object) -> None:
        self.nodes.collected(ids)

    def _on_started(
        self,
        key: int,
        nodeid: str,
        _line: object = None,
        _path: str = "",
        _domain: str = "",
        worker: str = "",
        *_: object,
    ) -> None:
        self._seen.append(nodeid)
        self._running[key] = (nodeid, worker)
        if worker:
            self.nodes.ready(worker)
        if self.in_order is not None:
            self.in_order.worker_goes_on(worker)

    def _on_finished(
        self,
        key: int,
        nodeid: str,
        path: str,
        line: int | None,
        domain: str,
        worker: str,
        durations: list[float],
        data: str | None,
        outcome: str,
        will_retry: bool,
        number: int,
        *_: object,
    ) -> None:
        attempt = Attempt(key, nodeid, path, line, domain, worker, number, will_retry)
        self._running.pop(key, None)

        def commit() -> None:
            node = self.nodes[worker]
            if data is None:
                passed = reports.passed(attempt, durations, node)
                # What newer versions of pytest make of the name; their cache wants it again.
                self._parsed[nodeid] = passed[0].__dict__.get("_id")
                self._log(attempt, passed)
            else:
                self._log(attempt, reports.received(self.config, data, attempt, node))

        self._commit(attempt, commit, failed=outcome not in ("passed", "skipped"))

    def _on_crashed(
        self,
        nodeid: str,
        worker: str,
        message: str,
        details: str,
        key: int = -1,
        path: str = "",
        line: int | None = None,
        domain: str = "",
        will_retry: bool = False,
        number: int = 1,
        duration: float = 0.0,
        timed_out: bool = False,
        stdout: str = "",
        stderr: str = "",
        *_: object,
    ) -> None:
        path = path or nodeid.partition("::")[0]
        attempt = Attempt(key, nodeid, path, line, domain or nodeid, worker, number, will_retry)
        self._running.pop(key, None)
        self.crashes.append(("TIMEOUT" if timed_out else "CRASHED", nodeid, worker, message))

        def commit() -> None:
            said = (("Captured stdout call", stdout), ("Captured stderr call", stderr))
            sections = [section for section in said if section[1]]
            made = reports.crashed(attempt, message, details, duration, sections, self.nodes[worker])
            self.nodes.crashed(nodeid, made[0], will_retry)
            self._log(attempt, made)
            self._stop_after_crashes()

        self._commit(attempt, commit, failed=True)

    def _on_late_report(self, key: int, nodeid: str, data: str, *_: object) -> None:
        def received(attempt: Attempt, node: WorkerNode) -> list[pytest.TestReport]:
            return reports.received(self.config, data, attempt, node)

        self._report_late(key, nodeid, received)

    def _on_late_crash(self, key: int, nodeid: str, data: str, *_: object) -> None:
        """A worker died or hung after its last test, which used what was torn down last."""
        self._report_late(key, nodeid, lambda attempt, node: reports.crashed_late(attempt, json.loads(data), node))

    def _report_late(
        self, key: int, nodeid: str, reports_of: Callable[[Attempt, WorkerNode], list[pytest.TestReport]]
    ) -> None:
        def commit() -> None:
            worker = self._logged.get(key, "")
            attempt = Attempt(key, nodeid, nodeid.partition("::")[0], None, nodeid, worker, 1, False)
            made = reports_of(attempt, self.nodes[worker])
            if key in self._late:
                self._late[key].append(lambda: self._log_late(made))
            else:
                self._log_late(made)
                self._stop_if_asked()

        if self.in_order is None:
            commit()
        else:
            self.in_order.late(key, commit)

    def _log_late(self, late_reports: list[pytest.TestReport]) -> None:
        for report in late_reports:
            with junit.reopened(self.config, report):
                self.config.hook.pytest_runtest_logreport(report=report)

    def _on_warning(self, data: dict[str, Any], *_: object) -> None:
        self.config.hook.pytest_warning_recorded.call_historic(kwargs=reports.warning(data))

    def _on_property(self, name: str, value: str, *_: object) -> None:
        from _pytest.junitxml import xml_key

        xml = self.config.stash.get(xml_key, None)
        if xml is not None:
            xml.add_global_property(name, value)

    def _on_data(self, worker: str, kind: str, payload: str, *_: object) -> None:
        value = json.loads(payload)
        if kind == "collectionfinish":
            self._finish_lines = value
        elif kind == "usage_error":
            raise pytest.UsageError(*value)
        elif kind == "property_once":
            if tuple(value) not in self._properties:
                self._properties.add(tuple(value))
                self._on_property(*value)
        elif kind == "workerinfo":
            self.nodes[worker].describe(value)
        elif kind == "node":
            self.nodes.configure(self.core, value)
        elif kind == "output":
            # Of a test that has switched capture off: it is for the terminal.
            sys.stdout.write(value)
            sys.stdout.flush()
        elif kind == "last_warning":
            self._last_warnings[value] = None
        elif kind == "live_log":
            self._show_live_log(worker, **value)
        elif kind == "coverage_file":
            self.coverage_files.append(Path(value))
        elif kind == "nodeids":
            self._seen.extend(value)
        elif kind == "stepwise":
            self._adopt_stepwise(value)
        elif kind == "stop":
            # Counts once the results of the test after which it was asked for have been seen.
            self._stops[value["key"]] = value
            if value["key"] in self._logged:
                self._stop_after(value["key"])

    def _on_exit(self, reason: str, code: int | None, *_: object) -> None:
        raise pytest.exit.Exception(reason, code)

    def _on_internal_error(self, text: str, *_: object) -> None:
        raise WorkerError(text)

    def _on_fatal(self, code: int, text: str, *_: object) -> None:
        text = text.strip()
        if code == pytest.ExitCode.USAGE_ERROR:
            prefix = "ERROR: "
            raise pytest.UsageError(text[len(prefix) :] if text.startswith(prefix) else text)
        if code == pytest.ExitCode.INTERNAL_ERROR:
            raise WorkerError(text)
        raise pytest.exit.Exception(text or "the template process ended", code)

    def _on_worker_down(self, worker: str, output: str | None, error: str | None = None, *_: object) -> None:
        if self.in_order is not None:
            self.in_order.worker_goes_on(worker)
        self.nodes.down(worker, output, error)

    def _report_what_has_come(self) -> None:
        """The results that were there, or on their way, when the run was ended."""
        self._take_leftovers()
        with contextlib.suppress(Failed, Interrupted):
            for kind, *fields in self._leftover:
                if kind in ("started", "finished", "crashed", "late_report", "late_crash"):
                    getattr(self, f"_on_{kind}")(*fields)
            self._log_rest()

    def _log_rest(self) -> None:
        """Reports what has waited for what does not come any more."""
        if self.in_order is not None:
            self.in_order.rest()
        for key in list(self._late):
            for log in self._late.pop(key):
                log()

    def _take_leftovers(self) -> None:
        self._leftover += [*self._batch, *self.core.leftover()]

    def _take_leave_of_workers(self) -> None:
        """Hears of workers that ended when nobody listened any more: plugins have files of theirs to gather."""
        self._take_leftovers()
        for kind, *fields in self._leftover:
            if kind == "worker_down":
                self.nodes.down(*fields)
            elif kind == "data" and fields[1] == "coverage_file":
                self._on_data(*fields)
            elif kind == "not_run":
                # Collected all the same, which pytest's cache remembers.
                self._seen.append(fields[1])
            elif kind in ("flaky", "worker_lost", "run_warning"):
                getattr(self, f"_on_{kind}")(*fields)

    def _on_worker_lost(self, worker: str, reason: str, *_: object) -> None:
        self.lost.append((worker, reason))

    def _on_not_run(self, _key: int, nodeid: str, *_: object) -> None:
        self.not_run += 1
        self._seen.append(nodeid)

    def _on_run_warning(self, text: str, *_: object) -> None:
        self.warnings.append(text)

    def _on_waiting(self, text: str, *_: object) -> None:
        self._write_lines([f"offload: {text}"])

    def _on_problem(self, text: str, *_: object) -> None:
        self.problem = text

    def _on_flaky(self, nodeids: list[str], *_: object) -> None:
        self.flaky = list(nodeids)

    def _on_summary(self, summary: dict[str, Any], *_: object) -> None:
        self.summary = summary

    # -- reporting

    def _commit(self, attempt: Attempt, commit: Callable[[], None], failed: bool) -> None:
        if self.in_order is None or attempt.key < 0:
            commit()
        else:
            self.in_order.add(attempt.key, attempt.worker, commit, final=not attempt.will_retry, failed=failed)

    def _log(self, attempt: Attempt, attempt_reports: list[pytest.TestReport]) -> None:
        hook = self.config.hook
        if self._logstart is not None:
            self._logstart(nodeid=attempt.nodeid, location=attempt.location)
        log = hook.pytest_runtest_logreport
        if attempt.will_retry:
            attempt_reports = reports.as_rerun(attempt_reports)
            log = junit.without(self.config, log)
        for report in attempt_reports:
            log(report=report)
        hook.pytest_runtest_logfinish(nodeid=attempt.nodeid, location=attempt.location)
        self._logged[attempt.key] = attempt.worker
        if attempt.will_retry:
            self._late.setdefault(attempt.key, [])
        else:
            for log_late in self._late.pop(attempt.key, ()):
                log_late()
        self._stop_after(attempt.key)

    def _stop_after(self, key: int) -> None:
        stop = self._stops.pop(key, None)
        if stop is not None and stop["failed"]:
            self.session.shouldfail = stop["reason"]
        elif stop is not None:
            self.session.shouldstop = stop["reason"]
        self._stop_if_asked()

    def _stop_after_crashes(self) -> None:
        """As `--max-worker-restart` says."""
        most = self.settings.most_crashes
        if most is not None and len(self.crashes) > most:
            self.session.shouldfail = f"maximum crashed workers reached: {most} (--max-worker-restart)"
            self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        """What pytest's own loop does after every test."""
        if self.session.shouldfail:
            raise Failed(self.session.shouldfail)
        if self.session.shouldstop:
            raise Interrupted(self.session.shouldstop)

    def _show_live_log(self, worker: str | None, nodeid: str, when: str, text: str) -> None:
        # Under its worker's name, as results are.
        names = (worker and f"[{worker}]", nodeid, when and f"({when})")
        where = " ".join(name for name in names if name)
        self._write_lines([f"{where} {line}" for line in text.splitlines() or [""]])

    def _write_lines(self, lines: list[str]) -> None:
        """Shows whole lines at once."""
        terminal = self._reporter()
        if terminal is None:
            return
        terminal.ensure_newline()
        # Behind dots, of which the reporter does not know that the line has not ended.
        if terminal._tw.width_of_current_line:
            terminal._tw.line()
        for line in lines:
            terminal.write_line(line)

    def _reporter(self) -> Any:
        return self.config.pluginmanager.getplugin("terminalreporter")

    # -- pytest's cache, which workers leave alone

    def _update_cache(self) -> None:
        plugin = self.config.pluginmanager.getplugin("nfplugin")
        if plugin is not None:
            from _pytest import cacheprovider

            node_id = getattr(cacheprovider, "NodeId", None)
            parsed = self._parsed.get
            plugin.cached_nodeids.update(
                (parsed(nodeid) or node_id.parse(nodeid)) if node_id else nodeid for nodeid in self._seen
            )

    def _remember_start_method(self) -> None:
        """Has the next run know, before it knows anything else of the project."""
        cache = getattr(self.config, "cache", None)
        if cache is None or self.settings.start_method != "auto" or not self._start_method:
            return
        if self._start_method != cache.get(early.CACHE_KEY, "fork"):
            cache.set(early.CACHE_KEY, self._start_method)

    def _adopt_stepwise(self, state: dict[str, Any]) -> None:
        """Takes over what collection has decided where it was done."""
        info = getattr(self.config.pluginmanager.getplugin("stepwiseplugin"), "cached_info", None)
        if info is not None:
            info.last_test_count = state["last_test_count"]
            if state["last_failed"] is None:
                info.last_failed = None


class _Text:
    """A traceback that is text already."""

    def __init__(self, text: str) -> None:
        self._text = text

    def toterminal(self, out: Any) -> None:
        for line in self._text.splitlines():
            out.line(line)
