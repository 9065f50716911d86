//! The databases' tables, as lists of migrations that only ever grow.

use std::time::Duration;

use super::{Connection, StoreError, audit};

/// How often a migration is tried that another node may be making at the same time.
const TRIES: usize = 5;

/// SQLite's steps: what each is for, and its statements. Never edit one that was released; add another.
const SQLITE: &[(&str, &str)] = &[
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
        "last use of keys",
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
    (
        ROOT_VERSIONS,
        "CREATE TABLE root_versions (
            version INTEGER NOT NULL PRIMARY KEY,
            retired INTEGER NOT NULL
         ) STRICT;",
    ),
];

/// The step after which the rows of the audit trail are chained.
const CHAIN: &str = "audit chain";

/// The step after which the database knows which versions of the root key are retired.
const ROOT_VERSIONS: &str = "versions of the root key";

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

/// PostgreSQL's steps. No extension, no trigger, no procedure: other databases speak this wire too.
const POSTGRES: &[(&str, &str)] = &[
    ("keys, grants, identities, audit, changes", SHARED),
    (
        ROOT_VERSIONS,
        "CREATE TABLE root_versions (
            version BIGINT NOT NULL PRIMARY KEY,
            retired BOOLEAN NOT NULL
         );",
    ),
];

/// The tables as SQLite has them, and what nodes need to share them: `state`, whose one row every writing transaction
/// locks, and `changes`, which tells each node what the others have changed.
const SHARED: &str = "CREATE TABLE keys (
        id TEXT NOT NULL PRIMARY KEY,
        account TEXT NOT NULL,
        region TEXT NOT NULL,
        created_ms BIGINT NOT NULL,
        description TEXT NOT NULL,
        enabled BOOLEAN NOT NULL,
        deletion_ms BIGINT,
        policy TEXT NOT NULL,
        spec TEXT NOT NULL,
        usage TEXT NOT NULL,
        origin TEXT NOT NULL,
        primary_region TEXT,
        rotation_days BIGINT,
        next_rotation_ms BIGINT,
        pending_days BIGINT
     );
     CREATE INDEX keys_by_place ON keys (account, region, id);
     CREATE TABLE materials (
        key_id TEXT NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
        version BIGINT NOT NULL,
        material_id BYTEA NOT NULL,
        sealed BYTEA NOT NULL,
        created_ms BIGINT NOT NULL,
        pending BOOLEAN NOT NULL,
        rotation TEXT,
        rotated_ms BIGINT,
        valid_to_ms BIGINT,
        description TEXT,
        PRIMARY KEY (key_id, version)
     );
     CREATE TABLE aliases (
        account TEXT NOT NULL,
        region TEXT NOT NULL,
        name TEXT NOT NULL,
        key_id TEXT NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
        created_ms BIGINT NOT NULL,
        updated_ms BIGINT NOT NULL,
        PRIMARY KEY (account, region, name)
     );
     CREATE INDEX aliases_by_key ON aliases (key_id);
     CREATE TABLE grants (
        id TEXT NOT NULL PRIMARY KEY,
        key_id TEXT NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
        created_ms BIGINT NOT NULL,
        terms TEXT NOT NULL
     );
     CREATE INDEX grants_by_key ON grants (key_id);
     CREATE TABLE tags (
        key_id TEXT NOT NULL PRIMARY KEY REFERENCES keys (id) ON DELETE CASCADE,
        tags TEXT NOT NULL
     );
     CREATE TABLE principals (
        access_key_id TEXT NOT NULL PRIMARY KEY,
        arn TEXT NOT NULL,
        sealed_secret BYTEA NOT NULL,
        created_ms BIGINT NOT NULL
     );
     CREATE TABLE identities (
        arn TEXT NOT NULL PRIMARY KEY,
        unique_id TEXT NOT NULL UNIQUE,
        created_ms BIGINT NOT NULL,
        profile TEXT NOT NULL
     );
     CREATE TABLE key_usage (
        key_id TEXT NOT NULL PRIMARY KEY REFERENCES keys (id) ON DELETE CASCADE,
        operation TEXT NOT NULL,
        time_ms BIGINT NOT NULL,
        event_id TEXT NOT NULL,
        request_id TEXT NOT NULL
     );
     CREATE TABLE audit (
        seq BIGINT NOT NULL PRIMARY KEY,
        time_ms BIGINT NOT NULL,
        operation TEXT NOT NULL,
        error_code TEXT,
        event TEXT NOT NULL,
        hash BYTEA,
        seal BYTEA
     );
     CREATE TABLE state (
        id BIGINT NOT NULL PRIMARY KEY,
        change_seq BIGINT NOT NULL,
        pruned_seq BIGINT NOT NULL,
        root_check BYTEA,
        usage_since_ms BIGINT NOT NULL
     );
     INSERT INTO state (id, change_seq, pruned_seq, usage_since_ms)
        VALUES (1, 0, 0, CAST(extract(epoch FROM now()) * 1000 AS BIGINT));
     CREATE TABLE changes (
        seq BIGINT NOT NULL,
        subject TEXT NOT NULL,
        node TEXT NOT NULL,
        PRIMARY KEY (seq, subject)
     );";

/// Brings a database to this program's schema.
pub(super) async fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    if !connection.is_shared() {
        let table = "CREATE TABLE IF NOT EXISTS schema_migrations (
            version INTEGER NOT NULL PRIMARY KEY,
            description TEXT NOT NULL,
            applied_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
         ) STRICT";
        return step(connection, "BEGIN IMMEDIATE", table, SQLITE).await;
    }
    let table = "CREATE TABLE IF NOT EXISTS schema_migrations (
        version BIGINT NOT NULL PRIMARY KEY,
        description TEXT NOT NULL
     )";
    // Two nodes that start at once make the same tables; one of them fails and then finds them made.
    let mut tries = 1;
    loop {
        match step(connection, "BEGIN", table, POSTGRES).await {
            Err(StoreError::Database(sqlx::Error::Database(_))) if tries < TRIES => {
                connection.rollback().await?;
                tries += 1;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            other => return other,
        }
    }
}

/// Refuses a database that would have to be brought to this program's schema first.
pub(super) async fn check(connection: &mut Connection) -> Result<(), StoreError> {
    let found = version(connection).await?;
    let known = match connection.is_shared() {
        true => POSTGRES.len(),
        false => SQLITE.len(),
    };
    let known = i64::try_from(known).unwrap_or(i64::MAX);
    match found {
        _ if found > known => Err(StoreError::NewerSchema { found, known }),
        _ if found < known => Err(StoreError::OlderSchema { found, known }),
        _ => Ok(()),
    }
}

async fn version(connection: &mut Connection) -> Result<i64, StoreError> {
    let sql = "SELECT COALESCE(MAX(version), 0) FROM schema_migrations";
    match connection.row(sql, &[]).await? {
        Some(row) => Ok(row.get(0)?),
        None => Ok(0),
    }
}

async fn step(
    connection: &mut Connection,
    begin: &str,
    table: &str,
    migrations: &[(&str, &str)],
) -> Result<(), StoreError> {
    connection.script(table).await?;
    connection.script(begin).await?;
    let found = version(connection).await?;
    let known = i64::try_from(migrations.len()).unwrap_or(i64::MAX);
    if found > known {
        connection.rollback().await?;
        return Err(StoreError::NewerSchema { found, known });
    }
    for (version, (description, statements)) in (1_i64..).zip(migrations) {
        if version <= found {
            continue;
        }
        connection.script(statements).await?;
        if *description == CHAIN {
            audit::adopt(connection).await?;
        }
        let sql = "INSERT INTO schema_migrations (version, description) VALUES ($1, $2)";
        let values = [version.into(), (*description).into()];
        connection.execute(sql, &values).await?;
    }
    connection.commit().await
}
