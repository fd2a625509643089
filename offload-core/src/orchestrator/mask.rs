//! Takes secrets out of what is about to become known.
//!
//! All text enters events through here, whoever has said it: tests, tools, sandboxes, providers. Names of tests are
//! masked where they are found, because they are part of nearly every event.

use crate::event::{Attempt, NativeEvent, RunEvent};
use crate::framework::TestResult;
use crate::secret::Secrets;

/// Masks `secrets` in everything that `event` says.
pub(super) fn mask(secrets: &Secrets, event: &mut RunEvent) {
    if secrets.is_empty() {
        return;
    }
    match event {
        RunEvent::RunStarted { .. }
        | RunEvent::BuildStarted
        | RunEvent::BuildFinished { .. }
        | RunEvent::TestsFound { .. }
        | RunEvent::DiscoveryFinished { .. }
        | RunEvent::TestSlow { .. }
        | RunEvent::Stopping { .. }
        | RunEvent::RunFinished { .. } => {}
        RunEvent::BuildOutput { line: text }
        | RunEvent::TestOutput { text, .. }
        | RunEvent::Warning { text }
        | RunEvent::Problem { text } => secrets.mask_in(text),
        RunEvent::SandboxReady { sandbox, .. }
        | RunEvent::SandboxFinished { sandbox, .. }
        | RunEvent::TestStarted { sandbox, .. } => secrets.mask_shared(sandbox),
        RunEvent::SandboxLost { sandbox, reason, requeued } => {
            secrets.mask_shared(sandbox);
            secrets.mask_in(reason);
            requeued.iter_mut().for_each(|test| secrets.mask_in(test));
        }
        RunEvent::AttemptFailed { attempt, .. } | RunEvent::LateFailure { attempt, .. } => {
            mask_attempt(secrets, attempt)
        }
        RunEvent::TestFinished { attempts, reason, .. } => {
            attempts.iter_mut().for_each(|attempt| mask_attempt(secrets, attempt));
            reason.iter_mut().for_each(|reason| secrets.mask_in(reason));
        }
        RunEvent::Native(NativeEvent { sandbox, data, .. }) => {
            sandbox.iter_mut().for_each(|sandbox| secrets.mask_shared(sandbox));
            if let std::borrow::Cow::Owned(masked) = secrets.mask_json(data) {
                *data = masked.into();
            }
        }
    }
}

fn mask_attempt(secrets: &Secrets, attempt: &mut Attempt) {
    secrets.mask_shared(&mut attempt.sandbox);
    let TestResult { message, details, stdout, stderr, native, .. } = &mut attempt.result;
    for text in message.iter_mut().chain(details).chain([&mut stdout.text, &mut stderr.text]) {
        secrets.mask_in(text);
    }
    if let Some(native) = native
        && let std::borrow::Cow::Owned(masked) = secrets.mask_json(native)
    {
        *native = masked.into();
    }
}
