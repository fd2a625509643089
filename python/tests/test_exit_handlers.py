"""Workers end as Python ends: what is registered for the end of the process runs, and open files are flushed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from conftest import START, Runner

LOG = """
import os
def log(text):
    with open("log", "a") as file: file.write(f"{os.environ.get('PYTEST_XDIST_WORKER', 'controller')} {text}\\n")
"""
# With a barrier, so that each of the two workers runs a test.
TESTS = """
import atexit, concurrent.futures, multiprocessing.util, os, pathlib, tempfile, threading, time, weakref
from conftest import log

class Object: pass
held = Object()
weakref.finalize(held, log, "finalize")
atexit.register(log, "module")
directory = tempfile.TemporaryDirectory(); log("made " + directory.name)
unflushed = open(f"unflushed-{os.getpid()}", "w"); unflushed.write("written")
def late(seconds, text):
    time.sleep(seconds)
    log(text)

def test_each():
    open(f"here-{os.environ['PYTEST_XDIST_WORKER']}", "w").close()
    end = time.monotonic() + 60
    while len(list(pathlib.Path().glob("here-*"))) < 2 and time.monotonic() < end: time.sleep(0.01)
    atexit.register(log, "test")
    multiprocessing.util.Finalize(None, log, ("multiprocessing",), exitpriority=1)
    threading.Thread(target=late, args=(0.2, "thread")).start()
    concurrent.futures.ThreadPoolExecutor().submit(late, 0.1, "pool")
"""


def logged(run: Runner) -> Counter[str]:
    lines = (run.path / "log").read_text().splitlines()
    made = [Path(line.split(" made ")[1]) for line in lines if " made " in line]
    assert made
    assert not [path for path in made if path.exists()]
    return Counter(line for line in lines if " made " not in line)


@pytest.mark.parametrize("start", START)
@pytest.mark.parametrize("collect", ["serial", "parallel"])
def test_a_worker_runs_what_is_registered_for_its_end(run: Runner, start: str, collect: str) -> None:
    run.write(conftest=LOG, test_a=TESTS, test_b=TESTS)
    outcome = run.offload(start, f"--offload-collect={collect}")
    assert (outcome.exit_code, outcome.counts) == (0, {"passed": 2}), outcome.text
    lines = logged(run)
    for what in ("test", "multiprocessing", "thread", "pool"):
        assert {worker: lines[f"{worker} {what}"] for worker in ("gw0", "gw1")} == {"gw0": 1, "gw1": 1}, lines
    for what in ("finalize", "module"):
        assert min(lines[f"gw0 {what}"], lines[f"gw1 {what}"]) >= 1, lines
    written = [path.read_text() for path in run.path.glob("unflushed-*")]
    assert set(written) == {"written"}


def test_a_process_for_one_test_runs_what_the_test_registered(run: Runner) -> None:
    run.write(
        conftest=LOG,
        test_a="""
import atexit, multiprocessing.util, os, tempfile, weakref
from conftest import log

class Object: pass
held, other = Object(), Object()
weakref.finalize(held, log, "of the worker")
atexit.register(log, "of the worker")
shared = tempfile.TemporaryDirectory(); log("made " + shared.name)

@pytest.mark.parametrize("i", range(4))
def test_one(i):
    global kept
    assert os.path.isdir(shared.name)
    kept = tempfile.TemporaryDirectory(); log("made " + kept.name)
    atexit.register(log, f"atexit {i}")
    weakref.finalize(other, log, f"finalize {i}")
    multiprocessing.util.Finalize(None, log, (f"multiprocessing {i}",), exitpriority=1)
    file = globals()["file"] = open(f"unflushed-{i}", "w")
    file.write("written")
""",
    )
    run.workers = 1
    outcome = run.offload("--offload-isolation=test", "--offload-collect=parallel")
    assert (outcome.exit_code, outcome.counts) == (0, {"passed": 4}), outcome.text
    expected = {f"gw0 {what} {i}": 1 for what in ("atexit", "finalize", "multiprocessing") for i in range(4)}
    assert logged(run) == {**expected, "gw0 of the worker": 2}
    assert [(run.path / f"unflushed-{i}").read_text() for i in range(4)] == ["written"] * 4


def test_what_workers_share_is_removed_after_all_have_ended(run: Runner) -> None:
    run.write(
        conftest=LOG
        + """
import atexit, shutil, tempfile
managed = tempfile.TemporaryDirectory()
made = tempfile.mkdtemp()
atexit.register(shutil.rmtree, made)
log("made " + managed.name); log("made " + made)
buffered = open("buffered", "a"); buffered.write("once\\n")
""",
        test_a="""
import os, pathlib, time
import conftest
def test_goes(): pass
""",
        test_b="""
import conftest, os, pathlib, time
def test_stays():
    # Long enough for a sandbox that has nothing left to be let go of.
    time.sleep(1)
    assert os.path.isdir(conftest.managed.name) and os.path.isdir(conftest.made)
""",
    )
    outcome = run.offload("--offload-start-method=fork")
    assert (outcome.exit_code, outcome.counts) == (0, {"passed": 2}), outcome.text
    assert not logged(run)
    # By the controller and the template, and not again by each fork.
    assert (run.path / "buffered").read_text() == "once\n" * 2
