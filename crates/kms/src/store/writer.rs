//! The writer: one task that gathers what is to be stored into transactions.
//!
//! A transaction whose `COMMIT` was not answered may have been made durable or not. The hash of the last audit row that
//! it would make names it: the next transaction, which has to wait until that one is over, first looks whether
//! the chain holds this head. So nothing is told to be stored that is not, and nothing is stored twice.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::audit::{self, Head};
use super::database::{Access, Connection, Location};
use super::health::Health;
use super::{
    AuditRow, BATCH, Change, GATHER, Late, Message, PATIENCE, PAUSE, QUEUE, Sealer, StoreError,
    apply,
};
use crate::error::Chain;

/// How often it is tried whether the database can be written again.
const PROBE: Duration = Duration::from_secs(1);

/// So many changes are kept for the other nodes. One that missed more reads everything again.
const KEEP_CHANGES: i64 = 10_000;

/// After so many changes old ones are removed.
const PRUNE_EVERY: i64 = 1_000;

/// A tool may hold a file's lock for a while: more than SQLite itself waits for it.
const PATIENCE_WITH_A_FILE: Duration = Duration::from_secs(15);

/// How long closing may take, which copies the log into the file.
const CLOSE: Duration = Duration::from_secs(5);

/// How often a file is tried: the second time tells what became of the first.
const TRIES_OF_A_FILE: usize = 2;

/// What became of one message: the keys that it touched, or why it was refused while others were not.
type Outcome = Result<Vec<String>, Refusal>;

/// Why a change was undone on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Conflict,
    Missing,
    Raced,
    Unfit,
    RetiredRoot(u32),
}

impl From<Refusal> for StoreError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Conflict => Self::Conflict,
            Refusal::Missing => Self::Missing,
            Refusal::Raced => Self::Raced,
            Refusal::Unfit => Self::Unfit,
            Refusal::RetiredRoot(version) => Self::RetiredRoot(version),
        }
    }
}

/// A transaction of which it is not known whether it was made durable.
struct Doubt {
    head: Head,
    outcomes: Vec<Outcome>,
    /// Those rows that are owed, or will be if it was not.
    owed: usize,
    /// Whether those who wait for it still do.
    awaited: bool,
}

/// What a transaction's end says of the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outlook {
    Fair,
    Hangs,
}

/// What the writer's task has.
pub(super) struct Writing {
    location: Location,
    connection: Option<Connection>,
    health: Arc<Health>,
    sealer: Sealer,
    /// Where memory finds what it was not told.
    late: Arc<Late>,
    /// Names this process among those that share the database.
    node: String,
    /// Audit rows of calls that were answered before their transaction failed.
    owed: Vec<AuditRow>,
    doubt: Option<Doubt>,
}

impl Writing {
    pub(super) fn new(
        location: Location,
        connection: Connection,
        health: Arc<Health>,
        (sealer, late): (Sealer, Arc<Late>),
        node: String,
    ) -> Self {
        Self {
            location,
            connection: Some(connection),
            health,
            sealer,
            late,
            node,
            owed: Vec::new(),
            doubt: None,
        }
    }
}

/// Writes until every handle of the store is gone.
pub(super) async fn write_all(
    mut writing: Writing,
    mut messages: mpsc::Receiver<Message>,
    waited_for: Arc<Notify>,
) {
    loop {
        let next = match writing.health.is_writable() && writing.owed.is_empty() {
            true => next_batch(&mut messages, &waited_for).await,
            // Nobody may call while we are unhealthy, so we find out ourselves when we no longer are.
            false => tokio::time::timeout(PROBE, next_batch(&mut messages, &waited_for))
                .await
                .unwrap_or_else(|_| Some(Vec::new())),
        };
        match next {
            Some(batch) => {
                if writing.write_batch(batch).await == Outlook::Hangs {
                    writing.refuse_all(&mut messages);
                }
            }
            None => break,
        }
    }
    if !writing.owed.is_empty() {
        writing.write_batch(Vec::new()).await;
        writing.give_up(0);
    }
    let Some(connection) = writing.connection.take() else {
        return;
    };
    let closed = tokio::select! {
        closed = connection.close() => closed,
        () = writing.health.until(Instant::now() + CLOSE) => Err(StoreError::Slow),
    };
    if let Err(error) = closed {
        tracing::error!(error = %Chain(&error), "closing the database failed");
    }
}

/// Waits for work, then takes what else is there. Audit rows that nobody waits for stay in the queue for a while, so that one
/// of them does not wake this task for itself; whoever waits calls it at once.
async fn next_batch(
    messages: &mut mpsc::Receiver<Message>,
    waited_for: &Notify,
) -> Option<Vec<Message>> {
    let first = messages.recv().await?;
    if matches!(first, Message::Record(_, None)) {
        let _either = tokio::time::timeout(GATHER, waited_for.notified()).await;
    }
    let mut batch = vec![first];
    while batch.len() < BATCH
        && let Ok(next) = messages.try_recv()
    {
        batch.push(next);
    }
    Some(batch)
}

impl Writing {
    /// Commits a batch, in the order in which it came, and answers those who wait.
    ///
    /// A change that conflicts is undone on its own. If the transaction as a whole fails, everyone who waits is told
    /// so; audit rows that nobody waits for go into the next transaction.
    async fn write_batch(&mut self, batch: Vec<Message>) -> Outlook {
        self.health.begin();
        let result = self.write_patiently(&batch).await;
        self.health.end(result.is_ok());
        let hangs = matches!(result, Err(StoreError::Slow));
        match result {
            Ok(outcomes) => {
                self.owed.clear();
                for (message, outcome) in batch.into_iter().zip(outcomes) {
                    message.answer(outcome.map_err(StoreError::from));
                }
            }
            Err(error) => {
                tracing::error!(error = %Chain(&error), "a transaction failed");
                self.refuse(batch, &error);
            }
        }
        match hangs && !self.is_shared() {
            true => Outlook::Hangs,
            false => Outlook::Fair,
        }
    }

    /// Tells those who wait; audit rows that nobody waits for go into the next transaction.
    fn refuse(&mut self, batch: impl IntoIterator<Item = Message>, error: &StoreError) {
        for message in batch {
            match message {
                Message::Record(row, None) => self.owed.push(row),
                other => other.answer(Err(error.told())),
            }
        }
        self.give_up(QUEUE);
    }

    /// Who has queued up behind a transaction that hung would wait for the next, which is likely to hang as well.
    fn refuse_all(&mut self, messages: &mut mpsc::Receiver<Message>) {
        let waiting = std::iter::from_fn(|| messages.try_recv().ok());
        let waiting: Vec<_> = waiting.take(QUEUE).collect();
        self.refuse(waiting, &StoreError::Slow);
    }

    fn is_shared(&self) -> bool {
        matches!(self.location, Location::Postgres(_))
    }

    /// Tries until the transaction is durable or certainly is not, or the patience of those who wait is at its end.
    async fn write_patiently(&mut self, batch: &[Message]) -> Result<Vec<Outcome>, StoreError> {
        let shared = self.is_shared();
        // What hung a moment ago is not waited for as long again.
        let patience = match shared || !self.health.is_writable() {
            true => PATIENCE,
            false => PATIENCE_WITH_A_FILE,
        };
        let deadline = Instant::now() + patience;
        let mut over = std::pin::pin!(self.health.until(deadline));
        if let Some(earlier) = &mut self.doubt {
            earlier.awaited = false;
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let error = tokio::select! {
                biased;
                () = &mut over => return Err(StoreError::Slow),
                written = self.attempt(batch) => match written {
                    Ok(outcomes) => return Ok(outcomes),
                    Err(error) => error,
                },
            };
            let again = match shared {
                true => error.is_passing() && Instant::now() < deadline,
                false => self.doubt.is_some() && tries < TRIES_OF_A_FILE,
            };
            if !again {
                return Err(error);
            }
            tracing::warn!(error = %Chain(&error), "a transaction is tried again");
            if shared {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// One try. A connection on which anything fails is given up: with it goes its transaction.
    async fn attempt(&mut self, batch: &[Message]) -> Result<Vec<Outcome>, StoreError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.location.connect(Access::Write).await?,
        };
        connection.begin().await?;
        if let Some(earlier) = &self.doubt {
            let durable = audit::holds(&mut connection, &earlier.head).await?;
            if let Some(earlier) = self.doubt.take().filter(|_| durable) {
                if earlier.awaited {
                    connection.rollback().await?;
                    self.connection = Some(connection);
                    return Ok(earlier.outcomes);
                }
                self.owed.drain(..earlier.owed.min(self.owed.len()));
                if !connection.is_shared() {
                    // With other nodes memory asks for news itself.
                    self.late
                        .add(earlier.outcomes.into_iter().flatten().flatten());
                }
            }
        }
        let (head, outcomes) = self.fill(&mut connection, batch).await?;
        let queued = |message: &&Message| matches!(message, Message::Record(_, None));
        self.doubt = Some(Doubt {
            head,
            outcomes,
            owed: self.owed.len() + batch.iter().filter(queued).count(),
            awaited: true,
        });
        if let Err(error) = connection.commit().await {
            if error.is_certain() {
                self.doubt = None;
            }
            return Err(error);
        }
        self.connection = Some(connection);
        Ok(self
            .doubt
            .take()
            .map(|doubt| doubt.outcomes)
            .unwrap_or_default())
    }

    /// Puts a batch into a transaction; the head that the audit trail then has.
    async fn fill(
        &self,
        connection: &mut Connection,
        batch: &[Message],
    ) -> Result<(Head, Vec<Outcome>), StoreError> {
        let ground = audit::ground(connection).await?;
        let mut head = ground.head;
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut rows: Vec<&AuditRow> = self.owed.iter().collect();
        let mut log = ChangeLog::default();
        if batch.is_empty() && !connection.is_shared() {
            // A probe must write: what is full or read-only can still be read.
            let sql = "UPDATE schema_migrations SET description = description WHERE version = 1";
            connection.execute(sql, &[]).await?;
        }
        for message in batch {
            let outcome = match message {
                Message::Record(row, _) => {
                    rows.push(row);
                    Ok(Vec::new())
                }
                Message::Flush(_) => Ok(Vec::new()),
                Message::Change {
                    changes,
                    audit,
                    base,
                    ..
                } => {
                    audit::insert(connection, &mut head, &std::mem::take(&mut rows)).await?;
                    self.change_once(connection, &mut head, (changes, audit), *base)
                        .await?
                }
            };
            log.touched.extend(outcome.iter().flatten().cloned());
            outcomes.push(outcome);
        }
        audit::insert(connection, &mut head, &rows).await?;
        if let Some(root) = self.sealer.get()
            && head != ground.head
        {
            audit::seal(connection, &ground, &head, root).await?;
        }
        log.write(connection, &self.node).await?;
        Ok((head, outcomes))
    }

    /// Makes one message's changes and its audit row, or none. The outer error is the transaction's, the inner the change's.
    async fn change_once(
        &self,
        connection: &mut Connection,
        head: &mut Head,
        (changes, audit): (&[Change], &AuditRow),
        base: Option<i64>,
    ) -> Result<Outcome, StoreError> {
        connection.script("SAVEPOINT change").await?;
        let refusal = match apply::apply_all(connection, changes).await {
            Ok(touched) if self.lost_race(connection, &touched, base).await? => Refusal::Raced,
            Ok(touched) => {
                audit::insert(connection, head, &[audit]).await?;
                connection.script("RELEASE SAVEPOINT change").await?;
                return Ok(Ok(touched));
            }
            Err(StoreError::Conflict) => Refusal::Conflict,
            Err(StoreError::Missing) => Refusal::Missing,
            Err(StoreError::RetiredRoot(version)) => Refusal::RetiredRoot(version),
            Err(error) if error.is_about_a_value() => Refusal::Unfit,
            Err(error) => return Err(error),
        };
        let undo = "ROLLBACK TO SAVEPOINT change; RELEASE SAVEPOINT change";
        connection.script(undo).await?;
        Ok(Err(refusal))
    }

    /// Whether another node changed one of these keys, or one of their family, after the state that a change was
    /// computed from.
    async fn lost_race(
        &self,
        connection: &mut Connection,
        touched: &[String],
        base: Option<i64>,
    ) -> Result<bool, StoreError> {
        let Some(base) = base.filter(|_| connection.is_shared()) else {
            return Ok(false);
        };
        let sql = "SELECT id FROM state WHERE id = 1 AND pruned_seq > $1";
        if connection.row(sql, &[base.into()]).await?.is_some() {
            return Ok(true);
        }
        let sql = "SELECT DISTINCT subject FROM changes WHERE seq > $1 AND node <> $2";
        let values = [base.into(), (&self.node).into()];
        for row in connection.rows(sql, &values).await? {
            let subject: String = row.get(0)?;
            let same = |own: &String| apply::family(own) == apply::family(&subject);
            if touched.iter().any(same) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Audit rows beyond so many can only be told to the log.
    fn give_up(&mut self, keep: usize) {
        let lost = self.owed.len().saturating_sub(keep);
        if lost == 0 {
            return;
        }
        if let Some(doubt) = &mut self.doubt {
            doubt.owed = doubt.owed.saturating_sub(lost);
        }
        tracing::error!(rows = lost, "audit rows could not be stored, they follow");
        for row in self.owed.drain(..lost) {
            tracing::error!(event = %row.event, "audit");
        }
    }
}

/// What a transaction changes, for the other nodes. With a file there are none.
#[derive(Default)]
struct ChangeLog {
    touched: std::collections::BTreeSet<String>,
}

impl ChangeLog {
    async fn write(&self, connection: &mut Connection, node: &str) -> Result<(), StoreError> {
        if self.touched.is_empty() || !connection.is_shared() {
            return Ok(());
        }
        let sql = "UPDATE state SET change_seq = change_seq + 1 WHERE id = 1 RETURNING change_seq";
        let row = connection.row(sql, &[]).await?.ok_or(StoreError::Missing)?;
        let seq: i64 = row.get(0)?;
        for subject in &self.touched {
            let sql = "INSERT INTO changes (seq, subject, node) VALUES ($1, $2, $3)";
            let values = [seq.into(), subject.into(), node.into()];
            connection.execute(sql, &values).await?;
        }
        if seq % PRUNE_EVERY == 0 {
            let kept_after = [(seq - KEEP_CHANGES).max(0).into()];
            let sql = "DELETE FROM changes WHERE seq <= $1";
            connection.execute(sql, &kept_after).await?;
            let sql = "UPDATE state SET pruned_seq = $1 WHERE id = 1";
            connection.execute(sql, &kept_after).await?;
        }
        Ok(())
    }
}

impl Message {
    /// Tells whoever waits. A handler that went away does not undo what is durable.
    fn answer(self, outcome: Result<Vec<String>, StoreError>) {
        let waiting = match self {
            Self::Change { done, .. } | Self::Record(_, Some(done)) | Self::Flush(done) => done,
            Self::Record(_, None) => return,
        };
        let _gone = waiting.send(outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    /// A writer whose callers were told that a transaction failed, and that transaction, which the disk still holds up.
    async fn stalled(directory: &std::path::Path) -> (Writing, Connection) {
        let (store, writer) = Store::open(directory).await.unwrap();
        drop(store);
        writer.await.unwrap();
        let location = Location::from(directory);
        let mut stalled = location.connect(Access::Write).await.unwrap();
        stalled.begin().await.unwrap();
        let mut head = audit::head(&mut stalled).await.unwrap();
        let row = AuditRow {
            time_ms: 1,
            operation: "RevokeGrant".to_owned(),
            error_code: None,
            event: "{}".to_owned(),
            used: None,
        };
        audit::insert(&mut stalled, &mut head, &[&row])
            .await
            .unwrap();
        let connection = location.connect(Access::Write).await.unwrap();
        let health = Arc::new(Health::default());
        health.end(false);
        let mut writing = Writing::new(
            location,
            connection,
            health,
            (Sealer::default(), Arc::default()),
            "node".to_owned(),
        );
        writing.doubt = Some(Doubt {
            head,
            outcomes: vec![Ok(vec!["key#grant".to_owned()]), Err(Refusal::Missing)],
            owed: 0,
            awaited: true,
        });
        (writing, stalled)
    }

    #[tokio::test]
    async fn what_a_commit_that_came_late_touched_is_left_to_memory() {
        let directory = tempfile::tempdir().unwrap();
        let (mut writing, mut stalled) = stalled(directory.path()).await;
        stalled.commit().await.unwrap();
        writing.write_batch(Vec::new()).await;
        assert!(writing.health.is_good() && writing.doubt.is_none());
        let late = Arc::clone(&writing.late);
        assert!(late.is_any());
        let touched: Vec<_> = late.take().into_iter().collect();
        assert_eq!(touched, ["key#grant"]);
        assert!(late.is_any(), "until it was read");
        late.settle();
        assert!(!late.is_any());
    }

    #[tokio::test]
    async fn a_commit_that_never_came_leaves_nothing_to_memory() {
        let directory = tempfile::tempdir().unwrap();
        let (mut writing, mut stalled) = stalled(directory.path()).await;
        stalled.rollback().await.unwrap();
        writing.write_batch(Vec::new()).await;
        assert!(writing.health.is_good() && writing.doubt.is_none());
        assert!(!writing.late.is_any());
    }
}
