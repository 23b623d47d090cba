//! What a fork promises, held against toy guests that check themselves at every step. Runs on any KVM, also one that only
//! emulates the CPU. Without one it is skipped here, and `make test` runs it in the emulated host.

#![expect(clippy::unwrap_used, reason = "what a monitor refuses here is the test's failure")]

mod fork; // one CPU and its memory
mod instant; // several CPUs, memory, disk and vsock, of one instant
mod descriptors; // what a child has open
mod network; // a card is above one tap
mod huge; // memory is in huge pages again after a fork
mod deaths; // somebody dies in the middle of it
mod checkpoint; // seeds, and what was saved of one
mod asleep; // its disk stays where it is meanwhile
mod since; // what changed since an earlier checkpoint
mod moments; // at random
mod kept; // a checkpoint is of one instant
mod pulled; // children in monitors of their own, that pull from a copy
mod races; // what comes while a VM is at something else
mod fixture; // checkpoints that earlier versions exported
mod killed; // a save is killed at any moment
mod places; // where a guest is that does not go on
mod turns; // page servers that fetch what nobody waits for
mod leftovers; // what 500 children leave behind
mod planted; // faults that these guests must notice

use std::time::Duration;

/// The program under test.
const PANDO: &str = env!("CARGO_BIN_EXE_pando");
/// The least that a guest can have.
const MEMORY: u64 = 128 << 20;
/// Enough for a guest to get somewhere, also on a computer that is busy with other things.
const LIMIT: Duration = Duration::from_secs(60);

/// Set where `make test` says that these tests run.
const RUN: &str = "PANDO_TOY_GUESTS_RUN";

/// Whether there is a KVM; says so if not.
///
/// # Panics
///
/// When there is none where these tests must run: nobody reads what a test that succeeds has printed.
fn needs_kvm() -> bool {
    let usable = pando_bench::usable_kvm();
    assert!(usable || std::env::var_os(RUN).is_none(), "/dev/kvm cannot be opened, and {RUN} says that toy guests run");
    if !usable {
        eprintln!("skipped: /dev/kvm cannot be opened here");
    }
    usable
}
