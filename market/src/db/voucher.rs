//! Vouchers: what requesters countersigned, and what they have yet to. Writer of `voucher`: the API.
//!
//! A channel is what lies between a requester and a node in one token. `cumulative` of a voucher is all that the channel ever
//! paid, or is to pay, for its signed orders with a nonce up to `coveredNonce`.

mod standing;

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::escrow;
use super::types::{DbAddress, DbAmount, DbHash};
use crate::Amount;
use crate::abi::Voucher;
use crate::fold::EscrowChannel;

pub use standing::{Done, Standing, standing};

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
    sqlx::query!("select pg_advisory_xact_lock(hashtextextended(encode($1, 'hex'), 7))", name_of(channel))
        .execute(db)
        .await?;
    Ok(())
}

/// As [`lock`], without waiting; false if another transaction has it.
pub async fn try_lock(db: &mut PgConnection, channel: Channel) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select pg_try_advisory_xact_lock(hashtextextended(encode($1, 'hex'), 7)) as "locked!""#,
        name_of(channel)
    )
    .fetch_one(db)
    .await
}

fn name_of(channel: Channel) -> Vec<u8> {
    [channel.requester, channel.node, channel.token].map(|part| part.0.0).concat()
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

/// What a voucher says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cover {
    /// All that the channel is to have paid, in the token's smallest unit.
    pub cumulative: Amount,
    /// For signed orders up to this nonce.
    pub covered_nonce: u64,
}

/// The first voucher that covers each of the completed signed orders among `ids`; those without any are left out.
pub async fn covering(db: &mut PgConnection, ids: &[B256]) -> Result<BTreeMap<B256, Cover>, sqlx::Error> {
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let ids: Vec<DbHash> = ids.iter().copied().map(DbHash).collect();
    let rows = sqlx::query!(
        r#"select g.job_id as "job_id: DbHash", v.cumulative as "cumulative: DbAmount",
                  v.covered_nonce as "covered_nonce: DbAmount"
           from signed_order g
           join job_completion c on c.job_id = g.job_id
           cross join lateral (
               select u.cumulative, u.covered_nonce
               from voucher u
               where u.requester = g.requester and u.node = c.node and u.token = g.token and u.covered_nonce >= g.nonce
               order by u.covered_nonce, u.cumulative
               limit 1
           ) v
           where g.job_id = any($1::bytea[])
               and not exists (select from escrow_job e where e.job_id = g.job_id and e.opened_at is not null)"#,
        &ids as _
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let cover = Cover { cumulative: row.cumulative.0, covered_nonce: row.covered_nonce.to_u64()? };
            Ok((row.job_id.0, cover))
        })
        .collect()
}

/// What a requester has promised on a channel by signed orders that are neither paid nor void, and by vouchers that were paid
/// in part, and what of that is done.
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
           from (
               select token, node, amount, completed from order_promise
               where requester = $1 and (completed or deadline >= $2)
               union all
               select token, node, amount, true from channel_debt where requester = $1
           ) p
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
