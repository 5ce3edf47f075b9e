//! Results that could be sent to the chain now, and windows that have ended.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256, Bytes};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::{PgConnection, types::PgInterval};

use super::{Filter, corrupt, wei};
use crate::abi;
use crate::batch::{Call, Candidate, Kind, Subject};
use crate::db::chain::from_db;
use crate::db::order::{self, Agreed};
use crate::db::types::{DbAddress, DbAmount, DbHash};

/// How long an item whose batch ended without settling it waits for the next: `first`, doubled with each batch, at most
/// `longest`. And how long results of signed orders wait for a voucher.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// After the first batch.
    pub first: TimeDelta,
    /// After any number.
    pub longest: TimeDelta,
    /// A result of a signed order waits as long for a voucher that covers it.
    pub voucher_grace: TimeDelta,
    /// It waits no more once its deadline, or the end of a notice by which its funds may leave, is as near.
    pub urgent_within: TimeDelta,
}

/// The oldest `limit` results whose payment `sender` may send: their order is open, they are in no pending batch, not on
/// hold, and not backing off at `now`.
///
/// A signed order's result besides: no redeemed voucher pays for it, no voucher of its channel is on its way, and it has
/// waited for one in vain. One that a voucher covers is left to that voucher as long as `sender` can redeem it; if it cannot,
/// the node may, so the order is settled only once time presses. Run it in a [`super::snapshot`].
pub async fn due_results(
    db: &mut PgConnection,
    sender: Address,
    filter: &Filter,
    backoff: Backoff,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Candidate>, sqlx::Error> {
    let (tokens, least_tokens, least) = filter.columns();
    let rows = sqlx::query!(
        r#"select p.job_id as "job_id: DbHash", p.created_at, c.node as "node: DbAddress", c.price as "price: DbAmount",
                  c.result_hash as "result_hash: DbHash", c.receipt_signature, c.assignment_expiry,
                  c.assignment_signature, h.reverts as "reverts!", n.ends_at
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
           left join escrow_channel x
               on o.rail = 'signed' and x.requester = o.requester and x.node = c.node and x.token = o.token
           left join escrow_account a on o.rail = 'signed' and a.owner = o.requester and a.token = o.token
           cross join lateral (select least(o.cancel_at, a.thaw_end, x.thaw_end) as ends_at) n
           left join lateral (
               select v.cumulative,
                      (c.node = $6 or exists (
                          select from escrow_settler s where s.node = c.node and s.settler = $6 and s.allowed
                      ))
                      and not exists (
                          select from voucher_hold held
                          where held.requester = o.requester and held.node = c.node and held.token = o.token
                              and held.cumulative = v.cumulative
                      )
                      and (v.signer = o.requester or exists (
                          select from escrow_session s
                          where s.requester = o.requester and s.session_key = v.signer and s.token = o.token
                              and s.expires_at > $1 and s.amount_left >= v.cumulative - coalesce(x.claimed, 0)
                      )) as redeemable
               from voucher v
               where v.requester = o.requester and v.node = c.node and v.token = o.token and v.covered_nonce >= o.nonce
               order by v.covered_nonce desc, v.cumulative desc
               limit 1
           ) v on o.rail = 'signed'
           where p.closed_at is null
             and (cardinality($9::bytea[]) = 0 or p.token = any($9))
             and p.amount >= coalesce((
                 select max(m.amount) from unnest($10::bytea[], $11::numeric[]) as m (token, amount) where m.token = p.token
             ), 0)
             and (o.rail = 'opened' or (
                 coalesce(x.covered_nonce, 0) < o.nonce
                 and not exists (
                     select from settlement_batch b
                     join settlement_voucher u on u.batch_id = b.id
                     where b.state = 'pending' and b.node = c.node and b.token = o.token and u.requester = o.requester
                 )
                 and case
                     when v.redeemable then false
                     else o.deadline <= $1 + $8::interval or n.ends_at <= $1 + $8::interval
                         or (v.cumulative is null and p.created_at <= $1 - $7::interval)
                 end
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
        Kind::Submit.name(),
        DbAddress(sender) as _,
        interval(backoff.voucher_grace)?,
        interval(backoff.urgent_within)?,
        &tokens as _,
        &least_tokens as _,
        &least as _
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
            Ok(Candidate {
                subject: Subject::Job(row.job_id.0),
                ready_at: row.created_at,
                ends_at: row.ends_at,
                reverts: u32::try_from(row.reverts).unwrap_or(0),
                call: Call::Submit(Box::new(result)),
            })
        })
        .collect()
}

/// The first `limit` jobs whose challenge window, or whose arbiter's time, has ended at `chain_time` and which are in no
/// pending batch, not on hold, and not backing off at `now`. Run it in a [`super::snapshot`].
pub async fn finalizable(
    db: &mut PgConnection,
    filter: &Filter,
    backoff: Backoff,
    chain_time: DateTime<Utc>,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Candidate>, sqlx::Error> {
    let (tokens, least_tokens, least) = filter.columns();
    let rows = sqlx::query!(
        r#"select e.job_id as "job_id: DbHash", coalesce(e.decide_by, e.finalize_at) as "ready_at!",
                  e.price as "price!: DbAmount", h.reverts as "reverts!"
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
             and (cardinality($7::bytea[]) = 0 or e.paid_token = any($7))
             and e.price >= coalesce((
                 select max(m.amount) from unnest($8::bytea[], $9::numeric[]) as m (token, amount)
                 where m.token = e.paid_token
             ), 0)
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
        Kind::Finalize.name(),
        &tokens as _,
        &least_tokens as _,
        &least as _
    )
    .fetch_all(&mut *db)
    .await?;
    let mut orders = orders(db, rows.iter().map(|row| row.job_id.0)).await?;
    rows.into_iter()
        .map(|row| {
            let order = take(&mut orders, row.job_id.0)?.order;
            Ok(Candidate {
                subject: Subject::Job(row.job_id.0),
                ready_at: row.ready_at,
                ends_at: None,
                reverts: u32::try_from(row.reverts).unwrap_or(0),
                call: Call::Finalize(Box::new(order), wei(row.price)?),
            })
        })
        .collect()
}

async fn orders(db: &mut PgConnection, ids: impl Iterator<Item = B256>) -> Result<BTreeMap<B256, Agreed>, sqlx::Error> {
    order::agreed(db, &ids.collect::<Vec<_>>()).await
}

fn take(orders: &mut BTreeMap<B256, Agreed>, job_id: B256) -> Result<Agreed, sqlx::Error> {
    orders.remove(&job_id).ok_or_else(|| corrupt(format!("job {job_id} vanished within a snapshot")))
}

pub(super) fn interval(delta: TimeDelta) -> Result<PgInterval, sqlx::Error> {
    PgInterval::try_from(delta).map_err(sqlx::Error::Encode)
}
