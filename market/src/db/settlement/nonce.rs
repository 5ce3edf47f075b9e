//! Which nonces of the settler's account are whose.

use alloy::primitives::Address;
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::announce;
use crate::db::chain::{BlockId, from_db, to_db};
use crate::db::leader::{Fence, FenceError};
use crate::db::types::{DbAddress, DbHash};

/// Takes the lowest nonce of `sender` from `chain_count` on (the number of its mined transactions) that no batch has. That
/// is the one after the latest batch, unless foreign transactions have used more, or have left a gap in a reorg.
pub async fn next_nonce(
    db: &mut PgConnection,
    fence: Fence,
    sender: Address,
    chain_count: u64,
) -> Result<u64, FenceError> {
    fence.check(db).await?;
    let nonce = sqlx::query_scalar!(
        r#"select min(free.nonce) as "nonce!" from (
               select $2::bigint as nonce
               union all
               select nonce + 1 from settlement_batch where sender = $1 and nonce >= $2
           ) free
           where not exists (select 1 from settlement_batch b where b.sender = $1 and b.nonce = free.nonce)"#,
        DbAddress(sender) as _,
        to_db(chain_count)?
    )
    .fetch_one(db)
    .await?;
    Ok(from_db(nonce)?)
}

/// The nonces of `sender` in `from..count` that neither a batch has nor were found to be foreign, as ranges of first and
/// last.
pub async fn unexplained(
    db: &mut PgConnection,
    sender: Address,
    from: u64,
    count: u64,
) -> Result<Vec<(u64, u64)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select nonce as "first!", nonce as "last!" from settlement_batch
           where sender = $1 and nonce >= $2 and nonce < $3
           union all
           select first_nonce, last_nonce from settlement_foreign_nonce
           where sender = $1 and last_nonce >= $2 and first_nonce < $3
           order by 1"#,
        DbAddress(sender) as _,
        to_db(from)?,
        to_db(count)?
    )
    .fetch_all(db)
    .await?;
    let taken = rows
        .into_iter()
        .map(|row| Ok((from_db(row.first)?, from_db(row.last)?)))
        .collect::<Result<Vec<(u64, u64)>, sqlx::Error>>()?;
    Ok(gaps(from, count, &taken))
}

/// What of `from..count` lies in none of the ranges of `taken`, which are ordered by their first.
fn gaps(from: u64, count: u64, taken: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let (mut next, mut gaps) = (from, Vec::new());
    for (first, last) in taken {
        if *first > next {
            gaps.push((next, (*first).min(count) - 1));
        }
        next = next.max(last.saturating_add(1));
    }
    if next < count {
        gaps.push((next, count - 1));
    }
    gaps
}

/// Notes that transactions that no batch knows have used the nonces of `range`, by the canonical `block`.
pub async fn record_foreign(
    db: &mut PgConnection,
    fence: Fence,
    sender: Address,
    range: (u64, u64),
    block: BlockId,
    now: DateTime<Utc>,
) -> Result<(), FenceError> {
    fence.check(db).await?;
    sqlx::query!(
        "insert into settlement_foreign_nonce (sender, first_nonce, last_nonce, block_number, block_hash, found_at)
         values ($1, $2, $3, $4, $5, $6)
         on conflict (sender, first_nonce, block_hash) do update set last_nonce = excluded.last_nonce",
        DbAddress(sender) as _,
        to_db(range.0)?,
        to_db(range.1)?,
        to_db(block.number)?,
        DbHash(block.hash) as _,
        now
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The foreign nonces of `sender`, as ranges of first and last, in their order.
pub async fn foreign_nonces(db: &mut PgConnection, sender: Address) -> Result<Vec<(u64, u64)>, sqlx::Error> {
    let rows = sqlx::query!(
        "select first_nonce, last_nonce from settlement_foreign_nonce where sender = $1 order by first_nonce, found_at",
        DbAddress(sender) as _
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(|row| Ok((from_db(row.first_nonce)?, from_db(row.last_nonce)?))).collect()
}

/// Makes the ended batches of `sender` pending again whose block the indexer has taken back: their bytes are as good as
/// before, and may be mined elsewhere already. What was final is taken up only if the chain also says, by `count`, that
/// its nonce is free. What they have put on hold is off it: the logs that said so are not on the chain any more. Returns their
/// numbers.
pub async fn reopen(
    db: &mut PgConnection,
    fence: Fence,
    sender: Address,
    count: Option<u64>,
    now: DateTime<Utc>,
) -> Result<Vec<i64>, FenceError> {
    fence.check(db).await?;
    let reopened = sqlx::query_scalar!(
        "update settlement_batch b
         set state = 'pending', ended_at = null, tx_hash = null, block_number = null, block_hash = null,
             gas_used = null, gas_price = null, final_at = null
         where b.id in (
                 select id from settlement_batch where state <> 'pending' and final_at is null and sender = $1
                 union
                 select id from settlement_batch where state <> 'pending' and sender = $1 and nonce >= $2
             )
             and (
                 not exists (select from chain_cursor c where c.block_number >= b.block_number)
                 or exists (
                     select from chain_block k
                     where k.number = b.block_number and k.canonical and k.hash <> b.block_hash
                 )
             )
         returning b.id",
        DbAddress(sender) as _,
        count.map_or(Ok(i64::MAX), to_db)?
    )
    .fetch_all(&mut *db)
    .await?;
    if reopened.is_empty() {
        return Ok(reopened);
    }
    release_reopened(db, &reopened).await?;
    let job_ids = sqlx::query_scalar!(
        r#"select distinct job_id as "job_id: DbHash" from settlement_item where batch_id = any($1)"#,
        &reopened
    )
    .fetch_all(&mut *db)
    .await?;
    announce(db, &job_ids.into_iter().map(|id| id.0).collect::<Vec<_>>(), "payment.sending", now).await?;
    Ok(reopened)
}

async fn release_reopened(db: &mut PgConnection, batches: &[i64]) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "delete from settlement_hold h using settlement_item i where i.job_id = h.job_id and i.batch_id = any($1)",
        batches
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!(
        "delete from voucher_hold h using settlement_voucher v, settlement_batch b
         where b.id = any($1) and v.batch_id = b.id and h.requester = v.requester and h.node = b.node and h.token = b.token
             and h.cumulative = v.cumulative",
        batches
    )
    .execute(&mut *db)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::gaps;

    #[test]
    fn what_is_in_no_range_is_a_gap() {
        assert_eq!(gaps(0, 0, &[]), []);
        assert_eq!(gaps(0, 3, &[]), [(0, 2)]);
        assert_eq!(gaps(0, 3, &[(0, 0), (1, 1), (2, 2)]), []);
        assert_eq!(gaps(2, 9, &[(1, 3), (3, 3), (6, 6)]), [(4, 5), (7, 8)]);
        assert_eq!(gaps(2, 5, &[(3, 99)]), [(2, 2)]);
    }
}
