//! Anyone ↔ daemon: the bodies of the REST API, JSON. Every field is documented here and nowhere else; the OpenAPI
//! document is derived from these types.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use utoipa::ToSchema;

/// A VM to create and boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// Its name: 1 to 63 of `a-z`, `0-9`, `-` and `.`, beginning with a letter or digit; one is made up when absent.
    #[serde(default)]
    pub name: Option<String>,
    /// Digest of an image that was imported before.
    pub image: String,
    /// vCPUs, 1 to 32.
    #[serde(default = "one")]
    pub cpus: u8,
    /// RAM in bytes, 128 MiB to 64 GiB, rounded up to 2 MiB.
    #[serde(default = "default_memory")]
    pub memory_bytes: u64,
    /// Size of the root disk in bytes; grown from the image's size when larger.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    /// The command and its arguments; nothing is started when empty.
    #[serde(default)]
    pub command: Vec<String>,
    /// Environment of the command and of every `exec`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory of the command.
    #[serde(default)]
    pub cwd: Option<String>,
    /// User of the command: a name in the image's `/etc/passwd` or `uid[:gid]`.
    #[serde(default)]
    pub user: Option<String>,
    /// Path of a kernel on the daemon's host, `bzImage` or ELF; Debian's cloud kernel when absent.
    #[serde(default)]
    pub kernel: Option<String>,
    /// After how many milliseconds without use it hibernates by itself, at least 1000; never when 0, as the setting
    /// `idle-timeout` says when absent. Its forks are as it is.
    #[serde(default)]
    pub idle_timeout_ms: Option<u64>,
    /// What its network reaches; it has none when absent. Its forks are as it is.
    #[serde(default)]
    pub network: Network,
}

/// What a VM's network reaches. The host's own addresses, other VMs and link-local addresses (those of cloud metadata) are
/// out of reach in any case.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// What is reached by default.
    #[serde(default)]
    pub mode: NetworkMode,
    /// Networks (`10.0.0.0/8`), addresses and names that it reaches, and then nothing else.
    #[serde(default)]
    pub allow: Vec<String>,
    /// Networks, addresses and names that it does not reach, also where `allow` has them.
    #[serde(default)]
    pub deny: Vec<String>,
    /// The most bytes a second in each direction; no limit when absent.
    #[serde(default)]
    pub rate_bytes: Option<u64>,
}

/// What a VM's network reaches by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// It has no network device. Its ports are reached all the same, by its agent.
    #[default]
    None,
    /// What the host reaches, under the host's address.
    Nat,
    /// Nothing: it has a device and a gateway that lets nothing through.
    Isolated,
}

fn one() -> u8 {
    1
}

fn default_memory() -> u64 {
    512 << 20
}

/// A fork of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkRequest {
    /// The children, in order; 1 to 250.
    pub children: Vec<ChildSpec>,
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
    /// From the request until the first successful reply of its agent, in microseconds.
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

/// A VM as the daemon sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// UUIDv7, unique among all daemons.
    pub id: String,
    /// Unique in this daemon.
    pub name: String,
    /// Where in its life it is.
    pub state: State,
    /// Why it stopped, when it did; while it runs, why nothing can be asked of it, when that is so.
    pub ending: Option<String>,
    /// The id of the VM that it was forked from, also after that one was removed.
    pub parent: Option<String>,
    /// The image that its root disk began from.
    pub image: String,
    /// vCPUs.
    pub cpus: u8,
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// The command that it was started with.
    pub command: Vec<String>,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Process id of its monitor while it runs.
    pub pid: Option<u32>,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: i64,
    /// The daemon that owns it.
    pub owner: String,
    /// Counts the owners; a write by a stale one is lost.
    pub epoch: i64,
    /// Its memory on the host, when asked for one VM and it runs.
    pub usage: Option<Usage>,
    /// After how many milliseconds without use it hibernates by itself; never when 0, as the setting `idle-timeout` says
    /// when absent.
    #[serde(default)]
    pub idle_timeout_ms: Option<u64>,
    /// Why it does not hibernate though nobody uses it, when asked for one VM and that went wrong.
    #[serde(default)]
    pub sleepless: Option<String>,
    /// What its network reaches.
    #[serde(default)]
    pub network: Network,
}

/// What a VM's memory costs (`smaps_rollup` of its monitor), in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Resident: private and shared.
    pub rss_bytes: u64,
    /// Resident, each shared page divided by its sharers.
    pub pss_bytes: u64,
    /// Resident and nobody else's.
    pub private_bytes: u64,
}

/// Where in its life a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Being booted or forked.
    Starting,
    /// Its vCPUs run.
    Running,
    /// It stands still.
    Paused,
    /// It has ended; its disk is kept until it is removed.
    Stopped,
    /// It sleeps in the store, memory and all, and has no process.
    Hibernated,
}

impl State {
    /// Whether a VM in this state has no monitor.
    pub fn is_at_rest(self) -> bool {
        matches!(self, Self::Stopped | Self::Hibernated)
    }
}

/// A checkpoint to make of a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointRequest {
    /// Its name, as a VM's can be; one is made from the VM's when absent.
    #[serde(default)]
    pub name: Option<String>,
}

/// A VM as it was at one instant, for others to begin from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    /// UUIDv7, unique among all daemons.
    pub id: String,
    /// Unique among the checkpoints of this daemon.
    pub name: String,
    /// The name that the VM had then.
    pub vm: String,
    /// The id of that VM, also after it was removed.
    pub vm_id: String,
    /// Whether it would survive its seed.
    pub state: CheckpointState,
    /// Why it could not be stored.
    pub problem: Option<String>,
    /// The image that the VM's root disk began from.
    pub image: String,
    /// vCPUs.
    pub cpus: u8,
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// Process id of its seed while it has one: the VM's memory, frozen, of which forks are made. Without one, VMs begin
    /// from the store.
    pub seed: Option<u32>,
    /// The seed's memory on the host, while there is one.
    pub usage: Option<Usage>,
    /// Its RAM and disk as the guest sees them, in bytes, once it is stored.
    pub logical_bytes: Option<u64>,
    /// What it added to the store, in bytes.
    pub stored_bytes: Option<u64>,
    /// What of its RAM and disk was read and hashed to store it, in bytes: not what is zero, nor what is as in an earlier
    /// checkpoint of the VM. Null where that is not known, as of one that was stored elsewhere.
    pub hashed_bytes: Option<u64>,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: i64,
}

/// Whether a checkpoint would survive its seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckpointState {
    /// Not yet: it is being written into the store.
    Saving,
    /// Yes.
    Stored,
    /// No: it could not be written.
    Failed,
}

/// How VMs were run from a checkpoint. One that failed does not fail the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointRunReport {
    /// The checkpoint's name.
    pub checkpoint: String,
    /// Whether they are forks of its seed; otherwise their memory comes from the store as they touch it.
    pub warm: bool,
    /// From the arrival of the request until records, files and sockets were there, in microseconds.
    pub prepare_us: u64,
    /// Then `fork(2)` of the seed, in microseconds; 0 without a seed.
    pub fork_us: u64,
    /// One entry per VM asked for, in order.
    pub children: Vec<ChildReport>,
}

/// A bucket of an S3-compatible store, and as whom to talk to it. The daemon forgets it with the request, and it prints
/// without the keys.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Which, and what the names of all objects begin with: `s3://bucket/prefix`.
    pub url: String,
    /// The server as the daemon reaches it, such as `http://127.0.0.1:9000`; Amazon's when absent.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The region, `us-east-1` when absent; most servers but Amazon's do not care.
    #[serde(default)]
    pub region: Option<String>,
    /// Who asks.
    pub access_key_id: String,
    /// What proves it.
    pub secret_access_key: String,
    /// What comes with temporary keys.
    #[serde(default)]
    pub session_token: Option<String>,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, endpoint, region, .. } = self;
        f.debug_struct("Bucket")
            .field("url", url)
            .field("endpoint", endpoint)
            .field("region", region)
            .finish_non_exhaustive()
    }
}

/// A checkpoint to send to a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PushRequest {
    /// Where to.
    pub bucket: Bucket,
}

/// What was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pushed {
    /// Packs and layers that were sent.
    pub sent: u64,
    /// How long they are together, in bytes.
    pub sent_bytes: u64,
    /// Packs and layers that were there already.
    pub there: u64,
}

/// A checkpoint to fetch from a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// Where from.
    pub bucket: Bucket,
    /// The name that it had where it was pushed, or its id. Of several of that name, the one that was made last.
    pub checkpoint: String,
    /// Its name here; the one that it had when absent.
    #[serde(default)]
    pub name: Option<String>,
}

/// VMs to run from a checkpoint that stays in a bucket. The keys stay with the processes that read it until all memory of
/// the VMs has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BucketRunRequest {
    /// Where from.
    pub bucket: Bucket,
    /// The name that it had where it was pushed, or its id. Of several of that name, the one that was made last.
    pub checkpoint: String,
    /// The VMs, in order; 1 to 250.
    pub children: Vec<ChildSpec>,
    /// How much of what is fetched is kept on disk for others, in bytes, at least 256 MiB; 4 GiB when absent.
    #[serde(default)]
    pub cache_bytes: Option<u64>,
}

/// What was fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pulled {
    /// The checkpoint, as it is here.
    pub checkpoint: Checkpoint,
    /// Packs and layers that were fetched.
    pub fetched: u64,
    /// How long they are together, in bytes.
    pub fetched_bytes: u64,
    /// Packs and layers that were here already.
    pub here: u64,
}

/// How far long work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Files that are done.
    pub done: u64,
    /// Files that there are, of at most 16 MiB each; 0 before that is known.
    pub files: u64,
}

/// What was taken back of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Collected {
    /// By how much the store is smaller, in bytes.
    pub freed_bytes: u64,
    /// Layers that no checkpoint needs.
    pub manifests: u64,
    /// Packs of which nothing was needed.
    pub packs: u64,
    /// Packs whose needed pages were moved into others.
    pub compacted: u64,
    /// Packs that are kept because they are damaged, and so what is in them is not known.
    pub damaged: Vec<String>,
    /// Why it ended early: the disk is full, for one.
    pub problem: Option<String>,
}

/// What was read of the store, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verified {
    /// How many checkpoints there are.
    pub checkpoints: u64,
    /// How much was read, in bytes.
    pub bytes: u64,
    /// Every file that is not what was written.
    pub damage: Vec<Damage>,
}

/// A file of the store that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Damage {
    /// Which file.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
    /// The checkpoints, by name, that cannot be used in full because of it.
    pub affected: Vec<String>,
}

/// A program to run in a VM, for callers that need neither a terminal nor a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The program, looked up in `PATH`, and its arguments.
    pub argv: Vec<String>,
    /// Added to the environment of the VM.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; `/` when absent.
    #[serde(default)]
    pub cwd: Option<String>,
    /// A name in `/etc/passwd` or `uid[:gid]`; root when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// What its standard input holds; nothing when absent.
    #[serde(default)]
    pub stdin: Option<String>,
    /// It is killed after so many milliseconds; 60 000 when absent.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

/// How a program that was run in a VM went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecReport {
    /// Its exit status; 128 and the signal's number when a signal ended it, as shells say it.
    pub exit: i32,
    /// What it wrote to standard output; what is not UTF-8 is replaced.
    pub stdout: String,
    /// What it wrote to standard error, likewise.
    pub stderr: String,
    /// Whether it wrote more than 8 MiB, of which the rest is not here.
    pub truncated: bool,
}

/// An image that VMs can begin from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// blake3 of the disk.
    pub digest: String,
    /// Size of the disk.
    pub size_bytes: u64,
}

/// A setting of a daemon: it holds from now on, also for the daemons after this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Setting {
    /// Its name.
    pub key: String,
    /// What it is.
    pub value: String,
    /// What it is when nobody sets it.
    pub default: String,
    /// What it is for.
    pub about: String,
}

/// What a setting is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SettingRequest {
    /// As [`Setting::value`].
    pub value: String,
}

/// A port of a VM that can be seen from outside.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Port {
    /// The VM's name.
    pub vm: String,
    /// The port in the VM.
    pub port: u16,
    /// Whether everybody who reaches the daemon's port for previews is let in, or who has the token.
    pub public: bool,
    /// Where it can be seen, with the token if that is needed. Absent when the daemon serves no previews.
    pub url: Option<String>,
    /// What lets one in, as the header `pando-token`. Absent when everybody is.
    pub token: Option<String>,
    /// Why there is no URL.
    pub problem: Option<String>,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vm, port, public, problem, .. } = self;
        let mut shown = f.debug_struct("Port");
        shown.field("vm", vm).field("port", port).field("public", public).field("problem", problem);
        shown.finish_non_exhaustive()
    }
}

/// How a port is to be seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortRequest {
    /// By everybody, or by who has the token. When absent, as it was; at first by who has the token.
    #[serde(default)]
    pub public: Option<bool>,
}

/// Something that happened to a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Counts up; `?after=` continues behind it.
    pub seq: i64,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// Whose.
    pub vm: String,
    /// `created`, `running`, `forked`, `checkpointed`, `stored` and `unstored` (a checkpoint of it), `paused`, `resumed`,
    /// `hibernated` (with the detail `idle` when nobody asked for it), `stopped`, `removed`.
    pub kind: String,
    /// More, for people.
    pub detail: String,
}

/// [`Error::error`] of a 404 that is about the route and not about a VM or an image.
pub const NO_ROUTE: &str = "there is no such route";

/// Every answer that is not a success carries this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Error {
    /// One sentence: what could not be done.
    pub error: String,
    /// Its causes, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub because: Vec<String>,
}

/// What answers at `GET /version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// The daemon's version.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_not_printed() {
        let bucket = Bucket {
            url: "s3://bucket".into(),
            endpoint: None,
            region: None,
            access_key_id: "AKID".into(),
            secret_access_key: "SECRET".into(),
            session_token: Some("TOKEN".into()),
        };
        let printed = format!("{:?}", PushRequest { bucket });
        assert!(printed.contains("s3://bucket"));
        assert!(!["AKID", "SECRET", "TOKEN"].iter().any(|key| printed.contains(key)), "{printed}");
    }
}
