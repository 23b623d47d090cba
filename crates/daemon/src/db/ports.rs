//! Ports of VMs that can be seen from outside, and who is let in.

use super::{Db, DbError};

/// A port that can be seen.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct OpenPort {
    /// Which.
    pub(crate) port: u16,
    /// What lets one in: 32 hexadecimal digits.
    pub(crate) token: String,
    /// Whether everybody is let in.
    pub(crate) is_public: bool,
}

impl Db {
    /// The ports of VM `id` that can be seen, in order.
    pub(crate) async fn ports(&self, id: &str) -> Result<Vec<OpenPort>, DbError> {
        let ports = sqlx::query_as("SELECT port, token, is_public FROM ports WHERE vm = ? ORDER BY port");
        Ok(ports.bind(id).fetch_all(&self.read).await?)
    }

    /// A port of the VM of this name or id: the VM's id, and the port if it can be seen. None when there is no such VM.
    pub(crate) async fn port(
        &self,
        name_or_id: &str,
        port: u16,
    ) -> Result<Option<(String, Option<OpenPort>)>, DbError> {
        let row: Option<(String, Option<String>, Option<bool>)> = sqlx::query_as(
            "SELECT vms.id, ports.token, ports.is_public FROM vms \
             LEFT JOIN ports ON ports.vm = vms.id AND ports.port = ?2 WHERE vms.name = ?1 OR vms.id = ?1",
        )
        .bind(name_or_id)
        .bind(port)
        .fetch_optional(&self.read)
        .await?;
        Ok(row.map(|(id, token, is_public)| {
            let open = token.zip(is_public).map(|(token, is_public)| OpenPort { port, token, is_public });
            (id, open)
        }))
    }

    /// Lets a port of VM `id` be seen, so that a power failure does not undo it. What is said of one that can be already
    /// changes who is let in, if that is said, and not its token. The answer is how it is then; none when the VM is gone.
    pub(crate) async fn open_port(
        &self,
        id: &str,
        port: u16,
        token: &str,
        is_public: Option<bool>,
    ) -> Result<Option<OpenPort>, DbError> {
        let mut write = self.begin_durably().await?;
        let open = sqlx::query_as(
            "INSERT INTO ports (vm, port, token, is_public) SELECT id, ?2, ?3, COALESCE(?4, 0) FROM vms WHERE id = ?1 \
             ON CONFLICT (vm, port) DO UPDATE SET is_public = COALESCE(?4, is_public) RETURNING port, token, is_public",
        )
        .bind(id)
        .bind(port)
        .bind(token)
        .bind(is_public)
        .fetch_optional(write.on())
        .await?;
        self.commit(write).await?;
        Ok(open)
    }

    /// Lets a port of VM `id` be seen no more, durably. Whether it could be.
    pub(crate) async fn close_port(&self, id: &str, port: u16) -> Result<bool, DbError> {
        let mut write = self.begin_durably().await?;
        let closed = sqlx::query("DELETE FROM ports WHERE vm = ? AND port = ?").bind(id).bind(port);
        let closed = closed.execute(write.on()).await?.rows_affected() > 0;
        self.commit(write).await?;
        Ok(closed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::vm;
    use super::*;

    #[tokio::test]
    async fn a_port_keeps_its_token_until_it_is_closed_and_goes_with_its_vm() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("db"), "owner", None).await.unwrap();
        db.insert_vms(|_| (vec![vm("a"), vm("b")], ())).await.unwrap();
        let open = |token: &str, is_public| Some(OpenPort { port: 80, token: token.to_owned(), is_public });
        let id = "id of a";

        assert_eq!(db.open_port(id, 80, "t", None).await.unwrap(), open("t", false));
        assert_eq!(db.open_port(id, 80, "u", Some(true)).await.unwrap(), open("t", true));
        assert_eq!(db.open_port(id, 80, "v", None).await.unwrap(), open("t", true));
        assert_eq!(db.port("a", 80).await.unwrap(), Some((id.to_owned(), open("t", true))));
        assert_eq!(db.port("a", 81).await.unwrap(), Some((id.to_owned(), None)));
        assert_eq!(db.port("b", 80).await.unwrap(), Some(("id of b".to_owned(), None)));
        assert_eq!(db.port("c", 80).await.unwrap(), None);
        assert_eq!(db.open_port("id of c", 80, "t", None).await.unwrap(), None);

        assert!(db.close_port(id, 80).await.unwrap());
        assert!(!db.close_port(id, 80).await.unwrap());
        assert_eq!(db.open_port(id, 80, "w", None).await.unwrap(), open("w", false));
        db.remove_vm(id, 1, "a").await.unwrap();
        assert_eq!(db.ports(id).await.unwrap(), []);
    }
}
