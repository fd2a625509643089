"""The template as a fork of the controller.

A fresh Python takes a tenth of a second and more to import pytest and its plugins. The controller has that behind
it when this plugin is first asked for something, and has loaded nothing of the project's yet. A fork made at this point
is the template: it configures pytest anew, as a fresh process would, and finds everything imported.

Where that could make a difference to anybody, there is no such fork, and the orchestrator starts a fresh Python.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .worker import ending, program
from .worker.frozen import freeze
from .worker.process import lasting_threads

if TYPE_CHECKING:
    import pytest

    from .options import Settings

# Packages that know xdist's variables and do not look at them when they are imported.
KNOWN = frozenset(("_pytest", "pytest", "pytest_offload", "xdist", "pytest_cov", "pytest_benchmark"))
# Variables that count only when an interpreter is started.
AT_START = ("PYTHON", "LD_", "DYLD_", "MALLOC_", "GLIBC_")
# Under this name pytest's cache remembers that the last run had to start its workers fresh.
CACHE_KEY = "offload/start"


def occupy_standard_descriptors() -> None:
    """Opens those of descriptors 0 to 2 that are closed: what is opened next would be taken for them."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)


class Fork:
    """A template that waits to be told where to connect."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid = pid
        self._pipe = pipe

    def meet(self, socket: str, nonce: str) -> None:
        """Tells it where to connect, and what to say there."""
        # Of one that has died the orchestrator hears; pytest would take a broken pipe for its own output's.
        with contextlib.suppress(BrokenPipeError), os.fdopen(self._pipe, "wb") as pipe:
            pipe.write(json.dumps([socket, nonce]).encode("ascii"))

    def dismiss(self) -> None:
        """It is not needed: it hears so by the end of the pipe, and ends."""
        os.close(self._pipe)
        os.waitpid(self.pid, 0)


def fork(config: pytest.Config, settings: Settings) -> Fork | None:
    """The template, forked from this process; None where a fresh Python has to be started."""
    if not _is_possible(settings) or _started_fresh(config) or not _is_unobservable():
        return None
    for stream in (sys.stdout, sys.stderr):
        # None where Python was started without.
        if stream is not None:
            stream.flush()
    # Python's own, pytest and plugins: neither process needs to look through these for garbage, again and again.
    freeze()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        _be_template(reader, settings.env)
    os.close(reader)
    return Fork(pid, writer)


def _is_possible(settings: Settings) -> bool:
    return (
        sys.platform == "linux"
        and settings.start_method != "spawn"
        and not any(name.startswith(AT_START) for name in settings.env)
        and not lasting_threads()
    )


def _started_fresh(config: pytest.Config) -> bool:
    """Whether the last run had to. It would only be found out again."""
    if not config.pluginmanager.hasplugin("cacheprovider"):
        return False
    from _pytest.cacheprovider import Cache

    try:
        text = Path(Cache.cache_dir_from_config(config, _ispytest=True), "v", CACHE_KEY).read_text()
    except OSError:
        return False
    return text == json.dumps("spawn")


def _is_unobservable() -> bool:
    """Whether this process has nothing but pytest and plugins in it, none of which cares which worker it is in."""
    program = sys.modules["__main__"]
    started_by = getattr(program.__spec__, "name", "") or os.path.basename(getattr(program, "__file__", None) or "")
    if started_by not in ("pytest", "pytest.__main__", "py.test"):
        return False
    if sys.gettrace() is not None or sys.getprofile() is not None:
        return False
    # What has been imported would have to be imported again to see the variables of a worker.
    library = os.path.dirname(os.__file__)
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if not path or not path.endswith(".py") or name.partition(".")[0] in KNOWN:
            continue
        if path.startswith(library) and "site-packages" not in path:
            continue
        try:
            if b"PYTEST_XDIST" in Path(path).read_bytes():
                return False
        except OSError:
            return False
    return True


def _be_template(pipe: int, env: dict[str, str]) -> NoReturn:
    code = 1
    try:
        # A Ctrl-C of the terminal is for the controller, which tells the others.
        os.setpgid(0, 0)
        ending.leave_files_to_parent()
        with os.fdopen(pipe, "rb") as reader:
            said = reader.read()
        if said:
            os.environ.update(env)
            _forget_controller()
            socket, nonce = json.loads(said)
            code = program.run([socket, nonce], forked=True)
            ending.end_process(code)
    finally:
        os._exit(code)


def _forget_controller() -> None:
    """What the controller's pytest has put into the interpreter, and the next one puts there itself."""
    from _pytest.assertion.rewrite import AssertionRewritingHook

    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, AssertionRewritingHook)]
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    # As with `python -u`: of what a test writes nothing is lost when its process dies.
    for name, fd in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        raw: Any = open(fd, "wb", buffering=0, closefd=False)  # noqa: SIM115 - open as long as the process lives
        encoding, errors = (old.encoding, old.errors) if old else (None, None)
        stream = io.TextIOWrapper(raw, encoding=encoding, errors=errors, write_through=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
