"""`pytest --offload` beside plain pytest, pytest-xdist and pytest-forked.

All run from one environment with the wheel built for release, without what would slow down the others only: byte code
is cached, and nothing is unbuffered.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
import time

from cargo_suites import installed
from contest import ROOT, SLOTS, WORK, Contender, report, take_turns, write

VENV = WORK / "venv"
PYTHON = VENV / "bin" / "python"
# pytest-forked has not learned of pytest 9 yet, so that comparison runs on the last pytest that it knows.
FORKED_VENV = WORK / "venv-forked"
PACKAGES = ["pytest==9.2.0", "pytest-xdist==3.8.0", "numpy", "pandas", "scipy"]
FORKED_PACKAGES = ["pytest==8.4.2", "pytest-xdist==3.8.0", "pytest-forked==1.6.0"]

FILES, TESTS_PER_FILE = 200, 25
LONG_TESTS, LONG, SHORT_TESTS, SHORT = 8, 2.0, 192, 0.01


def compare_trivial(runs: int) -> bool:
    """5,000 tests that do next to nothing, in 200 files."""
    suite = trivial_suite()
    ours = offload("pytest --offload", suite)
    plain = pytest("pytest", suite)
    theirs = pytest(f"pytest -n{SLOTS} (xdist)", suite, f"-n{SLOTS}")
    contenders = [ours, plain, theirs, offload_0_10(suite)]
    take_turns(contenders, runs)
    targets = [(ours.name, plain.name, 0.60), (ours.name, theirs.name, 0.45)]
    return report("pytest: 5,000 trivial tests in 200 files", contenders, targets)


def compare_imports(runs: int) -> bool:
    """400 tests of 5 ms behind a conftest whose imports take 2 s."""
    suite = WORK / "pytest-imports"
    conftest = (
        "import time\n\nBEGUN = time.process_time()\n"
        "import numpy  # noqa: F401\nimport pandas  # noqa: F401\nimport scipy.stats  # noqa: F401\n\n"
        "# What is missing to two seconds, as the application's own modules would take it.\n"
        "while time.process_time() < BEGUN + 2.0:\n    sum(range(1000))\n"
    )
    body = "import time\n\n" + "".join(f"def test_{n}():\n    time.sleep(0.005)\n\n\n" for n in range(20))
    write_suite(suite, {"conftest.py": conftest, **{f"test_{n:02}.py": body for n in range(20)}})
    ours = offload("pytest --offload", suite)
    theirs = pytest(f"pytest -n{SLOTS} (xdist)", suite, f"-n{SLOTS}")
    take_turns([ours, theirs], max(3, runs // 2))
    title = "pytest: 400 tests of 5 ms, imports of 2 s"
    return report(title, [ours, theirs], [(ours.name, theirs.name, 0.60)])


def compare_skewed(runs: int) -> bool:
    """A few long tests among many short ones, durations known from the run before."""
    suite = WORK / "pytest-skewed"
    short = "".join(f"def test_{n}():\n    time.sleep({SHORT})\n\n\n" for n in range(SHORT_TESTS // 12))
    long = "".join(f"def test_{n}():\n    time.sleep({LONG})\n\n\n" for n in range(LONG_TESTS))
    files = {f"test_{n:02}.py": "import time\n\n\n" + short for n in range(12)}
    write_suite(suite, {**files, "test_integration.py": "import time\n\n\n" + long})
    ours = offload("pytest --offload", suite)
    theirs = pytest(f"pytest -n{SLOTS} (xdist)", suite, f"-n{SLOTS}")
    bound = Bound("lower bound: all sleeping, shared out evenly", (LONG_TESTS * LONG + SHORT_TESTS * SHORT) / SLOTS)
    old = offload_0_10(suite)
    take_turns([ours, theirs, old], max(3, runs // 2))
    targets = [(ours.name, bound.name, 1.10), (ours.name, theirs.name, 0.90)]
    title = f"pytest: {LONG_TESTS} tests of {LONG:g} s, {SHORT_TESTS} of {SHORT * 1000:g} ms, durations known"
    return report(title, [ours, bound, theirs, old], targets)


def compare_single(runs: int) -> bool:
    """One of the 5,000, selected by its node id."""
    suite = trivial_suite()
    nodeid = "tests3/test_103.py::test_07"
    ours = offload("pytest --offload NODEID", suite, nodeid)
    plain = pytest("pytest NODEID", suite, nodeid)
    take_turns([ours, plain], runs * 2)
    limit = 1 + 0.25 / plain.median
    return report(
        "pytest: one test by its node id (at most 0.25 s more)", [ours, plain], [(ours.name, plain.name, limit)]
    )


def compare_isolation(runs: int) -> bool:
    """Each of the 5,000 in a process of its own."""
    suite = trivial_suite()
    ours = offload("pytest --offload --offload-isolation=test", suite, "--offload-isolation=test")
    env = {"PYTHONPATH": str(ROOT / "bench"), "FORK_FLOOR_PROCESSES": str(SLOTS)}
    floor = pytest("floor: collect, then fork and wait", suite, "-p", "fork_floor", env=env)
    take_turns([ours, floor], max(3, runs // 2))
    met = report("pytest: a process per test, 5,000 trivial tests", [ours, floor], [(ours.name, floor.name, 1.5)])
    python = environment(FORKED_VENV, FORKED_PACKAGES)
    ours = offload("pytest --offload --offload-isolation=test", suite, "--offload-isolation=test", python=python)
    theirs = pytest(f"pytest --forked -n{SLOTS}", suite, "--forked", f"-n{SLOTS}", python=python)
    take_turns([ours, theirs], max(1, runs // 3), warmup=0)
    title = "pytest 8.4: a process per test, 5,000 trivial tests"
    return report(title, [ours, theirs], [(ours.name, theirs.name, 0.45)]) and met


def compare_first_test(runs: int) -> bool:
    """How long it takes until the first test runs, with many workers for few processors."""
    suite = trivial_suite("pytest-first-test", conftest=FIRST_TEST)
    contenders = [
        FirstTest("offload, 2 workers", offload("", suite, "--offload-parallel=2")),
        FirstTest("offload, 40 workers", offload("", suite, "--offload-parallel=40")),
        FirstTest("xdist, 2 workers", pytest("", suite, "-n2")),
        FirstTest("xdist, 40 workers", pytest("", suite, "-n40")),
    ]
    take_turns(contenders, max(3, runs // 2))
    title = "pytest: time to the first of 5,000 tests"
    return report(title, contenders, [("offload, 40 workers", "offload, 2 workers", 2.0)])


def compare_memory(_: int) -> bool:
    """The memory of eight workers and their controller, shared pages counted once."""
    suite = trivial_suite()
    ours = Memory("offload, 8 workers", offload("", suite, "--offload-parallel=8"))
    theirs = Memory("xdist, 8 workers", pytest("", suite, "-n8"))
    take_turns([ours, theirs], 3)
    title = "pytest: most memory in use during 5,000 tests with 8 workers (sum of proportional set sizes, in MB)"
    return report(title, [ours, theirs], [(ours.name, theirs.name, 0.5)])


# Whoever runs the first test says when that was. Left out by what is not being measured.
FIRST_TEST = """
import os, time

PATH = os.environ.get("FIRST_TEST")


def pytest_runtest_call(item):
    if PATH and not os.path.exists(PATH):
        try:
            fd = os.open(PATH, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return
        os.write(fd, str(time.time()).encode())
        os.close(fd)
"""


class Bound(Contender):
    """A time that nothing can beat, for the table."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(name, [], ROOT)
        self.times = [seconds]


class FirstTest(Contender):
    """Measures from the start of a command to its first test."""

    def __init__(self, name: str, of: Contender) -> None:
        super().__init__(name, of.command, of.cwd, of.env)

    def run(self, counted: bool) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory, "first")
            self.env["FIRST_TEST"] = str(path)
            begun = time.time()
            super().run(counted=False)
            if counted:
                self.times.append(float(path.read_text()) - begun)


class Memory(Contender):
    """Measures the most memory that a command and its processes use together."""

    def __init__(self, name: str, of: Contender) -> None:
        super().__init__(name, of.command, of.cwd, {**of.env, "OFFLOAD_BENCH_RUN": f"{name} {time.time()}"})

    def run(self, counted: bool) -> None:
        most = 0.0
        with subprocess.Popen(
            self.command, cwd=self.cwd, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        ) as process:
            while process.poll() is None:
                most = max(most, sum(self._sizes()))
                time.sleep(0.05)
        if process.returncode != 0:
            raise SystemExit(f"error: `{' '.join(self.command)}` exited with {process.returncode}")
        if counted:
            self.times.append(most)

    def _sizes(self) -> list[float]:
        mark = f"OFFLOAD_BENCH_RUN={self.env['OFFLOAD_BENCH_RUN']}\0".encode()
        sizes = []
        for directory in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if mark in (directory / "environ").read_bytes():
                    text = (directory / "smaps_rollup").read_text()
                    sizes.append(int(text.partition("\nPss:")[2].split()[0]) / 1024)
            except (OSError, IndexError):
                # It has ended meanwhile.
                continue
        return sizes


def offload(name: str, suite: pathlib.Path, *args: str, python: pathlib.Path | None = None) -> Contender:
    """`pytest --offload` as a contender."""
    return pytest(name, suite, "--offload", *args, python=python)


def pytest(
    name: str,
    suite: pathlib.Path,
    *args: str,
    env: dict[str, str] | None = None,
    python: pathlib.Path | None = None,
) -> Contender:
    """pytest as a contender."""
    python = python or environment(VENV, PACKAGES)
    return unhindered(Contender(name, [str(python), "-m", "pytest", "-q", *args], suite, env))


def unhindered(contender: Contender) -> Contender:
    """Without what may be set in this terminal and slows Python down."""
    for variable in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"):
        contender.env.pop(variable, None)
    return contender


def offload_0_10(suite: pathlib.Path) -> Contender:
    """The published system whose API this project implements, on local sandboxes (it starts pytest for each batch)."""
    program = installed("offload", version="0.10.0")
    python = environment(VENV, PACKAGES)
    write(
        suite / "offload-0.10.toml",
        f'[offload]\nmax_parallel = {SLOTS}\nsandbox_project_root = "{suite}"\n[provider]\ntype = "local"\n'
        f'[framework]\ntype = "pytest"\npaths = ["."]\ncommand = "{python} -m pytest"\n[groups.all]\nretry_count = 0\n'
        f'[report]\noutput_dir = "{suite / "offload-0.10"}"\n',
    )
    return unhindered(Contender("offload 0.10", [program, "-c", "offload-0.10.toml", "run"], suite))


def environment(path: pathlib.Path, packages: list[str]) -> pathlib.Path:
    """The Python of an environment with these packages and the wheel that `make bench` has built."""
    python = path / "bin" / "python"
    (wheel,) = (ROOT / "target" / "wheels" / "bench").glob("*.whl")
    installed = path / "wheel"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
    if not installed.exists() or installed.stat().st_mtime < wheel.stat().st_mtime:
        print(f"installing {', '.join(packages)} …", file=sys.stderr)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *packages], check=True)
        subprocess.run([*pip, "--force-reinstall", "--no-deps", str(wheel)], check=True)
        installed.touch()
    return python


def trivial_suite(name: str = "pytest-trivial", conftest: str = "") -> pathlib.Path:
    """Files with tests that do next to nothing."""
    suite = WORK / name
    body = "".join(f"def test_{n:02}():\n    assert {n} + 1 == {n + 1}\n\n\n" for n in range(TESTS_PER_FILE))
    files = {f"tests{n % 10}/test_{n:03}.py": body for n in range(FILES)}
    write_suite(suite, {"conftest.py": conftest, **files})
    return suite


def write_suite(suite: pathlib.Path, files: dict[str, str]) -> None:
    """Writes a suite with a configuration of its own, so that nothing above it counts."""
    for path, text in {"pytest.ini": "[pytest]\n", **files}.items():
        write(suite / path, text)
