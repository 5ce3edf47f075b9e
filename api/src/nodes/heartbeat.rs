//! A node says that it is there, and keeps its leases.

use axum::extract::State;
use market::{
    clock,
    db::{
        node_profile,
        outbox::{self, Entity, Source},
    },
    job::Fence,
    redis::keys::HEARTBEAT_SECS,
};
use serde::{Deserialize, Serialize};
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

/// Most leases that one heartbeat may name.
const MAX_LEASES: usize = 10_000;

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
    if request.leases.len() > MAX_LEASES {
        return Err(ApiError::field(Code::InvalidField, "leases", format!("may name at most {MAX_LEASES} leases")));
    }
    let mut tx = app.begin().await?;
    let registered = staked(&app, &mut tx, node).await?;
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
                tracing::info!(job_id = %lease.job_id, %node, fence = lease.fence.0, %error, "lease is lost");
                let (code, detail) = (error.code().name(), error.detail().to_owned());
                body.lost.push(LostLease { job_id: lease.job_id, fence: lease.fence, code, detail });
            }
        }
    }
    outbox::append(&mut tx, Source::Work, Entity::Node(node), "node.heartbeat", now).await?;
    tx.commit().await?;
    Ok(Json(body))
}
