//! Handing in an order: signed, which makes it a job at once, or announced before `openJob` makes it one.

use alloy::primitives::B256;
use axum::extract::State;
use chrono::{DateTime, Utc};
use market::{
    Amount,
    abi::{JobSpec, Order},
    clock,
    db::{
        escrow, job_view,
        order::{DEFAULT_PRIORITY, MAX_PRIORITY, Terms},
        outbox::{self, Entity, Source},
        submission,
    },
    job::JobStatus,
    order::{OrderJson, SpecJson},
    typed_data,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    check::{self, Stored, invalid},
    signed::{self, SignedDraft},
};
use crate::{
    app::App,
    auth::SignedIn,
    error::{ApiError, ApiResult, Code, DepositProblem, Problem},
    extract::Json,
    wire::{Hash, HexBytes},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(submit_job))
}

/// An order.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SubmitRequest {
    /// Its requester is who signed in, or a contract wallet that takes the signature for its own.
    order: OrderJson,
    /// What the order's `specHash` is the hash of.
    spec: SpecJson,
    /// 0 to 1000, 100 unless given. A point moves the job a second forward in the queue.
    #[serde(default = "default_priority")]
    #[schema(minimum = 0, maximum = 1000, default = 100)]
    priority: i32,
    /// No node is given the job earlier; well before the order's deadline.
    not_before: Option<DateTime<Utc>>,
    /// Nodes of less reputation are not given the job.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 100, default = 0)]
    min_reputation: u8,
    /// Nodes with a smaller stake, in wei, are not given the job.
    #[serde(default)]
    min_stake: Amount,
    /// The requester's EIP-712 signature over the order, by its key or ERC-1271: the job is then paid from the deposit.
    /// Without it the order is announced, and `openJob` has to follow.
    signature: Option<HexBytes>,
}

fn default_priority() -> i32 {
    DEFAULT_PRIORITY
}

/// An order that was handed in.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct SubmitBody {
    /// The order's EIP-712 digest.
    job_id: Hash,
    /// `pending` if it was signed, `awaiting_escrow` if announced, unless more has happened.
    status: JobStatus,
}

/// An order as it was handed in, not yet checked.
#[derive(Debug)]
pub struct Draft {
    /// The order's EIP-712 digest.
    pub job_id: B256,
    /// The order.
    pub order: Order,
    /// What is to be done.
    pub spec: JobSpec,
    /// What the requester says beside the order.
    pub terms: Terms,
}

impl Draft {
    /// As the request has it.
    pub(super) fn read(app: &App, request: &SubmitRequest) -> ApiResult<Self> {
        let order = request.order.to_order().map_err(|error| invalid("order.maxPrice", error.to_string()))?;
        if !(0..=MAX_PRIORITY).contains(&request.priority) {
            return Err(invalid("priority", format!("must be between 0 and {MAX_PRIORITY}")));
        }
        if request.min_reputation > 100 {
            return Err(invalid("minReputation", "must be at most 100"));
        }
        let job_id = typed_data::job_id(&order, &app.domain);
        let terms = Terms {
            priority: request.priority,
            not_before: request.not_before,
            min_reputation: request.min_reputation,
            min_stake: request.min_stake,
        };
        Ok(Self { job_id, order, spec: JobSpec::from(&request.spec), terms })
    }

    /// Everything but its money and its nonce.
    pub(super) async fn check(
        &self,
        app: &App,
        db: &mut PgConnection,
        stored: &mut Stored<'_>,
        now: DateTime<Utc>,
    ) -> ApiResult<()> {
        let input = check::spec_by_itself(&self.order, &self.spec)?;
        check::order_by_itself(app, &self.order, now)?;
        check::delay(app, &self.order, self.terms.not_before)?;
        stored.check(db, &self.order, &self.spec, input).await
    }
}

impl SubmitRequest {
    pub(super) fn take_signature(&mut self) -> Option<Vec<u8>> {
        self.signature.take().map(|signature| signature.0)
    }
}

/// Hand in an order
///
/// With `signature` it is a job at once, paid from the deposit. Without, it is announced: open the job on the chain
/// afterwards. An announced order can still be signed. Repeating a call changes nothing.
#[utoipa::path(
    post, path = "/lit-compute/jobs/submit", tag = "jobs", security(("bearer" = [])), request_body = SubmitRequest,
    responses(
        (status = 200, body = SubmitBody),
        (status = 402, body = DepositProblem, content_type = "application/problem+json",
         description = "`insufficient_deposit` if it is signed; `price_above_deposit`, without the figures, if announced"),
        (status = 403, body = Problem, content_type = "application/problem+json", description = "`wallet_mismatch`"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "`not_open`"),
        (status = 422, body = Problem, content_type = "application/problem+json",
         description = "`bad_order_signature`, `nonce_covered`, `spec_hash_mismatch`, `order_expired`, `order_invalid`, \
                        `wrong_assigner`, `input_unknown`, `order_node_not_registered`, `order_node_insufficient_stake`, \
                        `operation_not_offered`, `invalid_field`"),
    )
)]
async fn submit_job(
    State(app): State<App>,
    user: SignedIn,
    Json(mut request): Json<SubmitRequest>,
) -> ApiResult<Json<SubmitBody>> {
    let now = clock::now();
    let draft = Draft::read(&app, &request)?;
    let job_id = Hash(draft.job_id);
    let status = match request.take_signature() {
        None => announce(&app, &user, draft, &request, now).await?,
        Some(signature) => {
            let draft = SignedDraft::read(draft, signature)?;
            draft.check_signer(&app, user.wallet(), None).await?;
            signed::keep(&app, &[draft], now).await?.pop().unwrap_or_else(|| Err(signed::unanswered()))?
        }
    };
    Ok(Json(SubmitBody { job_id, status }))
}

async fn announce(
    app: &App,
    user: &SignedIn,
    draft: Draft,
    request: &SubmitRequest,
    now: DateTime<Utc>,
) -> ApiResult<JobStatus> {
    let Draft { job_id, order, spec, terms } = &draft;
    let job_id = *job_id;
    if order.requester != user.wallet() {
        return Err(signed::wallet_mismatch(user.wallet()));
    }
    let mut tx = app.begin().await?;
    if let Some(known) = job_view::by_id(&mut tx, job_id).await? {
        return Ok(known.status(now));
    }
    draft.check(app, &mut tx, &mut Stored::new(app), now).await?;
    check_deposit(&mut tx, order).await?;
    if submission::insert(&mut tx, job_id, &request.order, &request.spec, terms, now).await? {
        outbox::append(&mut tx, Source::Work, Entity::Job(job_id), "job.announced", now).await?;
    }
    tx.commit().await?;
    tracing::info!(%job_id, requester = %order.requester, operation = spec.operation, "order announced");
    Ok(JobStatus::AwaitingEscrow)
}

/// That `openJob` could lock the price. What signed orders have promised does not keep it from that.
async fn check_deposit(db: &mut PgConnection, order: &Order) -> ApiResult<()> {
    let key = (order.requester, order.token);
    let free = escrow::accounts(db, &[key]).await?.get(&key).map_or(Amount::ZERO, |account| account.free);
    if Amount::from(order.maxPrice) <= free {
        return Ok(());
    }
    let detail = format!("{} is more than the free deposit of {free}", order.maxPrice);
    Err(ApiError::field(Code::PriceAboveDeposit, "order.maxPrice", detail))
}
