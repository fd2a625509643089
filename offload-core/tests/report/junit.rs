use offload_core::framework::TestOutcome::*;
use offload_core::report::{MasterJunitReport, Reporter};

use crate::events::{Run, everything, result, test};
use crate::junit10::{Element, read, violations};

fn report(run: impl FnOnce(&mut dyn Reporter)) -> Element {
    let mut report = MasterJunitReport::new("unused.xml");
    run(&mut report);
    let root = read(&report.to_xml());
    assert_eq!(violations(&root), Vec::<String>::new());
    root
}

fn case<'a>(root: &'a Element, suite: &str, name: &str) -> &'a Element {
    let suites = root.all("testsuite");
    let suite = suites.iter().find(|element| element.attribute("name") == suite).unwrap();
    suite.all("testcase").into_iter().find(|case| case.attribute("name") == name).unwrap()
}

#[test]
fn a_report_looks_like_this() {
    let mut report = MasterJunitReport::new("unused.xml");
    everything(&mut report);
    insta::assert_snapshot!(report.to_xml());
}

#[test]
fn every_outcome_has_its_element_and_every_suite_its_counts() {
    let root = report(everything);
    assert_eq!(root.attribute("tests"), "11");
    assert_eq!((root.attribute("failures"), root.attribute("errors")), ("3", "3"));
    let suites: Vec<_> = root.all("testsuite").iter().map(|suite| suite.attribute("name").to_owned()).collect();
    assert_eq!(suites, ["pkg", "pkg::it", "problems of the run"]);
    let pkg = root.all("testsuite")[0];
    assert_eq!(
        ["tests", "failures", "errors", "skipped"].map(|count| pkg.attribute(count)),
        ["8", "2", "2", "1"],
        "{:?}",
        pkg.attributes
    );
    assert_eq!(pkg.attribute("timestamp"), "2026-11-23T03:01:48");

    assert_eq!(case(&root, "pkg::it", "tests::passes").outline(), Vec::<&str>::new());
    let failed = case(&root, "pkg::it", "tests::fails");
    assert_eq!(failed.attribute("classname"), "pkg::it");
    assert_eq!(failed.attribute("time"), "0.123");
    assert_eq!(failed.outline(), ["failure", "system-out", "system-err"]);
    assert_eq!(failed.only("failure").attribute("message"), "panicked at tests/it.rs:3:5");
    assert!(failed.only("failure").text.contains("left != right"));
    assert_eq!(failed.only("system-out").text, "one <line> & red ]]>\n");
    assert!(failed.only("system-err").text.ends_with("left != right\u{fffd}\n"));

    let crash = case(&root, "pkg", "crash").only("failure");
    assert_eq!((crash.attribute("type"), crash.attribute("message")), ("crashed", "killed by signal 11 (SIGSEGV)"));
    assert_eq!(case(&root, "pkg", "gone").only("error").attribute("type"), "error");
    let skipped = case(&root, "pkg", "ignored").only("skipped");
    assert_eq!(skipped.attribute("message"), "ignored, \"for now\"");
    let not_run = case(&root, "pkg", "waits").only("error");
    assert_eq!((not_run.attribute("type"), not_run.attribute("message")), ("not_run", "not run: interrupted"));
}

#[test]
fn earlier_attempts_are_there_as_surefire_writes_them() {
    let root = report(everything);
    let flaky = case(&root, "pkg", "flaky<&>\"'ü");
    assert_eq!(flaky.outline(), ["flakyFailure", "flakyError"]);
    assert_eq!(flaky.attribute("time"), "0.020");
    assert_eq!(flaky.only("flakyFailure").attribute("type"), "timed_out");
    assert_eq!(flaky.only("flakyFailure").only("stackTrace").text, "stack of \"main\"\n");
    let failed = case(&root, "pkg", "fails_always");
    assert_eq!(failed.outline(), ["failure", "rerunError", "rerunFailure"]);
    assert_eq!(failed.only("failure").attribute("type"), "timed_out");
    assert_eq!(failed.only("rerunFailure").outline(), ["stackTrace", "system-out", "system-err"]);
}

#[test]
fn sandboxes_are_properties() {
    let root = report(everything);
    let properties = root.all("testsuite")[0].only("properties").all("property");
    let sandbox = |name: &str| {
        let property = properties.iter().find(|property| property.attribute("name") == format!("sandbox:{name}"));
        property.map(|property| property.attribute("value"))
    };
    assert_eq!(sandbox("crash"), Some("local-1"));
    assert_eq!(sandbox("flaky<&>\"'ü"), Some("local-1, local-2, local-3"));
    assert_eq!(sandbox("waits"), None);
}

#[test]
fn the_order_of_results_does_not_change_the_order_of_the_report() {
    let xml = |names: [&str; 3]| {
        let mut report = MasterJunitReport::new("unused.xml");
        let mut run = Run::start(&mut report);
        for name in names {
            run.test(&test(&format!("suite-{name}"), name), vec![result(Passed, 0)]);
        }
        report.to_xml()
    };
    assert_eq!(xml(["b", "a", "c"]), xml(["c", "b", "a"]));
}

#[test]
fn whatever_a_test_is_called_and_writes_the_report_is_xml() {
    let nasty: String = (0..0x120).filter_map(char::from_u32).chain("\u{fffe}\u{ffff}😀]]>&amp;<!--".chars()).collect();
    let mut failed = result(Failed, 1).with_message(nasty.clone());
    failed.details = Some(nasty.clone());
    failed.stdout = nasty.clone().into();
    failed.stderr = nasty.clone().into();
    let root = report(|reporter| {
        let mut run = Run::start(reporter);
        run.test(&test(&nasty, &nasty), vec![failed.clone(), failed]).without_attempt(
            &test("", &nasty),
            Skipped,
            &nasty,
        );
    });
    let case = root.all("testsuite")[1].only("testcase");
    for text in
        [case.attribute("name"), &case.only("system-out").text, &case.only("rerunFailure").only("stackTrace").text]
    {
        assert!(text.contains("\t\n\u{fffd}"), "{text:?}");
        assert!(text.contains(" !\"#$%&'()") && text.ends_with("\u{fffd}\u{fffd}😀]]>&amp;<!--"), "{text:?}");
    }
}

#[test]
fn endless_output_is_bounded() {
    let mut failed = result(Failed, 1);
    failed.stdout = format!("begin {} end", "x".repeat(3_000_000)).into();
    let root = report(|reporter| {
        Run::start(reporter).test(&test("s", "t"), vec![failed]);
    });
    let text = &root.only("testsuite").only("testcase").only("system-out").text;
    assert!(text.len() < 300_000, "{}", text.len());
    assert!(text.starts_with("begin x") && text.ends_with("x end") && text.contains("bytes dropped"));
}

#[test]
fn the_file_is_written_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("reports/junit.xml");
    let mut report = MasterJunitReport::new(&path);
    everything(&mut report);
    assert!(!path.exists());
    report.finish().unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), report.to_xml());
}
