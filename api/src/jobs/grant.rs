//! What a node is given when it asks for work: Redis suggests, Postgres decides.
//!
//! **An answer that is lost loses nothing.** A node may tell with its claim which leases it holds. One that is the node's
//! by the rows but that it does not name was granted in an answer that never arrived: it is renewed and given again, under
//! the same fence. Without that, such a lease would run out and count as an attempt. A node that does not tell gets only
//! new work, and a lost lease runs out like any other.
//!
//! **Locks** are taken in one order, so that nothing waits in a circle: the node's profile, rows of `job_queue` (skipped where
//! someone has them), channels, work. Who ends an order locks the order, then `job_queue`, then the work.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use market::{
    abi::Order,
    clock,
    db::{
        node_profile, node_view,
        order::{self, Agreed, Rail},
        outbox::{self, Entity, Source},
        queue::{self, Waiting, Worker},
        voucher::{self, Channel},
        work::{self, Held},
    },
    job::Work,
    redis,
};
use sqlx::PgConnection;
use tokio::time::Instant;

use super::{
    agreed, check,
    lease::{LeaseRef, renew_lease},
};
use crate::{
    app::App,
    error::{ApiError, ApiResult, Code},
    nodes::staked,
    wire::Hash,
};

/// Most jobs that one claim gives.
pub const MAX_COUNT: usize = 100;
/// How often a waiting claim looks by itself: pauses after failures end, and notifications can get lost.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Candidates that a claim for one job tries; one for many tries twice as many as it is for.
const CANDIDATES: usize = 16;
/// How long Redis may take to suggest; Postgres knows too.
const SUGGEST_WITHIN: Duration = Duration::from_millis(250);
/// One claim in so many asks Postgres first. Redis knows neither terms nor histories: jobs behind others of the same requester
/// that this node cannot do would be left to wait as long as there is other work.
const UNSUGGESTED: u32 = 16;
/// How often new candidates are fetched when others took them all.
const ROUNDS: usize = 3;
/// Looks for jobs in place of those whose requesters have too little.
const LOOKS: usize = 16;

/// A job that is the node's for a while.
#[derive(Debug, Clone)]
pub struct Granted {
    /// Whose.
    pub node: Address,
    /// The lease.
    pub held: Held,
    /// What it is about.
    pub job: Agreed,
}

/// What the node asks for.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Who.
    pub node: Address,
    /// Leases that it knows to hold, if it tells.
    pub known: Option<&'a [LeaseRef]>,
    /// Most jobs.
    pub count: usize,
}

/// Looks for work until there is some, or `longest` is over.
pub async fn wait(app: &App, ask: Ask<'_>, longest: Duration) -> ApiResult<Vec<Granted>> {
    let give_up = Instant::now() + longest;
    let mut wake = app.wake.subscribe();
    loop {
        // Before looking: what comes while looking must not be missed.
        wake.mark_unchanged();
        let granted = {
            let _slot = app.claim_slots.acquire().await.map_err(ApiError::internal)?;
            claim(app, ask, clock::now()).await?
        };
        let look_again = give_up.min(Instant::now() + jittered(LOOK_AGAIN));
        if !granted.is_empty() || Instant::now() >= give_up {
            return Ok(granted);
        }
        tokio::select! {
            () = tokio::time::sleep_until(look_again) => {}
            _ = wake.changed() => {}
            () = app.shutdown.cancelled() => return Ok(Vec::new()),
        }
    }
}

/// Within a fifth of `pause`, so that many that wait do not ask in step.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.8..1.2))
}

/// One look for work.
pub async fn claim(app: &App, ask: Ask<'_>, now: DateTime<Utc>) -> ApiResult<Vec<Granted>> {
    let mut worker = worker(app, ask.node, now).await?;
    let limit = CANDIDATES.max(2 * ask.count);
    for round in 0..ROUNDS {
        let mut candidates = Vec::new();
        if round == 0 && !rand::random_ratio(1, UNSUGGESTED) {
            candidates = suggest(app, &worker, limit, now).await;
        }
        if candidates.is_empty() {
            candidates = look(app, &worker, limit, now).await?;
        }
        // The first round also looks for a lease that the node has lost.
        if candidates.is_empty() && (round > 0 || ask.known.is_none()) {
            return Ok(Vec::new());
        }
        let mut picked = app.tried.pick(&candidates, limit);
        match decide(app, &mut worker, ask, picked.ids(), now).await? {
            Decision::Granted(granted) => {
                picked.leased(granted.iter().map(|granted| granted.held.job_id));
                return Ok(granted);
            }
            Decision::Full => return Ok(Vec::new()),
            Decision::NoneLeft => {}
        }
    }
    Ok(Vec::new())
}

/// How many to fetch, so that every claim that is under way finds some of its own.
fn wanted(app: &App, limit: usize) -> usize {
    limit * app.parts.settings.claim_slots.clamp(1, 8)
}

/// What Redis has at the head of the lines; nothing if it is down, which Postgres makes up for.
async fn suggest(app: &App, worker: &Worker, limit: usize, now: DateTime<Utc>) -> Vec<B256> {
    let start = Address::from(rand::random::<[u8; 20]>());
    let Worker { node, operations, .. } = worker;
    let candidates = redis::queue::suggest(&app.parts.redis, *node, operations, start, wanted(app, limit), now);
    app.parts.redis.within(SUGGEST_WITHIN, candidates).await.unwrap_or_else(|error| {
        tracing::debug!(%error, "claiming without Redis");
        Vec::new()
    })
}

/// What Postgres has at the head of the lines.
async fn look(app: &App, worker: &Worker, limit: usize, now: DateTime<Utc>) -> ApiResult<Vec<B256>> {
    let start = Address::from(rand::random::<[u8; 20]>());
    let limit = i64::try_from(wanted(app, limit)).unwrap_or(i64::MAX);
    Ok(queue::candidates(&mut *app.db().await?, worker, start, limit, now).await?)
}

/// Who asks: registered, staked, and known to the API.
async fn worker(app: &App, node: Address, now: DateTime<Utc>) -> ApiResult<Worker> {
    let mut db = app.db().await?;
    let registered = staked(app, &mut db, node).await?;
    let mut operations = registered.operations;
    let profile = node_profile::find(&mut db, node).await?.ok_or_else(profile_missing)?;
    operations.retain(|name| profile.operations.contains(name));
    let (completed, lost) = queue::record(&mut db, node).await?;
    Ok(Worker {
        node,
        operations,
        stake: registered.stake,
        reputation: node_view::reputation(completed, lost),
        assigner: app.assigner(),
        deadline_from: now + app.parts.settings.deadline_margin,
        unfunded: app.funds.short(),
    })
}

enum Decision {
    Granted(Vec<Granted>),
    /// The node holds all it can take.
    Full,
    /// All candidates went to others or do not suit.
    NoneLeft,
}

/// Under the node's lock: gives back what it lost, or leases it the first candidates that are free.
async fn decide(
    app: &App,
    worker: &mut Worker,
    ask: Ask<'_>,
    candidates: &[B256],
    now: DateTime<Utc>,
) -> ApiResult<Decision> {
    let node = worker.node;
    let mut tx = app.begin().await?;
    let profile = node_profile::lock(&mut tx, node).await?.ok_or_else(profile_missing)?;
    let held = work::held(&mut tx, node, now).await?;
    if let Some(known) = ask.known {
        let lost: Vec<&Held> = held.iter().filter(|held| !knows(known, held)).take(ask.count).collect();
        if !lost.is_empty() {
            let granted = give_again(app, &mut tx, node, &lost, now).await?;
            tx.commit().await?;
            return Ok(Decision::Granted(granted));
        }
    }
    // Under the lock once more: stake and capacity may have gone since.
    let registered = staked(app, &mut tx, node).await?;
    worker.stake = registered.stake;
    let capacity = usize::try_from(i64::from(registered.capacity).min(profile.max_concurrent_jobs.into())).unwrap_or(0);
    let free = capacity.saturating_sub(held.len());
    if free == 0 {
        return Ok(Decision::Full);
    }
    let chosen = choose(app, &mut tx, worker, candidates, ask.count.min(free), now).await?;
    if chosen.is_empty() {
        return Ok(Decision::NoneLeft);
    }
    let granted = lease(app, &mut tx, node, chosen, now).await?;
    tx.commit().await?;
    metrics::counter!("littoral_jobs_leased_total").increment(granted.len().try_into().unwrap_or(u64::MAX));
    for Granted { held, .. } in &granted {
        tracing::info!(job_id = %held.job_id, %node, fence = held.fence.0, "job leased");
    }
    Ok(Decision::Granted(granted))
}

async fn give_again(
    app: &App,
    db: &mut PgConnection,
    node: Address,
    lost: &[&Held],
    now: DateTime<Utc>,
) -> ApiResult<Vec<Granted>> {
    let mut granted = Vec::with_capacity(lost.len());
    for held in lost {
        let lease = LeaseRef { job_id: Hash(held.job_id), fence: held.fence };
        let renewed = renew_lease(app, db, node, lease, now).await?;
        let job = agreed(db, held.job_id).await?;
        granted.push(Granted { node, held: Held { expires_at: renewed.lease_expires_at, ..**held }, job });
        tracing::info!(job_id = %held.job_id, %node, fence = held.fence.0, "lease given again");
    }
    Ok(granted)
}

/// Writes the leases.
async fn lease(
    app: &App,
    db: &mut PgConnection,
    node: Address,
    chosen: Vec<Chosen>,
    now: DateTime<Utc>,
) -> ApiResult<Vec<Granted>> {
    let (length, expires_at) = (app.parts.settings.lease, now + app.parts.settings.lease);
    let (mut leases, mut granted) = (Vec::with_capacity(chosen.len()), Vec::with_capacity(chosen.len()));
    for Chosen { waiting, job } in chosen {
        let after: Work = waiting.work.claim(node, now, length)?;
        let held = Held { job_id: waiting.job_id, fence: after.fence, expires_at, attempts: after.attempts };
        granted.push(Granted { node, held, job });
        leases.push((waiting, after));
    }
    queue::lease(db, node, &leases, expires_at, now).await?;
    let changes: Vec<_> = leases.iter().map(|(job, _)| (Entity::Job(job.job_id), "job.leased")).collect();
    outbox::append_many(db, Source::Work, &changes, now).await?;
    Ok(granted)
}

/// A job that is locked and can be leased.
struct Chosen {
    waiting: Waiting,
    job: Agreed,
}

/// Locks the first `count` candidates that are free and, where they are signed orders, have a deposit behind them. Requesters
/// with too little are noted in `worker`, so that all their jobs are passed over at once.
async fn choose(
    app: &App,
    db: &mut PgConnection,
    worker: &mut Worker,
    candidates: &[B256],
    count: usize,
    now: DateTime<Utc>,
) -> ApiResult<Vec<Chosen>> {
    let (mut chosen, mut left): (Vec<Chosen>, Vec<B256>) = (Vec::new(), candidates.to_vec());
    for look in 0..LOOKS {
        let missing = i64::try_from(count - chosen.len()).unwrap_or(i64::MAX);
        let locked = queue::lock(db, &left, worker, missing, now).await?;
        if locked.is_empty() {
            break;
        }
        left.retain(|id| locked.iter().all(|waiting| waiting.job_id != *id));
        let funded = funded(app, db, worker, locked, now).await?;
        // Channels are locked in order. Once some are, none is waited for: who locks several of them might wait for one of these.
        chosen.extend(uncovered(db, worker.node, funded, look == 0).await?);
        if chosen.len() >= count {
            break;
        }
    }
    Ok(chosen)
}

/// Those of `locked` that can be paid, as far as deposits go.
async fn funded(
    app: &App,
    db: &mut PgConnection,
    worker: &mut Worker,
    locked: Vec<Waiting>,
    now: DateTime<Utc>,
) -> ApiResult<Vec<Chosen>> {
    let ids: Vec<B256> = locked.iter().map(|waiting| waiting.job_id).collect();
    let mut orders = order::agreed(db, &ids).await?;
    let mut funded = Vec::with_capacity(locked.len());
    for waiting in locked {
        let Some(job) = orders.remove(&waiting.job_id) else { continue };
        let key = (job.order.requester, job.order.token);
        if job.rail == Rail::Opened || app.funds.hold(db, key, now).await? {
            funded.push(Chosen { waiting, job });
        } else if !worker.unfunded.contains(&key) {
            worker.unfunded.push(key);
        }
    }
    Ok(funded)
}

/// Those of `jobs` that no voucher of the node covers, and none will while it has the lease: a voucher that is handed in at this
/// moment is kept before, and seen here, or waits, and finds the order in the node's hands.
async fn uncovered(db: &mut PgConnection, node: Address, jobs: Vec<Chosen>, wait: bool) -> ApiResult<Vec<Chosen>> {
    let channel_of = |order: &Order| Channel { requester: order.requester, node, token: order.token };
    let signed = jobs.iter().filter(|chosen| chosen.job.rail == Rail::Signed);
    let channels: BTreeSet<Channel> = signed.map(|chosen| channel_of(&chosen.job.order)).collect();
    let mut covered = HashMap::with_capacity(channels.len());
    for channel in channels {
        if wait {
            voucher::lock(db, channel).await?;
        } else if !voucher::try_lock(db, channel).await? {
            continue;
        }
        covered.insert(channel, check::covered_nonce(db, channel).await?);
    }
    let is_uncovered = |order: &Order| covered.get(&channel_of(order)).is_some_and(|nonce| order.nonce > *nonce);
    Ok(jobs.into_iter().filter(|chosen| chosen.job.rail == Rail::Opened || is_uncovered(&chosen.job.order)).collect())
}

fn profile_missing() -> ApiError {
    ApiError::new(Code::ProfileMissing, "Register with nodes/register before claiming.")
}

fn knows(known: &[LeaseRef], held: &Held) -> bool {
    known.iter().any(|lease| lease.job_id.0 == held.job_id && lease.fence == held.fence)
}
