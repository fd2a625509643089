"""Random pytest projects as lists of pieces, and the files that pieces make. A piece can be left out."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Union

SCOPES = ["function", "class", "module", "package", "session"]

# What every test module begins with. A test writes its node id when it really runs, in one write. Plain pytest would
# end with a test that crashes, and never end with one that hangs, so that it is told that the test fails.
PRELUDE = """
import os, signal, sys, time, unittest, uuid, warnings
import pytest

def log(value=""):
    name = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
    file = os.open(os.environ["ORACLE_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, (ascii(name) + "\\t" + str(value) + "\\n").encode())
    os.close(file)

def crash(how):
    if "ORACLE_PLAIN" in os.environ:
        pytest.fail("it crashes here")
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)

def hang(how):
    if "ORACLE_PLAIN" in os.environ:
        pytest.fail("it hangs here")
    if how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = time.monotonic() + 600
    while time.monotonic() < end:
        if how != "busy":
            time.sleep(600)

def say():
    name = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
    print("<<" + ascii(name) + ">>")
    print("<<" + ascii(name) + ">>", file=sys.stderr)

def flaky():
    # Plain pytest does not try again.
    name = os.environ["ORACLE_LOG"] + "-" + uuid.uuid5(uuid.NAMESPACE_URL, os.environ["PYTEST_CURRENT_TEST"]).hex
    if "ORACLE_PLAIN" not in os.environ and not os.path.exists(name):
        open(name, "w").close()
        pytest.fail("the first time only")
"""

# What plugins see of a run: what reaches the process that the user started.
RECORDER = """
import json, os, re

def record(*entry):
    if active:
        with open(os.environ["ORACLE_REPORTS"], "a") as file:
            file.write(json.dumps(entry) + "\\n")

def pytest_configure(config):
    global active
    active = not hasattr(config, "workerinput")

def pytest_runtest_logstart(nodeid):
    record("start", nodeid)

def pytest_runtest_logfinish(nodeid):
    record("finish", nodeid)

def pytest_collectreport(report):
    if report.failed:
        record("collect", report.nodeid)

def pytest_deselected(items):
    record("deselected", len(items))

def pytest_runtest_logreport(report):
    when = "subtest" if hasattr(report, "context") else report.when
    text = "".join(text for name, text in report.sections if name.startswith("Captured"))
    spoken = sorted(re.findall("<<(.*)>>", text))
    record("report", report.nodeid, when, report.outcome, hasattr(report, "wasxfail"), spoken)
"""

ACTIONS = {
    "pass": "pass",
    "slow": "time.sleep(0.05)",
    "fail": "assert 0, 'on purpose'",
    "exit": "pytest.exit('enough', returncode=9)",
    "exit-code": "raise SystemExit(0)",
    "skip": "pytest.skip('on purpose')",
    "warn": "warnings.warn('on purpose')",
    "say": "say()",
    "say-fail": "say(); assert 0, 'on purpose'",
    "flaky": "flaky()",
    "leave-variable": "os.environ['ORACLE_LEFT'] = '1'",
    "leave-directory": "os.chdir('/')",
    "crash-exit": "crash('exit')",
    "crash-signal": "crash('signal')",
    "hang-asleep": "hang('asleep')",
    "hang-busy": "hang('busy')",
    "hang-stubborn": "hang('stubborn')",
}
# What a teardown can do that makes no difference to how the test fares.
HARMLESS = ("pass", "slow", "warn", "say")

# Within the methods of unittest's classes.
METHODS = {
    "pass": "pass",
    "fail": "self.fail('on purpose')",
    "error": "raise RuntimeError('on purpose')",
    "skip": "self.skipTest('on purpose')",
    "say-fail": "say(); self.fail('on purpose')",
    "subtests": "\n".join(
        [
            "for number in range(4):",
            "    with self.subTest(number=number):",
            "        self.assertNotEqual(number % 3, 1)",
        ]
    ),
}

HOOKS = {
    "reverse": "def pytest_collection_modifyitems(items): items.reverse()",
    "shuffle": """
def pytest_collection_modifyitems(items):
    import random
    random.Random(len(items)).shuffle(items)
""",
    "deselect": """
def pytest_collection_modifyitems(config, items):
    gone = items[1::3]
    if gone:
        items[:] = [item for item in items if item not in gone]
        config.hook.pytest_deselected(items=gone)
""",
    "status": """
def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput"):
        session.exitstatus = 7
""",
}
# Those that see the tests of one file at a time where collection is shared out by force.
WHOLE_LIST = {"reverse", "shuffle", "deselect"}

PARAMETERS = {
    "": "",
    "stable": "@pytest.mark.parametrize('value', [1, 'two', 3.5])",
    "classes": "@pytest.mark.parametrize('value', {type('C%d' % i, (), {}) for i in range(6)})",
    "uuid": "@pytest.mark.parametrize('value', [str(uuid.uuid4()) for _ in range(3)])",
    "empty": "@pytest.mark.parametrize('value', [])",
    "process": "@pytest.mark.parametrize('value', range(1 + os.getpid() % 3))",
    "variable": "@pytest.mark.parametrize('value', range(3 if 'ORACLE_LEFT' in os.environ else 2))",
}

MARKS = {
    "skip": "@pytest.mark.skip(reason='on purpose')",
    "skipif": "@pytest.mark.skipif(True, reason='on purpose')",
    "xfail": "@pytest.mark.xfail",
    "strict": "@pytest.mark.xfail(strict=True)",
    "raises": "@pytest.mark.xfail(raises=ZeroDivisionError)",
    "not-run": "@pytest.mark.xfail(run=False)",
    "error": "@pytest.mark.filterwarnings('error')",
    "group": "@pytest.mark.xdist_group('one')",
}
# Those of tests that are to fail.
EXPECTING = {"xfail", "strict", "raises", "not-run"}


@dataclass(frozen=True)
class Fixture:
    file: str
    name: str
    scope: str
    setup: str
    teardown: str
    autouse: bool
    # A fixture that it uses.
    uses: str = ""
    parameters: bool = False

    def render(self, fixtures: set[str]) -> str:
        options = f"scope={self.scope!r}, autouse={self.autouse}"
        if self.parameters:
            options += ", params=['one', 'two']"
        argument = self.uses if self.uses in fixtures else ""
        return (
            f"@pytest.fixture({options})\n"
            f"def {self.name}({argument}):\n    {ACTIONS[self.setup]}\n    yield\n    {ACTIONS[self.teardown]}\n"
        )


@dataclass(frozen=True)
class Test:
    file: str
    name: str
    action: str
    fixtures: tuple[str, ...]
    parameters: str
    marks: tuple[str, ...]
    # The name of the class that it shares with those before it.
    group: str = ""
    # The name of the test before it that has to have run in the same process.
    after: str = ""

    def render(self, fixtures: set[str], edited: bool) -> str:
        used = [name for name in self.fixtures if name in fixtures]
        lines = [MARKS[mark] for mark in self.marks]
        if self.parameters:
            lines.append(PARAMETERS[self.parameters])
        if used:
            lines.append(f"@pytest.mark.usefixtures({', '.join(map(repr, used))})")
        arguments = (["self"] if self.group else []) + (["value"] if self.parameters else [])
        lines.append(f"def {self.name}({', '.join(arguments)}):")
        lines.append("    log(getattr(value, '__name__', value))" if self.parameters else "    log()")
        lines.append(f"    ran.add({self.name!r})")
        if self.after:
            lines.append(f"    assert {self.after!r} in ran")
        lines.append(f"    {ACTIONS['pass' if edited else self.action]}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Case:
    """A class of unittest."""

    file: str
    name: str
    # Names and what they do.
    methods: tuple[tuple[str, str], ...]
    setup: str
    teardown: str
    class_setup: str
    class_teardown: str

    def render(self) -> str:
        lines = [f"class {self.name}(unittest.TestCase):"]
        for name, action in (("setUpClass", self.class_setup), ("tearDownClass", self.class_teardown)):
            lines += ["    @classmethod", f"    def {name}(cls):", f"        {ACTIONS[action]}"]
        for name, action in (("setUp", self.setup), ("tearDown", self.teardown)):
            lines += [f"    def {name}(self):", f"        {ACTIONS[action]}"]
        for name, action in self.methods:
            expected = ["    @unittest.expectedFailure"] if name.endswith("_expected") else []
            lines += [*expected, f"    def {name}(self):", "        log()"]
            lines.append(textwrap.indent(METHODS[action], "        "))
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Hook:
    name: str


@dataclass(frozen=True)
class Broken:
    """A file that cannot be imported."""

    file: str
    goes_on: bool


@dataclass(frozen=True)
class Reader:
    """A file that opens another by a relative name when it is imported."""

    file: str


@dataclass(frozen=True)
class Package:
    """A directory with an `__init__.py`."""

    directory: str


@dataclass(frozen=True)
class Typed:
    """Arguments of each run."""

    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Again:
    """Another run, with arguments of its own."""

    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Edit:
    """A test that is mended before the second run."""

    file: str
    name: str


Piece = Union[Fixture, Test, Case, Hook, Broken, Reader, Package, Typed, Again, Edit]


@dataclass(frozen=True)
class Project:
    pieces: tuple[Piece, ...]

    def tests(self) -> list[Test]:
        return [piece for piece in self.pieces if isinstance(piece, Test)]

    def cases(self) -> list[Case]:
        return [piece for piece in self.pieces if isinstance(piece, Case)]

    def fixtures(self) -> list[Fixture]:
        return [piece for piece in self.pieces if isinstance(piece, Fixture)]

    def hooks(self) -> set[str]:
        return {piece.name for piece in self.pieces if isinstance(piece, Hook)}

    def typed(self) -> list[str]:
        """The arguments of each run."""
        typed = [argument for piece in self.pieces if isinstance(piece, Typed) for argument in piece.arguments]
        if any(isinstance(piece, Broken) and piece.goes_on for piece in self.pieces):
            typed.append("--continue-on-collection-errors")
        return typed

    def runs(self) -> list[list[str]]:
        """The arguments of one run after the other."""
        typed = self.typed()
        return [typed, *([*typed, *piece.arguments] for piece in self.pieces if isinstance(piece, Again))]

    def actions(self) -> set[str]:
        """What is done anywhere in the project."""
        return {test.action for test in self.tests()} | {
            action for fixture in self.fixtures() for action in (fixture.setup, fixture.teardown)
        }

    def crashes(self) -> bool:
        """Whether a process ends, or is ended, in the middle of something."""
        return self.hangs() or any(action.startswith("crash") for action in self.actions())

    def wide_crashes(self) -> bool:
        """Whether a process ends when it tears down what several tests have set up."""
        return any(f.teardown.startswith("crash") and f.scope != "function" for f in self.fixtures())

    def hangs(self) -> bool:
        return any(action.startswith("hang") for action in self.actions())

    def exits(self) -> bool:
        return "exit" in self.actions()

    def flaky(self) -> bool:
        return "flaky" in self.actions()

    def ordered(self) -> bool:
        return any(test.after for test in self.tests())

    def unstable(self) -> bool:
        """Whether names of tests are others in each collection."""
        return any(test.parameters in ("uuid", "process") for test in self.tests())

    def counts_differ(self) -> bool:
        """Whether there are more tests in one collection than in another."""
        return any(test.parameters == "process" for test in self.tests())

    def options(self) -> set[str]:
        """The options of all runs."""
        return {argument.partition("=")[0] for run in self.runs() for argument in run}

    def stops(self) -> bool:
        """Whether a failure can end a run."""
        return bool(self.options() & {"-x", "--maxfail", "--sw"})

    def looks_back(self) -> bool:
        """Whether tests are chosen by what became of them before."""
        return bool(self.options() & {"--lf", "--ff", "--nf", "--sw"})

    def interleaves(self) -> bool:
        """Whether tests of one file run between those of another: how often scopes end depends on who runs what."""
        return "shuffle" in self.hooks() or bool(self.options() & {"--ff", "--nf"})

    def expects_failures(self) -> bool:
        """Whether a mark makes a teardown that fails an expected failure."""
        return any(EXPECTING & set(test.marks) for test in self.tests())

    def wide_teardowns(self) -> bool:
        """Whether how often a teardown fails depends on which worker ran what."""
        return any(f.teardown not in HARMLESS and f.scope != "function" for f in self.fixtures()) or any(
            case.class_teardown not in HARMLESS for case in self.cases()
        )

    def wide_words(self) -> bool:
        """Whether how often something is said or warned of depends on which worker ran what."""
        return any(f.scope != "function" and {"warn", "say"} & {f.setup, f.teardown} for f in self.fixtures())

    def without(self, pieces: tuple[Piece, ...]) -> Project:
        return Project(tuple(other for other in self.pieces if not any(other is piece for piece in pieces)))

    def files(self, edited: bool) -> dict[str, str]:
        """The text of each file, by its name. `edited`: as it is from the second run on."""
        edits = {(piece.file, piece.name) for piece in self.pieces if isinstance(piece, Edit) and edited}
        names = {piece.file for piece in self.pieces if isinstance(piece, (Fixture, Test, Case, Broken, Reader))}
        texts = {}
        for name in sorted(names | {"conftest.py"}):
            is_conftest = name.endswith("conftest.py")
            parts = [PRELUDE] if is_conftest else [PRELUDE, "ran = set()\n"]
            group = ""
            visible = {f.name for f in self.fixtures() if f.file in visible_from(name)}
            for piece in self.pieces:
                if isinstance(piece, Hook):
                    parts += [HOOKS[piece.name]] if name == "conftest.py" else []
                elif isinstance(piece, (Package, Typed, Again, Edit)) or piece.file != name:
                    continue
                elif isinstance(piece, Fixture):
                    parts.append(piece.render(visible))
                elif isinstance(piece, Case):
                    parts.append(piece.render())
                    group = ""
                elif isinstance(piece, Broken):
                    parts.append("import no_such_module_anywhere\n")
                elif isinstance(piece, Reader):
                    parts.append("open('pytest.ini').close()\n")
                else:
                    text = piece.render(visible, (piece.file, piece.name) in edits)
                    if piece.group and piece.group != group:
                        parts.append(f"class {piece.group}:")
                    group = piece.group
                    parts.append(textwrap.indent(text, "    ") if group else text)
            texts[name] = "\n".join(parts)
        for piece in self.pieces:
            if isinstance(piece, Package):
                texts[f"{piece.directory}/__init__.py"] = ""
        texts["pytest.ini"] = "[pytest]\n"
        return texts

    def write(self, directory: Path, edited: bool) -> None:
        for name, text in self.files(edited).items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_text() != text:
                path.write_text(text)


def visible_from(file: str) -> tuple[str, ...]:
    """The files whose fixtures a file sees."""
    directory, slash, _ = file.rpartition("/")
    return (file, f"{directory}{slash}conftest.py", "conftest.py")
