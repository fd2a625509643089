"""What has to be true of a run, whatever befell it."""

from __future__ import annotations

import re
import signal
from typing import Protocol

from run import HUNG, Observed, Result
from scenario import Fault, Scenario

# Roles whose death can be a failure of the test that ran.
OF_TESTS = ("worker", "test", "all")


class Kind(Protocol):
    scenario: Scenario

    def expected(self) -> dict[str, str]:
        """What each test does, by its name."""

    def run(self, faults: list[Fault]) -> Observed:
        """Runs the scenario."""

    def junit_name(self, report: str, name: str) -> str:
        """The element of a test."""

    def stop(self) -> None:
        """Ends what was started for the scenario."""


def wrong(kind: Kind, seen: Observed) -> list[str]:
    """What is not as it has to be."""
    if seen.code == HUNG:
        return ["the run did not end"]
    found = []
    if not on_host(kind, seen):
        found += [f"left behind: the process {process}" for process in seen.left_processes]
    if not needs_next_run(kind, seen):
        found += [f"left behind: {name}" for name in seen.left_files]
    found += [f"a report is no report: {what}" for what in seen.broken]
    found += of_results(kind, seen)
    if not seen.killed:
        found += of_exit_code(kind, seen) + of_reports(kind, seen)
    for sign in ("panicked at", "INTERNALERROR", "Traceback (most recent call last)"):
        # An interrupt can come before pytest is there to take it.
        if sign in seen.output and not (seen.killed and sign.startswith("Traceback")):
            line = next(line for line in seen.output.splitlines() if sign in line)
            found.append(f"it says {line.strip()!r}")
    return found


def on_host(kind: Kind, seen: Observed) -> bool:
    """Whether that has ended which ends the others on a host."""
    return kind.scenario.over_ssh and bool(seen.lethal("holder", "connection"))


def needs_next_run(kind: Kind, seen: Observed) -> bool:
    """Whether the next run removes what this one could not."""
    return seen.killed or on_host(kind, seen)


def of_results(kind: Kind, seen: Observed) -> list[str]:
    """Claims about tests that did not happen."""
    found = []
    expected = kind.expected()
    found += [
        f"{name}: {seen.results[name].outcome}, and there is no such test" for name in seen.results.keys() - expected
    ]
    unexplained = []
    for name, result in seen.results.items():
        action = expected.get(name, "pass")
        found += [f"{name}: {what}" for what in of_result(action, result, seen.begun[name], seen.ended[name])]
        if result.outcome == "none" and not seen.killed:
            found.append(f"{name}: reports of it come to nothing")
        bad = [*result.repeated, *([result.text] if result.outcome in ("failed", "error") else [])]
        unexplained += [(name, text) for text in bad if "on purpose" not in text]
        unexplained += [(name, result.text)] if result.torn_badly else []
    excuses = len(seen.lethal(*OF_TESTS))
    if kind.scenario.over_ssh and seen.lethal("template"):
        # The system hangs up on a stopped process whose parent has died.
        excuses += sum(done.fault.role in OF_TESTS and not done.fault.is_lethal for done in seen.done)
    if len(unexplained) > excuses:
        found.append(f"{len(unexplained)} failures that are none of the tests' own, and {excuses} deaths of workers:")
        found += [f"{name}: {text[-200:]!r}" for name, text in unexplained]
    allowed = 1 + kind.scenario.retries + len(seen.done)
    found += [f"{name} ran {times} times" for name, times in seen.begun.items() if times > allowed]
    return found


def of_result(action: str, result: Result, begun: int, ended: int) -> list[str]:
    found = []
    if result.outcome == "passed" and (action in ("fail", "skip") or not ended):
        found.append(f"passed, and ran to its end {ended} times (it is to {action})")
    if result.outcome == "skipped" and (action != "skip" or not begun):
        found.append(f"skipped, and began {begun} times (it is to {action})")
    purpose = "on purpose" in result.text or any("on purpose" in text for text in result.repeated)
    if purpose and action not in ("fail", "flaky") and result.outcome != "skipped":
        found.append(f"{result.outcome} on purpose, and it is to {action}")
    if purpose and not begun:
        found.append(f"{result.outcome} on purpose, and it never began")
    return found


def of_exit_code(kind: Kind, seen: Observed) -> list[str]:
    found = []
    bad = [name for name, result in seen.results.items() if result.outcome in ("failed", "error") or result.torn_badly]
    missing = sorted(kind.expected().keys() - seen.results.keys())
    told_to_end = [done for done in seen.lethal("orchestrator") if done.fault.signal != signal.SIGKILL]
    # Ends as an interrupted pytest does.
    told_to_end += [done for done in seen.lethal("template") if done.fault.signal == signal.SIGINT]
    ended = {"pytest": 2, "cargo": 130}[kind.scenario.kind]
    nothing = {"pytest": 3, "cargo": 3}[kind.scenario.kind]
    if seen.code == 0 and (bad or missing):
        found.append(f"exit code 0, with {len(bad)} failures and {len(missing)} tests without an outcome")
    elif seen.code == 1 and not bad and not missing:
        found.append("exit code 1, and nothing failed")
    elif seen.code == ended and not told_to_end and not collection_broke(seen):
        found.append(f"exit code {seen.code}, and nobody interrupted it")
    elif seen.code == nothing and not seen.done:
        found.append(f"exit code {seen.code} without a fault")
    elif seen.code not in (0, 1, nothing, ended) and not (kind.scenario.kind == "cargo" and seen.code == 2):
        found.append(f"exit code {seen.code}")
    if seen.code not in (0, 1, 2) and kind.scenario.kind == "pytest" and "offload: " not in seen.output:
        found.append(f"exit code {seen.code} without a word")
    if missing and seen.code == 1 and not re.search(r"not (been )?run|did not run", seen.output):
        found.append(f"{len(missing)} tests have no outcome ({missing[0]}), and nothing is said of that")
    return found


def collection_broke(seen: Observed) -> bool:
    """Whether a file could not be collected, because a worker was killed meanwhile. That ends a run of pytest."""
    return bool(seen.lethal("worker", "all")) and "ended while it collected" in seen.output


def of_reports(kind: Kind, seen: Observed) -> list[str]:
    found = []
    for report, elements in seen.reports.items():
        good = not any("failure" in tags or "error" in tags for each in elements.values() for tags in each)
        if seen.code not in (0, 2) and good and report != "junit.xml":
            found.append(f"{report}: nothing is wrong, and the exit code is {seen.code}")
        if seen.code == 0 and not good:
            found.append(f"{report}: something is wrong, and the exit code is 0")
        for name, result in seen.results.items():
            tags = elements.get(kind.junit_name(report, name), [])
            bad = result.outcome in ("failed", "error") or result.torn_badly
            twice = result.outcome in ("failed", "error") and result.torn_badly
            if not tags or len(tags) > (2 if twice else 1):
                found.append(f"{report}: {len(tags)} elements for {name}")
            elif bad != any("failure" in each or "error" in each for each in tags):
                found.append(f"{report}: {tags} for {name}, which is {result.outcome}")
    return found
