//! The end of a run, however it came about: sandboxes are destroyed, what is open is settled, reports are written.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::{Dispatcher, Fact, urged};
use crate::config::FlakyPolicy;
use crate::event::{FinishedTest, RunEvent, StopReason};
use crate::framework::{Discovered, Execution, TestOutcome};
use crate::orchestrator::cancel::Urgency;
use crate::orchestrator::result::exit_code;
use crate::orchestrator::runner::{Report, close};
use crate::orchestrator::scheduler::SandboxIndex;

/// How long sandboxes get to be destroyed at the end.
const TERMINATE_PATIENCE: Duration = Duration::from_secs(60);

/// How long what they shared may take to be removed after that.
const FINISH_PATIENCE: Duration = Duration::from_secs(30);

impl Dispatcher<'_> {
    pub(super) async fn end(
        &mut self,
        cancel: &mut watch::Receiver<Urgency>,
        discovered: &mut mpsc::UnboundedReceiver<Discovered>,
    ) {
        let mut now = self.give_up_at.is_some();
        for index in self.places.keys().copied().collect::<Vec<_>>() {
            if self.places[&index].runner.is_some() {
                self.release(index);
            }
        }
        self.empty_reserve();
        self.orchestrator.provider.give_up();
        // Workers of pytest tear down what fixtures have set up, for which there is no limit but the user's. They say so.
        let tears_down = matches!(self.context.execution, Execution::Pytest(_));
        let patience = tokio::time::sleep(TERMINATE_PATIENCE);
        tokio::pin!(patience);
        while self.creating + self.terminating > 0 {
            tokio::select! {
                Some(fact) = self.fact_inbox.recv() => match fact {
                    // It came too late to be of use.
                    Fact::Created(index, Ok((sandbox, _)), _) => {
                        self.creating -= 1;
                        self.terminating += 1;
                        let (facts, execution) = (self.facts.clone(), self.context.execution.clone());
                        tokio::spawn(async move {
                            let result = close(index, sandbox.as_ref(), &execution).await;
                            let _ = facts.send(Fact::Terminated(index, result));
                        });
                    }
                    Fact::Created(_, Err(_), _) => self.creating -= 1,
                    fact => self.on_fact(fact),
                },
                // Tests have their outcomes; what their tearing down has to say still counts.
                Some((sandbox, report)) = self.report_inbox.recv() => self.on_late_report(sandbox, report),
                urgency = urged(cancel) => if urgency == Urgency::Now {
                    now = true;
                    break;
                },
                () = &mut patience, if !tears_down => {
                    let text = "Some sandboxes could not be destroyed in time and may be left behind.".to_owned();
                    self.emit(RunEvent::Warning { text });
                    break;
                }
            }
        }
        if !now {
            let finished = tokio::select! {
                () = self.orchestrator.provider.finish() => true,
                () = hurried(cancel) => {
                    now = true;
                    false
                }
                () = tokio::time::sleep(FINISH_PATIENCE) => false,
            };
            if !finished && !now {
                let text = "What the sandboxes shared could not be removed in time and may be left behind.".to_owned();
                self.emit(RunEvent::Warning { text });
            }
        }
        for text in self.orchestrator.provider.warnings() {
            self.emit(RunEvent::Warning { text });
        }
        self.orchestrator.framework.finish(now).await;
        while let Ok((sandbox, report)) = self.report_inbox.try_recv() {
            self.on_late_report(sandbox, report);
        }
        while let Ok(found) = discovered.try_recv() {
            if let Discovered::Native(event) = found {
                self.emit(RunEvent::Native(event));
            }
        }
        self.settle_the_rest();
        if self.orchestrator.tests_required && self.has_nothing_to_run() {
            self.problem("there was no test to run, and --no-tests=fail was given".to_owned());
        }
        self.result.summary.duration = self.now();
        self.save_reports();
        self.result.summary.exit_code = exit_code(&self.result.summary, self.orchestrator.config.offload.flaky);
        self.emit(RunEvent::RunFinished { summary: self.result.summary.clone() });
        for reporter in &mut self.reporters {
            if let Err(error) = reporter.finish() {
                self.result.report_errors.push(error.to_string());
            }
        }
        if !self.result.report_errors.is_empty() && self.result.summary.exit_code != 130 {
            self.result.summary.exit_code = 3;
        }
    }

    fn on_late_report(&mut self, index: SandboxIndex, report: Report) {
        match report {
            Report::Native(key, event) => self.on_native(index, key, event),
            Report::LateFailure(key, result) => self.on_late_failure(key, *result),
            Report::Warning(text) => drop(self.emit(RunEvent::Warning { text })),
            Report::Problem(text) => self.problem(text),
            _ => {}
        }
    }

    /// No test, or skipped ones only, and nothing else that would tell why.
    fn has_nothing_to_run(&self) -> bool {
        let summary = &self.result.summary;
        summary.total == summary.skipped && exit_code(summary, FlakyPolicy::Pass) == 0
    }

    /// Writes files while a failure to do so can still become part of the results.
    fn save_reports(&mut self) {
        let errors: Vec<_> = self.reporters.iter_mut().filter_map(|reporter| reporter.save().err()).collect();
        for error in errors {
            self.problem(error.to_string());
        }
        let totals = self.result.summary.clone();
        let errors: Vec<_> =
            self.reporters.iter_mut().filter_map(|reporter| reporter.save_results(&totals).err()).collect();
        for error in errors {
            self.problem(error.to_string());
        }
    }

    /// Every test found gets an outcome, even if it never ran.
    fn settle_the_rest(&mut self) {
        let reason = match self.result.summary.stopped {
            Some(StopReason::MaxFail) => "the run ended early: as many tests failed as allowed",
            Some(StopReason::Interrupted) => "the run was interrupted",
            Some(StopReason::Infrastructure) => "the run ended early: no sandbox worked",
            None => "the run ended before it",
        };
        for number in 0..self.tests.len() {
            let test = &mut self.tests[number];
            if test.settled {
                continue;
            }
            test.settled = true;
            let (info, attempts) = (Arc::clone(&test.info), std::mem::take(&mut test.attempts));
            // A failure whose repetition never came is a failure.
            self.settle(if attempts.is_empty() {
                FinishedTest::without_result(info, TestOutcome::NotRun, attempts, reason)
            } else {
                FinishedTest::from_attempts(info, attempts)
            });
        }
    }
}

/// Somebody wants the run to end without waiting for anything.
async fn hurried(cancel: &mut watch::Receiver<Urgency>) {
    while urged(cancel).await != Urgency::Now {}
}
