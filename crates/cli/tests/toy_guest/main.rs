//! What a fork promises, held against toy guests that check themselves at every step. Runs on any KVM, also one that only
//! emulates the CPU; without one it is skipped, and the same promises are kept by the tests with Linux guests.

#![expect(clippy::unwrap_used, reason = "what a monitor refuses here is the test's failure")]

mod fork; // one CPU and its memory
mod instant; // several CPUs, memory, disk and vsock, of one instant
mod descriptors; // what a child has open
mod deaths; // somebody dies in the middle of it
mod leftovers; // what 500 children leave behind

use std::time::Duration;

/// The program under test.
const PANDO: &str = env!("CARGO_BIN_EXE_pando");
/// The least that a guest can have.
const MEMORY: u64 = 128 << 20;
/// Enough for a guest to get somewhere, also on a computer that is busy with other things.
const LIMIT: Duration = Duration::from_secs(60);

/// Whether there is a KVM; says so if not.
fn needs_kvm() -> bool {
    let usable = pando_bench::usable_kvm();
    if !usable {
        eprintln!("skipped: /dev/kvm cannot be opened here");
    }
    usable
}
