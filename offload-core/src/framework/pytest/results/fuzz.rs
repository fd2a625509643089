//! What holds for anything that Offload's plugin in a sandbox's pytest may write.

use super::*;
use crate::fuzzing::split_first;

/// An input: how many tests were asked for, and what was written. Each has one result, or there is an error.
pub fn pytest_lines(input: &[u8]) {
    let (count, written) = split_first(input);
    let count = usize::from(count % 16);
    let output = ExecOutput { exit_code: Some(1), ..ExecOutput::default() };
    if let Ok(results) = parse(count, &output, written) {
        assert_eq!(results.len(), count, "not each test has one result");
        let outcomes = results.iter().map(|result| result.outcome);
        assert!(count == 0 || outcomes.into_iter().any(|outcome| outcome != TestOutcome::NotRun), "nothing was run");
    }
    if let Ok(listing) = listing(written) {
        assert!(listing.tests.len() <= written.len());
    }
    // What is cut off in the middle of a line is as if the line had not been begun.
    let whole = written.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let outcomes = |written: &[u8]| {
        let results = parse(count, &output, written);
        results.map_err(|_| ()).map(|results| results.into_iter().map(|result| result.outcome).collect::<Vec<_>>())
    };
    assert_eq!(outcomes(written), outcomes(&written[..whole]), "a line that was cut off counts");
}
