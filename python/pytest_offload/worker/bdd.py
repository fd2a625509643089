"""What pytest-bdd knows of a report, and keeps beside it: newer versions find it by the report's identity.

A report that travels is another object, so what is known of it travels in an attribute.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

# Where it is while the report travels.
ATTRIBUTE = "offload_bdd"
# Where older versions keep it, which travels by itself.
OLD_ATTRIBUTE = "scenario"


class BddReports:
    """Puts it onto the reports of a worker, and back into pytest-bdd's registry in the controller."""

    def __init__(self, reporting: Any) -> None:
        self._registry = reporting.test_report_context_registry
        self._context = reporting.ReportContext

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: Any) -> None:
        attributes = report.__dict__
        if ATTRIBUTE in attributes:
            self._registry[report] = self._context(**attributes.pop(ATTRIBUTE))
        elif report in self._registry and not hasattr(report, "node"):
            attributes[ATTRIBUTE] = dict(vars(self._registry[report]))


def register(config: pytest.Config) -> None:
    """Does so, where there is such a version of pytest-bdd."""
    reporting = sys.modules.get("pytest_bdd.reporting")
    if hasattr(reporting, "test_report_context_registry"):
        config.pluginmanager.register(BddReports(reporting), "offload-bdd")
