//! The reader for those who check it together with the writer.

use super::{Case, parse};
use crate::framework::TestResult;

/// The name, class name and result of each case.
pub(crate) fn read(bytes: &[u8]) -> Result<Vec<(String, String, TestResult)>, String> {
    Ok(parse(bytes)?.into_iter().map(|Case { name, classname, result }| (name, classname, result)).collect())
}
