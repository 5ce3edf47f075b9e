//! How payments reach the chain: batches, their signed attempts, and payments on hold. Writer: the settler's leader.
//!
//! A batch is written with its nonce and signed bytes before anything is sent. Every write checks the leader's fence in its
//! own transaction, so that a leader that was overtaken can send again what is stored, and nothing else.

mod due;

pub use due::{Backoff, due_results, finalizable};

use alloy::primitives::{Address, B256};
use alloy::sol_types::SolEvent;
use chrono::{DateTime, Utc};
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{Postgres, Transaction};

use crate::abi::{IJobEscrow, SkipReason};
use crate::batch::Kind;
use crate::db::chain::{from_db, to_db};
use crate::db::leader::{Fence, FenceError};
use crate::db::outbox::{self, Entity, Source};
use crate::db::types::{DbAddress, DbAmount, DbHash};

/// One signed form of a batch's transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Hash of the transaction.
    pub tx_hash: B256,
    /// The signed transaction, EIP-2718 encoded.
    pub raw_tx: Vec<u8>,
    /// Its gas limit.
    pub gas_limit: u64,
    /// Wei.
    pub max_fee_per_gas: u128,
    /// Wei.
    pub max_priority_fee_per_gas: u128,
    /// When it was signed.
    pub created_at: DateTime<Utc>,
}

/// A batch whose nonce is not known to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingBatch {
    /// Its number.
    pub id: i64,
    /// Which call it makes.
    pub kind: Kind,
    /// Who signed it.
    pub sender: Address,
    /// The nonce it took.
    pub nonce: u64,
    /// When it was planned.
    pub created_at: DateTime<Utc>,
    /// Its jobs, in the order of the call.
    pub job_ids: Vec<B256>,
    /// Its signed forms, oldest first; never empty.
    pub attempts: Vec<Attempt>,
}

/// How a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its transaction was mined; what it did to each job, the indexer says.
    Mined(Mined),
    /// Its transaction was mined and reverted as a whole.
    Reverted(Mined),
    /// Another transaction used its nonce: `by`, if that is known.
    Displaced {
        /// The other transaction.
        by: Option<B256>,
    },
}

/// Where an attempt was mined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mined {
    /// Which of the attempts.
    pub tx_hash: B256,
    /// In which block.
    pub block_number: u64,
    /// What it took.
    pub gas_used: u64,
}

/// What the indexer has seen of one item of a mined batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Which job.
    pub job_id: B256,
    /// Whether the contract still waits for what the batch was to do.
    pub unsettled: bool,
    /// Why the contract skipped it in this transaction, if it did.
    pub skipped: Option<SkipReason>,
}

/// A transaction whose reads all see the database as it is now, so that the indexer cannot change it between two of them.
/// A write that meets another leader's fails.
pub async fn snapshot(pool: &PgPool) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    pool.begin_with("begin isolation level repeatable read").await
}

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

/// Writes a batch with its items and its first attempt. The caller has taken `nonce` from [`next_nonce`] in the same
/// transaction, so that no other leader can have taken it too.
pub async fn insert_batch(
    db: &mut PgConnection,
    fence: Fence,
    kind: Kind,
    (sender, nonce): (Address, u64),
    job_ids: &[B256],
    attempt: &Attempt,
    now: DateTime<Utc>,
) -> Result<i64, FenceError> {
    fence.check(db).await?;
    let id = sqlx::query_scalar!(
        "insert into settlement_batch (kind, sender, nonce, state, epoch, created_at)
         values ($1, $2, $3, 'pending', $4, $5)
         returning id",
        kind.name(),
        DbAddress(sender) as _,
        to_db(nonce)?,
        fence.epoch(),
        now
    )
    .fetch_one(&mut *db)
    .await?;
    sqlx::query!(
        "insert into settlement_item (batch_id, job_id, position)
         select $1, item.job_id, item.position - 1
         from unnest($2::bytea[]) with ordinality as item (job_id, position)",
        id,
        &hashes(job_ids) as _
    )
    .execute(&mut *db)
    .await?;
    insert_attempt(db, id, attempt).await?;
    announce(db, job_ids, "payment.sending", now).await?;
    Ok(id)
}

/// Writes another signed form of a pending batch.
pub async fn append_attempt(
    db: &mut PgConnection,
    fence: Fence,
    batch_id: i64,
    attempt: &Attempt,
) -> Result<(), FenceError> {
    fence.check(db).await?;
    Ok(insert_attempt(db, batch_id, attempt).await?)
}

async fn insert_attempt(db: &mut PgConnection, batch_id: i64, attempt: &Attempt) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into settlement_attempt
             (tx_hash, batch_id, raw_tx, gas_limit, max_fee_per_gas, max_priority_fee_per_gas, created_at)
         values ($1, $2, $3, $4, $5, $6, $7)",
        DbHash(attempt.tx_hash) as _,
        batch_id,
        attempt.raw_tx,
        to_db(attempt.gas_limit)?,
        DbAmount::from(attempt.max_fee_per_gas) as _,
        DbAmount::from(attempt.max_priority_fee_per_gas) as _,
        attempt.created_at
    )
    .execute(db)
    .await?;
    Ok(())
}

/// All pending batches, lowest nonce first.
pub async fn pending(db: &mut PgConnection) -> Result<Vec<PendingBatch>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select b.id, b.kind, b.sender as "sender: DbAddress", b.nonce, b.created_at,
                  array(select i.job_id from settlement_item i where i.batch_id = b.id order by i.position)
                      as "job_ids!: Vec<DbHash>"
           from settlement_batch b
           where b.state = 'pending'
           order by b.nonce, b.id"#
    )
    .fetch_all(&mut *db)
    .await?;
    let mut batches = Vec::with_capacity(rows.len());
    for row in rows {
        batches.push(PendingBatch {
            id: row.id,
            kind: Kind::from_name(&row.kind)
                .ok_or_else(|| corrupt(format!("kind {:?} of batch {}", row.kind, row.id)))?,
            sender: row.sender.0,
            nonce: from_db(row.nonce)?,
            created_at: row.created_at,
            job_ids: row.job_ids.into_iter().map(|id| id.0).collect(),
            attempts: attempts(db, row.id).await?,
        });
    }
    Ok(batches)
}

async fn attempts(db: &mut PgConnection, batch_id: i64) -> Result<Vec<Attempt>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select tx_hash as "tx_hash: DbHash", raw_tx, gas_limit,
                  max_fee_per_gas as "max_fee_per_gas: DbAmount",
                  max_priority_fee_per_gas as "max_priority_fee_per_gas: DbAmount", created_at
           from settlement_attempt
           where batch_id = $1
           order by max_fee_per_gas, created_at"#,
        batch_id
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Attempt {
                tx_hash: row.tx_hash.0,
                raw_tx: row.raw_tx,
                gas_limit: from_db(row.gas_limit)?,
                max_fee_per_gas: wei(row.max_fee_per_gas)?,
                max_priority_fee_per_gas: wei(row.max_priority_fee_per_gas)?,
                created_at: row.created_at,
            })
        })
        .collect()
}

/// Ends a pending batch, and puts the payments of `holds` on hold. Returns false, and changes nothing, if the batch is not
/// pending any more.
pub async fn end_batch(
    db: &mut PgConnection,
    fence: Fence,
    batch: &PendingBatch,
    ending: Ending,
    holds: &[(B256, String)],
    now: DateTime<Utc>,
) -> Result<bool, FenceError> {
    fence.check(db).await?;
    let (state, tx_hash, mined) = match ending {
        Ending::Mined(mined) => ("mined", Some(mined.tx_hash), Some(mined)),
        Ending::Reverted(mined) => ("reverted", Some(mined.tx_hash), Some(mined)),
        Ending::Displaced { by } => ("displaced", by, None),
    };
    let ended = sqlx::query!(
        "update settlement_batch
         set state = $2, ended_at = $3, tx_hash = $4, block_number = $5, gas_used = $6
         where id = $1 and state = 'pending'",
        batch.id,
        state,
        now,
        tx_hash.map(DbHash) as _,
        mined.map(|mined| to_db(mined.block_number)).transpose()?,
        mined.map(|mined| to_db(mined.gas_used)).transpose()?
    )
    .execute(&mut *db)
    .await?;
    if ended.rows_affected() == 0 {
        return Ok(false);
    }
    hold_all(db, holds, now).await?;
    announce(db, &batch.job_ids, "payment.sent", now).await?;
    Ok(true)
}

/// Makes the ended batches of `sender` with a nonce from `from_nonce` on pending again: a reorg has freed their nonces.
/// Returns their numbers.
pub async fn reopen(
    db: &mut PgConnection,
    fence: Fence,
    sender: Address,
    from_nonce: u64,
    now: DateTime<Utc>,
) -> Result<Vec<i64>, FenceError> {
    fence.check(db).await?;
    let reopened = sqlx::query_scalar!(
        "update settlement_batch
         set state = 'pending', ended_at = null, tx_hash = null, block_number = null, gas_used = null
         where sender = $1 and nonce >= $2 and state <> 'pending'
         returning id",
        DbAddress(sender) as _,
        to_db(from_nonce)?
    )
    .fetch_all(&mut *db)
    .await?;
    let job_ids = sqlx::query_scalar!(
        r#"select distinct job_id as "job_id: DbHash" from settlement_item where batch_id = any($1)"#,
        &reopened
    )
    .fetch_all(&mut *db)
    .await?;
    announce(db, &job_ids.into_iter().map(|id| id.0).collect::<Vec<_>>(), "payment.sending", now).await?;
    Ok(reopened)
}

/// Puts payments on hold, each with its reason. One that is on hold keeps its first reason.
pub async fn hold(
    db: &mut PgConnection,
    fence: Fence,
    holds: &[(B256, String)],
    now: DateTime<Utc>,
) -> Result<(), FenceError> {
    fence.check(db).await?;
    Ok(hold_all(db, holds, now).await?)
}

async fn hold_all(db: &mut PgConnection, holds: &[(B256, String)], now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    for (job_id, reason) in holds {
        sqlx::query!(
            "insert into settlement_hold (job_id, reason, created_at) values ($1, $2, $3) on conflict do nothing",
            DbHash(*job_id) as _,
            reason,
            now
        )
        .execute(&mut *db)
        .await?;
        announce(db, &[*job_id], "payment.held", now).await?;
    }
    Ok(())
}

/// Whether the indexer has applied the block `number`, and with this `hash` as far as it kept the block.
pub async fn has_indexed(db: &mut PgConnection, number: u64, hash: B256) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select exists (select 1 from chain_cursor where block_number >= $1)
              and not exists (select 1 from chain_block where number = $1 and canonical and hash <> $2) as "indexed!""#,
        to_db(number)?,
        DbHash(hash) as _
    )
    .fetch_one(db)
    .await
}

/// What the indexer has seen of the items of a batch that was mined as `tx_hash`. Ask only when it has seen the block.
pub async fn outcomes(db: &mut PgConnection, batch: &PendingBatch, tx_hash: B256) -> Result<Vec<Outcome>, sqlx::Error> {
    let awaited: Vec<String> = match batch.kind {
        Kind::Submit => vec!["open".to_owned()],
        Kind::Finalize => vec!["submitted".to_owned(), "disputed".to_owned()],
    };
    let rows = sqlx::query!(
        r#"select i.job_id as "job_id: DbHash", e.escrow_state = any($3) as unsettled, s.topics as "topics?", s.data as "data?"
           from settlement_item i
           left join job_view e on e.job_id = i.job_id
           left join lateral (
               select c.topics, c.data from chain_event c
               where c.tx_hash = $2 and c.canonical and c.job_id = i.job_id and c.kind = 'Skipped'
               order by c.log_index
               limit 1
           ) s on true
           where i.batch_id = $1
           order by i.position"#,
        batch.id,
        DbHash(tx_hash) as _,
        &awaited
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Outcome {
                job_id: row.job_id.0,
                // A job that a reorg took off the chain is not due either: it has no row.
                unsettled: row.unsettled.unwrap_or(false),
                skipped: row.topics.zip(row.data).map(|(topics, data)| skip_reason(&topics, &data)).transpose()?,
            })
        })
        .collect()
}

fn skip_reason(topics: &[u8], data: &[u8]) -> Result<SkipReason, sqlx::Error> {
    let topics = topics.chunks_exact(32).map(B256::from_slice);
    IJobEscrow::Skipped::decode_raw_log(topics, data)
        .map(|event| event.reason)
        .map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

/// Tells the projector that the jobs' status may have changed.
async fn announce(db: &mut PgConnection, jobs: &[B256], event: &str, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    let changes: Vec<_> = jobs.iter().map(|id| (Entity::Job(*id), event)).collect();
    outbox::append_many(db, Source::Work, &changes, now).await
}

fn hashes(ids: &[B256]) -> Vec<DbHash> {
    ids.iter().copied().map(DbHash).collect()
}

fn wei(amount: DbAmount) -> Result<u128, sqlx::Error> {
    amount.0.to_u128().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

fn corrupt(what: String) -> sqlx::Error {
    sqlx::Error::Decode(what.into())
}
