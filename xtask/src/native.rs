//! Tests that need no Linux guest.

use crate::TaskError;
use crate::cargo::{cargo, root};
use crate::host;
use std::process::{Command, Stdio};

/// Crates whose tests start toy guests. Without a usable `/dev/kvm` they run where the Linux guests run.
pub(crate) const TOY_GUESTS: [&str; 2] = ["pando-sys", "pando-vmm"];
/// Set where toy guests run: a test that skips them there fails.
pub(crate) const TOY_GUESTS_RUN: &str = "PANDO_TOY_GUESTS_RUN";

/// Runs them, with nextest if it is there: it is quicker, and shows a failure alone.
pub(crate) fn run() -> Result<(), TaskError> {
    let mut tests = cargo();
    match has_nextest() {
        true => tests.args(["nextest", "run", "--no-tests", "pass"]),
        false => tests.arg("test"),
    };
    tests.arg("--workspace").current_dir(root());
    if host::has_kvm() {
        tests.env(TOY_GUESTS_RUN, "1");
    } else {
        // The `toy_guest` of pando-cli skips itself here.
        eprintln!(
            "no usable /dev/kvm: tests with toy guests ({}, pando-cli) run in the emulated host",
            TOY_GUESTS.join(", ")
        );
        TOY_GUESTS.iter().for_each(|name| {
            tests.args(["--exclude", name]);
        });
    }
    crate::run(&mut tests)?;
    // Nextest knows no examples in documentation.
    crate::run(cargo().args(["test", "--quiet", "--workspace", "--doc"]).current_dir(root()))
}

fn has_nextest() -> bool {
    let mut ask = Command::new("cargo-nextest");
    ask.args(["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    ask.status().is_ok_and(|status| status.success())
}
