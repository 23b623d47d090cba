//! What happened, newest last. Only the last [`KEPT`] are kept.

use super::{Db, DbError, Write, now_ms};
use pando_wire::api::Event;

/// How many events are kept.
const KEPT: i64 = 10_000;

/// Something that happens to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Created,
    Running,
    Forked,
    /// A checkpoint of it was made, and is yet to be stored.
    Checkpointed,
    /// A checkpoint of it is in the store.
    Stored,
    /// A checkpoint of it could not be stored.
    Unstored,
    Paused,
    Resumed,
    /// It sleeps in the store.
    Hibernated,
    Stopped,
    Removed,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Forked => "forked",
            Self::Checkpointed => "checkpointed",
            Self::Stored => "stored",
            Self::Unstored => "unstored",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::Hibernated => "hibernated",
            Self::Stopped => "stopped",
            Self::Removed => "removed",
        }
    }
}

impl Db {
    /// At most `limit` events behind number `after`, oldest first.
    pub(crate) async fn events(&self, after: i64, limit: i64) -> Result<Vec<Event>, DbError> {
        let rows: Vec<(i64, i64, String, String, String)> =
            sqlx::query_as("SELECT seq, at_ms, vm, kind, detail FROM events WHERE seq > ? ORDER BY seq LIMIT ?")
                .bind(after)
                .bind(limit)
                .fetch_all(&self.read)
                .await?;
        let event = |(seq, at_ms, vm, kind, detail)| Event { seq, at_ms, vm, kind, detail };
        Ok(rows.into_iter().map(event).collect())
    }

    /// Writes down that `kind` happened to `vm`.
    pub(crate) async fn record(&self, vm: &str, kind: Kind, detail: &str) -> Result<(), DbError> {
        let mut write = self.begin().await?;
        append(&mut write, vm, kind, detail).await?;
        self.commit(write).await
    }
}

/// Appends an event.
pub(super) async fn append(write: &mut Write, vm: &str, kind: Kind, detail: &str) -> Result<(), DbError> {
    let inserted = sqlx::query("INSERT INTO events (at_ms, vm, kind, detail) VALUES (?, ?, ?, ?)")
        .bind(now_ms())
        .bind(vm)
        .bind(kind.name())
        .bind(detail)
        .execute(write.on())
        .await?;
    let seq = inserted.last_insert_rowid();
    sqlx::query("DELETE FROM events WHERE seq <= ?").bind(seq - KEPT).execute(write.on()).await?;
    write.newest = seq;
    Ok(())
}
