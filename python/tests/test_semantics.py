"""pytest stays pytest: each project gives with `--offload` what it gives without."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import START, Runner

OUTCOMES = """
def test_passes(): pass
def test_fails(): assert [1, 2] == [1, 3]
@pytest.mark.skip(reason="not today")
def test_skipped(): pass
def test_skips_itself(): pytest.skip("now")
@pytest.mark.xfail
def test_xfails(): assert 0
@pytest.mark.xfail
def test_xpasses(): pass
@pytest.mark.xfail(strict=True)
def test_xpasses_strictly(): pass
@pytest.fixture
def broken_setup(): raise ValueError("setup")
@pytest.fixture
def broken_teardown():
    yield
    raise ValueError("teardown")
def test_error_in_setup(broken_setup): pass
def test_error_in_teardown(broken_teardown): pass
def test_fails_and_error_in_teardown(broken_teardown): assert 0
def test_raises_system_exit(): raise SystemExit(3)
def test_prints(): print("a line on stdout")
"""

MANY = "\n".join(f"def test_{i}(): pass" for i in range(12))

PARAMETRIZED = """
@pytest.mark.parametrize("x", ["a", "b::c", "d/e", "[f]", "[g", "ü", "", " ", "a-b"])
def test_x(x): pass
@pytest.mark.parametrize("y", [1, 1, 1])
def test_y(y): pass
@pytest.mark.slow
class TestClass:
    @pytest.mark.parametrize("z", ["x::y"])
    def test_z(self, z): pass
    def test_w(self): pass
"""


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("-rA",),
        ("-v",),
        ("-q",),
        ("-s",),
        ("--tb=short",),
        ("--tb=no",),
        ("--tb=line",),
        ("--tb=native",),
        ("--tb=long", "-l"),
        ("-x",),
        ("--maxfail=2",),
        ("--maxfail=3",),
        ("--durations=3",),
        ("--import-mode=importlib",),
        ("--import-mode=append",),
        ("-p", "no:cacheprovider"),
        ("-p", "no:terminal"),
        ("-p", "no:warnings"),
        ("-p", "no:faulthandler"),
        ("--capture=sys",),
        ("--capture=tee-sys",),
        ("--runxfail",),
        ("--no-header", "--no-summary"),
    ],
    ids=" ".join,
)
def test_outcomes(run: Runner, args: tuple[str, ...]) -> None:
    run.write(test_a=OUTCOMES, test_b=MANY, sub__test_c=OUTCOMES)
    run.same(*args)


@pytest.mark.parametrize(
    "args",
    [
        ("-k", "test_x and not ü"),
        ("-k", "TestClass or test_y"),
        ("-k", "nothing_like_this"),
        ("-m", "slow"),
        ("-m", "not slow"),
        ("test_a.py::test_x[b::c]",),
        ("test_a.py::test_x[d/e]", "test_a.py::test_x[[f]]"),
        ("test_a.py::test_x[[g]", "test_a.py::test_x[a-b]"),
        ("test_a.py::TestClass",),
        ("test_a.py::TestClass::test_z[x::y]", "test_b.py"),
        ("test_a.py::test_y",),
        ("test_a.py::test_x", "test_a.py::test_x"),
        ("test_a.py", "test_a.py"),
        ("--keep-duplicates", "test_a.py", "test_a.py"),
        (".", "test_b.py::test_1"),
        ("sub", "test_b.py::test_1"),
        ("sub/test_c.py", "test_b.py"),
        ("--deselect", "test_a.py::test_x", "--deselect", "test_b.py"),
        ("--ignore=sub",),
        ("--ignore-glob=*_b.py",),
        ("--rootdir=sub",),
        ("-c", "other.ini"),
        ("missing.py",),
        ("test_a.py::missing",),
        ("test_a.py::test_x[missing]",),
        ("--no-such-option",),
        ("-m", "("),
        ("--co", "-q"),
        ("empty",),
    ],
    ids=" ".join,
)
def test_selection(run: Runner, args: tuple[str, ...]) -> None:
    run.write(test_a=PARAMETRIZED, test_b=MANY, sub__test_c=PARAMETRIZED, sub__conftest="collect_ignore = ['x.py']")
    run.write(sub__x="raise ValueError")
    (run.path / "empty").mkdir()
    (run.path / "other.ini").write_text("[pytest]\npython_functions = test_y\n")
    (run.path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: slow\n")
    run.same(*args)


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("--continue-on-collection-errors",),
        ("-x",),
        ("--maxfail=1", "--continue-on-collection-errors"),
        ("-k", "1"),
    ],
    ids=" ".join,
)
def test_collection_errors(run: Runner, args: tuple[str, ...]) -> None:
    run.write(
        test_a=MANY,
        test_b="def test_before(): pass\nraise ValueError('while collecting')",
        test_c="pytest.skip('all of it', allow_module_level=True)",
        test_d="import no_such_module",
        test_e=MANY,
    )
    outcome = run.same(*args)
    assert ("test_b.py", "collection failed") in outcome.outcomes


def test_collection_error_in_the_only_file_with_x(run: Runner) -> None:
    run.write(test_a="raise ValueError('while collecting')")
    run.same("-x")


@pytest.mark.parametrize("name", ["conftest", "sub__conftest"])
def test_broken_conftest(run: Runner, name: str) -> None:
    run.write(sub__test_a=MANY, **{name: "import no_such_module"})
    plain, offload = run.plain(), run.offload()
    assert offload.comparable() == plain.comparable()
    assert "no_such_module" in offload.text + offload.errors


def test_fixtures_of_every_scope(run: Runner) -> None:
    run.write(
        conftest="""
@pytest.fixture(scope="session")
def per_session(tmp_path_factory): return tmp_path_factory.mktemp("session")
@pytest.fixture(scope="package")
def per_package(per_session): return per_session
""",
        pkg____init__="",
        pkg__test_a="""
@pytest.fixture(scope="module")
def per_module(per_package):
    yield per_package
    raise ValueError("module teardown")
@pytest.fixture(scope="class")
def per_class(per_module):
    yield
    raise ValueError("class teardown")
class TestA:
    def test_1(self, per_class): pass
    def test_2(self, per_class, tmp_path): assert tmp_path.is_dir()
def test_3(per_module): pass
""",
        pkg__test_b="""
@pytest.fixture(scope="module", params=[1, 2])
def param(request):
    yield request.param
@pytest.mark.parametrize("x", range(3))
def test_p(param, x): pass
def setup_module(m): m.value = 1
def test_setup(): assert value == 1
@pytest.fixture(scope="module")
def broken(): raise ValueError("for every test")
def test_b1(broken): pass
def test_b2(broken): pass
""",
    )
    run.workers = 1
    run.same()


def test_unittest_and_doctest(run: Runner) -> None:
    run.write(
        test_a="""
import unittest
class TestU(unittest.TestCase):
    @classmethod
    def setUpClass(cls): cls.ready = True
    def test_1(self): assert self.ready
    def test_2(self): self.skipTest("no")
    @unittest.expectedFailure
    def test_3(self): assert 0
    def test_4(self): self.fail("yes")
class TestBroken(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise ValueError
    def test_1(self): pass
""",
        module='''
def double(x):
    """
    >>> double(2)
    4
    >>> double(3)
    5
    """
    return 2 * x
''',
    )
    (run.path / "test_text.txt").write_text(">>> 1 + 1\n2\n")
    run.same("--doctest-modules", "--ignore=record.json")


@pytest.mark.skipif(not hasattr(pytest, "Subtests"), reason="needs pytest 9")
def test_subtests(run: Runner) -> None:
    run.write(
        test_a="""
def test_s(subtests):
    for i in range(4):
        with subtests.test(i=i):
            assert i % 2
def test_fine(subtests):
    with subtests.test("one"): pass
"""
    )
    outcome = run.same("-rA")
    assert "contains 2 failed subtests" in outcome.text


def test_capture_fixtures(run: Runner) -> None:
    run.write(
        test_a="""
import os, sys, logging, warnings
def test_capfd(capfd):
    os.write(1, b"raw"); print("x", file=sys.stderr)
    assert capfd.readouterr() == ("raw", "x\\n")
def test_capsys(capsys):
    print("x")
    assert capsys.readouterr().out == "x\\n"
def test_caplog(caplog):
    logging.getLogger().warning("careful")
    assert caplog.messages == ["careful"]
def test_recwarn(recwarn):
    warnings.warn("w")
    assert len(recwarn) == 1
def test_monkeypatch(monkeypatch):
    monkeypatch.setenv("X_Y", "1")
def test_stdin():
    with pytest.raises(OSError):
        input()
@pytest.mark.parametrize("i", range(8))
def test_shown(i):
    print("out", i); print("err", i, file=sys.stderr); os.write(1, b"raw %d" % i)
    assert 0
"""
    )
    outcome = run.same()
    for i in range(8):
        assert f"out {i}\nraw {i}" in outcome.text or f"raw {i}out {i}" in outcome.text, outcome.text
        assert f"err {i}\n" in outcome.text


def test_output_without_capture_reaches_the_terminal(run: Runner) -> None:
    run.write(test_a="def test_a(): print('straight ' + 'out')")
    assert "straight out" in run.offload("-s").text


def test_warnings(run: Runner) -> None:
    run.write(
        test_a="""
import warnings
warnings.warn("while collecting")
class Mine(UserWarning):
    def __init__(self, a, b): super().__init__(a); self.b = b
def test_a(): warnings.warn(Mine("in a test", object()))
def test_b(): warnings.warn("old", DeprecationWarning)
@pytest.mark.filterwarnings("error")
def test_c(): warnings.warn("an error")
""",
        test_b="import warnings\ndef test_a(): warnings.warn('elsewhere')",
        conftest="import warnings\nwarnings.warn('in conftest')",
    )
    plain, offload = run.plain(), run.offload()
    assert offload.comparable() == plain.comparable()
    assert offload.warnings == plain.warnings
    run.same("-W", "error")
    run.same("-W", "ignore")
    run.same("--disable-warnings")


def test_exit_codes_of_pytest_exit(run: Runner) -> None:
    run.write(test_a="def test_a(): pytest.exit('enough', 17)")
    outcome = run.same()
    assert outcome.exit_code == 17
    run.write(test_a="def test_a(): pytest.exit('enough')")
    assert run.same().exit_code == 2
    run.write(test_a="pytest.exit('at import', 9)")
    run.same()


@pytest.mark.parametrize(
    "hook", ["pytest_runtest_setup(item)", "pytest_runtest_protocol(item)", "pytest_collection_modifyitems(items)"]
)
def test_internal_error_in_a_hook(run: Runner, hook: str) -> None:
    run.write(test_a="def test_a(): pass", conftest=f"def {hook}: raise ValueError('in the hook')")
    outcome = run.same()
    assert "in the hook" in outcome.text + outcome.errors


def test_options_that_run_plainly_say_so(run: Runner) -> None:
    run.write(test_a="def test_a(): pass")
    for flag in ("--co", "--pdb", "--setup-show"):
        outcome = run.same(flag)
        assert "offload: not used, because of" in outcome.text
    for flag in ("--fixtures", "--markers", "--version", "--help"):
        assert run.offload(flag).exit_code == run.plain(flag).exit_code == 0


def test_what_is_missing_is_refused(run: Runner) -> None:
    run.write(test_a="def test_a(): pass")
    for flag in (
        "--offload-provider=kubernetes",
        "--offload-isolation=module",
        "--offload-dist=each",
        "--offload-retries=-1",
        "--offload-parallel=0",
        "--offload-timeout=soon",
    ):
        outcome = run.offload(flag)
        assert outcome.exit_code == 4, flag
        assert flag.partition("=")[0] in outcome.errors


def test_hooks_on_the_whole_list_are_given_the_whole_list(run: Runner) -> None:
    run.write(
        conftest="def pytest_collection_modifyitems(items): items.reverse(); del items[3:]",
        test_a=MANY,
        test_b=MANY,
    )
    outcome = run.same("-rA")
    assert "one process collects (conftest.py has pytest_collection_modifyitems)" in outcome.text
    assert "collection is shared out" in run.offload("--offload-collect=parallel").text


def test_nested_conftest_with_a_hook_on_the_whole_list(run: Runner) -> None:
    run.write(
        sub__conftest="def pytest_collection_modifyitems(items): items.reverse(); del items[3:]",
        sub__test_a=MANY,
        test_b=MANY,
    )
    assert "one process collects" in run.same("-rA").text


def test_conftests_plugins_and_packages(run: Runner) -> None:
    run.write(
        conftest="pytest_plugins = ['plugin_module']\ndef pytest_addoption(parser): parser.addoption('--mine')",
        plugin_module="@pytest.fixture\ndef from_plugin(): return 1",
        pkg____init__="",
        pkg__conftest="@pytest.fixture\ndef nested(): return 2",
        pkg__test_a="def test_a(from_plugin, nested, request): assert request.config.getoption('--mine') == 'x'",
        pkg__sub____init__="",
        pkg__sub__test_a="from ..test_a import test_a",
        test_b="def test_b(nested): pass",
    )
    run.same("--mine=x")
    run.same("--mine=x", "--pyargs", "pkg")
    run.same("--mine=x", "pkg/__init__.py")


def test_reports_go_to_junit(run: Runner) -> None:
    run.write(
        test_a="""
def test_a(record_property): record_property("key", (1, "x"))
def test_b(record_xml_attribute): record_xml_attribute("mine", 5)
def test_c(record_testsuite_property): record_testsuite_property("suite", "value")
def test_d(record_testsuite_property): record_testsuite_property("suite", "value")
@pytest.mark.xfail(reason="known")
def test_e(): print("x"); assert 0
""",
        test_b=OUTCOMES,
    )
    run.workers = 1

    def xml(outcome: object) -> list[str]:
        text = Path(run.path / "out.xml").read_text()
        text = text.replace("</testsuite></testsuites>", "")
        text = re.sub(r' (time|timestamp|hostname)="[^"]*"', "", text)
        return sorted(re.split(r"(?=<testcase )", text))

    args = ("--junitxml=out.xml", "-o", "junit_family=xunit1", "-o", "junit_logging=all")
    assert xml(run.plain(*args)) == xml(run.offload(*args))


def test_identity_of_workers(run: Runner) -> None:
    run.write(
        test_a="""
import os
@pytest.mark.parametrize("i", range(6))
def test_a(i, worker_id, testrun_uid, request, tmp_path_factory):
    config = request.config
    assert worker_id in ("gw0", "gw1")
    assert os.environ["PYTEST_XDIST_WORKER"] == worker_id == config.workerinput["workerid"]
    assert os.environ["PYTEST_XDIST_WORKER_COUNT"] == "2"
    assert config.workerinput["workercount"] == 2
    assert os.environ["PYTEST_XDIST_TESTRUNUID"] == testrun_uid == config.workerinput["testrunuid"]
    assert "--offload" in config.workerinput["mainargv"]
    assert tmp_path_factory.getbasetemp().name == "popen-" + worker_id
    assert config.pluginmanager.hasplugin("terminalreporter")
"""
    )
    assert run.offload("-v").counts == {"passed": 6}


def test_sandboxes_are_shown(run: Runner) -> None:
    run.write(test_a="def test_a(): pass")
    text = run.offload("-v").text
    assert re.search(r"\[gw\d\] \[100%\] PASSED test_a.py::test_a", text)
    assert "offload: 2 sandboxes of provider local" in text
    assert "offload: workers are forked, collection is shared out" in text


def test_keyboard_interrupt_in_a_test_fails_that_test_only(run: Runner) -> None:
    run.write(test_a="def test_a(): raise KeyboardInterrupt\n" + MANY)
    outcome = run.offload()
    assert outcome.counts == {"failed": 1, "passed": 12}
    assert ("test_a.py::test_a", "failed") in outcome.outcomes


CLASS_BY_HOOKS = """
current = None
def pytest_runtest_setup(item):
    global current
    if current is None:
        current = item.getparent(pytest.Class)
    assert item.getparent(pytest.Class) is current
def pytest_runtest_teardown(item, nextitem):
    global current
    if nextitem is None or nextitem.getparent(pytest.Class) is not current:
        current = None
def pytest_sessionfinish():
    assert current is None
"""


@pytest.mark.parametrize("how", [*START, "--offload-isolation=test"])
def test_a_hook_that_looks_at_the_next_test_sees_the_one_that_follows(run: Runner, how: str) -> None:
    tests = "    @pytest.mark.parametrize('i', range(4))\n    def test(self, i): pass\n"
    run.write(conftest=CLASS_BY_HOOKS, test_a="".join(f"class Test{name}:\n{tests}" for name in "ABC"))
    assert run.offload(how).comparable() == run.plain().comparable()


LOOKS = """
import gc, brings
def look():
    holders = gc.get_referrers(brings.thing)
    assert [type(holder) for holder in holders] == [dict] and holders[0] is vars(brings)
    assert any(thing is brings.thing for thing in gc.get_objects())
"""

# What Python finds here depends on its version; how many there are in plain pytest is written down.
LOOKS_IN_COROUTINE = """
import pathlib
async def count():
    class Thing: pass
    thing = Thing()
    return str(len(gc.get_referrers(thing)))
def test_coroutine():
    with pytest.raises(StopIteration) as stop:
        count().send(None)
    path = pathlib.Path("found")
    if not path.exists():
        path.write_text(stop.value.value)
    assert path.read_text() == stop.value.value
"""


@pytest.mark.parametrize("how", [*START, "--offload-isolation=test"])
def test_whoever_looks_for_objects_sees_those_from_before_a_fork(run: Runner, how: str) -> None:
    run.write(brings="class Thing: pass\nthing = Thing()")
    run.load("brings")
    run.write(
        conftest=LOOKS + "def pytest_sessionfinish():\n    look()\n    look()\n    assert not hasattr(gc, 'find')",
        test_a=LOOKS + LOOKS_IN_COROUTINE,
        test_b=LOOKS + "".join(f"def test_{i}(): look()\n" for i in range(3)),
    )
    plain = run.plain()
    assert plain.counts == {"passed": 4}, plain.text
    assert run.offload(how).comparable() == plain.comparable()
