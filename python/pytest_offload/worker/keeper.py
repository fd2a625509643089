"""The keeper: the process that starts fresh workers where the template has become the first of them.

Where workers must not be forked, the template, which has configured pytest as the worker gw0, goes on as gw0:
whatever a project does once for each worker is done once for that name, too. Somebody else then has to start the other
workers and to say how they ended. That is the template's parent, forked off before anything of the project was loaded;
until then it waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING, Any, NoReturn

from .channel import Channel, Closed
from .ending import own_descriptors
from .template import Starter

if TYPE_CHECKING:
    from .channel import Message


class Keeper:
    """The template's side: what it tells its parent when it becomes a worker."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def take_over(self, state: dict[str, Any]) -> None:
        # If it has been killed nobody starts other workers, of which the orchestrator hears. This one can do its work.
        with contextlib.suppress(BrokenPipeError), os.fdopen(self._pipe, "w", encoding="ascii") as pipe:
            json.dump(state, pipe)


def keep(channel: Channel, nonce: str, init: Message) -> Keeper:
    """Forks. The child goes on as the template; the parent never returns."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        own_descriptors.add(writer)
        return Keeper(writer)
    os.close(writer)
    _wait(channel, nonce, init, child, reader)


def _wait(channel: Channel, nonce: str, init: Message, child: int, reader: int) -> NoReturn:
    code = 1
    try:
        with os.fdopen(reader, encoding="ascii") as pipe:
            said = pipe.read()
        if said:
            Spawner(channel, nonce, init, child, json.loads(said)).run()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            # Whoever waits for the template is to hear how it ended.
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
            os.kill(os.getpid(), os.WTERMSIG(status))
        code = os.WEXITSTATUS(status)
    finally:
        os._exit(code)


class Spawner(Starter):
    """Starts workers on request, from what the template has found out."""

    def __init__(self, channel: Channel, nonce: str, init: Message, first: int, state: dict[str, Any]) -> None:
        super().__init__(channel, nonce, init)
        init.update(state["init"])
        self.digest = state["digest"]
        self.given = state["given"]
        self.nodes = state["nodes"]
        self.wanted = state["wanted"]
        self.asked = set(state["asked"])
        self._messages: list[Message] = state["messages"]
        channel._received += bytes.fromhex(state["received"])
        self.add(first, "gw0")

    def run(self) -> NoReturn:
        messages, self._messages = self._messages, []
        try:
            while True:
                for message in messages:
                    if message["type"] == "shutdown":
                        self.end(0)
                    if message["type"] == "workerinput":
                        self.nodes.update(message["nodes"])
                    if message["type"] == "fork":
                        self.wanted.append(message["id"])
                for worker_id in self.ready():
                    self.add(self.spawn(worker_id), worker_id)
                self.wait()
                messages = self.channel.receive(block=False)
        except Closed:
            self.end(1)

    def end(self, code: int) -> NoReturn:
        self.end_workers(code)
        os._exit(code)
