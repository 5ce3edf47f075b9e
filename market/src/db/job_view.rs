//! A job as the rows of all its writers show it. Read from the view `job_view`, each function in one statement and so in
//! one snapshot.

mod row;
mod types;

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::PgConnection;
use sqlx::types::Json;

use self::row::{Row, parse_status, select_jobs, views};
pub use self::types::{ChainPoint, Completion, Dispute, Due, JobView, Lease, PendingBatch, Settled};
use super::types::{DbAddress, DbAmount, DbHash};
use crate::Amount;
use crate::job::JobStatus;
use crate::order::{OrderJson, SpecJson};
use crate::redis::keys::PRIORITY_BOOST_MS;

/// The job, if it was ever opened or announced (and not reorganised away since).
pub async fn by_id(db: &mut PgConnection, job_id: B256) -> Result<Option<JobView>, sqlx::Error> {
    select_jobs!("where j.job_id = $1", DbHash(job_id) as _)
        .fetch_optional(db)
        .await?
        .map(JobView::try_from)
        .transpose()
}

/// The job, if `requester` ordered it.
pub async fn ordered(db: &mut PgConnection, job_id: B256, requester: Address) -> Result<Option<JobView>, sqlx::Error> {
    select_jobs!("where j.job_id = $1 and j.requester = $2", DbHash(job_id) as _, DbAddress(requester) as _)
        .fetch_optional(db)
        .await?
        .map(JobView::try_from)
        .transpose()
}

/// Those of `job_ids` that exist, in no particular order.
pub async fn by_ids(db: &mut PgConnection, job_ids: &[B256]) -> Result<Vec<JobView>, sqlx::Error> {
    let ids: Vec<DbHash> = job_ids.iter().copied().map(DbHash).collect();
    views(select_jobs!("where j.job_id = any($1)", &ids[..] as _).fetch_all(db).await?)
}

/// Which jobs to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this requester's.
    pub requester: Option<Address>,
    /// Only those that this node holds or did.
    pub node: Option<Address>,
    /// Only those with this status at the time of the call.
    pub status: Option<JobStatus>,
    /// Only those listed after this one: `listed_at` and id of the last job of the page before.
    pub after: Option<(DateTime<Utc>, B256)>,
}

/// Jobs, newest first, at most `limit`.
pub async fn list(
    db: &mut PgConnection,
    filter: &Filter,
    limit: i64,
    now: DateTime<Utc>,
) -> Result<Vec<JobView>, sqlx::Error> {
    let (statuses, deadline_passed) = match filter.status {
        Some(status) => {
            let (stored, passed) = stored_as(status, now);
            (Some(stored), passed)
        }
        None => (None, None),
    };
    let (after_time, after_id) = filter.after.unzip();
    views(
        select_jobs!(
            "where ($1::bytea is null or j.requester = $1)
                and ($2::bytea is null or (j.node = $2 and j.job_id in (
                    select a.job_id from job_attempt a where a.node = $2
                    union all select c.job_id from job_completion c where c.node = $2
                    union all select w.job_id from job_work w where w.node = $2
                    union all select o.job_id from escrow_job o where o.node = $2)))
                and ($3::text[] is null or j.status = any($3))
                and ($4::boolean is null or (j.deadline < $5) = $4)
                and ($6::timestamptz is null or (j.listed_at, j.job_id) < ($6, $7::bytea))
            order by j.listed_at desc, j.job_id desc
            limit $8",
            filter.requester.map(DbAddress) as _,
            filter.node.map(DbAddress) as _,
            statuses.as_deref() as _,
            deadline_passed as _,
            now,
            after_time as _,
            after_id.map(DbHash) as _,
            limit
        )
        .fetch_all(db)
        .await?,
    )
}

/// A place in the queue: score (milliseconds; see [`crate::redis::keys::queue_score`]) and id.
pub type QueuePosition = (i64, B256);

/// Jobs that a node may take at `now`, in the order of the queue, at most `limit`, from behind `after`. Those that pause
/// after a failed attempt stand where the pause ends.
pub async fn pending(
    db: &mut PgConnection,
    after: Option<QueuePosition>,
    limit: i64,
    now: DateTime<Utc>,
) -> Result<Vec<JobView>, sqlx::Error> {
    let (after_score, after_id) = after.unzip();
    views(
        select_jobs!(
            "cross join lateral (
                select greatest(
                    floor(extract(epoch from coalesce(j.opened_at, j.listed_at)) * 1000)::bigint - (j.priority - 100)::bigint * $1::bigint,
                    floor(extract(epoch from greatest(j.not_before, j.delayed_until)) * 1000)::bigint
                ) as score
            ) q
            where j.status = 'pending' and j.escrow_state = 'open' and j.is_confirmed and j.spec_valid and j.deadline >= $2
                and ($3::bigint is null or (q.score, j.job_id) > ($3, $4::bytea))
            order by q.score, j.job_id
            limit $5",
            PRIORITY_BOOST_MS,
            now,
            after_score as _,
            after_id.map(DbHash) as _,
            limit
        )
        .fetch_all(db)
        .await?,
    )
}

/// How many jobs there are, and how much money they move.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Jobs by status at the time of the call; those without any are left out.
    pub by_status: BTreeMap<&'static str, i64>,
    /// Jobs that are done and not yet paid, by token.
    pub due: BTreeMap<Address, Sum>,
    /// Jobs that were paid, by token.
    pub paid: BTreeMap<Address, Sum>,
}

/// Some payments in one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    /// How many.
    pub jobs: i64,
    /// How much together, in the token's smallest unit.
    pub amount: Amount,
}

/// Counts all jobs. Reads every job: callers that are asked often keep the answer for a while.
pub async fn stats(db: &mut PgConnection, now: DateTime<Utc>) -> Result<Stats, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select j.status as "status!", j.token as "token?: DbAddress", j.deadline < $1 as "passed!",
            count(*) as "jobs!", coalesce(sum(coalesce(j.settled_price, j.due_amount)), 0) as "amount!: DbAmount"
        from job_view j
        group by 1, 2, 3"#,
        now
    )
    .fetch_all(db)
    .await?;
    let mut stats = Stats::default();
    for row in rows {
        // Any deadline on the right side of the clock stands for all of the group.
        let deadline = if row.passed { now - TimeDelta::seconds(1) } else { now };
        let status = parse_status(&row.status)?.at(deadline, now);
        *stats.by_status.entry(status.name()).or_default() += row.jobs;
        let side = match status {
            JobStatus::Paid => &mut stats.paid,
            JobStatus::Completed | JobStatus::Settling | JobStatus::Challengeable => &mut stats.due,
            _ => continue,
        };
        let sum = side.entry(row.token.map_or(Address::ZERO, Address::from)).or_default();
        sum.jobs += row.jobs;
        sum.amount = Amount(sum.amount.0.saturating_add(row.amount.0.0));
    }
    Ok(stats)
}

/// Jobs that have state in Redis at `now`, by id, from behind `after`: on the chain, and not closed before `closed_since`.
pub async fn live_ids(
    db: &mut PgConnection,
    after: B256,
    closed_since: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<B256>, sqlx::Error> {
    let rows = sqlx::query_scalar!(
        r#"select l.job_id as "job_id!: DbHash" from (
            select job_id from escrow_job
            where job_id > $1 and (state in ('open', 'submitted', 'disputed') or closed_at >= $2)
            union
            select job_id from signed_order
            where job_id > $1 and withdrawn_at is null and (closed_at is null or closed_at >= $2)
        ) l
        order by l.job_id limit $3"#,
        DbHash(after) as _,
        closed_since,
        limit
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(B256::from).collect())
}

/// Jobs whose payment is due and not made, oldest first, from behind `after` (time and id of the page before).
pub async fn due_ids(
    db: &mut PgConnection,
    after: Option<(DateTime<Utc>, B256)>,
    limit: i64,
) -> Result<Vec<(DateTime<Utc>, B256)>, sqlx::Error> {
    let (after_time, after_id) = after.unzip();
    let rows = sqlx::query!(
        r#"select p.job_id as "job_id: DbHash", p.created_at
        from payment_due p
        join job_status e on e.job_id = p.job_id
        where p.closed_at is null and e.status in ('completed', 'settling', 'challengeable', 'disputed')
            and ($1::timestamptz is null or (p.created_at, p.job_id) > ($1, $2::bytea))
        order by p.created_at, p.job_id limit $3"#,
        after_time as _,
        after_id.map(DbHash) as _,
        limit
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|row| (row.created_at, row.job_id.0)).collect())
}

/// Jobs whose Redis state may name one of `nodes`: leased by it, or done by it and not closed before `closed_since`. What a job
/// says of its node follows from the view `job_view`; some that do not name it may be among them.
pub async fn ids_of_nodes(
    db: &mut PgConnection,
    nodes: &[Address],
    closed_since: DateTime<Utc>,
) -> Result<Vec<B256>, sqlx::Error> {
    let nodes: Vec<DbAddress> = nodes.iter().copied().map(DbAddress).collect();
    let rows = sqlx::query_scalar!(
        r#"select w.job_id as "job_id!: DbHash" from job_work w where w.state = 'leased' and w.node = any($1)
        union
        select e.job_id from escrow_job e where e.node = any($1) and (e.closed_at is null or e.closed_at >= $2)
        union
        -- The chain need not know who completed it: the order may be refunded, or paid by a voucher.
        select c.job_id from job_completion c
        left join escrow_job e on e.job_id = c.job_id
        left join signed_order g on g.job_id = c.job_id
        where c.node = any($1) and (
            e.closed_at >= $2 or g.closed_at >= $2
            or (g.job_id is not null and g.closed_at is null)
            or (g.job_id is null and e.closed_at is null)
        )"#,
        &nodes[..] as _,
        closed_since
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(B256::from).collect())
}

/// Which words of the view mean `status` at `now`, and on which side of the clock their deadline must then be. Taken from
/// [`JobStatus::at`], so that the rule is written once.
fn stored_as(status: JobStatus, now: DateTime<Utc>) -> (Vec<String>, Option<bool>) {
    let past = now - TimeDelta::seconds(1);
    let names = |pick: &dyn Fn(JobStatus) -> bool| {
        JobStatus::ALL.into_iter().filter(|s| pick(*s)).map(|s| s.name().to_owned()).collect()
    };
    if status == JobStatus::Expired {
        (names(&|s| s != status && s.at(past, now) == status), Some(true))
    } else if status.at(past, now) == status {
        (names(&|s| s == status), None)
    } else {
        (names(&|s| s == status), Some(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_filter_says_the_same_as_the_status() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        for deadline in [now - TimeDelta::seconds(1), now, now + TimeDelta::seconds(1)] {
            for stored in JobStatus::ALL.into_iter().filter(|s| *s != JobStatus::Expired) {
                for asked in JobStatus::ALL {
                    let (names, passed) = stored_as(asked, now);
                    let selected = names.iter().any(|n| n == stored.name())
                        && passed.is_none_or(|passed| passed == (deadline < now));
                    assert_eq!(selected, stored.at(deadline, now) == asked, "{stored} asked as {asked}");
                }
            }
        }
    }
}
