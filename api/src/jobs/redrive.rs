//! Having a job tried anew that no node could do: the way out of where failed jobs lie (`jobs?status=failed`).

use alloy::primitives::{Address, B256};
use axum::extract::State;
use chrono::{DateTime, Utc};
use market::{
    clock,
    db::{
        exposure,
        job_view::JobView,
        order::{self, Rail},
        outbox::{self, Entity, Source},
        work,
    },
    job::JobStatus,
};
use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{JobPath, check, ordered, signed};
use crate::{
    app::App,
    auth::SignedIn,
    error::{ApiError, ApiResult, Code, DepositProblem, Problem},
    extract::{Json, Path},
    wire::Hash,
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(redrive_job))
}

/// A job that waits again.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct RedriveBody {
    /// The job.
    job_id: Hash,
    /// `pending`.
    status: JobStatus,
}

/// Have a failed job tried anew
///
/// By its requester, while there is time to its deadline. What was tried before counts no more: nodes that could not do it may be
/// given it again. A signed order must fit into the deposit, as when it was handed in.
#[utoipa::path(
    post, path = "/lit-compute/jobs/{jobId}/redrive", tag = "jobs", security(("bearer" = [])), params(JobPath),
    responses(
        (status = 200, body = RedriveBody),
        (status = 402, body = DepositProblem, content_type = "application/problem+json",
         description = "`insufficient_deposit`"),
        (status = 403, body = Problem, content_type = "application/problem+json", description = "`wallet_mismatch`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`job_not_found`"),
        (status = 409, body = Problem, content_type = "application/problem+json",
         description = "`not_failed`, `not_open`, `deadline_passed`"),
    )
)]
async fn redrive_job(
    State(app): State<App>,
    user: SignedIn,
    Path(path): Path<JobPath>,
) -> ApiResult<Json<RedriveBody>> {
    redrive(&app, user.wallet(), path.job_id.0, clock::now()).await?;
    Ok(Json(RedriveBody { job_id: path.job_id, status: JobStatus::Pending }))
}

/// Puts a failed job of `requester` back into the queue at `now`.
pub async fn redrive(app: &App, requester: Address, job_id: B256, now: DateTime<Utc>) -> ApiResult<()> {
    let mut tx = app.begin().await?;
    let job = ordered(&mut tx, job_id, requester).await?;
    if job.rail == Some(Rail::Signed) {
        exposure::lock(&mut tx, job.order.requester, job.order.token).await?;
    }
    let before = work::lock_ordered(&mut tx, job_id, requester).await?.unwrap_or_default();
    let after = before.redrive()?;
    check_standing(app, &mut tx, &job, now).await?;
    work::save(&mut tx, job_id, &before, &after, None, now).await?;
    outbox::append(&mut tx, Source::Work, Entity::Job(job_id), "job.redriven", now).await?;
    tx.commit().await?;
    metrics::counter!("littoral_jobs_redriven_total").increment(1);
    tracing::info!(%job_id, %requester, fence = before.fence.0, "job is tried anew");
    Ok(())
}

/// That a node that does the job now can be paid.
async fn check_standing(app: &App, db: &mut PgConnection, job: &JobView, now: DateTime<Utc>) -> ApiResult<()> {
    if now + app.parts.settings.deadline_margin > job.deadline {
        let detail = format!("The order's deadline, {}, is too near.", job.deadline);
        return Err(ApiError::new(Code::DeadlinePassed, detail));
    }
    if job.cancel_at.is_some() || !order::is_open(db, job.job_id).await? {
        return Err(ApiError::new(Code::NotOpen, format!("The job is {}.", job.status(now))));
    }
    if job.rail != Some(Rail::Signed) {
        return Ok(());
    }
    // While it has failed it binds nothing of the deposit.
    let exposure = exposure::of(db, job.order.requester, job.order.token, now).await?;
    let node = check::channel(&job.order).map(|channel| channel.node);
    signed::check_fits(app, &exposure, &job.order, node)
}
