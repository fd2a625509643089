"""Runs pytest in a project and finds what it says, what it did, and what it leaves behind.

Runs are children of a process that has nothing else to do, and that adopts what they leave behind: so it costs nothing
to know when nothing is left. Plain pytest is a fork of that process, which has imported it; Offload starts as a user
starts it.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import os
import select
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

from project import RECORDER, Project
from records import Run, read_run

# Far more than any of these projects takes on a busy machine: what takes longer hangs.
PATIENCE = 180.0
# The limit of tests in projects that have some that hang. Others have to keep to it on a busy machine, too.
LIMIT = 8
# Seconds that processes have to end when a run has.
GRACE = 10.0

PR_SET_CHILD_SUBREAPER = 36


def prepare() -> None:
    """Makes this process one that runs projects."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Forks of this process would pay for what is imported later, each of them.
    pytest_config = importlib.import_module("_pytest.config")
    for name in (*pytest_config.essential_plugins, *pytest_config.default_plugins):
        importlib.import_module(f"_pytest.{name}")
    for name in ("importlib.metadata", "unittest", "unittest.mock", "uuid", "xml.etree.ElementTree"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def run(project: Project, directory: Path, ours: list[str] | None) -> list[Run]:
    """Runs pytest as often as the project says, in a directory that is made for it: with these options, or plainly."""
    where, temporary = directory / "project", directory / "tmp"
    for made in (where, temporary, directory / "plugin"):
        made.mkdir(parents=True)
    (directory / "plugin" / "oracle_recorder.py").write_text(RECORDER)
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "OFFLOAD", "ORACLE"))
    }
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(directory / "plugin"), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(temporary),
    }
    runs = []
    for number, typed in enumerate(project.runs()):
        project.write(where, edited=number > 0)
        records = directory / f"run-{number}"
        records.mkdir()
        environment |= {"ORACLE_LOG": str(records / "log"), "ORACLE_REPORTS": str(records / "reports")}
        arguments = ["-p", "oracle_recorder", f"--junitxml={records / 'junit.xml'}", *typed]
        if ours is None:
            pid = _start_plain(arguments, where, environment | {"ORACLE_PLAIN": "1"}, records / "output")
        else:
            arguments += [*ours, f"--offload-junit={records / 'offload.xml'}"]
            if project.hangs():
                arguments.append(f"--offload-timeout={LIMIT}")
            pid = _start(arguments, where, environment, records / "output")
        code = _wait(pid)
        left = _leftovers(temporary, hung=code is None)
        runs.append(read_run(code, records, where, left))
        if code is None:
            break
    return runs


def _start(arguments: list[str], where: Path, environment: dict[str, str], output: Path) -> int:
    """Starts pytest as a user does."""
    pid = os.fork()
    if pid == 0:
        _become(where, environment, output)
        os.execve(sys.executable, [sys.executable, "-m", "pytest", *arguments], environment)
    return pid


def _start_plain(arguments: list[str], where: Path, environment: dict[str, str], output: Path) -> int:
    """Starts pytest in a process that has imported it."""
    pid = os.fork()
    if pid == 0:
        _become(where, environment, output)
        _be_pytest(arguments, [str(where), environment["PYTHONPATH"].partition(os.pathsep)[0]])
    return pid


def _become(where: Path, environment: dict[str, str], output: Path) -> None:
    os.chdir(where)
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, fd in ((null, 0), (file, 1), (file, 2)):
        os.dup2(source, fd)
    os.close(null)
    os.close(file)


def _be_pytest(arguments: list[str], path: list[str]) -> NoReturn:
    """`python -m pytest`, as far as anybody can tell."""
    import pytest

    atexit._clear()
    code = 1
    try:
        sys.path[:1] = path
        sys.argv[:] = [str(Path(pytest.__file__).parent / "__main__.py"), *arguments]
        code = int(pytest.console_main())
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _wait(pid: int) -> int | None:
    """The exit code of a child, less than 0 for a signal; None if it does not end, and is killed."""
    descriptor = os.pidfd_open(pid)
    ended, _, _ = select.select([descriptor], [], [], PATIENCE)
    os.close(descriptor)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if ended else None


def _leftovers(temporary: Path, hung: bool) -> list[str]:
    """What is there once the run has ended: processes, which are killed then, and files in the temporary directory."""
    deadline = time.monotonic() + (0 if hung else GRACE)
    pause = 0.0005
    while (alive := _reap()) and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    left = []
    while alive:
        for pid in _children():
            left.append(f"a process: {_command(pid)}")
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
        alive = _reap()
    for entry in temporary.iterdir():
        if not entry.name.startswith("pytest-of-"):
            left.append(f"a file: {entry.name}")
            # It is no fault of the next run.
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return left


def _reap() -> bool:
    """Whether there are processes, after those that have ended are gone."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _children() -> list[int]:
    """The children of this process. Those of children become its own when their parents end."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()[:200]
    except OSError:
        return "ended"
