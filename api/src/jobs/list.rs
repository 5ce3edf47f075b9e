//! Looking at jobs.

use std::{collections::BTreeMap, time::Duration};

use axum::extract::State;
use market::{
    clock,
    db::{job_view, node_view},
    job::JobStatus,
    redis::cache::Life,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{JobBody, JobPath, not_found};
use crate::{
    app::App,
    error::{ApiResult, Problem},
    extract::{Json, Path, Query},
    nodes::NodeRef,
    page::{self, Cursor, Limit},
    wire::WalletAddress,
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(get_job))
        .routes(routes!(list_jobs))
        .routes(routes!(pending_jobs))
        .routes(routes!(job_stats))
}

/// A page of jobs.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobPage {
    /// The jobs.
    pub jobs: Vec<JobBody>,
    /// `cursor` of the next page, if there may be one.
    pub next: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Only this requester's.
    requester: Option<WalletAddress>,
    /// Only those that this node (id or address) holds or did.
    #[param(value_type = Option<String>, pattern = "^0x([0-9a-fA-F]{40}|[0-9a-fA-F]{64})$")]
    node: Option<NodeRef>,
    /// Only those with this status.
    status: Option<JobStatus>,
    /// Most entries, 1 to 200.
    #[serde(default)]
    #[param(value_type = Option<i64>, minimum = 1, maximum = 200)]
    limit: Limit,
    /// `next` of the page before.
    #[param(value_type = Option<String>, pattern = "^-?[0-9]{1,18}[.]0x[0-9a-fA-F]{64}$")]
    cursor: Option<Cursor>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct PendingQuery {
    /// Most entries, 1 to 200.
    #[serde(default)]
    #[param(value_type = Option<i64>, minimum = 1, maximum = 200)]
    limit: Limit,
    /// `next` of the page before.
    #[param(value_type = Option<String>, pattern = "^-?[0-9]{1,18}[.]0x[0-9a-fA-F]{64}$")]
    cursor: Option<Cursor>,
}

/// How old the count of jobs may be.
const STATS_LIFE: Life = Life { shared: Duration::from_secs(2), local: Duration::from_secs(1) };

/// How many jobs there are.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct JobStats {
    /// All of them.
    total: i64,
    /// By status; every status is there.
    by_status: BTreeMap<&'static str, i64>,
}

/// Look at a job
#[utoipa::path(
    get, path = "/lit-compute/jobs/{jobId}", tag = "jobs", params(JobPath),
    responses(
        (status = 200, body = JobBody),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`job_not_found`"),
    )
)]
async fn get_job(State(app): State<App>, Path(path): Path<JobPath>) -> ApiResult<Json<JobBody>> {
    let job_id = path.job_id.0;
    let mut db = app.db().await?;
    let job = job_view::by_id(&mut db, job_id).await?.ok_or_else(|| not_found(job_id))?;
    let body = JobBody::all(&mut db, &[job], clock::now()).await?.pop();
    body.map(Json).ok_or_else(|| not_found(job_id))
}

/// List jobs, newest first
#[utoipa::path(
    get, path = "/lit-compute/jobs", tag = "jobs", params(ListQuery), responses((status = 200, body = JobPage))
)]
async fn list_jobs(State(app): State<App>, Query(query): Query<ListQuery>) -> ApiResult<Json<JobPage>> {
    let now = clock::now();
    let mut db = app.db().await?;
    let node = match query.node {
        Some(NodeRef::Id(node_id)) => match node_view::address_of(&mut db, node_id).await? {
            Some(node) => Some(node),
            None => return Ok(Json(JobPage { jobs: Vec::new(), next: None })),
        },
        Some(NodeRef::Address(node)) => Some(node),
        None => None,
    };
    let filter = job_view::Filter {
        requester: query.requester.map(|requester| requester.0),
        node,
        status: query.status,
        after: query.cursor.map(Cursor::time),
    };
    let jobs = job_view::list(&mut db, &filter, query.limit.0, now).await?;
    let next = page::next(&jobs, query.limit, |job| Cursor::at(job.listed_at, job.job_id).to_string());
    Ok(Json(JobPage { jobs: JobBody::all(&mut db, &jobs, now).await?, next }))
}

/// List the jobs that wait for a node, in the order of the queue
#[utoipa::path(
    get, path = "/lit-compute/jobs/pending/list", tag = "jobs", params(PendingQuery),
    responses((status = 200, body = JobPage))
)]
async fn pending_jobs(State(app): State<App>, Query(query): Query<PendingQuery>) -> ApiResult<Json<JobPage>> {
    let now = clock::now();
    let after = query.cursor.map(|Cursor(score, job_id)| (score, job_id));
    let mut db = app.db().await?;
    let jobs = job_view::pending(&mut db, after, query.limit.0, now).await?;
    let next = page::next(&jobs, query.limit, |job| Cursor(job.queue_score(), job.job_id).to_string());
    Ok(Json(JobPage { jobs: JobBody::all(&mut db, &jobs, now).await?, next }))
}

/// Count the jobs by status
///
/// The count may be two seconds old.
#[utoipa::path(get, path = "/lit-compute/jobs/stats", tag = "jobs", responses((status = 200, body = JobStats)))]
async fn job_stats(State(app): State<App>) -> ApiResult<Json<JobStats>> {
    let counts: BTreeMap<String, i64> = app
        .cache
        .get_or_compute("jobs-stats", STATS_LIFE, || async {
            let stats = job_view::stats(&mut *app.db().await?, clock::now()).await?;
            ApiResult::Ok(stats.by_status.into_iter().map(|(status, jobs)| (status.to_owned(), jobs)).collect())
        })
        .await?;
    let count = |status: JobStatus| counts.get(status.name()).copied().unwrap_or(0);
    let by_status: BTreeMap<_, _> = JobStatus::ALL.into_iter().map(|status| (status.name(), count(status))).collect();
    Ok(Json(JobStats { total: by_status.values().sum(), by_status }))
}
