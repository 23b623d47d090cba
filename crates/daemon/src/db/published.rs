//! Ports of the host that are ports of VMs. They are written with their VM, and go with it.

use super::{Db, DbError, Write};
use pando_wire::api::Publish;
use std::net::IpAddr;

impl Db {
    /// The ports of the host that are ports of VM `id`, by the VM's port.
    pub(crate) async fn published(&self, id: &str) -> Result<Vec<Publish>, DbError> {
        let rows: Vec<(String, u16, u16)> = sqlx::query_as(
            "SELECT address, host_port, guest_port FROM published WHERE vm = ? ORDER BY guest_port, address, host_port",
        )
        .bind(id)
        .fetch_all(&self.read)
        .await?;
        let port = |(address, host_port, guest_port): (String, u16, u16)| -> Result<Publish, DbError> {
            let wrong = |_| DbError::Row { id: id.to_owned(), what: format!("address {address:?}") };
            let address: IpAddr = address.parse().map_err(wrong)?;
            Ok(Publish { address, host_port, guest_port })
        };
        rows.into_iter().map(port).collect()
    }
}

/// Writes that `ports` are VM `id`'s.
pub(super) async fn insert_published(write: &mut Write, id: &str, ports: &[Publish]) -> Result<(), DbError> {
    for Publish { address, host_port, guest_port } in ports {
        sqlx::query("INSERT INTO published (vm, address, host_port, guest_port) VALUES (?, ?, ?, ?)")
            .bind(id)
            .bind(address.to_string())
            .bind(host_port)
            .bind(guest_port)
            .execute(write.on())
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::vm;
    use super::*;
    use crate::db::Insert;

    #[tokio::test]
    async fn a_port_of_the_host_is_written_with_its_vm_and_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let db = Db::open(&path, "owner", None).await.unwrap();
        let ports = [
            Publish::on_loopback(9000, 80),
            Publish { address: "::".parse().unwrap(), ..Publish::on_loopback(8443, 443) },
        ];
        let with_ports = Insert { published: ports.into(), ..vm("a") };
        db.insert_vms(|_| (vec![with_ports, vm("b")], ())).await.unwrap();
        assert_eq!(db.published("id of b").await.unwrap(), []);
        db.close().await;

        let db = Db::open(&path, "owner", None).await.unwrap();
        assert_eq!(db.published("id of a").await.unwrap(), ports);
        db.remove_vm("id of a", 2, "a").await.unwrap();
        assert_eq!(db.published("id of a").await.unwrap(), []);
    }
}
