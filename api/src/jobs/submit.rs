//! Announcing an order before it is on the chain. Everything that can be checked is checked here, before money moves; what
//! makes it a job is `openJob`.

use alloy::primitives::Address;
use axum::extract::State;
use chrono::{DateTime, TimeDelta, Utc};
use market::{
    Amount, ContentId,
    abi::{JobSpec, Order},
    clock,
    db::{
        blob, escrow, job_view, node_view,
        outbox::{self, Entity, Source},
        submission::{self, DEFAULT_PRIORITY, MAX_PRIORITY},
    },
    job::JobStatus,
    order::{OrderJson, SpecJson},
    typed_data,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::App,
    auth::SignedIn,
    error::{ApiError, ApiResult, Code, Problem},
    extract::Json,
    wire::Hash,
};

/// `JobEscrow.MAX_DEADLINE`, in seconds.
const MAX_DEADLINE_SECS: u64 = 365 * 24 * 60 * 60;
/// Basis points of the whole.
const BPS: u16 = 10_000;
/// Longest name of an operation: `NodeRegistry.MAX_OPERATION_LENGTH`.
const MAX_OPERATION_BYTES: usize = 64;
/// Longest parameters: they are paid for as calldata and handed to every node that asks.
const MAX_PARAMS_BYTES: usize = 16 * 1024;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(submit_job))
}

/// An order to be announced.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SubmitRequest {
    /// The order that `openJob` will be called with; its requester is who signed in.
    order: OrderJson,
    /// What the order's `specHash` is the hash of.
    spec: SpecJson,
    /// 0 to 1000, 100 unless given. A point moves the job a second forward in the queue.
    #[serde(default = "default_priority")]
    #[schema(minimum = 0, maximum = 1000, default = 100)]
    priority: i32,
}

fn default_priority() -> i32 {
    DEFAULT_PRIORITY
}

/// An announced order.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct SubmitBody {
    /// The order's EIP-712 digest.
    job_id: Hash,
    /// `awaiting_escrow`, unless the chain was faster.
    status: JobStatus,
}

/// Announce an order
///
/// Repeating it changes nothing. Open the job on the chain afterwards.
#[utoipa::path(
    post, path = "/lit-compute/jobs/submit", tag = "jobs", security(("bearer" = [])), request_body = SubmitRequest,
    responses(
        (status = 200, body = SubmitBody),
        (status = 402, body = Problem, content_type = "application/problem+json", description = "`price_above_deposit`"),
        (status = 403, body = Problem, content_type = "application/problem+json", description = "`wallet_mismatch`"),
        (status = 422, body = Problem, content_type = "application/problem+json",
         description = "`spec_hash_mismatch`, `order_expired`, `order_invalid`, `wrong_assigner`, `input_unknown`, \
                        `order_node_not_registered`, `order_node_insufficient_stake`, `operation_not_offered`, \
                        `invalid_field`"),
    )
)]
async fn submit_job(
    State(app): State<App>,
    user: SignedIn,
    Json(request): Json<SubmitRequest>,
) -> ApiResult<Json<SubmitBody>> {
    let now = clock::now();
    let SubmitRequest { order: order_json, spec: spec_json, priority } = request;
    let order = order_json.to_order().map_err(|error| invalid("order.maxPrice", error.to_string()))?;
    let spec = JobSpec::from(&spec_json);
    if order.requester != user.wallet() {
        let detail = format!("is not who signed in, {}", user.wallet());
        return Err(ApiError::field(Code::WalletMismatch, "order.requester", detail));
    }
    if !(0..=MAX_PRIORITY).contains(&priority) {
        return Err(invalid("priority", format!("must be between 0 and {MAX_PRIORITY}")));
    }
    let job_id = typed_data::job_id(&order, &app.domain);
    let mut tx = app.begin().await?;
    if let Some(known) = job_view::by_id(&mut tx, job_id).await? {
        return Ok(Json(SubmitBody { job_id: Hash(job_id), status: known.status(now) }));
    }
    let input = check_spec(&order, &spec)?;
    check_order(&app, &order, now)?;
    check_stores(&app, &mut tx, &order, &spec, input).await?;
    if submission::insert(&mut tx, job_id, &order_json, &spec_json, priority, now).await? {
        outbox::append(&mut tx, Source::Work, Entity::Job(job_id), "job.announced", now).await?;
    }
    tx.commit().await?;
    tracing::info!(%job_id, requester = %order.requester, operation = spec.operation, "order announced");
    Ok(Json(SubmitBody { job_id: Hash(job_id), status: JobStatus::AwaitingEscrow }))
}

fn invalid(field: &str, detail: impl Into<String>) -> ApiError {
    ApiError::field(Code::InvalidField, field, detail)
}

/// What the spec says by itself. Returns the input's id.
fn check_spec(order: &Order, spec: &JobSpec) -> ApiResult<ContentId> {
    let input = spec.inputCID.parse::<ContentId>().map_err(|error| invalid("spec.inputCID", error.to_string()))?;
    if spec.operation.is_empty() || spec.operation.len() > MAX_OPERATION_BYTES {
        return Err(invalid("spec.operation", format!("must have 1 to {MAX_OPERATION_BYTES} bytes")));
    }
    if spec.params.len() > MAX_PARAMS_BYTES {
        return Err(invalid("spec.params", format!("must have at most {MAX_PARAMS_BYTES} bytes")));
    }
    let is_object = || serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&spec.params).is_ok();
    if !spec.params.is_empty() && !is_object() {
        return Err(invalid("spec.params", "must be the text of a JSON object, or empty"));
    }
    // Postgres stores no NUL. JSON that is valid has none in `params`.
    if spec.operation.contains('\0') {
        return Err(invalid("spec.operation", "contains a NUL character"));
    }
    let actual = typed_data::spec_hash(spec);
    if order.specHash != actual {
        return Err(ApiError::field(Code::SpecHashMismatch, "order.specHash", format!("the spec hashes to {actual}")));
    }
    Ok(input)
}

/// What `openJob` would refuse, and what no node would be given.
fn check_order(app: &App, order: &Order, now: DateTime<Utc>) -> ApiResult<()> {
    let refuse = |field: &str, detail: String| Err(ApiError::field(Code::OrderInvalid, field, detail));
    let seconds = u64::try_from(now.timestamp()).map_err(ApiError::internal)?;
    let margin = app.parts.settings.deadline_margin;
    if order.deadline < seconds.saturating_add(margin_secs(margin)) {
        let detail = format!("must be at least {} seconds from now, {seconds}", margin.num_seconds());
        return Err(ApiError::field(Code::OrderExpired, "order.deadline", detail));
    }
    if order.deadline > seconds + MAX_DEADLINE_SECS {
        return refuse("order.deadline", format!("must be at most {MAX_DEADLINE_SECS} seconds from now, {seconds}"));
    }
    if order.maxPrice == 0 {
        return refuse("order.maxPrice", "must not be zero".to_owned());
    }
    if order.maxFeeBps > BPS {
        return refuse("order.maxFeeBps", format!("must be at most {BPS}"));
    }
    let max_window = app.parts.deployment.escrow_params.max_challenge_window;
    if order.challengeWindow > max_window {
        return refuse("order.challengeWindow", format!("must be at most {max_window} seconds"));
    }
    if order.node != Address::ZERO {
        return Ok(());
    }
    if order.challengeWindow == 0 {
        return refuse("order.challengeWindow", "must not be zero where the order leaves its node open".to_owned());
    }
    if order.assigner != app.assigner() {
        let detail = format!("must be {} where the order leaves its node open", app.assigner());
        return Err(ApiError::field(Code::WrongAssigner, "order.assigner", detail));
    }
    Ok(())
}

fn margin_secs(margin: TimeDelta) -> u64 {
    u64::try_from(margin.num_seconds()).unwrap_or(0)
}

/// What depends on what is stored here: the input, the deposit, the nodes.
async fn check_stores(
    app: &App,
    db: &mut PgConnection,
    order: &Order,
    spec: &JobSpec,
    input: ContentId,
) -> ApiResult<()> {
    if blob::size(db, input).await?.is_none() {
        let detail = format!("{input} is not stored here; put it to blobs first");
        return Err(ApiError::field(Code::InputUnknown, "spec.inputCID", detail));
    }
    check_nodes(app, db, order, spec).await?;
    let key = (order.requester, order.token);
    let free = escrow::accounts(db, &[key]).await?.get(&key).map_or(Amount::ZERO, |account| account.free);
    if Amount::from(order.maxPrice) > free {
        let detail = format!("{} is more than the free deposit of {free}", order.maxPrice);
        return Err(ApiError::field(Code::PriceAboveDeposit, "order.maxPrice", detail));
    }
    Ok(())
}

async fn check_nodes(app: &App, db: &mut PgConnection, order: &Order, spec: &JobSpec) -> ApiResult<()> {
    let min_stake = app.parts.deployment.registry_params.min_stake;
    let not_offered = |detail: String| Err(ApiError::field(Code::OperationNotOffered, "spec.operation", detail));
    if order.node == Address::ZERO {
        let offered = submission::is_offered(db, &spec.operation, min_stake).await?;
        return if offered { Ok(()) } else { not_offered(format!("no staked node performs {:?}", spec.operation)) };
    }
    let node = node_view::by_address(db, order.node).await?;
    let Some(registration) = node.as_ref().and_then(|node| node.registration.as_ref()) else {
        let detail = format!("{} is not registered on the chain", order.node);
        return Err(ApiError::field(Code::OrderNodeNotRegistered, "order.node", detail));
    };
    if registration.stake < min_stake {
        let detail = format!("has a stake of {}, less than {min_stake}", registration.stake);
        return Err(ApiError::field(Code::OrderNodeInsufficientStake, "order.node", detail));
    }
    let offers = node.as_ref().is_some_and(|node| node.operations().contains(&spec.operation));
    if offers { Ok(()) } else { not_offered(format!("{} does not perform {:?}", order.node, spec.operation)) }
}
