//! A Python to test with, and projects for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

/// A Python that has pytest, pytest-xdist and pytest-rerunfailures: made once, below the target directory.
pub fn python() -> PathBuf {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let lock = fs::File::create(base.join("pytest-venv.lock")).unwrap();
    lock.lock().unwrap();
    let venv = base.join("pytest-venv");
    let python = venv.join("bin/python");
    if !venv.join("complete").exists() {
        let _ = fs::remove_dir_all(&venv);
        let run = |command: &mut Process| {
            let output = command.output().unwrap();
            assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        };
        run(Process::new("python3").args(["-m", "venv"]).arg(&venv));
        run(Process::new(&python).args([
            "-m",
            "pip",
            "install",
            "-q",
            "pytest",
            "pytest-xdist",
            "pytest-rerunfailures",
        ]));
        fs::write(venv.join("complete"), "").unwrap();
    }
    python
}

/// A project of these files (name, text), in a directory whose name is hard on shells.
pub fn project(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("it's a $project ").tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}
