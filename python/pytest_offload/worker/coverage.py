"""Keeping what pytest-cov measures in a worker apart, and safe."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from .originals import chdir, getcwd, monotonic

if TYPE_CHECKING:
    from .plugin import WorkerPlugin


class CoverageKeeper:
    """Writes down every now and then what pytest-cov has measured: a worker that dies loses only what came since."""

    INTERVAL = 1.0
    # Saving takes at most this share of the time.
    SHARE = 0.02

    def __init__(self, plugin: WorkerPlugin) -> None:
        self._plugin = plugin
        measuring = plugin.session.config.pluginmanager.getplugin("_cov")
        self._controller: Any = getattr(measuring, "cov_controller", None)
        self._next = monotonic() + self.INTERVAL
        self._named = False

    def name(self) -> None:
        """Tells the controller which file is written to: where nobody takes it in, it has to be removed."""
        if self._controller is not None and not self._named and not self._plugin.init.get("elsewhere"):
            self._named = True
            path = self._controller.cov.get_data().data_filename()
            self._plugin.channel.send("data", kind="coverage_file", payload=path)

    def keep(self) -> None:
        now = monotonic()
        if now < self._next or self._controller is None:
            return
        # Results do not wait for this.
        self._plugin.channel.flush()
        with contextlib.suppress(OSError):
            directory = getcwd()
            chdir(self._controller.topdir)
            try:
                self._controller.cov.save()
            finally:
                chdir(directory)
            self.name()
        after = monotonic()
        self._next = after + max(self.INTERVAL, (after - now) / self.SHARE)


def save_coverage(config: pytest.Config) -> None:
    """Writes what pytest-cov has measured in a process that ends without pytest's own end."""
    coverage = getattr(getattr(config.pluginmanager.getplugin("_cov"), "cov_controller", None), "cov", None)
    if coverage is not None:
        coverage.stop()
        coverage.save()
