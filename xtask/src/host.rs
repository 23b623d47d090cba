//! Where tests with Linux guests run.

use crate::TaskError;
use serde_json::Value;
use std::fs::File;
use std::path::Path;
use std::process::Command;

/// A place where Linux guests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Here, with hardware KVM.
    Here,
    /// In an emulated host.
    EmulatedHost,
}

/// Whether there is a KVM here of any kind that this user may use.
pub(crate) fn has_kvm() -> bool {
    File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// What `pando doctor` advises.
pub(crate) fn place(pando: &Path) -> Result<Place, TaskError> {
    let program = pando.display().to_string();
    let output = Command::new(pando).args(["doctor", "-o", "json"]).output();
    let output = output.map_err(|source| TaskError::Start { program, source })?;
    let report: Value =
        serde_json::from_slice(&output.stdout).map_err(|_| TaskError::Output("pando doctor -o json".into()))?;
    match report["way"].as_str() {
        Some("native") => Ok(Place::Here),
        Some("machine") => Ok(Place::EmulatedHost),
        _ => Err(TaskError::NoHost(String::from_utf8_lossy(&output.stdout).into_owned())),
    }
}
