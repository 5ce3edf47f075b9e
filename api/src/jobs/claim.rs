//! Claiming work by long poll.

use std::time::Duration;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use market::{
    db::order::Rail,
    job::Fence,
    order::{OrderJson, SpecJson},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    AssignmentBody,
    check::invalid,
    grant::{self, Ask, Granted, MAX_COUNT},
    lease::{LeaseRef, lease_assignment},
};
use crate::{
    app::App,
    auth::SignedIn,
    error::{ApiResult, Problem},
    extract::Json,
    wire::{Hash, HexBytes},
};

/// Longest wait, in seconds.
const MAX_WAIT_SECS: u64 = 30;
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(claim_job)).routes(routes!(claim_jobs))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClaimRequest {
    /// How long to wait for work, in seconds; not at all unless given.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 30)]
    wait_secs: u64,
    /// Leases that the node holds. A lease of its own that is missing here is given again.
    leases: Option<Vec<LeaseRef>>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BulkClaimRequest {
    /// Most jobs; no more than the node has places for.
    #[schema(minimum = 1, maximum = 100)]
    count: usize,
    /// How long to wait for the first, in seconds; not at all unless given.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 30)]
    wait_secs: u64,
    /// Leases that the node holds. Those of its own that are missing here are given again.
    leases: Option<Vec<LeaseRef>>,
}

/// What a node was given.
#[derive(Debug, Serialize, ToSchema)]
struct BulkClaimBody {
    /// The leases; none if there was no work.
    leases: Vec<LeaseBody>,
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
    let ask = Ask { node: user.wallet(), known: request.leases.as_deref(), count: 1 };
    let granted = wait_for(&app, ask, request.wait_secs).await?;
    match granted.into_iter().next() {
        Some(granted) => Ok(Json(lease_body(&app, &granted)?).into_response()),
        None => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

/// Claim several jobs
///
/// As many as there are and the node has places for, up to `count`, in one step. As `jobs/claim` otherwise.
#[utoipa::path(
    post, path = "/lit-compute/jobs/claim/bulk", tag = "jobs", security(("bearer" = [])), request_body = BulkClaimRequest,
    responses(
        (status = 200, body = BulkClaimBody),
        (status = 403, body = Problem, content_type = "application/problem+json",
         description = "`node_not_registered`, `insufficient_stake`, `profile_missing`"),
    )
)]
async fn claim_jobs(
    State(app): State<App>,
    user: SignedIn,
    Json(request): Json<BulkClaimRequest>,
) -> ApiResult<Json<BulkClaimBody>> {
    if !(1..=MAX_COUNT).contains(&request.count) {
        return Err(invalid("count", format!("must be 1 to {MAX_COUNT}")));
    }
    let ask = Ask { node: user.wallet(), known: request.leases.as_deref(), count: request.count };
    let granted = wait_for(&app, ask, request.wait_secs).await?;
    let leases = granted.iter().map(|granted| lease_body(&app, granted)).collect::<ApiResult<_>>()?;
    Ok(Json(BulkClaimBody { leases }))
}

async fn wait_for(app: &App, ask: Ask<'_>, wait_secs: u64) -> ApiResult<Vec<Granted>> {
    if wait_secs > MAX_WAIT_SECS {
        return Err(invalid("waitSecs", format!("must be at most {MAX_WAIT_SECS}")));
    }
    grant::wait(app, ask, Duration::from_secs(wait_secs)).await
}

fn lease_body(app: &App, Granted { held, job, node }: &Granted) -> ApiResult<LeaseBody> {
    Ok(LeaseBody {
        job_id: Hash(held.job_id),
        fence: held.fence,
        attempt: held.attempts + 1,
        lease_expires_at: held.expires_at,
        order: (&job.order).into(),
        spec: (&job.spec).into(),
        signature: (job.rail == Rail::Signed).then(|| HexBytes(job.signature.to_vec())),
        assignment: lease_assignment(app, held.job_id, &job.order, *node, held.expires_at)?,
    })
}
