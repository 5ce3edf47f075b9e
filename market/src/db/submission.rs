//! Orders announced before they are on the chain. Writer: the API.

use alloy::primitives::B256;
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;
use sqlx::types::Json;

use super::order::Terms;
use super::types::{DbAddress, DbAmount, DbHash};
use crate::order::{OrderJson, SpecJson};

/// Keeps an announced order. False, and nothing changed, if it was announced before.
pub async fn insert(
    db: &mut PgConnection,
    job_id: B256,
    order: &OrderJson,
    spec: &SpecJson,
    terms: &Terms,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query!(
        "insert into job_submission (job_id, requester, order_json, spec_json, priority, not_before, min_reputation, min_stake, created_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict do nothing",
        DbHash(job_id) as _,
        DbAddress(order.requester) as _,
        Json(order) as _,
        Json(spec) as _,
        terms.priority,
        terms.not_before,
        i16::from(terms.min_reputation),
        DbAmount(terms.min_stake) as _,
        now
    )
    .execute(db)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// Whether any node that is registered with a stake of `min_stake` or more performs `operation`.
pub async fn is_offered(db: &mut PgConnection, operation: &str, min_stake: crate::Amount) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select exists (
            select from registry_node where stake >= $2 and $1 = any(operations)
        ) as "offered!""#,
        operation,
        DbAmount(min_stake) as _
    )
    .fetch_one(db)
    .await
}
