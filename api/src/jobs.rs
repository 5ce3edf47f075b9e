//! Jobs: signed or announced, and looked at by requesters, claimed and completed by nodes.

mod bulk;
mod cancel;
mod check;
mod claim;
mod complete;
mod funds;
pub mod grant;
mod lease;
mod list;
mod redrive;
mod signed;
mod submit;
mod tried;

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};
use market::{
    Amount,
    db::{
        job_view::{self, JobView},
        order::{self, Agreed, Rail},
        voucher::{self, Cover},
    },
    job::JobStatus,
    order::{OrderJson, SpecJson, uint64_text},
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;

use crate::{
    app::App,
    error::{ApiError, ApiResult, Code},
    wire::{ConfirmationBody, Hash, HexBytes, WalletAddress},
};

pub use cancel::cancel;
pub use complete::{Handed, complete, complete_all};
pub use funds::Funds;
pub use lease::{LeaseRef, RenewedLease, expire_leases, fail, renew_lease};
pub use list::JobPage;
pub use redrive::redrive;
pub use signed::{SignedDraft, keep};
pub use submit::Draft;
pub use tried::Tried;

/// The routes of jobs.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .merge(submit::routes())
        .merge(bulk::routes())
        .merge(cancel::routes())
        .merge(redrive::routes())
        .merge(list::routes())
        .merge(lease::routes())
        .merge(complete::routes())
}

/// The routes that wait, and must not be cut off like the others.
pub fn waiting_routes() -> OpenApiRouter<App> {
    claim::routes()
}

/// A job's id in the path. What is not an id is refused with `invalid_parameter`, an unknown one with `job_not_found`.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Path)]
pub struct JobPath {
    /// The order's EIP-712 digest.
    pub job_id: Hash,
}

/// A job as all sides see it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Job)]
pub struct JobBody {
    /// The order's EIP-712 digest.
    pub job_id: Hash,
    /// Where it stands.
    pub status: JobStatus,
    /// How it is paid; `null` while it is only announced.
    pub rail: Option<Rail>,
    /// As opened on the chain, signed, or announced.
    pub order: OrderJson,
    /// As opened on the chain, signed, or announced.
    pub spec: SpecJson,
    /// 0 to 1000.
    pub priority: i32,
    /// No node is given it earlier: its delay, or the pause after a failed attempt.
    pub not_before: Option<DateTime<Utc>>,
    /// Nodes of less are not given it.
    pub min_reputation: u8,
    /// Nodes with a smaller stake, in wei, are not given it.
    pub min_stake: Amount,
    /// Who holds it or did it.
    pub node: Option<WalletAddress>,
    /// That node's id.
    pub node_id: Option<Hash>,
    /// What the node asks, or was paid.
    pub price: Option<Amount>,
    /// Where the output is.
    #[serde(rename = "outputCID")]
    pub output_cid: Option<String>,
    /// SHA2-256 of the output.
    pub result_hash: Option<Hash>,
    /// Leases that ended without completion.
    pub attempts: i32,
    /// What the latest failed attempt said.
    pub last_error: Option<String>,
    /// When the lease ends unless renewed.
    pub lease_expires_at: Option<DateTime<Utc>>,
    /// When the node that holds it or did it began.
    pub started_at: Option<DateTime<Utc>>,
    /// When the result came.
    pub completed_at: Option<DateTime<Utc>>,
    /// When it was announced, or else signed or opened.
    pub created_at: DateTime<Utc>,
    /// When `openJob` was mined.
    pub opened_at: Option<DateTime<Utc>>,
    /// The transaction of `openJob`.
    pub opened_tx: Option<Hash>,
    /// End of the challenge window, once the result is on the chain.
    pub finalize_at: Option<DateTime<Utc>>,
    /// The transaction that brought the result, where there is a challenge window.
    pub submitted_tx: Option<Hash>,
    /// The first voucher that pays for it, if its requester has countersigned one.
    pub covered_by: Option<CoverBody>,
    /// From when on no result settles, if the requester gave notice.
    pub cancel_at: Option<DateTime<Utc>>,
    /// The requester's objection to the result.
    pub dispute: Option<DisputeBody>,
    /// What the arbiter gave the node of the price.
    pub resolved_paid: Option<Amount>,
    /// When it was paid or refunded.
    pub closed_at: Option<DateTime<Utc>>,
    /// The transaction that paid or refunded it. Until that is final the job is still `settling`.
    pub closed_tx: Option<Hash>,
    /// How sure the latest that the chain says of it is; `null` while that is nothing. Before it is `confirmed` no node is
    /// given the job.
    pub confirmation: Option<ConfirmationBody>,
}

impl JobBody {
    /// The jobs at `now`, in their order.
    pub async fn all(db: &mut PgConnection, jobs: &[JobView], now: DateTime<Utc>) -> Result<Vec<Self>, sqlx::Error> {
        let done = jobs.iter().filter(|job| job.rail == Some(Rail::Signed) && job.completion.is_some());
        let covers = voucher::covering(db, &done.map(|job| job.job_id).collect::<Vec<_>>()).await?;
        Ok(jobs.iter().map(|job| Self::new(job, covers.get(&job.job_id).copied(), now)).collect())
    }

    fn new(job: &JobView, cover: Option<Cover>, now: DateTime<Utc>) -> Self {
        let settled = job.settled.as_ref();
        let completion = job.completion.as_ref();
        let price = settled.map(|s| s.price).or(completion.map(|c| c.price));
        let result_hash = settled.map(|s| s.result_hash).or(completion.map(|c| c.result_hash));
        Self {
            job_id: Hash(job.job_id),
            status: job.status(now),
            rail: job.rail,
            order: (&job.order).into(),
            spec: (&job.spec).into(),
            priority: job.terms.priority,
            not_before: job.not_before,
            min_reputation: job.terms.min_reputation,
            min_stake: job.terms.min_stake,
            node: job.node.map(WalletAddress),
            node_id: job.node_id.map(Hash),
            price,
            // Another result than the one that was handed in here may be on the chain; its place is not known then.
            output_cid: completion.filter(|c| Some(c.result_hash) == result_hash).map(|c| c.output_cid.clone()),
            result_hash: result_hash.map(Hash),
            attempts: job.attempts,
            last_error: job.last_error.clone(),
            lease_expires_at: job.lease.map(|lease| lease.expires_at),
            started_at: completion.map(|c| c.started_at).or(job.lease.map(|lease| lease.since)),
            completed_at: completion.map(|c| c.completed_at),
            created_at: job.announced_at.unwrap_or(job.listed_at),
            opened_at: job.opened.map(|opened| opened.at),
            opened_tx: job.opened.map(|opened| Hash(opened.tx)),
            finalize_at: settled.and_then(|s| s.finalize_at),
            submitted_tx: settled.and_then(|s| s.tx).map(Hash),
            covered_by: cover.map(|Cover { cumulative, covered_nonce }| CoverBody { cumulative, covered_nonce }),
            cancel_at: job.cancel_at,
            dispute: job.dispute.map(|dispute| DisputeBody { bond: dispute.bond, decide_by: dispute.decide_by }),
            resolved_paid: job.resolved_paid,
            closed_at: job.closed.map(|closed| closed.at),
            closed_tx: job.closed.map(|closed| Hash(closed.tx)),
            confirmation: job.confirmation.map(ConfirmationBody::from),
        }
    }
}

/// What the voucher over a job says.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Cover)]
pub struct CoverBody {
    /// All that its channel is to have paid, in the token's smallest unit.
    pub cumulative: Amount,
    /// For signed orders up to this nonce; a decimal string.
    #[serde(with = "uint64_text")]
    #[schema(value_type = String, example = "7")]
    pub covered_nonce: u64,
}

/// An objection to a result.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Dispute)]
pub struct DisputeBody {
    /// What the requester locked to object, in the token's smallest unit.
    pub bond: Amount,
    /// End of the arbiter's time.
    pub decide_by: DateTime<Utc>,
}

/// The assigner's word that an open order belongs to the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Assignment)]
pub struct AssignmentBody {
    /// Unix seconds up to and including which the result may be settled under it.
    #[schema(example = 1_800_000_000)]
    pub expiry: u64,
    /// EIP-712 signature over `Assignment`.
    pub signature: HexBytes,
}

/// The error for a job that no one opened or announced.
fn not_found(job_id: B256) -> ApiError {
    ApiError::field(Code::JobNotFound, "jobId", format!("There is no job {job_id}."))
}

/// The job, which `requester` must have ordered: of another's nothing is read or locked for them.
async fn ordered(db: &mut PgConnection, job_id: B256, requester: Address) -> ApiResult<JobView> {
    if let Some(job) = job_view::ordered(db, job_id, requester).await? {
        return Ok(job);
    }
    let other = job_view::by_id(db, job_id).await?.ok_or_else(|| not_found(job_id))?;
    let detail = format!("{}, not {requester}, is the job's requester.", other.order.requester);
    Err(ApiError::new(Code::WalletMismatch, detail))
}

/// The job as it was opened or signed.
async fn agreed(db: &mut PgConnection, job_id: B256) -> ApiResult<Agreed> {
    order::agreed(db, &[job_id]).await?.remove(&job_id).ok_or_else(|| not_found(job_id))
}
