//! VMs that fall asleep.

use super::events::{Kind, append};
use super::layers::unused;
use super::record::state_name;
use super::{Db, DbError};
use pando_wire::api::State;
use std::collections::BTreeSet;

impl Db {
    /// Writes down what the store is going to call VM `id` as it sleeps, or that it is not going to.
    pub(crate) async fn intend_sleep(&self, id: &str, epoch: i64, sleep: Option<&str>) -> Result<(), DbError> {
        let mut write = self.begin().await?;
        let changed = sqlx::query("UPDATE vms SET sleep = ? WHERE id = ? AND epoch = ?")
            .bind(sleep)
            .bind(id)
            .bind(epoch)
            .execute(write.on())
            .await?;
        if changed.rows_affected() == 0 {
            return Err(DbError::Stale { id: id.to_owned() });
        }
        self.commit(write).await
    }

    /// Writes down that VM `id`, which runs, sleeps in the store as `sleep`, so that a power failure does not undo it. When
    /// it wakes it has one layer, of that name. The answer is the layers that nobody needs any more, or `None` if it does
    /// not run, and then nothing happened. `detail` is the event's.
    pub(crate) async fn fall_asleep(
        &self,
        id: &str,
        epoch: i64,
        sleep: &str,
        detail: &str,
    ) -> Result<Option<Vec<String>>, DbError> {
        let mut write = self.begin_durably().await?;
        let changed = sqlx::query(
            "UPDATE vms SET state = ?1, pid = NULL, layer = ?2, sleep = ?2 WHERE id = ?3 AND epoch = ?4 AND state = ?5",
        )
        .bind(state_name(State::Hibernated))
        .bind(sleep)
        .bind(id)
        .bind(epoch)
        .bind(state_name(State::Running))
        .execute(write.on())
        .await?;
        if changed.rows_affected() == 0 {
            return Ok(None);
        }
        let layers: Vec<String> = sqlx::query_scalar("DELETE FROM layers WHERE vm = ? RETURNING layer")
            .bind(id)
            .fetch_all(write.on())
            .await?;
        sqlx::query("INSERT INTO layers (vm, position, layer) VALUES (?, 0, ?)")
            .bind(id)
            .bind(sleep)
            .execute(write.on())
            .await?;
        let unused = unused(&mut write, layers).await?;
        append(&mut write, id, Kind::Hibernated, detail).await?;
        self.commit(write).await?;
        Ok(Some(unused))
    }

    /// What the store may have of VMs: as they sleep, are to sleep, or were woken.
    pub(crate) async fn sleeps(&self) -> Result<BTreeSet<String>, DbError> {
        let vms = self.vms().await?;
        Ok(vms.into_iter().flat_map(|vm| vm.sleep.into_iter().chain(vm.layer)).collect())
    }
}
