"""A process for each test."""

from __future__ import annotations

import atexit
import contextlib
import gc
import mmap
import os
import signal
import struct
from typing import TYPE_CHECKING

import pytest
from _pytest import nodes

from .channel import Closed, shorten
from .coverage import save_coverage
from .ending import ExitBoundary, run_exit_handlers
from .frozen import freeze
from .originals import getppid, sleep
from .process import fork

if TYPE_CHECKING:
    from .runner import Worker


class Isolated:
    """Runs each test in a fork of the worker, which sets up and tears down everything that the test needs.

    Shared memory tells what exit codes cannot, since a test can exit with any. Of a plain pass it tells everything:
    what the worker says in the place of its children need not be said by each in freshly copied memory. For anything
    else the child speaks on the worker's connection, on which the worker is silent meanwhile.
    """

    # 1: the result is there; 2: what ends the run is.
    DELIVERED = 0
    CANCELLED = 1
    PASSED = 2
    STARTED = 3
    FAILED = 4
    DURATIONS = struct.Struct("@3d")
    # Behind the bytes above.
    DURATIONS_AT = 8

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._shared = mmap.mmap(-1, self.DURATIONS_AT + self.DURATIONS.size)
        self._worker_pid = os.getpid()
        self._frozen = 0
        self._boundary = ExitBoundary()
        self.is_child = False

    @property
    def cancelled(self) -> bool:
        return bool(self._shared[self.CANCELLED])

    def run(self, key: int, item: nodes.Item) -> bool:
        """Runs a test and waits for its process. Returns whether it has not failed."""
        worker = self._worker
        collected = worker.session.testscollected
        if collected != self._frozen:
            # Pages with what has been collected stay shared if no child's garbage collector looks at them.
            self._frozen = collected
            gc.collect()
            freeze()
        worker.channel.flush()
        self._shared[self.DELIVERED] = self._shared[self.PASSED] = 0
        self._shared[self.STARTED] = self._shared[self.FAILED] = 0
        atexit.register(self._boundary.end_process)
        pid = fork()
        if pid == 0:
            self._be_child(key, item)
        atexit.unregister(self._boundary.end_process)
        worker.channel.send("started", key=key, pid=pid)
        self._shared[self.STARTED] = 1
        ended = self._wait(pid)
        if worker.ending and self.cancelled:
            raise KeyboardInterrupt
        exited = ended.si_code == os.CLD_EXITED
        self.post_passed(key)
        ends_well = self._shared[self.DELIVERED] == 2 or (exited and ended.si_status == 0)
        if not (self._shared[self.DELIVERED] and ends_well):
            worker.channel.post(
                "crashed",
                key=key,
                code=ended.si_status if exited else None,
                signal=None if exited else ended.si_status,
                **self._captured(),
            )
            return False
        return not self._shared[self.FAILED]

    def passed(self, durations: list[float]) -> None:
        """In the child: the test has passed, and there is nothing more to say about it."""
        self.DURATIONS.pack_into(self._shared, self.DURATIONS_AT, *durations)
        self._shared[self.PASSED] = 1

    def post_passed(self, key: int) -> None:
        """Says that the test has passed, if that is all there was to say about it and has not been said."""
        if self._shared[self.PASSED] and (self.is_child or self._shared[self.DELIVERED]):
            self._shared[self.PASSED] = 0
            durations = self.DURATIONS.unpack_from(self._shared, self.DURATIONS_AT)
            self._worker.channel.post_passed(key, list(durations))

    def failed(self) -> None:
        """In the child: the test has failed."""
        self._shared[self.FAILED] = 1

    def _await_start(self) -> None:
        """In the child: waits until the worker has said that the test has started. Two must not speak at once."""
        while not self._shared[self.STARTED] and getppid() == self._worker_pid:
            sleep(0.0001)

    def _wait(self, pid: int) -> os.waitid_result:
        """Waits for the end of a child. An interrupt can come at any point, also when that has been heard of."""
        ended = None
        while True:
            try:
                if ended is None:
                    # To be asked for again until it is known.
                    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                assert ended is not None
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
                return ended
            except KeyboardInterrupt:
                self._worker._listen(block=False)
                if self._worker.ending:
                    self._shared[self.CANCELLED] = 1
                    os.kill(pid, signal.SIGINT)

    def _captured(self) -> dict[str, str]:
        """What the test had written when it died. Its capture is the worker's."""
        capture = self._worker.session.config.pluginmanager.getplugin("capturemanager")
        if capture is None or not capture.is_globally_capturing():
            return {}
        out, err = capture.read_global_capture()
        return {"stdout": shorten(out), "stderr": shorten(err)}

    def _be_child(self, key: int, item: nodes.Item) -> None:
        worker = self._worker
        plugin, channel = worker.plugin, worker.channel
        self.is_child = True
        code = 1
        try:
            plugin.pid = os.getpid()
            channel.before_sending = self._await_start
            self._boundary.enter_fork()
            if not worker.execute_alone(key, item):
                self.failed()
            save_coverage(worker.session.config)
            worker.coverage.name()
            channel.flush()
            self._shared[self.DELIVERED] = 1
            code = 0
        except pytest.exit.Exception as error:
            channel.send("exit", reason=str(error.msg), returncode=error.returncode)
            self._shared[self.DELIVERED] = 2
        except KeyboardInterrupt:
            # The run is being ended; what the test has set up is torn down as in any interrupted pytest.
            with contextlib.suppress(BaseException):
                worker.session._setupstate.teardown_exact(None)
        except Closed:
            pass
        except BaseException:
            with contextlib.suppress(Closed):
                excinfo = pytest.ExceptionInfo.from_current()
                worker.session.config.notify_exception(excinfo, worker.session.config.option)
                self._shared[self.DELIVERED] = 2
        finally:
            self._boundary.code = code
            run_exit_handlers()
            os._exit(code)
