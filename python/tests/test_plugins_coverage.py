"""pytest-cov measures with `--offload` what it measures without: every line, every branch, every context."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coverage
import pytest
from conftest import PATHS, Outcome, Runner
from sshd import SERVER, Sshd

LIBRARY = """
def sign(number):
    if number > 0:
        return "plus"
    elif number == 0:
        return "zero"
    return "minus"

def search(numbers):
    for number in numbers:
        if number == 3:
            break
    else:
        return False
    return True

def in_a_thread(result):
    result.append(sign(-1))

def in_teardown():
    return 1

def never():
    return 0
"""

PROJECT = {
    "conftest": """
import sys
sys.path.insert(0, "src")
@pytest.fixture(scope="session", autouse=True)
def library():
    import library
    yield
    library.in_teardown()
""",
    "tests__test_sign": """
import library
@pytest.mark.parametrize("number", [1, 2, 3])
def test_sign(number): assert library.sign(number) == "plus"
def test_fails(): assert library.sign(1) == "minus"
""",
    "tests__test_search": """
import threading
from library import in_a_thread, search
def test_found(): assert search([1, 2, 3])
def test_thread():
    result = []
    thread = threading.Thread(target=in_a_thread, args=(result,))
    thread.start(); thread.join()
    assert result == ["minus"]
@pytest.mark.skipif(True, reason="not here")
def test_skipped(): search([])
""",
    "tests__test_other": "def test_other(): pass",
}


@pytest.fixture(params=["fork", "spawn"])
def start(request: pytest.FixtureRequest) -> str:
    return f"--offload-start-method={request.param}"


@pytest.fixture(autouse=True)
def project(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COVERAGE_PROCESS_START", raising=False)
    run.load("pytest_cov.plugin")
    run.write(**PROJECT)
    (run.path / "src").mkdir()
    (run.path / "src" / "library.py").write_text(LIBRARY)


def measured(run: Runner) -> dict[str, Any]:
    """What is in the data file: lines or arcs, and contexts."""
    data = coverage.CoverageData(str(run.path / ".coverage"))
    data.read()
    return {
        path: (
            sorted(data.arcs(path) or []) if data.has_arcs() else sorted(data.lines(path) or []),
            {line: sorted(names) for line, names in data.contexts_by_lineno(path).items()},
        )
        for path in data.measured_files()
    }


def files(run: Runner) -> set[str]:
    return {path.name for path in run.path.iterdir() if "cov" in path.name}


def table(outcome: Outcome) -> str:
    """The report on the terminal, without the times."""
    found = re.search(r"=+ tests coverage =+\n(.*?)\n=", outcome.text + "\n=", re.DOTALL)
    assert found, outcome.text
    return found.group(1)


def both(run: Runner, start: str, *args: str) -> Iterator[Outcome]:
    """Runs it plainly and offloaded; whoever iterates looks at what each has left."""
    plain = run.plain(*args)
    yield plain
    for path in run.path.glob(".coverage*"):
        if path.name != ".coveragerc":
            path.unlink()
    offload = run.offload(start, *args)
    assert offload.comparable() == plain.comparable(), f"{plain.text}\n{offload.text}\n{offload.errors}"
    yield offload


@pytest.mark.parametrize(
    "args",
    [
        ("--cov=library",),
        ("--cov=library", "--cov-branch"),
        ("--cov=src", "--cov=tests", "--cov-branch", "-k", "sign or found"),
        ("--cov=.", "--cov-branch", "--cov-report=term-missing"),
        ("--cov=library", "--offload-collect=serial"),
        ("--cov=library", "-k", "nothing_like_this"),
    ],
    ids=" ".join,
)
def test_the_same_is_measured(run: Runner, start: str, args: tuple[str, ...]) -> None:
    seen = [(measured(run), files(run), table(outcome)) for outcome in both(run, start, *args)]
    plain, offload = seen
    assert plain[:2] == offload[:2]
    # Who measured is not known where nothing was run.
    heading = r"^_+ coverage.*_+\n"
    assert re.sub(heading, "", plain[2]) == re.sub(heading, "", offload[2])


@pytest.mark.skipif(not os.path.exists(SERVER), reason=f"needs {SERVER} (apt-get install openssh-server)")
def test_the_same_is_measured_on_a_host(
    run: Runner, start: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    sshd = Sshd(tmp_path_factory.mktemp("sshd"))
    (run.path / "offload.toml").write_text(
        f'[provider]\ntype = "ssh"\nhosts = [{sshd.item(2)}]\n'
        f'[framework]\ntype = "pytest"\ncommand = "{sys.executable} -m pytest"\n'
        # The plugin that records what the controller reports, and none but those that are asked for.
        f'env = {{ PYTEST_DISABLE_PLUGIN_AUTOLOAD = "1", PYTHONPATH = "{os.pathsep.join(PATHS)}" }}\n',
        encoding="utf-8",
    )
    # A home directory does not travel, and pytester makes the project one.
    monkeypatch.setenv("HOME", str(run.path.parent))
    monkeypatch.setenv("PATH", sshd.search_path)
    try:
        args = ("--cov=library", "--cov-branch", "--cov-report=term-missing")
        plain, offload = [(measured(run), table(outcome)) for outcome in both(run, start, *args)]
        assert [Path(path).name for path in plain[0]] == ["library.py"]
        assert plain == offload
        assert sshd.runs() == []
    finally:
        sshd.stop()


def test_contexts(run: Runner, start: str) -> None:
    # Without fixtures of wider scopes: those belong to whatever test comes first or last.
    run.write(conftest="import sys\nsys.path.insert(0, 'src')")
    plain, offload = [measured(run) for _ in both(run, start, "--cov=library", "--cov-context=test")]
    assert plain == offload
    ((_, contexts),) = plain.values()
    assert contexts[4] == [
        f"tests/test_sign.py::test_{name}|run" for name in ("fails", *(f"sign[{i}]" for i in (1, 2, 3)))
    ]


def test_a_file_that_is_collected_between_two_tests_belongs_to_none(run: Runner, start: str) -> None:
    run.workers = 1
    (run.path / "src" / "second.py").write_text("number = 2\n")
    run.write(
        conftest="import sys\nsys.path.insert(0, 'src')",
        tests__test_1="import os\ndef test_dies(): os._exit(1)",
        tests__test_2="def test_first_of_the_next_worker(): pass",
        tests__test_3="import second\ndef test_of_a_file_that_it_has_not_collected(): pass",
    )
    run.offload("--cov=src", "--cov-context=test", start)
    contexts = measured(run)[str(run.path / "src" / "second.py")][1]
    assert contexts == {1: [""]}


CONFIGURATIONS = {
    "pyproject.toml": '[tool.coverage.run]\nbranch = true\nsource = ["src"]\n'
    '[tool.coverage.report]\nexclude_also = ["def never"]\nshow_missing = true\nprecision = 2\n',
    ".coveragerc": "[run]\nparallel = true\nbranch = true\nsource = src\n",
    "setup.cfg": "[coverage:run]\nrelative_files = true\nsource = src\n[coverage:report]\nfail_under = 97\n",
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configuration_files(run: Runner, start: str, name: str) -> None:
    (run.path / name).write_text(CONFIGURATIONS[name])
    plain, offload = [(measured(run), files(run), table(outcome)) for outcome in both(run, start, "--cov")]
    assert plain == offload


def test_reports_in_files(run: Runner, start: str) -> None:
    seen = []
    args = ("--cov=library", "--cov-branch", "--cov-report=xml", "--cov-report=lcov")
    for _ in both(run, start, *args):
        xml = re.sub(r'timestamp="\d+"', "", (run.path / "coverage.xml").read_text())
        seen.append((xml, (run.path / "coverage.lcov").read_text(), files(run)))
    assert seen[0] == seen[1]


def test_append(run: Runner, start: str) -> None:
    seen = []
    for command in (run.plain, lambda *args: run.offload(start, *args)):
        (run.path / ".coverage").unlink(missing_ok=True)
        command("--cov=library", "-k", "test_found")
        first = measured(run)
        command("--cov=library", "-k", "test_sign", "--cov-append")
        seen.append((first, measured(run), files(run)))
        assert seen[-1][0] != seen[-1][1]
        command("--cov=library", "-k", "test_sign")
        seen[-1] = (*seen[-1], measured(run))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "args",
    [
        ("--cov=library", "--no-cov"),
        ("--no-cov", "--cov=library"),
        ("--cov=library", "--cov-fail-under=100", "--deselect=tests/test_sign.py::test_fails"),
        ("--cov=library", "--cov-fail-under=10", "--deselect=tests/test_sign.py::test_fails"),
        ("--cov=library", "--no-cov-on-fail"),
        ("--cov=library", "-x"),
        ("--cov=library", "--cov-report="),
        ("--cov=library", "tests/missing.py"),
    ],
    ids=" ".join,
)
def test_what_is_left_and_said(run: Runner, args: tuple[str, ...]) -> None:
    said = re.compile(r"^(?:WARNING|ERROR|FAIL|Required).*[Cc]overage.*", re.MULTILINE)
    seen = []
    for outcome in both(run, "--offload-start-method=fork", *args):
        seen.append((files(run), said.findall(outcome.text), "tests coverage" in outcome.text))
    assert seen[0] == seen[1]


def test_a_worker_that_dies_takes_little_with_it(run: Runner, start: str) -> None:
    run.workers = 1
    run.write(
        tests__test_crash="""
import os, time, library
def test_before(): library.search([])
def test_slow():
    # What was measured is written down once a second.
    time.sleep(1.1)
def test_crash(): os._exit(1)
def test_after(): library.sign(0)
"""
    )
    crash = "tests/test_crash.py::test_crash"
    run.plain("--cov=library", "--cov-branch", "--deselect", crash)
    plain = measured(run)
    (run.path / ".coverage").unlink()
    outcome = run.offload(start, "--cov=library", "--cov-branch")
    assert (crash, "failed") in outcome.outcomes
    assert measured(run) == plain
    assert files(run) == {".coverage"}


def test_xdist_is_not_needed_and_does_no_harm(run: Runner, start: str) -> None:
    run.load("pytest_cov.plugin", "xdist.plugin")
    (run.path / "pytest.ini").write_text("[pytest]\naddopts = -n2\n")
    run.plain("--cov=library", "--cov-branch", "-n0")
    plain = measured(run)
    outcome = run.offload(start, "--cov=library", "--cov-branch")
    assert measured(run) == plain
    assert "(-n 2)" in outcome.text


def test_measuring_as_a_subprocess_would(run: Runner, start: str) -> None:
    (run.path / ".coveragerc").write_text("[run]\npatch = subprocess\nsource = src\n")
    run.write(
        tests__test_process="""
import subprocess, sys
def test_process():
    subprocess.run([sys.executable, "-c", "import sys; sys.path[:0] = ['src']; import library; library.sign(0)"],
                   check=True)
"""
    )
    plain, offload = [(measured(run), files(run)) for _ in both(run, start, "--cov")]
    assert plain == offload
