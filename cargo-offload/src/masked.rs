//! What this process itself writes to a terminal, without the secrets of its configuration.
//!
//! Reports are made of events, in which no secret is. What is said before there are any, or beside them (errors, the log,
//! lists of tests), comes through here. The log has one writer for the whole process, and so there is one set of secrets.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::OnceLock;

use offload_core::secret::Secrets;

static SECRETS: OnceLock<Secrets> = OnceLock::new();

/// Masks these from now on.
pub fn keep(secrets: &Secrets) {
    let _ = SECRETS.set(secrets.clone());
}

/// `text` as it may be shown.
pub fn text(text: &str) -> Cow<'_, str> {
    match SECRETS.get() {
        Some(secrets) => secrets.mask(text),
        None => Cow::Borrowed(text),
    }
}

/// JSON as it may be shown.
pub fn json(text: &str) -> Cow<'_, str> {
    match SECRETS.get() {
        Some(secrets) => secrets.mask_json(text),
        None => Cow::Borrowed(text),
    }
}

/// Standard error for a log, which writes each of its entries at once.
pub struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stderr().write_all(text(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
