//! Many VMs: a daemon that starts, forks, watches and adopts them, and its REST API.
//!
//! Its own crate because all of it is tested without KVM: a monitor is a program that speaks `pando_wire::control`, and
//! the tests have one of their own.

mod agent; // talking to guests
mod auth; // who may use it
mod config; // what a daemon is told
mod db; // state that survives
mod fleet; // every operation on VMs
mod images; // what VMs begin from
mod monitor; // talking to monitors
pub mod network; // a namespace for each VM
mod paths; // where everything lies
mod previews; // what listens in VMs, for browsers
mod publish; // ports of the host that are ports of VMs
mod ready; // waiting for descriptors
mod routes; // the API, on one page
mod serve; // starting and ending a daemon
mod settings; // what a daemon can be told while it runs
mod stream; // connections to what listens in VMs
mod supervisor; // monitors as processes
mod usage; // what a VM costs

pub use config::Config;
pub use db::DbError;
pub use fleet::bucket_spec;
pub use routes::openapi;
pub use serve::{ServeError, serve, serve_until};
