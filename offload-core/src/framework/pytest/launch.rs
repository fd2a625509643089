//! From a command that starts pytest to one that starts the Python behind it.
//!
//! A worker is a program for the Python that has pytest; what users configure is how they start pytest.

use std::path::Path;

use crate::config::PytestFrameworkConfig;
use crate::connector::quote;

/// What a command that starts pytest is made of.
#[derive(Debug, PartialEq)]
pub(super) struct Launch {
    /// Starts Python, in shell language: Python's arguments follow.
    pub(super) python: String,
    /// What the command gives pytest, before anything else.
    pub(super) args: Vec<String>,
    /// Whether pytest finds the working directory on Python's path.
    pub(super) cwd_on_path: bool,
}

impl Launch {
    /// `None`: nobody can tell from the command which Python has pytest.
    pub(super) fn of(config: &PytestFrameworkConfig) -> Option<Self> {
        let command = config.command.trim();
        if command == PytestFrameworkConfig::default().command {
            // Where Python is only called `python3`, too.
            let python = "\"$(command -v python || command -v python3 || echo python)\"".to_owned();
            return Some(Self { python, args: Vec::new(), cwd_on_path: true });
        }
        if command.contains(['$', '`', ';', '|', '&', '<', '>', '(', ')', '*', '?', '~', '\n']) {
            // The shell has to make something of it first.
            let python = command.strip_suffix("-m pytest").filter(|python| !python.contains([';', '|', '&', '\n']))?;
            return Some(Self { python: python.trim_end().to_owned(), args: Vec::new(), cwd_on_path: true });
        }
        let words = shlex::split(command).filter(|words| words.first().is_some_and(|word| !word.starts_with('-')))?;
        let quoted = |words: &[String]| words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ");
        if let Some(at) = words.windows(2).position(|pair| pair[0] == "-m" && pair[1] == "pytest") {
            let args = words[at + 2..].to_vec();
            return Some(Self { python: quoted(&words[..at]), args, cwd_on_path: true });
        }
        let is_pytest =
            |word: &String| Path::new(word).file_name().is_some_and(|name| name == "pytest" || name == "py.test");
        let at = words.iter().position(is_pytest)?;
        let python = if at == 0 {
            // The first line of the program names its Python.
            let program = quote(&words[0]);
            format!("$(head -n 1 -- \"$(command -v {program} || echo {program})\" | cut -c 3-)")
        } else {
            // `uv run pytest`, `poetry run pytest`: what comes before makes the surroundings.
            format!("{} python", quoted(&words[..at]))
        };
        Some(Self { python, args: words[at + 1..].to_vec(), cwd_on_path: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(command: &str) -> Option<(String, Vec<String>, bool)> {
        let config = PytestFrameworkConfig { command: command.to_owned(), ..PytestFrameworkConfig::default() };
        Launch::of(&config).map(|launch| (launch.python, launch.args, launch.cwd_on_path))
    }

    fn some(python: &str, args: &[&str], cwd_on_path: bool) -> Option<(String, Vec<String>, bool)> {
        Some((python.to_owned(), args.iter().map(|&arg| arg.to_owned()).collect(), cwd_on_path))
    }

    #[test]
    fn the_python_behind_pytest_is_found() {
        assert_eq!(launch("/opt/venv/bin/python -m pytest"), some("/opt/venv/bin/python", &[], true));
        assert_eq!(launch("python3 -X dev -m pytest -p x"), some("python3 -X dev", &["-p", "x"], true));
        assert_eq!(launch("uv run pytest -v"), some("uv run python", &["-v"], false));
        assert_eq!(launch("env 'A=b c' python -m pytest"), some("env 'A=b c' python", &[], true));
        assert_eq!(launch("$HOME/venv/bin/python -m pytest"), some("$HOME/venv/bin/python", &[], true));
        assert!(launch(".venv/bin/pytest").unwrap().0.contains(".venv/bin/pytest"));
    }

    #[test]
    fn commands_that_hide_it_are_left_to_the_shell() {
        assert_eq!(launch("make tests"), None);
        assert_eq!(launch("cd here && python -m pytest"), None);
        assert_eq!(launch("-m pytest"), None);
    }
}
