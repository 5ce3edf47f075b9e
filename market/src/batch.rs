//! Which payments go into which transactions. Pure: no I/O, and the time is an argument.

use std::collections::HashSet;

use alloy::primitives::B256;
use alloy::sol_types::{SolCall, SolValue};
use chrono::{DateTime, TimeDelta, Utc};

use crate::abi::{self, IJobEscrow, Order, SkipReason};

/// Most gas that one transaction may have on any chain since Osaka (EIP-7825).
pub const TRANSACTION_GAS_CAP: u64 = 1 << 24;
/// Most bytes of call data: nodes do not relay transactions of more than 128 KiB.
pub const MAX_CALLDATA_BYTES: usize = 120_000;

/// Gas of a transaction before its first item.
const BASE_GAS: u64 = 60_000;
/// Gas of one result whose signers are keys: more than any was seen to take, storage that is written first included.
const SUBMIT_GAS: u64 = 150_000;
/// As [`SUBMIT_GAS`], for a finalization.
const FINALIZE_GAS: u64 = 80_000;
/// A receipt's and an assignment's signature by keys; what is longer belongs to contract wallets and is counted apart.
const KEY_SIGNATURES_BYTES: usize = 2 * 65;
/// Gas of a byte of call data, at the most that the protocol asks (EIP-7623).
const BYTE_GAS: u64 = 40;

/// What a transaction does to its jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `submitResults`
    Submit,
    /// `finalize`
    Finalize,
}

impl Kind {
    /// Its name in SQL, logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Finalize => "finalize",
        }
    }

    /// The kind with that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Submit, Self::Finalize].into_iter().find(|kind| kind.name() == name)
    }
}

/// One item of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// A result to submit.
    Submit(Box<abi::Result>),
    /// An order whose challenge window has ended.
    Finalize(Box<Order>),
}

impl Call {
    /// Which call it is an item of.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Submit(_) => Kind::Submit,
            Self::Finalize(_) => Kind::Finalize,
        }
    }

    /// The order it settles.
    #[must_use]
    pub fn order(&self) -> &Order {
        match self {
            Self::Submit(result) => &result.order,
            Self::Finalize(order) => order,
        }
    }

    /// Gas to allow for it.
    #[must_use]
    pub fn gas(&self) -> u64 {
        match self {
            Self::Submit(result) => {
                let signatures = result.receiptSignature.len() + result.assignmentSignature.len();
                let beyond = u64::try_from(signatures.saturating_sub(KEY_SIGNATURES_BYTES)).unwrap_or(u64::MAX);
                SUBMIT_GAS.saturating_add(beyond.saturating_mul(BYTE_GAS))
            }
            Self::Finalize(_) => FINALIZE_GAS,
        }
    }

    fn calldata_bytes(&self) -> usize {
        match self {
            Self::Submit(result) => result.abi_encoded_size(),
            Self::Finalize(order) => order.abi_encoded_size(),
        }
    }
}

/// A payment that could be sent now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Which job.
    pub job_id: B256,
    /// Since when it could have been sent.
    pub ready_at: DateTime<Utc>,
    /// How many transactions it was in that reverted as a whole. Such items go into ever smaller batches, so that one
    /// that makes batches revert ends up alone and stops harming the others.
    pub reverts: u32,
    /// What to send.
    pub call: Call,
}

impl Candidate {
    /// The last moment at which a result counts, in unix seconds. Finalizing has no deadline.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        match &self.call {
            Call::Submit(result) if result.order.node.is_zero() => {
                Some(result.order.deadline.min(result.assignmentExpiry))
            }
            Call::Submit(result) => Some(result.order.deadline),
            Call::Finalize(_) => None,
        }
    }

    fn seconds_left(&self, now: DateTime<Utc>) -> Option<i64> {
        self.deadline().map(|deadline| i64::try_from(deadline).unwrap_or(i64::MAX).saturating_sub(now.timestamp()))
    }
}

/// Whether an item that was skipped for `reason` would be skipped at any later time too.
#[must_use]
pub fn is_permanent(reason: SkipReason) -> bool {
    match reason {
        SkipReason::Expired
        | SkipReason::WrongNode
        | SkipReason::AssignmentExpired
        | SkipReason::BadAssignmentSignature
        | SkipReason::BadReceiptSignature
        | SkipReason::PriceAboveMax
        | SkipReason::Cancelled
        | SkipReason::Covered
        | SkipReason::WindowRequired
        | SkipReason::WindowTooLong
        | SkipReason::BadOrderSignature
        | SkipReason::BadVoucherSignature => true,
        // The job's state and the node's stake change; the rest are of calls that time alone puts right.
        SkipReason::NotOpen
        | SkipReason::InsufficientFunds
        | SkipReason::NothingDue
        | SkipReason::SessionCapExceeded
        | SkipReason::NotStaked
        | SkipReason::NotExpired
        | SkipReason::NotSubmitted
        | SkipReason::WindowOpen
        | SkipReason::__Invalid => false,
    }
}

/// What bounds a batch, and when one is worth sending.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most items in one transaction; at least one is always allowed.
    pub max_items: usize,
    /// Most gas of one transaction: a share of the block's limit, and below [`TRANSACTION_GAS_CAP`].
    pub max_gas: u64,
    /// A batch of as many items is sent without waiting for more.
    pub min_items: usize,
    /// Nothing waits longer than this for others to join it.
    pub max_wait: TimeDelta,
    /// What has less time than this to its deadline does not wait at all.
    pub urgent_within: TimeDelta,
    /// What has less time than this to its deadline would come too late: it is not sent.
    pub deadline_margin: TimeDelta,
}

/// Why a candidate is in no batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftOut {
    /// It waits for others to join it.
    Waiting,
    /// Its deadline is too near for it to be mined in time.
    DeadlineTooNear,
    /// Its deadline has passed.
    DeadlinePassed,
    /// It does not fit into a transaction even alone.
    TooLarge,
    /// Another candidate is for the same job.
    Duplicate,
}

/// One transaction to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Which call.
    pub kind: Kind,
    /// Its items, in the order of the call: oldest first.
    pub items: Vec<Candidate>,
}

impl Batch {
    /// The call's data.
    #[must_use]
    pub fn calldata(&self) -> Vec<u8> {
        match self.kind {
            Kind::Submit => IJobEscrow::submitResultsCall {
                results: self.items.iter().filter_map(|item| item.call.as_result()).cloned().collect(),
            }
            .abi_encode(),
            Kind::Finalize => {
                IJobEscrow::finalizeCall { orders: self.items.iter().map(|item| item.call.order().clone()).collect() }
                    .abi_encode()
            }
        }
    }

    /// Gas to allow for all of it.
    #[must_use]
    pub fn gas(&self) -> u64 {
        self.items.iter().fold(BASE_GAS, |gas, item| gas.saturating_add(item.call.gas()))
    }

    /// The jobs, in the order of the items.
    #[must_use]
    pub fn job_ids(&self) -> Vec<B256> {
        self.items.iter().map(|item| item.job_id).collect()
    }

    /// The batch as two halves; nothing if it has one item only.
    #[must_use]
    pub fn split(mut self) -> Option<(Self, Self)> {
        if self.items.len() < 2 {
            return None;
        }
        let second = self.items.split_off(self.items.len() / 2);
        Some((Self { kind: self.kind, items: self.items }, Self { kind: self.kind, items: second }))
    }
}

impl Call {
    fn as_result(&self) -> Option<&abi::Result> {
        match self {
            Self::Submit(result) => Some(result),
            Self::Finalize(_) => None,
        }
    }
}

/// What to send now, and what not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The transactions, in the order in which to send them.
    pub batches: Vec<Batch>,
    /// Everything else, with the reason.
    pub left_out: Vec<(B256, LeftOut)>,
}

/// Plans what of `candidates` goes into which transaction at `now`. The same candidates in any order give the same plan.
#[must_use]
pub fn plan(candidates: Vec<Candidate>, limits: &Limits, now: DateTime<Utc>) -> Plan {
    let mut plan = Plan::default();
    let mut seen = HashSet::new();
    let mut ready = Vec::new();
    for candidate in candidates {
        match exclusion(&candidate, limits, now) {
            Some(reason) => plan.left_out.push((candidate.job_id, reason)),
            None if !seen.insert((candidate.call.kind(), candidate.job_id)) => {
                plan.left_out.push((candidate.job_id, LeftOut::Duplicate));
            }
            None => ready.push(candidate),
        }
    }
    // Items of one group share a batch size; within it the oldest come first, and the id decides between equals.
    ready.sort_by_key(|item| (item.call.kind(), item.reverts, item.ready_at, item.job_id));
    for batch in fill(ready, limits) {
        if is_due(&batch, limits, now) {
            plan.batches.push(batch);
        } else {
            plan.left_out.extend(batch.items.iter().map(|item| (item.job_id, LeftOut::Waiting)));
        }
    }
    plan
}

fn exclusion(candidate: &Candidate, limits: &Limits, now: DateTime<Utc>) -> Option<LeftOut> {
    match candidate.seconds_left(now) {
        Some(left) if left < 0 => return Some(LeftOut::DeadlinePassed),
        Some(left) if left < limits.deadline_margin.num_seconds() => return Some(LeftOut::DeadlineTooNear),
        _ => {}
    }
    let too_large = candidate.call.gas().saturating_add(BASE_GAS) > limits.max_gas
        || candidate.call.calldata_bytes() > MAX_CALLDATA_BYTES;
    too_large.then_some(LeftOut::TooLarge)
}

/// Cuts sorted items into batches that keep the limits.
fn fill(items: Vec<Candidate>, limits: &Limits) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    let (mut gas, mut bytes, mut reverts) = (0, 0, 0);
    for item in items {
        let (item_gas, item_bytes) = (item.call.gas(), item.call.calldata_bytes());
        let fits = |batch: &Batch| {
            batch.kind == item.call.kind()
                && reverts == item.reverts
                && batch.items.len() < most_items(limits, reverts)
                && item_gas.saturating_add(gas) <= limits.max_gas
                && item_bytes.saturating_add(bytes) <= MAX_CALLDATA_BYTES
        };
        match batches.last_mut().filter(|batch| fits(batch)) {
            Some(batch) => {
                gas += item_gas;
                bytes += item_bytes;
                batch.items.push(item);
            }
            None => {
                (gas, bytes, reverts) = (BASE_GAS.saturating_add(item_gas), item_bytes, item.reverts);
                batches.push(Batch { kind: item.call.kind(), items: vec![item] });
            }
        }
    }
    batches
}

fn most_items(limits: &Limits, reverts: u32) -> usize {
    limits.max_items.checked_shr(reverts).unwrap_or(0).max(1)
}

fn is_due(batch: &Batch, limits: &Limits, now: DateTime<Utc>) -> bool {
    batch.items.len() >= limits.min_items.min(limits.max_items)
        || batch.items.iter().any(|item| {
            now - item.ready_at >= limits.max_wait
                || item.reverts > 0
                || item.seconds_left(now).is_some_and(|left| left < limits.urgent_within.num_seconds())
        })
}

#[cfg(test)]
mod tests;
