//! What the chain says, as clients ask for it: all accounts of one address, and how far the indexer has read. Read only.

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;
use sqlx::types::Json;

pub use super::confirmation::{ObserveError, Standing, observe, standing};

use super::chain::from_db;
use super::confirmation::Seen;
use super::types::{DbAddress, DbAmount, DbHash};
use super::voucher::Channel;
use crate::Amount;
use crate::confirmation::Confirmation;
use crate::fold::Key;

/// What an address has in the escrow in one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balance {
    /// Zero for the native coin.
    pub token: Address,
    /// What jobs can be opened with.
    pub free: Amount,
    /// What is on its way out.
    pub thawing: Amount,
    /// When that can be withdrawn.
    pub thaw_end: Option<DateTime<Utc>>,
    /// How sure what is free is.
    pub confirmation: Option<Confirmation>,
}

/// What a node has earned in one token and not withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Earning {
    /// Zero for the native coin.
    pub token: Address,
    /// In the token's smallest unit.
    pub amount: Amount,
    /// How sure it is.
    pub confirmation: Option<Confirmation>,
}

/// The last block that the indexer applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Indexed {
    /// Its height.
    pub block_number: u64,
    /// Its hash.
    pub block_hash: B256,
    /// Its header's timestamp.
    pub mined_at: DateTime<Utc>,
}

/// Balances of `owner`, by token.
pub async fn balances(db: &mut PgConnection, owner: Address) -> Result<Vec<Balance>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select a.token as "token: DbAddress", a.free as "free: DbAmount", a.thawing as "thawing: DbAmount", a.thaw_end,
                  m.number as "block?",
                  (select b.hash from chain_block b where b.canonical and b.number = m.number) as "hash?: DbHash",
                  coalesce(l.block_number - m.number >= confirmation_depth(a.token, a.free), false) as "is_deep!",
                  l.block_number as "cursor!", l.final_number as "last!"
           from escrow_account a
           cross join chain_level l
           cross join lateral (
               -- What did not move since is as it was at the final block.
               select coalesce(
                   (select max(y.block_number) from ledger_entry y
                    where y.block_number > l.final_number and y.block_number <= l.block_number
                        and y.account = 'free' and y.owner = a.owner and y.token = a.token),
                   nullif(nullif(l.final_number, -1), 9223372036854775807)
               ) as number
           ) m
           where a.owner = $1 order by a.token"#,
        DbAddress(owner) as _
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let seen = Seen { block: row.block, hash: row.hash, is_deep: row.is_deep };
            Ok(Balance {
                token: row.token.0,
                free: row.free.0,
                thawing: row.thawing.0,
                thaw_end: row.thaw_end,
                confirmation: seen.confirmation(row.cursor, row.last)?,
            })
        })
        .collect()
}

/// What `node` has earned, by token.
pub async fn earnings(db: &mut PgConnection, node: Address) -> Result<Vec<Earning>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select a.token as "token: DbAddress", a.earned as "earned: DbAmount",
                  m.number as "block?",
                  (select b.hash from chain_block b where b.canonical and b.number = m.number) as "hash?: DbHash",
                  coalesce(l.block_number - m.number >= confirmation_depth(a.token, a.earned), false) as "is_deep!",
                  l.block_number as "cursor!", l.final_number as "last!"
           from escrow_earned a
           cross join chain_level l
           cross join lateral (
               -- What did not move since is as it was at the final block.
               select coalesce(
                   (select max(y.block_number) from ledger_entry y
                    where y.block_number > l.final_number and y.block_number <= l.block_number
                        and y.account = 'earned' and y.owner = a.node and y.token = a.token),
                   nullif(nullif(l.final_number, -1), 9223372036854775807)
               ) as number
           ) m
           where a.node = $1 order by a.token"#,
        DbAddress(node) as _
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let seen = Seen { block: row.block, hash: row.hash, is_deep: row.is_deep };
            let confirmation = seen.confirmation(row.cursor, row.last)?;
            Ok(Earning { token: row.token.0, amount: row.earned.0, confirmation })
        })
        .collect()
}

/// How sure what the chain says of each of `channels` is, in their order; nothing for those of which it says nothing.
pub async fn of_channels(
    db: &mut PgConnection,
    channels: &[Channel],
) -> Result<Vec<Option<Confirmation>>, sqlx::Error> {
    let keys = channels.iter().map(|Channel { requester, node, token }| {
        Json(Key::Channel { requester: *requester, node: *node, token: *token })
    });
    let rows = sqlx::query!(
        r#"select m.number as "block?",
                  (select b.hash from chain_block b where b.canonical and b.number = m.number) as "hash?: DbHash",
                  coalesce(l.block_number - m.number >= confirmation_depth(k.token, greatest(c.claimed, c.reserved)), false)
                      as "is_deep!",
                  l.block_number as "cursor!", l.final_number as "last!"
           from unnest($1::jsonb[], $2::bytea[], $3::bytea[], $4::bytea[]) with ordinality
               as k (key, requester, node, token, position)
           cross join chain_level l
           left join escrow_channel c on c.requester = k.requester and c.node = k.node and c.token = k.token
           left join lateral (
               -- What did not move since is as it was at the final block.
               select coalesce(
                   (select max(u.block_number) from chain_undo u
                    where u.block_number > l.final_number and u.block_number <= l.block_number and u.key = k.key),
                   nullif(nullif(l.final_number, -1), 9223372036854775807)
               ) as number
               where c.requester is not null
           ) m on true
           order by k.position"#,
        &keys.collect::<Vec<_>>() as _,
        &channels.iter().map(|channel| DbAddress(channel.requester)).collect::<Vec<_>>() as _,
        &channels.iter().map(|channel| DbAddress(channel.node)).collect::<Vec<_>>() as _,
        &channels.iter().map(|channel| DbAddress(channel.token)).collect::<Vec<_>>() as _
    )
    .fetch_all(db)
    .await?;
    let seen = |block, hash, is_deep| Seen { block, hash, is_deep };
    rows.into_iter().map(|row| seen(row.block, row.hash, row.is_deep).confirmation(row.cursor, row.last)).collect()
}

/// How far the indexer has read; nothing before it began.
pub async fn indexed(db: &mut PgConnection) -> Result<Option<Indexed>, sqlx::Error> {
    let row = sqlx::query!(
        r#"select c.block_number, c.block_hash as "block_hash: DbHash", b.mined_at
           from chain_cursor c join chain_block b on b.hash = c.block_hash"#
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(Indexed { block_number: from_db(row.block_number)?, block_hash: row.block_hash.0, mined_at: row.mined_at })
    })
    .transpose()
}

/// Timestamp of a block that counts as final, the latest of those that are kept. Whatever the chain mines from now on is later.
/// Nothing if no block is final.
pub async fn final_time(db: &mut PgConnection) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    sqlx::query_scalar!(
        "select b.mined_at from chain_block b cross join chain_level l
         where b.canonical and b.number <= l.final_number and b.number <= l.block_number
         order by b.number desc limit 1"
    )
    .fetch_optional(db)
    .await
}
