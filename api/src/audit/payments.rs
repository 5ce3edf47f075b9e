//! What became of the payments that were due: each is to be made once, on one rail. Pure.
//!
//! An order settled alone is told of by its id. A voucher pays for a channel: what its orders were worth that a redeemed
//! voucher covers and that were not settled alone is what vouchers may have paid.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use alloy::primitives::{Address, B256, U256};
use chrono::{DateTime, Utc};
use market::Amount;
use market::db::audit::{Due, DueOrder};
use market::db::order::Rail;
use market::fold::{EscrowChannel, EscrowJob, EscrowState, Rows};
use serde::Serialize;

/// Requester, node and token.
type Channel = (Address, Address, Address);

/// What became of all payments that were due.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Payments {
    /// How many were ever due.
    pub due: usize,
    /// Of these, how many the chain has made.
    pub paid: usize,
    /// … and how many can still be made.
    pub pending: usize,
    /// Payments on the chain, of orders settled alone, that were not due here: the results did not come through the API.
    pub not_asked: usize,
    /// Payments that can no longer be made.
    pub lost: Vec<Lost>,
    /// Channels that paid for orders twice.
    pub doubled: Vec<Doubled>,
    /// Payments that were made, but not as they were due.
    pub unexpected: Vec<Unexpected>,
    /// Channels whose vouchers found too little money. The rest stays claimable.
    pub short: Vec<Short>,
    /// Channels whose vouchers paid more than was due here, with nothing paid twice: a tip, or work unknown to the API.
    pub overpaid: Vec<Overpaid>,
}

/// A payment that was due and can no longer be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lost {
    /// The job.
    pub job_id: B256,
    /// Who was to be paid.
    pub node: Address,
    /// In which token.
    pub token: Address,
    /// How much.
    pub amount: Amount,
    /// Why it cannot be.
    pub reason: LostReason,
    /// Why the settler left it alone, if it did.
    pub hold: Option<String>,
}

/// Why a payment can no longer be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LostReason {
    /// The order's deadline passed without a result on the chain, or a voucher.
    Expired,
    /// The requester's notice of cancellation ran out before.
    Cancelled,
    /// The lock went back to the requester.
    Refunded,
    /// The order is not known any more: the chain took its opening back.
    NoOrder,
}

/// A channel in which orders were settled alone and by a voucher too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Doubled {
    /// Who paid.
    pub requester: Address,
    /// Who was paid.
    pub node: Address,
    /// In which token.
    pub token: Address,
    /// How much too much.
    pub excess: Amount,
    /// The orders that were settled alone and that a redeemed voucher covers.
    pub jobs: Vec<B256>,
}

/// A payment other than was due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unexpected {
    /// The job.
    pub job_id: B256,
    /// Who was to be paid, and how much.
    pub due: (Address, Amount),
    /// Who was paid, and how much.
    pub paid: (Address, Amount),
}

/// A channel that has not paid all that its redeemed vouchers cover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Short {
    /// Who owes.
    pub requester: Address,
    /// Who is owed.
    pub node: Address,
    /// In which token.
    pub token: Address,
    /// How much.
    pub missing: Amount,
}

/// A channel that has paid more than was due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overpaid {
    /// Who paid.
    pub requester: Address,
    /// Who was paid.
    pub node: Address,
    /// In which token.
    pub token: Address,
    /// How much more than was due.
    pub excess: Amount,
}

impl Payments {
    /// Whether every payment is made or can be, none twice, and each as it was due.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.doubled.is_empty() && self.unexpected.is_empty()
    }
}

/// What was paid for an order by itself: to whom, and how much of its price.
fn settled_alone(job: &EscrowJob) -> Option<(Address, Amount)> {
    let result = job.result?;
    match job.state {
        EscrowState::Paid => Some((result.node, result.price)),
        EscrowState::Resolved => Some((result.node, job.resolution?.paid)),
        _ => None,
    }
}

/// Holds `dues` against the chain's `rows` as they stand at `now`, the block's time.
pub(super) fn examine(dues: &[Due], rows: &Rows, now: DateTime<Utc>) -> Payments {
    let mut payments = Payments { due: dues.len(), ..Payments::default() };
    let mut channels = Channels::of(rows);
    let mut known = 0;
    for due in dues {
        let job = rows.jobs.get(&due.job_id);
        if let Some((node, amount)) = job.and_then(settled_alone) {
            known += 1;
            channels.settled_alone(due, rows);
            // An arbiter may have left less of the price.
            let is_resolved = job.is_some_and(|job| job.state == EscrowState::Resolved);
            if node == due.node && (amount == due.amount || is_resolved) {
                payments.paid += 1;
            } else {
                payments.unexpected.push(Unexpected {
                    job_id: due.job_id,
                    due: (due.node, due.amount),
                    paid: (node, amount),
                });
            }
        } else if let Some(channel) = covering(due, rows) {
            channels.covered.entry(channel).or_default().push(due.amount);
        } else if let Some(reason) = lost(due, job, now) {
            let Due { job_id, node, token, amount, .. } = *due;
            payments.lost.push(Lost { job_id, node, token, amount, reason, hold: due.hold.clone() });
        } else {
            payments.pending += 1;
        }
    }
    payments.not_asked = rows.jobs.values().filter(|job| settled_alone(job).is_some()).count() - known;
    channels.examine(rows, &mut payments);
    payments
}

/// The channel whose redeemed voucher covers the order.
fn covering(due: &Due, rows: &Rows) -> Option<Channel> {
    let order = due.order.filter(|order| order.rail == Rail::Signed)?;
    let channel = (order.requester, due.node, due.token);
    rows.channels.get(&channel).filter(|row| row.covered_nonce >= order.nonce).map(|_| channel)
}

/// Why an order that was neither settled alone nor covered cannot be paid any more, if it cannot.
fn lost(due: &Due, job: Option<&EscrowJob>, now: DateTime<Utc>) -> Option<LostReason> {
    let Some(DueOrder { rail, deadline, has_voucher, .. }) = due.order else { return Some(LostReason::NoOrder) };
    match job.map(|job| job.state) {
        // The lock went into the reservation of a channel that covers the order, which was met before.
        Some(EscrowState::Refunded) => return Some(LostReason::Refunded),
        Some(EscrowState::Submitted | EscrowState::Disputed) => return None,
        _ => {}
    }
    // A voucher has no deadline.
    if rail == Rail::Signed && has_voucher {
        return None;
    }
    if job.and_then(|job| job.cancel_at).is_some_and(|cancel_at| cancel_at <= now) {
        return Some(LostReason::Cancelled);
    }
    (deadline < now).then_some(LostReason::Expired)
}

/// What is known of each channel's orders.
#[derive(Default)]
struct Channels {
    /// What all its signed orders were paid that were settled alone.
    alone: BTreeMap<Channel, U256>,
    /// Those settled alone that a redeemed voucher covers as well.
    both: BTreeMap<Channel, Vec<B256>>,
    /// What is due for the others that a redeemed voucher covers, in the order of `dues`.
    covered: BTreeMap<Channel, Vec<Amount>>,
}

impl Channels {
    fn of(rows: &Rows) -> Self {
        let mut alone: BTreeMap<Channel, U256> = BTreeMap::new();
        for job in rows.jobs.values().filter(|job| job.opened.is_none()) {
            if let (Some((node, amount)), Some(result)) = (settled_alone(job), job.result) {
                *alone.entry((job.requester, node, result.token)).or_default() += amount.0;
            }
        }
        Self { alone, ..Self::default() }
    }

    fn settled_alone(&mut self, due: &Due, rows: &Rows) {
        if let Some(channel) = covering(due, rows) {
            self.both.entry(channel).or_default().push(due.job_id);
        }
    }

    fn examine(mut self, rows: &Rows, payments: &mut Payments) {
        for (channel, EscrowChannel { claimed, .. }) in &rows.channels {
            let (requester, node, token) = *channel;
            let alone = self.alone.get(channel).copied().unwrap_or_default();
            // Where a channel stopped counting, what it paid is not known.
            let by_voucher = claimed.0.saturating_sub(alone);
            let covered = self.covered.remove(channel).unwrap_or_default();
            let worth: U256 = covered.iter().map(|amount| amount.0).sum();
            let excess = Amount(by_voucher.saturating_sub(worth));
            if by_voucher < worth {
                let missing = Amount(worth - by_voucher);
                payments.short.push(Short { requester, node, token, missing });
            } else if excess != Amount::ZERO {
                match self.both.remove(channel) {
                    Some(jobs) => payments.doubled.push(Doubled { requester, node, token, excess, jobs }),
                    None => payments.overpaid.push(Overpaid { requester, node, token, excess }),
                }
            }
            let mut left = by_voucher;
            for amount in covered {
                if amount.0 <= left {
                    left -= amount.0;
                    payments.paid += 1;
                } else {
                    payments.pending += 1;
                }
            }
        }
    }
}

impl fmt::Display for Payments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { due, paid, pending, not_asked, lost, doubled, unexpected, short, overpaid } = self;
        writeln!(
            f,
            "{due} payments due: {paid} paid, {pending} pending, {} lost, {} doubled, {} other than due; \
             {not_asked} paid that were not due here",
            lost.len(),
            doubled.len(),
            unexpected.len()
        )?;
        for Lost { job_id, node, token, amount, reason, hold } in lost {
            let hold = hold.as_deref().unwrap_or("no");
            writeln!(f, "Lost {job_id}: {amount} in {token} to {node}, {reason:?} (hold: {hold})")?;
        }
        for Doubled { requester, node, token, excess, jobs } in doubled {
            writeln!(f, "Doubled {requester} to {node} in {token}: {excess} too much; settled alone too: {jobs:?}")?;
        }
        for Unexpected { job_id, due, paid } in unexpected {
            writeln!(f, "Unexpected {job_id}: {} to {} instead of {} to {}", paid.1, paid.0, due.1, due.0)?;
        }
        for Short { requester, node, token, missing } in short {
            writeln!(f, "Short {requester} to {node} in {token}: {missing} are still owed")?;
        }
        for Overpaid { requester, node, token, excess } in overpaid {
            writeln!(f, "Overpaid {requester} to {node} in {token}: {excess} more than was due")?;
        }
        Ok(())
    }
}
