//! Real guests: the harness. The promises are in `tests/`, one file for each kind.
//!
//! Every test there is ignored by a plain `cargo test`, because it needs KVM, a built `pando` and a kernel: `make test`
//! prepares them and says where they are in the environment ([`setting`]).

mod daemon; // a daemon of the test's own, and what is left of it
mod guard; // ends what a test started, however the test ends
pub mod rootfs; // what guests of tests begin from
mod run; // a program with a time limit
mod vm; // a VM of the test's own
pub mod web; // what listens in a VM, as a browser sees it
pub mod websocket; // one in a browser
pub mod world; // what guests with a network reach

pub use daemon::TestDaemon;
pub use run::Run;
pub use vm::TestVm;

use std::io::Write;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What `make test` prepares, by the name of the variable that says where it is.
pub mod setting {
    /// The `pando` program.
    pub const BINARY: &str = "PANDO_BINARY";
    /// The folder of the static programs of `tests/programs`.
    pub const PROGRAMS: &str = "PANDO_PROGRAMS";
    /// The daemon's cache folder, a kernel in it.
    pub const CACHE: &str = "PANDO_CACHE_DIR";
    /// A disk image of Debian with nginx, PostgreSQL, Node.js and git: what `debian/make.sh` makes.
    pub const DEBIAN: &str = "PANDO_DEBIAN";
    /// A `pando` that seals the disk of a parent after it went on: the fault that the oracle must notice.
    pub const PLANTED: &str = "PANDO_PLANTED_LATE_DISK";
    /// Set where the host is an emulated one, which nobody else uses: a test may set its clock.
    pub const OWN_HOST: &str = "PANDO_TESTS_OWN_HOST";
}

/// What the variable `name` of [`setting`] says.
///
/// # Panics
///
/// When it is not set: a test with guests was started by hand.
pub fn prepared(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set; `make test` prepares it")).into()
}

/// Waits until `done` says so.
///
/// # Panics
///
/// When it does not within `limit`.
pub fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        sleep(Duration::from_millis(20));
    }
    start.elapsed()
}

/// Tells how far a long test has come, at once: what libtest captures is seen only when the test fails.
pub fn progress(words: impl std::fmt::Display) {
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "{words}"); // Nobody to tell is no failure of the test.
}
