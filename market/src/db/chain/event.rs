//! `chain_event`.

use alloy::primitives::{B256, Bytes};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::{from_db, to_db};
use crate::db::types::{DbAddress, DbAmount, DbHash};
use crate::fold::{ChainEvent, Event, RawLog};

/// Writes events as canonical. An event whose block was orphaned may come back with it.
pub(super) async fn insert(db: &mut PgConnection, events: &[ChainEvent]) -> Result<(), sqlx::Error> {
    if events.is_empty() {
        return Ok(());
    }
    let logs = || events.iter().map(|event| &event.log);
    let log_indexes = logs().map(|log| to_db(log.log_index)).collect::<Result<Vec<_>, _>>()?;
    let block_numbers = logs().map(|log| to_db(log.block_number)).collect::<Result<Vec<_>, _>>()?;
    let kinds: Vec<String> = events.iter().map(|event| event.event.kind().to_owned()).collect();
    sqlx::query!(
        "insert into chain_event (block_number, log_index, block_hash, tx_hash, contract, kind, topics, data, canonical)
         select *, true from unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bytea[], $5::bytea[], $6::text[],
                                    $7::bytea[], $8::bytea[])
         on conflict (block_number, log_index, block_hash) do update set canonical = true",
        &block_numbers,
        &log_indexes,
        &logs().map(|log| DbHash(log.block_hash)).collect::<Vec<_>>() as _,
        &logs().map(|log| DbHash(log.tx_hash)).collect::<Vec<_>>() as _,
        &logs().map(|log| DbAddress(log.contract)).collect::<Vec<_>>() as _,
        &kinds,
        &logs().map(|log| log.topics.concat()).collect::<Vec<Vec<u8>>>(),
        &logs().map(|log| log.data.to_vec()).collect::<Vec<Vec<u8>>>(),
    )
    .execute(&mut *db)
    .await?;
    insert_redemptions(db, events).await
}

async fn insert_redemptions(db: &mut PgConnection, events: &[ChainEvent]) -> Result<(), sqlx::Error> {
    let mut rows = Vec::new();
    for event in events {
        if let Event::VouchersRedeemed(redeemed) = &event.event {
            for (position, redemption) in (0_i32..).zip(&redeemed.redemptions) {
                rows.push((&event.log, position, redeemed, redemption));
            }
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    let log_indexes = rows.iter().map(|row| to_db(row.0.log_index)).collect::<Result<Vec<_>, _>>()?;
    let block_numbers = rows.iter().map(|row| to_db(row.0.block_number)).collect::<Result<Vec<_>, _>>()?;
    sqlx::query!(
        "insert into chain_redemption (block_hash, log_index, position, block_number, requester, node, token, claimed,
                                       covered_nonce)
         select * from unnest($1::bytea[], $2::bigint[], $3::integer[], $4::bigint[], $5::bytea[], $6::bytea[],
                              $7::bytea[], $8::numeric[], $9::numeric[])
         on conflict do nothing",
        &rows.iter().map(|row| DbHash(row.0.block_hash)).collect::<Vec<_>>() as _,
        &log_indexes,
        &rows.iter().map(|row| row.1).collect::<Vec<_>>(),
        &block_numbers,
        &rows.iter().map(|row| DbAddress(row.3.requester)).collect::<Vec<_>>() as _,
        &rows.iter().map(|row| DbAddress(row.2.node)).collect::<Vec<_>>() as _,
        &rows.iter().map(|row| DbAddress(row.2.token)).collect::<Vec<_>>() as _,
        &rows.iter().map(|row| DbAmount::from(row.3.claimed)).collect::<Vec<_>>() as _,
        &rows.iter().map(|row| DbAmount::from(u128::from(row.3.covered_nonce))).collect::<Vec<_>>() as _,
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
