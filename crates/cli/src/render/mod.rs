//! From values to text, with no file, clock or terminal in sight.

mod table; // columns that fit
mod tree; // who was forked from whom
mod units; // sizes, durations, times

#[cfg(test)]
pub(crate) mod fixture; // VMs for tests

pub(crate) use table::Table;
pub(crate) use tree::tree;
pub(crate) use units::{age, bytes, micros, timestamp};

use pando_wire::api::State;

/// A state as a person reads it.
pub(crate) fn state(state: State) -> &'static str {
    match state {
        State::Starting => "starting",
        State::Running => "running",
        State::Paused => "paused",
        State::Stopped => "stopped",
        State::Hibernated => "hibernated",
    }
}

/// `text` without what would steer a terminal: it may quote a guest.
pub(crate) fn printable(text: &str) -> String {
    text.trim_end().chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
