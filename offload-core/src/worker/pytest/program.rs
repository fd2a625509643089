//! The program of the template and the workers, as it is carried to where there is nothing of ours.

use std::io;
use std::path::{Path, PathBuf};

/// The directory of the program in a private one.
const DIRECTORY: &str = "worker";

macro_rules! files {
    ($($name:literal)*) => { &[$(($name, include_str!(concat!("worker/", $name)))),*] };
}

/// Its files, with what is in them.
pub(super) const FILES: &[(&str, &str)] = files! {
    "__init__.py" "__main__.py" "bdd.py" "channel.py" "charge.py" "collection.py" "coverage.py" "ending.py" "fingerprint.py"
    "frozen.py" "identity.py" "isolated.py" "keeper.py" "livelog.py" "originals.py" "outcome.py" "plugin.py" "process.py" "program.py"
    "reruns.py" "runner.py" "standins.py" "template.py" "world.py"
};

/// Where the program begins that is in the private directory `dir`.
pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join(DIRECTORY).join("__main__.py")
}

/// Puts the program into the private directory `dir`.
pub(super) fn write(dir: &Path) -> io::Result<()> {
    let own = dir.join(DIRECTORY);
    std::fs::create_dir(&own)?;
    FILES.iter().try_for_each(|(name, text)| std::fs::write(own.join(name), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_module_is_left_behind() {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/worker/pytest/worker");
        let mut there: Vec<String> = std::fs::read_dir(source)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".py"))
            .collect();
        there.sort();
        assert_eq!(there, FILES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }
}
