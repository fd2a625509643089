//! The reports, from outside: events in, text out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

#[path = "report/console.rs"]
mod console;
#[path = "report/events.rs"]
mod events;
#[path = "report/history.rs"]
mod history;
#[path = "report/json.rs"]
mod json;
#[path = "report/junit.rs"]
mod junit;
#[path = "report/junit10.rs"]
mod junit10;
#[path = "report/logs.rs"]
mod logs;
