//! Keeping a lease, giving it up, and taking back those that ended.

use alloy::primitives::{Address, B256};
use axum::extract::State;
use chrono::{DateTime, TimeDelta, Utc};
use market::{
    abi::Order,
    clock,
    db::{
        outbox::{self, Entity, Source},
        work::{self, Outcome},
    },
    job::{Fence, JobStatus, Work, WorkState},
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{AssignmentBody, JobPath, agreed};
use crate::{
    app::App,
    auth::SignedIn,
    error::{ApiError, ApiResult, Code, Problem},
    extract::{Json, Path},
    wire::{Hash, HexBytes},
};

/// How long an assignment outlasts the lease it comes with, so that a node that has just finished can still settle by
/// itself. Short, because until it ends the node could be paid although another one has the job by then.
const ASSIGNMENT_GRACE: TimeDelta = TimeDelta::minutes(2);
/// Leases that are taken back in one transaction.
const EXPIRE_BATCH: i64 = 100;
/// Longest reason for giving up.
const MAX_REASON_BYTES: usize = 4096;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(renew)).routes(routes!(fail_job))
}

/// A lease that a node says it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LeaseRef {
    /// The job.
    pub job_id: Hash,
    /// As it came with the lease.
    #[schema(value_type = i64, example = 1)]
    pub fence: Fence,
}

/// A lease that goes on.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RenewedLease {
    /// The job.
    pub job_id: Hash,
    /// The same as before.
    #[schema(value_type = i64, example = 1)]
    pub fence: Fence,
    /// When it ends unless renewed again.
    pub lease_expires_at: DateTime<Utc>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RenewRequest {
    /// As it came with the lease.
    #[schema(value_type = i64, example = 1)]
    fence: Fence,
}

/// A renewed lease, with an assignment that lasts as long.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct RenewBody {
    /// The job.
    job_id: Hash,
    /// The same as before.
    #[schema(value_type = i64, example = 1)]
    fence: Fence,
    /// When it ends unless renewed again.
    lease_expires_at: DateTime<Utc>,
    /// For an open order.
    assignment: Option<AssignmentBody>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct FailRequest {
    /// As it came with the lease.
    #[schema(value_type = i64, example = 1)]
    fence: Fence,
    /// What went wrong; the requester sees it.
    #[schema(example = "the operation's program ran out of memory")]
    reason: String,
    /// Whether another try may succeed. If not, the job has failed for good where its order names the node; an open one is
    /// left to others.
    retryable: bool,
}

/// What becomes of a job that a node gave up.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct FailBody {
    /// The job.
    job_id: Hash,
    /// `pending` if it is tried again, else `failed`.
    status: JobStatus,
    /// Leases that ended without completion.
    attempts: i32,
    /// When it can be claimed again.
    not_before: Option<DateTime<Utc>>,
}

/// Keep a lease
#[utoipa::path(
    post, path = "/lit-compute/jobs/{jobId}/renew", tag = "jobs", security(("bearer" = [])), params(JobPath),
    request_body = RenewRequest,
    responses(
        (status = 200, body = RenewBody),
        (status = 403, body = Problem, content_type = "application/problem+json", description = "`not_holder`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`job_not_found`"),
        (status = 409, body = Problem, content_type = "application/problem+json",
         description = "`stale_fence`, `lease_expired`, `not_leased`, `job_ended`"),
    )
)]
async fn renew(
    State(app): State<App>,
    user: SignedIn,
    Path(path): Path<JobPath>,
    Json(request): Json<RenewRequest>,
) -> ApiResult<Json<RenewBody>> {
    let (job_id, node) = (path.job_id.0, user.wallet());
    let mut tx = app.begin().await?;
    let lease = LeaseRef { job_id: path.job_id, fence: request.fence };
    let renewed = renew_lease(&app, &mut tx, node, lease, clock::now()).await?;
    let job = agreed(&mut tx, job_id).await?;
    tx.commit().await?;
    let assignment = lease_assignment(&app, job_id, &job.order, node, renewed.lease_expires_at)?;
    let RenewedLease { job_id, fence, lease_expires_at } = renewed;
    Ok(Json(RenewBody { job_id, fence, lease_expires_at, assignment }))
}

/// Renews one lease of `node` within the caller's transaction.
pub async fn renew_lease(
    app: &App,
    db: &mut PgConnection,
    node: Address,
    lease: LeaseRef,
    now: DateTime<Utc>,
) -> ApiResult<RenewedLease> {
    let job_id = lease.job_id.0;
    let before = locked(db, job_id).await?;
    let after = before.renew(node, lease.fence, now, app.parts.settings.lease)?;
    work::save(db, job_id, &before, &after, None, now).await?;
    let WorkState::Leased { expires_at, .. } = after.state else {
        return Err(ApiError::internal(anyhow::anyhow!("job {job_id} was renewed to {:?}", after.state)));
    };
    Ok(RenewedLease { job_id: lease.job_id, fence: lease.fence, lease_expires_at: expires_at })
}

/// The work on a job, locked; for one that no node ever claimed, that no one holds it.
pub(super) async fn locked(db: &mut PgConnection, job_id: B256) -> ApiResult<Work> {
    match work::lock(db, job_id).await? {
        Some(work) => Ok(work),
        None => {
            agreed(db, job_id).await?;
            Ok(Work::default())
        }
    }
}

/// Binds an open order to `node` for as long as its lease and a little more, at most to the order's deadline.
pub(super) fn lease_assignment(
    app: &App,
    job_id: B256,
    order: &Order,
    node: Address,
    lease_expires_at: DateTime<Utc>,
) -> ApiResult<Option<AssignmentBody>> {
    if order.node != Address::ZERO {
        return Ok(None);
    }
    let end = u64::try_from((lease_expires_at + ASSIGNMENT_GRACE).timestamp()).map_err(ApiError::internal)?;
    let expiry = end.min(order.deadline);
    let signature = HexBytes(app.sign_assignment(job_id, node, expiry)?);
    Ok(Some(AssignmentBody { expiry, signature }))
}

/// Give a job up
#[utoipa::path(
    post, path = "/lit-compute/jobs/{jobId}/fail", tag = "jobs", security(("bearer" = [])), params(JobPath),
    request_body = FailRequest,
    responses(
        (status = 200, body = FailBody),
        (status = 403, body = Problem, content_type = "application/problem+json", description = "`not_holder`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`job_not_found`"),
        (status = 409, body = Problem, content_type = "application/problem+json",
         description = "`stale_fence`, `lease_expired`, `not_leased`, `job_ended`"),
    )
)]
async fn fail_job(
    State(app): State<App>,
    user: SignedIn,
    Path(path): Path<JobPath>,
    Json(request): Json<FailRequest>,
) -> ApiResult<Json<FailBody>> {
    check_reason(&request.reason)?;
    let lease = LeaseRef { job_id: path.job_id, fence: request.fence };
    let after = fail(&app, user.wallet(), lease, &request.reason, request.retryable, clock::now()).await?;
    let (status, not_before) = match after.state {
        WorkState::Queued { not_before } => (JobStatus::Pending, not_before),
        _ => (JobStatus::Failed, None),
    };
    Ok(Json(FailBody { job_id: path.job_id, status, attempts: after.attempts, not_before }))
}

/// Takes a job back that `node` gives up at `now`; the work on it as it then stands.
pub async fn fail(
    app: &App,
    node: Address,
    lease: LeaseRef,
    reason: &str,
    retryable: bool,
    now: DateTime<Utc>,
) -> ApiResult<Work> {
    let job_id = lease.job_id.0;
    let mut tx = app.begin().await?;
    let before = locked(&mut tx, job_id).await?;
    let tries = work::tries(&mut tx, job_id, node).await?;
    let after = before.fail(node, lease.fence, retryable, tries, rand::random(), now)?;
    let outcome = if retryable { Outcome::Released } else { Outcome::Failed };
    let ended = EndedLease { job_id, node, outcome, error: Some(reason) };
    end_lease(&mut tx, &ended, &before, &after, now).await?;
    tx.commit().await?;
    tracing::info!(%job_id, %node, fence = lease.fence.0, reason, "node gave the job up");
    Ok(after)
}

fn check_reason(reason: &str) -> ApiResult<()> {
    let refuse = |detail: String| Err(ApiError::field(Code::InvalidField, "reason", detail));
    if reason.trim().is_empty() || reason.len() > MAX_REASON_BYTES {
        return refuse(format!("must have 1 to {MAX_REASON_BYTES} bytes"));
    }
    if reason.contains('\0') {
        return refuse("contains a NUL character".to_owned());
    }
    Ok(())
}

struct EndedLease<'a> {
    job_id: B256,
    node: Address,
    outcome: Outcome,
    error: Option<&'a str>,
}

/// Writes the end of a lease that brought no result, and tells everyone.
async fn end_lease(
    db: &mut PgConnection,
    ended: &EndedLease<'_>,
    before: &Work,
    after: &Work,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    work::save(db, ended.job_id, before, after, ended.error, now).await?;
    work::end_attempt(db, ended.job_id, before.fence, ended.outcome, ended.error, now).await?;
    let event = if after.state == WorkState::Failed { "job.failed" } else { "job.requeued" };
    let changes = [(Entity::Job(ended.job_id), event), (Entity::Node(ended.node), "node.attempt_lost")];
    outbox::append_many(db, Source::Work, &changes, now).await
}

/// Takes back leases that have ended at `now`, up to a batch of them; says how many. Safe in several instances at once.
pub async fn expire_leases(app: &App, now: DateTime<Utc>) -> ApiResult<usize> {
    let mut tx = app.begin().await?;
    let expired = work::lock_expired(&mut tx, EXPIRE_BATCH, now).await?;
    for (job_id, before) in &expired {
        let WorkState::Leased { node, .. } = before.state else { continue };
        let after = before.expire(work::tries(&mut tx, *job_id, node).await?, now);
        let error = Some("the node did not renew its lease");
        let ended = EndedLease { job_id: *job_id, node, outcome: Outcome::Expired, error };
        end_lease(&mut tx, &ended, before, &after, now).await?;
        tracing::info!(%job_id, %node, fence = before.fence.0, attempts = after.attempts, "lease expired");
    }
    tx.commit().await?;
    metrics::counter!("littoral_leases_expired_total").increment(u64::try_from(expired.len()).unwrap_or(u64::MAX));
    Ok(expired.len())
}
