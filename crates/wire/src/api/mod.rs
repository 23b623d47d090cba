//! Anyone ↔ daemon: the bodies of the REST API, JSON. Every field is documented here and nowhere else; the OpenAPI
//! document is derived from these types.

mod run; // a VM to create
mod network; // what it reaches
mod fork; // one becomes several
mod vm; // a VM
mod exec; // a program in it
mod port; // what listens in it
mod publish; // ports of the host that are its ports
mod checkpoint; // as it was at one instant
mod bucket; // that, elsewhere
mod store; // what is stored
mod image; // what VMs begin from
mod setting; // how the daemon is set
mod event; // what happened
mod meta; // errors and versions

pub use bucket::{Bucket, BucketRunRequest, PullRequest, Pulled, PushRequest, Pushed};
pub use checkpoint::{Checkpoint, CheckpointRequest, CheckpointRunReport, CheckpointState};
pub use event::Event;
pub use exec::{ExecReport, ExecRequest};
pub use fork::{ChildReport, ChildSpec, ForkReport, ForkRequest, Via};
pub use image::Image;
pub use meta::{Error, NO_ROUTE, Version};
pub use network::{Network, NetworkMode, NetworkRequest, Passed, Traffic};
pub use port::{Port, PortRequest};
pub use publish::{MAX_PUBLISHED, Publish, Published};
pub use run::RunRequest;
pub use setting::{Setting, SettingRequest};
pub use store::{Collected, Damage, Progress, Verified};
pub use vm::{State, Usage, Vm};
