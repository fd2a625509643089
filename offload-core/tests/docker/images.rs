//! What is in the images, and when they are made anew.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// How many images below a container's hold files of the project.
fn layers(project: &Project) -> usize {
    let image = support::docker(&["inspect", "--format", "{{.Image}}", &project.container()]);
    let layers = |image: &str| support::docker(&["inspect", "--format", "{{len .RootFS.Layers}}", image]);
    let of_base: usize = layers(&support::image().unwrap()).parse().unwrap();
    layers(&image).parse::<usize>().unwrap() - of_base
}

#[tokio::test]
async fn only_what_changed_travels_the_next_time() {
    let Some(project) = Project::new() else { return };
    project.write("same", "1").write("edited", "1").write("gone/a", "").write("was-dir/x", "").write("it's $odd", "");
    let odd = project.root().join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    std::fs::write(&odd, "odd").unwrap();
    std::fs::set_permissions(project.root().join("same"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("same", project.root().join("link")).unwrap();
    std::fs::create_dir(project.root().join("empty")).unwrap();
    let listing = "find . -not -name . -printf '%P %y %m %l\\n' | sort";
    let listing_here = || {
        let output = std::process::Command::new("sh").arg("-c").arg(listing).current_dir(project.root()).output();
        let text = String::from_utf8_lossy(&output.unwrap().stdout).into_owned();
        // Offload's own files stay here.
        text.lines().filter(|line| !line.starts_with("test-results")).collect::<Vec<_>>().join("\n")
    };
    // The image has no `find`.
    let listing_there = "python3 -c '
import os, stat
for top, dirs, files in os.walk(b\".\"):
    for name in dirs + files:
        path = os.path.join(top, name)
        mode = os.lstat(path).st_mode
        kind = \"d\" if stat.S_ISDIR(mode) else \"l\" if stat.S_ISLNK(mode) else \"f\"
        link = os.readlink(path).decode() if kind == \"l\" else \"\"
        os.write(1, path[2:] + f\" {kind} {stat.S_IMODE(mode):o} {link}\\n\".encode())
' | sort";
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.sort();
        lines
    };

    let (_provider, sandbox) = project.sandbox().await;
    let there = String::from_utf8_lossy(&sh(&*sandbox, listing_there).await.stdout).into_owned();
    assert_eq!(sorted(&there), sorted(&listing_here()));
    assert_eq!(layers(&project), 1);
    sandbox.terminate().await.unwrap();

    // Nothing changed: the same image.
    let (_provider, sandbox) = project.sandbox().await;
    assert_eq!(layers(&project), 1);
    sandbox.terminate().await.unwrap();

    project.write("edited", "2").write("new", "");
    std::fs::remove_dir_all(project.root().join("gone")).unwrap();
    std::fs::remove_dir_all(project.root().join("was-dir")).unwrap();
    std::fs::remove_file(project.root().join("it's $odd")).unwrap();
    std::fs::remove_file(odd).unwrap();
    project.write("was-dir", "now a file");
    let (_provider, sandbox) = project.sandbox().await;
    assert_eq!(said(&*sandbox, "cat edited was-dir; ls -a /").await.lines().next(), Some("2now a file."));
    let there = said(&*sandbox, listing_there).await;
    assert_eq!(sorted(&there), sorted(&listing_here()));
    assert_eq!(layers(&project), 2);
    assert!(!said(&*sandbox, "ls -a /").await.contains("offload"), "the script that removes files is still there");
    sandbox.terminate().await.unwrap();
}

#[tokio::test]
async fn layers_do_not_pile_up() {
    let Some(project) = Project::new() else { return };
    let mut most = 0;
    for number in 0..13 {
        project.write("changing", &number.to_string());
        let (_provider, sandbox) = project.sandbox().await;
        assert_eq!(said(&*sandbox, "cat changing").await, number.to_string());
        most = most.max(layers(&project));
        sandbox.terminate().await.unwrap();
    }
    assert_eq!(most, 11);
    let images = support::docker(&["images", "-q", "--filter", &project.label()]);
    assert!(images.lines().count() <= 2, "images of earlier runs are left: {images}");
}

#[tokio::test]
async fn the_init_command_runs_again_when_its_inputs_change() {
    let Some(project) = Project::new() else { return };
    project.write("requirements.txt", "a").write("code.py", "1");
    let mut project = project.with(|config, docker| {
        docker.env.insert("SECRET".to_owned(), "hunter2".to_owned());
        config.offload.sandbox_init_cmd = Some(
            "test \"$SECRET\" = hunter2; cp requirements.txt /installed && cat /proc/sys/kernel/random/uuid > /when"
                .to_owned(),
        );
        config.checkpoint.build_inputs = vec!["requirements.txt".to_owned()];
    });
    let when = async |project: &Project| {
        let (_provider, sandbox) = project.sandbox().await;
        let said = said(&*sandbox, "cat /when code.py /installed").await;
        sandbox.terminate().await.unwrap();
        let mut lines = said.lines().map(str::to_owned);
        (lines.next().unwrap(), lines.next().unwrap())
    };
    let first = when(&project).await;
    assert_eq!(first.1, "1a");
    project.write("code.py", "2");
    let second = when(&project).await;
    assert_eq!((first.0.as_str(), "2a"), (second.0.as_str(), second.1.as_str()));
    project.write("requirements.txt", "b");
    let third = when(&project).await;
    assert_ne!(second.0, third.0);
    assert_eq!(third.1, "2b");
    // Without inputs, it depends on everything.
    project.config.checkpoint.build_inputs.clear();
    let fourth = when(&project).await;
    project.write("code.py", "3");
    assert_ne!(fourth.0, when(&project).await.0);
    let images = support::docker(&["images", "-q", "--filter", &project.label()]);
    for image in images.lines() {
        assert!(!support::docker(&["inspect", image]).contains("hunter2"), "a secret is in the image");
    }
}

#[tokio::test]
async fn an_init_command_that_fails_shows_its_output() {
    let Some(project) = Project::new() else { return };
    let project = project.with(|config, _| {
        config.offload.sandbox_init_cmd = Some("echo installing; echo no such package >&2; exit 4".to_owned());
    });
    let error = project.error().await;
    assert!(matches!(error, ProviderError::Unusable(_)));
    let image = support::image().unwrap();
    let error = error.to_string();
    assert!(
        error.starts_with("cannot run `sandbox_init_cmd` (echo installing; echo no such package >&2; exit 4)"),
        "{error}"
    );
    assert!(error.ends_with(&format!("in the image {image}: exit code 4\n  no such package")), "{error}");
    assert_eq!(project.containers(), "");
}

#[tokio::test]
async fn an_image_can_be_built_from_a_dockerfile() {
    let Some(project) = Project::new() else { return };
    let image = support::image().unwrap();
    project.write(
        "docker/Dockerfile",
        &format!("FROM {image}\nARG WORD\nCOPY file /file\nRUN echo $WORD >> /file\nUSER 77"),
    );
    project.write("docker/file", "copied\n");
    let project = project.with(|_, docker| {
        docker.image = None;
        docker.dockerfile = Some("docker/Dockerfile".into());
        docker.build_args.insert("WORD".to_owned(), "built".to_owned());
    });
    let (_provider, sandbox) = project.sandbox().await;
    assert_eq!(said(&*sandbox, "cat /file; id -u; stat -c %u docker/file").await, "copied\nbuilt\n77\n77");
    sandbox.terminate().await.unwrap();

    project.write("docker/Dockerfile", &format!("FROM {image}\nRUN echo about to fail && exit 9"));
    let error = project.error().await.to_string();
    assert!(
        error.starts_with("cannot build an image from ")
            && error.contains(
                "docker/Dockerfile: The command '/bin/sh -c echo about to fail && exit 9' returned a non-zero code: 9;"
            ),
        "{error}"
    );
    assert!(error.contains("\n  about to fail\n"), "{error}");
}

#[tokio::test]
async fn users_are_known_by_the_names_that_the_image_gives_them() {
    let Some(project) = Project::new() else { return };
    project.write("file", "");
    let mut project = project.with(|_, docker| docker.user = Some("daemon".to_owned()));
    let (_provider, sandbox) = project.sandbox().await;
    assert_eq!(said(&*sandbox, "id -un; stat -c %U:%G file").await, "daemon\ndaemon:daemon");
    sandbox.terminate().await.unwrap();
    project = project.with(|_, docker| docker.user = Some("nobody-here".to_owned()));
    let error = project.error().await.to_string();
    assert!(error.contains("has no user or group \"nobody-here\""), "{error}");
}
