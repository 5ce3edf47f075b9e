//! Orders announced before they are on the chain. Writer: the API.

use alloy::primitives::B256;
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;
use sqlx::types::Json;

use super::types::{DbAddress, DbHash};
use crate::order::{OrderJson, SpecJson};

/// Priority of a job whose requester did not choose one.
pub const DEFAULT_PRIORITY: i32 = 100;
/// Highest priority; the lowest is 0.
pub const MAX_PRIORITY: i32 = 1000;

/// Keeps an announced order. False, and nothing changed, if it was announced before.
pub async fn insert(
    db: &mut PgConnection,
    job_id: B256,
    order: &OrderJson,
    spec: &SpecJson,
    priority: i32,
    now: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query!(
        "insert into job_submission (job_id, requester, order_json, spec_json, priority, created_at)
         values ($1, $2, $3, $4, $5, $6) on conflict do nothing",
        DbHash(job_id) as _,
        DbAddress(order.requester) as _,
        Json(order) as _,
        Json(spec) as _,
        priority,
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
        super::types::DbAmount(min_stake) as _
    )
    .fetch_one(db)
    .await
}
