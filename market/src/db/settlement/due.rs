//! What could be sent to the chain now.

use std::collections::BTreeMap;

use alloy::primitives::{B256, Bytes};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::{PgConnection, types::PgInterval};

use super::{corrupt, wei};
use crate::abi;
use crate::batch::{Call, Candidate, Kind};
use crate::db::chain::from_db;
use crate::db::order::{self, Agreed};
use crate::db::types::{DbAddress, DbAmount, DbHash};

/// How long an item whose batch ended without settling it waits for the next: `first`, doubled with each batch, at most
/// `longest`.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// After the first batch.
    pub first: TimeDelta,
    /// After any number.
    pub longest: TimeDelta,
}

/// The oldest `limit` results whose payment is due: their order is open, no redeemed voucher pays for it, they are in no
/// pending batch, not on hold, and not backing off at `now`. Run it in a [`super::snapshot`].
pub async fn due_results(
    db: &mut PgConnection,
    backoff: Backoff,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Candidate>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select p.job_id as "job_id: DbHash", p.created_at, c.node as "node: DbAddress", c.price as "price: DbAmount",
                  c.result_hash as "result_hash: DbHash", c.receipt_signature, c.assignment_expiry,
                  c.assignment_signature, h.reverts as "reverts!"
           from payment_due p
           join job_completion c on c.job_id = p.job_id
           join open_order o on o.job_id = p.job_id
           cross join lateral (
               select coalesce(bool_or(b.state = 'pending'), false) as pending,
                      count(*) filter (where b.state <> 'pending') as ended,
                      count(*) filter (where b.state = 'reverted')::int as reverts,
                      max(b.ended_at) as last_ended
               from settlement_item i
               join settlement_batch b on b.id = i.batch_id
               where i.job_id = p.job_id and b.kind = $5
           ) h
           where p.closed_at is null
             and (o.rail = 'opened' or not exists (
                 select from escrow_channel x
                 where x.requester = o.requester and x.node = c.node and x.token = o.token and x.covered_nonce >= o.nonce
             ))
             and not h.pending
             and (h.ended = 0 or h.last_ended + least($3::interval, $2::interval * power(2, least(h.ended, 30) - 1)) <= $1)
             and not exists (select from settlement_hold held where held.job_id = p.job_id)
           order by p.created_at, p.job_id
           limit $4"#,
        now,
        interval(backoff.first)?,
        interval(backoff.longest)?,
        limit,
        Kind::Submit.name()
    )
    .fetch_all(&mut *db)
    .await?;
    let mut orders = orders(db, rows.iter().map(|row| row.job_id.0)).await?;
    rows.into_iter()
        .map(|row| {
            let agreed = take(&mut orders, row.job_id.0)?;
            let result = abi::Result {
                order: agreed.order,
                node: row.node.0,
                assignmentExpiry: from_db(row.assignment_expiry)?,
                price: wei(row.price)?,
                resultHash: row.result_hash.0,
                assignmentSignature: Bytes::from(row.assignment_signature),
                receiptSignature: Bytes::from(row.receipt_signature),
                orderSignature: agreed.signature,
            };
            let reverts = u32::try_from(row.reverts).unwrap_or(0);
            let call = Call::Submit(Box::new(result));
            Ok(Candidate { job_id: row.job_id.0, ready_at: row.created_at, reverts, call })
        })
        .collect()
}

/// The first `limit` jobs whose challenge window has ended at `chain_time` and which are in no pending batch, not on hold,
/// and not backing off at `now`. Run it in a [`super::snapshot`].
pub async fn finalizable(
    db: &mut PgConnection,
    backoff: Backoff,
    chain_time: DateTime<Utc>,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Candidate>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select e.job_id as "job_id: DbHash", coalesce(e.decide_by, e.finalize_at) as "ready_at!",
                  h.reverts as "reverts!"
           from escrow_job e
           cross join lateral (
               select coalesce(bool_or(b.state = 'pending'), false) as pending,
                      count(*) filter (where b.state <> 'pending') as ended,
                      count(*) filter (where b.state = 'reverted')::int as reverts,
                      max(b.ended_at) as last_ended
               from settlement_item i
               join settlement_batch b on b.id = i.batch_id
               where i.job_id = e.job_id and b.kind = $6
           ) h
           where ((e.state = 'submitted' and e.finalize_at <= $2) or (e.state = 'disputed' and e.decide_by <= $2))
             and not h.pending
             and (h.ended = 0 or h.last_ended + least($4::interval, $3::interval * power(2, least(h.ended, 30) - 1)) <= $1)
             and not exists (select from settlement_hold held where held.job_id = e.job_id)
           and exists (select from job_order o where o.job_id = e.job_id)
           order by 2, e.job_id
           limit $5"#,
        now,
        chain_time,
        interval(backoff.first)?,
        interval(backoff.longest)?,
        limit,
        Kind::Finalize.name()
    )
    .fetch_all(&mut *db)
    .await?;
    let mut orders = orders(db, rows.iter().map(|row| row.job_id.0)).await?;
    rows.into_iter()
        .map(|row| {
            let reverts = u32::try_from(row.reverts).unwrap_or(0);
            let call = Call::Finalize(Box::new(take(&mut orders, row.job_id.0)?.order));
            Ok(Candidate { job_id: row.job_id.0, ready_at: row.ready_at, reverts, call })
        })
        .collect()
}

async fn orders(db: &mut PgConnection, ids: impl Iterator<Item = B256>) -> Result<BTreeMap<B256, Agreed>, sqlx::Error> {
    order::agreed(db, &ids.collect::<Vec<_>>()).await
}

fn take(orders: &mut BTreeMap<B256, Agreed>, job_id: B256) -> Result<Agreed, sqlx::Error> {
    orders.remove(&job_id).ok_or_else(|| corrupt(format!("job {job_id} vanished within a snapshot")))
}

fn interval(delta: TimeDelta) -> Result<PgInterval, sqlx::Error> {
    PgInterval::try_from(delta).map_err(sqlx::Error::Encode)
}
