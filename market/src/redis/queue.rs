//! The queue as Redis suggests it. Postgres decides: a job found here may be taken, done or forbidden to the node that
//! asks. With Redis down or empty the caller asks [`crate::db::job_view::pending`].

use alloy::primitives::B256;

use super::client::{Client, RedisError};

/// Jobs from `jobs:pending` in the order of the queue: at most `limit`, from the `offset`-th on. A job that pauses after a
/// failed attempt stands where its pause ends, so whoever meets one that starts later is past all that can be had now, save
/// those whose priority is under 100.
pub async fn candidates(redis: &Client, offset: usize, limit: usize) -> Result<Vec<B256>, RedisError> {
    if limit == 0 {
        return Ok(Vec::new());
    }
    let members: Vec<String> = redis::cmd("ZRANGE")
        .arg(redis.keys().jobs_pending())
        .arg(offset)
        .arg(offset.saturating_add(limit) - 1)
        .query_async(&mut redis.connection())
        .await?;
    // Other applications can write this key too; what is not an id is no job of ours.
    Ok(members.iter().filter_map(|member| member.parse().ok()).collect())
}

/// How many jobs wait.
pub async fn depth(redis: &Client) -> Result<u64, RedisError> {
    redis::cmd("ZCARD").arg(redis.keys().jobs_pending()).query_async(&mut redis.connection()).await
}

/// Whether the job waits.
pub async fn holds(redis: &Client, job_id: B256) -> Result<bool, RedisError> {
    let score: Option<f64> = redis::cmd("ZSCORE")
        .arg(redis.keys().jobs_pending())
        .arg(job_id.to_string())
        .query_async(&mut redis.connection())
        .await?;
    Ok(score.is_some())
}
