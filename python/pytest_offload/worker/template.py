"""The template: it says which files there are, makes workers when told to, and tells how they ended."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .channel import Channel, Closed, to_json, untagged
from .collection import describe
from .ending import end_process, flush_files
from .frozen import freeze
from .process import become_worker, fork, kill_group, lasting_threads

if TYPE_CHECKING:
    from .channel import Message
    from .plugin import WorkerPlugin


class Starter:
    """Starts workers, and says when they have ended."""

    def __init__(self, channel: Channel, nonce: str, init: Message) -> None:
        self.channel = channel
        self.nonce = nonce
        self.init = init
        # By pid: the worker's id and the descriptor that becomes readable when it ends (-1: none).
        self.workers: dict[int, tuple[str, int]] = {}
        # Workers that have been asked for, and what the controller's plugins have for those that it has named.
        self.wanted: list[str] = []
        self.nodes: dict[str, Message] = {}
        self.asked: set[str] = set()
        # What the controller's plugins had for all at the beginning.
        self.given: Message = {}
        # A name for the numbering of the tests.
        self.digest = ""

    def ready(self) -> Iterator[str]:
        """The wanted workers that can be started. Of one that takes another's place the controller has to be told."""
        for worker_id in list(self.wanted):
            if worker_id not in self.given["nodes"] and worker_id not in self.nodes and self.given["ask"]:
                if worker_id not in self.asked:
                    self.asked.add(worker_id)
                    self.channel.send("data", kind="node", payload=worker_id)
                continue
            self.wanted.remove(worker_id)
            yield worker_id

    def input(self, worker_id: str) -> Message:
        """What the controller's plugins have for this worker."""
        given: dict[str, Message] = self.given["nodes"]
        # Where no plugin makes a difference, what the first worker has is for all.
        return self.nodes.get(worker_id) or given.get(worker_id) or given["gw0"]

    def add(self, pid: int, worker_id: str) -> None:
        """Takes note of a worker that has been started."""
        pidfd = -1
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(pid)
        self.workers[pid] = (worker_id, pidfd)

    def spawn(self, worker_id: str) -> int:
        """Starts a fresh Python as a worker; returns its pid."""
        directory = os.path.dirname(self.channel.path)
        path = os.path.join(directory, f"{worker_id}.json")
        init = dict(self.init, worker_id=worker_id, digest=self.digest, workerinput=self.input(worker_id))
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(to_json(init))
        environ = dict(self.init["environ"], PYTEST_XDIST_WORKER=worker_id)
        command = [*self.init["command"], self.channel.path, self.nonce, path]
        return os.posix_spawn(command[0], command, environ)

    def wait(self) -> None:
        """Waits for a message; reports workers that end meanwhile."""
        while True:
            poll = select.poll()
            poll.register(self.channel.fileno(), select.POLLIN)
            blind = False
            for _, pidfd in self.workers.values():
                if pidfd >= 0:
                    poll.register(pidfd, select.POLLIN)
                else:
                    blind = True
            ready = {fd for fd, _ in poll.poll(20 if blind else None)}
            for pid, (worker_id, pidfd) in list(self.workers.items()):
                if pidfd in ready or pidfd < 0:
                    self._reap(pid, worker_id, pidfd)
            if self.channel.fileno() in ready:
                return

    def _reap(self, pid: int, worker_id: str, pidfd: int) -> None:
        # The process is looked at, and only then let go: until then its number names its process group for certain.
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        kill_group(pid)
        _, status = os.waitpid(pid, 0)
        del self.workers[pid]
        if pidfd >= 0:
            os.close(pidfd)
        killed = os.WIFSIGNALED(status)
        self.channel.send(
            "exited",
            id=worker_id,
            pid=pid,
            code=None if killed else os.WEXITSTATUS(status),
            signal=os.WTERMSIG(status) if killed else None,
        )

    def end_workers(self, code: int) -> None:
        """Kills the workers. `code` is not 0 where whoever wanted them has gone."""
        for pid in self.workers:
            kill_group(pid)
            with contextlib.suppress(OSError):
                # A worker that is too young to have its own group.
                os.kill(pid, signal.SIGKILL)
        for pid in self.workers:
            with contextlib.suppress(OSError):
                os.waitpid(pid, 0)
        if code != 0:
            # Whoever made the directory is not there to remove it.
            remove_directory(os.path.dirname(self.channel.path))


class Template(Starter):
    """Says which files there are, and makes workers of itself."""

    def __init__(self, plugin: WorkerPlugin) -> None:
        super().__init__(plugin.channel, plugin.nonce, plugin.init)
        self.plugin = plugin
        self.forked = False
        self.spawn_reason = self._why_not_fork()

    def serve(self) -> str | None:
        """Answers requests until the end. Returns the worker's id, in a process that has become a worker only."""
        plugin, channel = self.plugin, self.channel
        self._announce()
        channel.flush()
        if not self.spawn_reason:
            gc.collect()
            # What is still in the buffers of open files would be written by each worker.
            flush_files()
            freeze()
        try:
            # Forks only afterwards: workers have what the controller's plugins give them from the beginning.
            self.given = plugin.receive_nodes()
            self.digest = plugin.collection.digest()
            messages, plugin.early = plugin.early, []
            while True:
                while messages:
                    message = messages.pop(0)
                    if message["type"] == "shutdown":
                        self._end(0)
                    if message["type"] == "workerinput":
                        self.nodes.update(plugin._without_collocation(message)["nodes"])
                    if message["type"] == "announce":
                        # Its numbering is the one that counts, after all.
                        plugin.init["again"] = plugin.silent = False
                        self._announce()
                        channel.flush()
                    if message["type"] == "fork":
                        self.wanted.append(message["id"])
                for worker_id in self.ready():
                    if self._start(worker_id):
                        return worker_id
                self.wait()
                messages = channel.receive(block=False)
        except Closed:
            self._end(1)
        return None

    def _announce(self) -> None:
        plugin, channel = self.plugin, self.channel
        units = plugin.collection.units
        digest = plugin.collection.digest()
        if plugin.init.get("again"):
            channel.post("numbered", digest=digest)
            return
        channel.post(
            "configured",
            collect=plugin.init["collect"],
            collect_reason=plugin.init["collect_reason"],
            start="spawn" if self.spawn_reason else "fork",
            start_reason=self.spawn_reason or "",
        )
        plugin.send_collect_reports()
        if plugin.init["collect"] == "parallel":
            channel.post("units", units=[{"unit": i, "path": u.path} for i, u in enumerate(units)], digest=digest)
            return
        if units and plugin._deselected:
            units[0].deselected = plugin._deselected
        elif plugin._deselected:
            channel.post("collected", unit=0, path="", tests=[], deselected=plugin._deselected)
        for index, unit in enumerate(units):
            channel.post("collected", **describe(index, unit))
        config = plugin.session.config
        lines = config.hook.pytest_report_collectionfinish(
            config=config,
            start_path=config.invocation_params.dir,
            items=plugin.session.items,
        )
        channel.post("data", kind="collectionfinish", payload=[_lines(entry) for entry in reversed(lines)])
        stepwise = getattr(config.pluginmanager.getplugin("stepwiseplugin"), "cached_info", None)
        if stepwise is not None:
            failed = stepwise.last_failed
            state = {
                "last_test_count": stepwise.last_test_count,
                "last_failed": None if failed is None else str(failed),
            }
            channel.post("data", kind="stepwise", payload=state)
        plugin.send_nodeids()
        channel.post("collection_finished", digest=digest)

    def _why_not_fork(self) -> str | None:
        wanted = self.plugin.init["start_method"]
        self.plugin.watch.stop()
        self.plugin.workerinput.watch = None
        if wanted == "spawn":
            return "--offload-start-method=spawn"
        if wanted == "fork":
            return None
        if not sys.platform.startswith("linux"):
            return f"fork is not safe on {sys.platform}"
        if self.plugin.watch.reader:
            return self.plugin.watch.reader + ", before there are workers"
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            return "a child process was started before there are workers"
        except ChildProcessError:
            pass
        threads = lasting_threads()
        if threads:
            return f"{threads} threads were started before there are workers"
        if self._connected():
            return "a connection was opened before there are workers"
        return None

    def _connected(self) -> bool:
        """Whether there is a socket that workers must not share: one that is connected to somebody, or awaits that."""
        database = getattr(getattr(self.plugin.session.config, "failures_db", None), "sock", None)
        for fd, name in open_sockets():
            if name in self.plugin.init["sockets"] or fd == self.channel.fileno():
                continue
            if database is not None and fd == database.fileno():
                # pytest-rerunfailures's, which each worker opens anew.
                continue
            with socket.socket(fileno=os.dup(fd)) as copy:
                if copy.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
                    continue
                try:
                    # A pair of sockets, as every event loop has one, has no name.
                    if copy.getpeername():
                        return True
                except OSError:
                    if copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        return True
        return False

    def _start(self, worker_id: str) -> bool:
        """True in the process that is the worker now."""
        if self.spawn_reason:
            if worker_id == "gw0" and self.plugin.keeper is not None:
                self._become_first()
                return True
            self.add(self.spawn(worker_id), worker_id)
            return False
        capture = self.plugin.session.config.pluginmanager.getplugin("capturemanager")
        if capture is not None and capture.is_globally_capturing():
            capture.read_global_capture()
        self.forked = True
        pid = fork()
        if pid == 0:
            for _, pidfd in self.workers.values():
                if pidfd >= 0:
                    os.close(pidfd)
            self._hand_over_to(worker_id)
            become_worker(self.plugin, worker_id, forked=True)
            return True
        self.add(pid, worker_id)
        return False

    def _become_first(self) -> None:
        """Goes on as the worker gw0, as which this process has configured pytest; its parent starts the others."""
        plugin = self.plugin
        assert plugin.keeper is not None
        plugin.keeper.take_over(
            {
                "init": {name: plugin.init[name] for name in ("collect", "collect_reason")},
                "digest": self.digest,
                "given": self.given,
                "nodes": self.nodes,
                "wanted": self.wanted,
                "asked": sorted(self.asked),
                "messages": plugin.early,
                "received": self.channel._received.hex(),
            }
        )
        self._hand_over_to("gw0")
        become_worker(plugin, "gw0", forked=False, again=True)

    def _hand_over_to(self, worker_id: str) -> None:
        """Has what this process knows as the template be what a worker knows."""
        self.channel.close()
        workerinput = self.plugin.workerinput
        workerinput.fetch = None
        workerinput.update(untagged(self.input(worker_id)))

    def _end(self, code: int) -> None:
        if code == 0 and not self.spawn_reason and not self.forked:
            # No worker has what collection did here.
            controller = getattr(self.plugin.session.config.pluginmanager.getplugin("_cov"), "cov_controller", None)
            if controller is not None:
                controller.finish()
        self.end_workers(code)
        end_process(code)


def remove_directory(directory: str) -> None:
    """Removes the run's directory, its lock last: should this be interrupted, the next run knows what is left."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(directory):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name != "lock":
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
    shutil.rmtree(directory, ignore_errors=True)


def _lines(entry: str | Sequence[str]) -> Sequence[str]:
    return [entry] if isinstance(entry, str) else list(entry)


def open_sockets() -> list[tuple[int, str]]:
    """Descriptors and names of the sockets that this process has."""
    found = []
    for entry in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with contextlib.suppress(OSError):
            name = os.readlink(f"/proc/self/fd/{entry}")
            if name.startswith("socket:"):
                found.append((int(entry), name))
    return found
