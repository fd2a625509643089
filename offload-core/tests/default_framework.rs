//! The framework `default` with real shell scripts, run in sandboxes of the provider `local`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use offload_core::config::{Config, DefaultFrameworkConfig, GroupConfig, LocalProviderConfig};
use offload_core::connector::collect;
use offload_core::framework::default::DefaultFramework;
use offload_core::framework::{
    Discovered, DiscoverySink, FrameworkError, FrameworkResult, TestFramework, TestInstance, TestOutcome, TestRecord,
    TestResult,
};
use offload_core::orchestrator::Orchestrator;
use offload_core::provider::local::LocalProvider;
use offload_core::provider::{ExecOutput, SandboxProvider, SandboxRequest};
use offload_core::report::history::HistoryReporter;
use offload_core::report::junit::MasterJunitReport;
use offload_core::report::trace::TraceReporter;

const NASTY: [&str; 6] = [
    "a b  c",
    "it's \"quoted\"",
    "$HOME `id` $(id)",
    "back\\slash \\n",
    "test[x::y] * ; & | > <",
    "{tests} {result_file} é✓",
];

fn framework(dir: &Path, config: DefaultFrameworkConfig) -> DefaultFramework {
    DefaultFramework::new(config).with_root(dir)
}

fn instances(tests: Vec<TestRecord>) -> Vec<TestInstance> {
    tests.into_iter().map(|record| TestInstance { record: Arc::new(record), attempt: 1 }).collect()
}

/// Runs a batch as the orchestrator does.
async fn run(
    framework: &DefaultFramework,
    dir: &Path,
    tests: &[TestInstance],
    timeout: Option<Duration>,
) -> FrameworkResult<Vec<TestResult>> {
    let config = LocalProviderConfig { working_dir: Some(dir.to_owned()), ..LocalProviderConfig::default() };
    let sandbox = LocalProvider::new(config).create_sandbox(&SandboxRequest::default()).await.unwrap();
    let results = dir.join("result 'file' $x.xml");
    let mut command = framework.produce_test_execution_command(tests, results.to_str().unwrap());
    command.timeout = timeout;
    let output = collect(sandbox.exec_stream(&command).await.unwrap(), 1 << 20).await.unwrap();
    framework.parse_results(tests, &output, fs::read(results).ok().as_deref())
}

#[tokio::test]
async fn ids_reach_the_command_and_come_back_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("ids"), format!("# a comment\n\n  {}\r\n", NASTY.join("\n"))).unwrap();
    // Everything that is asked for passes, but what has a blank in front of it fails.
    fs::write(
        dir.path().join("run.py"),
        "import sys\nfrom xml.sax.saxutils import quoteattr\n\
         with open(sys.argv[1], 'w') as out:\n    out.write('<testsuite>')\n    for name in sys.argv[2:]:\n\
         \x20       body = '<failure message=\"no\"/>' if name.startswith('$') else ''\n\
         \x20       out.write(f'<testcase classname=\"K\" name={quoteattr(name)} time=\"0.5\">{body}</testcase>')\n\
         \x20   out.write('</testsuite>')\nsys.exit(1)\n",
    )
    .unwrap();
    let framework = framework(
        dir.path(),
        DefaultFrameworkConfig {
            working_dir: None,
            discover_command: "cat ids".to_owned(),
            run_command: "python3 run.py {result_file} {tests}".to_owned(),
            result_file: None,
            test_id_format: "{name}".to_owned(),
        },
    );
    let tests = framework.discover(&[]).await.unwrap();
    assert_eq!(tests.iter().map(|test| test.id.as_str()).collect::<Vec<_>>(), NASTY);
    let results = run(&framework, dir.path(), &instances(tests), None).await.unwrap();
    for (id, result) in NASTY.iter().zip(results) {
        let expected = if id.starts_with('$') { TestOutcome::Failed } else { TestOutcome::Passed };
        assert_eq!((result.outcome, result.duration), (expected, Duration::from_millis(500)), "{id}");
    }
}

#[tokio::test]
async fn a_result_file_of_the_commands_own_is_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let framework = framework(
        dir.path(),
        DefaultFrameworkConfig {
            working_dir: None,
            discover_command: "printf 'K > one\\nK > two\\n'".to_owned(),
            run_command: "echo '<t><testcase name=\"one\" classname=\"K\"/><testcase name=\"two\" classname=\"K\">\
                          <skipped message=\"not today\"/></testcase></t>' >'its own.xml'; exit 3"
                .to_owned(),
            result_file: Some("its own.xml".to_owned()),
            test_id_format: "{classname} > {name}".to_owned(),
        },
    );
    let tests = instances(framework.discover(&[]).await.unwrap());
    let results = run(&framework, dir.path(), &tests, None).await.unwrap();
    assert_eq!(results[0].outcome, TestOutcome::Passed);
    assert_eq!((results[1].outcome, results[1].message.as_deref()), (TestOutcome::Skipped, Some("not today")));

    // What an earlier batch left is not taken for a result of this one.
    fs::write(dir.path().join("its own.xml"), "<t><testcase name=\"one\" classname=\"K\"/></t>").unwrap();
    fs::remove_file(dir.path().join("result 'file' $x.xml")).unwrap();
    let silent = self::framework(
        dir.path(),
        DefaultFrameworkConfig {
            working_dir: None,
            run_command: "exit 0".to_owned(),
            result_file: Some("its own.xml".to_owned()),
            test_id_format: "{classname} > {name}".to_owned(),
            discover_command: String::new(),
        },
    );
    let results = run(&silent, dir.path(), &tests, None).await.unwrap();
    assert_eq!(results[0].outcome, TestOutcome::Error);
}

#[tokio::test]
async fn without_a_result_file_the_exit_code_is_that_of_all() {
    let dir = tempfile::tempdir().unwrap();
    let framework = |run: &str| {
        framework(
            dir.path(),
            DefaultFrameworkConfig {
                discover_command: "echo one; echo two".to_owned(),
                run_command: run.to_owned(),
                ..DefaultFrameworkConfig::default()
            },
        )
    };
    let tests = instances(framework("").discover(&[]).await.unwrap());
    let limit = Some(Duration::from_millis(200));
    for (line, timeout, outcome, message) in [
        ("echo {tests}", None, TestOutcome::Passed, None),
        (
            "echo {tests}; exit 3",
            None,
            TestOutcome::Failed,
            Some(
                "`run_command` failed: exit code 3 (one command ran 2 tests; without a result file its exit code is that of all)",
            ),
        ),
        ("echo {tests}; sleep 1000", limit, TestOutcome::TimedOut, Some("`run_command` was ended at its time limit")),
    ] {
        for result in run(&framework(line), dir.path(), &tests, timeout).await.unwrap() {
            assert_eq!((result.outcome, result.message.as_deref()), (outcome, message), "{line}");
            assert_eq!(result.stdout.text, "one two\n");
        }
    }
}

#[tokio::test]
async fn tests_without_a_result_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let config = DefaultFrameworkConfig {
        working_dir: None,
        discover_command: "echo one".to_owned(),
        run_command: "{result_file}".to_owned(),
        result_file: None,
        test_id_format: "{classname}.{name}".to_owned(),
    };
    let framework = framework(dir.path(), config);
    let tests = instances(framework.discover(&[]).await.unwrap());
    let parse = |exit_code, xml: Option<&str>| {
        let output = ExecOutput { exit_code, stderr: b"its last words\n".to_vec(), ..ExecOutput::default() };
        framework.parse_results(&tests, &output, xml.map(str::as_bytes))
    };
    let other = Some("<testcase name='one' classname='K'/>");
    for (exit_code, xml, outcome, message) in [
        (
            Some(0),
            other,
            TestOutcome::Error,
            "not reported: `run_command` succeeded, but the results name other tests, such as \"K.one\"; check \
             `test_id_format` (\"{classname}.{name}\") in [framework] and that the command runs \"one\"",
        ),
        (
            Some(2),
            None,
            TestOutcome::Error,
            "not reported: `run_command` failed (exit code 2) and there are no results",
        ),
        (
            Some(139),
            Some("<testsuite><testcase"),
            TestOutcome::Crashed,
            "`run_command` was killed by signal 11 (SIGSEGV); there are no results",
        ),
        (None, None, TestOutcome::TimedOut, "`run_command` was ended at its time limit"),
    ] {
        let result = &parse(exit_code, xml).unwrap()[0];
        assert_eq!((result.outcome, result.message.as_deref()), (outcome, Some(message)));
        assert_eq!(result.details.as_deref(), Some("  its last words"));
    }
    let error = parse(Some(0), Some("<testsuite><testcase")).unwrap_err();
    assert!(matches!(&error, FrameworkError::Results(text) if text.contains("is to be JUnit XML")), "{error}");
}

#[tokio::test]
async fn each_group_has_its_filters_and_the_first_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let group = |name: &str, filters: &str, retry_count| GroupConfig {
        name: name.to_owned(),
        filters: filters.to_owned(),
        retry_count,
        schedule_individual: retry_count > 0,
    };
    let config = DefaultFrameworkConfig {
        discover_command: "echo run >>runs; printf '%s\\n' both {filters} both".to_owned(),
        ..DefaultFrameworkConfig::default()
    };
    let framework = framework(dir.path(), config).with_groups(vec![
        group("slow", "'a slow one'", 2),
        group("fast", "f1 f2", 0),
        group("again", "f1 f2", 0),
    ]);
    let (sink, mut found) = DiscoverySink::new();
    framework.discover_stream(&["a path".into()], sink).await.unwrap();
    let (mut tests, mut warnings) = (Vec::new(), Vec::new());
    while let Ok(discovered) = found.try_recv() {
        match discovered {
            Discovered::Tests(more) => tests.extend(more),
            Discovered::Warning(text) => warnings.push(text),
            other => panic!("{other:?}"),
        }
    }
    let tests: Vec<_> =
        tests.iter().map(|test| (test.id.as_str(), &*test.group, test.retry_count, test.schedule_individual)).collect();
    assert_eq!(
        tests,
        [
            ("both", "slow", 2, true),
            ("a slow one", "slow", 2, true),
            ("a path", "slow", 2, true),
            ("f1", "fast", 0, false),
            ("f2", "fast", 0, false),
        ]
    );
    assert_eq!(warnings[0], "`discover_command` printed 1 test id more than once, such as \"both\"; each runs once");
    assert_eq!(fs::read_to_string(dir.path().join("runs")).unwrap().lines().count(), 2, "equal filters run once");
}

#[tokio::test]
async fn a_failed_discovery_shows_what_the_command_said() {
    let dir = tempfile::tempdir().unwrap();
    let config = DefaultFrameworkConfig {
        discover_command: "echo no such runner >&2; exit 4".to_owned(),
        ..DefaultFrameworkConfig::default()
    };
    let error = framework(dir.path(), config).discover(&[]).await.unwrap_err();
    assert!(matches!(error, FrameworkError::Discovery(_)));
    assert_eq!(
        error.to_string(),
        "cannot discover tests: `discover_command` in [framework] failed: exit code 4. It ran: echo no such runner \
         >&2; exit 4\n  no such runner"
    );
}

/// What a sandbox says of times is as little to be trusted as the rest.
#[tokio::test]
async fn absurd_durations_break_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let run_command = "for test in a b a; do cases=\"$cases<testcase name='$test' time='1e19'/>\"; done; \
                       echo \"<testsuite>$cases</testsuite>\" > {result_file}; true {tests}";
    let framework = framework(
        dir.path(),
        DefaultFrameworkConfig {
            working_dir: None,
            discover_command: "printf 'a\\nb\\n'".to_owned(),
            run_command: run_command.to_owned(),
            result_file: None,
            test_id_format: "{name}".to_owned(),
        },
    );
    let history = dir.path().join("history.jsonl");
    let most = u64::MAX;
    fs::write(&history, format!("{{\"id\":\"a\",\"passed\":{{\"n\":{most},\"samples\":[1e19,1]}}}}\n").repeat(2))
        .unwrap();
    let (junit, trace) = (dir.path().join("junit.xml"), dir.path().join("trace.json"));
    let mut config = Config::default();
    config.offload.test_timeout = Duration::MAX;
    config.history.path = history.clone();
    let orchestrator = Orchestrator::new(config, LocalProvider::default(), framework, &[], false).with_reporters(vec![
        Box::new(MasterJunitReport::new(&junit)),
        Box::new(TraceReporter::new(trace.clone())),
        Box::new(HistoryReporter::new(&history, 1)),
    ]);
    let result = orchestrator.run(&[]).await.unwrap();
    assert_eq!((result.summary.passed, result.exit_code()), (2, 0), "{result:?}");
    assert_eq!(result.report_errors, Vec::<String>::new());
    assert!(junit.exists() && trace.exists());
    assert!(fs::read_to_string(&history).unwrap().contains("\"id\":\"b\""));
}
