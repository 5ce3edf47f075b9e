//! A node says that it is there, and keeps its leases.

use alloy::primitives::Address;
use axum::extract::State;
use chrono::{DateTime, Utc};
use market::{
    clock,
    db::{
        node_profile,
        outbox::{self, Entity, Source},
        work,
    },
    fold::RegistryNode,
    job::Fence,
    redis::keys::HEARTBEAT_SECS,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::staked;
use crate::{
    app::App,
    auth::SignedIn,
    error::{ApiError, ApiResult, Code, Problem},
    extract::Json,
    jobs::{LeaseRef, RenewedLease, renew_lease},
    wire::Hash,
};

/// Most leases that one heartbeat may name, whatever the node's capacity.
const MAX_LEASES: usize = 1000;
/// Leases that any node may name: after a restart it asks of what it had before, too.
const FREE_LEASES: usize = 100;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(heartbeat))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct HeartbeatRequest {
    /// The leases that the node holds, all of which are renewed.
    #[serde(default)]
    leases: Vec<LeaseRef>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct HeartbeatBody {
    /// The node's id.
    node_id: Hash,
    /// Seconds within which the next heartbeat is expected.
    heartbeat_secs: u64,
    /// Leases that go on.
    renewed: Vec<RenewedLease>,
    /// Leases that do not: the work on them is to be stopped.
    lost: Vec<LostLease>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct LostLease {
    /// The job.
    job_id: Hash,
    /// As the node gave it.
    #[schema(value_type = i64, example = 1)]
    fence: Fence,
    /// Why, as in an error.
    #[schema(example = "stale_fence")]
    code: &'static str,
    /// Why, in words.
    detail: String,
}

/// Say that the node is there, and renew its leases
#[utoipa::path(
    post, path = "/lit-compute/nodes/heartbeat", tag = "nodes", security(("bearer" = [])),
    request_body = HeartbeatRequest,
    responses(
        (status = 200, body = HeartbeatBody),
        (status = 403, body = Problem, content_type = "application/problem+json",
         description = "`node_not_registered`, `insufficient_stake`, `profile_missing`"),
    )
)]
async fn heartbeat(
    State(app): State<App>,
    user: SignedIn,
    Json(request): Json<HeartbeatRequest>,
) -> ApiResult<Json<HeartbeatBody>> {
    let (node, now) = (user.wallet(), clock::now());
    refuse_beyond(MAX_LEASES, &request.leases)?;
    let mut tx = app.begin().await?;
    let registered = staked(&app, &mut tx, node).await?;
    refuse_beyond(most_leases(&mut tx, node, &registered, now).await?, &request.leases)?;
    if !node_profile::heartbeat(&mut tx, node, now).await? {
        return Err(ApiError::new(Code::ProfileMissing, "Register with nodes/register first."));
    }
    let mut body = HeartbeatBody {
        node_id: Hash(registered.node_id),
        heartbeat_secs: HEARTBEAT_SECS,
        renewed: Vec::new(),
        lost: Vec::new(),
    };
    // In order of id, so that two that lock several jobs cannot wait for each other.
    let mut leases = request.leases;
    leases.sort_by_key(|lease| lease.job_id.0);
    for lease in leases {
        match renew_lease(&app, &mut tx, node, lease, now).await {
            Ok(renewed) => body.renewed.push(renewed),
            Err(error) if error.code().status().is_server_error() => return Err(error),
            Err(error) => {
                let (code, detail) = (error.code().name(), error.detail().to_owned());
                body.lost.push(LostLease { job_id: lease.job_id, fence: lease.fence, code, detail });
            }
        }
    }
    outbox::append(&mut tx, Source::Work, Entity::Node(node), "node.heartbeat", now).await?;
    tx.commit().await?;
    if let Some(first) = body.lost.first() {
        let (lost, job_id) = (body.lost.len(), first.job_id);
        tracing::info!(%node, lost, first = %job_id, code = first.code, "the node names leases that are not its own");
    }
    Ok(Json(body))
}

fn refuse_beyond(most: usize, leases: &[LeaseRef]) -> ApiResult<()> {
    if leases.len() <= most {
        return Ok(());
    }
    let detail = format!("names {} leases, more than the {most} that this node may name", leases.len());
    Err(ApiError::field(Code::InvalidField, "leases", detail))
}

/// How many leases `node` may name: each costs a query. Twice its capacity, as it may not know yet of some that they are
/// lost, and what it holds in any case.
async fn most_leases(
    db: &mut PgConnection,
    node: Address,
    registered: &RegistryNode,
    now: DateTime<Utc>,
) -> ApiResult<usize> {
    let capacity = usize::try_from(registered.capacity).unwrap_or(usize::MAX);
    let held = work::held(db, node, now).await?.len();
    Ok(capacity.saturating_mul(2).max(FREE_LEASES).max(held).min(MAX_LEASES))
}
