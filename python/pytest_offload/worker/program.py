"""The program: from its arguments to its exit code."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from .channel import TEXT_LIMIT, Channel, Closed, say_hello, tagged
from .ending import note_inherited, own_directories, own_sockets
from .identity import IdentityWatch
from .keeper import keep
from .plugin import WorkerPlugin
from .process import lead_group, redirect_output
from .template import open_sockets

if TYPE_CHECKING:
    from .channel import Message


def settle_elsewhere(init: Message, directory: str) -> None:
    """Makes of what was typed on another machine what it means here. The working directory is the project's here."""
    here, there = os.getcwd(), init["rootdir_cwd"]
    if here != there:
        # What stays when the directories are left out that both have in common at the end.
        root, other = here.split("/"), there.split("/")
        while len(root) > 1 and len(other) > 1 and root[-1] == other[-1]:
            root.pop(), other.pop()
        before, after = "/".join(other), "/".join(root)

        def moved(arg: str) -> str:
            option, equals, value = arg.partition("=") if arg.startswith("-") else ("", "", arg)
            inside = value == before or value.startswith((f"{before}/", f"{before}::"))
            return f"{option}{equals}{after}{value[len(before) :]}" if inside else arg

        init["args"] = [moved(arg) for arg in init["args"]]
        init["rootdir_cwd"] = here
    if init.get("cache") is not None:
        cache = os.path.join(directory, "cache")
        init["args"] = ["-o", f"cache_dir={cache}", *init["args"]]
        for key, value in init.pop("cache").items():
            path = os.path.join(cache, "v", *key.split("/"))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                json.dump(value, file)


def without_our_plugin(args: Sequence[str]) -> list[str]:
    """The arguments without `-p pytest_offload.plugin`: its options are stood in for, and it has nothing to do here."""
    kept: list[str] = []
    for arg in args:
        if arg == "pytest_offload.plugin" and kept and kept[-1] == "-p":
            kept.pop()
        elif arg != "-ppytest_offload.plugin":
            kept.append(arg)
    return kept


def _may_become_a_worker(init: Message) -> bool:
    """Whether workers may have to be started fresh, on this machine and for a controller whose plugins look at them."""
    if init.get("elsewhere") or init.get("alone") or init.get("bare"):
        return False
    return bool(init["start_method"] != "fork")


def main(argv: list[str], forked: bool) -> int:
    socket_path, nonce = argv[:2]
    started_again = os.environ.pop("OFFLOAD_TEMPLATE_AGAIN", None) is not None
    environ = dict(os.environ)
    own_directories.add(os.path.dirname(socket_path))
    note_inherited()
    channel = Channel(socket_path)
    name = "template"
    early: list[Message] = []
    if len(argv) > 2:
        with open(argv[2], encoding="ascii") as file:
            init: Message = json.load(file)
        name = init["worker_id"]
        lead_group(init)
    else:
        if os.getpgrp() != os.getpid():
            os.setpgid(0, 0)
        say_hello(channel, nonce, "template", name)
        init, *early = channel.receive(block=True)
        if init["type"] != "init":
            raise ValueError("expected init, got {!r}".format(init["type"]))
        init["environ"] = environ
        init["again_started"] = started_again
        init["forked"] = forked
        init["sockets"] = [name for _, name in open_sockets()]
        own_sockets.update(init["sockets"])
        here = os.path.dirname(os.path.abspath(__file__))
        init["command"] = [sys.executable, "-u", os.path.join(here, "__main__.py")]
    for variable in init.get("hide", ()):
        # Set for this process only, and of no concern to those that tests start.
        os.environ.pop(variable, None)
    if init.get("sys_path"):
        sys.path[:] = init["sys_path"]
    if init.get("elsewhere"):
        settle_elsewhere(init, os.path.dirname(socket_path))
    if init.get("standalone"):
        init["args"] = without_our_plugin(init["args"])
        # Nothing is to be left behind, and nobody else to be met.
        init["basetemp"] = os.path.join(os.path.dirname(socket_path), "tmp")
        if init.get("cwd_on_path"):
            sys.path.insert(0, init["rootdir_cwd"])
    os.chdir(init["rootdir_cwd"])
    sys.argv[:] = init.get("mainargv") or ["pytest"]
    os.environ["PYTEST_XDIST_WORKER"] = init.get("worker_id") or "gw0"
    os.environ["PYTEST_XDIST_WORKER_COUNT"] = str(init["workers"])
    os.environ["PYTEST_XDIST_TESTRUNUID"] = init["run_uid"]
    errors = None
    if not init.get("inherit_output"):
        errors = redirect_output(os.path.dirname(socket_path), name)
    keeper = None
    if name == "template" and _may_become_a_worker(init):
        keeper = keep(channel, nonce, init)
    watch = IdentityWatch()
    if name == "template":
        watch.start()
    plugin = WorkerPlugin(channel, nonce, init, watch)
    plugin.keeper = keeper
    plugin.hear(early)
    try:
        code = int(pytest.main(list(init["args"]), plugins=[plugin]))
    except Closed:
        raise
    except Exception:
        plugin.leave_if_forked()
        if plugin.worker_id is not None:
            raise
        # Of pytest or a plugin, before there was a session: shown as whatever else keeps pytest from starting.
        import traceback

        traceback.print_exc()
        code = int(pytest.ExitCode.INTERNAL_ERROR)
    plugin.leave_if_forked()
    channel = plugin.channel
    if plugin.replace:
        channel.discard()
        channel.send("replace")
        return 0
    if plugin.finished or plugin.worker_id is not None:
        output = getattr(plugin.session.config, "workeroutput", {}) if plugin.session is not None else {}
        if plugin.coverage is not None:
            plugin.coverage.name()
        channel.send("bye", workeroutput=tagged(output))
        return 0
    text = ""
    if errors is not None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        with open(errors, encoding="utf-8", errors="replace") as file:
            text = file.read()[-TEXT_LIMIT:]
    channel.send("fatal", exit_code=code, text=text)
    return code


def run(argv: list[str], forked: bool = False) -> int:
    """The whole program, up to its exit code. `forked`: this process is a fork of the controller."""
    code = 1
    try:
        code = main(argv, forked)
    except Closed:
        pass
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
    return code
