//! Layers of disks: kept for as long as a VM or a seed needs them.

use super::{Db, DbError, Write};

impl Db {
    /// The ids of the VMs whose layers the disk of VM `id` has, oldest first, its own last.
    pub(crate) async fn layers(&self, id: &str) -> Result<Vec<String>, DbError> {
        Ok(sqlx::query_scalar("SELECT layer FROM layers WHERE vm = ? ORDER BY position")
            .bind(id)
            .fetch_all(&self.read)
            .await?)
    }

    /// The same for the seed of checkpoint `id`, which has none of its own. Empty when the seed is gone.
    pub(crate) async fn seed_layers(&self, id: &str) -> Result<Vec<String>, DbError> {
        Ok(sqlx::query_scalar("SELECT layer FROM seed_layers WHERE checkpoint = ? ORDER BY position")
            .bind(id)
            .fetch_all(&self.read)
            .await?)
    }

    /// Whether somebody else than VM `id` needs its `layer`, or reads it: a child that pulls its disk does so until it runs.
    pub(crate) async fn is_shared(&self, layer: &str, id: &str) -> Result<bool, DbError> {
        Ok(sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM layers WHERE layer = ?1 AND vm <> ?2) \
             OR EXISTS (SELECT 1 FROM seed_layers WHERE layer = ?1) \
             OR EXISTS (SELECT 1 FROM vms WHERE parent = ?2 AND state = 'starting')",
        )
        .bind(layer)
        .bind(id)
        .fetch_one(&self.read)
        .await?)
    }

    /// Every layer that somebody needs.
    pub(crate) async fn all_layers(&self) -> Result<Vec<String>, DbError> {
        Ok(sqlx::query_scalar("SELECT layer FROM layers UNION SELECT layer FROM seed_layers")
            .fetch_all(&self.read)
            .await?)
    }
}

/// Those of `layers` that nobody needs any more.
pub(super) async fn unused(write: &mut Write, layers: Vec<String>) -> Result<Vec<String>, DbError> {
    let mut unused = Vec::new();
    for layer in layers {
        let is_used: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM layers WHERE layer = ?1) OR EXISTS (SELECT 1 FROM seed_layers WHERE layer = ?1)",
        )
        .bind(&layer)
        .fetch_one(write.on())
        .await?;
        if !is_used {
            unused.push(layer);
        }
    }
    Ok(unused)
}
