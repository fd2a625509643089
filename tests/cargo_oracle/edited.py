"""Runs the workspaces of `project`, one edit after the other, and says what is not as it has to be."""

from __future__ import annotations

import shutil
from pathlib import Path

from compare import cases_of, of_reports
from execute import HUNG, Run, log_name, run_cargo_test, run_offload
from project import Project, State

# What a compiler does that is now slow, now fast.
WRAPPER = """#!/bin/sh
case " $* " in *" --crate-name p"*) sleep "0.$(( $(date +%N | cut -c5) % 4 ))" ;; esac
exec "$@"
"""


def trial(project: Project, program: Path, directory: Path) -> tuple[list[str], Run | None]:
    """What is wrong, and the run in which it is."""
    where = directory / "project"
    state = State(project)
    environment: dict[str, str] = {}
    if project.slow_compiler:
        wrapper = directory / "wrapper"
        wrapper.write_text(WRAPPER)
        wrapper.chmod(0o755)
        environment["RUSTC_WRAPPER"] = str(wrapper)
    for number, edit in enumerate(project.edits):
        state.edit(edit)
        state.write(where)
        arguments = list(project.arguments)
        if state.feature:
            arguments += ["--features", ",".join(f"{package.name}/extra" for package in project.packages)]
        ours = run_offload(
            program, where, directory / f"ours-{number}", [*arguments, *project.options], [], environment
        )
        said = of_reports(ours) if ours.code != HUNG else ["the run did not end"]
        said += of_step(state, ours)
        if not said and not state.broken:
            # The same build: so nothing is compiled again.
            plain = run_cargo_test(where, directory / f"plain-{number}", arguments, [], environment)
            words = {"ok": "passed", "FAILED": "failed"}
            told = {name: words[line] for name, line in plain.lines.items()}
            if told != state.expected():
                said.append(f"cargo test: {told} in place of {state.expected()}\n{plain.output[-2000:]}")
            if "Compiling" in plain.output:
                said.append("cargo test compiles again what has been built")
        for left in ("ours", "plain"):
            shutil.rmtree(directory / f"{left}-{number}" / "tmp", ignore_errors=True)
        if said:
            return [f"run {number + 1}, after {edit}", *said], ours
    return [], None


def of_step(state: State, ours: Run) -> list[str]:
    said = [f"left behind: {what}" for what in ours.left]
    outcomes = {log_name(case.name): case.outcome for case in cases_of(ours) if case.suite != "problems of the run"}
    expected = state.expected()
    for check in state.project.checks:
        outcome = outcomes.get(check.name)
        if state.spoiled(check) and outcome == "passed":
            said.append(f"{check.name}: passed, and what it looks at cannot have been built")
        elif outcome != expected[check.name] and not state.broken:
            said.append(f"{check.name}: {outcome} in place of {expected[check.name]}")
        elif outcome == "passed" and expected[check.name] != "passed":
            said.append(f"{check.name}: passed in place of failed")
        if outcome == "passed" and not ours.done.ends[check.name]:
            said.append(f"{check.name}: passed, and it did not run to its end")
    code = 3 if state.broken else int("failed" in expected.values())
    if ours.code != code:
        said.append(f"exit code {ours.code} in place of {code}")
    return said
