"""The modes of Offload, and what has to be true of a run in each of them."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass

from execute import Run
from project import Project


@dataclass(frozen=True)
class Mode:
    """Options of `pytest --offload`."""

    options: tuple[str, ...]
    retries: int = 0
    # Whether tests of a file run in one process, in their order.
    keeps_order: bool = False

    def arguments(self) -> list[str]:
        retries = [f"--offload-retries={self.retries}"] if self.retries else []
        return ["--offload", *self.options, *retries]


MODES = [
    Mode(("--offload-parallel=1",), keeps_order=True),
    Mode(("--offload-parallel=2",)),
    Mode(("--offload-parallel=3", "--offload-collect=parallel")),
    Mode(("--offload-parallel=2", "--offload-collect=serial")),
    Mode(("--offload-parallel=2", "--offload-dist=loadfile"), keeps_order=True),
    Mode(("--offload-parallel=2",), retries=1),
    Mode(("--offload-parallel=2", "--offload-isolation=test")),
    Mode(("--offload-parallel=2", "--offload-start-method=spawn")),
]


def choose(project: Project, rng: random.Random, count: int) -> list[Mode]:
    """Modes in which the project has to have the results that plain pytest has."""
    fitting = [mode for mode in MODES if mode.keeps_order or not project.ordered()]
    if project.hooks() & {"reverse", "deselect"}:
        # Who asks for it has hooks that see the tests of one file at a time.
        fitting = [mode for mode in fitting if "--offload-collect=parallel" not in mode.options]
    return rng.sample(fitting, min(count, len(fitting)))


def differences(project: Project, mode: Mode, plain: Run, ours: Run) -> list[str]:
    """What is not as it has to be."""
    if ours.code == -999:
        return ["the run did not end"]
    said = [f"left behind: {what}" for what in ours.left]
    said += [f"ran under another's name: {what}" for what in ours.impostors]
    if ours.code != plain.code:
        said.append(f"exit code {ours.code} in place of {plain.code}")
    outcomes = ours.outcomes()
    if not project.exits():
        # How far others are when one test ends the run depends on how many run at once.
        said += of_outcomes(project, plain.outcomes(), outcomes)
    for name, word in outcomes.items():
        times = ours.ran[escaped(name)]
        if (word.startswith(("passed", "xpassed")) and times == 0) or times > 1 + mode.retries:
            said.append(f"{name}: {word}, and it ran {times} times")
    for name in ours.ran:
        if name not in map(escaped, outcomes) and not project.exits():
            said.append(f"{name} ran, and nothing is reported of it")
    return said + of_junit(outcomes, plain, ours)


def of_outcomes(project: Project, plain: dict[str, str], ours: dict[str, str]) -> list[str]:
    """Tests that have another outcome than under plain pytest."""
    expected, got = (Counter(known(project, name, word) for name, word in run.items()) for run in (plain, ours))
    said = [f"{name}: {word} under plain pytest only" for name, word in (expected - got).elements()]
    said += [f"{name}: {word} under Offload only" for name, word in (got - expected).elements()]
    torn, torn_here = (any("+" in word for word in run.values()) for run in (plain, ours))
    if torn and not torn_here and not project.crashes():
        said.append("no teardown is reported to have failed")
    return said


def known(project: Project, name: str, word: str) -> tuple[str, str]:
    """A test and its outcome as far as they are the same in each run."""
    # Random ids are others in each run.
    name = re.sub(r"\[[0-9a-f]{8}-.*\]$", "[uuid]", name)
    if project.wide_teardowns():
        word = word.partition("+")[0]
    if project.crashes() and word.startswith(("failed", "error", "passed+error", "skipped+error")):
        # Of a crash it is not known in which phase it was, and what else would have failed did not run.
        word = "failed or error"
    return name, word


def of_junit(outcomes: dict[str, str], plain: Run, ours: Run) -> list[str]:
    """What the JUnit file says otherwise than the reports."""
    said = []
    names = Counter(name for name, _ in ours.junit)
    # pytest itself writes a second one for a teardown that fails after the test has failed.
    twice = {junit_name(name) for name, word in outcomes.items() if word in ("failed+error", "error+error")}
    usual = Counter(name for name, _ in plain.junit)
    wanted = {junit_name(name) for name, word in outcomes.items() if word != "none"}
    # Nor does it name the element of a test whose call ended the run.
    ended = sum(word == "none" for word in outcomes.values())
    for name, times in names.items():
        if name.endswith(("::", "::None")):
            if times > ended:
                said.append(f"JUnit: {times} elements without a name: {name!r}")
        elif times > max(usual[name], 2 if name in twice else 1):
            said.append(f"JUnit: {times} elements for {name}")
    said += [f"JUnit: nothing of {name}" for name in sorted(wanted - set(names))]
    words = dict(ours.junit)
    for name, word in outcomes.items():
        element = words.get(junit_name(name), "")
        bad = word.startswith(("failed", "error")) or "+" in word
        if element and bad != any(tag in element for tag in ("failure", "error")):
            said.append(f"JUnit: {element} for {name}, which is {word}")
    if any(value < 0 for value in ours.totals.values()):
        said.append(f"JUnit: totals {ours.totals}")
    return said


def junit_name(nodeid: str) -> str:
    """The class and the name that pytest gives the element of a test."""
    path, _, rest = nodeid.partition("::")
    *classes, name = [path.replace(".py", "").replace("/", "."), *rest.split("::")]
    return f"{'.'.join(classes)}::{name}"


def escaped(name: str) -> str:
    return ascii(name)[1:-1]
