//! Where a channel stands towards its next voucher.

use alloy::primitives::B256;
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::{Channel, Signed};
use crate::Amount;
use crate::db::types::{DbAddress, DbAmount, DbHash};
use crate::fold::EscrowChannel;

/// A job of a channel that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Which.
    pub job_id: B256,
    /// Of its order.
    pub nonce: u64,
    /// What the receipt asks, in the token's smallest unit.
    pub price: Amount,
    /// SHA2-256 of the output.
    pub result_hash: B256,
    /// By the node, over `Receipt`.
    pub receipt_signature: Vec<u8>,
}

/// Where a channel stands towards its next voucher.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// The best voucher so far.
    pub best: Option<Signed>,
    /// What the chain says of the channel.
    pub chain: EscrowChannel,
    /// What was paid for orders settled alone that no voucher covers yet.
    pub paid_alone: Amount,
    /// Jobs that are done and that no voucher covers yet, by nonce.
    pub done: Vec<Done>,
    /// Lowest nonce of an order that only this node can still be paid for, or that it is at work on.
    pub held_up_by: Option<u64>,
    /// Lowest nonce of an order that this node or another may still take.
    pub queued_from: Option<u64>,
}

impl Standing {
    /// Orders up to this nonce are covered by what was signed or redeemed before.
    #[must_use]
    pub fn base_nonce(&self) -> u64 {
        self.best.as_ref().map_or(0, |best| best.covered_nonce).max(self.chain.covered_nonce)
    }

    /// What a voucher up to `covered_nonce` must say at the least, and what it is expected to say.
    #[must_use]
    pub fn required(&self, covered_nonce: u64) -> Amount {
        let paid = Amount(self.chain.claimed.0.saturating_sub(self.paid_alone.0));
        let base = self.best.as_ref().map_or(Amount::ZERO, |best| best.cumulative).max(paid);
        let covered = self.done.iter().filter(|job| job.nonce <= covered_nonce);
        Amount(covered.fold(base.0, |sum, job| sum.saturating_add(job.price.0)))
    }

    /// The nonce up to which the next voucher should go: over everything that is done, but below every order that it would
    /// void. Nothing if there is nothing new to cover.
    #[must_use]
    pub fn next_nonce(&self) -> Option<u64> {
        let limit = [self.held_up_by, self.queued_from].into_iter().flatten().min();
        let covered = self.done.iter().filter(|job| limit.is_none_or(|limit| job.nonce < limit));
        covered.map(|job| job.nonce).max()
    }
}

/// What holds for the channel, the same in every row, and a job of it that is done.
struct Row {
    cumulative: Option<DbAmount>,
    covered_nonce: Option<DbAmount>,
    signer: Option<DbAddress>,
    signature: Option<Vec<u8>>,
    created_at: Option<DateTime<Utc>>,
    claimed: Option<DbAmount>,
    reserved: Option<DbAmount>,
    redeemed_nonce: Option<DbAmount>,
    thawing: Option<DbAmount>,
    thaw_end: Option<DateTime<Utc>>,
    held: Option<DbAmount>,
    queued: Option<DbAmount>,
    job_id: Option<DbHash>,
    nonce: Option<DbAmount>,
    price: Option<DbAmount>,
    result_hash: Option<DbHash>,
    receipt_signature: Option<Vec<u8>>,
    alone: Option<DbAmount>,
}

impl Row {
    fn best(&self, channel: Channel) -> Result<Option<Signed>, sqlx::Error> {
        let (Some(cumulative), Some(covered_nonce), Some(signer), Some(signature), Some(created_at)) =
            (self.cumulative, self.covered_nonce, self.signer, &self.signature, self.created_at)
        else {
            return Ok(None);
        };
        Ok(Some(Signed {
            channel,
            cumulative: cumulative.0,
            covered_nonce: covered_nonce.to_u64()?,
            signer: signer.0,
            signature: signature.clone(),
            created_at,
        }))
    }

    fn chain(&self) -> Result<EscrowChannel, sqlx::Error> {
        let amount = |amount: Option<DbAmount>| amount.map_or(Amount::ZERO, Amount::from);
        Ok(EscrowChannel {
            claimed: amount(self.claimed),
            reserved: amount(self.reserved),
            covered_nonce: self.redeemed_nonce.map_or(Ok(0), DbAmount::to_u64)?,
            thawing: amount(self.thawing),
            thaw_end: self.thaw_end,
        })
    }

    fn done(self) -> Result<Option<Done>, sqlx::Error> {
        let (Some(job_id), Some(nonce), Some(price), Some(result_hash), Some(receipt_signature)) =
            (self.job_id, self.nonce, self.price, self.result_hash, self.receipt_signature)
        else {
            return Ok(None);
        };
        // What an arbiter took off is not owed by the voucher either.
        let price = self.alone.unwrap_or(price).0;
        Ok(Some(Done {
            job_id: job_id.0,
            nonce: nonce.to_u64()?,
            price,
            result_hash: result_hash.0,
            receipt_signature,
        }))
    }
}

/// Where the channel stands at `now`. Hold its [`lock`] where something follows from it.
pub async fn standing(db: &mut PgConnection, channel: Channel, now: DateTime<Utc>) -> Result<Standing, sqlx::Error> {
    // In one statement, and so in one snapshot: a job that is completed meanwhile must show as unfinished or as done, and what
    // is paid meanwhile on both sides of the account.
    let rows = sqlx::query_as!(
        Row,
        r#"with channel as materialized (
               select v.cumulative, v.covered_nonce, v.signer, v.signature, v.created_at,
                      h.claimed, h.reserved, h.covered_nonce as redeemed_nonce, h.thawing, h.thaw_end,
                      greatest(coalesce(v.covered_nonce, 0), coalesce(h.covered_nonce, 0)) as base
               from (values ($1::bytea, $2::bytea, $3::bytea)) as k (requester, node, token)
               left join lateral (
                   select v.cumulative, v.covered_nonce, v.signer, v.signature, v.created_at
                   from voucher v
                   where v.requester = k.requester and v.node = k.node and v.token = k.token
                   order by v.covered_nonce desc, v.cumulative desc limit 1
               ) v on true
               left join escrow_channel h on h.requester = k.requester and h.node = k.node and h.token = k.token
           ), unfinished as materialized (
               select min(g.nonce) filter (where g.order_node = $2 or (w.state = 'leased' and w.node = $2)) as held,
                      min(g.nonce) as queued
               from channel k
               join signed_order g on g.requester = $1 and g.token = $3 and g.nonce > k.base
                   and g.order_node in ($2, '\x0000000000000000000000000000000000000000')
               left join job_work w on w.job_id = g.job_id
               where g.deadline >= $4 and g.closed_at is null and g.withdrawn_at is null
                   and coalesce(w.state, 'queued') in ('queued', 'leased')
                   and (w.state is distinct from 'leased' or w.node = $2)
                   and not exists (select from escrow_job e where e.job_id = g.job_id and e.state <> 'none')
           )
           select k.cumulative as "cumulative?: DbAmount", k.covered_nonce as "covered_nonce?: DbAmount",
                  k.signer as "signer?: DbAddress", k.signature as "signature?", k.created_at as "created_at?",
                  k.claimed as "claimed?: DbAmount", k.reserved as "reserved?: DbAmount",
                  k.redeemed_nonce as "redeemed_nonce?: DbAmount", k.thawing as "thawing?: DbAmount",
                  k.thaw_end as "thaw_end?", u.held as "held?: DbAmount", u.queued as "queued?: DbAmount",
                  d.job_id as "job_id?: DbHash", d.nonce as "nonce?: DbAmount", d.price as "price?: DbAmount",
                  d.result_hash as "result_hash?: DbHash", d.receipt_signature as "receipt_signature?",
                  d.alone as "alone?: DbAmount"
           from channel k
           cross join unfinished u
           left join lateral (
               select g.job_id, g.nonce, c.price, c.result_hash, c.receipt_signature,
                      case e.state when 'paid' then e.price when 'resolved' then e.resolved_paid end as alone
               from signed_order g
               join job_completion c on c.job_id = g.job_id and c.node = $2
               left join escrow_job e on e.job_id = g.job_id
               where g.requester = $1 and g.token = $3 and g.nonce > k.base and e.opened_at is null
                   and g.order_node in ($2, '\x0000000000000000000000000000000000000000')
           ) d on true
           order by d.nonce, d.job_id"#,
        DbAddress(channel.requester) as _,
        DbAddress(channel.node) as _,
        DbAddress(channel.token) as _,
        now
    )
    .fetch_all(db)
    .await?;
    let mut standing = Standing::default();
    if let Some(row) = rows.first() {
        standing.best = row.best(channel)?;
        standing.chain = row.chain()?;
        standing.held_up_by = row.held.map(DbAmount::to_u64).transpose()?;
        standing.queued_from = row.queued.map(DbAmount::to_u64).transpose()?;
    }
    for row in rows {
        if let Some(alone) = row.alone {
            standing.paid_alone = Amount(standing.paid_alone.0.saturating_add(alone.0.0));
        }
        standing.done.extend(row.done()?);
    }
    Ok(standing)
}
