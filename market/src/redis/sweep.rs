//! What changes because time goes by, without anyone writing a row: deadlines pass, nodes fall silent, and what is kept for
//! days grows old. Which jobs and nodes to look at is read from Redis, what they are now from Postgres.

use alloy::primitives::B256;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::PgPool;

use super::apply::{self, Changes, ProjectError};
use super::client::{Client, RedisError};
use super::keys::{COMPLETED_TTL_SECS, NODE_TTL_SECS, PAYMENTS_TTL_SECS, TURNS_KEPT_SECS};
use super::plan::Event;
use crate::db::outbox::Entity;
use crate::db::projection::Duty;
use crate::db::{node_view, projection};

/// Most entities of a kind in one sweep; the next takes the rest.
const BATCH: usize = 256;

/// Applies what changed up to `now`. Does nothing if another process is doing so.
pub async fn sweep(pool: &PgPool, redis: &Client, now: DateTime<Utc>) -> Result<(), ProjectError> {
    let mut tx = pool.begin().await?;
    if !projection::try_take(&mut tx, Duty::Sweep).await? {
        return Ok(());
    }
    trim(redis, now).await?;
    let keys = redis.keys();
    let silent_since = now - TimeDelta::seconds(NODE_TTL_SECS.cast_signed());
    let expired = below(redis, keys.deadlines(), now).await?;
    let silent = at_most(redis, keys.nodes_heartbeats(), silent_since).await?;
    let mut changes = Changes::new();
    for job in expired {
        changes.insert(Entity::Job(job), vec![Event { name: "job.expired".to_owned(), at: now }]);
    }
    let known = node_view::addresses_of(&mut tx, &silent).await?;
    for (node, _) in &known {
        changes.insert(Entity::Node(*node), vec![Event { name: "node.offline".to_owned(), at: now }]);
    }
    let unknown = silent.into_iter().filter(|id| known.iter().all(|(_, known)| known != id));
    forget_nodes(redis, &unknown.collect::<Vec<_>>()).await?;
    apply::project(&mut tx, redis, &changes, now).await?;
    tx.commit().await?;
    Ok(())
}

/// Removes what is older than it is kept.
async fn trim(redis: &Client, now: DateTime<Utc>) -> Result<(), RedisError> {
    let mut pipe = redis::pipe();
    for (key, kept_secs) in [
        (redis.keys().jobs_completed(), COMPLETED_TTL_SECS),
        (redis.keys().payments_completed(), PAYMENTS_TTL_SECS),
        (redis.keys().turns(), TURNS_KEPT_SECS),
    ] {
        let oldest = (now - TimeDelta::seconds(kept_secs.cast_signed())).timestamp_millis();
        pipe.cmd("ZREMRANGEBYSCORE").arg(key).arg("-inf").arg(oldest).ignore();
    }
    pipe.exec_async(&mut redis.connection()).await
}

/// Members of `key` with a score under `end`. A deadline counts itself: the job has expired only after it.
async fn below(redis: &Client, key: String, end: DateTime<Utc>) -> Result<Vec<B256>, RedisError> {
    up_to(redis, key, format!("({}", end.timestamp_millis())).await
}

/// Members of `key` with a score of at most `end`.
async fn at_most(redis: &Client, key: String, end: DateTime<Utc>) -> Result<Vec<B256>, RedisError> {
    up_to(redis, key, end.timestamp_millis().to_string()).await
}

async fn up_to(redis: &Client, key: String, end: String) -> Result<Vec<B256>, RedisError> {
    let members: Vec<String> = redis::cmd("ZRANGEBYSCORE")
        .arg(key)
        .arg("-inf")
        .arg(end)
        .arg("LIMIT")
        .arg(0)
        .arg(BATCH)
        .query_async(&mut redis.connection())
        .await?;
    Ok(members.iter().filter_map(|member| member.parse().ok()).collect())
}

/// Removes ids under which no node is registered (any more).
pub(super) async fn forget_nodes(redis: &Client, ids: &[B256]) -> Result<(), RedisError> {
    if ids.is_empty() {
        return Ok(());
    }
    let mut pipe = redis::pipe();
    for id in ids {
        pipe.cmd("ZREM").arg(redis.keys().nodes_heartbeats()).arg(id.to_string()).ignore();
        pipe.cmd("SREM").arg(redis.keys().nodes_available()).arg(id.to_string()).ignore();
        pipe.cmd("DEL").arg(redis.keys().node_status(*id)).ignore();
    }
    pipe.exec_async(&mut redis.connection()).await
}
