//! Names of VMs, checkpoints and settings for the shell. Nothing is started for it, and a daemon that is slow is not waited for.

use crate::client::Client;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter};
use pando_wire::api::{Checkpoint, Setting, Vm};
use serde::de::DeserializeOwned;
use std::ffi::OsStr;
use std::time::Duration;

/// How long a person waits for a completion without noticing.
const PATIENCE: Duration = Duration::from_millis(300);

/// Completes the name of a VM.
pub(crate) fn vm() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let typed = typed.to_string_lossy();
        let vms = vms().unwrap_or_default().into_iter().filter(|vm| vm.name.starts_with(&*typed));
        vms.map(|vm| CompletionCandidate::new(vm.name).help(Some(crate::render::state(vm.state).into()))).collect()
    })
}

/// Completes one side of a copy: the name of a VM and a colon, or a path here.
pub(crate) fn vm_or_path() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let start = typed.to_string_lossy();
        let vms = vms().unwrap_or_default().into_iter().filter(|vm| vm.name.starts_with(&*start));
        let vms = vms.map(|vm| CompletionCandidate::new(format!("{}:", vm.name)));
        vms.chain(PathCompleter::any().complete(typed)).collect()
    })
}

/// Completes the name of a checkpoint.
pub(crate) fn checkpoint() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let typed = typed.to_string_lossy();
        let all: Vec<Checkpoint> = list("/checkpoints").unwrap_or_default();
        let all = all.into_iter().filter(|checkpoint| checkpoint.name.starts_with(&*typed));
        all.map(|checkpoint| CompletionCandidate::new(checkpoint.name).help(Some(checkpoint.vm.into()))).collect()
    })
}

/// Completes the name of a setting.
pub(crate) fn setting() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let typed = typed.to_string_lossy();
        let all: Vec<Setting> = list("/settings").unwrap_or_default();
        let all = all.into_iter().filter(|setting| setting.key.starts_with(&*typed));
        all.map(|setting| CompletionCandidate::new(setting.key).help(Some(setting.about.into()))).collect()
    })
}

fn vms() -> Option<Vec<Vm>> {
    list("/vms")
}

/// What the daemon answers at `path`, if it does.
fn list<T: DeserializeOwned>(path: &str) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let client = Client::open_without_starting().ok()?;
    let body = runtime.block_on(async { tokio::time::timeout(PATIENCE, client.get(path)).await }).ok()?;
    body.ok()?.read().ok()
}
