"""What a seed stands for: tests with known outcomes, a way to run them, and faults with their moments."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass, field

# What a test does. Of everything but "flaky", which fails once, the outcome is the same whenever it runs.
ACTIONS = ["pass"] * 16 + ["slow"] * 3 + ["fail", "skip"]

SIGNALS = [signal.SIGKILL] * 4 + [signal.SIGTERM, signal.SIGINT] + [signal.SIGSTOP] * 2

# Processes of a run, and how often each is chosen.
ROLES = {
    "pytest": {"worker": 8, "template": 4, "orchestrator": 4, "keeper": 1, "test": 4, "all": 1},
    "ssh": {"worker": 5, "template": 3, "orchestrator": 3, "relay": 4, "holder": 3, "connection": 3, "client": 2},
    "cargo": {"test": 8, "orchestrator": 5, "watcher": 1, "all": 1},
}


@dataclass(frozen=True)
class Moment:
    """When a fault happens: some time after the count-th event of a kind."""

    # "line": a line in the tests' log; "result": a reported result; "process": a process of the fault's role.
    event: str
    count: int
    delay_secs: float

    def __str__(self) -> str:
        return f"{self.delay_secs * 1000:.0f} ms after {self.event} {self.count}"


@dataclass(frozen=True)
class Fault:
    """A signal for a process of a role."""

    role: str
    signal: signal.Signals
    moment: Moment
    # Which of several processes of this role, modulo how many there are.
    choice: int
    # How long a process stays stopped.
    stopped_secs: float = 0.0

    @property
    def is_lethal(self) -> bool:
        return self.signal != signal.SIGSTOP

    def __str__(self) -> str:
        how = f" for {self.stopped_secs:.2f} s" if not self.is_lethal else ""
        return f"{self.signal.name} to {self.role}{how}, {self.moment}"


@dataclass(frozen=True)
class Scenario:
    """A project, a way to run it, and the faults."""

    seed: int
    kind: str
    # By file or test binary, the action of each test.
    tests: dict[str, list[str]]
    options: tuple[str, ...]
    retries: int
    # A fixture of session scope: "", "quick", or "slow" to set up and tear down.
    session_fixture: str
    faults: list[Fault] = field(default_factory=list)
    over_ssh: bool = False

    def count(self) -> int:
        return sum(map(len, self.tests.values()))


def draw(seed: int, kind: str, with_ssh: bool) -> Scenario:
    """The scenario of a seed."""
    rng = random.Random(f"{kind} {seed}")
    retries = rng.choice([0, 0, 0, 1, 2])
    actions = ACTIONS + (["flaky"] if retries else [])
    over_ssh = kind == "pytest" and rng.random() < 0.15 and with_ssh
    if kind == "pytest":
        files = [f"test_{letter}.py" for letter in "abcdef"[: rng.randint(1, 6)]]
        options = pytest_options(rng, over_ssh)
    else:
        files = CARGO_BINARIES[: rng.randint(1, len(CARGO_BINARIES))]
        options = [f"-j{rng.randint(1, 4)}", f"--isolation={rng.choice(['process', 'binary'])}"]
    if kind == "cargo":
        actions = [action for action in actions if action != "skip"]
        each = rng.randint(1, CARGO_TESTS // 10) * 10
    else:
        each = max(1, rng.randint(20, 80 if over_ssh else 200) // len(files))
    tests = {name: [rng.choice(actions) for _ in range(each)] for name in files}
    if retries:
        options.append(("--offload-retries=" if kind == "pytest" else "--retries=") + str(retries))
    fixture = rng.choice(["", "quick", "slow"]) if kind == "pytest" else ""
    scenario = Scenario(seed, kind, tests, tuple(options), retries, fixture, [], over_ssh)
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3])):
        scenario.faults.append(draw_fault(rng, scenario))
    return scenario


# The programs of the workspace that is built once, and how many tests each has.
CARGO_BINARIES = ["alpha", "beta", "beta::one", "beta::two"]
CARGO_TESTS = 50


def pytest_options(rng: random.Random, over_ssh: bool) -> list[str]:
    options = [f"--offload-parallel={rng.randint(1, 3)}"]
    if rng.random() < 0.35:
        options.append("--offload-isolation=test")
    if not over_ssh and rng.random() < 0.6:
        options.append(f"--offload-start-method={rng.choice(['fork', 'spawn'])}")
    if rng.random() < 0.4:
        options.append(f"--offload-collect={rng.choice(['parallel', 'serial'])}")
    return options


def draw_fault(rng: random.Random, scenario: Scenario) -> Fault:
    weights = dict(ROLES["ssh" if scenario.over_ssh else scenario.kind])
    if scenario.kind == "pytest" and "--offload-isolation=test" not in scenario.options:
        weights.pop("test", None)
    role = rng.choices(list(weights), list(weights.values()))[0]
    event = rng.choices(["line", "result", "process"], [5, 2, 3])[0]
    # Most tests write two lines; those that fail or are skipped, one.
    most = {"line": scenario.count() * 7 // 4, "result": scenario.count(), "process": 2}[event]
    # The first tests are where most begins, the last where most ends.
    count = rng.choice([1, 2, rng.randint(1, most), rng.randint(1, most), max(1, most - rng.randint(0, 4))])
    count = min(count, most)
    if role == "all" or (event == "process" and role != "test"):
        count = 1
        event = "line" if role == "all" else event
    # Before the first test some hundred milliseconds are spent in starting.
    delay = rng.choice([0.0, rng.uniform(0, 0.01), rng.uniform(0, 0.4 if event == "process" else 0.06)])
    chosen = rng.choice(SIGNALS) if role != "all" else signal.SIGKILL
    stopped = rng.choice([rng.uniform(0.02, 0.2), rng.uniform(0.2, 1.5)]) if chosen == signal.SIGSTOP else 0.0
    return Fault(role, chosen, Moment(event, count, delay), rng.randint(0, 11), stopped)
