//! From an older schema to this build's, step by step.

use super::DbError;
use sqlx::SqlitePool;

/// What each version has that the one before had not, oldest first. Each ends by saying which version it is. One that a
/// daemon may have run is never changed.
const STEPS: [&str; 9] = [
    include_str!("schema/1-vms.sql"),
    include_str!("schema/2-checkpoints.sql"),
    include_str!("schema/3-sleep.sql"),
    include_str!("schema/4-settings.sql"),
    include_str!("schema/5-woken.sql"),
    include_str!("schema/6-hashed.sql"),
    include_str!("schema/7-ports.sql"),
    include_str!("schema/8-network.sql"),
    include_str!("schema/9-published.sql"),
];

/// The schema that this build writes and reads.
pub(super) const SCHEMA: i64 = STEPS.len() as i64;

/// The schema of a database. 0 when it is new.
pub(super) async fn version(pool: &SqlitePool) -> Result<i64, DbError> {
    Ok(sqlx::query_scalar("PRAGMA user_version").fetch_one(pool).await?)
}

/// Brings a database of schema `found` to this build's. A step is done as a whole, or not at all: wherever this is cut
/// off, the next daemon goes on from there.
pub(super) async fn migrate(pool: &SqlitePool, found: i64) -> Result<(), DbError> {
    let done = usize::try_from(found).ok().filter(|&done| done <= STEPS.len()).ok_or(DbError::Schema { found })?;
    for step in &STEPS[done..] {
        let mut transaction = pool.begin().await?;
        sqlx::raw_sql(*step).execute(&mut *transaction).await?;
        transaction.commit().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Db;
    use pando_wire::api::State;
    use std::path::Path;

    async fn open(path: &Path) -> SqlitePool {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).create_if_missing(true);
        SqlitePool::connect_with(options).await.unwrap()
    }

    #[tokio::test]
    async fn every_step_says_which_version_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let pool = open(&dir.path().join("db")).await;
        for (step, number) in STEPS.into_iter().zip(1..) {
            sqlx::raw_sql(step).execute(&pool).await.unwrap();
            assert_eq!(version(&pool).await.unwrap(), number);
        }
    }

    /// The fixture was written by the last build of schema 1: a VM that is stopped and a child of it that runs.
    #[tokio::test]
    async fn a_database_of_the_first_version_keeps_its_vms_and_gets_checkpoints() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let pool = open(&path).await;
        sqlx::raw_sql(include_str!("schema/fixture-1.sql")).execute(&pool).await.unwrap();
        assert_eq!(version(&pool).await.unwrap(), 1);
        pool.close().await;

        let db = Db::open(&path, "owner", None).await.unwrap();

        let vms = db.vms().await.unwrap();
        let told: Vec<_> = vms.iter().map(|vm| (vm.name.as_str(), vm.state, vm.epoch)).collect();
        assert_eq!(told, [("base", State::Stopped, 4), ("child", State::Running, 3)]);
        assert_eq!(vms[1].env, [("A".to_owned(), "1".to_owned())].into());
        assert_eq!(db.layers("c").await.unwrap(), ["b", "c"]);
        assert_eq!(db.events(0, 9).await.unwrap().len(), 3);
        assert_eq!(db.images().await.unwrap().len(), 1);
        assert_eq!(db.checkpoints().await.unwrap(), []);
        assert_eq!(db.settings().await.unwrap(), []);
        assert_eq!(vms[1].idle_timeout_ms, None);
        assert_eq!(db.port("child", 80).await.unwrap(), Some(("c".to_owned(), None)));
        assert_eq!(db.published("c").await.unwrap(), []);
        assert_eq!(version(&db.read).await.unwrap(), SCHEMA);
    }

    /// Until schema 5, what a VM had been woken from was called like its layer.
    #[tokio::test]
    async fn what_the_store_has_of_vms_that_slept_in_an_earlier_version_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let pool = open(&path).await;
        for step in &STEPS[..4] {
            sqlx::raw_sql(*step).execute(&pool).await.unwrap();
        }
        let rows = [
            ("asleep", "'hibernated', 's', 's'"),
            ("waking", "'starting', 's', 's'"),
            ("awake", "'running', 's', NULL"),
            ("falling", "'running', 's', 't'"),
            ("never", "'running', NULL, 't'"),
        ];
        for (name, rest) in rows {
            let insert = format!(
                "INSERT INTO vms (id, name, generation, image, cpus, memory_bytes, command, env, created_ms, owner, epoch, \
                 state, layer, sleep) VALUES ('{name}', '{name}', 0, 'd', 1, 1, '[]', '{{}}', 7, 'owner', 1, {rest})"
            );
            sqlx::raw_sql(sqlx::AssertSqlSafe(insert)).execute(&pool).await.unwrap();
        }
        pool.close().await;

        let db = Db::open(&path, "owner", None).await.unwrap();

        for (name, layer, woken, is_to_wake) in [
            ("asleep", "s", None, false),
            ("waking", "s", None, true),
            ("awake", "s", Some("s"), false),
            ("falling", "s", Some("s"), false),
            ("never", "never", None, false),
        ] {
            let vm = db.vm(name).await.unwrap().unwrap();
            assert_eq!((vm.layer(), vm.woken.as_deref(), vm.is_to_wake()), (layer, woken, is_to_wake), "{name}");
        }
    }

    #[tokio::test]
    async fn a_step_that_fails_leaves_the_version_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let pool = open(&path).await;
        sqlx::raw_sql(STEPS[0]).execute(&pool).await.unwrap();
        // In the way of the last statement but one.
        sqlx::raw_sql("CREATE TABLE blocker (x); CREATE INDEX seed_layers_by_layer ON blocker (x)")
            .execute(&pool)
            .await
            .unwrap();
        assert!(migrate(&pool, 1).await.is_err());
        assert_eq!(version(&pool).await.unwrap(), 1);
        sqlx::raw_sql("DROP TABLE blocker").execute(&pool).await.unwrap();
        migrate(&pool, 1).await.unwrap();
        assert_eq!(version(&pool).await.unwrap(), SCHEMA);
    }
}
