//! Workspaces to run, and what a run left.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A workspace on disk that stays from one test run to the next, so that Cargo builds it once.
///
/// Tests share workspaces; what they must not share (reports) goes into a directory of each [`Run`]'s own.
pub struct Workspace {
    pub dir: PathBuf,
}

impl Workspace {
    /// The workspace `name` with exactly these files.
    pub fn shared(name: &str, files: &[(&str, &str)]) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        // Several tests may set up the same workspace at once.
        static SETUP: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _guard = SETUP.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (path, text) in files {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            if std::fs::read_to_string(&path).ok().as_deref() != Some(text) {
                std::fs::write(&path, text).unwrap();
            }
        }
        Self { dir }
    }

    /// A package `name` with a library.
    pub fn package(name: &str, library: &str) -> Self {
        Self::shared(name, &[("Cargo.toml", &manifest(name)), ("src/lib.rs", library)])
    }

    /// `cargo offload ARGS…` here.
    pub fn offload<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Run {
        Run::new(cargo_offload(&self.dir), args)
    }
}

/// The manifest of a package without dependencies, outside any workspace.
pub fn manifest(name: &str) -> String {
    format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\n[workspace]\n")
}

/// `cargo-offload offload`, in `dir`, in a clean environment.
pub fn cargo_offload(dir: &Path) -> Command {
    let mut command = program(env!("CARGO_BIN_EXE_cargo-offload"), dir);
    command.arg("offload");
    command
}

/// `offload`, in `dir`, in a clean environment.
pub fn offload(dir: &Path) -> Command {
    program(env!("CARGO_BIN_EXE_offload"), dir)
}

/// A program in `dir` without what Cargo, CI and the user's terminal put into the environment.
pub fn program(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(dir).stdin(Stdio::null());
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        let ours = name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_BIN_") || name.starts_with("OFFLOAD_");
        let known = ["CARGO", "CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_TARGET_DIR", "CARGO_TARGET_TMPDIR"];
        let makes = ["MAKEFLAGS", "MFLAGS", "CARGO_MAKEFLAGS", "MAKELEVEL", "RUST_TEST_THREADS", "RUST_BACKTRACE"];
        let looks = ["CI", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CARGO_TERM_COLOR", "FORCE_COLOR"];
        if ours || [&known[..], &makes[..], &looks[..]].concat().contains(&&*name) {
            command.env_remove(&key);
        }
    }
    command
}

/// A finished run.
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub reports: tempfile::TempDir,
}

impl Run {
    /// Runs `command ARGS…` with reports in a directory of its own.
    pub fn new<S: AsRef<OsStr>>(mut command: Command, args: impl IntoIterator<Item = S>) -> Self {
        let reports = tempfile::tempdir().unwrap();
        command.args(args);
        command.env("OFFLOAD_REPORT_OUTPUT_DIR", reports.path());
        Self::from_output(command.output().unwrap(), reports)
    }

    pub fn from_output(output: Output, reports: tempfile::TempDir) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("human output is UTF-8"),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            reports,
        }
    }

    /// Everything that was printed.
    pub fn text(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }

    /// Asserts the exit code, showing what was printed if it is another one.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "unexpected exit code\n{}", self.text());
        self
    }

    /// Asserts that something was printed.
    #[track_caller]
    pub fn says(self, what: &str) -> Self {
        assert!(self.text().contains(what), "expected {what:?} in\n{}", self.text());
        self
    }

    /// Asserts that something was not printed.
    #[track_caller]
    pub fn never_says(self, what: &str) -> Self {
        assert!(!self.text().contains(what), "unexpected {what:?} in\n{}", self.text());
        self
    }

    /// The JUnit report.
    pub fn junit(&self) -> Junit {
        let path = self.reports.path().join("junit.xml");
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("no JUnit report at {}: {error}\n{}", path.display(), self.text()));
        Junit::parse(&text)
    }
}

/// A test case of a JUnit report.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Case {
    /// `passed`, or the name of the child element that says otherwise.
    pub outcome: String,
    /// The message of that element.
    pub message: String,
    /// The names of all child elements.
    pub children: Vec<String>,
    /// All text within the case.
    pub text: String,
}

/// A JUnit report, read back.
#[derive(Debug, Default)]
pub struct Junit {
    /// By `classname name`.
    pub cases: BTreeMap<String, Case>,
}

impl Junit {
    pub fn parse(xml: &str) -> Self {
        use quick_xml::events::Event;
        let mut reader = quick_xml::Reader::from_str(xml);
        let mut junit = Self::default();
        let (mut current, mut depth_in_case) = (None::<(String, Case)>, 0);
        loop {
            let event = reader.read_event().unwrap_or_else(|error| panic!("malformed JUnit: {error}\n{xml}"));
            match &event {
                Event::Start(element) | Event::Empty(element) => {
                    let name = element.name().as_ref().to_owned();
                    let attribute = |key: &str| {
                        let attribute = element.try_get_attribute(key).unwrap();
                        attribute
                            .map(|value| {
                                value.normalized_value(quick_xml::XmlVersion::Implicit1_0).unwrap().into_owned()
                            })
                            .unwrap_or_default()
                    };
                    let is_empty = matches!(event, Event::Empty(_));
                    if name == "testcase" {
                        let id = format!("{} {}", attribute("classname"), attribute("name"));
                        let case = Case { outcome: "passed".to_owned(), ..Case::default() };
                        current = Some((id, case));
                        depth_in_case = 0;
                        if is_empty {
                            let (id, case) = current.take().unwrap();
                            assert!(junit.cases.insert(id.clone(), case).is_none(), "{id} is reported twice");
                        }
                    } else if let Some((_, case)) = &mut current {
                        if depth_in_case == 0 {
                            if ["failure", "error", "skipped"].contains(&name.as_str()) {
                                case.outcome.clone_from(&name);
                                case.message = attribute("message");
                            }
                            case.children.push(name);
                        }
                        depth_in_case += i32::from(!is_empty);
                    }
                }
                Event::End(element) if element.name().as_ref() == "testcase" => {
                    let (id, case) = current.take().unwrap();
                    assert!(junit.cases.insert(id.clone(), case).is_none(), "{id} is reported twice");
                }
                Event::End(_) => depth_in_case -= 1,
                Event::Text(text) => {
                    if let Some((_, case)) = &mut current {
                        case.text.push_str(&text.xml10_content());
                    }
                }
                Event::CData(text) => {
                    if let Some((_, case)) = &mut current {
                        case.text.push_str(&text.xml10_content());
                    }
                }
                Event::GeneralRef(reference) => {
                    if let Some((_, case)) = &mut current {
                        let entity = reference.xml10_content();
                        match reference.resolve_char_ref().unwrap() {
                            Some(character) => case.text.push(character),
                            None => case.text.push_str(quick_xml::escape::resolve_xml_entity(&entity).unwrap()),
                        }
                    }
                }
                Event::Eof => return junit,
                _ => {}
            }
        }
    }

    /// Outcomes by `classname name`.
    pub fn outcomes(&self) -> BTreeMap<&str, &str> {
        self.cases.iter().map(|(id, case)| (id.as_str(), case.outcome.as_str())).collect()
    }

    /// The case of that id.
    #[track_caller]
    pub fn case(&self, id: &str) -> &Case {
        self.cases.get(id).unwrap_or_else(|| panic!("no case {id:?} in {:#?}", self.cases.keys()))
    }
}

/// Whether a process with this id exists and is not a zombie.
pub fn is_running(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z')
}

/// Waits until `condition` holds; the test's harness bounds how long.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !condition() {
        assert!(begun.elapsed() < std::time::Duration::from_secs(120), "gave up waiting until {what}");
        std::thread::yield_now();
        let _ = rustix::event::poll(&mut [], Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 5_000_000 }));
    }
}
