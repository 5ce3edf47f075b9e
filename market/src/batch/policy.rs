//! When a batch is worth sending.

use std::collections::BTreeMap;

use alloy::primitives::{Address, U256};
use chrono::{DateTime, TimeDelta, Utc};

use super::{Batch, Call, Candidate};

/// Gas of a transaction without items.
const BASE_GAS: u64 = 30_000;
/// Parts of a whole that a share is given in.
const BASIS_POINTS: u64 = 10_000;

/// What a token is worth: `wei` for `units` of its smallest unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Wei.
    pub wei: u128,
    /// Smallest units of the token; not zero.
    pub units: u128,
}

/// What bounds a batch, and when one is worth sending.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most items in one transaction; at least one is always allowed.
    pub max_items: usize,
    /// Most gas of one transaction: a share of the block's limit, and below [`super::TRANSACTION_GAS_CAP`].
    pub max_gas: u64,
    /// A batch of as many items is sent without waiting for more.
    pub min_items: usize,
    /// How long results wait for others to join them.
    pub max_wait: TimeDelta,
    /// How long vouchers wait for others to join them, or for better ones.
    pub voucher_wait: TimeDelta,
    /// Nothing waits longer than this, be gas as dear as it may within the caps.
    pub max_age: TimeDelta,
    /// What has less time than this to the end of its chance does not wait at all.
    pub urgent_within: TimeDelta,
    /// What has less time than this to its deadline would come too late: it is not sent.
    pub deadline_margin: TimeDelta,
    /// What a unit of gas costs now, in wei.
    pub gas_price: u128,
    /// Whether gas is dearer than it is hoped to become.
    pub gas_is_dear: bool,
    /// Most of a batch's worth, in basis points, that its gas may take.
    pub max_gas_share_bps: Option<u64>,
    /// What tokens are worth, besides the native coin.
    pub rates: BTreeMap<Address, Rate>,
}

impl Limits {
    /// What `call` pays, in wei; nothing if nobody said what its token is worth.
    #[must_use]
    pub fn worth(&self, call: &Call) -> Option<U256> {
        let (token, amount) = call.payment();
        if token.is_zero() {
            return Some(U256::from(amount));
        }
        let rate = self.rates.get(&token)?;
        Some(U256::from(amount) * U256::from(rate.wei) / U256::from(rate.units.max(1)))
    }

    /// `full`: nothing more fits into it.
    pub(super) fn is_due(&self, batch: &Batch, full: bool, now: DateTime<Utc>) -> bool {
        let waited = |at_least: TimeDelta| batch.items.iter().any(|item| now - item.ready_at >= at_least);
        if batch.items.iter().any(|item| item.reverts > 0 || self.presses(item, now)) || waited(self.max_age) {
            return true;
        }
        if self.gas_is_dear {
            return false;
        }
        let joined = waited(match batch.kind {
            super::Kind::Redeem => self.voucher_wait,
            super::Kind::Submit | super::Kind::Finalize => self.max_wait,
        });
        full || batch.items.len() >= self.min_items.min(self.max_items) || (joined && self.pays_off(batch))
    }

    /// Whether time takes the item's chance away soon.
    pub(super) fn presses(&self, item: &Candidate, now: DateTime<Utc>) -> bool {
        let until = |end: DateTime<Utc>| end - now < self.urgent_within;
        item.seconds_left(now).is_some_and(|left| left < self.urgent_within.num_seconds())
            || item.ends_at.is_some_and(until)
    }

    /// Whether gas takes no more of what the batch pays than allowed. What cannot be weighed is taken to be worth it.
    fn pays_off(&self, batch: &Batch) -> bool {
        let Some(share) = self.max_gas_share_bps else { return true };
        let Some(worth) = batch.items.iter().map(|item| self.worth(&item.call)).sum::<Option<U256>>() else {
            return true;
        };
        let gas = batch.items.iter().map(|item| usual_gas(&item.call)).sum::<u64>() + BASE_GAS;
        U256::from(gas) * U256::from(self.gas_price) * U256::from(BASIS_POINTS) <= worth * U256::from(share)
    }
}

/// What an item usually takes, in a batch of some size.
fn usual_gas(call: &Call) -> u64 {
    match call {
        Call::Submit(result) if result.orderSignature.is_empty() => 40_000,
        Call::Submit(_) => 65_000,
        Call::Finalize(..) => 35_000,
        Call::Redeem(redemption) if redemption.packed().is_some() => 18_000,
        Call::Redeem(_) => 35_000,
    }
}
