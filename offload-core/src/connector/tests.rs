use std::path::Path;
use std::time::Duration;

use super::*;

async fn sh(line: &str, options: &RunOptions) -> ExecOutput {
    ShellConnector::default().run(line, options).await.unwrap()
}

/// Waits until nothing has the process id that `file` holds.
async fn wait_until_dead(file: &Path) {
    let pid = std::fs::read_to_string(file).unwrap();
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    for _ in 0..2000 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        let zombie = stat.is_ok_and(|stat| stat.contains(") Z "));
        if zombie || rustix::process::test_kill_process(pid).is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{pid:?} lives on");
}

#[tokio::test]
async fn both_streams_and_the_exit_code_come_back() {
    let output = sh("echo out; echo err >&2; cat; exit 7", &RunOptions::default()).await;
    assert_eq!(output.exit_code, Some(7));
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");
}

#[tokio::test]
async fn directory_and_environment_are_laid_over_the_connectors() {
    let (outer, inner) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let env = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "1".to_owned())]);
    let connector = ShellConnector::default().with_working_dir(outer.path()).with_env(env);
    let options = RunOptions {
        working_dir: Some(inner.path().to_owned()),
        env: BTreeMap::from([("B".to_owned(), "2 $x".to_owned())]),
        ..RunOptions::default()
    };
    let output = connector.run("pwd -P; echo \"$A $B\"", &options).await.unwrap();
    let expected = format!("{}\n1 2 $x\n", inner.path().canonicalize().unwrap().display());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}

#[tokio::test]
async fn a_signal_is_128_and_its_number() {
    let output = sh("kill -SEGV $$", &RunOptions::default()).await;
    assert_eq!(output.exit_code, Some(139));
    assert_eq!(describe_exit(output.exit_code), "killed by signal 11 (SIGSEGV)");
}

#[tokio::test]
async fn a_time_limit_ends_the_whole_group_even_if_it_ignores_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let line = format!("trap '' TERM; sleep 1000 & echo $! > {}; echo begun; wait", quote(&file.to_string_lossy()));
    let options = RunOptions { timeout: Some(Duration::from_millis(300)), ..RunOptions::default() };
    let output = sh(&line, &options).await;
    assert_eq!(output.exit_code, None);
    assert_eq!(output.stdout, b"begun\n");
    wait_until_dead(&file).await;
}

#[tokio::test]
async fn dropping_the_stream_ends_the_whole_group() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let line = format!("sleep 1000 & echo $! > {}; echo begun; wait", quote(&file.to_string_lossy()));
    let mut stream = ShellConnector::default().run_stream(&line, &RunOptions::default()).await.unwrap();
    assert_eq!(next_event(&mut stream).await.unwrap().unwrap(), ExecEvent::Stdout(b"begun\n".to_vec()));
    drop(stream);
    wait_until_dead(&file).await;
}

#[tokio::test]
async fn a_child_that_holds_the_pipes_does_not_hang_the_command_and_lives_on() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let line = format!("sleep 1000 & echo $! > {}; echo done", quote(&file.to_string_lossy()));
    let output = sh(&line, &RunOptions::default()).await;
    assert_eq!((output.exit_code, output.stdout.as_slice()), (Some(0), b"done\n".as_slice()));
    let pid = std::fs::read_to_string(&file).unwrap();
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("a daemon is not ended with its command");
}

#[tokio::test]
async fn output_beyond_the_limit_keeps_both_ends() {
    let line = "echo first; head -c 20000000 /dev/zero | tr '\\0' x; echo; echo last";
    let options = RunOptions { output_limit: Some(1000), ..RunOptions::default() };
    let text = String::from_utf8(sh(line, &options).await.stdout).unwrap();
    assert!(text.len() < 1100, "{}", text.len());
    assert!(text.starts_with("first\n") && text.ends_with("x\nlast\n"), "{text}");
    assert!(text.contains("bytes dropped"), "{text}");
}

#[tokio::test]
async fn everything_written_before_the_end_arrives_however_slow_the_listener() {
    let line = "head -c 60000 /dev/zero | tr '\\0' x; exit 0";
    let mut stream = ShellConnector::default().run_stream(line, &RunOptions::default()).await.unwrap();
    let mut bytes = 0;
    while let Some(event) = next_event(&mut stream).await {
        if let ExecEvent::Stdout(piece) = event.unwrap() {
            bytes += piece.len();
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(bytes, 60_000);
}

#[tokio::test]
async fn a_line_that_no_argument_can_hold_runs_all_the_same() {
    let line = format!("x={}; printf %s \"${{#x}}\"", "y".repeat(300_000));
    assert_eq!(sh(&line, &RunOptions::default()).await.stdout, b"300000");
}

#[tokio::test]
async fn what_cannot_be_started_says_what_and_where() {
    let error = ShellConnector::new("/no/such/shell").run("true", &RunOptions::default()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("cannot run `true` with the shell /no/such/shell: "), "{text}");
    assert!(text.ends_with("check that the shell and the directory exist"), "{text}");
}

#[test]
fn quoted_text_is_one_word_for_a_real_shell() {
    for text in ["", "plain", "a b", "it's", "$HOME `id`", "two\nlines", "-n", "\\", "\"", "é ✓"] {
        let output =
            std::process::Command::new("/bin/sh").args(["-c", &format!("printf %s {}", quote(text))]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
    }
}
