//! The chain as the indexer has read it: the deployment, and what an address has in the escrow.

use std::collections::BTreeMap;

use axum::extract::State;
use chrono::{DateTime, Utc};
use market::{Amount, db::chain_view};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    error::ApiResult,
    extract::{Json, Path},
    wire::{Hash, WalletAddress},
};

/// The routes of the chain.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(chain)).routes(routes!(account))
}

/// The deployment that this API serves.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ChainBody {
    /// EIP-155 id.
    #[schema(example = 31337)]
    chain_id: u64,
    /// The `JobEscrow`.
    escrow: WalletAddress,
    /// The `NodeRegistry`.
    registry: WalletAddress,
    /// Who has to be named as assigner in open orders.
    assigner: WalletAddress,
    /// Wei a node must have staked.
    min_stake: Amount,
    /// Seconds before unbonded stake can leave.
    unbonding_period: u64,
    /// Seconds before thawed deposits can leave.
    thaw_period: u64,
    /// Known ERC-20 tokens by name; the contracts take any.
    tokens: BTreeMap<String, WalletAddress>,
    /// The last block that the indexer has applied; `null` before it began.
    indexed: Option<IndexedBlock>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct IndexedBlock {
    /// Its height.
    block_number: u64,
    /// Its hash.
    block_hash: Hash,
    /// Its timestamp.
    mined_at: DateTime<Utc>,
}

/// Which chain and contracts this is
#[utoipa::path(get, path = "/lit-compute/chain", tag = "chain", responses((status = 200, body = ChainBody)))]
async fn chain(State(app): State<App>) -> ApiResult<Json<ChainBody>> {
    let indexed = chain_view::indexed(&mut *app.parts.pool.acquire().await?).await?;
    let deployment = &app.parts.deployment;
    Ok(Json(ChainBody {
        chain_id: deployment.chain_id,
        escrow: WalletAddress(deployment.escrow),
        registry: WalletAddress(deployment.registry),
        assigner: WalletAddress(app.assigner()),
        min_stake: deployment.registry_params.min_stake,
        unbonding_period: deployment.registry_params.unbonding_period,
        thaw_period: deployment.escrow_params.thaw_period,
        tokens: deployment.tokens.iter().map(|(name, token)| (name.clone(), WalletAddress(*token))).collect(),
        indexed: indexed.map(|block| IndexedBlock {
            block_number: block.block_number,
            block_hash: Hash(block.block_hash),
            mined_at: block.mined_at,
        }),
    }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct AccountPath {
    /// Whose.
    address: WalletAddress,
}

/// What an address has in the escrow.
#[derive(Debug, Serialize, ToSchema)]
struct AccountBody {
    /// Whose.
    address: WalletAddress,
    /// As a requester, by token.
    balances: Vec<BalanceBody>,
    /// As a node, by token: credited and not withdrawn.
    earned: Vec<EarnedBody>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct BalanceBody {
    /// Zero for the chain's native coin.
    token: WalletAddress,
    /// What jobs can be opened with.
    free: Amount,
    /// What is on its way out.
    thawing: Amount,
    /// When that can be withdrawn.
    thaw_end: Option<DateTime<Utc>>,
}

#[derive(Debug, Serialize, ToSchema)]
struct EarnedBody {
    /// Zero for the chain's native coin.
    token: WalletAddress,
    /// In the token's smallest unit.
    amount: Amount,
}

/// What an address has in the escrow, as far as the indexer has read
#[utoipa::path(
    get, path = "/lit-compute/accounts/{address}", tag = "chain", params(AccountPath),
    responses((status = 200, body = AccountBody))
)]
async fn account(State(app): State<App>, Path(path): Path<AccountPath>) -> ApiResult<Json<AccountBody>> {
    let mut db = app.parts.pool.acquire().await?;
    let balances = chain_view::balances(&mut db, path.address.0).await?;
    let earned = chain_view::earnings(&mut db, path.address.0).await?;
    Ok(Json(AccountBody {
        address: path.address,
        balances: balances
            .into_iter()
            .map(|balance| BalanceBody {
                token: WalletAddress(balance.token),
                free: balance.free,
                thawing: balance.thawing,
                thaw_end: balance.thaw_end,
            })
            .collect(),
        earned: earned
            .into_iter()
            .map(|earning| EarnedBody { token: WalletAddress(earning.token), amount: earning.amount })
            .collect(),
    }))
}
