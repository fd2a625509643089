"""A pytest plugin: collects, then forks and waits once per test, and does nothing else.

What a process per test costs at least on this machine, in the same image and with as many processes at once.
"""

from __future__ import annotations

import gc
import os


def pytest_runtestloop(session) -> bool:
    """Instead of running tests."""
    processes = int(os.environ["FORK_FLOOR_PROCESSES"])
    gc.collect()
    gc.freeze()
    loops = []
    for first in range(processes):
        pid = os.fork()
        if pid == 0:
            for _ in session.items[first::processes]:
                child = os.fork()
                if child == 0:
                    os._exit(0)
                os.waitpid(child, 0)
            os._exit(0)
        loops.append(pid)
    for pid in loops:
        os.waitpid(pid, 0)
    # No test has run, which is no failure here.
    session.testscollected = session.testscollected or 1
    return True


def pytest_sessionfinish(session) -> None:
    """Plain pytest would say that it ran nothing."""
    session.exitstatus = 0
