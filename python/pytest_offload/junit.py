"""pytest's own JUnit report (`--junitxml`), where it has to be told what workers said."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from _pytest.junitxml import xml_key


def without(config: pytest.Config, hook: Any) -> Any:
    """The hook of a report, for an attempt that is repeated.

    An element is one test, and begins with its last attempt: pytest's report would open another one for each worker,
    and count what had passed before the failure.
    """
    xml: Any = config.stash.get(xml_key, None)
    return hook if xml is None else config.pluginmanager.subset_hook_caller(hook.name, [xml])


@contextlib.contextmanager
def reopened(config: pytest.Config, report: pytest.TestReport) -> Iterator[None]:
    """While this lasts, a report on a test that was complete goes into the element that it would have been part of."""
    xml: Any = config.stash.get(xml_key, None)
    before = len(xml.node_reporters_ordered) if xml is not None else 0
    late: Any = xml.node_reporter(report) if xml is not None else None
    if xml is None or len(xml.node_reporters_ordered) == before:
        yield
        return
    late.record_testreport(report)
    element = _last_element(xml.node_reporters_ordered[:before], late)
    if element is None:
        xml.node_reporters = {key: value for key, value in xml.node_reporters.items() if value is not late}
        xml.node_reporters_ordered.remove(late)
        yield
        return
    if report.failed and element.find("failure") is not None:
        # An error after a failed call has an element of its own, and how many tests that is depends on the pytest. It
        # opens and counts it where it finds the failed call open, of which this takes the place.
        xml.open_reports.append(report)
        yield
        xml.node_reporters_ordered.remove(late)
        return
    yield
    element.extend(child for child in late.to_xml() if child.tag != "properties")
    xml.node_reporters_ordered.remove(late)


def _last_element(complete: list[Any], late: Any) -> Any:
    """The last element of that name."""
    names = [late.to_xml().get(name) for name in ("classname", "name")]
    for reporter in reversed(complete):
        # A complete reporter is nothing but its element.
        element = reporter.to_xml()
        if [element.get(name) for name in ("classname", "name")] == names:
            return element
    return None
