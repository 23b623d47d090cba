//! What VMs begin from.

use super::{Db, DbError};
use pando_wire::api::Image;

impl Db {
    /// Remembers an image; that it is known already is fine.
    pub(crate) async fn insert_image(&self, image: &Image) -> Result<(), DbError> {
        let mut write = self.begin_durably().await?;
        sqlx::query("INSERT INTO images (digest, size_bytes) VALUES (?, ?) ON CONFLICT (digest) DO NOTHING")
            .bind(&image.digest)
            .bind(i64::try_from(image.size_bytes).unwrap_or(i64::MAX))
            .execute(write.on())
            .await?;
        self.commit(write).await
    }

    /// Every image, by digest.
    pub(crate) async fn images(&self) -> Result<Vec<Image>, DbError> {
        let rows: Vec<(String, i64)> =
            sqlx::query_as("SELECT digest, size_bytes FROM images ORDER BY digest").fetch_all(&self.read).await?;
        Ok(rows.into_iter().map(image).collect())
    }

    /// One image.
    pub(crate) async fn image(&self, digest: &str) -> Result<Option<Image>, DbError> {
        let row: Option<(String, i64)> = sqlx::query_as("SELECT digest, size_bytes FROM images WHERE digest = ?")
            .bind(digest)
            .fetch_optional(&self.read)
            .await?;
        Ok(row.map(image))
    }

    /// Forgets an image that nothing needs. Otherwise the answer is the name of a VM or checkpoint that does.
    pub(crate) async fn remove_image(&self, digest: &str) -> Result<Option<String>, DbError> {
        let mut write = self.begin_durably().await?;
        let user: Option<String> = sqlx::query_scalar(
            "SELECT name FROM vms WHERE image = ?1 UNION ALL SELECT name FROM checkpoints WHERE image = ?1 LIMIT 1",
        )
        .bind(digest)
        .fetch_optional(write.on())
        .await?;
        if user.is_none() {
            sqlx::query("DELETE FROM images WHERE digest = ?").bind(digest).execute(write.on()).await?;
        }
        self.commit(write).await?;
        Ok(user)
    }
}

fn image((digest, size_bytes): (String, i64)) -> Image {
    Image { digest, size_bytes: u64::try_from(size_bytes).unwrap_or(0) }
}
