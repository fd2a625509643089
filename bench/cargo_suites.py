"""`cargo offload` beside cargo-nextest, `cargo test`, offload 0.10 and the floor of the operating system."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

from contest import ROOT, SLOTS, WORK, Contender, report, take_turns, write

OFFLOAD = ROOT / "target" / "release" / "cargo-offload"
EXAMPLES = ROOT / "target" / "release" / "examples"


def cargo_env(workspace: pathlib.Path) -> dict[str, str]:
    """The environment in which all contenders run: their own target directory, quiet and offline Cargo."""
    return {
        "CARGO_TARGET_DIR": str(workspace / "target"),
        "CARGO_NET_OFFLINE": "true",
        "CARGO_TERM_COLOR": "never",
        "CI": "true",
    }


def offload(name: str, workspace: pathlib.Path, *args: str) -> Contender:
    """`cargo offload` as a contender."""
    return Contender(name, [str(OFFLOAD), "offload", *args], workspace, cargo_env(workspace))


def nextest(workspace: pathlib.Path, *args: str, name: str = "cargo nextest run", **env: str) -> Contender:
    """`cargo nextest run` as a contender."""
    command = [installed("cargo-nextest"), "nextest", "run", *args]
    return Contender(name, command, workspace, {**cargo_env(workspace), **env})


def compare_process(runs: int) -> bool:
    """2,000 trivial tests, one process each, against nextest, offload 0.10 and the floor of the operating system."""
    workspace = trivial_workspace("trivial", crates=8, tests=250)
    build(workspace)
    ours = offload("cargo offload --isolation process", workspace, "--isolation", "process")
    floor = spawn_floor(workspace)
    single = nextest(workspace, name="cargo nextest run, NEXTEST_DOUBLE_SPAWN=0", NEXTEST_DOUBLE_SPAWN="0")
    contenders = [ours, floor, nextest(workspace), single, offload_0_10(workspace)]
    take_turns(contenders, runs)
    return report(
        "2,000 trivial tests in 8 crates, already built",
        contenders,
        [(ours.name, "cargo nextest run", 0.45), (ours.name, "floor", 1.3)],
    )


def compare_shared(runs: int) -> bool:
    """The same in processes that tests share, against `cargo test`."""
    workspace = trivial_workspace("trivial", crates=8, tests=250)
    build(workspace)
    ours = offload("cargo offload", workspace)
    binary = offload("cargo offload --isolation binary", workspace, "--isolation", "binary")
    theirs = Contender("cargo test", ["cargo", "test"], workspace, cargo_env(workspace))
    take_turns([ours, binary, theirs], runs)
    title = "2,000 trivial tests in 8 crates, already built, in processes that they share"
    return report(title, [ours, binary, theirs], [(ours.name, theirs.name, 1.0), (binary.name, theirs.name, 1.5)])


def compare_overlap(runs: int) -> bool:
    """From a clean target directory: tests that sleep beside a test target that compiles for about 10 s."""
    workspace = overlap_workspace()
    ours = offload("cargo offload", workspace)
    theirs = nextest(workspace)

    def clean(_: Contender) -> None:
        shutil.rmtree(workspace / "target", ignore_errors=True)

    take_turns([ours, theirs], max(3, runs // 2), before=clean, warmup=0)
    title = "clean build: 20 tests that sleep 0.5 s beside a target that compiles for about 10 s"
    return report(title, [ours, theirs], [(ours.name, theirs.name, 0.75)])


def compare_fixed(runs: int) -> bool:
    """One trivial test: what a run costs before and after its tests."""
    workspace = trivial_workspace("single", crates=1, tests=1)
    build(workspace)
    ours = offload("cargo offload", workspace)
    theirs = nextest(workspace)
    take_turns([ours, theirs], runs * 4, warmup=2)
    return report("one trivial test, already built", [ours, theirs], [(ours.name, theirs.name, 1.0)])


def simulate_scheduler(_: int) -> bool:
    """1,000,000 tests over 10,000 sandboxes in virtual time; prints its own table and checks its own bounds."""
    print("\n## 1,000,000 tests over 10,000 simulated sandboxes\n")
    sys.stdout.flush()
    return subprocess.run([str(EXAMPLES / "simulate_scheduler")], check=False).returncode == 0


def build(workspace: pathlib.Path) -> None:
    """Builds the tests and the doctests' libraries, so that no contender has to."""
    env = {**os.environ, **cargo_env(workspace)}
    subprocess.run(["cargo", "test", "--quiet"], cwd=workspace, env=env, check=True, capture_output=True)


def spawn_floor(workspace: pathlib.Path) -> Contender:
    """A bare program that only spawns and waits: as many threads, the same processes."""
    env = {**os.environ, **cargo_env(workspace)}
    listing = subprocess.run(
        [str(OFFLOAD), "offload", "list", "--message-format", "json"],
        cwd=workspace, env=env, check=True, capture_output=True, text=True,
    )  # fmt: skip
    tests = workspace / "target" / "tests.tsv"
    tests.write_text(spawn_lines(listing.stdout))
    return Contender("floor", [str(EXAMPLES / "spawn_floor"), str(SLOTS), str(tests)], workspace)


def spawn_lines(listing: str) -> str:
    """The tests of a JSON listing as `program<TAB>test` lines."""
    tests = json.loads(listing)["tests"]
    return "".join(f"{test['program']}\t{test['name']}\n" for test in tests)


def offload_0_10(workspace: pathlib.Path) -> Contender:
    """The published system whose API this project implements, on local sandboxes (it runs nextest)."""
    program = installed("offload", version="0.10.0")
    (workspace / "offload-0.10.toml").write_text(
        "[offload]\n"
        f'max_parallel = {SLOTS}\nsandbox_project_root = "{workspace}"\n\n'
        '[provider]\ntype = "local"\n\n[framework]\ntype = "nextest"\n\n[groups.all]\nretry_count = 0\n\n'
        f'[report]\noutput_dir = "{workspace / "target" / "offload-0.10"}"\n'
    )
    command = [program, "-c", "offload-0.10.toml", "run"]
    return Contender("offload 0.10", command, workspace, cargo_env(workspace))


def installed(crate: str, version: str | None = None) -> str:
    """The program of a published crate, installed below target/bench when it is not on the path."""
    on_path = None if version else shutil.which(crate)
    if on_path:
        return on_path
    program = WORK / "tools" / "bin" / crate
    if not program.exists():
        print(f"installing {crate} …", file=sys.stderr)
        pinned = ["--version", version] if version else []
        subprocess.run(["cargo", "install", crate, *pinned, "--root", str(WORK / "tools"), "--locked"], check=True)
    return str(program)


def write_crate(workspace: pathlib.Path, name: str, files: dict[str, str]) -> None:
    """Writes one member of a workspace."""
    manifest = f'[package]\nname = "{name}"\nversion = "0.1.0"\nedition = "2021"\n'
    for path, text in {"Cargo.toml": manifest, **files}.items():
        write(workspace / name / path, text)


def write_workspace(workspace: pathlib.Path, members: list[str]) -> None:
    """Writes a workspace's own manifest."""
    names = ", ".join(f'"{member}"' for member in members)
    write(workspace / "Cargo.toml", f'[workspace]\nresolver = "2"\nmembers = [{names}]\n')


def trivial_workspace(name: str, crates: int, tests: int) -> pathlib.Path:
    """Crates whose tests do nothing."""
    workspace = WORK / name
    members = [f"crate{number}" for number in range(crates)]
    write_workspace(workspace, members)
    body = "".join(f"    #[test]\n    fn trivial_{number:03}() {{}}\n" for number in range(tests))
    for member in members:
        library = f"pub fn one() -> u32 {{ 1 }}\n\n#[cfg(test)]\nmod tests {{\n{body}}}\n"
        write_crate(workspace, member, {"src/lib.rs": library})
    return workspace


def overlap_workspace() -> pathlib.Path:
    """One crate that is quickly there and whose tests sleep, one whose test target rustc works on for about 10 s."""
    workspace = WORK / "overlap"
    write_workspace(workspace, ["quick", "slow"])
    sleeper = (
        "    #[test]\n    fn sleeps_{number:02}() {{ std::thread::sleep(std::time::Duration::from_millis(500)); }}\n"
    )
    body = "".join(sleeper.format(number=number) for number in range(20))
    write_crate(workspace, "quick", {"src/lib.rs": f"#[cfg(test)]\nmod tests {{\n{body}}}\n"})
    calibration = workspace / "functions.txt"
    if not calibration.exists():
        calibration.write_text(str(functions_for(10.0)))
    heavy = heavy_source(int(calibration.read_text()))
    write_crate(workspace, "slow", {"src/lib.rs": "", "tests/heavy.rs": heavy})
    return workspace


def heavy_source(functions: int) -> str:
    """A test target that keeps rustc busy in proportion to `functions`."""
    function = (
        "fn f{n}(v: &[u64]) -> Vec<String> {{\n"
        "    let mut m = std::collections::BTreeMap::new();\n"
        '    for (i, x) in v.iter().enumerate() {{ m.insert(format!("{{}}-{{}}", i, x + {n}), [*x; {n} % 7 + 1]); }}\n'
        '    let mut out: Vec<String> = m.iter().map(|(k, w)| format!("{{k}}:{{w:?}}:{n}")).collect();\n'
        "    out.sort_by_key(|s| s.len() as u64 * {n});\n"
        "    out.into_iter().filter(|s| s.len() != {n}).collect()\n"
        "}}\n"
    )
    calls = "".join(f"    total += f{number}(&[1, 2, 3]).len();\n" for number in range(functions))
    body = "".join(function.format(n=number) for number in range(functions))
    return f"{body}\n#[test]\nfn all() {{\n    let mut total = 0;\n{calls}    assert!(total > 0);\n}}\n"


def functions_for(seconds: float) -> int:
    """How many functions keep this machine's rustc busy for that long, from a compilation of a few."""
    sample = 300
    probe = WORK / "calibration"
    write_workspace(probe, ["probe"])
    write_crate(probe, "probe", {"src/lib.rs": "", "tests/heavy.rs": heavy_source(sample)})
    env = {**os.environ, **cargo_env(probe)}

    def build_time() -> float:
        shutil.rmtree(probe / "target", ignore_errors=True)
        begun = time.perf_counter()
        subprocess.run(["cargo", "test", "--no-run", "--quiet"], cwd=probe, env=env, check=True, capture_output=True)
        return time.perf_counter() - begun

    return max(sample, round(sample * seconds / build_time()))
