"""Workers as plugins know them from pytest-xdist.

Many plugins pass things to workers, and get things back, by xdist's hooks: `pytest_configure_node` fills what becomes
`config.workerinput` in a worker, `pytest_testnodedown` takes what was `config.workeroutput` there. They are called here
in the same way, whether xdist is installed or not.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from .worker.channel import tagged, untagged

if TYPE_CHECKING:
    from ._core import Session


# Variables that each process sets for itself.
OWN_VARIABLES = ("COV_CORE_", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_")


class Gateway:
    """The part of an execnet gateway that plugins look at."""

    def __init__(self, node: WorkerNode) -> None:
        self.id = node.id
        self._node = node

    def _rinfo(self, update: bool = False) -> SimpleNamespace:
        info = self._node.workerinfo
        return SimpleNamespace(**dict(info, platform=info["sysplatform"]))


class WorkerNode:
    """Stands for a worker where plugins expect xdist's (`report.node`).

    Has `workeroutput` once the worker has come to its end.
    """

    def __init__(self, worker: str, config: pytest.Config) -> None:
        self.id = worker
        self.config = config
        self.gateway = Gateway(self)
        self.workerinput: dict[str, Any] = {}
        self.nodemanager = SimpleNamespace(config=config, roots=[], testrunuid="")

    @functools.cached_property
    def workerinfo(self) -> dict[str, Any]:
        """What is known of the worker's Python. To find the platform out, a process is started; few ask for it."""
        return {
            "id": self.id,
            "version": sys.version,
            "version_info": tuple(sys.version_info),
            "sysplatform": sys.platform,
            "platform": platform.platform(),
            "executable": sys.executable,
            "cwd": str(self.config.invocation_params.dir),
        }

    def describe(self, info: dict[str, Any]) -> None:
        """Takes over what a worker that is somewhere else says of its Python."""
        self.workerinfo = dict(info, id=self.id, version_info=tuple(info["version_info"]))


class Nodes(dict[str, WorkerNode]):
    """The workers of a run by their ids. One that is asked for and unknown is made."""

    def __init__(self, config: pytest.Config, count: int, run_uid: str, environ: dict[str, str] | None = None) -> None:
        super().__init__()
        # The environment in which the template was started; None: workers have another one than this process.
        self._environ = environ
        self.config = config
        self.count = count
        self.run_uid = run_uid
        self._ready: set[str] = set()

    def __missing__(self, worker: str) -> WorkerNode:
        node = self[worker] = WorkerNode(worker, self.config)
        node.nodemanager.testrunuid = self.run_uid
        node.workerinput.update(
            workerid=worker, workercount=self.count, testrunuid=self.run_uid, mainargv=list(sys.argv)
        )
        return node

    def announce(self, core: Session) -> None:
        """Tells the template what the controller's plugins have for the workers. It waits for this before it forks."""
        ask = self._hook("pytest_configure_node") is not None
        nodes = [f"gw{number}" for number in range(self.count)]
        setup, gateway = self._hook("pytest_xdist_setupnodes"), self._hook("pytest_xdist_newgateway")
        if setup is not None:
            specs = [SimpleNamespace(popen=True, id=node, execmodel="main_thread_only") for node in nodes]
            setup(config=self.config, specs=specs)
        if gateway is not None:
            for node in nodes:
                gateway(gateway=self[node].gateway)
        if self._hook("pytest_xdist_node_collection_finished") is not None:
            core.name_tests()
        message = self._message(nodes, ask)
        changed = self.changed_environ()
        if changed:
            # Should the template have to be started again.
            core.set_environ(changed)
        core.tell(dict(message, environ=changed))

    def changed_environ(self) -> dict[str, str | None]:
        """What the controller's plugins and conftests have changed since the template was started; None: removed."""
        before, now = self._environ, os.environ
        if before is None:
            return {}
        changed: dict[str, str | None] = {name: value for name, value in now.items() if before.get(name) != value}
        changed.update({name: None for name in before if name not in now})
        return {name: value for name, value in changed.items() if not name.startswith(OWN_VARIABLES)}

    def configure(self, core: Session, worker: str) -> None:
        """Answers the template's question about a worker that takes another's place."""
        core.tell(self._message([worker], True))

    def _message(self, workers: list[str], ask: bool) -> dict[str, Any]:
        return {"type": "workerinput", "nodes": {worker: self._input(worker) for worker in workers}, "ask": ask}

    def _input(self, worker: str) -> dict[str, Any]:
        node = self[worker]
        own = set(node.workerinput)
        seed = getattr(self.config.option, "randomly_seed", None)
        if isinstance(seed, int):
            # pytest-randomly hands its seed over where it finds xdist, which `-p no:xdist` prevents, but looks for it
            # in every worker.
            node.workerinput["randomly_seed"] = seed
        hook = self._hook("pytest_configure_node")
        if hook is not None:
            hook(node=node)
        return {
            name: sendable(value, f"workerinput[{name!r}]")
            for name, value in node.workerinput.items()
            if name not in own
        }

    def ready(self, worker: str) -> None:
        """A worker has begun to run tests."""
        if worker in self._ready:
            return
        self._ready.add(worker)
        hook = self._hook("pytest_testnodeready")
        if hook is not None:
            hook(node=self[worker])

    def collected(self, ids: list[str]) -> None:
        """All tests are known. Each worker finds them, as far as plugins can tell."""
        hook = self._hook("pytest_xdist_node_collection_finished")
        if hook is not None:
            for number in range(self.count):
                self.ready(f"gw{number}")
                hook(node=self[f"gw{number}"], ids=ids)

    def crashed(self, nodeid: str, report: pytest.TestReport, will_retry: bool) -> None:
        """A worker died while it ran a test. Whether it is tried again has been decided already."""

        def mark_test_pending(_nodeid: str) -> None:
            if not will_retry:
                raise NotImplementedError

        hook = self._hook("pytest_handlecrashitem")
        if hook is not None:
            sched = SimpleNamespace(config=self.config, mark_test_pending=mark_test_pending)
            hook(crashitem=nodeid, report=report, sched=sched)

    def down(self, worker: str, output: str | None, error: str | None) -> None:
        """A worker has ended; `output` is JSON."""
        node = self[worker]
        if output is not None:
            # Plugins tell by the attribute whether the worker came to its end.
            node.__dict__["workeroutput"] = untagged(json.loads(output))
        hook = self._hook("pytest_testnodedown")
        if hook is not None:
            hook(node=node, error=error)

    def _hook(self, name: str) -> Any:
        """The hook, where some plugin implements it. With `-p no:xdist` nothing may declare it."""
        hook = getattr(self.config.hook, name, None)
        return hook if hook is not None and hook.get_hookimpls() else None


def sendable(value: object, where: str) -> object:
    """What is found at `where`, in what JSON can hold. What xdist could not send is not sent."""
    for member in _members(value):
        if not (member is None or isinstance(member, (str, int, float, bytes))):
            raise TypeError(
                f"{where} is of type {type(member).__name__}, which cannot be sent to a worker; "
                "send numbers, strings, bytes, lists, tuples, sets or dicts of these"
            )
    return tagged(value)


def _members(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        for member in value:
            yield from _members(member)
    else:
        yield value
