"""The entry point `pytest11`: adds the options and, with `--offload`, hands the run to the controller.

The template process is started here, as soon as the options are known: while pytest goes on to load
conftests in this process, the template does the same in its own.
"""

from __future__ import annotations

import json
import os
import random
import sys
import types
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import conftests, coverage, early, options, xdist
from .options import Settings
from .worker.standins import has_foreign_plugins, register_group_marker, stand_in_for_xdist


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    if config.pluginmanager.hasplugin("offload-controller"):
        stand_in_for_xdist(config)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    # Also without --offload: a suite that has groups is to be free of warnings either way.
    register_group_marker(config)


class PlainRun:
    """Says why a run with `--offload` is not offloaded."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def pytest_report_header(self) -> str:
        return f"offload: not used, because of {self.reason}"


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Iterator[None]:
    if early_config.known_args_namespace.offload:
        early.occupy_standard_descriptors()
    if options_of_conftests(early_config):
        # A conftest says how many sandboxes there are.
        with coverage.distributed(early_config.known_args_namespace):
            yield
        _begin(early_config, forks=False)
    elif _begin(early_config):
        with coverage.distributed(early_config.known_args_namespace):
            yield
    else:
        yield


def options_of_conftests(early_config: pytest.Config) -> bool:
    known = early_config.known_args_namespace
    return bool(known.offload) and xdist.asks_conftest(early_config, known)


def _begin(early_config: pytest.Config, forks: bool = True) -> bool:
    """Begins an offloaded run, if this is to be one. `forks`: nothing of the project has been loaded yet."""
    known = early_config.known_args_namespace
    plugins = early_config.pluginmanager
    if plugins.hasplugin("offload-worker"):
        return False
    if not known.offload:
        xdist.refuse_without_offload(known)
        return False
    reason = options.plain_reason(known)
    if reason is not None:
        if reason:
            plugins.register(PlainRun(reason), "offload-plain")
        return False
    settings = options.resolve(early_config, known)
    run_uid = getattr(known, "testrunuid", None) or uuid.uuid4().hex
    environ = dict(os.environ)
    template = early.fork(early_config, settings) if forks and settings.provider == "local" else None
    try:
        if settings.record_history and settings.history is not None:
            options.make_cache(early_config, settings.history)
        from ._core import Session

        core = Session({**session_options(early_config, settings, run_uid), "template_pid": template and template.pid})
    except BaseException as error:
        if template is not None:
            template.dismiss()
        if isinstance(error, OSError):
            raise pytest.UsageError(f"offload: the run cannot begin: {error}") from None
        raise
    # Also where pytest gives up before there is a run.
    early_config.add_cleanup(core.close)
    if template is not None and core.meeting_point is not None:
        template.meet(*core.meeting_point)
    # While the template configures itself.
    from .controller import Controller

    controller = Controller(early_config, settings, core, run_uid, environ if settings.provider == "local" else None)
    plugins.register(controller, "offload-controller")
    if settings.provider != "local":
        conftests.forgive(early_config, controller.notices.append)
    return True


def session_options(config: pytest.Config, settings: Settings, run_uid: str) -> dict[str, Any]:
    """The options of the orchestrator's session, as `PROTOCOL.md` lists them."""
    known = config.known_args_namespace
    max_fail = known.maxfail or settings.max_fail or 0
    stop_after = max_fail
    if not stop_after and getattr(known, "stepwise", False):
        stop_after = 2 if getattr(known, "stepwise_skip", False) else 1
    inherit_output = known.capture == "no"
    # Workers that are started fresh have to collect in the order of the first process, also what comes out of sets.
    hash_seed = {} if "PYTHONHASHSEED" in os.environ else {"PYTHONHASHSEED": str(random.SystemRandom().getrandbits(32))}
    extra = {"inherit_output": inherit_output, "await_workerinput": True, "hide": list(hash_seed)}
    extra["bare"] = not (has_foreign_plugins(config) or conftests.are_likely(config))
    if settings.provider == "local":
        extra["sys_path"] = list(sys.path)
    else:
        extra.update(elsewhere(config))
        # What pytest and Python themselves read; everything else that is set here means nothing there.
        for name in ("PYTHONHASHSEED", "PYTEST_ADDOPTS"):
            if name in os.environ:
                hash_seed[name] = os.environ[name]
    return {
        "args": coverage.worker_args(known, [str(arg) for arg in config.invocation_params.args]),
        "cwd": str(config.invocation_params.dir),
        "python": sys.executable,
        "worker_py": str(Path(__file__).with_name("worker") / "__main__.py"),
        "workers": settings.workers,
        "collect": settings.collect,
        "start_method": settings.start_method,
        "isolation": settings.isolation,
        "retries": settings.retries,
        # A process that died cannot try again by itself, as pytest-rerunfailures has it do otherwise.
        "crash_retries": int(getattr(known, "reruns", None) or 0),
        "timeout_secs": settings.timeout,
        "dist": settings.dist,
        "junit": settings.junit,
        "basetemp": base_temp(config),
        "max_fail": max_fail,
        "stop_after": stop_after,
        "yield_on_failure": bool(stop_after),
        "history": settings.history and str(settings.history),
        "record_history": settings.record_history,
        "env": dict(hash_seed, **settings.env),
        "secrets": list(settings.secrets),
        "mainargv": list(sys.argv),
        "run_uid": run_uid,
        "inherit_output": inherit_output,
        "continue_on_collection_errors": known.continue_on_collection_errors,
        "init_extra": json.dumps(extra),
        "configuration": settings.configuration,
        "output_dir": settings.output_dir,
        "root": str(repository(config)),
    }


def repository(config: pytest.Config) -> Path:
    """The directory whose files travel to sandboxes that are somewhere else."""
    directory = Path(config.invocation_params.dir)
    known = next((path for path in (directory, *directory.parents) if (path / ".git").exists()), None)
    root = config.rootpath
    return known or (root if root in (directory, *directory.parents) else directory)


def elsewhere(config: pytest.Config) -> dict[str, Any]:
    """What sandboxes that are somewhere else are told besides."""
    directory = str(config.invocation_params.dir)
    # By `python -m pytest`, or by who runs it.
    on_path = any(os.path.abspath(entry) == directory for entry in sys.path)
    return {"elsewhere": True, "standalone": True, "cwd_on_path": on_path, "cache": cached(config)}


def cached(config: pytest.Config) -> dict[str, Any] | None:
    """What pytest's cache says of earlier runs, as far as it decides which tests run; None where there is no cache."""
    if not config.pluginmanager.hasplugin("cacheprovider"):
        return None
    from _pytest.cacheprovider import Cache

    known = config.known_args_namespace
    if known.cacheclear:
        return {}
    cache = Cache(Cache.cache_dir_from_config(config, _ispytest=True), config, _ispytest=True)
    wanted = {
        "cache/lastfailed": True,
        "cache/nodeids": known.newfirst,
        "cache/stepwise": getattr(known, "stepwise", False),
    }
    values = {key: cache.get(key, None) for key, is_wanted in wanted.items() if is_wanted}
    return {key: value for key, value in values.items() if value is not None}


def base_temp(config: pytest.Config) -> str | None:
    """pytest's directory for this run's temporary files, made before pytest itself would make it."""
    try:
        from _pytest.tmpdir import TempPathFactory
    except ImportError:  # pragma: no cover - every supported pytest has it
        return None
    if not config.pluginmanager.hasplugin("tmpdir"):
        return None
    view: Any = types.SimpleNamespace(option=config.known_args_namespace, trace=config.trace, getini=config.getini)
    factory = TempPathFactory.from_config(view, _ispytest=True)
    config.pluginmanager.register(_BaseTemp(factory), "offload-basetemp")
    return str(factory.getbasetemp())


class _BaseTemp:
    """Puts the factory that made the directory into its place once pytest is configured."""

    def __init__(self, factory: Any) -> None:
        self.factory = factory

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: Any) -> None:
        config._tmp_path_factory = self.factory
