//! What requesters owe the node, and whether they have it: a node works on credit no further than the chain says it can be
//! paid, whatever the API says.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use alloy::primitives::{Address, B256, U256};
use market::Amount;
use market::abi::Order;
use tokio::sync::Notify;

use super::earnings::{Channel, Earning, Earnings};
use super::settle::owed;
use super::verify::Refusal;
use crate::api::Assigned;
use crate::chain::Chain;

/// The node's earnings, and what it is about to earn.
pub struct Ledger {
    /// On disk.
    pub earnings: Earnings,
    chain: Chain,
    node: Address,
    max_unsettled: Option<Amount>,
    state: Mutex<State>,
    /// Held while a promise is weighed, so that two jobs do not count on the same money.
    weighing: tokio::sync::Mutex<()>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// Jobs under way, with the most that each may cost.
    promised: HashMap<B256, (Channel, U256)>,
    /// Results that the chain has paid, or whose money is locked while they wait.
    settled: HashSet<B256>,
}

/// A job under way counts until this is dropped.
pub struct Promise<'a> {
    ledger: &'a Ledger,
    job_id: B256,
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        self.ledger.lock().promised.remove(&self.job_id);
    }
}

impl Ledger {
    /// `max_unsettled` is the most that a requester may owe beyond what is reserved for this node.
    #[must_use]
    pub fn new(earnings: Earnings, chain: Chain, node: Address, max_unsettled: Option<Amount>) -> Self {
        let (state, weighing, changed) = Default::default();
        Self { earnings, chain, node, max_unsettled, state, weighing, changed }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that the requester can pay for the job on top of all that they owe this node, and counts it from now on.
    pub async fn promise(&self, job_id: B256, order: &Order) -> Result<Promise<'_>, Refusal> {
        let channel = Channel { requester: order.requester, token: order.token };
        let price = U256::from(order.maxPrice);
        let _weighing = self.weighing.lock().await;
        let unreadable = |error: anyhow::Error| Refusal(format!("cannot weigh what its requester owes: {error:#}"));
        let owed = self.owed(channel).await.map_err(unreadable)?;
        let funds = self.funds(channel).await.map_err(unreadable)?;
        weigh(owed, price, funds, self.max_unsettled)?;
        self.lock().promised.insert(job_id, (channel, price));
        Ok(Promise { ledger: self, job_id })
    }

    /// What the requester owes by the node's own books, jobs under way included.
    pub async fn owed(&self, channel: Channel) -> anyhow::Result<U256> {
        let voucher = self.earnings.voucher(channel)?;
        let mut earnings = self.earnings.open_ones()?;
        earnings.extend(self.earnings.closed_ones()?);
        earnings.retain(|earning| earning.channel() == channel);
        let paid = self.chain.escrow().channel(channel.requester, self.node, channel.token).call().await?;
        let closed: HashSet<B256> = self.earnings.closed_ones()?.iter().map(|earning| earning.job_id).collect();
        let state = self.lock();
        let is_settled = |job_id: B256| state.settled.contains(&job_id) || closed.contains(&job_id);
        let done = owed((paid.claimed, paid.coveredNonce), voucher.as_ref(), &earnings, is_settled);
        let known: HashSet<B256> = earnings.iter().map(|earning| earning.job_id).collect();
        let under_way = state.promised.iter().filter(|(id, (of, _))| *of == channel && !known.contains(*id));
        Ok(under_way.fold(done, |sum, (_, (_, price))| sum.saturating_add(*price)))
    }

    async fn funds(&self, channel: Channel) -> anyhow::Result<Funds> {
        let escrow = self.chain.escrow();
        let account = escrow.account(channel.requester, channel.token).call().await?;
        let reservation = escrow.reservation(channel.requester, self.node, channel.token).call().await?;
        // What thaws is as good as gone.
        let reserved = reservation.reserved.saturating_sub(reservation.thawing);
        Ok(Funds { free: U256::from(account.free), reserved })
    }

    /// A result was made; from here on it is on disk.
    pub fn earned(&self, earning: &Earning) -> std::io::Result<()> {
        self.earnings.keep(earning)
    }

    /// The API took the result.
    pub fn acknowledged(&self, job_id: B256, assignment: Option<Assigned>) -> anyhow::Result<()> {
        self.earnings.acknowledge(job_id, assignment, market::clock::now())?;
        self.changed.notify_one();
        Ok(())
    }

    /// The result is not handed out.
    pub fn withheld(&self, job_id: B256) -> anyhow::Result<()> {
        self.earnings.drop_unacknowledged(job_id)
    }

    /// What the chain says of a result.
    pub fn set_settled(&self, job_id: B256, is_settled: bool) {
        let mut state = self.lock();
        if is_settled {
            state.settled.insert(job_id);
        } else {
            state.settled.remove(&job_id);
        }
    }

    /// Whether the chain has paid the result, or locked its money.
    pub fn is_settled(&self, job_id: B256) -> bool {
        self.lock().settled.contains(&job_id)
    }

    /// Forgets what is not among `open` any more.
    pub fn keep_only(&self, open: &HashSet<B256>) {
        self.lock().settled.retain(|job_id| open.contains(job_id));
    }

    /// Waits until a result is acknowledged.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// What a requester can pay with.
#[derive(Debug, Clone, Copy)]
struct Funds {
    /// Which all nodes draw on.
    free: U256,
    /// For this node only.
    reserved: U256,
}

fn weigh(owed: U256, price: U256, funds: Funds, max_unsettled: Option<Amount>) -> Result<(), Refusal> {
    let total = owed.saturating_add(price);
    let has = funds.free.saturating_add(funds.reserved);
    if total > has {
        return Err(Refusal(format!(
            "its requester has {has} by the chain, and would owe this node {total}: {owed} already and {price} for it"
        )));
    }
    match max_unsettled {
        Some(most) if total > funds.reserved.saturating_add(most.0) => Err(Refusal(format!(
            "its requester would owe this node {total}, more than the {most} that --max-unsettled allows beyond the {} \
             reserved for it",
            funds.reserved
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_ends_where_the_money_does_or_where_the_operator_says() {
        let n = |n: u64| U256::from(n);
        let weigh = |owed, price, free, reserved, most: Option<u128>| {
            let funds = Funds { free: n(free), reserved: n(reserved) };
            weigh(n(owed), n(price), funds, most.map(Amount::from)).map_err(|refusal| refusal.0)
        };
        weigh(0, 100, 100, 0, None).unwrap();
        weigh(50, 100, 100, 50, None).unwrap();
        assert!(
            weigh(51, 100, 100, 50, None).unwrap_err().contains("has 150 by the chain, and would owe this node 151")
        );
        weigh(50, 100, 1000, 50, Some(100)).unwrap();
        assert!(weigh(51, 100, 1000, 50, Some(100)).unwrap_err().contains("--max-unsettled"));
        weigh(0, 100, 0, 100, Some(0)).unwrap();
    }
}
