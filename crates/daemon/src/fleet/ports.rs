//! Which ports of VMs can be seen from outside, and who is let in. What it takes to see one is elsewhere: `previews`.
//!
//! A port belongs to one VM: the child of a fork has none, whatever its parent has. To open or close one is no use of the
//! VM, so it sleeps on.

use super::Fleet;
use super::boot::random;
use super::error::FleetError;
use crate::db::{OpenPort, Record};

impl Fleet {
    /// The ports of a VM that can be seen, in order.
    pub(crate) async fn ports(&self, name: &str) -> Result<(Record, Vec<OpenPort>), FleetError> {
        let record = self.look_up(name).await?;
        let ports = self.0.db.ports(&record.id).await?;
        Ok((record, ports))
    }

    /// Lets a port of a VM be seen by everybody, or by who has its token. One that can be seen is as it was where
    /// `is_public` does not say; one that could not is for who has its token.
    pub(crate) async fn open_port(
        &self,
        name: &str,
        port: u16,
        is_public: Option<bool>,
    ) -> Result<(Record, OpenPort), FleetError> {
        if port == 0 {
            return Err(FleetError::Invalid("there is no port 0: 1 to 65535 are".into()));
        }
        let record = self.look_up(name).await?;
        let token = u128::from_ne_bytes(random()?);
        let open = self.0.db.open_port(&record.id, port, &format!("{token:032x}"), is_public).await?;
        open.map(|open| (record, open)).ok_or_else(|| FleetError::NoSuchVm(name.to_owned()))
    }

    /// Lets a port of a VM be seen no more. Its token is never one again.
    pub(crate) async fn close_port(&self, name: &str, port: u16) -> Result<(), FleetError> {
        let record = self.look_up(name).await?;
        match self.0.db.close_port(&record.id, port).await? {
            true => Ok(()),
            false => Err(FleetError::NoSuchPort { name: record.name, port }),
        }
    }

    /// A port of the VM of this name or id: the VM's id, and the port if it can be seen.
    pub(crate) async fn port(&self, name: &str, port: u16) -> Result<(String, Option<OpenPort>), FleetError> {
        self.0.db.port(name, port).await?.ok_or_else(|| FleetError::NoSuchVm(name.to_owned()))
    }
}
