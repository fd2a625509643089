"""The pytest plugin by which Offload lists tests and runs exactly those that it names.

It is written next to nothing else into a directory of its own, loaded by `-p`, and removes itself and every trace of
how it came (environment, import path, directory) when it is imported: tests see the process that they would see
without it.

What it learns it writes as JSON lines, each in one write, so that a process that dies leaves whole lines. Tests are
known by node id and by their number among those with the same node id, not by what a report calls them.

OFFLOAD_PYTEST_MODE: "list" or "run"; OFFLOAD_PYTEST_OUT: the file to append to; the tests to run, one JSON object a
line, are in the file "tests" beside this one.
"""

import json
import os
import shutil
import sys

import pytest

FORMAT = 1
LONGEST_OUTPUT = 256 * 1024  # characters kept of each stream of a test, half from either end


def _begin():
    here = os.path.dirname(os.path.abspath(__file__))
    mode = os.environ.pop("OFFLOAD_PYTEST_MODE")
    out = os.open(
        os.environ.pop("OFFLOAD_PYTEST_OUT"),
        os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0),
        0o644,
    )
    wanted = {}
    if mode == "run":
        with open(os.path.join(here, "tests"), encoding="utf-8") as file:
            for line in file:
                test = json.loads(line)
                wanted[test["id"], test["nth"]] = test["key"]
    path = os.environ.pop("OFFLOAD_PYTEST_PYTHONPATH", None)
    if path is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = path
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    shutil.rmtree(here, ignore_errors=True)
    return mode, out, wanted


_mode, _out, _wanted = _begin()
_pid = os.getpid()
_keys = {}  # id(item) -> key
_reports = []  # of the test that is running


def _write(record):
    # A test may fork and let the child come back here.
    if os.getpid() == _pid:
        os.write(_out, (json.dumps(record) + "\n").encode("ascii"))


def _text(value):
    """As text that every reader of JSON takes: without lone surrogates."""
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def _numbered(items):
    """Items with their node id and their number among those of the same node id."""
    seen = {}
    for item in items:
        nodeid = _text(item.nodeid)
        nth = seen.get(nodeid, 0)
        seen[nodeid] = nth + 1
        yield item, nodeid, nth


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    values = {"numprocesses": None, "dist": "no", "tx": [], "distload": False}
    if _mode == "run":
        # What to run and when to stop is decided elsewhere.
        values.update(
            maxfail=0,
            lf=False,
            last_failed=False,
            failedfirst=False,
            newfirst=False,
            stepwise=False,
            stepwise_skip=False,
            continue_on_collection_errors=True,
        )
    for name, value in values.items():
        if hasattr(config.option, name):
            setattr(config.option, name, value)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session):
    config = session.config
    here = str(config.invocation_params.dir)
    ini = getattr(config, "inipath", None) or getattr(config, "inifile", None)
    _write(
        {
            "offload": FORMAT,
            "rootdir": _text(os.path.relpath(str(getattr(config, "rootpath", None) or config.rootdir), here)),
            "inifile": _text(os.path.relpath(str(ini), here)) if ini else None,
        }
    )


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config, items):
    yield  # all others first
    if _mode != "run":
        return
    missing = dict(_wanted)
    kept = []
    for item, nodeid, nth in _numbered(items):
        key = missing.pop((nodeid, nth), None)
        if key is not None:
            _keys[id(item)] = key
            kept.append(item)
    items[:] = kept
    for key in missing.values():
        _write({"missing": key})


def pytest_collection_finish(session):
    if _mode != "list":
        return
    here = str(session.config.invocation_params.dir)
    for item, nodeid, nth in _numbered(session.items):
        path = str(getattr(item, "path", None) or item.fspath)
        _write({"id": nodeid, "nth": nth, "file": _text(os.path.relpath(path, here))})


def pytest_collectreport(report):
    if report.failed:
        _write({"collect_error": _text(report.nodeid), "text": _cut(_text(report.longreprtext))[0]})


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    key = _keys.get(id(item))
    if key is None:
        yield
        return
    _reports[:] = []
    _write({"started": key})
    outcome = yield
    if outcome.excinfo is not None and issubclass(outcome.excinfo[0], (KeyboardInterrupt, SystemExit, pytest.exit.Exception)):
        message = "the test ended the whole session: %s" % _first_line(repr(outcome.excinfo[1]))
        _write({"finished": key, "outcome": "error", "duration": 0, "message": _text(message)})
    elif outcome.excinfo is None:
        _write(dict(_result(_reports), finished=key))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report):
    # Plugins that run a test again begin at its set-up.
    if report.when == "setup":
        _reports[:] = []
    _reports.append(report)


def _first_line(text):
    for line in str(text).splitlines():
        if line.strip():
            return line.strip()[:500]
    return ""


def _message(report):
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return _first_line(crash.message)
    if isinstance(report.longrepr, tuple):  # of a skip: file, line, reason
        return _first_line(report.longrepr[2])
    lines = [line for line in report.longreprtext.splitlines() if line.strip()]
    return _first_line(lines[-1]) if lines else ""


def _cut(text):
    """The beginning and the end of a long text, and how many bytes are missing between them."""
    if len(text) <= LONGEST_OUTPUT:
        return text, 0
    half = LONGEST_OUTPUT // 2
    dropped = len(text[half:-half].encode("utf-8", "replace"))
    return "%s\n[... %d bytes dropped ...]\n%s" % (text[:half], dropped, text[-half:]), dropped


def _result(reports):
    failed = [report for report in reports if report.failed]
    result = {"outcome": "passed", "duration": sum(getattr(report, "duration", 0) for report in reports)}
    # Reports of subtests have a context; how the test as a whole ended is in the others.
    whole = [report for report in reports if not hasattr(report, "context")]
    skipped = [report for report in whole if report.skipped]
    if not reports:
        result.update(outcome="error", message="pytest reported nothing about the test")
    elif failed:
        called = any(report.when == "call" for report in failed)
        result["outcome"] = "failed" if called else "error"
        prefix = "" if called else "%s: " % {"setup": "set-up", "teardown": "tear-down"}.get(failed[0].when, failed[0].when)
        result["message"] = _text(prefix + _message(failed[0]))
        result["details"] = _cut(_text("\n\n".join(report.longreprtext for report in failed)))[0]
    elif skipped:
        reason = getattr(skipped[0], "wasxfail", None)
        if reason is None:
            reason = _message(skipped[0])
            reason = reason[len("Skipped: ") :] if reason.startswith("Skipped: ") else reason
        else:
            reason = reason.replace("reason: ", "", 1)
            reason = "expected failure: " + reason if reason else "expected failure"
        result.update(outcome="skipped", message=_text(reason))
    else:
        unexpected = [report.wasxfail for report in whole if hasattr(report, "wasxfail")]
        if unexpected:
            result["message"] = _text("passed, though expected to fail" + (": " + unexpected[0] if unexpected[0] else ""))
    streams = {"stdout": [], "stderr": []}
    # Sections accumulate: the last report has those of all phases.
    for name, content in whole[-1].sections if whole else []:
        if name.startswith("Captured stdout"):
            streams["stdout"].append(content)
        elif name.startswith("Captured stderr"):
            streams["stderr"].append(content)
        else:
            streams["stderr"].append("---- %s ----\n%s\n" % (name, content))
    for name, contents in streams.items():
        text, dropped = _cut(_text("".join(contents)))
        if text:
            result[name] = {"text": text, "dropped_bytes": dropped}
    return result
