//! Nodes: wallets that are registered and staked on the chain, and that told this API how much work they take.

use std::str::FromStr;

use alloy::primitives::{Address, B256};
use axum::extract::State;
use chrono::{DateTime, Utc};
use market::{
    Amount, clock,
    db::{
        job_view, node_profile, node_view,
        node_view::{NodeView, Registration},
        outbox::{self, Entity, Source},
        work,
    },
    fold::RegistryNode,
    job::{Fence, JobStatus},
    redis::keys::HEARTBEAT_SECS,
};
use serde::{Deserialize, Deserializer, Serialize, de};
use sqlx::{Acquire, PgConnection};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    auth::SignedIn,
    error::{ApiError, ApiResult, Code, Problem},
    extract::{Json, Path, Query},
    jobs::{JobBody, JobPage, LeaseRef, RenewedLease, renew_lease},
    page::{self, Cursor, Limit},
    wire::{Hash, HexBytes, WalletAddress},
};

/// Most leases that one heartbeat may name.
const MAX_LEASES: usize = 10_000;

/// The routes of nodes.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(register_node))
        .routes(routes!(heartbeat))
        .routes(routes!(list_nodes))
        .routes(routes!(node_status))
        .routes(routes!(node_jobs))
        .routes(routes!(node_payments))
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
    #[param(value_type = String)]
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
    /// Most jobs at once, as on the chain.
    pub capacity: i64,
    /// What it performs, as on the chain.
    pub operations: Vec<String>,
    /// Most jobs at once, as it told the API.
    pub max_concurrent_jobs: Option<i32>,
    /// What it performs, as it told the API.
    pub supported_operations: Option<Vec<String>>,
    /// Jobs it holds.
    pub active_jobs: i64,
    /// Jobs it completed.
    pub completed_jobs: i64,
    /// Jobs it was paid for.
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
    fn new(node: &NodeView, min_stake: Amount, now: DateTime<Utc>) -> Option<Self> {
        let Registration { node_id, public_key, payout, capacity, operations, uri, stake, unbonding, unbond_end } =
            node.registration.clone()?;
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
            capacity,
            operations,
            max_concurrent_jobs: profile.map(|profile| profile.max_concurrent_jobs),
            supported_operations: profile.map(|profile| profile.operations.clone()),
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

async fn by_address(app: &App, db: &mut PgConnection, node: Address, now: DateTime<Utc>) -> ApiResult<NodeBody> {
    let min_stake = app.parts.deployment.registry_params.min_stake;
    let view = node_view::by_address(db, node).await?;
    view.and_then(|view| NodeBody::new(&view, min_stake, now)).ok_or_else(not_found)
}

fn not_found() -> ApiError {
    ApiError::field(Code::NodeNotFound, "id", "No node with this id or address is registered on the chain.")
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
        match renew_lease(&app, tx.acquire().await?, node, lease, now).await {
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

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct NodesQuery {
    /// Most entries, 1 to 200.
    #[serde(default)]
    #[param(value_type = Option<i64>)]
    limit: Limit,
    /// `next` of the page before.
    #[param(value_type = Option<String>)]
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
    let nodes = node_view::list(&mut *app.parts.pool.acquire().await?, after, query.limit.0).await?;
    let next = page::next(&nodes, query.limit, |node| node.node.to_checksum(None));
    let nodes = nodes.iter().filter_map(|node| NodeBody::new(node, min_stake, now)).collect();
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
    let mut db = app.parts.pool.acquire().await?;
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
    #[param(value_type = Option<i64>)]
    limit: Limit,
    /// `next` of the page before.
    #[param(value_type = Option<String>)]
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
    let mut db = app.parts.pool.acquire().await?;
    let filter = job_view::Filter {
        node: Some(address_of(&mut db, path.id).await?),
        status: query.status,
        after: query.cursor.and_then(Cursor::time),
        ..job_view::Filter::default()
    };
    let jobs = job_view::list(&mut db, &filter, query.limit.0, now).await?;
    let next = page::next(&jobs, query.limit, |job| Cursor::at(job.listed_at, job.job_id).to_string());
    Ok(Json(JobPage { jobs: jobs.iter().map(|job| JobBody::new(job, now)).collect(), next }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct PaymentsQuery {
    /// Most entries, 1 to 200.
    #[serde(default)]
    #[param(value_type = Option<i64>)]
    limit: Limit,
    /// `next` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<Cursor>,
}

/// Where a payment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum PaymentStatus {
    /// Waits for a batch.
    Due,
    /// The settler has given it up: the contract refused it for good.
    Held,
    /// In a transaction that was sent.
    Settling,
    /// On the chain; the challenge window runs.
    Challengeable,
    /// Credited.
    Paid,
    /// Can no longer be paid: the deadline passed, the requester was refunded, another result was paid, or the order is
    /// not on the chain any more.
    Void,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct PaymentBody {
    /// The job that it is for.
    job_id: Hash,
    /// Zero for the chain's native coin.
    token: WalletAddress,
    /// In the token's smallest unit.
    amount: Amount,
    /// Where it stands.
    status: PaymentStatus,
    /// When the job was completed.
    created_at: DateTime<Utc>,
    /// The latest transaction that carries it.
    tx: Option<Hash>,
    /// When the node was credited.
    paid_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Serialize, ToSchema)]
struct PaymentPage {
    /// The payments, newest first.
    payments: Vec<PaymentBody>,
    /// `cursor` of the next page, if there may be one.
    next: Option<String>,
}

/// List what a node has earned by completed jobs, newest first
#[utoipa::path(
    get, path = "/lit-compute/nodes/{id}/payments", tag = "nodes", params(NodePath, PaymentsQuery),
    responses(
        (status = 200, body = PaymentPage),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`node_not_found`"),
    )
)]
async fn node_payments(
    State(app): State<App>,
    Path(path): Path<NodePath>,
    Query(query): Query<PaymentsQuery>,
) -> ApiResult<Json<PaymentPage>> {
    let now = clock::now();
    let mut db = app.parts.pool.acquire().await?;
    let node = address_of(&mut db, path.id).await?;
    let due = work::payments(&mut db, node, query.cursor.and_then(Cursor::time), query.limit.0).await?;
    let next = page::next(&due, query.limit, |payment| Cursor::at(payment.created_at, payment.job_id).to_string());
    let ids: Vec<B256> = due.iter().map(|payment| payment.job_id).collect();
    let jobs = job_view::by_ids(&mut db, &ids).await?;
    let payments = due
        .iter()
        .map(|payment| {
            let job = jobs.iter().find(|job| job.job_id == payment.job_id);
            let (status, tx) = job.map_or((PaymentStatus::Void, None), |job| payment_status(job, node, now));
            let paid_at =
                job.filter(|_| status == PaymentStatus::Paid).and_then(|job| job.closed).map(|point| point.at);
            PaymentBody {
                job_id: Hash(payment.job_id),
                token: WalletAddress(payment.token),
                amount: payment.amount,
                status,
                created_at: payment.created_at,
                tx: tx.map(Hash),
                paid_at,
            }
        })
        .collect();
    Ok(Json(PaymentPage { payments, next }))
}

/// Where the payment of `job` to `node` stands, and its latest transaction.
fn payment_status(job: &job_view::JobView, node: Address, now: DateTime<Utc>) -> (PaymentStatus, Option<B256>) {
    if job.settled.as_ref().is_some_and(|settled| settled.node != node) {
        return (PaymentStatus::Void, None);
    }
    let submitted = job.settled.as_ref().and_then(|settled| settled.tx);
    match job.status(now) {
        JobStatus::Paid => (PaymentStatus::Paid, job.closed.map(|closed| closed.tx)),
        JobStatus::Challengeable => (PaymentStatus::Challengeable, submitted),
        JobStatus::Settling => (PaymentStatus::Settling, job.batch.and_then(|batch| batch.tx)),
        JobStatus::Completed if job.hold_reason.is_some() => (PaymentStatus::Held, None),
        JobStatus::Completed => (PaymentStatus::Due, None),
        _ => (PaymentStatus::Void, None),
    }
}
