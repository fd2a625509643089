"""What pytest-rerunfailures says of a test that the controller cannot know: how often it may be repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .channel import Channel

if TYPE_CHECKING:
    from _pytest import nodes


class CrashRetries:
    """Tells how often a test may be tried again if its process dies, which cannot repeat it then.

    That is told of tests only that do not go by the option `--reruns`, which the orchestrator knows.
    """

    def __init__(self, channel: Channel, config: pytest.Config) -> None:
        self._channel = channel
        plugins = config.pluginmanager
        # Named by `-p`, it has the name of its module.
        plugin = plugins.getplugin("rerunfailures") or plugins.getplugin("pytest_rerunfailures")
        self._count: Any = getattr(plugin, "get_reruns_count", None)
        self._option = int(getattr(config.option, "reruns", None) or 0)

    def tell(self, key: int, item: nodes.Item) -> None:
        """Says so of a test that is about to start."""
        if self._count is None:
            return
        try:
            count = int(self._count(item) or 0)
        except Exception:
            # A mark with wrong arguments. The plugin says so when it runs the test.
            return
        if count != self._option:
            self._channel.post("crash_retries", key=key, retries=count)
