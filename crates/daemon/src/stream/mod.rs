//! Connections to what listens in VMs, whoever they are for: previews and published ports.
//!
//! *Invariant.* A connection that broke never ends as one that went well.

mod reach; // as soon as somebody listens
mod upstream; // the guest's end
mod relay; // bytes both ways

pub(crate) use reach::reach;
pub(crate) use relay::relay;
pub(crate) use upstream::Upstream;
