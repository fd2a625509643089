"""Scenarios: what the tests of the workspace in `workspace/` do, which of them are selected, and how they are run.

That workspace is built once. Its tests read their steps from a file, so that a seed costs no compiler.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

# The tests of each binary, by the name of its module.
STANDARD = ["a", "b", "c", "d", "e_ignored", "f_ignored", "g_panics", "h_expected", *"ijklmnop"]

# Steps after which a test goes on.
QUIET_STEPS = ["slow", "print", "thread", "catch", "child-holds", "child-quiet", "hook", "fork:0", "fork:300"]
RAW_STEPS = ["flood", "invalid", "unfinished", "pretend", "pretend-end", "json", "verdict", "log-words", "fork:return"]
# Steps after which the harness's own words are lost.
CUTS = ["close", "redirect"]
# Steps that later tests of the same process notice, which look for something or need it.
DIRTY = ["dirty", "dirty:env", "dirty:dir", "dirty:no-dir"]
CLEAN = ["clean", "clean:env", "clean:dir"]
NEEDS = ["needs", "needs:env", "needs:dir"]
# Steps that strike while the next test runs, or after the last one of the process.
LATE = ["late-exit"]
AT_EXIT = ["at-exit:-1", "at-exit:3"]
HANGS = ["hang", "hang:stubborn"]
FAILURES = ["panic", "panic", "panic-any", "panic-thread"]
# Steps that end the process: with an exit code that the harness has, too, and otherwise.
EXITS = ["exit:0", "exit:101", "quit:0"]
CRASHES = ["exit:1", "quit:3", "abort", "signal:9", "signal:15", "group:9", "group:15", "overflow", "double"]


@dataclass(frozen=True)
class Selection:
    """Arguments of `cargo test`, and the modules whose tests they may select."""

    arguments: tuple[str, ...]
    modules: tuple[str, ...]


HARNESS = [
    ("--nocapture",),
    ("--show-output",),
    ("--test-threads=4",),
    ("--test-threads", "1"),
    ("--quiet",),
    ("--color=always",),
]

ALPHA = ("alpha_lib", "alpha_bin", "alpha_example", "alpha_one", "alpha_two", "alpha_opaque", "mimic")
GAMMA = ("gamma_lib", "gamma_tool", "gamma_it")
EXTRA = ("gamma_lib_extra", "gamma_extra")

# The more often, the cheaper. Documentation tests cost a compiler.
SELECTIONS = [
    *[Selection(("-p", "alpha"), ALPHA)] * 4,
    *[Selection(("-p", "alpha", "--lib", "--bins"), ("alpha_lib", "alpha_bin"))] * 4,
    *[Selection(("-p", "alpha", "--test", "alpha_one"), ("alpha_one",))] * 2,
    *[Selection(("-p", "alpha", "--test", "alpha_opaque", "--test", "alpha_mimic"), ("alpha_opaque", "mimic"))] * 4,
    *[Selection(("-p", "beta", "--lib"), ("beta_lib",))] * 4,
    *[Selection(("-p", "delta", "-p", "macros"), ("delta_it", "macros_lib"))] * 4,
    *[Selection(("-p", "gamma", "--tests"), GAMMA)] * 3,
    *[Selection(("-p", "gamma", "--tests", "--features", "extra"), (*GAMMA, *EXTRA))] * 3,
    *[Selection(("--tests", "--features", "gamma/extra", "-p", "gamma", "-p", "delta"), (*GAMMA, *EXTRA, "delta_it"))],
    *[Selection(("--workspace", "--lib"), ("alpha_lib", "beta_lib", "gamma_lib", "macros_lib"))] * 2,
    *[Selection(("--workspace", "--bins"), ("alpha_bin", "gamma_tool"))] * 2,
    *[Selection(("--examples",), ("alpha_example",))] * 2,
    *[Selection(("--benches",), ("alpha_bench",))] * 2,
    *[Selection(("--test", "alpha_two", "--test", "beta_it"), ("alpha_two", "beta_it"))] * 4,
    *[Selection(("--workspace", "--exclude", "alpha", "--tests"), ("beta_lib", "beta_it", "delta_it", *GAMMA))] * 2,
    *[Selection(("-p", "alpha", "--all-targets"), (*ALPHA, "alpha_bench"))],
    *[Selection(("-p", "beta", "--doc"), ("beta_doc",))] * 2,
    *[Selection(("-p", "gamma", "--doc"), ("gamma_doc",))],
    *[Selection(("-p", "beta"), ("beta_lib", "beta_it", "beta_doc"))],
    *[Selection((), (*ALPHA, "beta_lib", "beta_it", "beta_doc", *GAMMA, "gamma_doc", "delta_it", "macros_lib"))],
]


def names_of(module: str) -> list[str]:
    """The names under which the tests of a module write to the log."""
    return {
        "alpha_opaque": ["alpha_opaque"],
        "mimic": ["mimic_a", "mimic_b", "mimic_c_ignored"],
        "beta_doc": ["beta_doc_a", "beta_doc_b", "beta_doc_panics"],
        "gamma_doc": ["gamma_doc_a"],
    }.get(module, [f"{module}::{name}" for name in STANDARD])


@dataclass(frozen=True)
class Behavior:
    """What one test does."""

    name: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Mode:
    """How Offload runs the tests."""

    isolation: str = "auto"
    # Whether the same runs with a process per test, too, and has to come out as that does.
    beside_process: bool = False
    parallel: int = 1
    overlap: bool = True
    retries: int = 0
    flaky: str = "exit-2"
    max_fail: int = 0
    timeout: int = 0
    json: bool = True
    # None, or one that an earlier run of the same has left, or one that is damaged.
    history: str = "none"
    capture: bool = True
    # Arguments for the harness that `cargo test` is not given.
    harness: tuple[str, ...] = ()
    threads: str = ""

    def arguments(self) -> list[str]:
        arguments = [f"--isolation={self.isolation}", f"-j{self.parallel}", f"--retries={self.retries}"]
        arguments += [] if self.overlap else ["--overlap=off"]
        arguments += [f"--flaky={self.flaky}"] if self.retries else []
        arguments += [f"--timeout={self.timeout}"] if self.timeout else []
        arguments += [] if self.capture else ["--no-capture"]
        if self.max_fail:
            arguments += ["--fail-fast"] if self.max_fail == 1 else [f"--max-fail={self.max_fail}"]
        return arguments + (["--message-format=json"] if self.json else [])


@dataclass(frozen=True)
class Scenario:
    """What a seed makes."""

    behaviors: tuple[Behavior, ...]
    selection: tuple[str, ...]
    # Arguments for the harness, without those that only `cargo test` is given.
    harness: tuple[str, ...]
    mode: Mode
    plain_first: bool

    def steps(self, name: str) -> tuple[str, ...]:
        return next((behavior.steps for behavior in self.behaviors if behavior.name == name), ())

    def has(self, kinds: list[str]) -> bool:
        return any(step in kinds for behavior in self.behaviors for step in behavior.steps)

    def text(self) -> str:
        """The file that the tests read."""
        return "".join(f"{behavior.name}\t{'+'.join(behavior.steps)}\n" for behavior in self.behaviors)

    def smaller(self) -> list[Scenario]:
        """The same with one thing less each."""
        found = [
            replace(self, behaviors=tuple(other for other in self.behaviors if other is not behavior))
            for behavior in self.behaviors
        ]
        for at, behavior in enumerate(self.behaviors):
            for step in behavior.steps:
                fewer = Behavior(behavior.name, tuple(other for other in behavior.steps if other != step))
                found.append(replace(self, behaviors=(*self.behaviors[:at], fewer, *self.behaviors[at + 1 :])))
        if self.harness:
            found.append(replace(self, harness=()))
        usual = Mode(timeout=self.mode.timeout, json=self.mode.json)
        for field in (
            "isolation",
            "parallel",
            "overlap",
            "retries",
            "max_fail",
            "history",
            "capture",
            "harness",
            "threads",
        ):
            if getattr(self.mode, field) != getattr(usual, field):
                found.append(replace(self, mode=replace(self.mode, **{field: getattr(usual, field)})))
        return found

    def __str__(self) -> str:
        return "\n".join(
            [f"{behavior.name}: {' + '.join(behavior.steps)}" for behavior in self.behaviors]
            + [f"{self.mode}", f"{'cargo test' if self.plain_first else 'Offload'} runs first"]
        )


def generate(seed: int) -> Scenario:
    """The scenario of a seed. A theme decides what may happen: so it is seen what causes what."""
    rng = random.Random(seed)
    theme = rng.choice(
        ["plain", "noise", "crash", "crash", "cut", "state", "state", "company", "company", "flaky", "all"]
    )
    if rng.random() < 0.04:
        theme = "hang"
    isolation = rng.choice(["auto"] * 6 + ["process"] * 3 + ["binary"] * 2)
    selection = rng.choice(SELECTIONS)
    names = [name for module in selection.modules for name in names_of(module)]
    chosen = rng.sample(names, min(len(names), rng.choice([0, 1, 2, 3, 5, 8, 12, 20])))
    behaviors = [Behavior(name, steps_of(rng, theme, name, isolation)) for name in chosen]
    if theme == "hang" and behaviors:
        behaviors[0] = replace(behaviors[0], steps=(rng.choice(HANGS),))
    scenario = Scenario(
        tuple(behavior for behavior in behaviors if behavior.steps),
        selection.arguments,
        harness_arguments(rng, names),
        Mode(isolation),
        rng.random() < 0.7,
    )
    return replace(scenario, mode=mode_of(rng, scenario, theme))


def steps_of(rng: random.Random, theme: str, name: str, isolation: str) -> tuple[str, ...]:
    """What a test does, if that may be done by one of its kind."""
    steps: list[str] = []
    is_doc = "_doc" in name
    has_harness = not (is_doc or name.startswith(("mimic", "alpha_opaque")))
    if theme in ("noise", "all", "cut") and rng.random() < 0.6:
        steps.append(rng.choice(QUIET_STEPS + RAW_STEPS))
    if theme in ("cut", "all") and rng.random() < 0.4 and not is_doc:
        steps.append(rng.choice(CUTS))
    if theme in ("state", "all") and rng.random() < 0.6:
        # Documentation tests may share a process or not, as rustdoc likes.
        steps.append("slow" if is_doc else rng.choice(DIRTY + CLEAN * 2 + NEEDS))
    if theme in ("company", "all") and has_harness and rng.random() < 0.5:
        # Where a process is shared for good, these strike whoever is there.
        harmful = LATE + AT_EXIT if isolation != "binary" else []
        steps.append(rng.choice(["slow", "slow", "child-holds", "fork:300", *harmful * 2]))
        if not any(step in CUTS for step in steps) and rng.random() < 0.2 and isolation != "binary":
            steps.append("close-fds")
    if theme in ("flaky", "all") and rng.random() < 0.5:
        steps.append(f"flaky:{rng.choice([1, 1, 2])}")
    ends = FAILURES + [""] * 4
    if theme in ("crash", "cut", "all"):
        ends += EXITS * 2 + CRASHES
    end = rng.choice(ends)
    if name.endswith(("_panics", "h_expected")):
        # What panics passes here.
        steps = [step for step in steps if not step.startswith(("flaky", "clean", "needs"))]
        end = {"panic": "return", "panic-any": "other", "panic-thread": "return"}.get(end, end)
    elif name.endswith("::d") and end == "panic":
        end = "err"
    if is_doc and end in ("panic-any", "double", "overflow", "group:9", "group:15"):
        end = "panic"
    if not has_harness:
        # Nobody reads what is left of such a program when a copy of it goes on.
        steps = ["slow" if step == "fork:return" else step for step in steps]
    if name.startswith("mimic") and end == "panic-any":
        end = "panic"
    return tuple([*steps, end] if end else steps)


def harness_arguments(rng: random.Random, names: list[str]) -> tuple[str, ...]:
    draw = rng.random()
    if draw < 0.5:
        return ()
    if draw < 0.6:
        return (rng.choice(["::a", "lib", "alpha", "_ignored", "doc", "no such test"]),)
    if draw < 0.7:
        return ("--skip", rng.choice(["::a", "lib", "alpha", "_ignored", "doc"]))
    if draw < 0.8:
        return ("--exact", *rng.sample(names, min(len(names), rng.choice([1, 1, 3]))))
    if draw < 0.9:
        return ("--ignored",)
    return ("--include-ignored",)


def mode_of(rng: random.Random, scenario: Scenario, theme: str) -> Mode:
    isolation = scenario.mode.isolation
    if isolation == "binary" and scenario.has(CUTS) and scenario.has(EXITS + CRASHES):
        # Where tests share a process whose harness is not heard any more, nobody knows which of them has ended it.
        isolation = "process"
    hangs = scenario.has(HANGS)
    retries = 0 if hangs else rng.choice([0, 0, 0, 1, 2])
    if theme == "flaky" and rng.random() < 0.6:
        retries = rng.choice([1, 2])
    max_fail = rng.choice([1, 1, 2]) if rng.random() < 0.15 else 0
    return Mode(
        isolation=isolation,
        beside_process=isolation == "auto" and not max_fail and not hangs and rng.random() < 0.3,
        parallel=rng.choice([1, 1, 2, 2, 3]),
        overlap=rng.random() < 0.7,
        retries=retries,
        flaky=rng.choice(["exit-2", "exit-2", "pass", "fail"]),
        max_fail=max_fail,
        timeout=5 if hangs else rng.choice([0, 0, 600]),
        json=rng.random() < 0.6,
        history=rng.choice(["none", "none", "kept", "kept", "damaged"]),
        capture=rng.random() < 0.9,
        harness=rng.choice(HARNESS) if rng.random() < 0.2 else (),
        threads=rng.choice(["", "", "", "4"]),
    )
