//! What was set, as text. What it means is said in `crate::settings`.

use super::{Db, DbError};

impl Db {
    /// Every setting that was set: its name and its value.
    pub(crate) async fn settings(&self) -> Result<Vec<(String, String)>, DbError> {
        Ok(sqlx::query_as("SELECT key, value FROM settings ORDER BY key").fetch_all(&self.read).await?)
    }

    /// Sets `key`, or forgets that it was set, so that a power failure does not undo it.
    pub(crate) async fn set(&self, key: &str, value: Option<&str>) -> Result<(), DbError> {
        let mut write = self.begin_durably().await?;
        match value {
            Some(value) => {
                sqlx::query("INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)").bind(key).bind(value)
            }
            None => sqlx::query("DELETE FROM settings WHERE key = ?").bind(key),
        }
        .execute(write.on())
        .await?;
        self.commit(write).await
    }
}
