//! Fills Redis from Postgres, after a flush or with another database. `littoral:generation` names the database that filled
//! Redis: it goes with everything else in a flush, and is written last.

use alloy::primitives::{Address, B256};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::PgPool;

use super::apply::{self, Changes, ProjectError};
use super::client::{Client, RedisError};
use super::keys::PAYMENTS_TTL_SECS;
use super::session;
use crate::db::outbox::Entity;
use crate::db::projection::Duty;
use crate::db::{job_view, node_view, projection};

/// Entities that are applied together.
const BATCH: i64 = 256;
/// Seconds after which the token of a rebuild that died is forgotten.
const TOKEN_TTL_SECS: u64 = 3600;
/// Keys looked at in one step of a scan.
const SCAN_STEP: usize = 1000;

/// Names the database only if no flush came meanwhile.
const FINISH: &str = "
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], ARGV[2])
return 1";

/// Fills Redis if it was not filled from this database, unless another process is doing so. Returns whether it did.
pub async fn ensure(pool: &PgPool, redis: &Client, now: DateTime<Utc>) -> Result<bool, ProjectError> {
    let wanted = projection::generation(&mut *pool.acquire().await?).await?;
    if generation(redis).await? == Some(wanted) {
        return Ok(false);
    }
    fill_all(pool, redis, now, false).await
}

/// Removes all keys that are made from Postgres and makes them again. Projectors may go on meanwhile: both apply whole
/// snapshots, and every live entity is read after the keys were removed. Returns false if another process is at it, or if
/// Redis was flushed meanwhile.
pub async fn rebuild(pool: &PgPool, redis: &Client, now: DateTime<Utc>) -> Result<bool, ProjectError> {
    fill_all(pool, redis, now, true).await
}

/// `anew`: even if Redis was filled from this database.
async fn fill_all(pool: &PgPool, redis: &Client, now: DateTime<Utc>, anew: bool) -> Result<bool, ProjectError> {
    // Held to the end, so that one process at a time fills Redis.
    let mut duty = pool.begin().await?;
    if !projection::try_take(&mut duty, Duty::Rebuild).await? {
        return Ok(false);
    }
    let wanted = projection::generation(&mut duty).await?;
    // Another process may have filled it between the caller's look and the lock.
    if !anew && generation(redis).await?.as_ref() == Some(&wanted) {
        return Ok(false);
    }
    let token = format!("{:032x}", rand::random::<u128>());
    tracing::info!(generation = %wanted, "filling Redis from Postgres");
    redis::cmd("SET")
        .arg(redis.keys().rebuilding())
        .arg(&token)
        .arg("EX")
        .arg(TOKEN_TTL_SECS)
        .exec_async(&mut redis.connection())
        .await?;
    clear(redis).await?;
    let nodes = fill_nodes(pool, redis, now).await?;
    let jobs = fill_jobs(pool, redis, now).await?;
    let sessions = fill_sessions(pool, redis, now).await?;
    let finished: bool = redis::Script::new(FINISH)
        .key(redis.keys().rebuilding())
        .key(redis.keys().generation())
        .arg(token)
        .arg(&wanted)
        .invoke_async(&mut redis.connection())
        .await?;
    duty.commit().await?;
    if finished {
        tracing::info!(generation = %wanted, jobs, nodes, sessions, "Redis is filled");
    }
    Ok(finished)
}

/// The name of the database that filled Redis, if one did.
pub async fn generation(redis: &Client) -> Result<Option<String>, RedisError> {
    redis::cmd("GET").arg(redis.keys().generation()).query_async(&mut redis.connection()).await
}

/// Removes all keys that are made from Postgres.
async fn clear(redis: &Client) -> Result<(), RedisError> {
    let mut connection = redis.connection();
    for found in scan(redis).await?.chunks(SCAN_STEP) {
        redis::cmd("UNLINK").arg(found).exec_async(&mut connection).await?;
    }
    Ok(())
}

/// All keys that are made from Postgres, each once.
pub(super) async fn scan(redis: &Client) -> Result<Vec<String>, RedisError> {
    let mut connection = redis.connection();
    let (pattern, mut cursor, mut found) = (redis.keys().pattern(), 0_u64, Vec::new());
    loop {
        let (next, keys): (u64, Vec<Vec<u8>>) = redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(&pattern)
            .arg("COUNT")
            .arg(SCAN_STEP)
            .query_async(&mut connection)
            .await?;
        // Keys of others need not be text; ours are.
        let ours = keys.into_iter().filter_map(|key| String::from_utf8(key).ok());
        found.extend(ours.filter(|key| redis.keys().is_projected(key)));
        cursor = next;
        if cursor == 0 {
            found.sort_unstable();
            found.dedup();
            return Ok(found);
        }
    }
}

async fn fill(
    pool: &PgPool,
    redis: &Client,
    entities: impl Iterator<Item = Entity>,
    now: DateTime<Utc>,
) -> Result<(), ProjectError> {
    let changes: Changes = entities.map(|entity| (entity, Vec::new())).collect();
    let mut tx = pool.begin().await?;
    apply::project(&mut tx, redis, &changes, now).await?;
    tx.commit().await?;
    Ok(())
}

async fn fill_nodes(pool: &PgPool, redis: &Client, now: DateTime<Utc>) -> Result<usize, ProjectError> {
    let (mut after, mut count) = (Address::ZERO, 0);
    loop {
        let nodes = node_view::list(&mut *pool.acquire().await?, after, BATCH).await?;
        let Some(last) = nodes.last() else { return Ok(count) };
        after = last.node;
        count += nodes.len();
        fill(pool, redis, nodes.iter().map(|view| Entity::Node(view.node)), now).await?;
    }
}

async fn fill_jobs(pool: &PgPool, redis: &Client, now: DateTime<Utc>) -> Result<usize, ProjectError> {
    // Those whose payment is due come first, in the order of their lists: each is then appended at the end of its list.
    let mut after = None;
    loop {
        let due = job_view::due_ids(&mut *pool.acquire().await?, after, BATCH).await?;
        let Some(last) = due.last() else { break };
        after = Some(*last);
        fill(pool, redis, due.iter().map(|(_, id)| Entity::Job(*id)), now).await?;
    }
    let since = now - TimeDelta::seconds(PAYMENTS_TTL_SECS.cast_signed());
    let (mut after, mut count) = (B256::ZERO, 0);
    loop {
        let jobs = job_view::live_ids(&mut *pool.acquire().await?, after, since, BATCH).await?;
        let Some(last) = jobs.last() else { return Ok(count) };
        after = *last;
        count += jobs.len();
        fill(pool, redis, jobs.iter().copied().map(Entity::Job), now).await?;
    }
}

async fn fill_sessions(pool: &PgPool, redis: &Client, now: DateTime<Utc>) -> Result<usize, ProjectError> {
    let (mut after, mut count) = (String::new(), 0);
    loop {
        let sessions = projection::live_sessions(&mut *pool.acquire().await?, &after, BATCH, now).await?;
        let Some(last) = sessions.last() else { return Ok(count) };
        after.clone_from(&last.user_id);
        count += sessions.len();
        for live in &sessions {
            session::restore(redis, live).await?;
        }
    }
}
