"""The modes of Offload, and what has to be true of a run in each of them."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from project import WHOLE_LIST, Project
from records import Junit, Run

# The outcome of a test of which it is not known in which phase it crashed.
BAD = "failed or error"


class Difference(NamedTuple):
    """Something that is not as it has to be."""

    # What kind of thing it is: a smaller project has to have the same.
    kind: str
    text: str


@dataclass(frozen=True)
class Mode:
    """Options of `pytest --offload`."""

    parallel: int = 2
    collect: str = "auto"
    dist: str = "load"
    isolation: str = "worker"
    start: str = "auto"
    retries: int = 0

    def arguments(self) -> list[str]:
        named = {
            "collect": (self.collect, "auto"),
            "dist": (self.dist, "load"),
            "isolation": (self.isolation, "worker"),
            "start-method": (self.start, "auto"),
            "retries": (self.retries, 0),
        }
        options = [f"--offload-{name}={value}" for name, (value, usual) in named.items() if value != usual]
        return ["--offload", f"--offload-parallel={self.parallel}", *options]

    def fits(self, project: Project) -> bool:
        """Whether the project has to have the results here that plain pytest has."""
        if project.ordered() and (
            self.isolation == "test"
            or self.retries
            or not (self.dist == "loadfile" or (self.parallel == 1 and self.dist == "load"))
        ):
            # Tests of a file have to run in one process, in their order, and each after the one before. The tests of a
            # class or group are moved together.
            return False
        if self.collect == "parallel" and (project.hooks() & WHOLE_LIST or project.looks_back()):
            # Who asks for it has hooks, and options, that see the tests of one file at a time.
            return False
        return self.retries > 0 or not project.flaky()


def choose(project: Project, rng: random.Random, count: int) -> list[Mode]:
    """Different modes that fit a project."""
    chosen: list[Mode] = []
    for _ in range(100):
        mode = Mode(
            rng.choices([1, 2, 3, 4], [2, 4, 2, 1])[0],
            rng.choices(["auto", "parallel", "serial"], [4, 2, 2])[0],
            rng.choices(["load", "loadfile", "loadscope", "loadgroup"], [5, 2, 1, 1])[0],
            rng.choices(["worker", "test"], [5, 1])[0],
            rng.choices(["auto", "spawn"], [6, 1])[0],
            rng.choices([0, 1, 2], [6, 1, 1])[0],
        )
        if mode.fits(project) and mode not in chosen:
            chosen.append(mode)
        if len(chosen) == count:
            break
    return chosen


def differences(project: Project, mode: Mode, plain: list[Run], ours: list[Run]) -> list[Difference]:
    """What is not as it has to be."""
    said = []
    for number, (usual, run) in enumerate(zip(plain, ours), 1):
        found = list(_Comparison(project, mode, usual, run).all())
        if len(plain) > 1:
            found = [Difference(kind, f"run {number}: {text}") for kind, text in found]
        said += found
        if found or (project.looks_back() and (project.wide_crashes() or project.wide_teardowns())):
            # What follows starts from another state: it can depend on the workers which test has failed.
            break
    return said


class _Comparison:
    """One run of Offload beside one of plain pytest."""

    def __init__(self, project: Project, mode: Mode, plain: Run, ours: Run) -> None:
        self.project = project
        self.mode = mode
        self.plain = plain
        self.ours = ours
        self.outcomes = ours.outcomes()
        # How far others are when one test ends the run depends on how many run at once.
        self.cut = project.exits()
        # What else would have failed in a process that ends did not run.
        self.exact = not (project.crashes() or project.wide_teardowns() or self.cut or project.counts_differ())

    def all(self) -> Iterator[Difference]:
        ours, plain = self.ours, self.plain
        if plain.code is None:
            yield Difference("hang", "plain pytest did not end")
            return
        if ours.code is None:
            yield Difference("hang", "the run did not end")
            return
        for what in ours.left:
            yield Difference("left", f"left behind: {what}")
        for what in ours.impostors:
            yield Difference("impostor", f"ran under another's name: {what}")
        if ours.code != plain.code:
            yield Difference("code", f"exit code {ours.code} in place of {plain.code}")
        if not (self.cut or self.project.counts_differ()):
            yield from self._outcomes()
        yield from self._captured()
        yield from self._what_ran()
        yield from self._junit()
        yield from self._offload_junit()
        yield from self._console()
        yield from self._cache()

    # -- tests

    def _outcomes(self) -> Iterator[Difference]:
        """Tests that have another outcome than under plain pytest."""
        usual = self.plain.outcomes()
        expected, got = (Counter(self._known(*entry) for entry in run.items()) for run in (usual, self.outcomes))
        charged = {name for name, word in (got - expected) if word == BAD} if self.project.wide_crashes() else set()
        for name, word in (expected - got).elements():
            # Which test a process ran last, in which a wide fixture crashes when it is torn down, is not known.
            if name not in charged:
                yield Difference("outcome", f"{name}: {word} under plain pytest only")
        for name, word in (got - expected).elements():
            if name not in charged:
                yield Difference("outcome", f"{name}: {word} under Offload only")
        torn, torn_here = (any("+" in word for word in run.values()) for run in (usual, self.outcomes))
        if self.project.crashes():
            # What is torn down late dies with a process, or is what the process died of.
            torn_here = torn_here or BAD in {self._known(*entry)[1] for entry in self.outcomes.items()}
        if torn and not torn_here and not (self.project.interleaves() and self.project.expects_failures()):
            yield Difference("outcome", "no teardown is reported to have failed")
        if sorted(self.plain.uncollected) != sorted(self.ours.uncollected):
            yield Difference("outcome", f"not collected: {self.ours.uncollected}, not {self.plain.uncollected}")

    def _known(self, name: str, word: str) -> tuple[str, str]:
        """A test and its outcome as far as they are the same in each run."""
        if self.project.wide_teardowns():
            word = word.partition("+")[0]
        if self.project.crashes() and word.startswith(("failed", "error", "passed+error", "skipped+error")):
            # Of a crash it is not known in which phase it was.
            word = BAD
        return without_random(name), word

    def _captured(self) -> Iterator[Difference]:
        """What a test has written is shown with that test."""
        if not self.exact or self.project.wide_words():
            return
        usual, here = (
            {without_random(name): set(map(without_random, words)) for name, words in run.captured.items() if words}
            for run in (self.plain, self.ours)
        )
        for name in sorted(usual.keys() | here.keys()):
            if usual.get(name) != here.get(name):
                yield Difference("captured", f"{name}: captured {here.get(name)}, not {usual.get(name)}")

    def _what_ran(self) -> Iterator[Difference]:
        """A result is one of a test that ran, once, and a test that ran has one."""
        for name, word in self.outcomes.items():
            times = self.ours.ran[escaped(name)]
            if (word.startswith(("passed", "xpassed")) and times == 0) or times > 1 + self.mode.retries:
                yield Difference("ran", f"{name}: {word}, and it ran {times} times")
            phases = Counter(verdict.split()[0] for verdict in self.ours.reports[name] if "subtest" not in verdict)
            phases.pop("teardown", None)
            if self.mode.retries == 0 and any(count > 1 for count in phases.values()):
                yield Difference("ran", f"{name}: its reports are {self.ours.reports[name]}")
        reported = set(map(escaped, self.outcomes))
        for name in self.ours.ran:
            if name not in reported and not self.cut and not self.project.stops():
                yield Difference("ran", f"{name} ran, and nothing is reported of it")
        for name in self.ours.finished:
            if name not in self.outcomes and not self.ours.counted["rerun"]:
                yield Difference("ran", f"{name} has finished, and nothing is reported of it")
        for name in self.outcomes:
            if self.ours.started[name] == 0 or self.ours.finished[name] == 0:
                yield Difference("ran", f"{name}: started and finished are not both said")

    # -- reports

    def _junit(self) -> Iterator[Difference]:
        """What pytest's JUnit file says otherwise than the reports."""
        plain, junit = self.plain.junit, self.ours.junit
        if junit.problem or plain.problem:
            if junit.problem != plain.problem:
                yield Difference("junit", f"JUnit: {junit.problem or 'there is one'}")
            return
        names = Counter(name for name, _ in junit.elements)
        # pytest itself writes a second one for a teardown that fails after the test has failed, and for subtests.
        twice = {
            junit_name(name)
            for name, word in self.outcomes.items()
            if word.endswith("+error") and any(bad in word[: -len("+error")] for bad in ("failed", "error"))
        }
        usual = Counter(name for name, _ in plain.elements)
        wanted = {junit_name(name) for name, word in self.outcomes.items() if word != "none"}
        # Nor does it name the element of a test whose call ended the run.
        ended = sum(word.startswith("none") for word in self.outcomes.values())
        for name, times in names.items():
            if name.endswith(("::", "::None")):
                if times > ended:
                    yield Difference("junit", f"JUnit: {times} elements without a name: {name!r}")
            elif times > max(usual[name], 2 if name in twice else 1):
                yield Difference("junit", f"JUnit: {times} elements for {name}")
        for name in sorted(wanted - set(names)):
            yield Difference("junit", f"JUnit: nothing of {name}")
        yield from self._elements("JUnit", junit)
        if any(value < 0 for value in junit.totals.values()):
            yield Difference("junit", f"JUnit: totals {junit.totals}")
        if self.exact and self._same_warnings() and junit.totals != plain.totals:
            yield Difference("junit", f"JUnit: totals {junit.totals}, not {plain.totals}")
        yield from self._reason("JUnit", junit)

    def _offload_junit(self) -> Iterator[Difference]:
        """What Offload's own JUnit file says otherwise than the reports."""
        junit = self.ours.offload
        if junit.problem:
            if self.outcomes:
                yield Difference("offload-junit", f"Offload's JUnit: {junit.problem}")
            return
        if self.cut or self.project.stops():
            return
        yield from self._elements("Offload's JUnit", junit)
        yield from self._reason("Offload's JUnit", junit)

    def _elements(self, file: str, junit: Junit) -> Iterator[Difference]:
        words: dict[str, str] = {}
        for name, word in junit.elements:
            words[name] = f"{words[name]}+{word}" if name in words else word
        for name, word in self.outcomes.items():
            element = words.get(junit_name(name), "")
            bad = word.startswith(("failed", "error")) or "+" in word or " failed" in word
            if element and bad != any(tag in element for tag in ("failure", "error")):
                yield Difference("junit", f"{file}: {element} for {name}, which is {word}")

    def _reason(self, file: str, junit: Junit) -> Iterator[Difference]:
        """What makes the exit code what it is."""
        bad = any(tag in word for _, word in junit.elements for tag in ("failure", "error"))
        if self.ours.code == 0 and bad:
            yield Difference("junit", f"{file}: a failure, and the exit code is 0")
        if self.ours.code == 1 and not bad and self.plain.junit.elements and not self._plain_has_no_reason():
            yield Difference("junit", f"{file}: no failure, and the exit code is 1")

    def _plain_has_no_reason(self) -> bool:
        """Whether plain pytest ends with 1 for what is in no element of its own."""
        words = [word for _, word in self.plain.junit.elements]
        return self.plain.code == 1 and not any(tag in word for word in words for tag in ("failure", "error"))

    def _console(self) -> Iterator[Difference]:
        """What the last line says otherwise than the reports, and than plain pytest's."""
        ours, counted = self.ours.console, self.ours.counted
        for name in ("passed", "failed", "error", "skipped", "xfailed", "xpassed", "deselected", "rerun"):
            subtests = counted[f"subtests {name}"] if name != "passed" else 0
            if ours and ours.get(name, 0) not in (counted[name], counted[name] + subtests):
                yield Difference("console", f"the last line: {name} {ours.get(name, 0)}, of {counted[name]}")
        if self.exact and self.plain.console:
            usual = dict(self.plain.console)
            here = {name: count for name, count in ours.items() if name != "rerun"}
            if not self._same_warnings():
                usual.pop("warning", None), here.pop("warning", None)
            if here != usual:
                yield Difference("console", f"the last line: {here}, not {usual}")

    def _same_warnings(self) -> bool:
        """Whether warnings are as many as under plain pytest."""
        again = self.mode.retries or self.mode.isolation == "test"
        return not (self.project.wide_words() or again or self.project.stops())

    def _cache(self) -> Iterator[Difference]:
        """What the next run will take for failed."""
        if not self.exact or self.project.unstable():
            return
        for name in ("lastfailed", "nodeids", "stepwise"):
            usual, here = self.plain.cache.get(name), self.ours.cache.get(name)
            if name == "stepwise":
                usual, here = ((value or {}).get("last_failed") for value in (usual, here))
            if usual != here:
                yield Difference("cache", f"pytest's cache: {name} {here}, not {usual}")


def without_random(name: str) -> str:
    """A name without what is another in each run."""
    return re.sub(r"\[(.*-)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]+\]", "[uuid]", name)


def junit_name(nodeid: str) -> str:
    """The class and the name that pytest gives the element of a test."""
    path, _, rest = nodeid.partition("::")
    *classes, name = [path.replace(".py", "").replace("/", "."), *rest.split("::")]
    return f"{'.'.join(classes)}::{name}"


def escaped(name: str) -> str:
    return ascii(name)[1:-1]
