//! `/init`. The same binary is started again by itself, under other first arguments, to become a user's program.

use pando_agent::{heartbeat, init, launch};

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some(launch::HELPER) => launch::helper(),
        Some(heartbeat::HELPER) => heartbeat::beat(),
        _ => init::run(),
    }
}
