//! Creating, changing and removing VMs. Every change says which epoch of a VM it means and is lost on any other.

use super::events::{Kind, append};
use super::layers::unused;
use super::published::insert_published;
use super::record::{Row, show_network, state_name};
use super::{Db, DbError, Record, Write, owned};
use pando_wire::api::{Network, Publish, State};

/// A VM that is to exist.
#[derive(Debug)]
pub(crate) struct Insert {
    pub(crate) record: Record,
    /// The ids of the VMs whose layers its disk has below its own, oldest first.
    pub(crate) inherited: Vec<String>,
    /// Ports of the host that are ports of it.
    pub(crate) published: Vec<Publish>,
}

/// What becomes of a VM.
#[derive(Debug, Clone)]
pub(crate) enum Change<'a> {
    /// It is booted again, or woken.
    Starting,
    /// Its monitor runs, as this process.
    Monitored { pid: u32 },
    /// Its agent answered.
    Running { detail: &'a str },
    /// It stands still.
    Paused,
    /// It no longer stands still.
    Resumed,
    /// It ended. One that was to wake, and has not run yet, sleeps on.
    Stopped { ending: &'a str },
}

impl Change<'_> {
    /// Whether a VM in state `from` may change so.
    ///
    /// ```text
    /// Stopped ──► Starting ──► Running ◄──► Paused
    ///    ▲          ▲ │           │ │          │
    ///    └──────────┼─┴───────────┼─┴──────────┘
    ///            Hibernated ◄─────┘ Db::fall_asleep
    /// ```
    pub(crate) fn may_follow(&self, from: State) -> bool {
        match self {
            Self::Starting => from.is_at_rest(),
            Self::Monitored { .. } => !from.is_at_rest(),
            Self::Running { .. } => from == State::Starting,
            Self::Paused => from == State::Running,
            Self::Resumed => from == State::Paused,
            Self::Stopped { .. } => !from.is_at_rest(),
        }
    }
}

impl Db {
    /// Every VM, oldest first.
    pub(crate) async fn vms(&self) -> Result<Vec<Record>, DbError> {
        let rows: Vec<Row> = sqlx::query_as("SELECT * FROM vms ORDER BY created_ms, id").fetch_all(&self.read).await?;
        rows.into_iter().map(Record::try_from).collect()
    }

    /// The VM of this name or id.
    pub(crate) async fn vm(&self, name_or_id: &str) -> Result<Option<Record>, DbError> {
        let row: Option<Row> = sqlx::query_as("SELECT * FROM vms WHERE name = ?1 OR id = ?1")
            .bind(name_or_id)
            .fetch_optional(&self.read)
            .await?;
        row.map(Record::try_from).transpose()
    }

    /// Creates VMs, all of them or none, so that a power failure does not undo it. `choose` may ask
    /// whether a name is taken, which nobody else can change meanwhile, and says what to create.
    pub(crate) async fn insert_vms<T>(
        &self,
        choose: impl FnOnce(&dyn Fn(&str) -> bool) -> (Vec<Insert>, T),
    ) -> Result<T, DbError> {
        let mut write = self.begin_durably().await?;
        let names: Vec<String> = sqlx::query_scalar("SELECT name FROM vms").fetch_all(write.on()).await?;
        let names: std::collections::HashSet<_> = names.into_iter().collect();
        let (inserts, chosen) = choose(&|name| names.contains(name));
        for insert in &inserts {
            insert_vm(&mut write, insert).await?;
        }
        self.commit(write).await?;
        Ok(chosen)
    }

    /// Changes a VM. The answer is whether it was in a state that can change so; if not, nothing happened.
    pub(crate) async fn change(&self, id: &str, epoch: i64, change: Change<'_>) -> Result<bool, DbError> {
        let mut write = self.begin().await?;
        let row: Option<Row> = sqlx::query_as("SELECT * FROM vms WHERE id = ? AND epoch = ?")
            .bind(id)
            .bind(epoch)
            .fetch_optional(write.on())
            .await?;
        let Some(row) = row else { return Err(DbError::Stale { id: id.to_owned() }) };
        let before = Record::try_from(row)?;
        if !change.may_follow(before.state) {
            return Ok(false);
        }
        let was_to_wake = before.is_to_wake();
        let sleep = match change {
            // It is what it was woken from, from here on.
            Change::Running { .. } => None,
            Change::Starting if before.state == State::Stopped => None,
            Change::Stopped { .. } if before.state == State::Starting && !was_to_wake => None,
            _ => before.sleep,
        };
        let (state, ending, pid, event) = match change {
            Change::Starting => (State::Starting, None, None, None),
            Change::Monitored { pid } => (before.state, None, Some(pid), None),
            Change::Running { detail } => (State::Running, None, before.pid, Some((Kind::Running, detail))),
            Change::Paused => (State::Paused, None, before.pid, Some((Kind::Paused, ""))),
            Change::Resumed => (State::Running, None, before.pid, Some((Kind::Resumed, ""))),
            Change::Stopped { .. } if was_to_wake => (State::Hibernated, None, None, None),
            Change::Stopped { ending } => (State::Stopped, Some(ending), None, Some((Kind::Stopped, ending))),
        };
        sqlx::query("UPDATE vms SET state = ?, ending = ?, pid = ?, sleep = ? WHERE id = ? AND epoch = ?")
            .bind(state_name(state))
            .bind(ending)
            .bind(pid)
            .bind(sleep)
            .bind(id)
            .bind(epoch)
            .execute(write.on())
            .await?;
        if let Some((kind, detail)) = event {
            append(&mut write, id, kind, detail).await?;
        }
        self.commit(write).await?;
        Ok(true)
    }

    /// Changes what a VM's network reaches.
    pub(crate) async fn set_network(&self, id: &str, epoch: i64, network: &Network) -> Result<(), DbError> {
        let mut write = self.begin().await?;
        let changed = sqlx::query("UPDATE vms SET network = ? WHERE id = ? AND epoch = ?")
            .bind(show_network(network))
            .bind(id)
            .bind(epoch)
            .execute(write.on())
            .await?;
        owned(id, changed.rows_affected())?;
        self.commit(write).await
    }

    /// Removes a VM. The answer is the layers that nobody needs any more.
    pub(crate) async fn remove_vm(&self, id: &str, epoch: i64, name: &str) -> Result<Vec<String>, DbError> {
        let mut write = self.begin_durably().await?;
        let layers: Vec<String> =
            sqlx::query_scalar("SELECT layer FROM layers WHERE vm = ?").bind(id).fetch_all(write.on()).await?;
        let removed =
            sqlx::query("DELETE FROM vms WHERE id = ? AND epoch = ?").bind(id).bind(epoch).execute(write.on()).await?;
        owned(id, removed.rows_affected())?;
        let unused = unused(&mut write, layers).await?;
        append(&mut write, id, Kind::Removed, name).await?;
        self.commit(write).await?;
        Ok(unused)
    }

    /// Whether VM `id` ever ran. After a power failure this may not know it any more.
    pub(crate) async fn has_run(&self, id: &str) -> Result<bool, DbError> {
        Ok(sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM events WHERE vm = ? AND kind = 'running')")
            .bind(id)
            .fetch_one(&self.read)
            .await?)
    }
}

async fn insert_vm(write: &mut Write, insert: &Insert) -> Result<(), DbError> {
    let record = &insert.record;
    sqlx::query(
        "INSERT INTO vms (id, name, state, ending, pid, parent, generation, image, cpus, memory_bytes, command, \
         env, cwd, user, kernel, created_ms, owner, epoch, idle_timeout_ms, network) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&record.id)
    .bind(&record.name)
    .bind(state_name(record.state))
    .bind(&record.ending)
    .bind(record.pid)
    .bind(&record.parent)
    .bind(i64::try_from(record.generation).unwrap_or(i64::MAX))
    .bind(&record.image)
    .bind(record.cpus)
    .bind(i64::try_from(record.memory_bytes).unwrap_or(i64::MAX))
    .bind(json(&record.command))
    .bind(json(&record.env))
    .bind(&record.cwd)
    .bind(&record.user)
    .bind(&record.kernel)
    .bind(record.created_ms)
    .bind(&record.owner)
    .bind(record.epoch)
    .bind(record.idle_timeout_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX)))
    .bind(show_network(&record.network))
    .execute(write.on())
    .await?;
    for (position, layer) in insert.inherited.iter().chain([&record.id]).enumerate() {
        sqlx::query("INSERT INTO layers (vm, position, layer) VALUES (?, ?, ?)")
            .bind(&record.id)
            .bind(i64::try_from(position).unwrap_or(i64::MAX))
            .bind(layer)
            .execute(write.on())
            .await?;
    }
    insert_published(write, &record.id, &insert.published).await?;
    let detail = match &record.parent {
        Some(parent) => format!("{} from {parent}", record.name),
        None => record.name.clone(),
    };
    append(write, &record.id, Kind::Created, &detail).await
}

/// Strings and maps of strings always have a JSON form.
pub(super) fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_transition() {
        let changes = [
            Change::Starting,
            Change::Running { detail: "" },
            Change::Paused,
            Change::Resumed,
            Change::Stopped { ending: "" },
        ];
        let states = [State::Starting, State::Running, State::Paused, State::Stopped, State::Hibernated];
        let row = |state| -> String {
            changes.iter().map(|change| if change.may_follow(state) { 'x' } else { '.' }).collect()
        };
        // To:                           S R P R S
        assert_eq!(
            states.map(row),
            [
                /* Starting */ ".x..x", /* Running */ "..x.x", /* Paused */ "...xx",
                /* Stopped */ "x....", /* Hibernated */ "x...."
            ]
        );
    }
}
