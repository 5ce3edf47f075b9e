//! What the chain says, as clients ask for it: all accounts of one address, and how far the indexer has read. Read only.

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

pub use super::confirmation::{ObserveError, Standing, observe, standing};

use super::chain::from_db;
use super::types::{DbAddress, DbAmount, DbHash};
use crate::Amount;

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
}

/// What a node has earned in one token and not withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Earning {
    /// Zero for the native coin.
    pub token: Address,
    /// In the token's smallest unit.
    pub amount: Amount,
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
        r#"select token as "token: DbAddress", free as "free: DbAmount", thawing as "thawing: DbAmount", thaw_end
           from escrow_account where owner = $1 order by token"#,
        DbAddress(owner) as _
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Balance { token: row.token.0, free: row.free.0, thawing: row.thawing.0, thaw_end: row.thaw_end })
        .collect())
}

/// What `node` has earned, by token.
pub async fn earnings(db: &mut PgConnection, node: Address) -> Result<Vec<Earning>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select token as "token: DbAddress", earned as "earned: DbAmount"
           from escrow_earned where node = $1 order by token"#,
        DbAddress(node) as _
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| Earning { token: row.token.0, amount: row.earned.0 }).collect())
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
