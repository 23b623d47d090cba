//! Builds the agent, for another target than this crate: a static binary.

use std::{env, path::PathBuf, process::Command};

/// The agent's Rust flags: nothing of the guest's root disk is needed to run it, and it is where it was linked to be.
const FLAGS: [&str; 4] = ["-C", "target-feature=+crt-static", "-C", "relocation-model=static"];

/// Without a target, even the host's own, the flags would apply to proc macros, which cannot be static.
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let var = |name| env::var(name).unwrap_or_else(|_| panic!("cargo did not set {name}"));
    let here = PathBuf::from(var("CARGO_MANIFEST_DIR"));
    for name in ["agent", "sys", "wire"] {
        println!("cargo::rerun-if-changed={}", here.join("..").join(name).join("src").display());
        println!("cargo::rerun-if-changed={}", here.join("..").join(name).join("Cargo.toml").display());
    }
    println!("cargo::rerun-if-changed={}", here.join("../../Cargo.toml").display());
    println!("cargo::rerun-if-changed={}", here.join("../../Cargo.lock").display());
    println!("cargo::rerun-if-changed=build.rs");

    let target_dir = PathBuf::from(var("OUT_DIR")).join("agent");
    let mut cargo = Command::new(var("CARGO"));
    cargo.args(["build", "--quiet", "--package", "pando-agent", "--bin", "pando-agent", "--profile", "agent"]);
    cargo.args(["--target", TARGET]).arg("--target-dir").arg(&target_dir);
    cargo.arg("--manifest-path").arg(here.join("../agent/Cargo.toml"));
    // What the outer cargo says to its rustc (flags, clippy's or a cache's wrapper) is not meant for this one.
    for name in ["RUSTFLAGS", "RUSTC", "RUSTDOC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(name);
    }
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        if name.starts_with("CARGO_FEATURE_") || name.starts_with("CARGO_CFG_") || name.starts_with("CARGO_PROFILE_") {
            cargo.env_remove(name);
        }
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    let status = cargo.status().unwrap_or_else(|error| panic!("cannot start cargo: {error}"));
    assert!(status.success(), "the agent does not build; its own words are above");
    println!("cargo::rustc-env=PANDO_AGENT={}", target_dir.join(TARGET).join("agent/pando-agent").display());
}
