//! What a [`JobView`] holds.

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};

use crate::Amount;
use crate::abi::{JobSpec, Order};
use crate::confirmation::Confirmation;
use crate::db::order::{Rail, Terms};
use crate::job::{Fence, JobStatus};
use crate::redis::keys::queue_score;

/// One job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobView {
    /// The order's EIP-712 digest.
    pub job_id: B256,
    /// What the rows say; [`JobView::status`] adds the clock's word.
    pub stored_status: JobStatus,
    /// EIP-155 id of the chain that is indexed; nothing before the indexer's first block.
    pub chain_id: Option<u64>,
    /// How it is paid; nothing while it is only announced.
    pub rail: Option<Rail>,
    /// As opened or signed, or as announced where it is neither.
    pub order: Order,
    /// As opened, or as announced.
    pub spec: JobSpec,
    /// The order's deadline as a time.
    pub deadline: DateTime<Utc>,
    /// False if the spec's strings are not text as it was signed; such a job is never queued.
    pub spec_valid: bool,
    /// What its requester said beside the order.
    pub terms: Terms,
    /// Its place in lists, newest first: when it was opened, or announced where it is not on the chain.
    pub listed_at: DateTime<Utc>,
    /// When it was announced to the API, if it was.
    pub announced_at: Option<DateTime<Utc>>,
    /// The `openJob`.
    pub opened: Option<ChainPoint>,
    /// Who holds it or did it.
    pub node: Option<Address>,
    /// That node's id, if it is registered.
    pub node_id: Option<B256>,
    /// Id of the node that the order names, if it is registered.
    pub order_node_id: Option<B256>,
    /// Fence of the latest lease; zero before the first.
    pub fence: Fence,
    /// Leases that ended without completion.
    pub attempts: i32,
    /// End of the pause after a failed attempt, or of its delay.
    pub not_before: Option<DateTime<Utc>>,
    /// What the latest failed attempt said.
    pub last_error: Option<String>,
    /// The lease, while a node has one.
    pub lease: Option<Lease>,
    /// The result that was handed in.
    pub completion: Option<Completion>,
    /// The payment that the completion made due.
    pub due: Option<Due>,
    /// The result as the chain has it.
    pub settled: Option<Settled>,
    /// The settler's transaction that is under way.
    pub batch: Option<PendingBatch>,
    /// Why the settler tries no longer.
    pub hold_reason: Option<String>,
    /// From when on no result settles, if the requester gave notice.
    pub cancel_at: Option<DateTime<Utc>>,
    /// The requester's objection to the result.
    pub dispute: Option<Dispute>,
    /// What the arbiter gave the node of the price, in the token's smallest unit.
    pub resolved_paid: Option<Amount>,
    /// The payment, refund or decision; it counts once it is final.
    pub closed: Option<ChainPoint>,
    /// Whether it is deep enough on the chain for its price, so that a node may be given it. A signed order always is.
    pub is_confirmed: bool,
    /// How sure the latest that the chain says of it is; nothing while that is nothing.
    pub confirmation: Option<Confirmation>,
}

/// An objection to a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dispute {
    /// What the requester locked, in the token's smallest unit.
    pub bond: Amount,
    /// End of the arbiter's time.
    pub decide_by: DateTime<Utc>,
}

/// Where on the chain something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainPoint {
    /// The transaction.
    pub tx: B256,
    /// Its block's number.
    pub block: u64,
    /// Its block's time.
    pub at: DateTime<Utc>,
}

/// A node's hold on a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Who.
    pub node: Address,
    /// Since when.
    pub since: DateTime<Utc>,
    /// Until when, unless renewed.
    pub expires_at: DateTime<Utc>,
}

/// A result, as its node handed it in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// Who did it.
    pub node: Address,
    /// Under which lease.
    pub fence: Fence,
    /// Where the output is.
    pub output_cid: String,
    /// SHA2-256 of the output.
    pub result_hash: B256,
    /// What the receipt asks, in the token's smallest unit.
    pub price: Amount,
    /// When the lease began.
    pub started_at: DateTime<Utc>,
    /// When the result came.
    pub completed_at: DateTime<Utc>,
}

/// A payment that a completed job made due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// In the token's smallest unit.
    pub amount: Amount,
    /// Since when.
    pub at: DateTime<Utc>,
}

/// A result on the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// Who is paid.
    pub node: Address,
    /// How much, in the token's smallest unit.
    pub price: Amount,
    /// SHA2-256 of the output.
    pub result_hash: B256,
    /// The transaction that brought the result.
    pub tx: Option<B256>,
    /// End of the challenge window, if the order has one.
    pub finalize_at: Option<DateTime<Utc>>,
}

/// A settler's transaction under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingBatch {
    /// Its number.
    pub id: i64,
    /// The latest signed form of it; nothing before the first is stored.
    pub tx: Option<B256>,
}

impl JobView {
    /// The status at `now`.
    #[must_use]
    pub fn status(&self, now: DateTime<Utc>) -> JobStatus {
        self.stored_status.at(self.deadline, now)
    }

    /// The node that was credited and the transaction, once paid.
    #[must_use]
    pub fn paid(&self) -> Option<(Settled, ChainPoint)> {
        if self.stored_status == JobStatus::Paid { self.settled.zip(self.closed) } else { None }
    }

    /// The refund's transaction, once refunded.
    #[must_use]
    pub fn refunded(&self) -> Option<ChainPoint> {
        if self.stored_status == JobStatus::Refunded { self.closed } else { None }
    }

    /// Its place in the queue, as a score: see [`queue_score`]. A job that pauses after a failed attempt stands where the
    /// pause ends, behind what can be had before; it is not kept out, so that nothing has to be written when the pause is
    /// over.
    #[must_use]
    pub fn queue_score(&self) -> i64 {
        let enqueued = self.opened.map_or(self.listed_at, |opened| opened.at);
        let score = queue_score(enqueued.timestamp_millis(), self.terms.priority);
        self.not_before.map_or(score, |pause_end| score.max(pause_end.timestamp_millis()))
    }

    /// Whether a node may take it at `now`: paid for deep enough on the chain, its spec valid, waiting, its deadline ahead. A pause after a failed
    /// attempt does not count: it ends without anything being written.
    #[must_use]
    pub fn is_queued(&self, now: DateTime<Utc>) -> bool {
        self.spec_valid && self.is_confirmed && self.status(now) == JobStatus::Pending
    }
}
