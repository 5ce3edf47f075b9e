//! What the indexer has seen of batches that were sent. Only that makes a payment paid.

use alloy::primitives::{Address, B256};
use alloy::sol_types::SolEvent;
use sqlx::postgres::PgConnection;

use super::{PendingBatch, hashes};
use crate::abi::{IJobEscrow, SkipReason};
use crate::batch::{Channel, Kind, Subject};
use crate::db::chain::{BlockId, from_db, to_db};
use crate::db::types::{DbAddress, DbAmount, DbHash};

/// A transaction of which the canonical chain has events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// Which.
    pub tx_hash: B256,
    /// Where.
    pub block: BlockId,
}

/// What the indexer has seen of one item of a mined batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// What the item was about.
    pub subject: Subject,
    /// A voucher's amount.
    pub cumulative: Option<u128>,
    /// Whether the contract still waits for what the batch was to do.
    pub unsettled: bool,
    /// Why the contract skipped it in this transaction, if it did.
    pub skipped: Option<SkipReason>,
}

/// Which of `transactions` the canonical chain has events of, and where.
pub async fn sightings(db: &mut PgConnection, transactions: &[B256]) -> Result<Vec<Sighting>, sqlx::Error> {
    if transactions.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query!(
        r#"select t.tx_hash as "tx_hash!: DbHash", e.block_number, e.block_hash as "block_hash: DbHash"
           from unnest($1::bytea[]) as t (tx_hash)
           cross join lateral (
               select c.block_number, c.block_hash from chain_event c
               where c.tx_hash = t.tx_hash and c.canonical
               limit 1
           ) e"#,
        &hashes(transactions) as _
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let block = BlockId { number: from_db(row.block_number)?, hash: row.block_hash.0 };
            Ok(Sighting { tx_hash: row.tx_hash.0, block })
        })
        .collect()
}

/// Whether the indexer has applied `block`, as far as it kept blocks of that height.
pub async fn is_canonical(db: &mut PgConnection, block: BlockId) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select exists (select 1 from chain_cursor where block_number >= $1)
              and not exists (select 1 from chain_block where number = $1 and canonical and hash <> $2) as "canonical!""#,
        to_db(block.number)?,
        DbHash(block.hash) as _
    )
    .fetch_one(db)
    .await
}

/// What the indexer has seen of the items of a batch that was mined as `tx_hash`. Ask only when it has seen the block.
pub async fn outcomes(db: &mut PgConnection, batch: &PendingBatch, tx_hash: B256) -> Result<Vec<Outcome>, sqlx::Error> {
    match batch.kind {
        Kind::Submit | Kind::Finalize => job_outcomes(db, batch, tx_hash).await,
        Kind::Redeem => voucher_outcomes(db, batch, tx_hash).await,
    }
}

async fn job_outcomes(db: &mut PgConnection, batch: &PendingBatch, tx_hash: B256) -> Result<Vec<Outcome>, sqlx::Error> {
    // A job that a reorg took off the chain is not due either: it has no row.
    let rows = sqlx::query!(
        r#"select i.job_id as "job_id: DbHash",
                  case when $3
                      then exists (select from escrow_job e where e.job_id = i.job_id and e.state in ('submitted', 'disputed'))
                      else exists (select from open_order o where o.job_id = i.job_id)
                  end as "unsettled!",
                  s.topics as "topics?", s.data as "data?"
           from settlement_item i
           left join lateral (
               select c.topics, c.data from chain_event c
               where c.tx_hash = $2 and c.canonical and c.kind = 'Skipped'
                 and substring(c.topics from 33 for 32) = i.job_id  -- the first that is indexed
               order by c.log_index
               limit 1
           ) s on true
           where i.batch_id = $1
           order by i.position"#,
        batch.id,
        DbHash(tx_hash) as _,
        batch.kind == Kind::Finalize
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let skipped = match row.topics.zip(row.data) {
                Some((topics, data)) => Some(decode::<IJobEscrow::Skipped>(&topics, &data)?.reason),
                None => None,
            };
            let subject = Subject::Job(row.job_id.0);
            Ok(Outcome { subject, cumulative: None, unsettled: row.unsettled, skipped })
        })
        .collect()
}

async fn voucher_outcomes(
    db: &mut PgConnection,
    batch: &PendingBatch,
    tx_hash: B256,
) -> Result<Vec<Outcome>, sqlx::Error> {
    let skipped = skipped_vouchers(db, tx_hash).await?;
    let rows = sqlx::query!(
        r#"select v.requester as "requester: DbAddress", v.cumulative as "cumulative: DbAmount",
                  exists (
                      select from chain_event e
                      join chain_redemption r on r.block_number = e.block_number and r.log_index = e.log_index
                          and r.block_hash = e.block_hash
                      where e.tx_hash = $2 and e.canonical and e.kind = 'VouchersRedeemed' and r.requester = v.requester
                  ) as "redeemed!"
           from settlement_voucher v
           where v.batch_id = $1
           order by v.position"#,
        batch.id,
        DbHash(tx_hash) as _
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let requester = row.requester.0;
            let skipped = skipped.iter().find(|(of, _)| *of == requester).map(|(_, reason)| *reason);
            let of = |channel: &&Channel| channel.requester == requester;
            let channel = batch.channels.iter().find(of).copied();
            let channel = channel.ok_or_else(|| super::corrupt(format!("batch {} has no {requester}", batch.id)))?;
            Ok(Outcome {
                subject: Subject::Channel(channel),
                cumulative: Some(super::wei(row.cumulative)?),
                unsettled: !row.redeemed,
                skipped,
            })
        })
        .collect()
}

async fn skipped_vouchers(db: &mut PgConnection, tx_hash: B256) -> Result<Vec<(Address, SkipReason)>, sqlx::Error> {
    let rows = sqlx::query!(
        "select topics, data from chain_event where tx_hash = $1 and canonical and kind = 'VoucherSkipped'",
        DbHash(tx_hash) as _
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let event = decode::<IJobEscrow::VoucherSkipped>(&row.topics, &row.data)?;
            Ok((event.requester, event.reason))
        })
        .collect()
}

fn decode<E: SolEvent>(topics: &[u8], data: &[u8]) -> Result<E, sqlx::Error> {
    let topics = topics.chunks_exact(32).map(B256::from_slice);
    E::decode_raw_log(topics, data).map_err(|error| sqlx::Error::Decode(Box::new(error)))
}
