//! Claiming work by long poll. Redis suggests, Postgres decides.
//!
//! **An answer that is lost loses nothing.** A node may tell with its claim which leases it holds. One that is the node's
//! by the rows but that it does not name was granted in an answer that never arrived: it is renewed and given again, under
//! the same fence. Without that, such a lease would run out and count as an attempt. A node that does not tell gets only
//! new work, and a lost lease runs out like any other.

use std::time::Duration;

use alloy::primitives::{Address, B256};
use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use market::{
    abi::Order,
    clock,
    db::{
        node_profile,
        order::{self, Agreed, Rail},
        outbox::{self, Entity, Source},
        registry,
        voucher::{self, Channel},
        work::{self, Held, Worker},
    },
    job::{Fence, Work},
    order::{OrderJson, SpecJson},
    redis::queue,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use tokio::time::Instant;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AssignmentBody, agreed, check,
    lease::{LeaseRef, lease_assignment, renew_lease},
};
use crate::{
    app::App,
    auth::SignedIn,
    error::{ApiError, ApiResult, Code, Problem},
    extract::Json,
    nodes::staked,
    wire::{Hash, HexBytes},
};

/// Longest wait, in seconds.
const MAX_WAIT_SECS: u64 = 30;
/// How often a waiting claim looks by itself: pauses after failures end, and notifications can get lost.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Candidates that are tried at once: more than claims that can be under way, so that each finds one of its own.
const CANDIDATES: usize = 128;
/// How long Redis may take to suggest; Postgres knows too.
const SUGGEST_WITHIN: Duration = Duration::from_millis(250);
/// How often new candidates are fetched when others took them all.
const ROUNDS: usize = 3;
/// Jobs that one decision may pass over because their requesters have too little, or took them back meanwhile.
const PASSED_OVER: usize = 16;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(claim_job))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClaimRequest {
    /// How long to wait for work, in seconds; not at all unless given.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 30)]
    wait_secs: u64,
    /// Leases that the node holds. A lease of its own that is missing here is given again.
    #[schema(nullable = false)]
    leases: Option<Vec<LeaseRef>>,
}

/// A job that is the node's for a while.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Lease)]
struct LeaseBody {
    /// The job.
    job_id: Hash,
    /// To be sent with everything that is done under this lease.
    #[schema(value_type = i64, example = 1)]
    fence: Fence,
    /// Which attempt at the job this is, from 1.
    attempt: i32,
    /// When the lease ends unless renewed.
    lease_expires_at: DateTime<Utc>,
    /// As opened on the chain, or signed.
    order: OrderJson,
    /// As opened on the chain, or signed.
    spec: SpecJson,
    /// The requester's, over the order, if the job is paid from the deposit. To be kept: with it, the receipt and the
    /// assignment the node can settle the result itself.
    signature: Option<HexBytes>,
    /// For an open order: that it belongs to this node.
    assignment: Option<AssignmentBody>,
}

/// Claim a job
///
/// Waits up to `waitSecs` for one. Give `leases` to be given again what an answer that was lost has granted, and keep one
/// such claim under way at a time.
#[utoipa::path(
    post, path = "/lit-compute/jobs/claim", tag = "jobs", security(("bearer" = [])), request_body = ClaimRequest,
    responses(
        (status = 200, body = LeaseBody),
        (status = 204, description = "There is no work for this node, or it has all that it can take"),
        (status = 403, body = Problem, content_type = "application/problem+json",
         description = "`node_not_registered`, `insufficient_stake`, `profile_missing`"),
    )
)]
async fn claim_job(State(app): State<App>, user: SignedIn, Json(request): Json<ClaimRequest>) -> ApiResult<Response> {
    if request.wait_secs > MAX_WAIT_SECS {
        let detail = format!("must be at most {MAX_WAIT_SECS}");
        return Err(ApiError::field(Code::InvalidField, "waitSecs", detail));
    }
    let give_up = Instant::now() + Duration::from_secs(request.wait_secs);
    let mut wake = app.wake.subscribe();
    loop {
        // Before looking: what comes while looking must not be missed.
        wake.mark_unchanged();
        let granted = {
            let _slot = app.claim_slots.acquire().await.map_err(ApiError::internal)?;
            claim(&app, user.wallet(), request.leases.as_deref(), clock::now()).await?
        };
        if let Some(lease) = granted {
            return Ok(Json(lease).into_response());
        }
        let look_again = give_up.min(Instant::now() + jittered(LOOK_AGAIN));
        if Instant::now() >= give_up {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        tokio::select! {
            () = tokio::time::sleep_until(look_again) => {}
            _ = wake.changed() => {}
            () = app.shutdown.cancelled() => return Ok(StatusCode::NO_CONTENT.into_response()),
        }
    }
}

/// Within a fifth of `pause`, so that many that wait do not ask in step.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.8..1.2))
}

/// One look for work.
async fn claim(
    app: &App,
    node: Address,
    known: Option<&[LeaseRef]>,
    now: DateTime<Utc>,
) -> ApiResult<Option<LeaseBody>> {
    let mut worker = worker(app, node, now).await?;
    let mut candidates = suggest(app).await;
    for round in 0..ROUNDS {
        let mut db = app.parts.pool.acquire().await?;
        if candidates.is_empty() {
            candidates = work::candidates(&mut db, &worker, CANDIDATES.try_into().unwrap_or(i64::MAX), now).await?;
        }
        // The first round also looks for a lease that the node has lost.
        if candidates.is_empty() && (round > 0 || known.is_none()) {
            return Ok(None);
        }
        // Committed before the transaction that locks: an insert waits for another's of the same row, a lock need not.
        work::ensure_rows(&mut db, &candidates, now).await?;
        drop(db);
        match decide(app, &mut worker, known, &candidates, now).await? {
            Decision::Granted(lease) => return Ok(Some(*lease)),
            Decision::Full => return Ok(None),
            Decision::NoneLeft => candidates.clear(),
        }
    }
    Ok(None)
}

/// What Redis has at the head of the queue; nothing if it is down, which Postgres makes up for.
async fn suggest(app: &App) -> Vec<B256> {
    let candidates = queue::candidates(&app.parts.redis, 0, CANDIDATES);
    match tokio::time::timeout(SUGGEST_WITHIN, candidates).await {
        Ok(Ok(ids)) => ids,
        Ok(Err(error)) => {
            tracing::debug!(%error, "claiming without Redis");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

/// Who asks: registered, staked, and known to the API.
async fn worker(app: &App, node: Address, now: DateTime<Utc>) -> ApiResult<Worker> {
    let mut db = app.parts.pool.acquire().await?;
    let mut operations = staked(app, &mut db, node).await?.operations;
    let profile = node_profile::find(&mut db, node).await?.ok_or_else(profile_missing)?;
    operations.retain(|name| profile.operations.contains(name));
    let deadline_from = now + app.parts.settings.deadline_margin;
    Ok(Worker { node, operations, assigner: app.assigner(), deadline_from, unfunded: app.funds.short() })
}

enum Decision {
    Granted(Box<LeaseBody>),
    /// The node holds all it can take.
    Full,
    /// All candidates went to others or do not suit.
    NoneLeft,
}

/// Under the node's lock: gives back what it lost, or leases it the first candidate that is free.
async fn decide(
    app: &App,
    worker: &mut Worker,
    known: Option<&[LeaseRef]>,
    candidates: &[B256],
    now: DateTime<Utc>,
) -> ApiResult<Decision> {
    let node = worker.node;
    let mut tx = app.begin().await?;
    let profile = node_profile::lock(&mut tx, node).await?.ok_or_else(profile_missing)?;
    let held = work::held(&mut tx, node, now).await?;
    if let Some(lost) = known.and_then(|known| held.iter().find(|held| !knows(known, held))) {
        let lease = LeaseRef { job_id: Hash(lost.job_id), fence: lost.fence };
        let renewed = renew_lease(app, &mut tx, node, lease, now).await?;
        let job = agreed(&mut tx, lost.job_id).await?;
        let lease = lease_body(app, lost, &job, node, renewed.lease_expires_at)?;
        tx.commit().await?;
        tracing::info!(job_id = %lost.job_id, %node, fence = lost.fence.0, "lease given again");
        return Ok(Decision::Granted(Box::new(lease)));
    }
    let registered = registry::nodes(&mut tx, &[node]).await?.remove(&node).map_or(0, |node| node.capacity);
    let capacity = i64::from(registered).min(profile.max_concurrent_jobs.into());
    if i64::try_from(held.len()).is_ok_and(|held| held >= capacity) {
        return Ok(Decision::Full);
    }
    let Some(Chosen { job_id, before, job }) = choose(app, &mut tx, worker, candidates, now).await? else {
        return Ok(Decision::NoneLeft);
    };
    let after = before.claim(node, now, app.parts.settings.lease)?;
    work::save(&mut tx, job_id, &before, &after, None, now).await?;
    work::begin_attempt(&mut tx, job_id, after.fence, node, now).await?;
    outbox::append(&mut tx, Source::Work, Entity::Job(job_id), "job.leased", now).await?;
    let granted =
        Held { job_id, fence: after.fence, expires_at: now + app.parts.settings.lease, attempts: after.attempts };
    let lease = lease_body(app, &granted, &job, node, granted.expires_at)?;
    tx.commit().await?;
    metrics::counter!("littoral_jobs_leased_total").increment(1);
    tracing::info!(%job_id, %node, fence = after.fence.0, "job leased");
    Ok(Decision::Granted(Box::new(lease)))
}

/// A job that is locked and can be leased.
struct Chosen {
    job_id: B256,
    before: Work,
    job: Agreed,
}

/// Locks the first candidate that is free and, if it is a signed order, still stands and has a deposit behind it. Requesters
/// with too little are noted in `worker`, so that all their jobs are passed over at once.
async fn choose(
    app: &App,
    db: &mut PgConnection,
    worker: &mut Worker,
    candidates: &[B256],
    now: DateTime<Utc>,
) -> ApiResult<Option<Chosen>> {
    for _ in 0..PASSED_OVER {
        let Some((job_id, before)) = work::lock_first(db, candidates, worker, now).await? else { return Ok(None) };
        // What had been read when the lock was taken may be older than the lock: the requester may have taken the order back
        // while this waited. From here on it cannot.
        if !order::is_open(db, job_id).await? {
            continue;
        }
        let job = agreed(db, job_id).await?;
        let key = (job.order.requester, job.order.token);
        if job.rail == Rail::Opened {
            return Ok(Some(Chosen { job_id, before, job }));
        }
        if app.funds.hold(db, key, now).await? {
            let uncovered = is_uncovered(db, &job.order, worker.node).await?;
            return Ok(uncovered.then_some(Chosen { job_id, before, job }));
        }
        worker.unfunded.push(key);
    }
    Ok(None)
}

/// That no voucher of the node covers the order, and none will while it has the lease: a voucher that is handed in at this
/// moment is kept before, and seen here, or waits, and finds the order in the node's hands. One channel is locked in a
/// transaction, so that this and what locks several cannot wait for each other.
async fn is_uncovered(db: &mut PgConnection, order: &Order, node: Address) -> ApiResult<bool> {
    let channel = Channel { requester: order.requester, node, token: order.token };
    voucher::lock(db, channel).await?;
    Ok(order.nonce > check::covered_nonce(db, channel).await?)
}

fn profile_missing() -> ApiError {
    ApiError::new(Code::ProfileMissing, "Register with nodes/register before claiming.")
}

fn knows(known: &[LeaseRef], held: &Held) -> bool {
    known.iter().any(|lease| lease.job_id.0 == held.job_id && lease.fence == held.fence)
}

fn lease_body(
    app: &App,
    held: &Held,
    job: &Agreed,
    node: Address,
    lease_expires_at: DateTime<Utc>,
) -> ApiResult<LeaseBody> {
    Ok(LeaseBody {
        job_id: Hash(held.job_id),
        fence: held.fence,
        attempt: held.attempts + 1,
        lease_expires_at,
        order: (&job.order).into(),
        spec: (&job.spec).into(),
        signature: (job.rail == Rail::Signed).then(|| HexBytes(job.signature.to_vec())),
        assignment: lease_assignment(app, held.job_id, &job.order, node, lease_expires_at)?,
    })
}
