//! What nodes told the API of themselves. Writer: the API.

use alloy::primitives::Address;
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::types::DbAddress;

/// How much work a node takes, as it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Most jobs at once.
    pub max_concurrent_jobs: i32,
    /// Names of the operations it performs.
    pub operations: Vec<String>,
}

/// Registers `node`, or replaces what it said before. A registration counts as a heartbeat.
pub async fn save(
    db: &mut PgConnection,
    node: Address,
    public_key: &[u8],
    profile: &Profile,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into node_profile (node, public_key, max_concurrent_jobs, operations, registered_at, last_heartbeat_at)
         values ($1, $2, $3, $4, $5, $5)
         on conflict (node) do update set
             public_key = excluded.public_key, max_concurrent_jobs = excluded.max_concurrent_jobs,
             operations = excluded.operations, last_heartbeat_at = excluded.last_heartbeat_at",
        DbAddress(node) as _,
        public_key,
        profile.max_concurrent_jobs,
        &profile.operations,
        now
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Notes that `node` spoke. False if it never registered.
pub async fn heartbeat(db: &mut PgConnection, node: Address, now: DateTime<Utc>) -> Result<bool, sqlx::Error> {
    let heard =
        sqlx::query!("update node_profile set last_heartbeat_at = $2 where node = $1", DbAddress(node) as _, now)
            .execute(db)
            .await?;
    Ok(heard.rows_affected() == 1)
}

/// What `node` said, if it registered.
pub async fn find(db: &mut PgConnection, node: Address) -> Result<Option<Profile>, sqlx::Error> {
    sqlx::query_as!(
        Profile,
        "select max_concurrent_jobs, operations from node_profile where node = $1",
        DbAddress(node) as _
    )
    .fetch_optional(db)
    .await
}

/// What `node` said, held until the transaction ends, so that two claims of one node cannot both count the same free place.
pub async fn lock(db: &mut PgConnection, node: Address) -> Result<Option<Profile>, sqlx::Error> {
    sqlx::query_as!(
        Profile,
        "select max_concurrent_jobs, operations from node_profile where node = $1 for update",
        DbAddress(node) as _
    )
    .fetch_optional(db)
    .await
}
