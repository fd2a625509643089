"""The process of a worker: what it has of its own, and what it must not share with the one that it was forked from."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from _pytest import nodes

from .channel import TEXT_LIMIT, Channel, say_hello
from .ending import leave_files_to_parent
from .originals import getpid
from .standins import QuietTerminal

if TYPE_CHECKING:
    from .channel import Message
    from .plugin import WorkerPlugin

DUMP_SIGNAL = signal.SIGRTMAX - 2 if hasattr(signal, "SIGRTMAX") else signal.SIGUSR2


def fork() -> int:
    with warnings.catch_warnings():
        # Python warns of threads; they have been looked for, or the user insists.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def lasting_threads() -> int:
    """How many threads there are beside this one that a fork would cut off. Those that end before it do not count."""

    def others() -> int:
        return len(os.listdir("/proc/self/task")) - 1

    if others():
        # OpenBLAS's end at a fork, and come again when they are wanted; this makes them end.
        pid = fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    return others()


def kill_group(pgid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pgid, signal.SIGKILL)


def become_worker(plugin: WorkerPlugin, worker_id: str, forked: bool, again: bool = False) -> None:
    """Everything in which a worker's process differs from the template's. `again`: this process was that one."""
    config = plugin.session.config
    if forked:
        leave_files_to_parent()
    if forked or again:
        lead_group(plugin.init)
        plugin.channel = Channel(plugin.channel.path)
        if plugin.xml is not None:
            plugin.xml._channel = plugin.channel
    plugin.worker_id = worker_id
    plugin.pid = getpid()
    # The template's to send, if anybody's.
    plugin._collect_reports.clear()
    plugin.silent = plugin.init["collect"] == "serial"
    os.environ["PYTEST_XDIST_WORKER"] = worker_id
    plugin.workerinput["workerid"] = worker_id
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        # Or all workers would share one temporary file.
        capture.stop_global_capturing()
    directory = os.path.dirname(plugin.channel.path)
    hello: dict[str, Any] = {"dump": os.path.join(directory, f"{worker_id}.stacks")}
    if not plugin.init.get("inherit_output"):
        hello["stderr"] = redirect_output(directory, worker_id)
    _serve_stacks(hello["dump"])
    if "stderr" in hello:
        redirect_fault_handler(config)
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if isinstance(reporter, QuietTerminal) and not config.getini("log_cli"):
        # What a plugin says before it ends the process belongs to what is shown of that.
        reporter._tw._file = open(os.dup(2), "w", buffering=1)  # noqa: SIM115 - open as long as the process lives
    if capture is not None:
        with capturing_into(directory, worker_id):
            capture.start_global_capturing()
        capture.suspend_global_capture(in_=False)
        if "stderr" in hello:
            pass_uncaptured_on(plugin, capture, hello["stderr"])
    factory = getattr(config, "_tmp_path_factory", None)
    if factory is not None and plugin.init.get("basetemp"):
        os.makedirs(plugin.init["basetemp"], mode=0o700, exist_ok=True)
        factory._basetemp = None
        factory._given_basetemp = type(config.rootpath)(plugin.init["basetemp"], f"popen-{worker_id}")
    if forked:
        renew_plugins(config)
    say_hello(plugin.channel, plugin.nonce, "worker", worker_id, **hello)
    plugin.greeted = True
    if plugin.init.get("elsewhere"):
        plugin.channel.send("data", kind="workerinfo", payload=worker_info())


def lead_group(init: Message) -> None:
    """Makes this process the leader of a group, which ends with it: so do processes that tests have started."""
    if init.get("elsewhere"):
        # Whoever ends the sandbox ends the session in which it was begun, should nothing else be able to.
        os.setpgid(0, 0)
    else:
        # And away from the terminal, which would stop a worker that reads from it.
        os.setsid()


def worker_info() -> dict[str, Any]:
    """What reports say of a worker's Python."""
    import platform

    return {
        "version": sys.version,
        "version_info": tuple(sys.version_info),
        "sysplatform": sys.platform,
        "platform": platform.platform(),
        "executable": sys.executable,
        "cwd": os.getcwd(),
    }


def renew_plugins(config: Any) -> None:
    """What plugins have from the template and must have for themselves."""
    coverage = config.pluginmanager.getplugin("_cov")
    if coverage is not None:
        coverage.pid = os.getpid()
    # Where xdist is installed, pytest-rerunfailures counts in the controller, over a connection.
    database: Any = getattr(config, "failures_db", None)
    if hasattr(database, "sock") and hasattr(config, "workerinput"):
        database.sock.close()
        given = config.workerinput
        arguments = [given[name] for name in ("sock_port", "statusdb_token") if name in given]
        config.failures_db = type(database)(*arguments)


@contextlib.contextmanager
def outside_of_tests(config: pytest.Config, last: nodes.Item | None) -> Iterator[None]:
    """What pytest-cov measures meanwhile is counted for no test, also not for the one that ran last."""
    contexts: Any = config.pluginmanager.getplugin("_cov_contexts")
    if contexts is None or last is None:
        yield
        return
    contexts.cov_controller.cov.switch_context("")
    try:
        yield
    finally:
        contexts.switch_context(last, "teardown")


def redirect_output(directory: str, name: str) -> str:
    """Points descriptors 1 and 2 at a file of this process's own, for what escapes pytest's capture."""
    path = os.path.join(directory, f"{name}.stderr")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    return path


@contextlib.contextmanager
def capturing_into(directory: str, name: str) -> Iterator[None]:
    """Has pytest capture output in files with names, so that what a test has written is there when its process dies."""
    from _pytest import capture

    if not hasattr(capture, "TemporaryFile"):  # pragma: no cover - every supported pytest has it
        yield
        return
    kinds = iter(("out", "err"))

    def file(*_: object, **__: object) -> Any:
        path = os.path.join(directory, f"{name}.{next(kinds)}")
        return open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "w+b", buffering=0)

    original, capture.TemporaryFile = capture.TemporaryFile, file
    try:
        yield
    finally:
        capture.TemporaryFile = original


def redirect_fault_handler(config: pytest.Config) -> None:
    """Has what pytest's `faulthandler_timeout` writes go where this process's standard error goes."""
    from _pytest import faulthandler

    stash: Any = config.stash
    for name in ("fault_handler_stderr_fd_key", "fault_handler_stderr_key"):
        target = stash.get(getattr(faulthandler, name, None), None)
        if target is not None:
            os.dup2(2, target if isinstance(target, int) else target.fileno())


class Dumps:
    """The stacks that pytest's `faulthandler_timeout` writes while tests run: they are for the terminal."""

    def __init__(self, plugin: WorkerPlugin) -> None:
        self._channel = plugin.channel
        path = os.path.join(os.path.dirname(plugin.channel.path), f"{plugin.worker_id}.stderr")
        self._fd = -1
        config = plugin.session.config
        if not config.pluginmanager.hasplugin("faulthandler"):
            return
        if float(config.getini("faulthandler_timeout") or 0.0) > 0 and os.path.exists(path):
            self._fd = os.open(path, os.O_RDONLY)
            self._known = os.fstat(self._fd).st_size

    def forget(self) -> None:
        """What has been written until now has been sent by another process."""
        if self._fd >= 0:
            self._known = os.fstat(self._fd).st_size

    def pass_on(self) -> None:
        """Sends what has been written since the last time."""
        if self._fd < 0:
            return
        size = os.fstat(self._fd).st_size
        if size > self._known:
            text = os.pread(self._fd, min(size - self._known, TEXT_LIMIT), self._known).decode("utf-8", "replace")
            self._known = size
            self._channel.post("data", kind="output", payload=text)


def pass_uncaptured_on(plugin: WorkerPlugin, capture: Any, path: str) -> None:
    """What a test says while it has switched capture off (`capsys.disabled()`) is meant for the terminal."""
    fd = os.open(path, os.O_RDONLY)
    switched_off = type(capture).global_and_fixture_disabled

    @contextlib.contextmanager
    def global_and_fixture_disabled() -> Iterator[None]:
        before = os.fstat(fd).st_size
        try:
            with switched_off(capture):
                yield
        finally:
            said = os.fstat(fd).st_size - before
            if said > 0 and getpid() == plugin.pid:
                text = os.pread(fd, min(said, TEXT_LIMIT), before).decode("utf-8", "replace")
                plugin.channel.post("data", kind="output", payload=text)

    capture.global_and_fixture_disabled = global_and_fixture_disabled


def _serve_stacks(path: str) -> None:
    import faulthandler

    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    # Served by faulthandler's C code: inside C calls, and while some thread keeps the interpreter's lock.
    faulthandler.register(DUMP_SIGNAL, file=fd, all_threads=True)
    if faulthandler.is_enabled():
        # The template's descriptor is not this worker's.
        faulthandler.enable(file=os.dup(2))


def check_digest(plugin: WorkerPlugin) -> None:
    """A freshly started worker must number the tests as the template does."""
    if plugin.collection.digest() != plugin.init["digest"]:
        raise RuntimeError(
            f"worker {plugin.worker_id} collected other tests than the first process, or in another order. "
            "Make collection repeatable "
            "(no sets, no random parameters), or have workers forked with --offload-start-method=fork"
        )
