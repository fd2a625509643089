"""Published crates: `cargo offload` beside `cargo test` and cargo-nextest."""

from __future__ import annotations

import os
import pathlib
import shutil
import statistics
import subprocess
import sys

from cargo_suites import build, cargo_env, nextest, offload
from contest import WORK, Contender, take_turns, write

#: By version, so that a comparison can be repeated.
CRATES = {
    "bytes": "1.12.2",
    "indexmap": "2.7.1",
    "itertools": "0.14.0",
    "regex-syntax": "0.8.5",
    "semver": "1.0.28",
    "serde_json": "1.0.82",
    "textwrap": "0.16.4",
}

#: The ratios that are quoted: who, against whom, at most how many times its median, in the mean and for each.
TARGETS = (
    ("cargo offload", "cargo test", 0.85, 1.1),
    ("cargo offload --tests", "cargo nextest run", 0.30, 0.7),
    ("cargo offload --tests", "cargo test --tests", 0.85, 1.1),
)


def compare_real(runs: int) -> bool:
    """Each crate by itself, already built."""
    found: dict[str, list[Contender]] = {}
    for name, version in CRATES.items():
        workspace = unpacked(name, version)
        build(workspace)
        env = cargo_env(workspace)
        contenders = [
            Contender("cargo test", ["cargo", "test", "--quiet"], workspace, env),
            offload("cargo offload", workspace),
            Contender("cargo test --tests", ["cargo", "test", "--quiet", "--tests"], workspace, env),
            offload("cargo offload --tests", workspace, "--tests"),
            nextest(workspace),
        ]
        take_turns(contenders, runs, warmup=2)
        found[f"{name} {version}"] = contenders
    return report(found)


def report(found: dict[str, list[Contender]]) -> bool:
    """Prints seconds and CPU seconds of each command, then the ratios."""
    print("\n## Published crates, already built\n")
    names = [contender.name for contender in next(iter(found.values()))]
    print(f"| median s (CPU s) | {' | '.join(names)} |")
    print(f"| --- |{' ---: |' * len(names)}")
    for crate, contenders in found.items():
        cells = (f"{contender.median:.2f} ({contender.cpu:.2f})" for contender in contenders)
        print(f"| {crate} | {' | '.join(cells)} |")
    print()
    met_all = True
    for who, against, most, most_each in TARGETS:
        ratios = {}
        for crate, contenders in found.items():
            medians = {contender.name: contender.median for contender in contenders}
            ratios[crate] = medians[who] / medians[against]
        mean, (worst, ratio) = statistics.geometric_mean(ratios.values()), max(ratios.items(), key=lambda pair: pair[1])
        met = mean <= most and ratio <= most_each
        met_all = met_all and met
        print(
            f"- {who} / {against}: geometric mean **{mean:.2f}**, at most {ratio:.2f} ({worst}) "
            f"(target: at most {most:.2f} and {most_each:.2f}; {'met' if met else 'MISSED'})"
        )
    sys.stdout.flush()
    return met_all


def unpacked(name: str, version: str) -> pathlib.Path:
    """A copy of a published crate, with a lock file of what its tests need."""
    workspace = WORK / "crates" / f"{name}-{version}"
    if not (workspace / "Cargo.lock").exists():
        shutil.copytree(downloaded(name, version), workspace, dirs_exist_ok=True)
        manifest = workspace / "Cargo.toml"
        if "[workspace]" not in manifest.read_text():
            # It is below this project, and no member of it.
            manifest.write_text(manifest.read_text() + "\n[workspace]\n")
        (workspace / "Cargo.lock").unlink(missing_ok=True)
        subprocess.run(["cargo", "fetch", "--quiet"], cwd=workspace, check=True)
    return workspace


def downloaded(name: str, version: str) -> pathlib.Path:
    """Where Cargo keeps the sources of a published crate."""
    fetcher = WORK / "crates" / "fetcher" / name
    manifest = '[package]\nname = "fetcher"\nversion = "0.0.0"\nedition = "2021"\n\n[workspace]\n\n[dependencies]\n'
    write(fetcher / "Cargo.toml", f'{manifest}{name} = "={version}"\n')
    write(fetcher / "src" / "lib.rs", "")
    subprocess.run(["cargo", "fetch", "--quiet"], cwd=fetcher, check=True)
    home = pathlib.Path(os.environ.get("CARGO_HOME") or pathlib.Path.home() / ".cargo")
    return next((home / "registry" / "src").glob(f"*/{name}-{version}"))
