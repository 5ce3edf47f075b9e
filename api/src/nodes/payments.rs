//! What a node has earned by the jobs that it completed.

use alloy::primitives::{Address, B256};
use axum::extract::State;
use chrono::{DateTime, Utc};
use market::{
    Amount, clock,
    db::{job_view, work},
    job::JobStatus,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{NodePath, address_of};
use crate::{
    app::App,
    error::{ApiResult, Problem},
    extract::{Json, Path, Query},
    page::{self, Cursor, Limit},
    wire::{ConfirmationBody, Hash, WalletAddress},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(node_payments))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct PaymentsQuery {
    /// Most entries, 1 to 200.
    #[serde(default)]
    #[param(value_type = Option<i64>, minimum = 1, maximum = 200)]
    limit: Limit,
    /// `next` of the page before.
    #[param(value_type = Option<String>, pattern = "^-?[0-9]{1,18}[.]0x[0-9a-fA-F]{64}$")]
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
    /// In a transaction that was sent, promised by a voucher, or on the chain and not final yet.
    Settling,
    /// On the chain; the challenge window or the arbiter's time runs.
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
    /// How sure the latest that the chain says of its job is.
    confirmation: Option<ConfirmationBody>,
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
    let mut db = app.db().await?;
    let node = address_of(&mut db, path.id).await?;
    let due = work::payments(&mut db, node, query.cursor.map(Cursor::time), query.limit.0).await?;
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
                confirmation: job.and_then(|job| job.confirmation).map(ConfirmationBody::from),
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
        JobStatus::Resolved if job.resolved_paid.is_some_and(|paid| paid != Amount::ZERO) => {
            (PaymentStatus::Paid, job.closed.map(|closed| closed.tx))
        }
        JobStatus::Challengeable | JobStatus::Disputed => (PaymentStatus::Challengeable, submitted),
        JobStatus::Settling => {
            let tx = job.closed.map(|closed| closed.tx).or(job.batch.and_then(|batch| batch.tx));
            (PaymentStatus::Settling, tx)
        }
        JobStatus::Completed if job.hold_reason.is_some() => (PaymentStatus::Held, None),
        JobStatus::Completed => (PaymentStatus::Due, None),
        _ => (PaymentStatus::Void, None),
    }
}
