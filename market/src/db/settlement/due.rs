//! Results that could be sent to the chain now, and windows that have ended.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256, Bytes};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::{PgConnection, types::PgInterval};

use super::{Filter, corrupt, wei};
use crate::abi;
use crate::batch::{Call, Candidate, Channel, Kind, Subject};
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

/// Vouchers that are not tried for now, by channel and amount. The orders that they cover do not wait for them.
pub type PutOff = [(Channel, u128)];

/// The oldest `limit` results whose payment `sender` may send: their order is open, they are in no pending batch, not on
/// hold, and not backing off at `now`.
///
/// A signed order's result besides: its requester has the price, no redeemed voucher pays for it, no voucher of its channel
/// is on its way, and it has waited for one in vain. One that a voucher covers is left to that voucher as long as `sender` can
/// redeem it and it is not `put_off`; if it cannot, the node may, so the order is settled only once time presses. Run it in a
/// [`super::snapshot`].
pub async fn due_results(
    db: &mut PgConnection,
    sender: Address,
    filter: &Filter,
    backoff: Backoff,
    put_off: &PutOff,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Candidate>, sqlx::Error> {
    let (tokens, least_tokens, least) = filter.columns();
    let of_put_off = |field: fn(&Channel) -> Address| -> Vec<DbAddress> {
        put_off.iter().map(|(channel, _)| DbAddress(field(channel))).collect()
    };
    let put_off_amounts: Vec<_> = put_off.iter().map(|(_, cumulative)| DbAmount::from(*cumulative)).collect();
    let rows = sqlx::query!(
        r#"with channel as materialized (
               -- What holds for all results of a channel is found out once.
               select k.requester, k.node, k.token, coalesce(x.claimed, 0) as claimed,
                      coalesce(x.covered_nonce, 0) as redeemed_nonce,
                      coalesce(x.reserved, 0) + coalesce(a.free, 0) + coalesce(a.thawing, 0) as available,
                      least(a.thaw_end, x.thaw_end) as thaw_end,
                      v.signer, v.cumulative, coalesce(v.covered_nonce, 0) as voucher_nonce,
                      exists (
                          select from settlement_batch b
                          join settlement_voucher u on u.batch_id = b.id
                          where b.state = 'pending' and b.node = k.node and b.token = k.token and u.requester = k.requester
                      ) as redeeming
               from (
                   select distinct g.requester, p.node, p.token
                   from payment_due p
                   join signed_order g on g.job_id = p.job_id
                   where p.closed_at is null
               ) k
               left join escrow_channel x on x.requester = k.requester and x.node = k.node and x.token = k.token
               left join escrow_account a on a.owner = k.requester and a.token = k.token
               left join lateral (
                   select v.signer, v.cumulative, v.covered_nonce
                   from voucher v
                   where v.requester = k.requester and v.node = k.node and v.token = k.token
                   order by v.covered_nonce desc, v.cumulative desc
                   limit 1
               ) v on true
           ), channel_redeemable as materialized (
               select k.*, k.cumulative is not null
                   and (k.node = $6 or exists (
                       select from escrow_settler s where s.node = k.node and s.settler = $6 and s.allowed
                   ))
                   and not exists (
                       select from voucher_hold held
                       where held.requester = k.requester and held.node = k.node and held.token = k.token
                           and held.cumulative = k.cumulative
                   )
                   and not exists (
                       select from unnest($12::bytea[], $13::bytea[], $14::bytea[], $15::numeric[])
                           as o (requester, node, token, cumulative)
                       where o.requester = k.requester and o.node = k.node and o.token = k.token
                           and o.cumulative = k.cumulative
                   )
                   and (k.signer = k.requester or exists (
                       select from escrow_session s
                       where s.requester = k.requester and s.session_key = k.signer and s.token = k.token
                           and s.expires_at > $1 and s.amount_left >= k.cumulative - k.claimed
                   ))
                   -- It pays something: at once, or once what was settled alone above it is counted on top.
                   and case
                       when k.cumulative > k.claimed then true
                       else k.claimed < k.cumulative + (
                           select coalesce(sum(coalesce(e.resolved_paid, e.price)), 0)
                           from signed_order g
                           join escrow_job e on e.job_id = g.job_id
                           where g.requester = k.requester and g.token = k.token and g.nonce > k.voucher_nonce
                               and g.order_node in (k.node, '\x0000000000000000000000000000000000000000')
                               and e.node = k.node and e.state in ('paid', 'resolved') and e.opened_at is null
                       )
                   end as redeemable
               from channel k
           )
           select p.job_id as "job_id: DbHash", p.created_at, c.node as "node: DbAddress", c.price as "price: DbAmount",
                  c.result_hash as "result_hash: DbHash", c.receipt_signature, c.assignment_expiry,
                  c.assignment_signature, h.reverts as "reverts!", least(o.cancel_at, k.thaw_end) as ends_at
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
           left join channel_redeemable k
               on o.rail = 'signed' and k.requester = o.requester and k.node = p.node and k.token = p.token
           where p.closed_at is null
             and (cardinality($9::bytea[]) = 0 or p.token = any($9))
             and p.amount >= coalesce((
                 select max(m.amount) from unnest($10::bytea[], $11::numeric[]) as m (token, amount) where m.token = p.token
             ), 0)
             and (o.rail = 'opened' or (
                 k.redeemed_nonce < o.nonce
                 and k.available >= c.price
                 and not k.redeeming
                 and case
                     when k.redeemable and k.voucher_nonce >= o.nonce then false
                     else o.deadline <= $1 + $8::interval or least(o.cancel_at, k.thaw_end) <= $1 + $8::interval
                         or (k.voucher_nonce < o.nonce and p.created_at <= $1 - $7::interval)
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
        &least as _,
        &of_put_off(|channel| channel.requester) as _,
        &of_put_off(|channel| channel.node) as _,
        &of_put_off(|channel| channel.token) as _,
        &put_off_amounts as _
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
