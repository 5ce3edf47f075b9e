//! Handing in a result. The completion and the payment that it makes due are one transaction.

use std::collections::{BTreeMap, HashMap, HashSet};

use alloy::primitives::{Address, B256};
use axum::extract::State;
use chrono::{DateTime, Utc};
use futures::{StreamExt, stream};
use market::{
    Amount, ContentId,
    abi::Order,
    clock,
    db::{
        blob, job_view, order,
        outbox::{self, Entity, Source},
        work::{self, Completion},
    },
    job::{Fence, JobStatus, Work, WorkState},
    typed_data,
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{AssignmentBody, JobPath, not_found};
use crate::{
    app::App,
    auth::SignedIn,
    error::{ApiError, ApiResult, Code, Problem},
    extract::{Json, Path},
    wallet,
    wire::{Hash, HexBytes, WalletAddress},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(complete_job)).routes(routes!(complete_jobs))
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
    result_hash: Option<Hash>,
    /// The node's EIP-712 signature over `Receipt`, or what its contract wallet takes for one (ERC-1271).
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
    let result_hash = request.output_cid.digest();
    if let Some(Hash(given)) = request.result_hash.filter(|given| given.0 != result_hash) {
        let detail = format!("{given} is not the digest inside outputCID, {result_hash}");
        return Err(ApiError::field(Code::InvalidField, "resultHash", detail));
    }
    let handed = Handed {
        fence: request.fence,
        output_cid: request.output_cid,
        price: request.price,
        receipt_signature: request.receipt_signature,
    };
    let job_id = path.job_id.0;
    let (order, done) = complete(&app, user.wallet(), job_id, handed, clock::now()).await?;
    Ok(Json(body(job_id, &order, &done)))
}

/// Most results in a request.
const MAX_RESULTS: usize = 100;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct BulkCompleteRequest {
    /// Results, at most a hundred, of different jobs.
    #[schema(max_items = 100)]
    results: Vec<ResultBody>,
}

/// The result of a job.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = JobResult)]
struct ResultBody {
    /// The job.
    job_id: Hash,
    /// As it came with the lease.
    #[schema(value_type = i64, example = 1)]
    fence: Fence,
    /// Where the output is; put it to `blobs` first.
    #[serde(rename = "outputCID")]
    output_cid: ContentId,
    /// What the receipt asks: at most the order's `maxPrice`.
    price: Amount,
    /// The node's EIP-712 signature over `Receipt`, or what its contract wallet takes for one (ERC-1271).
    receipt_signature: HexBytes,
}

/// What became of each result.
#[derive(Debug, Serialize, ToSchema)]
struct BulkCompleteBody {
    /// One for each, in their order.
    results: Vec<BulkCompleteItem>,
}

/// What became of one result.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct BulkCompleteItem {
    /// The job.
    job_id: Hash,
    /// If the result was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    completed: Option<CompleteBody>,
    /// Why it was not: as `complete` would answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    problem: Option<Problem>,
}

/// Hand in the results of several jobs
///
/// Each is answered by itself, as `complete` answers it; a bad one harms no other.
#[utoipa::path(
    post, path = "/lit-compute/jobs/complete/bulk", tag = "jobs", security(("bearer" = [])),
    request_body = BulkCompleteRequest, responses((status = 200, body = BulkCompleteBody))
)]
async fn complete_jobs(
    State(app): State<App>,
    user: SignedIn,
    Json(request): Json<BulkCompleteRequest>,
) -> ApiResult<Json<BulkCompleteBody>> {
    if request.results.len() > MAX_RESULTS {
        return Err(ApiError::field(Code::InvalidField, "results", format!("must be at most {MAX_RESULTS}")));
    }
    let ids: Vec<Hash> = request.results.iter().map(|result| result.job_id).collect();
    let handed =
        request.results.into_iter().map(|ResultBody { job_id, fence, output_cid, price, receipt_signature }| {
            (job_id.0, Handed { fence, output_cid, price, receipt_signature })
        });
    let taken = complete_all(&app, user.wallet(), handed.collect(), clock::now()).await?;
    let results = ids.into_iter().zip(taken).map(|(job_id, taken)| match taken {
        Ok((order, done)) => BulkCompleteItem { job_id, completed: Some(body(job_id.0, &order, &done)), problem: None },
        Err(error) => BulkCompleteItem { job_id, completed: None, problem: Some(error.into_problem()) },
    });
    Ok(Json(BulkCompleteBody { results: results.collect() }))
}

/// A result, as a node hands it in.
#[derive(Debug, Clone)]
pub struct Handed {
    /// Under which lease.
    pub fence: Fence,
    /// Where the output is.
    pub output_cid: ContentId,
    /// What the receipt asks, in the token's smallest unit.
    pub price: Amount,
    /// By the node, over `Receipt`.
    pub receipt_signature: HexBytes,
}

/// Takes a result from `node` at `now`: the completion, and the payment that it makes due. The same result again is answered
/// with what was kept of it.
pub async fn complete(
    app: &App,
    node: Address,
    job_id: B256,
    handed: Handed,
    now: DateTime<Utc>,
) -> ApiResult<(Order, Completion)> {
    let done = complete_all(app, node, vec![(job_id, handed)], now).await?.pop();
    done.unwrap_or_else(|| Err(ApiError::internal(anyhow::anyhow!("a result was left without an answer"))))
}

/// What became of a result: the order and the completion.
type Taken = ApiResult<(Order, Completion)>;

/// As [`complete`], of several jobs in one transaction; one that is refused harms no other. Answers in their order.
pub async fn complete_all(
    app: &App,
    node: Address,
    results: Vec<(B256, Handed)>,
    now: DateTime<Utc>,
) -> ApiResult<Vec<Taken>> {
    let ids: Vec<B256> = results.iter().map(|(id, _)| *id).collect();
    let mut orders = order::agreed(&mut *app.db().await?, &ids).await?;
    let checker = app.clone();
    // Recovering a hundred signatures takes a while.
    let recovered: Vec<ApiResult<Recovered>> = tokio::task::spawn_blocking(move || {
        let check = |(job_id, handed): (B256, Handed)| {
            // What is named twice finds no order the second time.
            let order = orders.remove(&job_id).ok_or_else(|| not_found(job_id))?.order;
            let receipt = check_handed(&checker, node, job_id, &order, &handed)?;
            Ok(((job_id, order, handed), receipt))
        };
        results.into_iter().map(check).collect()
    })
    .await
    .map_err(ApiError::internal)?;
    let checked = ask_wallet(app, node, recovered).await;

    let mut tx = app.begin().await?;
    let mut stored = Stored::read(&mut tx, &checked).await?;
    let (mut answers, mut done) = (Vec::with_capacity(checked.len()), Vec::new());
    for item in checked {
        let answer = item.and_then(|(job_id, order, handed)| {
            if let Some(earlier) = stored.earlier.remove(&job_id).filter(|earlier| is_same(earlier, node, &handed)) {
                return Ok((order, earlier));
            }
            let completion = stored.accept(app, node, job_id, &order, handed, now)?;
            done.push((job_id, order.token, completion.clone()));
            Ok((order, completion))
        });
        match answer {
            Err(error) if error.code().status().is_server_error() => return Err(error),
            answer => answers.push(answer),
        }
    }
    keep(&mut tx, node, &done, now).await?;
    tx.commit().await?;
    metrics::counter!("littoral_jobs_completed_total").increment(done.len().try_into().unwrap_or(u64::MAX));
    for (job_id, _, Completion { fence, price, output_cid, .. }) in &done {
        tracing::info!(%job_id, %node, fence = fence.0, %price, output_cid, "job completed");
    }
    Ok(answers)
}

/// A result with the order that it is for.
type Checked = (B256, Order, Handed);

/// A receipt whose signature is not one of the node's key.
struct NotByKey {
    digest: B256,
    why: String,
}

/// A result, and what is left to find out about its receipt.
type Recovered = (Checked, Option<NotByKey>);

/// What can be seen without looking at rows or at the chain.
fn check_handed(app: &App, node: Address, job_id: B256, order: &Order, handed: &Handed) -> ApiResult<Option<NotByKey>> {
    let price = handed.price.to_u128().map_err(|e| ApiError::field(Code::InvalidField, "price", e.to_string()))?;
    check_price(order, price)?;
    check_receipt(app, &handed.receipt_signature.0, job_id, price, handed.output_cid.digest(), node)
}

/// Writes results, ends their leases, and tells everyone.
async fn keep(
    db: &mut PgConnection,
    node: Address,
    done: &[(B256, Address, Completion)],
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    if done.is_empty() {
        return Ok(());
    }
    let leases: Vec<_> = done.iter().map(|(job_id, _, completion)| (*job_id, completion.fence)).collect();
    work::end_completed(db, node, &leases, now).await?;
    let results: Vec<_> = done.iter().map(|(job_id, token, completion)| (*job_id, *token, completion)).collect();
    work::insert_completions(db, &results).await?;
    let mut changes: Vec<_> = done.iter().map(|(job_id, _, _)| (Entity::Job(*job_id), "job.completed")).collect();
    changes.push((Entity::Node(node), "node.payment_due"));
    outbox::append_many(db, Source::Work, &changes, now).await
}

/// What the rows say of jobs whose results came, under a lock on the work on them.
struct Stored {
    work: HashMap<B256, Work>,
    earlier: HashMap<B256, Completion>,
    /// Those on which a result can still be settled, with the end of the requester's notice.
    open: BTreeMap<B256, Option<DateTime<Utc>>>,
    /// Where they stand now, of those that are not open.
    closed: HashMap<B256, JobStatus>,
    outputs: HashSet<String>,
}

impl Stored {
    async fn read(db: &mut PgConnection, results: &[ApiResult<Checked>]) -> ApiResult<Self> {
        let ids: Vec<B256> = results.iter().flatten().map(|(job_id, ..)| *job_id).collect();
        let outputs: Vec<String> = results.iter().flatten().map(|(.., handed)| handed.output_cid.to_string()).collect();
        let work = work::lock_all(db, &ids).await?;
        let open = order::open_among(db, &ids).await?;
        let others: Vec<B256> = ids.iter().filter(|id| !open.contains_key(*id)).copied().collect();
        let closed = if others.is_empty() { Vec::new() } else { job_view::by_ids(db, &others).await? };
        let done: Vec<B256> = ids.iter().filter(|id| is_completed(&work, id)).copied().collect();
        Ok(Self {
            earlier: if done.is_empty() { HashMap::new() } else { work::completions(db, &done).await? },
            work,
            open,
            closed: closed.into_iter().map(|view| (view.job_id, view.stored_status)).collect(),
            outputs: blob::stored(db, &outputs).await?,
        })
    }

    /// The completion that a result amounts to, if it is the holder's, in time, and can be settled.
    fn accept(
        &self,
        app: &App,
        node: Address,
        job_id: B256,
        order: &Order,
        handed: Handed,
        now: DateTime<Utc>,
    ) -> ApiResult<Completion> {
        let before = self.work.get(&job_id).cloned().unwrap_or_default();
        before.complete(node, handed.fence, now)?;
        self.check_still_wanted(app, job_id, order, now)?;
        if !self.outputs.contains(&handed.output_cid.to_string()) {
            let detail = format!("{} is not stored here; put it to blobs first", handed.output_cid);
            return Err(ApiError::field(Code::OutputUnknown, "outputCID", detail));
        }
        let WorkState::Leased { since, .. } = before.state else {
            return Err(ApiError::internal(anyhow::anyhow!("job {job_id} was completed from {:?}", before.state)));
        };
        let (assignment_expiry, assignment_signature) = final_assignment(app, job_id, order, node)?;
        Ok(Completion {
            fence: handed.fence,
            node,
            output_cid: handed.output_cid.to_string(),
            result_hash: handed.output_cid.digest(),
            price: handed.price,
            receipt_signature: handed.receipt_signature.0,
            assignment_expiry,
            assignment_signature,
            started_at: since,
            completed_at: now,
        })
    }

    /// That the chain would still take a result, and that there is time to bring it there: a result that is published and not
    /// settled is work for nothing.
    fn check_still_wanted(&self, app: &App, job_id: B256, order: &Order, now: DateTime<Utc>) -> ApiResult<()> {
        let Some(notice_end) = self.open.get(&job_id) else {
            let deadline = market::fold::time_of(order.deadline);
            let status = self.closed.get(&job_id).map_or("gone", |status| status.at(deadline, now).name());
            return Err(ApiError::new(Code::NotOpen, format!("The job is {status}.")));
        };
        let margin = app.parts.settings.settle_margin;
        if let Some(end) = notice_end.filter(|end| now + margin >= *end) {
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
}

fn is_completed(work: &HashMap<B256, Work>, job_id: &B256) -> bool {
    work.get(job_id).is_some_and(|work| matches!(work.state, WorkState::Completed { .. }))
}

/// Whether a completion was made by an identical result.
fn is_same(done: &Completion, node: Address, handed: &Handed) -> bool {
    done.node == node
        && done.fence == handed.fence
        && done.price == handed.price
        && done.output_cid == handed.output_cid.to_string()
}

fn check_price(order: &Order, price: u128) -> ApiResult<()> {
    if price <= order.maxPrice {
        return Ok(());
    }
    let detail = format!("{price} is more than the order's maxPrice, {}", order.maxPrice);
    Err(ApiError::field(Code::PriceAboveMax, "price", detail))
}

/// That the receipt is by the node's key; if it is not, a contract wallet may take it all the same.
fn check_receipt(
    app: &App,
    signature: &[u8],
    job_id: B256,
    price: u128,
    result_hash: B256,
    node: Address,
) -> ApiResult<Option<NotByKey>> {
    if signature.len() > wallet::MAX_SIGNATURE_BYTES {
        let detail = format!("must have at most {} bytes", wallet::MAX_SIGNATURE_BYTES);
        return Err(ApiError::field(Code::InvalidField, "receiptSignature", detail));
    }
    let digest = typed_data::receipt_digest(job_id, price, result_hash, &app.domain);
    Ok(match typed_data::recover(signature, digest) {
        Ok(signer) if signer == node => None,
        Ok(signer) => Some(NotByKey { digest, why: format!("is by {signer}, not by {node}, or over another receipt") }),
        Err(error) => Some(NotByKey { digest, why: error.to_string() }),
    })
}

/// Receipts of one request that the node's wallet is asked about at once.
const RECEIPTS_AT_ONCE: usize = 8;

/// Asks the node, if it is a contract, about the receipts that no key of its address has signed. The chain is waited for here,
/// before there is a transaction.
async fn ask_wallet(app: &App, node: Address, results: Vec<ApiResult<Recovered>>) -> Vec<ApiResult<Checked>> {
    let asks = results.iter().flatten().any(|(_, receipt)| receipt.is_some());
    // Usually it is none: then the chain is asked once.
    let is_contract = if asks { wallet::is_contract(app, node).await.ok() } else { None };
    let check = |result: ApiResult<Recovered>| async move {
        let (checked, receipt) = result?;
        let Some(NotByKey { digest, why }) = receipt else { return Ok(checked) };
        let signature = &checked.2.receipt_signature.0;
        if is_contract != Some(false) && wallet::accepts(app, node, digest, signature).await? {
            return Ok(checked);
        }
        Err(ApiError::field(Code::BadReceiptSignature, "receiptSignature", why))
    };
    stream::iter(results).map(check).buffered(RECEIPTS_AT_ONCE).collect().await
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
