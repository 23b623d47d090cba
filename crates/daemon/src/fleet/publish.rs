//! Ports of the host that are ports of VMs. What serves them is elsewhere: `publish`.
//!
//! They are taken before there is their VM, so that one whose ports another has is never made, and given back when it is
//! removed. The database has them with the VM, so each daemon takes them again.

use super::Fleet;
use super::error::FleetError;
use crate::db::Record;
use crate::publish::{Bound, bind};
use pando_wire::api::{MAX_PUBLISHED, Publish, Published};
use std::net::SocketAddr;

impl Fleet {
    /// The ports of the host that are ports of a VM, by the VM's port.
    pub(crate) async fn published(&self, name: &str) -> Result<Vec<Published>, FleetError> {
        let record = self.look_up(name).await?;
        Ok(self.0.published.of(&record.id))
    }

    /// Takes ports of the host for a VM that is to be made: all of them, or none.
    pub(super) async fn take_ports(&self, wanted: &[Publish]) -> Result<Vec<Bound>, FleetError> {
        check(wanted)?;
        let mut taken = Vec::new();
        for &port in wanted {
            let bound = bind(port).await.listens();
            let at = SocketAddr::new(port.address, port.host_port);
            taken.push(bound.map_err(|source| FleetError::NotPublished { at, source })?);
        }
        Ok(taken)
    }

    /// Serves what was taken for VM `id`.
    pub(super) fn serve_ports(&self, id: &str, taken: Vec<Bound>) {
        self.0.published.serve(self, id, taken);
    }

    /// Gives back the ports of VM `id`, which is no more.
    pub(super) async fn close_ports(&self, id: &str) {
        self.0.published.close(id).await;
    }

    /// Takes the ports again that VMs of an earlier daemon have. One that another has by now is tried again and again.
    pub(super) async fn adopt_ports(&self, records: &[Record]) -> Result<(), FleetError> {
        for Record { id, .. } in records {
            let mut ports = Vec::new();
            for port in self.0.db.published(id).await? {
                ports.push(bind(port).await);
            }
            self.serve_ports(id, ports);
        }
        Ok(())
    }

    /// Waits until nothing comes in by a published port any more, which the daemon's end brings about.
    pub(crate) async fn ports_ended(&self) {
        let _ = self.0.shutdown.clone().wait_for(|ends| *ends).await;
        self.0.published.ended().await;
    }
}

/// Refuses what cannot be, whoever has which ports.
fn check(wanted: &[Publish]) -> Result<(), FleetError> {
    if wanted.len() > MAX_PUBLISHED {
        let what = format!("{} ports cannot be published for one VM: {MAX_PUBLISHED} can", wanted.len());
        return Err(FleetError::Invalid(what));
    }
    for (index, port) in wanted.iter().enumerate() {
        if port.guest_port == 0 {
            return Err(FleetError::Invalid("a VM has no port 0 that could be published: 1 to 65535 are".into()));
        }
        let is_same = |other: &Publish| (other.address, other.host_port) == (port.address, port.host_port);
        if port.host_port != 0 && wanted[..index].iter().any(is_same) {
            let at = SocketAddr::new(port.address, port.host_port);
            return Err(FleetError::Invalid(format!("{at} cannot be published twice")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_cannot_be_are_refused_and_free_ones_may_be_asked_for_often() {
        let port = Publish::on_loopback;
        assert!(check(&[port(0, 80), port(0, 80), port(80, 80), port(81, 80)]).is_ok());
        assert!(check(&[Publish { address: "::1".parse().unwrap(), ..port(80, 80) }, port(80, 80)]).is_ok());
        for wrong in [vec![port(8080, 0)], vec![port(80, 80), port(80, 81)], vec![port(0, 80); MAX_PUBLISHED + 1]] {
            assert!(matches!(check(&wrong), Err(FleetError::Invalid(_))), "{wrong:?}");
        }
    }
}
