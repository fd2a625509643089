"""Containers of `offload run` and `pytest --offload` beside those of `docker run`."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import time

import pytest_suites
from contest import ROOT, WORK, Contender, report, take_turns, write

OFFLOAD = ROOT / "target" / "release" / "offload"
CONTAINERS = 20
#: What an image for a test suite may well have, on top of the 100 MB of that of the tests.
PADDING_MB = 100
IMAGE = "offload-bench:large"

WORKERS = 4
#: Where it is in the image that has it.
XDIST = "/xdist"
XDIST_PACKAGES = ["pytest-xdist==3.8.0", "execnet==2.1.2"]

#: Waits until all containers are there, so that none can be spared.
MEET = (
    f"touch /seen/$(cat /proc/sys/kernel/hostname); until [ $(ls /seen | wc -l) -ge {CONTAINERS} ]; do sleep 0.02; done"
)


def compare_start(runs: int) -> bool:
    """20 containers from an image of 200 MB after a one-line change of the project, against 20 times `docker run`."""
    base = image_of_tests()
    if not base:
        return True
    make_image(base)
    project, seen = WORK / "containers", WORK / "seen"
    write_project(project, seen)
    ours = Contender("offload run, one line changed", [str(OFFLOAD), "run"], project)
    unchanged = Contender("offload run, nothing changed", [str(OFFLOAD), "run"], project)
    each = f'docker run --rm --volume "{seen}:/seen" {IMAGE} /bin/sh -c "$MEET" &'
    line = f"for n in $(seq {CONTAINERS}); do {each} done; wait"
    theirs = Contender(f"{CONTAINERS} x docker run, at once", ["/bin/sh", "-c", line], project, {"MEET": MEET})

    def before(contender: Contender) -> None:
        shutil.rmtree(seen, ignore_errors=True)
        seen.mkdir()
        if contender is ours:
            (project / "src" / "module_0.txt").write_text(f"changed at {time.time_ns()}\n")

    contenders = [ours, unchanged, theirs]
    take_turns(contenders, runs, before)
    subprocess.run([str(OFFLOAD), "clean"], cwd=project, check=True, capture_output=True)
    met = report(
        f"{CONTAINERS} containers from an image of {100 + PADDING_MB} MB after a one-line change",
        contenders,
        [(ours.name, theirs.name, 1.5)],
    )
    beyond = ours.median - unchanged.median
    verdict = "met" if beyond < 1 else "MISSED"
    print(f"- what the change costs, to all {CONTAINERS}: **{beyond:.2f} s** (target: less than 1 s; {verdict})")
    return met and beyond < 1


def compare_workers(runs: int) -> bool:
    """5,000 trivial pytest tests in 4 containers, against pytest-xdist with 4 workers inside one."""
    base = image_of_tests()
    if not base:
        return True
    suite = pytest_suites.trivial_suite("docker-workers")
    # Byte code is the container's own affair, on both sides.
    write(suite / ".gitignore", "__pycache__/\n")
    write(suite / "offload.toml", f'[provider]\ntype = "docker"\nimage = "{base}"\n[framework]\ntype = "pytest"\n')
    image = make_xdist_image(base, suite)
    ours = pytest_suites.offload("pytest --offload, 4 containers", suite, f"--offload-parallel={WORKERS}")
    inside = ["python3", "-m", "pytest", "-q", f"-n{WORKERS}"]
    command = ["docker", "run", "--rm", "--env", f"PYTHONPATH={XDIST}", "--workdir", "/suite"]
    theirs = Contender(f"pytest -n{WORKERS} in one container", [*command, image, *inside], suite)
    # Whoever mounts the suite has the byte code of the run before.
    mounted = [*command, "--volume", f"{mounted_copy(suite)}:/suite", image, *inside]
    cached = Contender("…, suite mounted, byte code cached", mounted, suite)
    take_turns([ours, theirs, cached], runs)
    subprocess.run([str(OFFLOAD), "clean"], cwd=suite, check=True, capture_output=True)
    title = f"pytest: 5,000 trivial tests in {WORKERS} containers"
    return report(title, [ours, theirs, cached], [(ours.name, theirs.name, 0.6)])


def image_of_tests() -> str | None:
    """The image that the tests use, if there is a daemon that has it."""
    base = os.environ.get("OFFLOAD_TEST_IMAGE")
    if not base:
        print("\n## docker: skipped, there is no daemon with the image of the tests (tests/with_docker.sh)")
    return base


def make_xdist_image(base: str, suite: pathlib.Path) -> str:
    """The image of the tests with pytest-xdist and the suite."""
    image, name, xdist = "offload-bench:xdist", "offload-bench-xdist", WORK / "xdist"
    if not xdist.exists():
        pip = [str(pytest_suites.environment(pytest_suites.VENV, pytest_suites.PACKAGES)), "-m", "pip"]
        install = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", str(xdist)]
        subprocess.run([*pip, *install, *XDIST_PACKAGES], check=True)
    compile_all = f"python3 -m compileall -q {XDIST}; rm -rf /suite/*/__pycache__"
    for command in (
        ["docker", "rm", "--force", name],
        ["docker", "create", "--name", name, base, "/bin/sh", "-c", compile_all],
        ["docker", "cp", str(xdist), f"{name}:{XDIST}"],
        ["docker", "cp", str(suite), f"{name}:/suite"],
        ["docker", "start", "--attach", name],
        ["docker", "commit", name, image],
        ["docker", "rm", name],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return image


def mounted_copy(suite: pathlib.Path) -> pathlib.Path:
    """A copy of a suite, for containers to write into."""
    copy = suite.with_name(f"{suite.name}-mounted")
    shutil.rmtree(copy, ignore_errors=True)
    return shutil.copytree(suite, copy)


def make_image(base: str) -> None:
    """The image of the tests with more in it."""
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False).returncode == 0:
        return
    name = "offload-bench-large"
    fill = f"dd if=/dev/urandom of=/padding bs=1M count={PADDING_MB}"
    for command in (
        ["docker", "run", "--name", name, base, "/bin/sh", "-c", fill],
        ["docker", "commit", name, IMAGE],
        ["docker", "rm", name],
    ):
        subprocess.run(command, check=True, capture_output=True)


def write_project(project: pathlib.Path, seen: pathlib.Path) -> None:
    """A project of some files, with as many tests as there are to be containers."""
    for number in range(500):
        write(project / "src" / f"module_{number}.txt", f"module {number}\n" * 50)
    for number in range(CONTAINERS):
        write(project / "t" / f"{number}.sh", MEET + "\n")
    write(
        project / "offload.toml",
        f"""[offload]
max_parallel = {CONTAINERS}
[provider]
type = "docker"
image = "{IMAGE}"
mounts = ["{seen}:/seen"]
[framework]
type = "default"
discover_command = "ls t/*.sh"
run_command = 'for test in {{tests}}; do sh "$test" || exit 1; done'
test_id_format = "{{name}}"
[groups.each]
schedule_individual = true
[history]
default_duration_secs = 600
""",
    )
