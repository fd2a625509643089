"""Workspaces that are compiled, run, edited and run again: programs, examples and libraries that tests use.

Everything in them is good or bad, and a test passes if all that it looks at is good. So it is known of each test what
has to come of it, and `cargo test`, run on the same build after Offload, has to agree.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path

# Included by every test: writes to the log, runs programs, loads libraries.
HELPERS = """
#[allow(dead_code)]
mod helpers {
    use std::io::Write;
    pub fn logged(name: &str, looks: impl FnOnce() -> bool) {
        let log = |word: &str| {
            let Some(path) = std::env::var_os("ORACLE_LOG") else { return };
            let line = format!("{word}\\t{name}\\t{}\\t0\\n", std::process::id());
            std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(line.as_bytes()).unwrap();
        };
        log("start");
        println!("printed by {name}");
        let is_good = looks();
        log("end");
        assert!(is_good, "what {name} looks at is bad");
    }
    fn target() -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("target/debug")
    }
    pub fn program(path: &str) -> bool {
        let output = std::process::Command::new(target().join(path)).output().unwrap();
        output.stdout.ends_with(b"good\\n")
    }
    extern "C" {
        fn dlopen(path: *const std::ffi::c_char, flags: i32) -> *mut std::ffi::c_void;
        fn dlsym(handle: *mut std::ffi::c_void, name: *const std::ffi::c_char) -> *mut std::ffi::c_void;
    }
    pub fn library(file: &str, symbol: &str) -> bool {
        let path = std::ffi::CString::new(target().join(file).to_str().unwrap()).unwrap();
        let symbol = std::ffi::CString::new(symbol).unwrap();
        unsafe {
            let handle = dlopen(path.as_ptr(), 2);
            assert!(!handle.is_null(), "no library");
            let function: extern "C" fn() -> bool = std::mem::transmute(dlsym(handle, symbol.as_ptr()));
            function()
        }
    }
}
"""

ERROR = 'const BROKEN: i32 = "no number";\n'


@dataclass(frozen=True)
class Check:
    """A test: where it is, and what it looks at."""

    package: str
    # `lib`, `program` or the name of an integration test.
    place: str
    name: str
    # Components that have to be good, the first of which the expression looks at.
    looks_at: tuple[str, ...]
    expression: str


@dataclass(frozen=True)
class Package:
    name: str
    parts: tuple[str, ...]
    is_dynamic: bool
    # The package whose library this one's uses.
    uses: str = ""


@dataclass(frozen=True)
class Edit:
    """What is changed before a run."""

    # Components that become the other of good and bad.
    flips: tuple[str, ...] = ()
    # The one target that does not compile from now on; none, if that is mended.
    broken: str = ""
    # The feature of a package that changes what its program says.
    feature: bool = False


@dataclass(frozen=True)
class Project:
    packages: tuple[Package, ...]
    checks: tuple[Check, ...]
    edits: tuple[Edit, ...]
    arguments: tuple[str, ...]
    options: tuple[str, ...]
    slow_compiler: bool

    def smaller(self) -> list[Project]:
        """The same with one thing less each."""
        found = [replace(self, checks=tuple(c for c in self.checks if c is not check)) for check in self.checks]
        found += [replace(self, edits=tuple(e for e in self.edits if e is not edit)) for edit in self.edits[1:]]
        return found + ([replace(self, slow_compiler=False)] if self.slow_compiler else [])

    def __str__(self) -> str:
        return "\n".join(map(str, [*self.packages, *self.checks, *self.edits]))


@dataclass
class State:
    """How things stand after some edits."""

    project: Project
    bad: set[str] = field(default_factory=set)
    broken: str = ""
    feature: bool = False

    def edit(self, edit: Edit) -> None:
        self.bad ^= set(edit.flips)
        self.broken = edit.broken
        self.feature ^= edit.feature

    def expected(self) -> dict[str, str]:
        """What has to come of each test, if everything can be compiled."""
        return {check.name: self.outcome(check) for check in self.project.checks}

    def outcome(self, check: Check) -> str:
        return "failed" if any(component in self.bad for component in check.looks_at) else "passed"

    def spoiled(self, check: Check) -> bool:
        """Whether the test cannot have been built, because it does not compile or what it is linked with does not.

        What it starts or loads may be that of an earlier build where it does not compile any more.
        """
        is_started = check.expression.startswith("helpers::") or self.broken.endswith((".program", ".example"))
        return bool(self.broken) and (
            self.broken == f"{check.package}.{check.place}" or (self.broken in check.looks_at and not is_started)
        )

    def word(self, component: str) -> str:
        return '"bad"' if component in self.bad else '"good"'

    def files(self) -> dict[str, str]:
        members = ", ".join(f'"{package.name}"' for package in self.project.packages)
        profile = "[profile.dev]\ndebug = false\nincremental = false\n"
        files = {
            "Cargo.toml": f'[workspace]\nresolver = "2"\nmembers = [{members}]\n\n{profile}',
            "helpers.rs": HELPERS,
        }
        for package in self.project.packages:
            for path, text in self.package_files(package).items():
                files[f"{package.name}/{path}"] = text
        return files

    def package_files(self, package: Package) -> dict[str, str]:
        name = package.name
        places: dict[str, str] = {}
        for check in self.project.checks:
            if check.package == name:
                call = f'helpers::logged("{check.name}", || {check.expression});'
                places[check.place] = places.get(check.place, "") + f"#[test]\nfn {check.name}() {{\n    {call}\n}}\n"

        def tests(place: str) -> str:
            include = 'include!(concat!(env!("CARGO_MANIFEST_DIR"), "/../helpers.rs"));\n'
            return f"#[cfg(test)]\n{include}{places[place]}" if place in places else ""

        def error(place: str) -> str:
            return ERROR if self.broken == f"{name}.{place}" else ""

        kinds = '["rlib", "cdylib"]' if package.is_dynamic else '["rlib"]'
        manifest = (
            f'[package]\nname = "{name}"\nversion = "0.1.0"\nedition = "2021"\n\n[features]\nextra = []\n\n'
            f"[lib]\ncrate-type = {kinds}\ndoctest = false\n\n[dependencies]\n"
        )
        manifest += f'{package.uses} = {{ path = "../{package.uses}" }}\n' if package.uses else ""
        used = f"{package.uses}::is_good() && " if package.uses else ""
        built = ' && env!("BUILT") == "good"' if "build" in package.parts else ""
        library = (
            f'pub fn is_good() -> bool {{\n    {used}{self.word(f"{name}.lib")} == "good"{built}\n}}\n'
            f'#[no_mangle]\npub extern "C" fn {name}_is_good() -> bool {{\n    is_good()\n}}\n'
        )
        files = {"Cargo.toml": manifest, "src/lib.rs": library + error("lib") + tests("lib")}
        if "build" in package.parts:
            files["data.txt"] = "bad" if f"{name}.build" in self.bad else "good"
            files["build.rs"] = (
                'fn main() {\n    println!("cargo:rerun-if-changed=data.txt");\n'
                '    println!("cargo:rustc-env=BUILT={}", std::fs::read_to_string("data.txt").unwrap());\n}\n'
            )
        if "program" in package.parts:
            extra = 'if cfg!(feature = "extra") { print!("extra "); }\n    '
            files[f"src/bin/{name}_program.rs"] = (
                f'fn main() {{\n    {extra}println!("{{}}", if {name}::is_good() {{ {self.word(f"{name}.program")} }}'
                f' else {{ "bad" }});\n}}\n' + error("program") + tests("program")
            )
        if "example" in package.parts:
            files[f"examples/{name}_example.rs"] = (
                f'fn main() {{\n    println!("{{}}", {self.word(f"{name}.example")});\n}}\n' + error("example")
            )
        # Because of an integration test programs are built as such, too, and not only as tests.
        files["tests/of_nothing.rs"] = ""
        for place in places:
            if place.startswith("it"):
                files[f"tests/{place}.rs"] = tests(place) + error(place)
        return files

    def write(self, directory: Path) -> None:
        """Writes the files that are others than before."""
        for name, text in self.files().items():
            path = directory / name
            if not path.exists() or path.read_text() != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)


def generate(seed: int) -> Project:
    """The workspace of a seed and what is changed in it."""
    rng = random.Random(seed)
    # With these, examples and some programs are built as tests only, and nothing is where tests would look for it.
    all_targets = rng.random() < 0.2
    names = [f"p{number}" for number in range(rng.choice([1, 2, 2, 3]))]
    packages: list[Package] = []
    for name in names:
        parts = tuple(part for part in ("program", "example", "build") if rng.random() < 0.5)
        uses = rng.choice([other.name for other in packages]) if packages and rng.random() < 0.5 else ""
        packages.append(Package(name, parts or ("program",), rng.random() < 0.4, uses))
    by_name = {package.name: package for package in packages}

    def library(name: str) -> tuple[str, ...]:
        """What the library of a package is made of."""
        package = by_name[name]
        build = (f"{name}.build",) if "build" in package.parts else ()
        return (f"{name}.lib", *build, *(library(package.uses) if package.uses else ()))

    checks: list[Check] = []
    for package in packages:
        name = package.name
        places = ["lib", *(["program"] if "program" in package.parts else []), "it0", "it1"]
        for number in range(rng.randint(1, 5)):
            place = rng.choice(places)
            other = rng.choice(packages)
            ways: list[tuple[tuple[str, ...], str]] = [
                (library(name), "is_good()" if place == "lib" else f"{name}::is_good()")
            ]
            if "program" in package.parts and place.startswith("it"):
                run = f'std::process::Command::new(env!("CARGO_BIN_EXE_{name}_program")).output().unwrap().stdout'
                looks = (f"{name}.program", *library(name))
                ways += [(looks, f'{run}.ends_with(b"good\\n")')] * 2
            if "program" in other.parts and not all_targets:
                path = f'helpers::program("{other.name}_program")'
                ways.append(((f"{other.name}.program", *library(other.name)), path))
            if "example" in other.parts and not all_targets:
                ways.append(((f"{other.name}.example",), f'helpers::program("examples/{other.name}_example")'))
            if other.is_dynamic and not all_targets:
                load = f'helpers::library("deps/lib{other.name}.so", "{other.name}_is_good")'
                ways.append((library(other.name), load))
            looks_at, expression = rng.choice(ways)
            checks.append(Check(name, place, f"{name}_{place}_t{number}x", looks_at, expression))
    components = sorted({component for check in checks for component in check.looks_at})
    targets = sorted({f"{check.package}.{check.place}" for check in checks} | set(components))
    targets = [target for target in targets if not target.endswith(".build")]
    edits = [Edit(flips=tuple(rng.sample(components, rng.choice([0, 0, 1]))))]
    for _ in range(rng.choice([1, 2, 2])):
        draw = rng.random()
        flips = tuple(rng.sample(components, rng.choice([0, 1, 1, min(2, len(components))])))
        broken = rng.choice(targets) if draw < 0.2 and not edits[-1].broken else ""
        edits.append(Edit(flips if not broken else (), broken, feature=draw > 0.85))
    return Project(
        tuple(packages),
        tuple(checks),
        tuple(edits),
        ("--workspace", "--all-targets") if all_targets else ("--workspace",),
        (
            f"--isolation={rng.choice(['auto', 'auto', 'auto', 'process', 'binary'])}",
            f"-j{rng.choice([1, 2, 3])}",
            *(["--overlap=off"] if rng.random() < 0.15 else []),
            "--message-format=json",
        ),
        rng.random() < 0.5,
    )
