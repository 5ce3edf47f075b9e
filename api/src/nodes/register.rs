//! A node tells the API how much work it takes.

use std::collections::HashSet;

use axum::extract::State;
use market::{
    clock,
    db::{
        node_profile::{self, MinPrice},
        outbox::{self, Entity, Source},
    },
    fold::RegistryNode,
};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{MinPriceBody, NodeBody, by_address, staked};
use crate::{
    app::App,
    auth::SignedIn,
    error::{ApiError, ApiResult, Code, Problem},
    extract::Json,
    wire::{HexBytes, WalletAddress},
};

/// Most prices of a node.
const MAX_PRICES: usize = 200;

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
    /// The least that an order must offer (`maxPrice`). An operation that is named here is done only for the tokens that it is
    /// named with; one that is not, for any price.
    #[serde(default)]
    min_prices: Vec<MinPriceBody>,
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
    let prices: Vec<_> = request.capabilities.min_prices.iter().map(MinPrice::from).collect();
    node_profile::save_prices(&mut tx, node, &prices).await?;
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
    check_prices(&request.capabilities)
}

fn check_prices(capabilities: &Capabilities) -> ApiResult<()> {
    let prices = &capabilities.min_prices;
    let refuse = |field: &str, detail: &str| Err(ApiError::field(Code::InvalidField, field, detail));
    if prices.len() > MAX_PRICES {
        return refuse("capabilities.minPrices", "must be at most 200");
    }
    let mut seen = HashSet::new();
    for (index, price) in prices.iter().enumerate() {
        let field = |name: &str| format!("capabilities.minPrices[{index}].{name}");
        if !capabilities.supported_operations.contains(&price.operation) {
            return refuse(&field("operation"), "is not among supportedOperations");
        }
        if !seen.insert((&price.operation, price.token.0)) {
            return refuse(&field("token"), "is named twice for this operation");
        }
    }
    Ok(())
}
