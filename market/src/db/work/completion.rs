//! Results, and the payments that they make due.

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
    let expiry = i64::try_from(completion.assignment_expiry).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    sqlx::query!(
        "insert into job_completion (job_id, fence, node, output_cid, result_hash, price, receipt_signature,
             assignment_expiry, assignment_signature, started_at, completed_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        DbHash(job_id) as _,
        completion.fence.0,
        DbAddress(completion.node) as _,
        completion.output_cid,
        DbHash(completion.result_hash) as _,
        DbAmount(completion.price) as _,
        completion.receipt_signature,
        expiry,
        completion.assignment_signature,
        completion.started_at,
        completion.completed_at
    )
    .execute(&mut *db)
    .await?;
    sqlx::query!(
        "insert into payment_due (job_id, node, token, amount, created_at) values ($1, $2, $3, $4, $5)",
        DbHash(job_id) as _,
        DbAddress(completion.node) as _,
        DbAddress(token) as _,
        DbAmount(completion.price) as _,
        completion.completed_at
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The result of a job, if it has one.
pub async fn completion(db: &mut PgConnection, job_id: B256) -> Result<Option<Completion>, sqlx::Error> {
    let row = sqlx::query!(
        r#"select fence, node as "node: DbAddress", output_cid, result_hash as "result_hash: DbHash",
            price as "price: DbAmount", receipt_signature, assignment_expiry, assignment_signature, started_at, completed_at
        from job_completion where job_id = $1"#,
        DbHash(job_id) as _
    )
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(Completion {
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
        })
    })
    .transpose()
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
