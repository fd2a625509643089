"""The orchestrator's side of the wire format, as plainly as it can be written.

It schedules naively (round robin, everything at once), and exists to test the worker against `PROTOCOL.md` without the
extension, and the plugin where the extension has not been built. Its interface is `pytest_offload._core.Session`'s.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from typing import Any, Callable

Event = tuple[Any, ...]


class Peer:
    """A connected process."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.buffer = b""
        self.hello: dict[str, Any] = {}
        self.unit_queue: list[int] = []
        self.assigned: list[dict[str, Any]] = []
        self.started: float | None = None
        self.collecting = 0
        self.ended = False
        self.timed_out = False

    @property
    def name(self) -> str:
        return str(self.hello.get("id", ""))

    def send(self, kind: str, **fields: Any) -> None:
        try:
            self.connection.sendall(json.dumps(dict(fields, type=kind)).encode() + b"\n")
        except OSError:
            self.ended = True

    def receive(self) -> list[dict[str, Any]] | None:
        try:
            data = self.connection.recv(1 << 16)
        except OSError:
            return None
        if not data:
            return None
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]


class Session:
    """One run."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.directory = tempfile.mkdtemp(prefix="offload-test-")
        path = os.path.join(self.directory, "socket")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(64)
        self.nonce = secrets.token_hex(8)
        inherit = options.get("inherit_output", False)
        self.process = subprocess.Popen(
            [options["python"], "-u", options["worker_py"], path, self.nonce],
            stdin=subprocess.DEVNULL,
            stdout=None if inherit else subprocess.DEVNULL,
            stderr=None if inherit else open(os.path.join(self.directory, "early"), "w"),  # noqa: SIM115
            start_new_session=True,
        )
        self.peers: list[Peer] = []
        self.template: Peer | None = None
        self.messages: list[dict[str, Any]] = []
        self.units: list[str] = []
        self.collected: dict[int, dict[str, Any]] = {}
        self.tests: list[dict[str, Any]] = []
        self.next_worker = 0
        self.collect_failed = False
        self.announced = False
        self.attempts: dict[int, int] = {}
        self.done: set[int] = set()
        self.failed_once: list[str] = []
        self.template_done = False
        self.events: list[Event] = []
        self.last_key = float("inf")
        self.over = False
        self.shutting_down = False
        self.exit_code = 0

    # -- the interface of the extension

    def run(self, on_event: Callable[[list[Event]], None]) -> int:
        try:
            while not self.over:
                self._step()
                batch, self.events = self.events, []
                if batch:
                    on_event(batch)
            return self.exit_code
        finally:
            self.cancel()

    def drop_after(self, key: int) -> None:
        self.last_key = min(self.last_key, key)

    def close(self) -> None:
        self.cancel()

    def cancel(self) -> None:
        self.over = True
        for peer in self.peers:
            peer.connection.close()
        self.listener.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    # -- one turn

    def _step(self) -> None:
        sockets: list[Any] = [self.listener, *(p.connection for p in self.peers if not p.ended)]
        ready, _, _ = select.select(sockets, [], [], 0.05)
        if self.process.poll() is not None and not any(s is not self.listener for s in ready):
            if not self.over:
                with open(os.path.join(self.directory, "early")) as file:
                    self.events.append(("fatal", 3, "the template died: " + file.read()))
            self.over = True
        for sock in ready:
            if sock is self.listener:
                self.peers.append(Peer(self.listener.accept()[0]))
                continue
            peer = next(p for p in self.peers if p.connection is sock)
            messages = peer.receive()
            if messages is None:
                peer.ended = True
                continue
            for message in messages:
                self.messages.append(dict(message, **{"from": peer.name}))
                getattr(self, "_on_" + message["type"], self._pass_on)(peer, message)
        self._check_deadlines()

    def _check_deadlines(self) -> None:
        limit = self.options.get("timeout_secs")
        for peer in self.peers:
            if limit and peer.started and not peer.timed_out and time.monotonic() - peer.started > limit:
                peer.timed_out = True
                os.kill(peer.hello["pid"], signal.SIGRTMAX - 2)
                deadline = time.monotonic() + 5
                while not os.path.getsize(peer.hello["dump"]) and time.monotonic() < deadline:
                    time.sleep(0.01)
                time.sleep(0.05)
                os.killpg(peer.hello["pid"], signal.SIGKILL)

    # -- messages

    def _on_hello(self, peer: Peer, message: dict[str, Any]) -> None:
        assert message["nonce"] == self.nonce
        assert message["version"] == 1
        peer.hello = message
        options = self.options
        if message["role"] == "template":
            self.template = peer
            init = {
                "args": options["args"],
                "rootdir_cwd": options["cwd"],
                "workers": options["workers"],
                "run_uid": options.get("run_uid", "0"),
                "collect": options["collect"],
                "start_method": options["start_method"],
                "isolation": options["isolation"],
                "basetemp": options.get("basetemp"),
                "mainargv": options.get("mainargv", []),
                "max_fail": options.get("max_fail", 0),
                **json.loads(options.get("init_extra") or "{}"),
            }
            peer.send("init", **init)
        elif self.announced:
            self._assign()
        elif peer.unit_queue or self.units:
            peer.collecting = 1
            share = [u for i, u in enumerate(range(len(self.units))) if i % self.n_collectors == int(peer.name[2:])]
            peer.send("collect", units=share)

    def _on_configured(self, _peer: Peer, message: dict[str, Any]) -> None:
        self.events.append(("header", message))

    def _on_units(self, _peer: Peer, message: dict[str, Any]) -> None:
        self.units = [unit["path"] for unit in message["units"]]
        self.n_collectors = min(self.options["workers"], max(len(self.units), 1))
        if not self.units:
            self._announce()
        else:
            for _ in range(self.n_collectors):
                self._fork()

    def _fork(self) -> None:
        assert self.template is not None
        self.template.send("fork", id=f"gw{self.next_worker}")
        self.next_worker += 1

    def _on_collected(self, _peer: Peer, message: dict[str, Any]) -> None:
        self.collected[message["unit"]] = message
        if message["deselected"]:
            self.events.append(("deselected", message["deselected"]))

    def _on_collect_done(self, peer: Peer, _message: dict[str, Any]) -> None:
        peer.collecting = 2
        if sum(p.collecting == 2 for p in self.peers) == self.n_collectors:
            self._announce()

    def _on_collection_finished(self, _peer: Peer, _message: dict[str, Any]) -> None:
        self._announce()
        for _ in range(min(self.options["workers"], len(self.tests))):
            if not self.shutting_down:
                self._fork()

    def _announce(self) -> None:
        for unit in sorted(self.collected):
            for test in self.collected[unit]["tests"]:
                self.tests.append(dict(test, unit=unit, path=test.get("path", self.collected[unit]["path"])))
        self.announced = True
        self.events.append(("collected", len(self.tests)))
        if not self.tests or (self.collect_failed and not self.options.get("continue_on_collection_errors")):
            self._finish()
        else:
            self.todo = list(range(len(self.tests)))
            self._assign()

    def _assign(self) -> None:
        for peer in self.peers:
            if not peer.name.startswith("gw") or peer.ended or peer.timed_out:
                continue
            while self.todo and len(peer.assigned) < 2:
                key = self.todo.pop(0)
                if key > self.last_key:
                    self.done.add(key)
                    continue
                test = self.tests[key]
                self.attempts[key] = self.attempts.get(key, 0) + 1
                run = {"key": key, "unit": test["unit"], "ordinal": test["ordinal"], "attempt": self.attempts[key]}
                peer.assigned.append(run)
                peer.send("run", tests=[run])
        if not self.todo and not any(p.assigned for p in self.peers):
            self._finish()

    def _finish(self) -> None:
        self.shutting_down = True
        alive = [p for p in self.peers if p.name.startswith("gw") and not p.ended]
        for peer in alive:
            peer.send("shutdown")
        if not alive and self.template is not None:
            self.template.send("shutdown")
            self.over = True
            if self.failed_once:
                self.events.append(("flaky", self.failed_once))
            self.events.append(("summary", {}))

    def _on_started(self, peer: Peer, message: dict[str, Any]) -> None:
        peer.started = time.monotonic()
        key = message["key"]
        test = self.tests[key]
        self.events.append(("started", key, test["id"], test["line"], test["path"], test["domain"], peer.name))

    def _on_finished(self, peer: Peer, message: dict[str, Any]) -> None:
        peer.started = None
        key = message["key"]
        run = next(r for r in peer.assigned if r["key"] == key)
        peer.assigned.remove(run)
        test = self.tests[key]
        failed = message["outcome"] in ("failed", "error")
        retry = self._retry(key, failed)
        reports = json.dumps(message["reports"]) if "reports" in message else None
        self.events.append(
            (
                "finished",
                key,
                test["id"],
                test["path"],
                test["line"],
                test["domain"],
                peer.name,
                message["durations"],
                reports,
                message["outcome"],
                retry,
                run["attempt"],
            )
        )
        self._assign()

    def _retry(self, key: int, failed: bool) -> bool:
        retry = failed and self.attempts[key] <= self.options.get("retries", 0)
        if retry:
            self.todo.append(key)
        else:
            self.done.add(key)
            if not failed and self.attempts[key] > 1:
                self.failed_once.append(self.tests[key]["id"])
        return retry

    def _on_late_report(self, _peer: Peer, message: dict[str, Any]) -> None:
        test = self.tests[message["key"]]
        self.events.append(("late_report", message["key"], test["id"], json.dumps(message["reports"])))

    def _on_collect_report(self, _peer: Peer, message: dict[str, Any]) -> None:
        self.collect_failed |= message["report"]["outcome"] == "failed"
        self.events.append(("collect_report", message["report"]))

    def _on_bye(self, peer: Peer, message: dict[str, Any]) -> None:
        peer.assigned.clear()
        self.events.append(("worker_down", peer.name, json.dumps(message["workeroutput"]), None))

    def _on_exited(self, _template: Peer, message: dict[str, Any]) -> None:
        peer = next(p for p in self.peers if p.name == message["id"])
        # Everything that the worker has sent is in the socket by now.
        while not peer.ended and select.select([peer.connection], [], [], 0)[0]:
            messages = peer.receive()
            if messages is None:
                break
            for late in messages:
                self.messages.append(dict(late, **{"from": peer.name}))
                getattr(self, "_on_" + late["type"], self._pass_on)(peer, late)
        peer.ended = True
        if peer.assigned:
            run, *rest = peer.assigned
            peer.assigned = []
            self.todo[:0] = [r["key"] for r in rest]
            for again in rest:
                self.attempts[again["key"]] -= 1
            key = run["key"]
            test = self.tests[key]
            retry = self._retry(key, True)
            with open(peer.hello["dump"]) as file:
                details = file.read()
            if "stderr" in peer.hello:
                with open(peer.hello["stderr"]) as file:
                    details += file.read()
            why = "timed out" if peer.timed_out else f"signal {message['signal']}, exit code {message['code']}"
            self.events.append(
                (
                    "crashed",
                    test["id"],
                    peer.name,
                    why,
                    details,
                    key,
                    test["path"],
                    test["line"],
                    test["domain"],
                    retry,
                    run["attempt"],
                )
            )
            self._fork()
        if self.shutting_down or (not self.todo and not any(p.assigned for p in self.peers)):
            self._finish()

    def _pass_on(self, peer: Peer, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "warning":
            self.events.append(("warning", message["warning"]))
        elif kind == "property":
            self.events.append(("property", message["name"], message["value"]))
        elif kind == "data":
            self.events.append(("data", peer.name, message["kind"], json.dumps(message["payload"])))
        elif kind == "exit":
            self.events.append(("exit", message["reason"], message["returncode"]))
        elif kind == "internal_error":
            self.events.append(("internal_error", message["text"]))
        elif kind == "fatal":
            self.events.append(("fatal", message["exit_code"], message["text"]))
            self.exit_code = message["exit_code"]
            self.over = True
        elif kind not in ("taken_back", "alive", "log"):
            raise AssertionError(message)
