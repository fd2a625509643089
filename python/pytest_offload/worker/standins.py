"""What stands in for what a worker has not: a terminal, a JUnit file, pytest-xdist, this project's own plugin."""

from __future__ import annotations

import copy
import functools
import os
import types
from typing import IO, Any

import pytest

from .channel import Channel

# xdist's options as they are where nothing is distributed.
XDIST_OPTIONS: tuple[tuple[str, Any], ...] = (("dist", "no"), ("numprocesses", None), ("tx", []), ("distload", False))
# As xdist describes its marker, for where xdist is not installed.
XDIST_GROUP = "xdist_group(name): with --offload-dist=loadgroup, tests of one group run in one sandbox, in order."
# The options of the plugin, for where it is not: those of `pytest --offload` can be in a project's `addopts`.
# And those of xdist that the plugin has where xdist is not installed.
PLUGIN_XDIST_OPTIONS = ("--maxprocesses", "--dist", "--tx", "--max-worker-restart", "--testrunuid", "--maxschedchunk")
PLUGIN_XDIST_FLAGS = ("--loadscope-reorder", "--no-loadscope-reorder")
PLUGIN_FLAGS = ("--offload", "--no-offload", "--offload-fail-on-flaky")
PLUGIN_OPTIONS = (
    "--offload-provider",
    "--offload-parallel",
    "--offload-retries",
    "--offload-flaky",
    "--offload-timeout",
    "--offload-isolation",
    "--offload-dist",
    "--offload-collect",
    "--offload-start-method",
    "--offload-config",
    "--offload-junit",
)


class QuietTerminal:
    """The terminal reporter for code that asks for it; writes nothing, hears no hooks."""

    def __init__(self, reporter: Any) -> None:
        self.__dict__["_reporter"] = reporter
        silence(reporter)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("pytest_"):
            raise AttributeError(name)
        return getattr(self.__dict__["_reporter"], name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.__dict__["_reporter"], name, value)


def silence(reporter: Any) -> None:
    """Has a terminal reporter write nothing."""
    reporter._tw._file = _nowhere()


@functools.lru_cache(maxsize=None)
def _nowhere() -> IO[str]:
    """Opens a file that keeps nothing. There is only one, so that a reporter that is replaced leaves none open."""
    return open(os.devnull, "w")


class XmlRecorder:
    """What the fixtures `record_xml_attribute` and `record_testsuite_property` need of the JUnit plugin."""

    def __init__(self, channel: Channel, family: str) -> None:
        self.family = "xunit1" if family == "legacy" else family
        self.attributes: list[tuple[str, str]] = []
        self._channel = channel

    def node_reporter(self, _nodeid: object) -> XmlRecorder:
        return self

    def add_attribute(self, name: str, value: object) -> None:
        self.attributes.append((str(name), str(value)))

    def add_global_property(self, name: str, value: object) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name parameter needs to be a string, but {type(name).__name__} given")
        if os.environ.get("PYTEST_CURRENT_TEST", "").endswith("(call)"):
            self._channel.post("property", name=name, value=str(value))
        else:
            # A fixture of a wide scope says it in every worker.
            self._channel.post("data", kind="property_once", payload=[name, str(value)])


@pytest.fixture(scope="session")
def worker_id(request: pytest.FixtureRequest) -> str:
    """The id of the current worker ('gw0', 'gw1', ...)."""
    return os.environ["PYTEST_XDIST_WORKER"]


@pytest.fixture(scope="session")
def testrun_uid(request: pytest.FixtureRequest) -> str:
    """An id that is shared by all workers of a run and differs between runs."""
    return os.environ["PYTEST_XDIST_TESTRUNUID"]


# Packages with plugins that do nothing that a worker's process could notice before it is configured.
KNOWN_PACKAGES = frozenset(
    ("_pytest", "pytest", "pytest_offload", "offload_worker", "offload_fixtures", "xdist", "pytest_cov")
)


def has_foreign_plugins(config: pytest.Config) -> bool:
    """Whether there are plugins or conftests that may do something before there are workers."""
    for _, plugin in config.pluginmanager.list_name_plugin():
        if plugin is None:
            continue
        module = plugin.__name__ if isinstance(plugin, types.ModuleType) else type(plugin).__module__
        if module.partition(".")[0] not in KNOWN_PACKAGES and not module.startswith(__package__):
            return True
    return False


def register_group_marker(config: pytest.Config) -> None:
    """Makes xdist's marker a known one where xdist is not installed."""
    if not any(line.startswith("xdist_group") for line in config.getini("markers")):
        config.addinivalue_line("markers", XDIST_GROUP)


def xdist_fixtures() -> types.ModuleType:
    """A plugin with xdist's fixtures, for where xdist is not installed."""
    plugin = types.ModuleType("offload_fixtures")
    plugin.__dict__.update(worker_id=worker_id, testrun_uid=testrun_uid)
    return plugin


def stand_in_for_xdist(config: pytest.Config) -> None:
    """Has plugins find xdist where it is not installed, in the controller as in the workers.

    Many register what they have for workers only where there is a plugin of that name, and rely on it in every process
    that has a `config.workerinput`.
    """
    plugins = config.pluginmanager
    # Named by `-p`, it has the name of its module.
    if plugins.hasplugin("xdist") or plugins.hasplugin("xdist.plugin"):
        return
    plugins.add_hookspecs(_xdist_hooks())
    plugins.register(types.ModuleType("offload_xdist"), "xdist")
    # Who has found the plugin may look at its options without asking whether there are any.
    for name, value in XDIST_OPTIONS:
        if not hasattr(config.option, name):
            setattr(config.option, name, copy.copy(value))


def _xdist_hooks() -> types.ModuleType:
    """Declares the hooks of xdist's that plugins implement. Those that are not called here are so never called."""

    def pytest_configure_node(node: object) -> None:
        pass

    def pytest_testnodeready(node: object) -> None:
        pass

    def pytest_testnodedown(node: object, error: object) -> None:
        pass

    def pytest_xdist_setupnodes(config: pytest.Config, specs: object) -> None:
        pass

    def pytest_xdist_newgateway(gateway: object) -> None:
        pass

    def pytest_xdist_node_collection_finished(node: object, ids: object) -> None:
        pass

    @pytest.hookspec(firstresult=True)
    def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> None:
        pass

    @pytest.hookspec(firstresult=True)
    def pytest_xdist_auto_num_workers(config: pytest.Config) -> None:
        pass

    def pytest_handlecrashitem(crashitem: object, report: object, sched: object) -> None:
        pass

    specs = types.ModuleType("offload_xdist_hooks")
    specs.__dict__.update({name: spec for name, spec in locals().items() if name.startswith("pytest_")})
    return specs
