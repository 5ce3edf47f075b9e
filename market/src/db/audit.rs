//! What audits and verifications read: all of it in one snapshot, so that no two tables are of different moments.

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{Postgres, Transaction};

use super::chain::{from_db, to_db};
use super::order::Rail;
use super::types::{DbAddress, DbAmount, DbHash};
use crate::Amount;

/// A transaction that only reads, and sees all tables as they are now until it ends.
pub async fn snapshot(pool: &PgPool) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    pool.begin_with("begin isolation level repeatable read read only").await
}

/// What a completed job owes its node, with what the order says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The job.
    pub job_id: B256,
    /// Who is to be paid.
    pub node: Address,
    /// In which token; zero for the native coin.
    pub token: Address,
    /// How much.
    pub amount: Amount,
    /// Who pays; nothing where no order is known that could be settled.
    pub order: Option<DueOrder>,
    /// Why the settler leaves it alone, if it does.
    pub hold: Option<String>,
}

/// The order behind a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DueOrder {
    /// Who pays.
    pub requester: Address,
    /// How.
    pub rail: Rail,
    /// Up to which a voucher covers.
    pub nonce: u64,
    /// Up to when a result settles.
    pub deadline: DateTime<Utc>,
    /// Whether a voucher that was countersigned covers it, redeemed or not. One that the contract refuses for good is none.
    pub has_voucher: bool,
}

/// Every payment that was ever due.
pub async fn dues(db: &mut PgConnection) -> Result<Vec<Due>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select p.job_id as "job_id: DbHash", p.node as "node: DbAddress", p.token as "token: DbAddress",
                  p.amount as "amount: DbAmount", h.reason as "hold?", o.rail as "rail?",
                  o.requester as "requester?: DbAddress", o.nonce as "nonce?: DbAmount", o.deadline as "deadline?",
                  exists (
                      select from voucher v
                      where v.requester = o.requester and v.node = p.node and v.token = p.token
                        and v.covered_nonce >= o.nonce
                        and not exists (
                            select from voucher_hold u
                            where u.requester = v.requester and u.node = v.node and u.token = v.token
                              and u.cumulative = v.cumulative
                        )
                  ) as "has_voucher!"
           from payment_due p
           left join job_order o on o.job_id = p.job_id
           left join settlement_hold h on h.job_id = p.job_id
           order by p.job_id"#
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            let order = match (row.requester, row.rail, row.nonce, row.deadline) {
                (Some(requester), Some(rail), Some(nonce), Some(deadline)) => Some(DueOrder {
                    requester: requester.0,
                    rail: Rail::parse(&rail)?,
                    nonce: nonce.to_u64()?,
                    deadline,
                    has_voucher: row.has_voucher,
                }),
                _ => None,
            };
            let (node, token, amount) = (row.node.0, row.token.0, row.amount.0);
            Ok(Due { job_id: row.job_id.0, node, token, amount, order, hold: row.hold })
        })
        .collect()
}

/// The ids of `limit` rows of `escrow_job` after `after`, in their order.
pub async fn job_ids_after(db: &mut PgConnection, after: Option<B256>, limit: i64) -> Result<Vec<B256>, sqlx::Error> {
    let ids = sqlx::query_scalar!(
        r#"select job_id as "job_id: DbHash" from escrow_job
           where $1::bytea is null or job_id > $1 order by job_id limit $2"#,
        after.map(DbHash) as _,
        limit
    )
    .fetch_all(db)
    .await?;
    Ok(ids.into_iter().map(|id| id.0).collect())
}

/// How far a stretch from block `from` on may go, up to `to`, to hold no more than `events` stored events, or one block.
pub async fn stretch_end(db: &mut PgConnection, from: u64, to: u64, events: u64) -> Result<u64, sqlx::Error> {
    let beyond = sqlx::query_scalar!(
        "select block_number from chain_event where canonical and block_number between $1 and $2
         order by block_number, log_index offset $3 limit 1",
        to_db(from)?,
        to_db(to)?,
        to_db(events)?
    )
    .fetch_optional(db)
    .await?;
    let end = beyond.map(from_db).transpose()?.map_or(to, |number| number.saturating_sub(1));
    Ok(end.clamp(from, to))
}
