//! How far the indexer is: for people and load balancers (`/health`) and for Prometheus (`/metrics`).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::follower::Progress;
use crate::{backfill, head};

/// A leader without a successful look at the chain for this long is not healthy.
const STALE_AFTER: Duration = Duration::from_secs(30);

/// What the process is doing, shared by whoever reports it.
#[derive(Debug, Clone, Default)]
pub struct Status(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    leading_since: Option<Instant>,
    succeeded_at: Option<Instant>,
    head: Option<u64>,
    cursor: Option<u64>,
    error: Option<String>,
}

/// The body of `/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// `ok`, or `failing` if this process leads and makes no progress.
    pub status: &'static str,
    /// `leader` or `standby`.
    pub role: &'static str,
    /// Latest block of the chain.
    pub head: Option<u64>,
    /// Last applied block.
    pub cursor: Option<u64>,
    /// Blocks from cursor to head.
    pub lag_blocks: Option<u64>,
    /// What fails, if something does.
    pub error: Option<String>,
}

impl Status {
    /// This process leads from now on.
    pub fn leading(&self) {
        self.change(|inner| inner.leading_since = Some(Instant::now()));
        gauge!("littoral_indexer_leader").set(1.0);
    }

    /// This process waits for its turn.
    pub fn standing_by(&self) {
        self.change(|inner| *inner = Inner::default());
        gauge!("littoral_indexer_leader").set(0.0);
    }

    /// The chain was read, and the step taken if there was one.
    pub fn progress(&self, progress: &Progress) {
        self.change(|inner| {
            inner.succeeded_at = Some(Instant::now());
            inner.head = Some(progress.head);
            inner.cursor = Some(progress.cursor.number);
            inner.error = None;
        });
        gauge!("littoral_indexer_head_block").set(approximate(progress.head));
        gauge!("littoral_indexer_cursor_block").set(approximate(progress.cursor.number));
        gauge!("littoral_indexer_lag_blocks").set(approximate(progress.head.saturating_sub(progress.cursor.number)));
        if let Some(step) = progress.step {
            counter!("littoral_indexer_events_applied_total").increment(u64::try_from(step.events).unwrap_or(u64::MAX));
            counter!("littoral_indexer_events_undone_total").increment(step.applied.events_undone);
            if let Some(depth) = step.reorg_depth {
                counter!("littoral_indexer_reorgs_total").increment(1);
                histogram!("littoral_indexer_reorg_depth_blocks").record(approximate(depth));
            }
        }
    }

    /// Something failed and will be tried again.
    pub fn failing(&self, error: &dyn std::error::Error) {
        self.change(|inner| inner.error = Some(error.to_string()));
        counter!("littoral_indexer_errors_total").increment(1);
    }

    /// What `/health` says.
    #[must_use]
    pub fn health(&self) -> Health {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last_sign = inner.succeeded_at.max(inner.leading_since);
        let failing = inner.leading_since.is_some() && last_sign.is_none_or(|at| at.elapsed() > STALE_AFTER);
        Health {
            status: if failing { "failing" } else { "ok" },
            role: if inner.leading_since.is_some() { "leader" } else { "standby" },
            head: inner.head,
            cursor: inner.cursor,
            lag_blocks: inner.head.zip(inner.cursor).map(|(head, cursor)| head.saturating_sub(cursor)),
            error: inner.error.clone(),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Tells Prometheus how many outbox rows wait for the projector.
pub fn outbox_depth(rows: i64) {
    gauge!("littoral_indexer_outbox_depth").set(approximate(u64::try_from(rows).unwrap_or(0)));
}

/// Gauges are floating point; beyond 2^53 nobody reads the last digit.
fn approximate(value: u64) -> f64 {
    let [high, low] = [value >> 32, value & u64::from(u32::MAX)].map(|half| u32::try_from(half).unwrap_or(u32::MAX));
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

/// Serves `/health` and `/metrics` on `bind` until `shutdown`.
pub async fn serve(bind: SocketAddr, status: Status, shutdown: CancellationToken) -> anyhow::Result<()> {
    let metrics = PrometheusBuilder::new().install_recorder().context("cannot set up metrics")?;
    describe();
    let listener =
        tokio::net::TcpListener::bind(bind).await.with_context(|| format!("cannot listen on {bind} (METRICS_BIND)"))?;
    let app = Router::new().route("/health", get(health)).route("/metrics", get(render)).with_state((status, metrics));
    tokio::spawn(async move {
        let serving = axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned());
        if let Err(error) = serving.await {
            tracing::error!(%error, "metrics are no longer served");
        }
    });
    Ok(())
}

fn describe() {
    market::source::describe_metrics();
    backfill::describe_metrics();
    head::describe_metrics();
    describe_counter!("littoral_indexer_final_reorgs_total", "reorgs below what was final, which stop the indexer");
    describe_gauge!("littoral_indexer_leader", "1 if this process leads");
    describe_gauge!("littoral_indexer_head_block", "latest block of the chain");
    describe_gauge!("littoral_indexer_cursor_block", "last applied block");
    describe_gauge!("littoral_indexer_lag_blocks", "blocks from cursor to head");
    describe_gauge!("littoral_indexer_outbox_depth", "changes that wait to be projected to Redis");
    describe_counter!("littoral_indexer_events_applied_total", "events applied");
    describe_counter!("littoral_indexer_events_undone_total", "events undone by reorgs");
    describe_counter!("littoral_indexer_reorgs_total", "reorgs followed");
    describe_histogram!("littoral_indexer_reorg_depth_blocks", "blocks undone by a reorg");
    describe_counter!("littoral_indexer_errors_total", "failures that were tried again");
}

async fn health(State((status, _)): State<(Status, PrometheusHandle)>) -> Response {
    let health = status.health();
    let code = if health.status == "ok" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(health)).into_response()
}

async fn render(State((_, metrics)): State<(Status, PrometheusHandle)>) -> String {
    metrics.run_upkeep();
    metrics.render()
}
