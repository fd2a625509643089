"""pytest's live log (`log_cli`) in a process without a terminal: each record goes to the controller, which shows it.

Tests of several workers run at once, so that a section a test, as pytest has it, would not say whose a line is. Each
record carries the name of its test instead.
"""

from __future__ import annotations

import collections
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest

from .originals import getpid

if TYPE_CHECKING:
    from .plugin import WorkerPlugin


class LiveLog(logging.Handler):
    """Takes the place of pytest's handler, and has its methods."""

    def __init__(self, plugin: WorkerPlugin) -> None:
        super().__init__()
        self._plugin = plugin
        self._nodeid = ""
        self._when = ""
        # The connection is the main thread's. What other threads log waits for it here.
        self._waiting: collections.deque[dict[str, str]] = collections.deque()
        self._sending = False

    # -- as pytest's logging plugin has it

    def reset(self) -> None:
        """Called before each test."""

    def set_when(self, when: str | None) -> None:
        self._send()
        if when in ("start", "sessionfinish"):
            self._nodeid = ""
        # Wider scopes are torn down between two tests.
        self._when = {None: "", "finish": "teardown", "logreport": self._when}.get(when, when or "")

    def handleError(self, record: logging.LogRecord) -> None:
        # pytest's own handler, which is there as well, reports it.
        pass

    # -- hooks

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._nodeid = item.nodeid

    # -- records

    def outside_of_tests(self, when: str) -> None:
        """What comes now is of no test."""
        self._send()
        self._nodeid, self._when = "", when

    def emit(self, record: logging.LogRecord) -> None:
        plugin = self._plugin
        # The controller has its own session, and what is collected again has been shown.
        if self._when == "sessionstart" or (self._when == "collection" and plugin.silent) or getpid() != plugin.pid:
            return
        self._waiting.append({"nodeid": self._nodeid, "when": self._when, "text": self.format(record)})
        if threading.current_thread() is threading.main_thread():
            self._send()

    def _send(self) -> None:
        # A signal's handler may log meanwhile.
        if not self._waiting or self._sending:
            return
        self._sending = True
        channel = self._plugin.channel
        try:
            while self._waiting:
                channel.post("data", kind="live_log", payload=self._waiting.popleft())
            channel.flush()
        finally:
            self._sending = False


def install(plugin: WorkerPlugin, config: pytest.Config) -> LiveLog | None:
    """Replaces the handler of pytest's logging plugin, if that has one that shows something."""
    plugins: Any = config.pluginmanager
    logs = plugins.getplugin("logging-plugin")
    shown = getattr(logs, "log_cli_handler", None)
    # Where nothing is shown, it is one that does nothing.
    if shown is None or isinstance(shown, logging.NullHandler) or plugin.init.get("alone"):
        return None
    handler = LiveLog(plugin)
    handler.setFormatter(shown.formatter)
    logs.log_cli_handler = handler
    plugins.register(handler, "offload-live-log")
    return handler
