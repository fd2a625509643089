"""A pytest plugin that writes down what pytest's reporters hear, in the process that the user started."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


class Recorder:
    def __init__(self, config: pytest.Config, path: str) -> None:
        self.config = config
        self.path = path
        self.outcomes: list[list[str]] = []
        self.warnings: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        category = self.config.hook.pytest_report_teststatus(report=report, config=self.config)[0]
        if category:
            self.outcomes.append([report.nodeid, category])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self.outcomes.append([report.nodeid, "collection " + report.outcome])

    def pytest_warning_recorded(self, warning_message: Any, when: str, nodeid: str) -> None:
        name = warning_message.category.__name__
        self.warnings.append(f"{when} {nodeid} {name}: {warning_message.message}")

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        with Path(self.path).open("w", encoding="utf-8", errors="surrogatepass") as file:
            json.dump({"outcomes": sorted(self.outcomes), "warnings": sorted(self.warnings)}, file)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    path = os.environ.get("OFFLOAD_TEST_RECORD")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(config, path), "offload-test-recorder")
