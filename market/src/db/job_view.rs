//! A job as the rows of all its writers show it. Read from the view `job_view`, each function in one statement and so in
//! one snapshot.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256};
use bigdecimal::{BigDecimal, ToPrimitive};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::PgConnection;
use sqlx::types::Json;

use super::types::{DbAddress, DbAmount, DbHash};
use crate::Amount;
use crate::abi::{JobSpec, Order};
use crate::job::{Fence, JobStatus};
use crate::order::{OrderJson, SpecJson};
use crate::redis::keys::PRIORITY_BOOST_MS;

/// One job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobView {
    /// The order's EIP-712 digest.
    pub job_id: B256,
    /// What the rows say; [`JobView::status`] adds the clock's word.
    pub stored_status: JobStatus,
    /// EIP-155 id of the chain that is indexed; nothing before the indexer's first block.
    pub chain_id: Option<u64>,
    /// As opened, or as announced where it is not on the chain.
    pub order: Order,
    /// As opened, or as announced.
    pub spec: JobSpec,
    /// The order's deadline as a time.
    pub deadline: DateTime<Utc>,
    /// False if the spec's strings are not text as it was signed; such a job is never queued.
    pub spec_valid: bool,
    /// 0 to 1000; 100 unless announced otherwise.
    pub priority: i32,
    /// Its place in lists, newest first: when it was opened, or announced where it is not on the chain.
    pub listed_at: DateTime<Utc>,
    /// When it was announced to the API, if it was.
    pub announced_at: Option<DateTime<Utc>>,
    /// The `openJob`.
    pub opened: Option<ChainPoint>,
    /// Who holds it or did it.
    pub node: Option<Address>,
    /// That node's id, if it is registered.
    pub node_id: Option<B256>,
    /// Id of the node that the order names, if it is registered.
    pub order_node_id: Option<B256>,
    /// Fence of the latest lease; zero before the first.
    pub fence: Fence,
    /// Leases that ended without completion.
    pub attempts: i32,
    /// End of the pause after a failed attempt.
    pub not_before: Option<DateTime<Utc>>,
    /// What the latest failed attempt said.
    pub last_error: Option<String>,
    /// The lease, while a node has one.
    pub lease: Option<Lease>,
    /// The result that was handed in.
    pub completion: Option<Completion>,
    /// The payment that the completion made due.
    pub due: Option<Due>,
    /// The result as the chain has it.
    pub settled: Option<Settled>,
    /// The settler's transaction that is under way.
    pub batch: Option<PendingBatch>,
    /// Why the settler tries no longer.
    pub hold_reason: Option<String>,
    /// The payment or refund.
    pub closed: Option<ChainPoint>,
}

/// Where on the chain something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainPoint {
    /// The transaction.
    pub tx: B256,
    /// Its block's number.
    pub block: u64,
    /// Its block's time.
    pub at: DateTime<Utc>,
}

/// A node's hold on a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Who.
    pub node: Address,
    /// Since when.
    pub since: DateTime<Utc>,
    /// Until when, unless renewed.
    pub expires_at: DateTime<Utc>,
}

/// A result, as its node handed it in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// Who did it.
    pub node: Address,
    /// Under which lease.
    pub fence: Fence,
    /// Where the output is.
    pub output_cid: String,
    /// SHA2-256 of the output.
    pub result_hash: B256,
    /// What the receipt asks, in the token's smallest unit.
    pub price: Amount,
    /// When the lease began.
    pub started_at: DateTime<Utc>,
    /// When the result came.
    pub completed_at: DateTime<Utc>,
}

/// A payment that a completed job made due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// In the token's smallest unit.
    pub amount: Amount,
    /// Since when.
    pub at: DateTime<Utc>,
}

/// A result on the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// Who is paid.
    pub node: Address,
    /// How much, in the token's smallest unit.
    pub price: Amount,
    /// SHA2-256 of the output.
    pub result_hash: B256,
    /// The transaction that brought the result.
    pub tx: Option<B256>,
    /// End of the challenge window, if the order has one.
    pub finalize_at: Option<DateTime<Utc>>,
}

/// A settler's transaction under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingBatch {
    /// Its number.
    pub id: i64,
    /// The latest signed form of it; nothing before the first is stored.
    pub tx: Option<B256>,
}

impl JobView {
    /// The status at `now`.
    #[must_use]
    pub fn status(&self, now: DateTime<Utc>) -> JobStatus {
        self.stored_status.at(self.deadline, now)
    }

    /// The node that was credited and the transaction, once paid.
    #[must_use]
    pub fn paid(&self) -> Option<(Settled, ChainPoint)> {
        if self.stored_status == JobStatus::Paid { self.settled.zip(self.closed) } else { None }
    }

    /// The refund's transaction, once refunded.
    #[must_use]
    pub fn refunded(&self) -> Option<ChainPoint> {
        if self.stored_status == JobStatus::Refunded { self.closed } else { None }
    }

    /// Whether a node may take it at `now`: paid for, its spec valid, waiting, its deadline ahead. A pause after a failed
    /// attempt does not count: it ends without anything being written.
    #[must_use]
    pub fn is_queued(&self, now: DateTime<Utc>) -> bool {
        self.spec_valid && self.status(now) == JobStatus::Pending
    }
}

struct Row {
    job_id: DbHash,
    status: String,
    listed_at: DateTime<Utc>,
    requester: DbAddress,
    token: Option<DbAddress>,
    max_price: Option<DbAmount>,
    order_node: Option<DbAddress>,
    assigner: Option<DbAddress>,
    spec_hash: Option<DbHash>,
    deadline: DateTime<Utc>,
    challenge_window_secs: Option<i64>,
    arbiter: Option<DbAddress>,
    max_fee_bps: Option<i32>,
    nonce: Option<BigDecimal>,
    input_cid: Option<String>,
    operation: Option<String>,
    params: Option<String>,
    spec_valid: Option<bool>,
    order_json: Option<Json<OrderJson>>,
    spec_json: Option<Json<SpecJson>>,
    announced_at: Option<DateTime<Utc>>,
    priority: i32,
    opened_block: Option<i64>,
    opened_tx: Option<DbHash>,
    opened_at: Option<DateTime<Utc>>,
    settled_node: Option<DbAddress>,
    settled_price: Option<DbAmount>,
    settled_result_hash: Option<DbHash>,
    finalize_at: Option<DateTime<Utc>>,
    submitted_tx: Option<DbHash>,
    closed_block: Option<i64>,
    closed_tx: Option<DbHash>,
    closed_at: Option<DateTime<Utc>>,
    work_state: Option<String>,
    fence: Option<i64>,
    attempts: Option<i32>,
    work_node: Option<DbAddress>,
    leased_at: Option<DateTime<Utc>>,
    lease_expires_at: Option<DateTime<Utc>>,
    not_before: Option<DateTime<Utc>>,
    last_error: Option<String>,
    completion_fence: Option<i64>,
    completion_node: Option<DbAddress>,
    output_cid: Option<String>,
    result_hash: Option<DbHash>,
    price: Option<DbAmount>,
    started_at: Option<DateTime<Utc>>,
    completed_at: Option<DateTime<Utc>>,
    due_amount: Option<DbAmount>,
    due_at: Option<DateTime<Utc>>,
    batch_id: Option<i64>,
    batch_tx: Option<DbHash>,
    hold_reason: Option<String>,
    node: Option<DbAddress>,
    node_id: Option<DbHash>,
    order_node_id: Option<DbHash>,
    chain_id: Option<i64>,
}

/// `select` of all columns of a [`Row`] with the rest of the statement, so that every query names them once.
macro_rules! select_jobs {
    ($rest:literal, $($arg:expr),*) => {
        sqlx::query_as!(
            Row,
            r#"select j.job_id as "job_id!: DbHash", j.status as "status!", j.listed_at as "listed_at!",
                j.requester as "requester!: DbAddress",
                j.token as "token?: DbAddress", j.max_price as "max_price?: DbAmount",
                j.order_node as "order_node?: DbAddress", j.assigner as "assigner?: DbAddress",
                j.spec_hash as "spec_hash?: DbHash", j.deadline as "deadline!",
                j.challenge_window_secs as "challenge_window_secs?", j.arbiter as "arbiter?: DbAddress",
                j.max_fee_bps as "max_fee_bps?", j.nonce as "nonce?", j.input_cid as "input_cid?",
                j.operation as "operation?", j.params as "params?", j.spec_valid as "spec_valid?",
                j.order_json as "order_json?: Json<OrderJson>", j.spec_json as "spec_json?: Json<SpecJson>",
                j.announced_at as "announced_at?", j.priority as "priority!",
                j.opened_block as "opened_block?", j.opened_tx as "opened_tx?: DbHash", j.opened_at as "opened_at?",
                j.settled_node as "settled_node?: DbAddress", j.settled_price as "settled_price?: DbAmount",
                j.settled_result_hash as "settled_result_hash?: DbHash", j.finalize_at as "finalize_at?",
                j.submitted_tx as "submitted_tx?: DbHash",
                j.closed_block as "closed_block?", j.closed_tx as "closed_tx?: DbHash", j.closed_at as "closed_at?",
                j.work_state as "work_state?", j.fence as "fence?", j.attempts as "attempts?",
                j.work_node as "work_node?: DbAddress", j.leased_at as "leased_at?",
                j.lease_expires_at as "lease_expires_at?", j.not_before as "not_before?", j.last_error as "last_error?",
                j.completion_fence as "completion_fence?", j.completion_node as "completion_node?: DbAddress",
                j.output_cid as "output_cid?", j.result_hash as "result_hash?: DbHash", j.price as "price?: DbAmount",
                j.started_at as "started_at?", j.completed_at as "completed_at?",
                j.due_amount as "due_amount?: DbAmount", j.due_at as "due_at?",
                j.batch_id as "batch_id?", j.batch_tx as "batch_tx?: DbHash", j.hold_reason as "hold_reason?",
                j.node as "node?: DbAddress", j.node_id as "node_id?: DbHash",
                j.order_node_id as "order_node_id?: DbHash", j.chain_id as "chain_id?"
            from job_view j "# + $rest,
            $($arg),*
        )
    };
}

/// The job, if it was ever opened or announced (and not reorganised away since).
pub async fn by_id(db: &mut PgConnection, job_id: B256) -> Result<Option<JobView>, sqlx::Error> {
    select_jobs!("where j.job_id = $1", DbHash(job_id) as _)
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
                    floor(extract(epoch from j.opened_at) * 1000)::bigint - (j.priority - 100)::bigint * $1::bigint,
                    floor(extract(epoch from j.not_before) * 1000)::bigint
                ) as score
            ) q
            where j.status = 'pending' and j.escrow_state = 'open' and j.spec_valid and j.deadline >= $2
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
        r#"select job_id as "job_id: DbHash" from escrow_job
        where job_id > $1 and (state in ('open', 'submitted') or closed_at >= $2)
        order by job_id limit $3"#,
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
        join escrow_job e on e.job_id = p.job_id
        where e.state in ('open', 'submitted')
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

/// Jobs whose Redis state names one of `nodes`: leased by it, or done by it and not closed.
pub async fn ids_of_nodes(db: &mut PgConnection, nodes: &[Address]) -> Result<Vec<B256>, sqlx::Error> {
    let nodes: Vec<DbAddress> = nodes.iter().copied().map(DbAddress).collect();
    let rows = sqlx::query_scalar!(
        r#"select w.job_id as "job_id!: DbHash" from job_work w where w.state = 'leased' and w.node = any($1)
        union
        select p.job_id from payment_due p join escrow_job e on e.job_id = p.job_id
        where p.node = any($1) and e.state = 'open'
        union
        select e.job_id from escrow_job e where e.node = any($1) and e.state = 'submitted'"#,
        &nodes[..] as _
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

fn parse_status(text: &str) -> Result<JobStatus, sqlx::Error> {
    text.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

fn views(rows: Vec<Row>) -> Result<Vec<JobView>, sqlx::Error> {
    rows.into_iter().map(JobView::try_from).collect()
}

fn decode<T, E: std::error::Error + Send + Sync + 'static>(value: Result<T, E>) -> Result<T, sqlx::Error> {
    value.map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

fn point(tx: Option<DbHash>, block: Option<i64>, at: Option<DateTime<Utc>>) -> Result<Option<ChainPoint>, sqlx::Error> {
    match (tx, block, at) {
        (Some(tx), Some(block), Some(at)) => {
            Ok(Some(ChainPoint { tx: tx.0, block: decode(u64::try_from(block))?, at }))
        }
        _ => Ok(None),
    }
}

impl Row {
    /// Columns of the escrow, or nothing where the job is only announced.
    fn opened_order(&self) -> Result<Option<(Order, JobSpec)>, sqlx::Error> {
        let (Some(token), Some(max_price), Some(node), Some(assigner), Some(spec_hash), Some(arbiter)) =
            (self.token, self.max_price, self.order_node, self.assigner, self.spec_hash, self.arbiter)
        else {
            return Ok(None);
        };
        let nonce = self.nonce.as_ref().and_then(BigDecimal::to_u64);
        let order = Order {
            requester: self.requester.0,
            token: token.0,
            maxPrice: decode(max_price.0.to_u128())?,
            node: node.0,
            assigner: assigner.0,
            specHash: spec_hash.0,
            deadline: decode(u64::try_from(self.deadline.timestamp()))?,
            challengeWindow: decode(u32::try_from(self.challenge_window_secs.unwrap_or_default()))?,
            arbiter: arbiter.0,
            maxFeeBps: decode(u16::try_from(self.max_fee_bps.unwrap_or_default()))?,
            nonce: nonce.ok_or_else(|| sqlx::Error::Decode("the order's nonce is not a uint64".into()))?,
        };
        let spec = JobSpec {
            inputCID: self.input_cid.clone().unwrap_or_default(),
            operation: self.operation.clone().unwrap_or_default(),
            params: self.params.clone().unwrap_or_default(),
        };
        Ok(Some((order, spec)))
    }

    fn announced_order(&self) -> Result<(Order, JobSpec), sqlx::Error> {
        match (&self.order_json, &self.spec_json) {
            (Some(Json(order)), Some(Json(spec))) => Ok((decode(order.to_order())?, spec.into())),
            _ => Err(sqlx::Error::Decode("a job that is neither opened nor announced".into())),
        }
    }

    fn lease(&self) -> Option<Lease> {
        match (self.work_state.as_deref(), self.work_node, self.leased_at, self.lease_expires_at) {
            (Some("leased"), Some(node), Some(since), Some(expires_at)) => {
                Some(Lease { node: node.0, since, expires_at })
            }
            _ => None,
        }
    }

    fn completion(&self) -> Option<Completion> {
        Some(Completion {
            node: self.completion_node?.0,
            fence: Fence(self.completion_fence?),
            output_cid: self.output_cid.clone()?,
            result_hash: self.result_hash?.0,
            price: self.price?.0,
            started_at: self.started_at?,
            completed_at: self.completed_at?,
        })
    }

    fn settled(&self) -> Option<Settled> {
        Some(Settled {
            node: self.settled_node?.0,
            price: self.settled_price?.0,
            result_hash: self.settled_result_hash?.0,
            tx: self.submitted_tx.map(B256::from),
            finalize_at: self.finalize_at,
        })
    }
}

impl TryFrom<Row> for JobView {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> Result<Self, Self::Error> {
        let (order, spec) = match row.opened_order()? {
            Some(opened) => opened,
            None => row.announced_order()?,
        };
        Ok(Self {
            job_id: row.job_id.0,
            stored_status: parse_status(&row.status)?,
            chain_id: row.chain_id.map(|id| decode(u64::try_from(id))).transpose()?,
            order,
            spec,
            deadline: row.deadline,
            spec_valid: row.spec_valid.unwrap_or(true),
            priority: row.priority,
            listed_at: row.listed_at,
            announced_at: row.announced_at,
            opened: point(row.opened_tx, row.opened_block, row.opened_at)?,
            node: row.node.map(Address::from),
            node_id: row.node_id.map(B256::from),
            order_node_id: row.order_node_id.map(B256::from),
            fence: Fence(row.fence.unwrap_or_default()),
            attempts: row.attempts.unwrap_or_default(),
            not_before: row.not_before,
            lease: row.lease(),
            completion: row.completion(),
            due: row.due_amount.zip(row.due_at).map(|(amount, at)| Due { amount: amount.0, at }),
            settled: row.settled(),
            batch: row.batch_id.map(|id| PendingBatch { id, tx: row.batch_tx.map(B256::from) }),
            closed: point(row.closed_tx, row.closed_block, row.closed_at)?,
            hold_reason: row.hold_reason,
            last_error: row.last_error,
        })
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
