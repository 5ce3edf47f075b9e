//! Whether the process works, for people, load balancers and Prometheus.

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use chrono::{DateTime, TimeDelta, Utc};
use market::{clock, db, db::chain_view};
use serde::Serialize;
use std::time::Duration;
use tokio::time::timeout;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{app::App, extract::Json};

/// How long one check may take.
const CHECK_WITHIN: Duration = Duration::from_secs(2);

/// The routes of health.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(root))
        .routes(routes!(status))
        .routes(routes!(live))
        .routes(routes!(ready))
        .routes(routes!(metrics_text))
}

/// A greeting that says whether Redis is there.
#[derive(Debug, Serialize, ToSchema)]
struct RootBody {
    /// For people.
    #[schema(example = "API is running")]
    status: &'static str,
    /// Number of the process that answers.
    #[schema(example = 12345)]
    worker: u32,
    /// `connected` or `disconnected`; the API works either way.
    #[schema(example = "connected")]
    redis: &'static str,
}

/// The process that answers.
#[derive(Debug, Serialize, ToSchema)]
struct StatusBody {
    /// Number of the process that answers.
    #[schema(example = 12345)]
    worker: u32,
    /// Whether Redis answers.
    redis: bool,
    /// Seconds since it began to serve.
    #[schema(example = 45.2)]
    uptime: f64,
}

#[derive(Debug, Serialize, ToSchema)]
struct LiveBody {
    /// `live`
    #[schema(example = "live")]
    status: &'static str,
}

/// Whether requests should be sent here.
#[derive(Debug, Serialize, ToSchema)]
struct ReadyBody {
    /// `ready` or `unready`
    #[schema(example = "ready")]
    status: &'static str,
    /// What was looked at.
    checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Debug, Serialize, ToSchema)]
struct Check {
    /// What.
    #[schema(example = "indexer")]
    name: &'static str,
    /// Whether it is as it should be.
    ok: bool,
    /// What is wrong, or worth knowing.
    #[schema(example = "at block 120, 0 seconds behind")]
    detail: String,
}

/// Say hello
#[utoipa::path(get, path = "/", tag = "health", responses((status = 200, body = RootBody)))]
async fn root(State(app): State<App>) -> Json<RootBody> {
    let redis = if redis_answers(&app).await { "connected" } else { "disconnected" };
    Json(RootBody { status: "API is running", worker: std::process::id(), redis })
}

/// Tell which process answers, and for how long it has run
#[utoipa::path(get, path = "/api/status", tag = "health", responses((status = 200, body = StatusBody)))]
async fn status(State(app): State<App>) -> Json<StatusBody> {
    let redis = redis_answers(&app).await;
    Json(StatusBody { worker: std::process::id(), redis, uptime: app.started.elapsed().as_secs_f64() })
}

/// Whether the process serves at all
#[utoipa::path(get, path = "/health/live", tag = "health", responses((status = 200, body = LiveBody)))]
async fn live() -> Json<LiveBody> {
    Json(LiveBody { status: "live" })
}

/// Whether requests should be sent here, and if not, why
#[utoipa::path(
    get, path = "/health/ready", tag = "health",
    responses((status = 200, body = ReadyBody), (status = 503, body = ReadyBody, description = "A check fails"))
)]
async fn ready(State(app): State<App>) -> impl IntoResponse {
    let (postgres, indexer, store, redis) =
        tokio::join!(check_postgres(&app), check_indexer(&app, clock::now()), check_store(&app), redis_answers(&app));
    // Redis is disposable: without it the API is ready all the same.
    let detail = if redis { "connected" } else { "disconnected; working without it" };
    let redis = Check { name: "redis", ok: true, detail: detail.to_owned() };
    let mut checks = vec![postgres, indexer, store, redis];
    if app.draining.is_cancelled() || app.shutdown.is_cancelled() {
        checks.push(Check { name: "process", ok: false, detail: "is about to end".to_owned() });
    }
    let ok = checks.iter().all(|check| check.ok);
    let (code, status) = if ok { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "unready") };
    (code, Json(ReadyBody { status, checks }))
}

/// Measurements for Prometheus
#[utoipa::path(
    get, path = "/metrics", tag = "health",
    responses((status = 200, body = String, content_type = "text/plain; version=0.0.4"))
)]
async fn metrics_text(State(app): State<App>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.parts.metrics.render())
}

async fn redis_answers(app: &App) -> bool {
    matches!(timeout(CHECK_WITHIN, app.parts.redis.ping()).await, Ok(Ok(())))
}

/// What a check that can fail or hang found.
async fn checked(name: &'static str, check: impl Future<Output = anyhow::Result<String>>) -> Check {
    match timeout(CHECK_WITHIN, check).await {
        Ok(Ok(detail)) => Check { name, ok: true, detail },
        Ok(Err(error)) => Check { name, ok: false, detail: format!("{error:#}") },
        Err(_) => Check { name, ok: false, detail: format!("no answer within {} seconds", CHECK_WITHIN.as_secs()) },
    }
}

async fn check_postgres(app: &App) -> Check {
    checked("postgres", async {
        let missing = db::missing_migrations(&app.parts.pool).await?;
        anyhow::ensure!(missing == 0, "{missing} migrations are not applied");
        Ok("connected, migrations applied".to_owned())
    })
    .await
}

async fn check_store(app: &App) -> Check {
    checked("store", async {
        app.parts.store.check().await?;
        Ok("connected".to_owned())
    })
    .await
}

async fn check_indexer(app: &App, now: DateTime<Utc>) -> Check {
    checked("indexer", async {
        let mut db = app.parts.pool.acquire().await?;
        let Some(indexed) = chain_view::indexed(&mut db).await? else { anyhow::bail!("has not begun") };
        let at = format!("at block {}", indexed.block_number);
        let behind = match behind(app, &indexed, now).await {
            Ok(behind) => behind,
            // Without the chain nothing new can be known anyway, and other instances are no better off.
            Err(error) => {
                return Ok(format!("{at}; the chain does not answer, so how far behind is not known: {error:#}"));
            }
        };
        metrics::gauge!("littoral_indexer_lag_seconds").set(behind.as_seconds_f64());
        let detail = format!("{at}, {} seconds behind", behind.num_seconds());
        anyhow::ensure!(behind <= app.parts.settings.max_index_lag, "{detail}");
        Ok(detail)
    })
    .await
}

/// How long the indexer has been behind the chain. A quiet chain mines nothing for hours, so the age of the last block says
/// nothing by itself: what counts is the age of the first block that is missing, of which the last one's is a bound.
async fn behind(app: &App, indexed: &chain_view::Indexed, now: DateTime<Utc>) -> anyhow::Result<TimeDelta> {
    use alloy::providers::Provider;
    let head = timeout(CHECK_WITHIN / 2, app.parts.provider.get_block_number()).await??;
    if head <= indexed.block_number {
        return Ok(TimeDelta::zero());
    }
    let missing = app.parts.provider.get_block_by_number((indexed.block_number + 1).into());
    let Some(block) = timeout(CHECK_WITHIN / 2, missing).await?? else { return Ok(TimeDelta::zero()) };
    let mined_at = i64::try_from(block.header.timestamp).ok().and_then(|secs| DateTime::from_timestamp(secs, 0));
    Ok(mined_at.map_or(TimeDelta::zero(), |mined_at| (now - mined_at).max(TimeDelta::zero())))
}
