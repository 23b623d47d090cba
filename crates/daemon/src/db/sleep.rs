//! VMs that fall asleep, and wake.

use super::events::{Kind, append};
use super::record::state_name;
use super::{Db, DbError, owned};
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
        owned(id, changed.rows_affected())?;
        self.commit(write).await
    }

    /// Writes down that VM `id`, which runs, sleeps in the store as `sleep`, so that a power failure does not undo it. What
    /// it was woken from before is forgotten. The answer is whether it ran; if not, nothing happened. `detail` is the
    /// event's.
    pub(crate) async fn fall_asleep(&self, id: &str, epoch: i64, sleep: &str, detail: &str) -> Result<bool, DbError> {
        let mut write = self.begin_durably().await?;
        let changed = sqlx::query(
            "UPDATE vms SET state = ?, pid = NULL, sleep = ?, woken = NULL WHERE id = ? AND epoch = ? AND state = ?",
        )
        .bind(state_name(State::Hibernated))
        .bind(sleep)
        .bind(id)
        .bind(epoch)
        .bind(state_name(State::Running))
        .execute(write.on())
        .await?;
        if changed.rows_affected() == 0 {
            return Ok(false);
        }
        append(&mut write, id, Kind::Hibernated, detail).await?;
        self.commit(write).await?;
        Ok(true)
    }

    /// Writes down that VM `id`, which is being woken, runs from now on, so that a power failure does not undo it: it is
    /// never woken from the same sleep again. The answer is whether it was being woken; if not, nothing happened.
    pub(crate) async fn leave_sleep(&self, id: &str, epoch: i64) -> Result<bool, DbError> {
        let mut write = self.begin_durably().await?;
        let changed =
            sqlx::query("UPDATE vms SET woken = sleep WHERE id = ? AND epoch = ? AND state = ? AND sleep IS NOT NULL")
                .bind(id)
                .bind(epoch)
                .bind(state_name(State::Starting))
                .execute(write.on())
                .await?;
        if changed.rows_affected() == 0 {
            return Ok(false);
        }
        self.commit(write).await?;
        Ok(true)
    }

    /// What the store may have of VMs: as they sleep, are to sleep, or were woken.
    pub(crate) async fn sleeps(&self) -> Result<BTreeSet<String>, DbError> {
        let vms = self.vms().await?;
        Ok(vms.into_iter().flat_map(|vm| vm.stored().cloned().collect::<Vec<_>>()).collect())
    }
}
