//! Tags in the store: one row for each key that has some.

use sqlx::{Row as _, SqliteConnection};

use super::{Store, StoreError, one_row};
use crate::tags::Tags;

impl Store {
    /// The tags of all keys.
    ///
    /// # Errors
    /// If the database fails, or a row is not what this program writes.
    pub async fn tags(&self) -> Result<Vec<(String, Tags)>, StoreError> {
        let rows = sqlx::query("SELECT key_id, tags FROM tags")
            .fetch_all(&self.readers)
            .await?;
        rows.iter()
            .map(|row| {
                let text: String = row.try_get(1)?;
                let tags = serde_json::from_str(&text)
                    .map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
                Ok((row.try_get(0)?, tags))
            })
            .collect()
    }
}

pub(super) async fn set(
    connection: &mut SqliteConnection,
    key_id: &str,
    tags: &Tags,
) -> Result<(), StoreError> {
    let text = serde_json::to_string(tags).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    let query = sqlx::query(
        "INSERT INTO tags (key_id, tags) VALUES (?, ?)
         ON CONFLICT (key_id) DO UPDATE SET tags = excluded.tags",
    )
    .bind(key_id)
    .bind(text);
    one_row(query.execute(connection).await)
}
