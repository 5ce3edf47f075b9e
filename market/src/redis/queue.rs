//! The queue as Redis suggests it. Postgres decides ([`crate::db::queue`]): a job found here may be taken, done or forbidden to
//! the node that asks. With Redis down or empty the caller asks Postgres, which has the same order.

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};

use super::client::{Client, RedisError};
use super::keys::{latest_ready_score, line_group, score_text};
use crate::db::queue::LINES;

const SUGGEST: &str = include_str!("lua/suggest.lua");

/// Waiting jobs of `operations` that name `node` or none, those first whose turn it is, at most `limit`. Goes through [`LINES`]
/// lines of each, from the requester `start` on and around. A job that pauses may be among them; its terms and history are not
/// looked at.
pub async fn suggest(
    redis: &Client,
    node: Address,
    operations: &[String],
    start: Address,
    limit: usize,
    now: DateTime<Utc>,
) -> Result<Vec<B256>, RedisError> {
    let script = redis::Script::new(SUGGEST);
    let mut call = script.key(redis.keys().lines());
    call.key(redis.keys().turns())
        .arg(alloy::hex::encode(start))
        .arg(LINES)
        .arg(score_text(latest_ready_score(now)))
        .arg(limit);
    for operation in operations {
        call.arg(line_group(operation, node)).arg(line_group(operation, Address::ZERO));
    }
    let jobs: Vec<String> = call.invoke_async(&mut redis.connection()).await?;
    // Other applications can write these keys too; what is not an id is no job of ours.
    Ok(jobs.iter().filter_map(|job| job.parse().ok()).collect())
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
