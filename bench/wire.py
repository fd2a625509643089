"""A long wire: passes on what comes over TCP, after a while."""

from __future__ import annotations

import queue
import socket
import threading
import time


class Wire:
    """Listens on a port of its own; what arrives goes on to another one, `delay` seconds later, and so do answers."""

    def __init__(self, server: int, delay: float) -> None:
        self._server = server
        self._delay = delay
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server))
            for one, other in ((client, server), (server, client)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                pieces: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
                threading.Thread(target=self._read, args=(one, pieces), daemon=True).start()
                threading.Thread(target=self._write, args=(other, pieces), daemon=True).start()

    def _read(self, source: socket.socket, pieces: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        while True:
            try:
                piece = source.recv(65536)
            except OSError:
                piece = b""
            pieces.put((time.monotonic() + self._delay, piece))
            if not piece:
                return

    def _write(self, target: socket.socket, pieces: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        while True:
            due, piece = pieces.get()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                if not piece:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(piece)
            except OSError:
                return

    def close(self) -> None:
        """Takes no more connections."""
        self._listener.close()
