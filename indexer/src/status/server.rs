//! The small server for `/live`, `/health` and `/metrics`.

use std::net::SocketAddr;

use anyhow::Context;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

use super::{Status, Word, metrics};

/// Serves on `bind` until `shutdown`: `/live` says that the process is up, `/health` whether it does what it should.
pub async fn serve(bind: SocketAddr, status: Status, shutdown: CancellationToken) -> anyhow::Result<()> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(metrics::REORG_DEPTH.to_owned()), &metrics::REORG_DEPTHS)
        .and_then(PrometheusBuilder::install_recorder)
        .context("cannot set up metrics")?;
    metrics::describe();
    let listener =
        tokio::net::TcpListener::bind(bind).await.with_context(|| format!("cannot listen on {bind} (METRICS_BIND)"))?;
    let app = Router::new()
        .route("/live", get(|| std::future::ready("ok")))
        .route("/health", get(health))
        .route("/metrics", get(render))
        .with_state((status, recorder));
    tokio::spawn(async move {
        let serving = axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned());
        if let Err(error) = serving.await {
            tracing::error!(%error, "metrics are no longer served");
        }
    });
    Ok(())
}

async fn health(State((status, _)): State<(Status, PrometheusHandle)>) -> Response {
    let health = status.health();
    let code = if health.status == Word::Ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(health)).into_response()
}

async fn render(State((status, recorder)): State<(Status, PrometheusHandle)>) -> String {
    metrics::refresh(&status);
    recorder.run_upkeep();
    recorder.render()
}
