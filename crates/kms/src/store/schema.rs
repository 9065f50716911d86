//! The database's tables, as a list of migrations that only ever grows.

use sqlx::{Connection as _, Executor as _, Row as _, SqliteConnection};

use super::{StoreError, audit};

/// Each step: what it is for, and its statements. Never edit one that was released; add another.
const MIGRATIONS: &[(&str, &str)] = &[
    ("keys, aliases, principals, audit", FIRST),
    (
        "grants",
        "CREATE TABLE grants (
            id TEXT NOT NULL PRIMARY KEY,
            key_id TEXT NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
            created_ms INTEGER NOT NULL,
            terms TEXT NOT NULL
         ) STRICT;
         CREATE INDEX grants_by_key ON grants (key_id);",
    ),
    (
        "tags",
        "CREATE TABLE tags (
            key_id TEXT NOT NULL PRIMARY KEY REFERENCES keys (id) ON DELETE CASCADE,
            tags TEXT NOT NULL
         ) STRICT;",
    ),
    // A deleted or expired material stays as a row whose `sealed` is empty: it may be imported again.
    (
        "kinds of keys, rotation, import, regions",
        "ALTER TABLE keys ADD COLUMN spec TEXT NOT NULL DEFAULT 'SYMMETRIC_DEFAULT';
         ALTER TABLE keys ADD COLUMN usage TEXT NOT NULL DEFAULT 'ENCRYPT_DECRYPT';
         ALTER TABLE keys ADD COLUMN origin TEXT NOT NULL DEFAULT 'AWS_KMS';
         ALTER TABLE keys ADD COLUMN primary_region TEXT;
         ALTER TABLE keys ADD COLUMN rotation_days INTEGER;
         ALTER TABLE keys ADD COLUMN next_rotation_ms INTEGER;
         ALTER TABLE keys ADD COLUMN pending_days INTEGER;
         ALTER TABLE materials ADD COLUMN pending INTEGER NOT NULL DEFAULT 0;
         ALTER TABLE materials ADD COLUMN rotation TEXT;
         ALTER TABLE materials ADD COLUMN rotated_ms INTEGER;
         ALTER TABLE materials ADD COLUMN valid_to_ms INTEGER;
         ALTER TABLE materials ADD COLUMN description TEXT;",
    ),
    (
        "identities",
        "CREATE TABLE identities (
            arn TEXT NOT NULL PRIMARY KEY,
            unique_id TEXT NOT NULL UNIQUE,
            created_ms INTEGER NOT NULL,
            profile TEXT NOT NULL
         ) STRICT;",
    ),
    (
        super::usage::MIGRATION,
        "CREATE TABLE key_usage (
            key_id TEXT NOT NULL PRIMARY KEY REFERENCES keys (id) ON DELETE CASCADE,
            operation TEXT NOT NULL,
            time_ms INTEGER NOT NULL,
            event_id TEXT NOT NULL,
            request_id TEXT NOT NULL
         ) STRICT;",
    ),
    (
        CHAIN,
        "ALTER TABLE audit ADD COLUMN hash BLOB;
         ALTER TABLE audit ADD COLUMN seal BLOB;",
    ),
];

/// The step after which the rows of the audit trail are chained.
const CHAIN: &str = "audit chain";

const FIRST: &str = "CREATE TABLE keys (
        id TEXT NOT NULL PRIMARY KEY,
        account TEXT NOT NULL,
        region TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        description TEXT NOT NULL,
        enabled INTEGER NOT NULL,
        deletion_ms INTEGER,
        policy TEXT NOT NULL
     ) STRICT;
     CREATE INDEX keys_by_place ON keys (account, region, id);
     CREATE TABLE materials (
        key_id TEXT NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
        version INTEGER NOT NULL,
        material_id BLOB NOT NULL,
        sealed BLOB NOT NULL,
        created_ms INTEGER NOT NULL,
        PRIMARY KEY (key_id, version)
     ) STRICT;
     CREATE TABLE aliases (
        account TEXT NOT NULL,
        region TEXT NOT NULL,
        name TEXT NOT NULL,
        key_id TEXT NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
        created_ms INTEGER NOT NULL,
        updated_ms INTEGER NOT NULL,
        PRIMARY KEY (account, region, name)
     ) STRICT;
     CREATE INDEX aliases_by_key ON aliases (key_id);
     CREATE TABLE principals (
        access_key_id TEXT NOT NULL PRIMARY KEY,
        arn TEXT NOT NULL,
        sealed_secret BLOB NOT NULL,
        created_ms INTEGER NOT NULL
     ) STRICT;
     CREATE TABLE audit (
        seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        time_ms INTEGER NOT NULL,
        operation TEXT NOT NULL,
        error_code TEXT,
        event TEXT NOT NULL
     ) STRICT;";

/// Brings a database to this program's schema.
pub(super) async fn migrate(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    connection
        .execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations (
                version INTEGER NOT NULL PRIMARY KEY,
                description TEXT NOT NULL,
                applied_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
             ) STRICT",
        )
        .await?;
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let row = sqlx::query("SELECT COALESCE(MAX(version), 0) FROM schema_migrations")
        .fetch_one(&mut *transaction)
        .await?;
    let found: i64 = row.try_get(0)?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(StoreError::NewerSchema { found, known });
    }
    for (version, (description, statements)) in (1_i64..).zip(MIGRATIONS) {
        if version <= found {
            continue;
        }
        transaction.execute(*statements).await?;
        if *description == CHAIN {
            audit::adopt(&mut transaction).await?;
        }
        sqlx::query("INSERT INTO schema_migrations (version, description) VALUES (?, ?)")
            .bind(version)
            .bind(*description)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(())
}
