//! Vouchers: what requesters countersigned, and what they have yet to. Writer of `voucher`: the API.
//!
//! A channel is what lies between a requester and a node in one token. `cumulative` of a voucher is all that the channel ever
//! paid, or is to pay, for its signed orders with a nonce up to `coveredNonce`.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::escrow;
use super::types::{DbAddress, DbAmount, DbHash};
use crate::Amount;
use crate::abi::Voucher;
use crate::fold::EscrowChannel;

/// Names a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Channel {
    /// Who pays.
    pub requester: Address,
    /// Who is paid.
    pub node: Address,
    /// Zero for the native coin.
    pub token: Address,
}

/// A voucher and its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// Which channel.
    pub channel: Channel,
    /// All that the channel is to have paid, in the token's smallest unit.
    pub cumulative: Amount,
    /// For signed orders up to this nonce.
    pub covered_nonce: u64,
    /// The requester, or its session key.
    pub signer: Address,
    /// By the signer, over `Voucher`.
    pub signature: Vec<u8>,
    /// When it came.
    pub created_at: DateTime<Utc>,
}

/// Makes others who change what is owed on the channel wait until the transaction ends.
pub async fn lock(db: &mut PgConnection, channel: Channel) -> Result<(), sqlx::Error> {
    let name = [channel.requester, channel.node, channel.token].map(|part| part.0.0).concat();
    sqlx::query!("select pg_advisory_xact_lock(hashtextextended(encode($1, 'hex'), 7))", name).execute(db).await?;
    Ok(())
}

/// Keeps a voucher. False, and nothing changed, if it was kept before.
pub async fn insert(
    db: &mut PgConnection,
    voucher: &Voucher,
    signer: Address,
    signature: &[u8],
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query!(
        "insert into voucher (requester, node, token, cumulative, covered_nonce, signer, signature, created_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict do nothing",
        DbAddress(voucher.requester) as _,
        DbAddress(voucher.node) as _,
        DbAddress(voucher.token) as _,
        DbAmount::from(voucher.cumulative) as _,
        DbAmount::from(u128::from(voucher.coveredNonce)) as _,
        DbAddress(signer) as _,
        signature,
        now
    )
    .execute(db)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

struct Row {
    requester: DbAddress,
    node: DbAddress,
    token: DbAddress,
    cumulative: DbAmount,
    covered_nonce: DbAmount,
    signer: DbAddress,
    signature: Vec<u8>,
    created_at: DateTime<Utc>,
}

impl Row {
    fn read(self) -> Result<Signed, sqlx::Error> {
        Ok(Signed {
            channel: Channel { requester: self.requester.0, node: self.node.0, token: self.token.0 },
            cumulative: self.cumulative.0,
            covered_nonce: self.covered_nonce.to_u64()?,
            signer: self.signer.0,
            signature: self.signature,
            created_at: self.created_at,
        })
    }
}

/// The best voucher of a channel.
pub async fn best(db: &mut PgConnection, channel: Channel) -> Result<Option<Signed>, sqlx::Error> {
    let row = sqlx::query_as!(
        Row,
        r#"select requester as "requester: DbAddress", node as "node: DbAddress", token as "token: DbAddress",
                  cumulative as "cumulative: DbAmount", covered_nonce as "covered_nonce: DbAmount",
                  signer as "signer: DbAddress", signature, created_at
           from voucher where requester = $1 and node = $2 and token = $3
           order by covered_nonce desc, cumulative desc limit 1"#,
        DbAddress(channel.requester) as _,
        DbAddress(channel.node) as _,
        DbAddress(channel.token) as _
    )
    .fetch_optional(db)
    .await?;
    row.map(Row::read).transpose()
}

/// The best voucher of each channel of a node, or of a requester; by requester, node and token.
pub async fn best_of(
    db: &mut PgConnection,
    node: Option<Address>,
    requester: Option<Address>,
) -> Result<Vec<Signed>, sqlx::Error> {
    let rows = sqlx::query_as!(
        Row,
        r#"select distinct on (requester, node, token)
                  requester as "requester: DbAddress", node as "node: DbAddress", token as "token: DbAddress",
                  cumulative as "cumulative: DbAmount", covered_nonce as "covered_nonce: DbAmount",
                  signer as "signer: DbAddress", signature, created_at
           from voucher
           where ($1::bytea is null or node = $1) and ($2::bytea is null or requester = $2)
           order by requester, node, token, covered_nonce desc, cumulative desc"#,
        node.map(DbAddress) as _,
        requester.map(DbAddress) as _
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(Row::read).collect()
}

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
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// Where the channel stands at `now`. Hold its [`lock`] where something follows from it.
pub async fn standing(
    db: &mut PgConnection,
    channel: Channel,
    now: DateTime<Utc>,
) -> Result<Standing, sqlx::Error> {
    let best = best(db, channel).await?;
    let key = (channel.requester, channel.node, channel.token);
    let chain: BTreeMap<_, EscrowChannel> = escrow::channels(db, &[key]).await?;
    let chain = chain.get(&key).copied().unwrap_or_default();
    let mut standing =
        Standing { best, chain, paid_alone: Amount::ZERO, done: Vec::new(), held_up_by: None, queued_from: None };
    let base = DbAmount::from(u128::from(standing.base_nonce()));
    let rows = sqlx::query!(
        r#"select g.job_id as "job_id: DbHash", g.nonce as "nonce: DbAmount", c.price as "price: DbAmount",
                  c.result_hash as "result_hash: DbHash", c.receipt_signature,
                  case e.state when 'paid' then e.price when 'resolved' then e.resolved_paid end as "alone?: DbAmount"
           from signed_order g
           join job_completion c on c.job_id = g.job_id and c.node = $2
           left join escrow_job e on e.job_id = g.job_id
           where g.requester = $1 and g.token = $3 and g.nonce > $4 and e.opened_at is null
             and g.order_node in ($2, '\x0000000000000000000000000000000000000000')
           order by g.nonce, g.job_id"#,
        DbAddress(channel.requester) as _,
        DbAddress(channel.node) as _,
        DbAddress(channel.token) as _,
        base as _
    )
    .fetch_all(&mut *db)
    .await?;
    for row in rows {
        let alone = row.alone.map(Amount::from);
        if let Some(amount) = alone {
            standing.paid_alone = Amount(standing.paid_alone.0.saturating_add(amount.0));
        }
        standing.done.push(Done {
            job_id: row.job_id.0,
            nonce: row.nonce.to_u64()?,
            // What an arbiter took off is not owed by the voucher either.
            price: alone.unwrap_or(row.price.0),
            result_hash: row.result_hash.0,
            receipt_signature: row.receipt_signature,
        });
    }
    let row = sqlx::query!(
        r#"select min(g.nonce) filter (where g.order_node = $2 or (w.state = 'leased' and w.node = $2))
                      as "held?: DbAmount",
                  min(g.nonce) as "queued?: DbAmount"
           from signed_order g
           left join job_work w on w.job_id = g.job_id
           where g.requester = $1 and g.token = $3 and g.nonce > $4 and g.deadline >= $5
             and g.order_node in ($2, '\x0000000000000000000000000000000000000000')
             and g.closed_at is null and g.withdrawn_at is null
             and coalesce(w.state, 'queued') in ('queued', 'leased')
             and (w.state is distinct from 'leased' or w.node = $2)
             and not exists (select from escrow_job e where e.job_id = g.job_id and e.state <> 'none')"#,
        DbAddress(channel.requester) as _,
        DbAddress(channel.node) as _,
        DbAddress(channel.token) as _,
        base as _,
        now
    )
    .fetch_one(db)
    .await?;
    standing.held_up_by = row.held.map(DbAmount::to_u64).transpose()?;
    standing.queued_from = row.queued.map(DbAmount::to_u64).transpose()?;
    Ok(standing)
}

/// What a requester has promised on a channel by signed orders that are neither paid nor void, and what of that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promised {
    /// Zero for the native coin.
    pub token: Address,
    /// Who is to be paid; nothing for orders that any node may take.
    pub node: Option<Address>,
    /// In the token's smallest unit.
    pub amount: Amount,
    /// The part of it that completed jobs ask.
    pub completed: Amount,
}

/// What `requester` has promised at `now`, by token and node. Orders whose deadline passed without a result bind nothing.
pub async fn promised(
    db: &mut PgConnection,
    requester: Address,
    now: DateTime<Utc>,
) -> Result<Vec<Promised>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select token as "token!: DbAddress", node as "node?: DbAddress", sum(amount) as "amount!: DbAmount",
                  coalesce(sum(amount) filter (where completed), 0) as "completed!: DbAmount"
           from order_promise
           where requester = $1 and (completed or deadline >= $2)
           group by token, node
           order by token, node"#,
        DbAddress(requester) as _,
        now
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Promised {
            token: row.token.0,
            node: row.node.map(Address::from),
            amount: row.amount.0,
            completed: row.completed.0,
        })
        .collect())
}

/// A channel as the chain has it.
pub async fn channels_of(
    db: &mut PgConnection,
    requester: Address,
) -> Result<Vec<(Channel, EscrowChannel)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select node as "node: DbAddress", token as "token: DbAddress" from escrow_channel where requester = $1
           order by token, node"#,
        DbAddress(requester) as _
    )
    .fetch_all(&mut *db)
    .await?;
    let keys: Vec<_> = rows.into_iter().map(|row| (requester, row.node.0, row.token.0)).collect();
    let channels = escrow::channels(db, &keys).await?;
    Ok(channels
        .into_iter()
        .map(|((requester, node, token), channel)| (Channel { requester, node, token }, channel))
        .collect())
}
