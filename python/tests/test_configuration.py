"""What is configured in files and in the environment counts as if it had been typed, and less than what was typed."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from conftest import Runner

TESTS = "\n".join(f"def test_{number}(): pass" for number in range(4))
PYTEST = '[provider]\ntype = "local"\n[framework]\ntype = "pytest"\n'


def file(run: Runner, name: str, text: str) -> Path:
    path = run.path / name
    path.write_text(text, encoding="utf-8")
    return path


def offload(run: Runner, *args: str):
    """Without the parallelism that other tests type."""
    return run._run("-p", "recorder", "--offload", *args)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pyproject.toml", "[tool.offload]\nmax_parallel = 3\n"),
        ("pyproject.toml", "[tool.offload.offload]\nmax_parallel = 3\n"),
        ("offload.toml", f"[offload]\nmax_parallel = 3\n{PYTEST}"),
    ],
)
def test_files_are_found_and_the_command_line_comes_first(
    run: Runner, name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write(test_a=TESTS)
    file(run, name, text)
    assert "offload: 3 sandboxes of provider local" in offload(run).text
    monkeypatch.setenv("OFFLOAD_MAX_PARALLEL", "4")
    assert "offload: 4 sandboxes of provider local" in offload(run).text
    assert "offload: 5 sandboxes of provider local" in offload(run, "--offload-parallel=5").text


def test_a_named_file_is_used_instead(run: Runner) -> None:
    run.write(test_a=TESTS)
    file(run, "pyproject.toml", "[tool.offload]\nmax_parallel = 3\n")
    file(run, "ci.toml", f"[offload]\nmax_parallel = 2\n{PYTEST}")
    assert "offload: 2 sandboxes" in offload(run, "--offload-config=ci.toml").text


def test_every_key_that_is_honoured(run: Runner) -> None:
    run.write(
        test_a="""
import os, time
def test_environment():
    assert os.environ["A"] == "from framework"
    assert os.environ["B"] == "from provider"
    assert os.environ["ROOT"] == os.getcwd()
    assert os.environ["PATH"].startswith(os.getcwd() + "/tools" + os.pathsep)
def test_flaky():
    if not os.path.exists("seen"):
        open("seen", "w").close()
        assert 0
def test_slow(): time.sleep(60)
def test_worker(worker_id): pass
"""
    )
    file(
        run,
        "pyproject.toml",
        """
[tool.offload]
max_parallel = 2
retry_count = 1
test_timeout_secs = 1.5
[tool.offload.provider]
env = { A = "from provider", B = "from provider" }
[tool.offload.framework]
env = { A = "from framework", ROOT = "{root}" }
prepend_path = ["{root}/tools"]
isolation = "test"
dist = "loadfile"
collect = "serial"
start_method = "spawn"
[tool.offload.report]
output_dir = "reports"
[tool.offload.history]
path = "reports/history.jsonl"
record_history = "always"
""",
    )
    outcome = offload(run)
    assert outcome.counts == {"passed": 3, "failed": 1, "rerun": 2}, outcome.text
    assert "ran longer than its limit of 1.5 s" in outcome.text
    assert "workers are started fresh (--offload-start-method=spawn), one process collects" in outcome.text
    assert "FLAKY test_a.py::test_flaky" in outcome.text
    root = ElementTree.parse(run.path / "reports" / "junit.xml").getroot()
    assert len(root.findall(".//testcase")) == 4
    assert '"test_a.py::test_flaky"' in (run.path / "reports" / "history.jsonl").read_text()


def test_max_fail_is_that_of_pytest(run: Runner) -> None:
    run.write(test_a="\n".join(f"def test_{number}(): assert 0" for number in range(6)))
    file(run, "pyproject.toml", "[tool.offload]\nmax_fail = 2\n")
    outcome = offload(run)
    assert outcome.counts == {"failed": 2}
    assert "stopping after 2 failures" in outcome.text
    assert offload(run, "--maxfail=3").counts == {"failed": 3}


def test_what_is_wrong_is_shown_where_it_is(run: Runner) -> None:
    run.write(test_a=TESTS)
    file(run, "pyproject.toml", '[tool.offload]\nmax_paralel = 3\nretry_count = "two"\n')
    outcome = offload(run)
    assert outcome.exit_code == 4
    assert "did you mean `max_parallel`?" in outcome.errors
    assert "pyproject.toml:3:15" in outcome.errors
    assert "Traceback" not in outcome.errors + outcome.text
    missing = offload(run, "--offload-config=nowhere.toml")
    assert missing.exit_code == 4
    assert "nowhere.toml" in missing.errors


def test_what_has_no_effect_is_said(run: Runner) -> None:
    run.write(test_a=TESTS)
    file(run, "pyproject.toml", "[tool.offload.groups.slow]\nfilters = '-m slow'\n")
    assert "offload: groups are for `offload run`" in offload(run).text
    # The file of the other half of a repository.
    file(run, "offload.toml", '[offload]\nmax_parallel = 7\n[provider]\ntype = "local"\n[framework]\ntype = "cargo"\n')
    outcome = offload(run)
    assert outcome.exit_code == 0
    assert "is for the framework `cargo`, and not used" in outcome.text
    assert "7 sandboxes" not in outcome.text
    assert offload(run, "--offload-config=offload.toml").exit_code == 4


def test_durations_are_kept_in_the_cache_and_nowhere_else(run: Runner) -> None:
    run.write(test_a=TESTS)
    # The first run leaves what these tests themselves write.
    assert offload(run, "-p", "no:cacheprovider").exit_code == 0
    before = {path.name for path in run.path.iterdir()}
    assert offload(run).exit_code == 0
    durations = run.path / ".pytest_cache" / "d" / "offload" / "durations.jsonl"
    assert durations.read_text().count('"passed":{"n":1,') == 4
    # A cache that pytest has made: with what tells version control and backups to leave it alone.
    assert (run.path / ".pytest_cache" / ".gitignore").exists()
    assert {path.name for path in run.path.iterdir()} - before <= {".pytest_cache", "runpytest-1"}
    assert offload(run, "-k", "test_1").exit_code == 0
    assert durations.read_text().count('"passed":{"n":1,') == 3
    durations.unlink()
    assert offload(run, "-p", "no:cacheprovider").exit_code == 0
    assert not durations.exists()


def test_what_is_not_a_directory_is_no_cache(run: Runner) -> None:
    run.write(test_a=TESTS)
    (run.path / ".pytest_cache").touch()
    seen = [command("-q") for command in (run.plain, run.offload)]
    assert seen[0].comparable() == seen[1].comparable()
    assert seen[1].exit_code == 0
    assert not seen[1].errors


def test_secrets_are_in_nothing_that_is_said(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTSIDE", "swordfish-1")
    run.write(
        test_a="""
import json, os, sys, warnings
def test_it(record_property):
    assert os.environ["TOKEN"] == "hunter2<'>" and os.environ["OTHER"] == "swordfish-1"
    print(json.dumps(dict(os.environ)))
    print(os.environ["TOKEN"], file=sys.stderr)
    warnings.warn(os.environ["TOKEN"])
    record_property("token", os.environ["TOKEN"])
    assert os.environ["TOKEN"] == "else", os.environ["OTHER"]
@pytest.mark.parametrize("word", [os.environ.get("OTHER", "none")])
def test_named(word): pass
def test_skipped(): pytest.skip(os.environ["TOKEN"])
""",
    )
    env = '[tool.offload.provider.env]\nTOKEN = { value = "hunter2<\'>", secret = true }\nOTHER = "${OUTSIDE}"\n'
    file(run, "pyproject.toml", env)
    monkeypatch.setenv("OFFLOAD_REPORT_OUTPUT_DIR", str(run.path / "ours"))
    outcome = run.offload("-rA", "-vv", "--junitxml=theirs.xml", "--durations=0")
    assert outcome.counts == {"failed": 1, "passed": 1, "skipped": 1, "warnings": 2}
    written = [run.path / "theirs.xml", run.path / "ours" / "junit.xml", run.path / "record.json"]
    written += (run.path / ".pytest_cache").rglob("*")
    texts = [outcome.text, outcome.errors]
    texts += [path.read_text(encoding="utf-8") for path in written if path.is_file()]
    for text in texts:
        assert "hunter2" not in text
        assert "swordfish" not in text
    assert '"TOKEN": "***"' in outcome.text
    assert "PASSED test_a.py::test_named[***]" in outcome.text
