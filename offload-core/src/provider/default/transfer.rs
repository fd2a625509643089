//! Files into and out of a sandbox that is reached by commands only.
//!
//! Into it: a tar archive, in base64, in commands of bounded length. Out of it: by `download_command`, or the same way
//! back where there is none.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{DefaultSandbox, ProviderError, ProviderResult, Value};
use crate::connector::{Connector as _, RunOptions, ShellConnector, describe_exit, quote, quote_always, tail};
use crate::random;

/// Bytes per command: 48 KiB in base64. A multiple of three, so that no piece but the last is padded.
const PIECE: usize = 36 << 10;

/// A path in the sandbox's temporary directory that nobody else uses or can guess, as text within double quotation
/// marks.
pub(super) fn temporary_name(extension: &str) -> String {
    format!("${{TMPDIR:-/tmp}}/offload-{}.{extension}", random::word())
}

/// Writes `bytes` to the file `name` (see [`temporary_name`]) in the sandbox.
pub(super) async fn send_bytes(sandbox: &DefaultSandbox, bytes: &[u8], name: &str) -> ProviderResult<()> {
    // A link that somebody has put there is not followed.
    let (mut before, mut redirect) = ("umask 077; set -C; ", ">");
    for piece in bytes.chunks(PIECE) {
        let data = STANDARD.encode(piece);
        let line = format!("{before}printf %s '{data}' | base64 -d {redirect}\"{name}\"");
        sandbox.exec_own("write a file", line).await?;
        (before, redirect) = ("", ">>");
    }
    Ok(())
}

pub(super) async fn upload(sandbox: &DefaultSandbox, local: &Path, remote: &Path) -> ProviderResult<()> {
    let failed = |what: String| {
        let (from, to) = (local.display(), remote.display());
        ProviderError::Transfer(format!("cannot bring {from} into the sandbox {} as {to}: {what}", sandbox.id))
    };
    // A link that is named stands for what it points to; links below it stay links.
    let source = local.canonicalize().map_err(|error| failed(error.to_string()))?;
    let directory = source.is_dir();
    let (base, entry) = match (source.parent(), source.file_name()) {
        (Some(parent), Some(name)) if !directory => (parent, format!("./{}", name.to_string_lossy())),
        _ => (source.as_path(), ".".to_owned()),
    };
    let archive = pack(base, &entry).await.map_err(failed)?;
    let name = temporary_name("tar");
    send_bytes(sandbox, &archive, &name).await?;

    let target = remote.to_string_lossy();
    let target = if target.starts_with('-') { format!("./{target}") } else { target.into_owned() };
    let target = quote(&target);
    let unpack = if directory {
        format!("mkdir -p {target} && tar -xf \"$archive\" -C {target}")
    } else {
        // Beside its place first: it appears there whole and under its name.
        let entry = quote(&entry);
        format!(
            "dir=$(dirname {target}) && mkdir -p \"$dir\" && part=$(mktemp -d \"$dir/.offload.XXXXXX\") && \
             tar -xf \"$archive\" -C \"$part\" && mv -f \"$part\"/{entry} {target}; code=$?; \
             [ -z \"$part\" ] || rm -rf \"$part\"; (exit $code)"
        )
    };
    let line = format!("archive=\"{name}\"; {{ {unpack}; }}; code=$?; rm -f \"$archive\"; exit $code");
    sandbox.exec_own(&format!("unpack {}", remote.display()), line).await.map(drop)
}

pub(super) async fn download(sandbox: &DefaultSandbox, paths: &[(PathBuf, PathBuf)]) -> ProviderResult<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let failed =
        |what: String| ProviderError::Transfer(format!("cannot bring files out of the sandbox {}: {what}", sandbox.id));
    let mut absolute = Vec::with_capacity(paths.len());
    for (remote, local) in paths {
        // The command may run elsewhere.
        let local = std::path::absolute(local).map_err(|error| failed(error.to_string()))?;
        if let Some(parent) = local.parent() {
            std::fs::create_dir_all(parent).map_err(|error| failed(format!("{}: {error}", parent.display())))?;
        }
        absolute.push((remote, local));
    }
    let Some(template) = &sandbox.shared.config.download_command else {
        for (remote, local) in absolute {
            download_by_exec(sandbox, remote, &local).await?;
        }
        return Ok(());
    };
    let pairs: Vec<String> = absolute
        .iter()
        .map(|(remote, local)| {
            format!("{}:{}", quote_always(&remote.to_string_lossy()), quote_always(&local.to_string_lossy()))
        })
        .collect();
    let pairs = pairs.join(" ");
    let values = [("sandbox_id", Value::Word(&sandbox.id)), ("paths", Value::Words(&pairs))];
    let line = sandbox.shared.line_with(template, &values)?;
    sandbox.shared.run("download_command", &line, ProviderError::Transfer).await?;
    match absolute.iter().find(|(_, local)| local.symlink_metadata().is_err()) {
        None => Ok(()),
        Some((remote, local)) => Err(failed(format!(
            "`download_command` succeeded, but did not bring {} to {}; see docs/PROVIDERS.md for what {{paths}} is",
            remote.display(),
            local.display(),
        ))),
    }
}

/// Brings one file or directory out through standard output.
async fn download_by_exec(sandbox: &DefaultSandbox, remote: &Path, local: &Path) -> ProviderResult<()> {
    let there = quote(&remote.to_string_lossy());
    let what = format!("read {}", remote.display());
    let failed = |what_happened: String| {
        ProviderError::Transfer(format!("cannot {what} in the sandbox {}: {what_happened}", sandbox.id))
    };
    // The first line says which it is.
    let line = format!(
        "if [ -d {there} ]; then echo directory; cd {there} && tar -cf - . | base64; \
         else [ -r {there} ] || {{ echo \"there is no such file\" >&2; exit 1; }}; echo file; base64 <{there}; fi"
    );
    let output = sandbox.exec_own(&what, line).await?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (kind, body) = text.split_once('\n').unwrap_or((&text, ""));
    let body: String = body.split_ascii_whitespace().collect();
    let bytes = STANDARD.decode(body).map_err(|error| {
        failed(format!("what came back is not base64 ({error}); `exec_command` must print nothing of its own"))
    })?;
    match kind.trim() {
        "file" => tokio::fs::write(local, bytes).await.map_err(|error| failed(error.to_string())),
        "directory" => unpack(&bytes, local).await.map_err(failed),
        other => Err(failed(format!("it began with {other:?}; `exec_command` must print nothing of its own"))),
    }
}

/// A tar archive of `entry` below `base`.
async fn pack(base: &Path, entry: &str) -> Result<Vec<u8>, String> {
    let file = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    let archive = quote(&file.path().to_string_lossy());
    run_tar(&format!("tar -cf {archive} -- {}", quote(entry)), base).await?;
    tokio::fs::read(file.path()).await.map_err(|error| error.to_string())
}

async fn unpack(archive: &[u8], into: &Path) -> Result<(), String> {
    let file = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    tokio::fs::write(file.path(), archive).await.map_err(|error| error.to_string())?;
    tokio::fs::create_dir_all(into).await.map_err(|error| error.to_string())?;
    run_tar(&format!("tar -xf {}", quote(&file.path().to_string_lossy())), into).await
}

async fn run_tar(line: &str, dir: &Path) -> Result<(), String> {
    let options = RunOptions { working_dir: Some(dir.to_owned()), ..RunOptions::default() };
    let output = ShellConnector::default().run(line, &options).await.map_err(|error| error.to_string())?;
    match output.exit_code {
        Some(0) => Ok(()),
        code => Err(format!("tar on this machine: {}{}", describe_exit(code), tail(&output, 5))),
    }
}
