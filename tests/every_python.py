"""Runs the tests of the Python package on every other CPython that the machine has, from 3.9 to 3.13.

    python tests/every_python.py WHEEL

Interpreters are looked for on the path and where pyenv keeps them. Each gets an environment below target/venvs, with
the version of pytest that is named here: together they cover the oldest supported, the last of each major version and
the newest. Tests of other people's plugins run on the main Python only, and so do all variants of all tests: the others
share them out, so that each variant runs on one of them, by OFFLOAD_TEST_SHARE=K/N in the environment of each.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
VERSIONS = {
    "3.9": "pytest==7.0.1",
    "3.10": "pytest==7.4.4",
    "3.11": "pytest==8.0.2",
    "3.12": "pytest==8.4.2",
    "3.13": "pytest==9.2.0",
}


def main() -> int:
    """Returns 1 if the tests fail anywhere."""
    (wheel,) = sys.argv[1:]
    own = "{}.{}".format(*sys.version_info)
    results = {}
    others = {version: pytest for version, pytest in VERSIONS.items() if version != own}
    for number, (version, pytest) in enumerate(others.items()):
        python = find(version)
        if python is None:
            results[version] = "not on this machine"
            continue
        print(f"\n== CPython {version}, {pytest}", flush=True)
        environment = ROOT / "target" / "venvs" / version
        passed = run(prepare(environment, python, pytest, wheel), share=f"{number}/{len(others)}")
        results[version] = "passed" if passed else "FAILED"
    for version, result in results.items():
        print(f"CPython {version}, {VERSIONS[version]}: {result}")
    return int("FAILED" in results.values())


def find(version: str) -> str | None:
    """An interpreter of this version that runs."""
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
    candidates = [shutil.which(f"python{version}")]
    candidates += sorted(str(path) for path in pyenv.glob(f"versions/{version}.*/bin/python{version}"))
    for candidate in candidates:
        # pyenv's shims are on the path for versions that are not chosen.
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


def prepare(environment: pathlib.Path, python: str, pytest: str, wheel: str) -> pathlib.Path:
    """An environment with pytest and the wheel; returns its interpreter."""
    inside = environment / "bin" / "python"
    if not inside.exists():
        subprocess.run([python, "-m", "venv", str(environment)], check=True)
    pip = [str(inside), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, pytest], check=True)
    subprocess.run([*pip, "--force-reinstall", "--no-deps", wheel], check=True)
    return inside


def run(python: pathlib.Path, share: str) -> bool:
    """Whether the tests pass. They are offloaded: what they test runs them."""
    offload = ["--offload", "--offload-parallel=4"]
    command = [str(python), "-m", "pytest", "-q", *offload, "--ignore-glob=*plugins*", "python/tests"]
    env = {"OFFLOAD_TEST_SHARE": share, **os.environ}
    return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
