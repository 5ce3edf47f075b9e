//! Leases, completions and the payments that they make due. Writer: the API. What may become of a lease is decided by
//! [`crate::job::Work`]; here rows are locked, read and written.

mod completion;

use std::{collections::HashMap, time::Duration};

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use sqlx::PgPool;
use sqlx::postgres::{PgConnection, PgListener};

use super::outbox::Source;
use super::types::{DbAddress, DbHash};
use crate::job::{Fence, Tries, Work, WorkState};

pub use completion::{
    Completion, Payment, completion, completions, end_completed, insert_completion, insert_completions, payments,
};

/// The Postgres channel that is notified when a job came into `job_queue`, by the triggers that keep it.
const QUEUED: &str = "littoral_job_queued";
/// Characters that are kept of a node's reason for giving up.
const ERROR_CHARS: usize = 1000;

/// A lease that a node holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The job.
    pub job_id: B256,
    /// Its fence.
    pub fence: Fence,
    /// When it ends unless renewed.
    pub expires_at: DateTime<Utc>,
    /// How many leases of the job ended before.
    pub attempts: i32,
}

/// How a lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The node gave the job back: another try, even its own, may succeed.
    Released,
    /// The node cannot do it.
    Failed,
    /// It was not renewed in time.
    Expired,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Failed => "failed",
            Self::Expired => "expired",
        }
    }
}

struct Row {
    job_id: DbHash,
    state: String,
    fence: i64,
    attempts: i32,
    forgiven_fence: i64,
    node: Option<DbAddress>,
    leased_at: Option<DateTime<Utc>>,
    lease_expires_at: Option<DateTime<Utc>>,
    not_before: Option<DateTime<Utc>>,
}

impl Row {
    fn read(self) -> Result<(B256, Work), sqlx::Error> {
        let node = self.node.map(Address::from);
        let state = match (self.state.as_str(), node, self.leased_at, self.lease_expires_at) {
            ("queued", ..) => WorkState::Queued { not_before: self.not_before },
            ("leased", Some(node), Some(since), Some(expires_at)) => WorkState::Leased { node, since, expires_at },
            ("completed", Some(node), ..) => WorkState::Completed { node },
            ("failed", ..) => WorkState::Failed,
            (other, ..) => return Err(sqlx::Error::Decode(format!("{other:?} is not a whole job_work").into())),
        };
        Ok((
            self.job_id.0,
            Work { fence: Fence(self.fence), attempts: self.attempts, forgiven: Fence(self.forgiven_fence), state },
        ))
    }
}

/// Gives a job that was never claimed a row to be locked, if something can be settled on it.
pub async fn ensure_row(db: &mut PgConnection, job_id: B256, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into job_work (job_id, state, fence, attempts, updated_at)
         select e.job_id, 'queued', 0, 0, $2 from open_order e where e.job_id = $1
         on conflict do nothing",
        DbHash(job_id) as _,
        now
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The work on a job, locked until the transaction ends; nothing if no node ever claimed it.
pub async fn lock(db: &mut PgConnection, job_id: B256) -> Result<Option<Work>, sqlx::Error> {
    let row = sqlx::query_as!(
        Row,
        r#"select job_id as "job_id: DbHash", state, fence, attempts, forgiven_fence,
            node as "node?: DbAddress", leased_at, lease_expires_at, not_before
        from job_work where job_id = $1 for update"#,
        DbHash(job_id) as _
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(Row::read).transpose()?.map(|(_, work)| work))
}

/// As [`lock`], of a job that `requester` has ordered; nothing, and no lock, if it is another's.
pub async fn lock_ordered(
    db: &mut PgConnection,
    job_id: B256,
    requester: Address,
) -> Result<Option<Work>, sqlx::Error> {
    let row = sqlx::query_as!(
        Row,
        r#"select job_id as "job_id: DbHash", state, fence, attempts, forgiven_fence,
            node as "node?: DbAddress", leased_at, lease_expires_at, not_before
        from job_work w
        where job_id = $1 and exists (select from job_order e where e.job_id = w.job_id and e.requester = $2)
        for update of w"#,
        DbHash(job_id) as _,
        DbAddress(requester) as _
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(Row::read).transpose()?.map(|(_, work)| work))
}

/// The work on those of `job_ids` that some node had, locked until the transaction ends, in order of id, so that two of these
/// cannot wait for each other.
pub async fn lock_all(db: &mut PgConnection, job_ids: &[B256]) -> Result<HashMap<B256, Work>, sqlx::Error> {
    let ids: Vec<DbHash> = job_ids.iter().copied().map(DbHash).collect();
    let rows = sqlx::query_as!(
        Row,
        r#"select job_id as "job_id: DbHash", state, fence, attempts, forgiven_fence,
            node as "node?: DbAddress", leased_at, lease_expires_at, not_before
        from job_work where job_id = any($1::bytea[]) order by job_id for update"#,
        &ids[..] as _
    )
    .fetch_all(db)
    .await?;
    rows.into_iter().map(Row::read).collect()
}

/// Whose failures end the job that `holder` has a lease of.
pub async fn tries(db: &mut PgConnection, job_id: B256, holder: Address) -> Result<Tries, sqlx::Error> {
    let row = sqlx::query!(
        r#"select exists (select from job_order e where e.job_id = $1 and e.order_node <> $3) as "named!",
            (select count(distinct a.node)::integer from job_attempt a
             where a.job_id = $1 and a.node <> $2 and a.outcome is not null and a.fence > coalesce(
                 (select w.forgiven_fence from job_work w where w.job_id = $1), 0)) as "others!""#,
        DbHash(job_id) as _,
        DbAddress(holder) as _,
        DbAddress(Address::ZERO) as _
    )
    .fetch_one(db)
    .await?;
    Ok(if row.named { Tries::Named } else { Tries::Open { others: row.others } })
}

/// Locks up to `limit` jobs whose lease has ended at `now`, leaving those that another transaction works on.
pub async fn lock_expired(
    db: &mut PgConnection,
    limit: i64,
    now: DateTime<Utc>,
) -> Result<Vec<(B256, Work)>, sqlx::Error> {
    sqlx::query_as!(
        Row,
        r#"select job_id as "job_id: DbHash", state, fence, attempts, forgiven_fence,
            node as "node?: DbAddress", leased_at, lease_expires_at, not_before
        from job_work where state = 'leased' and lease_expires_at <= $1
        order by lease_expires_at limit $2 for update skip locked"#,
        now,
        limit
    )
    .fetch_all(db)
    .await?
    .into_iter()
    .map(Row::read)
    .collect()
}

/// Leases that `node` holds at `now`, oldest first, of jobs that are in the escrow: one that a reorg took away cannot be
/// done.
pub async fn held(db: &mut PgConnection, node: Address, now: DateTime<Utc>) -> Result<Vec<Held>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select job_id as "job_id: DbHash", fence, lease_expires_at as "lease_expires_at!", attempts
           from job_work w where state = 'leased' and node = $1 and lease_expires_at > $2
               and exists (select from job_order e where e.job_id = w.job_id)
           order by leased_at, job_id"#,
        DbAddress(node) as _,
        now
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Held {
            job_id: row.job_id.0,
            fence: Fence(row.fence),
            expires_at: row.lease_expires_at,
            attempts: row.attempts,
        })
        .collect())
}

/// Those of `job_ids` that are leased, whatever the chain says of them, with the ids of the nodes that have the leases. Nodes
/// without an id are left out.
pub async fn leases(db: &mut PgConnection, job_ids: &[B256]) -> Result<HashMap<B256, B256>, sqlx::Error> {
    let ids: Vec<DbHash> = job_ids.iter().copied().map(DbHash).collect();
    let rows = sqlx::query!(
        r#"select w.job_id as "job_id: DbHash", r.node_id as "node_id: DbHash"
           from job_work w join registry_node r on r.node = w.node
           where w.state = 'leased' and w.job_id = any($1)"#,
        &ids[..] as _
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.job_id.0, row.node_id.0)).collect())
}

/// Writes what became of the work on a job: from `before`, which the caller has locked, to `after`. An error if the row is
/// not what `before` says.
pub async fn save(
    db: &mut PgConnection,
    job_id: B256,
    before: &Work,
    after: &Work,
    error: Option<&str>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let (state, node, leased_at, lease_expires_at, not_before) = match &after.state {
        WorkState::Queued { not_before } => ("queued", None, None, None, *not_before),
        WorkState::Leased { node, since, expires_at } => ("leased", Some(*node), Some(*since), Some(*expires_at), None),
        WorkState::Completed { node } => ("completed", Some(*node), None, None, None),
        WorkState::Failed => ("failed", None, None, None, None),
    };
    let error = error.map(|text| text.chars().take(ERROR_CHARS).collect::<String>());
    let saved = sqlx::query!(
        "update job_work set state = $4, fence = $5, attempts = $6, node = $7, leased_at = $8, lease_expires_at = $9,
             not_before = $10, last_error = coalesce($11, last_error), updated_at = $12, forgiven_fence = $13
         where job_id = $1 and fence = $2 and state = $3",
        DbHash(job_id) as _,
        before.fence.0,
        state_name(&before.state),
        state,
        after.fence.0,
        after.attempts,
        node.map(DbAddress) as _,
        leased_at,
        lease_expires_at,
        not_before,
        error,
        now,
        after.forgiven.0
    )
    .execute(db)
    .await?;
    if saved.rows_affected() == 1 { Ok(()) } else { Err(sqlx::Error::RowNotFound) }
}

fn state_name(state: &WorkState) -> &'static str {
    match state {
        WorkState::Queued { .. } => "queued",
        WorkState::Leased { .. } => "leased",
        WorkState::Completed { .. } => "completed",
        WorkState::Failed => "failed",
    }
}

/// Notes how a lease ended.
pub async fn end_attempt(
    db: &mut PgConnection,
    job_id: B256,
    fence: Fence,
    outcome: Outcome,
    error: Option<&str>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let error = error.map(|text| text.chars().take(ERROR_CHARS).collect::<String>());
    let ended = sqlx::query!(
        "update job_attempt set ended_at = $3, outcome = $4, error = $5
         where job_id = $1 and fence = $2 and ended_at is null",
        DbHash(job_id) as _,
        fence.0,
        now,
        outcome.name(),
        error
    )
    .execute(db)
    .await?;
    if ended.rows_affected() == 1 { Ok(()) } else { Err(sqlx::Error::RowNotFound) }
}

/// A connection that hears when a job may have become claimable: something changed on the chain, or a job went back to
/// the queue. It reconnects by itself; what happens meanwhile is not heard, so listeners look for themselves now and then.
pub async fn listen(pool: &PgPool) -> Result<PgListener, sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen_all([Source::Chain.channel(), QUEUED]).await?;
    Ok(listener)
}

/// How long to wait before [`listen`] is tried again.
pub const LISTEN_RETRY: Duration = Duration::from_secs(1);
