"""Scenarios of Cargo: a workspace that is built once, whose tests read at run time what they are to do."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path

import run
from run import Observed, Place, Result
from scenario import CARGO_BINARIES, CARGO_TESTS, Fault, Scenario

ROOT = Path(__file__).parent.parent.parent
RUNNER = ROOT / "target" / "debug" / "cargo-offload"
WORKSPACE = ROOT / "target" / "faults" / "workspace"

# What every test does: it says that it runs, acts, and says that it has come to its end.
ACT = """
fn note(word: &str, name: &str) {
    use std::io::Write as _;
    let path = std::env::var_os("FAULTS_LOG").expect("the log is known");
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).expect("the log can be opened");
    file.write_all(format!("{word} {name}\\n").as_bytes()).expect("the log can be written");
}

fn act(name: &str) {
    let scenario = std::env::var("FAULTS_SCENARIO").expect("the scenario is known");
    let scenario = std::fs::read_to_string(scenario).expect("there is a scenario");
    let action = scenario.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let action = action.expect("there is an action");
    note("begin", name);
    match action {
        "slow" => std::thread::sleep(std::time::Duration::from_millis(50)),
        "fail" => panic!("on purpose"),
        "flaky" => {
            let mark = format!("{}-{}", std::env::var("FAULTS_LOG").expect("it was there"), name.replace(':', "-"));
            if std::fs::File::create_new(mark).is_ok() {
                panic!("on purpose");
            }
        }
        _ => {}
    }
    note("end", name);
}
"""

FILES = {"alpha": "alpha/src/lib.rs", "beta": "beta/src/lib.rs"} | {
    f"beta::{name}": f"beta/tests/{name}.rs" for name in ("one", "two")
}

_building = threading.Lock()


def build() -> None:
    """Makes the workspace and builds its tests, unless that has been done."""
    with _building:
        texts = {"Cargo.toml": '[workspace]\nmembers = ["alpha", "beta"]\nresolver = "2"\n', "act.rs": ACT}
        for package in ("alpha", "beta"):
            texts[f"{package}/Cargo.toml"] = (
                f'[package]\nname = "{package}"\nversion = "0.1.0"\nedition = "2021"\n[lib]\ndoctest = false\n'
            )
        for binary, path in FILES.items():
            tests = "".join(f'#[test] fn t{n:02}() {{ act("{binary} t{n:02}") }}\n' for n in range(CARGO_TESTS))
            texts[path] = f'#[cfg(test)] include!("{"../" * (len(Path(path).parts) - 1)}act.rs");\n{tests}'
        for name, text in texts.items():
            file = WORKSPACE / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists() or file.read_text() != text:
                file.write_text(text)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CARGO_")}
        clean["CARGO_TARGET_DIR"] = str(WORKSPACE / "target")
        command = ["cargo", "test", "--quiet", "--offline", "--no-run", "--workspace"]
        subprocess.run(command, cwd=WORKSPACE, env=clean, check=True)


class Crates:
    """The workspace, with a scenario of its own."""

    def __init__(self, scenario: Scenario, place: Place) -> None:
        build()
        self.scenario, self.place = scenario, place
        lines = [f"{name}: {action}\n" for name, action in self.expected().items()]
        (place.base / "scenario").write_text("".join(lines))

    def expected(self) -> dict[str, str]:
        """What each test does, by its name."""
        return {
            f"{binary} t{number:02}": action
            for binary, actions in self.scenario.tests.items()
            for number, action in enumerate(actions)
        }

    def _selection(self) -> list[str]:
        """Options that select the tests of the scenario, of which there are as many tens in each program."""
        count = len(next(iter(self.scenario.tests.values())))
        words = {
            1: ["-p", "alpha", "--lib"],
            2: ["--workspace", "--lib"],
            3: ["--workspace", "--lib", "--test", "one"],
            4: ["--workspace", "--tests"],
        }[len(self.scenario.tests)]
        return [*words, *(f"t{ten}" for ten in range(count // 10))]

    def run(self, faults: list[Fault]) -> Observed:
        place = self.place
        place.clean()
        environment = {
            "FAULTS_LOG": str(place.log),
            "FAULTS_SCENARIO": str(place.base / "scenario"),
            "OFFLOAD_REPORT_OUTPUT_DIR": str(place.reports),
            "OFFLOAD_HISTORY_PATH": str(place.base / "history.jsonl"),
            "CARGO_TARGET_DIR": str(WORKSPACE / "target"),
        }
        command = [str(RUNNER), "offload", "--offline", "--manifest-path", str(WORKSPACE / "Cargo.toml")]
        command += ["--message-format", "json", *self.scenario.options, *self._selection()]
        code, done, left = run.watch("cargo", place, command, environment, faults, None)
        broken: list[str] = []
        elements = run.read_junit(place.reports / "junit.xml", broken)
        reports = {"junit.xml": elements} if elements is not None else {}
        if code >= 0 and elements is None:
            broken.append("there is no JUnit file")
        broken += [f"{name} is left of writing" for name in os.listdir(place.reports) if name.startswith((".", "tmp"))]
        history = run.read_text(place.base / "history.jsonl").splitlines()
        broken += [f"the history has the line {line!r}" for line in history if not _is_json(line)]
        begun, ended = run.read_log(place.log)
        text = run.read_text(place.output)
        results, said = self._results(killed=code < 0, broken=broken)
        left_files = run.left_files(place)
        return Observed(code, done, results, reports, broken, begun, ended, left, left_files, text + said)

    def _results(self, killed: bool, broken: list[str]) -> tuple[dict[str, Result], str]:
        """The tests that have an outcome, and what is said in words."""
        results: dict[str, Result] = {}
        said = ""
        *lines, last = run.read_text(self.place.results).split("\n")
        if last and not killed:
            broken.append(f"standard output ends in {last[-100:]!r}")
        for line in lines:
            event = json.loads(line)
            if event["event"] in ("problem", "warning"):
                said += f"{event['event']}: {event['text']}\n"
            elif event["event"] == "test_finished":
                name, outcome, attempts = event["test"]["id"], event["outcome"], event["attempts"]
                if name in results:
                    broken.append(f"two outcomes of {name}")
                if outcome == "not_run":
                    said += f"{name} was not run\n"
                    continue
                texts = [json.dumps(attempt) for attempt in attempts]
                passed = outcome in ("passed", "skipped")
                results[name] = Result(
                    outcome if passed else "failed",
                    False,
                    texts[-1] if texts and not passed else "",
                    texts[:-1],
                )
            elif event["event"] == "late_failure":
                result = results[event["test"]["id"]]
                result.torn_badly = True
            elif event["event"] == "run_finished" and event["summary"]["exit_code"] != 0:
                said += "offload: "
        return results, said

    def junit_name(self, report: str, name: str) -> str:
        """The element of a test."""
        binary, _, test = name.partition(" ")
        return f"{binary}::{test}"

    def stop(self) -> None:
        """Nothing was started."""


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


assert list(FILES) == CARGO_BINARIES
