//! Payments that are not tried again by themselves.

use alloy::primitives::B256;
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::announce;
use crate::Amount;
use crate::batch::{Channel, Subject};
use crate::db::leader::{Fence, FenceError};
use crate::db::types::{DbAddress, DbAmount, DbHash};

/// A payment on hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// What it is for.
    pub subject: Subject,
    /// A voucher's amount.
    pub cumulative: Option<Amount>,
    /// Why the contract skipped it.
    pub reason: String,
    /// Since when.
    pub created_at: DateTime<Utc>,
}

/// Puts payments on hold, each with its reason. One that is on hold keeps its first reason.
pub async fn hold(
    db: &mut PgConnection,
    fence: Fence,
    holds: &[(B256, String)],
    now: DateTime<Utc>,
) -> Result<(), FenceError> {
    fence.check(db).await?;
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

/// As [`hold`], for vouchers by channel and amount.
pub async fn hold_vouchers(
    db: &mut PgConnection,
    fence: Fence,
    holds: &[(Channel, u128, String)],
    now: DateTime<Utc>,
) -> Result<(), FenceError> {
    fence.check(db).await?;
    for (channel, cumulative, reason) in holds {
        sqlx::query!(
            "insert into voucher_hold (requester, node, token, cumulative, reason, created_at)
             values ($1, $2, $3, $4, $5, $6) on conflict do nothing",
            DbAddress(channel.requester) as _,
            DbAddress(channel.node) as _,
            DbAddress(channel.token) as _,
            DbAmount::from(*cumulative) as _,
            reason,
            now
        )
        .execute(&mut *db)
        .await?;
    }
    Ok(())
}

/// All payments on hold, newest first, at most `limit` of each rail.
pub async fn holds(db: &mut PgConnection, limit: i64) -> Result<Vec<Hold>, sqlx::Error> {
    let jobs = sqlx::query!(
        r#"select job_id as "job_id: DbHash", reason, created_at from settlement_hold
           order by created_at desc, job_id limit $1"#,
        limit
    )
    .fetch_all(&mut *db)
    .await?;
    let vouchers = sqlx::query!(
        r#"select requester as "requester: DbAddress", node as "node: DbAddress", token as "token: DbAddress",
                  cumulative as "cumulative: DbAmount", reason, created_at from voucher_hold
           order by created_at desc, requester limit $1"#,
        limit
    )
    .fetch_all(db)
    .await?;
    let jobs = jobs.into_iter().map(|row| Hold {
        subject: Subject::Job(row.job_id.0),
        cumulative: None,
        reason: row.reason,
        created_at: row.created_at,
    });
    let vouchers = vouchers.into_iter().map(|row| Hold {
        subject: Subject::Channel(Channel { requester: row.requester.0, node: row.node.0, token: row.token.0 }),
        cumulative: Some(row.cumulative.0),
        reason: row.reason,
        created_at: row.created_at,
    });
    Ok(jobs.chain(vouchers).collect())
}

/// Takes a job's payment off hold. False if it was not on hold. An operator's act: it may come from any process, and changes
/// only when the leader tries again.
pub async fn release(db: &mut PgConnection, job_id: B256, now: DateTime<Utc>) -> Result<bool, sqlx::Error> {
    let released =
        sqlx::query!("delete from settlement_hold where job_id = $1", DbHash(job_id) as _).execute(&mut *db).await?;
    if released.rows_affected() == 0 {
        return Ok(false);
    }
    announce(db, &[job_id], "payment.released", now).await?;
    Ok(true)
}

/// As [`release`], for all vouchers of a channel. Returns how many were on hold.
pub async fn release_voucher(db: &mut PgConnection, channel: Channel) -> Result<u64, sqlx::Error> {
    let released = sqlx::query!(
        "delete from voucher_hold where requester = $1 and node = $2 and token = $3",
        DbAddress(channel.requester) as _,
        DbAddress(channel.node) as _,
        DbAddress(channel.token) as _
    )
    .execute(db)
    .await?;
    Ok(released.rows_affected())
}
