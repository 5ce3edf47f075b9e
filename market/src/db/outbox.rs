//! What is still to be projected to Redis. A row is written in the transaction that changes the entity and says only *that*
//! it changed; the projector reads the entity as it stands then, so rows may be applied twice and late, and none is a delta.

use std::fmt;

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

/// Whose outbox: each is drained by the process that writes most of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The indexer's, `chain_outbox`.
    Chain,
    /// The API's and the settler's, `work_outbox`.
    Work,
}

impl Source {
    /// Its name in Redis and in `projection_progress`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Chain => "chain",
            Self::Work => "work",
        }
    }

    /// The Postgres channel that is notified when rows were added and committed.
    #[must_use]
    pub fn channel(self) -> &'static str {
        match self {
            Self::Chain => "littoral_outbox_chain",
            Self::Work => "littoral_outbox_work",
        }
    }
}

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entity {
    /// A job, by id.
    Job(B256),
    /// A node, by the operator's address.
    Node(Address),
}

impl Entity {
    fn kind(self) -> &'static str {
        match self {
            Self::Job(_) => "job",
            Self::Node(_) => "node",
        }
    }

    fn key(&self) -> &[u8] {
        match self {
            Self::Job(id) => id.as_slice(),
            Self::Node(node) => node.as_slice(),
        }
    }

    fn read(kind: &str, key: &[u8]) -> Result<Self, sqlx::Error> {
        let wrong_length = |error| sqlx::Error::Decode(Box::new(error));
        match kind {
            "job" => B256::try_from(key).map(Self::Job).map_err(wrong_length),
            "node" => Address::try_from(key).map(Self::Node).map_err(wrong_length),
            other => Err(sqlx::Error::Decode(format!("{other:?} is not an entity of the outbox").into())),
        }
    }
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(id) => write!(f, "job {id}"),
            Self::Node(node) => write!(f, "node {node}"),
        }
    }
}

/// A row of an outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number; grows, but rows may become visible out of order.
    pub seq: i64,
    /// What changed.
    pub entity: Entity,
    /// What happened, such as `job.opened`.
    pub event: String,
    /// When.
    pub created_at: DateTime<Utc>,
}

/// Notes that `event` happened to `entity`, and wakes the projector when the caller's transaction commits.
pub async fn append(
    db: &mut PgConnection,
    source: Source,
    entity: Entity,
    event: &str,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    append_many(db, source, &[(entity, event)], now).await
}

/// As [`append`], for many at once, in their order.
pub async fn append_many(
    db: &mut PgConnection,
    source: Source,
    changes: &[(Entity, &str)],
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    if changes.is_empty() {
        return Ok(());
    }
    let kinds: Vec<String> = changes.iter().map(|(entity, _)| entity.kind().to_owned()).collect();
    let keys: Vec<Vec<u8>> = changes.iter().map(|(entity, _)| entity.key().to_vec()).collect();
    let events: Vec<String> = changes.iter().map(|(_, event)| (*event).to_owned()).collect();
    match source {
        Source::Chain => {
            sqlx::query!(
                "insert into chain_outbox (entity, key, event, created_at)
                 select c.entity, c.key, c.event, $4
                 from unnest($1::text[], $2::bytea[], $3::text[]) with ordinality as c (entity, key, event, position)
                 order by c.position",
                &kinds,
                &keys,
                &events,
                now
            )
            .execute(&mut *db)
            .await?;
        }
        Source::Work => {
            sqlx::query!(
                "insert into work_outbox (entity, key, event, created_at)
                 select c.entity, c.key, c.event, $4
                 from unnest($1::text[], $2::bytea[], $3::text[]) with ordinality as c (entity, key, event, position)
                 order by c.position",
                &kinds,
                &keys,
                &events,
                now
            )
            .execute(&mut *db)
            .await?;
        }
    }
    // One transaction's notifications of one channel are delivered as one, when it commits.
    sqlx::query!("select pg_notify($1, '')", source.channel()).execute(db).await?;
    Ok(())
}

struct Row {
    seq: i64,
    entity: String,
    key: Vec<u8>,
    event: String,
    created_at: DateTime<Utc>,
}

impl Row {
    fn entry(self) -> Result<Entry, sqlx::Error> {
        let entity = Entity::read(&self.entity, &self.key)?;
        Ok(Entry { seq: self.seq, entity, event: self.event, created_at: self.created_at })
    }
}

/// The first `limit` rows.
pub async fn next(db: &mut PgConnection, source: Source, limit: i64) -> Result<Vec<Entry>, sqlx::Error> {
    let rows = match source {
        Source::Chain => {
            sqlx::query_as!(
                Row,
                "select seq, entity, key, event, created_at from chain_outbox order by seq limit $1",
                limit
            )
            .fetch_all(db)
            .await?
        }
        Source::Work => {
            sqlx::query_as!(
                Row,
                "select seq, entity, key, event, created_at from work_outbox order by seq limit $1",
                limit
            )
            .fetch_all(db)
            .await?
        }
    };
    rows.into_iter().map(Row::entry).collect()
}

/// Those of the rows `seqs` that are there, in order.
pub async fn among(db: &mut PgConnection, source: Source, seqs: &[i64]) -> Result<Vec<Entry>, sqlx::Error> {
    let rows = match source {
        Source::Chain => {
            sqlx::query_as!(
                Row,
                "select seq, entity, key, event, created_at from chain_outbox where seq = any($1) order by seq",
                seqs
            )
            .fetch_all(db)
            .await?
        }
        Source::Work => {
            sqlx::query_as!(
                Row,
                "select seq, entity, key, event, created_at from work_outbox where seq = any($1) order by seq",
                seqs
            )
            .fetch_all(db)
            .await?
        }
    };
    rows.into_iter().map(Row::entry).collect()
}

/// Deletes rows that were applied. Those that are gone already are no error: who deletes holds no claim on them.
pub async fn remove(db: &mut PgConnection, source: Source, seqs: &[i64]) -> Result<(), sqlx::Error> {
    match source {
        Source::Chain => sqlx::query!("delete from chain_outbox where seq = any($1)", seqs).execute(db).await?,
        Source::Work => sqlx::query!("delete from work_outbox where seq = any($1)", seqs).execute(db).await?,
    };
    Ok(())
}

/// How many rows wait, and since when the oldest does.
pub async fn depth(db: &mut PgConnection, source: Source) -> Result<(i64, Option<DateTime<Utc>>), sqlx::Error> {
    match source {
        Source::Chain => {
            let row = sqlx::query!(r#"select count(*) as "count!", min(created_at) as oldest from chain_outbox"#)
                .fetch_one(db)
                .await?;
            Ok((row.count, row.oldest))
        }
        Source::Work => {
            let row = sqlx::query!(r#"select count(*) as "count!", min(created_at) as oldest from work_outbox"#)
                .fetch_one(db)
                .await?;
            Ok((row.count, row.oldest))
        }
    }
}
