//! How many claims a second there are while many jobs wait.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::ensure;
use devnet::{Postgres, Redis};
use futures::future::try_join_all;
use market::{clock, redis};

use super::ours::{OPERATION, Ours};
use crate::figures::quotient;

/// How long claims are counted.
const COUNTED: Duration = Duration::from_secs(5);
/// How long it may take to fill Redis.
const FILLED_WITHIN: Duration = Duration::from_secs(1800);
/// Jobs written in one statement.
const STEP: usize = 50_000;

/// Single claims a second with `count` jobs pending, of twenty requesters; no more jobs are taken than leave nine in ten waiting.
pub async fn claim_rate(postgres: &Postgres, redis: &Redis, count: usize, blobs: PathBuf) -> anyhow::Result<f64> {
    let ours = Ours::start(postgres, redis, &format!("pending_{count}"), 0, blobs).await?;
    for from in (0..count).step_by(STEP) {
        insert(&ours, from, STEP.min(count - from)).await?;
    }
    settle(&ours).await?;
    fill(&ours, count).await?;
    let most = count / 10;
    let started = Instant::now();
    let claimed = try_join_all(ours.nodes.iter().map(async |node| {
        let mut claimed = 0;
        while started.elapsed() < COUNTED && claimed < most / ours.nodes.len() {
            claimed += ours.claim(alloy::signers::Signer::address(node), 1, 0).await?.len();
        }
        Ok::<_, anyhow::Error>(claimed)
    }))
    .await?;
    let rate = quotient(claimed.into_iter().sum(), started.elapsed().as_secs_f64());
    ours.stop().await;
    Ok(rate)
}

/// Waits until Redis has all jobs. What fills an empty Redis in the background does so for this database too, at a moment of its own
/// choosing: while it is at it nobody else can be.
async fn fill(ours: &Ours, count: usize) -> anyhow::Result<()> {
    let started = Instant::now();
    let expected = u64::try_from(count)?;
    loop {
        let filled = redis::rebuild::rebuild(&ours.pool, &ours.redis, clock::now()).await?;
        let depth = redis::queue::depth(&ours.redis).await?;
        if filled && depth == expected {
            return Ok(());
        }
        ensure!(started.elapsed() < FILLED_WITHIN, "{depth} of {count} jobs are in Redis after {FILLED_WITHIN:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

// Made in the database: to sign a million orders takes longer than all else here.
#[allow(clippy::disallowed_methods)]
async fn insert(ours: &Ours, from: usize, count: usize) -> anyhow::Result<()> {
    sqlx::query(
        "insert into signed_order (job_id, requester, token, max_price, order_node, assigner, spec_hash, deadline,
             challenge_window_secs, arbiter, max_fee_bps, nonce, input_cid, operation, params, signature, priority, created_at)
         select sha256(convert_to('job ' || n, 'UTF8')), a.owner, a.token, 1, a.token, $3, sha256('spec'),
             now() + interval '1 day', 60, a.token, 0, n + 1, $4, $5, '', '\\x01', 100, now() - interval '1 hour' + n * interval '1 ms'
         from generate_series($1::bigint, $1 + $2 - 1) n
         join (select owner, token, row_number() over (order by owner) - 1 as place, count(*) over () as count from escrow_account) a
             on a.place = n % a.count",
    )
    .bind(i64::try_from(from)?)
    .bind(i64::try_from(count)?)
    .bind(ours.app.assigner().as_slice())
    .bind(market::ContentId::of(b"input").to_string())
    .bind(OPERATION)
    .execute(&ours.pool)
    .await?;
    Ok(())
}

#[allow(clippy::disallowed_methods)]
async fn settle(ours: &Ours) -> anyhow::Result<()> {
    sqlx::query("vacuum analyze").execute(&ours.pool).await?;
    Ok(())
}
