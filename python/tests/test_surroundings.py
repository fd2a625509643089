"""A run works where plain pytest does: with closed descriptors, and without the directory for temporary files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Runner, plugins


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_run_works_with_closed_standard_descriptors(run: Runner, closed: str, start: str) -> None:
    run.write(test_a="def test_a(): pass\ndef test_b(): print('written'); assert 0")
    # faulthandler's plugin needs a standard error.
    command = [sys.executable, "-m", "pytest", *plugins(), "-p", "no:faulthandler", "-v"]
    offload = ["--offload", "--offload-parallel=2", f"--offload-start-method={start}"]
    for args in ([], offload):
        shell = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *command, *args]
        ended = subprocess.run(shell, cwd=run.path, stdout=subprocess.PIPE, timeout=180, check=False)
        text = ended.stdout.decode()
        assert ended.returncode == 1, text
        assert "1 failed, 1 passed" in text, text
        assert "written" in text


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_run_works_where_tmpdir_is_gone(
    run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, start: str
) -> None:
    run.write(test_a="import os, tempfile\ndef test_a(tmp_path): open('where', 'w').write(tempfile.gettempdir())")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    where = []
    for outcome in (run.plain(), run.offload(f"--offload-start-method={start}")):
        assert outcome.exit_code == 0, outcome.text
        where.append((run.path / "where").read_text())
    assert where[0] == where[1] != str(tmp_path / "gone")
