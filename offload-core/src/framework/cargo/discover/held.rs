//! Tests that wait until what they may start or load has been built, and those that cannot run because it was not.

use std::collections::{BTreeSet, HashSet};

use cargo_metadata::{Package, PackageId};

use super::super::outputs::Output;
use super::Discovery;
use crate::framework::{Discovered, TestRecord};

/// How many test binaries are named.
const NAMED: usize = 5;

/// Tests of one binary that wait.
pub(super) struct Held {
    package: PackageId,
    /// They may start or load what is built for others to use.
    uses_programs: bool,
    tests: Vec<TestRecord>,
}

/// What a build that failed has left out, and the tests that therefore do not run.
#[derive(Default)]
pub(super) struct LeftOut {
    pub(super) outputs: HashSet<Output>,
    /// Binaries of tests.
    suites: BTreeSet<String>,
    tests: usize,
}

impl Discovery<'_> {
    /// Has tests wait for the end of the build, or for what they may use.
    pub(super) fn hold(&mut self, package: &Package, uses_programs: bool, tests: &mut Vec<TestRecord>) {
        self.held.push(Held { package: package.id.clone(), uses_programs, tests: std::mem::take(tests) });
    }

    /// What tests may use is there: those that waited for it can run.
    pub(super) fn release(&mut self) {
        for Held { package, uses_programs, mut tests } in std::mem::take(&mut self.held) {
            if uses_programs {
                self.leave_out(&package, &mut tests);
            }
            if !tests.is_empty() {
                self.sink.send(Discovered::Tests(tests));
            }
        }
    }

    /// Leaves out tests that may start or load what did not compile. There may be that of an earlier build, with which they
    /// would pass.
    pub(super) fn leave_out(&mut self, package: &PackageId, tests: &mut Vec<TestRecord>) {
        if self.left_out.outputs.iter().any(|output| output.matters_to(package)) {
            self.left_out.suites.extend(tests.first().map(|test| test.suite.id.clone()));
            self.left_out.tests += tests.len();
            tests.clear();
        }
    }

    /// Says which tests were left out, and why.
    pub(super) fn tell_what_is_left_out(&self) {
        let LeftOut { outputs, suites, tests } = &self.left_out;
        if *tests == 0 {
            return;
        }
        let outputs: BTreeSet<_> = outputs.iter().map(|output| format!("`{}`", output.file_name())).collect();
        let outputs: Vec<_> = outputs.into_iter().collect();
        let mut named: Vec<_> = suites.iter().take(NAMED).cloned().collect();
        if suites.len() > NAMED {
            named.push(format!("{} more", suites.len() - NAMED));
        }
        let (tests, suites) =
            (if *tests == 1 { "1 test".to_owned() } else { format!("{tests} tests") }, named.join(", "));
        self.sink.send(Discovered::Problem(format!(
            "{tests} of {suites} did not run, because {} did not compile: there may be what an earlier build has made, and the \
             tests may use it",
            outputs.join(", ")
        )));
    }
}
