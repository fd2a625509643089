"""Does what a scenario wants done to the processes of a run, when its moments come."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import processes
from processes import Process
from scenario import Fault

# How long between two looks. Moments are events, so that this is how exactly they are met.
PAUSE_SECS = 0.002


@dataclass(frozen=True)
class Done:
    """A fault that has happened."""

    fault: Fault
    pid: int
    # Since the run began.
    at_secs: float

    def __str__(self) -> str:
        return f"{self.fault} (process {self.pid}, after {self.at_secs:.3f} s)"


class Lines:
    """Counts the lines of a file that grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self.count = 0

    def look(self) -> int:
        try:
            with open(self._path, "rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return 0
        self._read += len(data)
        self.count += data.count(b"\n")
        return self.count


class Injector(threading.Thread):
    """Watches a run and does to it what is to be done."""

    def __init__(self, kind: str, pid: int, far: int | None, faults: list[Fault], log: Path, results: Path) -> None:
        super().__init__()
        self._kind, self._pid, self._far = kind, pid, far
        self._pending = list(faults)
        self._due: list[tuple[float, Fault]] = []
        self._stopped: list[tuple[float, Process]] = []
        self._lines = {"line": Lines(log), "result": Lines(results)}
        # Processes that have been seen, by role.
        self._seen: dict[str, set[tuple[int, str]]] = {}
        self._ended = threading.Event()
        self._begun = time.monotonic()
        self.done: list[Done] = []

    def run(self) -> None:
        while not self._ended.wait(PAUSE_SECS):
            now = time.monotonic()
            self._continue(now)
            if not self._pending and not self._due:
                continue
            found = self._look()
            for fault in list(self._pending):
                if self._has_come(fault):
                    self._pending.remove(fault)
                    self._due.append((now + fault.moment.delay_secs, fault))
            for when, fault in list(self._due):
                if now >= when and self._inject(fault, found):
                    self._due.remove((when, fault))
        self._continue(float("inf"))

    def end(self) -> None:
        """The run has ended. What is still stopped goes on."""
        self._ended.set()
        self.join()

    def _look(self) -> dict[str, list[Process]]:
        root = processes.tree(self._pid)
        far = processes.tree(self._far) if self._far is not None else None
        found = processes.roles(self._kind, root, far) if root is not None else {}
        for role, members in found.items():
            self._seen.setdefault(role, set()).update((process.pid, process.started) for process in members)
        return found

    def _has_come(self, fault: Fault) -> bool:
        moment = fault.moment
        lines = self._lines.get(moment.event)
        count = lines.look() if lines is not None else len(self._seen.get(fault.role, ()))
        return count >= moment.count

    def _inject(self, fault: Fault, found: dict[str, list[Process]]) -> bool:
        """Returns whether it is done. Where there is no such process at the moment, it waits for one."""
        candidates = found.get(fault.role, [])
        if not candidates:
            return False
        chosen = candidates if fault.role == "all" else [candidates[fault.choice % len(candidates)]]
        if fault.role == "all":
            # Stopped first, so that none sees others go.
            for process in chosen:
                processes.send(process, signal.SIGSTOP)
        # The youngest first: at the end of an elder the system has stopped groups go on.
        sent = [process for process in reversed(chosen) if processes.send(process, fault.signal)]
        now = time.monotonic()
        if sent:
            self.done.append(Done(fault, sent[0].pid, now - self._begun))
        if fault.signal == signal.SIGSTOP:
            self._stopped += [(now + fault.stopped_secs, process) for process in sent]
        return bool(sent)

    def _continue(self, now: float) -> None:
        for until, process in list(self._stopped):
            if now >= until:
                processes.send(process, signal.SIGCONT)
                self._stopped.remove((until, process))
