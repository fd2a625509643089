"""Third-party plugins give with `--offload` what they give without it."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from conftest import MANY, START, Outcome, Runner


def same(run: Runner, *args: str, start: str = START[0]) -> tuple[Outcome, Outcome]:
    """Asserts that both have the same outcomes; returns what the plain run gave, and what the offloaded one did."""
    plain = run.plain(*args)
    offload = run.offload(start, *args)
    assert offload.comparable() == plain.comparable(), f"{plain.text}\n{offload.text}\n{offload.errors}"
    return plain, offload


# -- pytest-rerunfailures

FLAKY = """
import random
counts = {}
def attempt(name):
    counts[name] = counts.get(name, 0) + 1
    return counts[name]
@pytest.mark.flaky(reruns=3)
def test_third_time(): assert attempt("third") == 3
@pytest.mark.flaky(reruns=1, only_rerun="ValueError")
def test_not_this_error(): assert 0
def test_always(): assert 0
@pytest.fixture(scope="module")
def late():
    if attempt("late") < 2: raise ValueError("not yet")
    yield attempt("late")
def test_with_fixture(late): assert late == 3
@pytest.fixture
def broken_teardown():
    yield
    if attempt("teardown") < 2: raise ValueError("once")
def test_teardown(broken_teardown): pass
"""


@pytest.mark.parametrize("xdist", [(), ("xdist.plugin",)], ids=["alone", "beside xdist"])
@pytest.mark.parametrize(
    "args",
    [
        ("-W", "error::pytest.PytestUnraisableExceptionWarning"),
        ("--reruns=2",),
        ("--reruns=1", "-x"),
        ("--reruns=3", "--fail-on-flaky"),
    ],
    ids=str,
)
def test_rerunfailures(run: Runner, xdist: tuple[str, ...], args: tuple[str, ...]) -> None:
    run.load("pytest_rerunfailures", *xdist)
    run.write(test_a=FLAKY, test_b=FLAKY, test_c=MANY)
    _, offload = same(run, *args)
    assert offload.counts["rerun"] > 0
    assert "workers are forked" in offload.text


def test_rerunfailures_in_fresh_workers(run: Runner) -> None:
    run.load("pytest_rerunfailures", "xdist.plugin")
    run.write(test_a=FLAKY, test_b=FLAKY)
    same(run, "--reruns=2", start=START[1])


# -- pytest-asyncio


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_asyncio(run: Runner, mode: str) -> None:
    run.load("pytest_asyncio.plugin")
    (run.path / "pytest.ini").write_text(
        f"[pytest]\nasyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function\n"
    )
    run.write(
        test_a="""
import asyncio, pytest_asyncio
loops = set()
@pytest_asyncio.fixture
async def value():
    await asyncio.sleep(0)
    yield 7
    await asyncio.sleep(0)
@pytest.mark.asyncio
async def test_value(value): assert value == 7
@pytest.mark.asyncio
async def test_fails(value):
    await asyncio.sleep(0.001)
    assert value == 8
async def test_without_mark(): pass
@pytest.mark.asyncio(loop_scope="module")
class TestOneLoop:
    async def test_1(self): loops.add(id(asyncio.get_running_loop()))
    async def test_2(self):
        loops.add(id(asyncio.get_running_loop()))
        assert len(loops) == 1
@pytest.mark.asyncio
@pytest.mark.parametrize("i", range(3))
async def test_gather(i): assert await asyncio.gather(asyncio.sleep(0, i)) == [i]
@pytest.mark.asyncio
async def test_times_out(): await asyncio.wait_for(asyncio.sleep(60), 0.01)
""",
        test_b=MANY,
    )
    # The module's tests stay in one process, where they can see that the loop is the same.
    run.workers = 1
    _, offload = same(run)
    assert "collection is shared out" in offload.text


# -- pytest-mock


def test_mock(run: Runner) -> None:
    run.load("pytest_mock")
    run.write(
        test_a="""
import os
def test_patch(mocker):
    mocker.patch("os.getcwd", return_value="nowhere")
    assert os.getcwd() == "nowhere"
def test_unpatched(): assert os.getcwd() != "nowhere"
def test_fails(mocker):
    stub = mocker.stub(name="stub")
    stub(1, two=2)
    stub.assert_called_once_with(1, two=3)
@pytest.fixture(scope="module")
def wide(module_mocker): return module_mocker.patch("os.getpid", return_value=1)
def test_wide(wide): assert os.getpid() == 1
""",
        test_b="import os\ndef test_unpatched(): assert os.getpid() > 1",
    )
    plain, offload = same(run)
    assert "Actual: stub(1, two=2)" in offload.text
    assert offload.text.count("pytest introspection follows") == plain.text.count("pytest introspection follows")


# -- pytest-timeout


@pytest.mark.parametrize("args", [("--timeout=1",), ("--timeout=1", "-o", "timeout_func_only=true")], ids=str)
def test_timeout(run: Runner, args: tuple[str, ...]) -> None:
    run.load("pytest_timeout")
    run.write(
        test_a="""
import time
def test_sleeps(): time.sleep(60)
def test_loops():
    while True: pass
@pytest.mark.timeout(60)
def test_may_take_longer(): time.sleep(1.1)
""",
        test_b=MANY,
    )
    plain, offload = same(run, *args)
    assert offload.text.count("E  ") == plain.text.count("E  ") == 2


def test_timeout_that_ends_the_process_costs_one_test(run: Runner) -> None:
    run.load("pytest_timeout")
    run.write(test_a="import time\ndef test_sleeps(): time.sleep(60)\n" + MANY)
    outcome = run.offload("--timeout=1", "--timeout-method=thread")
    assert outcome.counts == {"failed": 1, "passed": 6}
    assert re.search(r"in test_sleeps\n.*\n\++ Timeout \++", outcome.text)


# -- pytest-randomly

DRAWS = """
import random
@pytest.mark.parametrize("i", range(4))
def test_draw(i, request, pytestconfig):
    line = f"{request.node.nodeid} {random.random()} {pytestconfig.getoption('randomly_seed')}"
    with open("draws", "a") as file: file.write(line + "\\n")
class TestClass:
    def test_1(self): pass
    def test_2(self): assert random.random() < 0.5
"""


def draws(run: Runner) -> list[str]:
    path = run.path / "draws"
    text = path.read_text()
    path.unlink()
    return sorted(text.splitlines())


@pytest.mark.parametrize("start", START)
@pytest.mark.parametrize("xdist", [(), ("xdist.plugin",)], ids=["alone", "beside xdist"])
def test_randomly(run: Runner, start: str, xdist: tuple[str, ...]) -> None:
    run.load("pytest_randomly", *xdist)
    run.write(test_a=DRAWS, test_b=DRAWS, test_c=MANY)
    seen = []
    for command in (run.plain, lambda *args: run.offload(start, *args)):
        args = ("-p", "no:cacheprovider", "--randomly-seed=5")
        outcomes, drawn = command(*args).comparable(), draws(run)
        # What is run before the first failure depends on the order of all tests.
        seen.append((outcomes, drawn, command(*args, "-x").comparable()))
        draws(run)
    assert seen[0] == seen[1]


def test_randomly_has_one_seed(run: Runner) -> None:
    run.load("pytest_randomly")
    run.write(test_a=DRAWS, test_b=DRAWS)
    found = re.search(r"--randomly-seed=(\d+)", run.offload().text)
    assert found
    assert {line.split()[-1] for line in draws(run)} == {found.group(1)}
    run.offload("--randomly-seed=last")
    assert {line.split()[-1] for line in draws(run)} == {found.group(1)}


# -- pytest-django

SETTINGS = """
SECRET_KEY = "x"
INSTALLED_APPS = ["app"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db", "TEST": {"NAME": "test-db"}}}
"""


@pytest.mark.parametrize("start", START)
def test_django(run: Runner, start: str) -> None:
    run.load("pytest_django.plugin")
    (run.path / "pytest.ini").write_text("[pytest]\nDJANGO_SETTINGS_MODULE = settings\npythonpath = .\n")
    run.write(
        settings=SETTINGS,
        app____init__="",
        app__models="from django.db.models import CharField, Model\nclass Thing(Model): name = CharField(max_length=9)",
    )
    body = """
from app.models import Thing
from django.db import connection
from django.test import TestCase
def note(request):
    suffix = getattr(request.config, "workerinput", {}).get("workerid")
    assert connection.settings_dict["NAME"].endswith("test-db" + (f"_{suffix}" if suffix else ""))
@pytest.mark.django_db
@pytest.mark.parametrize("i", range(4))
def test_alone(i, request):
    note(request)
    assert Thing.objects.count() == 0
    for _ in range(20): Thing.objects.create(name="x")
    assert Thing.objects.count() == 20
@pytest.mark.django_db(transaction=True)
def test_committed(request):
    note(request)
    Thing.objects.create(name="y")
    assert Thing.objects.count() == 1
def test_forbidden(): Thing.objects.count()
class TestThings(TestCase):
    @classmethod
    def setUpTestData(cls): Thing.objects.create(name="z")
    def test_1(self): assert Thing.objects.count() == 1
    def test_2(self): Thing.objects.create(name="w"); assert Thing.objects.count() == 2
def test_client(client, settings):
    settings.ROOT_URLCONF = "urls"
    assert client.get("/").content == b"hello"
"""
    run.write(
        urls="from django.http import HttpResponse\nfrom django.urls import path\n"
        "urlpatterns = [path('', lambda request: HttpResponse('hello'))]",
        test_a=body,
        test_b=body,
    )
    same(run, start=start)
    assert not list(run.path.glob("*test-db*")), "the databases are removed at the end"


# -- pytest-html


def cells(run: Runner) -> dict[str, list[object]]:
    """What the page shows of each test."""
    page = (run.path / "report.html").read_text()
    found = re.search(r'data-jsonblob="([^"]*)"', page)
    assert found
    tests = json.loads(html.unescape(found.group(1)))["tests"]

    def log(text: str) -> str:
        # Pages show the worker, as with xdist.
        return re.sub(r"\[gw\d\].*|0x[0-9a-f]+|No log output captured.", "", text).strip()

    return {
        name: [(entry["result"], log(entry["log"]), entry["extras"]) for entry in entries]
        for name, entries in tests.items()
    }


def test_html(run: Runner) -> None:
    run.load("pytest_html.plugin", "pytest_html.fixtures", "pytest_metadata.plugin")
    run.write(
        conftest="""
def pytest_html_results_table_row(report, cells): cells.insert(1, f"<td>{report.nodeid.upper()}</td>")
def pytest_html_results_table_header(cells): cells.insert(1, "<th>Shouted</th>")
def pytest_html_report_title(report): report.title = "ours"
""",
        test_a="""
import pytest_html
def test_extra(extras):
    extras.append(pytest_html.extras.text("some text"))
    extras.append(pytest_html.extras.json({"a": [1, (2, 3)]}))
def test_prints(): print("printed")
def test_fails():
    print("before it fails")
    assert [1] == [2]
@pytest.mark.xfail
def test_xfails(): assert 0
@pytest.fixture
def broken(): raise ValueError
def test_error(broken): pass
@pytest.mark.skip
def test_skipped(): pass
""",
        test_b=MANY,
    )
    args = ("--html=report.html", "--self-contained-html")
    plain = run.plain(*args)
    expected = cells(run)
    (run.path / "report.html").unlink()
    assert run.offload(*args).comparable() == plain.comparable()
    assert cells(run) == expected
    assert len(expected) == 12


# -- hypothesis


@pytest.mark.parametrize("start", START)
def test_hypothesis(run: Runner, start: str) -> None:
    run.load("_hypothesis_pytestplugin")
    run.write(
        test_a="""
from hypothesis import given, settings, strategies as st, target, note
@given(st.integers())
def test_holds(x): assert x + 0 == x
@given(st.lists(st.integers()))
def test_fails(xs):
    note(f"of {len(xs)}")
    assert sum(xs) < 100
@given(st.text())
@settings(max_examples=20, print_blob=True)
def test_text(s): assert s == s
class TestClass:
    @given(st.data())
    def test_data(self, data): assert data.draw(st.booleans()) in (True, False)
@given(st.integers())
@pytest.mark.parametrize("i", range(3))
def test_both(i, x): pass
""",
        test_b=MANY,
    )
    plain, offload = same(
        run, "--hypothesis-seed=7", "--hypothesis-show-statistics", "-p", "no:cacheprovider", start=start
    )
    found = re.compile(r"^E  .*$", re.MULTILINE)
    assert found.findall(offload.text) == found.findall(plain.text) != []
    # Statistics are of each test; their times differ.
    heads = re.compile(r"^test_\w+\.py::.*:$", re.MULTILINE)
    assert sorted(heads.findall(offload.text)) == sorted(heads.findall(plain.text)) != []
    same(run, "-m", "hypothesis", start=start)


@pytest.mark.parametrize("start", START)
def test_hypothesis_finds_who_holds_a_random_generator(run: Runner, start: str) -> None:
    # A library that a plugin imports, like trio, makes itself known once Hypothesis is imported.
    run.write(brings="import random\ngenerator = random.Random()")
    run.load("_hypothesis_pytestplugin", "brings")
    run.write(
        test_a=f"from hypothesis import register_random\nimport brings\nregister_random(brings.generator)\n{MANY}",
        test_b=MANY,
    )
    same(run, "-W", "error", start=start)


# -- all of them


@pytest.mark.parametrize("start", START)
def test_all_at_once(run: Runner, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", raising=False)
    run.write(
        settings=SETTINGS.replace('"app"', ""),
        test_a=FLAKY,
        test_b="""
import asyncio
from hypothesis import given, strategies as st
@pytest.mark.asyncio
async def test_async(): await asyncio.sleep(0)
@given(st.integers())
def test_property(x): assert x < 1000
@pytest.mark.timeout(1)
def test_slow():
    # The second attempt has no limit, with Offload or without.
    import time
    time.sleep(1.5)
@pytest.mark.django_db
def test_database(mocker):
    from django.db import connection
    with connection.cursor() as cursor: assert cursor.execute("select 1").fetchone() == (1,)
""",
        test_c=MANY,
    )
    (run.path / "pytest.ini").write_text("[pytest]\nDJANGO_SETTINGS_MODULE = settings\npythonpath = .\n")
    args = ("--reruns=1", "--cov=.", "--html=report.html", "--randomly-seed=11", "--junitxml=out.xml", "-n0")
    # Which has a mark of the same name as pytest-rerunfailures.
    args += ("-p", "no:pytest-retry")
    plain = run.plain(*args)
    totals = re.findall(r"^test_.*%$", plain.text, re.MULTILINE)
    offload = run.offload(*args, start)
    assert offload.comparable() == plain.comparable(), f"{plain.text}\n{offload.text}\n{offload.errors}"
    assert re.findall(r"^test_.*%$", offload.text, re.MULTILINE) == totals != []
    for name in ("report.html", "out.xml", ".coverage"):
        assert Path(run.path / name).exists()


# -- anyio


def test_anyio(run: Runner) -> None:
    run.load("anyio.pytest_plugin")
    run.write(
        # A mark that comes after collection: anyio then puts other items into the finished list.
        conftest="def pytest_itemcollected(item):\n    if 'late' in item.name: item.add_marker('anyio')",
        test_a="""
@pytest.fixture(params=["asyncio", pytest.param(("asyncio", {"debug": True}), id="debug")])
def anyio_backend(request): return request.param
@pytest.mark.anyio
async def test_value(anyio_backend_name): assert anyio_backend_name == "asyncio"
@pytest.mark.anyio
async def test_fails(): assert 0
def test_plain(): pass
async def test_late(): pass
""",
        test_b=f"async def test_late(): pass\n{MANY}",
        test_c=MANY,
    )
    _, offload = same(run)
    assert "collection is shared out" in offload.text
    assert any("test_late[asyncio]" in str(outcome) for outcome in offload.outcomes)


# -- pytest-sugar


def test_sugar(run: Runner) -> None:
    run.load("pytest_sugar")
    run.write(test_a=MANY, test_b=f"{MANY}\ndef test_fails(): assert 0")
    _, offload = same(run, "--force-sugar")
    assert "collection is shared out" in offload.text
    assert "100%" in offload.text


# -- pytest-benchmark


@pytest.mark.parametrize("start", START)
def test_benchmark(run: Runner, start: str) -> None:
    run.load("pytest_benchmark.plugin")
    run.write(test_a=f"def test_add(benchmark): assert benchmark(lambda: 1 + 1) == 2\n{MANY}", test_b=MANY)
    # Which does without measurements in workers, as under xdist.
    plain, offload = same(run, "--benchmark-disable", start=start)
    assert offload.warnings == plain.warnings
    outcome = run.offload(start)
    assert outcome.counts["passed"] == 13
    assert "collection is shared out" in outcome.text


@pytest.mark.parametrize("start", START)
def test_benchmarks_that_are_disabled_are_said_to_be(run: Runner, start: str) -> None:
    run.load("pytest_benchmark.plugin")
    run.write(test_a=MANY, test_b=MANY, test_c="def test_add(benchmark): assert benchmark(lambda: 1 + 1) == 2")
    outcome = run.offload(start)
    # Newer versions say it once, and on standard error; older ones among the warnings.
    assert f"{outcome.errors}{outcome.text}".count("Benchmarks are automatically disabled") >= 1
    assert outcome.errors.count("Benchmarks are automatically disabled") <= 1
    outcome = run.offload(start, "--benchmark-only")
    assert outcome.exit_code == 4
    assert "Can't have both --benchmark-only and --benchmark-disable" in outcome.errors


def test_a_plugin_that_reads_and_reads_again_costs_no_second_collection(run: Runner) -> None:
    run.load("pytest_benchmark.plugin")
    # What needs the whole list has one process collect.
    conftest = "def pytest_collection_modifyitems(items): open('collections', 'a').write('1')"
    run.write(conftest=conftest, test_a=MANY, test_b=MANY)
    outcome = run.offload()
    assert outcome.counts["passed"] == 12
    assert "workers are forked, one process collects" in outcome.text
    assert (run.path / "collections").read_text() == "1"


# -- plugins that start threads when they are imported

THREADS = {
    # OpenBLAS's end at a fork and come again.
    "numpy": "import numpy\nnumpy.dot(numpy.ones((300, 300)), numpy.ones((300, 300)))",
    "lasting": "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
}


@pytest.mark.parametrize("what", THREADS)
def test_the_template_is_forked_where_only_threads_that_end_at_a_fork_were_started(run: Runner, what: str) -> None:
    run.write(brings=f"open('imports', 'a').write('1')\n{THREADS[what]}", test_a=MANY)
    run.load("brings")
    outcome = run.offload()
    assert outcome.counts == {"passed": 6}, outcome.text
    # A template that was not forked imports plugins once more, and workers that were not forked as well.
    imports = len((run.path / "imports").read_text())
    assert imports == 1 if what == "numpy" else imports > 1
