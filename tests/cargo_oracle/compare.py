"""What has to be true of a run of `cargo offload`, beside `cargo test` and by itself."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Optional

from execute import HUNG, Case, Run, log_name
from scenario import AT_EXIT, CLEAN, CRASHES, CUTS, DIRTY, EXITS, HANGS, LATE, NEEDS, RAW_STEPS, Scenario

# The suite of what concerns the run and no test.
RUN_SUITE = "problems of the run"
BAD = ("failed", "crashed", "timed_out", "error", "not_run")
# Programs without a harness run whatever is selected; as a test of Offload each has a name.
OPAQUE = "alpha_opaque"
# It fails where a test that ran before it in its process has left the directory.
IN_DIRECTORY = "alpha_one_is_in_its_directory"
# rustdoc only compiles these; and it says `ok` of one that it is told to run although it is marked `ignore`, and leaves
# out its code, where it compiles several at once (edition 2024).
NOT_EXECUTED = ("beta_doc_ignored", "beta_doc_compile_fail", "beta_doc_no_run", "gamma_doc_compile_fail")


def differences(scenario: Scenario, plain: Run, ours: Run) -> list[str]:
    """What is not as it has to be."""
    if ours.code == HUNG:
        return ["the run did not end"]
    mode = scenario.mode
    said = of_reports(ours, mode.isolation == "binary" and (mode.max_fail > 0 or "--nocapture" in mode.harness))
    if plain.code not in (0, 101) or (plain.code == 101 and "FAILED" not in plain.lines.values()):
        return [*said, f"cargo test has refused to run: exit code {plain.code}, {plain.output[-500:]}"]
    cases = {log_name(case.name): case for case in cases_of(ours)}
    said += of_leftovers(cases, ours)
    said += of_outcomes(scenario, plain, cases, ours)
    said += of_what_ran(scenario, cases, ours)
    expected = exit_code(scenario, cases)
    if ours.code != expected:
        said.append(f"exit code {ours.code} in place of {expected}; cargo test: {plain.code}")
    return said


def cases_of(ours: Run) -> list[Case]:
    """The tests, from the events where there are any."""
    finished = [event for event in ours.events if event["event"] == "test_finished"]
    if not ours.events:
        return ours.junit
    return [
        Case(
            event["test"]["name"],
            event["test"]["suite"],
            event["outcome"],
            event.get("flaky", False),
            len(event["attempts"]),
            company=next((tuple(found) for found in map(shared_state, event["attempts"]) if found is not None), None),
        )
        for event in finished
    ]


def shared_state(attempt: dict[str, Any]) -> Optional[list[str]]:
    return attempt.get("shares_state")


def exit_code(scenario: Scenario, cases: dict[str, Case]) -> int:
    if any(case.outcome in BAD for case in cases.values()):
        return 1
    if any(case.flaky for case in cases.values()):
        return {"exit-2": 2, "pass": 0, "fail": 1}[scenario.mode.flaky]
    return 0


def expected_outcomes(scenario: Scenario, name: str, line: str, ours: Run) -> set[str]:
    """What a test may be reported as of which `cargo test` says `line`."""
    steps = scenario.steps(name)
    if line == "ignored":
        return {"skipped"}
    if leaves_well(name, steps):
        return {"passed"}
    states = ours.done.states.get(name, [])
    if any(step in NEEDS for step in steps):
        # It passes in the company of one that leaves something, and nobody can know that it would not alone.
        line = after(steps, NEEDS)
        found = states[-1:] if line == "FAILED" else states
        if "dirty" not in found or scenario.mode.isolation == "process":
            return {"failed"}
    elif states and scenario.mode.isolation == "binary":
        # What an earlier test has left is there or not as the tests are spread over processes.
        if states[-1] == "dirty":
            return {"failed"}
        line = after(steps, CLEAN)
    if name == IN_DIRECTORY and scenario.mode.isolation == "binary":
        return {"passed", "failed"}
    if any(step in AT_EXIT for step in steps):
        ends = ending_steps(steps) if not fails_by_flaky(steps, ours.done.starts[name]) else []
        pretends = any(step.startswith("pretend") for step in steps)
        spoiled = {"failed"} if "at-exit:3" in steps and not ends else {"crashed"}
        spoiled |= {"failed"} if pretends and ends and ends[0].startswith(("exit", "quit")) else set()
        if scenario.mode.isolation == "auto":
            # Where results of a long batch have been given out, its end counts for its last test.
            spoiled.add("crashed")
        # Of a process that has been ended before its end, nobody sees that.
        never_ends = scenario.mode.isolation == "auto" and (scenario.has(ENDINGS) or scenario.mode.max_fail)
        return spoiled | {"passed"} if never_ends and not failing_steps(steps) else spoiled
    late = {"crashed", "failed"} if any(step in LATE for step in steps) else set()
    flaky = [step for step in steps if step.startswith("flaky")]
    if flaky and int(flaky[0][6:]) <= ours.done.starts[name] - 1 and not failing_steps(steps):
        return {"passed"} | late
    if line == "ok":
        return {"passed"} | late
    if late:
        return late
    if fails_by_flaky(steps, ours.done.starts[name]):
        return {"failed"}
    if any(step in HANGS for step in steps):
        return {"timed_out"}
    ends = ending_steps(steps)
    if ends and "_doc" not in name and not (name == OPAQUE and ends[0].startswith(("exit", "quit"))):
        # What looks like the harness's summary may make a failure of an exit.
        pretends = any(step.startswith("pretend") for step in steps) and ends[0].startswith(("exit", "quit"))
        # So does a panic that was caught before an exit with the harness's own code.
        pretends |= "catch" in steps and ends[0] == "exit:101"
        return {"crashed", "failed"} if pretends else {"crashed"}
    return {"failed"}


def is_held_up(scenario: Scenario, name: str) -> bool:
    """Whether a documentation test may be ended with another one of its package that hangs."""
    hanging = [behavior.name for behavior in scenario.behaviors if any(step in HANGS for step in behavior.steps)]
    return any("_doc" in name and other.split("_doc")[0] == name.split("_doc")[0] for other in hanging)


def leaves_well(name: str, steps: tuple[str, ...]) -> bool:
    """Whether a program that is one test exits before its end with the code that is expected of it."""
    ends = [step for step in steps if step in EXITS + CRASHES or step.startswith(("panic", "flaky", "clean"))]
    well = name == OPAQUE or "_doc" in name
    # To rustdoc this is a panic.
    good = ("exit:101",) if name.endswith("_doc_panics") else ("exit:0", "quit:0") if well else ()
    return bool(ends) and ends[0] in good


def fails_by_flaky(steps: tuple[str, ...], starts: int) -> bool:
    """Whether a test that passes after some starts has not had enough of them."""
    return any(step.startswith("flaky") and starts <= int(step[6:]) for step in steps)


def ending_steps(steps: tuple[str, ...]) -> list[str]:
    return [step for step in steps if step in EXITS + CRASHES]


def after(steps: tuple[str, ...], which: list[str]) -> str:
    """What `cargo test` would say of a test for which one of these steps has gone well."""
    at = next(at for at, step in enumerate(steps) if step in which)
    return "FAILED" if failing_steps(steps[at + 1 :]) else "ok"


def failing_steps(steps: tuple[str, ...]) -> list[str]:
    return [step for step in steps if step in EXITS + CRASHES or step.startswith(("panic", "err"))]


def of_outcomes(scenario: Scenario, plain: Run, cases: dict[str, Case], ours: Run) -> list[str]:
    said = []
    lines = dict(plain.lines)
    filtered = any(argument != "--ignored" and argument != "--include-ignored" for argument in scenario.harness)
    if filtered:
        lines.pop(OPAQUE, None)
    for name in sorted(set(lines) - set(cases)):
        said.append(f"{name}: {lines[name]} under cargo test, and nothing is reported of it")
    for name in sorted(set(cases) - set(lines)):
        if name != OPAQUE or not filtered:
            said.append(f"{name}: {cases[name].outcome}, and cargo test does not run it")
    for name, line in lines.items():
        if name not in cases:
            continue
        expected = expected_outcomes(scenario, name, line, ours)
        if scenario.mode.max_fail:
            expected.add("not_run")
        if is_held_up(scenario, name):
            expected.add("timed_out")
        if cases[name].outcome not in expected:
            said.append(f"{name}: {cases[name].outcome} in place of {' or '.join(expected)} ({line})")
    failed = sum(case.outcome in BAD and case.outcome != "not_run" for case in cases.values())
    not_run = any(case.outcome == "not_run" for case in cases.values())
    if scenario.mode.max_fail and not_run and failed < scenario.mode.max_fail:
        said.append(f"stopped after {failed} failures")
    if scenario.mode.max_fail and scenario.mode.parallel == 1 and failed > scenario.mode.max_fail:
        said.append(
            f"{failed} tests failed one after the other, and the run was to stop after {scenario.mode.max_fail}"
        )
    return said


def of_what_ran(scenario: Scenario, cases: dict[str, Case], ours: Run) -> list[str]:
    """Whether the tests ran as it is reported."""
    said = []
    done, mode = ours.done, scenario.mode
    for name, case in cases.items():
        if name in NOT_EXECUTED:
            continue
        steps = scenario.steps(name)
        starts = done.starts[name]
        attempts = case.attempts
        if case.outcome == "passed" and not done.ends[name] and not leaves_well(name, steps):
            said.append(f"{name}: passed, and it did not run to its end")
        if case.outcome == "skipped" and starts:
            said.append(f"{name}: skipped, and it ran")
        if attempts >= 0 and case.outcome not in ("skipped", "not_run"):
            most = most_starts(scenario, name, attempts)
            least = 0 if is_held_up(scenario, name) else attempts
            if not least <= starts <= most:
                said.append(f"{name}: {case.outcome}, {attempts} attempts are reported, and it ran {starts} times")
        said += of_company(scenario, cases, name, ours)
    for name, starts in done.starts.items():
        if name not in cases:
            said.append(f"{name} ran {starts} times, and nothing is reported of it")
    for pid, ordinals in done.ordinals.items():
        if mode.isolation == "process" and "mimic" not in str(scenario) and len(ordinals) > 1:
            said.append(f"{len(ordinals)} tests ran in process {pid}")
        if ordinals != list(range(len(ordinals))):
            said.append(f"tests of process {pid}: {ordinals}")
    return said


def most_starts(scenario: Scenario, name: str, attempts: int) -> int:
    """How often a test may start in so many attempts."""
    mode, steps = scenario.mode, scenario.steps(name)
    most = attempts
    # A test that may have cut off the harness, or left it, is run again to learn which.
    is_unclear = any(step in CUTS + EXITS + RAW_STEPS for step in steps)
    if is_unclear or (mode.isolation == "binary" and scenario.has([*ENDINGS, *CUTS, *RAW_STEPS])):
        most += attempts
    # What fails while Cargo still builds may be forgotten.
    if mode.overlap and bool(failing_steps(steps) or any(step.startswith("flaky") for step in steps)):
        most += attempts
    if mode.isolation == "auto":
        # What does not pass in company runs again, and so do all that have left something behind together.
        most += int(bool(steps) or scenario.has(DISTURBING))
    if mode.isolation != "process":
        # A process that was ended for another test's failure may have begun with one more.
        most += int(mode.max_fail > 0)
    return most


# Steps that may end the process of other tests before they have ended.
ENDINGS = [*EXITS, *CRASHES, *LATE, *HANGS, "close-fds"]
# Steps for whose sake a test that does nothing wrong may run again.
DISTURBING = [*ENDINGS, *CUTS, *AT_EXIT, *DIRTY, "child-holds", "fork:300", "fork:return"]


def of_company(scenario: Scenario, cases: dict[str, Case], name: str, ours: Run) -> list[str]:
    """Whether it is said of the right tests that they do not pass in company."""
    case, done = cases[name], ours.done
    if case.company is None:
        looked_in_vain = done.states.get(name, [])[:1] == ["dirty"] and any(s in CLEAN for s in scenario.steps(name))
        if scenario.mode.isolation == "auto" and case.outcome == "passed" and case.attempts == 1 and looked_in_vain:
            return [f"{name}: it did not pass in company, and nothing is said of that"]
        return []
    if case.outcome != "passed" and not case.flaky:
        return [f"{name}: {case.outcome}, and it is said to pass alone"]
    before = [tests[: tests.index(name)] for tests in done.tests.values() if name in tests]
    company = {log_name(other) for other in case.company}
    if len(before) < 2 or [] not in before:
        return [f"{name}: it is said to pass alone, and it ran after {before}"]
    # Where its process ended before it could say so, it may have been about to start.
    if not any(company <= set(tests) for tests in before):
        return [f"{name}: it is said to have run after {company}, and it ran after {before}"]
    return []


def of_leftovers(cases: dict[str, Case], ours: Run) -> list[str]:
    said = []
    for what in ours.left:
        name = what.removeprefix("child of ")
        case = cases.get(name)
        if name == what or case is None or case.outcome == "timed_out":
            said.append(f"left behind: {what}")
    return said


def of_reports(ours: Run, is_shared: bool = False) -> list[str]:
    """Whether the reports agree with each other and with the exit code. `is_shared`: tests write to one standard error,
    and nobody knows where one begins."""
    said = list(ours.wrong_totals)
    if not ours.junit and not ours.events and ours.code != 0:
        return [*said, f"no report: {ours.output[-500:]}"]
    for (suite, name), times in Counter((case.suite, case.name) for case in ours.junit).items():
        if times > 1 or not name:
            said.append(f"JUnit: {times} elements for {suite} {name!r}")
    counts = Counter(case.outcome for case in ours.junit if case.suite != RUN_SUITE)
    if ours.events:
        said += of_events(ours)
    else:
        said += of_console(ours, counts)
    bad = [case for case in ours.junit if case.outcome in BAD or case.outcome in ("error", "problem")]
    if ours.code in (1, 3) and not bad and not any(case.flaky for case in ours.junit):
        said.append(f"JUnit: nothing is wrong, and the exit code is {ours.code}")
    for case in bad:
        if case.name not in ours.logs:
            said.append(f"logs: nothing of {case.name}, which is {case.outcome}")
    for case in ours.junit:
        said += of_text(case, is_shared)
    return said


def of_events(ours: Run) -> list[str]:
    said = []
    finished = [event for event in ours.events if event["event"] == "test_finished"]
    for name, times in Counter(event["test"]["id"] for event in finished).items():
        if times > 1:
            said.append(f"{times} events for {name}")
    last = ours.events[-1]
    if last["event"] != "run_finished":
        return [*said, f"the last event is {last['event']}"]
    summary = last["summary"]
    outcomes = Counter(event["outcome"] for event in finished)
    counts = {
        "total": len(finished),
        "passed": outcomes["passed"],
        "failed": sum(outcomes[word] for word in BAD if word != "not_run"),
        "timed_out": outcomes["timed_out"],
        "crashed": outcomes["crashed"],
        "errors": outcomes["error"],
        "skipped": outcomes["skipped"],
        "not_run": outcomes["not_run"],
        "flaky": sum(event.get("flaky", False) for event in finished),
    }
    for name, count in counts.items():
        if summary[name] != count:
            said.append(f"{count} events are {name}, and the summary says {summary[name]}")
    if summary["exit_code"] != ours.code:
        said.append(f"exit code {ours.code}, and the summary says {summary['exit_code']}")
    junit = {(case.suite, case.name): case.outcome for case in ours.junit}
    told = {(event["test"]["suite"], event["test"]["name"]): event["outcome"] for event in finished}
    for key in sorted(set(junit) | set(told)):
        if junit.get(key) != told.get(key) and key[0] != RUN_SUITE:
            said.append(f"{key}: {told.get(key)} by the events, {junit.get(key)} by JUnit")
    return said


def of_console(ours: Run, counts: Counter[str]) -> list[str]:
    """The line of totals."""
    totals = next((line for line in reversed(ours.output.splitlines()) if line.startswith("Summary [")), "")
    words = ("passed", "failed", "skipped", "not run", "flaky", "timed out", "crashed", "could not be executed")
    told = {word: int(number) for number, word in re.findall(rf"(\d+) ({'|'.join(words)})", totals)}
    wanted = {
        "passed": counts["passed"],
        "failed": sum(counts[word] for word in ("failed", "crashed", "timed_out", "error")),
        "skipped": counts["skipped"],
        "not run": counts["not_run"],
        "flaky": sum(case.flaky for case in ours.junit),
        "timed out": counts["timed_out"],
        "crashed": counts["crashed"],
        "could not be executed": counts["error"],
    }
    return [
        f"console: {totals!r}, and {count} are {word}" for word, count in wanted.items() if told.get(word, 0) != count
    ]


def of_text(case: Case, is_shared: bool) -> list[str]:
    """Whether a test is reported with its own output and nobody else's."""
    printed = set(re.findall(r"printed by (\S+)" if is_shared else r"(?:printed|warned) by (\S+)", case.text))
    return [f"{case.name} is reported with what {name} wrote" for name in printed - {log_name(case.name)}]


def beside_process(scenario: Scenario, ours: Run, other: Run) -> list[str]:
    """Whether the outcomes are those of a run with a process per test, as far as they do not depend on chance."""
    outcomes, expected = ({log_name(case.name): case.outcome for case in cases_of(run)} for run in (ours, other))
    # As does whether a process comes to its end.
    chance = NEEDS + LATE + (AT_EXIT if scenario.has(ENDINGS) else [])
    by_chance = [
        behavior.name
        for behavior in scenario.behaviors
        if any(step in chance or step.startswith("flaky") for step in behavior.steps)
    ]
    return [
        f"{name}: {outcomes.get(name)}, and {expected.get(name)} with a process per test"
        for name in sorted(set(outcomes) | set(expected))
        if outcomes.get(name) != expected.get(name) and name not in by_chance
    ]
