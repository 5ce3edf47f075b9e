//! Sums over what was sent, and what of it is final.

use alloy::primitives::{Address, U256};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use crate::db::chain::{from_db, to_db};
use crate::db::leader::{Fence, FenceError};
use crate::db::types::{DbAddress, DbAmount};

/// Where the settling of payments stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Of the leader, and since when it leads; nothing if there never was one.
    pub epoch: Option<(i64, DateTime<Utc>)>,
    /// Payments whose job is done and which the chain has not settled for good.
    pub unsettled: i64,
    /// Since when the oldest of them is.
    pub oldest: Option<DateTime<Utc>>,
    /// Jobs and vouchers on hold.
    pub holds: i64,
    /// Batches by state, and how many of those that ended are final.
    pub batches: Vec<(String, i64, i64)>,
    /// Ranges of nonces that other transactions have used.
    pub foreign: i64,
}

/// Where the settling of payments stands.
pub async fn status(db: &mut PgConnection) -> Result<Status, sqlx::Error> {
    let leader =
        sqlx::query!("select epoch, since from leader where role = 'settler'").fetch_optional(&mut *db).await?;
    let row = sqlx::query!(
        r#"select (select count(*) from payment_due where closed_at is null) as "unsettled!",
                  (select min(created_at) from payment_due where closed_at is null) as oldest,
                  (select count(*) from settlement_hold) + (select count(*) from voucher_hold) as "holds!",
                  (select count(*) from settlement_foreign_nonce) as "foreign!""#
    )
    .fetch_one(&mut *db)
    .await?;
    let batches = sqlx::query!(
        r#"select state, count(*) as "count!", count(final_at) as "final!" from settlement_batch group by state order by state"#
    )
    .fetch_all(db)
    .await?;
    Ok(Status {
        epoch: leader.map(|row| (row.epoch, row.since)),
        unsettled: row.unsettled,
        oldest: row.oldest,
        holds: row.holds,
        batches: batches.into_iter().map(|row| (row.state, row.count, row.r#final)).collect(),
        foreign: row.foreign,
    })
}

/// Wei that `sender`'s batches since `since` have cost, or may cost where that is not known yet.
pub async fn spent_since(db: &mut PgConnection, sender: Address, since: DateTime<Utc>) -> Result<U256, sqlx::Error> {
    let spent = sqlx::query_scalar!(
        r#"select coalesce(sum(case
                   when b.gas_used is not null then b.gas_used * b.gas_price
                   when b.state = 'displaced' then 0
                   else (
                       select max(a.gas_limit * a.max_fee_per_gas) from settlement_attempt a where a.batch_id = b.id
                   )
               end), 0) as "wei!: DbAmount"
           from settlement_batch b
           where b.sender = $1 and b.created_at > $2"#,
        DbAddress(sender) as _,
        since
    )
    .fetch_one(db)
    .await?;
    Ok(spent.0.0)
}

/// Marks the ended batches up to block `number`, which is final, as final where the indexer agrees with their block.
/// Returns their numbers and nonces.
pub async fn finalize(
    db: &mut PgConnection,
    fence: Fence,
    number: u64,
    now: DateTime<Utc>,
) -> Result<Vec<(i64, u64)>, FenceError> {
    fence.check(db).await?;
    let rows = sqlx::query!(
        "update settlement_batch b
         set final_at = $2
         where b.state <> 'pending' and b.final_at is null and b.block_number <= $1
             and exists (select from chain_cursor c where c.block_number >= $1)
             and not exists (
                 select from chain_block k where k.number = b.block_number and k.canonical and k.hash <> b.block_hash
             )
         returning b.id, b.nonce",
        to_db(number)?,
        now
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| Ok((row.id, from_db(row.nonce)?))).collect::<Result<_, sqlx::Error>>()?)
}
