//! Programs, examples and dynamic libraries that a build has still to finish, and whether anybody looks at them.
//!
//! Cargo calls a test binary fresh before it builds again the programs that the test starts: they are no part of its
//! fingerprint. Until Cargo has reported such a file, what is there in its place is that of an earlier build. Tests that
//! have to do with such files wait for them. Unit tests seldom have, and start at once; the kernel tells when a file of
//! such a name is opened, and what ran at that moment runs again.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cargo_metadata::{Artifact, CrateType, PackageId, Target};

/// A file that Cargo puts where tests find it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Output {
    package: PackageId,
    kind: Kind,
    target: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Program,
    Example,
    Library,
}

impl Kind {
    fn of(target: &Target) -> Option<Self> {
        if target.is_bin() {
            Some(Self::Program)
        } else if target.is_example() {
            Some(Self::Example)
        } else {
            let dynamic = |kind: &CrateType| matches!(kind, CrateType::CDyLib | CrateType::DyLib);
            target.crate_types.iter().any(dynamic).then_some(Self::Library)
        }
    }
}

impl Output {
    /// What an ordinary build of `target` leaves for others to use, if anything.
    pub(super) fn of(package: &PackageId, target: &Target) -> Option<Self> {
        let kind = Kind::of(target)?;
        Some(Self { package: package.clone(), kind, target: target.name.clone() })
    }

    /// Whether tests of this package can be expected to look at it. Examples are mostly looked at by those of their own.
    pub(super) fn matters_to(&self, package: &PackageId) -> bool {
        self.kind != Kind::Example || self.package == *package
    }

    /// Its name in the target directory.
    pub(super) fn file_name(&self) -> String {
        use std::env::consts::{DLL_PREFIX, DLL_SUFFIX, EXE_SUFFIX};
        match self.kind {
            Kind::Program | Kind::Example => format!("{}{EXE_SUFFIX}", self.target),
            Kind::Library => format!("{DLL_PREFIX}{}{DLL_SUFFIX}", self.target.replace('-', "_")),
        }
    }
}

/// The outputs of the build that is going on.
#[derive(Default)]
pub(super) struct Outputs(Mutex<State>);

#[derive(Default)]
struct State {
    unfinished: HashSet<Output>,
    watch: Option<watch::Watch>,
    sightings: u64,
}

impl Outputs {
    /// A build begins that may replace these.
    pub(super) fn expect(&self, outputs: HashSet<Output>) {
        self.lock().unfinished = outputs;
    }

    /// Whether everything that tests can find is that of this build.
    pub(super) fn are_final(&self) -> bool {
        self.lock().unfinished.is_empty()
    }

    /// Cargo has reported an artifact.
    pub(super) fn finish(&self, artifact: &Artifact) {
        let mut state = self.lock();
        // Whoever opened it until now may have opened the old one.
        state.look();
        if let Some(output) = Output::of(&artifact.package_id, &artifact.target) {
            state.unfinished.remove(&output);
        }
    }

    /// The build is over. Returns what it has left out: of these there is what an earlier build has made, or nothing.
    pub(super) fn finish_all(&self) -> HashSet<Output> {
        let mut state = self.lock();
        state.look();
        state.watch = None;
        std::mem::take(&mut state.unfinished)
    }

    /// Has the kernel tell who opens a file in these target and build directories from now on. Returns whether it will.
    pub(super) fn watch(&self, directories: &[&Path]) -> bool {
        let mut state = self.lock();
        if state.watch.is_none() {
            // Cargo leaves dynamic libraries among what rustc reads.
            let libraries = state.unfinished.iter().any(|output| output.kind == Kind::Library);
            match watch::Watch::new(directories, libraries) {
                Ok(watch) => state.watch = Some(watch),
                Err(error) => {
                    tracing::debug!(%error, "the target directory cannot be watched, so tests wait for the build");
                    return false;
                }
            }
        }
        true
    }

    /// How often anybody was seen to open an unfinished output.
    pub(super) fn sightings(&self) -> u64 {
        let mut state = self.lock();
        state.look();
        state.sightings
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Reads what the kernel has to tell.
    fn look(&mut self) {
        let Some(watch) = &mut self.watch else { return };
        let names: HashSet<String> = self.unfinished.iter().map(Output::file_name).collect();
        let is_unfinished = |name: &[u8]| std::str::from_utf8(name).is_ok_and(|name| names.contains(name));
        if watch.saw(is_unfinished) {
            self.sightings += 1;
        }
    }
}

#[cfg(target_os = "linux")]
mod watch {
    use std::io;
    use std::mem::MaybeUninit;
    use std::os::fd::OwnedFd;
    use std::path::{Path, PathBuf};

    use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
    use rustix::io::Errno;

    /// The directories into which Cargo puts outputs.
    pub(super) struct Watch(OwnedFd);

    impl Watch {
        /// `deps`: also that of intermediate artifacts.
        pub(super) fn new(directories: &[&Path], deps: bool) -> io::Result<Self> {
            let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
            let mut any = false;
            for profile in directories.iter().flat_map(|directory| profiles(directory)) {
                let deps = deps.then(|| profile.join("deps"));
                for directory in [profile.join("examples"), profile].into_iter().chain(deps) {
                    match inotify::add_watch(&inotify, &directory, WatchFlags::OPEN | WatchFlags::ONLYDIR) {
                        Ok(_) => any = true,
                        Err(Errno::NOENT | Errno::NOTDIR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            if any { Ok(Self(inotify)) } else { Err(io::ErrorKind::NotFound.into()) }
        }

        /// Whether a file was opened whose name `matters`, since this was last asked.
        pub(super) fn saw(&mut self, matters: impl Fn(&[u8]) -> bool) -> bool {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(&self.0, &mut buffer);
            let mut seen = false;
            loop {
                match reader.next() {
                    Ok(event) => {
                        seen |= event.events().contains(ReadFlags::QUEUE_OVERFLOW)
                            || event.file_name().is_some_and(|name| matters(name.to_bytes()));
                    }
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => return seen,
                    // What cannot be known may have happened.
                    Err(_) => return true,
                }
            }
        }
    }

    /// `target/PROFILE` and `target/TRIPLE/PROFILE`: which of them this build uses need not be known.
    fn profiles(target_directory: &Path) -> Vec<PathBuf> {
        let below = |dir: &Path| {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            dirs.map(|entry| entry.path()).collect::<Vec<_>>()
        };
        let is_profile = |dir: &PathBuf| dir.join(".cargo-lock").exists() || dir.join("examples").exists();
        let (mut profiles, others): (Vec<_>, Vec<_>) = below(target_directory).into_iter().partition(is_profile);
        profiles.extend(others.iter().flat_map(|dir| below(dir)).filter(is_profile));
        profiles
    }
}

#[cfg(not(target_os = "linux"))]
mod watch {
    use std::io;
    use std::path::Path;

    /// Nothing tells here who opens files.
    pub(super) enum Watch {}

    impl Watch {
        pub(super) fn new(_directories: &[&Path], _deps: bool) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(super) fn saw(&mut self, _matters: impl Fn(&[u8]) -> bool) -> bool {
            match *self {}
        }
    }
}
