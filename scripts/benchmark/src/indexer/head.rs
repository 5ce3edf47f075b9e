//! How long after a block exists what it says can be had: as a row, in Redis, and by a subscriber.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::Context;
use market::redis::client::Client;
use market::redis::keys::Keys;
use market::redis::pubsub::{Signal, Subscription};
use market::redis::queue;
use serde::Serialize;

use super::chain::{Chain, Density};
use super::ours::{self, Indexed};
use super::rounded;

/// Between two looks at Postgres, or at Redis.
const POLL: Duration = Duration::from_millis(1);
/// A block that takes longer is lost.
const LIMIT: Duration = Duration::from_secs(30);

/// What was measured, in milliseconds after the node said that it had mined the block.
#[derive(Debug, Serialize)]
pub struct Head {
    blocks: u32,
    row_p50_ms: f64,
    row_p99_ms: f64,
    redis_p50_ms: f64,
    redis_p99_ms: f64,
    subscriber_p50_ms: f64,
    subscriber_p99_ms: f64,
}

/// Mines `blocks` blocks of about 30 events and waits for each. A block is in Postgres when the cursor is there, in Redis
/// when every job it opened waits in the queue, and told when every such job was published.
pub async fn measure(chain: &mut Chain, indexed: &Indexed, blocks: u32) -> anyhow::Result<Head> {
    let redis = Client::open(&indexed.market.endpoints().redis_url, Keys::new(""))?;
    let mut subscription = Subscription::open(redis.clone(), vec![redis.keys().channel_global()]);
    while subscription.next().await != Signal::Resumed {}
    let mut number = chain.head().await?;
    let (mut rows, mut keys, mut messages) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..blocks {
        let jobs = chain.opened_next(Density::Sparse).await?;
        chain.send_traffic(Density::Sparse).await?;
        chain.mine().await?;
        let mined = Instant::now();
        number += 1;
        let row = async {
            while ours::cursor(&indexed.pool).await.is_none_or(|cursor| cursor < number) {
                tokio::time::sleep(POLL).await;
            }
            anyhow::Ok(mined.elapsed())
        };
        let key = async {
            for job in &jobs {
                while !queue::holds(&redis, *job).await? {
                    tokio::time::sleep(POLL).await;
                }
            }
            anyhow::Ok(mined.elapsed())
        };
        let message = async {
            let mut untold: HashSet<String> = jobs.iter().map(ToString::to_string).collect();
            while !untold.is_empty() {
                if let Signal::Message { payload, .. } = subscription.next().await {
                    let message: serde_json::Value = serde_json::from_str(&payload)?;
                    untold.remove(message["jobId"].as_str().unwrap_or_default());
                }
            }
            anyhow::Ok(mined.elapsed())
        };
        let all = async { tokio::try_join!(row, key, message) };
        let all = tokio::time::timeout(LIMIT, all).await;
        let (row, key, message) =
            all.with_context(|| format!("block {number} is not everywhere after {} s", LIMIT.as_secs()))??;
        rows.push(row);
        keys.push(key);
        messages.push(message);
        // Blocks come whenever they like, not in step with whoever polls.
        tokio::time::sleep(Duration::from_millis(u64::from(20 + n * 37 % 100))).await;
    }
    Ok(Head {
        blocks,
        row_p50_ms: percentile(&mut rows, 50),
        row_p99_ms: percentile(&mut rows, 99),
        redis_p50_ms: percentile(&mut keys, 50),
        redis_p99_ms: percentile(&mut keys, 99),
        subscriber_p50_ms: percentile(&mut messages, 50),
        subscriber_p99_ms: percentile(&mut messages, 99),
    })
}

/// The smallest that so many percent do not exceed, in milliseconds.
fn percentile(of: &mut [Duration], percent: usize) -> f64 {
    of.sort_unstable();
    let rank = (of.len() * percent).div_ceil(100).max(1);
    of.get(rank - 1).map_or(0.0, |found| rounded(found.as_secs_f64() * 1000.0))
}
