//! How payments reach the chain: batches, their signed attempts, and payments on hold. Writer: the settler's leader.
//!
//! A batch is written with its nonce and signed bytes before anything is sent. Every write checks the leader's fence in its
//! own transaction, so that a leader that was overtaken can send again what is stored, and nothing else.

mod due;
mod hold;
mod nonce;
mod outcome;
mod redeem;
mod status;

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use sqlx::postgres::{PgConnection, PgListener, PgPool};
use sqlx::{Postgres, Transaction};

use crate::batch::{Batch, Channel, Kind};
use crate::db::chain::{BlockId, from_db, to_db};
use crate::db::leader::{Fence, FenceError};
use crate::db::outbox::{self, Entity, Source};
use crate::db::types::{DbAddress, DbAmount, DbHash};

pub use due::{Backoff, PutOff, due_results, finalizable};
pub use hold::{Hold, hold, hold_vouchers, holds, release, release_voucher};
pub use nonce::{foreign_nonces, next_nonce, record_foreign, reopen, unexplained};
pub use outcome::{Outcome, Sighting, is_canonical, outcomes, sightings};
pub use redeem::{Sums, redeemable};
pub use status::{Status, finalize, spent_since, status};

/// What the operator lets be paid.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only these tokens; any if empty. Zero is the native coin.
    pub tokens: Vec<Address>,
    /// Payments of less of a token are not sent, in its smallest unit.
    pub least: Vec<(Address, u128)>,
}

impl Filter {
    fn columns(&self) -> (Vec<DbAddress>, Vec<DbAddress>, Vec<DbAmount>) {
        let (least_tokens, least) =
            self.least.iter().map(|(token, amount)| (DbAddress(*token), DbAmount::from(*amount))).unzip();
        (self.tokens.iter().copied().map(DbAddress).collect(), least_tokens, least)
    }
}

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
    /// Its jobs, in the order of the call; none of vouchers.
    pub job_ids: Vec<B256>,
    /// Its vouchers' channels, in the order of the call.
    pub channels: Vec<Channel>,
    /// Its signed forms, oldest first; never empty.
    pub attempts: Vec<Attempt>,
}

impl PendingBatch {
    /// How many items it has. None: it only takes a nonce.
    #[must_use]
    pub fn items(&self) -> usize {
        self.job_ids.len() + self.channels.len()
    }
}

/// How a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its transaction was mined; what it did to each item, the indexer says.
    Mined(Mined),
    /// Its transaction was mined and reverted as a whole.
    Reverted(Mined),
    /// Another transaction used its nonce.
    Displaced {
        /// The other transaction, if it is known.
        by: Option<B256>,
        /// A canonical block by which the nonce was used.
        block: BlockId,
    },
}

/// Where an attempt was mined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mined {
    /// Which of the attempts.
    pub tx_hash: B256,
    /// In which block.
    pub block: BlockId,
    /// What it took, and wei a unit; nothing if no node tells.
    pub gas: Option<(u64, u128)>,
}

/// A pool for the settler's work. Queries are not compiled, which takes longer than they do.
pub async fn connect(database_url: &str, max_connections: u32) -> Result<PgPool, sqlx::Error> {
    let options = super::options(database_url)?.options([("jit", "off")]);
    super::pool_options(max_connections).connect_with(options).await
}

/// Hears of what the indexer has applied, when it is committed.
pub async fn listen(database_url: &str) -> Result<PgListener, sqlx::Error> {
    let mut listener = PgListener::connect(database_url).await?;
    listener.listen(Source::Chain.channel()).await?;
    Ok(listener)
}

/// A transaction whose reads all see the database as it is now, so that the indexer cannot change it between two of them.
/// A write that meets another leader's fails.
pub async fn snapshot(pool: &PgPool) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    pool.begin_with("begin isolation level repeatable read").await
}

/// Writes a batch with its items and its first attempt. The caller has taken `nonce` from [`next_nonce`] in the same
/// transaction, so that no other leader can have taken it too.
pub async fn insert_batch(
    db: &mut PgConnection,
    fence: Fence,
    batch: &Batch,
    (sender, nonce): (Address, u64),
    attempt: &Attempt,
    now: DateTime<Utc>,
) -> Result<i64, FenceError> {
    fence.check(db).await?;
    let payee = batch.payee();
    let id = sqlx::query_scalar!(
        "insert into settlement_batch (kind, node, token, sender, nonce, state, epoch, created_at)
         values ($1, $6, $7, $2, $3, 'pending', $4, $5)
         returning id",
        batch.kind.name(),
        DbAddress(sender) as _,
        to_db(nonce)?,
        fence.epoch(),
        now,
        payee.map(|(node, _)| DbAddress(node)) as _,
        payee.map(|(_, token)| DbAddress(token)) as _
    )
    .fetch_one(&mut *db)
    .await?;
    let job_ids = batch.job_ids();
    sqlx::query!(
        "insert into settlement_item (batch_id, job_id, position)
         select $1, item.job_id, item.position - 1
         from unnest($2::bytea[]) with ordinality as item (job_id, position)",
        id,
        &hashes(&job_ids) as _
    )
    .execute(&mut *db)
    .await?;
    insert_vouchers(db, id, batch).await?;
    insert_attempt(db, id, attempt).await?;
    announce(db, &job_ids, "payment.sending", now).await?;
    Ok(id)
}

async fn insert_vouchers(db: &mut PgConnection, batch_id: i64, batch: &Batch) -> Result<(), sqlx::Error> {
    let redemptions = batch.redemptions();
    if redemptions.is_empty() {
        return Ok(());
    }
    let requesters: Vec<_> = redemptions.iter().map(|r| DbAddress(r.channel.requester)).collect();
    let cumulative: Vec<_> = redemptions.iter().map(|r| DbAmount::from(r.cumulative)).collect();
    let covered: Vec<_> = redemptions.iter().map(|r| DbAmount::from(u128::from(r.covered_nonce))).collect();
    sqlx::query!(
        "insert into settlement_voucher (batch_id, position, requester, cumulative, covered_nonce)
         select $1, v.position - 1, v.requester, v.cumulative, v.covered_nonce
         from unnest($2::bytea[], $3::numeric[], $4::numeric[])
              with ordinality as v (requester, cumulative, covered_nonce, position)",
        batch_id,
        &requesters as _,
        &cumulative as _,
        &covered as _
    )
    .execute(db)
    .await?;
    Ok(())
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
                  b.node as "node?: DbAddress", b.token as "token?: DbAddress",
                  array(select i.job_id from settlement_item i where i.batch_id = b.id order by i.position)
                      as "job_ids!: Vec<DbHash>",
                  array(select v.requester from settlement_voucher v where v.batch_id = b.id order by v.position)
                      as "requesters!: Vec<DbAddress>"
           from settlement_batch b
           where b.state = 'pending'
           order by b.nonce, b.id"#
    )
    .fetch_all(&mut *db)
    .await?;
    let mut batches = Vec::with_capacity(rows.len());
    for row in rows {
        let (node, token) = (row.node.map(|node| node.0), row.token.map(|token| token.0));
        let channel = |requester: DbAddress| Channel {
            requester: requester.0,
            node: node.unwrap_or_default(),
            token: token.unwrap_or_default(),
        };
        batches.push(PendingBatch {
            id: row.id,
            kind: Kind::from_name(&row.kind)
                .ok_or_else(|| corrupt(format!("kind {:?} of batch {}", row.kind, row.id)))?,
            sender: row.sender.0,
            nonce: from_db(row.nonce)?,
            created_at: row.created_at,
            job_ids: row.job_ids.into_iter().map(|id| id.0).collect(),
            channels: row.requesters.into_iter().map(channel).collect(),
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

/// Ends a pending batch. Returns false, and changes nothing, if it is not pending any more.
pub async fn end_batch(
    db: &mut PgConnection,
    fence: Fence,
    batch: &PendingBatch,
    ending: Ending,
    now: DateTime<Utc>,
) -> Result<bool, FenceError> {
    fence.check(db).await?;
    let (state, tx_hash, block, gas) = match ending {
        Ending::Mined(mined) => ("mined", Some(mined.tx_hash), mined.block, mined.gas),
        Ending::Reverted(mined) => ("reverted", Some(mined.tx_hash), mined.block, mined.gas),
        Ending::Displaced { by, block } => ("displaced", by, block, None),
    };
    let ended = sqlx::query!(
        "update settlement_batch
         set state = $2, ended_at = $3, tx_hash = $4, block_number = $5, block_hash = $6, gas_used = $7, gas_price = $8
         where id = $1 and state = 'pending'",
        batch.id,
        state,
        now,
        tx_hash.map(DbHash) as _,
        to_db(block.number)?,
        DbHash(block.hash) as _,
        gas.map(|(used, _)| to_db(used)).transpose()?,
        gas.map(|(_, price)| DbAmount::from(price)) as _
    )
    .execute(&mut *db)
    .await?;
    if ended.rows_affected() == 0 {
        return Ok(false);
    }
    announce(db, &batch.job_ids, "payment.sent", now).await?;
    Ok(true)
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
