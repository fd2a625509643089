//! `history`: the file that remembers durations and outcomes, under version control.

use std::path::Path;
use std::process::Command;

use anyhow::Context;
use offload_core::config::HistoryConfig;
use offload_core::report::history::{self, History};

use crate::cli::CommonArgs;
use crate::cli::offload::HistoryCommand;
use crate::failure::Outcome;
use crate::settings::{Overrides, Settings};

/// The name of the merge driver in git's configuration and attributes.
const DRIVER: &str = "offload-history";

/// `offload history`
pub fn run(common: &CommonArgs, command: &HistoryCommand) -> Outcome {
    match command {
        HistoryCommand::Merge { base, ours, theirs } => merge(base, ours, theirs),
        HistoryCommand::SetupMergeDriver => set_up_merge_driver(common),
    }
}

fn merge(base: &Path, ours: &Path, theirs: &Path) -> Outcome {
    let load = |path: &Path| {
        // A history that is not there is an empty one elsewhere; git always has three files, so a missing one is a slip.
        anyhow::ensure!(path.exists(), "the history {} cannot be merged: there is no such file", path.display());
        History::load(path)
            .map(|(history, _damage)| history)
            .with_context(|| format!("the history {} cannot be merged", path.display()))
    };
    let reservoir_size = HistoryConfig::default().reservoir_size;
    history::merge(&load(ours)?, &load(theirs)?, &load(base)?, reservoir_size).write(ours)?;
    Ok(0)
}

fn set_up_merge_driver(common: &CommonArgs) -> Outcome {
    let settings = Settings::offload(common, Overrides::default())?;
    let top = git(&settings.base_dir, &["rev-parse", "--show-toplevel"])?;
    let top = Path::new(top.trim());
    let canonical = settings.base_dir.canonicalize().unwrap_or_else(|_| settings.base_dir.clone());
    let history = canonical.join(settings.config.history.path.file_name().unwrap_or_default());
    let pattern = history.strip_prefix(top).unwrap_or(&history).to_string_lossy().replace(' ', "[[:space:]]");
    git(top, &["config", &format!("merge.{DRIVER}.name"), "merge of Offload's test history"])?;
    git(top, &["config", &format!("merge.{DRIVER}.driver"), "offload history merge %O %A %B"])?;
    let attributes = top.join(".gitattributes");
    let line = format!("{pattern} merge={DRIVER}");
    let mut text = match std::fs::read_to_string(&attributes) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", attributes.display())),
    };
    if !text.lines().any(|existing| existing == line) {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&line);
        text.push('\n');
        std::fs::write(&attributes, text).with_context(|| format!("cannot write {}", attributes.display()))?;
    }
    println!(
        "git now merges {pattern} by itself in this clone; commit .gitattributes so that others can set it up too"
    );
    Ok(0)
}

fn git(dir: &Path, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("git").arg("-C").arg(dir).args(args).output().context("git could not be started")?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        anyhow::bail!("`git {}` failed in {}: {}", args.join(" "), dir.display(), stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
