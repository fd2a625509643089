//! What is said about configurations that are wrong.

use super::*;

#[test]
fn all_problems_of_a_file_are_shown_at_once() {
    let text = r#"[offload]
max_paralel = 4
max_parallel = 0
test_timeout_secs = "900"
slow_test_secs = -1
output_dir = "x"
retry_count = 99999999999999999999

[provider]
type = "defualt"
create_command = 3
copy_dirs = ["fixtures", 4]

[framework]
type = "cargo"
isolation = "thread"
features = "a"
include_ignored = "true"

[groups]
filters = "x"
[groups."my group"]
retries = 1

[reports]
junit = true

[history]
record_history = true
"#;
    assert_snapshot!(Case::file(text).error(), @r#"
    error: unknown key `max_paralel` in `[offload]`
     --> offload.toml:2:1
      |
    2 | max_paralel = 4
      | ^^^^^^^^^^^ expected a key of `[offload]`
      |
      = help: did you mean `max_parallel`?

    error: `offload.max_parallel` cannot be 0
     --> offload.toml:3:16
      |
    3 | max_parallel = 0
      |                ^ expected an integer of at least 1

    error: `offload.test_timeout_secs` has the wrong type
     --> offload.toml:4:21
      |
    4 | test_timeout_secs = "900"
      |                     ^^^^^ expected a number of seconds above 0, found a string
      |
      = help: write it without quotes: `900`

    error: `offload.slow_test_secs` cannot be -1
     --> offload.toml:5:18
      |
    5 | slow_test_secs = -1
      |                  ^^ expected a number of seconds of 0 or more

    error: unknown key `output_dir` in `[offload]`
     --> offload.toml:6:1
      |
    6 | output_dir = "x"
      | ^^^^^^^^^^ expected a key of `[offload]`
      |
      = help: `output_dir` is a key of `[report]`

    error: `offload.retry_count` cannot be 99999999999999999999
     --> offload.toml:7:15
      |
    7 | retry_count = 99999999999999999999
      |               ^^^^^^^^^^^^^^^^^^^^ expected at most 10000

    error: `provider.type` cannot be `defualt`
      --> offload.toml:10:8
       |
    10 | type = "defualt"
       |        ^^^^^^^^^ expected `local`, `default`, `modal`, `docker`, `ssh` or `kubernetes`
       |
       = help: did you mean `default`?

    error: `provider.create_command` has the wrong type
      --> offload.toml:11:18
       |
    11 | create_command = 3
       |                  ^ expected a command in a string, found an integer
       |
       = help: write it in quotes: `"3"`

    error: `provider.copy_dirs` cannot contain `fixtures`
      --> offload.toml:12:14
       |
    12 | copy_dirs = ["fixtures", 4]
       |              ^^^^^^^^^^ expected a path here, a colon and a path in the sandbox
       |
       = help: write it like `fixtures:/app/fixtures`

    error: an item of `provider.copy_dirs` has the wrong type
      --> offload.toml:12:26
       |
    12 | copy_dirs = ["fixtures", 4]
       |                          ^ expected a string, found an integer
       |
       = help: write it in quotes: `"4"`

    error: `framework.isolation` cannot be `thread`
      --> offload.toml:16:13
       |
    16 | isolation = "thread"
       |             ^^^^^^^^ expected `auto`, `process` or `binary`

    error: `framework.features` has the wrong type
      --> offload.toml:17:12
       |
    17 | features = "a"
       |            ^^^ expected a list of strings, found a string
       |
       = help: write it as a list: `["a"]`

    error: `framework.include_ignored` has the wrong type
      --> offload.toml:18:19
       |
    18 | include_ignored = "true"
       |                   ^^^^^^ expected `true` or `false`, found a string
       |
       = help: write it without quotes: `true`

    error: `filters` is not in a group
      --> offload.toml:21:1
       |
    21 | filters = "x"
       | ^^^^^^^ expected a group
       |
       = help: put it under the group's name, as in `[groups.NAME]`

    error: unknown key `retries` in `[groups."my group"]`
      --> offload.toml:23:1
       |
    23 | retries = 1
       | ^^^^^^^ expected a key of `[groups."my group"]`
       |
       = help: the keys here are `retry_count`, `filters`, `schedule_individual`

    error: unknown section `reports` at the top level
      --> offload.toml:25:2
       |
    25 | [reports]
       |  ^^^^^^^ expected a section
       |
       = help: did you mean `[report]`?

    error: `history.record_history` has the wrong type
      --> offload.toml:29:18
       |
    29 | record_history = true
       |                  ^^^^ expected `always` or `flag`, found a boolean
    "#);
}

#[test]
fn what_is_required_is_asked_for() {
    assert_snapshot!(Case::file("").error(), @r#"
    error: `provider.type` is not set
    --> offload.toml
     = note: expected `type` in `[provider]`
     = help: set it to `local`, `default`, `modal`, `docker`, `ssh` or `kubernetes`

    error: `framework.type` is not set
    --> offload.toml
     = note: expected `type` in `[framework]`
     = help: set it to `cargo`, `nextest`, `pytest`, `default` or `vitest`
    "#);
    assert_snapshot!(Case::file("[provider]\ntype = \"default\"\nexec_command = \"ssh x\"\n[framework]\n").error(), @r#"
    error: provider `default` needs `provider.create_command`, which is not set
     --> offload.toml:1:2
      |
    1 | [provider]
      |  ^^^^^^^^ expected `create_command` in `[provider]`

    error: provider `default` needs `provider.destroy_command`, which is not set
     --> offload.toml:1:2
      |
    1 | [provider]
      |  ^^^^^^^^ expected `destroy_command` in `[provider]`

    error: `provider.exec_command` has no `{command}`
     --> offload.toml:3:16
      |
    3 | exec_command = "ssh x"
      |                ^^^^^^^ expected a command with `{command}` in it

    error: `framework.type` is not set
     --> offload.toml:4:2
      |
    4 | [framework]
      |  ^^^^^^^^^ expected `type` in `[framework]`
      |
      = help: set it to `cargo`, `nextest`, `pytest`, `default` or `vitest`
    "#);
}

#[test]
fn broken_syntax_looks_like_every_other_problem() {
    assert_snapshot!(Case::file("[offload]\nmax_parallel =\n\n[provider\ntype = \"local\"\n").error(), @r#"
    error: the file is not valid TOML
     --> offload.toml:2:15
      |
    2 | max_parallel =
      |               ^ string values must be quoted, expected literal string

    error: the file is not valid TOML
     --> offload.toml:4:10
      |
    4 | [provider
      |          ^ unclosed table, expected `]`
    "#);
    assert_snapshot!(Case::file("[offload]\nmax_fail = 1\nmax_fail = 2\n").error(), @r#"
    error: the file is not valid TOML
     --> offload.toml:3:1
      |
    3 | max_fail = 2
      | ^^^^^^^^ duplicate key
    "#);
    assert_snapshot!(Case::file("offload = 3\nmax_parallel = 4\ngroups = []\n[[provider]]\n").error(), @r#"
    error: `framework.type` is not set
    --> offload.toml
     = note: expected `type` in `[framework]`
     = help: set it to `cargo`, `nextest`, `pytest`, `default` or `vitest`

    error: `offload` has the wrong type
     --> offload.toml:1:11
      |
    1 | offload = 3
      |           ^ expected a table `[offload]`

    error: unknown key `max_parallel` at the top level
     --> offload.toml:2:1
      |
    2 | max_parallel = 4
      | ^^^^^^^^^^^^ expected a section
      |
      = help: `max_parallel` is a key of `[offload]`

    error: `groups` has the wrong type
     --> offload.toml:3:10
      |
    3 | groups = []
      |          ^^ expected a table `[groups]`

    error: `provider` has the wrong type
     --> offload.toml:4:1
      |
    4 | [[provider]]
      | ^^^^^^^^^^^^ expected a table `[provider]`
    "#);
}

#[test]
fn options_and_variables_get_the_same_sentences() {
    let env = [("OFFLOAD_MAX_PARALLEL", "many"), ("OFFLOAD_PROVIDER_TYPE", "locl"), ("OFFLOAD_REPORT_JUNIT", "yes")];
    let case = Case::file(MINIMAL).env(&env).option("--parallel", "offload.max_parallel", 0);
    assert_snapshot!(case.error(), @r#"
    error: `offload.max_parallel` has the wrong type
    --> environment: OFFLOAD_MAX_PARALLEL=many
     = note: expected an integer of at least 1, found a string

    error: `provider.type` cannot be `locl`
    --> environment: OFFLOAD_PROVIDER_TYPE=locl
     = note: expected `local`, `default`, `modal`, `docker`, `ssh` or `kubernetes`
     = help: did you mean `local`?

    error: `report.junit` has the wrong type
    --> environment: OFFLOAD_REPORT_JUNIT=yes
     = note: expected `true` or `false`, found a string

    error: `offload.max_parallel` cannot be 0
    --> command line: --parallel 0
     = note: expected an integer of at least 1
    "#);
}

#[test]
fn references_to_missing_variables_name_the_place() {
    let text = format!(
        "{MINIMAL}package = \"${{PACKAGE}}\"\nfeatures = [\n  \"a\",\n  \"b-${{FEAT}}\",\n]\nbin = \"${{x%y}}\"\n"
    );
    assert_snapshot!(Case::file(&text).error(), @r#"
    error: `framework.package` refers to the environment variable `PACKAGE`, which is not set
     --> offload.toml:5:12
      |
    5 | package = "${PACKAGE}"
      |            ^^^^^^^^^^ not set
      |
      = help: set `PACKAGE`, or write `${PACKAGE:-default}` to go on without it

    error: `framework.features` refers to the environment variable `FEAT`, which is not set
     --> offload.toml:8:6
      |
    8 |   "b-${FEAT}",
      |      ^^^^^^^ not set
      |
      = help: set `FEAT`, or write `${FEAT:-default}` to go on without it

    error: `framework.bin` has a `${` that does not begin a reference to an environment variable
      --> offload.toml:10:8
       |
    10 | bin = "${x%y}"
       |        ^^^^^^ expected `${NAME}` or `${NAME:-default}`
       |
       = help: write `$${` for a plain `${`
    "#);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = format!("{}/", dir.path().display());
    let error = |name: &str| load_config(&dir.path().join(name)).unwrap_err().to_string().replace(&prefix, "");
    std::fs::write(dir.path().join("latin.toml"), b"[offload]\nworking_dir = \"\xe9\"\n").unwrap();
    std::fs::write(dir.path().join("Cargo.toml"), "[package]\nname = \"x\"\n").unwrap();
    std::fs::write(dir.path().join("pyproject.toml"), "[tool]\noffload = 3\n").unwrap();
    assert_snapshot!(error("absent.toml"), @r#"
    error: cannot read the configuration file: No such file or directory (os error 2)
    --> absent.toml
     = help: name another file with `--config`, or write this one
    "#);
    assert_snapshot!(error("latin.toml"), @r#"
    error: the configuration file is not UTF-8: line 2 has bytes that are no text
    --> latin.toml
     = help: save the file as UTF-8
    "#);
    assert_snapshot!(error("Cargo.toml"), @r#"
    error: there is no table `[workspace.metadata.offload]` or `[package.metadata.offload]`
    --> Cargo.toml
     = help: add the table, or name another file with `--config`
    "#);
    assert_snapshot!(error("pyproject.toml"), @r#"
    error: `tool.offload` has the wrong type
     --> pyproject.toml:2:11
      |
    2 | offload = 3
      |           ^ expected a table
    "#);
}

#[test]
fn commands_that_cannot_do_what_they_are_for_are_noticed() {
    let text = "[provider]\ntype = \"default\"\ncreate_command = \"\"\nexec_command = \"run\"\n\
                destroy_command = \"rm\"\n[framework]\ntype = \"default\"\ndiscover_command = \"ls\"\n\
                run_command = \"make\"\ntest_id_format = \"{nme}\"\n";
    assert_snapshot!(Case::file(text).error(), @r#"
    error: `provider.create_command` cannot be empty
     --> offload.toml:3:18
      |
    3 | create_command = ""
      |                  ^^ expected a command in a string

    error: `provider.exec_command` has no `{command}`
     --> offload.toml:4:16
      |
    4 | exec_command = "run"
      |                ^^^^^ expected a command with `{command}` in it

    error: `framework.test_id_format` cannot be `{nme}`
      --> offload.toml:10:18
       |
    10 | test_id_format = "{nme}"
       |                  ^^^^^^^ expected `{name}` in it, and no other placeholder than `{classname}`
    "#);
    let text = "[provider]\ntype = \"local\"\n[framework]\ntype = \"default\"\ndiscover_command = \"ls\"\n\
                run_command = \"make\"\ntest_id_format = \"{name}\"\n[groups.a]\nfilters = \"x\"\n";
    assert_snapshot!(Case::file(text).notices(), @r#"
    `framework.run_command` has no `{tests}`: it cannot know which tests it is to run, and each batch of tests runs whatever it always runs
    `filters` of the group `a` has no effect: `framework.discover_command` has no `{filters}`
    "#);
}

/// Nothing that is in a file can make loading panic.
#[test]
fn strange_files_are_diagnosed() {
    for text in [
        "\u{feff}[offload]\nmax_parallel = 0",
        "[offload]\r\nmax_parallel = \"x\"\r\n",
        "\"\" = 1",
        "[\"ünï\u{202e}\"]\n\"\\u0000\" = '''\n\n'''",
        "[offload]\nworking_dir = \"\"\"\n\n  \n\"\"\"\nmax_parallel = 1979-05-27",
        "[provider.env]\n\"A=B\" = \"x\"\n[history]\ndefault_duration_secs = inf\n",
        "[provider.env]\nA = \"\\u0000\"\n[history]\ndefault_duration_secs = nan\n",
        "[offload]\nretry_count = 0xffffffffffffffffffffffffffffffffffffffff",
        "a = [[[[[[{b = [",
        "\t\t[offload]\n\t\tmax_parallel\t=\t\"日本語\"\t# ünï",
    ] {
        let error = Case::file(text).error();
        assert!(error.starts_with("error: ") && error.contains("--> offload.toml"), "{text}: {error}");
    }
}

proptest::proptest! {
    /// However a file is garbled: a configuration or a diagnosis.
    #[test]
    fn garbled_files_never_panic(
        start in 0..MODAL.len(),
        length in 0..40_usize,
        insert in "[\"\\[\\]{}=\\.\\\\$'é日\n\r\t a-c0-9]{0,6}",
    ) {
        let mut text = MODAL.to_owned();
        text.replace_range(start..(start + length).min(MODAL.len()), &insert);
        if let Err(error) = Case::file(&text).resolve() {
            proptest::prop_assert!(error.starts_with("error: "), "{}", error);
        }
    }
}

#[test]
fn diagnoses_show_no_secret_that_is_marked() {
    let text = format!(
        "{MINIMAL}[provider.env]\nA = {{ value = \"hunter2\", secret = \"yes\" }}\nB = {{ secret = true }}\nC = {{ value \
         = \"swordfish\", secret = true, hidden = 1 }}\nD = {{ value = 5, secret = false }}\n"
    );
    assert_snapshot!(Case::file(&text).error(), @r#"
    error: `provider.env.A.secret` has the wrong type
     --> offload.toml:6:35
      |
    6 | A = { value = "*******", secret = "yes" }
      |                                   ^^^^^ expected `true` or `false`, found a string

    error: `provider.env.B` has no `value`
     --> offload.toml:7:5
      |
    7 | B = { secret = true }
      |     ^^^^^^^^^^^^^^^^^ expected a string, or `{ value = "…", secret = true }`

    error: unknown key `provider.env.C.hidden`
     --> offload.toml:8:52
      |
    8 | C = { value = "*********", secret = true, hidden = 1 }
      |                                                    ^ expected `value` or `secret`

    error: `provider.env.D.value` has the wrong type
     --> offload.toml:9:15
      |
    9 | D = { value = 5, secret = false }
      |               ^ expected a string, found an integer
      |
      = help: write it in quotes: `"5"`
    "#);
}

#[test]
fn hosts_that_mean_nothing() {
    let text = r#"
[provider]
type = "ssh"
hosts = [{ slots = 8 }, { host = "a", slot = 1 }, { host = "b", slots = 0, port = "22" }, { host = "-oProxyCommand=x" }, 7]
[framework]
type = "cargo"
"#;
    assert_snapshot!(Case::file(text).error(), @r#"
    error: an item of `provider.hosts` names no host
     --> offload.toml:4:10
      |
    4 | hosts = [{ slots = 8 }, { host = "a", slot = 1 }, { host = "b", slots = 0, port = "22" }, { host = "-oProxyCommand=x" }, 7]
      |          ^^^^^^^^^^^^^ expected `host`: a name or address, as for the `ssh` command

    error: unknown key `slot` in an item of `provider.hosts`
     --> offload.toml:4:46
      |
    4 | hosts = [{ slots = 8 }, { host = "a", slot = 1 }, { host = "b", slots = 0, port = "22" }, { host = "-oProxyCommand=x" }, 7]
      |                                              ^ expected `host`, `slots`, `user`, `port`, `identity` or `workdir`
      |
      = help: did you mean `slots`?

    error: `provider.hosts.slots` cannot be 0
     --> offload.toml:4:73
      |
    4 | hosts = [{ slots = 8 }, { host = "a", slot = 1 }, { host = "b", slots = 0, port = "22" }, { host = "-oProxyCommand=x" }, 7]
      |                                                                         ^ expected an integer of at least 1

    error: `provider.hosts.port` has the wrong type
     --> offload.toml:4:83
      |
    4 | hosts = [{ slots = 8 }, { host = "a", slot = 1 }, { host = "b", slots = 0, port = "22" }, { host = "-oProxyCommand=x" }, 7]
      |                                                                                   ^^^^ expected an integer of at least 1, found a string
      |
      = help: write it without quotes: `22`

    error: `provider.hosts` cannot contain the host `-oProxyCommand=x`
     --> offload.toml:4:91
      |
    4 | hosts = [{ slots = 8 }, { host = "a", slot = 1 }, { host = "b", slots = 0, port = "22" }, { host = "-oProxyCommand=x" }, 7]
      |                                                                                           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ expected a name or address, as for the `ssh` command

    error: an item of `provider.hosts` has the wrong type
     --> offload.toml:4:122
      |
    4 | hosts = [{ slots = 8 }, { host = "a", slot = 1 }, { host = "b", slots = 0, port = "22" }, { host = "-oProxyCommand=x" }, 7]
      |                                                                                                                          ^ expected a table such as `{ host = "build1", slots = 8 }`, found an integer
    "#);
    assert_snapshot!(Case::file("provider.type = \"ssh\"\nprovider.hosts = \"a\"\nframework.type = \"cargo\"\n").error(), @r#"
    error: `provider.hosts` has the wrong type
     --> offload.toml:2:18
      |
    2 | provider.hosts = "a"
      |                  ^^^ expected a list of tables such as `{ host = "build1", slots = 8 }`, found a string
    "#);
    assert_snapshot!(Case::file("provider.type = \"ssh\"\nframework.type = \"cargo\"\n").error(), @r#"
    error: provider `ssh` needs `provider.hosts`, which is not set
     --> offload.toml:1:1
      |
    1 | provider.type = "ssh"
      | ^^^^^^^^ expected `hosts` in `[provider]`
    "#);
}

#[test]
fn a_file_of_any_size_is_read_and_its_problems_are_counted() {
    let groups: String = (0..20_000).map(|n| format!("[groups.g{n}]\nretry_count = 1\n")).collect();
    assert_eq!(Case::file(&format!("{MINIMAL}{groups}")).config().groups.len(), 20_000);
    let keys: String = (0..20_000).map(|n| format!("unknown_{n} = 1\n")).collect();
    let error = Case::file(&format!("{MINIMAL}[offload]\n{keys}")).error();
    assert_eq!(error.matches("unknown key").count(), 50);
    assert!(
        error.ends_with("there are 19950 more problems of this file, environment and command line"),
        "{}",
        error.len()
    );
}
