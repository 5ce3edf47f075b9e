//! Taking a signed order back before any node had it. Later only the chain can: a node may hold the order's signature then.

use alloy::primitives::{Address, B256};
use axum::extract::State;
use chrono::{DateTime, Utc};
use market::{
    clock,
    db::{
        job_view, order,
        order::Rail,
        outbox::{self, Entity, Source},
        queue, work,
    },
    job::{Fence, JobStatus},
};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{JobPath, ordered};
use crate::{
    app::App,
    auth::SignedIn,
    error::{ApiError, ApiResult, Code, Problem},
    extract::{Json, Path},
    wire::Hash,
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(cancel_job))
}

/// An order that was taken back.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct CancelBody {
    /// The job.
    job_id: Hash,
    /// `cancelled`.
    status: JobStatus,
}

/// Take a signed order back
///
/// As long as no node has had it. Afterwards, and for orders that were opened on the chain, the escrow's `cancelJob` gives
/// notice. Repeating it changes nothing.
#[utoipa::path(
    post, path = "/lit-compute/jobs/{jobId}/cancel", tag = "jobs", security(("bearer" = [])), params(JobPath),
    responses(
        (status = 200, body = CancelBody),
        (status = 403, body = Problem, content_type = "application/problem+json", description = "`wallet_mismatch`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`job_not_found`"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "`not_withdrawable`"),
    )
)]
async fn cancel_job(State(app): State<App>, user: SignedIn, Path(path): Path<JobPath>) -> ApiResult<Json<CancelBody>> {
    cancel(&app, user.wallet(), path.job_id.0, clock::now()).await?;
    Ok(Json(CancelBody { job_id: path.job_id, status: JobStatus::Cancelled }))
}

/// Takes back a signed order of `requester` at `now`. Nothing if it was taken back before.
pub async fn cancel(app: &App, requester: Address, job_id: B256, now: DateTime<Utc>) -> ApiResult<()> {
    let mut tx = app.begin().await?;
    let job = ordered(&mut tx, job_id, requester).await?;
    if job.stored_status == JobStatus::Cancelled {
        return Ok(());
    }
    let refuse = |why: String| {
        let detail = format!("{why} Call the escrow's cancelJob on the chain: from cancelAt on no result settles.");
        Err(ApiError::new(Code::NotWithdrawable, detail))
    };
    if job.rail != Some(Rail::Signed) {
        return refuse("The order is not signed for being paid from the deposit.".to_owned());
    }
    // A claim locks the job's place in the queue, so one of the two comes first. The order is locked before that, as by all who end
    // one.
    order::lock_signed(&mut tx, job_id, requester).await?;
    queue::lock_one(&mut tx, job_id).await?;
    work::ensure_row(&mut tx, job_id, now).await?;
    match work::lock_ordered(&mut tx, job_id, requester).await? {
        Some(work) if work.fence > Fence(0) => {
            return refuse(format!("A node has had the job, which is {}.", job.status(now)));
        }
        _ => {}
    }
    if !order::withdraw(&mut tx, job_id, requester, now).await? {
        let status = job_view::by_id(&mut tx, job_id).await?.map_or(job.stored_status, |job| job.stored_status);
        if status == JobStatus::Cancelled {
            return Ok(());
        }
        return refuse(format!("The job is {}.", status.at(job.deadline, now)));
    }
    outbox::append(&mut tx, Source::Work, Entity::Job(job_id), "job.cancelled", now).await?;
    tx.commit().await?;
    tracing::info!(%job_id, %requester, "order withdrawn");
    Ok(())
}
