//! Results, and the payments that they make due.

use std::collections::HashMap;

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use crate::Amount;
use crate::db::chain;
use crate::db::types::{DbAddress, DbAmount, DbHash};
use crate::job::Fence;

/// A result with all that its settlement needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// Under which lease.
    pub fence: Fence,
    /// By whom.
    pub node: Address,
    /// Where the output is.
    pub output_cid: String,
    /// SHA2-256 of the output.
    pub result_hash: B256,
    /// What the receipt asks, in the token's smallest unit.
    pub price: Amount,
    /// By the node, over `Receipt`.
    pub receipt_signature: Vec<u8>,
    /// Unix seconds; zero where the order names its node.
    pub assignment_expiry: u64,
    /// By the assigner, over `Assignment`; empty where the order names its node.
    pub assignment_signature: Vec<u8>,
    /// When the lease began.
    pub started_at: DateTime<Utc>,
    /// When the result came.
    pub completed_at: DateTime<Utc>,
}

/// Keeps a result and the payment of its price, in `token`, that it makes due.
pub async fn insert_completion(
    db: &mut PgConnection,
    job_id: B256,
    token: Address,
    completion: &Completion,
) -> Result<(), sqlx::Error> {
    insert_completions(db, &[(job_id, token, completion)]).await
}

/// As [`insert_completion`], of many jobs: job, token and result.
pub async fn insert_completions(
    db: &mut PgConnection,
    results: &[(B256, Address, &Completion)],
) -> Result<(), sqlx::Error> {
    let encode = |error: std::num::TryFromIntError| sqlx::Error::Encode(Box::new(error));
    let expiries: Vec<i64> = results
        .iter()
        .map(|(_, _, done)| i64::try_from(done.assignment_expiry).map_err(encode))
        .collect::<Result<_, _>>()?;
    let ids: Vec<DbHash> = results.iter().map(|(id, _, _)| DbHash(*id)).collect();
    let fences: Vec<i64> = results.iter().map(|(_, _, done)| done.fence.0).collect();
    let nodes: Vec<DbAddress> = results.iter().map(|(_, _, done)| DbAddress(done.node)).collect();
    let output_cids: Vec<String> = results.iter().map(|(_, _, done)| done.output_cid.clone()).collect();
    let hashes: Vec<DbHash> = results.iter().map(|(_, _, done)| DbHash(done.result_hash)).collect();
    let prices: Vec<DbAmount> = results.iter().map(|(_, _, done)| DbAmount(done.price)).collect();
    let receipts: Vec<Vec<u8>> = results.iter().map(|(_, _, done)| done.receipt_signature.clone()).collect();
    let assignments: Vec<Vec<u8>> = results.iter().map(|(_, _, done)| done.assignment_signature.clone()).collect();
    let started: Vec<DateTime<Utc>> = results.iter().map(|(_, _, done)| done.started_at).collect();
    let completed: Vec<DateTime<Utc>> = results.iter().map(|(_, _, done)| done.completed_at).collect();
    let tokens: Vec<DbAddress> = results.iter().map(|(_, token, _)| DbAddress(*token)).collect();
    sqlx::query!(
        "insert into job_completion (job_id, fence, node, output_cid, result_hash, price, receipt_signature,
             assignment_expiry, assignment_signature, started_at, completed_at)
         select * from unnest($1::bytea[], $2::bigint[], $3::bytea[], $4::text[], $5::bytea[], $6::numeric[], $7::bytea[],
             $8::bigint[], $9::bytea[], $10::timestamptz[], $11::timestamptz[])",
        &ids[..] as _,
        &fences,
        &nodes[..] as _,
        &output_cids,
        &hashes[..] as _,
        &prices[..] as _,
        &receipts,
        &expiries,
        &assignments,
        &started,
        &completed
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!(
        "insert into payment_due (job_id, node, token, amount, created_at)
         select * from unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::numeric[], $5::timestamptz[])",
        &ids[..] as _,
        &nodes[..] as _,
        &tokens[..] as _,
        &prices[..] as _,
        &completed
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Ends leases with results, all of one node and locked by the caller: job and fence. An error if one is not as it was when it
/// was locked.
pub async fn end_completed(
    db: &mut PgConnection,
    node: Address,
    leases: &[(B256, Fence)],
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let ids: Vec<DbHash> = leases.iter().map(|(id, _)| DbHash(*id)).collect();
    let fences: Vec<i64> = leases.iter().map(|(_, fence)| fence.0).collect();
    let saved = sqlx::query!(
        "update job_work w set state = 'completed', leased_at = null, lease_expires_at = null, updated_at = $4
         from unnest($1::bytea[], $2::bigint[]) l (job_id, fence)
         where w.job_id = l.job_id and w.fence = l.fence and w.state = 'leased' and w.node = $3",
        &ids[..] as _,
        &fences,
        DbAddress(node) as _,
        now
    )
    .execute(&mut *db)
    .await?;
    let ended = sqlx::query!(
        "update job_attempt a set ended_at = $3, outcome = 'completed'
         from unnest($1::bytea[], $2::bigint[]) l (job_id, fence)
         where a.job_id = l.job_id and a.fence = l.fence and a.ended_at is null",
        &ids[..] as _,
        &fences,
        now
    )
    .execute(db)
    .await?;
    let all = |rows: u64| usize::try_from(rows).ok() == Some(leases.len());
    if all(saved.rows_affected()) && all(ended.rows_affected()) { Ok(()) } else { Err(sqlx::Error::RowNotFound) }
}

/// The result of a job, if it has one.
pub async fn completion(db: &mut PgConnection, job_id: B256) -> Result<Option<Completion>, sqlx::Error> {
    Ok(completions(db, &[job_id]).await?.remove(&job_id))
}

/// The results of those of `ids` that have one.
pub async fn completions(db: &mut PgConnection, ids: &[B256]) -> Result<HashMap<B256, Completion>, sqlx::Error> {
    let ids: Vec<DbHash> = ids.iter().copied().map(DbHash).collect();
    let rows = sqlx::query!(
        r#"select job_id as "job_id: DbHash", fence, node as "node: DbAddress", output_cid,
            result_hash as "result_hash: DbHash", price as "price: DbAmount", receipt_signature, assignment_expiry,
            assignment_signature, started_at, completed_at
        from job_completion where job_id = any($1::bytea[])"#,
        &ids[..] as _
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let completion = Completion {
                fence: Fence(row.fence),
                node: row.node.0,
                output_cid: row.output_cid,
                result_hash: row.result_hash.0,
                price: row.price.0,
                receipt_signature: row.receipt_signature,
                assignment_expiry: chain::from_db(row.assignment_expiry)?,
                assignment_signature: row.assignment_signature,
                started_at: row.started_at,
                completed_at: row.completed_at,
            };
            Ok((row.job_id.0, completion))
        })
        .collect()
}

/// What a node is owed, or was paid, for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payment {
    /// The job.
    pub job_id: B256,
    /// Zero for the native coin.
    pub token: Address,
    /// In the token's smallest unit.
    pub amount: Amount,
    /// When the job was completed.
    pub created_at: DateTime<Utc>,
}

/// Payments that completions made due to `node`, newest first, at most `limit`, from behind `after` (time and id of the last
/// one of the page before).
pub async fn payments(
    db: &mut PgConnection,
    node: Address,
    after: Option<(DateTime<Utc>, B256)>,
    limit: i64,
) -> Result<Vec<Payment>, sqlx::Error> {
    let (after_time, after_id) = after.unzip();
    let rows = sqlx::query!(
        r#"select job_id as "job_id: DbHash", token as "token: DbAddress", amount as "amount: DbAmount", created_at
           from payment_due
           where node = $1 and ($2::timestamptz is null or (created_at, job_id) < ($2, $3::bytea))
           order by created_at desc, job_id desc limit $4"#,
        DbAddress(node) as _,
        after_time,
        after_id.map(DbHash) as _,
        limit
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Payment {
            job_id: row.job_id.0,
            token: row.token.0,
            amount: row.amount.0,
            created_at: row.created_at,
        })
        .collect())
}
