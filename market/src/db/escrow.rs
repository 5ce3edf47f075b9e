//! What the escrow holds, as the chain says: `escrow_job`, `escrow_account`, `escrow_earned`, `escrow_channel`,
//! `escrow_session`, `escrow_settler`, `escrow_fee`, `chain_parameter`. Writer: the indexer.

mod channel;
mod job;

use std::collections::BTreeMap;

use alloy::primitives::Address;
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::types::{DbAddress, DbAmount};
use crate::Amount;
use crate::fold::EscrowAccount;

pub use channel::{
    channels, delete_channels, delete_fees, delete_parameters, delete_sessions, delete_settlers, fees, parameters,
    save_channels, save_fees, save_parameters, save_sessions, save_settlers, sessions, settlers,
};
pub use job::{delete_jobs, insert_jobs, jobs, save_jobs};

/// Pairs as two arrays, for `unnest`.
fn columns(pairs: impl Iterator<Item = (Address, Address)>) -> (Vec<DbAddress>, Vec<DbAddress>) {
    pairs.map(|(one, other)| (DbAddress(one), DbAddress(other))).unzip()
}

/// The accounts among `keys` (owner, token) that ever held anything.
pub async fn accounts(
    db: &mut PgConnection,
    keys: &[(Address, Address)],
) -> Result<BTreeMap<(Address, Address), EscrowAccount>, sqlx::Error> {
    if keys.is_empty() {
        return Ok(BTreeMap::new());
    }
    let (owners, tokens) = columns(keys.iter().copied());
    let rows = sqlx::query!(
        r#"select a.owner as "owner: DbAddress", a.token as "token: DbAddress", a.free as "free: DbAmount",
                  a.thawing as "thawing: DbAmount", a.thaw_end
           from escrow_account a
           join unnest($1::bytea[], $2::bytea[]) as k (owner, token) on a.owner = k.owner and a.token = k.token"#,
        &owners as _,
        &tokens as _
    )
    .fetch_all(db)
    .await?;
    let account =
        |free: DbAmount, thawing: DbAmount, thaw_end| EscrowAccount { free: free.0, thawing: thawing.0, thaw_end };
    Ok(rows.into_iter().map(|r| ((r.owner.0, r.token.0), account(r.free, r.thawing, r.thaw_end))).collect())
}

/// Writes accounts as folded.
pub async fn save_accounts(
    db: &mut PgConnection,
    accounts: &BTreeMap<(Address, Address), EscrowAccount>,
) -> Result<(), sqlx::Error> {
    if accounts.is_empty() {
        return Ok(());
    }
    let (owners, tokens) = columns(accounts.keys().copied());
    let free: Vec<DbAmount> = accounts.values().map(|account| DbAmount(account.free)).collect();
    let thawing: Vec<DbAmount> = accounts.values().map(|account| DbAmount(account.thawing)).collect();
    let thaw_end: Vec<Option<DateTime<Utc>>> = accounts.values().map(|account| account.thaw_end).collect();
    sqlx::query!(
        "insert into escrow_account (owner, token, free, thawing, thaw_end)
         select * from unnest($1::bytea[], $2::bytea[], $3::numeric[], $4::numeric[], $5::timestamptz[])
         on conflict (owner, token) do update set
             free = excluded.free, thawing = excluded.thawing, thaw_end = excluded.thaw_end",
        &owners as _,
        &tokens as _,
        &free as _,
        &thawing as _,
        &thaw_end as _
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Removes accounts that, after a reorg, never held anything.
pub async fn delete_accounts(db: &mut PgConnection, keys: &[(Address, Address)]) -> Result<(), sqlx::Error> {
    let (owners, tokens) = columns(keys.iter().copied());
    sqlx::query!(
        "delete from escrow_account a using unnest($1::bytea[], $2::bytea[]) as k (owner, token)
         where a.owner = k.owner and a.token = k.token",
        &owners as _,
        &tokens as _
    )
    .execute(db)
    .await?;
    Ok(())
}

/// What those among `keys` (node, token) have earned and not withdrawn; a missing one never earned anything.
pub async fn earned(
    db: &mut PgConnection,
    keys: &[(Address, Address)],
) -> Result<BTreeMap<(Address, Address), Amount>, sqlx::Error> {
    if keys.is_empty() {
        return Ok(BTreeMap::new());
    }
    let (nodes, tokens) = columns(keys.iter().copied());
    let rows = sqlx::query!(
        r#"select e.node as "node: DbAddress", e.token as "token: DbAddress", e.earned as "earned: DbAmount"
           from escrow_earned e
           join unnest($1::bytea[], $2::bytea[]) as k (node, token) on e.node = k.node and e.token = k.token"#,
        &nodes as _,
        &tokens as _
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| ((row.node.0, row.token.0), row.earned.0)).collect())
}

/// Writes earnings as folded.
pub async fn save_earned(
    db: &mut PgConnection,
    earned: &BTreeMap<(Address, Address), Amount>,
) -> Result<(), sqlx::Error> {
    if earned.is_empty() {
        return Ok(());
    }
    let (nodes, tokens) = columns(earned.keys().copied());
    let amounts: Vec<DbAmount> = earned.values().copied().map(DbAmount).collect();
    sqlx::query!(
        "insert into escrow_earned (node, token, earned)
         select * from unnest($1::bytea[], $2::bytea[], $3::numeric[])
         on conflict (node, token) do update set earned = excluded.earned",
        &nodes as _,
        &tokens as _,
        &amounts as _
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Removes earnings that, after a reorg, never were.
pub async fn delete_earned(db: &mut PgConnection, keys: &[(Address, Address)]) -> Result<(), sqlx::Error> {
    let (nodes, tokens) = columns(keys.iter().copied());
    sqlx::query!(
        "delete from escrow_earned e using unnest($1::bytea[], $2::bytea[]) as k (node, token)
         where e.node = k.node and e.token = k.token",
        &nodes as _,
        &tokens as _
    )
    .execute(db)
    .await?;
    Ok(())
}
