//! The queue as Postgres has it: which waiting jobs a node can be given, in which order, and the leases that it gets.
//!
//! Jobs wait in lines, one for each operation, node that the order names (or none) and requester. The line that was served
//! longest ago goes next, one that never was before all others, so a requester with many jobs delays one with a single job by
//! one. Within a line the lowest score goes first ([`crate::redis::keys::queue_score`]). Redis suggests by the same rule
//! (`redis/lua/suggest.lua`); what a node is given is decided here, under a lock on the row of `job_queue`.

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnection;

use super::types::{DbAddress, DbAmount, DbHash};
use crate::Amount;
use crate::job::{Fence, Work, WorkState};
use crate::redis::keys::latest_ready_score;

/// How often one node is given the same open order's job: after a crash again, but not so often that others wait for it.
const NODE_ATTEMPTS: i64 = 3;
/// Lines that one look goes through. With more, each look begins at another place.
pub const LINES: i64 = 64;
/// Jobs past their deadline that one statement of a sweep takes out.
const SWEEP_BATCH: i64 = 1000;
/// Where a sweep of turns leaves off.
const TURN_KEPT_DAYS: i64 = 7;

/// What a node can be given.
#[derive(Debug, Clone)]
pub struct Worker {
    /// The operator's address.
    pub node: Address,
    /// What it performs.
    pub operations: Vec<String>,
    /// Its active stake, in wei.
    pub stake: Amount,
    /// 0 to 100; see [`crate::db::node_view::reputation`].
    pub reputation: u8,
    /// The assigner whose open orders it can be bound to.
    pub assigner: Address,
    /// Jobs with an earlier deadline are not given out.
    pub deadline_from: DateTime<Utc>,
    /// Requesters and tokens whose signed orders are not given out: their deposit is not enough for what they promised.
    pub unfunded: Vec<(Address, Address)>,
}

/// A waiting job whose row is locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The job.
    pub job_id: B256,
    /// The work on it.
    pub work: Work,
    /// Its line.
    pub line: Line,
}

/// Jobs of one requester that wait for the same nodes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// What is to be done.
    pub operation: String,
    /// The node that the orders name; zero if any may do it.
    pub order_node: Address,
    /// Whose jobs.
    pub requester: Address,
}

/// A query over `job_queue q`, `open_order e` and `job_work w`, narrowed to what a [`Worker`] can be given at a moment. An open
/// order's job is not given again to a node that could not do it; one whose input is not stored here waits until it is. The
/// limits of one keep Postgres from looking at anything but what the row of `job_queue` names, however few rows it expects.
macro_rules! suitable {
    ($what:ident!($($ty:ty,)? $select:literal, $rest:literal), $worker:expr, $now:expr, $($arg:expr),*) => {
        sqlx::$what!(
            $($ty,)?
            $select + "
             q.deadline >= $1 and q.operation = any($2) and q.order_node in ($3, $4) and q.ready_at <= $6
                 and q.min_stake <= $10 and q.min_reputation <= $11
                 and (
                     not exists (select from node_price p where p.node = $3 and p.operation = q.operation)
                     or exists (
                         select from node_price p
                         where p.node = $3 and p.operation = q.operation and p.token = q.token and p.min_price <= q.max_price
                     )
                 )
                 and e.is_confirmed and e.cancel_at is null
                 and (w.job_id is null or w.state = 'queued')
                 and (q.order_node = $3 or (e.assigner = $5 and not exists (
                     select from job_attempt a
                     where a.job_id = q.job_id and a.node = $3 and a.outcome is not null
                         and a.fence > coalesce(w.forgiven_fence, 0)
                     having bool_or(a.outcome = 'failed') or count(*) >= $7
                 )))
                 and coalesce((select true from blob b where b.cid = e.input_cid), false)
                 and (e.rail = 'opened' or not exists (
                     -- A voucher that the node has, or has redeemed, pays for this order: it would get nothing more.
                     select from voucher v
                     where v.requester = e.requester and v.node = $3 and v.token = e.token and v.covered_nonce >= e.nonce
                     union all
                     select from escrow_channel h
                     where h.requester = e.requester and h.node = $3 and h.token = e.token and h.covered_nonce >= e.nonce
                     union all
                     select from unnest($8::bytea[], $9::bytea[]) as u (requester, token)
                     where u.requester = e.requester and u.token = e.token
                 ))
            " + $rest,
            $worker.deadline_from,
            &$worker.operations,
            DbAddress($worker.node) as _,
            DbAddress(Address::ZERO) as _,
            DbAddress($worker.assigner) as _,
            $now,
            NODE_ATTEMPTS,
            &$worker.unfunded.iter().map(|(requester, _)| DbAddress(*requester)).collect::<Vec<_>>() as _,
            &$worker.unfunded.iter().map(|(_, token)| DbAddress(*token)).collect::<Vec<_>>() as _,
            DbAmount($worker.stake) as _,
            i16::from($worker.reputation),
            $($arg),*
        )
    };
}

/// Jobs that `worker` can be given, those first whose turn it is, at most `limit`. Goes through [`LINES`] lines of each
/// operation, from the requester `start` on and around, so that a `start` by chance leaves out no line for good.
pub async fn candidates(
    db: &mut PgConnection,
    worker: &Worker,
    start: Address,
    limit: i64,
    now: DateTime<Utc>,
) -> Result<Vec<B256>, sqlx::Error> {
    let ids = suitable!(
        query_scalar!(
            r#"with line as materialized (
                select o.operation, n.node as order_node, l.requester, l.score
                from unnest($2::text[]) o (operation)
                cross join unnest(array[$3, $4]::bytea[]) n (node)
                cross join lateral (
                    with recursive onward as (
                        (select q.requester, q.score from job_queue q
                         where q.operation = o.operation and q.order_node = n.node and q.requester >= $12
                         order by q.requester, q.score limit 1)
                        union all
                        select x.requester, x.score
                        from onward u
                        cross join lateral (
                            select q.requester, q.score from job_queue q
                            where q.operation = o.operation and q.order_node = n.node and q.requester > u.requester
                            order by q.requester, q.score limit 1
                        ) x
                    ), around as (
                        (select q.requester, q.score from job_queue q
                         where q.operation = o.operation and q.order_node = n.node and q.requester < $12
                         order by q.requester, q.score limit 1)
                        union all
                        select x.requester, x.score
                        from around u
                        cross join lateral (
                            select q.requester, q.score from job_queue q
                            where q.operation = o.operation and q.order_node = n.node and q.requester > u.requester
                                and q.requester < $12
                            order by q.requester, q.score limit 1
                        ) x
                    )
                    (select * from onward limit $13) union all (select * from around limit $13) limit $13
                ) l
            )
            select f.job_id as "job_id!: DbHash"
            from line l
            left join queue_turn t
                on t.operation = l.operation and t.order_node = l.order_node and t.requester = l.requester
            cross join lateral (
                select q.job_id, q.score, row_number() over (order by q.score, q.job_id) as place
                from job_queue q
                cross join lateral (select * from open_order o where o.job_id = q.job_id limit 1) e
                left join lateral (select * from job_work o where o.job_id = q.job_id limit 1) w on true
                where q.operation = l.operation and q.order_node = l.order_node and q.requester = l.requester
                    and q.score <= $14 and"#,
            "order by q.score, q.job_id
                limit greatest(1, $15 / (select count(*) from line))
            ) f
            order by f.place, t.served_at nulls first, f.score, f.job_id
            limit $15"
        ),
        worker,
        now,
        DbAddress(start) as _,
        LINES,
        latest_ready_score(now),
        limit
    )
    .fetch_all(db)
    .await?;
    Ok(ids.into_iter().map(B256::from).collect())
}

struct Row {
    job_id: DbHash,
    operation: String,
    order_node: DbAddress,
    requester: DbAddress,
    fence: i64,
    attempts: i32,
    forgiven_fence: i64,
    not_before: Option<DateTime<Utc>>,
}

/// Locks the first `limit` of `job_ids` that `worker` can be given and no other transaction has locked. While they are locked
/// nothing ends their orders, and nobody else is given them.
pub async fn lock(
    db: &mut PgConnection,
    job_ids: &[B256],
    worker: &Worker,
    limit: i64,
    now: DateTime<Utc>,
) -> Result<Vec<Waiting>, sqlx::Error> {
    let ids: Vec<DbHash> = job_ids.iter().copied().map(DbHash).collect();
    let rows = suitable!(
        query_as!(
            Row,
            r#"select q.job_id as "job_id: DbHash", q.operation, q.order_node as "order_node: DbAddress",
                q.requester as "requester: DbAddress", coalesce(w.fence, 0) as "fence!",
                coalesce(w.attempts, 0) as "attempts!", coalesce(w.forgiven_fence, 0) as "forgiven_fence!",
                w.not_before as "not_before?"
            from job_queue q
            cross join lateral (select * from open_order o where o.job_id = q.job_id limit 1) e
            left join lateral (select * from job_work o where o.job_id = q.job_id limit 1) w on true
            where q.job_id = any($12::bytea[]) and"#,
            "order by array_position($12::bytea[], q.job_id::bytea) limit $13 for update of q skip locked"
        ),
        worker,
        now,
        &ids[..] as _,
        limit
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Waiting {
            job_id: row.job_id.0,
            work: Work {
                fence: Fence(row.fence),
                attempts: row.attempts,
                forgiven: Fence(row.forgiven_fence),
                state: WorkState::Queued { not_before: row.not_before },
            },
            line: Line { operation: row.operation, order_node: row.order_node.0, requester: row.requester.0 },
        })
        .collect())
}

/// Locks the row of a job that waits, if it does: nobody is given it until the transaction ends. To be called before the work
/// on it is locked, as claims do.
pub async fn lock_one(db: &mut PgConnection, job_id: B256) -> Result<bool, sqlx::Error> {
    let row = sqlx::query_scalar!(
        r#"select true as "waits!" from job_queue where job_id = $1 for update"#,
        DbHash(job_id) as _
    );
    Ok(row.fetch_optional(db).await?.is_some())
}

/// Writes the leases that `node` got on jobs that [`lock`] has locked, begins their attempts and moves their lines to the end.
/// `leases` are the jobs with the work on them under the new lease. An error if one is not as it was when it was locked.
pub async fn lease(
    db: &mut PgConnection,
    node: Address,
    leases: &[(Waiting, Work)],
    expires_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let ids: Vec<DbHash> = leases.iter().map(|(job, _)| DbHash(job.job_id)).collect();
    let fences: Vec<i64> = leases.iter().map(|(_, work)| work.fence.0).collect();
    let leased = sqlx::query!(
        "insert into job_work as w (job_id, state, fence, attempts, node, leased_at, lease_expires_at, updated_at)
         select l.job_id, 'leased', l.fence, 0, $3, $4, $5, $4 from unnest($1::bytea[], $2::bigint[]) l (job_id, fence)
         on conflict (job_id) do update set
             state = 'leased', fence = excluded.fence, node = excluded.node, leased_at = excluded.leased_at,
             lease_expires_at = excluded.lease_expires_at, not_before = null, updated_at = excluded.updated_at
         where w.state = 'queued' and w.fence = excluded.fence - 1",
        &ids[..] as _,
        &fences,
        DbAddress(node) as _,
        now,
        expires_at
    )
    .execute(&mut *db)
    .await?;
    if usize::try_from(leased.rows_affected()).ok() != Some(leases.len()) {
        return Err(sqlx::Error::RowNotFound);
    }
    sqlx::query!(
        "insert into job_attempt (job_id, fence, node, leased_at)
         select l.job_id, l.fence, $3, $4 from unnest($1::bytea[], $2::bigint[]) l (job_id, fence)",
        &ids[..] as _,
        &fences,
        DbAddress(node) as _,
        now
    )
    .execute(&mut *db)
    .await?;
    take_turns(db, leases, now).await
}

async fn take_turns(db: &mut PgConnection, leases: &[(Waiting, Work)], now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    let mut lines: Vec<&Line> = leases.iter().map(|(job, _)| &job.line).collect();
    lines.sort_unstable();
    lines.dedup();
    let operations: Vec<String> = lines.iter().map(|line| line.operation.clone()).collect();
    let nodes: Vec<DbAddress> = lines.iter().map(|line| DbAddress(line.order_node)).collect();
    let requesters: Vec<DbAddress> = lines.iter().map(|line| DbAddress(line.requester)).collect();
    // What another claim moves at this moment need not be moved, nor waited for.
    sqlx::query!(
        "with line as (
             select l.operation, l.order_node, l.requester
             from unnest($1::text[], $2::bytea[], $3::bytea[]) l (operation, order_node, requester)
         ), held as (
             select t.ctid as place from queue_turn t
             join line l on l.operation = t.operation and l.order_node = t.order_node and l.requester = t.requester
             for update of t skip locked
         ), moved as (
             update queue_turn t set served_at = greatest(t.served_at, $4) from held where t.ctid = held.place
         )
         insert into queue_turn (operation, order_node, requester, served_at)
         select l.operation, l.order_node, l.requester, $4 from line l
         where not exists (
             select from queue_turn t
             where t.operation = l.operation and t.order_node = l.order_node and t.requester = l.requester
         )
         order by l.operation, l.order_node, l.requester
         on conflict do nothing",
        &operations,
        &nodes[..] as _,
        &requesters[..] as _,
        now
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Takes out jobs whose deadline is before `past`, which a claim would only pass over, and forgets turns of a week ago. Returns
/// whether there may be more.
pub async fn sweep(db: &mut PgConnection, past: DateTime<Utc>) -> Result<bool, sqlx::Error> {
    let swept = sqlx::query!(
        "delete from job_queue where job_id in (
             select job_id from job_queue where deadline < $1 order by deadline limit $2 for update skip locked
         )",
        past,
        SWEEP_BATCH
    )
    .execute(&mut *db)
    .await?;
    let forgotten = sqlx::query!(
        "delete from queue_turn where ctid in (
             select ctid from queue_turn where served_at < $1 limit $2 for update skip locked
         )",
        past - chrono::TimeDelta::days(TURN_KEPT_DAYS),
        SWEEP_BATCH
    )
    .execute(db)
    .await?;
    Ok([swept, forgotten]
        .iter()
        .any(|result| i64::try_from(result.rows_affected()).is_ok_and(|rows| rows >= SWEEP_BATCH)))
}

/// When lines were last served, since `since`: line and time.
pub async fn turns(db: &mut PgConnection, since: DateTime<Utc>) -> Result<Vec<(Line, DateTime<Utc>)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"select operation, order_node as "order_node: DbAddress", requester as "requester: DbAddress", served_at
           from queue_turn where served_at >= $1"#,
        since
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let line = Line { operation: row.operation, order_node: row.order_node.0, requester: row.requester.0 };
            (line, row.served_at)
        })
        .collect())
}

/// What the reputation of `node` is made of, if a waiting job asks for any: completed and lost ones of its latest attempts.
pub async fn record(db: &mut PgConnection, node: Address) -> Result<(i64, i64), sqlx::Error> {
    let row = sqlx::query!(
        r#"select count(*) filter (where a.outcome = 'completed') as "completed!",
               count(*) filter (where a.outcome in ('failed', 'expired')) as "lost!"
           from (
               select outcome from job_attempt
               where node = $1 and outcome is not null and exists (select from job_queue q where q.min_reputation > 0)
               order by leased_at desc, job_id
               limit 1000
           ) a"#,
        DbAddress(node) as _
    )
    .fetch_one(db)
    .await?;
    Ok((row.completed, row.lost))
}
