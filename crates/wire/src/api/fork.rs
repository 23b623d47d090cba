//! One VM becomes several.

use super::publish::Publish;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A fork of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkRequest {
    /// The children, in order; 1 to 250, and 1 to 20 by way of a pager.
    pub children: Vec<ChildSpec>,
    /// By which way they come by what the VM is; by `fork` when absent. VMs from a checkpoint have no choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<Via>,
}

/// By which way children come by what their parent is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// `fork(2)` of the parent's monitor: memory and disk are shared for as long as nobody writes.
    #[default]
    Fork,
    /// A monitor of its own, which pulls memory as it is touched, and then the rest, from a copy of the parent, and has
    /// all of the disk at once: in the end the child shares nothing with its parent.
    Pager,
}

/// One child of a fork.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChildSpec {
    /// Its name; one is made from the parent's when absent.
    #[serde(default)]
    pub name: Option<String>,
    /// Added to the parent's environment for every `exec` in the child and for its fork hooks.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Ports of the host that are to be ports of it, 64 at most; none when absent, whatever its parent has.
    #[serde(default)]
    pub publish: Vec<Publish>,
}

/// How a fork went. A child that failed does not fail the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForkReport {
    /// The parent's name.
    pub parent: String,
    /// From the arrival of the request until all of the parent's memory was there, in microseconds: of a VM that woke just
    /// now, some is still on its way. It runs on meanwhile.
    #[serde(default)]
    pub arrive_us: u64,
    /// Then, until records, files and sockets of the children were there, in microseconds.
    pub prepare_us: u64,
    /// Then, until the parent's programs stood still, in microseconds. Absent when they did not, or not until the fork
    /// was over: a program may then have drawn the same random number in parent and child.
    pub barrier_us: Option<u64>,
    /// Then, how long the parent itself stood still, in microseconds.
    pub pause_us: u64,
    /// Of that: until every vCPU and device stood still.
    pub park_us: u64,
    /// Of that: reading the state of vCPUs and devices.
    pub save_us: u64,
    /// Of that: freezing the top layer of the disk.
    pub seal_us: u64,
    /// Of that: `fork(2)` itself.
    pub fork_us: u64,
    /// Of that: until every vCPU ran again.
    pub resume_us: u64,
    /// The longest gap that a heartbeat inside the parent saw around the fork, in microseconds. Absent when the
    /// parent's agent did not answer.
    pub guest_gap_us: Option<u64>,
    /// 4 KiB pages that the parent's monitor had in common with its children, and with other relatives, when they were
    /// ready: guest memory that neither side had changed, and a few MiB of the monitor itself.
    pub shared_pages: u64,
    /// How many pages the children prepared ahead because an earlier child wrote them, of this VM or of the one that it
    /// was forked from; 0 at the first fork of a VM that was booted.
    #[serde(default)]
    pub expected_pages: u32,
    /// One entry per child asked for, in order.
    pub children: Vec<ChildReport>,
}

/// How one child of a fork went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChildReport {
    /// Its name.
    pub name: String,
    /// Its id, when it runs.
    pub id: Option<String>,
    /// From the request until the first successful reply of its agent, in microseconds. Of one by way of a pager, memory may
    /// still be on its way.
    pub ready_us: Option<u64>,
    /// Where the child's time went, phase by phase, in microseconds (`seed`, `wait`, `create_vm`, `memory`, `vcpus`,
    /// `devices`, `total`), of the `agent` from then on until its first reply, and of `adopt` from there until it had its
    /// identity and its hooks had run.
    pub phases_us: BTreeMap<String, u64>,
    /// Whether its random numbers were its own before its programs ran. Absent when it does not run.
    pub reseeded: Option<bool>,
    /// Why it does not run; or, where it has an id, what went wrong although it runs: a fork hook that failed.
    pub error: Option<String>,
}
