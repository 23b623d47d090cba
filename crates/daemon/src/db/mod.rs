//! State that survives the daemon: SQLite, and the only file that knows it is.
//!
//! Writers take turns here instead of polling for SQLite's lock. What must survive the host (that a VM exists, which
//! layers it reads) is synced; what a reboot makes untrue anyway (that it runs) is not.

mod checkpoints; // VMs as they were at one instant
mod events; // what happened
mod images; // what VMs begin from
mod layers; // which layers are needed
mod migrate; // from an older schema to this build's
mod ports; // which ports can be seen, and by whom
mod published; // which ports of the host are theirs
mod record; // a VM, as its row says
mod settings; // what was set
mod sleep; // VMs that fall asleep
mod vms; // creating, changing and removing VMs

pub(crate) use checkpoints::{Checkpoint, Outcome, Sizes};
pub(crate) use events::Kind;
pub(crate) use ports::OpenPort;
pub(crate) use record::{Record, state_name};
pub(crate) use vms::{Change, Insert};

use migrate::{SCHEMA, migrate};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqliteConnection, SqlitePool, Transaction};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

/// How many connections read.
const READERS: u32 = 4;

/// Why the database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// SQLite says no.
    #[error("the database does not work")]
    Sqlite(#[from] sqlx::Error),
    /// It was written by a newer daemon.
    #[error("the database has schema {found}, this build reads up to {SCHEMA}")]
    Schema {
        /// Its schema.
        found: i64,
    },
    /// It is new, and the VMs or checkpoints are not.
    #[error("it is new, but {kept} holds disks of VMs or checkpoints: put their database back, or move them away")]
    Lost {
        /// Where they are.
        kept: PathBuf,
    },
    /// A row holds what this build never writes.
    #[error("the database says {what} of {id}, which cannot be")]
    Row {
        /// Whose row.
        id: String,
        /// What it says.
        what: String,
    },
    /// Another daemon owns the VM or checkpoint by now.
    #[error("{id} has another owner by now")]
    Stale {
        /// Which.
        id: String,
    },
}

/// The database.
#[derive(Debug, Clone)]
pub(crate) struct Db {
    /// One connection whose commits wait for the disk.
    durable: SqlitePool,
    /// One connection whose commits do not.
    quick: SqlitePool,
    read: SqlitePool,
    /// Held by whoever writes.
    turn: Arc<Mutex<()>>,
    owner: String,
    /// Sequence number of the newest event.
    newest: watch::Sender<i64>,
}

/// A change that found no row was made by somebody who no longer owns it.
fn owned(id: &str, rows: u64) -> Result<(), DbError> {
    if rows == 0 { Err(DbError::Stale { id: id.to_owned() }) } else { Ok(()) }
}

impl Db {
    /// Opens the database at `path`, or creates it, unless something is `kept` that it should know of. `owner` is this
    /// daemon's id; everything in it becomes this daemon's, in a new epoch.
    pub(crate) async fn open(path: &Path, owner: &str, kept: Option<PathBuf>) -> Result<Self, DbError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let durable = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
        match (migrate::version(&durable).await?, kept) {
            (0, Some(kept)) => return Err(DbError::Lost { kept }),
            (found, _) => migrate(&durable, found).await?,
        }
        for all in
            ["UPDATE vms SET owner = ?, epoch = epoch + 1", "UPDATE checkpoints SET owner = ?, epoch = epoch + 1"]
        {
            sqlx::query(all).bind(owner).execute(&durable).await?;
        }
        let newest: i64 = sqlx::query_scalar("SELECT COALESCE(MAX(seq), 0) FROM events").fetch_one(&durable).await?;
        // In WAL mode a commit is synced by `FULL` alone.
        let options = options.synchronous(SqliteSynchronous::Normal);
        let quick = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
        let read = SqlitePoolOptions::new().max_connections(READERS).connect_with(options).await?;
        let turn = Arc::new(Mutex::new(()));
        Ok(Self { durable, quick, read, turn, owner: owner.to_owned(), newest: watch::Sender::new(newest) })
    }

    /// Writes what is in it to disk and closes it.
    pub(crate) async fn close(&self) {
        self.read.close().await;
        self.quick.close().await;
        self.durable.close().await;
    }

    /// Who this daemon is.
    pub(crate) fn owner(&self) -> &str {
        &self.owner
    }

    /// Sequence number of the newest event, to wait for newer ones.
    pub(crate) fn newest(&self) -> watch::Receiver<i64> {
        self.newest.subscribe()
    }

    /// Begins to write what a reboot may undo.
    async fn begin(&self) -> Result<Write, DbError> {
        self.begin_on(&self.quick).await
    }

    /// Begins to write what must survive the host: its commit waits for the disk.
    async fn begin_durably(&self) -> Result<Write, DbError> {
        self.begin_on(&self.durable).await
    }

    async fn begin_on(&self, pool: &SqlitePool) -> Result<Write, DbError> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        // A transaction that was dropped is rolled back a moment later, on its own connection. One that read first and
        // wrote then would be told at once that the database is busy; this one waits.
        let transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
        Ok(Write { transaction, newest: 0, _turn: turn })
    }

    async fn commit(&self, write: Write) -> Result<(), DbError> {
        write.transaction.commit().await?;
        self.announce(write.newest);
        Ok(())
    }

    fn announce(&self, newest: i64) {
        self.newest.send_if_modified(|seen| {
            let is_newer = *seen < newest;
            *seen = newest.max(*seen);
            is_newer
        });
    }
}

/// A transaction. Dropped without a commit, it leaves nothing.
struct Write {
    transaction: Transaction<'static, Sqlite>, // Declared before `_turn`, so over first.
    /// Sequence number of its newest event; 0 when it has none.
    newest: i64,
    _turn: OwnedMutexGuard<()>,
}

impl Write {
    /// What to run statements on.
    fn on(&mut self) -> &mut SqliteConnection {
        &mut self.transaction
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pando_wire::api::{Network, NetworkMode, State};

    pub(super) fn vm(name: &str) -> Insert {
        let record = Record {
            id: format!("id of {name}"),
            name: name.to_owned(),
            state: State::Starting,
            ending: None,
            pid: None,
            parent: None,
            generation: 0,
            image: "image".into(),
            cpus: 1,
            memory_bytes: 128 << 20,
            command: vec!["sh".into()],
            env: [("A".into(), "1".into())].into(),
            cwd: None,
            user: None,
            kernel: None,
            created_ms: 7,
            owner: "owner".into(),
            epoch: 1,
            layer: None,
            sleep: None,
            woken: None,
            idle_timeout_ms: Some(9),
            network: Network { mode: NetworkMode::Isolated, allow: vec!["example.org".into()], ..Network::default() },
        };
        Insert { record, inherited: vec!["root".into()], published: Vec::new() }
    }

    #[tokio::test]
    async fn a_vm_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("db"), "owner", None).await.unwrap();
        db.insert_vms(|_| (vec![vm("a")], ())).await.unwrap();
        assert_eq!(db.vm("a").await.unwrap(), Some(vm("a").record));
        assert_eq!(db.layers("id of a").await.unwrap(), ["root", "id of a"]);
    }

    #[tokio::test]
    async fn a_layer_is_read_by_others_while_a_child_of_its_vm_starts() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("db"), "owner", None).await.unwrap();
        let is_shared = async || db.is_shared("id of a", "id of a").await.unwrap();
        db.insert_vms(|_| (vec![vm("a"), vm("stranger")], ())).await.unwrap();
        assert!(!is_shared().await);
        let mut child = vm("child");
        child.record.parent = Some("id of a".into());
        child.inherited.clear(); // It pulls.
        db.insert_vms(|_| (vec![child], ())).await.unwrap();
        assert!(is_shared().await);
        assert!(db.change("id of child", 1, Change::Running { detail: "forked" }).await.unwrap());
        assert!(!is_shared().await);
    }

    #[tokio::test]
    async fn a_write_by_an_owner_of_an_earlier_epoch_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let old = Db::open(&path, "old", None).await.unwrap();
        old.insert_vms(|_| (vec![vm("a")], ())).await.unwrap();
        let new = Db::open(&path, "new", None).await.unwrap();

        let lost = old.change("id of a", 1, Change::Stopped { ending: "" }).await;
        assert!(matches!(lost, Err(DbError::Stale { .. })), "{lost:?}");
        let lost = old.remove_vm("id of a", 1, "a").await;
        assert!(matches!(lost, Err(DbError::Stale { .. })), "{lost:?}");

        let record = new.vm("a").await.unwrap().unwrap();
        assert_eq!((record.state, record.owner.as_str(), record.epoch), (State::Starting, "new", 2));
        assert_eq!(new.layers("id of a").await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn all_vms_of_an_insertion_exist_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("db"), "owner", None).await.unwrap();
        assert!(db.insert_vms(|_| (vec![vm("a"), vm("b"), vm("a")], ())).await.is_err());
        assert_eq!(db.vms().await.unwrap(), []);
        // And the connection is of use again.
        db.insert_vms(|_| (vec![vm("a")], ())).await.unwrap();
    }

    #[tokio::test]
    async fn a_newer_database_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let db = Db::open(&path, "owner", None).await.unwrap();
        sqlx::raw_sql("PRAGMA user_version = 77").execute(&db.durable).await.unwrap();
        db.close().await;
        assert!(matches!(Db::open(&path, "owner", None).await, Err(DbError::Schema { found: 77 })));
    }
}
