//! Nodes: wallets that are registered and staked on the chain, and that told this API how much work they take.

mod heartbeat;
mod payments;
mod register;
mod vouchers;

use std::str::FromStr;

use alloy::primitives::{Address, B256};
use axum::extract::State;
use chrono::{DateTime, Utc};
use market::{
    Amount, clock,
    db::{
        job_view,
        node_profile::{self, MinPrice},
        node_view::{self, NodeView, Registration},
    },
    fold::RegistryNode,
    job::JobStatus,
};
use serde::{Deserialize, Deserializer, Serialize, de};
use sqlx::PgConnection;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    error::{ApiError, ApiResult, Code, Problem},
    extract::{Json, Path, Query},
    jobs::{JobBody, JobPage},
    page::{self, Cursor, Limit},
    wire::{ConfirmationBody, Hash, HexBytes, WalletAddress},
};

/// The routes of nodes.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .merge(register::routes())
        .merge(heartbeat::routes())
        .merge(payments::routes())
        .merge(vouchers::routes())
        .routes(routes!(list_nodes))
        .routes(routes!(node_status))
        .routes(routes!(node_jobs))
}

/// A node in a path or query: by its id or by its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeRef {
    /// The id it chose at registration.
    Id(B256),
    /// The operator's address.
    Address(Address),
}

impl FromStr for NodeRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() == 66 {
            return text.parse::<Hash>().map(|id| Self::Id(id.0)).map_err(|error| error.to_string());
        }
        let address = text.parse::<WalletAddress>().map(|address| Self::Address(address.0));
        address.map_err(|error| format!("is neither a node's id (0x and 64 hex digits) nor an address: {error}"))
    }
}

impl<'de> Deserialize<'de> for NodeRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct NodePath {
    /// The node's id or address.
    #[param(value_type = String, pattern = "^0x([0-9a-fA-F]{40}|[0-9a-fA-F]{64})$")]
    id: NodeRef,
}

/// How a node is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeStatus {
    /// Heard of within five minutes.
    Online,
    /// Not heard of for five minutes, or never.
    Offline,
    /// Has less than the minimum stake, and is given no work.
    Unstaked,
}

/// The least that an order must offer a node.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = MinPrice)]
pub struct MinPriceBody {
    /// Of what.
    #[schema(example = "encrypt")]
    pub operation: String,
    /// The native coin's zero address, or a token.
    pub token: WalletAddress,
    /// Least `maxPrice`, in the token's smallest unit.
    pub amount: Amount,
}

impl From<&MinPriceBody> for MinPrice {
    fn from(body: &MinPriceBody) -> Self {
        Self { operation: body.operation.clone(), token: body.token.0, amount: body.amount }
    }
}

impl From<&MinPrice> for MinPriceBody {
    fn from(price: &MinPrice) -> Self {
        Self { operation: price.operation.clone(), token: WalletAddress(price.token), amount: price.amount }
    }
}

/// A node, as the chain and it itself say.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Node)]
pub struct NodeBody {
    /// Its name, chosen at registration.
    pub node_id: Hash,
    /// The operator's address.
    pub wallet_address: WalletAddress,
    /// X25519 key to which data for it is to be encrypted.
    pub public_key: HexBytes,
    /// Where stake and earnings go by default.
    pub payout: WalletAddress,
    /// Where more can be read.
    pub uri: String,
    /// How it is doing.
    pub status: NodeStatus,
    /// Active stake, in wei.
    pub stake: Amount,
    /// Stake on its way out, in wei.
    pub unbonding: Amount,
    /// When that may leave.
    pub unbond_end: Option<DateTime<Utc>>,
    /// Of its stake, taken by arbiters for good, in wei.
    pub slashed: Amount,
    /// The same, in blocks that are not final yet, in wei.
    pub slashing: Amount,
    /// How sure the stake is; `null` while it never moved.
    pub confirmation: Option<ConfirmationBody>,
    /// Most jobs at once, as on the chain.
    pub capacity: i64,
    /// What it performs, as on the chain.
    pub operations: Vec<String>,
    /// Most jobs at once, as it told the API.
    pub max_concurrent_jobs: Option<i32>,
    /// What it performs, as it told the API.
    pub supported_operations: Option<Vec<String>>,
    /// The least that orders must offer it.
    pub min_prices: Vec<MinPriceBody>,
    /// Jobs it holds.
    pub active_jobs: i64,
    /// Jobs it completed.
    pub completed_jobs: i64,
    /// Jobs it was paid for, for good.
    pub paid_jobs: i64,
    /// How reliable it is, 0 to 100.
    #[schema(minimum = 0, maximum = 100)]
    pub reputation: u8,
    /// When it registered with the API.
    pub registered_at: Option<DateTime<Utc>>,
    /// When it last spoke.
    pub last_heartbeat: Option<DateTime<Utc>>,
}

impl NodeBody {
    /// The node at `now`; nothing for one that is not (any more) registered on the chain.
    fn new(node: &NodeView, prices: &[(Address, MinPrice)], min_stake: Amount, now: DateTime<Utc>) -> Option<Self> {
        let Registration {
            node_id,
            public_key,
            payout,
            capacity,
            operations,
            uri,
            stake,
            unbonding,
            unbond_end,
            confirmation,
        } = node.registration.clone()?;
        let status = if stake < min_stake {
            NodeStatus::Unstaked
        } else if node.is_online(now) {
            NodeStatus::Online
        } else {
            NodeStatus::Offline
        };
        let profile = node.profile.as_ref();
        Some(Self {
            node_id: Hash(node_id),
            wallet_address: WalletAddress(node.node),
            public_key: HexBytes(public_key),
            payout: WalletAddress(payout),
            uri,
            status,
            stake,
            unbonding,
            unbond_end,
            slashed: node.slashed,
            slashing: node.slashing,
            confirmation: confirmation.map(ConfirmationBody::from),
            capacity,
            operations,
            max_concurrent_jobs: profile.map(|profile| profile.max_concurrent_jobs),
            supported_operations: profile.map(|profile| profile.operations.clone()),
            min_prices: prices.iter().filter(|(of, _)| *of == node.node).map(|(_, price)| price.into()).collect(),
            active_jobs: node.active_jobs,
            completed_jobs: node.completed_jobs,
            paid_jobs: node.paid_jobs,
            reputation: node.reputation,
            registered_at: profile.map(|profile| profile.registered_at),
            last_heartbeat: profile.map(|profile| profile.last_heartbeat_at),
        })
    }
}

/// The registration of `node`, if it has the minimum stake: what a wallet must show to act as a node.
pub async fn staked(app: &App, db: &mut PgConnection, node: Address) -> ApiResult<RegistryNode> {
    let registered = market::db::registry::nodes(db, &[node]).await?.remove(&node).ok_or_else(|| {
        let detail = format!("{node} is not registered on the chain, as far as the indexer has read.");
        ApiError::field(Code::NodeNotRegistered, "walletAddress", detail)
    })?;
    let min_stake = app.parts.deployment.registry_params.min_stake;
    if registered.stake < min_stake {
        let detail = format!("{node} has a stake of {} wei, the minimum is {min_stake}.", registered.stake);
        return Err(ApiError::field(Code::InsufficientStake, "walletAddress", detail));
    }
    Ok(registered)
}

async fn by_address(app: &App, db: &mut PgConnection, node: Address, now: DateTime<Utc>) -> ApiResult<NodeBody> {
    let min_stake = app.parts.deployment.registry_params.min_stake;
    let view = node_view::by_address(db, node).await?;
    let prices = node_profile::prices(db, &[node]).await?;
    view.and_then(|view| NodeBody::new(&view, &prices, min_stake, now)).ok_or_else(not_found)
}

fn not_found() -> ApiError {
    ApiError::field(Code::NodeNotFound, "id", "No node with this id or address is registered on the chain.")
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct NodesQuery {
    /// Most entries, 1 to 200.
    #[serde(default)]
    #[param(value_type = Option<i64>, minimum = 1, maximum = 200)]
    limit: Limit,
    /// `next` of the page before.
    #[param(value_type = Option<String>, pattern = "^0x[0-9a-fA-F]{40}$")]
    cursor: Option<WalletAddress>,
}

#[derive(Debug, Serialize, ToSchema)]
struct NodePage {
    /// The nodes, by address.
    nodes: Vec<NodeBody>,
    /// `cursor` of the next page, if there may be one.
    next: Option<String>,
}

/// List the nodes that are registered on the chain
#[utoipa::path(
    get, path = "/lit-compute/nodes", tag = "nodes", params(NodesQuery), responses((status = 200, body = NodePage))
)]
async fn list_nodes(State(app): State<App>, Query(query): Query<NodesQuery>) -> ApiResult<Json<NodePage>> {
    let now = clock::now();
    let min_stake = app.parts.deployment.registry_params.min_stake;
    let after = query.cursor.map_or(Address::ZERO, |cursor| cursor.0);
    let mut db = app.db().await?;
    let nodes = node_view::list(&mut db, after, query.limit.0).await?;
    let prices = node_profile::prices(&mut db, &nodes.iter().map(|node| node.node).collect::<Vec<_>>()).await?;
    let next = page::next(&nodes, query.limit, |node| node.node.to_checksum(None));
    let nodes = nodes.iter().filter_map(|node| NodeBody::new(node, &prices, min_stake, now)).collect();
    Ok(Json(NodePage { nodes, next }))
}

/// Look at a node
#[utoipa::path(
    get, path = "/lit-compute/nodes/{id}/status", tag = "nodes", params(NodePath),
    responses(
        (status = 200, body = NodeBody),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`node_not_found`"),
    )
)]
async fn node_status(State(app): State<App>, Path(path): Path<NodePath>) -> ApiResult<Json<NodeBody>> {
    let mut db = app.db().await?;
    let node = address_of(&mut db, path.id).await?;
    by_address(&app, &mut db, node, clock::now()).await.map(Json)
}

/// The address of a node that is registered on the chain.
async fn address_of(db: &mut PgConnection, node: NodeRef) -> ApiResult<Address> {
    match node {
        NodeRef::Id(node_id) => node_view::address_of(db, node_id).await?.ok_or_else(not_found),
        NodeRef::Address(node) => node_view::node_id_of(db, node).await?.map(|_| node).ok_or_else(not_found),
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct NodeJobsQuery {
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

/// List the jobs that a node holds or did, newest first
#[utoipa::path(
    get, path = "/lit-compute/nodes/{id}/jobs", tag = "nodes", params(NodePath, NodeJobsQuery),
    responses(
        (status = 200, body = JobPage),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`node_not_found`"),
    )
)]
async fn node_jobs(
    State(app): State<App>,
    Path(path): Path<NodePath>,
    Query(query): Query<NodeJobsQuery>,
) -> ApiResult<Json<JobPage>> {
    let now = clock::now();
    let mut db = app.db().await?;
    let filter = job_view::Filter {
        node: Some(address_of(&mut db, path.id).await?),
        status: query.status,
        after: query.cursor.map(Cursor::time),
        ..job_view::Filter::default()
    };
    let jobs = job_view::list(&mut db, &filter, query.limit.0, now).await?;
    let next = page::next(&jobs, query.limit, |job| Cursor::at(job.listed_at, job.job_id).to_string());
    Ok(Json(JobPage { jobs: JobBody::all(&mut db, &jobs, now).await?, next }))
}
