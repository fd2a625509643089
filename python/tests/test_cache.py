"""What is remembered between runs: `--lf`, `--ff`, `--nf`, `--sw`."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from conftest import Outcome, Runner

FIRST = {
    "test_a": "def test_1(): assert 0\ndef test_2(): pass\ndef test_3(): assert 0\ndef test_4(): pass",
    "test_b": "def test_1(): pass\ndef test_2(): assert 0",
    "test_c": "def test_1(): pass",
}
SECOND = {"test_a": FIRST["test_a"].replace("assert 0", "pass", 1), "test_d": "def test_new(): pass"}


def cache(run: Runner) -> dict[str, Any]:
    found = {}
    for name in ("lastfailed", "nodeids", "stepwise"):
        path = run.path / ".pytest_cache" / "v" / "cache" / name
        if path.exists():
            found[name] = json.loads(path.read_text())
    if isinstance(found.get("stepwise"), dict):
        found["stepwise"].pop("last_cache_date_str", None)
    return found


@pytest.mark.parametrize("flag", ["--lf", "--ff", "--nf", "--sw", "--lf --lfnf=none", "--sw --sw-skip"])
def test_next_runs(run: Runner, flag: str) -> None:
    seen: dict[str, list[tuple[Outcome, dict[str, Any]]]] = {"plain": [], "offload": []}
    stepwise = flag.startswith("--sw")
    for kind in seen:
        shutil.rmtree(run.path / ".pytest_cache", ignore_errors=True)
        for path in run.path.glob("test_*.py"):
            path.unlink()
        run.write(**FIRST)
        command = run.plain if kind == "plain" else run.offload
        seen[kind].append((command(*(flag.split() if stepwise else ())), cache(run)))
        run.write(**SECOND)
        for _ in range(3):
            seen[kind].append((command(*flag.split()), cache(run)))
    for plain, offload in zip(seen["plain"], seen["offload"]):
        assert offload[0].comparable() == plain[0].comparable(), plain[0].text + offload[0].text + offload[0].errors
        assert offload[1] == plain[1]


def test_status_lines_of_the_cache_are_shown(run: Runner) -> None:
    run.write(**FIRST)
    run.plain()
    text = run.offload("--lf").text
    assert "run-last-failure: rerun previous 3 failures" in text


def test_a_file_that_collects_again_is_forgotten(run: Runner) -> None:
    run.write(test_a="raise ValueError", test_b="def test_b(): pass")
    run.offload()
    assert cache(run)["lastfailed"] == {"test_a.py": True}
    run.write(test_a="def test_a(): pass")
    run.offload()
    assert cache(run).get("lastfailed") == {}


@pytest.mark.parametrize("collect", ["serial", "parallel"])
def test_what_was_collected_is_known_although_a_file_was_not(run: Runner, collect: str) -> None:
    run.write(test_a="import nothing_of_that_name", test_b="def test_1(): pass\ndef test_2(): pass")
    outcome = run.offload(f"--offload-collect={collect}")
    assert outcome.exit_code == 2, outcome.text
    assert cache(run)["nodeids"] == ["test_b.py::test_1", "test_b.py::test_2"]
