"""Makes a project of a seed."""

from __future__ import annotations

import random
from dataclasses import replace

from project import (
    HOOKS,
    MARKS,
    METHODS,
    SCOPES,
    Again,
    Broken,
    Case,
    Edit,
    Fixture,
    Hook,
    Package,
    Piece,
    Project,
    Reader,
    Test,
    Typed,
)

# Faults of the product that are known, by feature: left out unless `--pending` is given. Remove what is mended.
PENDING: set[str] = set()

# A theme decides what may happen, as much of it excludes what else could be compared.
THEMES = {
    "plain": 4,
    "again": 2,
    "stop": 1.5,
    "crash": 2,
    "hang": 0.6,
    "exit": 1.5,
    "order": 1.5,
    "unstable": 1.5,
    "broken": 1.5,
    "flaky": 0.7,
    "left": 0.7,
}

# What is typed, once in a while.
TYPED = [
    ("-k", "test_1 or test_2"),
    ("-k", "not test_0"),
    ("-m", "skip or xfail"),
    ("--ff",),
    ("--nf",),
    ("-p", "no:cacheprovider"),
    ("-v",),
    ("-rA",),
    ("-s",),
    ("--capture=sys",),
    ("--runxfail",),
    ("--import-mode=importlib",),
    ("--strict-markers",),
    ("-W", "error"),
    ("-o", "junit_logging=all"),
    ("-o", "junit_family=xunit1"),
]
STOPS = [("-x",), ("--maxfail=2",), ("--maxfail=3",), ("--sw",)]
AGAIN = [("--lf",), ("--ff",), ("--lf", "-x"), ("--nf",), ("--sw",), ("--lf", "--lfnf=none"), ()]


def generate(seed: int, pending: bool, theme: str | None = None) -> Project:
    """The project of a seed. One fault or few, in a project that is otherwise plain: so it is seen what causes what."""
    return Generator(random.Random(seed), pending, theme).project()


class Generator:
    """Makes one project."""

    def __init__(self, rng: random.Random, pending: bool, theme: str | None) -> None:
        self.rng = rng
        self.pending = pending
        self.pieces: list[Piece] = []
        possible = {name: weight for name, weight in THEMES.items() if pending or name not in PENDING}
        self.theme = theme or rng.choices(list(possible), list(possible.values()))[0]
        self.files = [f"test_{letter}.py" for letter in "abcd"[: rng.randint(1, 4)]]
        self.conftests = ["conftest.py"]
        if rng.random() < 0.3:
            self.files += [f"inner/test_{letter}.py" for letter in "ef"[: rng.randint(1, 2)]]
            self.conftests.append("inner/conftest.py")
        self.test_actions = ["pass"] * 8 + ["slow", "fail", "skip", "exit-code", "warn", "say", "say-fail"]
        self.fixture_actions = ["pass"] * 6 + ["slow", "fail", "skip", "warn"]
        self.parameters = ["", "", "", "", "stable", "empty"]
        self.marks = list(MARKS)

    def project(self) -> Project:
        rng = self.rng
        self._settle_theme()
        for hook in HOOKS:
            if rng.random() < 0.1 and self._hook_fits(hook):
                self.pieces.append(Hook(hook))
        if len(self.conftests) > 1 and rng.random() < 0.5:
            self.pieces.append(Package("inner"))
        for number in range(rng.randint(0, 4)):
            self.pieces.append(self._fixture(number))
        if len(self.conftests) > 1:
            for piece in [piece for piece in self.pieces if isinstance(piece, Fixture)]:
                if piece.file == "conftest.py" and rng.random() < 0.3:
                    # Another one of the same name, nearer to some tests.
                    other = self._fixture(int(piece.name.rpartition("_")[2]))
                    self.pieces.append(replace(other, file="inner/conftest.py"))
        for file in self.files:
            self._tests(file)
        self._typed()
        if self.theme == "broken":
            self.pieces.append(Broken("test_broken.py", rng.random() < 0.5))
        if self.theme in ("exit", "hang", "left", "flaky"):
            self._one_test()
        return Project(tuple(self.pieces))

    def _settle_theme(self) -> None:
        if self.theme == "crash":
            self.test_actions += ["crash-exit", "crash-signal"]
            self.fixture_actions += ["crash-exit", "crash-signal"]
        if self.theme in ("crash", "hang"):
            # An expected failure is not an expected crash, which plain pytest is told to be a failure.
            self.marks = [mark for mark in self.marks if mark in ("skip", "skipif", "group", "error")]
        if self.theme == "unstable":
            self.parameters += ["classes", "uuid", "process"] * 2
        if self.theme == "flaky":
            self.test_actions += ["flaky"] * 3
            self.marks = ["group"]
        if self.theme == "left":
            self.parameters += ["variable"] * 6

    def _hook_fits(self, hook: str) -> bool:
        if self.theme == "order":
            return False
        # Which tests those are depends on how many there are, and in which order.
        return not (self.theme == "unstable" and hook in ("deselect", "shuffle"))

    def _fixture(self, number: int) -> Fixture:
        rng = self.rng
        scope = rng.choice(SCOPES)
        setup, teardown = rng.choice(self.fixture_actions), rng.choice(self.fixture_actions)
        wide = scope != "function"
        if wide:
            # Whether it is an error to warn depends on the test that needs the fixture first, or last.
            setup, teardown = (action.replace("warn", "pass") for action in (setup, teardown))
        if teardown == "skip":
            teardown = "fail"
        if self.theme == "exit" and teardown == "fail":
            # pytest forgets the exit for a teardown that fails on the way out.
            teardown = "pass"
        if self.theme in ("crash", "hang", "stop", "again") and teardown == "fail" and wide:
            # A test that this befalls could not be told from one that crashed, or another one is first to fail.
            teardown = "pass"
        parameters = rng.random() < 0.1 and self.theme not in ("order", "left")
        if parameters and teardown == "fail" and wide:
            # It would fail the set-up of whichever test is next.
            teardown = "pass"
        wider = [
            piece.name
            for piece in self.pieces
            if isinstance(piece, Fixture) and SCOPES.index(piece.scope) >= SCOPES.index(scope)
        ]
        return Fixture(
            rng.choice([*self.files, *self.conftests]),
            f"fixture_{number}",
            scope,
            setup,
            teardown,
            rng.random() < 0.1,
            rng.choice(wider) if wider and rng.random() < 0.25 else "",
            parameters,
        )

    def _tests(self, file: str) -> None:
        rng = self.rng
        names = sorted({piece.name for piece in self.pieces if isinstance(piece, Fixture)})
        before = group = ""
        for number in range(rng.randint(1, 6)):
            if rng.random() < 0.35:
                group = "" if group else f"Test_{number}"
            test = Test(
                file,
                f"test_{number}",
                rng.choice(self.test_actions),
                tuple(name for name in names if rng.random() < 0.25),
                rng.choice(self.parameters),
                tuple(mark for mark in self.marks if rng.random() < 0.06),
                group,
                before if self.theme == "order" and rng.random() < 0.5 else "",
            )
            self.pieces.append(test)
            before = test.name
        if rng.random() < 0.12 and self.theme != "left":
            self.pieces.append(self._case(file))

    def _case(self, file: str) -> Case:
        rng = self.rng
        methods = tuple(
            (f"test_{number}{'_expected' if rng.random() < 0.15 else ''}", rng.choice(["pass", "pass", *METHODS]))
            for number in range(rng.randint(1, 4))
        )
        if self.theme in ("crash", "hang", "flaky", "exit", "stop", "again"):
            hooks = ["pass"] * 4
        else:
            hooks = [rng.choice(["pass"] * 8 + ["fail"]) for _ in range(4)]
        return Case(file, f"Case_{rng.randint(0, 9)}", methods, *hooks)

    def _typed(self) -> None:
        rng = self.rng
        if rng.random() < 0.2 and self.theme not in ("left",):
            self.pieces.append(Typed(rng.choice(TYPED)))
        if self.theme == "stop":
            self.pieces.append(Typed(rng.choice(STOPS)))
        if self.theme == "again" or (self.theme in ("crash", "broken", "stop") and rng.random() < 0.25):
            self.pieces.append(Again(rng.choice(AGAIN)))
            tests = [piece for piece in self.pieces if isinstance(piece, Test)]
            for test in rng.sample(tests, min(len(tests), rng.randint(0, 2))):
                if test.action.startswith(("fail", "say-fail", "crash", "exit-code")):
                    self.pieces.append(Edit(test.file, test.name))

    def _one_test(self) -> None:
        """One test does what the project is about."""
        rng = self.rng
        index, chosen = rng.choice([(at, piece) for at, piece in enumerate(self.pieces) if isinstance(piece, Test)])
        actions = {
            "exit": ["exit"],
            "hang": ["hang-asleep", "hang-busy", "hang-stubborn"],
            "left": ["leave-variable", "leave-directory"],
            "flaky": ["flaky"],
        }
        parameters = "" if self.theme == "hang" else chosen.parameters
        chosen = replace(chosen, action=rng.choice(actions[self.theme]), marks=(), parameters=parameters)
        self.pieces[index] = chosen
        fixtures = [(at, piece) for at, piece in enumerate(self.pieces) if isinstance(piece, Fixture)]
        if self.theme == "hang" and fixtures and rng.random() < 0.4:
            # Or what it uses does.
            at, fixture = rng.choice(fixtures)
            setup, teardown = rng.choice([(chosen.action, "pass"), ("pass", chosen.action)])
            self.pieces[at] = replace(fixture, scope="function", setup=setup, teardown=teardown, autouse=False, uses="")
            self.pieces[index] = replace(chosen, action="pass", fixtures=(fixture.name,))
        if self.theme == "left" and chosen.action == "leave-directory":
            self.pieces.append(Reader(rng.choice(self.files)))
