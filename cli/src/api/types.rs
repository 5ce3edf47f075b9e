//! What goes over HTTP, as far as the command line looks at it.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256, Bytes};
use chrono::{DateTime, Utc};
use market::confirmation::Confirmation;
use market::db::order::Rail;
use market::job::{Fence, JobStatus};
use market::order::{OrderJson, SpecJson, checked, checksummed};
use market::{Amount, ContentId};
use serde::{Deserialize, Serialize};

/// RFC 9457, as far as we look at it.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Problem {
    /// What kind of problem.
    pub title: Option<String>,
    /// What happened.
    pub detail: Option<String>,
    /// Stable word for programs.
    pub code: Option<String>,
    /// Dotted path of the part of the request that is wrong.
    pub field: Option<String>,
    /// What else it says, such as the figures of `insufficient_deposit`.
    #[serde(flatten)]
    pub more: serde_json::Map<String, serde_json::Value>,
}

impl Problem {
    /// What it says, in a sentence.
    #[must_use]
    pub fn text(&self) -> String {
        let text = self.detail.as_deref().or(self.title.as_deref()).unwrap_or("no reason given");
        match &self.field {
            Some(field) => format!("{field}: {text}"),
            None => text.to_owned(),
        }
    }

    /// An amount among what else it says.
    #[must_use]
    pub fn figure(&self, name: &str) -> Option<Amount> {
        serde_json::from_value(self.more.get(name)?.clone()).ok()
    }

    pub(super) fn code_suffix(&self) -> String {
        self.code.as_ref().map(|code| format!(", {code}")).unwrap_or_default()
    }
}

#[derive(Deserialize)]
pub(super) struct Nonce {
    pub nonce: String,
}

#[derive(Serialize)]
pub(super) struct VerifyRequest {
    pub message: String,
    pub signature: Bytes,
}

#[derive(Deserialize)]
pub(super) struct Session {
    pub token: String,
}

/// `GET chain`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChainInfo {
    /// EIP-155 id.
    pub chain_id: u64,
    /// The `JobEscrow`.
    #[serde(serialize_with = "checksummed")]
    pub escrow: Address,
    /// The `NodeRegistry`.
    #[serde(serialize_with = "checksummed")]
    pub registry: Address,
    /// Whose key binds open orders to nodes.
    #[serde(serialize_with = "checksummed")]
    pub assigner: Address,
    /// Who redeems vouchers for nodes that allow it.
    #[serde(default)]
    pub settler: Option<Address>,
    /// How far the indexer has read.
    pub indexed: Option<Indexed>,
}

/// How far the indexer has read.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Indexed {
    /// The last block.
    pub block_number: u64,
}

/// `PUT blobs`.
#[derive(Debug, Clone, Deserialize)]
pub struct Stored {
    /// What the API calls it.
    pub cid: ContentId,
}

/// Body of `POST jobs/submit`.
#[derive(Debug, Clone, Serialize)]
pub struct SubmitRequest {
    /// As it will be opened on the chain.
    pub order: OrderJson,
    /// What the order's `specHash` is the hash of.
    pub spec: SpecJson,
    /// What is said beside the order.
    #[serde(flatten)]
    pub terms: Terms,
    /// Over the order, if it is paid from the deposit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<Bytes>,
}

/// What a requester says beside an order: it is not signed, and not on the chain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Terms {
    /// Place in the queue; 100 is plain first come, first served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u16>,
    /// No node is given the job earlier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<DateTime<Utc>>,
    /// Nodes of less are not given it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_reputation: Option<u8>,
    /// Nodes with less are not given it, in wei.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_stake: Option<Amount>,
}

/// Answer to `POST jobs/submit`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Submitted {
    /// What the API calls the job.
    pub job_id: B256,
    /// Where it stands.
    pub status: JobStatus,
}

/// Body of `POST jobs/submit/bulk`.
#[derive(Debug, Clone, Serialize)]
pub struct BulkRequest {
    /// At most a thousand.
    pub jobs: Vec<SubmitRequest>,
}

/// Answer to `POST jobs/submit/bulk`.
#[derive(Debug, Clone, Deserialize)]
pub struct BulkSubmitted {
    /// One for each order.
    pub jobs: Vec<BulkItem>,
}

/// What became of one order of many.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BulkItem {
    /// Which, from 0.
    pub index: usize,
    /// Where it stands, if it was taken.
    pub status: Option<JobStatus>,
    /// Why it was not.
    pub problem: Option<Problem>,
}

impl BulkSubmitted {
    /// One for each of `count` orders, in their order; nothing for one that the answer does not name.
    #[must_use]
    pub fn in_order(self, count: usize) -> Vec<Option<BulkItem>> {
        let mut items: Vec<Option<BulkItem>> = vec![None; count];
        for item in self.jobs {
            if let Some(place) = items.get_mut(item.index) {
                *place = Some(item);
            }
        }
        items
    }
}

/// A job.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    /// Digest of the order.
    pub job_id: B256,
    /// Where it stands.
    pub status: JobStatus,
    /// How it is paid; nothing while it is only announced.
    #[serde(default)]
    pub rail: Option<Rail>,
    /// What the requester agreed to.
    pub order: OrderJson,
    /// What the node is to do.
    pub spec: SpecJson,
    /// The requester's, over the order, if it is paid from the deposit.
    #[serde(default)]
    pub signature: Option<Bytes>,
    /// Who holds it or has done it.
    pub node: Option<Address>,
    /// What the node asked.
    pub price: Option<Amount>,
    /// The result.
    #[serde(rename = "outputCID")]
    pub output_cid: Option<ContentId>,
    /// Leases that ended without a result.
    pub attempts: Option<i32>,
    /// Why the last one did.
    pub last_error: Option<String>,
    /// When the result came.
    pub completed_at: Option<DateTime<Utc>>,
    /// When the API or the chain first knew of it.
    pub created_at: Option<DateTime<Utc>>,
    /// `openJob`.
    pub opened_tx: Option<B256>,
    /// End of the challenge window.
    pub finalize_at: Option<DateTime<Utc>>,
    /// `submitResults`, where a challenge window follows.
    pub submitted_tx: Option<B256>,
    /// What paid or refunded it.
    pub closed_tx: Option<B256>,
    /// How sure the latest that the chain says of it is.
    #[serde(default)]
    pub confirmation: Option<Confirmation>,
}

/// `GET jobs`.
#[derive(Debug, Clone, Deserialize)]
pub struct JobPage {
    /// Some of the jobs.
    pub jobs: Vec<Job>,
    /// Where to go on, if there are more.
    pub next: Option<String>,
}

/// Answer to `POST jobs/{jobId}/redrive`.
#[derive(Debug, Clone, Deserialize)]
pub struct Redriven {
    /// Where it stands now.
    pub status: JobStatus,
}

/// `GET jobs/stats`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobStats {
    /// All jobs.
    pub total: i64,
    /// By status.
    pub by_status: BTreeMap<String, i64>,
}

/// `GET leaderboard`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Leaderboard {
    /// The first one has done most.
    pub leaders: Vec<Leader>,
}

/// A node's place on the leaderboard.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leader {
    /// From 1 on.
    pub rank: usize,
    /// Under which it appears off-chain.
    pub node_id: B256,
    /// The operator.
    #[serde(serialize_with = "checksummed", deserialize_with = "checked")]
    pub wallet_address: Address,
    /// Results that it has handed in.
    pub completed_jobs: i64,
    /// When it handed the latest in.
    pub last_completed_at: DateTime<Utc>,
}

/// `GET features`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Features {
    /// Whether each is on.
    pub features: BTreeMap<String, bool>,
}

/// Body of `POST nodes/register`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RegisterRequest {
    /// The operator.
    #[serde(serialize_with = "checksummed")]
    pub wallet_address: Address,
    /// The registered X25519 key.
    pub public_key: Bytes,
    /// What it can do.
    pub capabilities: Capabilities,
}

/// What a node can do.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// Most jobs at once.
    pub max_concurrent_jobs: u32,
    /// Operations it performs.
    pub supported_operations: Vec<String>,
    /// The least that an order must offer.
    pub min_prices: Vec<MinPrice>,
}

/// The least that an order for an operation must offer in a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MinPrice {
    /// Of what.
    pub operation: String,
    /// Zero for the chain's native coin.
    #[serde(serialize_with = "checksummed")]
    pub token: Address,
    /// In the token's smallest unit.
    pub amount: Amount,
}

/// A lease by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseRef {
    /// The job.
    pub job_id: B256,
    /// Which lease of it.
    pub fence: Fence,
}

/// Body of `POST nodes/heartbeat`.
#[derive(Debug, Clone, Serialize)]
pub struct HeartbeatRequest {
    /// Leases to renew.
    pub leases: Vec<LeaseRef>,
}

/// Answer to `POST nodes/heartbeat`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// Leases that hold on.
    pub renewed: Vec<Renewed>,
    /// Leases that do not.
    pub lost: Vec<Lost>,
}

/// A lease that holds on.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Renewed {
    /// The job.
    pub job_id: B256,
    /// Which lease of it.
    pub fence: Fence,
    /// Until when.
    pub lease_expires_at: DateTime<Utc>,
}

/// A lease that ended.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lost {
    /// The job.
    pub job_id: B256,
    /// Which lease of it.
    pub fence: Fence,
    /// Why.
    pub detail: String,
}

/// Body of `POST jobs/claim`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimRequest {
    /// How long to wait for work.
    pub wait_secs: u64,
    /// What the node knows that it holds. Other leases of its own are given to it again.
    pub leases: Vec<LeaseRef>,
}

/// A job to work on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// The job.
    pub job_id: B256,
    /// Which lease of it.
    pub fence: Fence,
    /// Until when, unless renewed.
    pub lease_expires_at: DateTime<Utc>,
    /// What the requester agreed to.
    pub order: OrderJson,
    /// What is to be done.
    pub spec: SpecJson,
    /// The requester's, over the order, if it is paid from the deposit.
    #[serde(default)]
    pub signature: Option<Bytes>,
    /// The assigner's word, for an open order.
    pub assignment: Option<Assigned>,
}

impl Lease {
    /// Its name.
    #[must_use]
    pub fn reference(&self) -> LeaseRef {
        LeaseRef { job_id: self.job_id, fence: self.fence }
    }
}

/// The assigner's word that a job is the node's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// Unix seconds.
    pub expiry: u64,
    /// Over the `Assignment`.
    pub signature: Bytes,
}

/// Body of `POST jobs/{jobId}/complete`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CompleteRequest {
    /// Under which lease.
    pub fence: Fence,
    /// The result.
    #[serde(rename = "outputCID")]
    pub output_cid: ContentId,
    /// What the node asks.
    pub price: Amount,
    /// SHA2-256 of the result.
    pub result_hash: B256,
    /// Over the `Receipt`.
    pub receipt_signature: Bytes,
}

/// Answer to `POST jobs/{jobId}/complete`.
#[derive(Debug, Clone, Deserialize)]
pub struct Completed {
    /// The assigner's word until the order's deadline, for an open order.
    pub assignment: Option<Assigned>,
}

/// Body of `POST jobs/{jobId}/fail`.
#[derive(Debug, Clone, Serialize)]
pub struct FailRequest {
    /// Under which lease.
    pub fence: Fence,
    /// What happened, for the requester.
    pub reason: String,
    /// Whether another attempt may succeed.
    pub retryable: bool,
}

/// A node as the API knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    /// Under which it appears off-chain.
    pub node_id: B256,
    /// The operator.
    #[serde(serialize_with = "checksummed", deserialize_with = "checked")]
    pub wallet_address: Address,
    /// `online`, `offline` or `unstaked`.
    pub status: String,
    /// Jobs it holds.
    pub active_jobs: Option<i64>,
    /// When it last spoke.
    pub last_heartbeat: Option<DateTime<Utc>>,
}
