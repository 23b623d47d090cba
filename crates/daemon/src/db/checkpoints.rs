//! Checkpoints: VMs as they were at one instant. Whether one has a seed, the process table knows; whether it is stored,
//! the store does, and what is written here follows that.

use super::events::{Kind, append};
use super::layers::unused;
use super::record::{parse_network, show_network};
use super::vms::json;
use super::{Db, DbError, Write, owned};
use pando_wire::api::{CheckpointState, Network};
use serde::Deserialize;
use sqlx::FromRow;
use std::collections::{BTreeMap, HashSet};

/// What the daemon knows of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Checkpoint {
    /// Its name in the store, and where its seed's socket lies.
    pub(crate) id: String,
    pub(crate) name: String,
    /// The VM that it is of.
    pub(crate) vm: String,
    /// What that was called then.
    pub(crate) vm_name: String,
    pub(crate) state: CheckpointState,
    /// Why it is not stored.
    pub(crate) problem: Option<String>,
    /// Forks since the boot along this line, as the VM's.
    pub(crate) generation: u64,
    pub(crate) image: String,
    pub(crate) cpus: u8,
    pub(crate) memory_bytes: u64,
    pub(crate) command: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) cwd: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) kernel: Option<String>,
    /// What the network of its VMs reaches.
    pub(crate) network: Network,
    /// Its layers as the guest sees them, once it is stored.
    pub(crate) logical_bytes: Option<u64>,
    /// What it added to the store.
    pub(crate) stored_bytes: Option<u64>,
    /// What was read and hashed for that.
    pub(crate) hashed_bytes: Option<u64>,
    pub(crate) created_ms: i64,
    pub(crate) owner: String,
    pub(crate) epoch: i64,
}

/// How large a checkpoint in the store is, in bytes, where that is known: what [`Checkpoint`] has.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(crate) struct Sizes {
    pub(crate) logical_bytes: Option<u64>,
    pub(crate) stored_bytes: Option<u64>,
    pub(crate) hashed_bytes: Option<u64>,
}

/// What came of writing a checkpoint into the store.
#[derive(Debug, Clone)]
pub(crate) enum Outcome<'a> {
    /// It is tried again.
    Saving,
    /// The store has it.
    Stored(Sizes),
    /// The store does not have it.
    Failed { problem: &'a str },
}

impl Db {
    /// Every checkpoint, oldest first.
    pub(crate) async fn checkpoints(&self) -> Result<Vec<Checkpoint>, DbError> {
        let rows: Vec<Row> =
            sqlx::query_as("SELECT * FROM checkpoints ORDER BY created_ms, id").fetch_all(&self.read).await?;
        rows.into_iter().map(Checkpoint::try_from).collect()
    }

    /// The checkpoint of this name or id.
    pub(crate) async fn checkpoint(&self, name_or_id: &str) -> Result<Option<Checkpoint>, DbError> {
        let row: Option<Row> = sqlx::query_as("SELECT * FROM checkpoints WHERE name = ?1 OR id = ?1")
            .bind(name_or_id)
            .fetch_optional(&self.read)
            .await?;
        row.map(Checkpoint::try_from).transpose()
    }

    /// Creates a checkpoint whose seed reads `layers`, so that a power failure does not undo it. `choose` may ask whether
    /// a name is taken, which nobody else can change meanwhile, and says what to create, or why nothing is.
    pub(crate) async fn insert_checkpoint<E>(
        &self,
        layers: &[String],
        choose: impl FnOnce(&dyn Fn(&str) -> bool) -> Result<Checkpoint, E>,
    ) -> Result<Result<Checkpoint, E>, DbError> {
        let mut write = self.begin_durably().await?;
        let names: Vec<String> = sqlx::query_scalar("SELECT name FROM checkpoints").fetch_all(write.on()).await?;
        let names: HashSet<_> = names.into_iter().collect();
        let checkpoint = match choose(&|name| names.contains(name)) {
            Ok(checkpoint) => checkpoint,
            Err(error) => return Ok(Err(error)),
        };
        insert(&mut write, &checkpoint, layers).await?;
        self.commit(write).await?;
        Ok(Ok(checkpoint))
    }

    /// Writes down that the seed of checkpoint `id` is gone. The answer is the layers that nobody needs any more.
    pub(crate) async fn seed_is_gone(&self, id: &str, epoch: i64) -> Result<Vec<String>, DbError> {
        let mut write = self.begin_durably().await?;
        let rows: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM checkpoints WHERE id = ? AND epoch = ?")
            .bind(id)
            .bind(epoch)
            .fetch_one(write.on())
            .await?;
        owned(id, u64::try_from(rows).unwrap_or(0))?;
        let layers: Vec<String> = sqlx::query_scalar("DELETE FROM seed_layers WHERE checkpoint = ? RETURNING layer")
            .bind(id)
            .fetch_all(write.on())
            .await?;
        let unused = unused(&mut write, layers).await?;
        self.commit(write).await?;
        Ok(unused)
    }

    /// Writes down what came of storing a checkpoint.
    pub(crate) async fn checkpoint_became(&self, of: &Checkpoint, outcome: Outcome<'_>) -> Result<(), DbError> {
        let (state, problem, sizes) = match outcome {
            Outcome::Saving => (CheckpointState::Saving, None, Sizes::default()),
            Outcome::Stored(sizes) => (CheckpointState::Stored, None, sizes),
            Outcome::Failed { problem } => (CheckpointState::Failed, Some(problem), Sizes::default()),
        };
        let bytes = |size: Option<u64>| size.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
        let mut write = self.begin().await?;
        let changed = sqlx::query(
            "UPDATE checkpoints SET state = ?, problem = ?, logical_bytes = ?, stored_bytes = ?, hashed_bytes = ? \
             WHERE id = ? AND epoch = ?",
        )
        .bind(state_name(state))
        .bind(problem)
        .bind(bytes(sizes.logical_bytes))
        .bind(bytes(sizes.stored_bytes))
        .bind(bytes(sizes.hashed_bytes))
        .bind(&of.id)
        .bind(of.epoch)
        .execute(write.on())
        .await?;
        owned(&of.id, changed.rows_affected())?;
        match outcome {
            Outcome::Saving => (),
            Outcome::Stored(_) => append(&mut write, &of.vm, Kind::Stored, &of.name).await?,
            Outcome::Failed { problem } => {
                append(&mut write, &of.vm, Kind::Unstored, &format!("{}: {problem}", of.name)).await?;
            }
        }
        self.commit(write).await
    }

    /// Removes a checkpoint. The answer is the layers that nobody needs any more.
    pub(crate) async fn remove_checkpoint(&self, id: &str, epoch: i64) -> Result<Vec<String>, DbError> {
        let mut write = self.begin_durably().await?;
        let layers: Vec<String> = sqlx::query_scalar("SELECT layer FROM seed_layers WHERE checkpoint = ?")
            .bind(id)
            .fetch_all(write.on())
            .await?;
        let removed = sqlx::query("DELETE FROM checkpoints WHERE id = ? AND epoch = ?")
            .bind(id)
            .bind(epoch)
            .execute(write.on())
            .await?;
        owned(id, removed.rows_affected())?;
        let unused = unused(&mut write, layers).await?;
        self.commit(write).await?;
        Ok(unused)
    }
}

async fn insert(write: &mut Write, checkpoint: &Checkpoint, layers: &[String]) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO checkpoints (id, name, vm, vm_name, state, generation, image, cpus, memory_bytes, command, env, \
         cwd, user, kernel, network, created_ms, owner, epoch) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&checkpoint.id)
    .bind(&checkpoint.name)
    .bind(&checkpoint.vm)
    .bind(&checkpoint.vm_name)
    .bind(state_name(checkpoint.state))
    .bind(i64::try_from(checkpoint.generation).unwrap_or(i64::MAX))
    .bind(&checkpoint.image)
    .bind(checkpoint.cpus)
    .bind(i64::try_from(checkpoint.memory_bytes).unwrap_or(i64::MAX))
    .bind(json(&checkpoint.command))
    .bind(json(&checkpoint.env))
    .bind(&checkpoint.cwd)
    .bind(&checkpoint.user)
    .bind(&checkpoint.kernel)
    .bind(show_network(&checkpoint.network))
    .bind(checkpoint.created_ms)
    .bind(&checkpoint.owner)
    .bind(checkpoint.epoch)
    .execute(write.on())
    .await?;
    for (layer, position) in layers.iter().zip(0_i64..) {
        sqlx::query("INSERT INTO seed_layers (checkpoint, position, layer) VALUES (?, ?, ?)")
            .bind(&checkpoint.id)
            .bind(position)
            .bind(layer)
            .execute(write.on())
            .await?;
    }
    Ok(())
}

fn state_name(state: CheckpointState) -> &'static str {
    match state {
        CheckpointState::Saving => "saving",
        CheckpointState::Stored => "stored",
        CheckpointState::Failed => "failed",
    }
}

/// A row, before anyone believes it.
#[derive(Debug, FromRow)]
struct Row {
    id: String,
    name: String,
    vm: String,
    vm_name: String,
    state: String,
    problem: Option<String>,
    generation: i64,
    image: String,
    cpus: i64,
    memory_bytes: i64,
    command: String,
    env: String,
    cwd: Option<String>,
    user: Option<String>,
    kernel: Option<String>,
    network: Option<String>,
    logical_bytes: Option<i64>,
    stored_bytes: Option<i64>,
    hashed_bytes: Option<i64>,
    created_ms: i64,
    owner: String,
    epoch: i64,
}

impl TryFrom<Row> for Checkpoint {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        let wrong = |what: String| DbError::Row { id: row.id.clone(), what };
        let state = [CheckpointState::Saving, CheckpointState::Stored, CheckpointState::Failed]
            .into_iter()
            .find(|&state| state_name(state) == row.state)
            .ok_or_else(|| wrong(format!("state {:?}", row.state)))?;
        let positive = |value: i64, what: &str| u64::try_from(value).map_err(|_| wrong(format!("{value} {what}")));
        let optional = |value: Option<i64>| value.map(|value| positive(value, "bytes")).transpose();
        Ok(Self {
            generation: positive(row.generation, "forks")?,
            memory_bytes: positive(row.memory_bytes, "bytes of RAM")?,
            logical_bytes: optional(row.logical_bytes)?,
            stored_bytes: optional(row.stored_bytes)?,
            hashed_bytes: optional(row.hashed_bytes)?,
            cpus: u8::try_from(row.cpus).map_err(|_| wrong(format!("{} CPUs", row.cpus)))?,
            command: serde_json::from_str(&row.command).map_err(|_| wrong(format!("command {}", row.command)))?,
            env: serde_json::from_str(&row.env).map_err(|_| wrong("an environment that is no JSON".to_owned()))?,
            network: parse_network(row.network.as_deref()).map_err(|_| wrong(format!("network {:?}", row.network)))?,
            id: row.id,
            name: row.name,
            vm: row.vm,
            vm_name: row.vm_name,
            state,
            problem: row.problem,
            image: row.image,
            cwd: row.cwd,
            user: row.user,
            kernel: row.kernel,
            created_ms: row.created_ms,
            owner: row.owner,
            epoch: row.epoch,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::tests::vm;
    use pando_wire::api::NetworkMode;

    fn checkpoint(name: &str) -> Checkpoint {
        Checkpoint {
            id: format!("id of {name}"),
            name: name.to_owned(),
            vm: "id of web".into(),
            vm_name: "web".into(),
            state: CheckpointState::Saving,
            problem: None,
            generation: 3,
            image: "image".into(),
            cpus: 2,
            memory_bytes: 128 << 20,
            command: vec!["sh".into()],
            env: [("A".into(), "1".into())].into(),
            cwd: Some("/srv".into()),
            user: None,
            kernel: None,
            network: Network { mode: NetworkMode::Nat, deny: vec!["10.0.0.0/8".into()], ..Network::default() },
            logical_bytes: None,
            stored_bytes: None,
            hashed_bytes: None,
            created_ms: 7,
            owner: "owner".into(),
            epoch: 1,
        }
    }

    async fn opened() -> (tempfile::TempDir, Db) {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("db"), "owner", None).await.unwrap();
        (dir, db)
    }

    async fn insert(db: &Db, name: &str, layers: &[&str]) -> Checkpoint {
        let layers: Vec<_> = layers.iter().map(|&layer| layer.to_owned()).collect();
        let chosen = db.insert_checkpoint(&layers, |_| Ok::<_, ()>(checkpoint(name))).await.unwrap();
        chosen.unwrap()
    }

    #[tokio::test]
    async fn a_checkpoint_comes_back_as_it_was_written_and_as_it_became() {
        let (_dir, db) = opened().await;
        let written = insert(&db, "warm", &["a", "b"]).await;
        assert_eq!(db.checkpoint("warm").await.unwrap(), Some(written.clone()));
        assert_eq!(db.seed_layers(&written.id).await.unwrap(), ["a", "b"]);

        db.checkpoint_became(&written, Outcome::Failed { problem: "the disk is full" }).await.unwrap();
        let failed = db.checkpoint(&written.id).await.unwrap().unwrap();
        let problem = Some("the disk is full".to_owned());
        assert_eq!((failed.state, failed.problem), (CheckpointState::Failed, problem));
        let sizes = Sizes { logical_bytes: Some(9), stored_bytes: Some(4), hashed_bytes: Some(5) };
        db.checkpoint_became(&written, Outcome::Stored(sizes)).await.unwrap();
        let stored = db.checkpoint("warm").await.unwrap().unwrap();
        let sizes = [stored.logical_bytes, stored.stored_bytes, stored.hashed_bytes];
        assert_eq!((stored.state, stored.problem, sizes), (CheckpointState::Stored, None, [9, 4, 5].map(Some)));
    }

    #[tokio::test]
    async fn a_layer_stays_until_neither_a_vm_nor_a_seed_needs_it() {
        let (_dir, db) = opened().await;
        db.insert_vms(|_| (vec![vm("web")], ())).await.unwrap();
        insert(&db, "one", &["root", "id of web"]).await;
        insert(&db, "two", &["id of web"]).await;

        assert_eq!(db.remove_vm("id of web", 1, "web").await.unwrap(), [""; 0]);
        assert_eq!(db.all_layers().await.unwrap(), ["id of web", "root"]);
        assert_eq!(db.seed_is_gone("id of one", 1).await.unwrap(), ["root"]);
        assert_eq!(db.remove_checkpoint("id of two", 1).await.unwrap(), ["id of web"]);
        assert_eq!(db.all_layers().await.unwrap(), [""; 0]);
        assert_eq!(db.checkpoints().await.unwrap().len(), 1, "what is stored needs no layer");
    }

    #[tokio::test]
    async fn an_image_that_a_checkpoint_needs_is_kept() {
        let (_dir, db) = opened().await;
        insert(&db, "warm", &[]).await;
        assert_eq!(db.remove_image("image").await.unwrap().as_deref(), Some("warm"));
    }

    #[tokio::test]
    async fn names_of_checkpoints_are_their_own_and_a_refusal_creates_nothing() {
        let (_dir, db) = opened().await;
        db.insert_vms(|_| (vec![vm("web")], ())).await.unwrap();
        insert(&db, "warm", &[]).await;
        let asked = db.insert_checkpoint(&[], |is_taken| Err([is_taken("warm"), is_taken("web")])).await.unwrap();
        assert_eq!(asked, Err([true, false]));
        assert_eq!(db.checkpoints().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_write_by_an_owner_of_an_earlier_epoch_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let old = Db::open(&path, "old", None).await.unwrap();
        let written = insert(&old, "warm", &["a"]).await;
        let new = Db::open(&path, "new", None).await.unwrap();

        let id = &written.id;
        let is_stale = |lost: Result<(), DbError>| matches!(lost, Err(DbError::Stale { .. }));
        assert!(is_stale(old.seed_is_gone(id, 1).await.map(drop)));
        assert!(is_stale(old.checkpoint_became(&written, Outcome::Saving).await));
        assert!(is_stale(old.remove_checkpoint(id, 1).await.map(drop)));

        let kept = new.checkpoint("warm").await.unwrap().unwrap();
        assert_eq!((kept.owner.as_str(), kept.epoch), ("new", 2));
        assert_eq!(new.seed_layers(id).await.unwrap(), ["a"]);
    }
}
