"""The far end of the byte stream to a sandbox that is somewhere else.

Where the orchestrator is, the template process and the workers connect to a socket of its own. In a container or on
another machine they cannot; there they connect to a socket of this program, which passes every line on, with the number
of its connection before it. It also does what the orchestrator does for local processes by itself: it starts the
template, kills, has stacks written and reads what was left in files. It understands nothing of what it passes on.

``PROTOCOL.md`` documents what it says and is told. It is sent through the stream that it then serves, so a sandbox
needs nothing but Python. It keeps to what Python 3.6 understands: one that is too old for the worker is to be told so.
"""

import contextlib
import errno
import json
import os
import select
import signal
import socket
import sys
import tempfile
import time

# Not even what comes with every Python is imported for the sake of types alone.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Optional

VERSION = 1
DUMP_SIGNAL = signal.SIGRTMAX - 2 if hasattr(signal, "SIGRTMAX") else signal.SIGUSR2
LONGEST_LINE = 64 << 20
CHUNK = 1 << 16
# With so much waiting to be sent, nothing is read from connections until it has gone.
FULL = 4 << 20
# What workers say within so many seconds goes together: every message by itself would cost the relay, the container's
# daemon and all between them more than a short test takes. The orchestrator knows of it (`HELD` in `relay.rs`).
REST = 0.01
# How long a process may take to write its stacks, and how often it is looked whether it has.
DUMP_PATIENCE = 1.0
DUMP_POLL = 0.02
# How long the template may take to end, with everything that comes of it.
END_PATIENCE = 5.0
TAIL = 64 << 10
SHARED_MEMORY = "/dev/shm"
TEMPLATE = "template"


class Ended(Exception):
    """Nobody is there any more to serve."""


class Connection:
    """What the template or a worker has connected with."""

    def __init__(self, number: int, stream: socket.socket) -> None:
        self.number = number
        self.stream = stream
        self.tag = ("%d " % number).encode("ascii")
        self.received = bytearray()
        self.unsent = bytearray()
        self.events = select.POLLIN


class Relay:
    def __init__(self, nonce: str) -> None:
        self.nonce = nonce
        self.silence = 30.0
        self.directory = ""
        self.listener: "Optional[socket.socket]" = None
        self.template: "Optional[int]" = None
        self.output: "Optional[int]" = None
        self.connections: "dict[int, Connection]" = {}
        self.by_descriptor: "dict[int, Connection]" = {}
        self.count = 0
        self.received = bytearray()
        self.unsent = bytearray()
        self.heard = self.said = time.monotonic()
        # When something of a worker was last passed on, and whether there has been more since.
        self.passed = 0.0
        self.passing = False
        # Stacks that are being written: question, file, length before and when last looked at, time to give up.
        self.dumps: "list[list[Any]]" = []
        self.poll = select.poll()
        self.reading = True
        self.wakeup, wake = os.pipe()
        os.set_blocking(self.wakeup, False)
        os.set_blocking(wake, False)
        # Or the end of a child would not be noticed while nothing is said.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake)

    # -- serving

    def serve(self) -> None:
        for fd in (0, 1):
            os.set_blocking(fd, False)
        self.poll.register(0, select.POLLIN)
        self.poll.register(self.wakeup, select.POLLIN)
        # What a login shell has printed may not have ended its line.
        self.unsent += b"\n"
        self.tell(
            type="ready",
            nonce=self.nonce,
            version=VERSION,
            python=list(sys.version_info[:3]),
            executable=sys.executable,
            cwd=os.getcwd(),
        )
        while True:
            self.send()
            self.rest()
            for fd, event in self.poll.poll(self.patience()):
                self.on_event(fd, event)
            now = time.monotonic()
            self.look_at_dumps(now)
            if now - self.said >= self.silence / 4:
                self.tell(type="alive")
            if now - self.heard > self.silence:
                raise Ended

    def rest(self) -> None:
        """Lets messages gather, while they come thick and fast. One after a pause is passed on as soon as it comes."""
        if not self.passing:
            return
        if time.monotonic() - self.passed < REST:
            time.sleep(REST)
        self.passed = time.monotonic()
        self.passing = False

    def patience(self) -> int:
        """Milliseconds until there is something to do by itself."""
        now = time.monotonic()
        until = min(self.said + self.silence / 4, self.heard + self.silence)
        if self.dumps:
            until = min(until, now + DUMP_POLL)
        return max(0, int((until - now) * 1000) + 1)

    def on_event(self, fd: int, event: int) -> None:
        if fd == 0:
            self.hear()
        elif fd == 1:
            self.send()
        elif fd == self.wakeup:
            with_errors(os.read, self.wakeup, CHUNK)
            self.reap()
        elif self.listener is not None and fd == self.listener.fileno():
            self.accept()
        elif fd == self.output:
            self.pass_output_on()
        else:
            connection = self.by_descriptor.get(fd)
            if connection is not None:
                if event & ~select.POLLOUT:
                    self.read(connection)
                elif connection.unsent:
                    self.write(connection)

    # -- the orchestrator

    def tell(self, **message: object) -> None:
        self.unsent += b"0 " + json.dumps(message).encode("ascii") + b"\n"

    def send(self) -> None:
        """Sends what there is, as far as the other side takes it."""
        while self.unsent:
            try:
                sent = os.write(1, self.unsent)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK):
                    raise Ended from error
                self.poll.register(1, select.POLLOUT)
                break
            del self.unsent[:sent]
            self.said = time.monotonic()
        else:
            with_errors(self.poll.unregister, 1)
        reading = len(self.unsent) < FULL
        if reading != self.reading:
            self.reading = reading
            for connection in self.connections.values():
                self.listen(connection)

    def hear(self) -> None:
        try:
            data = os.read(0, CHUNK)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
                return
            raise Ended from error
        if not data:
            raise Ended
        self.heard = time.monotonic()
        self.received += data
        if b"\n" not in data:
            if len(self.received) > LONGEST_LINE:
                raise Ended
            return
        lines = bytes(self.received).split(b"\n")
        self.received = bytearray(lines.pop())
        touched = set()
        for line in lines:
            number, space, rest = line.partition(b" ")
            if number == b"0":
                self.obey(json.loads(rest.decode("utf-8")))
                continue
            connection = self.connections.get(int(number or 0))
            if connection is None:
                # Of one that has ended the other side hears soon.
                continue
            if space:
                connection.unsent += rest + b"\n"
                touched.add(connection)
            else:
                self.close(connection)
        for connection in touched:
            if connection.number in self.connections:
                self.write(connection)

    def obey(self, message: "dict[str, Any]") -> None:
        kind = message["type"]
        if kind == "start":
            try:
                self.start(message)
            except OSError as error:
                self.tell(type="ended", text=str(error))
        elif kind == "kill":
            kill(message["pid"])
        elif kind == "interrupt":
            with_errors(os.kill, message["pid"], signal.SIGINT)
        elif kind == "stacks":
            path = message["path"]
            before = length(path)
            with_errors(os.kill, message["pid"], DUMP_SIGNAL)
            self.dumps.append([message["ask"], path, before, before, time.monotonic() + DUMP_PATIENCE])
        elif kind == "tail":
            path = message["path"]
            self.tell(type="answer", ask=message["ask"], text=tail(path, message["from"]), length=length(path))

    def look_at_dumps(self, now: float) -> None:
        for dump in list(self.dumps):
            ask, path, before, last, give_up = dump
            longer = length(path)
            # Written, and not a piece more since: the end.
            if now >= give_up or (longer == last and longer > before):
                self.dumps.remove(dump)
                self.tell(type="answer", ask=ask, text=tail(path, before), length=longer)
            dump[3] = longer

    # -- the template

    def start(self, message: "dict[str, Any]") -> None:
        root = os.environ.get("OFFLOAD_ROOT") or os.getcwd()
        for name, value in message["env"].items():
            os.environ[name] = value.replace("{root}", root)
        self.silence = message["silence"]
        self.directory = tempfile.mkdtemp(prefix="offload-", dir=scratch())
        worker = os.path.join(self.directory, "worker")
        os.mkdir(worker)
        for name, text in message["worker"].items():
            with open(os.path.join(worker, name), "wb") as file:
                file.write(text.encode("utf-8"))
        script = os.path.join(worker, "__main__.py")
        path = os.path.join(self.directory, "s")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Its whole path may be longer than an address can be.
        here = os.open(".", os.O_RDONLY)
        os.chdir(self.directory)
        self.listener.bind("s")
        os.fchdir(here)
        os.close(here)
        self.listener.listen(16)
        self.listener.setblocking(False)
        self.poll.register(self.listener.fileno(), select.POLLIN)
        if message["pass_output_on"]:
            self.output, output = os.pipe()
            self.poll.register(self.output, select.POLLIN)
        else:
            output = os.open(os.path.join(self.directory, "output"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        self.template = os.fork()
        if self.template == 0:
            try:
                # Ignored signals stay ignored in what is executed.
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.setpgid(0, 0)
                os.dup2(nothing, 0)
                os.dup2(output, 1)
                os.dup2(output, 2)
                os.execv(sys.executable, [sys.executable, "-u", script, path, self.nonce])
            finally:
                os._exit(127)
        os.close(nothing)
        os.close(output)
        self.tell(type="started", directory=self.directory)

    def reap(self) -> None:
        if self.template is None:
            return
        try:
            pid, status = os.waitpid(self.template, os.WNOHANG)
        except OSError:
            return
        if pid == 0:
            return
        kill(self.template)
        self.template = None
        # What it said last comes before its end.
        for connection in list(self.connections.values()):
            while self.read(connection):
                pass
        killed = os.WIFSIGNALED(status)
        self.tell(
            type="ended",
            code=None if killed else os.WEXITSTATUS(status),
            signal=os.WTERMSIG(status) if killed else None,
            text=tail(os.path.join(self.directory, "output"), 0),
        )

    def pass_output_on(self) -> None:
        assert self.output is not None
        data = os.read(self.output, CHUNK)
        if data:
            self.tell(type="output", text=data.decode("utf-8", "replace"))
        else:
            self.poll.unregister(self.output)

    # -- connections

    def accept(self) -> None:
        try:
            assert self.listener is not None
            stream, _ = self.listener.accept()
        except OSError:
            return
        stream.setblocking(False)
        self.count += 1
        connection = Connection(self.count, stream)
        self.connections[self.count] = self.by_descriptor[stream.fileno()] = connection
        self.poll.register(stream.fileno(), connection.events)
        self.listen(connection)
        # It has said hello already, as likely as not.
        self.read(connection)

    def listen(self, connection: Connection) -> None:
        """Waits for what the connection can do now."""
        events = (select.POLLIN if self.reading else 0) | (select.POLLOUT if connection.unsent else 0)
        if events != connection.events:
            connection.events = events
            self.poll.modify(connection.stream.fileno(), events)

    def read(self, connection: Connection) -> bool:
        """Reads what is there, a piece of it; returns whether there was something."""
        try:
            data = connection.stream.recv(CHUNK)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
                return False
            # A process that dies with unread messages resets its connection.
            data = b""
        if not data:
            self.close(connection)
            return False
        end = data.rfind(b"\n") + 1
        if not end:
            connection.received += data
            if len(connection.received) > LONGEST_LINE:
                self.tell(type="log", text="a process wrote a line of more than %d bytes" % LONGEST_LINE)
                self.close(connection)
                return False
            return True
        tag = connection.tag
        lines = bytes(connection.received) + data[: end - 1]
        connection.received = bytearray(data[end:])
        self.unsent += tag + lines.replace(b"\n", b"\n" + tag) + b"\n"
        self.passing = True
        return True

    def write(self, connection: Connection) -> None:
        while connection.unsent:
            try:
                sent = connection.stream.send(connection.unsent)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK):
                    # Its last words are still to be read.
                    del connection.unsent[:]
                break
            del connection.unsent[:sent]
        self.listen(connection)

    def close(self, connection: Connection) -> None:
        if self.connections.pop(connection.number, None) is None:
            return
        fd = connection.stream.fileno()
        del self.by_descriptor[fd]
        self.poll.unregister(fd)
        connection.stream.close()
        self.unsent += ("%d\n" % connection.number).encode("ascii")

    # -- the end

    def end(self) -> None:
        """Ends the template and all that came of it: they hear the end of their connections."""
        for connection in list(self.connections.values()):
            connection.stream.close()
        if self.listener is not None:
            self.listener.close()
        until = time.monotonic() + END_PATIENCE
        while self.template is not None and time.monotonic() < until:
            pid, _ = os.waitpid(self.template, os.WNOHANG)
            if pid:
                self.template = None
                break
            time.sleep(0.01)
        if self.template is not None:
            kill(self.template)
        if self.directory:
            import shutil

            shutil.rmtree(self.directory, ignore_errors=True)


def scratch() -> str:
    """Where the private directory is to be: where the sandbox removes what a relay leaves that is killed, if it can."""
    path = os.environ.pop("OFFLOAD_SCRATCH", None)
    if path and os.path.isdir(path):
        return path
    try:
        return tempfile.gettempdir()
    except OSError as error:
        # A sandbox of which nothing can be written to may still share memory. Pytest itself needs a place, too.
        if not os.access(SHARED_MEMORY, os.W_OK):
            raise OSError("%s; mount one there that can be written to" % error.strerror) from None
        os.environ["TMPDIR"] = tempfile.tempdir = SHARED_MEMORY
        return SHARED_MEMORY


def kill(pid: int) -> None:
    """Kills a process and its group, if it leads one."""
    with_errors(os.killpg, pid, signal.SIGKILL)
    with_errors(os.kill, pid, signal.SIGKILL)


def with_errors(function: "Callable[..., object]", *arguments: object) -> None:
    """For what may fail, and does not matter if it does."""
    with contextlib.suppress(OSError, KeyError):
        function(*arguments)


def length(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def tail(path: str, start: int) -> str:
    """The end of what stands in a file behind `start`."""
    try:
        with open(path, "rb") as file:
            file.seek(max(start, length(path) - TAIL))
            return file.read(TAIL).decode("utf-8", "replace")
    except OSError:
        return ""


def main(nonce: str) -> None:
    def leave(*_: object) -> None:
        raise Ended

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    relay = Relay(nonce)
    try:
        relay.serve()
    except Ended:
        pass
    finally:
        for name in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_IGN)
        relay.end()
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
