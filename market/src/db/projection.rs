//! What projecting to Redis needs of Postgres: who projects what now, in which order snapshots were taken, and which
//! database this is.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::outbox::{Entity, Source};
use super::types::DbAddress;
use crate::Address;

/// Work that one process at a time does, for as long as its transaction lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Draining an outbox.
    Drain(Source),
    /// Filling an empty Redis.
    Rebuild,
    /// Looking for what changed only because time went by.
    Sweep,
}

impl Duty {
    /// Key of the advisory lock: "litt" and a number; [`super::leader`] uses those below 16.
    fn lock_key(self) -> i64 {
        0x6c69_7474_0000_0000
            + match self {
                Self::Drain(Source::Chain) => 16,
                Self::Drain(Source::Work) => 17,
                Self::Rebuild => 18,
                Self::Sweep => 19,
            }
    }
}

/// Takes `duty` until the transaction ends; false if another process has it. Unlike others, a transaction that rebuilds waits
/// for Redis at length, and may.
pub async fn try_take(db: &mut PgConnection, duty: Duty) -> Result<bool, sqlx::Error> {
    if duty == Duty::Rebuild {
        sqlx::query!("set local idle_in_transaction_session_timeout = 0").execute(&mut *db).await?;
    }
    sqlx::query_scalar!(r#"select pg_try_advisory_xact_lock($1) as "taken!""#, duty.lock_key()).fetch_one(db).await
}

/// How far an outbox was applied, and on whose authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The name of this database's contents.
    pub generation: String,
    /// Epoch of the latest indexer that led; zero before the first.
    pub epoch: i64,
    /// Batches that were applied.
    pub batch: i64,
}

/// How far `source` was applied.
pub async fn progress(db: &mut PgConnection, source: Source) -> Result<Progress, sqlx::Error> {
    sqlx::query_as!(
        Progress,
        r#"select g.generation, p.batch, coalesce((select epoch from leader where role = 'indexer'), 0) as "epoch!"
           from redis_generation g cross join projection_progress p where p.source = $1"#,
        source.name()
    )
    .fetch_one(db)
    .await
}

/// Notes that one more batch of `source` was applied, under its [`Duty::Drain`].
pub async fn advance(db: &mut PgConnection, source: Source) -> Result<(), sqlx::Error> {
    sqlx::query!("update projection_progress set batch = batch + 1 where source = $1", source.name())
        .execute(db)
        .await?;
    Ok(())
}

/// Locks `entities` until the transaction ends and draws a version for the snapshots that are read under the locks. Whoever
/// locks an entity later draws a higher version and sees at least as much.
pub async fn lock(db: &mut PgConnection, entities: &[Entity]) -> Result<i64, sqlx::Error> {
    let mut keys: Vec<i64> = entities.iter().map(|entity| lock_key(*entity)).collect();
    // In one order everywhere, so that two projectors never wait for each other in a circle.
    keys.sort_unstable();
    keys.dedup();
    sqlx::query!(
        "select pg_advisory_xact_lock(k.key) from (select key from unnest($1::bigint[]) key order by key) k",
        &keys
    )
    .fetch_all(&mut *db)
    .await?;
    sqlx::query_scalar!(r#"select nextval('projection_version') as "version!""#).fetch_one(db).await
}

/// The first eight bytes of a digest or an address: two entities that share them merely wait for each other.
fn lock_key(entity: Entity) -> i64 {
    let mut head = [0; 8];
    match entity {
        Entity::Job(id) => head.copy_from_slice(&id[..8]),
        Entity::Node(node) => head.copy_from_slice(&node[..8]),
    }
    i64::from_be_bytes(head)
}

/// The name of this database's contents.
pub async fn generation(db: &mut PgConnection) -> Result<String, sqlx::Error> {
    sqlx::query_scalar!("select generation from redis_generation").fetch_one(db).await
}

/// Gives the contents a new name, so that every Redis that was filled from them before is filled again. To be called when a
/// backup was restored: Redis may then know what this database has forgotten.
pub async fn renew_generation(db: &mut PgConnection) -> Result<String, sqlx::Error> {
    sqlx::query_scalar!("update redis_generation set generation = gen_random_uuid() returning generation")
        .fetch_one(db)
        .await
}

/// A session that has not expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveSession {
    /// Names the session in Redis.
    pub user_id: String,
    /// The address that signed in.
    pub wallet: Address,
    /// When it signed in.
    pub created_at: DateTime<Utc>,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
}

/// The latest session of each user that has not expired at `now`, by user id, at most `limit`, from behind `after`.
pub async fn live_sessions(
    db: &mut PgConnection,
    after: &str,
    limit: i64,
    now: DateTime<Utc>,
) -> Result<Vec<LiveSession>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select distinct on (user_id) user_id, wallet as "wallet: DbAddress", created_at, expires_at
        from session
        where expires_at > $1 and user_id > $2
        order by user_id, created_at desc
        limit $3"#,
        now,
        after,
        limit
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| LiveSession {
            user_id: row.user_id,
            wallet: row.wallet.0,
            created_at: row.created_at,
            expires_at: row.expires_at,
        })
        .collect())
}
