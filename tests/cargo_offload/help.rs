//! What people read who ask for help: the short form fits a screen and names what is needed on the first day, the long
//! form is complete.

use crate::support::{Run, cargo_offload, offload};

/// What is the same for all of them.
const GENERAL_OPTIONS: &str = "General options:
  -c, --config <PATH>  Use this configuration file (offload.toml, or a Cargo.toml or pyproject.toml
                       that holds one)
  -v, --verbose...     Say more: a line for each test (-v), what offload itself does (-vv)
  -q, --quiet          Say less: failures and the totals only
      --color <WHEN>   Colour the output [default: auto] [possible values: auto, always, never]
";

/// The short form, without the general options, which each has.
fn short_help(program: &str, args: &[&str]) -> String {
    let text = help(program, args);
    assert!(text.contains(GENERAL_OPTIONS), "{text}");
    text.replace(GENERAL_OPTIONS, "[general options]\n")
}

fn help(program: &str, args: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut command = if program == "offload" { offload(dir.path()) } else { cargo_offload(dir.path()) };
    command.env("COLUMNS", "100");
    Run::new(command, args).exits(0).stdout
}

#[test]
fn cargo_offload_in_short() {
    insta::assert_snapshot!(short_help("cargo offload", &["-h"]), @r#"
    Run the tests of a Cargo workspace, in parallel, each in its own process

    Usage: cargo offload [OPTIONS] [FILTERS]... [-- <ARGS>...]
           cargo offload <COMMAND>

    Commands:
      run       Build and run tests (the default)
      list      Build and list tests without running any
      init      Write a commented offload.toml
      validate  Check the configuration and show every value and where it comes from
      logs      Show tests of the last run with their output
      help      Print this message or the help of the given subcommand(s)

    Arguments:
      [FILTERS]...  Only tests whose name contains one of these
      [ARGS]...     Arguments for the test binaries

    Options:
      -h, --help     Print help (see more with '--help')
      -V, --version  Print version

    Test selection:
          --exact                Filters match whole names
          --skip <FILTER>        Leave out tests whose name contains this
          --run-ignored <WHICH>  Which ignored tests run [default: default] [possible values: default,
                                 only, all]

    Package selection:
      -p, --package <SPEC>  Test this package
          --workspace       Test all packages of the workspace [alias: --all]
          --exclude <SPEC>  Leave out this package

    Target selection:
          --lib          Test only the library's unit tests
          --tests        Test all targets that have `test = true`
          --test <NAME>  Test this integration test
          --doc          Test only the documentation

    Feature selection:
      -F, --features <FEATURES>  Activate these features
          --all-features         Activate all features

    Build options:
      -r, --release               Build in release mode
          --cargo-profile <NAME>  Build with this Cargo profile
          --target <TRIPLE>       Build for this target triple

    Run options:
      -j, --parallel <N>       The most sandboxes (tests) at once [default: the number of CPUs] [alias:
                               --test-threads]
          --retries <N>        Repeat a failed test up to N times; it is flaky if it then passes
          --timeout <SECS>     End a test that runs longer than this many seconds
          --fail-fast          Stop after the first failed test
          --max-fail <N>       Stop after N failed tests
          --no-capture         Do not capture what tests write [alias: --nocapture]
          --isolation <LEVEL>  What tests share: by default quick tests share a process, and what fails
                               there runs again alone [possible values: auto, process, binary]

    Report options:
          --junit <PATH>             Write the JUnit report to this file
          --message-format <FORMAT>  What standard output is for [default: human] [possible values:
                                     human, json]
          --progress <HOW>           How progress is shown [default: auto] [possible values: auto, bar,
                                     plain, none]

    [general options]

    All options, and what the exit codes mean: cargo offload --help
    "#);
}

#[test]
fn offload_in_short() {
    insta::assert_snapshot!(short_help("offload", &["-h"]), @r#"
    Run a test suite over many isolated sandboxes, as offload.toml says

    Usage: offload [OPTIONS] <COMMAND>

    Commands:
      run                Discover and run tests
      build              Build the base image of the sandboxes without running tests
      collect            List the tests without running any [alias: list]
      validate           Check the configuration and show every value and where it comes from
      init               Write a commented offload.toml
      logs               Show tests of the last run with their output
      history            Work with the history file
      checkpoint-status  Show which base image the current checkout would use
      clean              Remove what runs have left on the Docker daemon, or on hosts
      help               Print this message or the help of the given subcommand(s)

    Options:
      -h, --help     Print help (see more with '--help')
      -V, --version  Print version

    [general options]

    What the exit codes mean: offload --help
    "#);
}

#[test]
fn offload_run_in_short() {
    insta::assert_snapshot!(short_help("offload", &["run", "-h"]), @r#"
    Discover and run tests

    Usage: offload run [OPTIONS]

    Options:
      -h, --help  Print help (see more with '--help')

    Run options:
      -j, --parallel <N>             The most sandboxes (tests) at once [default: the number of CPUs]
                                     [alias: --test-threads]
          --retries <N>              Repeat a failed test up to N times; it is flaky if it then passes
          --timeout <SECS>           End a test that runs longer than this many seconds
          --fail-fast                Stop after the first failed test
          --max-fail <N>             Stop after N failed tests
          --no-capture               Do not capture what tests write [alias: --nocapture]
          --collect-only             Only discover tests and list them
          --copy-dir <LOCAL:REMOTE>  Copy LOCAL into each sandbox at REMOTE
          --env <KEY=VALUE>          Set a variable in the sandboxes

    Image options:
          --no-cache                Do not use an image of an earlier run
          --override-image-id <ID>  Use this image instead of preparing one

    Report options:
          --trace                    Write a Perfetto trace of the run
          --show-estimated-cost      Show what the sandboxes are estimated to cost
          --junit <PATH>             Write the JUnit report to this file
          --message-format <FORMAT>  What standard output is for [default: human] [possible values:
                                     human, json]
          --progress <HOW>           How progress is shown [default: auto] [possible values: auto, bar,
                                     plain, none]

    [general options]
    "#);
}

#[test]
fn the_long_form_is_complete() {
    let long = help("cargo offload", &["--help"]);
    for cargo in [
        "--package",
        "--workspace",
        "--exclude",
        "--lib",
        "--bins",
        "--bin",
        "--tests",
        "--test",
        "--examples",
        "--example",
        "--benches",
        "--bench",
        "--all-targets",
        "--doc",
        "--features",
        "--all-features",
        "--no-default-features",
        "--release",
        "--cargo-profile",
        "--target",
        "--target-dir",
        "--manifest-path",
        "--locked",
        "--offline",
        "--frozen",
        "--build-jobs",
        "--exact",
        "--skip",
    ] {
        assert!(long.contains(&format!("{cargo} ")) || long.contains(&format!("{cargo}\n")), "{cargo} is missing");
    }
    for ours in [
        "--config",
        "--provider",
        "--parallel",
        "--retries",
        "--timeout",
        "--fail-fast",
        "--max-fail",
        "--isolation",
        "--run-ignored",
        "--no-capture",
        "--junit",
        "--output-dir",
        "--message-format",
        "--progress",
        "--color",
        "--verbose",
        "--quiet",
        "--no-tests",
    ] {
        assert!(long.contains(ours), "{ours} is missing");
    }
    for code in ["    0  all", "    1  a test", "    2  all", "    3  nothing", "  130  interrupted"] {
        assert!(long.contains(code), "{code:?} is missing in\n{long}");
    }
}

#[test]
fn both_forms_say_what_cargo_offload_help_says() {
    assert_eq!(help("cargo offload", &["help"]), help("cargo offload", &["--help"]));
    for command in ["run", "list", "init", "validate", "logs"] {
        assert_eq!(help("cargo offload", &["help", command]), help("cargo offload", &[command, "--help"]));
    }
}
