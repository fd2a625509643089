"""Runs the same project with plain pytest and with `--offload`, in real sub-sessions, and compares."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import pytest

pytest_plugins = ["pytester"]

HERE = Path(__file__).parent

# Third-party plugins are in an environment of their own, so that the other tests run with nothing but pytest.
if importlib.util.find_spec("pytest_cov") is None:
    collect_ignore_glob = ["test_plugins*.py"]

#: What sub-sessions import from: the tests' own plugins, and the package from its sources unless a wheel is installed.
PATHS = [str(HERE)]
try:
    importlib.metadata.distribution("pytest-offload")
except importlib.metadata.PackageNotFoundError:
    PATHS.append(str(HERE.parent))

#: A file's worth of tests that pass.
MANY = "\n".join(f"def test_{i}(): pass" for i in range(6))

#: The ways of starting workers that a plugin can tell from each other.
START = ("--offload-start-method=fork", "--offload-start-method=spawn")


# Where the tests run in the background of a script, Ctrl-C is ignored; what they start is to hear of it all the same.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With OFFLOAD_TEST_SHARE=K/N, only every Nth test stays, by its name: `tests/every_python.py` shares them out."""
    number, _, of = os.environ.get("OFFLOAD_TEST_SHARE", "").partition("/")
    if not of:
        return
    kept = [item for item in items if zlib.crc32(item.nodeid.encode()) % int(of) == int(number)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def plugins() -> list[str]:
    """The options that load what is not loaded by itself."""
    try:
        importlib.metadata.distribution("pytest-offload")
    except importlib.metadata.PackageNotFoundError:
        return ["-p", "pytest_offload.plugin"]
    return []


@dataclass
class Outcome:
    """What can be seen of a run from outside."""

    exit_code: int
    #: Every report that counts, by node id and category.
    outcomes: list[tuple[str, str]]
    warnings: list[str]
    #: The numbers of the last line.
    counts: dict[str, int]
    text: str
    errors: str

    def comparable(self) -> tuple[object, ...]:
        return self.exit_code, self.outcomes, self.counts


class Runner:
    """Runs pytest in the test's directory."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pytester = pytester
        self.path = pytester.path
        self.workers = 2
        self.monkeypatch = monkeypatch
        self._loaded: list[str] = []
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(PATHS))
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        monkeypatch.setenv("OFFLOAD_TEST_RECORD", str(self.path / "record.json"))

    def write(self, **files: str) -> None:
        """Writes files; `tests__test_a` is `tests/test_a.py`."""
        for name, text in files.items():
            path = self.path / (name.replace("__", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("import pytest\n" + text, encoding="utf-8")

    def load(self, *modules: str) -> None:
        """Has sub-sessions load these plugins, and no others that are installed."""
        self.monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        self._loaded = [word for module in ("pytest_offload.plugin", *modules) for word in ("-p", module)]

    def plain(self, *args: str) -> Outcome:
        return self._run(*plugins(), *self._loaded, "-p", "recorder", *args)

    def offload(self, *args: str) -> Outcome:
        parallel = [f"--offload-parallel={self.workers}"] if self.workers else []
        return self._run(*plugins(), *self._loaded, "-p", "recorder", "--offload", *parallel, *args)

    def _run(self, *args: str) -> Outcome:
        record = self.path / "record.json"
        if record.exists():
            record.unlink()
        result = self.pytester.runpytest_subprocess(*args, timeout=180)
        try:
            counts = result.parseoutcomes()
        except ValueError:
            counts = {}
        # Without it, two runs that both break would compare equal.
        assert record.exists() or result.ret in (0, 4), result.stdout.str() + result.stderr.str()
        data = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {"outcomes": [], "warnings": []}
        return Outcome(
            exit_code=int(result.ret),
            outcomes=[tuple(entry) for entry in data["outcomes"]],
            warnings=data["warnings"],
            counts=counts,
            text=result.stdout.str(),
            errors=result.stderr.str(),
        )

    def same(self, *args: str) -> Outcome:
        """Asserts that both give the same, and returns what offload gave."""
        plain = self.plain(*args)
        offload = self.offload(*args)
        assert offload.comparable() == plain.comparable(), f"{plain.text}\n{offload.text}\n{offload.errors}"
        return offload


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Runner:
    return Runner(pytester, monkeypatch)


@pytest.fixture
def without_numbers() -> Callable[[str], str]:
    """Makes texts comparable that differ in times and addresses only."""
    return lambda text: re.sub(r"0x[0-9a-f]+|\d+\.\d+s", "N", text)


sys.path[:0] = PATHS
