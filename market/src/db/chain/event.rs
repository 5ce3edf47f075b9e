//! `chain_event`.

use alloy::primitives::{B256, Bytes};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::{ApplyError, BlockId, from_db, to_db};
use crate::db::copy::{Copy, copy_row};
use crate::db::types::{DbAddress, DbAmount, DbHash};
use crate::fold::{ChainEvent, Event, FoldError, RawLog};

/// How many events are sent before others are looked at.
const AT_ONCE: usize = 256;

/// Writes events as canonical, and calls `meanwhile` with each stretch of them while Postgres is at work on it. Those of `back`,
/// blocks that were stored before, take the place of what was stored of them.
pub(super) async fn insert(
    db: &mut PgConnection,
    events: &[ChainEvent],
    back: &[BlockId],
    mut meanwhile: impl FnMut(&[ChainEvent]) -> Result<(), FoldError>,
) -> Result<(), ApplyError> {
    if !back.is_empty() {
        forget(db, back).await?;
    }
    if events.is_empty() {
        return Ok(());
    }
    let mut copy = Copy::begin(
        db,
        "copy chain_event (block_number, log_index, block_hash, tx_hash, contract, kind, topics, data, canonical)
         from stdin (format binary)",
    )
    .await?;
    for stretch in events.chunks(AT_ONCE) {
        for ChainEvent { log, event } in stretch {
            copy_row!(
                copy,
                to_db(log.block_number)?,
                to_db(log.log_index)?,
                DbHash(log.block_hash),
                DbHash(log.tx_hash),
                DbAddress(log.contract),
                event.kind(),
                log.topics.concat(),
                &log.data[..],
                true,
            );
        }
        copy.flush().await?;
        if let Err(error) = meanwhile(stretch) {
            copy.abort().await?;
            return Err(error.into());
        }
    }
    copy.finish().await?;
    Ok(insert_redemptions(db, events).await?)
}

async fn insert_redemptions(db: &mut PgConnection, events: &[ChainEvent]) -> Result<(), sqlx::Error> {
    if !events.iter().any(|event| matches!(event.event, Event::VouchersRedeemed(_))) {
        return Ok(());
    }
    let mut copy = Copy::begin(
        db,
        "copy chain_redemption (block_number, log_index, position, block_hash, requester, node, token, claimed,
                                covered_nonce)
         from stdin (format binary)",
    )
    .await?;
    for ChainEvent { log, event } in events {
        let Event::VouchersRedeemed(redeemed) = event else { continue };
        for (position, redemption) in (0_i32..).zip(&redeemed.redemptions) {
            copy_row!(
                copy,
                to_db(log.block_number)?,
                to_db(log.log_index)?,
                position,
                DbHash(log.block_hash),
                DbAddress(redemption.requester),
                DbAddress(redeemed.node),
                DbAddress(redeemed.token),
                DbAmount::from(redemption.claimed),
                DbAmount::from(u128::from(redemption.covered_nonce)),
            );
        }
    }
    copy.finish().await
}

/// Deletes the events of `blocks`.
async fn forget(db: &mut PgConnection, blocks: &[BlockId]) -> Result<(), sqlx::Error> {
    let numbers = blocks.iter().map(|block| to_db(block.number)).collect::<Result<Vec<_>, _>>()?;
    let hashes: Vec<DbHash> = blocks.iter().map(|block| DbHash(block.hash)).collect();
    sqlx::query!(
        "with redemption as (
             delete from chain_redemption r using unnest($1::bigint[], $2::bytea[]) as b (number, hash)
             where r.block_number = b.number and r.block_hash = b.hash
         )
         delete from chain_event e using unnest($1::bigint[], $2::bytea[]) as b (number, hash)
         where e.block_number = b.number and e.block_hash = b.hash",
        &numbers,
        &hashes as _
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Marks the events of all blocks above `number` as no longer canonical, and says how many they were.
pub(super) async fn orphan_above(db: &mut PgConnection, number: u64) -> Result<u64, sqlx::Error> {
    let orphaned =
        sqlx::query!("update chain_event set canonical = false where canonical and block_number > $1", to_db(number)?)
            .execute(db)
            .await?;
    Ok(orphaned.rows_affected())
}

/// The canonical events of the blocks `from` to `to`, in the chain's order.
pub async fn canonical_between(db: &mut PgConnection, from: u64, to: u64) -> Result<Vec<RawLog>, sqlx::Error> {
    let rows = sqlx::query_as!(
        LogRow,
        r#"select e.block_hash as "block_hash: DbHash", e.log_index, e.block_number, b.mined_at,
                  e.tx_hash as "tx_hash: DbHash", e.contract as "contract: DbAddress", e.topics, e.data
           from chain_event e
           join chain_block b on b.hash = e.block_hash
           where e.canonical and e.block_number between $1 and $2
           order by e.block_number, e.log_index"#,
        to_db(from)?,
        to_db(to)?
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(LogRow::read).collect()
}

/// A [`RawLog`] in its columns.
struct LogRow {
    block_hash: DbHash,
    log_index: i64,
    block_number: i64,
    mined_at: DateTime<Utc>,
    tx_hash: DbHash,
    contract: DbAddress,
    topics: Vec<u8>,
    data: Vec<u8>,
}

impl LogRow {
    fn read(self) -> Result<RawLog, sqlx::Error> {
        Ok(RawLog {
            block_number: from_db(self.block_number)?,
            block_hash: self.block_hash.0,
            mined_at: self.mined_at,
            tx_hash: self.tx_hash.0,
            log_index: from_db(self.log_index)?,
            contract: self.contract.0,
            topics: self.topics.chunks_exact(32).map(B256::from_slice).collect(),
            data: Bytes::from(self.data),
        })
    }
}
