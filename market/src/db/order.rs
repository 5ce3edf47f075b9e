//! What was agreed on jobs that can be paid, whichever rail they are on: the view `job_order`, and `signed_order` behind it.
//! Writer of `signed_order`: the API.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256, Bytes};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::types::{DbAddress, DbAmount, DbHash};
use crate::abi::{JobSpec, Order};
use crate::fold::time_of;

/// How a job is paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rail {
    /// From what `openJob` locked.
    Opened,
    /// From the deposit, on the order's signature or by a voucher.
    Signed,
}

impl Rail {
    /// Its name in SQL and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Signed => "signed",
        }
    }

    pub(super) fn parse(name: &str) -> Result<Self, sqlx::Error> {
        [Self::Opened, Self::Signed]
            .into_iter()
            .find(|rail| rail.name() == name)
            .ok_or_else(|| sqlx::Error::Decode(format!("{name:?} is not a rail").into()))
    }
}

/// An order that can be paid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// The order.
    pub order: Order,
    /// What the node is to do.
    pub spec: JobSpec,
    /// How it is paid.
    pub rail: Rail,
    /// The requester's signature over the order; empty where it was opened.
    pub signature: Bytes,
}

/// The orders among `ids` that were opened or signed.
pub async fn agreed(db: &mut PgConnection, ids: &[B256]) -> Result<BTreeMap<B256, Agreed>, sqlx::Error> {
    let ids: Vec<DbHash> = ids.iter().copied().map(DbHash).collect();
    let rows = sqlx::query!(
        r#"select job_id as "job_id!: DbHash", rail as "rail!", requester as "requester!: DbAddress",
                  token as "token!: DbAddress", max_price as "max_price!: DbAmount", order_node as "order_node!: DbAddress",
                  assigner as "assigner!: DbAddress", spec_hash as "spec_hash!: DbHash", deadline as "deadline!",
                  challenge_window_secs as "challenge_window_secs!", arbiter as "arbiter!: DbAddress",
                  max_fee_bps as "max_fee_bps!", nonce as "nonce!: DbAmount", input_cid as "input_cid!",
                  operation as "operation!", params as "params!", signature
           from job_order where job_id = any($1::bytea[])"#,
        &ids as _
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let order = Order {
                requester: row.requester.0,
                token: row.token.0,
                maxPrice: row.max_price.0.to_u128().map_err(decode)?,
                node: row.order_node.0,
                assigner: row.assigner.0,
                specHash: row.spec_hash.0,
                deadline: u64::try_from(row.deadline.timestamp()).map_err(decode)?,
                challengeWindow: u32::try_from(row.challenge_window_secs).map_err(decode)?,
                arbiter: row.arbiter.0,
                maxFeeBps: u16::try_from(row.max_fee_bps).map_err(decode)?,
                nonce: row.nonce.to_u64()?,
            };
            let signature = row.signature.map(Bytes::from).unwrap_or_default();
            let spec = JobSpec { inputCID: row.input_cid, operation: row.operation, params: row.params };
            Ok((row.job_id.0, Agreed { order, spec, rail: Rail::parse(&row.rail)?, signature }))
        })
        .collect()
}

fn decode(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}

/// Whether a result can still be settled on the order: its money is locked, or promised and neither paid nor taken back.
pub async fn is_open(db: &mut PgConnection, job_id: B256) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(r#"select exists (select from open_order where job_id = $1) as "open!""#, DbHash(job_id) as _)
        .fetch_one(db)
        .await
}

/// From when on no result settles on the order, if its requester gave notice.
pub async fn notice_end(db: &mut PgConnection, job_id: B256) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    let cancel_at = sqlx::query_scalar!("select cancel_at from escrow_job where job_id = $1", DbHash(job_id) as _);
    Ok(cancel_at.fetch_optional(db).await?.flatten())
}

/// Keeps a signed order, its deadline no later than the end of the year 9999. False, and nothing changed, if it was kept
/// before.
pub async fn insert_signed(
    db: &mut PgConnection,
    job_id: B256,
    (order, spec): (&Order, &JobSpec),
    signature: &[u8],
    priority: i32,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query!(
        "insert into signed_order (
             job_id, requester, token, max_price, order_node, assigner, spec_hash, deadline, challenge_window_secs,
             arbiter, max_fee_bps, nonce, input_cid, operation, params, signature, priority, created_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
         on conflict do nothing",
        DbHash(job_id) as _,
        DbAddress(order.requester) as _,
        DbAddress(order.token) as _,
        DbAmount::from(order.maxPrice) as _,
        DbAddress(order.node) as _,
        DbAddress(order.assigner) as _,
        DbHash(order.specHash) as _,
        time_of(order.deadline),
        i64::from(order.challengeWindow),
        DbAddress(order.arbiter) as _,
        i32::from(order.maxFeeBps),
        DbAmount::from(u128::from(order.nonce)) as _,
        spec.inputCID,
        spec.operation,
        spec.params,
        signature,
        priority,
        now
    )
    .execute(db)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// Takes a signed order of `requester` back, if a result could still be settled on it and the chain knows nothing of it. False,
/// and nothing changed, otherwise. Hold the lock of its work, and make sure that no node ever had it.
pub async fn withdraw(
    db: &mut PgConnection,
    job_id: B256,
    requester: Address,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let withdrawn = sqlx::query!(
        "update signed_order g set withdrawn_at = $2
         where g.job_id = $1 and g.requester = $3 and g.withdrawn_at is null and g.closed_at is null
             and not exists (select from escrow_job e where e.job_id = g.job_id and e.state <> 'none')",
        DbHash(job_id) as _,
        now,
        DbAddress(requester) as _
    )
    .execute(db)
    .await?;
    Ok(withdrawn.rows_affected() == 1)
}
