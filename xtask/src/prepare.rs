//! What tests with guests need.

use crate::TaskError;
use crate::cargo::{self, Program, target_dir};
use pando_guest::{initramfs, kernel::Kernel};
use std::fs;
use std::path::{Path, PathBuf};

/// The programs in guests are static, as the agent is: the guest's root file system has no libraries for them.
const STATIC: &str = "-C target-feature=+crt-static -C relocation-model=static";
/// Without a target, even the host's own, these flags would apply to proc macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// `pando`, optimised: an emulated computer is slow enough.
pub(crate) fn pando() -> Result<PathBuf, TaskError> {
    only("pando", cargo::build(&["build", "--release", "--package", "pando-cli"], &[])?)
}

/// A fault that is planted into a `pando`, so that a test can show that it would be noticed.
#[derive(Debug)]
pub(crate) struct Fault {
    /// The feature of pando-vmm that it is.
    feature: &'static str,
    /// The variable that tells tests where that `pando` is.
    pub(crate) variable: &'static str,
}

/// The disk of a parent is sealed after that went on.
pub(crate) const LATE_DISK: Fault = Fault { feature: "plant-late-disk", variable: "PANDO_PLANTED_LATE_DISK" };

/// A vCPU reads its state while another is still in the guest.
pub(crate) const EARLY_READ: Fault = Fault { feature: "plant-early-read", variable: "PANDO_PLANTED_EARLY_READ" };

/// `pando` with a planted fault.
///
/// Built where the real one is, for the sake of what both have in common, and then put aside: so build the real one
/// after it.
pub(crate) fn planted(fault: &Fault) -> Result<PathBuf, TaskError> {
    let feature = format!("pando-vmm/{}", fault.feature);
    let args = ["build", "--release", "--package", "pando-cli", "--features", &feature];
    let built = only("pando", cargo::build(&args, &[])?)?;
    let dir = target_dir().join("planted").join(fault.feature);
    let path = dir.join("pando");
    // Renamed, so that what was there is not in the way even while it runs.
    let aside = || {
        fs::create_dir_all(&dir)?;
        fs::rename(&built, &path)
    };
    aside().map_err(|source| TaskError::File { path: path.display().to_string(), source })?;
    Ok(path)
}

/// The folder of the programs that tests run in guests.
pub(crate) fn programs() -> Result<PathBuf, TaskError> {
    let args = ["build", "--package", "pando-test-programs", "--bins", "--profile", "agent", "--target", TARGET];
    let dir = target_dir().join("guest");
    let dir = dir.to_string_lossy();
    let built = cargo::build(&[&args[..], &["--target-dir", &dir]].concat(), &[("RUSTFLAGS", STATIC)])?;
    let oracle = only("oracle", built)?;
    Ok(oracle.parent().unwrap_or(Path::new("/")).to_path_buf())
}

/// The test programs of these packages.
pub(crate) fn tests(packages: &[&str]) -> Result<Vec<Program>, TaskError> {
    let mut args = vec!["test", "--no-run"];
    packages.iter().for_each(|package| args.extend(["--package", package]));
    cargo::build(&args, &[])
}

/// The test program `toy_guest` of pando-cli, and the `pando` that it runs, at a path that is built into it.
pub(crate) fn toy_guest() -> Result<Program, TaskError> {
    let built = cargo::build(&["test", "--no-run", "--package", "pando-cli", "--test", "toy_guest"], &[])?;
    let found = built.into_iter().find(|program| program.kind == "test");
    found.ok_or_else(|| TaskError::Output("cargo, which built no toy_guest,".into()))
}

/// The daemon's cache folder, with a kernel and an initramfs in it: there is no network in an emulated host.
pub(crate) fn cache() -> Result<PathBuf, TaskError> {
    let dir = cache_dir();
    let mut progress = |words: &str| eprintln!("{words}");
    let kernel = Kernel::find(&dir, &mut progress)?;
    initramfs::cached_base(&kernel, &dir)?;
    Ok(dir)
}

/// As the daemon has it, so that what is there is not downloaded again; but never the system's, which `make test` has no
/// business in.
fn cache_dir() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("PANDO_CACHE_DIR")
        .or_else(|| variable("XDG_CACHE_HOME").map(|dir| dir.join("pando")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/pando")))
        .unwrap_or_else(|| target_dir().join("cache"))
}

fn only(name: &str, programs: Vec<Program>) -> Result<PathBuf, TaskError> {
    let found = programs.into_iter().find(|program| program.kind == "bin" && program.name == name);
    found.map(|program| program.path).ok_or_else(|| TaskError::Output(format!("cargo, which built no {name},")))
}
