"""Random pytest projects: a seed makes a list of pieces, and pieces make files. A piece can be left out."""

from __future__ import annotations

import random
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Union

SCOPES = ["function", "class", "module", "package", "session"]

# What every test module begins with. A test writes its node id when it really runs, in one write. Plain pytest would
# end with a test that crashes, so that it is told that the test fails.
PRELUDE = """
import os, signal, time, uuid
import pytest

def log(request, value=""):
    file = os.open(os.environ["ORACLE_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, (ascii(request.node.nodeid) + "\\t" + str(value) + "\\n").encode())
    os.close(file)

def crash(how):
    if "ORACLE_PLAIN" in os.environ:
        pytest.fail("it crashes here")
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
"""

# What plugins see of a run: the reports that reach the process that the user started.
RECORDER = """
import json, os

def pytest_configure(config):
    global active
    active = not hasattr(config, "workerinput")

def pytest_runtest_logreport(report):
    if active:
        entry = [report.nodeid, report.when, report.outcome, hasattr(report, "wasxfail")]
        with open(os.environ["ORACLE_REPORTS"], "a") as file:
            file.write(json.dumps(entry) + "\\n")
"""

ACTIONS = {
    "pass": "pass",
    "slow": "time.sleep(0.05)",
    "fail": "assert 0, 'on purpose'",
    "exit": "pytest.exit('enough', returncode=9)",
    "exit-code": "raise SystemExit(0)",
    "skip": "pytest.skip('on purpose')",
    "crash-exit": "crash('exit')",
    "crash-signal": "crash('signal')",
}

HOOKS = {
    "reverse": "def pytest_collection_modifyitems(items): items.reverse()",
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

PARAMETERS = {
    "": "",
    "stable": "@pytest.mark.parametrize('value', [1, 'two', 3.5])",
    "classes": "@pytest.mark.parametrize('value', {type('C%d' % i, (), {}) for i in range(6)})",
    "uuid": "@pytest.mark.parametrize('value', [str(uuid.uuid4()) for _ in range(3)])",
    "empty": "@pytest.mark.parametrize('value', [])",
}

MARKS = {
    "skip": "@pytest.mark.skip(reason='on purpose')",
    "skipif": "@pytest.mark.skipif(True, reason='on purpose')",
    "xfail": "@pytest.mark.xfail",
    "strict": "@pytest.mark.xfail(strict=True)",
    "not-run": "@pytest.mark.xfail(run=False)",
}


@dataclass(frozen=True)
class Fixture:
    file: str
    name: str
    scope: str
    setup: str
    teardown: str
    autouse: bool

    def render(self) -> str:
        return (
            f"@pytest.fixture(scope={self.scope!r}, autouse={self.autouse})\n"
            f"def {self.name}():\n    {ACTIONS[self.setup]}\n    yield\n    {ACTIONS[self.teardown]}\n"
        )


@dataclass(frozen=True)
class Test:
    file: str
    name: str
    action: str
    fixtures: tuple[str, ...]
    parameters: str
    marks: tuple[str, ...]
    in_class: bool
    # The name of the test before it that has to have run in the same process.
    after: str = ""

    def render(self, fixtures: set[str]) -> str:
        used = [name for name in self.fixtures if name in fixtures]
        lines = [MARKS[mark] for mark in self.marks]
        if self.parameters:
            lines.append(PARAMETERS[self.parameters])
        if used:
            lines.append(f"@pytest.mark.usefixtures({', '.join(map(repr, used))})")
        arguments = ["self"] if self.in_class else []
        arguments += ["request", *(["value"] if self.parameters else [])]
        lines.append(f"def {self.name}({', '.join(arguments)}):")
        lines.append("    log(request, getattr(value, '__name__', value))" if self.parameters else "    log(request)")
        lines.append(f"    ran.add({self.name!r})")
        if self.after:
            lines.append(f"    assert {self.after!r} in ran")
        lines.append(f"    {ACTIONS[self.action]}")
        text = "\n".join(lines) + "\n"
        return f"class Test_{self.name}:\n{textwrap.indent(text, '    ')}" if self.in_class else text


@dataclass(frozen=True)
class Hook:
    name: str


@dataclass(frozen=True)
class Broken:
    """A file that cannot be imported."""

    file: str
    goes_on: bool


Piece = Union[Fixture, Test, Hook, Broken]

# Faults of the product that are known, by feature: left out unless `--pending` is given. Remove what is mended.
PENDING = {
    # A process that ends in the teardown of a wide fixture.
    "crash-in-wide-teardown",
}


@dataclass(frozen=True)
class Project:
    pieces: tuple[Piece, ...]

    def tests(self) -> list[Test]:
        return [piece for piece in self.pieces if isinstance(piece, Test)]

    def fixtures(self) -> list[Fixture]:
        return [piece for piece in self.pieces if isinstance(piece, Fixture)]

    def broken(self) -> list[Broken]:
        return [piece for piece in self.pieces if isinstance(piece, Broken)]

    def hooks(self) -> set[str]:
        return {piece.name for piece in self.pieces if isinstance(piece, Hook)}

    def actions(self) -> set[str]:
        """What is done anywhere in the project."""
        return {test.action for test in self.tests()} | {
            action for fixture in self.fixtures() for action in (fixture.setup, fixture.teardown)
        }

    def crashes(self) -> bool:
        return any(action.startswith("crash") for action in self.actions())

    def exits(self) -> bool:
        return "exit" in self.actions()

    def ordered(self) -> bool:
        return any(test.after for test in self.tests())

    def wide_teardowns(self) -> bool:
        """Whether how often a teardown fails depends on which worker ran what."""
        return any(f.teardown not in ("pass", "slow") and f.scope != "function" for f in self.fixtures())

    def without(self, piece: Piece) -> Project:
        return Project(tuple(other for other in self.pieces if other is not piece))

    def files(self) -> dict[str, str]:
        """The text of each file, by its name."""
        names = {piece.file for piece in self.pieces if not isinstance(piece, Hook)}
        texts = {}
        for name in sorted(names | {"conftest.py"}):
            parts = [PRELUDE] if name == "conftest.py" else [PRELUDE, "ran = set()\n"]
            for piece in self.pieces:
                if isinstance(piece, Hook):
                    parts += [HOOKS[piece.name]] if name == "conftest.py" else []
                elif piece.file != name:
                    continue
                elif isinstance(piece, Fixture):
                    parts.append(piece.render())
                elif isinstance(piece, Broken):
                    parts.append("import no_such_module_anywhere\n")
                else:
                    visible = {f.name for f in self.fixtures() if f.file in (name, "conftest.py")}
                    parts.append(piece.render(visible))
            texts[name] = "\n".join(parts)
        texts["pytest.ini"] = "[pytest]\n"
        return texts

    def write(self, directory: Path) -> None:
        for name, text in self.files().items():
            (directory / name).write_text(text)


def generate(seed: int, pending: bool) -> Project:
    """The project of a seed. One fault or few, in a project that is otherwise plain: so it is seen what causes what."""
    rng = random.Random(seed)
    pieces: list[Piece] = []
    # A theme decides what may happen, as much of it excludes what else could be compared.
    theme = rng.choice(["plain", "plain", "crash", "exit", "order", "unstable", "broken"])
    test_actions = ["pass"] * 6 + ["slow", "fail", "skip", "exit-code"]
    fixture_actions = ["pass"] * 5 + ["slow", "fail", "skip"]
    if theme == "crash":
        test_actions += ["crash-exit", "crash-signal"]
        fixture_actions += ["crash-exit", "crash-signal"]
    # An expected failure is not an expected crash, which plain pytest is told to be a failure.
    possible = [mark for mark in MARKS if theme != "crash" or mark.startswith("skip")]
    parameters = ["", "", "", "stable", "empty"] + (["classes", "uuid"] * 2 if theme == "unstable" else [])
    for hook in HOOKS:
        if rng.random() < 0.15 and not (theme == "order" or (theme == "unstable" and hook == "deselect")):
            pieces.append(Hook(hook))
    files = [f"test_{letter}.py" for letter in "abcd"[: rng.randint(1, 4)]]
    for number in range(rng.randint(0, 4)):
        scope = rng.choice(SCOPES)
        setup, teardown = rng.choice(fixture_actions), rng.choice(fixture_actions)
        if teardown == "skip" or (
            teardown.startswith("crash")
            and scope != "function"
            and not (pending and "crash-in-wide-teardown" in PENDING)
        ):
            teardown = "fail"
        if theme == "exit" and teardown == "fail":
            # pytest forgets the exit for a teardown that fails on the way out.
            teardown = "pass"
        if theme == "crash" and teardown == "fail" and scope != "function":
            # A test that this befalls could not be told from one that crashed.
            teardown = "pass"
        file = rng.choice([*files, "conftest.py"])
        pieces.append(Fixture(file, f"fixture_{number}", scope, setup, teardown, rng.random() < 0.1))
    names = [piece.name for piece in pieces if isinstance(piece, Fixture)]
    for file in files:
        before = ""
        for number in range(rng.randint(1, 6)):
            used = tuple(name for name in names if rng.random() < 0.25)
            marks = tuple(mark for mark in possible if rng.random() < 0.06)
            test = Test(
                file,
                f"test_{number}",
                rng.choice(test_actions),
                used,
                rng.choice(parameters),
                marks,
                rng.random() < 0.25,
                before if theme == "order" and rng.random() < 0.5 else "",
            )
            pieces.append(test)
            before = test.name
    if theme == "broken":
        pieces.append(Broken("test_broken.py", rng.random() < 0.5))
    if theme == "exit":
        index, chosen = rng.choice([(at, piece) for at, piece in enumerate(pieces) if isinstance(piece, Test)])
        pieces[index] = replace(chosen, action="exit", marks=())
    return Project(tuple(pieces))
