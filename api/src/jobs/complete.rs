//! Handing in a result. The completion and the payment that it makes due are one transaction.

use alloy::primitives::{Address, B256};
use axum::extract::State;
use chrono::{DateTime, Utc};
use market::{
    Amount, ContentId,
    abi::Order,
    clock,
    db::{
        blob, job_view, order,
        outbox::{self, Entity, Source},
        work::{self, Completion, Outcome},
    },
    job::{Fence, JobStatus, WorkState},
    typed_data,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{AssignmentBody, JobPath, agreed, lease::locked};
use crate::{
    app::App,
    auth::SignedIn,
    error::{ApiError, ApiResult, Code, Problem},
    extract::{Json, Path},
    wire::{Hash, HexBytes, WalletAddress},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(complete_job))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CompleteRequest {
    /// As it came with the lease.
    #[schema(value_type = i64, example = 1)]
    fence: Fence,
    /// Where the output is; put it to `blobs` first.
    #[serde(rename = "outputCID")]
    output_cid: ContentId,
    /// What the receipt asks: at most the order's `maxPrice`.
    price: Amount,
    /// The digest inside `outputCID`, to be checked if given.
    #[schema(nullable = false)]
    result_hash: Option<Hash>,
    /// The node's EIP-712 signature over `Receipt`.
    receipt_signature: HexBytes,
}

/// A completed job.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct CompleteBody {
    /// The job.
    job_id: Hash,
    /// `completed`.
    status: JobStatus,
    /// When.
    completed_at: DateTime<Utc>,
    /// What is due to the node.
    payment: PaymentDue,
    /// For an open order: what the settlement needs besides the receipt, valid to the order's deadline.
    assignment: Option<AssignmentBody>,
}

/// An amount of a token.
#[derive(Debug, Serialize, ToSchema)]
struct PaymentDue {
    /// Zero for the chain's native coin.
    token: WalletAddress,
    /// In the token's smallest unit.
    amount: Amount,
}

/// Hand in the result of a job
///
/// Repeating it with the same result changes nothing.
#[utoipa::path(
    post, path = "/lit-compute/jobs/{jobId}/complete", tag = "jobs", security(("bearer" = [])), params(JobPath),
    request_body = CompleteRequest,
    responses(
        (status = 200, body = CompleteBody),
        (status = 403, body = Problem, content_type = "application/problem+json", description = "`not_holder`"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "`job_not_found`"),
        (status = 409, body = Problem, content_type = "application/problem+json",
         description = "`stale_fence`, `lease_expired`, `not_leased`, `job_ended`, `deadline_passed`, `not_open`"),
        (status = 422, body = Problem, content_type = "application/problem+json",
         description = "`output_unknown`, `price_above_max`, `bad_receipt_signature`, `invalid_field`"),
    )
)]
async fn complete_job(
    State(app): State<App>,
    user: SignedIn,
    Path(path): Path<JobPath>,
    Json(request): Json<CompleteRequest>,
) -> ApiResult<Json<CompleteBody>> {
    let (job_id, node, now) = (path.job_id.0, user.wallet(), clock::now());
    let result_hash = request.output_cid.digest();
    if let Some(Hash(given)) = request.result_hash.filter(|given| given.0 != result_hash) {
        let detail = format!("{given} is not the digest inside outputCID, {result_hash}");
        return Err(ApiError::field(Code::InvalidField, "resultHash", detail));
    }
    let price = request.price.to_u128().map_err(|e| ApiError::field(Code::InvalidField, "price", e.to_string()))?;
    let order = agreed(&mut *app.parts.pool.acquire().await?, job_id).await?.order;
    check_price(&order, price)?;
    check_receipt(&app, &request.receipt_signature, job_id, price, result_hash, node)?;

    let mut tx = app.begin().await?;
    let before = locked(&mut tx, job_id).await?;
    if let Some(done) = earlier(&mut tx, job_id, node, &request).await? {
        return Ok(Json(body(job_id, &order, &done)));
    }
    let after = before.complete(node, request.fence, now)?;
    check_still_wanted(&app, &mut tx, job_id, &order, now).await?;
    if blob::size(&mut tx, request.output_cid).await?.is_none() {
        let detail = format!("{} is not stored here; put it to blobs first", request.output_cid);
        return Err(ApiError::field(Code::OutputUnknown, "outputCID", detail));
    }
    let WorkState::Leased { since, .. } = before.state else {
        return Err(ApiError::internal(anyhow::anyhow!("job {job_id} was completed from {:?}", before.state)));
    };
    let (assignment_expiry, assignment_signature) = final_assignment(&app, job_id, &order, node)?;
    let completion = Completion {
        fence: request.fence,
        node,
        output_cid: request.output_cid.to_string(),
        result_hash,
        price: request.price,
        receipt_signature: request.receipt_signature.0,
        assignment_expiry,
        assignment_signature,
        started_at: since,
        completed_at: now,
    };
    work::save(&mut tx, job_id, &before, &after, None, now).await?;
    work::end_attempt(&mut tx, job_id, request.fence, Outcome::Completed, None, now).await?;
    work::insert_completion(&mut tx, job_id, order.token, &completion).await?;
    let changes = [(Entity::Job(job_id), "job.completed"), (Entity::Node(node), "node.payment_due")];
    outbox::append_many(&mut tx, Source::Work, &changes, now).await?;
    tx.commit().await?;
    metrics::counter!("littoral_jobs_completed_total").increment(1);
    tracing::info!(%job_id, %node, fence = request.fence.0, %price, output_cid = completion.output_cid, "job completed");
    Ok(Json(body(job_id, &order, &completion)))
}

fn check_price(order: &Order, price: u128) -> ApiResult<()> {
    if price <= order.maxPrice {
        return Ok(());
    }
    let detail = format!("{price} is more than the order's maxPrice, {}", order.maxPrice);
    Err(ApiError::field(Code::PriceAboveMax, "price", detail))
}

fn check_receipt(
    app: &App,
    signature: &HexBytes,
    job_id: B256,
    price: u128,
    result_hash: B256,
    node: Address,
) -> ApiResult<()> {
    let digest = typed_data::receipt_digest(job_id, price, result_hash, &app.domain);
    let detail = match typed_data::recover(&signature.0, digest) {
        Ok(signer) if signer == node => return Ok(()),
        Ok(signer) => format!("is by {signer}, not by {node}, or over another receipt"),
        Err(error) => error.to_string(),
    };
    Err(ApiError::field(Code::BadReceiptSignature, "receiptSignature", detail))
}

/// The completion that an identical request has made before.
async fn earlier(
    db: &mut PgConnection,
    job_id: B256,
    node: Address,
    request: &CompleteRequest,
) -> ApiResult<Option<Completion>> {
    let same = |done: &Completion| {
        done.node == node
            && done.fence == request.fence
            && done.price == request.price
            && done.output_cid == request.output_cid.to_string()
    };
    Ok(work::completion(db, job_id).await?.filter(same))
}

/// That the chain would still take a result, and that there is time to bring it there: a result that is published and not
/// settled is work for nothing.
async fn check_still_wanted(
    app: &App,
    db: &mut PgConnection,
    job_id: B256,
    order: &Order,
    now: DateTime<Utc>,
) -> ApiResult<()> {
    if !order::is_open(db, job_id).await? {
        let status = job_view::by_id(db, job_id).await?.map_or("gone", |job| job.status(now).name());
        return Err(ApiError::new(Code::NotOpen, format!("The job is {status}.")));
    }
    let margin = app.parts.settings.settle_margin;
    if let Some(end) = order::notice_end(db, job_id).await?.filter(|end| now + margin >= *end) {
        let detail = format!("The requester gave notice: no result settles from {end} on, and the time is {now}.");
        return Err(ApiError::new(Code::NotOpen, detail));
    }
    if i64::try_from(order.deadline).is_ok_and(|deadline| (now + margin).timestamp() > deadline) {
        let detail = format!(
            "Results are taken until {} seconds before the order's deadline, {}; the time is {}.",
            margin.num_seconds(),
            order.deadline,
            now.timestamp()
        );
        return Err(ApiError::new(Code::DeadlinePassed, detail));
    }
    Ok(())
}

/// Binds an open order to the node that did it for as long as a result counts: expiry and signature.
fn final_assignment(app: &App, job_id: B256, order: &Order, node: Address) -> ApiResult<(u64, Vec<u8>)> {
    if order.node == Address::ZERO {
        Ok((order.deadline, app.sign_assignment(job_id, node, order.deadline)?))
    } else {
        Ok((0, Vec::new()))
    }
}

fn body(job_id: B256, order: &Order, completion: &Completion) -> CompleteBody {
    let assignment = (!completion.assignment_signature.is_empty()).then(|| AssignmentBody {
        expiry: completion.assignment_expiry,
        signature: HexBytes(completion.assignment_signature.clone()),
    });
    CompleteBody {
        job_id: Hash(job_id),
        status: JobStatus::Completed,
        completed_at: completion.completed_at,
        payment: PaymentDue { token: WalletAddress(order.token), amount: completion.price },
        assignment,
    }
}
