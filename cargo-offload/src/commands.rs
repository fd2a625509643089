//! What each subcommand does.

pub mod build;
pub mod clean;
pub mod history;
pub mod init;
pub mod list;
pub mod logs;
pub mod run;
pub mod validate;
pub mod worker;
