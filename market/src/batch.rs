//! Which payments go into which transactions. Pure: no I/O, and the time is an argument.

mod call;
mod policy;

use std::collections::{HashMap, HashSet};

use alloy::primitives::{Address, B256};
use chrono::{DateTime, Utc};

pub use call::{Call, Channel, Kind, Lane, Redemption, Subject, is_permanent};
pub use policy::{Limits, Rate};

/// Most gas that one transaction may have on any chain since Osaka (EIP-7825).
pub const TRANSACTION_GAS_CAP: u64 = 1 << 24;
/// Most bytes of call data: nodes do not relay transactions of more than 128 KiB.
pub const MAX_CALLDATA_BYTES: usize = 120_000;

/// Gas of a transaction before its first item.
const BASE_GAS: u64 = 60_000;

/// A payment that could be sent now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// What it is about.
    pub subject: Subject,
    /// Since when it could have been sent.
    pub ready_at: DateTime<Utc>,
    /// When, besides a deadline, its chance may end: the requester may take back the order, the funds or the key.
    pub ends_at: Option<DateTime<Utc>>,
    /// How many transactions it was in that reverted as a whole. Such items go into ever smaller batches, so that one
    /// that makes batches revert ends up alone and stops harming the others.
    pub reverts: u32,
    /// What to send.
    pub call: Call,
}

impl Candidate {
    /// The last moment at which a result counts, in unix seconds. Finalizing and redeeming have no deadline.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        match &self.call {
            Call::Submit(result) if result.order.node.is_zero() => {
                Some(result.order.deadline.min(result.assignmentExpiry))
            }
            Call::Submit(result) => Some(result.order.deadline),
            Call::Finalize(..) | Call::Redeem(_) => None,
        }
    }

    fn seconds_left(&self, now: DateTime<Utc>) -> Option<i64> {
        self.deadline().map(|deadline| i64::try_from(deadline).unwrap_or(i64::MAX).saturating_sub(now.timestamp()))
    }
}

/// Why a candidate is in no batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftOut {
    /// It waits for others to join it, for cheaper gas, or for a payment of the same channel on the other rail.
    Waiting,
    /// Its deadline is too near for it to be mined in time.
    DeadlineTooNear,
    /// Its deadline has passed.
    DeadlinePassed,
    /// It does not fit into a transaction even alone.
    TooLarge,
    /// Another candidate is for the same.
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
    /// A call that does nothing, for a nonce that nothing else takes.
    #[must_use]
    pub fn empty() -> Self {
        Self { kind: Kind::Finalize, items: Vec::new() }
    }

    /// The call's data.
    #[must_use]
    pub fn calldata(&self) -> Vec<u8> {
        call::encode(self.kind, self.items.iter().map(|item| &item.call))
    }

    /// Gas to allow for all of it.
    #[must_use]
    pub fn gas(&self) -> u64 {
        self.items.iter().fold(BASE_GAS, |gas, item| gas.saturating_add(item.call.gas()))
    }

    /// What the items are about, in their order.
    #[must_use]
    pub fn subjects(&self) -> Vec<Subject> {
        self.items.iter().map(|item| item.subject).collect()
    }

    /// The jobs, in the order of the items.
    #[must_use]
    pub fn job_ids(&self) -> Vec<B256> {
        let job = |item: &Candidate| match item.subject {
            Subject::Job(id) => Some(id),
            Subject::Channel(_) => None,
        };
        self.items.iter().filter_map(job).collect()
    }

    /// The vouchers, in the order of the items.
    #[must_use]
    pub fn redemptions(&self) -> Vec<&Redemption> {
        self.items.iter().filter_map(|item| item.call.as_redemption()).collect()
    }

    /// Node and token of the vouchers.
    #[must_use]
    pub fn payee(&self) -> Option<(Address, Address)> {
        self.redemptions().first().map(|redemption| (redemption.channel.node, redemption.channel.token))
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

/// What to send now, and what not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The transactions, in the order in which to send them.
    pub batches: Vec<Batch>,
    /// Everything else, with the reason.
    pub left_out: Vec<(Subject, LeftOut)>,
}

/// Plans what of `candidates` goes into which transaction at `now`. The same candidates in any order give the same plan.
#[must_use]
pub fn plan(candidates: Vec<Candidate>, limits: &Limits, now: DateTime<Utc>) -> Plan {
    let mut plan = Plan::default();
    let mut seen = HashSet::new();
    let mut ready = Vec::new();
    for candidate in candidates {
        match exclusion(&candidate, limits, now) {
            Some(reason) => plan.left_out.push((candidate.subject, reason)),
            None if !seen.insert((candidate.call.kind(), candidate.subject)) => {
                plan.left_out.push((candidate.subject, LeftOut::Duplicate));
            }
            None => ready.push(candidate),
        }
    }
    let ready = one_rail_a_channel(ready, &mut plan, limits, now);
    // What presses goes first, then what is oldest.
    let mut due = Vec::new();
    for (batch, full) in fill(ready, limits) {
        if limits.is_due(&batch, full, now) {
            let calm = !batch.items.iter().any(|item| limits.presses(item, now));
            due.push((calm, batch.items.iter().map(|item| item.ready_at).min(), batch));
        } else {
            plan.left_out.extend(batch.items.iter().map(|item| (item.subject, LeftOut::Waiting)));
        }
    }
    due.sort_by_key(|(calm, since, _)| (*calm, *since));
    plan.batches = due.into_iter().map(|(_, _, batch)| batch).collect();
    plan
}

/// A channel's voucher and its orders are not sent at once: the second to be mined would be for nothing, or would have to
/// show the first. The voucher goes first unless an order's time is running out and the voucher's is not.
fn one_rail_a_channel(ready: Vec<Candidate>, plan: &mut Plan, limits: &Limits, now: DateTime<Utc>) -> Vec<Candidate> {
    let mut vouchers: HashMap<Channel, bool> =
        ready.iter().filter_map(|item| Some((item.call.as_redemption()?.channel, limits.presses(item, now)))).collect();
    let mut orders_first = HashSet::new();
    for item in ready.iter().filter(|item| item.call.kind() == Kind::Submit && limits.presses(item, now)) {
        if let Some(channel) = item.call.channel().filter(|channel| vouchers.get(channel) == Some(&false)) {
            orders_first.insert(channel);
        }
    }
    vouchers.retain(|channel, _| !orders_first.contains(channel));
    let (now_ready, later): (Vec<_>, Vec<_>) = ready.into_iter().partition(|item| match item.call.channel() {
        Some(channel) if item.call.kind() == Kind::Redeem => vouchers.contains_key(&channel),
        Some(channel) => !vouchers.contains_key(&channel),
        None => true,
    });
    plan.left_out.extend(later.iter().map(|item| (item.subject, LeftOut::Waiting)));
    now_ready
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

/// Cuts items into batches that keep the limits. Items of one lane that reverted as often share a batch size; within it the
/// oldest come first, and what they are about decides between equals. Says of each whether a further item did not fit.
fn fill(items: Vec<Candidate>, limits: &Limits) -> Vec<(Batch, bool)> {
    let mut items: Vec<_> = items.into_iter().map(|item| ((item.call.lane(), item.reverts), item)).collect();
    items.sort_by_key(|(group, item)| (*group, item.ready_at, item.subject));
    let mut batches: Vec<(Batch, bool)> = Vec::new();
    let (mut gas, mut bytes, mut last) = (0, 0, None);
    for (group, item) in items {
        let (item_gas, item_bytes) = (item.call.gas(), item.call.calldata_bytes());
        let fits = |batch: &Batch| {
            last == Some(group)
                && batch.items.len() < most_items(limits, item.reverts)
                && item_gas.saturating_add(gas) <= limits.max_gas
                && item_bytes.saturating_add(bytes) <= MAX_CALLDATA_BYTES
        };
        match batches.last_mut().filter(|(batch, _)| fits(batch)) {
            Some((batch, _)) => {
                gas += item_gas;
                bytes += item_bytes;
                batch.items.push(item);
            }
            None => {
                if let Some((_, full)) = batches.last_mut().filter(|_| last == Some(group)) {
                    *full = true;
                }
                (gas, bytes, last) = (BASE_GAS.saturating_add(item_gas), item_bytes, Some(group));
                batches.push((Batch { kind: item.call.kind(), items: vec![item] }, false));
            }
        }
    }
    batches
}

fn most_items(limits: &Limits, reverts: u32) -> usize {
    limits.max_items.checked_shr(reverts).unwrap_or(0).max(1)
}

#[cfg(test)]
mod tests;
