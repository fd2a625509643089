"""`pytest --offload` in containers, against plain pytest here: a real Docker daemon and a real image."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest
from conftest import Outcome, Runner, plugins
from test_identity import TELL, UNSTABLE, check_that_what_passed_ran, write_unstable

IMAGE = os.environ.get("OFFLOAD_TEST_IMAGE", "")
pytestmark = pytest.mark.skipif(not IMAGE, reason="needs Docker; tests/with_docker.sh provides it (OFFLOAD_TEST_IMAGE)")


class Containers:
    """Runs the same project with plain pytest here and with `--offload` in containers."""

    def __init__(self, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = run
        self.path = run.path
        self._monkeypatch = monkeypatch
        self.configure("")
        # A home directory does not travel, and pytester makes the project one.
        monkeypatch.setenv("HOME", str(self.path.parent))
        # For the controllers of both; in containers there is nothing of ours.
        monkeypatch.setenv("PYTEST_PLUGINS", "recorder")

    def configure(self, more: str, image: str = IMAGE) -> None:
        text = f'[provider]\ntype = "docker"\nimage = "{image}"\n[framework]\ntype = "pytest"\n{more}'
        (self.path / "offload.toml").write_text(text, encoding="utf-8")

    def plain(self, *args: str) -> Outcome:
        return self.run._run(*args)

    def offload(self, *args: str) -> Outcome:
        outcome = self.run._run(*plugins(), "--offload", f"--offload-parallel={self.run.workers}", *args)
        # The daemon removes it when it has ended.
        wait_until("no container is left", lambda: self.left() == "")
        return outcome

    def same(self, *args: str) -> Outcome:
        plain, offload = self.plain(*args), self.offload(*args)
        assert offload.comparable() == plain.comparable(), f"{plain.text}\n{offload.text}\n{offload.errors}"
        return offload

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Starts a run that something will happen to."""
        command = [sys.executable, "-m", "pytest", *plugins(), "--offload", f"--offload-parallel={self.run.workers}"]
        return subprocess.Popen(
            [*command, *args],
            cwd=self.path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(os.environ, PYTHONUNBUFFERED="1"),
        )

    def ids(self) -> list[str]:
        return docker("ps", "--quiet", "--filter", f"label=offload.project={self.path.resolve()}").split()

    def left(self) -> str:
        return docker("ps", "--all", "--quiet", "--filter", f"label=offload.project={self.path.resolve()}")

    def with_file(self, name: str) -> list[str]:
        """The containers in which a test has made this file."""
        look = ("test", "-e", name)
        return [one for one in self.ids() if subprocess.run(["docker", "exec", one, *look]).returncode == 0]


def docker(*args: str) -> str:
    return subprocess.run(["docker", *args], check=True, text=True, capture_output=True).stdout.strip()


def wait_until(what: str, is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < until, f"waited in vain until {what}"
        time.sleep(0.05)


@pytest.fixture
def containers(run: Runner, monkeypatch: pytest.MonkeyPatch) -> Iterator[Containers]:
    containers = Containers(run, monkeypatch)
    yield containers
    labelled = ("--quiet", "--filter", f"label=offload.project={run.path.resolve()}")
    for image in docker("images", *labelled).split():
        subprocess.run(["docker", "rmi", "--force", image], capture_output=True)


SUITE = {
    "conftest": """
@pytest.fixture(scope="session")
def everywhere(request):
    yield "everywhere"

def pytest_addoption(parser):
    parser.addoption("--special", action="store_true")
""",
    "tests__conftest": """
@pytest.fixture
def below(everywhere):
    return everywhere + " below"
""",
    "tests__test_outcomes": """
import os, sys, warnings

def test_passes(): pass
def test_fails(): print("to stdout"); print("to stderr", file=sys.stderr); assert [1, 2] == [1, 3]
@pytest.mark.skip(reason="not now")
def test_skipped(): pass
@pytest.mark.xfail(reason="known")
def test_xfails(): assert 0
@pytest.mark.xfail(strict=True)
def test_xpasses(): pass
@pytest.mark.parametrize("value", ["a", "b::c", "d[e]", "\u00e4/\u00f6", 3])
def test_parameters(value): assert value != 3
def test_below(below): assert below == "everywhere below"
def test_capture(capsys): print("x"); assert capsys.readouterr().out == "x\\n"
def test_capfd(capfd): os.write(1, b"y"); assert capfd.readouterr().out == "y"
def test_tmp_path(tmp_path): (tmp_path / "f").write_text("x"); assert (tmp_path / "f").read_text() == "x"
def test_warns(): warnings.warn("careful")
def test_option(pytestconfig): assert not pytestconfig.getoption("special")
def test_paths(request): assert os.getcwd() == str(request.config.rootpath) and __file__.startswith(os.getcwd())

class TestClass:
    @pytest.fixture
    def broken(self): raise ValueError("in a fixture")
    @pytest.fixture
    def breaks_later(self):
        yield
        raise ValueError("in teardown")
    def test_error(self, broken): pass
    def test_teardown(self, breaks_later): pass
""",
    "tests__sub__test_more": "\n".join(f"def test_{number}(below): pass" for number in range(30)),
    "tests__sub__test_unittest": """
import unittest
class Old(unittest.TestCase):
    def setUp(self): self.value = 1
    def test_old(self): self.assertEqual(self.value, 1)
    @unittest.skip("old skip")
    def test_old_skip(self): pass
""",
}


def test_outcomes_are_those_of_plain_pytest(containers: Containers) -> None:
    containers.run.write(**SUITE)
    outcome = containers.same("-rA")
    assert "2 sandboxes of provider docker" in outcome.text
    # As in the repository, of which the tests are in a copy.
    assert "tests/test_outcomes.py:6: AssertionError" in outcome.text
    assert "to stdout" in outcome.text
    assert "test_warns" in outcome.text
    assert "careful" in outcome.text


def test_selections_are_those_of_plain_pytest(containers: Containers) -> None:
    containers.run.write(**SUITE)
    for selection in (
        ("-k", "below or test_1"),
        ("tests/test_outcomes.py::test_parameters[b::c]", "tests/sub/test_more.py::test_3"),
        (str(containers.path / "tests" / "sub"),),
        ("--deselect", "tests/test_outcomes.py", "tests"),
        ("-x", "tests/test_outcomes.py"),
        ("--maxfail=2", "tests/test_outcomes.py"),
        ("--special", "tests/test_outcomes.py"),
        ("tests/nowhere.py",),
        ("--offload-isolation=test", "tests/test_outcomes.py"),
        ("--offload-start-method=spawn", "tests/test_outcomes.py"),
        ("--offload-collect=serial",),
    ):
        ours = [argument for argument in selection if argument.startswith("--offload")]
        plain = containers.plain(*(argument for argument in selection if argument not in ours))
        offload = containers.offload(*selection)
        assert offload.comparable() == plain.comparable(), f"{selection}\n{plain.text}\n{offload.text}{offload.errors}"


def test_the_cache_decides_what_runs_there_too(containers: Containers) -> None:
    containers.run.write(**SUITE)
    containers.offload()
    last_failed = containers.offload("--lf")
    assert last_failed.counts.get("passed", 0) <= 1, last_failed.text
    assert last_failed.counts["failed"] == 3, last_failed.text
    first = containers.offload("--ff", "-x", "--offload-parallel=1")
    assert first.counts["failed"] == 1, first.text
    assert "passed" not in first.counts, first.text


def test_junit_files_are_those_of_plain_pytest(containers: Containers) -> None:
    containers.run.write(**SUITE)

    def cases(path: Path) -> list[tuple[str, str, list[str]]]:
        found = ElementTree.parse(path).iter("testcase")
        return sorted((case.get("classname", ""), case.get("name", ""), [part.tag for part in case]) for case in found)

    containers.plain("--junitxml=plain.xml")
    containers.offload("--junitxml=offload.xml", "--offload-junit=ours.xml")
    assert cases(containers.path / "offload.xml") == cases(containers.path / "plain.xml")
    assert len(cases(containers.path / "ours.xml")) == len(cases(containers.path / "plain.xml"))


@pytest.mark.parametrize("mode", ["", "--offload-isolation=test"])
@pytest.mark.parametrize("kind", UNSTABLE)
def test_what_is_reported_has_run_where_collections_differ(containers: Containers, kind: str, mode: str) -> None:
    write_unstable(containers.run, kind)
    outcome = containers.offload(*TELL, *([mode] if mode else []))
    assert outcome.exit_code == 0, outcome.text
    assert check_that_what_passed_ran(containers.run, outcome) >= 30


def test_a_container_that_alone_has_a_files_tests_takes_them_with_it(containers: Containers) -> None:
    # The first container is the one that collected: it goes with its first test.
    write_unstable(containers.run, "random ids")
    test = containers.path / "test_unstable.py"
    test.write_text(test.read_text().replace("def ran(name):", "def ran(name):\n    os.kill(-1, 9)"))
    outcome = containers.offload(*TELL)
    assert outcome.exit_code != 0, outcome.text
    assert check_that_what_passed_ran(containers.run, outcome) == 0


def test_a_crash_is_named_and_costs_one_test(containers: Containers) -> None:
    containers.run.write(
        tests__test_crash="""
import os, signal
def test_before(): pass
def test_exits(): os._exit(3)
def test_between(): pass
def test_segfaults():
    import ctypes
    ctypes.string_at(0)
def test_after(): pass
""",
        tests__test_others="\n".join(f"def test_{number}(): pass" for number in range(20)),
    )
    outcome = containers.offload()
    assert outcome.counts == {"failed": 2, "passed": 23}, outcome.text
    assert re.search(r"CRASHED tests/test_crash.py::test_exits on gw\d: .*exit code 3", outcome.text), outcome.text
    assert re.search(r"CRASHED tests/test_crash.py::test_segfaults on gw\d: .*SIGSEGV", outcome.text), outcome.text
    assert "Fatal Python error: Segmentation fault" in outcome.text


def test_a_test_that_runs_out_of_time_shows_its_stack(containers: Containers) -> None:
    containers.run.write(
        test_slow="""
import time
def test_waits_for_ever():
    time.sleep(1000)
def test_other(): pass
"""
    )
    outcome = containers.offload("--offload-timeout=2")
    assert outcome.counts == {"failed": 1, "passed": 1}, outcome.text
    assert "in test_waits_for_ever" in outcome.text


def test_a_killed_container_costs_nothing(containers: Containers) -> None:
    containers.run.write(
        **{
            f"test_{number}": """
import os, time, pathlib
@pytest.mark.parametrize("n", range(10))
def test(n):
    pathlib.Path("/begun").touch()
    while not os.path.exists("/go"): time.sleep(0.01)
"""
            for number in range(4)
        }
    )
    run = containers.start("-v")
    wait_until("tests run in two containers", lambda: len(containers.with_file("/begun")) == 2)
    docker("kill", containers.with_file("/begun")[0])

    def is_over() -> bool:
        # The one that takes its place waits, too.
        for one in containers.ids():
            subprocess.run(["docker", "exec", one, "touch", "/go"], capture_output=True)
        return run.poll() is not None

    wait_until("the others have run all tests", is_over)
    text, _ = run.communicate()
    assert run.returncode == 0, text
    assert "40 passed" in text
    assert "LOST" in text
    assert "killed from outside" in text
    assert containers.left() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_however_a_run_ends_no_container_stays(containers: Containers, number: signal.Signals) -> None:
    containers.run.write(
        test_long="""
import pathlib, time
def test_first(): pass
@pytest.mark.parametrize("n", range(4))
def test_long(n):
    pathlib.Path("/begun").touch()
    time.sleep(1000)
"""
    )
    run = containers.start()
    wait_until("tests run in two containers", lambda: len(containers.with_file("/begun")) == 2)
    run.send_signal(number)
    text, _ = run.communicate(timeout=60)
    assert run.returncode == (2 if number == signal.SIGINT else -number), text
    wait_until("no container is left", lambda: containers.left() == "")


def test_images_that_lack_something_are_named(containers: Containers) -> None:
    containers.run.write(test_any="def test(): pass")
    (containers.path / "bare").mkdir()
    for what, removed in (
        ("no Python", "rm -f /usr/bin/python3*"),
        ("no pytest", "rm -rf /usr/lib/python3/dist-packages/pytest /usr/lib/python3/dist-packages/_pytest"),
    ):
        image = f"offload-test:without-{what.split()[1].lower()}"
        docker("run", "--name", "offload-lacking", IMAGE, "/bin/sh", "-c", removed)
        docker("commit", "offload-lacking", image)
        docker("rm", "offload-lacking")
        try:
            containers.configure("", image)
            outcome = containers.offload()
        finally:
            docker("rmi", "--force", image)
        assert outcome.exit_code == pytest.ExitCode.INTERNAL_ERROR, outcome.text
        said = outcome.text + outcome.errors
        assert what in said, said
        assert image in said, said
        assert "sandbox_init_cmd" in said, said


def test_an_image_that_is_not_there_is_an_error(containers: Containers) -> None:
    containers.run.write(test_any="def test(): pass")
    containers.configure("", "offload-test:nonexistent")
    outcome = containers.offload()
    assert outcome.exit_code == pytest.ExitCode.INTERNAL_ERROR, outcome.text
    assert "offload-test:nonexistent" in outcome.text + outcome.errors


def test_a_usage_error_and_a_broken_conftest_are_pytests_own(containers: Containers) -> None:
    containers.run.write(test_any="def test(): pass")
    (containers.path / "tests").mkdir()
    (containers.path / "conftest.py").write_text(
        "if open('/proc/1/comm').read() == 'sh\\n': raise ValueError('only there')\n", encoding="utf-8"
    )
    outcome = containers.offload()
    assert outcome.exit_code == pytest.ExitCode.USAGE_ERROR, outcome.text + outcome.errors
    assert "only there" in outcome.text + outcome.errors


def test_a_conftest_may_need_what_is_not_here(containers: Containers) -> None:
    containers.configure(
        '[offload]\nsandbox_init_cmd = "echo value = 7 >/usr/lib/python3/dist-packages/only_there.py"\n'
    )
    containers.run.write(
        conftest="import only_there\n@pytest.fixture\ndef value(): return only_there.value",
        test_value="import only_there\ndef test(value): assert value == 7",
    )
    outcome = containers.offload()
    assert outcome.counts == {"passed": 1}, outcome.text + outcome.errors
    assert "conftest.py is not loaded here (No module named 'only_there')" in outcome.text


def test_the_repository_may_be_elsewhere_in_the_image(containers: Containers) -> None:
    containers.run.write(**SUITE)
    containers.configure('[offload]\nsandbox_repo_root = "/app"\n')
    plain = containers.plain("-rA")
    outcome = containers.offload("-rA")
    assert outcome.comparable() == plain.comparable(), f"{plain.text}\n{outcome.text}\n{outcome.errors}"
    assert "tests/test_outcomes.py:6: AssertionError" in outcome.text
    one = containers.offload(str(containers.path / "tests" / "sub" / "test_more.py"))
    assert one.counts == {"passed": 30}, one.text + one.errors


def test_files_that_tests_leave_come_back(containers: Containers) -> None:
    containers.run.write(test_leaves="import pathlib\ndef test(): pathlib.Path('left.txt').write_text('from there')")
    containers.configure('[report]\noutput_dir = "out"\ndownload_globs = ["*.txt"]\n')
    outcome = containers.offload()
    assert outcome.counts == {"passed": 1}, outcome.text
    (brought,) = containers.path.glob("out/artifacts/*/left.txt")
    assert brought.read_text(encoding="utf-8") == "from there"
    assert not (containers.path / "left.txt").exists()


def test_what_is_not_captured_is_shown(containers: Containers) -> None:
    containers.run.write(test_talks="def test():\n    print('to the terminal')")
    assert "to the terminal" in containers.offload("-s").text
