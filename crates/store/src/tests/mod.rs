//! Promises that need an eye on every change of the directory.

#[path = "../../tests/common/pages.rs"]
mod common;
pub(crate) mod power; // what would be left after a power cut
mod cuts; // histories, cut anywhere
