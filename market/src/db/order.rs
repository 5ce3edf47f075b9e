//! What was agreed on jobs that can be paid, whichever rail they are on: the view `job_order`, and `signed_order` behind it.
//! Writer of `signed_order`: the API.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256, Bytes};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::types::{DbAddress, DbAmount, DbHash};
use crate::Amount;
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

/// Priority of a job whose requester did not choose one.
pub const DEFAULT_PRIORITY: i32 = 100;
/// Highest priority; the lowest is 0.
pub const MAX_PRIORITY: i32 = 1000;

/// What a requester says of its job beside the order. Not signed, and not on the chain: it tells the queue when and to whom the
/// job may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// 0 to [`MAX_PRIORITY`].
    pub priority: i32,
    /// No node is given it earlier.
    pub not_before: Option<DateTime<Utc>>,
    /// 0 to 100; nodes with less are not given it.
    pub min_reputation: u8,
    /// In wei; nodes with less are not given it.
    pub min_stake: Amount,
}

impl Default for Terms {
    fn default() -> Self {
        Self { priority: DEFAULT_PRIORITY, not_before: None, min_reputation: 0, min_stake: Amount::ZERO }
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

/// On which of `ids` a result can still be settled, and from when on it cannot where the requester gave notice.
pub async fn open_among(
    db: &mut PgConnection,
    ids: &[B256],
) -> Result<BTreeMap<B256, Option<DateTime<Utc>>>, sqlx::Error> {
    let ids: Vec<DbHash> = ids.iter().copied().map(DbHash).collect();
    let rows = sqlx::query!(
        r#"select job_id as "job_id!: DbHash", cancel_at from open_order where job_id = any($1::bytea[])"#,
        &ids[..] as _
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.job_id.0, row.cancel_at)).collect())
}

/// A signed order with all that is kept of it.
#[derive(Debug, Clone, Copy)]
pub struct SignedOrder<'a> {
    /// The order's EIP-712 digest.
    pub job_id: B256,
    /// The order. Its deadline is kept as no later than the end of the year 9999.
    pub order: &'a Order,
    /// What the node is to do.
    pub spec: &'a JobSpec,
    /// The requester's, over the order.
    pub signature: &'a [u8],
    /// What the requester said beside it.
    pub terms: &'a Terms,
}

/// Keeps a signed order. False, and nothing changed, if it was kept before.
pub async fn insert_signed(
    db: &mut PgConnection,
    job_id: B256,
    (order, spec): (&Order, &JobSpec),
    signature: &[u8],
    terms: &Terms,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let inserted = insert_signed_all(db, &[SignedOrder { job_id, order, spec, signature, terms }], now).await?;
    Ok(inserted == 1)
}

/// Keeps signed orders, but for those that were kept before; how many it kept.
pub async fn insert_signed_all(
    db: &mut PgConnection,
    orders: &[SignedOrder<'_>],
    now: DateTime<Utc>,
) -> Result<u64, sqlx::Error> {
    fn column<'a, T>(orders: &[SignedOrder<'a>], get: impl Fn(&SignedOrder<'a>) -> T) -> Vec<T> {
        orders.iter().map(get).collect()
    }
    let inserted = sqlx::query!(
        "insert into signed_order (
             job_id, requester, token, max_price, order_node, assigner, spec_hash, deadline, challenge_window_secs,
             arbiter, max_fee_bps, nonce, input_cid, operation, params, signature, priority, not_before, min_reputation,
             min_stake, created_at)
         select t.*, $21 from unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::numeric[], $5::bytea[], $6::bytea[],
             $7::bytea[], $8::timestamptz[], $9::bigint[], $10::bytea[], $11::integer[], $12::numeric[], $13::text[],
             $14::text[], $15::text[], $16::bytea[], $17::integer[], $18::timestamptz[], $19::smallint[],
             $20::numeric[]) t
         on conflict do nothing",
        &column(orders, |o| DbHash(o.job_id)) as _,
        &column(orders, |o| DbAddress(o.order.requester)) as _,
        &column(orders, |o| DbAddress(o.order.token)) as _,
        &column(orders, |o| DbAmount::from(o.order.maxPrice)) as _,
        &column(orders, |o| DbAddress(o.order.node)) as _,
        &column(orders, |o| DbAddress(o.order.assigner)) as _,
        &column(orders, |o| DbHash(o.order.specHash)) as _,
        &column(orders, |o| time_of(o.order.deadline)),
        &column(orders, |o| i64::from(o.order.challengeWindow)),
        &column(orders, |o| DbAddress(o.order.arbiter)) as _,
        &column(orders, |o| i32::from(o.order.maxFeeBps)),
        &column(orders, |o| DbAmount::from(u128::from(o.order.nonce))) as _,
        &column(orders, |o| o.spec.inputCID.clone()),
        &column(orders, |o| o.spec.operation.clone()),
        &column(orders, |o| o.spec.params.clone()),
        &column(orders, |o| o.signature.to_vec()),
        &column(orders, |o| o.terms.priority),
        &column(orders, |o| o.terms.not_before) as _,
        &column(orders, |o| i16::from(o.terms.min_reputation)),
        &column(orders, |o| DbAmount(o.terms.min_stake)) as _,
        now
    )
    .execute(db)
    .await?;
    Ok(inserted.rows_affected())
}

/// Locks a signed order of `requester`, if it is one, until the transaction ends.
pub async fn lock_signed(db: &mut PgConnection, job_id: B256, requester: Address) -> Result<(), sqlx::Error> {
    let row = sqlx::query_scalar!(
        r#"select true as "locked!" from signed_order where job_id = $1 and requester = $2 for update"#,
        DbHash(job_id) as _,
        DbAddress(requester) as _
    );
    row.fetch_optional(db).await?;
    Ok(())
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
