use std::ffi::OsStr;
use std::os::unix::fs::symlink;
use std::process::Command;

use super::*;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn root(&self) -> PathBuf {
        self.0.path().canonicalize().unwrap()
    }

    fn write(&self, path: impl AsRef<Path>, text: &str) -> &Self {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn git(&self, args: &[&str]) -> &Self {
        let status = Command::new("git").arg("-C").arg(self.root()).args(args).status().unwrap();
        assert!(status.success());
        self
    }

    fn set(&self, project: &Project) -> FileSet {
        let mut set = FileSet::new();
        set.add_project(project, Path::new("/app")).unwrap();
        set
    }

    fn project(&self) -> Project {
        Project::new(self.root())
    }
}

fn names(set: &FileSet) -> Vec<String> {
    set.entries.keys().map(|path| text(path.strip_prefix("/app").unwrap())).filter(|name| !name.is_empty()).collect()
}

#[test]
fn what_git_tracks_or_would_track_travels() {
    let place = Place::new();
    place.git(&["init", "-q"]).write(".gitignore", "*.log\n/target\n").write("src/a.py", "").write(".hidden/b", "");
    place.write("debug.log", "").write("kept.log", "").write("target/huge", "").write("target/kept", "");
    place.git(&["add", "--force", "kept.log", "target/kept"]);
    let expected = [".gitignore", ".hidden", ".hidden/b", "kept.log", "src", "src/a.py", "target", "target/kept"];
    assert_eq!(names(&place.set(&place.project())), expected);
}

#[test]
fn patterns_add_what_is_ignored_and_leave_out_what_is_tracked() {
    let place = Place::new();
    place.git(&["init", "-q"]).write(".gitignore", "build/\n").write("build/lib/x.so", "").write("build/x.o", "");
    place.write("data/big.bin", "").write("data/small", "").write("docs/a/b", "").write("reports/junit.xml", "");
    place.git(&["add", "data/big.bin", "docs"]);
    let project = place
        .project()
        .including(vec!["build/lib".to_owned()])
        .excluding(vec!["*.bin".to_owned(), "/docs".to_owned()])
        .without(vec![place.root().join("reports")]);
    let expected = [".gitignore", "build", "build/lib", "build/lib/x.so", "data", "data/small"];
    assert_eq!(names(&place.set(&project)), expected);
}

#[test]
fn ignore_files_count_without_a_repository() {
    let place = Place::new();
    place.write(".gitignore", ".venv\n").write(".venv/bin/python", "").write("a", "").write(".ignore", "a\n");
    assert_eq!(names(&place.set(&place.project())), [".gitignore", ".ignore", "a"]);
}

#[test]
fn a_pattern_that_means_nothing_is_named() {
    let place = Place::new();
    let error = place.project().excluding(vec!["[z-a]".to_owned()]).select().unwrap_err().to_string();
    assert!(error.starts_with("`exclude` in [provider] has a pattern that means nothing, \"[z-a]\""), "{error}");
}

/// What an archive unpacks to, by GNU tar.
fn unpacked(set: &FileSet) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("archive.tar");
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    set.write_tar(Owner { uid: uid.into(), gid: gid.into() }, fs::File::create(&archive).unwrap()).unwrap();
    let mut tar = Command::new("tar");
    assert!(tar.arg("-xpf").arg(&archive).arg("-C").arg(dir.path()).status().unwrap().success());
    dir
}

#[test]
fn archives_hold_links_modes_empty_directories_long_names_and_names_that_are_not_utf8() {
    let place = Place::new();
    let odd = OsStr::from_bytes(b"caf\xe9 100%");
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(200));
    place.write("run.sh", "#!/bin/sh\n").write(odd, "odd").write(&long, "long").write("empty-file", "");
    let root = place.root();
    fs::set_permissions(root.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    symlink("../elsewhere/x", root.join("dangling")).unwrap();
    symlink("empty", root.join("to-directory")).unwrap();

    let dir = unpacked(&place.set(&place.project()));
    let app = dir.path().join("app");
    assert_eq!(fs::metadata(app.join("run.sh")).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read(app.join(odd)).unwrap(), b"odd");
    assert_eq!(fs::read(app.join(&long)).unwrap(), b"long");
    assert!(app.join("empty").is_dir() && app.join("empty-file").is_file());
    assert_eq!(fs::read_link(app.join("dangling")).unwrap(), Path::new("../elsewhere/x"));
    assert_eq!(fs::read_link(app.join("to-directory")).unwrap(), Path::new("empty"));
    let modified = |path: &Path| fs::metadata(path).unwrap().mtime();
    assert_eq!(modified(&app.join("run.sh")), modified(&root.join("run.sh")));
}

#[test]
fn the_same_files_give_the_same_archive() {
    let place = Place::new();
    place.write("b", "2").write("a/c", "1").write("a.txt", "3");
    let archive = || {
        let mut bytes = Vec::new();
        place.set(&place.project()).write_tar(Owner::default(), &mut bytes).unwrap();
        bytes
    };
    assert!(archive() == archive());
}

#[test]
fn a_file_that_shrinks_meanwhile_is_an_error_and_not_a_broken_archive() {
    let place = Place::new();
    place.write("log", "0123456789");
    let set = place.set(&place.project());
    place.write("log", "0");
    let error = set.write_tar(Owner::default(), io::sink()).unwrap_err().to_string();
    assert!(error.contains("/log, which is to travel to the sandboxes: it became shorter"), "{error}");
}

#[test]
fn only_differences_of_content_mode_and_kind_count() {
    let place = Place::new();
    place.write("same", "1").write("edited", "1").write("mode", "1").write("gone/a", "").write("gone/b/c", "");
    place.write("was-file", "").write("was-dir/x", "").write("100%", "");
    let root = place.root();
    symlink("same", root.join("link")).unwrap();
    let before = place.set(&place.project()).manifest();
    assert!(place.set(&place.project()).changed_since(&before).is_empty());

    let touched = fs::File::options().write(true).open(root.join("same")).unwrap();
    touched.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1)).unwrap();
    place.write("edited", "2").write("new/file", "");
    fs::set_permissions(root.join("mode"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::remove_dir_all(root.join("gone")).unwrap();
    fs::remove_file(root.join("was-file")).unwrap();
    place.write("was-file/now", "");
    fs::remove_dir_all(root.join("was-dir")).unwrap();
    place.write("was-dir", "");
    fs::remove_file(root.join("link")).unwrap();
    symlink("mode", root.join("link")).unwrap();

    let after = place.set(&place.project());
    let changed = after.changed_since(&before);
    assert_eq!(names(&changed), ["edited", "link", "mode", "new", "new/file", "was-dir", "was-file", "was-file/now"],);
    let gone: Vec<_> = after.gone_since(&before).iter().map(|path| text(path)).collect();
    assert_eq!(gone, ["/app/gone", "/app/was-dir", "/app/was-file"]);
    assert!(after.changed_since(&after.manifest()).is_empty());
}

#[test]
fn a_directory_that_is_no_longer_named_stays_as_long_as_something_is_in_it() {
    let place = Place::new();
    place.write("target/debug/program", "1").write("target/other", "").write("aim/x", "");
    let before = place.set(&place.project()).manifest();
    let mut after = FileSet::new();
    after.add_path(&place.root().join("target/debug/program"), Path::new("/app/target/debug/program")).unwrap();
    let gone: Vec<_> = after.gone_since(&before).iter().map(|path| text(path)).collect();
    assert_eq!(gone, ["/app/aim", "/app/target/other"]);
    assert!(after.changed_since(&before).is_empty());
}

#[test]
fn any_name_survives_as_text() {
    for name in [&b"plain"[..], b"100%", b"%25", b"\xff\xfe", b"caf\xc3\xa9", b"%", b"%zz", b"line\nend"] {
        let path = PathBuf::from(OsStr::from_bytes(name));
        assert_eq!(path_of(&text(&path)), path);
    }
}

#[test]
fn a_directory_that_is_named_travels_whole() {
    let place = Place::new();
    place.write("fixtures/.gitignore", "*\n").write("fixtures/x", "1");
    let mut set = FileSet::new();
    set.add_path(&place.root().join("fixtures"), Path::new("/data")).unwrap();
    let paths: Vec<_> = set.entries.keys().map(|path| text(path)).collect();
    assert_eq!(paths, ["/data", "/data/.gitignore", "/data/x"]);
    let error = set.add_path(Path::new("/no such"), Path::new("/x")).unwrap_err().to_string();
    assert!(error.starts_with("cannot read /no such, which is to travel"), "{error}");
}
