//! A node tells the API how much work it takes.

use axum::extract::State;
use market::{
    clock,
    db::{
        node_profile,
        outbox::{self, Entity, Source},
    },
    fold::RegistryNode,
};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{NodeBody, by_address, staked};
use crate::{
    app::App,
    auth::SignedIn,
    error::{ApiError, ApiResult, Code, Problem},
    extract::Json,
    wire::{HexBytes, WalletAddress},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(register_node))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RegisterRequest {
    /// The operator's address: who signed in.
    wallet_address: WalletAddress,
    /// X25519 key, as registered on the chain.
    public_key: HexBytes,
    /// How much work it takes.
    capabilities: Capabilities,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Capabilities {
    /// Most jobs at once; the capacity registered on the chain bounds it too.
    #[schema(minimum = 1, example = 4)]
    max_concurrent_jobs: i32,
    /// What it performs, from among the operations registered on the chain.
    #[schema(example = json!(["encrypt", "decrypt"]))]
    supported_operations: Vec<String>,
}

/// Register as a node, or change what was said before
///
/// The wallet must be registered on the chain with the minimum stake.
#[utoipa::path(
    post, path = "/lit-compute/nodes/register", tag = "nodes", security(("bearer" = [])), request_body = RegisterRequest,
    responses(
        (status = 200, body = NodeBody),
        (status = 403, body = Problem, content_type = "application/problem+json",
         description = "`wallet_mismatch`, `node_not_registered`, `insufficient_stake`"),
        (status = 422, body = Problem, content_type = "application/problem+json",
         description = "`public_key_mismatch`, `invalid_field`"),
    )
)]
async fn register_node(
    State(app): State<App>,
    user: SignedIn,
    Json(request): Json<RegisterRequest>,
) -> ApiResult<Json<NodeBody>> {
    let (node, now) = (user.wallet(), clock::now());
    if request.wallet_address.0 != node {
        let detail = format!("is not who signed in, {node}");
        return Err(ApiError::field(Code::WalletMismatch, "walletAddress", detail));
    }
    let mut tx = app.begin().await?;
    let registered = staked(&app, &mut tx, node).await?;
    check_registration(&request, &registered)?;
    let profile = node_profile::Profile {
        max_concurrent_jobs: request.capabilities.max_concurrent_jobs,
        operations: request.capabilities.supported_operations,
    };
    node_profile::save(&mut tx, node, &request.public_key.0, &profile, now).await?;
    outbox::append(&mut tx, Source::Work, Entity::Node(node), "node.registered", now).await?;
    let body = by_address(&app, &mut tx, node, now).await?;
    tx.commit().await?;
    tracing::info!(%node, node_id = %registered.node_id, "node registered");
    Ok(Json(body))
}

fn check_registration(request: &RegisterRequest, registered: &RegistryNode) -> ApiResult<()> {
    let refuse = |field: &str, detail: String| Err(ApiError::field(Code::InvalidField, field, detail));
    if request.public_key.0 != registered.public_key {
        let detail = format!("is not the key on the chain, {}", HexBytes(registered.public_key.clone()));
        return Err(ApiError::field(Code::PublicKeyMismatch, "publicKey", detail));
    }
    if request.capabilities.max_concurrent_jobs < 1 {
        return refuse("capabilities.maxConcurrentJobs", "must be at least 1".to_owned());
    }
    let operations = &request.capabilities.supported_operations;
    if operations.is_empty() {
        return refuse("capabilities.supportedOperations", "must name at least one operation".to_owned());
    }
    if let Some(index) = operations.iter().position(|name| !registered.operations.contains(name)) {
        let field = format!("capabilities.supportedOperations[{index}]");
        return refuse(&field, format!("is not among those on the chain: {}", registered.operations.join(", ")));
    }
    Ok(())
}
