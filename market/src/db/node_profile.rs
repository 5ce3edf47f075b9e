//! What nodes told the API of themselves. Writer: the API.

use alloy::primitives::Address;
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::types::{DbAddress, DbAmount};
use crate::Amount;

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

/// The least that a node does an operation for, in one token's smallest unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MinPrice {
    /// Of what.
    pub operation: String,
    /// Zero for the chain's native coin.
    pub token: Address,
    /// The order's `maxPrice` must be at least this.
    pub amount: Amount,
}

/// Replaces the prices of `node`.
pub async fn save_prices(db: &mut PgConnection, node: Address, prices: &[MinPrice]) -> Result<(), sqlx::Error> {
    let operations: Vec<String> = prices.iter().map(|price| price.operation.clone()).collect();
    let tokens: Vec<DbAddress> = prices.iter().map(|price| DbAddress(price.token)).collect();
    let amounts: Vec<DbAmount> = prices.iter().map(|price| DbAmount(price.amount)).collect();
    sqlx::query!("delete from node_price where node = $1", DbAddress(node) as _).execute(&mut *db).await?;
    sqlx::query!(
        "insert into node_price (node, operation, token, min_price)
         select $1, p.operation, p.token, p.amount
         from unnest($2::text[], $3::bytea[], $4::numeric[]) p (operation, token, amount)",
        DbAddress(node) as _,
        &operations,
        &tokens[..] as _,
        &amounts[..] as _
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The prices of `nodes`, by node, operation and token.
pub async fn prices(db: &mut PgConnection, nodes: &[Address]) -> Result<Vec<(Address, MinPrice)>, sqlx::Error> {
    let nodes: Vec<DbAddress> = nodes.iter().copied().map(DbAddress).collect();
    let rows = sqlx::query!(
        r#"select node as "node: DbAddress", operation, token as "token: DbAddress", min_price as "amount: DbAmount"
           from node_price where node = any($1) order by node, operation, token"#,
        &nodes[..] as _
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.node.0, MinPrice { operation: row.operation, token: row.token.0, amount: row.amount.0 }))
        .collect())
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
