//! What is stored about keys, for memories: of all keys when a process starts, of those that changed from then on.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use super::apply::touched_grant;
use super::database::{Access, Location, Value, close};
use super::rows::{
    ALIAS, AliasRow, GRANT, KEY, KeyRow, MATERIAL, MaterialRow, alias_row, grant_row, key_row,
    material_row,
};
use super::{Connection, GrantRow, PATIENCE, PAUSE, Store, StoreError, Tags};
use crate::error::Chain;

/// Beyond so many changed keys everything is read again.
const FEW: i64 = 500;

/// All there is about one key.
#[derive(Debug, Clone, Default)]
pub struct StoredKey {
    /// Itself and its materials, oldest first; none if it is gone.
    pub key: Option<(KeyRow, Vec<MaterialRow>)>,
    /// Aliases that point at it.
    pub aliases: Vec<AliasRow>,
    /// Its grants; left out where only some keys were read.
    pub grants: Vec<GrantRow>,
    /// Its tags.
    pub tags: Tags,
}

/// Keys as they are after a change of that number.
#[derive(Debug)]
pub struct News {
    /// Number of the last change that is in it.
    pub seq: i64,
    /// By the ids of their rows.
    pub keys: BTreeMap<String, StoredKey>,
    /// Single grants: key, id, and itself if it is not gone.
    pub grants: Vec<(String, String, Option<GrantRow>)>,
    /// Whether these are all keys there are.
    pub whole: bool,
}

impl Store {
    /// Everything, for a process that starts.
    ///
    /// # Errors
    /// If the database fails or a row is damaged.
    pub async fn everything(&self) -> Result<News, StoreError> {
        let access = self.readers.access();
        let mut connection = self.location.connect_at_the_start(access).await?;
        let news = whole(&mut connection).await?;
        connection.close().await?;
        Ok(news)
    }

    /// What looks for changes.
    pub(crate) fn watch(&self) -> Watch {
        Watch {
            location: self.location.clone(),
            connection: None,
        }
    }
}

/// A connection that looks for changes. One that fails is made anew.
#[derive(Debug)]
pub(crate) struct Watch {
    location: Location,
    connection: Option<Connection>,
}

/// What to look for.
#[derive(Debug, Clone)]
pub(crate) enum Wanted {
    /// All changes after that one, whoever made them.
    After(i64),
    /// What changes of these keys and grants have touched.
    Touched(BTreeSet<String>),
    /// Everything.
    Whole,
}

impl Watch {
    /// Looks until the database answers, for so long at most.
    pub(crate) async fn look(&mut self, wanted: &Wanted) -> Result<Option<News>, StoreError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let looked = tokio::time::timeout_at(deadline, self.try_look(wanted)).await;
            match looked {
                Ok(Err(error)) if error.is_passing() && Instant::now() < deadline => {
                    tracing::debug!(error = %Chain(&error), "looking for changes again");
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(looked) => return looked,
                Err(_) => return Err(StoreError::Slow),
            }
        }
    }

    /// Closes the connection, if one is open.
    pub(crate) async fn close(&mut self) {
        close(self.connection.take()).await;
    }

    async fn try_look(&mut self, wanted: &Wanted) -> Result<Option<News>, StoreError> {
        // Taken out, so that what is given up half-way does not leave its rest to the next.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.location.connect(Access::Read).await?,
        };
        let news = match wanted {
            Wanted::After(seq) => news(&mut connection, *seq).await?,
            Wanted::Touched(subjects) => Some(some(&mut connection, subjects).await?),
            Wanted::Whole => Some(whole(&mut connection).await?),
        };
        self.connection = Some(connection);
        Ok(news)
    }
}

/// What changed after the change of that number; nothing most of the time. One round trip if so.
async fn news(connection: &mut Connection, after: i64) -> Result<Option<News>, StoreError> {
    let sql = "SELECT change_seq FROM state WHERE id = 1";
    let row = connection.row(sql, &[]).await?.ok_or(StoreError::Missing)?;
    let newest: i64 = row.get(0)?;
    if newest == after {
        return Ok(None);
    }
    if newest < after {
        return Err(StoreError::Behind {
            found: newest,
            known: after,
        });
    }
    connection.begin_reading().await?;
    let sql = "SELECT change_seq, pruned_seq FROM state WHERE id = 1";
    let row = connection.row(sql, &[]).await?.ok_or(StoreError::Missing)?;
    let (newest, pruned): (i64, i64) = (row.get(0)?, row.get(1)?);
    let sql = "SELECT DISTINCT subject FROM changes WHERE seq > $1 LIMIT $2";
    let subjects = connection
        .rows(sql, &[after.into(), (FEW + 1).into()])
        .await?;
    let subjects: Result<BTreeSet<String>, _> = subjects.iter().map(|row| row.get(0)).collect();
    let subjects = subjects?;
    let many = i64::try_from(subjects.len()).is_ok_and(|count| count > FEW);
    let news = match after < pruned || many {
        true => read_whole(connection, newest).await?,
        false => read_some(connection, newest, &subjects).await?,
    };
    connection.commit().await?;
    Ok(Some(news))
}

/// What was touched, as it is now.
async fn some(
    connection: &mut Connection,
    subjects: &BTreeSet<String>,
) -> Result<News, StoreError> {
    connection.begin_reading().await?;
    let news = read_some(connection, 0, subjects).await?;
    connection.commit().await?;
    Ok(news)
}

async fn whole(connection: &mut Connection) -> Result<News, StoreError> {
    connection.begin_reading().await?;
    let seq = match connection.is_shared() {
        false => 0,
        true => {
            let sql = "SELECT change_seq FROM state WHERE id = 1";
            let row = connection.row(sql, &[]).await?.ok_or(StoreError::Missing)?;
            row.get(0)?
        }
    };
    let news = read_whole(connection, seq).await?;
    connection.commit().await?;
    Ok(news)
}

async fn read_whole(connection: &mut Connection, seq: i64) -> Result<News, StoreError> {
    let mut keys = BTreeMap::new();
    read(connection, None, &mut keys).await?;
    for row in connection
        .rows(&format!("SELECT {GRANT} FROM grants"), &[])
        .await?
    {
        let grant = grant_row(&row)?;
        let stored = keys.entry(grant.key_id.clone()).or_default();
        stored.grants.push(grant);
    }
    Ok(News {
        seq,
        keys,
        grants: Vec::new(),
        whole: true,
    })
}

async fn read_some(
    connection: &mut Connection,
    seq: i64,
    subjects: &BTreeSet<String>,
) -> Result<News, StoreError> {
    let (mut keys, mut grants) = (BTreeMap::new(), Vec::new());
    for subject in subjects {
        if let Some((key, id)) = touched_grant(subject) {
            let sql = format!("SELECT {GRANT} FROM grants WHERE id = $1");
            let row = connection.row(&sql, &[id.into()]).await?;
            let grant = row.as_ref().map(grant_row).transpose()?;
            grants.push((key.to_owned(), id.to_owned(), grant));
            continue;
        }
        keys.insert(subject.clone(), StoredKey::default());
        read(connection, Some(subject), &mut keys).await?;
    }
    Ok(News {
        seq,
        keys,
        grants,
        whole: false,
    })
}

/// Reads what there is about one key, or about all, but for grants.
async fn read(
    connection: &mut Connection,
    id: Option<&str>,
    keys: &mut BTreeMap<String, StoredKey>,
) -> Result<(), StoreError> {
    let values: Vec<Value<'_>> = id.into_iter().map(Value::from).collect();
    let of = |column: &str| match id {
        Some(_) => format!("WHERE {column} = $1"),
        None => String::new(),
    };
    let sql = format!("SELECT {KEY} FROM keys {}", of("id"));
    for row in connection.rows(&sql, &values).await? {
        let key = key_row(&row)?;
        let stored = keys.entry(key.id.clone()).or_default();
        stored.key = Some((key, Vec::new()));
    }
    let by_key = of("key_id");
    let sql = format!("SELECT {MATERIAL} FROM materials {by_key} ORDER BY key_id, version");
    for row in connection.rows(&sql, &values).await? {
        let material = material_row(&row)?;
        let stored = keys.entry(material.key_id.clone()).or_default();
        if let Some((_, materials)) = &mut stored.key {
            materials.push(material);
        }
    }
    let sql = format!("SELECT {ALIAS} FROM aliases {by_key}");
    for row in connection.rows(&sql, &values).await? {
        let alias = alias_row(&row)?;
        let stored = keys.entry(alias.key_id.clone()).or_default();
        stored.aliases.push(alias);
    }
    let sql = format!("SELECT key_id, tags FROM tags {by_key}");
    for row in connection.rows(&sql, &values).await? {
        let (key_id, text): (String, String) = (row.get(0)?, row.get(1)?);
        let tags =
            serde_json::from_str(&text).map_err(|error| sqlx::Error::Decode(error.into()))?;
        keys.entry(key_id).or_default().tags = tags;
    }
    Ok(())
}
