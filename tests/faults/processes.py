"""Which processes a run has, and what each of them is there for."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Process:
    """A process as it was when it was looked at."""

    pid: int
    parent: int
    session: int
    state: str
    started: str
    command: list[str]
    children: list[Process] = field(default_factory=list)

    @property
    def leads_session(self) -> bool:
        return self.session == self.pid


def look(pid: int) -> Process | None:
    """The process of a number, unless it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if stat[0] in "ZX":
        return None
    return Process(pid, int(stat[1]), int(stat[3]), stat[0], stat[19], command)


def tree(pid: int) -> Process | None:
    """A process with all that has come of it and has not lost its parent."""
    process = look(pid)
    if process is None:
        return None
    with contextlib.suppress(OSError):
        # Each thread has its own children.
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found = tree(int(child))
                if found is not None:
                    process.children.append(found)
    return process


def below(process: Process) -> list[Process]:
    """All that has come of a process, without itself."""
    return [other for child in process.children for other in (child, *below(child))]


def send(process: Process, number: signal.Signals) -> bool:
    """Signals a process, unless it has ended. Its number may be another's by now, which its start tells."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        found = look(process.pid)
        if found is None or found.started != process.started:
            return False
        signal.pidfd_send_signal(pidfd, number)
        return True
    except OSError:
        return False
    finally:
        os.close(pidfd)


def with_token(token: str) -> list[Process]:
    """The processes, other than those that have ended, in whose environment the token is."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if token.encode() in (entry / "environ").read_bytes():
                process = look(int(entry.name))
                if process is not None:
                    found.append(process)
    return found


def roles(kind: str, root: Process, far: Process | None) -> dict[str, list[Process]]:
    """The processes of a run by role; those of a role in the order of their numbers. `far`: the server of a host."""
    found: dict[str, list[Process]] = {"orchestrator": [root], "all": [root, *below(root)]}
    if far is not None:
        found["all"] += below(far)
        _of_host(far, found)
        found["client"] = [process for process in below(root) if _program(process) == "ssh"]
    elif kind == "pytest":
        for child in root.children:
            if _is_python(child):
                _of_template(child, found)
    else:
        for child in root.children:
            if _program(child) == "sh" and "read -r line" in " ".join(child.command):
                found.setdefault("watcher", []).append(child)
            elif "/deps/" in child.command[0]:
                found.setdefault("test", []).append(child)
    for processes in found.values():
        processes.sort(key=lambda process: process.pid)
    return found


def _program(process: Process) -> str:
    return os.path.basename(process.command[0]).lstrip("-").rstrip(":")


def _is_python(process: Process) -> bool:
    return _program(process).startswith("python")


def _of_template(process: Process, found: dict[str, list[Process]]) -> None:
    """`process` is the template, or the keeper, which waits for the template, its child."""
    inner = [child for child in process.children if _is_python(child) and not child.leads_session]
    # What is in the template's place once that is a worker is its parent.
    if inner and not any(child.leads_session for child in process.children):
        found.setdefault("keeper", []).append(process)
        process = inner[0]
    found.setdefault("template", []).append(process)
    for child in process.children:
        if child.leads_session:
            found.setdefault("worker", []).append(child)
            found.setdefault("test", []).extend(other for other in child.children if _is_python(other))


def _of_host(far: Process, found: dict[str, list[Process]]) -> None:
    """A server has a process for each connection, which has shells, of which one may be the holder or run the relay."""
    found["connection"] = list(far.children)
    for process in below(far):
        if _is_python(process) and "-c" in process.command:
            found.setdefault("relay", []).append(process)
            for template in process.children:
                found.setdefault("template", []).append(template)
                found.setdefault("worker", []).extend(template.children)
                for worker in template.children:
                    found.setdefault("test", []).extend(worker.children)
        elif any(_program(child) == "sleep" for child in process.children) and not process.leads_session:
            # The holder's own clock, its child.
            found.setdefault("holder", []).extend(other for other in below(far) if other.pid == process.parent)
