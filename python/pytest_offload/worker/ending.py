"""How a process of a run ends: as Python ends, although it is a fork that never returns from its parent's stack.

Python waits for threads, runs what is registered with `atexit` (finalizers of `weakref` and `multiprocessing`, and
coverage's among it) and flushes files. A fork has inherited what its parent registered. Functions run in both, as in a
process that imported the same modules itself. What removes files is left to the parent: the files exist once, and
other forks still use them.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import shutil
import sys
import tempfile
import threading
import weakref
from typing import Any, NoReturn

from . import frozen

# What belongs to this package's own ways of talking: to it nothing is left to be written.
own_descriptors: set[int] = set()
own_sockets: set[str] = set()
own_directories: set[str] = set()
# Standard input, output and error are looked after anyway.
FIRST_DESCRIPTOR = 3
HARMLESS = ("/dev/null", "anon_inode:", "/proc/")

# Registered functions that remove what a fork shares with its parent.
_REMOVERS = (shutil.rmtree, os.remove, os.unlink, os.rmdir, os.removedirs)


def end_process(code: int) -> NoReturn:
    """Ends this process as Python ends at the end of its program."""
    with contextlib.suppress(BaseException):
        shutdown: Any = getattr(threading, "_shutdown", None)
        if shutdown is not None:
            shutdown()
    frozen.thaw()
    run_exit_handlers()
    os._exit(code)


def run_exit_handlers() -> None:
    """Runs the functions that are registered with `atexit` and flushes open files."""
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    flush_files()


def flush_files() -> None:
    """Writes what is buffered in open files. Those that were there when objects were last frozen are not looked at."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if not _may_have_unwritten():
        return
    # The text layer writes into the binary one, which comes to the file.
    buffered: list[Any] = []
    for value in frozen.objects():
        kind = type(value)
        if issubclass(kind, io.TextIOWrapper):
            _flush(value)
        elif issubclass(kind, (io.BufferedWriter, io.BufferedRandom)):
            buffered.append(value)
    for value in buffered:
        _flush(value)


def note_inherited() -> None:
    """Takes note of pipes and sockets that whoever started the run has left open: nothing here writes to them."""
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/self/fd/{name}").startswith(("pipe:", "socket:")):
                    own_descriptors.add(int(name))


def _may_have_unwritten() -> bool:
    """Whether a descriptor is open to which something of the project's may still have to be written.

    To look through all objects for files takes ten milliseconds, and most projects have none open at their ends.
    """
    try:
        descriptors = os.listdir("/proc/self/fd")
    except OSError:
        return True
    for name in descriptors:
        if int(name) < FIRST_DESCRIPTOR or int(name) in own_descriptors:
            continue
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith(HARMLESS) or target in own_sockets or os.path.dirname(target) in own_directories:
                continue
            if target.endswith(" (deleted)"):
                # Nobody can read what would be written there.
                continue
            with open(f"/proc/self/fdinfo/{name}", encoding="ascii") as info:
                flags = next(int(line.split()[1], 8) for line in info if line.startswith("flags:"))
        except OSError:
            # That of the listing itself.
            continue
        if flags & os.O_ACCMODE != os.O_RDONLY:
            return True
    return False


def _flush(file: Any) -> None:
    with contextlib.suppress(Exception):
        if not file.closed and file.writable():
            file.flush()


def leave_files_to_parent() -> None:
    """In a fork: what its parent would remove at its end is not removed here."""
    for finalizer in _finalizers():
        owner, function = (finalizer.peek() or (None, None))[:2]
        if isinstance(owner, tempfile.TemporaryDirectory):
            atexit.unregister(owner.cleanup)
        if isinstance(owner, tempfile.TemporaryDirectory) or function in _REMOVERS:
            finalizer.atexit = False
    for function in _REMOVERS:
        atexit.unregister(function)
    _forget_processes()


class ExitBoundary:
    """Separates exit handlers that a fork registers from those that it inherited.

    It is registered right before the fork. Handlers run in reverse order, so those of the fork run first, also those
    that hooks on forks have registered, and then this ends the process.
    """

    def __init__(self) -> None:
        self.code = 1

    def end_process(self) -> None:
        flush_files()
        os._exit(self.code)

    def enter_fork(self) -> None:
        """In the fork: what registers itself once in a process is registered again, without what it inherited."""
        finalize: Any = weakref.finalize
        for finalizer in _finalizers():
            finalizer.atexit = False
        if finalize._registered_with_atexit:
            atexit.register(finalize._exitfunc)
        multiprocessing: Any = sys.modules.get("multiprocessing.util")
        if multiprocessing is not None:
            multiprocessing._finalizer_registry.clear()
            atexit.register(multiprocessing._exit_function)
        _forget_processes()


def _finalizers() -> list[Any]:
    return list(getattr(weakref.finalize, "_registry", ()))


def _forget_processes() -> None:
    """Has `multiprocessing` neither end nor await the parent's children."""
    process: Any = sys.modules.get("multiprocessing.process")
    if process is not None:
        process._children = set()
