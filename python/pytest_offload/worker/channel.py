"""What the processes of a run say to the orchestrator, and how: lines of JSON on a socket."""

from __future__ import annotations

import json
import os
import select
import socket
from typing import TYPE_CHECKING, Any, Callable

from .ending import own_descriptors

if TYPE_CHECKING:
    Message = dict[str, Any]

VERSION = 1
# Captured output and failure texts longer than this lose their middle.
TEXT_LIMIT = 4 * 1024 * 1024
# Bytes of the address of a Unix socket on every system that there is.
ADDRESS_LIMIT = 104


class Closed(Exception):
    """The orchestrator has gone."""


_encode = json.JSONEncoder(separators=(",", ":"), default=str, allow_nan=False).encode


def to_json(message: object) -> str:
    """One line of JSON, whatever plugins have put into reports: what JSON cannot hold becomes its text."""
    try:
        return _encode(message)
    except (ValueError, TypeError):
        return _encode(_plain(message))


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        return value
    return str(value)


class Channel:
    """JSON lines over a Unix socket. Blocking and without a thread: tests may fork, and may count threads."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connect(self._socket, path)
        own_descriptors.add(self._socket.fileno())
        # A test may close or replace the low descriptors.
        self._received = bytearray()
        self._unsent: list[str] = []
        #: Called before anything is written.
        self.before_sending: Callable[[], None] | None = None

    def fileno(self) -> int:
        return self._socket.fileno()

    def post(self, kind: str, /, **fields: object) -> None:
        """Holds a message back until `flush`: what belongs together is one write and wakes the reader once."""
        fields["type"] = kind
        self._unsent.append(to_json(fields))

    def post_started(self, key: int) -> None:
        """Said of every test, as is the next one: without the general encoder, which costs more than the rest of it."""
        self._unsent.append(f'{{"type":"started","key":{key}}}')

    def post_passed(self, key: int, durations: list[float]) -> None:
        """The result of a test of which there is nothing else to say. Durations are finite."""
        self._unsent.append(f'{{"type":"finished","key":{key},"durations":{durations},"outcome":"passed"}}')

    def flush(self) -> None:
        if not self._unsent:
            return
        data = ("\n".join(self._unsent) + "\n").encode("ascii")
        self._unsent.clear()
        if self.before_sending is not None:
            self.before_sending()
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Closed(str(error)) from error

    def discard(self) -> None:
        """Forgets what has been held back."""
        self._unsent.clear()

    def send(self, kind: str, /, **fields: object) -> None:
        self.post(kind, **fields)
        self.flush()

    def receive(self, block: bool) -> list[Message]:
        """The messages that have come in; waits for at least one if `block`. Raises `Closed` at the end."""
        messages: list[Message] = []
        while True:
            if not block or messages:
                ready, _, _ = select.select([self._socket], [], [], 0) if self.fileno() < 1024 else self._poll()
                if not ready:
                    return messages
            try:
                data = self._socket.recv(1 << 16)
            except OSError as error:
                raise Closed(str(error)) from error
            if not data:
                raise Closed("the orchestrator closed the connection")
            self._received += data
            if b"\n" in data:
                *lines, rest = bytes(self._received).split(b"\n")
                self._received = bytearray(rest)
                messages.extend(json.loads(line) for line in lines if line)

    def _poll(self) -> tuple[list[Any], None, None]:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return [fd for fd, _ in poll.poll(0)], None, None

    def close(self) -> None:
        """Closes this process's copy only; a parent or child keeps its own."""
        descriptor = self._socket.detach()
        own_descriptors.discard(descriptor)
        os.close(descriptor)


def connect(stream: socket.socket, path: str) -> None:
    """Connects to a socket, from its own directory where its path is longer than an address can be."""
    if len(os.fsencode(path)) < ADDRESS_LIMIT:
        stream.connect(path)
        return
    directory, name = os.path.split(path)
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(directory)
        stream.connect(name)
    finally:
        os.fchdir(here)
        os.close(here)


def tagged(value: object) -> object:
    """JSON has no tuples, sets or bytes; reporters show what a test recorded as Python writes it."""
    if isinstance(value, list):
        return [tagged(member) for member in value]
    if isinstance(value, tuple):
        return {"$tuple": [tagged(member) for member in value]}
    if isinstance(value, (set, frozenset)):
        return {"$set": [tagged(member) for member in value]}
    if isinstance(value, bytes):
        return {"$bytes": value.decode("latin-1")}
    if isinstance(value, dict):
        pairs = [(tagged(key), tagged(member)) for key, member in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in pairs):
            return dict(pairs)
        return {"$dict": pairs}
    return value


def untagged(value: Any) -> Any:
    """The inverse of `tagged`."""
    if isinstance(value, list):
        return [untagged(member) for member in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((tag, content),) = value.items()
        if tag == "$tuple":
            return tuple(untagged(member) for member in content)
        if tag == "$set":
            return {untagged(member) for member in content}
        if tag == "$bytes":
            return content.encode("latin-1")
        if tag == "$dict":
            return {untagged(key): untagged(member) for key, member in content}
    return {key: untagged(member) for key, member in value.items()}


def shorten(text: str) -> str:
    if len(text) <= TEXT_LIMIT:
        return text
    half = TEXT_LIMIT // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n[... {left_out} characters left out by offload ...]\n{text[-half:]}"


def say_hello(channel: Channel, nonce: str, role: str, name: str, **more: object) -> None:
    channel.send("hello", version=VERSION, nonce=nonce, role=role, id=name, pid=os.getpid(), **more)
