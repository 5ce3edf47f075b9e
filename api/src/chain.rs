//! The chain as the indexer has read it: the deployment, and what an address has in the escrow.

use std::collections::{BTreeMap, BTreeSet};

use alloy::primitives::Address;
use axum::extract::State;
use chrono::{DateTime, Utc};
use market::{
    Amount, clock,
    confirmation::{Confirmation, Level},
    db::{
        chain_view::{self, Balance},
        exposure::{self, Exposure},
        voucher::{self, Channel, Promised},
    },
    fold::EscrowChannel,
    order::uint64_text,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    error::ApiResult,
    extract::{Json, Path},
    wire::{ConfirmationBody, Hash, WalletAddress},
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
    /// Whom nodes may let redeem their vouchers, with the escrow's `setSettler`; `null` if this market has none.
    settler: Option<WalletAddress>,
    /// Longest challenge window in seconds.
    max_challenge_window: u32,
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
    /// The latest block that counts as final; `null` while none does.
    final_block: Option<u64>,
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
    let mut db = app.db().await?;
    let indexed = chain_view::indexed(&mut db).await?;
    let standing = chain_view::standing(&mut db).await?;
    let deployment = &app.parts.deployment;
    Ok(Json(ChainBody {
        chain_id: deployment.chain_id,
        escrow: WalletAddress(deployment.escrow),
        registry: WalletAddress(deployment.registry),
        assigner: WalletAddress(app.assigner()),
        settler: app.parts.settings.settler.map(WalletAddress),
        max_challenge_window: deployment.escrow_params.max_challenge_window,
        min_stake: deployment.registry_params.min_stake,
        unbonding_period: deployment.registry_params.unbonding_period,
        thaw_period: deployment.escrow_params.thaw_period,
        tokens: deployment.tokens.iter().map(|(name, token)| (name.clone(), WalletAddress(*token))).collect(),
        indexed: indexed.map(|block| IndexedBlock {
            block_number: block.block_number,
            block_hash: Hash(block.block_hash),
            mined_at: block.mined_at,
        }),
        final_block: standing.and_then(|standing| standing.final_block),
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
    /// As a requester of signed orders, by token: what is promised and what is left for more.
    accounts: Vec<PromisedBody>,
}

/// What a requester's deposit in one token is bound by.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct PromisedBody {
    /// Zero for the chain's native coin.
    token: WalletAddress,
    /// By signed orders that are neither paid nor void, and what vouchers that were redeemed still ask.
    promised: Amount,
    /// What is set aside for single nodes and not on its way back.
    reserved: Amount,
    /// What of the free balance is bound by no order and deep enough on the chain to count.
    available: Amount,
    /// With each node.
    channels: Vec<ChannelBody>,
}

/// What lies between a requester and a node in one token.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ChannelBody {
    /// Who is paid; `null` for orders that any node may take.
    node: Option<WalletAddress>,
    /// By signed orders that are neither paid nor void.
    promised: Amount,
    /// The part of it that completed jobs ask.
    completed: Amount,
    /// All that the channel ever paid.
    claimed: Amount,
    /// What is set aside for the node.
    reserved: Amount,
    /// What of that is on its way back.
    thawing: Amount,
    /// When that can be released.
    thaw_end: Option<DateTime<Utc>>,
    /// Signed orders up to this nonce are paid for by a redeemed voucher; a decimal string.
    #[serde(with = "uint64_text")]
    #[schema(value_type = String, example = "7")]
    covered_nonce: u64,
    /// How sure what the chain says of it is: `claimed`, `reserved`, `thawing`, `thawEnd` and `coveredNonce`; `null` while it
    /// says nothing.
    confirmation: Option<ConfirmationBody>,
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
    /// How sure what is free is; `null` while it never moved.
    confirmation: Option<ConfirmationBody>,
}

#[derive(Debug, Serialize, ToSchema)]
struct EarnedBody {
    /// Zero for the chain's native coin.
    token: WalletAddress,
    /// In the token's smallest unit.
    amount: Amount,
    /// How sure it is; `null` while it never moved.
    confirmation: Option<ConfirmationBody>,
}

/// What an address has in the escrow, as far as the indexer has read
#[utoipa::path(
    get, path = "/lit-compute/accounts/{address}", tag = "chain", params(AccountPath),
    responses((status = 200, body = AccountBody))
)]
async fn account(State(app): State<App>, Path(path): Path<AccountPath>) -> ApiResult<Json<AccountBody>> {
    let mut db = app.db().await?;
    let balances = chain_view::balances(&mut db, path.address.0).await?;
    let earned = chain_view::earnings(&mut db, path.address.0).await?;
    let accounts = promised(&mut db, path.address.0, &balances).await?;
    Ok(Json(AccountBody {
        address: path.address,
        balances: balances
            .into_iter()
            .map(|balance| BalanceBody {
                token: WalletAddress(balance.token),
                free: balance.free,
                thawing: balance.thawing,
                thaw_end: balance.thaw_end,
                confirmation: balance.confirmation.map(ConfirmationBody::from),
            })
            .collect(),
        earned: earned
            .into_iter()
            .map(|earning| EarnedBody {
                token: WalletAddress(earning.token),
                amount: earning.amount,
                confirmation: earning.confirmation.map(ConfirmationBody::from),
            })
            .collect(),
        accounts,
    }))
}

/// What is known of a channel.
#[derive(Default)]
struct Shown {
    promised: Option<Promised>,
    row: EscrowChannel,
    confirmation: Option<Confirmation>,
}

async fn promised(db: &mut PgConnection, owner: Address, balances: &[Balance]) -> ApiResult<Vec<PromisedBody>> {
    let now = clock::now();
    // By token and node: nothing for orders that any node may take.
    let mut channels: BTreeMap<(Address, Option<Address>), Shown> = BTreeMap::new();
    let (named, rows): (Vec<Channel>, Vec<EscrowChannel>) = voucher::channels_of(db, owner).await?.into_iter().unzip();
    let confirmations = chain_view::of_channels(db, &named).await?;
    for ((channel, row), confirmation) in named.into_iter().zip(rows).zip(confirmations) {
        channels.insert((channel.token, Some(channel.node)), Shown { row, confirmation, promised: None });
    }
    for promised in voucher::promised(db, owner, now).await? {
        channels.entry((promised.token, promised.node)).or_default().promised = Some(promised);
    }
    let mut exposures: BTreeMap<Address, Exposure> =
        balances.iter().map(|balance| (balance.token, Exposure::unbound(balance.free))).collect();
    // Anyone may deposit any token for somebody; only in those with channels there is something to look up,
    // or where some of the balance is too fresh to count.
    let fresh = balances.iter().filter(|balance| balance.confirmation.is_some_and(|seen| seen.level != Level::Final));
    let fresh = fresh.map(|balance| balance.token);
    for token in channels.keys().map(|(token, _)| *token).chain(fresh).collect::<BTreeSet<_>>() {
        exposures.insert(token, exposure::of(db, owner, token, now).await?);
    }
    let account = |(token, exposure): (Address, Exposure)| {
        let (promised, reserved, available) = (exposure.promised(), exposure.reserved(), exposure.available());
        (token, PromisedBody { token: WalletAddress(token), promised, reserved, available, channels: Vec::new() })
    };
    let mut accounts: BTreeMap<Address, PromisedBody> = exposures.into_iter().map(account).collect();
    for ((token, node), Shown { promised, row, confirmation }) in channels {
        let Some(account) = accounts.get_mut(&token) else { continue };
        account.channels.push(ChannelBody {
            node: node.map(WalletAddress),
            promised: promised.map_or(Amount::ZERO, |promised| promised.amount),
            completed: promised.map_or(Amount::ZERO, |promised| promised.completed),
            claimed: row.claimed,
            reserved: row.reserved,
            thawing: row.thawing,
            thaw_end: row.thaw_end,
            covered_nonce: row.covered_nonce,
            confirmation: confirmation.map(ConfirmationBody::from),
        });
    }
    Ok(accounts.into_values().collect())
}
