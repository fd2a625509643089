//! Files that tests have left in a sandbox, brought back by patterns (`report.download_globs`).
//!
//! A shell line lists what there is below the directories that patterns begin with; which of it matches is decided here,
//! by the same rules for every provider. Only regular files come, each first to a place of its own and then under its
//! name below `artifacts/<sandbox>`: what a sandbox says is not trusted, neither names nor sizes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::bounded;
use crate::config::Config;
use crate::connector::{collect, describe_exit, quote_always, shorten, tail};
use crate::provider::{Command, Sandbox};

/// The directory in the output directory.
const DIRECTORY: &str = "artifacts";

/// What says that the directory is ours, and may be replaced by the next run's.
const MARKER: &str = ".offload-artifacts";

/// The largest file that is brought, in bytes.
const LARGEST: u64 = 256 << 20;

/// The most that is brought in a run, in bytes.
const MOST_BYTES: u64 = 4 << 30;

/// The most files that are brought in a run.
const MOST_FILES: usize = 20_000;

/// How much of a listing is read, in bytes.
const LISTING: usize = 64 << 20;

/// How long listing may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How deep directories are looked through for `**`.
const DEEPEST: usize = 64;

/// Lists the regular files below a directory, each ended by NUL; `find` where there is one.
const WALK: &str = r#"
walk() {
    for entry in "$1"/* "$1"/.[!.]* "$1"/..?*; do
        if [ -h "$entry" ]; then :
        elif [ -d "$entry" ]; then [ "$2" -le 1 ] || [ "${entry##*/}" = .git ] || walk "$entry" $(($2 - 1))
        elif [ -f "$entry" ]; then printf '%s\0' "$entry"
        fi
    done
}
list() {
    if [ -h "$1" ] || ! [ -d "$1" ]; then :
    elif command -v find >/dev/null; then find "$1" -maxdepth "$2" -name .git -prune -o -type f -print0
    else walk "$1" "$2"
    fi
}
"#;

/// What is to be brought back from the sandboxes of a run.
#[derive(Debug)]
pub(super) struct Artifacts {
    globs: GlobSet,
    /// Directories that patterns begin with, and how deep each has to be looked through.
    roots: BTreeMap<String, usize>,
    failure_only: bool,
    /// All sandboxes have the same files, so that what one has brought need not be brought again.
    shared: bool,
    directory: PathBuf,
    /// Where reports are, from the directory of the run; nothing of that is brought.
    reports: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The directory is there, and says what it is.
    marked: bool,
    bytes: u64,
    files: usize,
    /// Of sandboxes by id.
    names: HashMap<String, String>,
    brought: HashSet<(PathBuf, blake3::Hash)>,
}

impl Artifacts {
    /// As configured; `None` when nothing is wanted. What an earlier run has brought is removed.
    pub(super) fn from_config(config: &Config, shared: bool) -> Option<Self> {
        let report = &config.report;
        if report.download_globs.is_empty() {
            return None;
        }
        let mut globs = GlobSetBuilder::new();
        let mut roots = BTreeMap::new();
        for pattern in &report.download_globs {
            let pattern = pattern.strip_prefix("./").unwrap_or(pattern);
            match GlobBuilder::new(pattern).literal_separator(true).build() {
                Ok(glob) => drop(globs.add(glob)),
                // The configuration file has been checked.
                Err(error) => {
                    tracing::warn!(%error, "a pattern of `download_globs` means nothing");
                    continue;
                }
            }
            let (root, depth) = root_of(pattern);
            let known = roots.entry(root).or_insert(depth);
            *known = depth.max(*known);
        }
        let working_dir = config.offload.working_dir.as_deref().unwrap_or(Path::new("."));
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let (working_dir, output_dir) = (absolute(working_dir), absolute(&report.output_dir));
        let directory = output_dir.join(DIRECTORY);
        if is_ours(&directory)
            && let Err(error) = remove(&directory)
        {
            tracing::warn!(%error, directory = %directory.display(), "files of an earlier run stay");
        }
        Some(Self {
            globs: globs.build().unwrap_or_default(),
            roots,
            failure_only: report.download_globs_failure_only,
            shared,
            directory,
            reports: output_dir.strip_prefix(&working_dir).ok().map(Path::to_owned),
            state: Mutex::default(),
        })
    }

    /// Brings what is wanted of a sandbox in which tests have run, of which `failed` tells whether one failed.
    ///
    /// # Errors
    ///
    /// A sentence on what could not be brought. What could be is there.
    pub(super) async fn bring(&self, sandbox: &dyn Sandbox, failed: bool) -> Result<(), String> {
        if self.failure_only && !failed {
            return Ok(());
        }
        let failed = |what: String| {
            format!("files of the sandbox {} (`download_globs` in [report]) could not be brought: {what}", sandbox.id())
        };
        let (there, found) = self.list(sandbox).await.map_err(failed)?;
        if found.is_empty() {
            return Ok(());
        }
        let sizes = sizes(sandbox, &found).await.map_err(failed)?;
        let mut problems = Vec::new();
        for (name, size) in found.iter().zip(sizes) {
            if let Err(problem) = self.bring_one(sandbox, &there, name, size).await {
                problems.push(format!("{}: {problem}", name.display()));
            }
        }
        match problems.as_slice() {
            [] => Ok(()),
            [only] => Err(failed(only.clone())),
            [first, more @ ..] => Err(failed(format!("{first}; and {} more", more.len()))),
        }
    }

    /// Where commands run in the sandbox, and the names of files that match.
    async fn list(&self, sandbox: &dyn Sandbox) -> Result<(PathBuf, Vec<PathBuf>), String> {
        let mut line = format!("{WALK}printf '%s\\0' \"$PWD\"\n");
        for (root, depth) in &self.roots {
            let _ = writeln!(line, "list {} {depth}", quote_always(root));
        }
        line.push_str("exit 0\n");
        let listing = said(sandbox, line).await?;
        let mut names = listing.split(|byte| *byte == 0).map(|name| PathBuf::from(OsStr::from_bytes(name)));
        let there = names.next().unwrap_or_default();
        let mut found: Vec<PathBuf> = names
            .filter(|name| !name.as_os_str().is_empty())
            .map(|name| name.strip_prefix("./").map(Path::to_owned).unwrap_or(name))
            .filter(|name| self.globs.is_match(name) && !self.is_report(name))
            .collect();
        found.sort();
        found.dedup();
        Ok((there, found))
    }

    fn is_report(&self, name: &Path) -> bool {
        self.reports.as_ref().is_some_and(|reports| !reports.as_os_str().is_empty() && name.starts_with(reports))
    }

    async fn bring_one(&self, sandbox: &dyn Sandbox, there: &Path, name: &Path, size: u64) -> Result<(), String> {
        let inner: PathBuf = name.strip_prefix("/").unwrap_or(name).to_owned();
        if !inner.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err("its name leads elsewhere".to_owned());
        }
        self.may_take(size)?;
        let io = |error: std::io::Error| error.to_string();
        let target = self.directory_of(sandbox.id()).map_err(io)?;
        let scratch = tempfile::Builder::new().prefix(".part-").tempdir_in(&self.directory).map_err(io)?;
        let part = scratch.path().join("file");
        let brought = sandbox.download(&[(there.join(name), part.clone())]).await;
        brought.map_err(|error| error.to_string())?;
        let (part, hash) = tokio::task::spawn_blocking(move || look_at(&part).map(|hash| (part, hash)))
            .await
            .map_err(|error| error.to_string())??;
        {
            let mut state = self.state();
            if self.shared && !state.brought.insert((inner.clone(), hash)) {
                return Ok(());
            }
            state.files += 1;
            state.bytes += size;
        }
        let target = place(&target, &inner)?;
        std::fs::rename(part, target).map_err(io)
    }

    /// Whether another file of this size may be brought.
    fn may_take(&self, size: u64) -> Result<(), String> {
        let state = self.state();
        if size > LARGEST {
            return Err(format!("it has {} MiB, and the most is {} MiB", size >> 20, LARGEST >> 20));
        }
        if state.files >= MOST_FILES || state.bytes + size > MOST_BYTES {
            return Err(format!(
                "a run brings {MOST_FILES} files and {} GiB at most; let fewer match",
                MOST_BYTES >> 30
            ));
        }
        Ok(())
    }

    /// The directory for files of this sandbox, whose id may be anything.
    fn directory_of(&self, id: &str) -> std::io::Result<PathBuf> {
        let mut state = self.state();
        if !state.marked {
            claim(&self.directory)?;
            state.marked = true;
        }
        let taken = state.names.len();
        let name = state.names.entry(id.to_owned()).or_insert_with(|| {
            let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
            let safe: String = id.trim_matches(['/', '.']).chars().map(plain).collect();
            // Another id may look the same.
            if safe == id { safe } else { format!("{safe}-{taken}") }
        });
        Ok(self.directory.join(name))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is in the marker.
const MARK: &str = "files that an offload run has brought, format 1; the next run removes this directory\n";

/// Whether a run has made this directory: a file of this user's in it says so, and neither is a link.
fn is_ours(directory: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let user = rustix::process::geteuid().as_raw();
    let marker = directory.join(MARKER);
    let is = |path: &Path, is_kind: fn(&std::fs::Metadata) -> bool| {
        path.symlink_metadata().is_ok_and(|found| is_kind(&found) && found.uid() == user)
    };
    is(directory, std::fs::Metadata::is_dir)
        && is(&marker, std::fs::Metadata::is_file)
        && bounded::read(&marker, MARK.len() as u64).is_ok_and(|text| text == MARK.as_bytes())
}

/// Removes the directory, its marker last: should this be interrupted, the next run knows what is left.
fn remove(directory: &Path) -> std::io::Result<()> {
    for entry in directory.read_dir()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else if entry.file_name() != MARKER {
            std::fs::remove_file(entry.path())?;
        }
    }
    std::fs::remove_dir_all(directory)
}

/// Makes the directory, with its marker. A directory that is there and not a run's takes files, but no marker: it is somebody's.
fn claim(directory: &Path) -> std::io::Result<()> {
    if let Some(parent) = directory.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::create_dir(directory) {
        Ok(()) => std::fs::write(directory.join(MARKER), MARK),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// The directory that a pattern begins with, and how deep it has to be looked through.
fn root_of(pattern: &str) -> (String, usize) {
    let parts: Vec<&str> = pattern.split('/').collect();
    let fixed =
        parts.iter().take(parts.len() - 1).take_while(|part| !part.contains(['*', '?', '[', '{', '\\'])).count();
    let root = parts[..fixed].join("/");
    let depth = if parts[fixed..].iter().any(|part| part.contains("**") || part.contains('{')) {
        DEEPEST
    } else {
        parts.len() - fixed
    };
    match root.as_str() {
        "" if pattern.starts_with('/') => ("/".to_owned(), depth),
        "" => (".".to_owned(), depth),
        root if root.starts_with('/') => (root.to_owned(), depth),
        root => (format!("./{root}"), depth),
    }
}

/// The sizes of files, in their order.
async fn sizes(sandbox: &dyn Sandbox, names: &[PathBuf]) -> Result<Vec<u64>, String> {
    let mut line = String::from("size() { wc -c <\"$1\" 2>/dev/null || echo 0; }\n");
    for name in names {
        // A name that is not UTF-8 is not found, and its download says why.
        let _ = writeln!(line, "size {}", quote_always(&name.to_string_lossy()));
    }
    let said = said(sandbox, line).await?;
    let sizes: Vec<u64> =
        String::from_utf8_lossy(&said).split_whitespace().filter_map(|word| word.parse().ok()).collect();
    if sizes.len() == names.len() { Ok(sizes) } else { Err("the sandbox does not tell their sizes".to_owned()) }
}

/// What a line of ours prints in the sandbox.
async fn said(sandbox: &dyn Sandbox, line: String) -> Result<Vec<u8>, String> {
    let shown = shorten(line.lines().last().unwrap_or_default());
    let command = Command { timeout: Some(PATIENCE), ..Command::shell(line) };
    let stream = sandbox.exec_stream(&command).await.map_err(|error| error.to_string())?;
    let output = collect(stream, LISTING).await.map_err(|error| error.to_string())?;
    match output.exit_code {
        Some(0) if output.stdout.len() < LISTING => Ok(output.stdout),
        Some(0) => Err("too many files match".to_owned()),
        code => Err(format!("looking for them failed at `{shown}`: {}{}", describe_exit(code), tail(&output, 5))),
    }
}

/// The contents of what came, if it is a file that may be kept.
fn look_at(part: &Path) -> Result<blake3::Hash, String> {
    let metadata = std::fs::symlink_metadata(part).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is no regular file".to_owned());
    }
    if metadata.len() > LARGEST {
        return Err(format!("it has become larger than {} MiB", LARGEST >> 20));
    }
    let mut hasher = blake3::Hasher::new();
    let file = std::fs::File::open(part).map_err(|error| error.to_string())?;
    hasher.update_reader(file).map_err(|error| error.to_string())?;
    Ok(hasher.finalize())
}

/// Where `inner` goes below `directory`, with the directories on the way, none of which may be a link.
fn place(directory: &Path, inner: &Path) -> Result<PathBuf, String> {
    let mut path = directory.to_owned();
    let parents = inner.parent().unwrap_or(Path::new(""));
    for part in std::iter::once(None).chain(parents.components().map(Some)) {
        path.extend(part);
        match std::fs::symlink_metadata(&path) {
            Ok(there) if there.is_dir() => {}
            Ok(_) => return Err(format!("{} is in its way and no directory", path.display())),
            Err(_) => std::fs::create_dir(&path).map_err(|error| format!("cannot make {}: {error}", path.display()))?,
        }
    }
    let target = path.join(inner.file_name().unwrap_or_default());
    if std::fs::symlink_metadata(&target).is_ok_and(|there| !there.is_file()) {
        return Err(format!("{} is in its way", target.display()));
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_says_where_to_look_and_how_deep() {
        let root = |pattern| {
            let (root, depth) = root_of(pattern);
            format!("{root} {depth}")
        };
        assert_eq!(root("*.log"), ". 1");
        assert_eq!(root("out/shots/*.png"), "./out/shots 1");
        assert_eq!(root("out/*/x.png"), "./out 2");
        assert_eq!(root("out/file"), "./out 1");
        assert_eq!(root("**/*.png"), ". 64");
        assert_eq!(root("/var/log/*.log"), "/var/log 1");
        assert_eq!(root("/*.log"), "/ 1");
        assert_eq!(root("{a,b/c}/x"), ". 64");
    }

    #[test]
    fn only_a_directory_that_a_run_has_made_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("made");
        claim(&made).unwrap();
        assert!(is_ours(&made));
        // It is there already, whoever made it.
        claim(&made).unwrap();
        let theirs = dir.path().join("theirs");
        std::fs::create_dir(&theirs).unwrap();
        claim(&theirs).unwrap();
        assert!(!is_ours(&theirs), "it was there before");
        std::fs::write(theirs.join(MARKER), "").unwrap();
        assert!(!is_ours(&theirs), "anybody can make a file of that name");
        std::fs::remove_file(theirs.join(MARKER)).unwrap();
        std::os::unix::fs::symlink(made.join(MARKER), theirs.join(MARKER)).unwrap();
        assert!(!is_ours(&theirs), "a link to the marker of another");
        std::os::unix::fs::symlink(&made, dir.path().join("link")).unwrap();
        assert!(!is_ours(&dir.path().join("link")), "a link to a run's directory");
    }

    #[test]
    fn nothing_is_placed_through_a_link() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let base = dir.path().join("sandbox");
        assert_eq!(place(&base, Path::new("a/b/c")).unwrap(), base.join("a/b/c"));
        assert!(base.join("a/b").is_dir());
        std::os::unix::fs::symlink(outside.path(), base.join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("x"), base.join("a/file")).unwrap();
        assert!(place(&base, Path::new("link/x")).unwrap_err().contains("is in its way and no directory"));
        assert!(place(&base, Path::new("a/file")).unwrap_err().contains("is in its way"));
        assert!(place(&base, Path::new("a/b")).unwrap_err().contains("is in its way"));
    }
}
